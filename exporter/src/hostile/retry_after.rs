//! `Retry-After`, as any bytes that a header can hold.

use crate::retry::parse_retry_after;
use http::HeaderValue;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The time of day in all of it: noon on 1 January 2026.
const NOW: Duration = Duration::from_secs(1_767_268_800);

pub(super) fn now() -> SystemTime {
    UNIX_EPOCH + NOW
}

/// Any header value is a number of seconds, a date, or nothing, as it is by simpler means.
pub fn property(data: &[u8]) {
    let Ok(header) = HeaderValue::from_bytes(data) else {
        return;
    };
    if let Ok(value) = header.to_str() {
        let expected = naively(value.trim());
        assert_eq!(parse_retry_after(value, now()), expected, "{value:?}");
    }
}

fn naively(value: &str) -> Option<Duration> {
    if value.chars().any(|c| !c.is_ascii_digit()) || value.is_empty() {
        let date = httpdate::parse_http_date(value).ok()?;
        return Some(date.duration_since(now()).unwrap_or(Duration::ZERO));
    }
    let add = |sum: u64, digit: u8| {
        let sum = sum.saturating_mul(10);
        sum.saturating_add(u64::from(digit - b'0'))
    };
    Some(Duration::from_secs(value.bytes().fold(0, add)))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(in crate::hostile) fn header() -> impl Strategy<Value = String> {
        let date = (0_u64..4_000_000_000)
            .prop_map(|s| httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(s)));
        prop_oneof![
            2 => (0_u64..30).prop_map(|s| s.to_string()),
            1 => "[0-9]{1,25}",
            2 => date.clone(),
            // A date with one character exchanged.
            2 => (date, any::<prop::sample::Index>(), "[ -~]").prop_map(|(date, at, with)| {
                let at = at.index(date.len());
                format!("{}{with}{}", &date[..at], &date[at + 1..])
            }),
            1 => "[ -~\t]{0,32}",
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        /// Scenario: seconds, dates, dates with an error in them, and other text.
        /// Guarantees: each means what a naive reading of it means.
        #[test]
        fn retry_after_means_what_a_naive_reading_means(value in header()) {
            property(value.as_bytes());
        }
    }
}
