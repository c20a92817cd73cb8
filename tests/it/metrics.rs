//! The numbers of `stats()` as OpenTelemetry metrics.

use std::collections::BTreeMap;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::logs::{LogRecord as _, Logger as _, LoggerProvider as _};
use opentelemetry_per_request::{Config, DropReason, Dropped, Late, LateReason, OpenEvents, Stats};
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData, ResourceMetrics};
use opentelemetry_sdk::metrics::{InMemoryMetricExporter, PeriodicReader, SdkMeterProvider};

use crate::support::{Act, Gate, LogRecorder, Recorder, World, tenant, wait_until};

/// Name and attributes of a point (without those of the component), and its value: of a histogram, how many there are.
type Points = BTreeMap<(String, Vec<(String, String)>), u64>;

fn points(metrics: &[ResourceMetrics], of: &str) -> Points {
    let mut points = Points::new();
    let last = metrics.last().unwrap();
    for metric in last.scope_metrics().flat_map(|scope| scope.metrics()) {
        let unit = match metric.name() {
            "per_request.export.duration" => "s",
            name if name.contains(".trace.") => "{trace}",
            name if name.contains(".log.") => "{log_record}",
            name if name.contains(".open_event.") => "{event}",
            _ => "{span}",
        };
        assert_eq!(metric.unit(), unit, "{}", metric.name());
        assert!(!metric.description().is_empty());
        let mut add = |attributes: Vec<&KeyValue>, value| {
            if let Some(own) = own(attributes, of) {
                points.insert((metric.name().to_owned(), own), value);
            }
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

const SPANS: &str = "per_request_span_processor";
const LOGS: &str = "per_request_log_processor";

/// The attributes of a point without those of the component, which has a number in its name. None if it is another component's.
fn own(attributes: Vec<&KeyValue>, of: &str) -> Option<Vec<(String, String)>> {
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
    assert!([SPANS, LOGS].contains(&&**kind), "{kind}");
    let number = name.strip_prefix(kind).unwrap().strip_prefix('/').unwrap();
    number.parse::<u64>().unwrap();
    (kind == of).then_some(own)
}

/// The numbers of one signal.
struct Numbers<'a> {
    /// Spans or log records, as names have them.
    signal: &'a str,
    exported: u64,
    failed: u64,
    dropped: Dropped,
    queued: u64,
    waiting: u64,
    in_flight: u64,
    late: Late,
    capacity: u64,
}

/// The points that these numbers must have.
fn expected_of(numbers: Numbers<'_>) -> Points {
    let mut points = Points::new();
    let signal = numbers.signal;
    let mut add = |name: String, attributes: &[(&str, &str)], value| {
        let attributes = attributes
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        points.insert((name, attributes.collect()), value);
    };
    let of_sdk = |what: &str| format!("otel.sdk.processor.{signal}.{what}");
    let handed_over = numbers.exported + numbers.failed + numbers.in_flight;
    add(of_sdk("processed"), &[], handed_over);
    for reason in DropReason::ALL {
        let attributes = [("error.type", reason.as_str())];
        add(of_sdk("processed"), &attributes, numbers.dropped.by(reason));
    }
    let places = [
        ("queued", numbers.queued),
        ("waiting", numbers.waiting),
        ("in_flight", numbers.in_flight),
    ];
    let pending = places.iter().map(|(_, value)| value).sum();
    add(of_sdk("queue.size"), &[], pending);
    add(of_sdk("queue.capacity"), &[], numbers.capacity);
    for (place, value) in places {
        let name = format!("per_request.{signal}.pending");
        add(name, &[("per_request.place", place)], value);
    }
    for reason in LateReason::ALL {
        let attributes = [("per_request.late", reason.as_str())];
        let name = format!("per_request.{signal}.late");
        add(name, &attributes, numbers.late.by(reason));
    }
    points
}

fn expected(stats: &Stats) -> Points {
    let mut points = expected_of(Numbers {
        signal: "span",
        exported: stats.exported,
        failed: stats.failed,
        dropped: stats.dropped,
        queued: stats.queued,
        waiting: stats.waiting,
        in_flight: stats.in_flight,
        late: stats.late,
        capacity: 3,
    });
    let mut add = |name: &str, value| points.insert((name.to_owned(), Vec::new()), value);
    add("per_request.trace.live", stats.traces);
    add("per_request.trace.evicted", stats.evicted_traces);
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
        Recorder::by(move |spans| match spans[0].name.as_ref() {
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
    let mut points = points(&exporter.get_finished_metrics().unwrap(), SPANS);

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

/// Scenario: open events were sent, elided, and dropped for want of room; and nothing is told of open spans.
/// Guarantees: the metric has the numbers of `stats()`, and is not there where the feature is off.
#[test]
fn open_events_are_counted_by_what_became_of_them() {
    let told = |form| {
        let exporter = InMemoryMetricExporter::default();
        let meters = SdkMeterProvider::builder()
            .with_reader(PeriodicReader::builder(exporter.clone()).build())
            .build();
        let config = Config::default()
            .with_max_pending_spans(4)
            .with_open_events(form)
            .with_open_event_min_age(Duration::from_millis(20));
        let world = World::built(config, Recorder::new(), |builder| {
            builder.with_meter_provider(&meters)
        });
        world.request("elided", &tenant(1));
        let mut open = Vec::new();
        for sent in 1..=4 {
            open.push(world.start("sent", &tenant(1)));
            let sent = if form == OpenEvents::Off { 0 } else { sent };
            wait_until("it is told of", || {
                world.stats().open_events.sent == sent && world.stats().pending() == 0
            });
        }
        open.push(world.start("dropped", &tenant(1)));
        meters.force_flush().unwrap();
        open.iter().for_each(|cx| world.end(cx));
        let points = points(&exporter.get_finished_metrics().unwrap(), SPANS).into_iter();
        points
            .filter(|((name, _), _)| name == "per_request.open_event.processed")
            .map(|((_, attributes), value)| (attributes[0].1.clone(), value))
            .collect::<BTreeMap<_, _>>()
    };
    let results = [("sent", 4), ("elided", 1), ("dropped", 1)];
    let expected = results.map(|(result, count)| (result.to_owned(), count));
    assert_eq!(told(OpenEvents::PendingSpans), BTreeMap::from(expected));
    assert_eq!(told(OpenEvents::Off), BTreeMap::new());
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
    let points = points(&exporter.get_finished_metrics().unwrap(), SPANS);
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

/// Scenario: log records were exported, failed, dropped and late, and some are inside the exporter; spans too, other numbers.
/// Guarantees: the metrics of records have the names and attributes of the semantic conventions, the unit of records, a component
/// of their own and the same numbers as `stats()`; each export that ended was measured as theirs; those of spans are as ever.
#[test]
fn metrics_of_log_records_have_names_of_their_own() {
    let exporter = InMemoryMetricExporter::default();
    let meters = SdkMeterProvider::builder()
        .with_reader(PeriodicReader::builder(exporter.clone()).build())
        .build();
    let gate = Gate::default();
    let hang = gate.clone();
    let records = LogRecorder::by(move |logs| match logs[0].body().as_str() {
        "bad" => Act::Fail("no"),
        "worse" => Act::Panic,
        "hangs" => Act::Hang(hang.clone()),
        _ => Act::Take,
    });
    let (world, processor) = World::joined(
        Config::default()
            .with_max_batch_size(1)
            .with_max_pending_spans(3)
            .with_max_pending_logs(4)
            .with_max_concurrent_exports(2),
        Recorder::new(),
        |builder| builder.with_meter_provider(&meters),
        |spans| spans.log_processor(records).unwrap(),
    );
    let provider = SdkLoggerProvider::builder()
        .with_log_processor(processor)
        .build();
    let logger = provider.logger("test");
    let say = |body: &str| {
        let mut record = logger.create_log_record();
        record.set_body(body.to_owned().into());
        logger.emit(record);
    };
    world.request("span", &tenant(1));
    world.flush().unwrap();
    for body in ["good", "bad", "worse", "good"] {
        say(body);
    }
    let over = world.start("over", &tenant(1));
    world.end(&over);
    wait_until("these are done", || world.stats().logs.pending() == 0);
    {
        let _attached = over.attach();
        say("late");
    }
    wait_until("it is done", || world.stats().logs.exported == 3);
    for _ in 0..6 {
        say("hangs");
    }
    let root = world.start("root", &tenant(1));
    world.flush().unwrap();
    wait_until("two in the exporter", || world.stats().logs.in_flight == 2);
    meters.force_flush().unwrap();
    let stats = world.stats();
    let finished = exporter.get_finished_metrics().unwrap();
    let mut of_logs = points(&finished, LOGS);
    let duration = "per_request.export.duration".to_owned();
    let mut ended = |error: Option<&str>| {
        let attributes = error.map(|error| ("error.type".to_owned(), error.to_owned()));
        let key = (duration.clone(), attributes.into_iter().collect());
        of_logs.remove(&key).unwrap_or_default()
    };
    assert_eq!((ended(Some("failed")), ended(Some("panic"))), (1, 1));
    assert_eq!(ended(None), 3);
    let logs = stats.logs.clone();
    let expected_of_logs = expected_of(Numbers {
        signal: "log",
        exported: logs.exported,
        failed: logs.failed,
        dropped: logs.dropped,
        queued: logs.queued,
        waiting: logs.waiting,
        in_flight: logs.in_flight,
        late: logs.late,
        capacity: 4,
    });
    assert_eq!(of_logs, expected_of_logs);
    // And they are the right ones.
    assert_eq!((logs.exported, logs.failed, logs.received), (3, 2, 11));
    assert_eq!((logs.waiting, logs.in_flight), (2, 2));
    assert_eq!(logs.dropped.by(DropReason::QueueFull), 2);
    assert_eq!(logs.late.by(LateReason::UnknownTrace), 1);
    let mut of_spans = points(&finished, SPANS);
    of_spans.retain(|(name, _), _| name != &duration);
    assert_eq!(of_spans, expected(&stats));
    gate.open();
    world.end(&root);
}
