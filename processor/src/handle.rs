//! What a user does with a running processor: flush it, shut it down, and ask it for its numbers.

use std::future::Future;
use std::time::Duration;

#[cfg(target_family = "wasm")]
use opentelemetry::Context;
#[cfg(target_family = "wasm")]
use opentelemetry::trace::TraceContextExt as _;
use opentelemetry::trace::TraceId;

use crate::dispatch::Scope;
use crate::error::FlushError;
#[cfg(target_family = "wasm")]
use crate::request::RequestId;
#[cfg(target_family = "wasm")]
use crate::runtime::Hold;
use crate::runtime::Shared;
use crate::stats::Stats;
use crate::sync::Arc;

/// A handle to a processor, also after the processor was given to a provider. Cheap to clone.
///
/// A handle does not keep the processor running: when the provider is shut down or dropped, so is the processor.
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
}

impl Handle {
    pub(crate) fn new(shared: Option<Arc<Shared>>) -> Self {
        Self { shared }
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
    /// The provider's own `shutdown` does the same and blocks; this is the way for a place that must not block. A second
    /// call, such as the provider's shutdown after it, waits for the first one and does nothing else. When the deadline passes, spans that still
    /// wait for an export are dropped and counted as
    /// [`ShutdownTimeout`](crate::DropReason::ShutdownTimeout); exports in flight may end by themselves, and the exporter
    /// is shut down after them.
    ///
    /// # Errors
    ///
    /// As [`flush`](Self::flush); the processor is shut down nevertheless.
    pub fn shutdown(
        &self,
        timeout: Duration,
    ) -> impl Future<Output = Result<(), FlushError>> + Send + use<> {
        let shutdown = self.shared.as_ref().map(|shared| shared.shutdown(timeout));
        done_or(shutdown)
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

    /// As [`flush`](Self::flush), for one request.
    #[cfg(target_family = "wasm")]
    pub(crate) fn flush_request(
        &self,
        id: RequestId,
    ) -> impl Future<Output = Result<(), FlushError>> + Send + use<> {
        self.flush_scope(Scope::Request(id), None)
    }

    /// Makes everything of a request leave that it has queued.
    #[cfg(target_family = "wasm")]
    pub(crate) fn send(&self, id: RequestId) {
        if let Some(shared) = &self.shared {
            shared.send(id);
        }
    }

    /// Keeps the request open that the active span of `cx` belongs to, if there is one.
    #[cfg(target_family = "wasm")]
    pub(crate) fn hold(&self, cx: &Context) -> Option<Hold> {
        let shared = self.shared.clone()?;
        let span = cx.span();
        let parent = span.span_context();
        parent
            .is_valid()
            .then(|| Hold::new(shared, parent.trace_id(), parent.span_id()))
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
            shared.flush(scope, timeout)
        });
        done_or(flush)
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
