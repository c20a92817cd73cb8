//! `TracedFetch`: a call in a CLIENT span, which the other server continues.

use reqwest::Method;

use crate::support::{PATIENCE, Receiver, Span, SpanKind, SpanStatus, Worker, start};

const STALE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// The root of a request, and the span of its call.
async fn root_and_call(receiver: &Receiver) -> (Span, Span) {
    let spans = receiver.wait_for_spans(2, PATIENCE).await;
    let one = |kind| spans.iter().find(|span| span.kind == kind).cloned();
    let (root, call) = (one(SpanKind::Server), one(SpanKind::Client));
    let (root, call) = (root.unwrap(), call.unwrap());
    assert_eq!(call.parent_span_id, root.span_id);
    assert_eq!(call.trace_id, root.trace_id);
    (root, call)
}

fn said<'a>(span: &'a Span, name: &str) -> Option<&'a str> {
    span.attributes.get(name).map(String::as_str)
}

async fn traced_fetch(worker: &Worker, rest: &str) -> u16 {
    let path = format!("/traced-fetch?{rest}");
    worker.request(Method::GET, &path, &[]).await.status
}

/// Scenario: a handler fetches a URL with a secret in its query.
/// Guarantees: the call is a CLIENT span below the request's, which the other server can continue; it says what was called
/// and answered, and nowhere is the secret.
#[tokio::test]
async fn a_traced_fetch_is_a_client_span_that_goes_along() {
    let (receiver, worker) = start().await;
    let url = format!("{}/echo/me?key=hunter2hunter2%23frag", receiver.endpoint());
    assert_eq!(traced_fetch(&worker, &format!("url={url}")).await, 200);
    let (_, call) = root_and_call(&receiver).await;

    assert_eq!(
        (call.name.as_str(), call.status),
        ("GET", SpanStatus::Unset)
    );
    let shown = format!("{}/echo/me?key=REDACTED", receiver.endpoint());
    let port = receiver.endpoint().rsplit_once(':').unwrap().1.to_owned();
    for (name, expected) in [
        ("http.request.method", "GET"),
        ("http.response.status_code", "200"),
        ("url.full", &shown),
        ("server.address", "127.0.0.1"),
        ("server.port", &port),
    ] {
        assert_eq!(said(&call, name), Some(expected), "{name}");
    }
    assert!(!format!("{call:?}").contains("hunter2hunter2"));
    let echoes = receiver.echoes();
    let carried = format!("00-{}-{}-01", call.trace_id, call.span_id);
    assert_eq!(echoes[0].headers["traceparent"], carried);
    assert!(!echoes[0].headers.contains_key("tracestate"));
}

/// Scenario: a handler sends requests that came in to another server, as a proxy does. They have a body, a header, and the
/// state of a trace that they name, or fail to name.
/// Guarantees: all goes along, but the trace names the span of the call, and has the state only if it is the same trace.
#[tokio::test]
async fn a_request_that_came_in_goes_on_with_the_span_of_the_call() {
    let (receiver, worker) = start().await;
    let host = receiver.endpoint().replace("http://", "");
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for (traceparent, state) in [(STALE, Some("vendor=state")), ("nothing", None)] {
        receiver.clear();
        let request = client
            .post(format!("http://{}/echo", worker.address()))
            .header("host", &host)
            .header("x-mine", "kept")
            .header("traceparent", traceparent)
            .header("tracestate", "vendor=state")
            .body("a body");
        assert_eq!(request.send().await.unwrap().status(), 200);
        let (_, call) = root_and_call(&receiver).await;

        assert_eq!(call.name, "POST");
        let echo = receiver.echoes().remove(0);
        assert_eq!((&*echo.path, &*echo.body), ("/echo", &b"a body"[..]));
        assert_eq!(echo.headers["x-mine"], "kept");
        let carried = format!("00-{}-{}-01", call.trace_id, call.span_id);
        assert_eq!(echo.headers["traceparent"], carried);
        let sent = echo.headers.get("tracestate");
        assert_eq!(sent.map(|sent| sent.to_str().unwrap()), state);
    }
}

/// Scenario: the other server does not know the path; there is no server; and the call is ended by a signal: one that says it
/// took too long, and one that says nothing.
/// Guarantees: all but the last are errors of the span, without a message that could show the URL. The last one says that it
/// was cancelled, and is no error.
#[tokio::test]
async fn what_becomes_of_a_fetch_is_in_its_span() {
    let (receiver, worker) = start().await;
    let unknown = format!("url={}/unknown?key=hunter2", receiver.endpoint());
    let nobody = "url=http://127.0.0.1:1/?key=hunter2".to_owned();
    let timeout = format!("{unknown}&how=timeout");
    let aborted = format!("{unknown}&how=aborted");
    for (query, error_type, cancelled) in [
        (unknown, Some("404"), None),
        (nobody, Some("worker::error::Error"), None),
        (timeout, Some("timeout"), None),
        (aborted, None, Some("true")),
    ] {
        receiver.clear();
        traced_fetch(&worker, &query).await;
        let (_, call) = root_and_call(&receiver).await;
        let failed = call.status == SpanStatus::Error;
        assert_eq!(failed, error_type.is_some(), "{query}");
        assert_eq!(call.status_message, "");
        assert_eq!(said(&call, "error.type"), error_type, "{query}");
        assert_eq!(said(&call, "per_request.cancelled"), cancelled, "{query}");
        assert!(!format!("{call:?}").contains("hunter2"), "{call:?}");
    }
}

/// Scenario: a handler fetches where no span is active.
/// Guarantees: the call is made, and there is no span of it, and no trace goes along.
#[tokio::test]
async fn a_fetch_outside_of_spans_goes_out_as_it_is() {
    let (receiver, worker) = start().await;
    let query = format!("url={}/echo&how=outside", receiver.endpoint());
    assert_eq!(traced_fetch(&worker, &query).await, 200);
    let spans = receiver.wait_for_spans(1, PATIENCE).await;
    assert_eq!(worker.settled().await["exported"], 1);
    assert_eq!(spans[0].kind, SpanKind::Server);
    assert!(!receiver.echoes()[0].headers.contains_key("traceparent"));
}

/// Scenario: a handler fetches what is no URL.
/// Guarantees: the handler gets an error, and there is no span of a call.
#[tokio::test]
async fn what_is_no_url_is_not_called() {
    let (receiver, worker) = start().await;
    assert_eq!(traced_fetch(&worker, "url=nothing").await, 500);
    worker.settled().await;
    let spans = receiver.wait_for_spans(1, PATIENCE).await;
    assert_eq!(spans.len(), 1);
}
