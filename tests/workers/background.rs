//! What goes on behind the response.

use std::time::{Duration, Instant};

use crate::support::{PATIENCE, SERVICE_TOKEN, named, start};

/// Scenario: work that was handed to `Telemetry::wait_until` ends half a second after the response.
/// Guarantees: the response does not wait for it; its span arrives by itself, under its own request's token, as a child of
/// the root, which has left long before.
#[tokio::test]
async fn a_span_that_ends_after_the_response_leaves_under_its_own_token() {
    let (receiver, worker) = start().await;
    worker.get("/plain").await;
    let start = Instant::now();
    let path = "/background?spans=1&ms=500&id=own-request";
    worker.get_as("token-of-own", path).await;
    receiver.wait_for_spans(1, PATIENCE).await;
    assert!(start.elapsed() < Duration::from_millis(500));
    let spans = receiver.wait_for_spans(2, PATIENCE).await;

    let (root, child) = (named(&spans, "GET"), named(&spans, "background 0"));
    assert_eq!((root.post, child.post), (0, 1));
    assert_eq!(child.parent_span_id, root.span_id);
    assert_eq!(child.attributes["request"], "own-request");
    assert!(!child.attributes.contains_key("per_request.late"));
    for span in [root, child] {
        assert_eq!(span.token, "token-of-own");
    }
    let stats = worker.settled().await;
    assert_eq!((stats["late"], stats["exported"]), (0, 2));
    assert_eq!(stats["traces"], 0);
    assert_eq!(worker.console(), [""; 0]);
}

/// Scenario: two spans start in plain `ctx.wait_until`, when their request is over, under its context with its token.
/// Guarantees: they leave, under the fallback context and not under the request's token; they are marked, counted as late, and
/// the console says so once.
#[tokio::test]
async fn a_span_that_starts_too_late_leaves_under_the_fallback_and_is_marked() {
    let (receiver, worker) = start().await;
    worker.get_as("token-of-late", "/late?spans=2&ms=20").await;
    let spans = receiver.wait_for_spans(3, PATIENCE).await;

    let root = named(&spans, "GET");
    assert_eq!(root.token, "token-of-late");
    for name in ["late 0", "late 1"] {
        let late = named(&spans, name);
        assert_eq!(late.token, SERVICE_TOKEN);
        assert_eq!(late.attributes["per_request.late"], "unknown_trace");
        assert_eq!(late.trace_id, root.trace_id);
    }
    worker.wait_for_console("unknown_trace").await;
    assert_eq!(worker.settled().await["late"], 2);
    let console = worker.console();
    assert_eq!(console.len(), 1, "{console:?}");
    let said =
        "warn: opentelemetry-per-request: spans ended after the state of their request was gone";
    assert!(console[0].starts_with(said), "{console:?}");
}

/// Scenario: a request learns another token in the middle, as when one is refreshed.
/// Guarantees: all of its spans leave under the new one.
#[tokio::test]
async fn a_token_that_is_refreshed_is_the_one_that_counts() {
    let (receiver, worker) = start().await;
    worker.keep_secret("token-that-is-new");
    let path = "/refresh?to=token-that-is-new";
    let response = worker.get_as("token-that-is-old", path).await;
    assert_eq!(response.body, "done");
    for span in receiver.wait_for_spans(3, PATIENCE).await {
        assert_eq!(span.token, "token-that-is-new");
    }
}

/// Scenario: a root is started by hand, with the global tracer, and leaves work to `Telemetry::wait_until`.
/// Guarantees: a span that starts in there after the root has ended is not late: telemetry has kept the request open, though the
/// context does not say how.
#[tokio::test]
async fn work_of_a_root_that_was_started_by_hand_keeps_it_open() {
    let (receiver, worker) = start().await;
    assert_eq!(worker.get("/by-hand?ms=30").await.status, 200);
    let spans = receiver.wait_for_spans(3, PATIENCE).await;
    let (root, behind) = (named(&spans, "by hand"), named(&spans, "behind it"));
    assert_eq!(behind.parent_span_id, root.span_id);
    assert!(!behind.attributes.contains_key("per_request.late"));
    assert_eq!(worker.settled().await["late"], 0);
}
