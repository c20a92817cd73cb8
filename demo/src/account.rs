//! The account: what was made, what arrived, and under whose token.

use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use opentelemetry_per_request::{DropReason, LateReason, Stats};
use serde_json::json;

use crate::SERVICE_TOKEN;
use crate::client::token;
use crate::service::REQUEST_ATTRIBUTE;
use demo::receiver::Received;

/// See the module.
pub(crate) struct Account {
    requests: usize,
    ended: u64,
    /// `None` with a collector of the user's, which only acknowledges.
    received: Option<u64>,
    duplicates: u64,
    service_token: u64,
    wrong_token: u64,
    stats: Stats,
    elapsed: Duration,
}

impl Account {
    pub(crate) fn new(
        requests: usize,
        ended: u64,
        stats: &Stats,
        received: Option<&[Received]>,
        elapsed: Duration,
    ) -> Self {
        let spans = received.unwrap_or_default();
        let ids: HashSet<_> = spans
            .iter()
            .map(|received| (&received.span.trace_id, &received.span.span_id))
            .collect();
        Self {
            requests,
            ended,
            received: received.map(|spans| spans.len() as u64),
            duplicates: (spans.len() - ids.len()) as u64,
            service_token: count(spans, |received| received.token == SERVICE_TOKEN),
            wrong_token: count(spans, is_wrong),
            stats: stats.clone(),
            elapsed,
        }
    }

    /// What arrived, as far as it is known: received here, or acknowledged by a collector of the user's.
    fn arrived(&self) -> u64 {
        self.received.unwrap_or(self.stats.exported)
    }

    /// Whether everything arrived, once, and nothing under a wrong token.
    pub(crate) fn is_clean(&self) -> bool {
        self.arrived() == self.ended
            && self.stats.ended == self.ended
            && self.stats.is_balanced()
            && self.duplicates == 0
            && self.wrong_token == 0
    }

    pub(crate) fn to_json(&self) -> serde_json::Value {
        json!({
            "requests": self.requests,
            "spans_ended": self.ended,
            "spans_received": self.received,
            "spans_acknowledged": self.stats.exported,
            "late_spans": self.stats.late.total(),
            "traces_evicted": self.stats.evicted_traces,
            "exports": self.stats.exports,
            "failed": self.stats.failed,
            "dropped": self.stats.dropped.total(),
            "duplicates": self.duplicates,
            "service_token": self.service_token,
            "wrong_token": self.wrong_token,
            "seconds": self.elapsed.as_secs_f64(),
        })
    }
}

/// Whether a span came under the token of another request.
fn is_wrong(received: &Received) -> bool {
    let own = received
        .attribute(REQUEST_ATTRIBUTE)
        .and_then(|request| request.parse().ok())
        .map(token);
    received.token != SERVICE_TOKEN && Some(&received.token) != own.as_ref()
}

fn count(spans: &[Received], which: impl Fn(&Received) -> bool) -> u64 {
    spans.iter().filter(|received| which(received)).count() as u64
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row =
            |name: &str, value: u64, note: &str| writeln!(f, "{name:<28}{value:>7}  {note}");
        row("requests answered", self.requests as u64, "")?;
        row("spans ended", self.ended, "")?;
        match self.received {
            Some(received) => row("spans received", received, "")?,
            None => row(
                "spans acknowledged",
                self.stats.exported,
                "by the collector",
            )?,
        }
        row(
            "traces evicted",
            self.stats.evicted_traces,
            "to keep 20 at a time",
        )?;
        for reason in LateReason::ALL {
            let late = self.stats.late.by(reason);
            row(&format!("late: {reason}"), late, "")?;
        }
        row("exports", self.stats.exports, "")?;
        row("failed", self.stats.failed, "")?;
        row("dropped", self.stats.dropped.total(), "")?;
        for reason in DropReason::ALL {
            let dropped = self.stats.dropped.by(reason);
            if dropped > 0 {
                row(&format!("dropped: {reason}"), dropped, "")?;
            }
        }
        if self.received.is_some() {
            row(
                "under the service's token",
                self.service_token,
                "the fallback, for late spans",
            )?;
            row(
                "under a wrong token",
                self.wrong_token,
                "another request's: must be 0",
            )?;
        }
        write!(f, "\n{:.1} s: ", self.elapsed.as_secs_f64())?;
        match self.is_clean() {
            true => f.write_str("every span arrived, and none under a wrong token."),
            false => f.write_str("NOT every span arrived, or some under a wrong token."),
        }
    }
}
