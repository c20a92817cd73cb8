//! Signals join and are shut down one by one, in whichever order (R11).

use std::time::{Duration, Instant};

use opentelemetry::logs::{Logger as _, LoggerProvider as _, Severity};
use opentelemetry::trace::{TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry_per_request::{
    Config, ConfigError, DropReason, FlushError, PerRequestSpanProcessor,
};
use opentelemetry_sdk::error::OTelSdkError;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::metrics::{InMemoryMetricExporter, SdkMeterProvider};
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};

use super::{LogWorld, say};
use crate::support::exporter::Call;
use crate::support::{
    Act, FALLBACK, Gate, LogRecorder, Recorder, SOON, Tenant, Witness, World, balanced, held_back,
    soon, tenant, wait_until, within,
};

/// Who is shut down, in which order.
#[derive(Clone, Copy, Debug)]
enum Order {
    LogsFirst,
    SpansFirst,
    DropLogsFirst,
    DropSpansFirst,
    AtOnce,
}

impl Order {
    const ALL: [Self; 5] = [
        Self::LogsFirst,
        Self::SpansFirst,
        Self::DropLogsFirst,
        Self::DropSpansFirst,
        Self::AtOnce,
    ];
}

/// Scenario: a span and a record are queued in an open request, others outside and late; then both providers are shut down, or
/// dropped, in each order and at once.
/// Guarantees: everything arrives under its own context; each exporter is shut down once, after that; and when both are, both
/// are let go.
#[test]
fn everything_arrives_in_whichever_order_signals_are_shut_down() {
    for order in Order::ALL {
        within(SOON, "shutting down", move || {
            let logs = LogWorld::new(held_back().with_max_traces(1));
            let evicted = logs.world.start("evicted", &tenant(1));
            let root = logs.world.start("open", &tenant(2));
            let child = logs.world.start("child", &root);
            logs.say_in(&root, "in the request");
            logs.say_in(&evicted, "late");
            logs.say("outside");
            logs.world.end(&child);
            logs.world.end(&evicted);
            drop((evicted, root, child));
            let LogWorld {
                world:
                    World {
                        provider: tracers,
                        exporter: spans,
                        telemetry,
                        tracer,
                    },
                provider: loggers,
                exporter,
                logger,
                telemetry: of_logs,
            } = logs;
            drop((tracer, logger));
            match order {
                Order::LogsFirst => {
                    loggers.shutdown().unwrap();
                    assert_eq!(spans.calls(), []);
                    tracers.shutdown().unwrap();
                }
                Order::SpansFirst => {
                    tracers.shutdown().unwrap();
                    assert_eq!(exporter.calls(), []);
                    loggers.shutdown().unwrap();
                }
                Order::DropLogsFirst => {
                    drop(loggers);
                    drop(tracers);
                }
                Order::DropSpansFirst => {
                    drop(tracers);
                    drop(loggers);
                }
                Order::AtOnce => std::thread::scope(|scope| {
                    scope.spawn(|| tracers.shutdown().unwrap());
                    scope.spawn(|| loggers.shutdown().unwrap());
                }),
            }
            assert_eq!(spans.names(), ["child", "evicted", "open"], "{order:?}");
            assert_eq!(exporter.bodies(), ["in the request", "late", "outside"]);
            assert_eq!(exporter.log("in the request").1, Some(Tenant(2)));
            assert_eq!(spans.calls(), [Call::ForceFlush, Call::Shutdown]);
            assert_eq!(exporter.calls(), [Call::Shutdown]);
            for handle in [&telemetry, &of_logs] {
                assert_eq!(soon(handle.shutdown(SOON)), Ok(()), "once more");
                assert_eq!(soon(handle.flush()), Err(FlushError::AlreadyShutdown));
            }
            let stats = balanced(&telemetry);
            assert_eq!((stats.exported, stats.logs.exported), (3, 3));
            wait_until("the exporters are let go", || {
                !spans.is_held_elsewhere() && !exporter.is_held_elsewhere()
            });
        });
    }
}

/// Scenario: records after the shutdown of the handle, by the provider that knows nothing of it: in a request, outside, late, and
/// in an unrecorded span.
/// Guarantees: they are counted as `already_shutdown`, each flush says why it fails, no context is kept; spans go on.
#[test]
fn records_after_a_shutdown_count_as_already_shutdown() {
    let logs = LogWorld::new(Config::default());
    let unsampled = SdkTracerProvider::builder()
        .with_sampler(Sampler::AlwaysOff)
        .build();
    assert_eq!(soon(logs.telemetry.shutdown(SOON)), Ok(()));
    let root = logs.world.start("root", &tenant(1));
    logs.say_in(&root, "in a request");
    logs.say("outside");
    let (witness, alive) = Witness::new();
    let unsampled = unsampled.tracer("test").start("span");
    let cx = tenant(2).with_value(witness).with_span(unsampled);
    logs.say_in(&cx, "unrecorded");
    drop(cx);
    assert!(!alive.is_alive());
    logs.world.end(&root);
    logs.say_in(&root, "late");
    let stats = logs.stats();
    assert_eq!(stats.logs.dropped.by(DropReason::AlreadyShutdown), 4);
    assert_eq!((stats.logs.received, stats.logs.pending()), (4, 0));
    assert_eq!(stats.logs.late.total(), 0);
    assert_eq!(logs.flush(), Err(FlushError::AlreadyShutdown));
    let error = logs.provider.force_flush().unwrap_err().to_string();
    assert!(error.contains("AlreadyShutdown"), "{error}");
    assert_eq!(logs.exporter.entered(), 0);
    assert_eq!(logs.world.flush(), Ok(()));
    assert_eq!(logs.stats().exported, 1);
    logs.provider.shutdown().unwrap();
    assert_eq!(logs.exporter.calls(), [Call::Shutdown], "once");
}

/// Scenario: spans are shut down while a request is open that has a record queued, with contexts that are watched. Then records
/// are emitted, in that request and outside.
/// Guarantees: what was queued leaves under its own context, which is let go; the record of the request that nobody knows any
/// more is late, the one outside is not; both arrive.
#[test]
fn records_go_on_when_spans_are_shut_down() {
    let logs = LogWorld::new(held_back());
    let (witness, alive) = Witness::new();
    let root = logs.world.start("root", &tenant(1).with_value(witness));
    logs.say_in(&root, "queued");
    assert_eq!(soon(logs.world.telemetry.shutdown(SOON)), Ok(()));
    logs.say_in(&root, "in the request");
    drop(root);
    logs.say("outside");
    assert_eq!(logs.flush(), Ok(()));
    logs.assert_left("queued", Some(Tenant(1)), None);
    logs.assert_left("in the request", Some(FALLBACK), Some("unknown_trace"));
    logs.assert_left("outside", Some(FALLBACK), None);
    wait_until("the context is gone", || !alive.is_alive());
    assert_eq!(logs.stats().dropped.by(DropReason::AlreadyShutdown), 1);
    assert_eq!(soon(logs.telemetry.shutdown(SOON)), Ok(()));
    assert_eq!(logs.exporter.calls(), [Call::Shutdown]);
}

/// Scenario: the exporter of records never answers, as a future or on its thread, and many batches wait; records and spans are
/// shut down at once.
/// Guarantees: the shutdown of records returns by its deadline; what waits is dropped as `shutdown_timeout` with its contexts; what
/// is in flight is accounted for later, and the exporter shut down after that. The shutdown of spans waits for none of it.
#[test]
fn shutdown_with_a_hung_exporter_of_records_returns_by_its_deadline() {
    for blocks in [false, true] {
        let gate = Gate::default();
        let act = match blocks {
            true => Act::Block(gate.clone()),
            false => Act::Hang(gate.clone()),
        };
        let config = Config::default()
            .with_max_concurrent_exports(2)
            .with_export_timeout(Duration::from_millis(800));
        let logs = LogWorld::with_exporter(config, LogRecorder::always(act));
        let mut alive = Vec::new();
        for n in 0..12 {
            let (witness, watch) = Witness::new();
            let root = logs.world.start("root", &tenant(1).with_value(witness));
            logs.say_in(&root, "said");
            logs.world.end(&root);
            alive.push(watch);
            wait_until("slots are taken", || {
                logs.exporter.running() == 2.min(n + 1)
            });
        }
        logs.world.flush().unwrap();
        let timeout = Duration::from_millis(100);
        let begun = Instant::now();
        let of_logs = logs.telemetry.shutdown(timeout);
        assert_eq!(soon(logs.world.telemetry.shutdown(SOON)), Ok(()));
        assert_eq!(soon(of_logs), Err(FlushError::Timeout(timeout)));
        assert!(begun.elapsed() < Duration::from_millis(700));
        let stats = logs.stats();
        assert_eq!(stats.logs.dropped.by(DropReason::ShutdownTimeout), 10);
        assert_eq!(stats.logs.in_flight, 2);
        wait_until("the contexts of what waited are gone", || {
            alive[2..].iter().all(|alive| !alive.is_alive())
        });
        wait_until("what was in flight is accounted for", || {
            logs.stats().logs.failed == 2
        });
        gate.open();
        wait_until("the exporter's shutdown", || {
            logs.exporter.count(Call::Shutdown) == 1
        });
        wait_until("all contexts are gone", || {
            alive.iter().all(|alive| !alive.is_alive())
        });
        wait_until("it is let go", || !logs.exporter.is_held_elsewhere());
    }
}

/// Scenario: the exporter of records fails to shut down, or panics.
/// Guarantees: the shutdown of records says so, the one of spans does not.
#[test]
fn shutdown_of_records_reports_the_failure_of_their_exporter() {
    let logs = LogWorld::new(Config::default());
    let error = || Err(OTelSdkError::InternalFailure("stuck".into()));
    logs.exporter.set_on_shutdown(error);
    let shut_down = soon(logs.telemetry.shutdown(SOON));
    assert!(shut_down.unwrap_err().to_string().contains("stuck"));
    assert_eq!(soon(logs.world.telemetry.shutdown(SOON)), Ok(()));

    let logs = LogWorld::new(Config::default());
    let panics = || panic!("a shutdown that panics, as its test says");
    logs.exporter.set_on_shutdown(panics);
    assert!(soon(logs.telemetry.shutdown(SOON)).is_err());
    assert_eq!(soon(logs.telemetry.shutdown(SOON)), Ok(()));

    let logs = LogWorld::with_exporter(Config::default(), LogRecorder::always(Act::Fail("no")));
    logs.say("said");
    let lost = FlushError::Lost {
        failed: 1,
        dropped: 0,
    };
    assert_eq!(soon(logs.telemetry.shutdown(SOON)), Err(lost));
    assert_eq!(soon(logs.world.telemetry.shutdown(SOON)), Ok(()));
}

/// Scenario: a log processor is made and dropped without a provider, and so is a metric reader; then spans are shut down.
/// Guarantees: nothing of them stays behind: no thread that waits for them, so no exporter.
#[test]
fn what_joined_and_was_dropped_keeps_nothing_alive() {
    for with_spans_first in [false, true] {
        let (spans, records) = (Recorder::new(), LogRecorder::new());
        let points = crate::support::MetricRecorder::new();
        let (world, joined) = World::joined(
            Config::default(),
            spans.clone(),
            |builder| builder,
            |processor| {
                (
                    processor.log_processor(records.clone()).unwrap(),
                    processor.metric_reader(points.clone()).unwrap(),
                )
            },
        );
        if with_spans_first {
            soon(world.telemetry.shutdown(SOON)).unwrap();
        }
        drop(joined);
        assert_eq!(records.calls(), [Call::Shutdown]);
        assert_eq!(points.calls(), [Call::ForceFlush, Call::Shutdown]);
        let World {
            provider,
            exporter,
            tracer,
            telemetry,
        } = world;
        drop((provider, exporter, tracer));
        wait_until("the exporters are let go", || {
            !spans.is_held_elsewhere()
                && !records.is_held_elsewhere()
                && !points.is_held_elsewhere()
        });
        drop(telemetry);
    }
}

/// Scenario: logs join twice, through the same processor or after the first one is gone; metrics too.
/// Guarantees: the second time is an error that says which signal it is, and the first goes on.
#[test]
fn signal_joins_a_processor_once() {
    let logs = LogRecorder::new();
    let (world, joined) = World::joined(
        Config::default(),
        Recorder::new(),
        |builder| builder,
        |processor| {
            let joined = processor.log_processor(logs.clone()).unwrap();
            let again = processor.log_processor(LogRecorder::new()).unwrap_err();
            assert!(matches!(again, ConfigError::AlreadyJoined("logs")));
            assert!(again.to_string().contains("logs have joined"), "{again}");
            let reader = processor.metric_reader(InMemoryMetricExporter::default());
            drop(reader.unwrap());
            let again = processor.metric_reader(InMemoryMetricExporter::default());
            let again = again.unwrap_err();
            assert!(matches!(again, ConfigError::AlreadyJoined("metrics")));
            joined
        },
    );
    let telemetry = joined.handle();
    let provider = SdkLoggerProvider::builder()
        .with_log_processor(joined)
        .build();
    say(&provider.logger("test"), "said");
    assert_eq!(soon(telemetry.flush()), Ok(()));
    assert_eq!(logs.bodies(), ["said"]);
    drop(world);
}

/// Scenario: logs and metrics join when spans are exported already, and when they are shut down.
/// Guarantees: the first works; the second is shut down from the start, so what is emitted counts as that, and nothing hangs.
#[test]
fn signal_may_join_late_and_after_the_shutdown() {
    within(SOON, "joining late", || {
        for shut_down in [false, true] {
            let spans = PerRequestSpanProcessor::builder(Recorder::new())
                .build()
                .unwrap();
            let handle = spans.handle();
            if shut_down {
                soon(handle.shutdown(SOON)).unwrap();
            }
            let (records, points) = (LogRecorder::new(), crate::support::MetricRecorder::new());
            let logs = spans.log_processor(records.clone()).unwrap();
            let reader = spans.metric_reader(points.clone()).unwrap();
            let (of_logs, of_metrics) = (logs.handle(), reader.handle());
            let loggers = SdkLoggerProvider::builder()
                .with_log_processor(logs)
                .build();
            let meters = SdkMeterProvider::builder().with_reader(reader).build();
            say(&loggers.logger("test"), "said");
            use opentelemetry::metrics::MeterProvider as _;
            meters
                .meter("test")
                .u64_counter("count")
                .build()
                .add(1, &[]);
            let expected = match shut_down {
                true => Err(FlushError::AlreadyShutdown),
                false => Ok(()),
            };
            assert_eq!(soon(of_logs.flush()), expected);
            assert_eq!(soon(of_metrics.flush()), expected);
            let stats = balanced(&handle);
            let dropped = stats.logs.dropped.by(DropReason::AlreadyShutdown);
            assert_eq!((dropped, stats.logs.received), (u64::from(shut_down), 1));
            assert_eq!(records.entered(), usize::from(!shut_down));
            assert_eq!(points.entered(), usize::from(!shut_down));
            loggers.shutdown().unwrap();
            meters.shutdown().unwrap();
        }
    });
}

/// Scenario: the processor is switched off, and everything joins it, twice.
/// Guarantees: everything works and does nothing: no exporter is called, no number changes, nothing of a context is kept; events are
/// said not to be enabled, which they are otherwise.
#[test]
fn signals_that_join_a_disabled_processor_do_nothing() {
    let logs = LogWorld::new(Config::default().with_enabled(false));
    let enabled = LogWorld::new(Config::default());
    let asked = |logs: &LogWorld| logs.logger.event_enabled(Severity::Error, "target", None);
    assert!(!asked(&logs));
    assert!(asked(&enabled));
    let (witness, alive) = Witness::new();
    let root = logs.world.start("root", &tenant(1).with_value(witness));
    logs.say_in(&root, "in a request");
    logs.say("outside");
    logs.world.end(&root);
    drop(root);
    assert!(!alive.is_alive());
    assert_eq!(logs.flush(), Ok(()));
    logs.provider.force_flush().unwrap();
    logs.provider.shutdown().unwrap();
    assert_eq!(logs.exporter.entered(), 0);
    assert_eq!(logs.exporter.calls(), []);
    assert_eq!(logs.stats(), Default::default());

    let points = crate::support::MetricRecorder::new();
    let (_world, reader) = World::joined(
        Config::default().with_enabled(false),
        Recorder::new(),
        |builder| builder,
        |processor| {
            processor.metric_reader(points.clone()).unwrap();
            processor.metric_reader(points.clone()).unwrap()
        },
    );
    let telemetry = reader.handle();
    let meters = SdkMeterProvider::builder().with_reader(reader).build();
    use opentelemetry::metrics::MeterProvider as _;
    meters
        .meter("test")
        .u64_counter("count")
        .build()
        .add(1, &[]);
    assert_eq!(soon(telemetry.flush()), Ok(()));
    meters.force_flush().unwrap();
    meters.shutdown().unwrap();
    assert_eq!((points.entered(), points.calls()), (0, Vec::new()));
    assert_eq!(balanced(&telemetry), Default::default());
}
