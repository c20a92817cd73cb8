//! Sends one batch of each signal in each encoding to a receiver on loopback, which writes the bodies to a folder:
//! `traces.pb`, `traces.json`, and so on. `decode.py` knows what is in them. `cargo xtask test python` runs both.

#![allow(missing_docs)]
#![allow(
    clippy::unwrap_used,
    reason = "a check that panics has failed, which is what it is for"
)]

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use opentelemetry::logs::{AnyValue, LogRecord as _, Logger as _, LoggerProvider as _, Severity};
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry::trace::{
    Event, Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{Array, InstrumentationScope, KeyValue, StringValue, Value};
use opentelemetry_otlp_direct::{DirectExporter, Encoding};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::{LogBatch, LogExporter, SdkLogRecord, SdkLoggerProvider};
use opentelemetry_sdk::metrics::{
    Aggregation, Instrument, PeriodicReader, SdkMeterProvider, Stream, Temporality,
};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter, SpanLinks};

#[tokio::main]
async fn main() {
    let folder = PathBuf::from(std::env::args().nth(1).unwrap());
    std::fs::create_dir_all(&folder).unwrap();
    let endpoint = receive_into(&folder).await;
    for encoding in [Encoding::Protobuf, Encoding::Json] {
        send_spans(exporter(&endpoint, encoding)).await;
        send_logs(exporter(&endpoint, encoding)).await;
        send_metrics(exporter(&endpoint, encoding));
    }
}

/// Writes each body to a file of its signal and encoding.
async fn receive_into(folder: &Path) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let receiver = Router::new()
        .fallback(receive)
        .with_state(folder.to_path_buf());
    tokio::spawn(async move { axum::serve(listener, receiver).await.unwrap() });
    endpoint
}

async fn receive(
    State(folder): State<PathBuf>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    let signal = uri.path().strip_prefix("/v1/").unwrap();
    let extension = match headers["content-type"].to_str().unwrap() {
        "application/x-protobuf" => "pb",
        "application/json" => "json",
        other => panic!("{other}"),
    };
    std::fs::write(folder.join(format!("{signal}.{extension}")), body).unwrap();
    StatusCode::OK
}

fn exporter(endpoint: &str, encoding: Encoding) -> DirectExporter {
    DirectExporter::builder()
        .with_env_lookup(|_| None)
        .with_endpoint(endpoint)
        .with_encoding(encoding)
        .with_temporality(Temporality::Delta)
        .build()
        .unwrap()
}

fn resource() -> Resource {
    Resource::builder_empty()
        .with_schema_url(
            [KeyValue::new("service.name", "shop")],
            "https://schema/resource",
        )
        .build()
}

fn scope() -> InstrumentationScope {
    InstrumentationScope::builder("lib")
        .with_version("1.2.3")
        .with_schema_url("https://schema/scope")
        .with_attributes([KeyValue::new("scoped", true)])
        .build()
}

fn at(nanos: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(1_700_000_000_000_000_000 + nanos)
}

fn context(span: u8, remote: bool) -> SpanContext {
    let trace: [u8; 16] = std::array::from_fn(|n| 0xf0 + n as u8);
    SpanContext::new(
        TraceId::from_bytes(trace),
        SpanId::from_bytes([0, 1, 2, 3, 4, 5, 6, span]),
        TraceFlags::SAMPLED,
        remote,
        TraceState::from_key_value([("vendor", "state")]).unwrap(),
    )
}

/// Every kind of attribute.
fn attributes() -> Vec<KeyValue> {
    let array = |array: Array| Value::Array(array);
    vec![
        KeyValue::new("text", "schlüssel \"🔑\"\n\u{1}"),
        KeyValue::new("empty", ""),
        KeyValue::new("bool", false),
        KeyValue::new("int", i64::MIN),
        KeyValue::new("double", 0.1),
        KeyValue::new("nan", f64::NAN),
        KeyValue::new("infinite", f64::NEG_INFINITY),
        KeyValue::new("bools", array(Array::Bool(vec![true, false]))),
        KeyValue::new("ints", array(Array::I64(vec![0, i64::MAX]))),
        KeyValue::new("doubles", array(Array::F64(vec![-0.5, f64::INFINITY]))),
        KeyValue::new(
            "texts",
            array(Array::String(vec![
                StringValue::from("a"),
                StringValue::from(""),
            ])),
        ),
        KeyValue::new("none", array(Array::Bool(vec![]))),
    ]
}

async fn send_spans(mut exporter: DirectExporter) {
    let mut server = SpanData {
        span_context: context(7, false),
        parent_span_id: SpanId::from_bytes([9; 8]),
        parent_span_is_remote: true,
        span_kind: SpanKind::Server,
        name: "GET /orders".into(),
        start_time: at(1),
        end_time: at(2_000_000_000),
        attributes: attributes(),
        dropped_attributes_count: u32::MAX,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::error("no luck"),
        instrumentation_scope: scope(),
    };
    let attribute = vec![KeyValue::new("n", 1)];
    let event = Event::new("retried", at(3), attribute.clone(), 2);
    server.events.events = vec![event];
    server.events.dropped_count = 3;
    server.links.links = vec![Link::new(context(8, true), attribute, 4)];
    server.links.dropped_count = 5;
    let client = SpanData {
        span_context: context(6, false),
        parent_span_id: SpanId::INVALID,
        parent_span_is_remote: false,
        span_kind: SpanKind::Client,
        name: "".into(),
        start_time: UNIX_EPOCH,
        end_time: UNIX_EPOCH,
        attributes: Vec::new(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Ok,
        instrumentation_scope: InstrumentationScope::default(),
    };
    SpanExporter::set_resource(&mut exporter, &resource());
    let batch = vec![server, client];
    SpanExporter::export(&exporter, batch).await.unwrap();
}

async fn send_logs(mut exporter: DirectExporter) {
    let logger = SdkLoggerProvider::builder().build().logger("");
    let with_body = |body: AnyValue| {
        let mut record = logger.create_log_record();
        record.set_body(body);
        record
    };
    let mut full = with_body("payment accepted".into());
    full.set_timestamp(at(1));
    full.set_observed_timestamp(at(2));
    full.set_severity_number(Severity::Warn2);
    full.set_severity_text("WARN2");
    full.set_event_name("payment");
    full.set_target("shop::payment");
    full.set_trace_context(
        context(7, false).trace_id(),
        context(7, false).span_id(),
        Some(TraceFlags::SAMPLED),
    );
    full.add_attributes([
        ("text", AnyValue::from("ü")),
        ("int", AnyValue::from(-1)),
        ("double", AnyValue::from(f64::NAN)),
        ("bool", AnyValue::from(true)),
        (
            "bytes",
            AnyValue::Bytes(Box::new(vec![0, 0xff, 0xfb, 0xef])),
        ),
    ]);
    let nested = AnyValue::from_iter([(
        "list",
        AnyValue::ListAny(Box::new(vec![AnyValue::Int(1), AnyValue::from("two")])),
    )]);
    let records: [SdkLogRecord; 6] = [
        full,
        with_body(AnyValue::Int(i64::MAX)),
        with_body(AnyValue::Boolean(false)),
        with_body(AnyValue::Bytes(Box::new(b"bytes".to_vec()))),
        with_body(nested),
        logger.create_log_record(),
    ];
    let scope = scope();
    let batch = records.each_ref().map(|record| (record, &scope));
    LogExporter::set_resource(&mut exporter, &resource());
    let batch = LogBatch::new(&batch);
    LogExporter::export(&exporter, batch).await.unwrap();
}

fn send_metrics(exporter: DirectExporter) {
    let reader = PeriodicReader::builder(exporter).with_interval(Duration::from_secs(3_600));
    let exponential = |instrument: &Instrument| {
        let aggregation = Aggregation::Base2ExponentialHistogram {
            max_size: 4,
            max_scale: 3,
            record_min_max: true,
        };
        let stream = Stream::builder().with_aggregation(aggregation);
        (instrument.name() == "exponential").then(|| stream.build().unwrap())
    };
    let provider = SdkMeterProvider::builder()
        .with_resource(resource())
        .with_view(exponential)
        .with_reader(reader.build())
        .build();
    let meter = provider.meter_with_scope(scope());
    let counter = meter.u64_counter("counter").with_unit("{order}");
    let counter = counter.with_description("orders").build();
    counter.add(3, &[KeyValue::new("kind", "book")]);
    meter.u64_counter("huge").build().add(u64::MAX, &[]);
    meter.i64_up_down_counter("open").build().add(-5, &[]);
    meter.f64_gauge("load").build().record(0.75, &[]);
    let histogram = meter.f64_histogram("took");
    let histogram = histogram.with_boundaries(vec![1.0, 10.0]).build();
    for took in [0.5, 7.0, 8.0, 100.0] {
        histogram.record(took, &[]);
    }
    let exponential = meter.f64_histogram("exponential").build();
    for value in [-2.0, 0.0, 1.0, 4.0, 4.0] {
        exponential.record(value, &[]);
    }
    // It collects once more, and nothing does after that.
    provider.shutdown().unwrap();
}
