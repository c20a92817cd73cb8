//! Settings that are missing or wrong, and what says so.

use std::net::TcpListener;
use std::time::Duration;

use crate::support::{Behaviour, Build, PATIENCE, Settings, Worker, exporting, start, start_with};

/// Scenario: a Worker without an endpoint answers requests and other events.
/// Guarantees: they work, there is no handle, and exactly one line on the console says that telemetry is off, and which
/// variable would turn it on.
#[tokio::test]
async fn without_an_endpoint_there_is_one_line_and_no_telemetry() {
    let worker = Worker::start(Settings::new(Build::Scenarios)).await;
    for path in ["/work?spans=3", "/background?spans=1", "/late?spans=1"] {
        let response = worker.get_as("token-of-nobody", path).await;
        assert_eq!((response.status, &*response.body), (200, "done"));
    }
    assert_eq!(worker.get("/flush").await.body, "off");
    let outcome = worker.scheduled("* * * * *").await;
    assert_eq!(outcome.as_deref(), Ok("ok"));
    let outcome = worker.queue("orders", &[serde_json::json!({})]).await;
    assert_eq!(outcome.as_deref(), Ok("ok"));

    let console = worker.console();
    assert_eq!(console.len(), 1, "{console:?}");
    let said = "warn: opentelemetry-per-request: telemetry is off: no endpoint";
    assert!(console[0].starts_with(said), "{console:?}");
    assert!(console[0].contains("OTEL_EXPORTER_OTLP_ENDPOINT"));
}

/// Scenario: bindings with values that cannot be used, of the processor and of the exporter, one at a time.
/// Guarantees: one line on the console names the binding and shows no secret; requests work, and their spans arrive.
#[tokio::test]
async fn a_setting_that_cannot_be_used_is_named_once_and_ignored() {
    for (name, value) in [
        ("A365_PER_REQUEST_MAX_TRACES", "many"),
        ("A365_PER_REQUEST_MAX_BATCH_SIZE", "0"),
        ("A365_PER_REQUEST_FLUSH_TRIGGER", "sometimes"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip"),
        // The example is built without it.
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "bad name=bad-secret"),
    ] {
        let (receiver, worker) = start_with(|settings| settings.binding(name, value)).await;
        worker.keep_secret("bad-secret");
        for _ in 0..3 {
            assert_eq!(worker.get("/work?spans=1").await.status, 200);
        }
        receiver.wait_for_spans(6, PATIENCE).await;
        assert_eq!(receiver.posts().len(), 3);
        worker.wait_for_console(name).await;
        let console = worker.console();
        assert_eq!(console.len(), 1, "{name}: {console:?}");
        assert!(
            console[0].starts_with("warn: opentelemetry-"),
            "{console:?}"
        );
        assert!(console[0].contains(name), "{name}: {console:?}");
    }
}

/// Scenario: an endpoint that is no URL.
/// Guarantees: requests work; the console names the binding, shows no password, and says that telemetry is off.
#[tokio::test]
async fn an_endpoint_that_is_no_url_turns_telemetry_off() {
    let endpoint = "collector.example.com:pass-word@4318";
    let worker = Worker::start(exporting(Build::Scenarios, endpoint)).await;
    worker.keep_secret("pass-word");
    assert_eq!(worker.get("/work?spans=1").await.status, 200);
    assert_eq!(worker.get("/work?spans=1").await.status, 200);
    let console = worker.console();
    let naming = console
        .iter()
        .filter(|line| line.contains("OTEL_EXPORTER_OTLP_ENDPOINT"));
    assert!(naming.count() >= 1, "{console:?}");
    let off = console
        .iter()
        .filter(|line| line.contains("telemetry is off"));
    assert_eq!(off.count(), 1, "{console:?}");
    assert!(console.len() <= 2, "{console:?}");
}

/// Scenario: telemetry is switched off by a binding, as a boolean and as text.
/// Guarantees: requests work, and nothing is sent.
#[tokio::test]
async fn a_binding_switches_exports_off() {
    for value in [serde_json::json!(false), serde_json::json!("off")] {
        let (receiver, worker) = start_with(|settings| {
            settings.binding("ENABLE_A365_OBSERVABILITY_PER_REQUEST_EXPORT", value)
        })
        .await;
        assert_eq!(worker.get("/work?spans=1").await.status, 200);
        assert_eq!(worker.get("/flush").await.body, "ok");
        assert_eq!(receiver.posts().len(), 0);
    }
}

/// Scenario: flushes after work that arrived, after work whose export failed, and once more.
/// Guarantees: each says what became of the spans; a loss is told once.
#[tokio::test]
async fn a_flush_says_what_was_lost_since_the_last_one() {
    let (receiver, worker) = start().await;
    worker.get("/work?spans=1").await;
    assert_eq!(worker.get("/flush").await.body, "ok");
    assert_eq!(receiver.spans().len(), 2);

    receiver.behave(Behaviour::status(400));
    worker.get("/work?spans=2").await;
    let said = worker.get("/flush").await.body;
    assert!(said.contains('3'), "{said}");
    receiver.behave(Behaviour::Accept);
    assert_eq!(worker.get("/flush").await.body, "ok");

    worker.get("/work?spans=1").await;
    assert_eq!(worker.get("/flush").await.body, "ok");
    assert_eq!(receiver.spans().len(), 4);
}

/// Scenario: a flush while another request's export is on its way, to a collector that takes a second.
/// Guarantees: it waits for that, too.
#[tokio::test]
async fn a_flush_waits_for_what_is_on_its_way() {
    let (receiver, worker) = start().await;
    receiver.behave(Behaviour::Accept.after(Duration::from_secs(1)));
    worker.get("/work?spans=1").await;
    assert_eq!(worker.stats().await["pending"], 2);
    assert_eq!(worker.get("/flush").await.body, "ok");
    assert_eq!(worker.stats().await["exported"], 2);
}

/// Scenario: `check` against a collector that answers in all sorts of ways, and against a port that nobody listens on.
/// Guarantees: it says ok, or which of endpoint, path and credentials is wrong. No span is sent.
#[tokio::test]
async fn a_check_says_what_is_wrong() {
    let (receiver, worker) = start().await;
    for (behaviour, problem) in [
        (Behaviour::Accept, "ok"),
        (Behaviour::status(404), "path"),
        (Behaviour::status(401), "credentials"),
        (Behaviour::status(403), "credentials"),
        (Behaviour::status(500), "answered 500"),
        (Behaviour::Reset, "cannot be reached"),
        (Behaviour::Accept, "ok"),
    ] {
        receiver.behave(behaviour.clone());
        let said = worker.get("/check").await.body;
        assert!(said.contains(problem), "{behaviour:?}: {said}");
        assert!(
            said == "ok" || said.contains(&receiver.endpoint()),
            "{said}"
        );
    }
    assert!(receiver.posts().iter().all(|post| post.spans.is_empty()));
}

/// Scenario: the same against a port that nobody listens on.
/// Guarantees: it says that the endpoint cannot be reached, and names it.
#[tokio::test]
async fn a_check_says_that_nobody_listens() {
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let endpoint = format!("http://{closed}");
    let worker = Worker::start(exporting(Build::Scenarios, &endpoint)).await;
    let said = worker.get("/check").await.body;
    assert!(said.contains("cannot be reached"), "{said}");
    assert!(said.contains(&endpoint), "{said}");
}
