//! What a span says when it arrives.

use reqwest::Method;

use crate::support::{Attributes, PATIENCE, Span, SpanKind, SpanStatus, named, start, start_with};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

fn traceparent() -> String {
    format!("00-{TRACE}-{CALLER}-01")
}

fn assert_attributes(attributes: &Attributes, expected: &[(&str, &str)]) {
    for (name, value) in expected {
        let found = attributes.get(*name).map(String::as_str);
        assert_eq!(found, Some(*value), "{name} in {attributes:?}");
    }
}

/// Scenario: a GET with a query, a user agent and a secret in both places where one may be.
/// Guarantees: the root is a SERVER span with the attributes of HTTP servers, of the query only the names; nothing that
/// arrives contains the secret, except for the credentials of the POST itself.
#[tokio::test]
async fn root_has_the_attributes_of_an_http_server() {
    let (receiver, worker) = start().await;
    let path = "/work?spans=1&password=hunter2hunter2&flag";
    let headers = [
        ("user-agent", "a test/1.0"),
        ("x-telemetry-token", "token-of-http"),
    ];
    worker.request(Method::GET, path, &headers).await;
    let spans = receiver.wait_for_spans(2, PATIENCE).await;

    let root = named(&spans, "GET");
    assert_eq!(root.kind, SpanKind::Server);
    assert_eq!(root.status, SpanStatus::Unset);
    assert_attributes(
        &root.attributes,
        &[
            ("http.request.method", "GET"),
            ("http.response.status_code", "200"),
            ("url.scheme", "http"),
            ("url.path", "/work"),
            ("url.query", "spans=REDACTED&password=REDACTED&REDACTED"),
            ("server.address", "127.0.0.1"),
            ("server.port", &worker.address().port().to_string()),
            ("user_agent.original", "a test/1.0"),
        ],
    );
    let all = format!("{spans:?}").replace("token: \"token-of-http\"", "");
    for secret in ["hunter2hunter2", "token-of-http"] {
        assert!(!all.contains(secret), "{secret} in {all}");
    }
}

/// Scenario: a method that everybody knows, and one that a client made up.
/// Guarantees: only the known one is a span's name.
#[tokio::test]
async fn a_method_that_a_client_made_up_is_no_name_of_a_span() {
    let (receiver, worker) = start().await;
    for (method, name, of_semantics) in [
        (Method::DELETE, "DELETE", "DELETE"),
        (Method::HEAD, "HEAD", "HEAD"),
        (Method::from_bytes(b"MERGE").unwrap(), "HTTP", "_OTHER"),
    ] {
        receiver.clear();
        worker.request(method, "/work", &[]).await;
        let spans = receiver.wait_for_spans(1, PATIENCE).await;
        let root = named(&spans, name);
        assert_attributes(&root.attributes, &[("http.request.method", of_semantics)]);
    }
}

/// Scenario: the resource is in bindings, the service's name in both of them, and one value percent-encoded.
/// Guarantees: each span arrives with it; `OTEL_SERVICE_NAME` wins.
#[tokio::test]
async fn resource_comes_from_the_bindings() {
    let attributes = "service.name=loses,deployment.environment.name=test,team=a%20b";
    let (receiver, worker) = start_with(|settings| {
        settings
            .binding("OTEL_SERVICE_NAME", "shop")
            .binding("OTEL_RESOURCE_ATTRIBUTES", attributes)
    })
    .await;
    worker.get("/work?spans=1").await;
    for span in receiver.wait_for_spans(2, PATIENCE).await {
        assert_attributes(
            &span.resource,
            &[
                ("service.name", "shop"),
                ("deployment.environment.name", "test"),
                ("team", "a b"),
            ],
        );
    }
}

/// Scenario: spans below spans, in a request that continues a trace, and in one that does not.
/// Guarantees: each is the child of the one around it; the root is the caller's child, or has no parent.
#[tokio::test]
async fn each_span_is_the_child_of_the_one_around_it() {
    let (receiver, worker) = start().await;
    let traceparent = traceparent();
    let continued = [("traceparent", traceparent.as_str())];
    for (headers, caller) in [(&[][..], ""), (&continued[..], CALLER)] {
        receiver.clear();
        let path = "/nested?depth=3&ms=2";
        worker.request(Method::GET, path, headers).await;
        let spans = receiver.wait_for_spans(4, PATIENCE).await;
        let chain = ["GET", "level 3", "level 2", "level 1"].map(|name| named(&spans, name));
        assert_eq!(chain[0].parent_span_id, caller);
        for pair in chain.windows(2) {
            assert_eq!(pair[1].parent_span_id, pair[0].span_id, "{pair:?}");
            assert_eq!(pair[1].trace_id, pair[0].trace_id);
        }
        assert_eq!(chain[0].trace_id == TRACE, caller == CALLER);
    }
}

/// Scenario: requests with trace headers that are valid, nearly valid, too long, and no such thing at all.
/// Guarantees: each is answered, and its spans arrive under its own token; it continues the caller's trace exactly if the
/// header names one.
#[tokio::test]
async fn hostile_trace_headers_cost_no_span_and_no_request() {
    let (receiver, worker) = start().await;
    let valid = traceparent();
    let long = "0".repeat(4_000);
    let many = "a=b,".repeat(500);
    let zeros = (format!("{:032}", 0), format!("{:016}", 0));
    let cases: [(String, &str, bool); 19] = [
        (String::new(), "", false),
        ("-".to_owned(), "", false),
        ("---".to_owned(), "", false),
        ("00".to_owned(), "", false),
        (long.clone(), "", false),
        ("00-".repeat(1_000), "", false),
        ("schlüssel".to_owned(), "", false),
        (valid.to_uppercase(), "", false),
        (valid.replace("00-", "ff-"), "", false),
        (valid.replace("-01", "-zz"), "", false),
        (valid.replace("-01", "-01-more"), "", false),
        (format!("{valid}, {valid}"), "", false),
        (format!("00-{}-{CALLER}-01", zeros.0), "", false),
        (format!("00-{TRACE}-{}-01", zeros.1), "", false),
        (format!("00-{TRACE}{TRACE}-{CALLER}-01"), "", false),
        (format!(" {valid} "), "", true),
        (format!("cc-{TRACE}-{CALLER}-01-more"), "", true),
        (valid.clone(), &many, true),
        (valid.clone(), "=,,==,é=é", true),
    ];
    let count = cases.len() as u64;
    for (n, (traceparent, tracestate, continues)) in cases.into_iter().enumerate() {
        receiver.clear();
        let token = format!("token-of-hostile-{n}");
        let headers = [
            ("x-telemetry-token", token.as_str()),
            ("traceparent", &traceparent),
            ("tracestate", tracestate),
        ];
        let response = worker.request(Method::GET, "/work?spans=1", &headers).await;
        assert_eq!(response.status, 200, "{traceparent:?}");
        let spans = receiver.wait_for_spans(2, PATIENCE).await;
        let (root, child) = (named(&spans, "GET"), named(&spans, "child 0"));
        assert_eq!((&root.token, &child.token), (&token, &token));
        assert_eq!(child.trace_id, root.trace_id);
        assert_eq!(root.trace_id == TRACE, continues, "{traceparent:?}");
    }
    let stats = worker.settled().await;
    assert_eq!(stats["exported"], 2 * count);
}

/// Scenario: a handler in a continued trace calls another server, inside a span.
/// Guarantees: the call carries the trace and the id of that span.
#[tokio::test]
async fn a_subrequest_carries_the_active_span() {
    let (receiver, worker) = start().await;
    let traceparent = traceparent();
    let path = format!("/subrequest?url={}/echo/me", receiver.endpoint());
    let headers = [("traceparent", traceparent.as_str())];
    let response = worker.request(Method::GET, &path, &headers).await;
    assert_eq!(response.status, 200);
    let spans = receiver.wait_for_spans(2, PATIENCE).await;

    let call = named(&spans, "call");
    assert_eq!(call.trace_id, TRACE);
    assert_eq!(call.parent_span_id, named(&spans, "GET").span_id);
    let echoes = receiver.echoes();
    assert_eq!(echoes.len(), 1);
    assert_eq!(echoes[0].path, "/echo/me");
    let carried = format!("00-{TRACE}-{}-01", call.span_id);
    assert_eq!(echoes[0].headers["traceparent"], carried);
}

/// Scenario: a handler answers with all sorts of status codes.
/// Guarantees: the client gets them; those of 500 and above are errors, and no other is.
#[tokio::test]
async fn only_a_status_of_500_and_above_is_an_error() {
    let (receiver, worker) = start().await;
    for (code, status, error) in [
        (204, SpanStatus::Unset, None),
        (404, SpanStatus::Unset, None),
        (499, SpanStatus::Unset, None),
        (500, SpanStatus::Error, Some("500")),
        (503, SpanStatus::Error, Some("503")),
    ] {
        receiver.clear();
        let response = worker.get(&format!("/status?code={code}")).await;
        assert_eq!(response.status, code);
        let spans = receiver.wait_for_spans(1, PATIENCE).await;
        let root = named(&spans, "GET");
        assert_eq!(root.status, status, "{code}");
        assert_eq!(root.attributes.get("error.type").map(String::as_str), error);
        assert_eq!(
            root.attributes["http.response.status_code"],
            code.to_string()
        );
    }
}

/// Scenario: a handler returns an error.
/// Guarantees: the client gets a 500 as it would without telemetry, and the root is an error with an exception event.
#[tokio::test]
async fn an_error_of_the_handler_is_an_error_of_its_span() {
    let (receiver, worker) = start().await;
    assert_eq!(worker.get("/error").await.status, 500);
    let spans = receiver.wait_for_spans(1, PATIENCE).await;
    let Span {
        status,
        status_message,
        attributes,
        events,
        ..
    } = named(&spans, "GET");
    assert_eq!(*status, SpanStatus::Error);
    assert!(status_message.contains("it went wrong"), "{status_message}");
    assert_attributes(attributes, &[("error.type", "_OTHER")]);
    let (name, of_event) = &events[0];
    assert_eq!(name, "exception");
    assert!(of_event["exception.message"].contains("it went wrong"));
}
