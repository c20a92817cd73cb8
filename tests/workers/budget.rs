//! A request has few subrequests, and exports are some of them.

use crate::support::{PATIENCE, start_with};

/// What `A365_PER_REQUEST_MAX_EXPORTS_PER_REQUEST` is by default.
const MAX_EXPORTS: usize = 8;

/// Scenario: a request in which sixty spans end, each of which is a full batch.
/// Guarantees: at most 8 exports before its root and one with it, and all spans arrive.
#[tokio::test]
async fn a_request_of_many_batches_exports_eight_times_and_once_with_its_root() {
    let (receiver, worker) =
        start_with(|settings| settings.binding("A365_PER_REQUEST_MAX_BATCH_SIZE", 1)).await;
    worker
        .get_as("token-of-budget", "/work?spans=60&ms=2&tail=10")
        .await;
    receiver.wait_for_spans(61, PATIENCE).await;
    let stats = worker.settled().await;
    assert_eq!((stats["exported"], stats["late"]), (61, 0));

    let posts = receiver.posts();
    assert!(posts.len() > 2, "the batches were never full");
    assert!(posts.len() <= MAX_EXPORTS + 1, "{} POSTs", posts.len());
    assert!(posts.iter().all(|post| post.token == "token-of-budget"));
}

/// Scenario: the same where one may be spent, which is text.
/// Guarantees: one export before the root, and one with it.
#[tokio::test]
async fn the_number_of_exports_is_a_setting() {
    let (receiver, worker) = start_with(|settings| {
        settings
            .binding("A365_PER_REQUEST_MAX_BATCH_SIZE", 1)
            .binding("A365_PER_REQUEST_MAX_EXPORTS_PER_REQUEST", "1")
    })
    .await;
    worker.get("/work?spans=10&ms=2").await;
    receiver.wait_for_spans(11, PATIENCE).await;
    assert_eq!(worker.settled().await["exported"], 11);
    assert_eq!(receiver.posts().len(), 2);
}

/// Scenario: behind the response, thirty spans end one after the other.
/// Guarantees: all arrive, without further traffic, in about eight exports: what is beyond leaves in pauses that double.
#[tokio::test]
async fn spans_behind_the_response_leave_in_few_exports() {
    let (receiver, worker) = start_with(|settings| settings).await;
    worker
        .get_as("token-of-pauses", "/background?spans=30&ms=20")
        .await;
    receiver.wait_for_spans(31, PATIENCE).await;
    let posts = receiver.posts();
    assert!(posts.len() > 2, "the spans ended together");
    assert!(posts.len() <= MAX_EXPORTS + 4, "{} POSTs", posts.len());
    assert!(posts.iter().all(|post| post.token == "token-of-pauses"));
    assert_eq!(worker.settled().await["exported"], 31);
}
