//! What starts the spans of a request, and keeps the request open: carried by its context.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::sync::Arc;

use opentelemetry::Context;
use opentelemetry::global::{self, BoxedSpan, BoxedTracer};
use opentelemetry::trace::{Span, SpanBuilder, SpanId, TraceContextExt as _, Tracer};

use super::child::ChildSpan;
use super::run::{InSpan, Outcome};
use crate::handle::{Handle, Hold};

/// The instrumentation scope of spans that nobody named a tracer for.
const SCOPE: &str = env!("CARGO_PKG_NAME");

/// What starts the spans of a request, below its first one too, and what keeps a request open while work of it goes on.
///
/// It is carried in the [`Context`] of each request, by the layer that serves it or by [`run`](Self::run), so neither a
/// global tracer provider nor a single one per process is needed. Cheap to clone.
///
/// ```
/// # use opentelemetry_sdk::trace::InMemorySpanExporter;
/// use opentelemetry::Context;
/// use opentelemetry::trace::TracerProvider as _;
/// use opentelemetry_per_request::{PerRequestSpanProcessor, RequestTracer, in_child};
/// use opentelemetry_sdk::trace::SdkTracerProvider;
///
/// # futures_executor::block_on(async {
/// let processor = PerRequestSpanProcessor::builder(InMemorySpanExporter::default()).build()?;
/// let telemetry = processor.handle();
/// let provider = SdkTracerProvider::builder().with_span_processor(processor).build();
/// let tracer = RequestTracer::new(provider.tracer("jobs")).with_handle(telemetry.clone());
///
/// // A job from a queue, under whatever its spans are to be exported under.
/// tracer.run("job", &Context::new(), async {
///     in_child("step", async {}).await;
/// }).await;
///
/// telemetry.flush().await?;
/// assert_eq!(telemetry.stats().exported, 2);
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
#[derive(Clone)]
pub struct RequestTracer {
    /// The global one if there is none.
    tracer: Option<Arc<BoxedTracer>>,
    handle: Option<Handle>,
    /// The first span of the request, in a context of one.
    root: Option<SpanId>,
}

impl RequestTracer {
    /// Spans are started by `tracer`.
    pub fn new<T, S>(tracer: T) -> Self
    where
        T: Tracer<Span = S> + Send + Sync + 'static,
        S: Span + Send + Sync + 'static,
    {
        Self {
            tracer: Some(Arc::new(BoxedTracer::new(Box::new(tracer)))),
            handle: None,
            root: None,
        }
    }

    /// Spans are started by the tracer of the request that they are part of, and without one by whatever the global
    /// tracer provider is at that moment. Until one is set, no span is recorded.
    ///
    /// So it may be made before the provider is: at the start of a Worker, for `tracing`.
    pub fn global() -> Self {
        Self {
            tracer: None,
            handle: None,
            root: None,
        }
    }

    /// Keeps requests of this processor open for work that is [carried](super::Carry) out of them.
    #[must_use]
    pub fn with_handle(mut self, handle: Handle) -> Self {
        self.handle = Some(handle);
        self
    }

    /// Runs `work` in a span that starts under `parent`: a local root, if nothing in `parent` is active in this process.
    ///
    /// What is in `parent` is what all spans of this request are exported under. The span starts now, and ends as that of
    /// [`in_child`](super::in_child) does, marked as failed if `work` returns an `Err`.
    pub fn run<F>(&self, name: impl Into<Cow<'static, str>>, parent: &Context, work: F) -> InSpan<F>
    where
        F: Future<Output: Outcome>,
    {
        InSpan::recording(self.start(SpanBuilder::from_name(name), parent), work)
    }

    /// Starts a span under `parent`, with a kind, attributes, links, or a time to start at.
    pub fn start(&self, builder: SpanBuilder, parent: &Context) -> ChildSpan {
        ChildSpan::open(self.start_in(builder, parent))
    }

    /// The same, for somebody who ends it: the context in which it is active.
    pub(crate) fn start_in(&self, builder: SpanBuilder, parent: &Context) -> Context {
        let span = self.build(builder, parent);
        let of_parent = parent.get::<Self>();
        let mut below = match of_parent {
            // The global one is that of the request, if there is one.
            Some(of_parent) if self.tracer.is_none() => Self {
                tracer: of_parent.tracer.clone(),
                handle: of_parent.handle.clone().or_else(|| self.handle.clone()),
                root: None,
            },
            _ => self.clone(),
        };
        let is_child = {
            let parent = parent.span();
            let parent = parent.span_context();
            parent.is_valid() && !parent.is_remote()
        };
        below.root = match is_child {
            true => of_parent.and_then(|of_parent| of_parent.root),
            false => Some(span.span_context().span_id()),
        };
        // After the start: what is saved of `parent` is to own no tracer, because that would keep the provider.
        parent.with_value(below).with_span(span)
    }

    /// The first span of the request of `cx`, if it was started by one of these.
    #[cfg(feature = "tracing")]
    pub(crate) fn root_of(cx: &Context) -> Option<SpanId> {
        cx.get::<Self>()?.root
    }

    pub(super) fn build(&self, builder: SpanBuilder, parent: &Context) -> BoxedSpan {
        let of_request = || parent.get::<Self>()?.tracer.as_ref();
        match self.tracer.as_ref().or_else(of_request) {
            Some(tracer) => tracer.build_with_context(builder, parent),
            None => global::tracer(SCOPE).build_with_context(builder, parent),
        }
    }

    /// Keeps the request of `cx` open, if `cx` says how.
    pub(super) fn hold(cx: &Context) -> Option<Hold> {
        let handle = cx.get::<Self>()?.handle.as_ref()?;
        Some(handle.hold(cx))
    }
}

/// For whatever starts spans by itself, such as `tracing-opentelemetry`.
///
/// While an export is under way no span is started, whatever its parent is: otherwise an HTTP client that makes spans with
/// `tracing`, as `h2` does, would have those exported too, and make spans again.
impl Tracer for RequestTracer {
    type Span = BoxedSpan;

    fn build_with_context(&self, builder: SpanBuilder, parent: &Context) -> BoxedSpan {
        match Context::is_current_telemetry_suppressed() {
            true => self.build(builder, &parent.with_telemetry_suppressed()),
            false => self.build(builder, parent),
        }
    }
}

impl fmt::Debug for RequestTracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestTracer")
            .field("handle", &self.handle)
            .finish_non_exhaustive()
    }
}
