//! The example as it is, without any route for tests.

use crate::support::{
    Build, PATIENCE, Receiver, SERVICE_TOKEN, SpanKind, Worker, exporting, named,
};

/// Scenario: one request to the example, with a token and without, where its prices come from another service.
/// Guarantees: what is five levels below the handler and what goes out are in the same POST as the request's own span, each
/// below the one that called it; the receipt, which is sent after the response, follows in a second one, in the same trace
/// and under the same token. The other service hears of the trace.
#[tokio::test]
async fn the_example_sends_its_spans_at_once_and_its_receipt_when_that_is_sent() {
    let receiver = Receiver::start();
    let prices = format!("{}/echo?key=hunter2", receiver.endpoint());
    let settings = exporting(Build::Example, &receiver.endpoint())
        .binding("OTEL_SERVICE_NAME", "example")
        .binding("PRICES_URL", prices);
    let worker = Worker::start(settings).await;
    for (token, expected) in [
        ("token-of-example", "token-of-example"),
        ("", SERVICE_TOKEN),
    ] {
        receiver.clear();
        let response = worker.get_as(token, "/").await;
        assert_eq!(response.status, 200, "{response:?}");
        assert!(response.body.starts_with("order 4711: "), "{response:?}");
        let spans = receiver.wait_for_spans(8, PATIENCE).await;

        let server = spans.iter().find(|span| span.kind == SpanKind::Server);
        let root = server.unwrap();
        let call = spans.iter().find(|span| span.kind == SpanKind::Client);
        let call = call.unwrap();
        assert_eq!((&*root.name, &*call.name), ("GET", "GET"));
        assert_eq!(call.parent_span_id, named(&spans, "load order").span_id);
        assert_eq!(call.attributes["http.response.status_code"], "200");
        for (name, post, parent) in [
            ("load order", 0, root),
            ("find order", 0, named(&spans, "load order")),
            ("query database", 0, named(&spans, "find order")),
            ("read row", 0, named(&spans, "query database")),
            ("read number", 0, named(&spans, "read row")),
            ("send receipt", 1, root),
        ] {
            let span = named(&spans, name);
            assert_eq!(
                (span.post, &span.parent_span_id),
                (post, &parent.span_id),
                "{name}"
            );
        }
        for span in &spans {
            assert_eq!(span.trace_id, root.trace_id);
            assert_eq!(span.token, expected);
            assert_eq!(span.resource["service.name"], "example");
        }
        for name in ["read number", "send receipt"] {
            assert_eq!(named(&spans, name).attributes["order"], "4711");
        }
        assert_eq!(receiver.posts().len(), 2);
        let heard = receiver.echoes()[0].headers["traceparent"]
            .to_str()
            .unwrap()
            .to_owned();
        assert_eq!(heard, format!("00-{}-{}-01", call.trace_id, call.span_id));
        assert!(!format!("{spans:?}").contains("hunter2"));
    }
    assert_eq!(worker.console(), [""; 0]);
}
