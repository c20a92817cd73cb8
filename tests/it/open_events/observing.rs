//! What an observer can rely on, whatever happens around it and inside of it.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread::ThreadId;

use opentelemetry::Context;
use opentelemetry::KeyValue;
use opentelemetry::logs::{LogRecord as _, Logger as _, LoggerProvider as _};
use opentelemetry::trace::{
    SpanBuilder, SpanId, SpanKind, Status, TraceContextExt as _, TraceId, Tracer as _,
};
use opentelemetry_per_request::observer::{LifecycleEvent, MAX_OPEN_ATTRIBUTES, Stage, Unfinished};
use opentelemetry_per_request::{RecordUnsampled, SpanObserver};
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::trace::{Sampler, SdkTracer};

use super::*;
use crate::support::{Gate, SOON, logs, remote_parent, some_trace, soon, within};

/// Keeps what it is told, and sees whether two events of a trace come at once. Clones are the same one.
#[derive(Clone, Default)]
pub(super) struct Watch(Arc<Watched>);

#[derive(Default)]
struct Watched {
    events: Mutex<Vec<LifecycleEvent>>,
    busy: Mutex<HashSet<TraceId>>,
    overlap: AtomicBool,
    #[expect(clippy::type_complexity, reason = "it is said once")]
    inside: OnceLock<Box<dyn Fn(&LifecycleEvent) + Send + Sync>>,
}

impl SpanObserver for Watch {
    fn on_event(&self, event: &LifecycleEvent) {
        if !self.0.busy.lock().unwrap().insert(event.trace_id) {
            self.0.overlap.store(true, Ordering::SeqCst);
        }
        self.0.events.lock().unwrap().push(event.clone());
        let _free = Free(&self.0, event.trace_id);
        if let Some(inside) = self.0.inside.get() {
            inside(event);
        }
    }
}

/// The event is over, also if it panics.
struct Free<'a>(&'a Watched, TraceId);

impl Drop for Free<'_> {
    fn drop(&mut self) {
        self.0.busy.lock().unwrap().remove(&self.1);
    }
}

impl Watch {
    /// What it does in each event.
    fn set_inside(&self, act: impl Fn(&LifecycleEvent) + Send + Sync + 'static) {
        assert!(self.0.inside.set(Box::new(act)).is_ok());
    }

    pub(super) fn events(&self) -> Vec<LifecycleEvent> {
        self.0.events.lock().unwrap().clone()
    }

    /// The events of a span, each by a word, with the name that it says.
    pub(super) fn of(&self, cx: &Context) -> Vec<(&'static str, Option<String>)> {
        let span = cx.span().span_context().span_id();
        let events = self.events().into_iter();
        let events = events.filter(|event| event.span_id == span);
        events.map(|event| said(&event)).collect()
    }

    /// Asserts all that an observer can rely on, and that each span that opened has closed.
    pub(super) fn check(&self) {
        let overlap = self.0.overlap.load(Ordering::SeqCst);
        assert!(!overlap, "two events of a trace came at once");
        let events = self.events();
        let mut spans: HashMap<_, Vec<&LifecycleEvent>> = HashMap::new();
        let mut requests: HashMap<_, u64> = HashMap::new();
        for event in &events {
            spans
                .entry((event.trace_id, event.span_id))
                .or_default()
                .push(event);
            if let Some(place) = event.request {
                let next = requests
                    .entry((event.trace_id, place.local_root))
                    .or_default();
                assert_eq!(place.sequence, *next, "a gap, or out of order: {event:?}");
                *next += 1;
            }
        }
        for events in spans.values() {
            let words: Vec<_> = events.iter().map(|event| said(event).0).collect();
            assert_eq!(words.first(), Some(&"open"), "{events:?}");
            assert_eq!(words.last(), Some(&"close"), "{events:?}");
            let between = &words[1..words.len() - 1];
            assert!(between.iter().all(|word| *word == "rename"), "{events:?}");
        }
    }
}

fn said(event: &LifecycleEvent) -> (&'static str, Option<String>) {
    match &event.stage {
        Stage::Open(open) => ("open", Some(open.name.to_string())),
        Stage::Rename(rename) => ("rename", Some(rename.name.to_string())),
        Stage::Close(close) => ("close", close.name.as_ref().map(ToString::to_string)),
        other => panic!("{other:?}"),
    }
}

pub(super) fn watched(config: Config) -> (World, Watch) {
    let watch = Watch::default();
    let observer = watch.clone();
    let world = World::built(config, Recorder::new(), |builder| {
        builder.with_span_observer(observer)
    });
    (world, watch)
}

/// Scenario: a request with a child, with attributes from the start and some that are set later, and a status.
/// Guarantees: what is told is what is known then, the close says what has changed, and all are events of the request in order.
#[test]
fn observer_is_told_what_is_known_at_each_moment() {
    let (world, watch) = watched(Config::default());
    let parent = tenant(1).with_remote_span_context(remote_parent(some_trace()));
    let builder = SpanBuilder::from_name("request")
        .with_kind(SpanKind::Server)
        .with_attributes([KeyValue::new("at", "start")]);
    let span = world.tracer.build_with_context(builder, &parent);
    let root = parent.with_span(span);
    let step = world.start("step", &root);
    root.span().set_attribute(KeyValue::new("later", 7));
    root.span().set_status(Status::error("no"));
    world.end(&step);
    world.end(&root);
    world.flush().unwrap();
    watch.check();
    let events = watch.events();
    let root_id = root.span().span_context().span_id();
    for (at, event) in events.iter().enumerate() {
        let place = event.request.unwrap();
        assert_eq!((place.local_root, place.sequence), (root_id, at as u64));
        assert_eq!(event.trace_id, root.span().span_context().trace_id());
    }
    let [
        Stage::Open(open),
        Stage::Open(step_open),
        Stage::Close(_),
        Stage::Close(close),
    ] = [0, 1, 2, 3].map(|at: usize| events[at].stage.clone())
    else {
        panic!("{events:?}");
    };
    assert_eq!(open.parent_span_id, SpanId::from(0xfeed));
    assert!(open.parent_span_is_remote && !step_open.parent_span_is_remote);
    assert_eq!(
        (open.name.as_ref(), open.kind),
        ("request", SpanKind::Server)
    );
    assert_eq!(open.attributes, [KeyValue::new("at", "start")]);
    assert_eq!(step_open.parent_span_id, root_id);
    assert_eq!(close.attributes, [KeyValue::new("later", 7)]);
    assert_eq!(close.status, Status::error("no"));
    assert_eq!((close.name, close.unfinished), (None, None));
    let (exported, _) = world.exporter.span("request");
    assert_eq!(open.start_time, exported.start_time);
    assert_eq!(close.end_time, exported.end_time);
}

/// Scenario: eight threads run requests that share four trace ids; children end on other threads, some after their roots, some are
/// renamed, with few traces allowed, so that some requests are evicted; in the end some spans are open and all is shut down.
/// Guarantees: all that is documented, for each span, request and trace.
#[test]
fn guarantees_hold_when_requests_share_a_trace_and_spans_end_elsewhere() {
    const THREADS: u32 = 8;
    const REQUESTS: u32 = 60;
    for (max_traces, max_spans) in [(1000, 5000), (3, 5000), (1000, 12)] {
        let config = config(OpenEvents::PendingSpans, Duration::ZERO)
            .with_max_traces(max_traces)
            .with_max_spans_per_trace(max_spans);
        let (world, watch) = watched(config);
        let traces = [(); 4].map(|()| some_trace());
        std::thread::scope(|scope| {
            let (give, take) = mpsc::channel::<Context>();
            let take = Arc::new(Mutex::new(take));
            for _ in 0..2 {
                let (take, world) = (take.clone(), &world);
                scope.spawn(move || {
                    while let Ok(cx) = { take.lock().unwrap().recv() } {
                        world.end(&cx);
                    }
                });
            }
            for thread in 0..THREADS {
                let (give, world) = (give.clone(), &world);
                scope.spawn(move || {
                    for n in 0..REQUESTS {
                        let trace = traces[((thread + n) % 4) as usize];
                        let root = world.continued("request", thread, trace);
                        let step = world.start("step", &root);
                        let late = world.start("late", &step);
                        if n % 3 == 0 {
                            let _active = step.clone().attach();
                            opentelemetry_per_request::active_span().update_name("renamed");
                        }
                        give.send(step).unwrap();
                        world.end(&root);
                        give.send(late).unwrap();
                    }
                });
            }
        });
        let open = world.start("open", &tenant(1));
        // Spans beyond `max_spans_per_trace` are lost.
        let _ = soon(world.telemetry.shutdown(SOON));
        watch.check();
        let mut opened = watch.events();
        opened.retain(|event| matches!(event.stage, Stage::Open(_)));
        assert_eq!(opened.len() as u32, THREADS * REQUESTS * 3 + 1);
        let [(first, _), (last, None)] = watch.of(&open)[..] else {
            panic!("{:?}", watch.of(&open));
        };
        assert_eq!((first, last), ("open", "close"));
    }
}

/// Scenario: an observer that panics in each event.
/// Guarantees: no panic reaches the application, each event comes nevertheless, spans are exported, and warnings count the panics.
#[test]
fn observer_that_panics_is_told_of_what_comes_next() {
    const PANICKED: &str = "PerRequestSpanProcessor.ObserverPanicked";
    logs::listen();
    let (world, watch) = watched(Config::default());
    watch.set_inside(|event| panic!("the observer panics at {:?}", event.span_id));
    for n in 0..5 {
        let root = world.start("request", &tenant(n));
        world.request("step", &root);
        world.end(&root);
    }
    let open = world.start("open", &tenant(1));
    world.flush().unwrap();
    soon(world.telemetry.shutdown(SOON)).unwrap();
    watch.check();
    assert_eq!(watch.events().len(), 22);
    assert_eq!(world.exporter.names().len(), 10);
    // What happens while the shutdown is under way may come too late for a warning.
    wait_until("all panics are counted in warnings", || {
        let lines = logs::lines(|line| line.event == PANICKED);
        let counts = lines.iter().map(|line| line.field("events"));
        counts.map(|n| n.parse::<u64>().unwrap()).sum::<u64>() >= 21
    });
    drop(open);
}

/// How deep each thread is inside of an observer. Several may be at once, with events of different traces.
#[derive(Default)]
struct Depth(Mutex<HashMap<ThreadId, usize>>);

struct Inside<'a>(&'a Depth);

impl Depth {
    fn enter(&self, deepest: &AtomicUsize) -> Inside<'_> {
        let mut depths = self.0.lock().unwrap();
        let depth = depths.entry(std::thread::current().id()).or_default();
        deepest.fetch_max(*depth, Ordering::SeqCst);
        *depth += 1;
        Inside(self)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let mut depths = self.0.0.lock().unwrap();
        *depths.entry(std::thread::current().id()).or_default() -= 1;
    }
}

/// Scenario: an observer that starts and ends spans: in the same trace, as a child of the one that opens, and in a trace of its own.
/// Guarantees: what it does is told after it has returned, and never inside of it; all guarantees hold.
#[test]
fn what_an_observer_does_is_told_after_it_has_returned() {
    for own_trace in [false, true] {
        let (world, watch) = watched(Config::default());
        let deepest = Arc::new(AtomicUsize::new(0));
        let (tracer, deep) = (world.tracer.clone(), deepest.clone());
        let depth = Depth::default();
        watch.set_inside(move |event| {
            let _in = depth.enter(&deep);
            if said(event) == ("open", Some("request".to_owned())) {
                work(&tracer, event, own_trace);
            }
        });
        let root = world.start("request", &tenant(1));
        world.end(&root);
        world.flush().unwrap();
        wait_until("all is told", || watch.events().len() == 6);
        watch.check();
        assert_eq!(deepest.load(Ordering::SeqCst), 0, "{own_trace}");
        let names = ["of the observer", "of the observer", "request"];
        assert_eq!(world.exporter.names(), names);
    }
}

/// Scenario: an observer that starts a root span in each of its events, ten thousand times.
/// Guarantees: each comes after the one that it was started in has returned, however many there are.
#[test]
fn observer_that_feeds_itself_does_not_run_out_of_stack() {
    const SPANS: usize = 10_000;
    let (world, watch) = watched(Config::default());
    let (tracer, left) = (world.tracer.clone(), AtomicUsize::new(SPANS));
    watch.set_inside(move |_| {
        let take = |left: usize| left.checked_sub(1);
        if left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, take)
            .is_ok()
        {
            drop(tracer.start_with_context("of the observer", &tenant(2)));
        }
    });
    world.request("request", &tenant(1));
    // Another thread may be telling of it: one that renames a span asks each processor.
    wait_until("all is told", || watch.events().len() == 2 * (SPANS + 1));
    watch.check();
}

fn work(tracer: &SdkTracer, event: &LifecycleEvent, own_trace: bool) {
    let parent = match own_trace {
        true => tenant(2),
        false => tenant(2).with_remote_span_context(crate::support::parent(
            event.trace_id,
            event.span_id,
            false,
        )),
    };
    for _ in 0..2 {
        drop(tracer.start_with_context("of the observer", &parent));
    }
}

/// Scenario: an observer that logs, asks for numbers, flushes, and renames the active span, in each event.
/// Guarantees: nothing hangs, its records are exported, and the guarantees hold.
#[test]
fn observer_may_log_and_use_the_handle() {
    within(SOON, "an observer that does much", || {
        let logs = LogRecorder::new();
        let watch = Watch::default();
        let observer = watch.clone();
        let (world, processor) = World::joined(
            config(OpenEvents::Logs, Duration::ZERO),
            Recorder::new(),
            |builder| builder.with_span_observer(observer),
            |processor| processor.log_processor(logs.clone()).unwrap(),
        );
        let loggers = SdkLoggerProvider::builder()
            .with_log_processor(processor)
            .build();
        let (logger, handle) = (loggers.logger("observer"), world.telemetry.clone());
        let flushes = Arc::new(AtomicUsize::new(0));
        let flushed = flushes.clone();
        watch.set_inside(move |event| {
            let mut record = logger.create_log_record();
            record.set_body(said(event).0.into());
            logger.emit(record);
            assert!(handle.stats().is_balanced());
            opentelemetry_per_request::active_span().update_name("renamed by the observer");
            if futures_executor::block_on(handle.flush()).is_ok() {
                flushed.fetch_add(1, Ordering::SeqCst);
            }
        });
        let root = world.start("request", &tenant(1));
        {
            let _active = root.clone().attach();
            world.request("step", &root);
        }
        world.end(&root);
        world.flush().unwrap();
        loggers.force_flush().unwrap();
        watch.check();
        let events = watch.events();
        assert_eq!(flushes.load(Ordering::SeqCst), events.len());
        let mut said: Vec<_> = logs.bodies();
        said.retain(|body| ["open", "rename", "close"].contains(&body.as_str()));
        assert_eq!(said.len(), events.len());
        world.provider.shutdown().unwrap();
        loggers.shutdown().unwrap();
    });
}

/// Scenario: an observer blocks in an event of one trace; spans of that trace, and of another one, start and end on other threads.
/// Guarantees: the other trace's events come meanwhile; nobody but who is inside of the observer waits; and what came in the held
/// up trace is told in order afterwards.
#[test]
fn slow_observer_holds_up_nobody_but_its_own_trace() {
    let (world, watch) = watched(Config::default());
    let gate = Gate::default();
    let blocks = gate.clone();
    watch.set_inside(move |event| {
        if said(event).1.as_deref() == Some("slow") {
            blocks.wait();
        }
    });
    let root = world.start("request", &tenant(1));
    let held = std::thread::scope(|scope| {
        let slow = scope.spawn(|| world.start("slow", &root));
        wait_until("it is inside", || watch.events().len() == 2);
        // If anything waited, the gate would never open, and the test would hang until somebody looked.
        let opener = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let other = world.start("other", &tenant(2));
            world.end(&other);
            assert_eq!(watch.of(&other).len(), 2);
            let held = world.start("held up", &root);
            world.end(&held);
            assert_eq!(watch.of(&held).len(), 0);
            world.flush().unwrap();
            assert_eq!(world.exporter.names(), ["held up", "other"]);
            held
        }));
        gate.open();
        let slow = slow.join().unwrap();
        world.end(&slow);
        opener.unwrap()
    });
    assert_eq!(watch.of(&held).len(), 2);
    world.end(&root);
    watch.check();
    assert_eq!(watch.events().len(), 8);
}

/// Scenario: requests that are not sampled, by an ordinary sampler and by one that records them nevertheless; and one that is.
/// Guarantees: of the first there is no event, neither to the observer nor to the collector.
#[test]
fn span_that_is_not_sampled_has_no_event() {
    for recorded in [false, true] {
        let sampler: Box<dyn opentelemetry_sdk::trace::ShouldSample> = match recorded {
            false => Box::new(Sampler::AlwaysOff),
            true => Box::new(RecordUnsampled::new(Sampler::AlwaysOff)),
        };
        let (watch, logs) = (Watch::default(), LogRecorder::new());
        let observer = watch.clone();
        let (world, processor) = World::sampled(
            config(OpenEvents::Logs, Duration::ZERO).with_export_unfinished(true),
            Recorder::new(),
            Unsampled(sampler),
            |builder| builder.with_span_observer(observer),
            |processor| processor.log_processor(logs.clone()).unwrap(),
        );
        let root = world.start("request", &tenant(1));
        let step = world.start("step", &root);
        {
            let _active = step.clone().attach();
            opentelemetry_per_request::active_span().update_name("renamed");
        }
        world.end(&step);
        soon(processor.handle().flush()).unwrap();
        world.flush().unwrap();
        soon(world.telemetry.shutdown(SOON)).unwrap();
        soon(processor.handle().shutdown(SOON)).unwrap();
        assert_eq!(watch.events(), []);
        assert_eq!((logs.entered(), world.exporter.entered()), (0, 0));
        assert_eq!(world.stats().open_events, Default::default());
        drop(root);
    }
}

/// Any of them.
#[derive(Clone, Debug)]
struct Unsampled(Box<dyn opentelemetry_sdk::trace::ShouldSample>);

impl opentelemetry_sdk::trace::ShouldSample for Unsampled {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[opentelemetry::trace::Link],
    ) -> opentelemetry_sdk::trace::SamplingResult {
        let Self(sampler) = self;
        sampler.should_sample(parent, trace, name, kind, attributes, links)
    }
}

/// Scenario: a span starts with more attributes than are remembered, and gets some later.
/// Guarantees: it is told of with the first ones, to the observer, who hears how many more there are, and to the collector in both
/// forms; the close has all others; and the span is exported with all.
#[test]
fn attributes_beyond_the_cap_are_told_by_the_close() {
    assert_eq!(MAX_OPEN_ATTRIBUTES, 32);
    let numbered = |n: i64| KeyValue::new(format!("key.{n}"), n);
    for form in FORMS {
        let watch = Watch::default();
        let observer = watch.clone();
        let open = OpenWorld::built(config(form, SOON_OLD), Recorder::new(), |builder| {
            builder.with_span_observer(observer)
        });
        let builder = SpanBuilder::from_name("request").with_attributes((0..40).map(numbered));
        let span = open.world.tracer.build_with_context(builder, &tenant(1));
        let root = tenant(1).with_span(span);
        wait_until("it is told of", || open.opened().len() == 1);
        root.span().set_attribute(numbered(40));
        open.world.end(&root);
        open.world.flush().unwrap();
        let events = watch.events();
        let [Stage::Open(opened), Stage::Close(close)] =
            [0, 1].map(|at: usize| events[at].stage.clone())
        else {
            panic!("{events:?}");
        };
        let first: Vec<_> = (0..32).map(numbered).collect();
        assert_eq!(opened.attributes, first);
        assert_eq!(opened.dropped_attributes_count, 8);
        let others: Vec<_> = (32..=40).map(numbered).collect();
        assert_eq!(close.attributes, others);
        let spans = open.world.exporter.spans();
        let mut real = spans.iter().filter(|(span, _)| !is_pending(span));
        let (real, _) = real.next().unwrap();
        assert_eq!(
            (real.attributes.len(), real.dropped_attributes_count),
            (41, 0)
        );
        match form {
            OpenEvents::Logs => {
                let (log, _) = open.logs.log("request");
                assert_eq!(log.attribute("key.31").as_deref(), Some("Int(31)"));
                assert_eq!(log.attribute("key.32"), None);
            }
            _ => {
                let mut pending = spans.iter().filter(|(span, _)| is_pending(span));
                let (pending, _) = pending.next().unwrap();
                assert_eq!(pending.attributes[..32], first);
                assert_eq!(pending.attributes.len(), 34);
                assert_eq!(pending.dropped_attributes_count, 8);
            }
        }
    }
}

/// Scenario: spans whose request is not known: beyond `max_spans_per_trace`, below a request that is over, and of an evicted one.
/// Guarantees: each has one open and one close, and what comes after the request is known no more says no request; nothing of those
/// that were never known leaves for the collector before they end.
#[test]
fn spans_of_no_known_request_are_told_of_without_one() {
    let watch = Watch::default();
    let observer = watch.clone();
    let config = config(OpenEvents::Logs, Duration::ZERO)
        .with_max_spans_per_trace(2)
        .with_max_traces(2);
    let open = OpenWorld::built(config, Recorder::new(), |builder| {
        builder.with_span_observer(observer)
    });
    let requests_of = |cx: &Context| {
        let id = cx.span().span_context().span_id();
        let mut events = watch.events();
        events.retain(|event| event.span_id == id);
        let known: Vec<_> = events.iter().map(|e| e.request.is_some()).collect();
        known
    };

    let root = open.world.start("request", &tenant(1));
    let known = open.world.start("known", &root);
    let refused = open.world.start("refused", &root);
    for cx in [&refused, &known, &root] {
        open.world.end(cx);
    }
    assert_eq!(requests_of(&refused), [false, false]);
    assert_eq!(requests_of(&known), [true, true]);

    let late = open.world.start("late", &root);
    open.world.end(&late);
    assert_eq!(requests_of(&late), [false, false]);

    let evicted = open.world.start("evicted", &tenant(1));
    let others = [2, 3].map(|n| open.world.start("other", &tenant(n)));
    assert_eq!(open.world.stats().evicted_traces, 1);
    open.world.end(&evicted);
    assert_eq!(requests_of(&evicted), [true, false]);
    others.iter().for_each(|cx| open.world.end(cx));
    watch.check();
    let told: Vec<_> = open.opened().into_iter().map(|(name, _)| name).collect();
    assert!(!told.iter().any(|name| name == "refused" || name == "late"));
    // Neither the one that was refused nor the late one counts.
    assert_eq!(open.world.stats().open_events.opened, 5);
}

/// Scenario: more spans are open than are remembered, which then end; only an observer looks.
/// Guarantees: each has its open and its close; the close of one that is not remembered has all attributes.
#[test]
fn observer_is_told_of_spans_that_are_not_remembered() {
    let (world, watch) = watched(Config::default().with_max_pending_spans(2));
    let root = world.start("request", &tenant(1));
    let steps: Vec<_> = (0..4)
        .map(|_| {
            let attributes = [KeyValue::new("key", "value")];
            let builder = SpanBuilder::from_name("step").with_attributes(attributes);
            root.with_span(world.tracer.build_with_context(builder, &root))
        })
        .collect();
    for cx in steps.iter().chain([&root]) {
        world.end(cx);
        world.flush().unwrap();
    }
    watch.check();
    let closed = watch
        .events()
        .into_iter()
        .filter_map(|event| match event.stage {
            Stage::Close(close) => Some(close.attributes.len()),
            _ => None,
        });
    let closed: Vec<_> = closed.collect();
    // The first step is remembered.
    assert_eq!(closed, [0, 1, 1, 1, 0]);
}

/// Scenario: more spans are open than are remembered when the processor is shut down.
/// Guarantees: those that are remembered are closed as unfinished, and the number says how many.
#[test]
fn span_that_is_not_remembered_is_not_closed_by_the_shutdown() {
    let (world, watch) = watched(Config::default().with_max_pending_spans(2));
    let root = world.start("request", &tenant(1));
    let steps = ["first", "second"].map(|name| world.start(name, &root));
    soon(world.telemetry.shutdown(SOON)).unwrap();
    let closed = [&root, &steps[0], &steps[1]].map(|cx| watch.of(cx).len() == 2);
    assert_eq!(closed, [true, true, false]);
    assert_eq!(world.stats().open_events.unfinished, 2);
}

/// Scenario: the processor is shut down while spans are open; they end after that, and others start and end.
/// Guarantees: the open ones are closed as unfinished, in order, and then there is nothing more.
#[test]
fn after_the_shutdown_nothing_is_told() {
    let (world, watch) = watched(Config::default());
    let root = world.start("request", &tenant(1));
    let step = world.start("step", &root);
    soon(world.telemetry.shutdown(SOON)).unwrap();
    for cx in [&root, &step] {
        let id = cx.span().span_context().span_id();
        let mut events = watch.events();
        events.retain(|event| event.span_id == id);
        let Some(Stage::Close(close)) = events.last().map(|event| event.stage.clone()) else {
            panic!("{events:?}");
        };
        assert_eq!(close.unfinished, Some(Unfinished::Shutdown));
        assert_eq!(close.status, Status::Unset);
    }
    watch.check();
    assert_eq!(watch.events().len(), 4);
    world.end(&step);
    world.end(&root);
    world.request("afterwards", &tenant(1));
    {
        let _active = root.clone().attach();
        opentelemetry_per_request::active_span().update_name("renamed");
    }
    soon(world.telemetry.shutdown(SOON)).unwrap();
    assert_eq!(watch.events().len(), 4);
}

/// Scenario: a processor that is switched off has an observer.
/// Guarantees: it is told of nothing.
#[test]
fn observer_of_a_processor_that_is_switched_off_is_told_of_nothing() {
    let (world, watch) = watched(Config::default().with_enabled(false));
    world.request("request", &tenant(1));
    world.provider.shutdown().unwrap();
    assert_eq!(watch.events(), []);
}

/// Scenario: two processors, each with an observer of its own, of two providers in one process.
/// Guarantees: each is told of its own spans only, renames too.
#[test]
fn observers_of_two_processors_are_told_of_their_own_spans() {
    let pairs = [1, 2].map(|_| watched(Config::default()));
    let roots = pairs
        .each_ref()
        .map(|(world, _)| world.start("request", &tenant(1)));
    for root in &roots {
        let _active = root.clone().attach();
        opentelemetry_per_request::active_span().update_name("renamed");
    }
    for ((world, watch), root) in pairs.iter().zip(&roots) {
        world.end(root);
        watch.check();
        assert_eq!(watch.events().len(), 3);
        assert_eq!(watch.of(root).len(), 3);
    }
}

/// Scenario: two observers of two processors, each of which starts a root of the other's in its first events.
/// Guarantees: neither is called inside of itself.
#[test]
fn observers_that_make_spans_of_each_other_are_not_called_inside_of_themselves() {
    let pairs = [1, 2].map(|_| watched(Config::default()));
    let deepest = Arc::new(AtomicUsize::new(0));
    for (at, (_, watch)) in pairs.iter().enumerate() {
        let tracer = pairs[1 - at].0.tracer.clone();
        let (depth, left) = (Depth::default(), AtomicUsize::new(5));
        let deep = deepest.clone();
        watch.set_inside(move |_| {
            let _in = depth.enter(&deep);
            let take = |left: usize| left.checked_sub(1);
            if left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, take)
                .is_ok()
            {
                drop(tracer.start_with_context("of the other", &tenant(2)));
            }
        });
    }
    pairs[0].0.request("request", &tenant(1));
    wait_until("all is told", || {
        let told = pairs.iter().map(|(_, watch)| watch.events().len());
        told.sum::<usize>() == 2 * (1 + 10)
    });
    assert_eq!(deepest.load(Ordering::SeqCst), 0);
    for (_, watch) in &pairs {
        watch.check();
    }
}

/// Scenario: a processor is shut down, and a handle to it stays.
/// Guarantees: its observer is let go, and so is whatever that has.
#[test]
fn observer_is_let_go_after_the_shutdown() {
    let (witness, alive) = crate::support::Witness::new();
    let world = World::built(Config::default(), Recorder::new(), |builder| {
        builder.with_span_observer(move |_: &LifecycleEvent| {
            let _ = &witness;
        })
    });
    world.request("request", &tenant(1));
    assert!(alive.is_alive());
    world.provider.shutdown().unwrap();
    wait_until("it is let go", || !alive.is_alive());
    assert_eq!(world.telemetry.stats().exported, 1);
}
