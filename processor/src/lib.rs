//! A span processor for `opentelemetry_sdk` that exports every span as it ends, under the saved context of its own request; a
//! log processor that does the same for log records, and a metric reader that collects when requests end.
//!
//! ```
//! # use opentelemetry_sdk::trace::InMemorySpanExporter;
//! use opentelemetry::Context;
//! use opentelemetry::trace::{Tracer as _, TracerProvider as _};
//! use opentelemetry_per_request::{Config, PerRequestSpanProcessor};
//! use opentelemetry_sdk::trace::SdkTracerProvider;
//!
//! # futures_executor::block_on(async {
//! # let exporter = InMemorySpanExporter::default();
//! // `exporter` is any `SpanExporter`: `DirectExporter`, or one of `opentelemetry-otlp`.
//! let processor = PerRequestSpanProcessor::builder(exporter)
//!     .with_config(Config::from_env())
//!     .build()?;
//! let telemetry = processor.handle();
//! let provider = SdkTracerProvider::builder().with_span_processor(processor).build();
//! let tracer = provider.tracer("shop");
//!
//! // Whatever a request's root span starts under is there again when its spans are exported.
//! #[derive(Debug)]
//! struct Tenant(&'static str);
//! let guard = Context::current_with_value(Tenant("blue")).attach();
//! tracer.in_span("request", |_cx| tracer.in_span("step", |_cx| {}));
//! drop(guard);
//!
//! // Everything that has ended so far is acknowledged, or the error says what was lost.
//! telemetry.flush().await?;
//! assert_eq!(telemetry.stats().exported, 2);
//! # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
//! ```
//!
//! # What it promises
//!
//! - **Every sampled span that ends is exported, soon**, in batches of at most 64 spans of one request: about a
//!   millisecond later, also while its root span is still open.
//! - **Under the context of its own request.** The context that a request's first local span started in is saved, without
//!   the live span in it, and is current whenever that request's spans are exported. So an exporter, an HTTP client or a
//!   gRPC interceptor reads the request's credentials from `Context::current()`. Two requests that carry the same trace
//!   id are never mixed up.
//! - **Late spans too.** When more than `max_traces` are open, the least recently used is forgotten; a span of it that
//!   ends later is exported under the [fallback context](Builder::with_fallback_context), and marked.
//! - **Nothing outlives its request.** When the last span of a request has ended, its context leaves with the last batch.
//! - **It can account for each span**, at every moment: see [`Stats`]. Whatever is lost has a reason and a counter, and
//!   while the processor runs, a warning.
//! - **A flush tells the truth**: see [`Handle::flush`].
//! - **Everything is bounded**: traces, spans, concurrent exports and the time of each, by [`Config`].
//!
//! # Log records and metrics
//!
//! [`Telemetry`] makes the providers of all three signals, with one flush that says of each what became of it. Its parts are
//! `PerRequestSpanProcessor::log_processor` and `PerRequestSpanProcessor::metric_reader`.
//!
//! What is said of spans above holds for log records: a record belongs to the request of the span that it is emitted in, sampled
//! or not, and has a queue, a bound and export slots of its own, so neither signal waits for the other. Outside of any
//! request it leaves under the fallback context. Metrics leave under that, too.
//!
//! # Spans from deep inside of a request
//!
//! Code that was not handed a span reaches the active one with [`active_span`], and opens one below it with [`in_child`].
//! Work that outlives the call takes its request along with [`Carry`]. Layers for tower put a span around each request and
//! each call that goes out, and one for `tracing` makes the spans of `#[instrument]` part of the same.
//!
//! # Spans that are still open
//!
//! A span is exported when it ends. What takes long, hangs, or dies before that can be seen earlier: [`Config::with_open_events`]
//! has the collector told of each span that is still open after half a second, and a [`SpanObserver`] sees every span open,
//! be renamed and close in this process.
//!
//! # What it asks of an exporter
//!
//! `export` may be called again before an earlier call has ended, up to
//! [`max_concurrent_exports`](Config::with_max_concurrent_exports) times; set that to 1 for an exporter that takes the
//! words of the trait literally. All OTLP exporters of `opentelemetry-otlp` take concurrent calls. `export` may block its
//! thread. It is called on threads that belong to the processor and have entered a small Tokio runtime of its own, so
//! asynchronous clients work wherever the spans come from.
//!
//! # What it cannot do
//!
//! - A span that ends after its provider was shut down reaches no processor, so it is not in any of our numbers either.
//! - A request is known by the spans that were seen to start. A span that starts as a child of a span that was never
//!   recorded, or of a request that is over, cannot be assigned; it is late (`unknown_trace`). Work that goes on after a
//!   request should start its span while the request still has one open.
//! - A process that is killed takes with it what was not exported: at most a tick's worth, and what is in flight.
//!
//! # Features
//!
//! | feature | default | |
//! |---|---|---|
//! | `tokio` | yes | exports run inside a Tokio runtime of the processor's own |
//! | `metrics` | yes | the numbers of [`Stats`] as OpenTelemetry metrics (`otel.sdk.processor.span.processed`, `.queue.size`, `.queue.capacity`, `per_request.span.pending`, `per_request.span.late`, `per_request.trace.live`, `per_request.trace.evicted`, `per_request.open_event.processed`), and `per_request.export.duration` |
//! | `internal-logs` | yes | warnings, through `tracing` |
//! | `logs` | yes | `PerRequestLogProcessor`: log records join the requests that they are emitted in |
//! | `metric-reader` | yes | `PerRequestMetricReader`: metrics are collected and exported when requests end. It builds on the SDK's `experimental_metrics_custom_reader` |
//! | `tower` | | layers for tower: a span for each request that a server answers (module `server`), and for each that a client sends (module `client`) |
//! | `axum` | | spans of an axum server are named by the route that matched; brings `tower` |
//! | `reqwest` | | calls of a `reqwest::Client`; brings `tower` |
//! | `tracing` | | a layer for `tracing`: its spans and events become those of the request that they happen in (`tracing_layer`) |
//! | `worker` | | Cloudflare Workers, on `wasm32-unknown-unknown`: the module `workers`. Nothing anywhere else |
//!
//! # In Cloudflare Workers
//!
//! With `default-features = false, features = ["worker"]`, and Rust 1.91 or later. Everything above holds there, with the
//! differences that the module `workers` lists; it also has what a Worker puts around its events.

#![forbid(unsafe_code)]

mod active;
#[cfg(any(feature = "tower", target_family = "wasm"))]
pub mod client;
mod clock;
mod config;
// Each runtime uses a part of it. Natively all of that is looked at, so nothing dead stays there.
#[cfg_attr(target_family = "wasm", allow(dead_code))]
mod dispatch;
mod error;
mod export;
#[cfg(feature = "tower")]
mod grpc;
mod handle;
mod hash;
/// For the fuzz targets in `fuzz`, which are built with this `cfg`, and for the tests of this crate.
#[cfg(all(any(test, fuzzing), not(target_family = "wasm")))]
#[doc(hidden)]
pub mod hostile;
#[cfg(any(feature = "tower", target_family = "wasm", test))]
#[cfg_attr(
    not(all(feature = "tower", target_family = "wasm")),
    allow(
        dead_code,
        unreachable_pub,
        reason = "layers and Workers use a part of it each"
    )
)]
mod http;
#[cfg(feature = "logs")]
mod log_processor;
#[cfg(feature = "metrics")]
mod metrics;
mod notices;
pub mod observer;
mod open_form;
mod open_spans;
mod processor;
#[cfg(feature = "metric-reader")]
mod reader;
mod registry;
mod renames;
mod request;
mod runtime;
mod sampler;
#[cfg(feature = "tower")]
pub mod server;
mod signal;
mod stats;
mod sync;
mod telemetry;
#[cfg(test)]
mod testing;
#[cfg(feature = "tracing")]
mod tracing_layer;
#[cfg(target_family = "wasm")]
pub mod workers;
#[cfg(all(
    target_family = "wasm",
    not(all(target_os = "unknown", feature = "worker"))
))]
compile_error!(
    "on wasm this crate works in Cloudflare Workers only: build it for wasm32-unknown-unknown, with the feature `worker`"
);

pub use active::{
    ActiveSpan, CANCELLED_ATTRIBUTE, Carried, Carry, ChildSpan, InSpan, Outcome, RequestTracer,
    active_span, in_child, in_child_sync,
};
pub use config::{
    Config, DEFAULT_EXPORT_TIMEOUT, DEFAULT_MAX_BATCH_SIZE, DEFAULT_MAX_CONCURRENT_EXPORTS,
    DEFAULT_MAX_EXPORTS_PER_REQUEST, DEFAULT_MAX_PENDING_LOGS, DEFAULT_MAX_PENDING_SPANS,
    DEFAULT_MAX_SPANS_PER_TRACE, DEFAULT_MAX_TRACES, DEFAULT_METRIC_INTERVAL,
    DEFAULT_METRIC_PERIOD, DEFAULT_OPEN_EVENT_MIN_AGE, ENABLED, EXPORT_TIMEOUT_MS,
    EXPORT_UNFINISHED, FLUSH_TRIGGER, FlushTrigger, MAX_BATCH_SIZE, MAX_CONCURRENT_EXPORTS,
    MAX_EXPORTS_PER_REQUEST, MAX_PENDING_LOGS, MAX_PENDING_SPANS, MAX_SPANS_PER_TRACE, MAX_TRACES,
    METRIC_INTERVAL_MS, METRIC_PERIOD_MS, OPEN_EVENT_MIN_AGE_MS, OPEN_EVENTS, OpenEvents,
};
pub use error::{ConfigError, Deadlock, FlushError};
pub use handle::{Handle, Hold};
#[cfg(feature = "logs")]
pub use log_processor::PerRequestLogProcessor;
pub use observer::SpanObserver;
pub use open_form::{OPEN_EVENT_NAME, UNFINISHED_ATTRIBUTE};
pub use processor::{Builder, PerRequestSpanProcessor};
#[cfg(feature = "metric-reader")]
pub use reader::PerRequestMetricReader;
pub use sampler::RecordUnsampled;
pub use stats::{DropReason, Dropped, Late, LateReason, OpenEventStats, SignalStats, Stats};
pub use telemetry::{Telemetry, TelemetryBuilder, TelemetryError};
#[cfg(feature = "tracing")]
pub use tracing_layer::tracing_layer;
