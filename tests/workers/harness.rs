//! That the harness itself can be believed.

use std::time::Duration;

use crate::support::{Build, Settings, Worker};

fn scenarios() -> Settings {
    Settings::new(Build::Scenarios)
}

/// Scenario: a request to each of the Workers that are built.
/// Guarantees: they run in workerd, and answer.
#[tokio::test]
async fn each_build_answers() {
    for build in [Build::Example, Build::Scenarios, Build::Plain] {
        let worker = Worker::start(Settings::new(build)).await;
        let response = worker.get("/").await;
        assert_eq!(response.status, 200, "{build:?}");
        assert!(worker.rss_bytes() > 1_000_000);
    }
}

/// Scenario: a Worker writes to its console at three levels, once with two lines.
/// Guarantees: the test sees each message with its level, in their order.
#[tokio::test]
async fn what_a_worker_logs_is_captured_with_its_level() {
    let worker = Worker::start(scenarios()).await;
    worker.get("/console").await;
    worker.wait_for_console("an error").await;
    assert_eq!(
        worker.console(),
        [
            "log: a log line",
            "warn: a warning",
            "error: an error\nof two lines"
        ]
    );
}

/// Scenario: a client breaks its connection while the handler waits.
/// Guarantees: the request is cancelled, so the handler never goes on; another client's request does.
#[tokio::test]
async fn an_abandoned_request_is_cancelled() {
    let worker = Worker::start(scenarios()).await;
    let client = worker.client();
    client
        .abandon("", "/slow?name=first", Duration::from_millis(200))
        .await;
    worker.get("/slow?name=second").await;
    worker.wait_for_console("second done").await;
    assert_eq!(
        worker.console(),
        ["log: first begun", "log: second begun", "log: second done"]
    );
}

/// Scenario: a Worker counts in a static; its process is ended in an orderly way, then killed, and started each time.
/// Guarantees: each process begins anew, and answers.
#[tokio::test]
async fn a_restarted_worker_remembers_nothing() {
    let mut worker = Worker::start(scenarios()).await;
    assert_eq!(worker.get("/visits").await.body, "1");
    assert_eq!(worker.get("/visits").await.body, "2");
    worker.restart().await;
    assert_eq!(worker.get("/visits").await.body, "1");
    worker.kill();
    worker.restart().await;
    assert_eq!(worker.get("/visits").await.body, "1");
}
