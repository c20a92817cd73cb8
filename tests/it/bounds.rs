//! Everything is bounded, and what does not fit is counted (R6, R10).

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use opentelemetry::trace::TraceContextExt as _;
use opentelemetry_per_request::{Config, DropReason, FlushTrigger};

use crate::support::{
    Act, Gate, Recorder, SOON, StopOnDrop, Witness, World, balanced, logs, some_trace, tenant,
    wait_until, within,
};

/// Scenario: an exporter that never answers, 100,000 traces of one span each, with both triggers; somebody watches.
/// Guarantees: never more spans are pending than `max_pending_spans`, all others are dropped as `queue_full`, and only
/// the contexts of pending spans are alive.
#[test]
fn exporter_that_never_answers_costs_a_constant_amount() {
    const TRACES: u64 = 100_000;
    const PENDING: u64 = 1_000;
    for trigger in [FlushTrigger::NextTick, FlushTrigger::LocalRootEnd] {
        let gate = Gate::default();
        let config = Config::default()
            .with_flush_trigger(trigger)
            .with_max_pending_spans(PENDING as usize);
        let world = World::with_exporter(config, Recorder::always(Act::Hang(gate.clone())));
        let done = AtomicBool::new(false);
        let mut alive = Vec::new();
        let most = std::thread::scope(|scope| {
            let watch = scope.spawn(|| {
                let mut most = 0;
                while !done.load(Ordering::Relaxed) {
                    most = most.max(balanced(&world.telemetry).pending());
                    std::thread::yield_now();
                }
                most
            });
            let stop = StopOnDrop(&done);
            for n in 0..TRACES {
                let (witness, watch) = Witness::new();
                world.request("span", &tenant(1).with_value(witness));
                alive.push(watch);
                if n % 10_000 == 0 {
                    alive.retain(|alive| alive.is_alive());
                    assert!(alive.len() as u64 <= PENDING);
                }
            }
            drop(stop);
            watch.join().unwrap()
        });
        assert!(most <= PENDING, "{most} were pending at once");
        let stats = world.stats();
        assert_eq!(
            (stats.ended, stats.pending(), stats.traces),
            (TRACES, PENDING, 0)
        );
        assert_eq!(stats.dropped.by(DropReason::QueueFull), TRACES - PENDING);
        assert!(stats.in_flight <= 20);
        wait_until("only contexts of pending spans are alive", || {
            alive.retain(|alive| alive.is_alive());
            alive.len() as u64 <= PENDING
        });
        gate.open();
        wait_until("the exporter has answered", || {
            world.stats().exported == PENDING
        });
        wait_until("no context is left", || {
            alive.iter().all(|alive| !alive.is_alive())
        });
    }
}

/// Scenario: late spans without end, with an exporter that never answers.
/// Guarantees: they are bounded by the same limit.
#[test]
fn late_spans_are_bounded_too() {
    let gate = Gate::default();
    let config = Config::default()
        .with_max_traces(1)
        .with_max_pending_spans(10);
    let world = World::with_exporter(config, Recorder::always(Act::Hang(gate.clone())));
    let old = world.start("old", &tenant(1));
    let late: Vec<_> = (0..100).map(|_| world.start("late", &old)).collect();
    let _new = world.start("new", &tenant(2));
    late.iter().for_each(|cx| world.end(cx));
    let stats = world.stats();
    assert_eq!(
        (stats.pending(), stats.dropped.by(DropReason::QueueFull)),
        (10, 90)
    );
    gate.open();
    wait_until("all done", || world.stats().pending() == 0);
}

/// Scenario: a trace starts more spans than it may, in one request or in two; another trace is within its limit; 0.
/// Guarantees: what is over the limit is dropped, counted and warned about once; the other trace loses nothing; 0 is no
/// limit.
#[test]
fn spans_beyond_max_spans_per_trace_are_dropped_and_counted() {
    logs::listen();
    for (max, requests, dropped) in [(5, 1, 6), (5, 2, 17), (11, 1, 0), (0, 2, 0)] {
        let world = World::new(Config::default().with_max_spans_per_trace(max));
        let trace = some_trace();
        let roots: Vec<_> = (0..requests)
            .map(|_| world.continued("span", 1, trace))
            .collect();
        let mut children = Vec::new();
        for root in &roots {
            // Grandchildren of a refused span are refused, too.
            let mut parent = root.clone();
            for n in 0..10 {
                let child = world.start("span", if n % 2 == 0 { root } else { &parent });
                parent = child.clone();
                children.push(child);
            }
        }
        let other = world.start("other", &tenant(2));
        let other_child = world.start("other", &other);
        for cx in children.iter().chain(&roots).chain([&other_child, &other]) {
            world.end(cx);
        }
        let result = world.flush();
        assert_eq!(result.is_err(), dropped > 0, "max {max}: {result:?}");
        let stats = world.stats();
        assert_eq!(
            stats.dropped.by(DropReason::MaxSpansPerTrace),
            dropped,
            "max {max}: {stats:?}"
        );
        assert_eq!(stats.exported, requests as u64 * 11 + 2 - dropped);
        assert_eq!(stats.late.total(), 0);
        let said = || {
            logs::lines(|line| {
                line.field("trace_id") == trace.to_string()
                    && line.event == "PerRequestSpanProcessor.SpansDropped"
            })
        };
        if dropped > 0 {
            wait_until("the warning", || !said().is_empty());
        }
        assert_eq!(said().len(), usize::from(dropped > 0));
        assert!(
            said()
                .iter()
                .all(|line| line.field("reason") == "max_spans_per_trace")
        );
    }
}

/// Scenario: while a warning is written, and nothing is pending, a span is dropped for another reason. Then nothing more
/// happens.
/// Guarantees: that is warned about, too.
#[test]
fn loss_that_is_noted_while_another_warning_is_written_is_warned_about() {
    logs::listen();
    let world = World::new(
        Config::default()
            .with_max_traces(1)
            .with_max_spans_per_trace(1),
    );
    let old = world.start("old", &tenant(1));
    let root = world.start("root", &tenant(2));
    let refused = world.start("refused", &root);
    let ids = |cx: &opentelemetry::Context| cx.span().span_context().trace_id();
    let (old_trace, trace) = (ids(&old), ids(&root));
    let telemetry = world.telemetry.clone();
    logs::inside_next_line(old_trace, move || {
        wait_until("nothing is pending", || balanced(&telemetry).pending() == 0);
        refused.span().end();
    });
    world.end(&old);
    wait_until("the second warning", || {
        !logs::lines(|line| line.field("trace_id") == trace.to_string()).is_empty()
    });
}

/// Scenario: a refused span ends after everything else of its request.
/// Guarantees: it is dropped for the same reason; it does not come back as a late span.
#[test]
fn refused_span_that_outlives_its_request_is_dropped_all_the_same() {
    let world = World::new(Config::default().with_max_spans_per_trace(1));
    let root = world.start("root", &tenant(1));
    let refused = world.start("refused", &root);
    world.end(&root);
    world.end(&refused);
    let _ = world.flush();
    let stats = world.stats();
    assert_eq!(
        stats.dropped.by(DropReason::MaxSpansPerTrace),
        1,
        "{stats:?}"
    );
    assert_eq!(world.exporter.names(), ["root"]);
}

/// Scenario: one trace id is used for one request after another, many more spans in all than one trace may have.
/// Guarantees: the limit does not add up over time.
#[test]
fn limit_per_trace_starts_anew_when_the_trace_is_over() {
    let world = World::new(Config::default().with_max_spans_per_trace(2));
    let trace = some_trace();
    for _ in 0..50 {
        let root = world.continued("root", 1, trace);
        let child = world.start("child", &root);
        world.end(&child);
        world.end(&root);
    }
    world.flush().unwrap();
    assert_eq!(world.stats().exported, 100);
}

/// Scenario: many requests at once, with exporters that wait as futures and that block their thread.
/// Guarantees: `max_concurrent_exports` is reached and never exceeded; 1 is strictly one after the other.
#[test]
fn max_concurrent_exports_is_reached_and_never_exceeded() {
    for max in [1, 2, 5] {
        for blocks in [false, true] {
            let gates: Vec<Gate> = (0..20).map(|_| Gate::default()).collect();
            let script = gates.clone();
            let exporter = Recorder::by(move |spans| {
                let gate = script[spans[0].name.parse::<usize>().unwrap()].clone();
                if blocks {
                    Act::Block(gate)
                } else {
                    Act::Hang(gate)
                }
            });
            let world =
                World::with_exporter(Config::default().with_max_concurrent_exports(max), exporter);
            for n in 0..gates.len() {
                world.request(n.to_string(), &tenant(1));
            }
            for (n, gate) in gates.iter().enumerate() {
                let running = max.min(gates.len() - n);
                wait_until(
                    &format!("{running} exports at once, blocks: {blocks}"),
                    || {
                        let in_flight = world.stats().in_flight as usize;
                        assert!(in_flight <= max);
                        world.exporter.running() == running && in_flight == running
                    },
                );
                gate.open();
            }
            world.flush().unwrap();
            assert_eq!(world.exporter.max_running(), max, "blocks: {blocks}");
        }
    }
}

/// Scenario: no limit of concurrent exports.
/// Guarantees: fifty exports that wait run at once, as futures; and fifty that block, too.
#[test]
fn zero_concurrent_exports_is_no_limit() {
    for blocks in [false, true] {
        let gate = Gate::default();
        let act = if blocks {
            Act::Block(gate.clone())
        } else {
            Act::Hang(gate.clone())
        };
        let world = World::with_exporter(
            Config::default().with_max_concurrent_exports(0),
            Recorder::always(act),
        );
        for _ in 0..50 {
            world.request("span", &tenant(1));
        }
        wait_until("all at once", || world.exporter.running() == 50);
        gate.open();
        world.flush().unwrap();
    }
}

/// Scenario: an asynchronous export does not end in time, with one slot only, and another batch waits for it.
/// Guarantees: it is cancelled and counted as failed and timed out; the slot is free for the next one.
#[test]
fn asynchronous_export_is_cancelled_at_its_timeout() {
    let gate = Gate::default();
    let hang = gate.clone();
    let world = World::with_exporter(
        Config::default()
            .with_max_concurrent_exports(1)
            .with_export_timeout(Duration::from_millis(100)),
        Recorder::by(move |spans| match spans[0].name.as_ref() {
            "hangs" => Act::Hang(hang.clone()),
            _ => Act::Take,
        }),
    );
    world.request("hangs", &tenant(1));
    wait_until("in flight", || world.exporter.running() == 1);
    world.request("next", &tenant(2));
    wait_until("both done", || world.stats().pending() == 0);
    let stats = world.stats();
    assert_eq!(
        (stats.exported, stats.failed, stats.timed_out_exports),
        (1, 1, 1)
    );
    assert_eq!(world.exporter.running(), 0, "cancelled");
    assert!(!world.exporter.seen().is_empty());
    gate.open();
    assert_eq!(world.exporter.out(), 1);
}

/// Scenario: an export blocks its thread beyond the timeout, with one slot only.
/// Guarantees: its spans are failed at the deadline, but its slot stays taken until it returns; its late success changes
/// nothing.
#[test]
fn blocking_export_is_failed_at_its_timeout_and_keeps_its_slot_until_it_returns() {
    let gate = Gate::default();
    let block = gate.clone();
    let world = World::with_exporter(
        Config::default()
            .with_max_concurrent_exports(1)
            .with_export_timeout(Duration::from_millis(100)),
        Recorder::by(move |spans| match spans[0].name.as_ref() {
            "blocks" => Act::Block(block.clone()),
            _ => Act::Take,
        }),
    );
    let begun = Instant::now();
    world.request("blocks", &tenant(1));
    wait_until("failed", || world.stats().failed == 1);
    assert!(begun.elapsed() < Duration::from_secs(3));
    world.request("next", &tenant(2));
    wait_until("next in line", || world.stats().waiting == 1);
    assert_eq!((world.exporter.running(), world.exporter.entered()), (1, 1));
    assert_eq!(world.stats().timed_out_exports, 1);
    gate.open();
    wait_until("the next one", || world.stats().exported == 1);
    assert_eq!(world.exporter.max_running(), 1);
    let stats = world.stats();
    assert_eq!((stats.ended, stats.failed, stats.exports), (2, 1, 2));
}

/// Scenario: a thousand traces come and go beside one that stays open and is used all the time.
/// Guarantees: finished traces make room by themselves: nothing is evicted.
#[test]
fn finished_traces_do_not_take_the_place_of_live_ones() {
    let world = World::new(Config::default().with_max_traces(2));
    let open = world.start("open", &tenant(1));
    for _ in 0..1000 {
        world.request("span", &tenant(2));
    }
    assert!(open.span().is_recording());
    assert_eq!((world.stats().evicted_traces, world.stats().traces), (0, 1));
}

/// Scenario: a limit of a million traces is built and dropped.
/// Guarantees: room that is not used is not reserved: it takes no time to speak of.
#[test]
fn huge_limits_reserve_nothing() {
    within(SOON, "a hundred processors with huge limits", || {
        for _ in 0..100 {
            let config = Config::default()
                .with_max_traces(usize::MAX)
                .with_max_spans_per_trace(usize::MAX)
                .with_max_batch_size(usize::MAX)
                .with_max_pending_spans(usize::MAX)
                .with_max_concurrent_exports(usize::MAX)
                .with_export_timeout(Duration::MAX);
            let world = World::new(config);
            world.request("span", &tenant(1));
            world.flush().unwrap();
        }
    });
}
