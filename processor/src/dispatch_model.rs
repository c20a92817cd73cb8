//! Random actions against a naive model of the dispatch. After each one:
//!
//! - the accounting law holds (R12), and no bound is exceeded (R6, R4);
//! - every batch holds spans of one request only, under the context of that request, or late ones under the fallback
//!   context (R1, R5, R8), as the model expects it of each span;
//! - a request that is over has left nothing behind (R9).
//!
//! In the end everything is drained: each span that ended was exported, failed or dropped, exactly once.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use opentelemetry::trace::TraceFlags;
use proptest::prelude::*;

use super::*;
use crate::testing::span_with_flags;

/// What a context belongs to: a request, or nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tenant(u64);

const FALLBACK: Tenant = Tenant(0);

const MAX_TRACES: usize = 3;
const MAX_SPANS_PER_TRACE: usize = 8;
const MAX_BATCH_SIZE: usize = 3;
const MAX_PENDING: usize = 12;
const MAX_CONCURRENT: usize = 2;

#[derive(Clone, Debug)]
enum Action {
    StartRoot {
        trace: u128,
    },
    /// Of any span that was ever started, live or not; now and then of one that nobody knows.
    StartChild {
        parent: usize,
        known: bool,
    },
    End {
        open: usize,
        sampled: bool,
    },
    Tick,
    NextBatch,
    Complete {
        batch: usize,
        outcome: Outcome,
    },
    Expire,
    FlushAll,
    FlushTrace {
        trace: u128,
    },
}

fn action() -> impl Strategy<Value = Action> {
    let outcome = prop_oneof![Just(Outcome::Exported), Just(Outcome::Failed)];
    prop_oneof![
        3 => (1..6u128).prop_map(|trace| Action::StartRoot { trace }),
        5 => (any::<usize>(), prop::bool::weighted(0.95))
            .prop_map(|(parent, known)| Action::StartChild { parent, known }),
        7 => (any::<usize>(), prop::bool::weighted(0.9))
            .prop_map(|(open, sampled)| Action::End { open, sampled }),
        3 => Just(Action::Tick),
        3 => Just(Action::NextBatch),
        3 => (any::<usize>(), outcome)
            .prop_map(|(batch, outcome)| Action::Complete { batch, outcome }),
        1 => Just(Action::Expire),
        1 => Just(Action::FlushAll),
        1 => (1..6u128).prop_map(|trace| Action::FlushTrace { trace }),
    ]
}

/// What becomes of a span, as the model sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Of(Tenant),
    Late,
    Refused,
}

#[derive(Debug, Default)]
struct Model {
    /// Live traces, least recently used first.
    traces: Vec<(u128, ModelTrace)>,
    /// The trace of each span that was ever started.
    trace_of: HashMap<u64, u128>,
    open: Vec<u64>,
    ended: HashMap<u64, Fate>,
    next_id: u64,
}

#[derive(Debug, Default)]
struct ModelTrace {
    requests: Vec<ModelRequest>,
    refused: usize,
}

#[derive(Debug)]
struct ModelRequest {
    tenant: Tenant,
    spans: HashSet<u64>,
    open: usize,
}

impl Model {
    fn new_span(&mut self, trace: u128) -> u64 {
        self.next_id += 1;
        self.trace_of.insert(self.next_id, trace);
        self.open.push(self.next_id);
        self.next_id
    }

    /// Marks a trace as used now.
    fn touch(&mut self, trace: u128) -> Option<&mut ModelTrace> {
        let at = self.traces.iter().position(|(id, _)| *id == trace)?;
        let entry = self.traces.remove(at);
        self.traces.push(entry);
        self.traces.last_mut().map(|(_, entry)| entry)
    }

    fn start_root(&mut self, trace: u128, tenant: Tenant) -> u64 {
        let span = self.new_span(trace);
        if self.touch(trace).is_none() {
            if self.traces.len() == MAX_TRACES {
                self.traces.remove(0);
            }
            self.traces.push((trace, ModelTrace::default()));
        }
        let entry = self.touch(trace).expect("it is there");
        match entry.spans() < MAX_SPANS_PER_TRACE {
            true => entry.requests.push(ModelRequest {
                tenant,
                spans: HashSet::from([span]),
                open: 1,
            }),
            false => entry.refused += 1,
        }
        span
    }

    fn start_child(&mut self, trace: u128, parent: u64) -> u64 {
        let span = self.new_span(trace);
        if let Some(entry) = self.touch(trace) {
            let full = entry.spans() >= MAX_SPANS_PER_TRACE;
            let mut requests = entry.requests.iter_mut();
            match requests.find(|request| request.spans.contains(&parent)) {
                _ if full => entry.refused += 1,
                Some(request) => {
                    request.spans.insert(span);
                    request.open += 1;
                }
                None => {}
            }
        }
        span
    }

    fn end(&mut self, span: u64) -> Fate {
        let trace = self.trace_of[&span];
        let Some(entry) = self.touch(trace) else {
            return Fate::Late;
        };
        let owner = entry.requests.iter().position(|r| r.spans.contains(&span));
        let fate = match owner {
            Some(at) => {
                let request = &mut entry.requests[at];
                request.open -= 1;
                let tenant = request.tenant;
                if request.open == 0 {
                    entry.requests.remove(at);
                }
                Fate::Of(tenant)
            }
            None if entry.refused > 0 => {
                entry.refused -= 1;
                Fate::Refused
            }
            None => Fate::Late,
        };
        self.traces
            .retain(|(_, entry)| !entry.requests.is_empty() || entry.refused > 0);
        fate
    }
}

impl ModelTrace {
    fn spans(&self) -> usize {
        self.requests
            .iter()
            .map(|request| request.spans.len())
            .sum()
    }
}

/// The dispatch and its model, side by side.
struct Pair {
    dispatch: Dispatch,
    model: Model,
    in_flight: Vec<Batch>,
    /// Spans that the exporter got, by id: each at most once.
    seen: HashSet<u64>,
    sampled: HashSet<u64>,
    tenants: u64,
}

impl Pair {
    fn new(trigger: FlushTrigger) -> Self {
        let config = Config::default()
            .with_max_traces(MAX_TRACES)
            .with_max_spans_per_trace(MAX_SPANS_PER_TRACE)
            .with_max_batch_size(MAX_BATCH_SIZE)
            .with_max_pending_spans(MAX_PENDING)
            .with_max_concurrent_exports(MAX_CONCURRENT)
            .with_flush_trigger(trigger);
        let fallback = Context::new().with_value(FALLBACK);
        Self {
            dispatch: Dispatch::new(&config, fallback, true),
            model: Model::default(),
            in_flight: Vec::new(),
            seen: HashSet::new(),
            sampled: HashSet::new(),
            tenants: 0,
        }
    }

    fn apply(&mut self, action: &Action) {
        match *action {
            Action::StartRoot { trace } => {
                self.tenants += 1;
                let tenant = Tenant(self.tenants);
                let root = SpanId::from(self.model.start_root(trace, tenant));
                let id = RequestId {
                    trace: TraceId::from(trace),
                    root,
                };
                let context = Context::new().with_value(tenant);
                self.dispatch.start_root(id, context);
            }
            Action::StartChild { parent, known } => self.start_child(parent, known),
            Action::End { open, sampled } => self.end(open, sampled),
            Action::Tick => self.dispatch.tick(2),
            Action::NextBatch => self.next_batch(),
            Action::Complete { batch, outcome } => {
                if !self.in_flight.is_empty() {
                    let batch = self.in_flight.remove(batch % self.in_flight.len());
                    self.dispatch.complete(batch.id, outcome);
                }
            }
            Action::Expire => {
                let later = Instant::now() + Duration::from_secs(60);
                for overdue in self.dispatch.overdue(later) {
                    self.dispatch.give_up(overdue.id);
                }
            }
            Action::FlushAll => {
                self.dispatch.begin_flush(Scope::All);
                assert_eq!(self.dispatch.stats().queued, 0);
            }
            Action::FlushTrace { trace } => {
                self.dispatch
                    .begin_flush(Scope::Trace(TraceId::from(trace)));
            }
        }
        self.check();
    }

    fn start_child(&mut self, parent: usize, known: bool) {
        if self.model.next_id == 0 {
            return;
        }
        let parent = parent as u64 % self.model.next_id + 1;
        let trace = self.model.trace_of[&parent];
        let parent = match known {
            true => parent,
            false => u64::MAX,
        };
        let child = self.model.start_child(trace, parent);
        let trace = TraceId::from(trace);
        self.dispatch
            .start_child(trace, SpanId::from(parent), SpanId::from(child));
    }

    fn end(&mut self, open: usize, sampled: bool) {
        if self.model.open.is_empty() {
            return;
        }
        let id = self.model.open.remove(open % self.model.open.len());
        let trace = self.model.trace_of[&id];
        let before = self.dispatch.stats();
        let fate = self.model.end(id);
        let flags = match sampled {
            true => TraceFlags::SAMPLED,
            false => TraceFlags::default(),
        };
        let mut span = Some(span_with_flags(trace, id, flags));
        self.dispatch.end(&mut span);
        let after = self.dispatch.stats();

        assert_eq!(after.ended - before.ended, u64::from(sampled));
        let full = before.pending() >= MAX_PENDING as u64;
        let taken = sampled && !full && fate != Fate::Refused;
        assert_eq!(span.is_none(), taken, "span {id} of {fate:?}");
        assert_eq!(after.pending() - before.pending(), u64::from(taken));
        let late = sampled && fate == Fate::Late;
        assert_eq!(after.late.total() - before.late.total(), u64::from(late));
        if taken {
            self.model.ended.insert(id, fate);
            self.sampled.insert(id);
        }
    }

    fn next_batch(&mut self) {
        let Some(batch) = self.dispatch.next_batch(Some(Instant::now())) else {
            return;
        };
        assert!(!batch.spans.is_empty() && batch.spans.len() <= MAX_BATCH_SIZE);
        let tenant = batch
            .context
            .get::<Tenant>()
            .copied()
            .expect("every context has one");
        for span in &batch.spans {
            let id = u64::from_be_bytes(span.span_context.span_id().to_bytes());
            assert!(self.seen.insert(id), "span {id} was exported twice");
            let expected = match self.model.ended[&id] {
                Fate::Of(tenant) => tenant,
                Fate::Late => FALLBACK,
                Fate::Refused => panic!("span {id} was refused"),
            };
            assert_eq!(tenant, expected, "span {id}");
            let marked = span
                .attributes
                .iter()
                .any(|kv| kv.key.as_str() == LATE_ATTRIBUTE);
            assert_eq!(marked, tenant == FALLBACK);
        }
        self.in_flight.push(batch);
    }

    fn check(&self) {
        let stats = self.dispatch.stats();
        assert!(stats.is_balanced(), "{stats:?}");
        assert!(stats.pending() <= MAX_PENDING as u64);
        assert!(self.in_flight.len() <= MAX_CONCURRENT);
        assert_eq!(stats.traces, self.model.traces.len() as u64);
        let live = |id: &RequestId| {
            let trace = self.dispatch.registry.roots(id.trace);
            trace.contains(id)
        };
        assert!(
            self.dispatch.held.iter().all(live),
            "a request that is over is held"
        );
    }

    /// Spans leave while others of their request are open (R4).
    fn stream_out(&mut self) {
        for _ in 0..100 {
            self.apply(&Action::Tick);
            self.let_out();
        }
        let stats = self.dispatch.stats();
        assert_eq!(stats.pending(), 0, "{stats:?}");
    }

    /// Ends everything, and lets everything out.
    fn drain(&mut self) {
        while !self.model.open.is_empty() {
            self.apply(&Action::End {
                open: 0,
                sampled: true,
            });
            self.let_out();
        }
        // Nothing but ticks is needed to let everything out: no flush, no further span.
        for _ in 0..100 {
            self.dispatch.tick(64);
            self.let_out();
        }
        let stats = self.dispatch.stats();
        assert_eq!((stats.pending(), stats.traces), (0, 0), "{stats:?}");
        assert_eq!(self.seen, self.sampled);
        assert!(self.dispatch.held.is_empty() && self.dispatch.flushes.is_empty());
    }

    fn let_out(&mut self) {
        loop {
            self.apply(&Action::NextBatch);
            if self.in_flight.is_empty() {
                break;
            }
            self.apply(&Action::Complete {
                batch: 0,
                outcome: Outcome::Exported,
            });
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    /// Scenario: any sequence of starts, ends, ticks, exports, failures, timeouts and flushes, with either trigger.
    /// Guarantees: the properties at the top of this file.
    #[test]
    fn dispatch_agrees_with_its_model(
        actions in prop::collection::vec(action(), 1..120),
        root_end in any::<bool>(),
    ) {
        let trigger = match root_end {
            true => FlushTrigger::LocalRootEnd,
            false => FlushTrigger::NextTick,
        };
        let mut pair = Pair::new(trigger);
        actions.iter().for_each(|action| pair.apply(action));
        if trigger == FlushTrigger::NextTick {
            pair.stream_out();
        }
        pair.drain();
    }
}

/// A request with an open root, and a child that has ended and is in flight.
fn request_with_an_export_under_way() -> Pair {
    let mut pair = Pair::new(FlushTrigger::NextTick);
    pair.apply(&Action::StartRoot { trace: 1 });
    end_a_child(&mut pair);
    pair.apply(&Action::Tick);
    pair.apply(&Action::NextBatch);
    assert_eq!(pair.in_flight.len(), 1);
    pair
}

fn end_a_child(pair: &mut Pair) {
    let known = true;
    pair.apply(&Action::StartChild { parent: 0, known });
    let open = pair.model.open.len() - 1;
    let sampled = true;
    pair.apply(&Action::End { open, sampled });
}

/// Scenario: spans end while an export of their request is under way.
/// Guarantees: they wait for it and leave together (R4).
#[test]
fn queue_waits_for_the_export_of_its_request() {
    let mut pair = request_with_an_export_under_way();
    end_a_child(&mut pair);
    pair.apply(&Action::Tick);
    end_a_child(&mut pair);
    pair.apply(&Action::Tick);
    assert_eq!(pair.dispatch.stats().queued, 2);

    let outcome = Outcome::Failed;
    pair.apply(&Action::Complete { batch: 0, outcome });
    pair.apply(&Action::Tick);
    pair.apply(&Action::NextBatch);
    assert_eq!(pair.in_flight[0].spans.len(), 2);
}

/// Scenario: a queue fills up while an export of its request is under way.
/// Guarantees: it leaves at once, without a tick (R4).
#[test]
fn full_queue_waits_for_nothing() {
    let mut pair = request_with_an_export_under_way();
    (0..MAX_BATCH_SIZE).for_each(|_| end_a_child(&mut pair));
    pair.apply(&Action::NextBatch);
    assert_eq!(pair.in_flight[1].spans.len(), MAX_BATCH_SIZE);
}

/// Scenario: the last span of a request ends while an export of it is under way.
/// Guarantees: the last batch leaves at once and takes the saved context along: nothing can join it (R4, R9).
#[test]
fn last_batch_of_a_request_waits_for_nothing() {
    let mut pair = request_with_an_export_under_way();
    let (open, sampled) = (0, true);
    pair.apply(&Action::End { open, sampled });
    assert_eq!(pair.dispatch.stats().traces, 0);
    pair.apply(&Action::NextBatch);
    assert_eq!(pair.in_flight.len(), 2);
}
