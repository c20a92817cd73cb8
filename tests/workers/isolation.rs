//! Requests at the same time, in one instance: none sees another's token, and none waits for another.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Behaviour, PATIENCE, SERVICE_TOKEN, Span, named, start, start_with};

/// Each span says which request it was made in: that must be the token it arrived under.
fn assert_under_its_own_token(span: &Span) {
    assert_eq!(span.attributes["request"], span.token, "{span:?}");
}

/// Scenario: fifty requests at once, each with a token of its own, each two in the same trace of the same caller; spans
/// below spans, and spans behind the response.
/// Guarantees: all spans arrive, each under the token of the request that made it; roots are children of the caller, and all
/// others of a span of their own request.
#[tokio::test]
async fn requests_at_once_keep_their_tokens_apart_even_in_the_same_trace() {
    let (receiver, worker) = start().await;
    let mut requests = Vec::new();
    for n in 0..50 {
        let (token, pair) = (format!("concurrent-{n:02}"), n / 2 + 1);
        let path = match n % 4 {
            0 | 3 => format!("/nested?depth=3&ms=20&id={token}"),
            1 => format!("/work?spans=3&ms=20&id={token}"),
            _ => format!("/background?spans=3&ms=20&id={token}"),
        };
        let client = worker.client();
        requests.push(tokio::spawn(async move {
            let traceparent = format!("00-{pair:032x}-{pair:016x}-01");
            let headers = [
                ("x-telemetry-token", token.as_str()),
                ("traceparent", traceparent.as_str()),
            ];
            client.request(Method::GET, &path, &headers).await.unwrap()
        }));
    }
    for request in requests {
        assert_eq!(request.await.unwrap().status, 200);
    }
    let spans = receiver.wait_for_spans(200, PATIENCE).await;

    let of_id: BTreeMap<_, _> = spans.iter().map(|span| (&*span.span_id, span)).collect();
    assert_eq!((spans.len(), of_id.len()), (200, 200));
    for span in &spans {
        assert_under_its_own_token(span);
        if span.name == "GET" {
            assert_eq!(span.parent_span_id, span.trace_id[16..]);
        } else {
            let parent = of_id[&*span.parent_span_id];
            assert_eq!(parent.attributes["request"], span.attributes["request"]);
            assert_eq!(parent.trace_id, span.trace_id);
        }
    }
    let tokens: BTreeSet<_> = spans.iter().map(|span| &span.token).collect();
    let traces: BTreeSet<_> = spans.iter().map(|span| &span.trace_id).collect();
    assert_eq!((tokens.len(), traces.len()), (50, 25));
    assert_eq!(worker.settled().await["late"], 0);
    assert_eq!(worker.console(), [""; 0]);
}

/// Twenty slow requests at once, of which two are remembered.
async fn check_eviction(max_traces: Value) {
    let (receiver, worker) =
        start_with(|settings| settings.binding("A365_PER_REQUEST_MAX_TRACES", max_traces)).await;
    let requests: Vec<_> = (0..20)
        .map(|n| {
            let token = format!("evicted-{n:02}");
            let path = format!("/work?spans=3&ms=50&id={token}");
            worker.send(&token, &path)
        })
        .collect();
    for request in requests {
        assert_eq!(request.await.unwrap().status, 200);
    }
    let spans = receiver.wait_for_spans(80, PATIENCE).await;

    let (late, in_time): (Vec<_>, Vec<_>) = spans
        .iter()
        .partition(|span| span.attributes.contains_key("per_request.late"));
    for span in &in_time {
        assert_under_its_own_token(span);
    }
    for span in &late {
        assert_eq!(span.attributes["per_request.late"], "trace_evicted");
        assert_eq!(span.token, SERVICE_TOKEN);
    }
    let stats = worker.settled().await;
    assert_eq!((spans.len(), stats["exported"]), (80, 80));
    assert_eq!(stats["late"], late.len() as u64);
    // Of those that are remembered, and of those that are not.
    assert!(!in_time.is_empty() && !late.is_empty());
    assert!(stats["evicted"] >= 10, "{stats:?}");
    worker.wait_for_console("trace_evicted").await;
}

/// Scenario: twenty slow requests at once, where two traces are kept; the number is a number.
/// Guarantees: every span arrives, under its own request's token, or marked and under the fallback; never under another's.
#[tokio::test]
async fn evicted_requests_lose_no_span_and_no_secret() {
    check_eviction(json!(2)).await;
}

/// Scenario: the same, with a number that is text.
/// Guarantees: the same.
#[tokio::test]
async fn a_number_may_be_text() {
    check_eviction(json!("2")).await;
}

/// Scenario: the exports of one token hang; requests under it and under another one come at once, and one after the other.
/// Guarantees: nobody's response waits, and the other's spans arrive at once.
#[tokio::test]
async fn an_export_that_hangs_holds_up_nobody() {
    let (receiver, worker) = start().await;
    receiver.behave_for("token-that-hangs", Behaviour::Hang);
    let hanging: Vec<_> = (0..20)
        .map(|_| worker.send("token-that-hangs", "/work?spans=1&ms=10"))
        .collect();
    let healthy = worker.send("token-in-between", "/work?spans=1&ms=10");
    for request in hanging {
        let response = request.await.unwrap();
        assert_eq!(response.status, 200);
        assert!(response.elapsed < Duration::from_secs(3), "{response:?}");
    }
    assert_eq!(healthy.await.unwrap().status, 200);
    // The exporter gives up after 10 s.
    let spans = receiver.wait_for_spans(2, Duration::from_secs(5)).await;
    assert_eq!(named(&spans, "GET").token, "token-in-between");

    receiver.wait_for_posts(21, PATIENCE).await;
    assert!(worker.stats().await["pending"] >= 40);
    let response = worker.get_as("token-thereafter", "/work?spans=1").await;
    assert!(response.elapsed < Duration::from_secs(3), "{response:?}");
    let spans = receiver.wait_for_spans(4, Duration::from_secs(5)).await;
    let after = spans.iter().filter(|span| span.token == "token-thereafter");
    assert_eq!(after.count(), 2);
}
