//! Code that was handed no span, and a tower service behind the layer.

use std::collections::BTreeMap;

use reqwest::Method;

use crate::support::{
    Attributes, Build, PATIENCE, Settings, Span, SpanKind, SpanStatus, Worker, named, start,
};

/// The spans below the root of a scenario with so many levels: each has the one itself, two siblings and one below such a one.
const SPANS_OF_A_LEVEL: usize = 4;

/// Asserts that the spans of one request are the tree that its scenario makes, whatever was interleaved with it.
fn assert_is_tree(spans: &[&Span], root: &str, levels: u64, token: &str) {
    assert_eq!(
        spans.len(),
        1 + SPANS_OF_A_LEVEL * levels as usize,
        "{token}"
    );
    let of_name: BTreeMap<_, _> = spans.iter().map(|span| (&*span.name, *span)).collect();
    assert_eq!(of_name.len(), spans.len(), "{token}");
    let mut expected = Vec::new();
    let mut parent = root.to_owned();
    for n in (1..=levels).rev() {
        expected.extend([
            (format!("level {n}"), parent.clone()),
            (format!("beside {n}"), parent.clone()),
            (format!("dropped {n}"), parent),
            (format!("below beside {n}"), format!("beside {n}")),
        ]);
        parent = format!("level {n}");
    }
    for (name, parent) in expected {
        let (span, parent) = (of_name[&*name], of_name[&*parent]);
        assert_eq!(span.parent_span_id, parent.span_id, "{name} of {token}");
        let cancelled = span.attributes.get("per_request.cancelled");
        let expected = name.starts_with("dropped").then(|| "true".to_owned());
        assert_eq!(cancelled, expected.as_ref(), "{name}");
    }
    for span in spans {
        assert_eq!(span.token, token);
        assert_eq!(span.trace_id, spans[0].trace_id);
        assert_eq!(
            span.attributes.get("request").map(String::as_str),
            Some(token),
            "{span:?}"
        );
    }
}

/// Scenario: a thousand requests at once in one instance, each of which opens spans three levels deep, with siblings and with
/// spans whose work is dropped, over timers that interleave them all.
/// Guarantees: every span arrives, under its own parent and its own request's token, and none is late.
#[tokio::test]
async fn a_thousand_interleaved_requests_keep_each_span_under_its_own_parent() {
    const REQUESTS: usize = 1000;
    const LEVELS: u64 = 3;
    let (receiver, worker) = start().await;
    let requests: Vec<_> = (0..REQUESTS)
        .map(|n| {
            let token = format!("interleaved-{n:03}");
            let path = format!("/deep?levels={LEVELS}&id={token}");
            worker.send(&token, &path)
        })
        .collect();
    for request in requests {
        assert_eq!(request.await.unwrap().status, 200);
    }
    let count = REQUESTS * (1 + SPANS_OF_A_LEVEL * LEVELS as usize);
    let spans = receiver.wait_for_spans(count, PATIENCE).await;

    assert_eq!(spans.len(), count);
    let mut of_trace = BTreeMap::<_, Vec<_>>::new();
    for span in &spans {
        of_trace.entry(&*span.trace_id).or_default().push(span);
    }
    assert_eq!(of_trace.len(), REQUESTS);
    for spans in of_trace.values() {
        assert_is_tree(spans, "GET", LEVELS, &spans[0].token);
    }
    assert_eq!(worker.settled().await["late"], 0);
    assert_eq!(worker.console(), [""; 0]);
}

fn assert_attributes(attributes: &Attributes, expected: &[(&str, &str)]) {
    for (name, value) in expected {
        let found = attributes.get(*name).map(String::as_str);
        assert_eq!(found, Some(*value), "{name} in {attributes:?}");
    }
}

/// Scenario: fifty requests at once to an axum router with the layer, and one that fails.
/// Guarantees: the SERVER span has the route for its name and the attributes of the conventions, continues the caller's
/// trace, and what the handlers open is below it, under the token that the set-up's hook took from the request.
#[tokio::test]
async fn axum_service_has_a_span_that_is_named_by_its_route() {
    let (receiver, worker) = start().await;
    let mut requests = Vec::new();
    for n in 1..=50 {
        let client = worker.client();
        requests.push(tokio::spawn(async move {
            let token = format!("order-{n:02}");
            let path = format!("/axum/orders/{token}?password=hunter2");
            let traceparent = format!("00-{n:032x}-{n:016x}-01");
            let headers = [
                ("x-telemetry-token", &*token),
                ("traceparent", &*traceparent),
            ];
            client.request(Method::GET, &path, &headers).await.unwrap()
        }));
    }
    for request in requests {
        assert_eq!(request.await.unwrap().status, 200);
    }
    let count = 50 * (1 + 2 * SPANS_OF_A_LEVEL);
    let spans = receiver.wait_for_spans(count, PATIENCE).await;
    let mut of_token = BTreeMap::<_, Vec<_>>::new();
    for span in &spans {
        of_token.entry(&*span.token).or_default().push(span);
    }
    assert_eq!(of_token.len(), 50);
    const NAME: &str = "GET /axum/orders/{id}";
    for (token, spans) in of_token {
        let root = spans.iter().find(|span| span.name == NAME).unwrap();
        assert_eq!(root.kind, SpanKind::Server);
        assert_eq!(root.parent_span_id, root.trace_id[16..]);
        assert_attributes(
            &root.attributes,
            &[
                ("http.request.method", "GET"),
                ("http.route", "/axum/orders/{id}"),
                ("http.response.status_code", "200"),
                ("url.scheme", "http"),
                ("url.path", &format!("/axum/orders/{token}")),
                ("url.query", "password=REDACTED"),
                ("server.address", "127.0.0.1"),
            ],
        );
        assert_is_tree(&spans, NAME, 2, token);
    }

    receiver.clear();
    assert_eq!(worker.get("/axum/fails").await.status, 502);
    let spans = receiver.wait_for_spans(1, PATIENCE).await;
    let failed = named(&spans, "GET /axum/fails");
    assert_eq!(failed.status, SpanStatus::Error);
    assert_eq!(failed.attributes["error.type"], "502");
    assert_eq!(worker.settled().await["late"], 0);
}

/// Scenario: a handler hands work to `waitUntil`, carried, that opens a span after the response has arrived.
/// Guarantees: the span is no late one: it is the request's, under its token.
#[tokio::test]
async fn carried_work_behind_the_response_belongs_to_its_request() {
    let (receiver, worker) = start().await;
    let response = worker
        .get_as("token-behind", "/axum/behind/token-behind")
        .await;
    assert_eq!(response.status, 200);
    let spans = receiver.wait_for_spans(2, PATIENCE).await;
    let root = named(&spans, "GET /axum/behind/{id}");
    let behind = named(&spans, "behind");
    assert_eq!(behind.parent_span_id, root.span_id);
    assert_eq!(
        (&*root.token, &*behind.token),
        ("token-behind", "token-behind")
    );
    assert_eq!(worker.settled().await["late"], 0);
}

/// Scenario: a response whose body takes half a second after its head, with a span for each chunk.
/// Guarantees: the spans of the chunks are below the SERVER span, which ends with the body and not with the head.
#[tokio::test]
async fn span_of_a_streaming_response_ends_with_its_body() {
    let (receiver, worker) = start().await;
    let path = "/axum/stream/streamed?chunks=5&ms=100";
    let response = worker.get_as("streamed", path).await;
    assert_eq!(response.body, "0\n1\n2\n3\n4\n");
    let spans = receiver.wait_for_spans(6, PATIENCE).await;
    let root = named(&spans, "GET /axum/stream/{id}");
    assert_eq!(root.status, SpanStatus::Unset);
    assert!(!root.attributes.contains_key("per_request.cancelled"));
    for span in &spans {
        assert_eq!(span.token, "streamed");
        assert_eq!(span.attributes["request"], "streamed");
        assert!(root.end >= span.end, "{span:?}");
        if span.name != root.name {
            assert_eq!(span.parent_span_id, root.span_id);
        }
    }
    assert_eq!(worker.settled().await["late"], 0);
}

/// Scenario: a client has the first chunk of such a body, and leaves.
/// Guarantees: the SERVER span ends, says that it was cut off and after how much, and arrives under its token, as does that of
/// the chunk.
#[tokio::test]
async fn client_that_leaves_in_mid_body_ends_the_span() {
    let (receiver, worker) = start().await;
    let path = "/axum/stream/token-cut?chunks=1000&ms=100";
    let client = worker.client();
    client.abandon_at("token-cut", path, "0\n").await;
    receiver
        .wait_until(PATIENCE, |span| span.name == "GET /axum/stream/{id}")
        .await;
    let spans = receiver.spans();
    let root = named(&spans, "GET /axum/stream/{id}");
    assert_eq!(root.attributes["per_request.cancelled"], "true");
    assert_ne!(root.attributes["http.response.body.size"], "0");
    assert_eq!(root.status, SpanStatus::Unset);
    let chunk = named(&spans, "chunk 0");
    assert_eq!(chunk.parent_span_id, root.span_id);
    assert_eq!((&*root.token, &*chunk.token), ("token-cut", "token-cut"));
    assert_eq!(worker.settled().await["late"], 0);
}

/// Scenario: a Worker without an endpoint, with a service behind the layer.
/// Guarantees: it answers as if there were no telemetry, and the console says once that there is none.
#[tokio::test]
async fn layer_of_telemetry_that_is_off_changes_nothing() {
    let worker = Worker::start(Settings::new(Build::Scenarios)).await;
    for _ in 0..2 {
        let response = worker.get("/axum/orders/number-1").await;
        assert_eq!((response.status, &*response.body), (200, "number-1"));
    }
    worker.wait_for_console("telemetry is off").await;
    let console = worker.console();
    let off = console
        .iter()
        .filter(|line| line.contains("telemetry is off"));
    assert_eq!(off.count(), 1, "{console:?}");
}
