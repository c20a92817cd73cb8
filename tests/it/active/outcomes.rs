//! What work returns, and what its span says of it.

use std::io;
use std::num::ParseIntError;

use opentelemetry::trace::Status;
use opentelemetry_per_request::{ActiveSpan, Outcome, active_span, in_child, in_child_sync};

use super::{CleansUp, End, Service, attribute, block_on, poll_once};
use crate::support::{Witness, tenant};

/// An answer that knows when it is a failure.
enum Answer {
    Found,
    Refused,
}

impl Outcome for Answer {
    fn record(&self, span: &ActiveSpan) {
        match self {
            Answer::Found => span.set_attribute("found", true),
            Answer::Refused => span.fail("refused"),
        }
    }
}

/// Scenario: work that returns this, as a future and as a closure.
/// Guarantees: its span has this end, and the caller gets the value.
fn check<T: Outcome>(value: impl Fn() -> T, expected: End) {
    let service = Service::new();
    block_on(service.request("root", 1, async {
        let _: T = in_child("async", async { value() }).await;
        let _: T = in_child_sync("sync", &value);
    }));
    let arrived = service.arrived();
    assert_eq!(arrived.end_of("async"), expected);
    assert_eq!(arrived.end_of("sync"), expected);
    assert_eq!(arrived.end_of("root"), End::Done);
}

/// Scenario: errors of several types; good results; values that are neither; an outcome of the user's own.
/// Guarantees: an `Err` is a failure with its type and its words, as is what the user says is one. All else is just a value.
#[test]
fn span_says_of_its_work_what_the_value_says() {
    let parse = || "no number".parse::<u32>();
    let words = "invalid digit found in string";
    let kind = std::any::type_name::<ParseIntError>();
    check(parse, End::failed(kind, words));
    let io = || Err::<u32, _>(io::Error::other("broken"));
    check(io, End::failed("std::io::error::Error", "broken"));
    check(|| Err::<(), _>("a str"), End::failed("&str", "a str"));
    check(|| Err::<(), _>(""), End::failed("&str", ""));
    check(|| Answer::Refused, End::failed("str", "refused"));
    check(|| Answer::Found, End::Done);
    check(|| "4711".parse::<u32>(), End::Done);
    check(|| None::<u32>, End::Done);
    check(|| Some(Err::<(), _>("not looked into")), End::Done);
    check(|| (1, "two", vec![3.0]), End::Done);
    check(|| (), End::Done);
}

/// Scenario: `run` and `run_sync` of a span by hand, and a whole request, return an `Err`.
/// Guarantees: it says nothing to the span, whose owner does that.
#[test]
fn value_of_run_says_nothing() {
    let service = Service::new();
    let failed = async {
        let by_hand = active_span()
            .start_child("async")
            .run(async { Err::<(), _>(1) });
        assert_eq!(by_hand.await, Err(1));
        let sync = active_span().start_child("sync");
        assert_eq!(sync.run_sync(|| Err::<(), _>(2)), Err(2));
        active_span()
            .start_child("said")
            .run(async { active_span().fail("so") })
            .await;
        Err::<(), _>(3)
    };
    assert_eq!(block_on(service.request("root", 1, failed)), Err(3));
    let arrived = service.arrived();
    for name in ["async", "sync", "root"] {
        assert_eq!(arrived.end_of(name), End::Done, "{name}");
    }
    assert_eq!(arrived.end_of("said"), End::failed("str", "so"));
}

/// Scenario: an error is recorded twice, and handled.
/// Guarantees: two `exception` events with its type and words; the span has not failed.
#[test]
fn recorded_error_is_an_event_and_no_failure() {
    let service = Service::new();
    block_on(service.request("root", 1, async {
        let error = "x".parse::<u8>().unwrap_err();
        active_span().record_error(&error);
        active_span().record_error("just words");
    }));
    let arrived = service.arrived();
    assert_eq!(arrived.end_of("root"), End::Done);
    let events = &arrived.span("root").events.events;
    let said: Vec<_> = events
        .iter()
        .map(|event| {
            let values = event.attributes.iter();
            let values: Vec<_> = values
                .map(|kv| format!("{}={}", kv.key, kv.value.as_str()))
                .collect();
            (event.name.as_ref(), values.join(" "))
        })
        .collect();
    let parse = "exception.type=core::num::error::ParseIntError \
                 exception.message=invalid digit found in string";
    let words = "exception.type=str exception.message=just words";
    assert_eq!(
        said,
        [
            ("exception", parse.to_owned()),
            ("exception", words.to_owned())
        ]
    );
}

/// Scenario: a span is called ok and then fails; another fails and is then called ok.
/// Guarantees: ok stays, as the specification has it: it is the last word of whoever says so.
#[test]
fn status_ok_is_not_taken_back() {
    use opentelemetry::trace::TraceContextExt as _;
    let service = Service::new();
    block_on(service.request("root", 1, async {
        let ok = || active_span().context().span().set_status(Status::Ok);
        in_child_sync("ok first", || {
            ok();
            Err::<(), _>("ignored")
        })
        .unwrap_err();
        in_child_sync("ok last", || {
            active_span().fail("handled");
            ok();
        });
    }));
    let arrived = service.arrived();
    for name in ["ok first", "ok last"] {
        assert_eq!(arrived.span(name).status, Status::Ok, "{name}");
    }
}

/// Scenario: a future is done, kept, and polled again.
/// Guarantees: the work was dropped in its span before that ended; the future stays pending, and keeps nothing of the
/// request, neither the work nor its context.
#[test]
fn future_that_is_done_keeps_nothing() {
    let service = Service::in_order();
    let (witness, alive) = Witness::new();
    let (mine, of_work) = Witness::new();
    let guard = CleansUp("drop of the work");
    let work = std::future::poll_fn(move |_| {
        let _ = (&guard, &mine);
        std::task::Poll::Ready(())
    });
    let cx = tenant(1).with_value(witness);
    let mut child = None;
    let mut request = Box::pin(service.tracer.run("root", &cx, async {
        let mut future = Box::pin(in_child("child", work));
        assert!(poll_once(&mut future).is_ready());
        assert!(!of_work.is_alive());
        child = Some(future);
    }));
    drop(cx);
    assert!(poll_once(&mut request).is_ready());
    assert_eq!(service.ended(), 3);
    assert!(poll_once(&mut request).is_pending());
    let mut kept = request;
    let arrived = service.arrived();
    assert!(poll_once(&mut kept).is_pending());
    drop(kept);
    assert!(poll_once(child.as_mut().unwrap()).is_pending());
    assert_eq!(service.ended(), 3);
    assert_eq!(arrived.order(), ["drop of the work", "child", "root"]);
    assert!(!alive.is_alive(), "by a child that is done");
}

/// Scenario: one key is set twice, and a span fails twice.
/// Guarantees: nothing panics and all that was said is in the span; the documentation says what the SDK makes of it.
#[test]
fn what_is_set_twice_is_there_twice() {
    let service = Service::new();
    block_on(service.request("root", 1, async {
        active_span().set_attribute("key", 1);
        active_span().set_attribute("key", 2);
        active_span().fail("a");
        active_span().fail("b");
    }));
    let arrived = service.arrived();
    let root = arrived.span("root");
    let keys: Vec<_> = root.attributes.iter().map(|kv| kv.key.as_str()).collect();
    assert_eq!(keys, ["key", "key", "error.type", "error.type"]);
    assert_eq!(root.status, Status::error("b"));
    assert!(attribute(arrived.span("root"), "none").is_none());
}
