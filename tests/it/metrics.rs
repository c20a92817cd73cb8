//! The numbers of `stats()` as OpenTelemetry metrics.

use std::collections::BTreeMap;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry_per_request::{Config, DropReason, LateReason, Stats};
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData, ResourceMetrics};
use opentelemetry_sdk::metrics::{InMemoryMetricExporter, PeriodicReader, SdkMeterProvider};

use crate::support::{Act, Gate, Recorder, World, tenant, wait_until};

/// Name and attributes of a point (without those of the component), and its value: of a histogram, how many there are.
type Points = BTreeMap<(String, Vec<(String, String)>), u64>;

fn points(metrics: &[ResourceMetrics]) -> Points {
    let mut points = Points::new();
    let last = metrics.last().unwrap();
    for metric in last.scope_metrics().flat_map(|scope| scope.metrics()) {
        let unit = match metric.name() {
            "per_request.export.duration" => "s",
            name if name.contains(".trace.") => "{trace}",
            _ => "{span}",
        };
        assert_eq!(metric.unit(), unit, "{}", metric.name());
        assert!(!metric.description().is_empty());
        let mut add = |attributes: Vec<&KeyValue>, value| {
            points.insert((metric.name().to_owned(), own(attributes)), value);
        };
        match metric.data() {
            AggregatedMetrics::U64(MetricData::Sum(sum)) => {
                assert!(sum.is_monotonic(), "{}", metric.name());
                for point in sum.data_points() {
                    add(point.attributes().collect(), point.value());
                }
            }
            AggregatedMetrics::I64(MetricData::Sum(sum)) => {
                assert!(!sum.is_monotonic(), "{}", metric.name());
                for point in sum.data_points() {
                    add(
                        point.attributes().collect(),
                        point.value().try_into().unwrap(),
                    );
                }
            }
            AggregatedMetrics::F64(MetricData::Histogram(histogram)) => {
                for point in histogram.data_points() {
                    // Seconds, in buckets that tell a quick export from a slow one.
                    assert!(point.sum() < 10.0 && point.bounds().next() == Some(0.005));
                    add(point.attributes().collect(), point.count());
                }
            }
            other => panic!("{}: {other:?}", metric.name()),
        }
    }
    points
}

/// The attributes of a point without those of the component, which has a number in its name.
fn own(attributes: Vec<&KeyValue>) -> Vec<(String, String)> {
    let mut named: Vec<_> = attributes
        .iter()
        .map(|kv| (kv.key.to_string(), kv.value.to_string()))
        .collect();
    named.sort();
    let (component, own): (Vec<_>, Vec<_>) = named
        .into_iter()
        .partition(|(key, _)| key.starts_with("otel.component."));
    let [(_, name), (_, kind)] = &component[..] else {
        panic!("{component:?}");
    };
    assert_eq!(kind, "per_request_span_processor");
    let number = name.strip_prefix("per_request_span_processor/").unwrap();
    number.parse::<u64>().unwrap();
    own
}

/// The points that these numbers must have.
fn expected(stats: &Stats) -> Points {
    let mut points = Points::new();
    let mut add = |name: &str, attributes: &[(&str, &str)], value| {
        let attributes = attributes
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        points.insert((name.to_owned(), attributes.collect()), value);
    };
    let processed = "otel.sdk.processor.span.processed";
    let handed_over = stats.exported + stats.failed + stats.in_flight;
    add(processed, &[], handed_over);
    for reason in DropReason::ALL {
        let attributes = [("error.type", reason.as_str())];
        add(processed, &attributes, stats.dropped.by(reason));
    }
    add("otel.sdk.processor.span.queue.size", &[], stats.pending());
    add("otel.sdk.processor.span.queue.capacity", &[], 3);
    let pending = "per_request.span.pending";
    add(pending, &[("per_request.place", "queued")], stats.queued);
    add(pending, &[("per_request.place", "waiting")], stats.waiting);
    let in_flight = [("per_request.place", "in_flight")];
    add(pending, &in_flight, stats.in_flight);
    for reason in LateReason::ALL {
        let attributes = [("per_request.late", reason.as_str())];
        add("per_request.span.late", &attributes, stats.late.by(reason));
    }
    add("per_request.trace.live", &[], stats.traces);
    add("per_request.trace.evicted", &[], stats.evicted_traces);
    points
}

/// Scenario: spans were exported, failed, refused and late, and some are inside the exporter.
/// Guarantees: the metrics have the names and attributes of the semantic conventions, and the same numbers as `stats()`;
/// each export that ended was measured.
#[test]
fn metrics_have_conventional_names_and_the_numbers_of_stats() {
    let exporter = InMemoryMetricExporter::default();
    let meters = SdkMeterProvider::builder()
        .with_reader(PeriodicReader::builder(exporter.clone()).build())
        .build();
    let gate = Gate::default();
    let hang = gate.clone();
    let world = World::built(
        Config::default()
            .with_max_traces(1)
            .with_max_spans_per_trace(2)
            .with_max_pending_spans(3),
        Recorder::scripted(move |spans| match spans[0].name.as_ref() {
            "bad" => Act::Fail("no"),
            "worse" => Act::Panic,
            "hangs" => Act::Hang(hang.clone()),
            _ => Act::Take,
        }),
        |builder| builder.with_meter_provider(&meters),
    );
    let old = world.start("old", &tenant(1));
    let full = world.start("full", &tenant(1));
    let children = [world.start("child", &full), world.start("refused", &full)];
    for cx in children.iter().chain([&full, &old]) {
        world.end(cx);
    }
    wait_until("the first three", || world.stats().pending() == 0);
    world.request("bad", &tenant(1));
    world.request("worse", &tenant(1));
    wait_until("the bad ones", || world.stats().failed == 2);
    for _ in 0..4 {
        world.request("hangs", &tenant(1));
    }
    let open = world.start("open", &tenant(1));
    wait_until("three in the exporter", || world.stats().in_flight == 3);
    meters.force_flush().unwrap();
    let stats = world.stats();
    let mut points = points(&exporter.get_finished_metrics().unwrap());

    let duration = "per_request.export.duration".to_owned();
    let mut ended = |error: Option<&str>| {
        let attributes = error.map(|error| ("error.type".to_owned(), error.to_owned()));
        let key = (duration.clone(), attributes.into_iter().collect());
        points.remove(&key).unwrap_or_default()
    };
    assert_eq!((ended(Some("failed")), ended(Some("panic"))), (1, 1));
    assert_eq!(ended(None) + 2, stats.exports - 3);
    assert_eq!(points, expected(&stats));
    // And they are the right ones.
    assert_eq!(
        (stats.exported, stats.failed, stats.pending(), stats.ended),
        (3, 2, 3, 10)
    );
    assert_eq!(stats.dropped.by(DropReason::QueueFull), 1);
    assert_eq!(stats.dropped.by(DropReason::MaxSpansPerTrace), 1);
    assert_eq!(stats.late.by(LateReason::TraceEvicted), 1);
    assert_eq!((stats.traces, stats.evicted_traces), (1, 1));
    gate.open();
    world.end(&open);
}

/// Scenario: an export does not end within its timeout.
/// Guarantees: it is measured as one that timed out.
#[test]
fn export_that_times_out_is_measured_as_such() {
    let exporter = InMemoryMetricExporter::default();
    let meters = SdkMeterProvider::builder()
        .with_reader(PeriodicReader::builder(exporter.clone()).build())
        .build();
    let world = World::built(
        Config::default().with_export_timeout(Duration::from_millis(30)),
        Recorder::always(Act::Hang(Gate::default())),
        |builder| builder.with_meter_provider(&meters),
    );
    world.request("hangs", &tenant(1));
    wait_until("the timeout", || world.stats().timed_out_exports == 1);
    meters.force_flush().unwrap();
    let points = points(&exporter.get_finished_metrics().unwrap());
    let durations: Vec<_> = points
        .iter()
        .filter(|((name, _), _)| name == "per_request.export.duration")
        .map(|((_, attributes), count)| (&attributes[..], *count))
        .collect();
    let timeout = [("error.type".to_owned(), "timeout".to_owned())];
    assert_eq!(durations, [(&timeout[..], 1)]);
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
    let with_meters = || {
        World::built(Config::default(), Recorder::new(), |builder| {
            builder.with_meter_provider(&meters)
        })
    };
    let (first, second) = (with_meters(), with_meters());
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
