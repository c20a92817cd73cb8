//! Work that panics.

use std::fmt;

use opentelemetry_per_request::{Outcome, active_span, in_child, in_child_sync};

use super::{CleansUp, End, Service, block_on, fails, never, panic_of, poll_once, yield_now};

/// Scenario: a request panics in a child after an await. Somebody catches that, and keeps the future.
/// Guarantees: the child and the request have ended by then, in this order, marked as panics; what the work cleaned up while
/// it unwound is below the child and not marked. Dropping the future later changes nothing.
#[test]
fn spans_end_at_the_panic_and_not_with_the_future() {
    let service = Service::in_order();
    let mut request = Box::pin(service.request("root", 4, async {
        in_child("child", async {
            yield_now().await;
            let _guard = CleansUp("clean up");
            fails("of the work");
        })
        .await
    }));
    assert!(poll_once(&mut request).is_pending());
    assert_eq!(service.ended(), 0);
    assert_eq!(panic_of(|| poll_once(&mut request)), "of the work");
    assert_eq!(service.ended(), 3);
    assert!(!active_span().is_active());
    let arrived = service.arrived();
    drop(request);
    assert_eq!(service.ended(), 3);
    assert_eq!(arrived.order(), ["clean up", "child", "root"]);
    assert_eq!(
        arrived.tree(),
        [" > root", "child > clean up", "root > child"]
    );
    let ends = ["clean up", "child", "root"].map(|name| arrived.end_of(name));
    assert_eq!(ends, [End::Done, End::panicked(), End::panicked()]);
    assert_eq!(arrived.tenant("child"), 4);
}

/// Scenario: a closure panics in a child, by `in_child_sync` and by `run_sync`, and its caller catches that.
/// Guarantees: the span has ended, marked; the span around it is active again, and goes on unmarked.
#[test]
fn closure_that_panics_ends_its_span() {
    let service = Service::in_order();
    block_on(service.request("root", 1, async {
        let own = active_span().span_id();
        let failed = panic_of(|| in_child_sync("sync", || fails("1")));
        assert_eq!((failed.as_str(), active_span().span_id()), ("1", own));
        assert_eq!(service.ended(), 1);
        let by_hand = active_span().start_child("by hand");
        panic_of(|| by_hand.run_sync(|| fails("2")));
        assert_eq!((service.ended(), active_span().span_id()), (2, own));
        in_child_sync("after", || {});
    }));
    let arrived = service.arrived();
    let ends = ["sync", "by hand", "after", "root"].map(|name| arrived.end_of(name));
    assert_eq!(
        ends,
        [End::panicked(), End::panicked(), End::Done, End::Done]
    );
}

/// Scenario: a panic drops a child that nobody runs anything in; and one that a destructor starts and ends meanwhile.
/// Guarantees: the first says that it was dropped by a panic. The second has done its work, and says nothing.
#[test]
fn child_says_whether_a_panic_dropped_it() {
    struct Undoes;
    impl Drop for Undoes {
        fn drop(&mut self) {
            let undo = active_span().start_child("undo");
            undo.set_attribute("rows", 1);
            drop(undo);
            in_child_sync("undo more", || {});
            futures_executor::block_on(in_child("undo all", yield_now()));
        }
    }
    let service = Service::in_order();
    block_on(service.request("root", 1, async {
        panic_of(|| {
            let _undoes = Undoes;
            let _child = active_span().start_child("child");
            panic!("between");
        });
    }));
    let arrived = service.arrived();
    assert_eq!(
        arrived.order(),
        ["child", "undo", "undo more", "undo all", "root"]
    );
    assert_eq!(arrived.end_of("child"), End::panicked());
    for name in ["undo", "undo more", "undo all", "root"] {
        assert_eq!(arrived.end_of(name), End::Done, "{name}");
    }
}

/// Scenario: a task of tokio panics in a child, on a thread of the pool.
/// Guarantees: the runtime reports the panic, and the child has ended as one, under its request.
#[test]
fn task_that_panics_ends_its_span() {
    let service = Service::new();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    runtime.block_on(service.request("root", 6, async {
        let work = in_child("task", async {
            tokio::task::yield_now().await;
            fails("in a task");
        });
        let result = tokio::spawn(work).await;
        assert!(result.unwrap_err().is_panic());
    }));
    let arrived = service.arrived();
    assert_eq!(arrived.end_of("task"), End::panicked());
    assert_eq!(
        (arrived.end_of("root"), arrived.tenant("task")),
        (End::Done, 6)
    );
}

/// Scenario: one of two siblings panics while the other waits, and the panic drops both.
/// Guarantees: only the one that panicked says so. The other was cancelled.
#[test]
fn sibling_of_a_panic_is_cancelled() {
    let service = Service::new();
    let mut request = Box::pin(service.request("root", 1, async {
        let caught = panic_of(|| {
            let both = async {
                tokio::join!(
                    in_child("waits", never()),
                    in_child("panics", async {
                        fails("one of two");
                    })
                );
            };
            poll_once(&mut Box::pin(both))
        });
        assert_eq!(caught, "one of two");
    }));
    assert!(poll_once(&mut request).is_ready());
    let arrived = service.arrived();
    let ends = ["waits", "panics", "root"].map(|name| arrived.end_of(name));
    assert_eq!(ends, [End::Cancelled, End::panicked(), End::Done]);
}

/// An error that cannot be shown, and a value that cannot be asked.
struct Unspeakable;

impl fmt::Display for Unspeakable {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("no words")
    }
}

impl Outcome for Unspeakable {
    fn record(&self, _: &opentelemetry_per_request::ActiveSpan) {
        panic!("no words")
    }
}

/// Scenario: the `Display` of an error panics, or the `Outcome` of a value does. The caller catches it and keeps the future.
/// Guarantees: the span has ended, as a panic, by then.
#[test]
fn outcome_that_panics_ends_the_span_too() {
    let service = Service::new();
    block_on(service.request("root", 1, async {
        let mut error = Box::pin(in_child("error", async { Err::<(), _>(Unspeakable) }));
        let mut value = Box::pin(in_child("value", async { Unspeakable }));
        assert_eq!(panic_of(|| poll_once(&mut error)), "no words");
        assert_eq!(panic_of(|| poll_once(&mut value)), "no words");
        assert_eq!(service.ended(), 2);
        panic_of(|| in_child_sync("sync", || Unspeakable));
        assert_eq!(service.ended(), 3);
        // The span itself is not broken by it.
        assert_eq!(panic_of(|| active_span().fail(&Unspeakable)), "no words");
        assert_eq!(
            panic_of(|| active_span().record_error(&Unspeakable)),
            "no words"
        );
        active_span().set_attribute("still", "works");
    }));
    let arrived = service.arrived();
    for name in ["error", "value", "sync"] {
        assert_eq!(arrived.end_of(name), End::panicked(), "{name}");
    }
    assert!(super::attribute(arrived.span("root"), "still").is_some());
}

/// Scenario: the drop of the work panics, after it was done, and when it is cancelled.
/// Guarantees: the span ends either way, as a panic, and the panic goes on.
#[test]
fn work_whose_drop_panics_ends_its_span() {
    struct Stuck;
    impl Drop for Stuck {
        fn drop(&mut self) {
            panic!("stuck");
        }
    }
    struct Done(Stuck);
    impl Future for Done {
        type Output = ();
        fn poll(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<()> {
            std::task::Poll::Ready(())
        }
    }
    let service = Service::new();
    block_on(service.request("root", 1, async {
        let mut done = Box::pin(in_child("done", Done(Stuck)));
        assert_eq!(panic_of(|| poll_once(&mut done)), "stuck");
        assert_eq!(service.ended(), 1);
        assert!(poll_once(&mut done).is_pending());
        let cancelled = in_child("cancelled", Done(Stuck));
        assert_eq!(panic_of(|| drop(cancelled)), "stuck");
        assert_eq!(service.ended(), 2);
    }));
    let arrived = service.arrived();
    let ends = ["done", "cancelled"].map(|name| arrived.end_of(name));
    assert_eq!(ends, [End::panicked(), End::panicked()]);
}
