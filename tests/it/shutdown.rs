//! Shutting down: once, in order, by its deadline, and with nothing left behind (R11).

use std::time::{Duration, Instant};

use opentelemetry::trace::{Span as _, Tracer as _};
use opentelemetry_per_request::{Config, DropReason, FlushError};
use opentelemetry_sdk::error::OTelSdkError;

use crate::support::exporter::Call;
use crate::support::{
    Act, Gate, Recorder, SOON, Witness, World, balanced, held_back, soon, tenant, wait_until,
    within,
};

fn shutdown(world: &World) -> Result<(), FlushError> {
    let result = soon(world.telemetry.shutdown(SOON));
    balanced(&world.telemetry);
    result
}

/// Scenario: everything is in use when the handle, or the provider, shuts down: a queue under an open root, a late span.
/// Guarantees: all that had ended is exported, then the exporter is flushed, then shut down, each once; a second
/// shutdown of either kind, and the drop, add nothing and succeed.
#[test]
fn shutdown_flushes_then_shuts_the_exporter_down_exactly_once() {
    for by_handle in [true, false] {
        let world = World::with_exporter(held_back().with_max_traces(1), Recorder::buffering());
        let late = world.start("late", &tenant(1));
        let root = world.start("open", &tenant(2));
        let child = world.start("child", &root);
        world.end(&child);
        world.end(&late);
        match by_handle {
            true => assert_eq!(shutdown(&world), Ok(())),
            false => {
                let provider = world.provider.clone();
                within(SOON, "shutdown", move || provider.shutdown()).unwrap();
            }
        }
        assert_eq!(world.exporter.names(), ["child", "late"]);
        assert_eq!(world.exporter.out(), 2);
        assert_eq!(world.exporter.calls(), [Call::ForceFlush, Call::Shutdown]);

        assert_eq!(shutdown(&world), Ok(()), "a second time");
        if by_handle {
            assert!(
                world.provider.shutdown().is_ok(),
                "the provider's, after the handle's"
            );
        }
        let World {
            provider,
            exporter,
            tracer,
            telemetry,
        } = world;
        drop((late, root, child, tracer, provider));
        assert_eq!(exporter.calls(), [Call::ForceFlush, Call::Shutdown]);
        assert_eq!(soon(telemetry.flush()), Err(FlushError::AlreadyShutdown));
        balanced(&telemetry);
    }
}

/// Scenario: spans start and end after the handle's shutdown, which the SDK's provider knows nothing of.
/// Guarantees: they are counted as `already_shutdown`, their contexts are not kept, and every flush says why it fails.
#[test]
fn spans_after_a_shutdown_count_as_already_shutdown() {
    let world = World::new(Config::default());
    let open = world.start("open", &tenant(1));
    assert_eq!(shutdown(&world), Ok(()));
    world.end(&open);
    let (witness, alive) = Witness::new();
    let cx = tenant(2).with_value(witness);
    let mut root = world.tracer.start_with_context("root", &cx);
    drop(cx);
    assert!(!alive.is_alive());
    root.end();
    let stats = world.stats();
    assert_eq!(stats.dropped.by(DropReason::AlreadyShutdown), 2);
    assert_eq!((stats.ended, stats.pending(), stats.traces), (2, 0, 0));
    assert_eq!(world.flush(), Err(FlushError::AlreadyShutdown));
    assert_eq!(
        soon(world.telemetry.flush_trace(crate::support::some_trace())),
        Err(FlushError::AlreadyShutdown)
    );
    let error = world.provider.force_flush().unwrap_err().to_string();
    assert!(error.contains("AlreadyShutdown"), "{error}");
    assert_eq!(world.exporter.entered(), 0);
}

/// Scenario: a batch failed since the last flush; or the exporter's own shutdown fails or panics.
/// Guarantees: the shutdown says so, and the processor is shut down nevertheless.
#[test]
fn shutdown_reports_losses_and_the_exporters_failure() {
    let world = World::with_exporter(Config::default(), Recorder::always(Act::Fail("no")));
    world.request("span", &tenant(1));
    assert_eq!(
        shutdown(&world),
        Err(FlushError::Lost {
            failed: 1,
            dropped: 0
        })
    );
    assert_eq!(world.exporter.calls(), [Call::ForceFlush, Call::Shutdown]);

    let world = World::new(Config::default());
    world
        .exporter
        .set_on_shutdown(|| Err(OTelSdkError::InternalFailure("stuck".into())));
    assert!(shutdown(&world).unwrap_err().to_string().contains("stuck"));
    assert_eq!(shutdown(&world), Ok(()));

    let world = World::new(Config::default());
    world
        .exporter
        .set_on_shutdown(|| panic!("a shutdown that panics, as its test says"));
    assert!(shutdown(&world).is_err());
    assert_eq!(shutdown(&world), Ok(()));

    // A flush that fails does not keep the exporter from being shut down.
    let world = World::new(Config::default());
    world
        .exporter
        .set_on_flush(|| Err(OTelSdkError::InternalFailure("disk full".into())));
    assert!(
        shutdown(&world)
            .unwrap_err()
            .to_string()
            .contains("disk full")
    );
    assert_eq!(world.exporter.calls(), [Call::ForceFlush, Call::Shutdown]);
}

/// Scenario: the exporter never answers, as a future or on its thread, and many batches wait for a slot.
/// Guarantees: the shutdown returns by its deadline; what waits is dropped as `shutdown_timeout` with its contexts;
/// what is in flight is accounted for at its own deadline; the exporter is shut down after that, once.
#[test]
fn shutdown_with_a_hung_exporter_returns_by_its_deadline() {
    for blocks in [false, true] {
        let gate = Gate::default();
        let act = match blocks {
            true => Act::Block(gate.clone()),
            false => Act::Hang(gate.clone()),
        };
        let config = Config::default()
            .with_max_concurrent_exports(2)
            .with_export_timeout(Duration::from_secs(2));
        let world = World::with_exporter(config, Recorder::always(act));
        let mut alive = Vec::new();
        let mut request = |world: &World| {
            let (witness, watch) = Witness::new();
            world.request("span", &tenant(1).with_value(witness));
            alive.push(watch);
        };
        (0..2).for_each(|_| request(&world));
        wait_until("both slots taken", || world.exporter.running() == 2);
        (0..10).for_each(|_| request(&world));
        let timeout = Duration::from_millis(200);
        let begun = Instant::now();
        assert_eq!(
            soon(world.telemetry.shutdown(timeout)),
            Err(FlushError::Timeout(timeout))
        );
        assert!(
            begun.elapsed() < Duration::from_secs(2),
            "{:?}",
            begun.elapsed()
        );
        let stats = world.stats();
        assert_eq!(
            stats.dropped.by(DropReason::ShutdownTimeout),
            10,
            "{stats:?}"
        );
        wait_until("the contexts of what waited are gone", || {
            alive[2..].iter().all(|alive| !alive.is_alive())
        });
        wait_until("what was in flight is accounted for", || {
            world.stats().failed == 2
        });
        if blocks {
            gate.open();
        }
        wait_until("all contexts are gone", || {
            alive.iter().all(|alive| !alive.is_alive())
        });
        wait_until("the exporter's shutdown", || {
            world.exporter.count(Call::Shutdown) == 1
        });
        assert_eq!(world.stats().pending(), 0);
        drop(world.provider);
        drop(world.tracer);
        assert_eq!(world.exporter.count(Call::Shutdown), 1);
    }
}

/// Scenario: a shutdown waits for an export in flight, and is dropped half-way.
/// Guarantees: it goes on without its caller: the exporter is shut down once the export is done.
#[test]
fn shutdown_dropped_half_way_still_shuts_the_exporter_down() {
    let gate = Gate::default();
    let world = World::with_exporter(Config::default(), Recorder::always(Act::Hang(gate.clone())));
    world.request("span", &tenant(1));
    drop(world.telemetry.shutdown(SOON));
    gate.open();
    wait_until("the shutdown", || world.exporter.count(Call::Shutdown) == 1);
    assert_eq!(world.stats().exported, 1);
}

/// Scenario: a flush waits for an export in flight when the processor is shut down.
/// Guarantees: both are answered, once the export is done.
#[test]
fn flush_under_way_during_a_shutdown_is_answered() {
    let gate = Gate::default();
    let world = World::with_exporter(Config::default(), Recorder::always(Act::Hang(gate.clone())));
    world.request("span", &tenant(1));
    let flush = world.telemetry.flush();
    let shutdown = world.telemetry.shutdown(SOON);
    gate.open();
    assert_eq!(soon(flush), Ok(()));
    assert_eq!(soon(shutdown), Ok(()));
    assert_eq!(world.exporter.calls().last(), Some(&Call::Shutdown));
    balanced(&world.telemetry);
}

/// Scenario: providers are made, used and dropped, many times, with and without a shutdown.
/// Guarantees: no thread of theirs stays behind (where the system tells).
#[cfg(target_os = "linux")]
#[test]
fn threads_end_after_the_shutdown() {
    // Threads of other tests come and go, but each processor has threads of these names only while it runs, so a leak
    // of a hundred would show.
    let threads = || {
        std::fs::read_dir("/proc/self/task")
            .unwrap()
            .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
            .filter(|name| name.starts_with("otel-per-reques"))
            .count()
    };
    for n in 0..100 {
        let world = World::new(Config::default());
        world.request("span", &tenant(1));
        if n % 2 == 0 {
            assert_eq!(shutdown(&world), Ok(()));
        }
    }
    wait_until("the threads of a hundred processors are gone", || {
        threads() < 100
    });
}

/// Scenario: shut down with nothing to do, with no span ever, and with an open span only.
/// Guarantees: it succeeds, promptly, and the exporter was never asked to export.
#[test]
fn shutdown_without_any_span_succeeds() {
    for open in [false, true] {
        let world = World::new(held_back());
        let _open = open.then(|| world.start("open", &tenant(1)));
        assert_eq!(shutdown(&world), Ok(()));
        assert_eq!(world.exporter.entered(), 0);
        assert_eq!(world.exporter.calls(), [Call::ForceFlush, Call::Shutdown]);
        assert_eq!(world.stats().traces, 0);
    }
}

/// Scenario: a shutdown without any time, of an idle processor and of one whose export hangs for a while.
/// Guarantees: it returns at once, and the exporter is shut down nevertheless, once, after what is in flight.
#[test]
fn shutdown_without_time_still_shuts_the_exporter_down() {
    for hangs in [false, true] {
        let gate = Gate::default();
        let world =
            World::with_exporter(Config::default(), Recorder::always(Act::Hang(gate.clone())));
        if hangs {
            world.request("span", &tenant(1));
            wait_until("in flight", || world.exporter.running() == 1);
        }
        let result = soon(world.telemetry.shutdown(Duration::ZERO));
        assert!(
            matches!(result, Ok(()) | Err(FlushError::Timeout(Duration::ZERO))),
            "{result:?}"
        );
        assert!(!hangs || world.exporter.count(Call::Shutdown) == 0);
        gate.open();
        wait_until("the exporter's shutdown", || {
            world.exporter.count(Call::Shutdown) == 1
        });
        assert_eq!(world.stats().exported, u64::from(hangs));
        let World {
            provider,
            tracer,
            exporter,
            ..
        } = world;
        drop((provider, tracer));
        assert_eq!(exporter.count(Call::Shutdown), 1);
    }
}
