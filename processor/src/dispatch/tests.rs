//! What the dispatch does in the cases that are worth a name of their own. The model tries the rest.

#[cfg(feature = "logs")]
mod logs;
#[cfg(feature = "metric-reader")]
mod metrics;
mod open_events;

use super::*;
use crate::config::FlushTrigger;

const MAX_BATCH_SIZE: usize = 3;
const MAX_EXPORTS: usize = 2;

fn config() -> Config {
    Config::default()
        .with_max_traces(1)
        .with_max_batch_size(MAX_BATCH_SIZE)
        .with_max_exports_per_request(MAX_EXPORTS)
}

/// One request of trace 1 with root 1.
struct Lone {
    dispatch: Dispatch,
    last: u64,
}

impl Lone {
    fn native() -> Self {
        Self::of(Dispatch::new(&config(), Context::new(), true))
    }

    fn in_worker() -> Self {
        let config = config().with_flush_trigger(FlushTrigger::LocalRootEnd);
        Self::of(Dispatch::for_workers(&config, Context::new(), true))
    }

    fn of(mut dispatch: Dispatch) -> Self {
        dispatch.start_root(root_of(1), Context::new());
        Self { dispatch, last: 1 }
    }

    /// One whose root is open, and a child of which has ended and is with the exporter.
    fn with_an_export_under_way() -> (Self, Batch) {
        let mut lone = Self::native();
        lone.end_a_child();
        let batch = lone.next_batch().expect("the child");
        (lone, batch)
    }

    /// One whose root is open, and that has used up its exports.
    fn without_exports_left() -> Self {
        let mut lone = Self::in_worker();
        for n in 1..=MAX_EXPORTS {
            (0..MAX_BATCH_SIZE).for_each(|_| lone.end_a_child());
            assert_eq!(lone.export(), [MAX_BATCH_SIZE], "export {n}");
        }
        lone
    }

    fn start_a_child(&mut self) -> u64 {
        self.last += 1;
        let (trace, parent) = (TraceId::from(1), SpanId::from(1));
        self.dispatch
            .start_child(trace, parent, SpanId::from(self.last));
        self.last
    }

    fn end_a_child(&mut self) {
        let child = self.start_a_child();
        self.end(child);
    }

    fn end(&mut self, id: u64) {
        self.dispatch.end(&mut Some(crate::testing::span(1, id)));
    }

    /// What the exporter gets after a tick.
    fn next_batch(&mut self) -> Option<Batch> {
        self.dispatch.tick(64);
        self.dispatch.next_batch(None)
    }

    /// Exports everything that may leave. Returns the sizes of the batches.
    fn export(&mut self) -> Vec<usize> {
        let mut sizes = Vec::new();
        self.dispatch.tick(64);
        while let Some(batch) = self.dispatch.next_batch(None) {
            sizes.push(batch.items.len());
            self.dispatch.complete(batch.id, Outcome::Exported);
            self.dispatch.tick(64);
        }
        sizes
    }
}

fn root_of(trace: u128) -> RequestId {
    RequestId {
        trace: TraceId::from(trace),
        root: SpanId::from(1),
    }
}

/// Scenario: spans end while an export of their request is under way.
/// Guarantees: they wait for it and leave together (R4).
#[test]
fn queue_waits_for_the_export_of_its_request() {
    let (mut lone, under_way) = Lone::with_an_export_under_way();
    for _ in 0..2 {
        lone.end_a_child();
        assert!(lone.next_batch().is_none());
    }
    lone.dispatch.complete(under_way.id, Outcome::Failed);
    let next = lone.next_batch();
    assert_eq!(next.map(|batch| batch.items.len()), Some(2));
}

/// Scenario: a queue fills up while an export of its request is under way.
/// Guarantees: it leaves at once, without a tick (R4).
#[test]
fn full_queue_waits_for_nothing() {
    let (mut lone, _under_way) = Lone::with_an_export_under_way();
    (0..MAX_BATCH_SIZE).for_each(|_| lone.end_a_child());
    let next = lone.dispatch.next_batch(None);
    assert_eq!(next.map(|batch| batch.items.len()), Some(MAX_BATCH_SIZE));
}

/// Scenario: the last span of a request ends while an export of it is under way.
/// Guarantees: the last batch leaves at once and takes the saved context along: nothing can join it (R4, R9).
#[test]
fn last_batch_of_a_request_waits_for_nothing() {
    let (mut lone, _under_way) = Lone::with_an_export_under_way();
    lone.end(1);
    assert_eq!(lone.dispatch.stats().traces, 0);
    assert!(lone.dispatch.next_batch(None).is_some());
}

/// Scenario: spans of very many traces are lost, one of each.
/// Guarantees: the losses of as many traces are remembered as promised; of a trace before those, a flush of it says nothing,
/// and a flush of everything forgets none.
#[test]
fn losses_are_remembered_of_the_latest_traces_only() {
    let mut dispatch = Dispatch::new(&config(), Context::new(), true);
    let remembered = REMEMBERED_LOSSES.get() as u128;
    let traces = remembered + 1;
    for trace in 1..=traces {
        dispatch.end(&mut Some(crate::testing::span(trace, 1)));
        dispatch.tick(1);
        let batch = dispatch.next_batch(None).expect("a late span");
        dispatch.complete(batch.id, Outcome::Failed);
    }
    let mut lost = |scope| {
        dispatch.begin_flush(Signals::of(Signal::Spans), scope);
        let [(_, report)] = dispatch.take_finished()[..] else {
            panic!("one flush");
        };
        report.losses.failed
    };
    assert_eq!(remembered, 1024);
    assert_eq!(lost(Scope::Trace(TraceId::from(1))), 0);
    assert_eq!(lost(Scope::Trace(TraceId::from(2))), 1);
    assert_eq!(lost(Scope::All), traces as u64);
}

/// Scenario: a span starts that has the id of a live span of its trace, and is refused, or under a parent that nobody knows.
/// Guarantees: the live request is sent off, and neither span leaves under its context any more: they cannot be told apart (R1).
#[test]
fn no_span_is_taken_for_another_one_of_the_same_id() {
    for (name, parent, max_spans) in [("unknown parent", 77, 0), ("refused", 1, 2)] {
        let config = config().with_max_spans_per_trace(max_spans);
        let mut lone = Lone::of(Dispatch::new(&config, Context::new(), true));
        let twin = lone.start_a_child();
        let (trace, id) = (TraceId::from(1), SpanId::from(twin));
        lone.dispatch.start_child(trace, SpanId::from(parent), id);
        assert!(!lone.dispatch.is_live(root_of(1)), "{name}");
        (0..2).for_each(|_| lone.end(twin));
        let batch = lone.next_batch().expect(name);
        assert!(matches!(batch.origin, Origin::Late(_)), "{name}");
        assert_eq!(lone.dispatch.stats().late.total(), 2, "{name}");
    }
}

/// Scenario: in a Worker, many more spans end than a request has exports for; then its root ends, and more spans end.
/// Guarantees: the queue grows instead, leaves as one when the root ends, and then at intervals that double.
#[test]
fn request_without_exports_left_sends_one_more_with_its_root_and_then_ever_more_rarely() {
    let mut lone = Lone::without_exports_left();
    lone.start_a_child();
    (0..20).for_each(|_| lone.end_a_child());
    assert_eq!(lone.export(), []);
    lone.end(1);
    assert_eq!(lone.export(), [21]);

    let mut pauses = Vec::new();
    for _ in 0..8 {
        lone.end_a_child();
        assert_eq!(lone.export(), [], "after {pauses:?}");
        assert!(lone.dispatch.is_paced(root_of(1).queue(Signal::Spans)));
        let paced = lone.dispatch.take_paced();
        pauses.extend(paced.iter().map(|(_, pause)| pause.as_millis()));
        lone.end_a_child();
        lone.dispatch.end_pause(paced[0].0);
        assert_eq!(lone.export(), [2]);
    }
    assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 8000, 8000, 8000]);
}

/// Scenario: in a Worker, a request has used up its exports, and is over, or is flushed, or evicted.
/// Guarantees: what is queued leaves at once.
#[test]
fn what_was_put_off_leaves_with_the_request_with_a_flush_and_with_an_eviction() {
    type Out = fn(&mut Lone);
    let ways: [(&str, Out); 5] = [
        ("over", |lone| lone.end(1)),
        ("flushed", |lone| {
            lone.dispatch
                .open_flush(Signals::ALL, Scope::Request(root_of(1)));
        }),
        ("sent", |lone| lone.dispatch.send(root_of(1))),
        ("all flushed", |lone| {
            lone.dispatch.open_flush(Signals::ALL, Scope::All);
        }),
        ("evicted", |lone| {
            lone.dispatch.start_root(root_of(2), Context::new());
        }),
    ];
    for (way, out) in ways {
        let mut lone = Lone::without_exports_left();
        (0..20).for_each(|_| lone.end_a_child());
        assert_eq!(lone.export(), [], "{way}");
        out(&mut lone);
        assert_eq!(lone.export().len(), 1, "{way}");
        assert_eq!(lone.dispatch.stats().queued, 0, "{way}");
    }
}

/// Scenario: in a Worker, a queue fills up again and again, and no export ends.
/// Guarantees: a request has only so many exports at once.
#[test]
fn request_has_only_so_many_exports_at_once() {
    let config = Config::default()
        .with_max_batch_size(1)
        .with_max_concurrent_exports(3);
    let mut lone = Lone::of(Dispatch::for_workers(&config, Context::new(), true));
    (0..20).for_each(|_| lone.end_a_child());
    let under_way: Vec<Batch> = std::iter::from_fn(|| lone.dispatch.next_batch(None)).collect();
    assert_eq!(under_way.len(), 3);
    assert_eq!(lone.dispatch.stats().queued, 17);
}

/// Scenario: in a Worker, spans of a trace that nobody knows end one after the other.
/// Guarantees: they leave by themselves, but no oftener than those of a request: each export costs their request as much.
#[test]
fn late_spans_have_the_allowance_of_a_request() {
    let mut dispatch = Dispatch::for_workers(&config(), Context::new(), true);
    for n in 0..10 {
        let mut span = Some(crate::testing::span(9, n + 1));
        dispatch.end(&mut span);
        dispatch.tick(64);
        while let Some(batch) = dispatch.next_batch(None) {
            dispatch.complete(batch.id, Outcome::Exported);
        }
    }
    let stats = dispatch.stats();
    assert_eq!((stats.exports, stats.queued), (MAX_EXPORTS as u64, 8));
    let [(id, _)] = dispatch.take_paced()[..] else {
        panic!("one pause");
    };
    dispatch.end_pause(id);
    dispatch.tick(64);
    let next = dispatch.next_batch(None);
    assert_eq!(next.map(|batch| batch.items.len()), Some(8));
}

/// Scenario: in a Worker, late spans of very many traces wait for their turn.
/// Guarantees: of the traces beyond those that are remembered, they leave at once.
#[test]
fn late_spans_of_forgotten_traces_leave_at_once() {
    let config = Config::default().with_max_exports_per_request(1);
    let mut dispatch = Dispatch::for_workers(&config, Context::new(), true);
    let traces = LATE_TRACES as u128 + 100;
    for id in 1..=2 {
        for trace in 1..=traces {
            dispatch.end(&mut Some(crate::testing::span(trace, id)));
            dispatch.tick(usize::MAX);
        }
        while let Some(batch) = dispatch.next_batch(None) {
            dispatch.complete(batch.id, Outcome::Exported);
        }
    }
    let stats = dispatch.stats();
    assert!(stats.is_balanced());
    assert!(stats.queued <= LATE_TRACES as u64, "{stats:?}");
    dispatch.close(Signal::Spans);
    assert_eq!(dispatch.stats().queued, 0);
}

/// Scenario: in a Worker, work keeps a request open after its last span has ended, and starts a span then.
/// Guarantees: the span is the request's own; the request is over when the work is.
#[test]
fn request_that_is_kept_open_has_the_spans_that_start_later() {
    let config = Config::default();
    let mut dispatch = Dispatch::for_workers(&config, Context::new(), true);
    let trace = TraceId::from(1);
    let root = SpanId::from(1);
    let hold = SpanId::from(7);
    dispatch.start_root(RequestId { trace, root }, Context::new());
    dispatch.hold(trace, root, hold);
    dispatch.end(&mut Some(crate::testing::span(1, 1)));
    dispatch.start_child(trace, root, SpanId::from(2));
    dispatch.end(&mut Some(crate::testing::span(1, 2)));
    assert!(dispatch.is_live(RequestId { trace, root }));
    dispatch.release(trace, hold);
    assert!(!dispatch.is_live(RequestId { trace, root }));
    assert_eq!(dispatch.stats().traces, 0);
    assert_eq!(dispatch.stats().late.total(), 0);
    assert_eq!(dispatch.stats().ended, 2);
}

/// Scenario: in a Worker, batches of several traces wait.
/// Guarantees: an event can take those of its own trace first, wherever they are, and the others keep their order.
#[test]
fn batches_of_one_trace_are_taken_before_the_others() {
    let mut dispatch = Dispatch::for_workers(&Config::default(), Context::new(), true);
    for trace in [1, 2, 3, 2] {
        let root = SpanId::from(1);
        let trace_id = TraceId::from(trace);
        let id = RequestId {
            trace: trace_id,
            root,
        };
        dispatch.start_root(id, Context::new());
        dispatch.end(&mut Some(crate::testing::span(trace, 1)));
    }
    let mut of_two = || dispatch.next_batch_of(TraceId::from(2), None);
    assert!(of_two().is_some() && of_two().is_some() && of_two().is_none());
    let rest: Vec<Batch> = std::iter::from_fn(|| dispatch.next_batch(None)).collect();
    let traces: Vec<TraceId> = rest.iter().map(|batch| batch.items.traces()[0]).collect();
    assert_eq!(traces, [TraceId::from(1), TraceId::from(3)]);
    rest.into_iter().for_each(|batch| dispatch.discard(batch));
    assert!(dispatch.take_garbage().is_some());
}
