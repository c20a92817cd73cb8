//! Work that is dropped before it is done.

use std::task::Poll;
use std::time::Duration;

use opentelemetry_per_request::{Config, active_span, in_child, in_child_sync};

use super::{CleansUp, End, Service, block_on, never, poll_once, yield_now};
use crate::support::{Act, Gate, Recorder, World, wait_until};

/// Scenario: `select!` drops a child that waits, whose work cleans up with a span when it is dropped.
/// Guarantees: the child ends at the drop and not with its request, says that it was cancelled, has no status, and leaves
/// under its request; what its work does in destructors is below it.
#[test]
fn child_that_select_drops_ends_there_and_says_so() {
    let service = Service::in_order();
    let work = async {
        tokio::select! {
            biased;
            () = in_child("slow", async {
                let _guard = CleansUp("clean up");
                never().await;
            }) => unreachable!(),
            () = yield_now() => {}
        }
        assert_eq!(service.ended(), 2);
        in_child_sync("after", || {});
    };
    block_on(service.request("root", 7, work));
    let arrived = service.arrived();
    assert_eq!(arrived.order(), ["clean up", "slow", "after", "root"]);
    assert_eq!(
        arrived.tree(),
        [" > root", "root > after", "root > slow", "slow > clean up"]
    );
    assert_eq!(arrived.end_of("slow"), End::Cancelled);
    for done in ["clean up", "after", "root"] {
        assert_eq!(arrived.end_of(done), End::Done, "{done}");
    }
    assert!(arrived.order().iter().all(|name| arrived.tenant(name) == 7));
}

/// Scenario: a timeout drops a child that has two more below it, one of which has already ended.
/// Guarantees: the open ones are cancelled together, the inner before the outer; the one that had ended says nothing.
#[test]
fn children_that_a_timeout_drops_end_from_the_inside() {
    let service = Service::in_order();
    let work = async {
        let outer = in_child("outer", async {
            in_child("done", yield_now()).await;
            let _guard = CleansUp("outer's clean up");
            in_child("inner", async {
                let _guard = CleansUp("inner's clean up");
                never().await;
            })
            .await;
        });
        let timed = tokio::time::timeout(Duration::from_millis(1), outer).await;
        assert!(timed.is_err());
        active_span().set_attribute("timed out", true);
    };
    block_on(service.request("root", 1, work));
    let arrived = service.arrived();
    assert_eq!(
        arrived.order(),
        [
            "done",
            "inner's clean up",
            "inner",
            "outer's clean up",
            "outer",
            "root"
        ]
    );
    let ends = ["inner", "outer", "done", "root"].map(|name| arrived.end_of(name));
    assert_eq!(ends, [End::Cancelled, End::Cancelled, End::Done, End::Done]);
}

/// Scenario: a whole request is dropped half-way, with children of a `join!` in it.
/// Guarantees: all that is open ends at once, children before parents, cancelled, under the request's own context.
#[test]
fn request_that_is_dropped_takes_its_children_along() {
    let service = Service::in_order();
    let mut request = Box::pin(service.request("root", 9, async {
        tokio::join!(in_child("a", never()), in_child("b", never()), async {
            in_child("c", async {}).await;
        });
    }));
    assert!(poll_once(&mut request).is_pending());
    assert_eq!(service.ended(), 1);
    drop(request);
    assert_eq!(service.ended(), 4);
    let arrived = service.arrived();
    assert_eq!(arrived.order().last(), Some(&"root"));
    for (name, end) in [
        ("a", End::Cancelled),
        ("b", End::Cancelled),
        ("c", End::Done),
        ("root", End::Cancelled),
    ] {
        assert_eq!((arrived.end_of(name), arrived.tenant(name)), (end, 9));
    }
}

/// Scenario: the future of a child is dropped without a single poll, with work that has something to clean up.
/// Guarantees: the span, which had started with the call, ends and says that it was cancelled; the clean-up is below it.
#[test]
fn child_that_is_never_polled_is_cancelled() {
    let service = Service::in_order();
    let guard = CleansUp("clean up");
    block_on(service.request("root", 1, async {
        let child = in_child("never polled", async move {
            let _guard = guard;
        });
        drop(child);
        assert_eq!(service.ended(), 2);
    }));
    let arrived = service.arrived();
    assert_eq!(arrived.order(), ["clean up", "never polled", "root"]);
    assert_eq!(arrived.end_of("never polled"), End::Cancelled);
    assert!(
        arrived
            .tree()
            .contains(&"never polled > clean up".to_owned())
    );
}

/// Scenario: a request spawns work in a child and is over, answer and all, before the task runs at all; another one is
/// dropped by its runtime instead.
/// Guarantees: the child is not late: it keeps its request open, and leaves under its context. So does what it does then.
#[test]
fn task_that_runs_after_its_request_is_not_late() {
    let service = Service::new();
    let work = |number: u32| {
        let spawns = std::future::poll_fn(|_| {
            let task = tokio::spawn(in_child("receipt", async {
                in_child("send", yield_now()).await;
            }));
            Poll::Ready(task)
        });
        service.request("root", number, spawns)
    };
    block_on(async {
        let task = work(1).await;
        assert_eq!(service.ended(), 1, "the root, and nothing else");
        task.await.unwrap();
    });
    let dropped = Service::new();
    block_on(async {
        dropped
            .request("root", 2, async {
                drop(tokio::spawn(in_child("receipt", never())));
            })
            .await;
    });
    let arrived = service.arrived();
    assert_eq!(
        arrived.tree(),
        [" > root", "receipt > send", "root > receipt"]
    );
    assert_eq!((arrived.tenant("receipt"), arrived.tenant("send")), (1, 1));
    let arrived = dropped.arrived();
    assert_eq!(arrived.end_of("receipt"), End::Cancelled);
    assert_eq!(arrived.tenant("receipt"), 2);
}

/// Scenario: a child is cancelled while other spans of its request hang in the exporter, and its request goes on.
/// Guarantees: it is on its way before its request is over, under its context.
#[test]
fn cancelled_child_leaves_while_its_request_goes_on() {
    let gate = Gate::default();
    let exporter = Recorder::always(Act::Hang(gate.clone()));
    let service = Service::of(World::with_exporter(Config::default(), exporter));
    let mut request = Box::pin(service.request("root", 3, async {
        drop(in_child("cancelled", never()));
        never().await;
    }));
    assert!(poll_once(&mut request).is_pending());
    wait_until("at the exporter", || service.world.exporter.running() == 1);
    gate.open();
    drop(request);
    assert_eq!(service.arrived().tenant("cancelled"), 3);
}
