//! Log records and metrics, beside the spans of their request.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::support::{
    Behaviour, Log, PATIENCE, Point, Receiver, SERVICE_TOKEN, Worker, named, start, start_with,
};

/// How soon what an ordinary request has made is there, on the slowest of machines.
const SOON: Duration = Duration::from_secs(1);

/// Until the isolate has nothing more to do for requests that are over: its metrics are collected after at most a second.
async fn settled(worker: &Worker) -> BTreeMap<String, u64> {
    worker.settled().await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let stats = worker.stats().await;
        if (stats["logs_pending"], stats["points_pending"]) == (0, 0) {
            return stats.into_iter().collect();
        }
        assert!(tokio::time::Instant::now() < deadline, "{stats:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The sum of a counter over all points that have arrived, by the request that they name.
fn counted(points: &[Point]) -> BTreeMap<String, i64> {
    let mut counted = BTreeMap::new();
    for point in points.iter().filter(|point| point.name == "handled") {
        *counted
            .entry(point.attributes["request"].clone())
            .or_default() += point.value;
    }
    counted
}

fn of_request<'a>(logs: &'a [Log], id: &str) -> Vec<&'a Log> {
    let of_request = |log: &&Log| log.attributes.get("request").is_some_and(|of| of == id);
    logs.iter().filter(of_request).collect()
}

/// Scenario: one request that increments a counter, logs a line and ends three spans, and then nothing at all.
/// Guarantees: all of it arrives within a second, in one POST for each signal. Spans and the log record leave under the
/// request's token, and the record has the ids of the span that it was emitted in. Metrics are the service's: they leave
/// under its token, as deltas, with a resource that names the instance.
#[tokio::test]
async fn one_request_and_then_silence_delivers_all_three_signals_in_a_post_each() {
    let (receiver, worker) =
        start_with(|settings| settings.binding("OTEL_SERVICE_NAME", "shop")).await;
    worker.get("/plain").await;

    let path = "/signals/all?spans=2&lines=1&ms=5&id=one";
    let response = worker.get_as("token-of-one", path).await;
    assert_eq!(response.status, 200);
    let spans = receiver.wait_for_spans(3, SOON).await;
    let logs = receiver.wait_for_logs(2, SOON).await;
    let points = receiver.wait_for_points(1, SOON).await;

    for (n, log) in logs.iter().enumerate() {
        let span = named(&spans, &format!("child {n}"));
        assert_eq!(log.token, "token-of-one");
        assert_eq!(
            (&log.body, &log.severity),
            (&"a line".to_owned(), &"INFO".to_owned())
        );
        assert_eq!(
            (&log.trace_id, &log.span_id),
            (&span.trace_id, &span.span_id)
        );
        assert_eq!(log.flags, 1);
        assert!((span.start..=span.end).contains(&log.observed), "{log:?}");
        assert_eq!(log.resource["service.name"], "shop");
    }
    assert_eq!(counted(&points), BTreeMap::from([("one".to_owned(), 2)]));
    assert_eq!(
        (points[0].temporality, &*points[0].token),
        (1, SERVICE_TOKEN)
    );
    let instance = &points[0].resource["service.instance.id"];
    assert_eq!(instance.len(), 36, "{instance}");
    for resource in [&spans[0].resource, &logs[0].resource, &points[0].resource] {
        assert_eq!(&resource["service.instance.id"], instance);
    }

    settled(&worker).await;
    for signal in ["traces", "logs", "metrics"] {
        assert_eq!(receiver.posts_of(signal).len(), 1, "{signal}");
    }
    assert_eq!(worker.console(), [""; 0]);
}

/// Scenario: two isolates of one Worker, each of which counts.
/// Guarantees: their metrics name different instances, so a backend can add them up.
#[tokio::test]
async fn each_isolate_is_an_instance_of_its_own() {
    let receiver = Receiver::start();
    let mut instances = BTreeSet::new();
    for round in 1..=2 {
        let worker = Worker::start(crate::support::scenarios(&receiver)).await;
        worker.get("/signals/all?spans=1&id=n").await;
        let points = receiver.wait_for_points(round, PATIENCE).await;
        instances.extend(
            points
                .into_iter()
                .map(|point| point.resource["service.instance.id"].clone()),
        );
    }
    assert_eq!(instances.len(), 2);
}

/// Scenario: two hundred requests, 25 at a time, each under a token of its own, of which a fifth is sampled.
/// Guarantees: log records and metrics are whole: each record leaves under the token of its own request, in one POST a request,
/// whether that is sampled or not, with its trace and span ids, and none is late. Only spans are fewer, and their requests'
/// records say that they are sampled.
#[tokio::test]
async fn a_head_sampler_keeps_metrics_and_logs_whole() {
    const REQUESTS: usize = 200;
    let (receiver, worker) = start_with(|settings| settings.binding("SAMPLED", "0.2")).await;
    for first in (0..REQUESTS).step_by(25) {
        let requests = (first..first + 25).map(|n| {
            let path = format!("/signals/all?spans=2&lines=2&ms=2&id=id-{n}");
            worker.send(&format!("token-of-number-{n:03}"), &path)
        });
        for request in requests.collect::<Vec<_>>() {
            assert_eq!(request.await.unwrap().status, 200);
        }
    }
    let logs = receiver.wait_for_logs(4 * REQUESTS, PATIENCE).await;
    let stats = settled(&worker).await;
    assert_eq!((stats["logs"], stats["logs_exported"]), (800, 800));
    assert_eq!(
        (stats["logs_late"], stats["late"], stats["traces"]),
        (0, 0, 0)
    );

    let spans = receiver.spans();
    let sampled: BTreeSet<_> = spans.iter().map(|span| &span.trace_id).collect();
    assert!(
        (10..90).contains(&sampled.len()),
        "{} traces",
        sampled.len()
    );
    assert_eq!(spans.len(), 3 * sampled.len());
    for n in 0..REQUESTS {
        let of_request = of_request(&logs, &format!("id-{n}"));
        assert_eq!(of_request.len(), 4);
        let traces: BTreeSet<_> = of_request.iter().map(|log| &log.trace_id).collect();
        assert_eq!(traces.len(), 1);
        for log in of_request {
            assert_eq!(log.token, format!("token-of-number-{n:03}"));
            assert_eq!(log.span_id.len(), 16);
            assert_eq!(log.flags == 1, sampled.contains(&log.trace_id));
            assert!(!log.attributes.contains_key("per_request.late"));
        }
    }
    assert_eq!(receiver.posts_of("logs").len(), REQUESTS);

    // What requests have counted since the last collection follows with the next one, or by itself.
    let everything = (0..REQUESTS).map(|n| (format!("id-{n}"), 2)).collect();
    let whole = async {
        while counted(&receiver.points()) != everything {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, whole).await;
    assert!(waited.is_ok(), "{:?}", counted(&receiver.points()));
    assert_eq!(worker.console(), [""; 0]);
}

/// Scenario: ten requests, one directly after the other, that count; and then nothing.
/// Guarantees: metrics leave at most once in the interval of a second, and what was counted in between leaves by itself when
/// it is over, kept alive by one of the requests.
#[tokio::test]
async fn what_is_counted_between_two_collections_leaves_without_another_request() {
    let (receiver, worker) = start().await;
    for n in 0..10 {
        worker.get(&format!("/signals/all?spans=1&id=n-{n}")).await;
    }
    let points = receiver.wait_for_points(10, PATIENCE).await;
    assert_eq!(counted(&points).len(), 10);
    assert!(
        receiver.posts_of("metrics").len() <= 3,
        "{:?}",
        receiver.posts_of("metrics").len()
    );
    assert!(points.iter().all(|point| point.value == 1));
}

/// Scenario: the interval is zero, and five requests count.
/// Guarantees: each of them delivers its metrics itself.
#[tokio::test]
async fn with_an_interval_of_zero_each_request_delivers_its_metrics() {
    let (receiver, worker) =
        start_with(|settings| settings.binding("A365_PER_REQUEST_METRIC_INTERVAL_MS", 0)).await;
    for n in 0..5 {
        worker.get(&format!("/signals/all?spans=1&id=n-{n}")).await;
        receiver.wait_for_points(n + 1, SOON).await;
    }
    settled(&worker).await;
    assert_eq!(receiver.posts_of("metrics").len(), 5);
}

/// Scenario: a request whose handler neither logs nor counts, in an instance with an instrument that has nothing to say.
/// Guarantees: no POST of logs or metrics is made.
#[tokio::test]
async fn what_is_not_used_is_not_sent() {
    let (receiver, worker) = start().await;
    worker.get("/signals/all?spans=1&id=first").await;
    receiver.wait_for_points(1, PATIENCE).await;
    settled(&worker).await;
    receiver.clear();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    worker.get("/work?spans=1").await;
    receiver.wait_for_spans(2, PATIENCE).await;
    settled(&worker).await;
    assert_eq!(receiver.posts_of("logs").len(), 0);
    assert_eq!(receiver.posts_of("metrics").len(), 0);
}

/// Scenario: work behind the response logs, counts and ends spans, a while after the request's root has ended.
/// Guarantees: all of it is the request's, and arrives without further traffic.
#[tokio::test]
async fn what_happens_behind_the_response_is_the_requests() {
    let (receiver, worker) = start().await;
    let path = "/signals/behind?spans=1&lines=3&after=100&id=behind";
    worker.get_as("token-behind", path).await;
    let logs = receiver.wait_for_logs(3, PATIENCE).await;
    let points = receiver.wait_for_points(1, PATIENCE).await;
    assert!(logs.iter().all(|log| log.token == "token-behind"));
    let spans = receiver.wait_for_spans(2, PATIENCE).await;
    let span = named(&spans, "child 0");
    assert!(logs.iter().all(|log| log.span_id == span.span_id));
    assert_eq!(counted(&points)["behind"], 1);
    assert_eq!(settled(&worker).await["logs_late"], 0);
}

/// Scenario: a line is logged where no span is active, in an event without telemetry around it.
/// Guarantees: it leaves in that event, under the configured headers, without ids and without a mark.
#[tokio::test]
async fn a_line_outside_of_any_request_leaves_under_the_configured_headers() {
    let (receiver, worker) = start().await;
    worker.get("/signals/all?spans=0").await;
    worker.get_as("token-of-nobody", "/log-outside").await;
    let logs = receiver.wait_for_logs(1, SOON).await;
    let [log] = &logs[..] else { panic!("{logs:?}") };
    assert_eq!(
        (&*log.token, &*log.body),
        (SERVICE_TOKEN, "outside of any request")
    );
    assert_eq!((&*log.trace_id, &*log.span_id), ("", ""));
    assert!(!log.attributes.contains_key("per_request.late"));
}

/// Scenario: a request logs three hundred lines, a millisecond apart.
/// Guarantees: they leave in few POSTs, as its spans would, and all arrive under its token.
#[tokio::test]
async fn many_lines_of_a_request_leave_in_few_posts() {
    let (receiver, worker) =
        start_with(|settings| settings.binding("A365_PER_REQUEST_MAX_BATCH_SIZE", 10)).await;
    worker
        .get_as("token-of-lines", "/signals/logs?lines=300&ms=1&id=lines")
        .await;
    let logs = receiver.wait_for_logs(300, PATIENCE).await;
    assert!(logs.iter().all(|log| log.token == "token-of-lines"));
    let posts = receiver.posts_of("logs").len();
    assert!((2..=9).contains(&posts), "{posts} POSTs");
    let said: BTreeSet<_> = logs.iter().map(|log| &log.attributes["n"]).collect();
    assert_eq!(said.len(), 300);
}

/// Scenario: the collector answers log records and metrics as it should not: it hangs, resets, and refuses.
/// Guarantees: the response does not wait for it, spans arrive, and what is lost is counted and said, by its signal.
#[tokio::test]
async fn a_collector_that_fails_is_said_by_signal_and_delays_nothing() {
    let (receiver, worker) = start_with(|settings| {
        settings
            .binding("OTEL_EXPORTER_OTLP_LOGS_HEADERS", "x-signal=logs")
            .binding("A365_PER_REQUEST_METRIC_INTERVAL_MS", 0)
    })
    .await;
    // Log records leave under the token of a request, and metrics under the service's.
    receiver.behave_for(SERVICE_TOKEN, Behaviour::status(400));
    receiver.behave_for("token-refused", Behaviour::status(400));
    let response = worker
        .get_as("token-refused", "/signals/all?spans=1&lines=2&id=refused")
        .await;
    assert_eq!(response.status, 200);
    worker
        .wait_for_console("log records failed to export")
        .await;
    worker
        .wait_for_console("data points failed to export")
        .await;
    let stats = settled(&worker).await;
    assert_eq!((stats["logs"], stats["logs_failed"]), (2, 2));
    assert_eq!(stats["balanced"], 1);

    receiver.behave_for("token-hangs", Behaviour::Hang);
    let response = worker
        .get_as("token-hangs", "/signals/all?spans=1&lines=1&id=hangs")
        .await;
    assert_eq!(response.status, 200);
    worker
        .get_as(
            "token-of-another",
            "/signals/all?spans=1&lines=1&id=another",
        )
        .await;
    let logs = receiver.wait_for_logs(1, PATIENCE).await;
    assert_eq!(logs[0].token, "token-of-another");
}

/// Scenario: a flush of all three signals: with something of each, with losses of one, and after the shutdown.
/// Guarantees: it says of each signal what became of it, and metrics are collected for it, whatever was a moment ago.
#[tokio::test]
async fn a_flush_of_all_signals_says_which_of_them_has_losses() {
    let (receiver, worker) =
        start_with(|settings| settings.binding("A365_PER_REQUEST_METRIC_INTERVAL_MS", 3_600_000))
            .await;
    worker.get("/signals/all?spans=1&lines=1&id=a").await;
    receiver.wait_for_points(1, PATIENCE).await;
    worker.get("/signals/all?spans=1&lines=1&id=b").await;
    assert_eq!(worker.get("/flush-all").await.body, "ok");
    assert_eq!(counted(&receiver.points()).len(), 2);
    assert_eq!(receiver.logs().len(), 2);

    receiver.behave_for("token-refused", Behaviour::status(400));
    worker
        .get_as("token-refused", "/signals/logs?lines=3&id=c")
        .await;
    let said = worker.get("/flush-all").await.body;
    assert!(
        said.contains("logs: not everything arrived") && said.contains("3 failed"),
        "{said}"
    );
    assert!(said.starts_with("spans: "), "{said}");
    assert!(!said.contains("metrics"), "{said}");
    assert_eq!(worker.get("/flush-all").await.body, "ok");

    worker.get("/signals/all?spans=1&lines=1&id=d").await;
    assert_eq!(worker.get("/shutdown").await.body, "ok");
    assert_eq!(counted(&receiver.points()).len(), 3);
    let said = worker.get("/flush-all").await.body;
    assert_eq!(said.matches("is shut down").count(), 3, "{said}");
    worker.get("/signals/all?spans=1&lines=1&id=e").await;
    let stats = settled(&worker).await;
    assert_eq!((stats["logs_dropped"], stats["balanced"]), (1, 1));
}

/// Scenario: an observable instrument whose callback attaches a context, logs, and makes a span; and spans that end anywhere.
/// Guarantees: it is asked with each collection, in a task of its own, and its value arrives; what it logs and traces does not, and
/// nothing that it does is a reason to ask it again.
#[tokio::test]
async fn an_observable_instrument_is_asked_outside_of_the_ends_of_spans() {
    let (receiver, worker) =
        start_with(|settings| settings.binding("A365_PER_REQUEST_METRIC_INTERVAL_MS", 0)).await;
    worker.get("/signals/observed").await;
    worker.get("/signals/all?spans=1&id=a").await;
    let points = receiver.wait_for_points(2, PATIENCE).await;
    assert!(
        points.iter().any(|point| point.name == "observed"),
        "{points:?}"
    );
    assert!(worker.console().contains(&"log: observed".to_owned()));

    let stats = settled(&worker).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(
        settled(&worker).await["metric_exports"],
        stats["metric_exports"]
    );
    assert!(
        receiver
            .spans()
            .iter()
            .all(|span| span.name != "in a callback")
    );
    assert_eq!(receiver.logs().len(), 0);
}
