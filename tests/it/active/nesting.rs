//! A span is below the one that was active where it was started, and nowhere else.

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use opentelemetry_per_request::{active_span, in_child, in_child_sync};

use super::{Service, block_on, yield_now};
use crate::support::current_tenant;

/// Scenario: children, grandchildren and siblings in turn, asynchronous and not, with awaits before, in and after them.
/// Guarantees: each is below the span around it; around each, the same span is active before and after.
#[test]
fn span_over_awaits_is_below_the_span_around_it() {
    let service = Service::new();
    let work = async {
        let root = active_span().span_id();
        yield_now().await;
        in_child("a", async {
            let a = active_span().span_id();
            assert_ne!(a, root);
            yield_now().await;
            in_child("b", async {
                yield_now().await;
                in_child_sync("c", || in_child_sync("d", || {}));
                yield_now().await;
                in_child_sync("e", || {});
            })
            .await;
            yield_now().await;
            assert_eq!(active_span().span_id(), a);
            in_child("f", yield_now()).await;
        })
        .await;
        yield_now().await;
        assert_eq!(active_span().span_id(), root);
        in_child("g", async {}).await;
    };
    block_on(service.request("root", 1, work));
    assert!(!active_span().is_active());
    assert_eq!(
        service.arrived().tree(),
        [
            " > root", "a > b", "a > f", "b > c", "b > e", "c > d", "root > a", "root > g"
        ]
    );
}

/// Scenario: siblings take turns on one task: of a `join!`, and in a `FuturesUnordered`; each has a child after an await.
/// Guarantees: each child is below its own parent, whichever ran in between.
#[test]
fn siblings_that_take_turns_keep_their_children() {
    let service = Service::new();
    let sibling = |name: &'static str, child: &'static str| {
        in_child(name, async move {
            let own = active_span().span_id();
            for _ in 0..3 {
                yield_now().await;
                assert_eq!(active_span().span_id(), own);
            }
            in_child(child, yield_now()).await;
            yield_now().await;
            assert_eq!(active_span().span_id(), own);
        })
    };
    let work = async {
        tokio::join!(sibling("a", "a1"), sibling("b", "b1"), async {
            yield_now().await;
            in_child("c", yield_now()).await;
        });
        let names = [("d", "d1"), ("e", "e1"), ("f", "f1")];
        let mut all: FuturesUnordered<_> = names.into_iter().map(|(s, c)| sibling(s, c)).collect();
        while all.next().await.is_some() {
            in_child_sync("between", || {});
        }
    };
    block_on(service.request("root", 1, work));
    assert_eq!(
        service.arrived().tree(),
        [
            " > root",
            "a > a1",
            "b > b1",
            "d > d1",
            "e > e1",
            "f > f1",
            "root > a",
            "root > b",
            "root > between",
            "root > between",
            "root > between",
            "root > c",
            "root > d",
            "root > e",
            "root > f",
        ]
    );
}

/// Scenario: requests of 32 tenants on four threads, each with tasks of its own that move from thread to thread.
/// Guarantees: each child is below the span that spawned it, in its trace, and leaves under its tenant.
#[test]
fn spawned_tasks_on_many_threads_stay_with_their_request() {
    let service = Service::new();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .build()
        .unwrap();
    let request = |number: u32| {
        service.tracer.run(
            format!("{number}"),
            &crate::support::tenant(number),
            async move {
                let tasks = (0..4).map(|n| {
                    let work = async move {
                        for _ in 0..5 {
                            tokio::task::yield_now().await;
                            assert_eq!(current_tenant().unwrap().0, number);
                        }
                        let leaf = in_child(format!("{number}.{n}.0"), tokio::task::yield_now());
                        tokio::spawn(leaf).await.unwrap();
                    };
                    tokio::spawn(in_child(format!("{number}.{n}"), work))
                });
                for task in tasks.collect::<Vec<_>>() {
                    task.await.unwrap();
                }
            },
        )
    };
    let requests: Vec<_> = (1..=32).map(|n| runtime.spawn(request(n))).collect();
    for request in requests {
        runtime.block_on(request).unwrap();
    }
    let arrived = service.arrived();
    assert_eq!(arrived.0.len(), 32 * (1 + 4 + 4));
    for (span, tenant) in &arrived.0 {
        let number = span.name.split('.').next().unwrap();
        assert_eq!(tenant.unwrap().0.to_string(), number);
        let root = &arrived.span(number).span_context;
        assert_eq!(span.span_context.trace_id(), root.trace_id());
    }
    for line in arrived.tree() {
        let (parent, child) = line.split_once(" > ").unwrap();
        let expected = child.rsplit_once('.').map_or("", |(parent, _)| parent);
        assert_eq!(parent, expected, "of {child}");
    }
}

/// Scenario: a future is made inside a span and polled outside of it, and the other way round.
/// Guarantees: the place where it is made counts. So a plain async block, which calls nothing before it is polled, has no
/// active span in a task that it was spawned as.
#[test]
fn place_where_a_child_is_started_counts() {
    let service = Service::new();
    block_on(async {
        let (inside, plain) = service
            .request("root", 1, async {
                let inside = in_child("inside", async { in_child_sync("below", || {}) });
                let plain = async { active_span().is_active() };
                (inside, plain)
            })
            .await;
        let other = service.request("other", 2, async {
            inside.await;
            in_child_sync("after", || {});
        });
        other.await;
        assert!(!tokio::spawn(plain).await.unwrap());
    });
    let arrived = service.arrived();
    assert_eq!(
        arrived.tree(),
        [
            " > other",
            " > root",
            "inside > below",
            "other > after",
            "root > inside"
        ]
    );
    assert_eq!(
        ["inside", "below", "after"].map(|name| arrived.tenant(name)),
        [1, 1, 2]
    );
}

/// Scenario: a handle is kept of a span of this crate, and of one of OpenTelemetry's `in_span`, which nobody ends.
/// Guarantees: as documented: the first has ended with its work. The second stays open until the handle goes.
#[test]
fn handle_keeps_a_span_open_only_if_nobody_ends_it() {
    use opentelemetry::trace::Tracer as _;
    let service = Service::new();
    let ended = block_on(service.request("root", 1, async {
        active_span().start_child("child").run_sync(active_span)
    }));
    assert!(!ended.is_recording());
    assert_eq!(service.ended(), 2);
    let open = service.world.tracer.in_span("in_span", |_| active_span());
    assert!(open.is_recording());
    assert_eq!(service.ended(), 2);
    drop(open);
    assert_eq!(service.ended(), 3);
    service.world.flush().unwrap();
}

/// Scenario: children that somebody starts by hand, runs work in, ends early, or hands to a helper as a handle.
/// Guarantees: they are active in their work only; what is set on an ended one is not kept, and starts no panic.
#[test]
fn child_that_is_started_by_hand_is_active_in_its_work_only() {
    let service = Service::in_order();
    let work = async {
        let root = active_span();
        let call = root.start_child("call");
        assert_eq!(active_span().span_id(), root.span_id());
        assert_eq!(call.trace_id(), root.trace_id());
        assert_ne!(call.span_id(), root.span_id());
        let handle = (*call).clone();
        let got = call
            .run(async {
                in_child("below", yield_now()).await;
                42
            })
            .await;
        assert_eq!(got, 42);
        assert!(!handle.is_recording());
        handle.set_attribute("too late", true);
        handle.update_name("too late");
        // Its request is not over.
        in_child_sync("beside", || {});
        drop(handle.start_child("of one that has ended"));
        let ended = root.start_child("ended");
        ended.end();
        root.start_child("sync")
            .run_sync(|| active_span().set_attribute("inside", true));
        root.update_name("renamed");
    };
    block_on(service.request("root", 1, work));
    let arrived = service.arrived();
    assert_eq!(
        arrived.order(),
        [
            "below",
            "call",
            "beside",
            "of one that has ended",
            "ended",
            "sync",
            "renamed"
        ]
    );
    let late = arrived.span("of one that has ended").parent_span_id;
    assert_eq!(late, arrived.span("call").span_context.span_id());
    assert!(super::attribute(arrived.span("call"), "too late").is_none());
    assert!(super::attribute(arrived.span("sync"), "inside").is_some());
}
