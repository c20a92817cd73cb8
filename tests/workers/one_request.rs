//! One request, and then silence: what it made leaves with it. In none of these tests is there any traffic between a request
//! and the arrival of its spans.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::{PATIENCE, named, start, start_with};

/// How soon the spans of an ordinary request are there, on the slowest of machines.
const SOON: Duration = Duration::from_secs(1);

/// Scenario: one request with three spans, and then nothing at all.
/// Guarantees: all of them arrive within a second, in one POST, under the request's token.
#[tokio::test]
async fn spans_of_a_single_request_arrive_in_one_post_within_a_second() {
    let (receiver, worker) = start().await;
    // Starts the instance, which is not what is measured.
    worker.get("/plain").await;

    let response = worker.get_as("token-of-one", "/work?spans=2&ms=5").await;
    assert_eq!(response.status, 200);
    let spans = receiver.wait_for_spans(3, SOON).await;
    for name in ["GET", "child 0", "child 1"] {
        assert_eq!(named(&spans, name).token, "token-of-one");
    }

    let stats = worker.settled().await;
    assert_eq!((stats["exported"], stats["exports"]), (3, 1));
    assert_eq!(receiver.posts().len(), 1);
    assert_eq!(worker.console(), [""; 0]);
}

/// Scenario: a hundred requests, each of which comes only when the spans of the one before have arrived.
/// Guarantees: a hundred POSTs, each with the spans of one request; none waited for the request after it.
#[tokio::test]
async fn a_hundred_requests_one_after_the_other_are_a_hundred_posts() {
    let (receiver, worker) = start().await;
    worker.get("/plain").await;
    for n in 0..100 {
        let id = format!("number-{n}");
        let path = format!("/work?spans=1&id={id}");
        assert_eq!(worker.get_as(&id, &path).await.status, 200);
        receiver.wait_for_spans(2 * (n + 1), SOON).await;
    }
    let stats = worker.settled().await;
    assert_eq!((stats["exported"], stats["exports"]), (200, 100));

    let posts = receiver.posts();
    assert_eq!(posts.len(), 100);
    for post in &posts {
        assert_eq!(post.spans.len(), 2, "{post:?}");
        for span in &post.spans {
            assert_eq!(span.attributes["request"], post.token);
        }
    }
    let tokens: BTreeSet<_> = posts.iter().map(|post| &post.token).collect();
    assert_eq!(tokens.len(), 100);
}

/// Scenario: ten times a request, and once its spans have arrived the process is killed, and started anew.
/// Guarantees: nothing is lost, and nothing arrives twice: no span waits in memory for a next request.
#[tokio::test]
async fn replacing_the_instance_between_requests_loses_nothing() {
    let (receiver, mut worker) = start().await;
    for round in 1..=10 {
        worker.get_as("token-of-rounds", "/work?spans=2&ms=1").await;
        receiver.wait_for_spans(3 * round, PATIENCE).await;
        worker.kill();
        worker.restart().await;
    }
    drop(worker);
    assert_eq!(receiver.posts().len(), 10);
    let spans = receiver.spans();
    let ids: BTreeSet<_> = spans.iter().map(|span| &span.span_id).collect();
    assert_eq!((spans.len(), ids.len()), (30, 30));
}

/// Scenario: a request goes on for two seconds after one of its spans has ended, with the trigger `next_tick`.
/// Guarantees: the span arrives while the root is still open, and the root when it ends.
#[tokio::test]
async fn with_the_trigger_next_tick_a_span_arrives_while_its_root_is_open() {
    let (receiver, worker) =
        start_with(|settings| settings.binding("A365_PER_REQUEST_FLUSH_TRIGGER", "next_tick"))
            .await;
    let request = worker.send("token-of-ticks", "/work?spans=1&ms=1&tail=2000");
    let spans = receiver.wait_for_spans(1, PATIENCE).await;
    assert_eq!(spans[0].name, "child 0");
    assert!(!request.is_finished());

    assert_eq!(request.await.unwrap().status, 200);
    let spans = receiver.wait_for_spans(2, PATIENCE).await;
    assert_eq!(named(&spans, "GET").token, "token-of-ticks");
    assert_eq!(receiver.posts().len(), 2);
}

/// Scenario: the same request with the trigger that is the default in Workers.
/// Guarantees: its child waits for the root, and both leave in one POST.
#[tokio::test]
async fn by_default_a_span_waits_for_its_root() {
    let (receiver, worker) = start().await;
    let request = worker.send("token-of-roots", "/work?spans=1&ms=1&tail=500");
    receiver.wait_for_spans(2, PATIENCE).await;
    assert_eq!(request.await.unwrap().status, 200);
    assert_eq!(receiver.posts().len(), 1);
}
