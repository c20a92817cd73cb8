//! The SDK's `LogProcessor`: log records join the requests that they are emitted in.

use std::fmt;
use std::time::Duration;

use opentelemetry::logs::Severity;
use opentelemetry::trace::{SpanId, TraceContextExt as _, TraceId};
use opentelemetry::{Context, InstrumentationScope, otel_warn};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{LogProcessor, SdkLogRecord};

use crate::dispatch::Emitted;
use crate::handle::Handle;
use crate::processor::{DROP_TIMEOUT, Saving};
use crate::runtime::Shared;
use crate::signal::{LogData, Signal, Signals};
use crate::sync::Arc;

/// What the clients below an exporter over gRPC say of themselves, by target.
const OF_CLIENTS: [&str; 4] = [
    "h2::",
    "hyper_util::client::",
    "tonic::transport::",
    "tower::buffer::",
];

/// A log processor that exports every record soon, in small batches, under the saved context of the request that it was
/// emitted in.
///
/// Made by [`PerRequestSpanProcessor::log_processor`](crate::PerRequestSpanProcessor::log_processor), for
/// `SdkLoggerProvider::builder().with_log_processor(…)`. Works with `opentelemetry-appender-tracing`, and with any other
/// appender that emits where the line is logged.
///
/// A record belongs to the request of the span that it names, which the SDK takes from the context that is current where it
/// is emitted. It has a queue of its own in that request, beside the one of spans, with the same trigger, batch size, exports
/// and timeout, and leaves with what the request has queued when that is over or evicted. Its bound is
/// [`max_pending_logs`](crate::Config::with_max_pending_logs). It leaves whether its trace is sampled or not.
///
/// | emitted | leaves under |
/// |---|---|
/// | in a span of a live request, ended or not | the saved context of that request |
/// | where no span is active, or only a remote one | the fallback context |
/// | in a span that is not sampled, whose request is not known, as a sampler makes them | the context that is current there, by itself; in Cloudflare Workers the fallback context, and marked. [`RecordUnsampled`](crate::RecordUnsampled) makes it join its request |
/// | in a sampled span whose request is evicted or over, or not known | the fallback context, marked with `per_request.late` |
///
/// What is logged while exporting is no record, or it would be exported, and so make more, for ever. Where an exporter over gRPC was
/// built in a runtime of the caller's, nobody can tell that from anything else, so an appender for `tracing` is told that what
/// `h2`, `tower`'s buffer, and the clients of `hyper-util` and `tonic` say below INFO is not enabled.
///
/// After its shutdown, records are dropped and counted as `already_shutdown`. Dropping it shuts it down, as dropping its
/// provider does; spans go on.
///
/// ```
/// # use opentelemetry_sdk::logs::InMemoryLogExporter;
/// # use opentelemetry_sdk::trace::InMemorySpanExporter;
/// use opentelemetry::logs::{LogRecord as _, Logger as _, LoggerProvider as _};
/// use opentelemetry_per_request::PerRequestSpanProcessor;
/// use opentelemetry_sdk::logs::SdkLoggerProvider;
///
/// # futures_executor::block_on(async {
/// let spans = PerRequestSpanProcessor::builder(InMemorySpanExporter::default()).build()?;
/// let processor = spans.log_processor(InMemoryLogExporter::default())?;
/// let logs = processor.handle();
/// let provider = SdkLoggerProvider::builder().with_log_processor(processor).build();
///
/// let logger = provider.logger("docs");
/// let mut record = logger.create_log_record();
/// record.set_body("outside of any request".into());
/// logger.emit(record);
///
/// logs.flush().await?;
/// assert_eq!(logs.stats().logs.exported, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
pub struct PerRequestLogProcessor {
    /// None if the span processor is not enabled.
    shared: Option<Arc<Shared>>,
    saving: Arc<Saving>,
}

impl PerRequestLogProcessor {
    pub(crate) fn new(shared: Option<Arc<Shared>>, saving: Arc<Saving>) -> Self {
        Self { shared, saving }
    }

    /// A handle to flush log records, and to read numbers. Its flush is one of log records only.
    pub fn handle(&self) -> Handle {
        Handle::new(self.shared.clone(), Signals::of(Signal::Logs))
    }

    /// Whose a record is that is emitted here and now.
    fn place(&self, shared: &Arc<Shared>, record: &SdkLogRecord) -> Emitted {
        // A span of a no-op tracer is active without being one: it names no trace.
        let named = record.trace_context();
        let Some(named) = named.filter(|named| named.trace_id != TraceId::INVALID) else {
            return Emitted::Outside;
        };
        let cx = Context::current();
        let is_active = {
            let span = cx.span();
            let active = span.span_context();
            let same = (active.trace_id(), active.span_id()) == (named.trace_id, named.span_id);
            if same && active.is_remote() {
                return Emitted::Outside;
            }
            same
        };
        let (trace, span) = (named.trace_id, named.span_id);
        let sampled = named.trace_flags.is_some_and(|flags| flags.is_sampled());
        let by_itself = is_active && !sampled && leaves_by_itself(shared, trace, span);
        Emitted::Within {
            trace,
            span,
            unrecorded: by_itself.then(|| self.saving.save(shared, &cx)),
        }
    }
}

/// Whether a record in a span that is not sampled can join no request.
#[cfg(not(target_family = "wasm"))]
fn leaves_by_itself(shared: &Arc<Shared>, trace: TraceId, span: SpanId) -> bool {
    !shared.knows(trace, span)
}

/// In a Worker each of them would be a subrequest.
#[cfg(target_family = "wasm")]
fn leaves_by_itself(_shared: &Arc<Shared>, _trace: TraceId, _span: SpanId) -> bool {
    false
}

impl LogProcessor for PerRequestLogProcessor {
    fn emit(&self, record: &mut SdkLogRecord, scope: &InstrumentationScope) {
        let Some(shared) = &self.shared else {
            return;
        };
        let place = self.place(shared, record);
        let log = LogData {
            record: record.clone(),
            scope: scope.clone(),
        };
        shared.emit(log, place);
    }

    /// Blocks until every record that was emitted before the call is done. The deadline is the export timeout.
    ///
    /// # Errors
    ///
    /// As [`Handle::flush`], which does the same without blocking. On a thread where waiting could only deadlock it fails
    /// at once, or after a second without progress, with an error that names that way.
    fn force_flush(&self) -> OTelSdkResult {
        let Some(shared) = &self.shared else {
            return Ok(());
        };
        let timeout = shared.default_timeout();
        shared.flush_blocking(Signals::of(Signal::Logs), timeout)?;
        Ok(())
    }

    /// As [`Handle::shutdown`], blocking.
    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        let Some(shared) = &self.shared else {
            return Ok(());
        };
        let done = shared.shutdown_blocking(Signal::Logs, timeout);
        done.inspect_err(|error| {
            // Shutting down is often the work of a drop, where nobody sees the error.
            otel_warn!(
                name: "PerRequestLogProcessor.ShutdownFailed",
                error = error.to_string()
            );
        })?;
        Ok(())
    }

    /// False for what would feed itself (see above), and if the processor is not enabled.
    fn event_enabled(&self, level: Severity, target: &str, _name: Option<&str>) -> bool {
        let of_a_client = || OF_CLIENTS.iter().any(|client| target.starts_with(client));
        self.shared.is_some() && (level >= Severity::Info || !of_a_client())
    }

    fn set_resource(&mut self, resource: &Resource) {
        if let Some(shared) = &self.shared {
            shared.set_resource(Signal::Logs, resource);
        }
    }
}

impl Drop for PerRequestLogProcessor {
    fn drop(&mut self) {
        // A provider shuts it down before it drops it, and has waited for that.
        let shared = self.shared.as_ref();
        if shared.is_some_and(|shared| !shared.is_closed(Signal::Logs)) {
            let _ = self.shutdown_with_timeout(DROP_TIMEOUT);
        }
    }
}

impl fmt::Debug for PerRequestLogProcessor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerRequestLogProcessor")
            .field("enabled", &self.shared.is_some())
            .field("stats", &self.handle().stats().logs)
            .finish_non_exhaustive()
    }
}
