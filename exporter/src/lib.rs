//! An OTLP/HTTP exporter of spans, log records and metrics for `opentelemetry_sdk` without a buffer of its own: one `export`
//! is one answered request.
//!
//! ```
//! use opentelemetry::{Context, trace::{Span, Tracer, TracerProvider}};
//! use opentelemetry_otlp_direct::{DirectExporter, ExportToken};
//! use opentelemetry_sdk::trace::SdkTracerProvider;
//!
//! # use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
//! # #[derive(Debug)]
//! # struct Accepting;
//! # #[async_trait::async_trait]
//! # impl HttpClient for Accepting {
//! #     async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
//! #         assert_eq!(request.headers()["authorization"], "Bearer token-of-this-request");
//! #         Ok(Response::new(Bytes::new()))
//! #     }
//! # }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Reads OTEL_EXPORTER_OTLP_*; by default it sends to http://localhost:4318/v1/traces.
//! let exporter = DirectExporter::builder()
//! #   .with_http_client(Accepting)
//!     .build()?;
//! let handle = exporter.handle();
//! let provider = SdkTracerProvider::builder().with_simple_exporter(exporter).build();
//!
//! // Spans that are exported under this context are sent under this token.
//! let cx = ExportToken::new("token-of-this-request")?.attach_to(&Context::current());
//! let _guard = cx.attach();
//! provider.tracer("shop").start("checkout").end();
//!
//! assert_eq!(handle.stats().exported(), 1);
//! # Ok(())
//! # }
//! ```
//!
//! # What it does
//!
//! - [`DirectExporter`] encodes what it is given straight to bytes, sends it, retries what may be retried, and returns when
//!   the collector has answered. Nothing is kept for later, so nothing is lost later: every failure is in the result of
//!   `export`, in [`ExporterStats`], and in a warning.
//! - It does so for traces, logs and metrics: each provider of the SDK gets a clone of one exporter. What a [`Signal`] has of
//!   its own, such as an endpoint, is set by the standard variables or with
//!   [`with_signal`](DirectExporterBuilder::with_signal).
//! - [`DirectExporter::check`] says whether endpoint, path and credentials work.
//! - [`ExportToken`] is a credential that travels in a [`Context`](opentelemetry::Context). `DirectExporter` sends it;
//!   [`TokenClient`] and `TokenInterceptor` (feature `tonic`) send it under other exporters.
//!
//! # When not to use it
//!
//! It sends what it is given, when it is given it. Batching is the work of processors and readers: under the SDK's simple
//! processor each span is a request. The SDK's batch processors export without the context of the request, so tokens in
//! contexts need a processor that keeps it, such as `opentelemetry-per-request`. For OTLP over gRPC, use
//! `opentelemetry-otlp`.
//!
//! # Features
//!
//! | feature | default | brings |
//! |---|---|---|
//! | `reqwest` | yes | the default HTTP client, on a runtime of its own: it works on any thread |
//! | `hyper` | | the same with hyper, without `https` |
//! | `reqwest-blocking` | | the same with reqwest's blocking client, a thread per request |
//! | `tls` | | `https` for the two reqwest clients |
//! | `gzip` | yes | [`Compression::Gzip`] |
//! | `logs` | yes | log records, as a `LogExporter` |
//! | `metric-export` | yes | metrics, as a `PushMetricExporter` |
//! | `json` | yes | [`Encoding::Json`] |
//! | `metrics` | yes | the exporter's own metrics, named as the semantic conventions for SDK metrics have them |
//! | `tonic` | | `TokenInterceptor` for gRPC exporters |
//! | `internal-logs` | yes | warnings, through `tracing` |
//! | `worker` | | Cloudflare Workers, see below; natively nothing |
//!
//! With several clients on, the first one in this table is the default.
//!
//! # In Cloudflare Workers
//!
//! Depend on it with `default-features = false, features = ["worker"]` and build for `wasm32-unknown-unknown`, with Rust
//! 1.91 or later. `gzip`, `logs`, `metric-export`, `json`, `metrics`, `tonic` and `internal-logs` can be added. The features
//! that bring a native client cannot: they do not compile for wasm, which shows as an error in `opentelemetry-http`.
//!
//! ```
//! # #[cfg(target_family = "wasm")]
//! # mod worker_only {
//! use opentelemetry_otlp_direct::{ConfigError, DirectExporter};
//!
//! fn exporter(env: &worker::Env) -> Result<DirectExporter, ConfigError> {
//!     DirectExporter::builder().with_worker_env(env).build()
//! }
//! # }
//! ```
//!
//! - Settings are variables and secrets of the Worker, under the same names. There is no default endpoint.
//!   A signal without one is not sent: its exports fail, and are counted as `no_endpoint`.
//! - Metrics have delta temporality, since isolates come and go (`with_temporality`).
//! - The HTTP client is `FetchClient`, over the Workers' `fetch`. The request is on its way when an export was polled
//!   once. To see what became of it after the Worker has responded, give the export to `wait_until`.
//! - Build the exporter inside a request and keep it for the next ones: outside of requests there is no randomness, no
//!   network and no timer. Exports of several requests can run at the same time and never wait for each other.
//! - Warnings are lines on the console that start with `opentelemetry-otlp-direct: `, as errors where something was lost.
//!   They do not need `internal-logs`, which brings debug lines only.

#![forbid(unsafe_code)]

#[cfg(all(target_family = "wasm", not(feature = "worker")))]
compile_error!(
    "for wasm, depend on opentelemetry-otlp-direct with default-features = false, features = [\"worker\"]"
);

#[cfg(target_family = "wasm")]
mod bindings;
mod check;
mod circuit;
mod client;
mod clock;
mod compress;
mod config;
mod credentials;
#[cfg(feature = "metric-export")]
mod data_points;
mod delivery;
pub mod encode;
mod endpoint;
mod env;
mod error;
mod exporter;
/// For the fuzz targets in `fuzz`, which are built with this `cfg`, and for the tests of this crate.
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod hostile;
mod log;
mod pipeline;
#[cfg(all(test, races = "loom"))]
mod races;
mod random;
mod redact;
mod response;
mod retry;
mod settings;
mod signal;
mod stats;
mod sync;
mod telemetry;

#[cfg(target_family = "wasm")]
pub use client::FetchClient;
pub use client::TokenClient;
#[cfg(feature = "tonic")]
pub use client::TokenInterceptor;
pub use config::{Compression, DirectExporterBuilder};
pub use credentials::{ExportToken, InvalidToken};
pub use encode::Encoding;
pub use error::{CheckError, ConfigError, TransportError};
pub use exporter::{DirectExporter, ExporterHandle};
pub use retry::RetryPolicy;
pub use settings::SignalSettings;
pub use signal::Signal;
pub use stats::{ExporterStats, FailureReason};

/// Keeps the example of the README compiling.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
