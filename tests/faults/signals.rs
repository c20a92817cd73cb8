//! The signals alike: an export of two items, told apart by their names, and the names in a request.

use futures_executor::block_on;
use opentelemetry::logs::{LogRecord as _, Logger as _, LoggerProvider as _};
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry::trace::FutureExt as _;
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp_direct::{DirectExporter, Signal};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, any_value::Value};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{LogBatch, LogExporter, SdkLoggerProvider};
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::{InMemoryMetricExporter, PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::testing::trace::new_test_export_span_data;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use prost::Message as _;

/// As spans of these names, log records with these bodies, or data points with these attributes.
pub(crate) fn export(
    signal: Signal,
    exporter: &DirectExporter,
    cx: Context,
    names: &[String],
) -> OTelSdkResult {
    match signal {
        Signal::Logs => export_logs(exporter, cx, names),
        Signal::Metrics => export_metrics(exporter, cx, names),
        _ => export_spans(exporter, cx, names),
    }
}

fn export_spans(exporter: &DirectExporter, cx: Context, names: &[String]) -> OTelSdkResult {
    let spans = names.iter().map(|name| SpanData {
        name: name.to_owned().into(),
        ..new_test_export_span_data()
    });
    block_on(SpanExporter::export(exporter, spans.collect()).with_context(cx))
}

fn export_logs(exporter: &DirectExporter, cx: Context, names: &[String]) -> OTelSdkResult {
    // The SDK makes records only by way of a logger.
    let logger = SdkLoggerProvider::builder().build().logger("faults");
    let records = names.iter().map(|name| {
        let mut record = logger.create_log_record();
        record.set_observed_timestamp(std::time::SystemTime::now());
        record.set_body(name.clone().into());
        record
    });
    let records: Vec<_> = records.collect();
    let scope = Default::default();
    let batch: Vec<_> = records.iter().map(|record| (record, &scope)).collect();
    let batch = LogBatch::new(&batch);
    block_on(LogExporter::export(exporter, batch).with_context(cx))
}

fn export_metrics(exporter: &DirectExporter, cx: Context, names: &[String]) -> OTelSdkResult {
    // The SDK makes metrics only by way of a reader.
    let collected = InMemoryMetricExporter::default();
    let provider = SdkMeterProvider::builder()
        .with_reader(PeriodicReader::builder(collected.clone()).build())
        .build();
    let gauge = provider.meter("faults").u64_gauge("gauge").build();
    for name in names {
        gauge.record(1, &[KeyValue::new("name", name.clone())]);
    }
    provider.force_flush().unwrap();
    let metrics = collected.get_finished_metrics().unwrap().pop().unwrap();
    block_on(PushMetricExporter::export(exporter, &metrics).with_context(cx))
}

/// The names in a request that came to this path, in the order of the alphabet: the points of a metric have none.
pub(crate) fn names(path: &str, body: &[u8]) -> Vec<String> {
    let (path, _) = path.split_once('?').unwrap_or((path, ""));
    let mut names = match path {
        "/v1/logs" => names_of_records(body),
        "/v1/metrics" => names_of_points(body),
        _ => names_of_spans(body),
    };
    names.sort();
    names
}

fn names_of_spans(body: &[u8]) -> Vec<String> {
    let message = ExportTraceServiceRequest::decode(body).unwrap();
    let resources = message.resource_spans.into_iter();
    let scopes = resources.flat_map(|resource| resource.scope_spans);
    let spans = scopes.flat_map(|scope| scope.spans);
    spans.map(|span| span.name).collect()
}

fn names_of_records(body: &[u8]) -> Vec<String> {
    let message = ExportLogsServiceRequest::decode(body).unwrap();
    let resources = message.resource_logs.into_iter();
    let scopes = resources.flat_map(|resource| resource.scope_logs);
    let records = scopes.flat_map(|scope| scope.log_records);
    records.map(|record| text(record.body)).collect()
}

fn names_of_points(body: &[u8]) -> Vec<String> {
    let message = ExportMetricsServiceRequest::decode(body).unwrap();
    let resources = message.resource_metrics.into_iter();
    let scopes = resources.flat_map(|resource| resource.scope_metrics);
    let metrics = scopes.flat_map(|scope| scope.metrics);
    let points = metrics.flat_map(|metric| match metric.data {
        Some(Data::Gauge(gauge)) => gauge.data_points,
        other => panic!("a gauge, not {other:?}"),
    });
    let names = points.flat_map(|point| point.attributes);
    names.map(|name| text(name.value)).collect()
}

fn text(value: Option<AnyValue>) -> String {
    match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        other => panic!("a text, not {other:?}"),
    }
}
