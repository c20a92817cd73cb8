//! No answer waits for telemetry.

use std::net::TcpListener;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp_direct::DirectExporter;
use opentelemetry_per_request::server::ServerLayer;
use opentelemetry_per_request::{Config, PerRequestSpanProcessor, RequestTracer, in_child};
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};

use super::site::{Fed, Serving, Site};
use crate::support::{Act, Gate, Recorder, balanced, wait_until};

/// Scenario: a collector takes connections, and never answers; one export at a time is allowed. Requests are answered
/// with a child each, by a fixed body and by a stream.
/// Guarantees: all are answered to their end while not one span has been taken.
#[test]
fn collector_that_hangs_delays_no_answer() {
    // Whoever connects is let in by the system, and nobody is there.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let exporter = DirectExporter::builder()
        .with_endpoint(endpoint)
        .with_timeout(Duration::from_secs(600))
        .build()
        .unwrap();
    let processor = PerRequestSpanProcessor::builder(exporter)
        .with_config(Config::default().with_max_concurrent_exports(1))
        .build()
        .unwrap();
    let telemetry = processor.handle();
    let provider = SdkTracerProvider::builder()
        .with_span_processor(processor)
        .build();
    let tracer = RequestTracer::new(provider.tracer("shop")).with_handle(telemetry.clone());
    let parts = || {
        let parts = ["one.", "two."].map(Ok::<_, std::convert::Infallible>);
        Body::from_stream(futures_util::stream::iter(parts))
    };
    let app = Router::new()
        .route("/fixed", get(|| in_child("child", async { "answer" })))
        .route(
            "/stream",
            get(move || in_child("child", async move { Ok::<_, String>(parts()) })),
        )
        .layer(ServerLayer::new(tracer));
    let serving = Serving::axum(app);
    let mut client = serving.connect();
    for _ in 0..50 {
        client.get("/fixed");
        client.read_until("answer");
        client.get("/stream");
        client.read_until("two.\r\n0\r\n\r\n");
    }
    wait_until("all have ended", || balanced(&telemetry).ended == 200);
    let stats = balanced(&telemetry);
    assert_eq!(
        (stats.exported, stats.failed, stats.pending()),
        (0, 0, 200),
        "{stats:?}"
    );
    drop(listener);
}

/// Scenario: an exporter blocks its thread, before and while a stream is on its way.
/// Guarantees: head, parts and end of the body arrive nevertheless; afterwards the spans do.
#[test]
fn exporter_that_blocks_delays_no_part_of_a_body() {
    let gate = Gate::default();
    let site = Site::with(
        Recorder::always(Act::Block(gate.clone())),
        Sampler::AlwaysOn,
    );
    let (feed, body) = Fed::new(&site.log);
    let handler = move || async move {
        in_child("child", async {}).await;
        body.take().response()
    };
    let serving = Serving::axum(Router::new().route("/", get(handler)).layer(site.layer()));
    let mut client = serving.connect();
    client.get("/");
    client.read_until("\r\n\r\n");
    wait_until("the exporter blocks", || site.exporter.running() == 1);
    for part in ["one.", "two.", "three."] {
        feed.data(part);
        client.read_until(part);
    }
    drop(feed);
    client.read_until("0\r\n\r\n");
    wait_until("the span ends", || site.ended() == 2);
    assert_eq!(balanced(&site.telemetry).exported, 0);
    gate.open();
    site.spans(2);
}
