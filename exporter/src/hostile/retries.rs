//! What is decided after any sequence of answers.

use super::retry_after::now;
use crate::retry::{Decision, Outcome, Progress, RetryPolicy, decide};
use http::StatusCode;
use std::time::Duration;

/// The first line says how patient the policy is; each other line is the answer to one attempt, as `status retry-after`.
/// One without a status is a broken connection.
///
/// The export ends, within the attempts, the timeout and the patience of its policy, and sends again only what may be.
pub fn property(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.lines();
    let policy = policy(lines.next().unwrap_or_default());
    let timeout = Duration::from_secs(10);
    let mut progress = Progress {
        attempts: 0,
        time_left: Some(timeout),
        waited_for_collector: Duration::ZERO,
        now: now(),
        random: 0.0,
    };
    let mut backed_off = Duration::ZERO;
    // An endless supply: the last one again and again.
    let answers: Vec<_> = lines.collect();
    let mut answers = answers.iter().chain(answers.last().into_iter().cycle());
    loop {
        progress.attempts += 1;
        assert!(progress.attempts <= policy.max_attempts);
        progress.random = f64::from(progress.attempts % 8) / 8.0;
        let outcome = outcome(answers.next().copied().unwrap_or_default());
        let decision = decide(&policy, outcome, progress);
        let again = matches!(decision, Decision::Backoff(_) | Decision::Obey(_));
        assert!(!again || may_be_sent_again(outcome), "{outcome:?}");
        match decision {
            Decision::Backoff(wait) => {
                assert!(wait <= policy.max_backoff);
                backed_off += wait;
                progress.time_left = timeout.checked_sub(backed_off);
                assert!(progress.time_left.is_some_and(|left| !left.is_zero()));
            }
            Decision::Obey(wait) => {
                progress.waited_for_collector += wait;
                assert!(progress.waited_for_collector <= policy.max_retry_after);
            }
            Decision::TooLong(asked) => {
                let all = progress.waited_for_collector.saturating_add(asked);
                assert!(all > policy.max_retry_after);
                return;
            }
            Decision::Done => {
                assert!(matches!(outcome, Outcome::Response { status, .. } if status.is_success()));
                return;
            }
            Decision::GiveUp => {
                // The longest backoff that this attempt could have.
                let doubled = policy
                    .initial_backoff
                    .saturating_mul(1 << (progress.attempts - 1).min(31));
                let backoff = doubled.min(policy.max_backoff);
                let is_over = progress.attempts == policy.max_attempts
                    || progress.time_left.is_some_and(|left| left <= backoff);
                assert!(is_over || !may_be_sent_again(outcome), "{outcome:?}");
                return;
            }
        }
    }
}

/// `attempts initial-backoff max-backoff max-retry-after`, in milliseconds; what is missing is the default's.
fn policy(line: &str) -> RetryPolicy {
    let default = RetryPolicy::default();
    let mut numbers = line.split(' ').map(|number| number.parse::<u64>().ok());
    let mut next = || numbers.next().flatten();
    let attempts = next().map_or(default.max_attempts, |n| n.clamp(1, 2_000) as u32);
    let mut duration = |default: Duration| next().map_or(default, Duration::from_millis);
    let initial = duration(default.initial_backoff);
    let max = duration(default.max_backoff).max(initial);
    default
        .with_max_attempts(attempts)
        .with_backoff(initial, max)
        .with_max_retry_after(duration(default.max_retry_after))
}

fn outcome(line: &str) -> Outcome<'_> {
    let (status, retry_after) = match line.split_once(' ') {
        Some((status, retry_after)) => (status, Some(retry_after)),
        None => (line, None),
    };
    match StatusCode::from_bytes(status.as_bytes()) {
        Ok(status) => Outcome::Response {
            status,
            retry_after,
        },
        Err(_) if status == "large" => Outcome::ResponseTooLarge,
        Err(_) if status == "late" => Outcome::TimedOut,
        Err(_) => Outcome::NoResponse,
    }
}

fn may_be_sent_again(outcome: Outcome<'_>) -> bool {
    match outcome {
        Outcome::Response { status, .. } => [429, 502, 503, 504].contains(&status.as_u16()),
        Outcome::NoResponse => true,
        Outcome::ResponseTooLarge | Outcome::TimedOut => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::retry_after::tests::header;
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn answer() -> impl Strategy<Value = String> {
        let status = prop_oneof![
            4 => prop::sample::select(vec!["429", "502", "503", "504"]).prop_map(str::to_owned),
            2 => (100_u16..1000).prop_map(|status| status.to_string()),
            1 => prop::sample::select(vec!["", "large", "late"]).prop_map(str::to_owned),
        ];
        (status, proptest::option::of(header())).prop_map(|(status, retry_after)| {
            let retry_after = retry_after.map_or_else(String::new, |value| format!(" {value}"));
            format!("{status}{retry_after}")
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        /// Scenario: any policy, and any sequence of answers, broken connections and attempts that end late.
        /// Guarantees: every export comes to an end within its attempts, its timeout and its patience, and only what may be
        /// is sent again.
        #[test]
        fn every_sequence_of_answers_comes_to_an_end_within_its_limits(
            (attempts, initial, max, patience) in (1_u64..12, 0_u64..20_000, 0_u64..20_000, 0_u64..40_000),
            answers in vec(answer(), 1..8),
        ) {
            let policy = format!("{attempts} {initial} {max} {patience}");
            property(format!("{policy}\n{}", answers.join("\n")).as_bytes());
        }
    }
}
