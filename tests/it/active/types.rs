//! What the compiler can check of the active span.

use std::fmt::Debug;
use std::rc::Rc;

use opentelemetry_per_request::{
    ActiveSpan, CANCELLED_ATTRIBUTE, Carried, Carry as _, ChildSpan, Hold, InSpan, RequestTracer,
    active_span, in_child,
};

use super::block_on;

/// Scenario: the public types.
/// Guarantees: they can be sent and shared, and shown; futures are so if their work is, and not more.
#[test]
fn types_of_the_active_span_are_what_a_user_needs() {
    fn shared<T: Send + Sync + Debug + 'static>() {}
    fn clone<T: Clone>() {}
    shared::<ActiveSpan>();
    shared::<ChildSpan>();
    shared::<RequestTracer>();
    shared::<Hold>();
    shared::<InSpan<std::future::Ready<()>>>();
    shared::<Carried<std::future::Ready<()>>>();
    clone::<ActiveSpan>();
    clone::<RequestTracer>();
    assert_eq!(CANCELLED_ATTRIBUTE, "per_request.cancelled");
}

/// Scenario: work that cannot leave its thread, or borrows from its caller; work that can do both.
/// Guarantees: the first two run where they are; the last can be spawned, also as a stream or a closure.
#[test]
fn work_may_be_local_or_borrow_or_be_spawned() {
    fn unpin<T: Unpin>(value: T) -> T {
        value
    }
    fn spawnable<T: Send + 'static>(value: T) -> T {
        value
    }
    let local = Rc::new(1);
    let mut borrowed = 0;
    block_on(async {
        in_child("local", async { assert_eq!(*local, 1) }).await;
        in_child("borrows", async { borrowed += 1 }).await;
        async { borrowed += 1 }.carried().await;
        (|| borrowed += 1).carried_fn()();
        tokio::spawn(async {}.carried()).await.unwrap();
        tokio::spawn(in_child("spawned", async {})).await.unwrap();
        tokio::task::spawn_blocking((|| ()).carried_fn())
            .await
            .unwrap();
    });
    assert_eq!(borrowed, 3);
    std::thread::spawn((|| ()).carried_fn()).join().unwrap();
    drop(spawnable(futures_util::stream::empty::<u32>().carried()));
    drop(unpin(std::future::ready(()).carried()));
    drop(unpin(in_child("ready", std::future::ready(()))));
    // What it is started with can be forgotten at once.
    let child = spawnable(active_span().start_child(String::from("owned")));
    std::thread::spawn(move || drop(child)).join().unwrap();
}

/// Scenario: the types are shown.
/// Guarantees: what is said has no value of a context in it.
#[test]
fn debug_shows_no_context_values() {
    use opentelemetry::Context;
    #[derive(Debug)]
    struct Secret(#[expect(dead_code, reason = "must not be shown")] &'static str);
    let _attached = Context::new().with_value(Secret("hunter2")).attach();
    let shown = [
        format!("{:?}", active_span()),
        format!("{:?}", active_span().start_child("child")),
        format!("{:?}", in_child("child", async {})),
        format!("{:?}", async {}.carried()),
        format!("{:?}", RequestTracer::global()),
    ];
    for shown in shown {
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
