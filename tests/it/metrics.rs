//! The numbers of `stats()` as OpenTelemetry metrics.

use std::collections::BTreeMap;

use opentelemetry::metrics::MeterProvider as _;
use opentelemetry_per_request::Config;
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData, ResourceMetrics};
use opentelemetry_sdk::metrics::{InMemoryMetricExporter, PeriodicReader, SdkMeterProvider};

use crate::support::{Act, Gate, Recorder, World, tenant, wait_until};

/// Name and attributes of a point (without the component's name, which has a number in it), and its value.
type Points = BTreeMap<(String, Vec<(String, String)>), i64>;

fn points(metrics: &[ResourceMetrics]) -> Points {
    let mut points = Points::new();
    let last = metrics.last().unwrap();
    for metric in last.scope_metrics().flat_map(|scope| scope.metrics()) {
        assert_eq!(metric.unit(), "{span}", "{}", metric.name());
        assert!(!metric.description().is_empty());
        let mut add = |attributes: Vec<&opentelemetry::KeyValue>, value| {
            let mut named: Vec<_> = attributes
                .iter()
                .map(|kv| (kv.key.to_string(), kv.value.to_string()))
                .collect();
            named.sort();
            let component = named
                .iter()
                .find(|(key, _)| key == "otel.component.name")
                .unwrap();
            let number = component
                .1
                .strip_prefix("per_request_span_processor/")
                .unwrap();
            number.parse::<u64>().unwrap();
            named.retain(|(key, _)| key != "otel.component.name");
            points.insert((metric.name().to_owned(), named), value);
        };
        match metric.data() {
            AggregatedMetrics::U64(MetricData::Sum(sum)) => {
                assert!(sum.is_monotonic(), "{}", metric.name());
                for point in sum.data_points() {
                    add(point.attributes().collect(), point.value() as i64);
                }
            }
            AggregatedMetrics::I64(MetricData::Sum(sum)) => {
                assert!(!sum.is_monotonic(), "{}", metric.name());
                for point in sum.data_points() {
                    add(point.attributes().collect(), point.value());
                }
            }
            other => panic!("{}: {other:?}", metric.name()),
        }
    }
    points
}

/// Scenario: spans were exported, failed, refused and late, and some are inside the exporter.
/// Guarantees: the metrics have the names and attributes of the semantic conventions, and the same numbers as `stats()`.
#[test]
fn metrics_have_conventional_names_and_the_numbers_of_stats() {
    let exporter = InMemoryMetricExporter::default();
    let meters = SdkMeterProvider::builder()
        .with_reader(PeriodicReader::builder(exporter.clone()).build())
        .build();
    let gate = Gate::default();
    let hang = gate.clone();
    let meter = meters.meter("test");
    let world = World::built(
        Config::default()
            .with_max_traces(1)
            .with_max_spans_per_trace(2)
            .with_max_pending_spans(3),
        Recorder::scripted(move |spans| match spans[0].name.as_ref() {
            "bad" => Act::Fail("no"),
            "hangs" => Act::Hang(hang.clone()),
            _ => Act::Take,
        }),
        move |builder| builder.with_meter(meter),
    );
    let old = world.start("old", &tenant(1));
    let full = world.start("full", &tenant(1));
    let children = [world.start("child", &full), world.start("refused", &full)];
    for cx in children.iter().chain([&full, &old]) {
        world.end(cx);
    }
    wait_until("the first three", || world.stats().pending() == 0);
    world.request("bad", &tenant(1));
    wait_until("the bad one", || world.stats().failed == 1);
    for _ in 0..4 {
        world.request("hangs", &tenant(1));
    }
    wait_until("three in the exporter", || world.stats().in_flight == 3);
    meters.force_flush().unwrap();
    let stats = world.stats();
    let points = points(&exporter.get_finished_metrics().unwrap());
    let value = |name: &str, extra: &[(&str, &str)]| {
        let mut attributes = vec![(
            "otel.component.type".to_owned(),
            "per_request_span_processor".to_owned(),
        )];
        attributes.extend(
            extra
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned())),
        );
        attributes.sort();
        points
            .get(&(name.to_owned(), attributes))
            .copied()
            .unwrap_or_else(|| panic!("no {name} {extra:?} in {points:#?}"))
    };
    let processed = "otel.sdk.processor.span.processed";
    assert_eq!(value(processed, &[]), 3 + 1 + 3);
    assert_eq!(value(processed, &[("error.type", "queue_full")]), 1);
    assert_eq!(
        value(processed, &[("error.type", "max_spans_per_trace")]),
        1
    );
    assert_eq!(value(processed, &[("error.type", "already_shutdown")]), 0);
    assert_eq!(value(processed, &[("error.type", "shutdown_timeout")]), 0);
    assert_eq!(value("otel.sdk.processor.span.queue.size", &[]), 3);
    assert_eq!(value("otel.sdk.processor.span.queue.capacity", &[]), 3);
    assert_eq!(
        value(
            "per_request.span.late",
            &[("per_request.late", "trace_evicted")]
        ),
        1
    );
    assert_eq!(
        value(
            "per_request.span.late",
            &[("per_request.late", "unknown_trace")]
        ),
        0
    );
    assert_eq!(
        (stats.exported, stats.failed, stats.pending(), stats.ended),
        (3, 1, 3, 9)
    );
    gate.open();
}

/// Scenario: two processors with one meter; then one of them goes.
/// Guarantees: their numbers are told apart by `otel.component.name`, and the meter keeps no processor alive.
#[test]
fn meter_provider_keeps_no_processor_alive() {
    let exporter = InMemoryMetricExporter::default();
    let meters = SdkMeterProvider::builder()
        .with_reader(PeriodicReader::builder(exporter.clone()).build())
        .build();
    let components = |exporter: &InMemoryMetricExporter| -> usize {
        let metrics = exporter.get_finished_metrics().unwrap();
        let last = metrics.last().unwrap();
        let capacity = last
            .scope_metrics()
            .flat_map(|scope| scope.metrics())
            .find(|metric| metric.name() == "otel.sdk.processor.span.queue.capacity")
            .map(|metric| match metric.data() {
                AggregatedMetrics::I64(MetricData::Sum(sum)) => sum.data_points().count(),
                other => panic!("{other:?}"),
            });
        capacity.unwrap_or(0)
    };
    let with_meter = || {
        let meter = meters.meter("test");
        World::built(Config::default(), Recorder::new(), move |b| {
            b.with_meter(meter)
        })
    };
    let (first, second) = (with_meter(), with_meter());
    meters.force_flush().unwrap();
    assert_eq!(components(&exporter), 2);
    first.provider.shutdown().unwrap();
    let World {
        exporter: recorder,
        provider,
        telemetry,
        tracer,
    } = first;
    drop((provider, telemetry, tracer));
    // Its threads are the last to go.
    wait_until("only one is left", || {
        exporter.reset();
        meters.force_flush().unwrap();
        components(&exporter) == 1
    });
    drop((recorder, second));
}
