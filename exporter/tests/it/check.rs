//! `check` tells endpoint, path and credentials apart.

use crate::support::{Collector, Reply, builder, check_account, context_with, exporter, nowhere};
use futures_executor::block_on;
use opentelemetry::trace::FutureExt as _;
use opentelemetry_otlp_direct::{CheckError, ExportToken};
use std::time::Duration;

/// Scenario: a collector that takes everything.
/// Guarantees: success through exporter and handle, with a request of no bytes, and nothing counted.
#[test]
fn working_collector_passes_and_nothing_is_counted() {
    let collector = Collector::start();
    let exporter = exporter(&collector);
    block_on(exporter.check()).unwrap();
    block_on(exporter.handle().check()).unwrap();
    let received = collector.received();
    assert_eq!(received.len(), 2);
    assert!(received.iter().all(|request| request.body.is_empty()));
    assert_eq!(exporter.stats().attempts(), 0);
    check_account(&exporter, 0, &[]);
}

/// Scenario: each answer that is no success.
/// Guarantees: the error names what does not work, with endpoint and status, after one request.
#[test]
fn error_says_which_part_does_not_work() {
    let cases = [
        (401, "credentials are not accepted"),
        (403, "credentials are not accepted"),
        (404, "path of"),
        (405, "path of"),
        (302, "answered 302"),
        (503, "answered 503"),
    ];
    for (status, expected) in cases {
        let collector = Collector::scripted([Reply::status(status)]);
        let error = block_on(exporter(&collector).check()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(expected), "{status}: {text}");
        assert!(text.contains(&collector.endpoint()), "{text}");
        assert_eq!(collector.received().len(), 1);
    }
}

/// Scenario: nobody listens; somebody listens and says nothing.
/// Guarantees: the endpoint is named as what does not work, with the cause; and silence is told apart from it.
#[test]
fn unreachable_and_silent_endpoints_are_told_apart() {
    let refused = builder(&nowhere()).build().unwrap();
    let error = block_on(refused.check()).unwrap_err();
    assert!(matches!(error, CheckError::Endpoint { .. }), "{error:?}");
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.to_lowercase().contains("refused"), "{cause}");

    let collector = Collector::scripted([Reply::Hang]);
    let silent = builder(&collector.endpoint())
        .with_timeout(Duration::from_millis(50))
        .build()
        .unwrap();
    let error = block_on(silent.check()).unwrap_err();
    assert!(matches!(error, CheckError::Timeout { .. }), "{error:?}");
}

/// Scenario: the check runs under a context with a token, whose circuit is open.
/// Guarantees: the token is checked, whatever happened before.
#[test]
fn token_of_the_context_is_checked_whatever_its_circuit_says() {
    let collector = Collector::scripted([Reply::status(401)]);
    let exporter = exporter(&collector);
    let cx = context_with(&ExportToken::new("t").unwrap());
    let check = || block_on(exporter.check().with_context(cx.clone()));
    assert!(matches!(check(), Err(CheckError::Credentials { .. })));
    check().unwrap();
    let expected = [(); 2].map(|()| Some("Bearer t".to_owned()));
    assert_eq!(collector.authorizations(), expected);
}
