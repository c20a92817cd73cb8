//! A panic takes the whole instance with it. What it leaves behind, and what comes after it.

use std::time::Duration;

use crate::support::{PATIENCE, SERVICE_TOKEN, SpanStatus, named, start, start_with};

/// Scenario: one handler panics while others wait: one of them has a span that ended, and its root is open.
/// Guarantees: all that had ended arrives, and an error span for each open root, each under its own token; that of the
/// panic has an exception event with its message. The next requests work, and their spans arrive.
#[tokio::test]
async fn a_panic_sends_what_is_queued_and_an_error_for_each_open_root() {
    let (receiver, worker) = start().await;
    worker.get("/plain").await;
    let path = "/work?spans=1&tail=60000&id=bystander-1";
    let bystander = worker.send("bystander-1", path);
    let path = "/nested?depth=2&ms=60000&id=bystander-2";
    let other = worker.send("bystander-2", path);
    // Both are in the middle.
    worker
        .wait_for_stats(|stats| (stats["traces"], stats["pending"]) == (2, 1))
        .await;

    let panicking = worker.send("token-of-panic", "/panic?ms=50&id=token-of-panic");
    let spans = receiver.wait_for_spans(5, PATIENCE).await;
    for task in [bystander, other, panicking] {
        task.abort();
    }

    let roots: Vec<_> = spans.iter().filter(|span| span.name == "GET").collect();
    assert_eq!(roots.len(), 3, "{spans:?}");
    for span in &spans {
        assert_eq!(span.attributes["request"], span.token);
    }
    for root in roots {
        assert_eq!(root.status, SpanStatus::Error, "{root:?}");
        assert_eq!(root.attributes["error.type"], "panic");
        let guilty = root.token == "token-of-panic";
        let said: Vec<_> = root.events.iter().map(|(name, _)| name.as_str()).collect();
        match guilty {
            true => {
                assert_eq!(said, ["exception"]);
                let message = &root.events[0].1["exception.message"];
                assert!(message.contains("the handler panicked"), "{message}");
                assert!(root.status_message.contains("the handler panicked"));
            }
            false => assert_eq!(said, [""; 0]),
        }
    }
    assert_eq!(named(&spans, "child 0").token, "bystander-1");
    assert_eq!(named(&spans, "before the panic").token, "token-of-panic");

    for n in 0..3 {
        let token = format!("thereafter-{n}");
        let response = worker.get_as(&token, "/work?spans=1").await;
        assert_eq!(response.status, 200);
        let spans = receiver.wait_for_spans(5 + 2 * (n + 1), PATIENCE).await;
        let after = spans.iter().filter(|span| span.token == token);
        assert_eq!(after.count(), 2);
    }
    // A new instance: it knows nothing of the old one.
    assert_eq!(worker.settled().await["exported"], 6);
}

/// Scenario: work behind a response panics, while another request is in the middle.
/// Guarantees: what had ended arrives: the root that had left, the span behind it, and what the other one had queued.
#[tokio::test]
async fn a_panic_behind_the_response_sends_what_is_queued() {
    let (receiver, worker) = start().await;
    let bystander = worker.send("token-of-bystander", "/work?spans=1&tail=60000");
    worker.wait_for_stats(|stats| stats["pending"] == 1).await;
    let path = "/panic-behind?ms=50";
    assert_eq!(worker.get_as("token-of-panic", path).await.status, 200);
    let spans = receiver.wait_for_spans(4, PATIENCE).await;
    bystander.abort();

    for (token, child, status) in [
        ("token-of-bystander", "child 0", SpanStatus::Error),
        ("token-of-panic", "before the panic", SpanStatus::Unset),
    ] {
        let own = spans.iter().filter(|span| span.token == token);
        let own: Vec<_> = own.cloned().collect();
        assert_eq!(named(&own, "GET").status, status);
        assert_eq!(named(&own, child).status, SpanStatus::Unset);
    }
    assert_eq!(worker.get("/work").await.status, 200);
    receiver.wait_for_spans(5, PATIENCE).await;
}

/// Scenario: a handler panics after two hundred requests were cancelled, of which twenty traces are kept.
/// Guarantees: the panic's own spans arrive under its own token, nothing arrives under a token that is not its own, and the
/// next request works.
#[tokio::test]
async fn a_panic_after_many_cancelled_requests_arrives() {
    let (receiver, worker) =
        start_with(|settings| settings.binding("A365_PER_REQUEST_MAX_TRACES", 20)).await;
    let clients: Vec<_> = (0..200)
        .map(|n| {
            let client = worker.client();
            let token = format!("cancelled-{n:03}");
            let path = format!("/work?spans=1&tail=60000&id={token}");
            let patience = Duration::from_secs(1);
            tokio::spawn(async move { client.abandon(&token, &path, patience).await })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    let panicking = worker.send("token-of-panic", "/panic?ms=1&id=token-of-panic");
    receiver
        .wait_until(PATIENCE, |span| {
            span.name == "GET" && span.token == "token-of-panic"
        })
        .await;
    panicking.abort();
    let response = worker
        .get_as("token-of-next", "/work?id=token-of-next")
        .await;
    assert_eq!(response.status, 200);
    receiver
        .wait_until(PATIENCE, |span| span.token == "token-of-next")
        .await;
    for span in receiver.spans() {
        let late = span.attributes.contains_key("per_request.late");
        let whose = if late {
            SERVICE_TOKEN
        } else {
            &span.attributes["request"]
        };
        assert_eq!(span.token, whose, "{span:?}");
    }
}

/// Scenario: five panics, one after the other.
/// Guarantees: each is answered with a 500 and arrives once, with what had ended before it; a request after them works, and arrives.
#[tokio::test]
async fn panics_one_after_the_other_all_arrive() {
    let (receiver, worker) = start().await;
    for n in 1..=5 {
        let panicking = worker.send("token-of-panics", "/panic?ms=1");
        let spans = receiver.wait_for_spans(2 * n, PATIENCE).await;
        assert_eq!(panicking.await.unwrap().status, 500);
        let last = &spans[2 * (n - 1)..];
        assert_eq!(named(last, "GET").status, SpanStatus::Error);
        named(last, "before the panic");
    }
    assert_eq!(worker.get("/work").await.status, 200);
    receiver.wait_for_spans(11, PATIENCE).await;
    assert_eq!(receiver.spans().len(), 11);
}
