//! Settings: any value of any variable, and the processor that they make.

use std::collections::HashMap;
use std::time::Duration;

use opentelemetry::trace::{Span as _, Tracer as _, TracerProvider as _};
use opentelemetry_sdk::trace::SdkTracerProvider;

use super::{Recorder, texts};
use crate::config::{
    Config, ENABLED, EXPORT_TIMEOUT_MS, EXPORT_UNFINISHED, FLUSH_TRIGGER, FlushTrigger,
    MAX_BATCH_SIZE, MAX_CONCURRENT_EXPORTS, MAX_EXPORTS_PER_REQUEST, MAX_PENDING_LOGS,
    MAX_PENDING_SPANS, MAX_SPANS_PER_TRACE, MAX_TRACES, METRIC_INTERVAL_MS, METRIC_PERIOD_MS,
    OPEN_EVENT_MIN_AGE_MS, OPEN_EVENTS, OpenEvents,
};
use crate::processor::PerRequestSpanProcessor;

const VARIABLES: [&str; 15] = [
    MAX_TRACES,
    MAX_SPANS_PER_TRACE,
    MAX_CONCURRENT_EXPORTS,
    MAX_BATCH_SIZE,
    MAX_PENDING_SPANS,
    MAX_EXPORTS_PER_REQUEST,
    EXPORT_TIMEOUT_MS,
    FLUSH_TRIGGER,
    ENABLED,
    // Behind the others, so that what was found before means what it did.
    MAX_PENDING_LOGS,
    METRIC_INTERVAL_MS,
    METRIC_PERIOD_MS,
    OPEN_EVENTS,
    OPEN_EVENT_MIN_AGE_MS,
    EXPORT_UNFINISHED,
];

/// Each text is a letter, which says the variable, and its value.
///
/// A value means what a naive reading of it means, or the default; and a processor with these settings works.
pub fn property(data: &[u8]) {
    let mut variables = HashMap::new();
    for text in texts(data) {
        let mut letters = text.chars();
        let letter = letters.next().map_or(0, |letter| letter as usize);
        let name = VARIABLES[letter.wrapping_sub('a' as usize) % VARIABLES.len()];
        variables.insert(name, letters.as_str().to_owned());
    }
    let config = Config::from_lookup(|name| variables.get(name).cloned());
    check(&config, &variables);
    works(config);
}

fn check(config: &Config, variables: &HashMap<&str, String>) {
    let default = Config::default();
    let value = |name: &str| Some(variables.get(name)?.trim());
    let limit = |name: &str| value(name).and_then(number);
    let positive = |name: &str| limit(name).filter(|number| *number > 0);
    let time = |name: &str| limit(name).map(|ms| Duration::from_millis(ms as u64));
    let expected = Config::default()
        .with_max_traces(positive(MAX_TRACES).unwrap_or(default.max_traces()))
        .with_max_spans_per_trace(
            limit(MAX_SPANS_PER_TRACE).unwrap_or(default.max_spans_per_trace()),
        )
        .with_max_concurrent_exports(
            limit(MAX_CONCURRENT_EXPORTS).unwrap_or(default.max_concurrent_exports()),
        )
        .with_max_batch_size(positive(MAX_BATCH_SIZE).unwrap_or(default.max_batch_size()))
        .with_max_pending_spans(positive(MAX_PENDING_SPANS).unwrap_or(default.max_pending_spans()))
        .with_max_pending_logs(positive(MAX_PENDING_LOGS).unwrap_or(default.max_pending_logs()))
        .with_metric_interval(time(METRIC_INTERVAL_MS).unwrap_or(default.metric_interval()))
        .with_metric_period(match time(METRIC_PERIOD_MS) {
            Some(period) => Some(period).filter(|period| !period.is_zero()),
            None => default.metric_period(),
        })
        .with_max_exports_per_request(
            limit(MAX_EXPORTS_PER_REQUEST).unwrap_or(default.max_exports_per_request()),
        )
        .with_export_timeout(
            positive(EXPORT_TIMEOUT_MS).map_or(default.export_timeout(), |ms| {
                Duration::from_millis(ms as u64)
            }),
        )
        .with_flush_trigger(
            value(FLUSH_TRIGGER)
                .and_then(trigger)
                .unwrap_or(default.flush_trigger()),
        )
        .with_open_events(
            value(OPEN_EVENTS)
                .and_then(form)
                .unwrap_or(default.open_events()),
        )
        .with_export_unfinished(
            value(EXPORT_UNFINISHED)
                .and_then(boolean)
                .unwrap_or(default.export_unfinished()),
        )
        .with_enabled(
            value(ENABLED)
                .and_then(boolean)
                .unwrap_or(default.enabled()),
        );
    // One that is set to the default is not one that is not set.
    let expected = match time(OPEN_EVENT_MIN_AGE_MS) {
        Some(age) => expected.with_open_event_min_age(age),
        None => expected,
    };
    assert_eq!(*config, expected);
}

/// A whole number, below 0 as 0 and above the largest as the largest.
fn number(text: &str) -> Option<usize> {
    let (digits, is_negative) = match text.strip_prefix('-') {
        Some(digits) => (digits, true),
        None => (text.strip_prefix('+').unwrap_or(text), false),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // What is longer is no number any more: see `Config`.
    let significant = digits.trim_start_matches('0');
    let longest = i128::MAX.to_string();
    let limit = match is_negative {
        true => i128::MIN.to_string().split_off(1),
        false => longest,
    };
    if (significant.len(), significant) > (limit.len(), limit.as_str()) {
        return None;
    }
    let add = |sum: usize, digit: u8| sum.saturating_mul(10).saturating_add((digit - b'0').into());
    Some(if is_negative {
        0
    } else {
        significant.bytes().fold(0, add)
    })
}

fn trigger(text: &str) -> Option<FlushTrigger> {
    match text.to_ascii_lowercase().as_str() {
        "next_tick" => Some(FlushTrigger::NextTick),
        "local_root_end" => Some(FlushTrigger::LocalRootEnd),
        _ => None,
    }
}

fn form(text: &str) -> Option<OpenEvents> {
    match text.to_ascii_lowercase().as_str() {
        "off" => Some(OpenEvents::Off),
        "logs" => Some(OpenEvents::Logs).filter(|_| cfg!(feature = "logs")),
        "pending_spans" => Some(OpenEvents::PendingSpans),
        _ => None,
    }
}

fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Some(true),
        "false" | "0" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// The environment alone never makes a processor impossible, and it accounts for a span.
fn works(config: Config) {
    let (is_enabled, timeout) = (config.enabled(), config.export_timeout());
    let recorder = Recorder::default();
    let processor = PerRequestSpanProcessor::builder(recorder.clone())
        .with_config(config)
        .build()
        .unwrap();
    let handle = processor.handle();
    let provider = SdkTracerProvider::builder()
        .with_span_processor(processor)
        .build();
    provider.tracer("test").start("span").end();
    let flushed = provider.force_flush();
    let stats = handle.stats();
    // By a pending span, which may take the only place, if it was open when somebody looked.
    let told = stats.open_events.sent;
    // Less is not enough for an export on a machine that has other things to do.
    if timeout >= Duration::from_secs(10) && told == 0 {
        flushed.unwrap();
        assert_eq!(recorder.0.lock().unwrap().len(), usize::from(is_enabled));
    }
    assert!(stats.is_balanced(), "{stats:?}");
    assert_eq!(stats.ended, u64::from(is_enabled) + told);
    let _ = provider.shutdown();
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn value() -> impl Strategy<Value = String> {
        prop_oneof![
            3 => "[+-]?[0-9]{1,25}",
            1 => "[+-]?0{0,3}1701411834604692317316873037158841057[0-9]{1,3}",
            1 => any::<u64>().prop_map(|number| number.to_string()),
            2 => "[ \t\r\n]{0,2}(?i)(true|yes|on|1|false|no|off|0|next_tick|local_root_end|logs|pending_spans)[ \t\u{a0}]{0,2}",
            1 => "[ -~]{0,8}",
            1 => any::<String>(),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Scenario: numbers of all sizes and signs, words in any case, white space of all kinds, and other text, in any
        /// variable.
        /// Guarantees: each means what a naive reading means, or the default; and with any of them the processor starts,
        /// accounts for a span, and ends.
        #[test]
        fn each_setting_means_what_a_naive_reading_means_and_the_processor_works(
            settings in vec((b'a'..=b'o', value()), 0..6),
        ) {
            let texts = settings.iter().map(|(letter, value)| format!("{}{value}", char::from(*letter)));
            property(texts.collect::<Vec<_>>().join("\0").as_bytes());
        }
    }
}
