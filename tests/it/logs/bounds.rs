//! Records are bounded by themselves, and what does not fit is counted (R6, R10).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use opentelemetry::trace::{TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry_per_request::{Config, DropReason, FlushError, FlushTrigger};
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};

use super::{LogWorld, say};
use crate::support::{
    Act, FALLBACK, Gate, LogRecorder, Recorder, StopOnDrop, Tenant, Witness, balanced, held_back,
    logs, soon, tenant, wait_until,
};

/// Scenario: an exporter of records that never answers, 10,000 requests of one span and ten records each, with both triggers;
/// somebody watches.
/// Guarantees: never more records are pending than `max_pending_logs`, all others are dropped as `queue_full`, only the contexts of
/// pending records are alive, and every span arrives.
#[test]
fn exporter_of_records_that_never_answers_costs_a_constant_amount_and_no_span() {
    const REQUESTS: u64 = 10_000;
    const RECORDS: u64 = 100_000;
    const PENDING: u64 = 1_000;
    for trigger in [FlushTrigger::NextTick, FlushTrigger::LocalRootEnd] {
        let gate = Gate::default();
        let config = Config::default()
            .with_flush_trigger(trigger)
            .with_max_pending_logs(PENDING as usize);
        let hang = LogRecorder::always(Act::Hang(gate.clone()));
        let logs = LogWorld::with_exporter(config, hang);
        let done = AtomicBool::new(false);
        let mut alive = Vec::new();
        let most = std::thread::scope(|scope| {
            let watch = scope.spawn(|| {
                let mut most = 0;
                while !done.load(Ordering::Relaxed) {
                    most = most.max(balanced(&logs.telemetry).logs.pending());
                    std::thread::yield_now();
                }
                most
            });
            let stop = StopOnDrop(&done);
            for n in 0..REQUESTS {
                let (witness, watch) = Witness::new();
                let cx = tenant(1).with_value(witness);
                let cx = cx.with_span(logs.world.tracer.start_with_context("span", &cx));
                let attached = cx.attach();
                for _ in 0..RECORDS / REQUESTS {
                    say(&logs.logger, "said");
                }
                drop(attached);
                alive.push(watch);
                if n % 1_000 == 999 {
                    logs.world.flush().unwrap();
                    alive.retain(|alive| alive.is_alive());
                    assert!(alive.len() as u64 <= PENDING, "{}", alive.len());
                }
            }
            drop(stop);
            watch.join().unwrap()
        });
        assert!(most <= PENDING, "{most} were pending at once");
        let stats = logs.stats();
        assert_eq!(
            (stats.logs.received, stats.logs.pending(), stats.traces),
            (RECORDS, PENDING, 0)
        );
        assert_eq!(
            stats.logs.dropped.by(DropReason::QueueFull),
            RECORDS - PENDING
        );
        assert!(stats.logs.exports <= 20);
        assert_eq!((stats.exported, stats.pending()), (REQUESTS, 0));
        assert_eq!(stats.dropped.total(), 0);
        gate.open();
        let dropped = RECORDS - PENDING;
        let lost = FlushError::Lost { failed: 0, dropped };
        assert_eq!(logs.flush(), Err(lost));
        assert_eq!(logs.stats().logs.exported, PENDING);
        wait_until("no context is left", || {
            alive.iter().all(|alive| !alive.is_alive())
        });
    }
}

/// Scenario: records without end outside of any request, late, and in unrecorded spans, with an exporter that never answers.
/// Guarantees: all are bounded by the same limit, and no context of what is dropped is kept.
#[test]
fn records_of_no_request_are_bounded_too() {
    let unsampled = SdkTracerProvider::builder()
        .with_sampler(Sampler::AlwaysOff)
        .build();
    let unsampled = unsampled.tracer("test");
    for place in ["outside", "late", "unrecorded"] {
        let gate = Gate::default();
        let logs = LogWorld::with_exporter(
            Config::default().with_max_pending_logs(10),
            LogRecorder::always(Act::Hang(gate.clone())),
        );
        let over = logs.world.start("over", &tenant(1));
        logs.world.end(&over);
        let mut alive = Vec::new();
        for _ in 0..100 {
            let (witness, watch) = Witness::new();
            let cx = tenant(1).with_value(witness);
            match place {
                "outside" => logs.say_in(&cx, "said"),
                "late" => logs.say_in(&over, "said"),
                _ => logs.say_in(&cx.with_span(unsampled.start("span")), "said"),
            }
            alive.push(watch);
        }
        let stats = logs.stats();
        let dropped = stats.logs.dropped.by(DropReason::QueueFull);
        assert_eq!((stats.logs.pending(), dropped), (10, 90), "{place}");
        let late = if place == "late" { 100 } else { 0 };
        assert_eq!(stats.logs.late.total(), late);
        drop(over);
        alive.retain(|alive| alive.is_alive());
        let kept = if place == "unrecorded" { 10 } else { 0 };
        assert_eq!(alive.len(), kept, "{place}");
        gate.open();
        let _ = logs.flush();
        assert_eq!(logs.stats().logs.exported, 10);
    }
}

/// Scenario: with `LocalRootEnd`, as many records as may be pending are queued in open requests, and there is one more.
/// Guarantees: that one is dropped, the queued ones leave, and so there is room again.
#[test]
fn full_bound_of_queued_records_makes_room_for_itself() {
    let logs = LogWorld::new(held_back().with_max_pending_logs(4));
    let roots = [1, 2].map(|n| logs.world.start("root", &tenant(n)));
    for root in &roots {
        logs.say_in(root, "queued");
        logs.say_in(root, "queued");
    }
    logs.say_in(&roots[0], "dropped");
    wait_until("there is room", || logs.stats().logs.pending() == 0);
    logs.say_in(&roots[0], "again");
    let dropped = FlushError::Lost {
        failed: 0,
        dropped: 1,
    };
    assert_eq!(logs.flush(), Err(dropped));
    assert_eq!(
        logs.exporter.bodies(),
        ["again", "queued", "queued", "queued", "queued"]
    );
}

/// Scenario: as many spans as may be pending are, and no record is; and the other way round.
/// Guarantees: neither takes room of the other.
#[test]
fn records_and_spans_take_no_room_of_each_other() {
    let gate = Gate::default();
    let logs = LogWorld::with_exporters(
        Config::default()
            .with_max_pending_logs(5)
            .with_max_pending_spans(3),
        Recorder::always(Act::Hang(gate.clone())),
        LogRecorder::always(Act::Hang(gate.clone())),
    );
    for _ in 0..10 {
        logs.world.request("span", &tenant(1));
    }
    for _ in 0..10 {
        logs.say("said");
    }
    let stats = logs.stats();
    assert_eq!((stats.pending(), stats.logs.pending()), (3, 5));
    assert_eq!((stats.dropped.total(), stats.logs.dropped.total()), (7, 5));
    gate.open();
    soon(logs.telemetry.flush()).unwrap_err();
}

/// Scenario: four threads emit records in requests, in what is evicted, late and outside, while exporters of both signals take, fail,
/// panic and hang beyond their timeout, with few of everything allowed; some flush; then everything is shut down.
/// Guarantees: the account adds up at every moment and never goes back; in the end each record was exported once, failed or dropped,
/// and never under another request's tenant.
#[test]
fn account_of_records_adds_up_whatever_happens() {
    const THREADS: u32 = 4;
    const REQUESTS: u32 = 100;
    let by_turns = || {
        let turn = AtomicU64::new(0);
        move || match turn.fetch_add(1, Ordering::Relaxed) % 8 {
            0 => Act::Fail("no"),
            1 => Act::Panic,
            2 => Act::Hang(Gate::default()),
            _ => Act::Take,
        }
    };
    let (of_spans, of_logs) = (by_turns(), by_turns());
    let config = Config::default()
        .with_max_traces(6)
        .with_max_batch_size(4)
        .with_max_pending_logs(64)
        .with_max_concurrent_exports(4)
        .with_export_timeout(std::time::Duration::from_millis(20));
    let logs = &LogWorld::with_exporters(
        config,
        Recorder::by(move |_| of_spans()),
        LogRecorder::by(move |_| of_logs()),
    );
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut last = balanced(&logs.telemetry).logs;
            while !done.load(Ordering::Relaxed) {
                let stats = balanced(&logs.telemetry).logs;
                assert!(stats.received >= last.received && stats.exported >= last.exported);
                assert!(stats.failed >= last.failed && stats.exports >= last.exports);
                assert!(stats.dropped.total() >= last.dropped.total());
                last = stats;
            }
        });
        let stop = StopOnDrop(&done);
        let threads: Vec<_> = (1..=THREADS)
            .map(|thread| {
                scope.spawn(move || {
                    for n in 0..REQUESTS {
                        let root = logs.world.start("root", &tenant(thread));
                        let other = logs.world.start("other", &tenant(thread));
                        for place in 0..n % 5 {
                            let cx = if place % 2 == 0 { &root } else { &other };
                            logs.say_in(cx, format!("{thread} {n} {place}"));
                        }
                        if n % 20 == 0 {
                            drop(logs.telemetry.flush());
                            drop(logs.telemetry.flush_trace(super::ids(&root).0));
                        }
                        logs.world.end(&root);
                        logs.say_in(&root, format!("{thread} {n} late"));
                        logs.say(format!("0 {thread} {n}"));
                        logs.world.end(&other);
                    }
                })
            })
            .collect();
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        drop(stop);
    });
    let _ = soon(logs.telemetry.shutdown(crate::support::SOON));
    wait_until("all is accounted for", || logs.stats().logs.pending() == 0);
    let stats = logs.stats().logs;
    let said = u64::from(THREADS * (REQUESTS / 5 * (1 + 2 + 3 + 4) + 2 * REQUESTS));
    assert_eq!(stats.received, said);
    let given = logs.exporter.items();
    assert_eq!(given.len() as u64, stats.exported + stats.failed);
    let mut once = std::collections::HashSet::new();
    for (log, tenant) in given {
        let body = log.body();
        let number = body.split(' ').next().unwrap().parse().unwrap();
        let own = tenant == Some(Tenant(number)) && log.late_mark().is_none();
        let late = tenant == Some(FALLBACK) && log.late_mark().is_some();
        assert!(own || late, "{body} under {tenant:?}");
        assert!(once.insert(body), "twice");
    }
}

/// Scenario: more records than spans per trace are allowed, in one request.
/// Guarantees: that limit is one of spans.
#[test]
fn spans_per_trace_limit_no_records() {
    let logs = LogWorld::new(Config::default().with_max_spans_per_trace(2));
    let root = logs.world.start("root", &tenant(1));
    (0..50).for_each(|_| logs.say_in(&root, "said"));
    logs.world.end(&root);
    assert_eq!(logs.flush(), Ok(()));
    assert_eq!(logs.stats().logs.exported, 50);
}

/// Scenario: many exports of records at once, waiting as futures and blocking their threads, and as many of spans.
/// Guarantees: `max_concurrent_exports` is reached by each signal, and never exceeded.
#[test]
fn max_concurrent_exports_is_that_of_each_signal() {
    for blocks in [false, true] {
        let gate = Gate::default();
        let act = match blocks {
            true => Act::Block(gate.clone()),
            false => Act::Hang(gate.clone()),
        };
        let logs = LogWorld::with_exporters(
            Config::default()
                .with_max_concurrent_exports(3)
                .with_max_batch_size(1),
            Recorder::always(act.clone()),
            LogRecorder::always(act),
        );
        for n in 0..10 {
            let root = logs.world.start("root", &tenant(n));
            logs.say_in(&root, "said");
            logs.world.end(&root);
        }
        wait_until("both have all their slots", || {
            logs.exporter.running() == 3 && logs.world.exporter.running() == 3
        });
        gate.open();
        assert_eq!(logs.flush(), Ok(()));
        assert_eq!(logs.world.flush(), Ok(()));
        assert_eq!(logs.exporter.max_running(), 3);
        assert_eq!(logs.world.exporter.max_running(), 3);
    }
}

/// Scenario: records are late, dropped, and fail to export.
/// Guarantees: each is said once in a warning of its own, which names records and not spans, with the number, and the trace or
/// the error.
#[test]
fn what_becomes_of_records_is_said_in_warnings_of_their_own() {
    logs::listen();
    let gate = Gate::default();
    let hang = gate.clone();
    let exporter = LogRecorder::by(move |logs| match logs[0].body().as_str() {
        "fails" => Act::Fail("refused by its test"),
        _ => Act::Hang(hang.clone()),
    });
    let config = Config::default().with_max_pending_logs(1);
    let world = LogWorld::with_exporter(config, exporter);
    let root = world.world.start("root", &tenant(1));
    let trace = super::ids(&root).0.to_string();
    let said = |event: &str, field: &str, value: &str| {
        let found = || logs::lines(|line| line.event == event && line.field(field) == value);
        wait_until(event, || !found().is_empty());
        let line = found().remove(0);
        assert_eq!(line.field("log_records"), "1", "{line:?}");
        assert_eq!(line.field("spans"), "", "{line:?}");
        line
    };
    world.say_in(&root, "fails");
    said(
        "PerRequestLogProcessor.ExportFailed",
        "error",
        "Operation failed: refused by its test",
    );
    world.say_in(&root, "hangs");
    world.say_in(&root, "does not fit");
    let line = said("PerRequestLogProcessor.LogsDropped", "trace_id", &trace);
    assert_eq!(line.field("reason"), "queue_full");
    gate.open();
    wait_until("there is room", || world.stats().logs.pending() == 0);
    world.world.end(&root);
    world.say_in(&root, "late");
    let line = said("PerRequestLogProcessor.LateLogs", "trace_id", &trace);
    assert_eq!(line.field("reason"), "unknown_trace");
}
