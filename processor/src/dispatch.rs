//! The state machine between `on_end` and the exporter: queues, batches, slots, bounds, flushes, and the account of it all.
//!
//! Pure: it takes the time as an argument, waits for nothing, logs nothing and drops nothing of the user's. One lock
//! protects all of it (see `runtime::Shared`), so every snapshot of its numbers is consistent.

use std::collections::{HashMap, HashSet, VecDeque};
use std::num::NonZeroUsize;
use std::time::Duration;

use lru::LruCache;
use opentelemetry::trace::{SpanId, TraceId};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::SpanData;

use crate::clock::Instant;
use crate::config::{Config, FlushTrigger};
use crate::hash::IdHash;
use crate::notices::{Example, Kind, Notices};
use crate::registry::{Lookup, Registry, Requests, RootStart};
use crate::request::{Allowance, Change, Request, RequestId, Schedule};
use crate::stats::{DropReason, LateReason, Stats};

/// The attribute of a late span. Its value is a word of [`LateReason`].
pub(crate) const LATE_ATTRIBUTE: &str = "per_request.late";

/// For how many traces late spans are kept apart.
const LATE_TRACES: usize = 1024;

/// How long a request that has used up its exports waits for the next one. Each wait is twice as long as the one before,
/// up to 32 times this one, so that a request of half a minute has seven more.
const PACE: Duration = Duration::from_millis(250);

/// For how many traces a loss is remembered until somebody flushes that trace.
const REMEMBERED_LOSSES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1023);

/// See the module.
#[derive(Debug)]
pub(crate) struct Dispatch {
    max_batch_size: usize,
    max_pending_spans: u64,
    /// 0 is no limit.
    max_concurrent_exports: usize,
    trigger: FlushTrigger,
    allowance: Allowance,
    mark_late: bool,
    fallback: Context,

    registry: Registry,
    late: Late,
    /// Requests whose queue the next tick takes, and some that were due and are no longer.
    due: VecDeque<RequestId>,
    /// Invariant: exactly the live requests whose schedule [waits](Schedule::waits).
    held: HashSet<RequestId, IdHash>,
    /// Requests that have become [`Schedule::Paced`], with the time that each is to wait.
    paced: Vec<(RequestId, Duration)>,
    waiting: VecDeque<Batch>,
    in_flight: HashMap<u64, InFlight, IdHash>,
    /// Slots taken. More than `in_flight` when a call into the exporter outlasts its deadline.
    slots_taken: usize,

    stats: Stats,
    next_id: u64,
    flushes: Vec<Flush>,
    finished: Vec<(u64, Report)>,
    /// Losses that a flush of everything has reported already.
    reported: Losses,
    /// The traces that had losses last.
    lost_traces: LruCache<TraceId, LostTrace, IdHash>,
    pub(crate) notices: Notices,
    garbage: Garbage,
    closed: bool,
    /// How many spans the last batch had: a guess at how many the next one will have.
    usual_batch: usize,
    /// Batches made since the driver last looked.
    batches_made: u64,
    /// Whether the driver must be woken for new work. Set by the driver.
    pub(crate) asleep: bool,
}

/// Late spans, to leave under the fallback context.
#[derive(Debug)]
enum Late {
    /// At the next tick, those of all traces.
    Together(Vec<SpanData>),
    /// Those of each trace by themselves, with an allowance as a request has it. Named by [`RequestId::late`].
    #[cfg_attr(not(target_family = "wasm"), allow(dead_code))]
    ByTrace(LruCache<TraceId, Request, IdHash>),
}

/// Spans that leave together, under one context.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) id: u64,
    pub(crate) context: Context,
    pub(crate) spans: Vec<SpanData>,
    origin: Origin,
}

/// Whose spans a batch holds.
#[derive(Clone, Debug)]
enum Origin {
    Request(RequestId),
    /// Late spans: the trace of each.
    Late(Vec<TraceId>),
}

#[derive(Debug)]
struct InFlight {
    spans: u64,
    origin: Origin,
    deadline: Option<Instant>,
}

/// An export whose deadline has passed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Overdue {
    pub(crate) id: u64,
    pub(crate) spans: u64,
    pub(crate) by: Duration,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Exported,
    Failed,
    TimedOut,
    Dropped(DropReason),
}

/// What a flush covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    All,
    Trace(TraceId),
    /// In a Worker: what is left of its trace may be in another I/O context.
    #[cfg(any(test, target_family = "wasm"))]
    Request(RequestId),
}

/// A flush that waits for batches: for all of its scope that have a lower id than itself.
#[derive(Debug)]
pub(crate) struct Flush {
    id: u64,
    scope: Scope,
    remaining: usize,
    /// What had been reported of its scope before it began.
    reported: Losses,
}

/// Spans that did not arrive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Losses {
    pub(crate) failed: u64,
    pub(crate) dropped: u64,
}

impl Losses {
    fn failed(failed: u64) -> Self {
        Self { failed, dropped: 0 }
    }

    fn dropped(dropped: u64) -> Self {
        Self { failed: 0, dropped }
    }

    fn add(&mut self, other: Losses) {
        self.failed += other.failed;
        self.dropped += other.dropped;
    }

    fn minus(self, other: Losses) -> Losses {
        Losses {
            failed: self.failed.saturating_sub(other.failed),
            dropped: self.dropped.saturating_sub(other.dropped),
        }
    }
}

/// What a flush has to tell, and what no later one needs to tell again once somebody has heard it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) losses: Losses,
    /// Whose losses, and up to which numbers. None if there is nothing to remember.
    covers: Option<(Scope, Losses)>,
}

/// The losses of one trace.
#[derive(Clone, Copy, Debug, Default)]
struct LostTrace {
    total: Losses,
    reported: Losses,
}

/// What must be dropped after the lock is released: dropping a context can run code of the user's, and end spans (R3).
#[derive(Debug, Default)]
pub(crate) struct Garbage {
    contexts: Vec<Context>,
    batches: Vec<Batch>,
}

impl Dispatch {
    pub(crate) fn new(config: &Config, fallback: Context, mark_late: bool) -> Self {
        let mut lost_traces = LruCache::unbounded_with_hasher(IdHash::default());
        lost_traces.resize(REMEMBERED_LOSSES);
        Self {
            max_batch_size: config.max_batch_size(),
            max_pending_spans: config.max_pending_spans() as u64,
            max_concurrent_exports: config.max_concurrent_exports(),
            trigger: config.flush_trigger(),
            allowance: Allowance::default(),
            mark_late,
            fallback,
            registry: Registry::new(config.max_traces(), config.max_spans_per_trace()),
            late: Late::Together(Vec::new()),
            due: VecDeque::new(),
            held: HashSet::default(),
            paced: Vec::new(),
            waiting: VecDeque::new(),
            in_flight: HashMap::default(),
            slots_taken: 0,
            stats: Stats::default(),
            next_id: 0,
            flushes: Vec::new(),
            finished: Vec::new(),
            reported: Losses::default(),
            lost_traces,
            notices: Notices::default(),
            garbage: Garbage::default(),
            closed: false,
            usual_batch: 0,
            batches_made: 0,
            asleep: false,
        }
    }

    // ----- spans start and end -----

    /// A local root starts, in this saved context.
    pub(crate) fn start_root(&mut self, id: RequestId, context: Context) {
        if self.closed {
            self.garbage.contexts.push(context);
            return;
        }
        match self.registry.start_root(id, context) {
            RootStart::Added => {}
            RootStart::Refused(context) => self.garbage.contexts.push(context),
            RootStart::Ambiguous(context, other, request) => {
                self.garbage.contexts.push(context);
                self.send_off_request(other, request);
            }
            RootStart::Evicted(trace, requests) => {
                self.stats.evicted_traces += 1;
                self.send_off(trace, requests);
            }
        }
    }

    pub(crate) fn start_child(&mut self, trace: TraceId, parent: SpanId, span: SpanId) {
        if self.closed {
            return;
        }
        if let Some((id, request)) = self.registry.start_child(trace, parent, span) {
            self.send_off_request(id, request);
        }
    }

    /// A span ends. It is taken out of `span` unless it is to be dropped, which is then the caller's to do.
    pub(crate) fn end(&mut self, span: &mut Option<SpanData>) {
        let Some(context) = span.as_ref().map(|span| &span.span_context) else {
            return;
        };
        let (trace, id, sampled) = (context.trace_id(), context.span_id(), context.is_sampled());
        if sampled {
            self.stats.ended += 1;
        }
        if self.closed {
            return self.refuse(sampled, DropReason::AlreadyShutdown, trace);
        }
        let room = self.stats.pending() < self.max_pending_spans;
        match self.registry.end(trace, id) {
            Lookup::Known(request) => {
                request.open -= 1;
                if id == request.root() {
                    request.end_root(self.allowance);
                }
                if sampled && room {
                    if let Some(span) = span.take() {
                        request.push(span, self.usual_batch);
                        self.stats.queued += 1;
                    }
                }
                let root = request.root();
                let id = RequestId { trace, root };
                if request.open == 0 {
                    self.finish(id);
                } else if request.queue.len() >= self.max_batch_size
                    && request.may_leave(self.allowance)
                {
                    let (context, spans) = request.take_batch();
                    self.enqueue(context, spans, Origin::Request(id));
                } else if let Some(change) = request.replan(self.trigger, self.allowance) {
                    self.apply(id, change);
                }
                self.refuse(sampled && !room, DropReason::QueueFull, trace);
            }
            Lookup::Refused => self.refuse(sampled, DropReason::MaxSpansPerTrace, trace),
            Lookup::Late(reason) if sampled => {
                self.stats.late.add(reason);
                self.notices
                    .note(Kind::Late(reason), 1, Example::Trace(trace));
                match room {
                    true => self.push_late(span.take(), reason),
                    false => self.refuse(true, DropReason::QueueFull, trace),
                }
            }
            Lookup::Late(_) => {}
        }
    }

    /// Keeps a request open with a child that is no span.
    pub(crate) fn hold(&mut self, trace: TraceId, parent: SpanId, hold: SpanId) {
        if !self.closed {
            self.registry.hold(trace, parent, hold);
        }
    }

    /// Lets go of a request that was kept open by a child that is no span, if that still does.
    pub(crate) fn release(&mut self, trace: TraceId, hold: SpanId) {
        if let Some(request) = self.registry.end_hold(trace, hold) {
            request.open -= 1;
            let (root, open) = (request.root(), request.open);
            if open == 0 {
                self.finish(RequestId { trace, root });
            }
        }
    }

    /// Counts a span that is not taken. An unsampled one was never counted as ended.
    fn refuse(&mut self, counts: bool, reason: DropReason, trace: TraceId) {
        if counts && reason == DropReason::QueueFull && self.stats.queued == self.stats.pending() {
            // All that is pending waits for local roots to end. Nothing would ever make room, so it leaves now.
            self.take_all_queues();
        }
        if counts {
            self.note_drop(reason, 1, trace);
            self.note_loss(trace, Losses::dropped(1));
        }
    }

    fn note_drop(&mut self, reason: DropReason, spans: u64, trace: TraceId) {
        self.stats.dropped.add(reason, spans);
        self.notices
            .note(Kind::Dropped(reason), spans, Example::Trace(trace));
    }

    fn push_late(&mut self, span: Option<SpanData>, reason: LateReason) {
        let Some(mut span) = span else {
            return;
        };
        if self.mark_late {
            span.attributes
                .push(KeyValue::new(LATE_ATTRIBUTE, reason.as_str()));
        }
        self.stats.queued += 1;
        let trace = span.span_context.trace_id();
        match &mut self.late {
            Late::Together(spans) => {
                spans.push(span);
                if spans.len() >= self.max_batch_size {
                    self.take_late();
                }
            }
            Late::ByTrace(_) => self.push_late_of_trace(trace, span),
        }
    }

    fn push_late_of_trace(&mut self, trace: TraceId, span: SpanData) {
        let Late::ByTrace(traces) = &mut self.late else {
            return;
        };
        if !traces.contains(&trace) {
            let forgotten = match traces.len() >= LATE_TRACES {
                true => traces.pop_lru(),
                false => None,
            };
            let mut request = Request::new(self.fallback.clone(), SpanId::INVALID, 0);
            request.root_ended = true;
            traces.put(trace, request);
            if let Some((trace, request)) = forgotten {
                self.send_off_request(RequestId::late(trace), request);
            }
        }
        let id = RequestId::late(trace);
        let usual_batch = self.usual_batch;
        let (full, allowance) = (self.max_batch_size, self.allowance);
        let Some(request) = self.request(id) else {
            return;
        };
        request.push(span, usual_batch);
        match request.queue.len() >= full && request.may_leave(allowance) {
            true => self.take_queue(id),
            false => self.schedule(id),
        }
    }

    /// What a batch, or a plan, is for: a live request, or the late spans of a trace.
    fn request(&mut self, id: RequestId) -> Option<&mut Request> {
        match &mut self.late {
            Late::ByTrace(traces) if id.is_late() => traces.get_mut(&id.trace),
            _ => self.registry.get(id),
        }
    }

    // ----- from queues to batches -----

    /// A request is over: what it still has queued leaves, and takes the context along.
    fn finish(&mut self, id: RequestId) {
        if let Some(request) = self.registry.release(id) {
            self.send_off_request(id, request);
        }
    }

    fn send_off(&mut self, trace: TraceId, requests: Requests) {
        for request in requests.into_vec() {
            let id = RequestId {
                trace,
                root: request.root(),
            };
            self.send_off_request(id, request);
        }
    }

    fn send_off_request(&mut self, id: RequestId, request: Request) {
        if request.schedule.waits() {
            self.held.remove(&id);
        }
        match request.queue.is_empty() {
            true => self.garbage.contexts.push(request.context),
            false => self.enqueue(request.context, request.queue, Origin::Request(id)),
        }
    }

    /// Plans when a live request's queue leaves, if that has changed.
    fn schedule(&mut self, id: RequestId) {
        let (trigger, allowance) = (self.trigger, self.allowance);
        let request = self.request(id);
        if let Some(change) = request.and_then(|r| r.replan(trigger, allowance)) {
            self.apply(id, change);
        }
    }

    fn apply(&mut self, id: RequestId, change: Change) {
        if change.from.waits() && !change.to.waits() {
            self.held.remove(&id);
        }
        match change.to {
            Schedule::Due => self.due.push_back(id),
            Schedule::Held => {
                self.held.insert(id);
            }
            Schedule::Paced => {
                self.held.insert(id);
                let spent = self.request(id).map_or(0, |request| request.exports);
                let over = spent.saturating_sub(self.allowance.exports);
                self.paced.push((id, PACE * (1 << over.min(5))));
            }
            Schedule::Idle => {}
        }
    }

    /// Makes a batch of all that a live request has queued.
    fn take_queue(&mut self, id: RequestId) {
        if let Some(request) = self.request(id) {
            if !request.queue.is_empty() {
                let (context, spans) = request.take_batch();
                self.enqueue(context, spans, Origin::Request(id));
            }
        }
    }

    /// Makes batches of all queues of live requests.
    fn take_all_queues(&mut self) {
        // A queue with spans is due or held.
        let due: Vec<RequestId> = self.due.iter().copied().collect();
        let held: Vec<RequestId> = self.held.iter().copied().collect();
        due.into_iter()
            .chain(held)
            .for_each(|id| self.take_queue(id));
    }

    fn take_late(&mut self) {
        let spans = match &mut self.late {
            Late::Together(spans) if !spans.is_empty() => std::mem::take(spans),
            _ => return,
        };
        let traces = spans.iter().map(|s| s.span_context.trace_id()).collect();
        self.enqueue(self.fallback.clone(), spans, Origin::Late(traces));
    }

    fn enqueue(&mut self, context: Context, spans: Vec<SpanData>, origin: Origin) {
        let count = spans.len() as u64;
        self.stats.queued -= count;
        self.stats.waiting += count;
        let id = self.new_id();
        self.batches_made += 1;
        self.usual_batch = spans.len();
        self.waiting.push_back(Batch {
            id,
            context,
            spans,
            origin,
        });
    }

    /// A number that no batch and no flush has.
    pub(crate) fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Takes the queues of at most `limit` requests that are due, and the late spans.
    pub(crate) fn tick(&mut self, limit: usize) {
        for _ in 0..limit {
            let Some(id) = self.due.pop_front() else {
                break;
            };
            let request = self.request(id);
            let Some(request) = request.filter(|r| r.schedule == Schedule::Due) else {
                continue;
            };
            request.schedule = Schedule::Idle;
            match request.exporting > 0 {
                true => self.schedule(id),
                false => self.take_queue(id),
            }
        }
        self.take_late();
    }

    // ----- from batches to the exporter -----

    /// The next batch to export, if there is one and a slot for it.
    pub(crate) fn next_batch(&mut self, deadline: Option<Instant>) -> Option<Batch> {
        if !self.has_slot() {
            return None;
        }
        let batch = self.waiting.pop_front()?;
        let spans = batch.spans.len() as u64;
        self.stats.waiting -= spans;
        self.stats.in_flight += spans;
        self.stats.exports += 1;
        self.slots_taken += 1;
        self.in_flight.insert(
            batch.id,
            InFlight {
                spans,
                origin: batch.origin.clone(),
                deadline,
            },
        );
        Some(batch)
    }

    fn has_slot(&self) -> bool {
        self.max_concurrent_exports == 0 || self.slots_taken < self.max_concurrent_exports
    }

    /// The exporter is done with a batch: its slot is free, and it is accounted for, unless that happened at its deadline.
    pub(crate) fn complete(&mut self, id: u64, outcome: Outcome) {
        self.slots_taken -= 1;
        self.account(id, outcome);
    }

    /// Exports whose deadline has passed and that are not accounted for.
    pub(crate) fn overdue(&self, now: Instant) -> Vec<Overdue> {
        let overdue = |(id, flight): (&u64, &InFlight)| {
            let by = now.checked_duration_since(flight.deadline?)?;
            let (id, spans) = (*id, flight.spans);
            Some(Overdue { id, spans, by })
        };
        self.in_flight.iter().filter_map(overdue).collect()
    }

    /// Accounts for an export that has timed out although the exporter still holds on to it. It keeps its slot until it
    /// is completed.
    pub(crate) fn give_up(&mut self, id: u64) {
        self.account(id, Outcome::TimedOut);
    }

    fn account(&mut self, id: u64, outcome: Outcome) {
        if let Some(flight) = self.in_flight.remove(&id) {
            self.stats.in_flight -= flight.spans;
            self.settle(id, flight.spans, flight.origin, outcome);
        }
    }

    /// How many spans an export holds that is under way and not yet accounted for.
    pub(crate) fn in_flight(&self, id: u64) -> Option<u64> {
        self.in_flight.get(&id).map(|flight| flight.spans)
    }

    /// The next deadline of an export.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.in_flight.values().filter_map(|f| f.deadline).min()
    }

    fn settle(&mut self, id: u64, spans: u64, origin: Origin, outcome: Outcome) {
        match outcome {
            Outcome::Exported => self.stats.exported += spans,
            Outcome::Failed => self.stats.failed += spans,
            Outcome::TimedOut => {
                self.stats.failed += spans;
                self.stats.timed_out_exports += 1;
            }
            Outcome::Dropped(reason) => self.note_drop(reason, spans, origin.trace()),
        }
        match outcome {
            Outcome::Exported => {}
            Outcome::Failed | Outcome::TimedOut => self.note_losses(&origin, spans, Losses::failed),
            Outcome::Dropped(_) => self.note_losses(&origin, spans, Losses::dropped),
        }
        self.advance_flushes(id, &origin);
        if let Origin::Request(id) = origin {
            if let Some(request) = self.request(id) {
                request.exporting = request.exporting.saturating_sub(1);
                self.schedule(id);
            }
        }
    }

    // ----- flush -----

    /// Makes batches of all that is queued in this scope, and watches all its batches until they are done.
    pub(crate) fn begin_flush(&mut self, scope: Scope) -> u64 {
        let mut flush = self.open_flush(scope);
        let waiting = self.waiting.iter().map(|batch| &batch.origin);
        let in_flight = self.in_flight.values().map(|flight| &flight.origin);
        flush.remaining = waiting
            .chain(in_flight)
            .filter(|origin| scope.covers(origin))
            .count();
        let id = flush.id;
        self.flushes.push(flush);
        self.finish_flushes();
        id
    }

    /// The same for somebody who asks whether it is done, and is not told.
    pub(crate) fn open_flush(&mut self, scope: Scope) -> Flush {
        match scope {
            Scope::All => self.take_all_queues(),
            Scope::Trace(trace) => {
                for id in self.registry.roots(trace) {
                    self.take_queue(id);
                }
                self.take_queue(RequestId::late(trace));
            }
            #[cfg(any(test, target_family = "wasm"))]
            Scope::Request(id) => self.take_queue(id),
        }
        if self.late.covered_by(scope) {
            self.take_late();
        }
        Flush {
            id: self.new_id(),
            scope,
            remaining: 0,
            reported: match scope.trace() {
                None => self.reported,
                Some(trace) => self.lost_trace(trace).reported,
            },
        }
    }

    fn advance_flushes(&mut self, batch: u64, origin: &Origin) {
        for flush in &mut self.flushes {
            if batch < flush.id && flush.scope.covers(origin) {
                flush.remaining -= 1;
            }
        }
        self.finish_flushes();
    }

    fn finish_flushes(&mut self) {
        while let Some(at) = self.flushes.iter().position(|flush| flush.remaining == 0) {
            // In the order in which they began: a shutdown comes last.
            let flush = self.flushes.remove(at);
            let report = self.report_of(&flush);
            self.finished.push((flush.id, report));
        }
    }

    /// What a flush has to report: everything lost since the last flush of its scope that was heard.
    fn report_of(&self, flush: &Flush) -> Report {
        let total = match flush.scope.trace() {
            None => Losses {
                failed: self.stats.failed,
                dropped: self.stats.dropped.total(),
            },
            Some(trace) => self.lost_trace(trace).total,
        };
        Report {
            losses: total.minus(flush.reported),
            covers: Some((flush.scope, total)),
        }
    }

    /// Somebody has heard a report.
    pub(crate) fn mark_reported(&mut self, report: &Report) {
        let Some((scope, total)) = report.covers else {
            return;
        };
        let reported = match scope.trace() {
            None => &mut self.reported,
            Some(trace) => match self.lost_traces.get_mut(&trace) {
                Some(lost) => &mut lost.reported,
                None => return,
            },
        };
        reported.failed = reported.failed.max(total.failed);
        reported.dropped = reported.dropped.max(total.dropped);
    }

    fn lost_trace(&self, trace: TraceId) -> LostTrace {
        self.lost_traces.peek(&trace).copied().unwrap_or_default()
    }

    /// Gives up a flush whose caller no longer waits.
    pub(crate) fn cancel_flush(&mut self, id: u64) {
        self.flushes.retain(|flush| flush.id != id);
        self.finished.retain(|(finished, _)| *finished != id);
    }

    /// The flushes that have ended since the last call, with what they have to report.
    pub(crate) fn take_finished(&mut self) -> Vec<(u64, Report)> {
        std::mem::take(&mut self.finished)
    }

    fn note_loss(&mut self, trace: TraceId, loss: Losses) {
        self.lost_traces
            .get_or_insert_mut(trace, LostTrace::default)
            .total
            .add(loss);
    }

    fn note_losses(&mut self, origin: &Origin, spans: u64, loss: fn(u64) -> Losses) {
        match origin {
            Origin::Request(id) => self.note_loss(id.trace, loss(spans)),
            Origin::Late(traces) => traces.iter().for_each(|t| self.note_loss(*t, loss(1))),
        }
    }

    // ----- shutdown -----

    /// No more spans. What is queued leaves; all saved contexts that are not needed for that are given up.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        for (trace, requests) in self.registry.clear() {
            self.send_off(trace, requests);
        }
        self.take_late();
        for (trace, request) in self.late.clear() {
            self.send_off_request(RequestId::late(trace), request);
        }
        self.due.clear();
    }

    /// Drops what still waits for an export.
    pub(crate) fn abandon(&mut self) {
        while let Some(batch) = self.waiting.pop_front() {
            let spans = batch.spans.len() as u64;
            self.stats.waiting -= spans;
            self.settle(
                batch.id,
                spans,
                batch.origin.clone(),
                Outcome::Dropped(DropReason::ShutdownTimeout),
            );
            self.garbage.batches.push(batch);
        }
    }

    // ----- questions -----

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether nothing is pending. The exporter may still hold on to a batch whose deadline has passed.
    pub(crate) fn is_drained(&self) -> bool {
        self.stats.pending() == 0
    }

    pub(crate) fn has_garbage(&self) -> bool {
        !self.garbage.contexts.is_empty() || !self.garbage.batches.is_empty()
    }

    /// The contexts that are to be dropped, by whoever releases the lock.
    pub(crate) fn take_contexts(&mut self) -> Vec<Context> {
        std::mem::take(&mut self.garbage.contexts)
    }

    /// All that is to be dropped, by a worker.
    pub(crate) fn take_garbage(&mut self) -> Option<Garbage> {
        self.has_garbage()
            .then(|| std::mem::take(&mut self.garbage))
    }

    /// Whether no batch waits for the exporter or is with it.
    pub(crate) fn is_quiet(&self) -> bool {
        self.stats.waiting + self.stats.in_flight == 0
    }

    /// How many queues are to be taken, at most.
    pub(crate) fn due(&self) -> usize {
        self.due.len()
    }

    /// Whether a batch could go to the exporter now.
    pub(crate) fn has_ready_batch(&self) -> bool {
        !self.waiting.is_empty() && self.has_slot()
    }

    /// Whether there is something new for the driver: a queue that is due, or a batch.
    pub(crate) fn has_news(&self) -> bool {
        self.batches_made > 0 || !self.due.is_empty() || self.late.is_due() || self.has_garbage()
    }

    /// Whether the driver sleeps while there is something new for it. Says so once.
    pub(crate) fn must_wake(&mut self) -> bool {
        let wake = self.asleep && (self.has_news() || self.notices.has_news());
        if wake {
            self.asleep = false;
        }
        wake
    }

    /// How many batches were made since the last call.
    pub(crate) fn take_batches_made(&mut self) -> u64 {
        std::mem::take(&mut self.batches_made)
    }

    pub(crate) fn stats(&self) -> Stats {
        let mut stats = self.stats.clone();
        stats.traces = self.registry.len() as u64;
        stats
    }

    #[cfg(feature = "metrics")]
    pub(crate) fn max_pending_spans(&self) -> u64 {
        self.max_pending_spans
    }
}

// ===== impl Late =====

impl Late {
    /// Whether the next tick has late spans to take.
    fn is_due(&self) -> bool {
        matches!(self, Late::Together(spans) if !spans.is_empty())
    }

    fn covered_by(&self, scope: Scope) -> bool {
        match self {
            Late::Together(spans) => spans.iter().any(|span| scope.covers_span(span)),
            Late::ByTrace(_) => false,
        }
    }

    /// Takes out everything that is kept by trace.
    fn clear(&mut self) -> Vec<(TraceId, Request)> {
        let mut all = Vec::new();
        if let Late::ByTrace(traces) = self {
            while let Some(late) = traces.pop_lru() {
                all.push(late);
            }
        }
        all
    }
}

// ===== impl Origin =====

impl Origin {
    fn trace(&self) -> TraceId {
        match self {
            Origin::Request(id) => id.trace,
            Origin::Late(traces) => traces.first().copied().unwrap_or(TraceId::INVALID),
        }
    }
}

// ===== impl Scope =====

impl Scope {
    /// The trace whose losses it reports. `None` is all of them.
    fn trace(self) -> Option<TraceId> {
        match self {
            Scope::All => None,
            Scope::Trace(trace) => Some(trace),
            #[cfg(any(test, target_family = "wasm"))]
            Scope::Request(id) => Some(id.trace),
        }
    }

    fn covers(self, origin: &Origin) -> bool {
        match (self, origin) {
            (Scope::All, _) => true,
            (Scope::Trace(trace), Origin::Request(id)) => id.trace == trace,
            (Scope::Trace(trace), Origin::Late(traces)) => traces.contains(&trace),
            #[cfg(any(test, target_family = "wasm"))]
            (Scope::Request(id), origin) => matches!(origin, Origin::Request(of) if *of == id),
        }
    }

    fn covers_span(self, span: &SpanData) -> bool {
        match self {
            Scope::All => true,
            Scope::Trace(trace) => span.span_context.trace_id() == trace,
            #[cfg(any(test, target_family = "wasm"))]
            Scope::Request(_) => false,
        }
    }
}

#[cfg(any(test, target_family = "wasm"))]
mod workers;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
