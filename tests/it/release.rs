//! Nothing outlives its request, and nothing is kept alive by being saved (R2, R9).

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{Span, SpanContext, Status, TraceContextExt as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_per_request::{Config, DropReason};

use crate::support::exporter::Call;
use crate::support::{
    Act, Alive, Gate, Recorder, SOON, Tenant, Witness, World, held_back, remote_parent, some_trace,
    soon, tenant, wait_until, within,
};

/// A tenant's context with something whose drop is observed.
fn watched(number: u32) -> (Context, Alive) {
    let (witness, alive) = Witness::new();
    (tenant(number).with_value(witness), alive)
}

/// Runs a request of a root and a child, and keeps nothing of it.
fn run_request(world: &World) -> Alive {
    let (cx, alive) = watched(1);
    let root = world.start("root", &cx);
    let child = world.start("child", &root);
    world.end(&child);
    world.end(&root);
    alive
}

/// Scenario: a parent and its child are never ended, only dropped.
/// Guarantees: both end on drop, in the right request, although its context was saved.
#[test]
fn saved_context_does_not_keep_a_span_from_ending_on_drop() {
    let world = World::new(Config::default());
    let (cx, alive) = watched(1);
    let root = world.start("root", &cx);
    let child = world.start("child", &root);
    // A local root that starts in a context with a live span of the same provider.
    let linked = world.start(
        "continued",
        &root.with_remote_span_context(remote_parent(some_trace())),
    );
    drop((cx, root));
    drop(child);
    drop(linked);
    world.wait_for_spans(&["child", "continued", "root"]);
    wait_until("the context is gone", || !alive.is_alive());
}

/// Scenario: the provider is dropped with a request open, one queued, and a handle still held.
/// Guarantees: the exporter is flushed and shut down exactly once, with everything that had ended, and the contexts go.
#[test]
fn dropping_the_provider_shuts_the_exporter_down_exactly_once() {
    let world = World::new(held_back());
    let (cx, alive) = watched(1);
    let root = world.start("root", &cx);
    let child = world.start("child", &root);
    world.end(&child);
    let World {
        provider,
        telemetry,
        exporter,
        tracer,
    } = world;
    drop((tracer, child, cx));
    drop(provider);
    // The open span owns its tracer, and that the provider.
    assert_eq!(exporter.count(Call::Shutdown), 0);
    drop(root);
    assert_eq!(exporter.names(), ["child", "root"]);
    assert_eq!(exporter.calls(), [Call::ForceFlush, Call::Shutdown]);
    wait_until("the context is gone", || !alive.is_alive());
    assert!(telemetry.stats().is_balanced());
    drop(telemetry);
    assert_eq!(exporter.count(Call::Shutdown), 1);
}

/// Scenario: requests end in every way there is, with a huge `max_traces`.
/// Guarantees: once a request is over and its last batch is done, nothing of its context remains.
#[test]
fn nothing_of_a_context_remains_once_its_request_is_over() {
    let gate = Gate::default();
    let cases: [(&str, Recorder); 4] = [
        ("exported", Recorder::new()),
        ("failed", Recorder::always(Act::Fail("no"))),
        ("panicked", Recorder::always(Act::Panic)),
        ("timed out", Recorder::always(Act::Hang(gate.clone()))),
    ];
    for (case, exporter) in cases {
        let config = Config::default()
            .with_max_traces(usize::MAX)
            .with_export_timeout(Duration::from_millis(300));
        let world = World::with_exporter(config, exporter);
        let alive: Vec<_> = (0..50).map(|_| run_request(&world)).collect();
        // A flush has the export timeout for a deadline, too.
        let _ = soon(world.telemetry.flush_with_timeout(SOON));
        let left = alive.iter().filter(|alive| alive.is_alive()).count();
        assert_eq!(left, 0, "contexts left after the flush: {case}");
        let stats = world.stats();
        assert_eq!(
            (stats.ended, stats.pending(), stats.traces),
            (100, 0, 0),
            "{case}"
        );
        let good = if case == "exported" { 100 } else { 0 };
        assert_eq!((stats.exported, stats.failed), (good, 100 - good), "{case}");
    }
}

/// Scenario: an export hangs while its request is over.
/// Guarantees: the context is kept for as long as the export needs it, and no longer.
#[test]
fn context_is_kept_until_the_last_batch_is_done() {
    let gate = Gate::default();
    let world = World::with_exporter(Config::default(), Recorder::always(Act::Hang(gate.clone())));
    let alive = run_request(&world);
    wait_until("inside the exporter", || world.exporter.running() > 0);
    assert!(alive.is_alive());
    gate.open();
    wait_until("the context is gone", || !alive.is_alive());
}

/// Scenario: a trace is evicted with an open span; another request's only span is dropped for `queue_full`.
/// Guarantees: neither leaves its context behind.
#[test]
fn eviction_and_dropped_spans_release_the_context() {
    let gate = Gate::default();
    let config = Config::default()
        .with_max_traces(1)
        .with_max_pending_spans(1);
    let world = World::with_exporter(config, Recorder::always(Act::Hang(gate.clone())));
    let (cx, evicted) = watched(1);
    let open = opentelemetry::trace::Tracer::start_with_context(&world.tracer, "open", &cx);
    drop(cx);
    assert!(evicted.is_alive());
    world.request("evicts it", &tenant(2));
    wait_until("the evicted context is gone", || !evicted.is_alive());
    drop(open);

    wait_until("one pending", || world.stats().pending() == 1);
    let full = run_request(&world);
    assert!(world.stats().dropped.by(DropReason::QueueFull) >= 2);
    wait_until("the context of the dropped spans is gone", || {
        !full.is_alive()
    });
    gate.open();
}

/// Scenario: a request's context owns the last clone of its own provider.
/// Guarantees: when the request is over the provider goes with it, is shut down once, and nothing hangs or panics.
#[test]
fn provider_whose_last_owner_is_a_saved_context_is_shut_down_when_the_request_is_over() {
    within(SOON, "a request that owns its provider", || {
        let World {
            provider,
            telemetry,
            exporter,
            tracer,
        } = World::new(Config::default());
        let cx = tenant(1).with_value(Arc::new(provider));
        let span = opentelemetry::trace::Tracer::start_with_context(&tracer, "root", &cx);
        drop((tracer, cx));
        drop(span);
        wait_until("the shutdown", || exporter.count(Call::Shutdown) == 1);
        wait_until("the span", || exporter.names() == ["root"]);
        assert!(telemetry.stats().is_balanced());
        assert_eq!(exporter.span("root").1, Some(Tenant(1)));
    });
}

/// Scenario: the fallback context that is given holds a live span.
/// Guarantees: that span still ends when its owner lets go.
#[test]
fn fallback_context_keeps_no_span_alive() {
    let first = World::new(Config::default());
    let live = first.start("live", &tenant(1));
    let owned = live.clone();
    let _second = World::built(Config::default(), Recorder::new(), move |builder| {
        builder.with_fallback_context(owned)
    });
    drop(live);
    first.wait_for_spans(&["live"]);
}

/// A span that is nobody's parent, because it has no ids, or ids from elsewhere; its drop is observed.
#[derive(Debug)]
struct Watched(
    SpanContext,
    #[expect(dead_code, reason = "its drop is observed")] Witness,
);

impl Span for Watched {
    fn add_event_with_timestamp<T: Into<Cow<'static, str>>>(
        &mut self,
        _: T,
        _: SystemTime,
        _: Vec<KeyValue>,
    ) {
    }
    fn span_context(&self) -> &SpanContext {
        &self.0
    }
    fn is_recording(&self) -> bool {
        false
    }
    fn set_attribute(&mut self, _: KeyValue) {}
    fn set_status(&mut self, _: Status) {}
    fn update_name<T: Into<Cow<'static, str>>>(&mut self, _: T) {}
    fn add_link(&mut self, _: SpanContext, _: Vec<KeyValue>) {}
    fn end_with_timestamp(&mut self, _: SystemTime) {}
}

/// Scenario: a request starts in a context that owns a span without ids, or one that stands for a remote parent, with a
/// projection that keeps everything and without one.
/// Guarantees: while the request is live, the processor does not keep that span; the values beside it are kept.
#[test]
fn saved_context_owns_no_span() {
    for ids in [SpanContext::NONE, remote_parent(some_trace())] {
        for project in [false, true] {
            let world = World::built(
                Config::default(),
                Recorder::new(),
                |builder| match project {
                    true => builder.with_context_projection(Context::clone),
                    false => builder,
                },
            );
            let (witness, alive) = Witness::new();
            let cx = tenant(4).with_span(Watched(ids.clone(), witness));
            let root = world.start("root", &cx);
            drop(cx);
            assert!(!alive.is_alive(), "projected: {project}, {ids:?}");
            assert_eq!(world.stats().traces, 1);
            world.end(&root);
            world.flush().unwrap();
            assert_eq!(world.exporter.span("root").1, Some(Tenant(4)));
        }
    }
}
