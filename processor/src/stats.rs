//! What became of every span: the numbers behind the accounting law (R12), and the words for its reasons.

use std::fmt;

/// Why a span, or a log record, was dropped before it reached the exporter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DropReason {
    /// As many were pending as `max_pending_spans`, or `max_pending_logs`, allows (`queue_full`).
    QueueFull,
    /// Its trace had more spans than `max_spans_per_trace` (`max_spans_per_trace`).
    MaxSpansPerTrace,
    /// It ended, or was emitted, after the processor was shut down (`already_shutdown`).
    AlreadyShutdown,
    /// It was still waiting for an export when the deadline of the shutdown passed (`shutdown_timeout`).
    ShutdownTimeout,
}

impl DropReason {
    /// All reasons, in the order in which [`Stats`] lists them.
    pub const ALL: [Self; 4] = [
        Self::QueueFull,
        Self::MaxSpansPerTrace,
        Self::AlreadyShutdown,
        Self::ShutdownTimeout,
    ];

    /// The word for this reason in counters, logs and documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::MaxSpansPerTrace => "max_spans_per_trace",
            Self::AlreadyShutdown => "already_shutdown",
            Self::ShutdownTimeout => "shutdown_timeout",
        }
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a span, or a log record, could not be exported under the context of its own request.
///
/// It leaves under the fallback context, with this word in its attribute `per_request.late`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LateReason {
    /// Its trace was evicted to make room for others (`trace_evicted`).
    TraceEvicted,
    /// No live request is known to have started it (`unknown_trace`): its request was over when it started, its parent
    /// was never recorded, or its trace was evicted too long ago to be remembered.
    UnknownTrace,
}

impl LateReason {
    /// All reasons.
    pub const ALL: [Self; 2] = [Self::TraceEvicted, Self::UnknownTrace];

    /// The word for this reason in the attribute, in counters, logs and documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TraceEvicted => "trace_evicted",
            Self::UnknownTrace => "unknown_trace",
        }
    }
}

impl fmt::Display for LateReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A consistent snapshot of the processor's numbers.
///
/// All span numbers count *sampled* spans, and at every moment
///
/// ```text
/// ended = exported + failed + dropped (all reasons) + queued + waiting + in_flight
/// ```
///
/// which [`Stats::is_balanced`] checks, for each signal and for open events. Late spans are counted in `late` *and* in whatever became of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Sampled spans that ended, and the pending spans and unfinished ones that were made of open ones
    /// ([`open_events`](Self::open_events)).
    pub ended: u64,
    /// Spans in batches that the exporter acknowledged.
    pub exported: u64,
    /// Spans in batches that the exporter failed to export, or did not export within the export timeout.
    pub failed: u64,
    /// Spans dropped before they reached the exporter, by reason.
    pub dropped: Dropped,
    /// Spans in the queue of their request.
    pub queued: u64,
    /// Spans in batches that wait for an export slot.
    pub waiting: u64,
    /// Spans inside the exporter.
    pub in_flight: u64,
    /// Spans that left, or will leave, under the fallback context, by reason.
    pub late: Late,
    /// Exports that were started.
    pub exports: u64,
    /// Exports that did not end within the export timeout. Their spans are part of `failed`.
    pub timed_out_exports: u64,
    /// Traces that were evicted to make room for others.
    pub evicted_traces: u64,
    /// Traces in memory.
    pub traces: u64,
    /// The same of log records, if there is a log processor. All that were emitted count, whether their trace is sampled or
    /// not.
    pub logs: SignalStats,
    /// The same of the data points of metrics, if there is a metric reader. None of them is ever queued or late.
    pub metrics: SignalStats,
    /// What became of open events. All zero unless they are to leave, but for [`unfinished`](OpenEventStats::unfinished).
    pub open_events: OpenEventStats,
}

/// What became of open events, if they are to leave: see [`OpenEvents`](crate::OpenEvents).
///
/// At every moment `opened = sent + elided + dropped + pending`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OpenEventStats {
    /// Sampled spans that started in a request that is known.
    pub opened: u64,
    /// Open events that were put into a batch. From then on they are log records or spans like all others, and are counted with
    /// those, too.
    pub sent: u64,
    /// Open events that were not needed, because their span ended before they left, or was found unfinished.
    pub elided: u64,
    /// Open events that could not leave: half as many spans or log records were pending as may be, as many spans were open as
    /// `max_pending_spans` allows, or log records were shut down.
    pub dropped: u64,
    /// Open events of spans that are open and not old enough, or wait for the next batch of their request.
    pub pending: u64,
    /// Renames that were put into the queue of their request.
    pub renamed: u64,
    /// Spans that had not ended when the processor was shut down, as far as anything was remembered of them: for open events, for
    /// an observer, or to be exported.
    pub unfinished: u64,
}

impl OpenEventStats {
    /// Whether each open event is accounted for.
    pub fn is_balanced(&self) -> bool {
        self.opened == self.sent + self.elided + self.dropped + self.pending
    }
}

/// The numbers of one signal: see [`Stats`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SignalStats {
    /// Items that were taken in: log records that were emitted, data points that were collected.
    pub received: u64,
    /// Items in batches that the exporter acknowledged.
    pub exported: u64,
    /// Items in batches that the exporter failed to export, or did not export within the export timeout.
    pub failed: u64,
    /// Items dropped before they reached the exporter, by reason.
    pub dropped: Dropped,
    /// Items in the queue of their request.
    pub queued: u64,
    /// Items in batches that wait for an export slot.
    pub waiting: u64,
    /// Items inside the exporter.
    pub in_flight: u64,
    /// Items that left, or will leave, under the fallback context because their request is not known, by reason.
    pub late: Late,
    /// Exports that were started.
    pub exports: u64,
    /// Exports that did not end within the export timeout. Their items are part of `failed`.
    pub timed_out_exports: u64,
}

impl SignalStats {
    /// Whether the accounting law holds (R12).
    pub fn is_balanced(&self) -> bool {
        self.received == self.exported + self.failed + self.dropped.total() + self.pending()
    }

    /// Items that are somewhere inside the processor: queued, waiting or in flight.
    pub fn pending(&self) -> u64 {
        self.queued + self.waiting + self.in_flight
    }

    /// Items that the exporter was called with.
    #[cfg(feature = "metrics")]
    pub(crate) fn handed_over(&self) -> u64 {
        self.exported + self.failed + self.in_flight
    }
}

impl Stats {
    pub(crate) fn new(
        spans: &SignalStats,
        logs: &SignalStats,
        metrics: &SignalStats,
        traces: u64,
        evicted_traces: u64,
    ) -> Self {
        Self {
            ended: spans.received,
            exported: spans.exported,
            failed: spans.failed,
            dropped: spans.dropped,
            queued: spans.queued,
            waiting: spans.waiting,
            in_flight: spans.in_flight,
            late: spans.late,
            exports: spans.exports,
            timed_out_exports: spans.timed_out_exports,
            evicted_traces,
            traces,
            logs: logs.clone(),
            metrics: metrics.clone(),
            open_events: OpenEventStats::default(),
        }
    }

    /// Whether the accounting law holds for each signal (R12). It always does; the tests ask after each step.
    pub fn is_balanced(&self) -> bool {
        let spans = self.exported + self.failed + self.dropped.total() + self.pending();
        self.ended == spans
            && self.logs.is_balanced()
            && self.metrics.is_balanced()
            && self.open_events.is_balanced()
    }

    /// Spans that are somewhere inside the processor: queued, waiting or in flight.
    pub fn pending(&self) -> u64 {
        self.queued + self.waiting + self.in_flight
    }

    /// The numbers of spans.
    #[cfg(feature = "metrics")]
    pub(crate) fn of_spans(&self) -> SignalStats {
        SignalStats {
            received: self.ended,
            exported: self.exported,
            failed: self.failed,
            dropped: self.dropped,
            queued: self.queued,
            waiting: self.waiting,
            in_flight: self.in_flight,
            late: self.late,
            exports: self.exports,
            timed_out_exports: self.timed_out_exports,
        }
    }
}

/// Dropped spans, or other items, by [`DropReason`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped([u64; DropReason::ALL.len()]);

impl Dropped {
    /// The number for one reason.
    pub fn by(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    /// The sum over all reasons.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    pub(crate) fn add(&mut self, reason: DropReason, spans: u64) {
        self.0[reason as usize] += spans;
    }
}

/// Late spans, or log records, by [`LateReason`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Late([u64; LateReason::ALL.len()]);

impl Late {
    /// The number for one reason.
    pub fn by(&self, reason: LateReason) -> u64 {
        self.0[reason as usize]
    }

    /// The sum over all reasons.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    pub(crate) fn add(&mut self, reason: LateReason) {
        self.0[reason as usize] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: each reason is counted once.
    /// Guarantees: no two reasons share a counter, and the order of `ALL` is the order of the counters.
    #[test]
    fn each_reason_has_its_own_counter() {
        let mut dropped = Dropped::default();
        for (n, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, n);
            dropped.add(reason, n as u64 + 1);
        }
        for (n, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(dropped.by(reason), n as u64 + 1, "{reason}");
        }
        assert_eq!(dropped.total(), 10);
        for (n, reason) in LateReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, n);
        }
    }
}
