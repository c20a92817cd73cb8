//! A flush of log records tells the truth about log records, whatever spans do, and the other way round (R11).

use std::time::{Duration, Instant};

use opentelemetry::logs::LoggerProvider as _;
use opentelemetry::trace::{Span as _, Tracer as _, TracerProvider as _};
use opentelemetry_per_request::{Config, FlushError, Telemetry};
use opentelemetry_sdk::error::OTelSdkError;

use super::{LogWorld, ids, say};
use crate::support::exporter::Call;
use crate::support::{
    Act, Gate, LogRecorder, MetricRecorder, Recorder, SOON, balanced, held_back, some_trace, soon,
    tenant, wait_until, within,
};

/// The ways to flush all log records.
#[derive(Clone, Copy, Debug)]
enum Way {
    Flush,
    FlushWithTimeout,
    ForceFlush,
}

impl Way {
    const ALL: [Self; 3] = [Self::Flush, Self::FlushWithTimeout, Self::ForceFlush];

    /// The error as text, which is what `force_flush` makes of it.
    fn run(self, logs: &LogWorld) -> Result<(), String> {
        let result = match self {
            Way::Flush => soon(logs.telemetry.flush()).map_err(|error| error.to_string()),
            Way::FlushWithTimeout => {
                soon(logs.telemetry.flush_with_timeout(SOON)).map_err(|error| error.to_string())
            }
            Way::ForceFlush => {
                let provider = logs.provider.clone();
                within(SOON, "force_flush", move || provider.force_flush())
                    .map_err(|error| error.to_string())
            }
        };
        balanced(&logs.telemetry);
        result
    }
}

fn fails_if_it_says(body: &'static str) -> LogRecorder {
    LogRecorder::by(
        move |logs| match logs.iter().any(|log| log.body() == body) {
            true => Act::Fail("said to fail"),
            false => Act::Take,
        },
    )
}

const LOST_ONE: Result<(), FlushError> = Err(FlushError::Lost {
    failed: 1,
    dropped: 0,
});

/// Scenario: one batch of records fails and others do not; then everything is fine; for each way to flush.
/// Guarantees: the flush after the failure says how many records, and only that one; flushes of spans hear nothing of it.
#[test]
fn flush_of_records_fails_if_any_failed_since_the_last_one() {
    for way in Way::ALL {
        let logs = LogWorld::with_exporter(Config::default(), fails_if_it_says("bad"));
        assert_eq!(way.run(&logs), Ok(()), "{way:?} with nothing to do");
        for body in ["good", "bad", "good"] {
            let root = logs.world.start("root", &tenant(1));
            logs.say_in(&root, body);
            logs.world.end(&root);
        }
        assert_eq!(logs.world.flush(), Ok(()), "of spans");
        wait_until("all done", || logs.stats().logs.pending() == 0);
        let error = way.run(&logs).unwrap_err();
        assert!(error.contains("1 failed to export"), "{way:?}: {error}");
        assert_eq!(way.run(&logs), Ok(()), "{way:?} afterwards");
        assert_eq!(logs.world.flush(), Ok(()), "of spans");
        let stats = logs.stats();
        assert_eq!((stats.logs.exported, stats.logs.failed), (2, 1));
        assert_eq!((stats.exported, stats.failed), (3, 0));
    }
}

/// Scenario: the exporter of spans fails, or panics, and the one of records does not.
/// Guarantees: a flush of records succeeds, and one of spans does not.
#[test]
fn flush_of_records_hears_nothing_of_spans_that_failed() {
    for act in [Act::Fail("no"), Act::Panic] {
        let spans = Recorder::always(act);
        let logs = LogWorld::with_exporters(Config::default(), spans, LogRecorder::new());
        let root = logs.world.start("root", &tenant(1));
        logs.say_in(&root, "said");
        logs.world.end(&root);
        wait_until("spans have failed", || logs.stats().failed == 1);
        assert_eq!(logs.flush(), Ok(()));
        assert_eq!(logs.world.flush(), LOST_ONE);
        assert_eq!(logs.flush(), Ok(()));
    }
}

/// Scenario: an exporter of records panics, in its call and at its second poll.
/// Guarantees: the records have failed, and others go on.
#[test]
fn exporter_of_records_that_panics_loses_that_batch_only() {
    let exporter = LogRecorder::by(|logs| match logs[0].body().as_str() {
        "panics" => Act::Panic,
        "panics at once" => panic!("a call that panics, as its test says"),
        _ => Act::Take,
    });
    let logs = LogWorld::with_exporter(Config::default().with_max_batch_size(1), exporter);
    for body in ["panics", "panics at once", "fine"] {
        logs.say(body);
    }
    let lost = FlushError::Lost {
        failed: 2,
        dropped: 0,
    };
    assert_eq!(logs.flush(), Err(lost));
    assert_eq!(logs.stats().logs.exported, 1);
}

/// Scenario: the exporter of one signal hangs, as a future or on its thread, with one export at a time; the other signal has
/// something to export.
/// Guarantees: that arrives, its flush is done, and its shutdown too; a flush of what hangs runs into its deadline.
#[test]
fn neither_signal_waits_for_an_export_of_the_other() {
    for blocks in [false, true] {
        for logs_hang in [false, true] {
            let gate = Gate::default();
            let hang = match blocks {
                true => Act::Block(gate.clone()),
                false => Act::Hang(gate.clone()),
            };
            let (of_spans, of_logs) = match logs_hang {
                true => (Act::Take, hang),
                false => (hang, Act::Take),
            };
            let logs = LogWorld::with_exporters(
                Config::default().with_max_concurrent_exports(1),
                Recorder::always(of_spans),
                LogRecorder::always(of_logs),
            );
            let round = || {
                for n in 0..10 {
                    let root = logs.world.start("root", &tenant(n));
                    logs.say_in(&root, "said");
                    logs.world.end(&root);
                }
            };
            let short = Duration::from_millis(20);
            let timeout = Err(FlushError::Timeout(short));
            round();
            let (goes, hangs) = match logs_hang {
                true => (&logs.world.telemetry, &logs.telemetry),
                false => (&logs.telemetry, &logs.world.telemetry),
            };
            assert_eq!(soon(goes.flush()), Ok(()));
            assert_eq!(soon(hangs.flush_with_timeout(short)), timeout);
            round();
            assert_eq!(soon(goes.shutdown(SOON)), Ok(()));
            let stats = logs.stats();
            let (exported, pending) = match logs_hang {
                true => (stats.exported, stats.logs.pending()),
                false => (stats.logs.exported, stats.pending()),
            };
            assert_eq!((exported, pending), (20, 20), "{stats:?}");
            gate.open();
            assert_eq!(soon(hangs.flush()), Ok(()));
        }
    }
}

/// Scenario: `force_flush` or `shutdown` of the exporter of spans blocks.
/// Guarantees: a flush and a shutdown of records are done nevertheless.
#[test]
fn flush_of_records_does_not_wait_for_a_call_into_the_exporter_of_spans() {
    for in_shutdown in [false, true] {
        let gate = Gate::default();
        let logs = LogWorld::new(Config::default());
        let blocked = gate.clone();
        let wait = move || {
            blocked.wait();
            Ok(())
        };
        match in_shutdown {
            false => logs.world.exporter.set_on_flush(wait),
            true => logs.world.exporter.set_on_shutdown(wait),
        }
        let under_way: futures_util::future::BoxFuture<'_, _> = match in_shutdown {
            false => Box::pin(logs.world.telemetry.flush()),
            true => Box::pin(logs.world.telemetry.shutdown(SOON)),
        };
        wait_until("it blocks", || !logs.world.exporter.calls().is_empty());
        logs.say("said");
        assert_eq!(logs.flush(), Ok(()));
        assert_eq!(soon(logs.telemetry.shutdown(SOON)), Ok(()));
        assert_eq!(logs.exporter.bodies(), ["said"]);
        gate.open();
        futures_executor::block_on(under_way).unwrap();
    }
}

/// Scenario: a batch of records is in flight, another waits for its slot, a third record is queued; then the gate opens.
/// Guarantees: the flush is not done before all of them are.
#[test]
fn flush_of_records_waits_for_what_is_queued_waiting_and_in_flight() {
    for way in Way::ALL {
        let gate = Gate::default();
        let logs = LogWorld::with_exporter(
            held_back()
                .with_max_concurrent_exports(1)
                .with_max_batch_size(1),
            LogRecorder::always(Act::Hang(gate.clone())),
        );
        logs.say("in flight");
        wait_until("in flight", || logs.stats().logs.in_flight == 1);
        logs.say("waiting");
        let root = logs.world.start("root", &tenant(1));
        logs.say_in(&root, "queued");
        std::thread::scope(|scope| {
            let flushed = scope.spawn(|| way.run(&logs));
            wait_until("the flush has taken the queue", || {
                logs.stats().logs.queued == 0
            });
            assert!(!flushed.is_finished(), "{way:?}");
            gate.open();
            assert_eq!(flushed.join().unwrap(), Ok(()));
        });
        assert_eq!(logs.exporter.out(), 3, "{way:?}");
    }
}

/// Scenario: with `LocalRootEnd` a record and a span are queued in an open request, and each signal is flushed by itself.
/// Guarantees: a flush takes the queue of its own signal only, and starts when it is called.
#[test]
fn flush_takes_the_queue_of_its_own_signal_only() {
    let logs = LogWorld::new(held_back());
    let root = logs.world.start("root", &tenant(1));
    let child = logs.world.start("child", &root);
    logs.say_in(&root, "said");
    logs.world.end(&child);
    let never_polled = logs.telemetry.flush();
    logs.wait_for_logs(&["said"]);
    drop(never_polled);
    assert_eq!(logs.stats().queued, 1);
    logs.say_in(&root, "said again");
    assert_eq!(logs.world.flush(), Ok(()));
    assert_eq!((logs.stats().queued, logs.stats().logs.queued), (0, 1));
}

/// Scenario: records of one trace hang, of another have failed, of a third are queued, in an unrecorded span and late ones too.
/// Guarantees: `flush_trace` of the handle of records is one of that trace's records: their losses, and no others.
#[test]
fn flush_of_the_records_of_a_trace_waits_for_no_others() {
    let gate = Gate::default();
    let hang = gate.clone();
    let exporter = LogRecorder::by(move |logs| match logs[0].body().as_str() {
        "hangs" => Act::Hang(hang.clone()),
        "fails" => Act::Fail("no"),
        _ => Act::Take,
    });
    let logs = LogWorld::with_exporter(held_back(), exporter);
    let say = |body: &str| {
        let root = logs.world.start("root", &tenant(1));
        logs.say_in(&root, body);
        (ids(&root).0, root)
    };
    let flush = |trace| soon(logs.telemetry.flush_trace(trace));
    let (hung, root) = say("hangs");
    logs.world.end(&root);
    wait_until("it hangs", || logs.exporter.running() == 1);
    let (failed, _fails) = say("fails");
    let (good, open) = say("good");
    assert_eq!(flush(good), Ok(()));
    assert_eq!(logs.exporter.bodies(), ["good", "hangs"]);
    assert_eq!(flush(failed), LOST_ONE);
    assert_eq!(flush(failed), Ok(()));
    assert_eq!(flush(some_trace()), Ok(()));

    logs.world.end(&open);
    logs.say_in(&open, "fails");
    assert_eq!(flush(good), LOST_ONE, "what is late is the trace's, too");
    let waits = logs.telemetry.flush_trace(hung);
    gate.open();
    assert_eq!(soon(waits), Ok(()));
    assert!(logs.flush().is_err(), "everything that was lost");
}

/// Scenario: an export of records does not end in time, as a future and on its thread, with one slot.
/// Guarantees: it has failed and timed out at its deadline, and the next one has its turn when the slot is free.
#[test]
fn export_of_records_has_a_deadline() {
    for blocks in [false, true] {
        let gate = Gate::default();
        let hang = gate.clone();
        let config = Config::default()
            .with_max_concurrent_exports(1)
            .with_export_timeout(Duration::from_millis(50));
        let exporter = LogRecorder::by(move |logs| match logs[0].body().as_str() {
            "hangs" if blocks => Act::Block(hang.clone()),
            "hangs" => Act::Hang(hang.clone()),
            _ => Act::Take,
        });
        let logs = LogWorld::with_exporter(config, exporter);
        logs.say("hangs");
        wait_until("it hangs", || logs.exporter.running() == 1);
        logs.say("next");
        wait_until("it has failed", || logs.stats().logs.failed == 1);
        let stats = logs.stats();
        assert_eq!(
            (stats.logs.timed_out_exports, stats.timed_out_exports),
            (1, 0)
        );
        if blocks {
            assert_eq!(logs.stats().logs.waiting, 1);
            gate.open();
        }
        wait_until("the next one", || logs.stats().logs.exported == 1);
        assert_eq!(logs.exporter.max_running(), 1);
    }
}

/// Scenario: an exporter of records never answers, and a flush is given little time, or none.
/// Guarantees: it ends at its deadline, with the error that says so; what is under way goes on.
#[test]
fn flush_of_records_respects_its_deadline() {
    let gate = Gate::default();
    let exporter = LogRecorder::always(Act::Hang(gate.clone()));
    let logs = LogWorld::with_exporter(Config::default(), exporter);
    logs.say("said");
    for timeout in [Duration::ZERO, Duration::from_millis(50)] {
        let begun = Instant::now();
        let flushed = soon(logs.telemetry.flush_with_timeout(timeout));
        assert_eq!(flushed, Err(FlushError::Timeout(timeout)));
        assert!(begun.elapsed() >= timeout);
    }
    gate.open();
    assert_eq!(logs.flush(), Ok(()));
    assert_eq!(logs.stats().logs.exported, 1);
}

/// Scenario: a handle of all signals flushes while the exporter of spans is in its `force_flush`, and the one of metrics fails in its
/// own; then a batch of spans and one of records fail.
/// Guarantees: the flush is done when all exporters have answered, in whichever order, and says what one of them said; losses are
/// those of all signals together.
#[test]
fn flush_of_all_signals_waits_for_all_exporters_and_says_what_any_said() {
    let gate = Gate::default();
    let (spans, logs) = (Recorder::by(|_| Act::Fail("no")), fails_if_it_says("bad"));
    let metrics = MetricRecorder::new();
    let blocked = gate.clone();
    spans.set_on_flush(move || {
        blocked.wait();
        Ok(())
    });
    metrics.set_on_flush(|| Err(OTelSdkError::InternalFailure("disk full".into())));
    let telemetry = Telemetry::builder()
        .with_config(Config::default().with_metric_period(None))
        .with_span_exporter(spans.clone())
        .with_log_exporter(logs.clone())
        .with_metric_exporter(metrics.clone())
        .build()
        .unwrap();
    let handle = telemetry.handle();
    let flush = handle.flush();
    wait_until("those that can have answered", || {
        spans.count(Call::ForceFlush) == 1 && metrics.count(Call::ForceFlush) == 1
    });
    let mut flush = Box::pin(flush);
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(flush.as_mut().poll(&mut cx).is_pending());
    gate.open();
    let error = soon(flush).unwrap_err();
    assert!(matches!(&error, FlushError::Exporter(said) if said.contains("disk full")));

    say(&telemetry.logger_provider().logger("test"), "bad");
    telemetry
        .tracer_provider()
        .tracer("test")
        .start("span")
        .end();
    let lost = FlushError::Lost {
        failed: 2,
        dropped: 0,
    };
    assert_eq!(soon(handle.flush()), Err(lost));
    assert!(soon(telemetry.shutdown(SOON)).is_err(), "disk full");
    assert_eq!(soon(handle.flush()), Err(FlushError::AlreadyShutdown));
}
