//! What the user should hear about, at a limited rate.
//!
//! Spans end on the threads of the host, in places where even a log line could do harm (inside a borrow of the current
//! context, for one). So what happens there is only noted here, and said later. Pure: the time is an
//! argument.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

#[cfg(not(target_family = "wasm"))]
use opentelemetry::otel_warn;
use opentelemetry::trace::TraceId;

use crate::clock::Instant;
use crate::signal::Signal;
use crate::stats::{DropReason, LateReason};
#[cfg(target_family = "wasm")]
use crate::workers::console;

/// Each kind of notice is said at most this often. What came in between is counted.
const QUIET: Duration = Duration::from_secs(10);

/// The kinds that are limited separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Late(Signal, LateReason),
    Dropped(Signal, DropReason),
    ExportFailed(Signal),
    #[cfg(feature = "metric-reader")]
    CollectFailed,
    ProjectionPanicked,
    ObserverPanicked,
    OpenEventsDropped(DropReason),
    OpenEventsWithoutLogs,
    #[cfg(not(target_family = "wasm"))]
    NoWorker,
    #[cfg(target_family = "wasm")]
    OutsideRequest,
}

/// An example of what is noted, to go with the count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Example {
    Trace(TraceId),
    Error(String),
    None,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    kinds: HashMap<Kind, Noted>,
    /// Whether a kind was noted that was not, since the driver last looked: it must plan when to say it.
    news: bool,
}

#[derive(Debug)]
struct Noted {
    /// How often since it was last said: spans, log records, whatever its kind counts.
    count: u64,
    example: Example,
    quiet_until: Option<Instant>,
}

/// A line to be logged.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Notice {
    kind: Kind,
    count: u64,
    example: Example,
}

impl Notices {
    pub(crate) fn note(&mut self, kind: Kind, count: u64, example: Example) {
        let noted = self.kinds.entry(kind).or_insert(Noted {
            count: 0,
            example: Example::None,
            quiet_until: None,
        });
        if noted.count == 0 {
            noted.example = example;
            self.news = true;
        }
        noted.count += count;
    }

    /// Whether the driver must look, because something new is noted.
    pub(crate) fn has_news(&self) -> bool {
        self.news
    }

    /// When something that is noted may be said, if it may not be said yet.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.kinds
            .values()
            .filter(|noted| noted.count > 0)
            .filter_map(|noted| noted.quiet_until)
            .min()
    }

    /// Takes what may be said at this time; with `last`, everything.
    pub(crate) fn take(&mut self, now: Instant, last: bool) -> Vec<Notice> {
        self.news = false;
        let mut taken = Vec::new();
        for (kind, noted) in &mut self.kinds {
            if noted.quiet_until.is_some_and(|until| until <= now) {
                noted.quiet_until = None;
            }
            if noted.count > 0 && (last || noted.quiet_until.is_none()) {
                noted.quiet_until = now.checked_add(QUIET);
                taken.push(Notice {
                    kind: *kind,
                    count: std::mem::take(&mut noted.count),
                    example: noted.example.clone(),
                });
            }
        }
        taken
    }
}

impl Notice {
    /// Logs the line. Never under a lock.
    #[cfg(not(target_family = "wasm"))]
    pub(crate) fn say(&self) {
        let count = self.count;
        let example = self.example.to_string();
        let (example, message) = (example.as_str(), self.message());
        let message = message.as_str();
        match self.kind {
            Kind::Late(Signal::Spans, reason) => {
                otel_warn!(
                    name: "PerRequestSpanProcessor.LateSpans",
                    reason = reason.as_str(),
                    spans = count,
                    trace_id = example,
                    message = message
                );
            }
            Kind::Dropped(Signal::Spans, reason) => {
                otel_warn!(
                    name: "PerRequestSpanProcessor.SpansDropped",
                    reason = reason.as_str(),
                    spans = count,
                    trace_id = example,
                    message = message
                );
            }
            Kind::ExportFailed(Signal::Spans) => {
                otel_warn!(
                    name: "PerRequestSpanProcessor.ExportFailed",
                    spans = count,
                    error = example,
                    message = message
                );
            }
            Kind::Late(_, reason) => {
                otel_warn!(
                    name: "PerRequestLogProcessor.LateLogs",
                    reason = reason.as_str(),
                    log_records = count,
                    trace_id = example,
                    message = message
                );
            }
            Kind::Dropped(Signal::Logs, reason) => {
                otel_warn!(
                    name: "PerRequestLogProcessor.LogsDropped",
                    reason = reason.as_str(),
                    log_records = count,
                    trace_id = example,
                    message = message
                );
            }
            Kind::ExportFailed(Signal::Logs) => {
                otel_warn!(
                    name: "PerRequestLogProcessor.ExportFailed",
                    log_records = count,
                    error = example,
                    message = message
                );
            }
            Kind::Dropped(Signal::Metrics, reason) => {
                otel_warn!(
                    name: "PerRequestMetricReader.DataPointsDropped",
                    reason = reason.as_str(),
                    data_points = count,
                    message = message
                );
            }
            Kind::ExportFailed(Signal::Metrics) => {
                otel_warn!(
                    name: "PerRequestMetricReader.ExportFailed",
                    data_points = count,
                    error = example,
                    message = message
                );
            }
            #[cfg(feature = "metric-reader")]
            Kind::CollectFailed => {
                otel_warn!(
                    name: "PerRequestMetricReader.CollectFailed",
                    error = example,
                    message = message
                );
            }
            Kind::ProjectionPanicked => {
                otel_warn!(
                    name: "PerRequestSpanProcessor.ProjectionPanicked",
                    requests = count,
                    message = message
                );
            }
            Kind::ObserverPanicked => {
                otel_warn!(
                    name: "PerRequestSpanProcessor.ObserverPanicked",
                    events = count,
                    message = message
                );
            }
            Kind::OpenEventsDropped(reason) => {
                otel_warn!(
                    name: "PerRequestSpanProcessor.OpenEventsDropped",
                    reason = reason.as_str(),
                    open_events = count,
                    trace_id = example,
                    message = message
                );
            }
            Kind::OpenEventsWithoutLogs => {
                otel_warn!(
                    name: "PerRequestSpanProcessor.OpenEventsWithoutLogs",
                    message = message
                );
            }
            Kind::NoWorker => {
                otel_warn!(
                    name: "PerRequestSpanProcessor.NoWorker",
                    error = example,
                    message = message
                );
            }
        }
    }

    /// Prints the line on the console of the Worker. What is lost is an error.
    #[cfg(target_family = "wasm")]
    pub(crate) fn say(&self) {
        let line = self.line();
        match self.kind {
            Kind::Dropped(..) | Kind::ExportFailed(_) | Kind::OpenEventsDropped(_) => {
                console::error(&line)
            }
            _ => console::warn(&line),
        }
    }

    #[cfg(target_family = "wasm")]
    fn line(&self) -> String {
        let (message, count, example) = (self.message(), self.count, &self.example);
        match self.kind {
            Kind::Late(signal, reason) => {
                format!("{message} (reason {reason}, {count} {signal}, trace {example})")
            }
            Kind::Dropped(signal, reason) => {
                format!("{message} (reason {reason}, {count} {signal}, trace {example})")
            }
            Kind::ExportFailed(signal) => format!("{message}: {example} ({count} {signal})"),
            #[cfg(feature = "metric-reader")]
            Kind::CollectFailed => format!("{message}: {example}"),
            Kind::ProjectionPanicked => format!("{message} ({count} requests)"),
            Kind::ObserverPanicked => format!("{message} ({count} events)"),
            Kind::OpenEventsDropped(reason) => {
                format!("{message} (reason {reason}, {count} open events, trace {example})")
            }
            Kind::OpenEventsWithoutLogs => message,
            Kind::OutsideRequest => message,
        }
    }

    fn message(&self) -> String {
        match self.kind {
            Kind::Late(Signal::Spans, _) => {
                "spans ended after the state of their request was gone; they leave under the fallback context".to_owned()
            }
            Kind::Late(signal, _) => format!(
                "{signal} were emitted in a request that is not known, or no longer; they leave under the fallback context"
            ),
            Kind::Dropped(signal, _) => format!("{signal} were dropped"),
            Kind::ExportFailed(signal) => format!("{signal} failed to export and are lost"),
            #[cfg(feature = "metric-reader")]
            Kind::CollectFailed => "metrics could not be collected".to_owned(),
            Kind::ProjectionPanicked => {
                "the context projection panicked; these requests are exported under the fallback context".to_owned()
            }
            Kind::ObserverPanicked => "the span observer panicked".to_owned(),
            Kind::OpenEventsDropped(_) => {
                "open events were dropped; their spans are exported when they end".to_owned()
            }
            Kind::OpenEventsWithoutLogs => {
                "open events are to leave as log records, and nobody exports those".to_owned()
            }
            #[cfg(not(target_family = "wasm"))]
            Kind::NoWorker => "a thread for exports could not be started; trying again".to_owned(),
            #[cfg(target_family = "wasm")]
            Kind::OutsideRequest => {
                "something ended outside of a request, where nothing can be sent; it leaves with the next one".to_owned()
            }
        }
    }
}

impl fmt::Display for Example {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Trace(trace) => write!(f, "{trace}"),
            Self::Error(error) => f.write_str(error),
            Self::None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(notices: &mut Notices, count: u64, trace: u128) {
        let example = Example::Trace(TraceId::from(trace));
        notices.note(
            Kind::Dropped(Signal::Spans, DropReason::QueueFull),
            count,
            example,
        );
    }

    /// Scenario: spans are dropped without end.
    /// Guarantees: the first is said at once, and then one line for each quiet period tells how many there were.
    #[test]
    fn a_kind_is_said_once_in_each_quiet_period_with_the_count_in_between() {
        let mut notices = Notices::default();
        let start = Instant::now();
        note(&mut notices, 1, 7);
        assert!(notices.has_news());
        assert_eq!(notices.take(start, false)[0].count, 1);

        note(&mut notices, 2, 8);
        note(&mut notices, 3, 9);
        assert_eq!(notices.take(start + QUIET / 2, false), []);
        assert!(!notices.has_news());
        assert_eq!(notices.next_due(), Some(start + QUIET));
        let said = notices.take(start + QUIET, false);
        assert_eq!(said[0].count, 5);
        assert_eq!(said[0].example, Example::Trace(TraceId::from(8)));
        assert_eq!(notices.next_due(), None);

        // Long after, when nobody waits for the end of a quiet period any more.
        note(&mut notices, 1, 7);
        assert!(notices.has_news());
        assert_eq!(notices.take(start + QUIET * 9, false).len(), 1);
    }

    /// Scenario: one kind has just been said.
    /// Guarantees: another one is said nevertheless, and the last call says all.
    #[test]
    fn kinds_are_limited_separately_and_the_last_call_says_all() {
        let mut notices = Notices::default();
        let start = Instant::now();
        note(&mut notices, 1, 7);
        notices.take(start, false);
        let example = Example::Error("refused".to_owned());
        notices.note(Kind::ExportFailed(Signal::Spans), 4, example);
        assert_eq!(
            notices.take(start, false)[0].kind,
            Kind::ExportFailed(Signal::Spans)
        );
        note(&mut notices, 1, 7);
        assert_eq!(notices.take(start, true).len(), 1);
    }
}
