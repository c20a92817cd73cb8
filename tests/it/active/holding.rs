//! `Handle::hold`: a request stays open without a span.

use std::sync::Barrier;
use std::thread;

use opentelemetry::Context;
use opentelemetry::trace::{SpanBuilder, SpanContext, TraceContextExt as _};
use opentelemetry_per_request::{Config, DropReason, Hold, LateReason, active_span};
use opentelemetry_sdk::trace::Sampler;

use super::{Service, block_on};
use crate::support::exporter::Call;
use crate::support::{
    Recorder, SOON, Tenant, Witness, World, balanced, held_back, remote_parent, some_trace, soon,
    tenant, wait_until,
};

/// Scenario: a request is held twice, by its root and by a child, and its root ends; a span starts, and the holds go in
/// either order.
/// Guarantees: it is open until the second goes, the span is its own, and then nothing of it is left.
#[test]
fn request_is_open_until_its_last_hold_goes() {
    for first in [0, 1] {
        let world = World::new(Config::default());
        let (witness, alive) = Witness::new();
        let root = world.start("root", &tenant(1).with_value(witness));
        let child = world.start("child", &root);
        let mut holds = vec![world.telemetry.hold(&root), world.telemetry.hold(&child)];
        world.end(&child);
        world.end(&root);
        drop((child, holds.remove(first)));
        world.flush().unwrap();
        assert_eq!(world.stats().traces, 1);
        world.end(&world.start("afterwards", &root));
        drop((root, holds));
        assert_eq!(world.stats().traces, 0);
        world.flush().unwrap();
        wait_until("the context is gone", || !alive.is_alive());
        let stats = world.stats();
        assert_eq!((stats.ended, stats.late.total()), (3, 0));
        assert_eq!(world.exporter.span("afterwards").1, Some(Tenant(1)));
    }
}

/// Scenario: a request whose root has ended is held, with either trigger, and somebody flushes.
/// Guarantees: the flush does not wait for the hold, and what has ended does not either.
#[test]
fn nothing_that_has_ended_waits_for_a_hold() {
    for config in [Config::default(), held_back()] {
        let world = World::new(config);
        let root = world.start("root", &tenant(1));
        let _hold = world.telemetry.hold(&root);
        world.end(&root);
        world.wait_for_spans(&["root"]);
        world.end(&world.start("afterwards", &root));
        world.wait_for_spans(&["afterwards", "root"]);
        world.flush().unwrap();
        assert_eq!(world.stats().traces, 1);
    }
}

/// Scenario: there is nothing to hold: no span, ids without a trace, a request that is elsewhere, over, or evicted, one
/// that is not sampled, a processor that is not enabled or has shut down.
/// Guarantees: nothing is kept open or counted, before the hold is dropped and after.
#[test]
fn what_is_not_there_cannot_be_held() {
    let world = World::new(Config::default().with_max_traces(1));
    let over = world.start("over", &tenant(1));
    world.end(&over);
    let evicted = world.start("evicted", &tenant(1));
    let live = world.start("live", &tenant(2));
    let unsampled = world.start("unsampled", &live);
    let remote = Context::new().with_remote_span_context(remote_parent(some_trace()));
    let beside =
        live.with_remote_span_context(remote_parent(live.span().span_context().trace_id()));
    let invalid = Context::new().with_remote_span_context(SpanContext::NONE);
    let before = world.stats();
    assert_eq!((before.traces, before.evicted_traces), (1, 1));
    for cx in [&Context::new(), &invalid, &remote, &over, &evicted, &beside] {
        let hold = world.telemetry.hold(cx);
        assert_eq!(world.stats().traces, 1);
        drop(hold);
    }
    let holds = [&evicted, &over, &beside].map(|cx| world.telemetry.hold(cx));
    world.end(&unsampled);
    world.end(&live);
    assert_eq!(world.stats().traces, 0, "held by {holds:?}");
    drop(holds);
    world.end(&evicted);
    world.flush().unwrap();
    let stats = world.stats();
    assert_eq!((stats.ended, stats.exported), (4, 4));
    assert_eq!(stats.late.by(LateReason::TraceEvicted), 1);
    assert_eq!((stats.late.total(), stats.traces), (1, 0));

    for config in [Config::default().with_enabled(false), Config::default()] {
        let world = World::new(config);
        let root = world.start("root", &tenant(1));
        soon(world.telemetry.shutdown(SOON)).unwrap();
        drop(world.telemetry.hold(&root));
        let hold = world.telemetry.hold(&root);
        world.end(&root);
        assert_eq!(world.stats().traces, 0);
        drop(hold);
        assert_eq!(world.stats().exported, 0);
    }
}

/// Scenario: a request whose spans are not sampled is held.
/// Guarantees: nothing is kept open: the processor never heard of it.
#[test]
fn unsampled_request_cannot_be_held() {
    use opentelemetry::trace::{Tracer as _, TracerProvider as _};
    use opentelemetry_per_request::PerRequestSpanProcessor;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    let processor = PerRequestSpanProcessor::builder(Recorder::new())
        .build()
        .unwrap();
    let telemetry = processor.handle();
    let provider = SdkTracerProvider::builder()
        .with_sampler(Sampler::AlwaysOff)
        .with_span_processor(processor)
        .build();
    let root = Context::new().with_span(provider.tracer("test").start("root"));
    let hold = telemetry.hold(&root);
    assert_eq!(balanced(&telemetry).traces, 0);
    drop(hold);
    assert_eq!(balanced(&telemetry).ended, 0);
}

/// Scenario: a trace has room for two spans: a root and a hold. A child starts, with the hold and after it. Then the other
/// way round: the hold is the one too many.
/// Guarantees: a hold takes the place of a span until it is dropped, and then no more. One that has no place keeps nothing
/// open, and nothing is counted for it.
#[test]
fn hold_takes_the_place_of_a_span() {
    let config = || Config::default().with_max_spans_per_trace(2);
    let world = World::new(config());
    let root = world.start("root", &tenant(1));
    let hold = world.telemetry.hold(&root);
    world.end(&world.start("refused", &root));
    drop(hold);
    for _ in 0..100 {
        drop(world.telemetry.hold(&root));
    }
    world.end(&world.start("taken", &root));
    world.end(&root);
    world.flush().unwrap_err();
    let stats = world.stats();
    assert_eq!(stats.dropped.by(DropReason::MaxSpansPerTrace), 1);
    assert_eq!((stats.exported, stats.traces), (2, 0));

    for release_first in [false, true] {
        let world = World::new(config());
        let root = world.start("root", &tenant(1));
        let child = world.start("child", &root);
        let refused = world.start("refused", &root);
        let mut hold = Some(world.telemetry.hold(&root));
        if release_first {
            hold = None;
        }
        world.end(&refused);
        world.end(&child);
        world.end(&root);
        assert_eq!(world.stats().traces, 0, "kept by {hold:?}");
        drop(hold);
        world.flush().unwrap_err();
        let stats = world.stats();
        assert_eq!(stats.dropped.by(DropReason::MaxSpansPerTrace), 1);
        assert_eq!((stats.ended, stats.exported), (3, 2));
        assert_eq!((stats.late.total(), stats.traces), (0, 0), "{stats:?}");
    }
}

/// Scenario: a hold is dropped after a shutdown, and after the provider is gone.
/// Guarantees: it keeps neither the exporter nor the provider, its request's context was let go at the shutdown, and its
/// drop disturbs nobody.
#[test]
fn hold_outlives_its_processor() {
    for by_drop in [false, true] {
        let world = World::new(Config::default());
        let (witness, alive) = Witness::new();
        let root = world.start("root", &tenant(1).with_value(witness));
        let hold = world.telemetry.hold(&root);
        world.end(&root);
        drop(root);
        let World {
            provider,
            telemetry,
            exporter,
            tracer,
        } = world;
        drop(tracer);
        match by_drop {
            true => drop(provider),
            false => provider.shutdown().unwrap(),
        }
        assert_eq!(exporter.count(Call::Shutdown), 1);
        assert_eq!(exporter.names(), ["root"]);
        wait_until("the context is gone", || !alive.is_alive());
        drop(hold);
        let stats = balanced(&telemetry);
        assert_eq!((stats.traces, stats.exported), (0, 1));
    }
}

/// Scenario: a request that a [`RequestTracer`](opentelemetry_per_request::RequestTracer) started is over and held, and the
/// provider and all tracers are dropped.
/// Guarantees: the exporter is shut down there and then: what is saved of the request owns no tracer.
#[test]
fn hold_keeps_no_provider_alive() {
    let service = Service::new();
    let hold = block_on(service.request("root", 1, async {
        let cx = active_span();
        active_span().start_child("child").end();
        // A local root of its own, in a context that knows the tracer.
        let other = cx
            .context()
            .with_remote_span_context(remote_parent(some_trace()));
        let other = service
            .tracer
            .start(SpanBuilder::from_name("another root"), &other);
        let holds = [cx, (*other).clone()].map(|span| service.handle().hold(span.context()));
        drop(other);
        holds
    }));
    assert_eq!(service.world.stats().traces, 2);
    let exporter = service.world.exporter.clone();
    drop(service);
    assert_eq!(exporter.count(Call::Shutdown), 1);
    drop(hold);
}

/// Scenario: the saved context of one request owns the hold of another. Both end, that of the owner first.
/// Guarantees: the processor drops the hold with the context, where it may; then the other request is over, too.
#[test]
fn hold_may_be_dropped_with_a_saved_context() {
    let world = World::new(Config::default());
    let (witness, alive) = Witness::new();
    let held = world.start("held", &tenant(1).with_value(witness));
    let hold = world.telemetry.hold(&held);
    let owner = world.start("owner", &tenant(2).with_value(hold));
    world.end(&held);
    drop(held);
    assert_eq!(world.stats().traces, 2);
    world.end(&owner);
    drop(owner);
    wait_until("both are over", || world.stats().traces == 0);
    wait_until("the context is gone", || !alive.is_alive());
    world.flush().unwrap();
    assert_eq!(world.stats().late.total(), 0);
}

/// Scenario: eight threads hold requests that others end meanwhile, start spans below them under the hold, and let go.
/// Guarantees: the numbers always add up; none of these spans is late, and no request stays.
#[test]
fn many_threads_hold_and_release() {
    const ROUNDS: u32 = 100;
    const THREADS: usize = 8;
    let world = World::new(Config::default());
    let barrier = Barrier::new(THREADS);
    let requests: Vec<_> = (0..ROUNDS)
        .map(|n| {
            let root = world.start(format!("{n}"), &tenant(n));
            let holds: Vec<Hold> = (0..THREADS).map(|_| world.telemetry.hold(&root)).collect();
            (root, holds)
        })
        .collect();
    let (roots, holds): (Vec<_>, Vec<_>) = requests.into_iter().unzip();
    let mut by_thread: Vec<Vec<Hold>> = (0..THREADS).map(|_| Vec::new()).collect();
    for holds in holds {
        for (thread, hold) in by_thread.iter_mut().zip(holds) {
            thread.push(hold);
        }
    }
    thread::scope(|scope| {
        for (at, holds) in by_thread.into_iter().enumerate() {
            let (world, roots, barrier) = (&world, &roots, &barrier);
            scope.spawn(move || {
                barrier.wait();
                for (root, hold) in roots.iter().zip(holds) {
                    if at == 0 {
                        world.end(root);
                    }
                    let more = world.telemetry.hold(root);
                    drop(hold);
                    let n = root.span().span_context().span_id();
                    world.end(&world.start(format!("{n}.{at}"), root));
                    drop(more);
                }
            });
        }
    });
    world.flush().unwrap();
    let stats = world.stats();
    assert_eq!(stats.ended, u64::from(ROUNDS) * (1 + THREADS as u64));
    assert_eq!((stats.late.total(), stats.traces), (0, 0), "{stats:?}");
    assert_eq!(stats.exported, stats.ended);
}
