//! What a user does with a running processor: flush it, shut it down, and ask it for its numbers.

use std::future::Future;
use std::time::Duration;

use futures_channel::oneshot;
use opentelemetry::trace::TraceId;

use crate::dispatch::Scope;
use crate::error::FlushError;
use crate::runtime::{Answer, Shared, Told};
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
        outcome(self.start(|shared, answer| shared.shutdown(timeout, answer)))
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

    fn flush_scope(
        &self,
        scope: Scope,
        timeout: Option<Duration>,
    ) -> impl Future<Output = Result<(), FlushError>> + Send + use<> {
        outcome(self.start(|shared, answer| {
            let timeout = timeout.unwrap_or_else(|| shared.default_timeout());
            shared.flush(scope, timeout, answer);
        }))
    }

    /// Starts something now, that is answered later.
    fn start(&self, start: impl FnOnce(&Arc<Shared>, Answer)) -> Option<Answered> {
        let shared = self.shared.clone()?;
        let (answer, told) = oneshot::channel();
        start(
            &shared,
            Box::new(move |message| {
                // Nobody listens any more if the future was dropped.
                let _ = answer.send(message);
            }),
        );
        Some(Answered { shared, told })
    }
}

struct Answered {
    shared: Arc<Shared>,
    told: oneshot::Receiver<Told>,
}

/// Ends with the result. Only then it counts as heard: a future that is dropped before has told nobody.
async fn outcome(answered: Option<Answered>) -> Result<(), FlushError> {
    match answered {
        None => Ok(()),
        Some(Answered { shared, told }) => match told.await {
            Ok(told) => shared.hear(told),
            Err(oneshot::Canceled) => Err(FlushError::AlreadyShutdown),
        },
    }
}
