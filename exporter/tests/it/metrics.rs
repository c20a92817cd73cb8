//! The exporter's own metrics, by their names in the semantic conventions.

use crate::support::{Collector, Reply, builder, export_items, exported_signals};
use opentelemetry::KeyValue;
use opentelemetry_otlp_direct::{FailureReason, Signal};
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData, ResourceMetrics};
use opentelemetry_sdk::metrics::{InMemoryMetricExporter, PeriodicReader, SdkMeterProvider};
use std::collections::BTreeMap;

/// What the conventions say of a signal: type of the component, names, and unit.
const CONVENTIONS: [(Signal, &str, &str, &str, &str); 3] = [
    (
        Signal::Traces,
        "otlp_http_span_exporter",
        "otel.sdk.exporter.span.exported",
        "otel.sdk.exporter.span.inflight",
        "{span}",
    ),
    (
        Signal::Logs,
        "otlp_http_log_exporter",
        "otel.sdk.exporter.log.exported",
        "otel.sdk.exporter.log.inflight",
        "{log_record}",
    ),
    (
        Signal::Metrics,
        "otlp_http_metric_exporter",
        "otel.sdk.exporter.metric_data_point.exported",
        "otel.sdk.exporter.metric_data_point.inflight",
        "{data_point}",
    ),
];
const DURATION: &str = "otel.sdk.exporter.operation.duration";

/// Name, unit and own attributes of a point, and its value: of a histogram, how many there are.
type Points = BTreeMap<(String, String, Vec<String>), u64>;

fn points(metrics: &[ResourceMetrics], component: &str, port: &str) -> Points {
    let mut points = Points::new();
    let last = metrics.last().unwrap();
    for metric in last.scope_metrics().flat_map(|scope| scope.metrics()) {
        let mut add = |attributes: Vec<&KeyValue>, value| {
            let key = (metric.name().into(), metric.unit().into());
            points.insert((key.0, key.1, own(attributes, component, port)), value);
        };
        match metric.data() {
            AggregatedMetrics::U64(MetricData::Sum(sum)) => {
                let points = sum.data_points();
                points.for_each(|point| add(point.attributes().collect(), point.value()));
            }
            AggregatedMetrics::I64(MetricData::Sum(sum)) => {
                for point in sum.data_points() {
                    let value = point.value().try_into().unwrap();
                    add(point.attributes().collect(), value);
                }
            }
            AggregatedMetrics::F64(MetricData::Histogram(histogram)) => {
                for point in histogram.data_points() {
                    // Seconds, in buckets that tell a quick request from a slow one.
                    assert!(point.sum() < 10.0 && point.bounds().next() == Some(0.005));
                    add(point.attributes().collect(), point.count());
                }
            }
            other => panic!("{}: {other:?}", metric.name()),
        }
    }
    points
}

/// The attributes of a point without those of the component, which all have.
fn own(attributes: Vec<&KeyValue>, component: &str, port: &str) -> Vec<String> {
    let all = attributes.iter();
    let mut all: Vec<_> = all.map(|kv| format!("{}={}", kv.key, kv.value)).collect();
    all.sort();
    let shared = [
        format!("otel.component.name={component}/"),
        format!("otel.component.type={component}"),
        "server.address=127.0.0.1".to_owned(),
        format!("server.port={port}"),
    ];
    for start in shared {
        let at = all
            .iter()
            .position(|attribute| attribute.starts_with(&start));
        all.remove(at.unwrap_or_else(|| panic!("no {start} in {all:?}")));
    }
    all
}

/// Scenario: of each signal an export succeeds, one is refused, one is partly rejected, one is sent twice.
/// Guarantees: each instrument has its values under the names and attributes of the conventions, and they are those of
/// `stats()`.
#[test]
fn metrics_carry_the_conventional_names_and_the_numbers_of_stats() {
    for signal in exported_signals() {
        carry_the_conventional_names_and_the_numbers_of_stats(signal);
    }
}

fn carry_the_conventional_names_and_the_numbers_of_stats(signal: Signal) {
    let conventions = CONVENTIONS.into_iter().find(|(of, ..)| *of == signal);
    let (_, component, exported, in_flight, unit) = conventions.unwrap();
    let metrics = InMemoryMetricExporter::default();
    let provider = SdkMeterProvider::builder()
        .with_reader(PeriodicReader::builder(metrics.clone()).build())
        .build();
    let collector = Collector::scripted([
        Reply::status(200),
        Reply::status(400),
        Reply::partial(1, ""),
        Reply::status(503),
        Reply::status(200),
    ]);
    let exporter = builder(&collector.endpoint())
        .with_meter_provider(&provider)
        .build()
        .unwrap();
    let _ = [(); 4].map(|()| export_items(signal, &exporter, 2));
    provider.force_flush().unwrap();

    let endpoint = collector.endpoint();
    let (_, port) = endpoint.rsplit_once(':').unwrap();
    let stats = exporter.stats_of(signal);
    let point = |name: &str, unit: &str, attributes: &[&str], value| {
        let attributes = attributes.iter().map(|text| (*text).to_owned()).collect();
        ((name.to_owned(), unit.to_owned(), attributes), value)
    };
    let expected = Points::from([
        point(in_flight, unit, &[], stats.in_flight()),
        point(exported, unit, &[], stats.exported()),
        point(
            exported,
            unit,
            &["error.type=status"],
            stats.failed(FailureReason::Status),
        ),
        point(
            exported,
            unit,
            &["error.type=rejected"],
            stats.failed(FailureReason::Rejected),
        ),
        point(DURATION, "s", &["http.response.status_code=200"], 2),
        point(
            DURATION,
            "s",
            &["error.type=status", "http.response.status_code=400"],
            1,
        ),
        point(
            DURATION,
            "s",
            &["error.type=rejected", "http.response.status_code=200"],
            1,
        ),
    ]);
    assert_eq!(
        points(&metrics.get_finished_metrics().unwrap(), component, port),
        expected
    );
    assert_eq!((stats.exported(), stats.failed_in_total()), (5, 3));
    provider.shutdown().unwrap();
}
