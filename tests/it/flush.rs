//! A flush tells the truth (R11).

use std::time::{Duration, Instant};

use opentelemetry::trace::TraceContextExt as _;
use opentelemetry_per_request::{Config, FlushError};
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};

use crate::support::exporter::Call;
use crate::support::{
    Act, Gate, Recorder, SOON, StopOnDrop, World, balanced, held_back, some_trace, soon, tenant,
    wait_until, within,
};

/// The ways to flush everything.
#[derive(Clone, Copy, Debug)]
enum Way {
    Flush,
    FlushWithTimeout,
    ForceFlush,
}

impl Way {
    const ALL: [Self; 3] = [Self::Flush, Self::FlushWithTimeout, Self::ForceFlush];

    /// The error as text, which is what `force_flush` makes of it.
    fn run(self, world: &World) -> Result<(), String> {
        let result = match self {
            Way::Flush => soon(world.telemetry.flush()).map_err(|error| error.to_string()),
            Way::FlushWithTimeout => {
                soon(world.telemetry.flush_with_timeout(SOON)).map_err(|error| error.to_string())
            }
            Way::ForceFlush => {
                let provider = world.provider.clone();
                within(SOON, "force_flush", move || provider.force_flush())
                    .map_err(|error| error.to_string())
            }
        };
        balanced(&world.telemetry);
        result
    }
}

fn fails_if_named(name: &'static str) -> Recorder {
    Recorder::by(
        move |spans| match spans.iter().any(|span| span.name == name) {
            true => Act::Fail("named to fail"),
            false => Act::Take,
        },
    )
}

/// Scenario: one batch fails and others do not; then everything is fine; for each way to flush.
/// Guarantees: the flush after the failure says how many spans, whenever the batch failed; the next one succeeds.
#[test]
fn flush_fails_if_any_batch_failed_since_the_last_flush() {
    for way in Way::ALL {
        let world = World::with_exporter(Config::default(), fails_if_named("bad"));
        assert_eq!(way.run(&world), Ok(()), "{way:?} with nothing to do");
        for name in ["good", "bad", "good"] {
            world.request(name, &tenant(1));
        }
        // The failure is over before the flush begins.
        wait_until("all done", || world.stats().pending() == 0);
        world.request("good", &tenant(1));
        let error = way.run(&world).unwrap_err();
        assert!(error.contains("1 failed to export"), "{way:?}: {error}");
        world.request("good", &tenant(1));
        assert_eq!(way.run(&world), Ok(()), "{way:?} afterwards");
        let stats = world.stats();
        assert_eq!((stats.exported, stats.failed), (4, 1));
    }
}

/// Scenario: spans were dropped because too many were pending.
/// Guarantees: the next flush says so, and only that one.
#[test]
fn flush_fails_if_spans_were_dropped_since_the_last_flush() {
    for way in Way::ALL {
        let gate = Gate::default();
        let world = World::with_exporter(
            Config::default().with_max_pending_spans(2),
            Recorder::always(Act::Hang(gate.clone())),
        );
        for _ in 0..5 {
            world.request("span", &tenant(1));
        }
        gate.open();
        let error = way.run(&world).unwrap_err();
        assert!(error.contains("3 were dropped"), "{way:?}: {error}");
        assert_eq!(way.run(&world), Ok(()));
    }
}

/// Scenario: an export is in flight, another batch waits for its slot, a third span is queued; then the gate opens.
/// Guarantees: the flush is not done before all of them are.
#[test]
fn flush_waits_for_what_is_queued_waiting_and_in_flight() {
    for way in Way::ALL {
        let gate = Gate::default();
        let world = World::with_exporter(
            held_back()
                .with_max_concurrent_exports(1)
                .with_max_batch_size(1),
            Recorder::always(Act::Hang(gate.clone())),
        );
        world.request("in flight", &tenant(1));
        wait_until("in flight", || world.stats().in_flight == 1);
        world.request("waiting", &tenant(1));
        let root = world.start("open", &tenant(1));
        let child = world.start("queued", &root);
        world.end(&child);
        std::thread::scope(|scope| {
            let flushed = scope.spawn(|| way.run(&world));
            wait_until("the flush has taken the queue", || {
                world.stats().queued == 0
            });
            assert!(!flushed.is_finished(), "{way:?}");
            assert_eq!(world.exporter.count(Call::ForceFlush), 0);
            gate.open();
            assert_eq!(flushed.join().unwrap(), Ok(()));
        });
        assert_eq!(world.exporter.out(), 3, "{way:?}");
        assert_eq!(world.exporter.calls(), [Call::ForceFlush], "{way:?}");
    }
}

/// Scenario: an exporter that keeps what it takes until it is flushed, and one whose `force_flush` fails or panics.
/// Guarantees: after a flush its data is out; its failure is the flush's; nothing of the host's breaks.
#[test]
fn flush_calls_the_exporters_force_flush() {
    for way in Way::ALL {
        let world = World::with_exporter(Config::default(), Recorder::buffering());
        world.request("span", &tenant(1));
        assert_eq!(way.run(&world), Ok(()));
        assert_eq!(world.exporter.out(), 1);

        world
            .exporter
            .set_on_flush(|| Err(OTelSdkError::InternalFailure("disk full".into())));
        assert!(
            way.run(&world).unwrap_err().contains("disk full"),
            "{way:?}"
        );
        world
            .exporter
            .set_on_flush(|| panic!("a force_flush that panics, as its test says"));
        assert!(way.run(&world).unwrap_err().contains("panics"), "{way:?}");
        world.exporter.set_on_flush(|| Ok(()));
        assert_eq!(way.run(&world), Ok(()));
    }
}

/// Scenario: an exporter never answers; or its `force_flush` does not return.
/// Guarantees: the flush ends at its deadline with the error that says so, and what is under way goes on.
#[test]
fn flush_respects_its_deadline() {
    let gate = Gate::default();
    let world = World::with_exporter(Config::default(), Recorder::always(Act::Hang(gate.clone())));
    world.request("span", &tenant(1));
    let short = Duration::from_millis(50);
    let begun = Instant::now();
    assert_eq!(
        soon(world.telemetry.flush_with_timeout(short)),
        Err(FlushError::Timeout(short))
    );
    assert!(begun.elapsed() >= short);
    assert_eq!(
        soon(world.telemetry.flush_with_timeout(Duration::ZERO)),
        Err(FlushError::Timeout(Duration::ZERO))
    );
    assert_eq!(world.stats().pending(), 1);
    gate.open();
    assert_eq!(world.flush(), Ok(()));
    assert_eq!(world.stats().exported, 1);

    let gate = Gate::default();
    let blocked = gate.clone();
    world.exporter.set_on_flush(move || -> OTelSdkResult {
        blocked.wait();
        Ok(())
    });
    assert_eq!(
        soon(world.telemetry.flush_with_timeout(short)),
        Err(FlushError::Timeout(short))
    );
    gate.open();
    assert_eq!(world.flush(), Ok(()));
}

/// Scenario: the export timeout, which is a flush's deadline by default, is short, and the exporter's flush blocks.
/// Guarantees: `force_flush` and `flush` return by then.
#[test]
fn export_timeout_is_the_deadline_of_a_flush_without_one() {
    for way in [Way::Flush, Way::ForceFlush] {
        let gate = Gate::default();
        let world = World::new(Config::default().with_export_timeout(Duration::from_millis(100)));
        let blocked = gate.clone();
        world.exporter.set_on_flush(move || {
            blocked.wait();
            Ok(())
        });
        assert!(way.run(&world).is_err(), "{way:?}");
        gate.open();
    }
}

/// Scenario: with `LocalRootEnd` a child has ended under an open root, and a flush is called and never polled.
/// Guarantees: the flush starts at the call.
#[test]
fn flush_starts_when_it_is_called_and_not_when_it_is_polled() {
    let world = World::new(held_back());
    let root = world.start("root", &tenant(1));
    let child = world.start("child", &root);
    world.end(&child);
    let never_polled = world.telemetry.flush();
    world.wait_for_spans(&["child"]);
    wait_until("the exporter's flush", || {
        world.exporter.count(Call::ForceFlush) == 1
    });
    drop(never_polled);
    world.end(&root);
    assert_eq!(world.flush(), Ok(()));
}

/// Scenario: flushes begin while an export hangs, and their futures are dropped, polled once or never. Then it succeeds.
/// Guarantees: that harms nothing, and a later flush works.
#[test]
fn flush_dropped_half_way_is_harmless() {
    let gate = Gate::default();
    let world = World::with_exporter(Config::default(), Recorder::always(Act::Hang(gate.clone())));
    let trace = world.request("span", &tenant(1));
    for _ in 0..10 {
        drop(world.telemetry.flush());
        drop(world.telemetry.flush_trace(trace));
        let mut polled = Box::pin(world.telemetry.flush());
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(polled.as_mut().poll(&mut cx).is_pending());
    }
    gate.open();
    assert_eq!(world.flush(), Ok(()));
    assert_eq!(world.stats().exported, 1);
}

/// Scenario: a flush's future is dropped while an export hangs, and then that export fails.
/// Guarantees: what the dropped flush would have reported is left for the next one.
#[test]
fn losses_that_a_dropped_flush_would_have_reported_are_left_for_the_next() {
    let gate = Gate::default();
    let world = World::with_exporter(
        Config::default(),
        Recorder::always(Act::HangAndFail(gate.clone())),
    );
    let trace = world.request("span", &tenant(1));
    drop(world.telemetry.flush());
    drop(world.telemetry.flush_trace(trace));
    gate.open();
    wait_until("the dropped flushes are over", || {
        world.exporter.count(Call::ForceFlush) == 2
    });
    let lost = Err(FlushError::Lost {
        failed: 1,
        dropped: 0,
    });
    assert_eq!(world.flush(), lost, "of everything");
    assert_eq!(
        soon(world.telemetry.flush_trace(trace)),
        lost,
        "of the trace"
    );
}

/// Scenario: a batch failed, and the flush that would report it times out because the exporter's `force_flush` blocks.
/// Guarantees: the loss is not forgotten: the next flush reports it.
#[test]
fn losses_are_not_forgotten_by_a_flush_that_times_out() {
    let gate = Gate::default();
    let world = World::with_exporter(Config::default(), Recorder::always(Act::Fail("no")));
    let blocked = gate.clone();
    world.exporter.set_on_flush(move || {
        blocked.wait();
        Ok(())
    });
    world.request("span", &tenant(1));
    let timeout = Duration::from_millis(100);
    assert_eq!(
        soon(world.telemetry.flush_with_timeout(timeout)),
        Err(FlushError::Timeout(timeout))
    );
    gate.open();
    assert_eq!(
        world.flush(),
        Err(FlushError::Lost {
            failed: 1,
            dropped: 0
        })
    );
}

/// Scenario: another trace's export hangs, as a future or on its thread; this trace's does not.
/// Guarantees: `flush_trace` waits for its own trace only, and reports its own losses only.
#[test]
fn flush_trace_does_not_wait_for_another_traces_export() {
    for blocks in [false, true] {
        let gate = Gate::default();
        let hang = gate.clone();
        let world = World::with_exporter(
            held_back(),
            Recorder::by(move |spans| match spans[0].name.as_ref() {
                "hangs" if blocks => Act::Block(hang.clone()),
                "hangs" => Act::Hang(hang.clone()),
                "fails" => Act::Fail("no"),
                _ => Act::Take,
            }),
        );
        let hung = world.request("hangs", &tenant(1));
        wait_until("the hung export", || world.exporter.running() == 1);
        let failed = world.request("fails", &tenant(2));
        let root = world.start("root", &tenant(3));
        let child = world.start("child", &root);
        world.end(&child);
        let good = root.span().span_context().trace_id();
        assert_eq!(
            soon(world.telemetry.flush_trace(good)),
            Ok(()),
            "blocks: {blocks}"
        );
        assert_eq!(
            world.exporter.span("child").1,
            Some(crate::support::Tenant(3))
        );
        assert_eq!(
            soon(world.telemetry.flush_trace(failed)),
            Err(FlushError::Lost {
                failed: 1,
                dropped: 0
            })
        );
        assert_eq!(soon(world.telemetry.flush_trace(failed)), Ok(()));
        assert_eq!(soon(world.telemetry.flush_trace(some_trace())), Ok(()));
        let flush = world.telemetry.flush_trace(hung);
        gate.open();
        assert_eq!(soon(flush), Ok(()));
        balanced(&world.telemetry);
    }
}

/// Scenario: spans of a trace are dropped because too many are pending.
/// Guarantees: its `flush_trace` counts them as dropped, not as failed.
#[test]
fn flush_trace_tells_dropped_spans_from_failed_ones() {
    let world = World::new(Config::default().with_max_spans_per_trace(1));
    let root = world.start("root", &tenant(1));
    let refused = world.start("refused", &root);
    world.end(&refused);
    world.end(&root);
    let trace = root.span().span_context().trace_id();
    assert_eq!(
        soon(world.telemetry.flush_trace(trace)),
        Err(FlushError::Lost {
            failed: 0,
            dropped: 1
        })
    );
}

/// Scenario: late spans of two traces wait to leave, and one of the traces is flushed.
/// Guarantees: `flush_trace` covers late spans, too.
#[test]
fn flush_trace_covers_late_spans() {
    let world = World::new(Config::default().with_max_traces(1));
    let old = world.start("old", &tenant(1));
    let _new = world.start("new", &tenant(2));
    world.end(&old);
    let trace = old.span().span_context().trace_id();
    assert_eq!(soon(world.telemetry.flush_trace(trace)), Ok(()));
    assert_eq!(world.exporter.names(), ["old"]);
    assert_eq!(world.exporter.out(), 1);
}

/// Scenario: spans end without a pause on another thread, and the exporter is slow to take them.
/// Guarantees: a flush covers what had ended before the call, and comes to an end although there is always more.
#[test]
fn flush_ends_although_spans_keep_ending() {
    let world = World::new(Config::default().with_max_concurrent_exports(1));
    let stop = std::sync::atomic::AtomicBool::new(false);
    let before = world.request("before", &tenant(1));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                world.request("more", &tenant(1));
                std::thread::yield_now();
            }
        });
        let _stop = StopOnDrop(&stop);
        for _ in 0..20 {
            // Spans may be dropped for want of room: that is a loss, but no timeout.
            let result = soon(world.telemetry.flush());
            assert!(
                matches!(result, Ok(()) | Err(FlushError::Lost { .. })),
                "{result:?}"
            );
        }
    });
    let exported = world.exporter.spans();
    assert!(
        exported
            .iter()
            .any(|(span, _)| span.span_context.trace_id() == before)
    );
}

/// Scenario: a thousand flushes at once, from several threads, while batches fail now and then.
/// Guarantees: each comes to an end, and each failed span is reported at least once.
#[test]
fn concurrent_flushes_all_end_and_report_every_loss() {
    let world = World::with_exporter(Config::default(), fails_if_named("bad"));
    let reported: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut reported = 0;
                    for n in 0..50 {
                        world.request(if n % 5 == 0 { "bad" } else { "good" }, &tenant(1));
                        if let Err(FlushError::Lost { failed, .. }) = soon(world.telemetry.flush())
                        {
                            reported += failed;
                        }
                        balanced(&world.telemetry);
                    }
                    reported
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    });
    assert_eq!(world.stats().failed, 40);
    assert!(reported >= 40, "reported {reported} of 40");
}
