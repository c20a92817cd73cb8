//! The accounting law holds at every moment, whatever the exporter does (R12).

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use opentelemetry::trace::TraceContextExt as _;
use opentelemetry_per_request::{Config, FlushTrigger};

use crate::support::{Act, Gate, Recorder, StopOnDrop, World, balanced, soon, tenant, wait_until};

const THREADS: u32 = 4;
const REQUESTS: u32 = 300;

/// Ends spans in many ways from several threads while another one checks the law, and some flush.
fn storm(world: &World) {
    let done = AtomicBool::new(false);
    let checks = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut last = balanced(&world.telemetry);
            while !done.load(Ordering::Relaxed) {
                let stats = balanced(&world.telemetry);
                assert!(stats.ended >= last.ended && stats.exported >= last.exported);
                assert!(
                    stats.failed >= last.failed && stats.dropped.total() >= last.dropped.total()
                );
                last = stats;
                checks.fetch_add(1, Ordering::Relaxed);
            }
        });
        let stop = StopOnDrop(&done);
        let workers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let checks = &checks;
                scope.spawn(move || {
                    // The one who checks has begun.
                    wait_until("a check", || checks.load(Ordering::Relaxed) > 0);
                    for n in 0..REQUESTS {
                        let root = world.start("root", &tenant(thread));
                        let late = world.start("late", &root);
                        for _ in 0..n % 7 {
                            let child = world.start("child", &root);
                            child.span().end();
                        }
                        if n % 50 == 0 {
                            drop(world.telemetry.flush());
                            drop(
                                world
                                    .telemetry
                                    .flush_trace(root.span().span_context().trace_id()),
                            );
                        }
                        root.span().end();
                        drop(late);
                    }
                })
            })
            .collect();
        workers
            .into_iter()
            .for_each(|worker| worker.join().unwrap());
        drop(stop);
    });
    assert!(checks.into_inner() > 0);
}

/// Scenario: four threads end spans of all kinds while a fifth checks; the exporter takes, fails, panics, is slow, blocks,
/// never answers, or does all of that in turn; traces are evicted and limits reached.
/// Guarantees: the numbers add up in every snapshot and never go down, and in the end nothing is pending.
#[test]
fn numbers_add_up_at_every_moment_under_concurrency() {
    type Make = fn(Gate) -> Recorder;
    let cases: [(&str, Make); 6] = [
        ("takes", |_| Recorder::new()),
        ("fails", |_| Recorder::always(Act::Fail("no"))),
        ("panics", |_| Recorder::always(Act::Panic)),
        ("hangs", |gate| Recorder::always(Act::Hang(gate))),
        ("blocks", |gate| Recorder::always(Act::Block(gate))),
        ("mixed", |gate| {
            let turn = AtomicU64::new(0);
            Recorder::by(move |_| match turn.fetch_add(1, Ordering::Relaxed) % 8 {
                0 => Act::Fail("now and then"),
                1 => Act::Panic,
                2 => Act::Hang(gate.clone()),
                _ => Act::Take,
            })
        }),
    ];
    std::thread::scope(|scope| {
        for (case, exporter) in cases {
            scope.spawn(move || {
                for trigger in [FlushTrigger::NextTick, FlushTrigger::LocalRootEnd] {
                    let gate = Gate::default();
                    let config = Config::default()
                        .with_flush_trigger(trigger)
                        .with_max_traces(3)
                        .with_max_batch_size(3)
                        .with_max_spans_per_trace(6)
                        .with_max_pending_spans(500)
                        .with_export_timeout(Duration::from_millis(20));
                    let world = World::with_exporter(config, exporter(gate.clone()));
                    storm(&world);
                    gate.open();
                    let timeout = Duration::from_secs(30);
                    let _ = soon(world.telemetry.flush_with_timeout(timeout));
                    wait_until(case, || balanced(&world.telemetry).pending() == 0);
                    let stats = world.stats();
                    let children: u32 = (0..REQUESTS).map(|n| n % 7 + 2).sum();
                    assert_eq!(stats.ended, u64::from(THREADS * children), "{case}");
                    assert_eq!(stats.traces, 0, "{case}");
                    let _ = soon(world.telemetry.shutdown(timeout));
                    balanced(&world.telemetry);
                }
            });
        }
    });
}

/// Scenario: the same storm with room for everything and an exporter that takes it all.
/// Guarantees: each span that ended arrives exactly once.
#[test]
fn every_span_arrives_exactly_once() {
    for trigger in [FlushTrigger::NextTick, FlushTrigger::LocalRootEnd] {
        // So few traces that many spans are late.
        let config = Config::default()
            .with_flush_trigger(trigger)
            .with_max_traces(3);
        let world = World::with_exporter(config, Recorder::new());
        storm(&world);
        world.flush().unwrap();
        let spans = world.exporter.spans();
        let ids: HashSet<_> = spans
            .iter()
            .map(|(s, _)| s.span_context.span_id())
            .collect();
        let stats = world.stats();
        assert_eq!(spans.len() as u64, stats.ended);
        assert_eq!(ids.len() as u64, stats.ended);
        assert_eq!(stats.exported, stats.ended);
    }
}

/// Scenario: four threads, each with a tenant of its own, share a few trace ids; nothing is evicted.
/// Guarantees: no span ever leaves under another tenant's context.
#[test]
fn tenants_never_mix_under_concurrency() {
    let world = World::new(Config::default().with_max_spans_per_trace(0));
    let traces: Vec<_> = (0..3).map(|_| crate::support::some_trace()).collect();
    std::thread::scope(|scope| {
        for number in 1..=THREADS {
            let (world, traces) = (&world, &traces);
            scope.spawn(move || {
                let name = number.to_string();
                for n in 0..500 {
                    let root = world.continued(&name, number, traces[n % traces.len()]);
                    let child = world.start(name.clone(), &root);
                    let grandchild = world.start(name.clone(), &child);
                    world.end(&child);
                    world.end(&root);
                    world.end(&grandchild);
                }
            });
        }
    });
    world.flush().unwrap();
    let spans = world.exporter.spans();
    assert_eq!(spans.len(), 3 * 500 * THREADS as usize);
    for (span, tenant) in spans {
        assert_eq!(tenant.unwrap().0.to_string(), span.name);
    }
    assert_eq!(world.stats().late.total(), 0);
}
