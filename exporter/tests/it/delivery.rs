//! What is on the wire, and what `export` says about it.

use crate::support::{
    Collector, Reply, builder, check_account, export, exporter, nowhere, span, spans,
};
use futures_util::FutureExt as _;
use opentelemetry_otlp_direct::FailureReason::{
    AlreadyShutdown, Cancelled, Rejected, ResponseTooLarge, Timeout, TooLarge, Transport,
};
use opentelemetry_otlp_direct::{DirectExporter, ExporterHandle};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkError;
use opentelemetry_sdk::trace::SpanExporter;
use std::time::Duration;

/// Scenario: one batch of two spans, a resource, a configured header.
/// Guarantees: one POST to `/v1/traces` with the right headers; when `export` returns the collector has it.
#[test]
fn one_export_is_one_answered_request() {
    let collector = Collector::start();
    let mut exporter = builder(&collector.endpoint())
        .with_headers([("x-team", "shop")])
        .build()
        .unwrap();
    exporter.set_resource(&Resource::builder_empty().with_service_name("shop").build());
    export(&exporter, spans(2)).unwrap();

    let [request] = &collector.received()[..] else {
        panic!("one request: {:?}", collector.received());
    };
    assert_eq!(
        (request.method.as_str(), request.path.as_str()),
        ("POST", "/v1/traces")
    );
    assert_eq!(
        request.header("content-type"),
        Some("application/x-protobuf")
    );
    assert_eq!(request.header("content-encoding"), None);
    assert_eq!(request.header("x-team"), Some("shop"));
    let agent = request.header("user-agent").unwrap();
    let (ours, standard) = agent.split_once(' ').unwrap();
    assert!(ours.starts_with("opentelemetry-otlp-direct/"), "{agent}");
    assert!(standard.starts_with("OTel-OTLP-Exporter-Rust/"), "{agent}");
    let message = request.message();
    let resource = message.resource_spans[0].resource.as_ref().unwrap();
    assert_eq!(resource.attributes[0].key, "service.name");
    assert_eq!(request.span_names(), ["span-0", "span-1"]);
    check_account(&exporter, 2, &[]);
    assert_eq!(exporter.stats().attempts(), 1);
}

/// Scenario: a batch without spans.
/// Guarantees: success, and nothing is sent.
#[test]
fn empty_batch_sends_nothing() {
    let collector = Collector::start();
    let exporter = exporter(&collector);
    export(&exporter, Vec::new()).unwrap();
    assert_eq!(collector.received().len(), 0);
}

/// Scenario: the environment names endpoint, headers and compression; code names one of the headers as well.
/// Guarantees: the environment is used through the lookup function, and code wins.
#[test]
fn environment_is_used_and_code_wins() {
    let collector = Collector::start();
    let endpoint = collector.endpoint();
    let exporter = DirectExporter::builder()
        .with_env_lookup(move |variable| match variable {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" => Some(format!("{endpoint}/env")),
            "OTEL_EXPORTER_OTLP_HEADERS" => Some("x-a=env,x-b=env%20b".to_owned()),
            "OTEL_EXPORTER_OTLP_TIMEOUT" => Some("60000".to_owned()),
            _ => None,
        })
        .with_header("X-A", "code")
        .build()
        .unwrap();
    export(&exporter, spans(1)).unwrap();
    let request = &collector.received()[0];
    assert_eq!(request.path, "/env");
    assert_eq!(request.header("x-a"), Some("code"));
    assert_eq!(request.header("x-b"), Some("env b"));
}

/// Scenario: environment and code name different endpoints and timeouts.
/// Guarantees: code wins.
#[test]
fn code_wins_over_the_environment() {
    let collector = Collector::start();
    let elsewhere = Collector::start();
    let endpoint = elsewhere.endpoint();
    let exporter = builder(&collector.endpoint())
        .with_env_lookup(move |variable| match variable {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" => Some(endpoint.clone()),
            "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT" => Some("1".to_owned()),
            _ => None,
        })
        .with_timeout(Duration::from_secs(60))
        .build()
        .unwrap();
    export(&exporter, spans(1)).unwrap();
    assert_eq!(
        (collector.received().len(), elsewhere.received().len()),
        (1, 0)
    );
    assert!(format!("{exporter:?}").contains("60s"), "{exporter:?}");
}

/// Scenario: gzip, for a batch that compresses well.
/// Guarantees: the body is gzip of the same bytes, and says so.
#[cfg(feature = "gzip")]
#[test]
fn gzip_body_is_marked_and_holds_the_same_spans() {
    use opentelemetry_otlp_direct::Compression;
    use std::io::Read;

    let collector = Collector::start();
    let exporter = builder(&collector.endpoint())
        .with_compression(Compression::Gzip)
        .build()
        .unwrap();
    export(&exporter, spans(100)).unwrap();
    let mut request = collector.received().remove(0);
    assert_eq!(request.header("content-encoding"), Some("gzip"));
    let mut plain = Vec::new();
    let mut decoder = flate2::read::GzDecoder::new(request.body.as_slice());
    decoder.read_to_end(&mut plain).unwrap();
    request.body = plain;
    assert_eq!(request.span_names().len(), 100);
}

/// Scenario: a batch larger than a request may be, with one span that is larger all by itself.
/// Guarantees: several requests, none above the limit, which hold every other span once and in order; the large one is
/// counted `too_large`, and the error says so after the rest has been sent.
#[test]
fn large_batch_is_split_by_bytes_and_a_too_large_span_is_said() {
    const LIMIT: usize = 1000;
    let collector = Collector::start();
    let exporter = builder(&collector.endpoint())
        .with_max_request_bytes(LIMIT)
        .build()
        .unwrap();
    let mut batch = spans(50);
    batch.insert(20, span("x".repeat(LIMIT)));
    let error = export(&exporter, batch).unwrap_err().to_string();

    assert!(error.contains("1 of 51 spans are each larger"), "{error}");
    let received = collector.received();
    assert!(received.len() > 2, "{}", received.len());
    assert!(received.iter().all(|request| request.body.len() <= LIMIT));
    let names: Vec<_> = spans(50).iter().map(|span| span.name.to_string()).collect();
    assert_eq!(collector.span_names(), names);
    check_account(&exporter, 50, &[(TooLarge, 1)]);
}

/// Scenario: responses that reject none, some, and absurd numbers of three spans.
/// Guarantees: rejected spans are counted and fail the export, within what was sent; the request is not sent again.
#[test]
fn partial_success_is_counted_and_never_sent_again() {
    let cases = [
        (0, 0, 3),
        (2, 2, 1),
        (3, 3, 0),
        (-5, 0, 3),
        (i64::MAX, 3, 0),
    ];
    for (claimed, rejected, exported) in cases {
        let collector = Collector::scripted([Reply::partial(claimed, "quota s3cret")]);
        let exporter = exporter(&collector);
        let result = export(&exporter, spans(3));
        check_account(&exporter, exported, &[(Rejected, rejected)]);
        assert_eq!(collector.received().len(), 1);
        if rejected == 0 {
            result.unwrap();
        } else {
            let error = result.unwrap_err().to_string();
            assert!(
                error.contains(&format!("rejected {rejected} of 3 spans")),
                "{error}"
            );
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
}

/// Scenario: a success whose body is no OTLP response, and one with another 2xx status.
/// Guarantees: success.
#[test]
fn success_with_an_odd_body_is_success() {
    let odd = Reply::status(200).with_body("<html>ok</html>");
    let collector = Collector::scripted([odd, Reply::status(202)]);
    let exporter = exporter(&collector);
    export(&exporter, spans(1)).unwrap();
    export(&exporter, spans(1)).unwrap();
    check_account(&exporter, 2, &[]);
}

/// Scenario: a response larger than 4 MiB.
/// Guarantees: the export fails, since nobody knows what it said, and is not sent again.
#[test]
fn response_beyond_the_limit_is_a_failure_and_not_sent_again() {
    let collector = Collector::scripted([Reply::status(200).with_body(vec![0; (4 << 20) + 1])]);
    let exporter = exporter(&collector);
    let error = export(&exporter, spans(2)).unwrap_err().to_string();
    assert!(error.contains("response is larger"), "{error}");
    assert_eq!(collector.received().len(), 1);
    check_account(&exporter, 0, &[(ResponseTooLarge, 2)]);
}

/// Scenario: nobody listens.
/// Guarantees: an error that says so, after the attempts the policy allows.
#[test]
fn refused_connection_is_an_error_that_says_so() {
    let exporter = builder(&nowhere()).build().unwrap();
    let error = export(&exporter, spans(2)).unwrap_err().to_string();
    assert!(error.contains("attempt 6 got no response"), "{error}");
    assert!(error.to_lowercase().contains("refused"), "{error}");
    check_account(&exporter, 0, &[(Transport, 2)]);
    assert_eq!(exporter.stats().retries(), 5);
}

/// Scenario: a collector that never answers.
/// Guarantees: the export ends when its time is up, as a timeout.
#[test]
fn silent_collector_is_a_timeout() {
    let collector = Collector::scripted([Reply::Hang]);
    let timeout = Duration::from_millis(100);
    let exporter = builder(&collector.endpoint())
        .with_timeout(timeout)
        .build()
        .unwrap();
    let error = export(&exporter, spans(1)).unwrap_err();
    assert!(
        matches!(error, OTelSdkError::Timeout(after) if after == timeout),
        "{error:?}"
    );
    check_account(&exporter, 0, &[(Timeout, 1)]);
}

/// Scenario: a batch of several requests, the first of which uses up the time of the export.
/// Guarantees: the others are not sent, and all are counted as timed out.
#[test]
fn requests_of_one_export_share_its_time() {
    let collector = Collector::scripted([Reply::Hang]);
    let exporter = builder(&collector.endpoint())
        .with_timeout(Duration::from_millis(50))
        .with_max_request_bytes(500)
        .build()
        .unwrap();
    export(&exporter, spans(30)).unwrap_err();
    assert_eq!(collector.received().len(), 1);
    check_account(&exporter, 0, &[(Timeout, 30)]);
}

/// Scenario: no timeout, and one too long for any clock.
/// Guarantees: both are no limit, and nothing overflows.
#[test]
fn timeout_may_be_absent_or_absurd() {
    let collector = Collector::start();
    for timeout in [Duration::ZERO, Duration::MAX] {
        let exporter = builder(&collector.endpoint())
            .with_timeout(timeout)
            .build()
            .unwrap();
        export(&exporter, spans(1)).unwrap();
    }
}

/// Scenario: the future of an export is dropped while its request is out.
/// Guarantees: its spans are counted `cancelled`, and nothing stays in flight.
#[test]
fn dropped_export_is_counted_as_cancelled() {
    let collector = Collector::scripted([Reply::Hang]);
    let exporter = exporter(&collector);
    {
        let mut export = Box::pin(exporter.export(spans(3)));
        assert!(export.as_mut().now_or_never().is_none());
        assert_eq!(exporter.stats().in_flight(), 3);
    }
    check_account(&exporter, 0, &[(Cancelled, 3)]);
}

/// Scenario: exports after shutdown, shutdown twice, and a flush.
/// Guarantees: they fail with `AlreadyShutdown`, are counted, and send nothing; a flush has nothing to do.
#[test]
fn export_after_shutdown_fails_and_is_counted() {
    let collector = Collector::start();
    let exporter = exporter(&collector);
    exporter.force_flush().unwrap();
    exporter.shutdown().unwrap();
    assert!(matches!(
        exporter.shutdown(),
        Err(OTelSdkError::AlreadyShutdown)
    ));
    let result = export(&exporter, spans(2));
    assert!(matches!(result, Err(OTelSdkError::AlreadyShutdown)));
    assert_eq!(collector.received().len(), 0);
    check_account(&exporter, 0, &[(AlreadyShutdown, 2)]);
}

/// Scenario: the types are handed between threads, and exported from many at once.
/// Guarantees: they are `Send` and `Sync`, their futures `Send`, and concurrent exports all arrive.
#[test]
fn exports_may_run_concurrently() {
    fn shareable<T: Send + Sync + 'static>(_: &T) {}
    fn movable<T: Send>(_: T) {}

    let collector = Collector::start();
    let exporter = exporter(&collector);
    shareable::<DirectExporter>(&exporter);
    shareable::<ExporterHandle>(&exporter.handle());
    movable(exporter.check());
    movable(exporter.handle().check());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..5).for_each(|_| export(&exporter, spans(1)).unwrap()));
        }
    });
    assert_eq!(collector.received().len(), 40);
    check_account(&exporter, 40, &[]);
}
