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
use crate::stats::{DropReason, LateReason};
#[cfg(target_family = "wasm")]
use crate::workers::console;

/// Each kind of notice is said at most this often. What came in between is counted.
const QUIET: Duration = Duration::from_secs(10);

/// The kinds that are limited separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Late(LateReason),
    Dropped(DropReason),
    ExportFailed,
    ProjectionPanicked,
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
    /// Spans since it was last said.
    spans: u64,
    example: Example,
    quiet_until: Option<Instant>,
}

/// A line to be logged.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Notice {
    kind: Kind,
    spans: u64,
    example: Example,
}

impl Notices {
    pub(crate) fn note(&mut self, kind: Kind, spans: u64, example: Example) {
        let noted = self.kinds.entry(kind).or_insert(Noted {
            spans: 0,
            example: Example::None,
            quiet_until: None,
        });
        if noted.spans == 0 {
            noted.example = example;
            self.news = true;
        }
        noted.spans += spans;
    }

    /// Whether the driver must look, because something new is noted.
    pub(crate) fn has_news(&self) -> bool {
        self.news
    }

    /// When something that is noted may be said, if it may not be said yet.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.kinds
            .values()
            .filter(|noted| noted.spans > 0)
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
            if noted.spans > 0 && (last || noted.quiet_until.is_none()) {
                noted.quiet_until = now.checked_add(QUIET);
                taken.push(Notice {
                    kind: *kind,
                    spans: std::mem::take(&mut noted.spans),
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
        let spans = self.spans;
        let example = self.example.to_string();
        let (example, message) = (example.as_str(), self.message());
        match self.kind {
            Kind::Late(reason) => {
                otel_warn!(
                    name: "PerRequestSpanProcessor.LateSpans",
                    reason = reason.as_str(),
                    spans = spans,
                    trace_id = example,
                    message = message
                );
            }
            Kind::Dropped(reason) => {
                otel_warn!(
                    name: "PerRequestSpanProcessor.SpansDropped",
                    reason = reason.as_str(),
                    spans = spans,
                    trace_id = example,
                    message = message
                );
            }
            Kind::ExportFailed => {
                otel_warn!(
                    name: "PerRequestSpanProcessor.ExportFailed",
                    spans = spans,
                    error = example,
                    message = message
                );
            }
            Kind::ProjectionPanicked => {
                otel_warn!(
                    name: "PerRequestSpanProcessor.ProjectionPanicked",
                    requests = spans,
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

    /// Prints the line on the console of the Worker. Lost spans are an error.
    #[cfg(target_family = "wasm")]
    pub(crate) fn say(&self) {
        let line = self.line();
        match self.kind {
            Kind::Dropped(_) | Kind::ExportFailed => console::error(&line),
            Kind::Late(_) | Kind::ProjectionPanicked | Kind::OutsideRequest => console::warn(&line),
        }
    }

    #[cfg(target_family = "wasm")]
    fn line(&self) -> String {
        let (message, spans, example) = (self.message(), self.spans, &self.example);
        match self.kind {
            Kind::Late(reason) => {
                format!("{message} (reason {reason}, {spans} spans, trace {example})")
            }
            Kind::Dropped(reason) => {
                format!("{message} (reason {reason}, {spans} spans, trace {example})")
            }
            Kind::ExportFailed => format!("{message}: {example} ({spans} spans)"),
            Kind::ProjectionPanicked => format!("{message} ({spans} requests)"),
            Kind::OutsideRequest => message.to_owned(),
        }
    }

    fn message(&self) -> &'static str {
        match self.kind {
            Kind::Late(_) => {
                "spans ended after the state of their request was gone; they leave under the fallback context"
            }
            Kind::Dropped(_) => "spans were dropped",
            Kind::ExportFailed => "spans failed to export and are lost",
            Kind::ProjectionPanicked => {
                "the context projection panicked; these requests are exported under the fallback context"
            }
            #[cfg(not(target_family = "wasm"))]
            Kind::NoWorker => "a thread for exports could not be started; trying again",
            #[cfg(target_family = "wasm")]
            Kind::OutsideRequest => {
                "spans ended outside of a request, where nothing can be sent; they leave with the next one"
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

    fn note(notices: &mut Notices, spans: u64, trace: u128) {
        let example = Example::Trace(TraceId::from(trace));
        notices.note(Kind::Dropped(DropReason::QueueFull), spans, example);
    }

    /// Scenario: spans are dropped without end.
    /// Guarantees: the first is said at once, and then one line for each quiet period tells how many there were.
    #[test]
    fn a_kind_is_said_once_in_each_quiet_period_with_the_count_in_between() {
        let mut notices = Notices::default();
        let start = Instant::now();
        note(&mut notices, 1, 7);
        assert!(notices.has_news());
        assert_eq!(notices.take(start, false)[0].spans, 1);

        note(&mut notices, 2, 8);
        note(&mut notices, 3, 9);
        assert_eq!(notices.take(start + QUIET / 2, false), []);
        assert!(!notices.has_news());
        assert_eq!(notices.next_due(), Some(start + QUIET));
        let said = notices.take(start + QUIET, false);
        assert_eq!(said[0].spans, 5);
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
        notices.note(Kind::ExportFailed, 4, example);
        assert_eq!(notices.take(start, false)[0].kind, Kind::ExportFailed);
        note(&mut notices, 1, 7);
        assert_eq!(notices.take(start, true).len(), 1);
    }
}
