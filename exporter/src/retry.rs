//! Whether to send again, and when. Pure: an outcome, the time and a random number in, a decision out.

use http::StatusCode;
use std::time::{Duration, SystemTime};

/// How often and how patiently a request is sent again.
///
/// Sent again are requests answered with 429, 502, 503 or 504, and requests whose connection failed or broke without a
/// response. Between attempts the exporter waits: for as long as the collector's `Retry-After` says, otherwise for a
/// backoff that starts at the initial backoff, doubles with each attempt up to the maximum, and is shortened at random
/// by up to a half, so that many exporters do not come back at the same moment.
///
/// Attempts and backoff together never exceed the exporter's timeout. Time that the *collector* asked for is not counted
/// against it; it has its own limit, [`with_max_retry_after`](RetryPolicy::with_max_retry_after).
///
/// The default: 6 attempts (in Cloudflare Workers 3), backoff from 250 ms to 5 s, `Retry-After` up to 15 s. Natively that
/// is enough for a collector that is down for 3 s.
///
/// ```
/// use opentelemetry_otlp_direct::RetryPolicy;
/// use std::time::Duration;
///
/// let patient = RetryPolicy::default()
///     .with_max_attempts(8)
///     .with_max_retry_after(Duration::from_secs(60));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    pub(crate) max_attempts: u32,
    pub(crate) initial_backoff: Duration,
    pub(crate) max_backoff: Duration,
    pub(crate) max_retry_after: Duration,
}

/// What came of one attempt.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outcome<'a> {
    Response {
        status: StatusCode,
        retry_after: Option<&'a str>,
    },
    /// The connection failed, or broke before the response was complete.
    NoResponse,
    /// The collector has the data, so sending it again would store it twice.
    ResponseTooLarge,
    /// The attempt took all the time there was.
    TimedOut,
}

/// Where an export stands after an attempt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    /// Attempts made, at least one.
    pub(crate) attempts: u32,
    /// What is left of the timeout, `None` without one.
    pub(crate) time_left: Option<Duration>,
    /// How much the collector has made us wait already.
    pub(crate) waited_for_collector: Duration,
    /// The time of day, for a `Retry-After` that names a date.
    pub(crate) now: SystemTime,
    /// Uniform in `0.0..1.0`.
    pub(crate) random: f64,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// The collector has it.
    Done,
    /// Send again after our own backoff.
    Backoff(Duration),
    /// Send again after a wait that the collector asked for.
    Obey(Duration),
    /// Give up: the outcome stands.
    GiveUp,
    /// Give up: the collector asked for more patience than the policy has left.
    TooLong(Duration),
}

// ===== impl RetryPolicy =====

impl RetryPolicy {
    /// Default of [`with_max_attempts`](RetryPolicy::with_max_attempts).
    pub const DEFAULT_MAX_ATTEMPTS: u32 = match cfg!(target_family = "wasm") {
        // Each is one of the few subrequests that a request has.
        true => 3,
        // Their backoffs are 3.8 s together at the least: a collector may be restarted meanwhile.
        false => 6,
    };
    /// Default of the first argument of [`with_backoff`](RetryPolicy::with_backoff).
    pub const DEFAULT_INITIAL_BACKOFF: Duration = Duration::from_millis(250);
    /// Default of the second argument of [`with_backoff`](RetryPolicy::with_backoff).
    pub const DEFAULT_MAX_BACKOFF: Duration = Duration::from_secs(5);
    /// Default of [`with_max_retry_after`](RetryPolicy::with_max_retry_after).
    pub const DEFAULT_MAX_RETRY_AFTER: Duration = Duration::from_secs(15);

    /// How often a request is sent at most, the first time included. 1 sends nothing again; 0 is refused by the
    /// exporter's `build`.
    #[must_use]
    pub fn with_max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts;
        self
    }

    /// The first backoff and the largest. An initial one above the maximum is refused by the exporter's `build`.
    #[must_use]
    pub fn with_backoff(mut self, initial: Duration, max: Duration) -> Self {
        self.initial_backoff = initial;
        self.max_backoff = max;
        self
    }

    /// How long one export waits at the collector's request, all its `Retry-After` together. When the collector asks
    /// for more, the export fails at once. It comes on top of the exporter's timeout.
    #[must_use]
    pub fn with_max_retry_after(mut self, max: Duration) -> Self {
        self.max_retry_after = max;
        self
    }

    /// The backoff after `attempts` attempts: between half and all of what doubling gives.
    fn backoff(&self, attempts: u32, random: f64) -> Duration {
        let doublings = attempts.saturating_sub(1).min(31);
        let full = self
            .initial_backoff
            .saturating_mul(1 << doublings)
            .min(self.max_backoff);
        let half = full / 2;
        full - half.mul_f64(random.clamp(0.0, 1.0))
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: Self::DEFAULT_MAX_ATTEMPTS,
            initial_backoff: Self::DEFAULT_INITIAL_BACKOFF,
            max_backoff: Self::DEFAULT_MAX_BACKOFF,
            max_retry_after: Self::DEFAULT_MAX_RETRY_AFTER,
        }
    }
}

/// What to do after an attempt with this outcome.
pub(crate) fn decide(policy: &RetryPolicy, outcome: Outcome<'_>, progress: Progress) -> Decision {
    let retry_after = match outcome {
        Outcome::Response { status, .. } if status.is_success() => return Decision::Done,
        Outcome::Response {
            status,
            retry_after,
        } if is_retryable(status) => retry_after,
        Outcome::NoResponse => None,
        Outcome::Response { .. } | Outcome::ResponseTooLarge | Outcome::TimedOut => {
            return Decision::GiveUp;
        }
    };
    if progress.attempts >= policy.max_attempts {
        return Decision::GiveUp;
    }
    match retry_after.and_then(|value| parse_retry_after(value, progress.now)) {
        Some(asked) => obey(policy, asked, progress),
        None => back_off(policy, progress),
    }
}

fn obey(policy: &RetryPolicy, asked: Duration, progress: Progress) -> Decision {
    let total = progress.waited_for_collector.saturating_add(asked);
    if total <= policy.max_retry_after {
        Decision::Obey(asked)
    } else {
        Decision::TooLong(asked)
    }
}

fn back_off(policy: &RetryPolicy, progress: Progress) -> Decision {
    let backoff = policy.backoff(progress.attempts, progress.random);
    match progress.time_left {
        // An attempt that could only start when time is up is no attempt.
        Some(left) if backoff >= left => Decision::GiveUp,
        _ => Decision::Backoff(backoff),
    }
}

/// Exactly those of the OTLP specification.
fn is_retryable(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

/// Seconds or a date; a date in the past is now. `None` when it is neither.
pub(crate) fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // Too many digits for the type is still a number, and longer than anyone waits.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    const POLICY: RetryPolicy = RetryPolicy {
        max_attempts: 3,
        initial_backoff: Duration::from_millis(100),
        max_backoff: Duration::from_millis(150),
        max_retry_after: Duration::from_secs(15),
    };

    /// Noon on 1 January 2026.
    const NOW: Duration = Duration::from_secs(1_767_268_800);

    fn progress() -> Progress {
        Progress {
            attempts: 1,
            time_left: Some(Duration::from_secs(10)),
            waited_for_collector: Duration::ZERO,
            now: UNIX_EPOCH + NOW,
            random: 0.0,
        }
    }

    fn check(outcome: Outcome<'_>, expected: Decision) {
        assert_eq!(
            decide(&POLICY, outcome, progress()),
            expected,
            "{outcome:?}"
        );
    }

    fn answered(status: u16, retry_after: Option<&str>) -> Outcome<'_> {
        let status = StatusCode::from_u16(status).unwrap();
        Outcome::Response {
            status,
            retry_after,
        }
    }

    const SECOND: Duration = Duration::from_secs(1);
    const BACKOFF: Decision = Decision::Backoff(Duration::from_millis(100));

    /// Scenario: every status there is, without `Retry-After`.
    /// Guarantees: 2xx is done; exactly 429, 502, 503 and 504 are sent again; nothing else is.
    #[test]
    fn exactly_429_502_503_and_504_are_sent_again() {
        for status in 100..=999 {
            let expected = match status {
                200..=299 => Decision::Done,
                429 | 502 | 503 | 504 => BACKOFF,
                _ => Decision::GiveUp,
            };
            check(answered(status, None), expected);
        }
    }

    /// Scenario: attempts without a response.
    /// Guarantees: a broken connection is tried again; a response that is too large is not, since the collector has
    /// the data; nor is an attempt that used up all the time.
    #[test]
    fn no_response_is_sent_again_but_too_large_and_timed_out_are_not() {
        check(Outcome::NoResponse, BACKOFF);
        check(Outcome::ResponseTooLarge, Decision::GiveUp);
        check(Outcome::TimedOut, Decision::GiveUp);
    }

    /// Scenario: `Retry-After` in every form.
    /// Guarantees: seconds and dates are obeyed up to the limit, the past is now, nonsense is as if it were absent, and
    /// a `Retry-After` never makes a status retryable that is not.
    #[test]
    fn retry_after_is_obeyed_up_to_the_limit() {
        let cases = [
            ("0", Decision::Obey(Duration::ZERO)),
            ("3", Decision::Obey(3 * SECOND)),
            (" 3 ", Decision::Obey(3 * SECOND)),
            ("15", Decision::Obey(15 * SECOND)),
            ("16", Decision::TooLong(16 * SECOND)),
            (
                "99999999999999999999999",
                Decision::TooLong(Duration::from_secs(u64::MAX)),
            ),
            ("Thu, 01 Jan 2026 12:00:07 GMT", Decision::Obey(7 * SECOND)),
            (
                "Thu, 01 Jan 2026 11:59:00 GMT",
                Decision::Obey(Duration::ZERO),
            ),
            ("Fri, 01 Jan 1960 00:00:00 GMT", BACKOFF),
            (
                "Fri, 02 Jan 2026 12:00:00 GMT",
                Decision::TooLong(86_400 * SECOND),
            ),
            ("-1", BACKOFF),
            ("1.5", BACKOFF),
            ("soon", BACKOFF),
            ("", BACKOFF),
        ];
        for (value, expected) in cases {
            check(answered(429, Some(value)), expected);
            check(answered(503, Some(value)), expected);
            check(answered(400, Some(value)), Decision::GiveUp);
        }
    }

    /// Scenario: the collector asks for patience again and again.
    /// Guarantees: the limit holds for all of it together, and the timeout does not count it.
    #[test]
    fn patience_is_limited_over_the_whole_export() {
        let waited = |seconds, asked: &str| {
            let progress = Progress {
                waited_for_collector: seconds * SECOND,
                time_left: Some(Duration::from_millis(1)),
                ..progress()
            };
            decide(&POLICY, answered(503, Some(asked)), progress)
        };
        assert_eq!(waited(10, "5"), Decision::Obey(5 * SECOND));
        assert_eq!(waited(10, "6"), Decision::TooLong(6 * SECOND));
    }

    /// Scenario: the last attempt allowed, and the last moment of the timeout.
    /// Guarantees: no further attempt is planned, not even one that the collector asks for.
    #[test]
    fn attempts_and_time_are_limited() {
        let after = |attempts, left| {
            let progress = Progress {
                attempts,
                time_left: left,
                ..progress()
            };
            decide(&POLICY, answered(503, None), progress)
        };
        let ms = Duration::from_millis;
        let cases = [
            (1, Some(ms(101)), Decision::Backoff(ms(100))),
            (1, Some(ms(100)), Decision::GiveUp),
            (1, None, Decision::Backoff(ms(100))),
            (2, None, Decision::Backoff(ms(150))),
            (3, None, Decision::GiveUp),
        ];
        for (attempts, left, expected) in cases {
            assert_eq!(after(attempts, left), expected, "{attempts} {left:?}");
        }
        let last = Progress {
            attempts: 3,
            ..progress()
        };
        assert_eq!(
            decide(&POLICY, answered(503, Some("1")), last),
            Decision::GiveUp
        );
    }

    /// Scenario: any number of attempts, any random number, extreme policies.
    /// Guarantees: the backoff doubles up to its maximum, random takes off at most half, and nothing overflows. By
    /// default a collector that is down for 3 s is outlasted.
    #[test]
    fn backoff_doubles_and_jitter_takes_at_most_half() {
        let policy = RetryPolicy::default();
        let ms = Duration::from_millis;
        let cases = [
            (1, 0.0, ms(250)),
            (1, 1.0, ms(125)),
            (2, 0.0, ms(500)),
            (3, 0.5, ms(750)),
            (5, 0.0, ms(4_000)),
            (6, 0.0, ms(5_000)),
            (u32::MAX, 0.0, ms(5_000)),
        ];
        for (attempts, random, expected) in cases {
            assert_eq!(
                policy.backoff(attempts, random),
                expected,
                "{attempts} {random}"
            );
        }
        let shortest: Duration = (1..policy.max_attempts)
            .map(|n| policy.backoff(n, 1.0))
            .sum();
        assert!(shortest > Duration::from_secs(3), "{shortest:?}");
        let endless = policy.with_backoff(Duration::MAX, Duration::MAX);
        assert_eq!(endless.backoff(u32::MAX, 0.0), Duration::MAX);
    }
}
