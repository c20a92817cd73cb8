//! Spans end in odd places: inside a borrow of the current context, from the drop of a context, inside an export.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry::trace::{
    Span as _, TraceContextExt as _, TraceId, Tracer as _, get_active_span,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_per_request::{Config, DropReason};
use opentelemetry_sdk::trace::Span;

use crate::support::{
    Act, Gate, Recorder, World, balanced, held_back, remote_parent, soon, tenant, wait_until,
    within,
};

/// A deadlock shows as a hang.
const LIMIT: Duration = Duration::from_secs(20);

/// Scenario: spans start and end inside `get_active_span` and `Context::map_current`: roots, children, late ones, ones
/// that fill a queue, ones that are refused.
/// Guarantees: nothing panics or deadlocks, and all of them are accounted for.
#[test]
fn spans_may_start_and_end_inside_a_borrow_of_the_current_context() {
    within(LIMIT, "ending spans inside a borrow", || {
        for config in [Config::default(), held_back()] {
            let world = World::new(
                config
                    .with_max_traces(2)
                    .with_max_batch_size(2)
                    .with_max_spans_per_trace(10),
            );
            let old = world.start("old", &tenant(1));
            let root = world.start("root", &tenant(1));
            let attached = root.clone().attach();
            let work = || {
                for _ in 0..20 {
                    let child = world.start("child", &root);
                    world.end(&child);
                    world.request("another", &tenant(2));
                }
                drop(world.start("dropped", &tenant(3)));
                old.span().end();
            };
            get_active_span(|active| {
                active.set_attribute(KeyValue::new("inside", true));
                work();
            });
            Context::map_current(|_| work());
            get_active_span(|active| active.end());
            drop(attached);
            let _ = world.flush();
            let stats = world.stats();
            assert_eq!(
                (stats.ended, stats.pending()),
                (40 + 40 + 2 + 2, 0),
                "{stats:?}"
            );
            assert_eq!(
                stats.dropped.by(DropReason::MaxSpansPerTrace),
                stats.dropped.total()
            );
        }
    });
}

/// A value of a context that ends a span when it is dropped, and asks the processor for its numbers.
struct EndsASpan {
    span: Mutex<Option<Span>>,
    world: Arc<World>,
}

impl EndsASpan {
    fn context(world: &Arc<World>) -> Context {
        let span = world.tracer.start_with_context("from a drop", &tenant(7));
        tenant(1).with_value(Self {
            span: Mutex::new(Some(span)),
            world: world.clone(),
        })
    }
}

impl Drop for EndsASpan {
    fn drop(&mut self) {
        let span = self.span.get_mut().unwrap().take();
        drop(span);
        balanced(&self.world.telemetry);
        self.world.request("and another", &tenant(8));
        drop(self.world.telemetry.flush());
    }
}

/// Scenario: the last owner of a context that ends a span on drop is the processor, which drops it after an export, a
/// failed one, a panic, a timeout, an eviction, a refused root, a full queue, and a shutdown that runs out of time.
/// Guarantees: none of these deadlocks, and the span that ended is accounted for.
#[test]
fn spans_may_end_in_the_drop_of_a_context_that_the_processor_drops() {
    let gate = Gate::default();
    let hang = || Recorder::always(Act::Hang(gate.clone()));
    let quick = Duration::from_millis(50);
    let config = Config::default;
    let cases: Vec<(&str, Config, Recorder, u64)> = vec![
        ("exported", config(), Recorder::new(), 0),
        ("failed", config(), Recorder::always(Act::Fail("no")), 0),
        ("panicked", config(), Recorder::always(Act::Panic), 0),
        ("timed out", config().with_export_timeout(quick), hang(), 0),
        ("evicted", config().with_max_traces(1), Recorder::new(), 0),
        (
            "refused",
            config().with_max_spans_per_trace(1),
            Recorder::new(),
            0,
        ),
        (
            "queue full",
            config().with_max_pending_spans(1),
            Recorder::new(),
            0,
        ),
        ("closed", config(), Recorder::new(), 1),
        (
            "abandoned",
            config()
                .with_max_concurrent_exports(1)
                .with_export_timeout(quick * 20),
            hang(),
            2,
        ),
    ];
    for (case, config, exporter, shutdown) in cases {
        within(LIMIT, case, move || {
            let world = Arc::new(World::with_exporter(config, exporter));
            let mut open = Vec::new();
            for n in 0..20u128 {
                let cx = EndsASpan::context(&world);
                // Two requests of each trace.
                let parent = remote_parent(TraceId::from(1 + n / 2));
                let cx = cx.with_remote_span_context(parent);
                let span = world.tracer.start_with_context("span", &cx);
                open.push(span);
            }
            if shutdown == 1 {
                let _ = soon(world.telemetry.shutdown(quick));
            }
            drop(open);
            if shutdown == 2 {
                let _ = soon(world.telemetry.shutdown(quick));
            }
            // 20 spans, one more from each of 20 drops, and another.
            wait_until(&format!("all spans ended: {case}"), || {
                balanced(&world.telemetry).ended == 60
            });
        });
    }
    gate.open();
}

/// Scenario: inside the exporter, in the call and after an await, spans of the same provider end: one that was started
/// before, and the last child of a live request.
/// Guarantees: neither panics nor deadlocks, and they are exported in turn.
#[test]
fn spans_may_end_inside_the_exporter() {
    within(LIMIT, "ending spans inside an export", || {
        let world = World::new(Config::default());
        let root = world.start("root", &tenant(2));
        let spans = Mutex::new(vec![
            world.tracer.start_with_context("one", &tenant(1)),
            world.tracer.start_with_context("two", &root),
        ]);
        world.end(&root);
        world
            .exporter
            .set_inside(move |_| drop(spans.lock().unwrap().pop()));
        world.request("first", &tenant(3));
        world.wait_for_spans(&["first", "one", "root", "two"]);
        world.flush().unwrap();
        world.exporter.set_inside(|_| {});
    });
}

/// Scenario: inside the exporter a flush of the handle is begun and dropped, the numbers are read, and a handle cloned.
/// Guarantees: no deadlock.
#[test]
fn handle_may_be_used_inside_the_exporter() {
    within(LIMIT, "using the handle inside an export", || {
        let world = World::new(Config::default());
        let telemetry = world.telemetry.clone();
        world.exporter.set_inside(move |_| {
            balanced(&telemetry);
            drop(telemetry.clone().flush());
        });
        world.request("span", &tenant(1));
        world.flush().unwrap();
        world.exporter.set_inside(|_| {});
        assert_eq!(world.stats().exported, 1);
    });
}

/// Scenario: a span lives in a thread's local storage and ends while that thread is torn down.
/// Guarantees: it is exported.
#[test]
fn span_may_end_while_its_thread_is_torn_down() {
    thread_local! {
        static LEFT: std::cell::RefCell<Option<Span>> = const { std::cell::RefCell::new(None) };
    }
    let world = World::new(Config::default());
    let tracer = world.tracer.clone();
    std::thread::spawn(move || {
        LEFT.set(Some(tracer.start_with_context("left", &tenant(1))));
    })
    .join()
    .unwrap();
    world.wait_for_spans(&["left"]);
}

/// Scenario: a span is ended twice, and dropped after that.
/// Guarantees: it counts once.
#[test]
fn span_that_is_ended_twice_counts_once() {
    let world = World::new(Config::default());
    let mut span = world.tracer.start_with_context("span", &tenant(1));
    span.end();
    span.end();
    drop(span);
    world.flush().unwrap();
    assert_eq!(world.stats().ended, 1);
}
