//! Metrics are collected when requests end, and when somebody flushes; and nothing that was measured is lost on the way.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use opentelemetry::metrics::{Counter, Meter, MeterProvider as _};
use opentelemetry::trace::{
    Link, Span as _, SpanKind, TraceId, TraceState, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_per_request::{Config, DropReason, FlushError, Handle, Stats, Telemetry};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkError;
use opentelemetry_sdk::metrics::{SdkMeterProvider, Temporality};
use opentelemetry_sdk::trace::{SamplingDecision, SamplingResult, ShouldSample};

use crate::support::exporter::Call;
use crate::support::{
    Act, FALLBACK, Gate, MetricRecorder, Recorder, SOON, StopOnDrop, World, balanced, held_back,
    logs, soon, tenant, wait_until, within,
};

/// A world whose requests are when metrics are collected, and a counter.
struct MetricWorld {
    world: World,
    provider: SdkMeterProvider,
    meter: Meter,
    counter: Counter<u64>,
    telemetry: Handle,
    exporter: MetricRecorder,
}

/// Whenever a request ends, and never otherwise.
fn at_once() -> Config {
    Config::default()
        .with_metric_interval(Duration::ZERO)
        .with_metric_period(None)
}

/// Only with the first request, and when somebody flushes.
fn rarely() -> Config {
    at_once().with_metric_interval(Duration::MAX)
}

impl MetricWorld {
    fn new(config: Config) -> Self {
        Self::with_exporter(config, MetricRecorder::new())
    }

    fn with_exporter(config: Config, exporter: MetricRecorder) -> Self {
        let spans = Recorder::new();
        let (world, reader) = World::joined(
            config,
            spans,
            |builder| builder,
            |processor| processor.metric_reader(exporter.clone()).unwrap(),
        );
        let telemetry = reader.handle();
        let resource = Resource::builder_empty().with_service_name("shop").build();
        let provider = SdkMeterProvider::builder()
            .with_resource(resource)
            .with_reader(reader)
            .build();
        let meter = provider.meter("test");
        let counter = meter.u64_counter("count").build();
        Self {
            world,
            provider,
            meter,
            counter,
            telemetry,
            exporter,
        }
    }

    fn delta(config: Config, exporter: MetricRecorder) -> Self {
        exporter.set_temporality(Temporality::Delta);
        Self::with_exporter(config, exporter)
    }

    fn count(&self, number: u64) {
        self.counter.add(number, &[]);
    }

    fn flush(&self) -> Result<(), FlushError> {
        let result = soon(self.telemetry.flush());
        balanced(&self.telemetry);
        result
    }

    fn stats(&self) -> Stats {
        balanced(&self.telemetry)
    }

    /// Waits until so many collections came to the exporter, and no others.
    /// Waits until so many collections have come to the exporter, and it has answered.
    fn wait_for_exports(&self, number: usize) {
        wait_until(&format!("{number} collections at the exporter"), || {
            balanced(&self.telemetry);
            let metrics = self.stats().metrics;
            self.exporter.entered() == number && metrics.in_flight == 0
        });
    }

    /// What the counter was at each collection.
    fn counts(&self) -> Vec<f64> {
        let points = self.exporter.items().into_iter();
        let counts = points.filter(|(point, _)| point.name == "count");
        counts.map(|(point, _)| point.value).collect()
    }

    /// An instrument whose callback does this.
    fn observe(&self, work: impl Fn() + Send + Sync + 'static) {
        let gauge = self.meter.f64_observable_gauge("gauge");
        let gauge = gauge.with_callback(move |observer| {
            work();
            observer.observe(1.0, &[]);
        });
        gauge.build();
    }
}

// ===== When =====

/// Scenario: a request with a child that outlives its root, with an interval of zero; something is counted before each end.
/// Guarantees: metrics are collected when the root ends and when the request is over, and not before; they leave under the fallback
/// context, at every poll and with telemetry suppressed, with the resource of their provider.
#[test]
fn metrics_are_collected_when_a_local_root_ends_and_when_its_request_is_over() {
    for config in [
        at_once(),
        at_once().with_flush_trigger(held_back().flush_trigger()),
    ] {
        let metrics = MetricWorld::new(config);
        metrics.count(1);
        let root = metrics.world.start("root", &tenant(1));
        let child = metrics.world.start("child", &root);
        let other = metrics.world.start("other", &root);
        metrics.world.end(&child);
        metrics.world.flush().unwrap();
        assert_eq!(metrics.exporter.entered(), 0);
        metrics.count(1);
        metrics.world.end(&root);
        metrics.wait_for_exports(1);
        metrics.count(1);
        metrics.world.end(&other);
        metrics.wait_for_exports(2);
        assert_eq!(metrics.counts(), [2.0, 3.0]);
        wait_until("all is done", || metrics.stats().metrics.pending() == 0);
        for seen in metrics.exporter.seen() {
            assert_eq!(seen.at_call, Some(FALLBACK));
            assert_eq!(seen.after_await, Some(FALLBACK));
            assert!(seen.suppressed);
        }
        let resource = Resource::builder_empty().with_service_name("shop").build();
        assert_eq!(metrics.exporter.resource(), Some(resource));
        let stats = metrics.stats().metrics;
        assert_eq!((stats.received, stats.exported, stats.exports), (2, 2, 2));
    }
}

/// Scenario: an interval that does not end, and many requests that count something; then a flush.
/// Guarantees: the first one has them collected, no other one does; the flush has the rest.
#[test]
fn metrics_are_collected_at_most_once_in_an_interval() {
    let metrics = MetricWorld::new(rarely());
    metrics.count(1);
    metrics.world.request("first", &tenant(1));
    metrics.wait_for_exports(1);
    for _ in 0..20 {
        metrics.count(1);
        metrics.world.request("another", &tenant(1));
        // The driver has seen that it is over.
        metrics.world.flush().unwrap();
    }
    assert_eq!(metrics.counts(), [1.0]);
    assert_eq!(metrics.flush(), Ok(()));
    assert_eq!(metrics.counts(), [1.0, 21.0]);
}

/// Scenario: a second request ends within the interval, and then nothing happens any more.
/// Guarantees: metrics are collected once more when the interval is over, and not before.
#[test]
fn metrics_of_a_request_within_the_interval_are_collected_when_it_is_over() {
    let interval = Duration::from_millis(150);
    let metrics = MetricWorld::new(at_once().with_metric_interval(interval));
    metrics.count(1);
    let begun = Instant::now();
    metrics.world.request("first", &tenant(1));
    metrics.wait_for_exports(1);
    metrics.count(1);
    metrics.world.request("second", &tenant(1));
    metrics.wait_for_exports(2);
    assert!(begun.elapsed() >= interval, "{:?}", begun.elapsed());
    assert_eq!(metrics.counts(), [1.0, 2.0]);
}

/// Scenario: a request is kept open beyond its only span, and counts something meanwhile.
/// Guarantees: metrics are collected when that work is over, too.
#[test]
fn metrics_are_collected_after_work_that_outlives_the_root() {
    let metrics = MetricWorld::new(at_once());
    let root = metrics.world.start("root", &tenant(1));
    let hold = metrics.telemetry.hold(&root);
    metrics.count(1);
    metrics.world.end(&root);
    metrics.wait_for_exports(1);
    metrics.count(1);
    drop(hold);
    metrics.wait_for_exports(2);
    assert_eq!(metrics.counts(), [1.0, 2.0]);
}

/// Scenario: requests of which nothing is exported end: they are not sampled, or were kept open beyond all that they had. The
/// processor has nothing else to do, and sleeps.
/// Guarantees: metrics are collected nevertheless.
#[test]
fn request_that_exports_nothing_has_metrics_collected() {
    let exporter = MetricRecorder::new();
    let (world, reader) = World::sampled(
        at_once(),
        Recorder::new(),
        RecordOnly,
        |builder| builder,
        |processor| processor.metric_reader(exporter.clone()).unwrap(),
    );
    let provider = SdkMeterProvider::builder().with_reader(reader).build();
    provider
        .meter("test")
        .u64_counter("count")
        .build()
        .add(1, &[]);
    for n in 1..=10 {
        // Only to let the processor fall asleep: it must be woken.
        std::thread::sleep(Duration::from_millis(5));
        world.request("unsampled", &tenant(1));
        wait_until("it is collected", || exporter.seen().len() == n);
    }
    assert_eq!(world.exporter.entered(), 0);
}

/// Records spans without sampling them.
#[derive(Clone, Debug)]
struct RecordOnly;

impl ShouldSample for RecordOnly {
    fn should_sample(
        &self,
        _parent: Option<&Context>,
        _trace: TraceId,
        _name: &str,
        _kind: &SpanKind,
        _attributes: &[KeyValue],
        _links: &[Link],
    ) -> SamplingResult {
        SamplingResult {
            decision: SamplingDecision::RecordOnly,
            attributes: Vec::new(),
            trace_state: TraceState::NONE,
        }
    }
}

/// Scenario: one request ends, with an interval that is short, and zero. Then spans of a request that stays open end for a while.
/// Guarantees: metrics are collected once: an end is good for one collection.
#[test]
fn end_of_a_request_is_good_for_one_collection() {
    for interval in [Duration::ZERO, Duration::from_millis(1)] {
        let metrics = MetricWorld::new(at_once().with_metric_interval(interval));
        metrics.count(1);
        let root = metrics.world.start("root", &tenant(1));
        metrics.world.request("ends", &tenant(1));
        metrics.wait_for_exports(1);
        for _ in 0..20 {
            let child = metrics.world.start("child", &root);
            metrics.world.end(&child);
            assert_eq!(metrics.world.flush(), Ok(()));
        }
        assert_eq!(metrics.exporter.entered(), 1);
        metrics.world.end(&root);
    }
}

/// Scenario: a callback blocks while many requests end.
/// Guarantees: one more collection follows, for all of them.
#[test]
fn requests_that_end_while_metrics_are_collected_share_the_next_collection() {
    let gate = Gate::default();
    let metrics = MetricWorld::new(at_once());
    let (blocked, calls) = (gate.clone(), Arc::new(AtomicU64::new(0)));
    let called = calls.clone();
    metrics.observe(move || {
        called.fetch_add(1, Ordering::SeqCst);
        blocked.wait();
    });
    metrics.world.request("first", &tenant(1));
    wait_until("it collects", || calls.load(Ordering::SeqCst) == 1);
    for _ in 0..20 {
        metrics.world.request("another", &tenant(1));
        assert_eq!(metrics.world.flush(), Ok(()));
    }
    gate.open();
    metrics.wait_for_exports(2);
    metrics.world.flush().unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

/// Scenario: a short period, and no request ever.
/// Guarantees: metrics are collected again and again; a flush in between does not stop that.
#[test]
fn metrics_are_collected_periodically_without_a_request() {
    let metrics = MetricWorld::new(rarely().with_metric_period(Duration::from_millis(5)));
    metrics.count(1);
    wait_until("three times", || metrics.exporter.entered() >= 3);
    metrics.flush().unwrap();
    let so_far = metrics.exporter.entered();
    wait_until("and again", || metrics.exporter.entered() >= so_far + 2);
}

/// Scenario: the default settings; a year that is a period.
/// Guarantees: nothing is collected before somebody flushes.
#[test]
fn nothing_is_collected_without_a_reason() {
    for period in [Duration::MAX, Duration::from_secs(365 * 24 * 3600)] {
        let metrics = MetricWorld::new(Config::default().with_metric_period(period));
        metrics.count(1);
        assert_eq!(soon(metrics.world.telemetry.flush()), Ok(()));
        assert_eq!(metrics.exporter.entered(), 0);
        assert_eq!(metrics.flush(), Ok(()));
        assert_eq!(metrics.exporter.entered(), 1);
    }
}

/// Scenario: requests end and flushes are made while no instrument has a value: there is none, or, with deltas, nothing new.
/// Guarantees: nothing is exported, and the flush succeeds.
#[test]
fn nothing_is_exported_without_a_data_point() {
    let metrics = MetricWorld::delta(at_once(), MetricRecorder::new());
    metrics.world.request("root", &tenant(1));
    assert_eq!(metrics.flush(), Ok(()));
    assert_eq!(metrics.exporter.entered(), 0);
    metrics.count(1);
    assert_eq!(metrics.flush(), Ok(()));
    for _ in 0..5 {
        metrics.world.request("root", &tenant(1));
        assert_eq!(metrics.flush(), Ok(()));
    }
    assert_eq!(metrics.counts(), [1.0]);
    assert_eq!(metrics.exporter.entered(), 1);
}

/// Scenario: several instruments and attributes.
/// Guarantees: `stats()` counts data points.
#[test]
fn data_points_are_counted() {
    let metrics = MetricWorld::new(rarely());
    metrics.count(1);
    for n in 0..5 {
        metrics.counter.add(1, &[KeyValue::new("n", n)]);
    }
    metrics
        .meter
        .f64_histogram("histogram")
        .build()
        .record(0.5, &[]);
    metrics.meter.f64_gauge("gauge").build().record(0.5, &[]);
    metrics.meter.i64_up_down_counter("up").build().add(-3, &[]);
    assert_eq!(metrics.flush(), Ok(()));
    let stats = metrics.stats().metrics;
    assert_eq!((stats.received, stats.exported, stats.exports), (9, 9, 1));
}

/// Scenario: an exporter that asks for deltas, and one that asks for the whole.
/// Guarantees: it gets that, of each kind of instrument.
#[test]
fn temporality_is_that_of_the_exporter() {
    for temporality in [Temporality::Delta, Temporality::Cumulative] {
        let exporter = MetricRecorder::new();
        exporter.set_temporality(temporality);
        let metrics = MetricWorld::with_exporter(rarely(), exporter);
        let histogram = metrics.meter.f64_histogram("histogram").build();
        for _ in 0..3 {
            metrics.count(2);
            histogram.record(0.5, &[]);
            assert_eq!(metrics.flush(), Ok(()));
        }
        let expected = match temporality {
            Temporality::Delta => [2.0, 2.0, 2.0],
            _ => [2.0, 4.0, 6.0],
        };
        assert_eq!(metrics.counts(), expected);
        for (point, _) in metrics.exporter.items() {
            assert_eq!(point.temporality, Some(temporality), "{point:?}");
        }
    }
}

// ===== Flushing =====

/// Scenario: spans are flushed, and a trace of the handle of metrics is.
/// Guarantees: neither collects metrics.
#[test]
fn flush_of_something_else_collects_no_metrics() {
    let metrics = MetricWorld::new(rarely().with_metric_interval(Duration::MAX));
    metrics.count(1);
    let trace = metrics.world.request("first", &tenant(1));
    metrics.wait_for_exports(1);
    assert_eq!(metrics.world.flush(), Ok(()));
    assert_eq!(soon(metrics.telemetry.flush_trace(trace)), Ok(()));
    assert_eq!(metrics.exporter.entered(), 1);
}

/// Scenario: a callback blocks, then the export hangs.
/// Guarantees: the flush is done when neither does any more, and has called the exporter's own after that; so is the
/// provider's `force_flush`.
#[test]
fn flush_waits_for_the_collection_and_for_its_export() {
    for by_provider in [false, true] {
        let (collects, exports) = (Gate::default(), Gate::default());
        let exporter = MetricRecorder::always(Act::Hang(exports.clone()));
        let metrics = MetricWorld::with_exporter(rarely(), exporter);
        let (blocked, inside) = (collects.clone(), Arc::new(AtomicBool::new(false)));
        let reached = inside.clone();
        metrics.observe(move || {
            reached.store(true, Ordering::SeqCst);
            blocked.wait();
        });
        std::thread::scope(|scope| {
            let flushed = scope.spawn(|| match by_provider {
                true => metrics.provider.force_flush().map_err(|e| e.to_string()),
                false => metrics.flush().map_err(|e| e.to_string()),
            });
            wait_until("it collects", || inside.load(Ordering::SeqCst));
            assert!(!flushed.is_finished());
            collects.open();
            wait_until("it exports", || metrics.exporter.running() == 1);
            assert!(!flushed.is_finished());
            assert_eq!(metrics.exporter.calls(), []);
            exports.open();
            assert_eq!(flushed.join().unwrap(), Ok(()));
        });
        assert_eq!(metrics.exporter.calls(), [Call::ForceFlush]);
    }
}

/// Scenario: an export of metrics fails; the exporter's `force_flush` fails; then everything is fine.
/// Guarantees: the flush says so, in data points, once; one of spans does not.
#[test]
fn flush_of_metrics_tells_what_was_lost() {
    let fails = Arc::new(AtomicBool::new(true));
    let script = fails.clone();
    let exporter = MetricRecorder::by(move |_| match script.load(Ordering::SeqCst) {
        true => Act::Fail("no"),
        false => Act::Take,
    });
    let metrics = MetricWorld::with_exporter(rarely(), exporter);
    metrics.count(1);
    metrics.counter.add(1, &[KeyValue::new("n", 1)]);
    let lost = FlushError::Lost {
        failed: 2,
        dropped: 0,
    };
    assert_eq!(metrics.flush(), Err(lost));
    fails.store(false, Ordering::SeqCst);
    assert_eq!(metrics.flush(), Ok(()));
    let error = || Err(OTelSdkError::InternalFailure("disk full".into()));
    metrics.exporter.set_on_flush(error);
    let error = metrics.flush().unwrap_err().to_string();
    assert!(error.contains("disk full"), "{error}");
    let error = metrics.provider.force_flush().unwrap_err().to_string();
    assert!(error.contains("disk full"), "{error}");
    assert_eq!(metrics.world.flush(), Ok(()));
    let stats = metrics.stats().metrics;
    assert_eq!((stats.failed, stats.received), (2, 8));
}

/// Scenario: an export of metrics does not end in time.
/// Guarantees: its data points have failed, and it has timed out; spans have not.
#[test]
fn export_of_metrics_has_a_deadline() {
    let gate = Gate::default();
    let config = rarely().with_export_timeout(Duration::from_millis(50));
    let exporter = MetricRecorder::always(Act::Hang(gate.clone()));
    let metrics = MetricWorld::with_exporter(config, exporter);
    metrics.count(1);
    assert!(metrics.flush().is_err());
    wait_until("it has failed", || metrics.stats().metrics.failed == 1);
    let stats = metrics.stats();
    assert_eq!(stats.metrics.timed_out_exports, 1);
    assert_eq!(metrics.exporter.running(), 0);
}

/// Scenario: a callback panics.
/// Guarantees: this flush and each later one says that metrics could not be collected, the first one why, and so does a warning;
/// spans go on, and the shutdown comes to its end.
#[test]
fn flush_says_that_a_callback_panicked() {
    logs::listen();
    let metrics = MetricWorld::new(at_once());
    metrics.count(1);
    metrics.observe(|| panic!("a callback that panics, as its test says"));
    let error = metrics.flush().unwrap_err();
    let FlushError::Collect(message) = &error else {
        panic!("{error:?}");
    };
    assert!(message.contains("a callback of an instrument panicked"));
    assert!(error.to_string().contains("could not be collected"));
    // The SDK has a lock of its own that was poisoned.
    assert!(matches!(metrics.flush(), Err(FlushError::Collect(_))));
    let error = metrics.provider.force_flush().unwrap_err().to_string();
    assert!(error.contains("could not be collected"), "{error}");
    wait_until("a warning", || {
        !logs::lines(|line| {
            line.event == "PerRequestMetricReader.CollectFailed"
                && line.field("error") == "a callback of an instrument panicked"
        })
        .is_empty()
    });
    metrics.world.request("span", &tenant(1));
    assert_eq!(metrics.world.flush(), Ok(()));
    let shut_down = soon(metrics.telemetry.shutdown(SOON));
    assert!(matches!(shut_down, Err(FlushError::Collect(_))));
    assert_eq!(metrics.exporter.calls().last(), Some(&Call::Shutdown));
    assert_eq!(metrics.exporter.entered(), 0);
}

/// Scenario: a handle of all signals flushes one trace, whose span is being exported, while metrics are collected for somebody else,
/// which fails.
/// Guarantees: nothing was collected for it, so it says nothing of that.
#[test]
fn flush_of_a_trace_hears_nothing_of_a_collection() {
    let gate = Gate::default();
    let metrics = MetricRecorder::new();
    let telemetry = Telemetry::builder()
        .with_config(rarely())
        .with_span_exporter(Recorder::always(Act::Hang(gate.clone())))
        .with_metric_exporter(metrics.clone())
        .build()
        .unwrap();
    let span = telemetry.tracer_provider().tracer("test").start("span");
    let trace = span.span_context().trace_id();
    drop(span);
    let collecting = Gate::default();
    let asked = collecting.clone();
    telemetry
        .meter_provider()
        .meter("test")
        .u64_observable_gauge("panics")
        .with_callback(move |_| {
            asked.wait();
            panic!("a callback that panics, as its test says");
        })
        .build();
    let all = telemetry.flush();
    let of_trace = telemetry.handle().flush_trace(trace);
    collecting.open();
    wait_until("what follows a collection", || {
        metrics.count(Call::ForceFlush) == 1
    });
    gate.open();
    assert_eq!(soon(of_trace), Ok(()));
    let error = soon(all).unwrap_err();
    assert_eq!(error.spans, None);
    assert!(matches!(error.metrics, Some(FlushError::Collect(_))));
}

/// Scenario: a flush of spans has begun, and waits for an export, when a callback panics.
/// Guarantees: it hears nothing of that.
#[test]
fn flush_of_spans_hears_nothing_of_a_callback_that_panics() {
    let gate = Gate::default();
    let points = MetricRecorder::new();
    let (world, reader) = World::joined(
        rarely(),
        Recorder::always(Act::Hang(gate.clone())),
        |builder| builder,
        |processor| processor.metric_reader(points.clone()).unwrap(),
    );
    let telemetry = reader.handle();
    let provider = SdkMeterProvider::builder().with_reader(reader).build();
    let panics = Gate::default();
    let waits = panics.clone();
    let meter = provider.meter("test");
    let gauge = meter.f64_observable_gauge("gauge");
    let panicking = gauge.with_callback(move |_| {
        waits.wait();
        panic!("a callback that panics, as its test says");
    });
    panicking.build();
    world.request("span", &tenant(1));
    let of_metrics = telemetry.flush();
    let of_spans = world.telemetry.flush();
    panics.open();
    assert!(matches!(soon(of_metrics), Err(FlushError::Collect(_))));
    gate.open();
    assert_eq!(soon(of_spans), Ok(()));
}

/// Scenario: a callback blocks, and so do flushes of metrics that are given little time; spans end, are flushed and shut down
/// meanwhile.
/// Guarantees: spans hear nothing of it; the flushes of metrics end at their deadlines; and when the callback returns, everything
/// goes on.
#[test]
fn callback_that_blocks_stops_no_span() {
    within(SOON, "a callback that blocks", || {
        let gate = Gate::default();
        let metrics = MetricWorld::new(rarely());
        let blocked = gate.clone();
        metrics.observe(move || blocked.wait());
        let short = Duration::from_millis(20);
        for _ in 0..3 {
            let flushed = soon(metrics.telemetry.flush_with_timeout(short));
            assert_eq!(flushed, Err(FlushError::Timeout(short)));
            metrics.world.request("span", &tenant(1));
            assert_eq!(metrics.world.flush(), Ok(()));
        }
        metrics.world.provider.force_flush().unwrap();
        assert_eq!(metrics.stats().exported, 3);
        assert_eq!(soon(metrics.world.telemetry.shutdown(SOON)), Ok(()));
        gate.open();
        assert_eq!(metrics.flush(), Ok(()));
        assert!(metrics.exporter.entered() > 0);
    });
}

/// Scenario: callbacks start and end spans, count, read the numbers, begin flushes and drop them, and wait for one.
/// Guarantees: nothing hangs: waiting there fails at once. What is measured there is measured; spans are none, for telemetry is
/// suppressed there.
#[test]
fn callbacks_may_use_everything() {
    within(SOON, "callbacks that use everything", || {
        let metrics = MetricWorld::new(rarely());
        let provider = metrics.provider.clone();
        let (telemetry, tracers) = (metrics.telemetry.clone(), metrics.world.provider.clone());
        let (counter, answer) = (metrics.counter.clone(), Arc::new(Mutex::new(None)));
        let (said, done) = (answer.clone(), AtomicBool::new(false));
        metrics.observe(move || {
            tracers.tracer("test").in_span("inside", |_| {});
            counter.add(1, &[]);
            balanced(&telemetry);
            if !done.swap(true, Ordering::SeqCst) {
                drop(telemetry.flush());
                *said.lock().unwrap() = Some(provider.force_flush());
            }
        });
        assert_eq!(metrics.flush(), Ok(()));
        let answer = answer.lock().unwrap().take().unwrap();
        let error = answer.unwrap_err().to_string();
        assert!(error.contains("inside an export"), "{error}");
        assert_eq!(metrics.stats().ended, 0);
        assert!(metrics.counts()[0] >= 1.0);
    });
}

// ===== Bounds =====

/// Scenario: the exporter hangs, with deltas. Something is counted before each of many flushes and ends of requests. Then the
/// exporter goes on, and nobody flushes.
/// Guarantees: 32 collections are on their way and no more; flushes say that there are too many; nothing is lost: the deltas add up
/// when the exporter has gone on, because the request that has ended meanwhile is not forgotten.
#[test]
fn at_most_32_collections_are_on_their_way_and_nothing_is_lost() {
    const TIMES: u64 = 50;
    let gate = Gate::default();
    let exporter = MetricRecorder::always(Act::Hang(gate.clone()));
    let metrics = MetricWorld::delta(at_once(), exporter);
    for n in 0..TIMES {
        let collected = n.min(32);
        wait_until("earlier ones are collected", || {
            metrics.stats().metrics.received == collected
        });
        metrics.count(1);
        let flushed = soon(metrics.telemetry.flush_with_timeout(Duration::ZERO));
        assert!(
            matches!(flushed, Err(FlushError::Timeout(_))),
            "{flushed:?}"
        );
    }
    let stats = metrics.stats().metrics;
    assert_eq!((stats.received, stats.pending()), (32, 32));
    assert_eq!(stats.dropped.total(), 0);
    metrics.world.request("one more", &tenant(1));
    assert_eq!(metrics.world.flush(), Ok(()));
    assert_eq!(metrics.stats().metrics.received, 32);
    let told = metrics.telemetry.flush();
    gate.open();
    let Err(FlushError::Collect(message)) = soon(told) else {
        panic!("it has not collected");
    };
    assert!(message.contains("too many"), "{message}");
    wait_until("the rest is collected", || {
        metrics.exporter.sum_taken("count") == TIMES as f64
    });
    assert_eq!(metrics.flush(), Ok(()));
    assert_eq!(metrics.exporter.sum_taken("count"), TIMES as f64);
}

/// Scenario: a callback hangs, and many flushes are begun.
/// Guarantees: no more collections are planned than may be on their way.
#[test]
fn collections_that_have_not_begun_are_bounded_too() {
    let gate = Gate::default();
    let metrics = MetricWorld::new(rarely());
    let (blocked, calls) = (gate.clone(), Arc::new(AtomicU64::new(0)));
    let called = calls.clone();
    metrics.observe(move || {
        called.fetch_add(1, Ordering::SeqCst);
        blocked.wait();
    });
    let flushes: Vec<_> = (0..100).map(|_| metrics.telemetry.flush()).collect();
    gate.open();
    let answers = flushes.into_iter().map(soon);
    let refused = answers.filter(|answer| matches!(answer, Err(FlushError::Collect(_))));
    assert_eq!(refused.count(), 68);
    assert_eq!(calls.load(Ordering::SeqCst), 32);
}

/// Scenario: threads count and end requests, others flush, with deltas and no interval; then the provider is shut down.
/// Guarantees: the deltas add up to what was counted, and the account is right at every moment.
#[test]
fn deltas_add_up_whoever_collects() {
    const THREADS: u64 = 3;
    const TIMES: u64 = 200;
    let metrics = &MetricWorld::delta(at_once(), MetricRecorder::new());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flusher = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let flushed = soon(metrics.telemetry.flush());
                assert!(matches!(flushed, Ok(()) | Err(FlushError::Collect(_))));
                balanced(&metrics.telemetry);
            }
        });
        let stop = StopOnDrop(&done);
        let counters: Vec<_> = (0..THREADS)
            .map(|n| {
                scope.spawn(move || {
                    for _ in 0..TIMES {
                        metrics.count(1);
                        metrics.world.request("span", &tenant(n as u32));
                    }
                })
            })
            .collect();
        counters
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        drop(stop);
        flusher.join().unwrap();
    });
    metrics.provider.shutdown().unwrap();
    assert_eq!(
        metrics.exporter.sum_taken("count"),
        (THREADS * TIMES) as f64
    );
    let stats = metrics.stats().metrics;
    assert_eq!(
        (stats.pending(), stats.failed, stats.dropped.total()),
        (0, 0, 0)
    );
}

// ===== Ending =====

/// Scenario: the meter provider is shut down, or dropped, or the handle is; before and after spans are.
/// Guarantees: what was measured last is collected and exported, then the exporter is flushed and shut down, once; a flush after
/// that says so; spans go on.
#[test]
fn shutdown_collects_once_more() {
    for way in ["provider", "drop", "handle"] {
        for spans_first in [false, true] {
            let metrics = MetricWorld::new(rarely());
            metrics.count(1);
            assert_eq!(metrics.flush(), Ok(()));
            metrics.count(1);
            if spans_first {
                assert_eq!(soon(metrics.world.telemetry.shutdown(SOON)), Ok(()));
            }
            let MetricWorld {
                world,
                provider,
                meter,
                counter,
                telemetry,
                exporter,
            } = metrics;
            match way {
                "provider" => provider.shutdown().unwrap(),
                "drop" => drop(provider),
                _ => assert_eq!(soon(telemetry.shutdown(SOON)), Ok(())),
            }
            let all: Vec<_> = exporter.items().into_iter().map(|(p, _)| p.value).collect();
            assert_eq!(all, [1.0, 2.0], "{way}");
            let calls = [Call::ForceFlush, Call::ForceFlush, Call::Shutdown];
            assert_eq!(exporter.calls(), calls);
            counter.add(1, &[]);
            assert_eq!(soon(telemetry.flush()), Err(FlushError::AlreadyShutdown));
            assert_eq!(soon(telemetry.shutdown(SOON)), Ok(()), "once more");
            if !spans_first {
                world.request("span", &tenant(1));
                assert_eq!(world.flush(), Ok(()));
                assert_eq!(soon(world.telemetry.shutdown(SOON)), Ok(()));
            }
            assert_eq!(exporter.entered(), 2);
            assert_eq!(exporter.calls().len(), 3);
            drop((meter, counter));
            wait_until("it is let go", || !exporter.is_held_elsewhere());
        }
    }
}

/// Scenario: the shutdown of metrics has to wait for a callback, or an export, that hangs; many collections wait.
/// Guarantees: it returns by its deadline; what waits is dropped as `shutdown_timeout`, and so is what a callback says later; the
/// exporter is shut down when that is over, once. Spans wait for none of it.
#[test]
fn shutdown_of_metrics_returns_by_its_deadline() {
    for in_callback in [true, false] {
        let gate = Gate::default();
        let act = match in_callback {
            true => Act::Take,
            false => Act::Hang(gate.clone()),
        };
        let config = rarely()
            .with_max_concurrent_exports(1)
            .with_export_timeout(Duration::from_secs(5));
        let metrics = MetricWorld::with_exporter(config, MetricRecorder::always(act));
        metrics.count(1);
        if in_callback {
            let blocked = gate.clone();
            metrics.observe(move || blocked.wait());
        }
        let flushes: Vec<_> = (0..3).map(|_| metrics.telemetry.flush()).collect();
        let timeout = Duration::from_millis(100);
        let begun = Instant::now();
        let shut_down = metrics.telemetry.shutdown(timeout);
        assert_eq!(soon(metrics.world.telemetry.shutdown(SOON)), Ok(()));
        assert_eq!(soon(shut_down), Err(FlushError::Timeout(timeout)));
        assert!(begun.elapsed() < Duration::from_secs(3));
        gate.open();
        wait_until("the exporter's shutdown", || {
            metrics.exporter.count(Call::Shutdown) == 1
        });
        flushes.into_iter().for_each(|flush| drop(soon(flush)));
        let stats = metrics.stats().metrics;
        assert_eq!(stats.pending(), 0);
        let dropped = stats.dropped.by(DropReason::ShutdownTimeout);
        assert_eq!(dropped, stats.dropped.total());
        assert_eq!(stats.exported == 0, in_callback, "{stats:?}");
        assert!(dropped > 0, "{stats:?}");
        assert_eq!(metrics.exporter.count(Call::Shutdown), 1);
    }
}

/// Scenario: the reader never gets a provider, and requests end.
/// Guarantees: nothing is exported, and a flush succeeds.
#[test]
fn reader_without_a_provider_collects_nothing() {
    let exporter = MetricRecorder::new();
    let (world, reader) = World::joined(
        at_once(),
        Recorder::new(),
        |b| b,
        |processor| processor.metric_reader(exporter.clone()).unwrap(),
    );
    world.request("span", &tenant(1));
    assert_eq!(soon(reader.handle().flush()), Ok(()));
    assert_eq!(exporter.entered(), 0);
}
