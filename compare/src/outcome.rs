//! What became of one contestant in one scenario, and whether ours kept its promises.

use std::collections::HashMap;

use demo::receiver::{Received, ReceivedLog};
use opentelemetry_per_request::{DEFAULT_MAX_PENDING_LOGS, DEFAULT_MAX_PENDING_SPANS};
use serde::Serialize;

use crate::contestant::{Contestant, Signal};
use crate::protocol::Done;
use crate::scenario::{Allowance, Scenario};
use crate::service::{NUMBER, TENANT};

/// What a hung collector may cost ours: the most items that may be pending, a kilobyte for each, and as much again for
/// whatever else goes on.
const MOST_GROWN: u64 = 2 * DEFAULT_MAX_PENDING_LOGS as u64 * 1024;

/// A span or a log record as it arrived. Times are in nanoseconds since the epoch.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    /// Tells those of a run apart.
    id: Vec<u8>,
    sampled: bool,
    /// Whose it is.
    tenant: String,
    /// Under whose token it came. Empty if there was none.
    token: String,
    ended: u64,
    arrived: u64,
}

impl From<Received> for Arrival {
    fn from(received: Received) -> Self {
        const SAMPLED: u32 = 1;
        let tenant = received.attribute(TENANT).unwrap_or_default().to_owned();
        let Received {
            span,
            token,
            arrived,
        } = received;
        Self {
            id: span.span_id,
            sampled: span.flags & SAMPLED != 0,
            tenant,
            token,
            ended: span.end_time_unix_nano,
            arrived,
        }
    }
}

/// All of them count, whether their trace is sampled or not.
impl From<ReceivedLog> for Arrival {
    fn from(received: ReceivedLog) -> Self {
        let text = |key| received.attribute(key).unwrap_or_default().to_owned();
        Self {
            id: text(NUMBER).into_bytes(),
            sampled: true,
            tenant: text(TENANT),
            ended: received.logged(),
            token: received.token,
            arrived: received.arrived,
        }
    }
}

/// How the child process came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum End {
    /// It said what came of it.
    Done,
    /// It had to be killed.
    Hung,
    /// It ended without a word.
    Failed,
}

/// What is known after a run.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) end: End,
    /// Sampled spans or log records, as far as it has said.
    pub(crate) ended: u64,
    pub(crate) done: Option<Done>,
    pub(crate) arrivals: Vec<Arrival>,
}

/// One row of the table. Its words are those of spans; in a scenario of log records it is about those.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    pub(crate) scenario: &'static str,
    #[serde(rename = "processor", serialize_with = "key")]
    pub(crate) contestant: Contestant,
    pub(crate) end: End,
    /// Sampled spans that ended.
    pub(crate) ended: u64,
    /// Distinct sampled spans that arrived.
    pub(crate) arrived: u64,
    /// Spans that arrived again.
    pub(crate) duplicates: u64,
    pub(crate) unsampled_arrived: u64,
    /// Spans that came under another tenant's token.
    pub(crate) foreign_token: u64,
    /// Spans that came under no token.
    pub(crate) no_token: u64,
    /// Milliseconds from a span's end until it arrived. None if none did.
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p99_ms: Option<f64>,
    /// What ending spans took the threads of the service, all together.
    pub(crate) held_up_ms: Option<f64>,
    pub(crate) flush: Option<Flush>,
    /// Losses and late spans that ours has counted.
    pub(crate) counted_lost: Option<u64>,
    pub(crate) counted_late: Option<u64>,
    /// What ours still had in it, and may be lost or not.
    pub(crate) counted_pending: Option<u64>,
    /// How much more memory the process had at most than before the traffic.
    pub(crate) grown_bytes: Option<u64>,
    #[serde(rename = "signal", serialize_with = "items")]
    signal: Signal,
}

/// What a flush or shutdown said, beside what was so.
#[derive(Debug, Serialize)]
pub(crate) struct Flush {
    /// None is Ok.
    pub(crate) error: Option<String>,
    pub(crate) took_ms: f64,
    /// Sampled spans that had ended and had not arrived when it returned.
    pub(crate) missing: u64,
}

fn key<S: serde::Serializer>(contestant: &Contestant, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(contestant.key())
}

fn items<S: serde::Serializer>(signal: &Signal, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(signal.items())
}

impl Flush {
    /// Ok says that nothing is missing, and an error that something is.
    pub(crate) fn is_true(&self) -> bool {
        self.error.is_some() == (self.missing > 0)
    }
}

impl Outcome {
    pub(crate) fn new(scenario: &Scenario, contestant: Contestant, run: Run) -> Self {
        let mut first: HashMap<&[u8], &Arrival> = HashMap::new();
        for arrival in &run.arrivals {
            first.entry(&arrival.id).or_insert(arrival);
        }
        let ended = run.done.as_ref().map_or(run.ended, |done| done.ended);
        let (sampled, unsampled): (Vec<&Arrival>, Vec<&Arrival>) =
            first.values().partition(|arrival| arrival.sampled);
        let mut millis: Vec<f64> = sampled
            .iter()
            .map(|arrival| arrival.arrived.saturating_sub(arrival.ended) as f64 / 1e6)
            .collect();
        millis.sort_by(f64::total_cmp);
        let wrong = |empty: bool| {
            let arrivals = run.arrivals.iter();
            let wrong = arrivals.filter(|arrival| arrival.token != arrival.tenant);
            wrong
                .filter(|arrival| arrival.token.is_empty() == empty)
                .count() as u64
        };
        let flush = run.done.as_ref().map(|done| {
            let there = sampled
                .iter()
                .filter(|arrival| arrival.arrived <= done.said.at);
            Flush {
                error: done.said.error.clone(),
                took_ms: done.said.took_ms,
                missing: ended.saturating_sub(there.count() as u64),
            }
        });
        let account = run.done.as_ref().and_then(|done| done.account.as_ref());
        Self {
            scenario: scenario.name,
            contestant,
            end: run.end,
            ended,
            arrived: sampled.len() as u64,
            duplicates: (run.arrivals.len() - first.len()) as u64,
            unsampled_arrived: unsampled.len() as u64,
            foreign_token: wrong(false),
            no_token: wrong(true),
            p50_ms: percentile(&millis, 50),
            p99_ms: percentile(&millis, 99),
            held_up_ms: run.done.as_ref().map(|done| done.held_up_ms),
            flush,
            counted_lost: account.map(|account| account.lost),
            counted_late: account.map(|account| account.late),
            counted_pending: account.map(|account| account.pending),
            grown_bytes: run.done.as_ref().and_then(|done| done.grown_bytes),
            signal: scenario.signal,
        }
    }

    /// The promises that were broken, for ours.
    pub(crate) fn broken_promises(&self, allowance: Allowance) -> Vec<String> {
        let lost = self.ended.saturating_sub(self.arrived);
        let extra = self.arrived.saturating_sub(self.ended);
        let late = self.counted_late.unwrap_or_default();
        let bound = match self.signal {
            Signal::Spans => DEFAULT_MAX_PENDING_SPANS,
            Signal::Logs => DEFAULT_MAX_PENDING_LOGS,
        };
        let may_lose = match allowance {
            Allowance::Overflow => self.ended > bound as u64,
            Allowance::RetriesOfOtlp => self.contestant == Contestant::PerRequest,
            Allowance::Hung => true,
            Allowance::Nothing | Allowance::NoTokenIfLate => false,
        };
        let may_lack_tokens = match allowance {
            Allowance::NoTokenIfLate => late,
            _ => 0,
        };
        // What is pending may be lost in the end, and what is lost may have been counted before it arrived.
        let pending = self.counted_pending.unwrap_or_default();
        let counts = |counted: u64| {
            let too_much = counted > lost && allowance != Allowance::RetriesOfOtlp;
            lost <= counted + pending && !too_much
        };
        let flush = self.flush.as_ref();
        let items = self.signal.items();
        let broken = [
            (self.end != End::Done, format!("it ended as {:?}", self.end)),
            (self.ended == 0, format!("no {items}")),
            (lost > 0 && !may_lose, format!("{lost} {items} are lost")),
            (
                !self.counted_lost.is_some_and(counts),
                format!(
                    "{lost} {items} are lost, and it counts {:?}, and {pending} pending",
                    self.counted_lost
                ),
            ),
            (
                extra > 0,
                format!("{extra} {items} arrived that never ended"),
            ),
            (
                self.foreign_token > 0,
                format!(
                    "{} {items} came under another tenant's token",
                    self.foreign_token
                ),
            ),
            (
                allowance == Allowance::NoTokenIfLate && late == 0,
                "nothing was evicted".to_owned(),
            ),
            (
                self.no_token != may_lack_tokens,
                format!("{} {items} came under no token", self.no_token),
            ),
            (
                self.unsampled_arrived > 0,
                format!("{} unsampled {items} arrived", self.unsampled_arrived),
            ),
            (
                flush.is_some_and(|flush| !flush.is_true()),
                format!("the flush did not tell the truth: {flush:?}"),
            ),
            (
                allowance == Allowance::Hung
                    && (pending > bound as u64 || self.grown_bytes > Some(MOST_GROWN)),
                format!(
                    "a hung collector costs {:?} bytes, with {pending} {items} pending",
                    self.grown_bytes
                ),
            ),
        ];
        let broken = broken.into_iter().filter(|(is_broken, _)| *is_broken);
        broken
            .map(|(_, what)| format!("{}, {}: {what}", self.scenario, self.contestant.key()))
            .collect()
    }
}

fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get(last * percent / 100).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Account;
    use crate::scenario::SCENARIOS;
    use crate::service::Said;

    fn arrival(id: u8, token: &str, arrived: u64) -> Arrival {
        Arrival {
            id: vec![id],
            sampled: true,
            tenant: "blue".to_owned(),
            token: token.to_owned(),
            ended: 0,
            arrived,
        }
    }

    /// Ours, whose flush returned at 100 and counted no loss.
    fn outcome(ended: u64, error: Option<&str>, arrivals: Vec<Arrival>) -> Outcome {
        let said = Said {
            error: error.map(str::to_owned),
            at: 100,
            took_ms: 0.0,
        };
        let done = Done {
            ended,
            held_up_ms: 0.0,
            grown_bytes: None,
            said,
            account: Some(Account {
                lost: 0,
                pending: 0,
                late: 0,
            }),
        };
        let run = Run {
            end: End::Done,
            ended,
            done: Some(done),
            arrivals,
        };
        Outcome::new(&SCENARIOS[0], Contestant::PerRequest, run)
    }

    /// Scenario: a flush says Ok or fails, before or after the last of two spans has arrived.
    /// Guarantees: Ok is true only if both were there when it returned, and an error only if one was not.
    #[test]
    fn flush_is_true_only_if_what_it_says_was_so_when_it_returned() {
        let cases = [
            (None, 100, true),
            (None, 101, false),
            (Some("lost"), 101, true),
            (Some("lost"), 100, false),
        ];
        for (error, last, expected) in cases {
            let arrivals = vec![arrival(1, "blue", 50), arrival(2, "blue", last)];
            let flush = outcome(2, error, arrivals).flush;
            let is_true = flush.as_ref().map(Flush::is_true);
            assert_eq!(is_true, Some(expected), "{flush:?}");
        }
    }

    /// Scenario: a span arrives twice, one under another tenant's token, one under none, and one unsampled.
    /// Guarantees: each has its number, and only distinct sampled spans have arrived.
    #[test]
    fn arrivals_are_counted_by_what_is_wrong_with_them() {
        let unsampled = Arrival {
            sampled: false,
            ..arrival(4, "blue", 1)
        };
        let arrivals = vec![
            arrival(1, "blue", 1),
            arrival(1, "blue", 2),
            arrival(2, "green", 1),
            arrival(3, "", 1),
            unsampled,
        ];
        let outcome = outcome(3, None, arrivals);
        assert_eq!(outcome.arrived, 3);
        assert_eq!(outcome.duplicates, 1);
        assert_eq!(outcome.foreign_token, 1);
        assert_eq!(outcome.no_token, 1);
        assert_eq!(outcome.unsampled_arrived, 1);
    }

    /// Scenario: ours keeps every promise, and then loses a span without counting it.
    /// Guarantees: the first is no failure; the second is three: the loss, the account, and the flush.
    #[test]
    fn uncounted_loss_breaks_a_promise() {
        let both = vec![arrival(1, "blue", 1), arrival(2, "blue", 1)];
        let kept = outcome(2, None, both).broken_promises(Allowance::Nothing);
        assert_eq!(kept, Vec::<String>::new());
        let one = vec![arrival(1, "blue", 1)];
        let broken = outcome(2, None, one).broken_promises(Allowance::Nothing);
        assert_eq!(broken.len(), 3, "{broken:?}");
    }
}
