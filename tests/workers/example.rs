//! The example as it is, without any route for tests.

use crate::support::{Build, PATIENCE, Receiver, SERVICE_TOKEN, Worker, exporting, named};

/// Scenario: one request to the example, with a token and without.
/// Guarantees: three spans in one POST; the receipt, which is sent after the response, follows in a second one, in the same
/// trace and under the same token.
#[tokio::test]
async fn the_example_sends_three_spans_at_once_and_its_receipt_when_that_is_sent() {
    let receiver = Receiver::start();
    let settings = exporting(Build::Example, &receiver.endpoint());
    let worker = Worker::start(settings.binding("OTEL_SERVICE_NAME", "example")).await;
    for (token, expected) in [
        ("token-of-example", "token-of-example"),
        ("", SERVICE_TOKEN),
    ] {
        receiver.clear();
        let response = worker.get_as(token, "/").await;
        assert_eq!((response.status, &*response.body), (200, "order 4711\n"));
        let spans = receiver.wait_for_spans(4, PATIENCE).await;

        let root = named(&spans, "GET");
        for (name, post, parent) in [
            ("GET", 0, ""),
            ("load order", 0, &*root.span_id),
            ("query database", 0, &named(&spans, "load order").span_id),
            ("send receipt", 1, &root.span_id),
        ] {
            let span = named(&spans, name);
            assert_eq!((span.post, &*span.parent_span_id), (post, parent), "{name}");
            assert_eq!(span.trace_id, root.trace_id);
            assert_eq!(span.token, expected);
            assert_eq!(span.resource["service.name"], "example");
        }
        assert_eq!(named(&spans, "send receipt").attributes["order"], "4711");
        assert_eq!(receiver.posts().len(), 2);
    }
    assert_eq!(worker.console(), [""; 0]);
}
