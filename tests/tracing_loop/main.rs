//! Exporting makes no spans and no log records, whatever the clients below it say with `tracing`: they would be exported, and make
//! some again.
//!
//! Exports run on threads of their own, so the subscriber is that of the whole process, and each test is one. It hears
//! everything, down to TRACE.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "the helpers of tests are tests too"
)]

#[path = "../it/support/collector.rs"]
#[allow(dead_code, reason = "it is that of other tests")]
mod collector;

use std::env;
use std::io;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use collector::Collector;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_otlp::{
    LogExporter as OtlpLogExporter, SpanExporter as OtlpExporter, WithExportConfig as _,
};
use opentelemetry_otlp_direct::DirectExporter;
use opentelemetry_per_request::{
    Builder, PerRequestLogProcessor, PerRequestSpanProcessor, RequestTracer, tracing_layer,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{LogBatch, LogExporter, SdkLoggerProvider};
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use tracing::{Instrument as _, info, info_span};
use tracing_opentelemetry::OpenTelemetryLayer;
use tracing_subscriber::Registry;
use tracing_subscriber::layer::{Layer, SubscriberExt as _};

/// Where the collector of a test is, in the process that exports to it.
const ENDPOINT: &str = "TRACING_LOOP_ENDPOINT";

const REQUESTS: u64 = 10;

type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

fn ours(tracer: RequestTracer) -> BoxedLayer {
    tracing_layer(tracer).boxed()
}

fn plain(tracer: RequestTracer) -> BoxedLayer {
    OpenTelemetryLayer::new(tracer).boxed()
}

/// Asserts that requests of one span each, which are exported one after the other, are all that is ever exported.
fn check(
    this_test: &str,
    collector: fn() -> Collector,
    builder: fn(String) -> Builder,
    layer: fn(RequestTracer) -> BoxedLayer,
) {
    if let Ok(endpoint) = env::var(ENDPOINT) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        return runtime.block_on(export(|| builder(endpoint), layer));
    }
    // The collector's own spans are none of the process that exports.
    let collector = collector();
    let exported = Command::new(env::current_exe().unwrap())
        .args([this_test, "--exact"])
        .env(ENDPOINT, collector.endpoint())
        .output()
        .unwrap();
    assert!(exported.status.success(), "{exported:?}");
    // What it has received over gRPC is seen a moment later.
    let deadline = Instant::now() + Duration::from_secs(10);
    while collector.names().len() < REQUESTS as usize && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(collector.names(), ["request"; REQUESTS as usize]);
}

async fn export(builder: impl FnOnce() -> Builder, layer: fn(RequestTracer) -> BoxedLayer) {
    let processor = builder().build().unwrap();
    let telemetry = processor.handle();
    let provider = SdkTracerProvider::builder()
        .with_span_processor(processor)
        .build();
    let subscriber =
        tracing_subscriber::registry().with(layer(RequestTracer::new(provider.tracer("test"))));
    tracing::subscriber::set_global_default(subscriber).unwrap();
    for n in 1..=REQUESTS {
        async { info!("at work") }
            .instrument(info_span!("request"))
            .await;
        telemetry.flush().await.unwrap();
        assert_eq!(telemetry.stats().ended, n);
    }
}

fn grpc(endpoint: String) -> Result<OtlpExporter, io::Error> {
    OtlpExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .map_err(io::Error::other)
}

/// Makes a span around each export, and says that it has no parent.
#[derive(Debug)]
struct Talkative(DirectExporter);

impl SpanExporter for Talkative {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let span = info_span!(parent: None, "export");
        SpanExporter::export(&self.0, batch).instrument(span).await
    }

    fn set_resource(&mut self, resource: &Resource) {
        SpanExporter::set_resource(&mut self.0, resource);
    }
}

/// Scenario: an exporter over HTTP that makes a span of its own around each export.
/// Guarantees: that is none.
#[test]
fn exporting_over_http_makes_no_spans() {
    let http = |endpoint| {
        let exporter = DirectExporter::builder().with_endpoint(endpoint).build();
        PerRequestSpanProcessor::builder(Talkative(exporter.unwrap()))
    };
    check(
        "exporting_over_http_makes_no_spans",
        Collector::http,
        http,
        ours,
    );
}

/// Scenario: an exporter over gRPC that was built in the processor's runtime, under the layer and under that of
/// `tracing-opentelemetry`. `h2` makes spans for each connection and frame.
/// Guarantees: they are none.
#[test]
fn exporting_over_grpc_makes_no_spans() {
    let own = |endpoint| PerRequestSpanProcessor::builder_with(|| grpc(endpoint)).unwrap();
    check(
        "exporting_over_grpc_makes_no_spans",
        Collector::grpc,
        own,
        ours,
    );
}

/// See above.
#[test]
fn exporting_over_grpc_makes_no_spans_under_the_plain_layer() {
    let own = |endpoint| PerRequestSpanProcessor::builder_with(|| grpc(endpoint)).unwrap();
    check(
        "exporting_over_grpc_makes_no_spans_under_the_plain_layer",
        Collector::grpc,
        own,
        plain,
    );
}

/// Scenario: the exporter was built in the caller's runtime, whose threads nobody has told that they export.
/// Guarantees: what `h2` says there is left out by the layer.
#[test]
fn exporting_over_grpc_in_the_callers_runtime_makes_no_spans() {
    let callers = |endpoint| PerRequestSpanProcessor::builder(grpc(endpoint).unwrap());
    check(
        "exporting_over_grpc_in_the_callers_runtime_makes_no_spans",
        Collector::grpc,
        callers,
        ours,
    );
}

// ===== Log records =====

/// What runs in the process that exports: it is given the collector's address, and makes the processors of both signals.
type Make = fn(String) -> (PerRequestSpanProcessor, PerRequestLogProcessor);

/// Asserts that one line in each request is all that is ever exported of those requests, although the appender hears everything,
/// and that exporting makes no record at all.
fn check_logs(this_test: &str, collector: fn() -> Collector, make: Make) {
    if let Ok(endpoint) = env::var(ENDPOINT) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        return runtime.block_on(export_logs(|| make(endpoint)));
    }
    let collector = collector();
    let exported = Command::new(env::current_exe().unwrap())
        .args([this_test, "--exact"])
        .env(ENDPOINT, collector.endpoint())
        .output()
        .unwrap();
    assert!(exported.status.success(), "{exported:?}");
    let lines = || {
        let mut logs = collector.logs();
        logs.retain(|log| !log.trace.is_empty());
        logs
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while lines().len() < REQUESTS as usize && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
    let lines = lines();
    assert!(lines.iter().all(|log| log.body == "at work"), "{lines:?}");
    assert_eq!(lines.len(), REQUESTS as usize);
}

async fn export_logs(make: impl FnOnce() -> (PerRequestSpanProcessor, PerRequestLogProcessor)) {
    let (spans, logs) = make();
    let telemetry = [spans.handle(), logs.handle()];
    let provider = SdkTracerProvider::builder()
        .with_span_processor(spans)
        .build();
    let loggers = SdkLoggerProvider::builder()
        .with_log_processor(logs)
        .build();
    let tracer = RequestTracer::new(provider.tracer("test"));
    let subscriber = tracing_subscriber::registry()
        .with(tracing_layer(tracer))
        .with(OpenTelemetryTracingBridge::new(&loggers));
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let received = || telemetry[1].stats().logs.received;
    for _ in 0..REQUESTS {
        let before = received();
        async { info!("at work") }
            .instrument(info_span!("request"))
            .await;
        assert_eq!(received(), before + 1);
        // The first one of each says that it has connected, and more. None of that is a record.
        for _ in 0..3 {
            for signal in &telemetry {
                signal.flush().await.unwrap();
            }
        }
        assert_eq!(received(), before + 1, "exporting makes records");
    }
}

fn grpc_logs(endpoint: String) -> Result<OtlpLogExporter, io::Error> {
    OtlpLogExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .map_err(io::Error::other)
}

fn both<E: LogExporter + 'static>(
    builder: Builder,
    logs: E,
) -> (PerRequestSpanProcessor, PerRequestLogProcessor) {
    let spans = builder.build().unwrap();
    let logs = spans.log_processor(logs).unwrap();
    (spans, logs)
}

/// Logs around each export.
#[derive(Debug)]
struct TalkativeLogs(DirectExporter);

impl LogExporter for TalkativeLogs {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        info!("exporting");
        let exported = LogExporter::export(&self.0, batch).await;
        info!("exported");
        exported
    }
}

/// Scenario: exporters over HTTP, one of which logs itself, and the appender hears everything.
/// Guarantees: none of it is a record.
#[test]
fn exporting_over_http_makes_no_log_records() {
    check_logs(
        "exporting_over_http_makes_no_log_records",
        Collector::http,
        |endpoint| {
            let exporter = DirectExporter::builder().with_endpoint(endpoint).build();
            let exporter = exporter.unwrap();
            let spans = PerRequestSpanProcessor::builder(Talkative(exporter.clone()));
            both(spans, TalkativeLogs(exporter))
        },
    );
}

/// Scenario: the same with exporters of `opentelemetry-otlp` over gRPC, made in the processor's runtime.
/// Guarantees: nothing that `h2`, `hyper`, `tower` and `tonic` say is a record.
#[test]
fn exporting_over_grpc_makes_no_log_records() {
    check_logs(
        "exporting_over_grpc_makes_no_log_records",
        Collector::grpc,
        |endpoint| {
            let mut logs = None;
            let spans = PerRequestSpanProcessor::builder_with(|| {
                logs = Some(grpc_logs(endpoint.clone())?);
                grpc(endpoint)
            });
            both(spans.unwrap(), logs.unwrap())
        },
    );
}

/// Scenario: the same with exporters that were made in the caller's runtime, whose threads nobody has told that they export.
/// Guarantees: what their clients say there below INFO is no record.
#[test]
fn exporting_over_grpc_in_the_callers_runtime_makes_no_log_records() {
    check_logs(
        "exporting_over_grpc_in_the_callers_runtime_makes_no_log_records",
        Collector::grpc,
        |endpoint| {
            let spans = PerRequestSpanProcessor::builder(grpc(endpoint.clone()).unwrap());
            both(spans, grpc_logs(endpoint).unwrap())
        },
    );
}
