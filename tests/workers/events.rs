//! What is no `fetch` event of a Worker: queues, timers and Durable Objects.

use std::collections::BTreeSet;

use serde_json::json;

use crate::support::{PATIENCE, SERVICE_TOKEN, SpanKind, SpanStatus, named, start, start_with};

/// Scenario: a scheduled event, and no request at all.
/// Guarantees: its outcome is `ok`, and its spans arrive in one POST under the service's own headers.
#[tokio::test]
async fn the_spans_of_a_scheduled_event_arrive() {
    let (receiver, worker) = start().await;
    let outcome = worker.scheduled("*/5 * * * *").await;
    assert_eq!(outcome.as_deref(), Ok("ok"));
    let spans = receiver.wait_for_spans(2, PATIENCE).await;

    let root = named(&spans, "scheduled");
    assert_eq!(root.kind, SpanKind::Server);
    assert_eq!(root.attributes["faas.trigger"], "timer");
    assert_eq!(root.attributes["faas.cron"], "*/5 * * * *");
    assert_eq!(named(&spans, "tick").parent_span_id, root.span_id);
    assert_eq!(root.token, SERVICE_TOKEN);
    assert_eq!(receiver.posts().len(), 1);
}

/// Scenario: a batch of four messages: two name a trace, one names nothing, and one is nonsense.
/// Guarantees: the root is a CONSUMER span that links the two traces, and all spans arrive.
#[tokio::test]
async fn a_batch_of_a_queue_links_the_traces_that_its_messages_name() {
    let (receiver, worker) = start().await;
    let outcome = worker
        .queue(
            "orders",
            &[
                json!({ "traceparent": format!("00-{:032x}-{:016x}-01", 1, 2) }),
                json!({ "traceparent": format!("00-{:032x}-{:016x}-00", 3, 4) }),
                json!({ "order": 4711 }),
                json!({ "traceparent": "nonsense" }),
            ],
        )
        .await;
    assert_eq!(outcome.as_deref(), Ok("ok"));
    let spans = receiver.wait_for_spans(5, PATIENCE).await;

    let root = named(&spans, "process orders");
    assert_eq!(root.kind, SpanKind::Consumer);
    assert_eq!(root.status, SpanStatus::Unset);
    assert_eq!(root.attributes["messaging.destination.name"], "orders");
    assert_eq!(root.attributes["messaging.batch.message_count"], "4");
    let linked = [(1, 2), (3, 4)].map(|(t, s)| (format!("{t:032x}"), format!("{s:016x}")));
    assert_eq!(root.links, linked);
    let messages = spans.iter().filter(|span| span.name == "message");
    assert!(
        messages
            .clone()
            .all(|span| span.parent_span_id == root.span_id)
    );
    assert_eq!(messages.count(), 4);
}

/// Scenario: the handler of a queue fails at the second of three messages; then come a batch that succeeds, and a request.
/// Guarantees: the failure's spans arrive, with an error; what comes next works, and its spans arrive.
#[tokio::test]
async fn a_queue_handler_that_fails_loses_no_span() {
    let (receiver, worker) = start().await;
    let messages = [json!({}), json!({ "fail": true }), json!({})];
    let outcome = worker.queue("orders", &messages).await;
    assert_ne!(outcome.as_deref(), Ok("ok"));
    let spans = receiver.wait_for_spans(3, PATIENCE).await;
    let root = named(&spans, "process orders");
    assert_eq!(root.status, SpanStatus::Error);
    assert_eq!(root.events.len(), 1);
    let (event, attributes) = &root.events[0];
    assert_eq!(event, "exception");
    assert!(attributes["exception.message"].contains("a message says so"));

    receiver.clear();
    let outcome = worker.queue("orders", &[json!({})]).await;
    assert_eq!(outcome.as_deref(), Ok("ok"));
    receiver.wait_for_spans(2, PATIENCE).await;
    worker.get_as("token-of-after", "/work?spans=1").await;
    let spans = receiver.wait_for_spans(4, PATIENCE).await;
    assert_eq!(named(&spans, "GET").token, "token-of-after");
    assert_eq!(spans.len(), 4);
}

/// Scenario: a request calls a Durable Object twice at once, with a token for each call.
/// Guarantees: the spans of each call arrive, also those that end after its response, under its own token.
#[tokio::test]
async fn calls_of_a_durable_object_keep_their_tokens_apart() {
    let (receiver, worker) =
        start_with(|settings| settings.durable_object("COUNTER", "Counter")).await;
    let tokens = ["object-0", "object-1"];
    for token in tokens {
        worker.keep_secret(token);
    }
    let response = worker.get_as("token-of-caller", "/durable?calls=2").await;
    assert_eq!((response.status, &*response.body), (200, "called"));
    // The caller's root, and of each call a root, a child, and one behind the response.
    let spans = receiver.wait_for_spans(7, PATIENCE).await;

    for (n, token) in tokens.into_iter().enumerate() {
        let own: Vec<_> = spans
            .iter()
            .filter(|span| span.token == token)
            .cloned()
            .collect();
        let root = named(&own, "POST");
        assert_eq!(root.kind, SpanKind::Server);
        assert_eq!(root.attributes["url.path"], "/call");
        for name in [format!("count {n}"), format!("afterwards {n}")] {
            let child = named(&own, &name);
            assert_eq!(child.parent_span_id, root.span_id);
            assert!(!child.attributes.contains_key("per_request.late"));
        }
        assert_eq!(own.len(), 3);
    }
    assert_eq!(named(&spans, "GET").token, "token-of-caller");
    let traces: BTreeSet<_> = spans.iter().map(|span| &span.trace_id).collect();
    assert_eq!((spans.len(), traces.len()), (7, 3));
}
