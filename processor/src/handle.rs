//! What a user does with a running processor: flush it, shut it down, and ask it for its numbers.

use std::future::Future;
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry::trace::{SpanId, TraceContextExt as _, TraceId};
use opentelemetry_sdk::trace::{IdGenerator as _, RandomIdGenerator};

use crate::dispatch::Scope;
use crate::error::FlushError;
#[cfg(target_family = "wasm")]
use crate::request::RequestId;
use crate::runtime::Shared;
use crate::signal::{Signal, Signals};
use crate::stats::Stats;
use crate::sync::Arc;

/// A handle to a processor, also after the processor was given to a provider. Cheap to clone.
///
/// A handle does not keep the processor running: when the provider is shut down or dropped, so is the processor.
///
/// That of a span processor flushes and shuts down spans, that of a log processor or a metric reader log records or metrics, and
/// that of a [`Telemetry`](crate::Telemetry) all of them. What is said here of spans holds for each. Numbers are those of
/// all of them, and a request can be kept open by any.
///
/// ```
/// # use opentelemetry_sdk::trace::InMemorySpanExporter;
/// use opentelemetry::trace::{Tracer as _, TracerProvider as _};
/// use opentelemetry_per_request::PerRequestSpanProcessor;
/// use opentelemetry_sdk::trace::SdkTracerProvider;
///
/// # futures_executor::block_on(async {
/// let processor = PerRequestSpanProcessor::builder(InMemorySpanExporter::default()).build()?;
/// let telemetry = processor.handle();
/// let provider = SdkTracerProvider::builder().with_span_processor(processor).build();
///
/// provider.tracer("docs").in_span("work", |_cx| {});
///
/// telemetry.flush().await?;
/// assert_eq!(telemetry.stats().exported, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct Handle {
    /// None if the processor is not enabled.
    shared: Option<Arc<Shared>>,
    /// What it flushes and shuts down.
    signals: Signals,
}

impl Handle {
    pub(crate) fn new(shared: Option<Arc<Shared>>, signals: Signals) -> Self {
        Self { shared, signals }
    }

    /// Waits until every span that had ended before the call was exported, failed, or was dropped for a reason, and then
    /// calls the exporter's own `force_flush`. The deadline is the export timeout, 30 s by default.
    ///
    /// Spans that end during the call are not waited for. Success means that the exporter acknowledged all spans that
    /// ended since the last flush; it does not mean more than the exporter's word does.
    ///
    /// The future needs no particular runtime and does not block. It is cancel safe: what was under way goes on, and what
    /// it would have reported is left for the next flush. The flush starts when this method is called, not when the
    /// future is first polled.
    ///
    /// # Errors
    ///
    /// - [`FlushError::Lost`] if anything failed or was dropped since the last flush;
    /// - [`FlushError::Timeout`] if the deadline passed first;
    /// - [`FlushError::Exporter`] if the exporter's `force_flush` failed;
    /// - [`FlushError::Collect`] if it covers metrics, and they could not be collected;
    /// - [`FlushError::AlreadyShutdown`] after a shutdown.
    pub fn flush(&self) -> impl Future<Output = Result<(), FlushError>> + Send + use<> {
        self.flush_scope(Scope::All, None)
    }

    /// As [`flush`](Self::flush), with a deadline of its own.
    ///
    /// # Errors
    ///
    /// As [`flush`](Self::flush).
    pub fn flush_with_timeout(
        &self,
        timeout: Duration,
    ) -> impl Future<Output = Result<(), FlushError>> + Send + use<> {
        self.flush_scope(Scope::All, Some(timeout))
    }

    /// As [`flush`](Self::flush), for the spans of one trace only. It never waits for another trace's export.
    ///
    /// # Errors
    ///
    /// As [`flush`](Self::flush), with the losses of this trace since it was last flushed. Losses of the 1024 traces that
    /// had one last are remembered.
    pub fn flush_trace(
        &self,
        trace_id: TraceId,
    ) -> impl Future<Output = Result<(), FlushError>> + Send + use<> {
        self.flush_scope(Scope::Trace(trace_id), None)
    }

    /// Takes no more spans, flushes within the deadline, and shuts the exporter down.
    ///
    /// The provider's own `shutdown` does the same and blocks; this is the way for a place that must not block. A
    /// second call, such as the provider's shutdown after it, waits for the first one and does nothing else. When the
    /// deadline passes, spans that still wait for an export are dropped and counted as
    /// [`ShutdownTimeout`](crate::DropReason::ShutdownTimeout); exports in flight may end by themselves, and the
    /// exporter is shut down after them.
    ///
    /// # Errors
    ///
    /// As [`flush`](Self::flush); the processor is shut down nevertheless.
    pub fn shutdown(
        &self,
        timeout: Duration,
    ) -> impl Future<Output = Result<(), FlushError>> + Send + use<> {
        let signals = self.signals.iter();
        let shutdowns = self.shared.as_ref().map(|shared| {
            let shutdown = |signal| shared.shutdown(signal, timeout);
            signals.map(shutdown).collect::<Vec<_>>()
        });
        async move {
            let mut result = Ok(());
            for shutdown in shutdowns.into_iter().flatten() {
                result = result.and(shutdown.await);
            }
            result
        }
    }

    /// The processor's numbers at this moment. All zero if the processor is not enabled.
    ///
    /// Takes one short lock, which ending spans take too.
    pub fn stats(&self) -> Stats {
        self.shared
            .as_ref()
            .map(|shared| shared.stats())
            .unwrap_or_default()
    }

    /// Keeps the request open that the active span of `cx` belongs to, as an open span of it would, until what is
    /// returned is dropped.
    ///
    /// A request is over when the last of its spans has ended, and a span that starts below one of them after that is late
    /// (`unknown_trace`): nothing proves any more whose it is. Work that starts spans later can keep its request open with
    /// this, without a span of its own. [`Carry`](crate::Carry) does so.
    ///
    /// As long as it is kept, it counts as one of the [`max_spans_per_trace`](crate::Config::with_max_spans_per_trace)
    /// and takes a place among [`max_traces`](crate::Config::with_max_traces). It is forgotten with its trace if that
    /// is evicted. If the request is over already, or its trace is full, or no span is active, nothing is kept open or
    /// counted.
    ///
    /// ```
    /// # use opentelemetry_sdk::trace::InMemorySpanExporter;
    /// use opentelemetry::Context;
    /// use opentelemetry::trace::{TraceContextExt as _, Tracer as _, TracerProvider as _};
    /// use opentelemetry_per_request::PerRequestSpanProcessor;
    /// use opentelemetry_sdk::trace::SdkTracerProvider;
    ///
    /// # futures_executor::block_on(async {
    /// let processor = PerRequestSpanProcessor::builder(InMemorySpanExporter::default()).build()?;
    /// let telemetry = processor.handle();
    /// let provider = SdkTracerProvider::builder().with_span_processor(processor).build();
    /// let tracer = provider.tracer("docs");
    ///
    /// let cx = Context::new().with_span(tracer.start("request"));
    /// let hold = telemetry.hold(&cx);
    /// cx.span().end();
    /// drop(tracer.start_with_context("afterwards", &cx));
    /// drop(hold);
    ///
    /// telemetry.flush().await?;
    /// assert_eq!(telemetry.stats().late.total(), 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn hold(&self, cx: &Context) -> Hold {
        let span = cx.span();
        let parent = span.span_context();
        let shared = self.shared.clone().filter(|_| parent.is_valid());
        Hold {
            kept: shared.map(|shared| Kept::start(shared, parent.trace_id(), parent.span_id())),
        }
    }

    /// The same of one signal.
    pub(crate) fn of(&self, signal: Signal) -> Self {
        Self::new(self.shared.clone(), Signals::of(signal))
    }

    /// The same of all signals.
    pub(crate) fn of_all(&self) -> Self {
        Self::new(self.shared.clone(), Signals::ALL)
    }

    /// As [`flush`](Self::flush), for one request.
    #[cfg(target_family = "wasm")]
    pub(crate) fn flush_request(
        &self,
        id: RequestId,
    ) -> impl Future<Output = Result<(), FlushError>> + Send + use<> {
        self.of_all().flush_scope(Scope::Request(id), None)
    }

    /// Makes everything of a request leave that it has queued.
    #[cfg(target_family = "wasm")]
    pub(crate) fn send(&self, id: RequestId) {
        if let Some(shared) = &self.shared {
            shared.send(id);
        }
    }

    #[cfg(target_family = "wasm")]
    pub(crate) fn shared(&self) -> Option<&Arc<Shared>> {
        self.shared.as_ref()
    }

    fn flush_scope(
        &self,
        scope: Scope,
        timeout: Option<Duration>,
    ) -> impl Future<Output = Result<(), FlushError>> + Send + use<> {
        let flush = self.shared.as_ref().map(|shared| {
            let timeout = timeout.unwrap_or_else(|| shared.default_timeout());
            shared.flush(self.signals, scope, timeout)
        });
        done_or(flush)
    }
}

// ===== impl Hold =====

/// Keeps a request open until it is dropped: see [`Handle::hold`].
#[derive(Debug)]
#[must_use = "the request is kept open until this is dropped"]
pub struct Hold {
    kept: Option<Kept>,
}

/// A child of a span that is open in the registry and nowhere else.
#[derive(Debug)]
struct Kept {
    shared: Arc<Shared>,
    trace: TraceId,
    id: SpanId,
}

impl Kept {
    fn start(shared: Arc<Shared>, trace: TraceId, parent: SpanId) -> Self {
        let id = RandomIdGenerator::default().new_span_id();
        shared.hold(trace, parent, id);
        Self { shared, trace, id }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(kept) = self.kept.take() {
            kept.shared.release(kept.trace, kept.id);
        }
    }
}

/// What is not enabled has nothing to wait for.
async fn done_or(
    work: Option<impl Future<Output = Result<(), FlushError>>>,
) -> Result<(), FlushError> {
    match work {
        None => Ok(()),
        Some(work) => work.await,
    }
}
