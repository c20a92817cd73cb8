//! A receiver that others wrote and published, `fake-opentelemetry-collector`, and an exporter that others wrote, as a second
//! opinion: what the receiver decodes of our bytes is what it decodes of theirs.
//!
//! The receiver speaks gRPC only, whose messages are the same bytes as the bodies of HTTP. A bridge takes those over HTTP and
//! hands them on as they are.

use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::routing::post;
use bytes::{Buf as _, BufMut as _};
use fake_opentelemetry_collector::{
    ExportedLog, ExportedMetric, ExportedSpan, FakeCollectorServer,
};
use opentelemetry::logs::{AnyValue, LogRecord as _, Logger as _, LoggerProvider as _, Severity};
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry::trace::{
    Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState, Tracer as _,
    TracerProvider as _,
};
use opentelemetry::{Array, InstrumentationScope, KeyValue, Value};
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_otlp_direct::DirectExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::{LogBatch, LogExporter, SdkLogRecord, SdkLoggerProvider};
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::{InMemoryMetricExporter, SdkMeterProvider};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData, SpanExporter};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use crate::support::SOON;

/// All that was decoded of one export of each signal.
type Decoded = (Vec<ExportedSpan>, Vec<ExportedLog>, Vec<ExportedMetric>);

/// Scenario: spans, log records and metrics of every kind are exported by `DirectExporter` over HTTP, and the same ones by
/// `opentelemetry-otlp` over gRPC.
/// Guarantees: the published receiver decodes the same of both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn published_receiver_decodes_all_three_signals_as_those_of_the_usual_exporter() {
    let mut receiver = FakeCollectorServer::start().await.unwrap();
    let telemetry = Telemetry::of_every_kind();

    let mut ours = DirectExporter::builder()
        .with_env_lookup(|_| None)
        .with_endpoint(bridge_to(receiver.endpoint()).await)
        .build()
        .unwrap();
    SpanExporter::set_resource(&mut ours, &resource());
    SpanExporter::export(&ours, telemetry.spans.clone())
        .await
        .unwrap();
    telemetry.export_logs(&ours).await;
    PushMetricExporter::export(&ours, &telemetry.metrics)
        .await
        .unwrap();
    let decoded = received(&mut receiver).await;

    let endpoint = receiver.endpoint();
    let mut spans = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(&endpoint)
        .build()
        .unwrap();
    SpanExporter::set_resource(&mut spans, &resource());
    spans.export(telemetry.spans.clone()).await.unwrap();
    let mut logs = opentelemetry_otlp::LogExporter::builder()
        .with_tonic()
        .with_endpoint(&endpoint)
        .build()
        .unwrap();
    LogExporter::set_resource(&mut logs, &resource());
    telemetry.export_logs(&logs).await;
    let metrics = opentelemetry_otlp::MetricExporter::builder()
        .with_tonic()
        .with_endpoint(&endpoint)
        .build()
        .unwrap();
    metrics.export(&telemetry.metrics).await.unwrap();
    assert_eq!(decoded, received(&mut receiver).await);

    let (spans, logs, metrics) = decoded;
    let names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["charge", "checkout"]);
    assert_eq!(logs.len(), 2);
    assert_eq!(logs[0].trace_id, spans[0].trace_id);
    assert_eq!(metrics[0].metrics.len(), telemetry.instruments);
}

async fn received(receiver: &mut FakeCollectorServer) -> Decoded {
    (
        receiver.exported_spans(2, SOON).await,
        receiver.exported_logs(2, SOON).await,
        receiver.exported_metrics(1, SOON).await,
    )
}

// ===== what is exported =====

struct Telemetry {
    spans: Vec<SpanData>,
    records: Vec<(SdkLogRecord, InstrumentationScope)>,
    metrics: ResourceMetrics,
    instruments: usize,
}

fn resource() -> Resource {
    Resource::builder_empty().with_service_name("shop").build()
}

/// One of each type.
fn attributes() -> [KeyValue; 5] {
    [
        KeyValue::new("text", "å"),
        KeyValue::new("truth", true),
        KeyValue::new("number", -7),
        KeyValue::new("fraction", 0.5),
        KeyValue::new("list", Value::Array(Array::I64(vec![1, 2]))),
    ]
}

// ===== impl Telemetry =====

impl Telemetry {
    fn of_every_kind() -> Self {
        let spans = spans();
        let context = &spans[0].span_context;
        let (metrics, instruments) = metrics();
        Self {
            records: records(context),
            metrics,
            instruments,
            spans,
        }
    }

    async fn export_logs(&self, exporter: &impl LogExporter) {
        let batch: Vec<_> = self
            .records
            .iter()
            .map(|(record, scope)| (record, scope))
            .collect();
        exporter.export(LogBatch::new(&batch)).await.unwrap();
    }
}

fn spans() -> Vec<SpanData> {
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder()
        .with_simple_exporter(exporter.clone())
        .build();
    let tracer = provider.tracer("shop");
    let elsewhere = SpanContext::new(
        TraceId::from(1),
        SpanId::from(2),
        TraceFlags::SAMPLED,
        true,
        TraceState::from_key_value([("vendor", "x")]).unwrap(),
    );
    let request = tracer
        .span_builder("checkout")
        .with_kind(SpanKind::Server)
        .with_attributes(attributes())
        .with_links(vec![Link::new(elsewhere, attributes().to_vec(), 0)]);
    let request = request.start(&tracer);
    let cx = opentelemetry::trace::TraceContextExt::current_with_span(request);
    let mut charge = tracer.start_with_context("charge", &cx);
    opentelemetry::trace::Span::add_event(&mut charge, "declined", attributes().to_vec());
    opentelemetry::trace::Span::set_status(&mut charge, Status::error("no funds"));
    drop(charge);
    drop(cx);
    exporter.get_finished_spans().unwrap()
}

fn records(context: &SpanContext) -> Vec<(SdkLogRecord, InstrumentationScope)> {
    let logger = SdkLoggerProvider::builder().build().logger("shop");
    let plain = || {
        let mut record = logger.create_log_record();
        record.set_observed_timestamp(SystemTime::UNIX_EPOCH + Duration::from_secs(9));
        record
    };
    let mut full = plain();
    full.set_timestamp(SystemTime::UNIX_EPOCH + Duration::from_secs(8));
    full.set_severity_number(Severity::Warn2);
    full.set_severity_text("warning");
    full.set_body(AnyValue::from("declined"));
    full.add_attribute("amount", 7);
    full.add_attribute("bytes", AnyValue::Bytes(Box::new(vec![0, 255])));
    full.set_trace_context(
        context.trace_id(),
        context.span_id(),
        Some(context.trace_flags()),
    );
    let scope = InstrumentationScope::builder("shop")
        .with_version("1")
        .build();
    vec![(full, scope.clone()), (plain(), scope)]
}

/// And how many instruments they are of.
fn metrics() -> (ResourceMetrics, usize) {
    let exporter = InMemoryMetricExporter::default();
    let provider = SdkMeterProvider::builder()
        .with_resource(resource())
        .with_periodic_exporter(exporter.clone())
        .build();
    let meter = provider.meter("shop");
    meter.u64_counter("sold").build().add(7, &attributes());
    meter.i64_up_down_counter("open").build().add(-1, &[]);
    meter
        .f64_gauge("temperature")
        .build()
        .record(0.5, &attributes());
    let sizes = meter
        .f64_histogram("size")
        .with_unit("By")
        .with_description("Of orders.")
        .with_boundaries(vec![1.0, 10.0])
        .build();
    sizes.record(0.5, &[]);
    sizes.record(100.0, &[]);
    provider.force_flush().unwrap();
    let metrics = exporter.get_finished_metrics().unwrap().pop().unwrap();
    (metrics, 4)
}

// ===== the bridge =====

/// Where it listens. It hands on every body that it gets, until the runtime ends.
async fn bridge_to(receiver: String) -> String {
    let channel = tonic::transport::Endpoint::from_shared(receiver).unwrap();
    let channel = channel.connect().await.unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new()
        .route("/v1/{signal}", post(hand_on))
        .with_state(channel);
    tokio::spawn(async move { axum::serve(listener, app).await });
    format!("http://{address}")
}

async fn hand_on(
    State(channel): State<tonic::transport::Channel>,
    Path(signal): Path<String>,
    body: Bytes,
) -> Bytes {
    let service = match signal.as_str() {
        "traces" => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
        "logs" => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
        "metrics" => "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
        other => panic!("no such signal: {other}"),
    };
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let request = tonic::Request::new(body);
    let answer = client.unary(request, service.parse().unwrap(), AsTheyAre);
    answer.await.unwrap().into_inner()
}

/// Messages that are bytes already.
#[derive(Clone, Copy)]
struct AsTheyAre;

impl Codec for AsTheyAre {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for AsTheyAre {
    type Item = Bytes;
    type Error = tonic::Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), tonic::Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for AsTheyAre {
    type Item = Bytes;
    type Error = tonic::Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, tonic::Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
