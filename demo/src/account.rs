//! The account: what was made of each signal, what arrived, and under whose token.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::Hash;
use std::time::Duration;

use opentelemetry_per_request::{DropReason, LateReason, Stats};
use serde_json::json;

use crate::SERVICE_TOKEN;
use crate::client::token;
use crate::measured;
use crate::service::{ANSWERED, DURATION, REQUEST_ATTRIBUTE, ROUTE};
use crate::waterfall::LATE_ATTRIBUTE;
use demo::receiver::{Received, ReceivedLog, ReceivedMetric, Receiver};

/// See the module.
pub(crate) struct Account {
    made: Made,
    spans: Tally,
    logs: Tally,
    points: Tally,
    /// Log records that do not name a span of their own request.
    astray: u64,
    /// What the metrics say of the requests. `None` with a collector of the user's.
    measured: Option<Measured>,
    stats: Stats,
    elapsed: Duration,
}

/// What the service did, counted by those who did it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Made {
    /// Requests that were answered.
    pub(crate) requests: u64,
    /// Spans that ended.
    pub(crate) spans: u64,
    /// Lines that were logged.
    pub(crate) lines: u64,
}

/// What was received.
pub(crate) struct Arrived {
    pub(crate) spans: Vec<Received>,
    pub(crate) logs: Vec<ReceivedLog>,
    pub(crate) metrics: Vec<ReceivedMetric>,
}

/// One signal.
struct Tally {
    /// Spans that ended, lines that were logged, data points that were collected.
    made: u64,
    acknowledged: u64,
    /// `None` with a collector of the user's, which only acknowledges.
    received: Option<u64>,
    duplicates: u64,
    service_token: u64,
    wrong_token: u64,
}

/// Requests as a counter and a histogram of the service have them.
#[derive(Clone, Copy, Debug)]
struct Measured {
    answered: u64,
    durations: u64,
}

// ===== impl Arrived =====

impl Arrived {
    pub(crate) fn at(receiver: &Receiver) -> Self {
        Self {
            spans: receiver.received(),
            logs: receiver.logs(),
            metrics: receiver.metrics(),
        }
    }
}

// ===== impl Account =====

impl Account {
    pub(crate) fn new(
        made: Made,
        stats: &Stats,
        arrived: Option<&Arrived>,
        elapsed: Duration,
    ) -> Self {
        let spans = Tally::new(made.spans, stats.exported);
        let logs = Tally::new(made.lines, stats.logs.exported);
        // A collection has as many points as there are to collect.
        let points = Tally::new(stats.metrics.received, stats.metrics.exported);
        let mut account = Self {
            made,
            spans,
            logs,
            points,
            astray: 0,
            measured: None,
            stats: stats.clone(),
            elapsed,
        };
        if let Some(arrived) = arrived {
            account.take_in(arrived);
        }
        account
    }

    fn take_in(&mut self, arrived: &Arrived) {
        let own = |request: Option<&str>, late: Option<&str>| match (request, late) {
            (Some(request), None) => request.parse().map(token).unwrap_or_default(),
            _ => SERVICE_TOKEN.to_owned(),
        };
        let spans = arrived.spans.iter();
        self.spans.take_in(spans.map(|received| Item {
            key: (&received.span.trace_id, &received.span.span_id),
            weight: 1,
            token: &received.token,
            own: own(
                received.attribute(REQUEST_ATTRIBUTE),
                received.attribute(LATE_ATTRIBUTE),
            ),
        }));
        let logs = arrived.logs.iter();
        self.logs.take_in(logs.map(|received| Item {
            // A record has no id; no span says the same twice.
            key: (&received.record.span_id, received.message()),
            weight: 1,
            token: &received.token,
            own: own(
                received.attribute(REQUEST_ATTRIBUTE),
                received.attribute(LATE_ATTRIBUTE),
            ),
        }));
        let metrics = arrived.metrics.iter().enumerate();
        self.points.take_in(metrics.map(|(number, received)| Item {
            key: number,
            weight: measured::points(received) as u64,
            token: &received.token,
            // No request's.
            own: SERVICE_TOKEN.to_owned(),
        }));
        self.astray = astray(arrived);
        let count = |instrument| {
            let total = measured::total(&arrived.metrics, instrument, ROUTE);
            total.unwrap_or_default().count
        };
        self.measured = Some(Measured {
            answered: count(ANSWERED),
            durations: count(DURATION),
        });
    }

    /// Whether everything arrived, once, nothing under a wrong token, and the numbers say what was done.
    pub(crate) fn is_clean(&self) -> bool {
        let Self { made, stats, .. } = self;
        let measured = self.measured.is_none_or(|measured| {
            (measured.answered, measured.durations) == (made.requests, made.requests)
        });
        self.spans.is_clean()
            && self.logs.is_clean()
            && self.points.is_clean()
            && self.astray == 0
            && measured
            && (stats.ended, stats.logs.received) == (made.spans, made.lines)
            && stats.is_balanced()
    }

    pub(crate) fn to_json(&self) -> serde_json::Value {
        let Self { stats, .. } = self;
        let measured = self.measured;
        json!({
            "requests": self.made.requests,
            "spans_ended": self.spans.made,
            "spans_received": self.spans.received,
            "spans_acknowledged": stats.exported,
            "late_spans": stats.late.total(),
            "traces_evicted": stats.evicted_traces,
            "exports": stats.exports,
            "failed": stats.failed,
            "dropped": stats.dropped.total(),
            "duplicates": self.spans.duplicates,
            "service_token": self.spans.service_token,
            "wrong_token": self.spans.wrong_token,
            "logs_emitted": self.logs.made,
            "logs_received": self.logs.received,
            "logs_acknowledged": stats.logs.exported,
            "late_logs": stats.logs.late.total(),
            "logs_failed": stats.logs.failed,
            "logs_dropped": stats.logs.dropped.total(),
            "logs_duplicates": self.logs.duplicates,
            "logs_service_token": self.logs.service_token,
            "logs_wrong_token": self.logs.wrong_token,
            "logs_astray": self.astray,
            "metrics_collected": self.points.made,
            "metrics_received": self.points.received,
            "metrics_acknowledged": stats.metrics.exported,
            "metrics_failed": stats.metrics.failed,
            "metrics_wrong_token": self.points.wrong_token,
            "requests_counted": measured.map(|measured| measured.answered),
            "requests_timed": measured.map(|measured| measured.durations),
            "seconds": self.elapsed.as_secs_f64(),
        })
    }
}

/// How many log records of a request do not name a span of that request. Those of none name no span.
fn astray(arrived: &Arrived) -> u64 {
    let spans = arrived.spans.iter();
    let requests: HashMap<_, _> = spans
        .map(|received| {
            let span = &received.span;
            let request = received.attribute(REQUEST_ATTRIBUTE);
            ((&span.trace_id, &span.span_id), request)
        })
        .collect();
    let is_astray = |received: &&ReceivedLog| {
        let record = &received.record;
        let span = requests.get(&(&record.trace_id, &record.span_id));
        match (received.attribute(REQUEST_ATTRIBUTE), span) {
            (None, span) => span.is_some(),
            (request, span) => span != Some(&request),
        }
    };
    arrived.logs.iter().filter(is_astray).count() as u64
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stats, .. } = self;
        let (logs, points) = (&stats.logs, &stats.metrics);
        writeln!(
            f,
            "{} requests answered; {} traces evicted, to keep 20 at a time.\n",
            self.made.requests, stats.evicted_traces
        )?;
        writeln!(f, "{:<27}{:>8}{:>8}{:>8}", "", "spans", "logs", "points")?;
        let mut row = |name: &str, [spans, logs, points]: [u64; 3], note: &str| {
            let row = format!("{name:<27}{spans:>8}{logs:>8}{points:>8}  {note}");
            writeln!(f, "{}", row.trim_end())
        };
        let tallies = [&self.spans, &self.logs, &self.points];
        let made = tallies.map(|tally| tally.made);
        row("ended, logged, collected", made, "")?;
        match tallies.map(|tally| tally.received) {
            [Some(spans), Some(logs), Some(points)] => row("received", [spans, logs, points], "")?,
            _ => {
                let acknowledged = tallies.map(|tally| tally.acknowledged);
                row("acknowledged", acknowledged, "by the collector")?;
            }
        }
        for reason in LateReason::ALL {
            let late = [&stats.late, &logs.late, &points.late].map(|late| late.by(reason));
            row(&format!("late: {reason}"), late, "")?;
        }
        row("exports", [stats.exports, logs.exports, points.exports], "")?;
        row("failed", [stats.failed, logs.failed, points.failed], "")?;
        let dropped = [stats.dropped, logs.dropped, points.dropped];
        row("dropped", dropped.map(|dropped| dropped.total()), "")?;
        for reason in DropReason::ALL {
            let dropped = dropped.map(|dropped| dropped.by(reason));
            if dropped != [0; 3] {
                row(&format!("dropped: {reason}"), dropped, "")?;
            }
        }
        if self.measured.is_some() {
            let service = tallies.map(|tally| tally.service_token);
            row(
                "under the service's token",
                service,
                "late, or no request's",
            )?;
            let wrong = tallies.map(|tally| tally.wrong_token);
            row("under a wrong token", wrong, "must be 0")?;
        }
        if self.astray > 0 {
            row("in another's span", [0, self.astray, 0], "must be 0")?;
        }
        write!(f, "\n{:.1} s: ", self.elapsed.as_secs_f64())?;
        match self.is_clean() {
            true => f.write_str("everything arrived, and nothing under a wrong token."),
            false => f.write_str("NOT everything arrived, or some under a wrong token."),
        }?;
        match self.measured {
            Some(Measured {
                answered,
                durations,
            }) if (answered, durations) != (self.made.requests, self.made.requests) => {
                write!(
                    f,
                    " Of {} requests the metrics count {answered}, and time {durations}.",
                    self.made.requests
                )
            }
            _ => Ok(()),
        }
    }
}

// ===== impl Tally =====

/// Something that arrived.
struct Item<'a, K> {
    /// The same for what arrives again.
    key: K,
    /// How many it is.
    weight: u64,
    token: &'a str,
    /// The token that it must be under: that of its request, or the service's for what is late or no request's.
    own: String,
}

impl Tally {
    fn new(made: u64, acknowledged: u64) -> Self {
        Self {
            made,
            acknowledged,
            received: None,
            duplicates: 0,
            service_token: 0,
            wrong_token: 0,
        }
    }

    fn take_in<'a, K: Eq + Hash>(&mut self, items: impl Iterator<Item = Item<'a, K>>) {
        let mut keys = HashSet::new();
        let mut received = 0;
        for item in items {
            received += item.weight;
            if item.token == SERVICE_TOKEN {
                self.service_token += item.weight;
            }
            if item.token != item.own {
                self.wrong_token += item.weight;
            }
            self.duplicates += u64::from(!keys.insert(item.key));
        }
        self.received = Some(received);
    }

    /// Whether all of it arrived, as far as that is known: received here, or acknowledged by a collector of the user's.
    fn is_clean(&self) -> bool {
        self.received.unwrap_or(self.acknowledged) == self.made
            && self.acknowledged == self.made
            && self.duplicates == 0
            && self.wrong_token == 0
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::common::v1::KeyValue;
    use opentelemetry_proto::tonic::logs::v1::LogRecord;
    use opentelemetry_proto::tonic::metrics::v1::AggregationTemporality::Cumulative;
    use opentelemetry_proto::tonic::trace::v1::Span;

    use super::*;

    const REQUESTS: u8 = 2;

    fn of_request(request: u8) -> Vec<KeyValue> {
        let text = opentelemetry::Value::from(request.to_string());
        vec![KeyValue {
            key: REQUEST_ATTRIBUTE.to_owned(),
            value: Some(text.into()),
            ..KeyValue::default()
        }]
    }

    fn span(request: u8) -> Received {
        Received {
            span: Span {
                trace_id: vec![request; 16],
                span_id: vec![request; 8],
                attributes: of_request(request),
                ..Span::default()
            },
            token: token(request.into()),
            arrived: 0,
        }
    }

    fn line(request: u8) -> ReceivedLog {
        ReceivedLog {
            record: LogRecord {
                trace_id: vec![request; 16],
                span_id: vec![request; 8],
                attributes: of_request(request),
                ..LogRecord::default()
            },
            token: token(request.into()),
            arrived: 0,
        }
    }

    fn metric(instrument: &str) -> ReceivedMetric {
        ReceivedMetric {
            token: SERVICE_TOKEN.to_owned(),
            ..measured::tests::counted(instrument, ROUTE, Cumulative, 1, REQUESTS.into())
        }
    }

    /// Two requests of a span and a line each, of which all is acknowledged.
    fn is_clean(change: impl FnOnce(&mut Arrived)) -> bool {
        let made = u64::from(REQUESTS);
        let mut stats = Stats::default();
        (stats.ended, stats.exported) = (made, made);
        (stats.logs.received, stats.logs.exported) = (made, made);
        (stats.metrics.received, stats.metrics.exported) = (2, 2);
        let mut arrived = Arrived {
            spans: (0..REQUESTS).map(span).collect(),
            logs: (0..REQUESTS).map(line).collect(),
            metrics: [ANSWERED, DURATION].map(metric).to_vec(),
        };
        change(&mut arrived);
        let made = Made {
            requests: made,
            spans: made,
            lines: made,
        };
        Account::new(made, &stats, Some(&arrived), Duration::ZERO).is_clean()
    }

    type Change = fn(&mut Arrived);

    /// Scenario: all arrives as it should; and then one thing of one signal does not.
    /// Guarantees: only the first account is clean.
    #[test]
    fn account_is_clean_only_if_all_of_every_signal_is_right() {
        assert!(is_clean(|_| {}));
        let late = |all: &mut Arrived| {
            all.logs[0].token = SERVICE_TOKEN.to_owned();
            all.logs[0].record.attributes.push(KeyValue {
                key: LATE_ATTRIBUTE.to_owned(),
                value: Some(opentelemetry::Value::from("trace_evicted").into()),
                ..KeyValue::default()
            });
        };
        assert!(is_clean(late));

        let wrongs: [(&str, Change); 12] = [
            ("a span is lost", |all| drop(all.spans.pop())),
            ("a span of another's", |all| all.spans[0].token = token(1)),
            ("a line is lost", |all| drop(all.logs.pop())),
            ("a line twice", |all| all.logs[0] = all.logs[1].clone()),
            ("a line of another's", |all| all.logs[0].token = token(1)),
            ("a line of nobody's", |all| all.logs[0].token.clear()),
            ("a line of the service's, and not late", |all| {
                all.logs[0].token = SERVICE_TOKEN.to_owned();
            }),
            ("a span of the service's, and not late", |all| {
                all.spans[0].token = SERVICE_TOKEN.to_owned();
            }),
            ("a line in another's span", |all| {
                all.logs[0].record.span_id = vec![1; 8];
            }),
            ("a metric is lost", |all| drop(all.metrics.pop())),
            ("a metric of a request's", |all| {
                all.metrics[0].token = token(1);
            }),
            ("a request is not counted", |all| {
                all.metrics[0] = measured::tests::counted(ANSWERED, ROUTE, Cumulative, 1, 1);
                all.metrics[0].token = SERVICE_TOKEN.to_owned();
            }),
        ];
        for (wrong, change) in wrongs {
            assert!(!is_clean(change), "{wrong}");
        }
    }
}
