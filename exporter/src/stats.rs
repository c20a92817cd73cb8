//! Our own counters, for each signal: how much went where, and why some did not arrive.
//!
//! What is counted is called an item: a span, a log record, or a data point of a metric. The law: at every moment, items
//! given to `export` are exported, failed for one reason, or in flight.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why spans, log records or data points did not arrive. The same words appear in [`ExporterStats`], in `error.type` of the metrics, and in logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FailureReason {
    /// `already_shutdown`: given to `export` after `shutdown`.
    AlreadyShutdown,
    /// `cancelled`: the future of `export` was dropped before the answer came. They may have arrived.
    Cancelled,
    /// `circuit_open`: not sent, because the same credentials were refused a moment ago.
    CircuitOpen,
    /// `no_endpoint`: not sent, because no endpoint is set for this signal. Only in a Cloudflare Worker, where there is
    /// none by default.
    NoEndpoint,
    /// `rejected`: the collector took the request and refused some of what was in it.
    Rejected,
    /// `response_too_large`: the HTTP client gave up reading the response. They may have arrived.
    ResponseTooLarge,
    /// `status`: an answer that is no success, after retries where they are allowed.
    Status,
    /// `throttled`: the collector asked for a longer wait than the retry policy allows.
    Throttled,
    /// `timeout`: no answer in time. They may have arrived.
    Timeout,
    /// `too_large`: a single span, log record or data point is larger than a request may be.
    TooLarge,
    /// `transport`: no connection, or it broke before the answer, on the last attempt too.
    Transport,
    /// `unauthorized`: 401 or 403.
    Unauthorized,
}

/// A snapshot of what an exporter has done for one signal since it was built, all its clones together.
///
/// It counts items: spans, log records, or data points of metrics. The numbers are read one by one while exports go on, so a
/// snapshot taken under load may be off by the items of the exports that end meanwhile. At rest, items given to `export` = [`exported`](ExporterStats::exported) +
/// [`failed_in_total`](ExporterStats::failed_in_total), and nothing is in flight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExporterStats {
    exported: u64,
    failed: [u64; FailureReason::ALL.len()],
    in_flight: u64,
    attempts: u64,
    retries: u64,
}

/// The live counters. All orderings are relaxed: each number stands alone, and nothing is published through them.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    exported: AtomicU64,
    failed: [AtomicU64; FailureReason::ALL.len()],
    in_flight: AtomicU64,
    attempts: AtomicU64,
    retries: AtomicU64,
}

// ===== impl FailureReason =====

impl FailureReason {
    /// Every reason.
    pub const ALL: &'static [Self] = &[
        Self::AlreadyShutdown,
        Self::Cancelled,
        Self::CircuitOpen,
        Self::NoEndpoint,
        Self::Rejected,
        Self::ResponseTooLarge,
        Self::Status,
        Self::Throttled,
        Self::Timeout,
        Self::TooLarge,
        Self::Transport,
        Self::Unauthorized,
    ];

    /// The word for it, as in `error.type`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AlreadyShutdown => "already_shutdown",
            Self::Cancelled => "cancelled",
            Self::CircuitOpen => "circuit_open",
            Self::NoEndpoint => "no_endpoint",
            Self::Rejected => "rejected",
            Self::ResponseTooLarge => "response_too_large",
            Self::Status => "status",
            Self::Throttled => "throttled",
            Self::Timeout => "timeout",
            Self::TooLarge => "too_large",
            Self::Transport => "transport",
            Self::Unauthorized => "unauthorized",
        }
    }
}

// ===== impl ExporterStats =====

impl ExporterStats {
    /// Items that the collector acknowledged.
    pub fn exported(&self) -> u64 {
        self.exported
    }

    /// Items that did not arrive, or may not have, for this reason.
    pub fn failed(&self, reason: FailureReason) -> u64 {
        self.failed[reason as usize]
    }

    /// Items that did not arrive, or may not have, for any reason.
    pub fn failed_in_total(&self) -> u64 {
        self.failed.iter().sum()
    }

    /// Items inside `export`, retries and waits included.
    pub fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// HTTP requests sent, retries included. Those of `check` are not counted.
    pub fn attempts(&self) -> u64 {
        self.attempts
    }

    /// HTTP requests that were sent again.
    pub fn retries(&self) -> u64 {
        self.retries
    }
}

// ===== impl Counters =====

impl Counters {
    pub(crate) fn begin(&self, items: u64) {
        self.in_flight.fetch_add(items, Ordering::Relaxed);
    }

    /// Items leave flight, in one of the two ways there are.
    pub(crate) fn end(&self, items: u64, result: Result<(), FailureReason>) {
        let counter = match result {
            Ok(()) => &self.exported,
            Err(reason) => &self.failed[reason as usize],
        };
        counter.fetch_add(items, Ordering::Relaxed);
        self.in_flight.fetch_sub(items, Ordering::Relaxed);
    }

    pub(crate) fn attempt(&self, number: u32) {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        if number > 1 {
            self.retries.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn snapshot(&self) -> ExporterStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ExporterStats {
            exported: read(&self.exported),
            failed: std::array::from_fn(|reason| read(&self.failed[reason])),
            in_flight: read(&self.in_flight),
            attempts: read(&self.attempts),
            retries: read(&self.retries),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: every reason, in the order of the list.
    /// Guarantees: each has its own counter and its own word.
    #[test]
    fn each_reason_has_its_own_counter_and_word() {
        let mut words = std::collections::HashSet::new();
        for (place, reason) in FailureReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, place);
            assert!(words.insert(reason.as_str()));
        }
    }
}
