//! Sending again: the shell around the pure decision.

use crate::support::{
    Collector, Reply, builder, check_account, context_with, export, export_under, exporter, spans,
};
use opentelemetry_otlp_direct::FailureReason::{Status, Throttled};
use opentelemetry_otlp_direct::{ExportToken, RetryPolicy};
use std::time::{Duration, Instant};

/// Scenario: a broken connection and each retryable status in turn, then success.
/// Guarantees: the same bytes are sent again until they are taken; the spans are counted once.
#[test]
fn retryable_failures_are_sent_again_with_the_same_bytes() {
    let collector = Collector::scripted([
        Reply::Break,
        Reply::status(429),
        Reply::status(502),
        Reply::status(504),
    ]);
    let exporter = exporter(&collector);
    export(&exporter, spans(2)).unwrap();
    let received = collector.received();
    assert!(received.len() >= 5, "{}", received.len());
    assert!(
        received
            .iter()
            .all(|request| request.body == received[0].body)
    );
    check_account(&exporter, 2, &[]);
}

/// Scenario: statuses that say no for good, redirects among them.
/// Guarantees: one attempt, an error with the status, and its place in the account.
#[test]
fn other_statuses_are_not_sent_again_and_redirects_are_not_followed() {
    for status in [301, 307, 400, 404, 413, 500, 501] {
        let elsewhere = Collector::start();
        let reply = Reply::status(status).with_header("location", elsewhere.endpoint());
        let collector = Collector::scripted([reply]);
        let exporter = exporter(&collector);
        let error = export(&exporter, spans(3)).unwrap_err().to_string();
        assert!(error.contains(&status.to_string()), "{error}");
        assert_eq!(collector.received().len(), 1, "{status}");
        assert_eq!(elsewhere.received().len(), 0, "{status}");
        check_account(&exporter, 0, &[(Status, 3)]);
    }
}

/// Scenario: a collector that is never ready.
/// Guarantees: the policy's number of attempts, then an error with status and number.
#[test]
fn attempts_end_with_the_policy() {
    let collector = Collector::answering(|_, _| Reply::status(503));
    let exporter = exporter(&collector);
    let error = export(&exporter, spans(1)).unwrap_err().to_string();
    assert!(
        error.contains("503") && error.contains("attempt 6"),
        "{error}"
    );
    assert_eq!(collector.received().len(), 6);
    assert_eq!(exporter.stats().retries(), 5);
}

/// Scenario: the collector asks for one second, the timeout is shorter.
/// Guarantees: the batch is not lost: the wait is obeyed on top of the timeout, and the next attempt has time.
#[test]
fn retry_after_beyond_the_timeout_does_not_lose_the_batch() {
    let collector = Collector::scripted([Reply::status(503).with_header("retry-after", "1")]);
    let exporter = builder(&collector.endpoint())
        .with_timeout(Duration::from_millis(500))
        .build()
        .unwrap();
    let started = Instant::now();
    export(&exporter, spans(1)).unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));
    check_account(&exporter, 1, &[]);
}

/// Scenario: the collector asks for an hour.
/// Guarantees: the export fails at once, and the error names what was asked and what the policy allows.
#[test]
fn absurd_retry_after_fails_at_once() {
    let collector = Collector::scripted([Reply::status(429).with_header("retry-after", "3600")]);
    let exporter = exporter(&collector);
    let error = export(&exporter, spans(2)).unwrap_err().to_string();
    assert!(error.contains("3600s") && error.contains("15s"), "{error}");
    check_account(&exporter, 0, &[(Throttled, 2)]);
}

/// Scenario: the collector asks for a second twice, and the policy allows one.
/// Guarantees: the limit is over the whole export, so the second time fails it.
#[test]
fn patience_is_counted_over_the_whole_export() {
    let second = Duration::from_secs(1);
    let collector = Collector::answering(|_, _| Reply::status(503).with_header("retry-after", "1"));
    let exporter = builder(&collector.endpoint())
        .with_retry_policy(RetryPolicy::default().with_max_retry_after(second))
        .build()
        .unwrap();
    export(&exporter, spans(1)).unwrap_err();
    assert_eq!(collector.received().len(), 2);
    check_account(&exporter, 0, &[(Throttled, 1)]);
}

/// Scenario: the collector is not ready, and backoff would end after the timeout.
/// Guarantees: the export fails with the collector's answer, without waiting for nothing.
#[test]
fn backoff_beyond_the_timeout_is_not_waited_for() {
    let minute = Duration::from_secs(60);
    let collector = Collector::answering(|_, _| Reply::status(503));
    let exporter = builder(&collector.endpoint())
        .with_retry_policy(RetryPolicy::default().with_backoff(minute, minute))
        .build()
        .unwrap();
    let error = export(&exporter, spans(1)).unwrap_err().to_string();
    assert!(error.contains("503"), "{error}");
    assert_eq!(collector.received().len(), 1);
}

/// Scenario: the token is refreshed while the first attempt is out.
/// Guarantees: the second attempt carries the new one.
#[test]
fn token_is_read_anew_for_each_attempt() {
    let token = ExportToken::new("old").unwrap();
    let refreshed = token.clone();
    let collector = Collector::answering(move |_, number| {
        refreshed.update("new").unwrap();
        Reply::status(if number == 0 { 503 } else { 200 })
    });
    let exporter = exporter(&collector);
    export_under(context_with(&token), &exporter, spans(1)).unwrap();
    let expected = ["Bearer old", "Bearer new"].map(|token| Some(token.to_owned()));
    assert_eq!(collector.authorizations(), expected);
}
