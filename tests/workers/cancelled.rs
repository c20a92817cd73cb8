//! Requests whose client has gone away: the runtime never polls them again, and never drops what they hold.

use std::time::{Duration, Instant};

use crate::support::{Behaviour, PATIENCE, Settings, start, start_with};

/// Long enough for a request to begin.
const BEGUN: Duration = Duration::from_millis(100);

/// How soon a request that is not cancelled exports, while others are.
const SOON: Duration = Duration::from_secs(5);

const MAX_TRACES: u64 = 50;

/// Scenario: a thousand requests are cancelled in the middle, with an open root and a span that has ended, where fifty traces
/// are kept; then comes one that is not cancelled.
/// Guarantees: they take up no more than those fifty places, the ended spans of those that had to go arrive under their own
/// tokens, the account is balanced, and the later request's spans arrive at once.
#[tokio::test]
async fn a_thousand_cancelled_requests_take_up_fifty_places() {
    let (receiver, worker) =
        start_with(|settings| settings.binding("A365_PER_REQUEST_MAX_TRACES", MAX_TRACES)).await;
    let clients: Vec<_> = (0..50)
        .map(|n| {
            let client = worker.client();
            let token = format!("cancelled-{n:02}");
            let path = format!("/work?spans=1&tail=60000&id={token}");
            tokio::spawn(async move {
                for _ in 0..20 {
                    client.abandon(&token, &path, BEGUN).await;
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    let stats = worker.stats().await;
    assert!(stats["traces"] <= MAX_TRACES, "{stats:?}");
    // Most of them had begun.
    assert!(stats["evicted"] > 800, "{stats:?}");

    receiver.clear();
    let response = worker.get_as("token-of-survivor", "/work?spans=1").await;
    assert_eq!(response.status, 200);
    receiver
        .wait_until(SOON, |span| {
            span.name == "GET" && span.token == "token-of-survivor"
        })
        .await;
    for span in receiver.spans() {
        if span.token != "token-of-survivor" {
            assert_eq!(span.attributes["request"], span.token);
        }
    }
    assert!(worker.stats().await["traces"] <= MAX_TRACES);
}

/// Scenario: a request is cancelled when one of its spans had ended, and nothing else happens; then somebody flushes.
/// Guarantees: the span is still there, and leaves with the flush under its request's token.
#[tokio::test]
async fn what_a_cancelled_request_had_queued_leaves_with_a_flush() {
    let (receiver, worker) = start().await;
    let client = worker.client();
    let path = "/work?spans=1&tail=60000";
    client.abandon("token-of-flushed", path, BEGUN * 5).await;
    let stats = worker.stats().await;
    assert_eq!((stats["pending"], stats["traces"]), (1, 1), "{stats:?}");
    assert_eq!(receiver.posts().len(), 0);

    assert_eq!(worker.get("/flush").await.body, "ok");
    let spans = receiver.wait_for_spans(1, PATIENCE).await;
    assert_eq!(spans[0].name, "child 0");
    assert_eq!(spans[0].token, "token-of-flushed");
}

/// Scenario: the client of a request is gone while one of its exports is on its way.
/// Guarantees: that export ends as any other: the runtime cancels no request whose `waitUntil` is not done.
#[tokio::test]
async fn an_export_is_not_cancelled_with_the_client_of_its_request() {
    let (receiver, worker) =
        start_with(|settings| settings.binding("A365_PER_REQUEST_FLUSH_TRIGGER", "next_tick"))
            .await;
    receiver.behave(Behaviour::Accept.after(Duration::from_secs(1)));
    let client = worker.client();
    let path = "/work?spans=1&tail=60000";
    client.abandon("token-of-gone", path, BEGUN * 3).await;
    receiver.wait_for_spans(1, PATIENCE).await;
    assert_eq!(worker.stats().await["pending"], 1);
    let stats = worker.settled().await;
    assert_eq!((stats["exported"], stats["failed"]), (1, 0));
}

/// Scenario: the same with twenty of them, and the export hangs, which may take half a second.
/// Guarantees: what they had in flight is counted as failed by itself, and said on the console.
#[tokio::test]
async fn an_export_that_hangs_fails_in_time_when_the_client_is_gone() {
    let (receiver, worker) = start_with(short_exports).await;
    receiver.behave_for("token-of-gone", Behaviour::Hang);
    let clients: Vec<_> = (0..20)
        .map(|_| {
            let client = worker.client();
            let path = "/work?spans=1&tail=60000";
            tokio::spawn(async move { client.abandon("token-of-gone", path, BEGUN * 3).await })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    receiver.wait_for_posts(20, PATIENCE).await;
    let stats = worker.settled().await;
    assert_eq!((stats["ended"], stats["failed"]), (20, 20));
    let said = "spans failed to export and are lost: timed out after 500ms";
    worker.wait_for_console(said).await;
}

/// Scenario: a Durable Object is reset while an export of a call hangs. That cancels the export: it is never polled again.
/// Guarantees: nothing is lost without a word: when its time is over, a later request finds that it has failed, it is said on
/// the console, and it takes up no room any more. The later requests export.
#[tokio::test]
async fn an_export_that_was_cancelled_is_counted_as_failed_when_its_time_is_over() {
    let (receiver, worker) =
        start_with(|settings| short_exports(settings).durable_object("COUNTER", "Counter")).await;
    worker.keep_secret("object-0");
    receiver.behave_for("object-0", Behaviour::Hang);
    let response = worker.get_as("token-of-caller", "/reset?ms=200").await;
    assert_eq!((response.status, &*response.body), (200, "reset"));
    // The span that ended, which hangs, and the caller's root.
    let posts = receiver.wait_for_posts(2, PATIENCE).await;
    assert_eq!(posts[0].token, "object-0");
    assert_eq!(posts[0].spans[0].name, "before the reset");

    // Nobody looks by himself whether a time is over.
    let start = Instant::now();
    let mut requests = 0;
    while worker.stats().await["failed"] == 0 {
        assert!(start.elapsed() < PATIENCE, "it is believed in for ever");
        tokio::time::sleep(Duration::from_millis(100)).await;
        worker.get_as("token-of-later", "/work?spans=1").await;
        requests += 1;
    }
    assert!(requests > 1, "it failed before anybody looked");
    let stats = worker.settled().await;
    assert_eq!((stats["failed"], stats["pending"]), (1, 0));
    assert_eq!(stats["exported"], 1 + 2 * requests);
    worker
        .wait_for_console("spans failed to export and are lost")
        .await;
}

/// Each span leaves as it ends, and its export may take half a second.
fn short_exports(settings: Settings) -> Settings {
    settings
        .binding("A365_PER_REQUEST_EXPORT_TIMEOUT_MS", 500)
        .binding("A365_PER_REQUEST_FLUSH_TRIGGER", "next_tick")
}
