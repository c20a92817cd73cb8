//! What is told of spans while they are open, in the cases that are worth a name of their own. The model tries the rest.

use super::*;
use crate::config::OpenEvents;
use crate::observer::Stage;
use crate::open_spans::OpenSpan;
use crate::testing::span;

/// A request, whose spans are told of at the next look.
struct Told {
    lone: Lone,
    now: Instant,
}

impl Told {
    fn new(form: OpenEvents) -> Self {
        Self::of(Dispatch::new(&told(form), Context::new(), true))
    }

    fn of(dispatch: Dispatch) -> Self {
        let mut told = Self {
            lone: Lone::of(dispatch),
            now: Instant::now(),
        };
        #[cfg(feature = "logs")]
        told.lone.dispatch.join(Signal::Logs);
        told.open(1);
        told
    }

    fn open(&mut self, id: u64) {
        let opening = OpenSpan::starting(span(1, id), self.now);
        self.lone.dispatch.open(opening);
    }

    fn open_a_child(&mut self) -> u64 {
        let child = self.lone.start_a_child();
        self.open(child);
        child
    }

    /// Returns the sizes of the batches that leave then.
    fn look(&mut self) -> Vec<usize> {
        self.lone.dispatch.look_at_open_spans(self.now, usize::MAX);
        self.lone.export()
    }

    fn rename(&mut self, id: u64, name: String) {
        let (trace, id) = (TraceId::from(1), SpanId::from(id));
        self.lone.dispatch.rename(trace, id, name.into());
    }
}

fn told(form: OpenEvents) -> Config {
    config()
        .with_open_events(form)
        .with_open_event_min_age(Duration::ZERO)
}

/// Scenario: a request with many open spans is evicted, or the processor is shut down.
/// Guarantees: what is told of them leaves in batches that are no larger than they may be.
#[test]
fn request_with_many_open_spans_is_sent_off_in_several_batches() {
    for is_shut_down in [false, true] {
        let mut told = Told::new(OpenEvents::PendingSpans);
        for _ in 0..2 * MAX_BATCH_SIZE {
            told.open_a_child();
        }
        match is_shut_down {
            true => told.lone.dispatch.close(Signal::Spans),
            false => told.lone.dispatch.start_root(root_of(2), Context::new()),
        }
        let expected = [MAX_BATCH_SIZE, MAX_BATCH_SIZE, 1];
        assert_eq!(told.lone.export(), expected, "shut down: {is_shut_down}");
    }
}

/// Scenario: log records are shut down when an open span is due, and then another span opens.
/// Guarantees: both open events are dropped and counted, the second one when it is due.
#[cfg(feature = "logs")]
#[test]
fn open_event_after_the_shutdown_of_log_records_is_dropped_when_it_is_due() {
    let mut told = Told::new(OpenEvents::Logs);
    told.lone.dispatch.look_at_open_spans(told.now, usize::MAX);
    told.lone.dispatch.close(Signal::Logs);
    told.open_a_child();
    assert_eq!(told.look(), []);
    let stats = told.lone.dispatch.stats().open_events;
    assert_eq!((stats.dropped, stats.pending), (2, 0));
}

/// Scenario: with the trigger `LocalRootEnd`, a span that was told of is renamed during an export, and another one is due, but
/// ends before the export does.
/// Guarantees: the rename leaves, though the root is open.
#[cfg(feature = "logs")]
#[test]
fn rename_waits_for_no_root_also_if_another_span_ends() {
    let config = told(OpenEvents::Logs).with_flush_trigger(FlushTrigger::LocalRootEnd);
    let mut told = Told::of(Dispatch::new(&config, Context::new(), true));
    told.lone.dispatch.look_at_open_spans(told.now, usize::MAX);
    let under_way = told.lone.next_batch().expect("the root is told of");
    told.rename(1, "renamed".to_owned());
    let child = told.open_a_child();
    told.lone.dispatch.look_at_open_spans(told.now, usize::MAX);
    told.lone.end(child);
    told.lone.dispatch.complete(under_way.id, Outcome::Exported);
    assert_eq!(told.lone.export(), [1]);
}

/// Scenario: with the trigger `LocalRootEnd`, a span is told of, and then another one ends; or it is due, but ends while an export
/// is under way.
/// Guarantees: when there is nothing to tell any more, what has ended waits for the root, as ever (R4).
#[test]
fn what_has_ended_waits_for_the_root_once_there_is_nothing_to_tell() {
    let config = told(OpenEvents::PendingSpans).with_flush_trigger(FlushTrigger::LocalRootEnd);
    let mut told = Told::of(Dispatch::new(&config, Context::new(), true));
    assert_eq!(told.look(), [1], "the root is told of");
    told.lone.end_a_child();
    assert_eq!(told.lone.export(), []);

    told.open_a_child();
    told.lone.dispatch.look_at_open_spans(told.now, usize::MAX);
    let under_way = told.lone.next_batch().expect("it is told of");
    assert_eq!(under_way.items.len(), 2, "what has ended goes with it");
    let child = told.open_a_child();
    told.lone.dispatch.look_at_open_spans(told.now, usize::MAX);
    told.lone.end(child);
    told.lone.dispatch.complete(under_way.id, Outcome::Exported);
    assert_eq!(told.lone.export(), []);
    told.lone.end(1);
    assert_eq!(told.lone.export(), [2]);
}

/// Scenario: with the trigger `LocalRootEnd`, a span has ended, and another one that is to be told of ends before the next tick.
/// Guarantees: what has ended waits for the root, as there is nothing to tell (R4).
#[test]
fn what_has_ended_waits_for_the_root_if_the_last_news_ends_before_a_tick() {
    let config = told(OpenEvents::PendingSpans).with_flush_trigger(FlushTrigger::LocalRootEnd);
    let mut told = Told::of(Dispatch::new(&config, Context::new(), true));
    assert_eq!(told.look(), [1], "the root is told of");
    told.lone.end_a_child();
    let child = told.open_a_child();
    told.lone.dispatch.look_at_open_spans(told.now, usize::MAX);
    told.lone.end(child);
    assert_eq!(told.lone.export(), []);
    told.lone.end(1);
    assert_eq!(told.lone.export(), [3]);
}

/// Scenario: an observer takes so long for one event that very many renames come meanwhile, and then the span ends.
/// Guarantees: not all of them wait, and the last name comes with the close.
#[test]
fn observer_that_is_far_behind_hears_the_last_name_from_the_close() {
    const RENAMES: usize = 3000;
    let mut dispatch = Dispatch::new(&config(), Context::new(), true);
    dispatch.observe_spans();
    let mut told = Told::of(dispatch);
    let dispatch = &mut told.lone.dispatch;
    let [opened] = &dispatch.take_told()[..] else {
        panic!("one event");
    };
    let trace = opened.trace_id;
    (1..=RENAMES).for_each(|n| told.rename(1, n.to_string()));
    let mut ended = span(1, 1);
    ended.name = RENAMES.to_string().into();
    told.lone.dispatch.end(&mut Some(ended));
    let next = std::iter::from_fn(|| told.lone.dispatch.next_told(trace));
    let stages: Vec<Stage> = next.map(|event| event.stage).collect();
    assert!(stages.len() < RENAMES / 2, "{} wait", stages.len());
    let Some(Stage::Close(close)) = stages.last() else {
        panic!("it has closed");
    };
    assert_eq!(close.name.as_deref(), Some("3000"));
}

/// Scenario: an instance dies with five requests open, of which three may be told of.
/// Guarantees: they are that of the trace that panicked, and then the latest; all are counted, and none is remembered.
#[test]
fn instance_that_dies_tells_of_its_own_request_first_and_of_the_latest() {
    let config = told(OpenEvents::PendingSpans).with_max_traces(10);
    let mut dispatch = Dispatch::for_workers(&config, Context::new(), true);
    let now = Instant::now();
    for trace in 1..=5 {
        dispatch.start_root(root_of(trace), Context::new());
        dispatch.open(OpenSpan::starting(span(trace, 1), now));
    }
    dispatch.will_die(Some(TraceId::from(2)), 3);
    dispatch.close(Signal::Spans);
    let batches = std::iter::from_fn(|| dispatch.next_batch(None));
    let told: Vec<_> = batches.map(|batch| batch.items.traces()).collect();
    assert_eq!(told, [2, 5, 4].map(|trace| vec![TraceId::from(trace)]));
    let stats = dispatch.stats();
    assert_eq!(stats.open_events.unfinished, 5);
    assert!(stats.is_balanced(), "{stats:?}");
}
