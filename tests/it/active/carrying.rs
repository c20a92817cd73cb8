//! Work that takes its request along, and lets it go again.

use std::pin::Pin;
use std::thread;

use futures_util::{Stream, StreamExt as _, stream};
use opentelemetry::trace::SpanBuilder;
use opentelemetry_per_request::{
    Carried, Carry as _, Config, DropReason, LateReason, RequestTracer, active_span, in_child,
    in_child_sync,
};

use super::{CleansUp, Service, block_on, never, panic_of, poll_once, yield_now};
use crate::support::{
    Alive, SOON, Tenant, Witness, World, current_tenant, soon, tenant, wait_until,
};

/// What runs when a request is over.
type Later = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What carries that out of a request.
type Case = (&'static str, fn() -> Later);

/// A request that is over but for what `work` has carried out of it. Says whether its context is still there.
fn over<T>(service: &Service, number: u32, work: impl FnOnce() -> T) -> (T, Alive) {
    let (witness, alive) = Witness::new();
    let cx = tenant(number).with_value(witness);
    let request = service
        .tracer
        .start(SpanBuilder::from_name("root"), &cx)
        .run(async { work() });
    drop(cx);
    (block_on(request), alive)
}

/// Nothing of a request is there any more.
fn gone(service: &Service, alive: &Alive) {
    // What has ended leaves under the context.
    service.world.flush().unwrap();
    wait_until("the context is gone", || !alive.is_alive());
    assert_eq!(service.world.stats().traces, 0);
}

fn items() -> impl Stream<Item = u32> + Send + 'static {
    let guard = CleansUp("clean up");
    stream::unfold((0, guard), |(n, guard)| async move {
        in_child("item", yield_now()).await;
        (n < 3).then_some((n, (n + 1, guard)))
    })
}

/// Scenario: work of every kind is carried out of a request and runs when that is over: a task, closures on a pool and on
/// a thread of their own, and streams that others poll, to their end and not.
/// Guarantees: its spans are below the request's, under its context, and none is late; then the request is over.
#[test]
fn carried_work_stays_in_its_request_wherever_it_runs() {
    let cases: [Case; 5] = [
        ("a task", || {
            let work = async {
                yield_now().await;
                in_child("item", yield_now()).await;
            };
            let work = work.carried();
            Box::pin(async { tokio::spawn(work).await.unwrap() })
        }),
        ("a closure on a pool", || {
            let work = (|| in_child_sync("item", || {})).carried_fn();
            Box::pin(async { tokio::task::spawn_blocking(work).await.unwrap() })
        }),
        ("a closure on a thread", || {
            let work = (|| in_child_sync("item", current_tenant)).carried_fn();
            Box::pin(async {
                assert_eq!(thread::spawn(work).join().unwrap(), Some(Tenant(5)));
            })
        }),
        ("a stream that others poll", || {
            let items = items().carried();
            Box::pin(async {
                let polled = tokio::spawn(items.collect::<Vec<_>>()).await.unwrap();
                assert_eq!(polled, [0, 1, 2]);
            })
        }),
        ("a stream that is dropped early", || {
            let items = items().carried();
            Box::pin(async {
                let first = tokio::spawn(async move { Box::pin(items).next().await });
                assert_eq!(first.await.unwrap(), Some(0));
            })
        }),
    ];
    for (case, carry) in cases {
        let service = Service::new();
        let (work, alive) = over(&service, 5, carry);
        let stats = service.world.stats();
        assert_eq!((stats.ended, stats.traces), (1, 1), "{case}");
        assert!(alive.is_alive(), "{case}");
        block_on(work);
        gone(&service, &alive);
        let arrived = service.arrived();
        let tree = arrived.tree();
        assert!(tree.len() > 1, "{case}");
        for line in &tree {
            assert!(
                line.starts_with("root > ") || line == " > root",
                "{case}: {line}"
            );
        }
        let tenants = arrived.0.iter().map(|(_, tenant)| *tenant);
        assert!(tenants.into_iter().all(|t| t == Some(Tenant(5))), "{case}");
        if case.starts_with("a stream") {
            assert!(tree.contains(&"root > clean up".to_owned()), "{case}");
        }
    }
}

/// Scenario: carried work is done, dropped before its first poll, dropped half-way, or panics; a closure is dropped without
/// being run, or panics. What it owns cleans up with a span.
/// Guarantees: the clean-up is in the request, and not late; then the request is over and nothing of it is left.
#[test]
fn request_is_let_go_on_every_path() {
    type Work = Carried<Pin<Box<dyn Future<Output = ()>>>>;
    let carry = |work: fn(CleansUp) -> Pin<Box<dyn Future<Output = ()>>>| {
        move || work(CleansUp("clean up")).carried()
    };
    let waits = carry(|guard| {
        Box::pin(async {
            let _guard = guard;
            never().await;
        })
    });
    let ends = carry(|guard| Box::pin(async { drop(guard) }));
    let panics = carry(|guard| {
        Box::pin(async {
            let _guard = guard;
            panic!("carried");
        })
    });
    let check = |case: &str, carry: &dyn Fn() -> Work, finish: &dyn Fn(Pin<Box<Work>>)| {
        let service = Service::new();
        let (work, alive) = over(&service, 2, carry);
        service.world.flush().unwrap();
        assert!(alive.is_alive(), "{case}");
        finish(Box::pin(work));
        gone(&service, &alive);
        let arrived = service.arrived();
        assert_eq!(arrived.tree(), [" > root", "root > clean up"], "{case}");
        assert_eq!(arrived.tenant("clean up"), 2, "{case}");
    };
    check("done", &ends, &|mut work| {
        assert!(poll_once(&mut work).is_ready());
        // It stays pending, and so does not end twice.
        assert!(poll_once(&mut work).is_pending());
    });
    check("never polled", &waits, &drop);
    check("dropped half-way", &waits, &|mut work| {
        assert!(poll_once(&mut work).is_pending());
    });
    check("panicked", &panics, &|mut work| {
        assert_eq!(panic_of(|| poll_once(&mut work)), "carried");
    });

    for run in [false, true] {
        let service = Service::new();
        let (work, alive) = over(&service, 2, || {
            let guard = CleansUp("clean up");
            let work = move || {
                let _guard = guard;
                panic!("carried");
            };
            work.carried_fn::<()>()
        });
        service.world.flush().unwrap();
        assert!(alive.is_alive());
        match run {
            true => assert_eq!(panic_of(work), "carried"),
            false => drop(work),
        }
        gone(&service, &alive);
        let tree = service.arrived().tree();
        assert_eq!(tree, [" > root", "root > clean up"], "run: {run}");
    }
}

/// Scenario: work is done, and its future kept; a stream is at its end, and kept.
/// Guarantees: neither keeps anything of the request. A stream has no more items then.
#[test]
fn carried_work_that_is_done_keeps_nothing() {
    let service = Service::new();
    let (mut work, alive) = over(&service, 1, || Box::pin(async { 1 }.carried()));
    assert!(poll_once(&mut work).is_ready());
    gone(&service, &alive);

    let (mut items, alive) = over(&service, 1, || stream::iter([1, 2]).carried());
    assert_eq!(items.size_hint(), (2, Some(2)));
    let all = block_on(items.by_ref().collect::<Vec<_>>());
    assert_eq!(all, [1, 2]);
    gone(&service, &alive);
    assert_eq!(items.size_hint(), (0, Some(0)));
    assert_eq!(block_on(items.next()), None);
    drop((work, items));
    service.arrived();
}

/// Scenario: the trace of carried work is evicted, or the processor is shut down, before the work runs.
/// Guarantees: it runs; what it starts is accounted for, late or dropped; letting go of it disturbs nobody, not even the
/// request that took its place.
#[test]
fn carried_work_outlives_an_eviction_and_a_shutdown() {
    let service = Service::of(World::new(Config::default().with_max_traces(1)));
    let work = || async { in_child_sync("item", || {}) }.carried();
    let (evicted, alive) = over(&service, 1, work);
    let other = service.world.start("other", &tenant(2));
    service.world.flush().unwrap();
    wait_until("the context of the processor", || {
        service.world.stats().evicted_traces == 1
    });
    block_on(evicted);
    wait_until("evicted and released", || !alive.is_alive());
    assert_eq!(service.world.stats().traces, 1, "the other one");
    service.world.end(&other);
    service.world.flush().unwrap();
    let stats = service.world.stats();
    assert_eq!(stats.late.by(LateReason::TraceEvicted), 1);
    assert_eq!((stats.late.total(), stats.exported), (1, 3));

    let service = Service::new();
    let (work, alive) = over(&service, 1, work);
    soon(service.handle().shutdown(SOON)).unwrap();
    block_on(work);
    wait_until("shut down and released", || !alive.is_alive());
    let stats = service.world.stats();
    assert_eq!(stats.dropped.by(DropReason::AlreadyShutdown), 1);
    assert_eq!((stats.ended, stats.exported, stats.traces), (2, 1, 0));
}

/// Scenario: the tracer of a request has no handle. Carried work starts a span when the request is over; another one was
/// given a span of its own.
/// Guarantees: the documentation's word: the context is right, but nothing is held, so the first is late. The second is not.
#[test]
fn without_a_handle_nothing_is_held() {
    let world = World::new(Config::default());
    let service = Service {
        tracer: RequestTracer::new(world.tracer.clone()),
        world,
    };
    let (work, _) = over(&service, 3, || {
        async {
            assert_eq!(current_tenant(), Some(Tenant(3)));
            assert!(active_span().is_active());
            in_child_sync("late", || {});
        }
        .carried()
    });
    assert_eq!(service.world.stats().traces, 0);
    block_on(work);
    assert_eq!(
        service.world.stats().late.by(LateReason::UnknownTrace),
        1,
        "without a span of its own"
    );
    let (work, _) = over(&service, 4, || {
        in_child("receipt", async { in_child_sync("in time", || {}) })
    });
    block_on(work);
    service.world.flush().unwrap();
    assert_eq!(service.world.stats().late.total(), 1);
    let (_, tenant) = service.world.exporter.span("in time");
    assert_eq!(tenant, Some(Tenant(4)));
}

/// Scenario: carried work carries more work out of itself, and is over first.
/// Guarantees: the request stays open until the last of them is done.
#[test]
fn carried_work_can_carry_more() {
    let service = Service::new();
    let (first, alive) = over(&service, 1, || {
        let outer = async {
            let inner = async { in_child_sync("inner", || {}) };
            let span = active_span().start_child("outer");
            Some(span.run_sync(|| inner.carried()))
        };
        outer.carried()
    });
    let second = block_on(first).unwrap();
    service.world.flush().unwrap();
    assert!(alive.is_alive());
    block_on(second);
    gone(&service, &alive);
    assert_eq!(
        service.arrived().tree(),
        [" > root", "outer > inner", "root > outer"]
    );
}

/// Scenario: work is carried where nobody traces, and in a context of somebody who has no span.
/// Guarantees: it runs all the same, under that context.
#[test]
fn work_can_be_carried_where_nobody_traces() {
    assert_eq!(block_on(async { 1 }.carried()), 1);
    assert_eq!((|| 2).carried_fn()(), 2);
    let attached = tenant(8).attach();
    let work = async { current_tenant() }.carried();
    drop(attached);
    assert_eq!(block_on(work), Some(Tenant(8)));
    assert_eq!(current_tenant(), None);
}
