//! Code that only knows `tracing`, under the layer of the processor.

use std::collections::BTreeMap;

use crate::support::{Attributes, PATIENCE, Span, SpanStatus, named, start};

const REQUESTS: usize = 50;

/// GET, one, three; and two, four below it, twice, and one more four.
const SPANS: usize = 8;

fn events(span: &Span) -> Vec<(&str, &Attributes)> {
    let events = span.events.iter();
    events.map(|(name, fields)| (&**name, fields)).collect()
}

/// The only event, and that it is this request's.
fn assert_event(span: &Span, name: &str, level: &str) {
    let events = events(span);
    assert_eq!(events.len(), 1, "{span:?}");
    let (found, fields) = events[0];
    assert_eq!(found, name);
    assert_eq!(fields["level"], level);
    assert_eq!(fields["request"], span.token);
}

/// Scenario: fifty requests at once, each with `#[instrument]`ed functions three levels deep over timers that interleave them,
/// two of them at once, one with `in_child` between two of them, and log events everywhere, also outside of those functions.
/// Guarantees: each span is below its own parent and leaves under its own token, none is late; each event is one of the span
/// that it happened in, in the handler itself of the request's; `err` and `error!` mark their spans. The console stays
/// empty.
#[tokio::test]
async fn fifty_requests_keep_their_spans_and_events_apart() {
    let (receiver, worker) = start().await;
    let requests: Vec<_> = (0..REQUESTS)
        .map(|n| {
            let token = format!("traced-{n:02}");
            worker.send(&token, &format!("/tracing/nested?id={token}"))
        })
        .collect();
    for request in requests {
        assert_eq!(request.await.unwrap().status, 200);
    }
    let spans = receiver.wait_for_spans(REQUESTS * SPANS, PATIENCE).await;

    let of_id: BTreeMap<_, _> = spans.iter().map(|span| (&*span.span_id, span)).collect();
    assert_eq!(
        (spans.len(), of_id.len()),
        (REQUESTS * SPANS, REQUESTS * SPANS)
    );
    let mut above_four = BTreeMap::<_, usize>::new();
    for span in &spans {
        let parent = of_id.get(&*span.parent_span_id);
        let above = parent.map_or("", |parent| &*parent.name);
        if let Some(parent) = parent {
            assert_eq!(parent.trace_id, span.trace_id);
            assert_eq!(parent.token, span.token);
            assert!(parent.start <= span.start && span.end <= parent.end);
        }
        if span.name != "three" {
            assert_eq!(span.attributes["request"], span.token, "{span:?}");
        }
        let expected = match &*span.name {
            "GET" => {
                assert_event(span, "in the handler", "INFO");
                ""
            }
            "one" => "GET",
            "two" => {
                let failed = span.attributes["n"] == "2";
                assert_eq!(span.status == SpanStatus::Error, failed);
                let names: Vec<_> = events(span).iter().map(|event| event.0).collect();
                assert_eq!(names, ["in two", "exception"][..1 + usize::from(failed)]);
                "one"
            }
            "three" => "one",
            "four" => {
                assert_event(span, "in four", "ERROR");
                assert_eq!(span.status, SpanStatus::Error);
                *above_four.entry(above).or_default() += 1;
                above
            }
            other => panic!("{other}"),
        };
        assert_eq!(above, expected, "{span:?}");
    }
    let expected = [("three", REQUESTS), ("two", 2 * REQUESTS)];
    assert_eq!(above_four, BTreeMap::from(expected));
    assert_eq!(worker.settled().await["late"], 0);
    assert_eq!(worker.console(), [""; 0]);
}

/// Scenario: a `select` drops an `#[instrument]`ed function while it waits.
/// Guarantees: its span ends, and leaves with what was said in it.
#[tokio::test]
async fn span_of_work_that_is_dropped_ends() {
    let (receiver, worker) = start().await;
    let path = "/tracing/dropped?id=token-dropped";
    assert_eq!(worker.get_as("token-dropped", path).await.status, 200);
    let spans = receiver.wait_for_spans(2, PATIENCE).await;
    let never = named(&spans, "never");
    assert_event(never, "begun", "INFO");
    assert_eq!(never.parent_span_id, named(&spans, "GET").span_id);
    assert_eq!(worker.settled().await["late"], 0);
    assert_eq!(worker.console(), [""; 0]);
}

/// Scenario: a span that is made in the handler, for work behind the response, where another one begins; it is carried.
/// Guarantees: both are the request's, under its token, and not late.
#[tokio::test]
async fn carried_span_behind_the_response_belongs_to_its_request() {
    let (receiver, worker) = start().await;
    let path = "/tracing/behind?id=token-behind";
    assert_eq!(worker.get_as("token-behind", path).await.status, 200);
    let spans = receiver.wait_for_spans(3, PATIENCE).await;
    let (root, made) = (named(&spans, "GET"), named(&spans, "made"));
    let four = named(&spans, "four");
    assert_eq!(made.parent_span_id, root.span_id);
    assert_eq!(four.parent_span_id, made.span_id);
    assert!(spans.iter().all(|span| span.token == "token-behind"));
    assert_event(four, "in four", "ERROR");
    assert_eq!(worker.settled().await["late"], 0);
    assert_eq!(worker.console(), [""; 0]);
}
