//! The state machine between `on_end` and the exporter: queues, batches, slots, bounds, flushes, and the account of it all.
//!
//! Pure: it takes the time as an argument, waits for nothing, logs nothing and drops nothing of the user's. One lock
//! protects all of it (see `runtime::Shared`), so every snapshot of its numbers is consistent.

use std::collections::{HashMap, HashSet, VecDeque};
use std::num::NonZeroUsize;
use std::time::Duration;

use lru::LruCache;
use opentelemetry::Context;
use opentelemetry::trace::{SpanId, TraceId};
use opentelemetry_sdk::trace::SpanData;

use crate::clock::Instant;
use crate::config::{Config, FlushTrigger};
use crate::hash::IdHash;
use crate::notices::{Example, Kind, Notices};
use crate::open_spans::OpenSpan;
use crate::registry::{Lookup, Registry, Requests, RootStart};
use crate::request::{Allowance, Change, Next, QueueId, Request, RequestId, Schedule, Terms};
#[cfg(feature = "logs")]
use crate::signal::LogData;
use crate::signal::{Item, Items, PerSignal, Signal, Signals};
use crate::stats::{DropReason, LateReason, SignalStats, Stats};

#[cfg(feature = "metric-reader")]
use collections::Collections;
use open_events::Opened;

/// For how many traces what is late is kept apart.
const LATE_TRACES: usize = 1024;

/// How long a request that has used up its exports waits for the next one. Each wait is twice as long as the one before,
/// up to 32 times this one, so that a request of half a minute has seven more.
const PACE: Duration = Duration::from_millis(250);

/// For how many traces a loss is remembered until somebody flushes that trace.
const REMEMBERED_LOSSES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1023);

/// See the module.
#[derive(Debug)]
pub(crate) struct Dispatch {
    terms: Terms,
    /// Of each signal. 0 is no limit.
    max_concurrent_exports: usize,
    mark_late: bool,
    fallback: Context,

    registry: Registry,
    late: Late,
    lanes: PerSignal<Lane>,
    in_flight: HashMap<u64, InFlight, IdHash>,
    /// Batches that take a slot: those in flight, and those whose call into the exporter outlasts its deadline.
    slots: HashMap<u64, Signal, IdHash>,
    #[cfg(feature = "metric-reader")]
    collections: Collections,

    evicted_traces: u64,
    next_id: u64,
    flushes: Vec<Flush>,
    finished: Vec<(u64, Report)>,
    pub(crate) notices: Notices,
    opened: Opened,
    garbage: Garbage,
    /// Batches made since the driver last looked.
    batches_made: u64,
    /// Whether the driver must be woken for new work. Set by the driver.
    pub(crate) asleep: bool,
}

/// What there is of each signal. Nothing of one waits for another.
#[derive(Debug)]
struct Lane {
    max_pending: u64,
    /// Requests whose queue the next tick takes, and some that were due and are no longer.
    due: VecDeque<RequestId>,
    /// Invariant: exactly the live requests whose schedule [waits](Schedule::waits).
    held: HashSet<RequestId, IdHash>,
    /// Requests that have become [`Schedule::Paced`], with the time that each is to wait.
    paced: Vec<(RequestId, Duration)>,
    waiting: VecDeque<Batch>,
    slots_taken: usize,
    stats: SignalStats,
    /// Losses that a flush of everything has reported already.
    reported: Losses,
    /// The traces that had losses last.
    lost_traces: LruCache<TraceId, LostTrace, IdHash>,
    /// How many items the last batch had: a guess at how many the next one will have.
    usual_batch: usize,
    /// Whether there is an exporter for it.
    is_exported: bool,
    closed: bool,
}

/// What is to leave under the fallback context.
#[derive(Debug)]
enum Late {
    /// At the next tick, those of all traces.
    Together(PerSignal<Items>),
    /// Those of each trace by themselves, with an allowance as a request has it. Named by [`RequestId::late`].
    #[cfg_attr(not(target_family = "wasm"), allow(dead_code))]
    ByTrace(LruCache<TraceId, Request, IdHash>),
}

/// What leaves together, under one context.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) id: u64,
    pub(crate) context: Context,
    pub(crate) items: Items,
    origin: Origin,
}

/// Whose a batch is.
#[derive(Clone, Debug)]
enum Origin {
    Request(RequestId),
    /// No request's: the trace of each item.
    Late(Vec<TraceId>),
    /// Everybody's.
    #[cfg(feature = "metric-reader")]
    Metrics,
}

#[derive(Debug)]
struct InFlight {
    signal: Signal,
    items: u64,
    origin: Origin,
    deadline: Option<Instant>,
}

/// Whose a log record is, by what is active where it was emitted.
#[cfg(feature = "logs")]
#[derive(Debug)]
pub(crate) enum Emitted {
    /// Nothing of this process is.
    Outside,
    Within {
        trace: TraceId,
        span: SpanId,
        /// What it leaves under if its span is not recorded, so that nobody knows its request.
        unrecorded: Option<Context>,
    },
}

/// An export whose deadline has passed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Overdue {
    pub(crate) id: u64,
    pub(crate) signal: Signal,
    pub(crate) items: u64,
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
    signals: Signals,
    scope: Scope,
    remaining: usize,
    /// What had been reported of its scope before it began.
    reported: PerSignal<Losses>,
}

/// What did not arrive.
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
    /// Of all signals that it is about.
    pub(crate) losses: Losses,
    /// Whose losses, and up to which numbers. None if there is nothing to remember.
    covers: Option<(Signals, Scope, PerSignal<Losses>)>,
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
        Self {
            terms: Terms {
                trigger: config.flush_trigger(),
                max_batch_size: config.max_batch_size(),
                allowance: Allowance::default(),
                hold: true,
            },
            max_concurrent_exports: config.max_concurrent_exports(),
            mark_late,
            fallback,
            registry: Registry::new(config.max_traces(), config.max_spans_per_trace()),
            late: Late::together(),
            lanes: PerSignal::new(|signal| Lane::new(signal, config)),
            in_flight: HashMap::default(),
            slots: HashMap::default(),
            #[cfg(feature = "metric-reader")]
            collections: Collections::default(),
            evicted_traces: 0,
            next_id: 0,
            flushes: Vec::new(),
            finished: Vec::new(),
            notices: Notices::default(),
            opened: Opened::new(config),
            garbage: Garbage::default(),
            batches_made: 0,
            asleep: false,
        }
    }

    /// Somebody is to be told of spans that open, are renamed and close.
    pub(crate) fn observe_spans(&mut self) {
        self.opened.observe();
    }

    /// There is an exporter of this signal from now on.
    #[cfg(any(feature = "logs", feature = "metric-reader"))]
    pub(crate) fn join(&mut self, signal: Signal) {
        self.lanes[signal].is_exported = true;
    }

    // ----- spans start and end -----

    /// A local root starts, in this saved context.
    pub(crate) fn start_root(&mut self, id: RequestId, context: Context) {
        if self.is_closed(Signal::Spans) {
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
                self.evicted_traces += 1;
                self.send_off(trace, requests);
            }
        }
    }

    pub(crate) fn start_child(&mut self, trace: TraceId, parent: SpanId, span: SpanId) {
        if self.is_closed(Signal::Spans) {
            return;
        }
        if let Some((id, request)) = self.registry.start_child(trace, parent, span) {
            self.send_off_request(id, request);
        }
    }

    /// A span ends. It is taken out of `span` unless it is to be dropped, which is then the caller's to do; so is what was
    /// remembered of it while it was open.
    pub(crate) fn end(&mut self, span: &mut Option<SpanData>) -> Option<Box<OpenSpan>> {
        let context = span.as_ref().map(|span| &span.span_context)?;
        let (trace, id, sampled) = (context.trace_id(), context.span_id(), context.is_sampled());
        let lane = &mut self.lanes[Signal::Spans];
        if sampled {
            lane.stats.received += 1;
        }
        if lane.closed {
            self.refuse(Signal::Spans, sampled, DropReason::AlreadyShutdown, trace);
            return None;
        }
        let room = lane.has_room();
        let mut open = None;
        match self.registry.end(trace, id) {
            Lookup::Known(request) => {
                if let Some(span) = span
                    .as_ref()
                    .filter(|_| sampled && request.open_spans.is_some())
                {
                    open = self.opened.close(request, span);
                }
                request.open -= 1;
                let ends_root = id == request.root();
                if ends_root {
                    request.end_root(self.terms.allowance);
                }
                if sampled && room {
                    if let Some(span) = span.take() {
                        request.push(span, lane.usual_batch);
                        lane.stats.queued += 1;
                    }
                }
                let root = request.root();
                let id = RequestId { trace, root };
                if request.open == 0 {
                    self.finish(id);
                } else {
                    let next = request.next(Signal::Spans, self.terms);
                    let others = ends_root && request.queue(Signal::Logs).is_some();
                    self.follow(id.queue(Signal::Spans), next);
                    if others {
                        self.schedule(id.queue(Signal::Logs));
                    }
                    if ends_root {
                        self.want_metrics();
                    }
                }
                if !room {
                    self.refuse(Signal::Spans, sampled, DropReason::QueueFull, trace);
                }
            }
            Lookup::Refused => {
                self.opened.close_unknown(span.as_ref().filter(|_| sampled));
                self.refuse(Signal::Spans, sampled, DropReason::MaxSpansPerTrace, trace);
            }
            Lookup::Late(reason) if sampled => {
                self.opened.close_unknown(span.as_ref());
                self.take_in_late(span, trace, room, Some(reason));
            }
            Lookup::Late(_) => {}
        }
        open
    }

    /// Whether this span is one of a live request.
    #[cfg(all(feature = "logs", not(target_family = "wasm")))]
    pub(crate) fn knows(&mut self, trace: TraceId, span: SpanId) -> bool {
        self.registry.find(trace, span).is_ok()
    }

    /// A log record is emitted. It is taken out of `log` unless it is to be dropped, which is then the caller's to do.
    #[cfg(feature = "logs")]
    pub(crate) fn emit(&mut self, log: &mut Option<LogData>, of: Emitted) {
        let lane = &mut self.lanes[Signal::Logs];
        lane.stats.received += 1;
        let (room, closed, usual) = (lane.has_room(), lane.closed, lane.usual_batch);
        // Outside, it may name one nevertheless: that of a remote span.
        let named = log.as_ref().map_or(TraceId::INVALID, Item::trace);
        let (trace, span, unrecorded) = match of {
            Emitted::Within {
                trace,
                span,
                unrecorded,
            } => (trace, span, unrecorded),
            Emitted::Outside => (TraceId::INVALID, SpanId::INVALID, None),
        };
        if closed {
            self.garbage.contexts.extend(unrecorded);
            return self.refuse(Signal::Logs, true, DropReason::AlreadyShutdown, named);
        }
        let late = match self.registry.find(trace, span) {
            Ok(request) => {
                self.garbage.contexts.extend(unrecorded);
                let id = RequestId {
                    trace,
                    root: request.root(),
                };
                if let Some(log) = log.take_if(|_| room) {
                    request.push(log, usual);
                    self.lanes[Signal::Logs].stats.queued += 1;
                    let next = request.next(Signal::Logs, self.terms);
                    self.follow(id.queue(Signal::Logs), next);
                } else {
                    self.refuse(Signal::Logs, true, DropReason::QueueFull, trace);
                }
                return;
            }
            Err(_) if trace == TraceId::INVALID => None,
            Err(reason) => Some(reason),
        };
        let Some(context) = unrecorded else {
            return self.take_in_late(log, named, room, late);
        };
        if let Some(log) = log.take_if(|_| room) {
            // By itself: nothing proves that another record is of the same request.
            self.lanes[Signal::Logs].stats.queued += 1;
            self.enqueue(context, Items::Logs(vec![log]), Origin::Late(vec![trace]));
        } else {
            self.garbage.contexts.push(context);
            self.refuse(Signal::Logs, true, DropReason::QueueFull, trace);
        }
    }

    /// What belongs to no live request, as far as anybody knows. It is late if it should.
    fn take_in_late<T: Item>(
        &mut self,
        item: &mut Option<T>,
        trace: TraceId,
        room: bool,
        late: Option<LateReason>,
    ) {
        if let Some(reason) = late {
            self.lanes[T::SIGNAL].stats.late.add(reason);
            let kind = Kind::Late(T::SIGNAL, reason);
            self.notices.note(kind, 1, Example::Trace(trace));
        }
        match item.take_if(|_| room) {
            Some(item) => self.push_late(item, late),
            None => self.refuse(T::SIGNAL, true, DropReason::QueueFull, trace),
        }
    }

    /// Keeps a request open with a child that is no span.
    pub(crate) fn hold(&mut self, trace: TraceId, parent: SpanId, hold: SpanId) {
        if !self.is_closed(Signal::Spans) {
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

    /// Counts an item that is not taken. An unsampled span was never counted as ended.
    fn refuse(&mut self, signal: Signal, counts: bool, reason: DropReason, trace: TraceId) {
        if !counts {
            return;
        }
        let stats = &self.lanes[signal].stats;
        if reason == DropReason::QueueFull && stats.queued == stats.pending() {
            // All that is pending waits for local roots to end. Nothing would ever make room, so it leaves now.
            self.take_all_queues(signal);
        }
        self.note_drop(signal, reason, 1, trace);
        self.lanes[signal].note_loss(trace, Losses::dropped(1));
    }

    fn note_drop(&mut self, signal: Signal, reason: DropReason, items: u64, trace: TraceId) {
        self.lanes[signal].stats.dropped.add(reason, items);
        let kind = Kind::Dropped(signal, reason);
        self.notices.note(kind, items, Example::Trace(trace));
    }

    fn push_late<T: Item>(&mut self, mut item: T, late: Option<LateReason>) {
        if let Some(reason) = late.filter(|_| self.mark_late) {
            item.mark_late(reason);
        }
        let signal = T::SIGNAL;
        self.lanes[signal].stats.queued += 1;
        match &mut self.late {
            Late::Together(lists) => {
                let list = &mut lists[signal];
                list.push(item, 1);
                if list.len() >= self.terms.max_batch_size {
                    self.take_late(signal);
                }
            }
            Late::ByTrace(_) => self.push_late_of_trace(item),
        }
    }

    fn push_late_of_trace<T: Item>(&mut self, item: T) {
        let Late::ByTrace(traces) = &mut self.late else {
            return;
        };
        let trace = item.trace();
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
        let usual_batch = self.lanes[T::SIGNAL].usual_batch;
        let terms = self.terms_of(id);
        let Some(request) = self.request(id) else {
            return;
        };
        request.push(item, usual_batch);
        let next = request.next(T::SIGNAL, terms);
        self.follow(id.queue(T::SIGNAL), next);
    }

    /// What a batch, or a plan, is for: a live request, or what is late of a trace.
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
            self.want_metrics();
        }
    }

    /// A request has come to its end, or its root has: a time to collect metrics, if nobody did a moment ago.
    fn want_metrics(&mut self) {
        #[cfg(feature = "metric-reader")]
        self.collections.want();
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

    fn send_off_request(&mut self, id: RequestId, mut request: Request) {
        self.let_go(id, &mut request);
        let (context, queues) = request.into_parts();
        // The last batch takes the context itself, so that a copy is made only where there are several.
        let mut context = Some(context);
        let mut queues = queues.peekable();
        while let Some(queue) = queues.next() {
            let signal = queue.signal();
            if queue.schedule.waits() {
                self.lanes[signal].held.remove(&id);
            }
            if queue.is_empty() {
                continue;
            }
            let context = match queues.peek().is_some_and(|other| !other.is_empty()) {
                true => context.clone(),
                false => context.take(),
            };
            if let Some(context) = context {
                self.enqueue(context, queue.into_items(), Origin::Request(id));
            }
        }
        self.garbage.contexts.extend(context);
    }

    /// What belongs to no trace is of many requests, so none of it waits for an export of what was there before (R13).
    fn terms_of(&self, id: RequestId) -> Terms {
        Terms {
            hold: id.trace != TraceId::INVALID,
            ..self.terms
        }
    }

    /// Plans when a live request's queue leaves, if that has changed.
    fn schedule(&mut self, id: QueueId) {
        let terms = self.terms_of(id.request);
        let request = self.request(id.request);
        if let Some(change) = request.and_then(|r| r.plan(id.signal, terms)) {
            self.apply(id, change);
        }
    }

    fn follow(&mut self, id: QueueId, next: Next) {
        match next {
            Next::Leave(context, items) => {
                self.enqueue(context, items, Origin::Request(id.request));
                self.follow_with_open_events(id);
            }
            Next::Plan(change) => self.apply(id, change),
            Next::Nothing => {}
        }
    }

    fn apply(&mut self, id: QueueId, change: Change) {
        let request = id.request;
        let lane = &mut self.lanes[id.signal];
        if change.from.waits() && !change.to.waits() {
            lane.held.remove(&request);
        }
        match change.to {
            Schedule::Due => lane.due.push_back(request),
            Schedule::Held => {
                lane.held.insert(request);
            }
            Schedule::Paced => {
                lane.held.insert(request);
                let queue = self.request(request).and_then(|r| r.queue(id.signal));
                let spent = queue.map_or(0, |queue| queue.exports);
                let over = spent.saturating_sub(self.terms.allowance.exports);
                let pause = PACE * (1 << over.min(5));
                self.lanes[id.signal].paced.push((request, pause));
            }
            Schedule::Idle => {}
        }
    }

    /// Makes a batch of all that a live request has queued.
    fn take_queue(&mut self, id: QueueId) {
        let more = self.add_open_events(id);
        let request = self.request(id.request);
        if let Some((context, items)) = request.and_then(|r| r.take_batch(id.signal)) {
            self.enqueue(context, items, Origin::Request(id.request));
        }
        if more {
            self.follow_with_open_events(id);
        }
    }

    /// A full batch has left, which had no room for open events. They leave behind it, if they may: they would never do in a
    /// request that has full batches all the time.
    fn follow_with_open_events(&mut self, id: QueueId) {
        let allowance = self.terms.allowance;
        let queue = self.request(id.request).and_then(|r| r.queue(id.signal));
        if queue.is_some_and(|queue| queue.open_due && queue.may_leave(allowance)) {
            return self.take_queue(id);
        }
        self.schedule(id);
    }

    /// Makes batches of all queues of live requests.
    fn take_all_queues(&mut self, signal: Signal) {
        // A queue with something in it is due or held.
        let lane = &self.lanes[signal];
        let all: Vec<RequestId> = lane.due.iter().chain(&lane.held).copied().collect();
        all.into_iter()
            .for_each(|id| self.take_queue(id.queue(signal)));
    }

    fn take_late(&mut self, signal: Signal) {
        let items = match &mut self.late {
            Late::Together(lists) if !lists[signal].is_empty() => lists[signal].take(),
            _ => return,
        };
        let traces = items.traces();
        self.enqueue(self.fallback.clone(), items, Origin::Late(traces));
    }

    fn enqueue(&mut self, context: Context, items: Items, origin: Origin) {
        let id = self.new_id();
        let lane = &mut self.lanes[items.signal()];
        lane.stats.queued -= items.len() as u64;
        lane.usual_batch = items.len();
        self.line_up(Batch {
            id,
            context,
            items,
            origin,
        });
    }

    fn line_up(&mut self, batch: Batch) {
        self.batches_made += 1;
        let lane = &mut self.lanes[batch.items.signal()];
        lane.stats.waiting += batch.items.len() as u64;
        lane.waiting.push_back(batch);
    }

    /// A number that no batch and no flush has.
    pub(crate) fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Takes the queues of at most `limit` requests that are due, of each signal, and what is late.
    pub(crate) fn tick(&mut self, limit: usize) {
        for signal in Signal::QUEUED {
            for _ in 0..limit {
                let Some(request) = self.lanes[signal].due.pop_front() else {
                    break;
                };
                self.take_due(request.queue(signal));
            }
            self.take_late(signal);
        }
    }

    fn take_due(&mut self, id: QueueId) {
        let waits_for_root = self.terms.trigger == FlushTrigger::LocalRootEnd;
        let Some(request) = self.request(id.request) else {
            return;
        };
        let waits_for_root = waits_for_root && !request.root_ended;
        let queue = request.queue_mut(id.signal);
        let Some(queue) = queue.filter(|queue| queue.schedule == Schedule::Due) else {
            return;
        };
        queue.schedule = Schedule::Idle;
        let waits_for_export = queue.exporting > 0 && id.request.trace != TraceId::INVALID;
        // What was to be told of open spans may not be needed any more.
        match waits_for_export || (waits_for_root && !queue.open_due) {
            true => self.schedule(id),
            false => self.take_queue(id),
        }
    }

    // ----- from batches to the exporter -----

    /// The next batch to export, if there is one and a slot for it: of all signals the oldest.
    pub(crate) fn next_batch(&mut self, deadline: Option<Instant>) -> Option<Batch> {
        let ready = Signal::ALL.into_iter().filter_map(|signal| {
            let lane = &self.lanes[signal];
            let oldest = lane.waiting.front().filter(|_| self.has_slot(signal))?;
            Some((oldest.id, signal))
        });
        let (_, signal) = ready.min_by_key(|(oldest, _)| *oldest)?;
        self.next_batch_at(signal, 0, deadline)
    }

    fn next_batch_at(
        &mut self,
        signal: Signal,
        place: usize,
        deadline: Option<Instant>,
    ) -> Option<Batch> {
        let lane = &mut self.lanes[signal];
        let batch = lane.waiting.remove(place)?;
        let items = batch.items.len() as u64;
        lane.stats.waiting -= items;
        lane.stats.in_flight += items;
        lane.stats.exports += 1;
        lane.slots_taken += 1;
        self.slots.insert(batch.id, signal);
        self.in_flight.insert(
            batch.id,
            InFlight {
                signal,
                items,
                origin: batch.origin.clone(),
                deadline,
            },
        );
        Some(batch)
    }

    fn has_slot(&self, signal: Signal) -> bool {
        let max = match (signal, &self.late) {
            // One after the other, so that what is cumulative never goes back. In a Worker nothing may wait for another request.
            (Signal::Metrics, Late::Together(_)) => 1,
            _ => self.max_concurrent_exports,
        };
        max == 0 || self.lanes[signal].slots_taken < max
    }

    /// The exporter is done with a batch: its slot is free, and it is accounted for, unless that happened at its deadline.
    pub(crate) fn complete(&mut self, id: u64, outcome: Outcome) {
        if let Some(signal) = self.slots.remove(&id) {
            self.lanes[signal].slots_taken -= 1;
        }
        self.account(id, outcome);
    }

    /// Exports whose deadline has passed and that are not accounted for.
    pub(crate) fn overdue(&self, now: Instant) -> Vec<Overdue> {
        let overdue = |(id, flight): (&u64, &InFlight)| {
            let by = now.checked_duration_since(flight.deadline?)?;
            Some(Overdue {
                id: *id,
                signal: flight.signal,
                items: flight.items,
                by,
            })
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
            self.lanes[flight.signal].stats.in_flight -= flight.items;
            self.settle(id, flight.signal, flight.items, flight.origin, outcome);
        }
    }

    /// What an export holds that is under way and not yet accounted for, and how many.
    pub(crate) fn in_flight(&self, id: u64) -> Option<(Signal, u64)> {
        let flight = self.in_flight.get(&id)?;
        Some((flight.signal, flight.items))
    }

    /// The next deadline of an export.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.in_flight.values().filter_map(|f| f.deadline).min()
    }

    fn settle(&mut self, id: u64, signal: Signal, items: u64, origin: Origin, outcome: Outcome) {
        let lane = &mut self.lanes[signal];
        match outcome {
            Outcome::Exported => lane.stats.exported += items,
            Outcome::Failed => lane.stats.failed += items,
            Outcome::TimedOut => {
                lane.stats.failed += items;
                lane.stats.timed_out_exports += 1;
            }
            Outcome::Dropped(reason) => self.note_drop(signal, reason, items, origin.trace()),
        }
        let lane = &mut self.lanes[signal];
        match outcome {
            Outcome::Exported => {}
            Outcome::Failed | Outcome::TimedOut => lane.note_losses(&origin, items, Losses::failed),
            Outcome::Dropped(_) => lane.note_losses(&origin, items, Losses::dropped),
        }
        self.advance_flushes(id, signal, &origin);
        match origin {
            Origin::Request(request) => {
                let id = request.queue(signal);
                let request = self.request(request);
                if let Some(queue) = request.and_then(|request| request.queue_mut(signal)) {
                    queue.exporting = queue.exporting.saturating_sub(1);
                    self.schedule(id);
                }
            }
            Origin::Late(_) => {}
            #[cfg(feature = "metric-reader")]
            Origin::Metrics => self.collections.look_again(),
        }
    }

    // ----- flush -----

    /// Makes batches of all that is queued in this scope, and watches all its batches until they are done.
    pub(crate) fn begin_flush(&mut self, signals: Signals, scope: Scope) -> u64 {
        let mut flush = self.open_flush(signals, scope);
        flush.remaining = self
            .pending_batches()
            .filter(|(_, signal, origin)| flush.covers(*signal, origin))
            .count();
        let id = flush.id;
        self.flushes.push(flush);
        self.finish_flushes();
        id
    }

    /// The same for somebody who asks whether it is done, and is not told.
    pub(crate) fn open_flush(&mut self, signals: Signals, scope: Scope) -> Flush {
        for signal in Signal::QUEUED.into_iter().filter(|s| signals.contains(*s)) {
            match scope {
                Scope::All => self.take_all_queues(signal),
                Scope::Trace(trace) => {
                    for id in self.registry.roots(trace) {
                        self.take_queue(id.queue(signal));
                    }
                    self.take_queue(RequestId::late(trace).queue(signal));
                }
                #[cfg(any(test, target_family = "wasm"))]
                Scope::Request(id) => self.take_queue(id.queue(signal)),
            }
            if self.late.covered_by(signal, scope) {
                self.take_late(signal);
            }
        }
        Flush {
            id: self.new_id(),
            signals,
            scope,
            remaining: 0,
            reported: PerSignal::new(|signal| match scope.trace() {
                None => self.lanes[signal].reported,
                Some(trace) => self.lanes[signal].lost_trace(trace).reported,
            }),
        }
    }

    /// Batches that are not accounted for, and those that metrics are being collected for.
    fn pending_batches(&self) -> impl Iterator<Item = (u64, Signal, &Origin)> {
        let waiting = self.lanes.iter().flat_map(|lane| &lane.waiting);
        let waiting = waiting.map(|batch| (batch.id, batch.items.signal(), &batch.origin));
        let in_flight = self.in_flight.iter();
        let in_flight = in_flight.map(|(id, flight)| (*id, flight.signal, &flight.origin));
        let pending = waiting.chain(in_flight);
        #[cfg(feature = "metric-reader")]
        let pending = {
            let collecting = self.collections.under_way();
            pending.chain(collecting.map(|id| (id, Signal::Metrics, &Origin::Metrics)))
        };
        pending
    }

    fn advance_flushes(&mut self, batch: u64, signal: Signal, origin: &Origin) {
        for flush in &mut self.flushes {
            if batch < flush.id && flush.covers(signal, origin) {
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
        let total = PerSignal::new(|signal| {
            let lane = &self.lanes[signal];
            match flush.scope.trace() {
                None => lane.losses(),
                Some(trace) => lane.lost_trace(trace).total,
            }
        });
        let mut losses = Losses::default();
        for signal in flush.signals.iter() {
            losses.add(total[signal].minus(flush.reported[signal]));
        }
        Report {
            losses,
            covers: Some((flush.signals, flush.scope, total)),
        }
    }

    /// Somebody has heard a report.
    pub(crate) fn mark_reported(&mut self, report: &Report) {
        let Some((signals, scope, total)) = report.covers else {
            return;
        };
        for signal in signals.iter() {
            let lane = &mut self.lanes[signal];
            let reported = match scope.trace() {
                None => &mut lane.reported,
                Some(trace) => match lane.lost_traces.get_mut(&trace) {
                    Some(lost) => &mut lost.reported,
                    None => continue,
                },
            };
            reported.failed = reported.failed.max(total[signal].failed);
            reported.dropped = reported.dropped.max(total[signal].dropped);
        }
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

    // ----- shutdown -----

    /// No more of this signal. What is queued leaves. Without spans no request can be known any more, so with them all saved
    /// contexts are given up that are not needed for what is on its way.
    pub(crate) fn close(&mut self, signal: Signal) {
        self.lanes[signal].closed = true;
        match signal {
            Signal::Spans => {
                for (trace, requests) in self.registry.clear() {
                    self.send_off(trace, requests);
                }
            }
            Signal::Logs | Signal::Metrics => self.take_all_queues(signal),
        }
        self.take_late(signal);
        for trace in self.late.traces() {
            self.take_queue(RequestId::late(trace).queue(signal));
        }
        self.lanes[signal].due.clear();
    }

    /// Drops what of this signal still waits for an export.
    pub(crate) fn abandon(&mut self, signal: Signal) {
        while let Some(batch) = self.lanes[signal].waiting.pop_front() {
            self.lanes[signal].stats.waiting -= batch.items.len() as u64;
            self.give_up_waiting(batch);
        }
        #[cfg(feature = "metric-reader")]
        if signal == Signal::Metrics {
            self.collections.abandon();
        }
    }

    /// Drops a batch that comes too late for the shutdown.
    fn give_up_waiting(&mut self, batch: Batch) {
        let (signal, items) = (batch.items.signal(), batch.items.len() as u64);
        let dropped = Outcome::Dropped(DropReason::ShutdownTimeout);
        self.settle(batch.id, signal, items, batch.origin.clone(), dropped);
        self.garbage.batches.push(batch);
    }

    // ----- questions -----

    pub(crate) fn is_closed(&self, signal: Signal) -> bool {
        self.lanes[signal].closed
    }

    /// Whether nothing of this signal is pending. The exporter may still hold on to a batch whose deadline has passed.
    pub(crate) fn is_drained(&self, signal: Signal) -> bool {
        self.lanes[signal].stats.pending() == 0 && !self.is_collecting(signal)
    }

    fn is_collecting(&self, signal: Signal) -> bool {
        #[cfg(feature = "metric-reader")]
        if signal == Signal::Metrics {
            return self.collections.under_way().next().is_some();
        }
        let _ = signal;
        false
    }

    pub(crate) fn has_garbage(&self) -> bool {
        !self.garbage.contexts.is_empty() || !self.garbage.batches.is_empty()
    }

    /// Whether there is something for whoever releases the lock.
    #[cfg(not(target_family = "wasm"))]
    pub(crate) fn has_left_overs(&self) -> bool {
        !self.garbage.contexts.is_empty() || self.opened.has_told()
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
        let mut lanes = self.lanes.iter();
        lanes.all(|lane| lane.stats.waiting + lane.stats.in_flight == 0)
    }

    /// How many queues are to be taken of one signal, at most.
    pub(crate) fn due(&self) -> usize {
        let due = self.lanes.iter().map(|lane| lane.due.len());
        due.max().unwrap_or_default()
    }

    /// Whether a batch could go to the exporter now.
    pub(crate) fn has_ready_batch(&self) -> bool {
        let mut signals = Signal::ALL.into_iter();
        signals.any(|signal| !self.lanes[signal].waiting.is_empty() && self.has_slot(signal))
    }

    /// Whether there is something new for the driver: a queue that is due, a batch, or a time to collect metrics.
    pub(crate) fn has_news(&self) -> bool {
        let due = |lane: &Lane| !lane.due.is_empty();
        #[cfg(feature = "metric-reader")]
        let wanted = self.collections.has_news();
        #[cfg(not(feature = "metric-reader"))]
        let wanted = false;
        self.batches_made > 0
            || self.lanes.iter().any(due)
            || self.late.is_due()
            || wanted
            || self.has_garbage()
    }

    /// Whether the driver sleeps while there is something new for it. Says so once.
    #[cfg(not(target_family = "wasm"))]
    pub(crate) fn must_wake(&mut self) -> bool {
        let news = || self.has_news() || self.notices.has_news() || self.opened.naps_too_long();
        let wake = self.asleep && news();
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
        let [spans, logs, metrics] = Signal::ALL.map(|signal| &self.lanes[signal].stats);
        let traces = self.registry.len() as u64;
        Stats {
            open_events: self.opened.stats(),
            ..Stats::new(spans, logs, metrics, traces, self.evicted_traces)
        }
    }

    #[cfg(feature = "metrics")]
    pub(crate) fn max_pending(&self, signal: Signal) -> u64 {
        self.lanes[signal].max_pending
    }
}

// ===== impl Lane =====

impl Lane {
    fn new(signal: Signal, config: &Config) -> Self {
        let mut lost_traces = LruCache::unbounded_with_hasher(IdHash::default());
        lost_traces.resize(REMEMBERED_LOSSES);
        let max_pending = match signal {
            Signal::Spans => config.max_pending_spans(),
            Signal::Logs => config.max_pending_logs(),
            // Not by data points: see `Collections`.
            Signal::Metrics => usize::MAX,
        };
        Self {
            max_pending: max_pending as u64,
            due: VecDeque::new(),
            held: HashSet::default(),
            paced: Vec::new(),
            waiting: VecDeque::new(),
            slots_taken: 0,
            stats: SignalStats::default(),
            reported: Losses::default(),
            lost_traces,
            usual_batch: 0,
            is_exported: signal == Signal::Spans,
            closed: false,
        }
    }

    fn has_room(&self) -> bool {
        self.stats.pending() < self.max_pending
    }

    /// Everything that was ever lost.
    fn losses(&self) -> Losses {
        Losses {
            failed: self.stats.failed,
            dropped: self.stats.dropped.total(),
        }
    }

    fn lost_trace(&self, trace: TraceId) -> LostTrace {
        self.lost_traces.peek(&trace).copied().unwrap_or_default()
    }

    fn note_loss(&mut self, trace: TraceId, loss: Losses) {
        self.lost_traces
            .get_or_insert_mut(trace, LostTrace::default)
            .total
            .add(loss);
    }

    fn note_losses(&mut self, origin: &Origin, items: u64, loss: fn(u64) -> Losses) {
        match origin {
            Origin::Request(id) => self.note_loss(id.trace, loss(items)),
            Origin::Late(traces) => traces.iter().for_each(|t| self.note_loss(*t, loss(1))),
            // They are no trace's.
            #[cfg(feature = "metric-reader")]
            Origin::Metrics => {}
        }
    }
}

// ===== impl Late =====

impl Late {
    fn together() -> Self {
        Self::Together(PerSignal::new(|signal| match signal {
            #[cfg(feature = "logs")]
            Signal::Logs => LogData::none(),
            _ => SpanData::none(),
        }))
    }

    /// Those that something is kept of by trace.
    fn traces(&self) -> Vec<TraceId> {
        match self {
            Late::Together(_) => Vec::new(),
            Late::ByTrace(traces) => traces.iter().map(|(trace, _)| *trace).collect(),
        }
    }

    /// Whether the next tick has something to take.
    fn is_due(&self) -> bool {
        matches!(self, Late::Together(lists) if lists.iter().any(|list| !list.is_empty()))
    }

    fn covered_by(&self, signal: Signal, scope: Scope) -> bool {
        match (self, scope) {
            (Late::ByTrace(_), _) => false,
            (Late::Together(_), Scope::All) => true,
            (Late::Together(lists), Scope::Trace(trace)) => lists[signal].traces().contains(&trace),
            #[cfg(any(test, target_family = "wasm"))]
            (Late::Together(_), Scope::Request(_)) => false,
        }
    }
}

// ===== impl Origin =====

impl Origin {
    fn trace(&self) -> TraceId {
        match self {
            Origin::Request(id) => id.trace,
            Origin::Late(traces) => traces.first().copied().unwrap_or(TraceId::INVALID),
            #[cfg(feature = "metric-reader")]
            Origin::Metrics => TraceId::INVALID,
        }
    }
}

// ===== impl Flush =====

impl Flush {
    fn covers(&self, signal: Signal, origin: &Origin) -> bool {
        self.signals.contains(signal) && self.scope.covers(origin)
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
            (Scope::Request(id), Origin::Request(of)) => *of == id,
            #[cfg(any(test, target_family = "wasm"))]
            (Scope::Request(_), Origin::Late(_)) => false,
            #[cfg(feature = "metric-reader")]
            (_, Origin::Metrics) => false,
        }
    }
}

#[cfg(feature = "metric-reader")]
pub(crate) mod collections;
mod open_events;
#[cfg(any(test, target_family = "wasm"))]
mod workers;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
