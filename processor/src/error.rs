//! What can go wrong: settings that make no sense, and flushes that have losses to report.

use std::fmt;
use std::time::Duration;

use opentelemetry_sdk::error::OTelSdkError;

/// A setting given in code that makes no sense. Returned by [`Builder::build`](crate::Builder::build), and by whatever joins
/// a processor.
///
/// Values from the environment never lead here: one that makes no sense is warned about and ignored.
#[derive(Debug)]
#[non_exhaustive]
pub enum ConfigError {
    /// `max_traces` is 0: the processor could not hold a single request.
    MaxTracesIsZero,
    /// `max_batch_size` is 0: no batch could hold a span.
    MaxBatchSizeIsZero,
    /// `max_pending_spans` is 0: every span would be dropped.
    MaxPendingSpansIsZero,
    /// `max_pending_logs` is 0: every log record would be dropped.
    MaxPendingLogsIsZero,
    /// `export_timeout` is 0: every export would be late before it starts.
    ExportTimeoutIsZero,
    /// Open events are to leave as log records, and this crate was built without the feature `logs`.
    OpenEventsWithoutLogs,
    /// A [`Telemetry`](crate::Telemetry) was to be built without an exporter of spans.
    NoExporter,
    /// A signal was to join a processor that has one already: `logs` or `metrics`.
    AlreadyJoined(&'static str),
    /// The operating system refused the thread that drives exports, or the runtime that they run in.
    Thread(std::io::Error),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MaxTracesIsZero => f.write_str("max_traces must be at least 1, but is 0"),
            Self::MaxBatchSizeIsZero => f.write_str("max_batch_size must be at least 1, but is 0"),
            Self::MaxPendingSpansIsZero => {
                f.write_str("max_pending_spans must be at least 1, but is 0")
            }
            Self::MaxPendingLogsIsZero => {
                f.write_str("max_pending_logs must be at least 1, but is 0")
            }
            Self::ExportTimeoutIsZero => {
                f.write_str("export_timeout must be longer than 0, but is 0")
            }
            Self::OpenEventsWithoutLogs => {
                f.write_str("open events as log records need the feature `logs`")
            }
            Self::NoExporter => f.write_str("there is no exporter of spans"),
            Self::AlreadyJoined(signal) => {
                write!(
                    f,
                    "{signal} have joined this processor already, through another exporter"
                )
            }
            Self::Thread(_) => f.write_str("the thread that drives exports could not be started"),
        }
    }
}

impl std::error::Error for ConfigError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Thread(error) => Some(error),
            _ => None,
        }
    }
}

/// Why a flush or a shutdown cannot say that everything arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FlushError {
    /// Everything that had ended is done, but not all of it arrived since the last flush.
    Lost {
        /// Spans, log records or data points whose export failed or timed out.
        failed: u64,
        /// Those that were dropped before they reached the exporter.
        dropped: u64,
    },
    /// The deadline passed before everything that had ended was done. What is under way goes on.
    Timeout(Duration),
    /// The exporter's own `force_flush` or `shutdown` failed, with this message.
    Exporter(String),
    /// Metrics could not be collected, with this message. What was measured stays in the instruments, for a next time, if there
    /// is one.
    Collect(String),
    /// Waiting on this thread could only deadlock, so the call returned early. What is under way goes on.
    WouldDeadlock(Deadlock),
    /// The processor was shut down before the call.
    AlreadyShutdown,
}

/// Why waiting on a thread could only deadlock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Deadlock {
    /// The call came from inside an export, on a thread of the processor's own.
    InsideExport,
    /// The calling thread is the only one that could drive the runtime that the exporter needs, and no export made
    /// progress while the call was waiting.
    RuntimeBlocked,
    /// A Cloudflare Worker has one thread, and no way to wait on it. What was queued is on its way.
    NoThreads,
}

impl fmt::Display for FlushError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost { failed, dropped } => write!(
                f,
                "not everything arrived since the last flush: {failed} failed to export, {dropped} were dropped"
            ),
            Self::Timeout(after) => write!(f, "not everything was exported within {after:?}"),
            Self::Exporter(message) => write!(f, "the exporter failed to flush: {message}"),
            Self::Collect(message) => write!(f, "metrics could not be collected: {message}"),
            Self::WouldDeadlock(Deadlock::InsideExport) => f.write_str(
                "called from inside an export, where waiting for exports could only deadlock; call it from another task",
            ),
            Self::WouldDeadlock(Deadlock::RuntimeBlocked) => f.write_str(
                "this call blocks the only thread of the runtime that the exporter needs; \
                 use `handle.flush().await`, or `handle.shutdown().await`, or build the exporter \
                 with `PerRequestSpanProcessor::builder_with`",
            ),
            Self::WouldDeadlock(Deadlock::NoThreads) => f.write_str(
                "what was queued is on its way, but nothing can wait for it synchronously in a Worker; \
                 use `handle.flush().await`, or `handle.shutdown().await`",
            ),
            Self::AlreadyShutdown => f.write_str("the processor is shut down"),
        }
    }
}

impl std::error::Error for FlushError {}

impl From<FlushError> for OTelSdkError {
    fn from(error: FlushError) -> Self {
        match error {
            FlushError::Timeout(after) => OTelSdkError::Timeout(after),
            FlushError::AlreadyShutdown => OTelSdkError::AlreadyShutdown,
            other => OTelSdkError::InternalFailure(other.to_string()),
        }
    }
}
