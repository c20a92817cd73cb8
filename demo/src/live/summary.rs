//! The summary: what was received of open spans, beside what the processor says it sent.

use std::fmt;
use std::time::Duration;

use opentelemetry_per_request::Stats;
use serde_json::{Value, json};

use super::MIN_AGE;
use super::view::View;

/// What became of spans, in numbers. The words are those of `Stats::open_events`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Numbers {
    /// Spans, whatever was told of them.
    pub(super) opened: u64,
    /// Of which the collector was told that they are open.
    pub(super) sent: u64,
    /// Of which it was not.
    pub(super) elided: u64,
    pub(super) renamed: u64,
    pub(super) unfinished: u64,
    /// Spans that ended.
    pub(super) closed: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Summary {
    /// Spans that the service started, counted by itself.
    started: u64,
    received: Numbers,
    sent: Numbers,
    wrong_tokens: u64,
    elapsed: Duration,
}

// ===== impl Numbers =====

impl Numbers {
    fn of(stats: &Stats) -> Self {
        let open = &stats.open_events;
        Self {
            opened: open.opened,
            sent: open.sent,
            elided: open.elided,
            renamed: open.renamed,
            unfinished: open.unfinished,
            closed: stats.ended,
        }
    }

    pub(super) fn named(&self) -> [(&'static str, u64); 6] {
        [
            ("opened", self.opened),
            ("sent", self.sent),
            ("elided", self.elided),
            ("renamed", self.renamed),
            ("unfinished", self.unfinished),
            ("closed", self.closed),
        ]
    }

    fn to_json(&self) -> Value {
        let named = self.named().into_iter();
        named
            .map(|(name, number)| (name.to_owned(), Value::from(number)))
            .collect()
    }
}

// ===== impl Summary =====

impl Summary {
    pub(super) fn new(started: u64, view: &View, stats: &Stats, elapsed: Duration) -> Self {
        Self {
            started,
            received: view.numbers(),
            sent: Numbers::of(stats),
            wrong_tokens: view.wrong_tokens(),
            elapsed,
        }
    }

    /// Whether what was received is what the service did and the processor says, and nothing came under a wrong token.
    pub(super) fn is_clean(&self) -> bool {
        self.received == self.sent && self.received.opened == self.started && self.wrong_tokens == 0
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "spans_started": self.started,
            "received": self.received.to_json(),
            "processor": self.sent.to_json(),
            "wrong_token": self.wrong_tokens,
            "agrees": self.is_clean(),
            "min_age_ms": MIN_AGE.as_millis() as u64,
            "seconds": self.elapsed.as_secs_f64(),
        })
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<20}{:>10}{:>11}", "", "received", "processor")?;
        let both = self.received.named().into_iter().zip(self.sent.named());
        for ((name, received), (_, sent)) in both {
            let note = match name {
                "opened" => format!("the service started {}", self.started),
                "sent" => format!("still open after {} ms", MIN_AGE.as_millis()),
                "elided" => "ended, or given up, before that".to_owned(),
                "renamed" => "after their open event".to_owned(),
                "unfinished" => "open at the shutdown".to_owned(),
                _ => String::new(),
            };
            let row = format!("{name:<20}{received:>10}{sent:>11}  {note}");
            writeln!(f, "{}", row.trim_end())?;
        }
        let wrong = self.wrong_tokens;
        writeln!(
            f,
            "{:<20}{wrong:>10}{:>11}  must be 0\n",
            "under a wrong token", ""
        )?;
        write!(f, "{:.1} s: ", self.elapsed.as_secs_f64())?;
        f.write_str(match self.is_clean() {
            true => "what was received is what happened, and nothing came under a wrong token.",
            false => "what was received is NOT what happened, or some came under a wrong token.",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary() -> Summary {
        let numbers = Numbers {
            opened: 5,
            sent: 3,
            elided: 2,
            renamed: 1,
            unfinished: 1,
            closed: 4,
        };
        Summary {
            started: 5,
            received: numbers.clone(),
            sent: numbers,
            wrong_tokens: 0,
            elapsed: Duration::ZERO,
        }
    }

    /// Scenario: all numbers agree; and then one does not.
    /// Guarantees: only the first summary is clean, and says so to a program.
    #[test]
    fn summary_is_clean_only_if_every_number_agrees() {
        type Change = fn(&mut Summary);
        let wrongs: [Change; 8] = [
            |all| all.started += 1,
            |all| all.received.opened -= 1,
            |all| all.received.sent -= 1,
            |all| all.received.elided += 1,
            |all| all.sent.renamed += 1,
            |all| all.received.unfinished -= 1,
            |all| all.received.closed -= 1,
            |all| all.wrong_tokens = 1,
        ];
        assert_eq!(summary().to_json()["agrees"], true);
        for (number, change) in wrongs.into_iter().enumerate() {
            let mut summary = summary();
            change(&mut summary);
            assert!(!summary.is_clean(), "{number}");
            assert_eq!(summary.to_json()["agrees"], false, "{number}");
        }
    }
}
