//! Random actions against a naive model of the dispatch. After each one:
//!
//! - the accounting law holds (R12), and no bound is exceeded (R6, R4);
//! - every batch holds spans of one request only, under the context of that request, or late ones under the fallback
//!   context (R1, R5, R8), as the model expects it of each span;
//! - a request that is over has left nothing behind (R9).
//!
//! In the end everything is drained: each span that ended was exported, failed or dropped, exactly once.
//!
//! All of that holds natively and in Workers, where batches are not bounded by their size, late spans of two traces never
//! share one, and a request that has used up its exports needs its pauses to end.

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
const MAX_EXPORTS: usize = 2;

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
    /// Of a span's request, if it is the root of one.
    FlushRequest {
        root: usize,
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
        1 => any::<usize>().prop_map(|root| Action::FlushRequest { root }),
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
    platform: Platform,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Platform {
    Native,
    Workers,
}

impl Pair {
    fn new(trigger: FlushTrigger) -> Self {
        Self::on(Platform::Native, trigger)
    }

    fn on(platform: Platform, trigger: FlushTrigger) -> Self {
        let config = Config::default()
            .with_max_traces(MAX_TRACES)
            .with_max_spans_per_trace(MAX_SPANS_PER_TRACE)
            .with_max_batch_size(MAX_BATCH_SIZE)
            .with_max_pending_spans(MAX_PENDING)
            .with_max_concurrent_exports(MAX_CONCURRENT)
            .with_max_exports_per_request(MAX_EXPORTS)
            .with_flush_trigger(trigger);
        let fallback = Context::new().with_value(FALLBACK);
        Self {
            dispatch: match platform {
                Platform::Native => Dispatch::new(&config, fallback, true),
                Platform::Workers => Dispatch::for_workers(&config, fallback, true),
            },
            platform,
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
            Action::FlushRequest { root } => self.flush_request(root),
        }
        self.check();
    }

    fn flush_request(&mut self, root: usize) {
        if self.model.next_id == 0 {
            return;
        }
        let root = root as u64 % self.model.next_id + 1;
        let id = RequestId {
            trace: TraceId::from(self.model.trace_of[&root]),
            root: SpanId::from(root),
        };
        let flush = self.dispatch.open_flush(Scope::Request(id));
        let pending = |batch: &&Batch| matches!(&batch.origin, Origin::Request(of) if *of == id);
        let in_flight = self.in_flight.iter().filter(pending);
        // What was given up is done, although the exporter still has it.
        let in_flight = in_flight.filter(|batch| self.dispatch.in_flight(batch.id).is_some());
        let remains = in_flight.count() + self.dispatch.waiting.iter().filter(pending).count();
        assert_eq!(self.dispatch.done(&flush).is_none(), remains > 0);
        let queued = self.dispatch.request(id).map_or(0, |r| r.queue.len());
        assert_eq!(queued, 0);
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
        let max = match self.platform {
            Platform::Native => MAX_BATCH_SIZE,
            Platform::Workers => MAX_PENDING,
        };
        assert!(!batch.spans.is_empty() && batch.spans.len() <= max);
        let traces: HashSet<TraceId> = batch.spans.iter().map(trace_of).collect();
        assert!(self.platform == Platform::Native || traces.len() == 1);
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
        assert!(self.platform == Platform::Workers || self.in_flight.len() <= MAX_CONCURRENT);
        assert_eq!(stats.traces, self.model.traces.len() as u64);
        let live = |id: &RequestId| {
            let trace = self.dispatch.registry.roots(id.trace);
            trace.contains(id) || id.is_late()
        };
        assert!(
            self.dispatch.held.iter().all(live),
            "a request that is over is held"
        );
    }

    /// Spans leave while others of their request are open (R4).
    fn stream_out(&mut self) {
        for _ in 0..100 {
            self.end_pauses();
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
            self.end_pauses();
            self.dispatch.tick(64);
            self.let_out();
        }
        let stats = self.dispatch.stats();
        assert_eq!((stats.pending(), stats.traces), (0, 0), "{stats:?}");
        assert_eq!(self.seen, self.sampled);
        assert!(
            self.dispatch.held.iter().all(|id| id.is_late()) && self.dispatch.flushes.is_empty()
        );
    }

    fn end_pauses(&mut self) {
        for (id, _) in self.dispatch.take_paced() {
            self.dispatch.end_pause(id);
        }
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
    #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]

    /// Scenario: any sequence of starts, ends, ticks, exports, failures, timeouts and flushes, with either trigger.
    /// Guarantees: the properties at the top of this file, natively and in Workers.
    #[test]
    fn dispatch_agrees_with_its_model(
        actions in prop::collection::vec(action(), 1..120),
        root_end in any::<bool>(),
        workers in any::<bool>(),
    ) {
        let trigger = match root_end {
            true => FlushTrigger::LocalRootEnd,
            false => FlushTrigger::NextTick,
        };
        let platform = match workers {
            true => Platform::Workers,
            false => Platform::Native,
        };
        let mut pair = Pair::on(platform, trigger);
        actions.iter().for_each(|action| pair.apply(action));
        if trigger == FlushTrigger::NextTick {
            pair.stream_out();
        }
        pair.drain();
    }
}

fn trace_of(span: &SpanData) -> TraceId {
    span.span_context.trace_id()
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

/// In a Worker, one request of trace 1 with root 1.
struct Lone {
    dispatch: Dispatch,
    last: u64,
}

impl Lone {
    fn new() -> Self {
        let config = Config::default()
            .with_max_traces(1)
            .with_max_batch_size(MAX_BATCH_SIZE)
            .with_max_exports_per_request(MAX_EXPORTS)
            .with_flush_trigger(FlushTrigger::LocalRootEnd);
        let mut dispatch = Dispatch::for_workers(&config, Context::new(), true);
        dispatch.start_root(root_of(1), Context::new());
        Self { dispatch, last: 1 }
    }

    /// One whose root is open, and that has used up its exports.
    fn without_exports_left() -> Self {
        let mut lone = Self::new();
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

    /// Exports everything that may leave. Returns the sizes of the batches.
    fn export(&mut self) -> Vec<usize> {
        let mut sizes = Vec::new();
        self.dispatch.tick(64);
        while let Some(batch) = self.dispatch.next_batch(None) {
            sizes.push(batch.spans.len());
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
        assert!(lone.dispatch.is_paced(root_of(1)));
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
            lone.dispatch.open_flush(Scope::Request(root_of(1)));
        }),
        ("sent", |lone| lone.dispatch.send(root_of(1))),
        ("all flushed", |lone| {
            lone.dispatch.open_flush(Scope::All);
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
    let mut lone = Lone::new();
    lone.dispatch = Dispatch::for_workers(&config, Context::new(), true);
    lone.dispatch.start_root(root_of(1), Context::new());
    (0..20).for_each(|_| lone.end_a_child());
    let under_way: Vec<Batch> = std::iter::from_fn(|| lone.dispatch.next_batch(None)).collect();
    assert_eq!(under_way.len(), 3);
    assert_eq!(lone.dispatch.stats().queued, 17);
}

/// Scenario: in a Worker, spans of a trace that nobody knows end one after the other.
/// Guarantees: they leave by themselves, but no oftener than those of a request: each export costs their request as much.
#[test]
fn late_spans_have_the_allowance_of_a_request() {
    let mut pair = Pair::on(Platform::Workers, FlushTrigger::LocalRootEnd);
    for n in 0..10 {
        let mut span = Some(crate::testing::span(9, n + 1));
        pair.dispatch.end(&mut span);
        pair.dispatch.tick(64);
        while let Some(batch) = pair.dispatch.next_batch(None) {
            pair.dispatch.complete(batch.id, Outcome::Exported);
        }
    }
    let stats = pair.dispatch.stats();
    assert_eq!((stats.exports, stats.queued), (MAX_EXPORTS as u64, 8));
    let [(id, _)] = pair.dispatch.take_paced()[..] else {
        panic!("one pause");
    };
    pair.dispatch.end_pause(id);
    pair.dispatch.tick(64);
    assert_eq!(
        pair.dispatch.next_batch(None).map(|b| b.spans.len()),
        Some(8)
    );
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
    dispatch.close();
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
    dispatch.start_child(trace, root, hold);
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
    let traces: Vec<TraceId> = rest.iter().map(|batch| trace_of(&batch.spans[0])).collect();
    assert_eq!(traces, [TraceId::from(1), TraceId::from(3)]);
    rest.into_iter().for_each(|batch| dispatch.discard(batch));
    assert!(dispatch.take_garbage().is_some());
}
