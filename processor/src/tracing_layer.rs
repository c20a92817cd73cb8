//! `tracing` just works: the layer for users who write `#[tracing::instrument]` and `info!`.

use std::borrow::Cow;
use std::fmt::Debug;
use std::thread::panicking;

use opentelemetry::trace::{SpanId, TraceId};
use opentelemetry::{Context, KeyValue};
use tracing_core::field::{Field, Visit};
use tracing_core::span::Id;
use tracing_core::subscriber::Interest;
use tracing_core::{Event, Metadata, Subscriber};
use tracing_opentelemetry::OpenTelemetryLayer;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context as Subscribed, Filter};
use tracing_subscriber::registry::LookupSpan;

use crate::active::{RequestTracer, active_span};

/// The layer that makes spans and events of `tracing` those of the request that they happen in.
///
/// Spans are started by `tracer`; [`RequestTracer::global`] may be given before there is a provider, as in a Worker's
/// `#[event(start)]`. Give it to a `Registry` by a `.with(…)` of its own, once for the process. Filters may be added:
/// `.with_filter(LevelFilter::INFO)`.
///
/// ```
/// # mod shop {
/// use opentelemetry::Context;
/// use opentelemetry::trace::TracerProvider as _;
/// # use opentelemetry_sdk::trace::InMemorySpanExporter;
/// use opentelemetry_per_request::{PerRequestSpanProcessor, RequestTracer, tracing_layer};
/// use opentelemetry_sdk::trace::SdkTracerProvider;
/// use tracing_subscriber::layer::SubscriberExt as _;
///
/// #[tracing::instrument]
/// async fn load(id: i64) {
///     tracing::info!(id, "looked up");
/// }
///
/// # pub fn main() -> Result<(), Box<dyn std::error::Error>> { futures_executor::block_on(async {
/// # let exporter = InMemorySpanExporter::default();
/// let processor = PerRequestSpanProcessor::builder(exporter).build()?;
/// let telemetry = processor.handle();
/// let provider = SdkTracerProvider::builder().with_span_processor(processor).build();
/// let tracer = RequestTracer::new(provider.tracer("shop")).with_handle(telemetry.clone());
///
/// let subscriber = tracing_subscriber::registry().with(tracing_layer(tracer.clone()));
/// tracing::subscriber::set_global_default(subscriber)?;
///
/// // What `ServerLayer` does for each request, and `Telemetry` in Workers.
/// tracer.run("request", &Context::new(), load(4711)).await;
///
/// telemetry.flush().await?;
/// assert_eq!(telemetry.stats().exported, 2);
/// # Ok(()) }) }
/// # }
/// # shop::main().unwrap();
/// ```
///
/// # What becomes of what
///
/// - A span is a span below the active one: that of a tracing span, of [`in_child`](crate::in_child), of the request.
///   It is right over every `await`, and exported under its request's context. It ends when it is closed, so also when
///   its future is dropped.
/// - An event is an event of the current tracing span, also inside of an `in_child` below it. Where no tracing span is
///   current, or only one of another trace, as that of a connection is, it is one of the active span: that of the layer
///   that serves the request, or of a Worker's event. Where there is no span at all, it is not kept.
/// - `error!` and `#[instrument(err)]` mark the tracing span as failed. The span of the request is not marked by an
///   event: what has failed there is said by its response.
/// - A span that is left by a panic is marked as failed, with `error.type` `panic`. A Worker unwinds only if it is
///   built to; otherwise `SetUp::with_panic_rescue` says it in the request's span.
/// - What the crate `h2` says of itself is left out. It makes a span for each connection and frame, outside of any
///   request: those of an exporter over gRPC would be exported, and so make spans, for ever.
///
/// Everything else is that of [`tracing-opentelemetry`]: the fields `otel.name`, `otel.kind` and `otel.status_code`,
/// links by `follows_from`, and `OpenTelemetrySpanExt`. Spans have the attributes `target` and, natively, `code.*`;
/// neither the thread that they began on nor the time they were busy, which for a future that waits and moves say
/// little, and in Workers nothing.
///
/// # With settings of your own
///
/// [`RequestTracer`] is a tracer as `tracing-opentelemetry` wants one: `OpenTelemetryLayer::new(tracer)` with whichever
/// settings works natively and in Workers. Then events outside of tracing spans are dropped, panics are not marked, and the
/// target `h2` is yours to filter out.
///
/// # What to know
///
/// - The span starts when it is first entered, not when it is made. For a task that outlives its request, carry it,
///   outermost: `tokio::spawn(work.instrument(span).carried())`, with [`Carry`](crate::Carry). Otherwise it may be
///   late.
/// - `parent: None` makes a span that is no part of the request, nor under its credentials.
/// - A tracing span that is opened inside of OpenTelemetry's `get_active_span` or `Context::map_current` aborts the
///   process, because no context can be attached there. [`active_span`] is no such place.
/// - A guard of `span.enter()` that is held over an `await` makes that span the parent of whatever else runs on the thread.
///
/// # Panics
///
/// `with` does, if the subscriber is none over a `Registry`.
///
/// [`tracing-opentelemetry`]: https://docs.rs/tracing-opentelemetry
pub fn tracing_layer<S>(tracer: RequestTracer) -> impl Layer<S> + Send + Sync + 'static
where
    S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
{
    let spans = OpenTelemetryLayer::new(tracer)
        .with_location(cfg!(not(target_family = "wasm")))
        .with_threads(false)
        .with_tracked_inactivity(false);
    // In this order, the first sees a span's exit while its context is still current, and the last its entry when it
    // is. All have a filter, because one that has none is switched off by those of the others.
    ActiveSpanLayer
        .with_filter(Kept { own_events: false })
        .and_then(spans.with_filter(Kept { own_events: true }))
        .and_then(RequestLayer.with_filter(Kept { own_events: false }))
}

/// The targets of the SDK's and of our own warnings.
const OF_THE_SDK: &str = "opentelemetry";

/// What is kept at all, and of events perhaps only those that are the current tracing span's own.
#[derive(Clone, Copy, Debug)]
struct Kept {
    own_events: bool,
}

impl<S> Filter<S> for Kept
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    fn enabled(&self, metadata: &Metadata<'_>, _: &Subscribed<'_, S>) -> bool {
        !metadata.target().starts_with("h2::")
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        match metadata.target().starts_with("h2::") {
            // It says much, and this costs nothing.
            true => Interest::never(),
            false => Interest::sometimes(),
        }
    }

    fn event_enabled(&self, event: &Event<'_>, subscribed: &Subscribed<'_, S>) -> bool {
        // The SDK warns while it has borrowed the current context, which must not be asked for then.
        !self.own_events
            || event.metadata().target().starts_with(OF_THE_SDK)
            || !event.is_contextual()
            || !is_foreign(subscribed)
    }
}

/// In the extensions of a tracing span: the request that it is part of.
#[derive(Debug)]
struct RequestOf(Request);

/// A trace, and the first span of a request in this process if anybody has noted that: two may continue the same trace.
type Request = (TraceId, Option<SpanId>);

/// The request that runs here. None if it is only known of elsewhere.
fn current_request() -> Option<Request> {
    let span = active_span();
    let trace = span.trace_id()?;
    let here = !span.span_context().is_remote();
    here.then(|| (trace, RequestTracer::root_of(span.context())))
}

/// Notes of each span which request it is part of.
#[derive(Debug)]
struct RequestLayer;

impl<S> Layer<S> for RequestLayer
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    fn on_enter(&self, id: &Id, subscribed: Subscribed<'_, S>) {
        if let (Some(span), Some(request)) = (subscribed.span(id), current_request()) {
            span.extensions_mut().replace(RequestOf(request));
        }
    }
}

/// Whether the current tracing span is of another request than the active span: that of a connection, outside of the layer that
/// serves its requests, or of a request that has called another one in this process. What happens in a request is no business
/// of those, which leave under other credentials.
fn is_foreign<S>(subscribed: &Subscribed<'_, S>) -> bool
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let Some(current) = subscribed.lookup_current() else {
        return false;
    };
    let extensions = current.extensions();
    match (extensions.get::<RequestOf>(), current_request()) {
        (Some(RequestOf(of_current)), Some(active)) => *of_current != active,
        (None, active) => active.is_some(),
        (Some(_), None) => false,
    }
}

/// What `tracing-opentelemetry` does not do: events outside of tracing spans, and panics.
#[derive(Debug)]
struct ActiveSpanLayer;

/// In the extensions of a span that was entered by a drop while a panic unwinds: it is not what panicked.
#[derive(Debug)]
struct EnteredByUnwinding;

impl<S> Layer<S> for ActiveSpanLayer
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    fn on_enter(&self, id: &Id, subscribed: Subscribed<'_, S>) {
        if panicking() {
            if let Some(span) = subscribed.span(id) {
                span.extensions_mut().replace(EnteredByUnwinding);
            }
        }
    }

    fn on_exit(&self, id: &Id, subscribed: Subscribed<'_, S>) {
        if panicking() {
            let entered = subscribed
                .span(id)
                .and_then(|span| span.extensions_mut().remove::<EnteredByUnwinding>());
            if entered.is_none() {
                active_span().fail_with("panic", "panicked");
            }
        }
    }

    fn on_event(&self, event: &Event<'_>, subscribed: Subscribed<'_, S>) {
        let metadata = event.metadata();
        if metadata.target().starts_with(OF_THE_SDK) {
            return;
        }
        // A span that is named has it already; with `parent: None` nobody is to have it.
        if !event.is_contextual() {
            return;
        }
        // So has the current one, if it is of this request.
        if subscribed.lookup_current().is_some() && !is_foreign(&subscribed) {
            return;
        }
        let span = active_span();
        if !span.is_recording() || Context::is_current_telemetry_suppressed() {
            return;
        }
        let mut fields = Fields {
            message: None,
            attributes: vec![
                KeyValue::new("level", metadata.level().as_str()),
                KeyValue::new("target", metadata.target()),
            ],
        };
        event.record(&mut fields);
        let name = fields.message.map_or(metadata.name().into(), Cow::Owned);
        span.add_event(name, fields.attributes);
    }
}

/// An event's fields, with the names and types that `tracing-opentelemetry` has them by.
#[derive(Debug)]
struct Fields {
    message: Option<String>,
    attributes: Vec<KeyValue>,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let value = format!("{value:?}");
        match field.name() {
            "message" => self.message = Some(value),
            name => self.attributes.push(KeyValue::new(name, value)),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message = Some(value.to_owned()),
            name => self.attributes.push(KeyValue::new(name, value.to_owned())),
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.attributes.push(KeyValue::new(field.name(), value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.attributes.push(KeyValue::new(field.name(), value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.attributes.push(KeyValue::new(field.name(), value));
    }
}
