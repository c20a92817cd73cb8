//! The active span where one may not expect it: inside borrows, drops, other processors, and exporters.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry::trace::{
    SpanContext, TraceContextExt as _, TracerProvider as _, get_active_span,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_per_request::{
    Carry as _, PerRequestSpanProcessor, RequestTracer, active_span, in_child, in_child_sync,
};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, Span, SpanData, SpanProcessor};

use super::{Arrived, End, Service, attribute, block_on, fails, never, panic_of, poll_once};
use crate::support::{Recorder, SOON, balanced, remote_parent, some_trace, soon, tenant, within};

/// A deadlock shows as a hang.
const LIMIT: Duration = Duration::from_secs(20);

/// Scenario: inside of `get_active_span` and `Context::map_current`, the active span is told things, children start and
/// end, work is carried, and the request is held.
/// Guarantees: nothing panics or hangs, and all of it is there.
#[test]
fn active_span_may_be_used_inside_a_borrow_of_the_current_context() {
    within(LIMIT, "an active span inside a borrow", || {
        let service = Service::new();
        let telemetry = service.handle();
        let inside = |key: &'static str| {
            let span = active_span();
            assert!(span.is_recording());
            span.set_attribute(key, true);
            span.add_event("event", []);
            span.record_error("error");
            let child = span.start_child(key);
            child.set_attribute("a", 1);
            drop(child);
            drop(telemetry.hold(span.context()));
            std::thread::spawn((|| {}).carried_fn()).join().unwrap();
        };
        block_on(service.request("root", 1, async {
            get_active_span(|_| inside("get_active_span"));
            Context::map_current(|_| inside("map_current"));
        }));
        let arrived = service.arrived();
        assert_eq!(
            arrived.tree(),
            [" > root", "root > get_active_span", "root > map_current"]
        );
        assert_eq!(arrived.span("root").attributes.len(), 2);
        assert_eq!(arrived.span("root").events.len(), 4);
    });
}

/// Scenario: `in_child_sync` inside of `get_active_span`, where no context can be attached; with a span and without one.
/// Guarantees: it panics as documented, and the work does not run; the span has ended, and the process goes on. Where nobody
/// traces it does not panic.
#[test]
fn child_inside_a_borrow_of_the_current_context_panics_and_ends() {
    let service = Service::new();
    block_on(service.request("root", 1, async {
        let said = panic_of(|| get_active_span(|_| in_child_sync("child", || fails("it ran"))));
        assert!(said.contains("already borrowed"), "{said}");
        assert_eq!(service.ended(), 1);
        in_child_sync("after", || {});
    }));
    assert_eq!(get_active_span(|_| in_child_sync("nobody traces", || 3)), 3);
    let arrived = service.arrived();
    assert_eq!(arrived.tree(), [" > root", "root > after", "root > child"]);
    assert_eq!(arrived.end_of("child"), End::panicked());
}

/// A value of a context that starts spans when it is dropped, and a request of its own if it has a tracer.
struct StartsSpans(Arc<Mutex<Vec<bool>>>, Option<RequestTracer>);

impl Drop for StartsSpans {
    fn drop(&mut self) {
        let active = active_span().is_active();
        in_child_sync("sync", || active_span().set_attribute("in a drop", true));
        let mut unfinished = Box::pin(in_child("async", never()));
        assert!(poll_once(&mut unfinished).is_pending());
        if let Some(tracer) = &self.1 {
            let work = async { in_child_sync("own child", || {}) };
            block_on(tracer.run("own", &tenant(2), work));
        }
        self.0.lock().unwrap().push(active);
    }
}

/// Scenario: the last owner of a context is the guard that attaches it, with a request around that and without one; the
/// drop of a value in it starts children, one of which is cancelled.
/// Guarantees: nothing panics. The children are below the span that is active again by then; without one there are none.
#[test]
fn child_may_start_while_a_context_is_detached() {
    let service = Service::new();
    let seen = Arc::<Mutex<Vec<bool>>>::default();
    let value = || Context::current_with_value(StartsSpans(seen.clone(), None));
    block_on(service.request("root", 1, async {
        drop(value().attach());
    }));
    drop(value().attach());
    assert_eq!(*seen.lock().unwrap(), [true, false]);
    let arrived = service.arrived();
    assert_eq!(arrived.tree(), [" > root", "root > async", "root > sync"]);
    assert_eq!(arrived.end_of("async"), End::Cancelled);
}

/// Scenario: the processor is the last owner of a saved context whose drop starts children, and a request.
/// Guarantees: nothing hangs or panics, and the account adds up: on the processor's threads nobody is active, but a request
/// of its own has its spans there, too.
#[test]
fn child_may_start_in_the_drop_of_a_saved_context() {
    within(LIMIT, "children in the drop of a saved context", || {
        let service = Service::new();
        let seen = Arc::<Mutex<Vec<bool>>>::default();
        for _ in 0..20 {
            let value = StartsSpans(seen.clone(), Some(service.tracer.clone()));
            let cx = tenant(1).with_value(value);
            let request = service.tracer.run("root", &cx, async {});
            drop(cx);
            block_on(request);
        }
        service.world.flush().unwrap();
        crate::support::wait_until("all drops", || seen.lock().unwrap().len() == 20);
        let stats = service.world.stats();
        assert_eq!((stats.ended, stats.late.total()), (20 + 40, 0));
        service.world.flush().unwrap();
        assert_eq!(service.world.stats().exported, 60);
    });
}

/// A processor beside ours that talks to the active span, and starts children of its own.
#[derive(Debug, Default)]
struct Talks(AtomicUsize);

impl Talks {
    fn talk(&self, name: &str, event: &'static str) {
        if name.starts_with("audit") {
            return;
        }
        self.0.fetch_add(1, Ordering::SeqCst);
        active_span().add_event(event, []);
        let _ = active_span().is_recording();
        in_child_sync(format!("audit {event} {name}"), || {
            active_span().set_attribute("audit", true);
        });
    }
}

impl SpanProcessor for Talks {
    fn on_start(&self, span: &mut Span, _: &Context) {
        let name = span.exported_data().unwrap().name;
        self.talk(&name, "start");
    }
    fn on_end(&self, span: SpanData) {
        self.talk(&span.name, "end");
    }
    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }
    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Scenario: another processor uses the active span in its `on_start` and `on_end`, and starts children there. Spans end
/// by being done, by a panic, by being cancelled, by hand.
/// Guarantees: nothing hangs. What is active there is the span around the one that starts or ends.
#[test]
fn active_span_may_be_used_inside_a_processor() {
    within(LIMIT, "an active span inside a processor", || {
        let exporter = Recorder::new();
        let processor = PerRequestSpanProcessor::builder(exporter.clone())
            .build()
            .unwrap();
        let telemetry = processor.handle();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(Talks::default())
            .with_span_processor(processor)
            .build();
        let tracer = RequestTracer::new(provider.tracer("test")).with_handle(telemetry.clone());
        block_on(tracer.run("root", &tenant(1), async {
            in_child_sync("done", || {});
            panic_of(|| in_child_sync("panics", || fails("here")));
            drop(in_child("cancelled", never()));
            active_span().start_child("by hand").end();
        }));
        soon(telemetry.flush()).unwrap();
        let arrived = Arrived(exporter.spans());
        let mut expected = vec![" > root".to_owned()];
        for name in ["done", "panics", "cancelled", "by hand"] {
            expected.push(format!("root > {name}"));
            expected.push(format!("root > audit start {name}"));
            expected.push(format!("root > audit end {name}"));
        }
        expected.sort();
        assert_eq!(arrived.tree(), expected);
        assert_eq!(arrived.span("root").events.len(), 8);
        assert_eq!(balanced(&telemetry).late.total(), 0);
    });
}

/// Scenario: an exporter, and a library below it, use the active span and start children, and a request by the tracer of
/// the very provider that is exported; under requests with a remote parent and without one.
/// Guarantees: nothing is recorded, so there is no endless loop, and the work runs.
#[test]
fn nothing_is_recorded_inside_an_exporter() {
    within(LIMIT, "an active span inside an exporter", || {
        let service = Service::new();
        let ran = Arc::<AtomicUsize>::default();
        let counted = ran.clone();
        let tracer = service.tracer.clone();
        service.world.exporter.set_inside(move |_| {
            active_span().set_attribute("inside", true);
            assert!(!active_span().is_recording());
            in_child_sync("library", || {
                in_child_sync("deeper", || counted.fetch_add(1, Ordering::SeqCst))
            });
            futures_executor::block_on(in_child("async", super::yield_now()));
            drop(active_span().start_child("by hand"));
            // It knows the tracer of its own telemetry.
            let own = async { in_child_sync("child", || {}) };
            futures_executor::block_on(tracer.run("own", &Context::current(), own));
        });
        let parents: [SpanContext; 2] = [SpanContext::NONE, remote_parent(some_trace())];
        for parent in parents {
            let cx = tenant(1).with_remote_span_context(parent);
            block_on(service.tracer.run("request", &cx, async {}));
            service.world.flush().unwrap();
        }
        let stats = service.world.stats();
        assert_eq!((stats.ended, stats.exports, stats.exported), (2, 2, 2));
        assert_eq!(ran.load(Ordering::SeqCst), 2);
        service.world.exporter.set_inside(|_| {});
    });
}

/// Scenario: what is handed to the active span is made by code that uses the active span itself, or panics: an iterator of
/// attributes, the conversion of a name.
/// Guarantees: nothing hangs, and the span is not broken by a panic: it ends as any other.
#[test]
fn what_makes_an_attribute_or_a_name_may_use_the_span() {
    struct Name;
    impl From<Name> for std::borrow::Cow<'static, str> {
        fn from(_: Name) -> Self {
            active_span().set_attribute("named", true);
            "name".into()
        }
    }
    struct Panics;
    impl From<Panics> for std::borrow::Cow<'static, str> {
        fn from(_: Panics) -> Self {
            panic!("no name")
        }
    }
    within(SOON, "an iterator that uses the span", || {
        let service = Service::new();
        block_on(service.request("root", 1, async {
            active_span().set_attributes((0..3).map(|n| {
                active_span().add_event("made one", []);
                KeyValue::new(format!("{n}"), n)
            }));
            active_span().add_event(Name, [KeyValue::new("a", 1)]);
            active_span().update_name(Name);
            in_child_sync("child", || {
                let attributes = std::iter::from_fn(|| panic!("no attribute"));
                panic_of(|| active_span().set_attributes(attributes));
                panic_of(|| active_span().update_name(Panics));
                panic_of(|| active_span().add_event(Panics, []));
                active_span().set_attribute("after", true);
            });
            assert_eq!(service.ended(), 1);
        }));
        let arrived = service.arrived();
        let root = arrived.span("name");
        assert_eq!((root.attributes.len(), root.events.len()), (5, 4));
        let child = arrived.span("child");
        assert!(attribute(child, "after").is_some());
        assert_eq!(End::of(child), End::Done);
    });
}

/// Scenario: a child and a handle to the active span are left in a thread's local storage.
/// Guarantees: the child ends when the thread does.
#[test]
fn child_may_end_while_its_thread_is_torn_down() {
    use std::cell::RefCell;
    thread_local! {
        static LEFT: RefCell<Option<Box<dyn std::any::Any>>> = const { RefCell::new(None) };
    }
    let service = Service::new();
    let mut request = Box::pin(service.request("root", 1, async {
        let span = active_span();
        let work = move || LEFT.set(Some(Box::new((span.start_child("left"), active_span()))));
        std::thread::spawn(work).join().unwrap();
        assert_eq!(service.ended(), 1);
    }));
    assert!(poll_once(&mut request).is_ready());
    assert_eq!(service.arrived().tree(), [" > root", "root > left"]);
}

/// Scenario: a thread's local storage asks for the active span, and carries work, when it is dropped, which is after the
/// current context of that thread is gone, on a thread that has asked before and on one that has not.
/// Guarantees: the process goes on: nothing is active there.
#[test]
fn nothing_is_active_while_a_thread_is_torn_down() {
    struct Asks;

    impl Drop for Asks {
        fn drop(&mut self) {
            let span = active_span();
            span.add_event("torn down", []);
            drop(never().carried());
            in_child_sync("child", || assert!(!span.is_active()));
        }
    }

    thread_local! {
        static ASKS: Asks = const { Asks };
    }
    for asks_before in [false, true] {
        let service = Service::new();
        block_on(service.request("root", 1, async {
            let cx = active_span().context().clone();
            let there = move || {
                // The last to be used is the first to go: the contexts are used after this one.
                ASKS.with(|_| ());
                let _attached = cx.attach();
                if asks_before {
                    assert!(active_span().is_active());
                }
            };
            std::thread::spawn(there).join().unwrap();
        }));
        assert_eq!(service.arrived().tree(), [" > root"]);
    }
}

/// Scenario: work that is not done, in a child, carried as a future and as a closure, is dropped inside of a borrow of the
/// current context, and by a thread that is torn down, whose contexts are gone by then.
/// Guarantees: the process goes on. The child ends, as cancelled, and the request is let go.
#[test]
fn work_may_be_dropped_where_no_context_can_be_attached() {
    use std::any::Any;
    use std::cell::RefCell;
    thread_local! {
        static LEFT: RefCell<Vec<Box<dyn Any>>> = const { RefCell::new(Vec::new()) };
    }
    for torn_down in [false, true] {
        let service = Service::new();
        block_on(service.request("root", 1, async {
            let cx = active_span().context().clone();
            let make = move || -> Vec<Box<dyn Any>> {
                let _attached = cx.attach();
                vec![
                    Box::new(in_child("child", never())),
                    Box::new(never().carried()),
                    Box::new((|| ()).carried_fn()),
                ]
            };
            let there = move || match torn_down {
                // The last to be used is the first to go: the contexts are used after this one.
                true => LEFT.with(|left| left.replace(make())).clear(),
                false => {
                    let made = make();
                    Context::map_current(|_| drop(made));
                }
            };
            std::thread::spawn(there).join().unwrap();
            assert_eq!(service.ended(), 1, "torn down: {torn_down}");
        }));
        let arrived = service.arrived();
        assert_eq!(arrived.end_of("child"), End::Cancelled);
    }
}
