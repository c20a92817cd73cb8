//! One request: its saved context, its queues, and the spans that are known to be its own.

use std::cmp::Ordering;
use std::collections::HashSet;

use opentelemetry::Context;
use opentelemetry::trace::{SpanId, TraceContextExt as _, TraceId};
use opentelemetry_sdk::trace::SpanData;

use crate::active::RequestTracer;
use crate::config::FlushTrigger;
use crate::hash::IdHash;
use crate::open_spans::OpenSpans;
#[cfg(feature = "logs")]
use crate::signal::LogData;
use crate::signal::{Item, Items, Signal};

/// Names a request: its trace, and its local root in that trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RequestId {
    pub(crate) trace: TraceId,
    pub(crate) root: SpanId,
}

impl Ord for RequestId {
    fn cmp(&self, other: &Self) -> Ordering {
        let key = |id: &Self| (id.trace.to_bytes(), id.root.to_bytes());
        key(self).cmp(&key(other))
    }
}

impl PartialOrd for RequestId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl RequestId {
    /// Names the late spans of a trace, where they are kept by trace. No span has this id.
    pub(crate) fn late(trace: TraceId) -> Self {
        let root = SpanId::INVALID;
        Self { trace, root }
    }

    pub(crate) fn is_late(self) -> bool {
        self.root == SpanId::INVALID
    }

    pub(crate) fn queue(self, signal: Signal) -> QueueId {
        let request = self;
        QueueId { request, signal }
    }
}

/// Names a queue of a request: each signal has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct QueueId {
    pub(crate) request: RequestId,
    pub(crate) signal: Signal,
}

/// Where a request's queue stands with the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Schedule {
    /// Nothing is planned: the queue was empty when last looked at.
    Idle,
    /// The next tick takes the queue.
    Due,
    /// The queue waits for an export of this request to end, or for its local root.
    Held,
    /// The request has used up its exports. The queue waits for its turn, which comes ever more rarely.
    Paced,
}

impl Schedule {
    /// Whether the queue waits for something that is not the next tick.
    pub(crate) fn waits(self) -> bool {
        matches!(self, Self::Held | Self::Paced)
    }
}

/// A change of plan for a queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    pub(crate) from: Schedule,
    pub(crate) to: Schedule,
}

/// What a request may spend on exports while it is live. 0 is no limit.
///
/// Natively nothing limits it. In a Worker each export is a subrequest, of which every request has few.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Allowance {
    pub(crate) exports: u16,
    /// At once.
    pub(crate) concurrent: u32,
}

/// The live state of one request.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) context: Context,
    pub(crate) spans: SpanIds,
    /// Spans that started and have not ended. The request is over when this reaches 0: its root is one of them.
    pub(crate) open: u32,
    pub(crate) root_ended: bool,
    /// Its spans that have ended.
    ended: Queue,
    /// Its log records, from the first one on. Boxed, because many requests have none and each has room for it.
    logs: Option<Box<Queue>>,
    /// Its open spans, if anybody is to be told of them.
    pub(crate) open_spans: Option<Box<OpenSpans>>,
}

/// What a request has of one signal, and has not handed over.
#[derive(Debug)]
pub(crate) struct Queue {
    items: Items,
    /// Batches of this queue that are waiting or in flight.
    pub(crate) exporting: u32,
    /// Batches that were taken of it so far, as far as that can be counted here.
    pub(crate) exports: u16,
    pub(crate) schedule: Schedule,
    /// Whether there is something to tell of open spans, which waits for no local root. Open events are not in here before they
    /// leave.
    pub(crate) open_due: bool,
}

/// When queues leave, and what they may spend.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) trigger: FlushTrigger,
    pub(crate) max_batch_size: usize,
    pub(crate) allowance: Allowance,
    /// Whether a queue waits for an export of it that is under way.
    pub(crate) hold: bool,
}

/// What follows for the queue of a live request when something has changed.
#[derive(Debug)]
pub(crate) enum Next {
    /// It is full: this leaves.
    Leave(Context, Items),
    Plan(Change),
    Nothing,
}

impl Request {
    pub(crate) fn new(context: Context, root: SpanId, usual_spans: usize) -> Self {
        Self {
            context,
            spans: SpanIds::new(root, usual_spans),
            open: 1,
            root_ended: false,
            ended: Queue::new(SpanData::none()),
            logs: None,
            open_spans: None,
        }
    }

    /// The local root: the first span of the request.
    pub(crate) fn root(&self) -> SpanId {
        self.spans.root()
    }

    /// Its queue of this signal, if it ever had something in one.
    pub(crate) fn queue(&self, signal: Signal) -> Option<&Queue> {
        match signal {
            Signal::Spans => Some(&self.ended),
            Signal::Logs => self.logs.as_deref(),
            Signal::Metrics => None,
        }
    }

    pub(crate) fn queue_mut(&mut self, signal: Signal) -> Option<&mut Queue> {
        match signal {
            Signal::Spans => Some(&mut self.ended),
            Signal::Logs => self.logs.as_deref_mut(),
            Signal::Metrics => None,
        }
    }

    fn queues(&mut self) -> impl Iterator<Item = &mut Queue> {
        std::iter::once(&mut self.ended).chain(self.logs.as_deref_mut())
    }

    /// Appends to the queue of this signal, which makes room for as many as a batch usually has, within reason.
    #[inline]
    pub(crate) fn push<T: Item>(&mut self, item: T, usual_batch: usize) {
        let queue = match T::SIGNAL {
            Signal::Logs => self
                .logs
                .get_or_insert_with(|| Box::new(Queue::new(T::none()))),
            _ => &mut self.ended,
        };
        queue.items.push(item, usual_batch.clamp(1, ROOM));
    }

    /// Whether the next batch of this signal has something to tell of open spans.
    pub(crate) fn set_open_due(&mut self, signal: Signal, due: bool) {
        #[cfg(feature = "logs")]
        if signal == Signal::Logs && due && self.logs.is_none() {
            self.logs = Some(Box::new(Queue::new(LogData::none())));
        }
        if let Some(queue) = self.queue_mut(signal) {
            queue.open_due = due;
        }
    }

    /// What follows for a queue: if it is full it leaves, if it may, and otherwise there is a plan.
    pub(crate) fn next(&mut self, signal: Signal, terms: Terms) -> Next {
        if let Some((context, items)) = self.take_full(signal, terms) {
            return Next::Leave(context, items);
        }
        match self.plan(signal, terms) {
            Some(change) => Next::Plan(change),
            None => Next::Nothing,
        }
    }

    /// Takes a queue if it is full and may leave.
    pub(crate) fn take_full(&mut self, signal: Signal, terms: Terms) -> Option<(Context, Items)> {
        let queue = self.queue_mut(signal)?;
        if queue.len() < terms.max_batch_size || !queue.may_leave(terms.allowance) {
            return None;
        }
        let items = queue.take();
        Some((self.context.clone(), items))
    }

    /// A plan for a queue, full or not.
    pub(crate) fn plan(&mut self, signal: Signal, terms: Terms) -> Option<Change> {
        let root_ended = self.root_ended;
        self.queue_mut(signal)?.replan(terms, root_ended)
    }

    /// The local root has ended: what is queued may leave, whatever was spent before. Once, also if a span has its id.
    pub(crate) fn end_root(&mut self, allowance: Allowance) {
        if std::mem::replace(&mut self.root_ended, true) {
            return;
        }
        let left = allowance.exports.saturating_sub(1);
        self.queues()
            .for_each(|queue| queue.exports = queue.exports.min(left));
    }

    /// Takes a queue, to be exported while the request lives on. None if it is empty.
    pub(crate) fn take_batch(&mut self, signal: Signal) -> Option<(Context, Items)> {
        let queue = self.queue_mut(signal)?;
        // One with nothing but open events that could not leave is empty, too, and no longer due.
        let items = queue.take_if_any()?;
        Some((self.context.clone(), items))
    }

    /// Everything that it has, once it is over. Its context is taken along.
    pub(crate) fn into_parts(self) -> (Context, impl Iterator<Item = Queue>) {
        let logs = self.logs.map(|queue| *queue);
        (self.context, std::iter::once(self.ended).chain(logs))
    }
}

// ===== impl Queue =====

impl Queue {
    fn new(items: Items) -> Self {
        Self {
            items,
            exporting: 0,
            exports: 0,
            schedule: Schedule::Idle,
            open_due: false,
        }
    }

    pub(crate) fn signal(&self) -> Signal {
        self.items.signal()
    }

    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(crate) fn into_items(self) -> Items {
        self.items
    }

    /// Plans when the queue leaves (R4): at the next tick, unless an export of it is under way, its root is still open and
    /// the trigger waits for it, or it has used up its exports. What is to be told of open spans does not wait for the root.
    /// Returns what has changed.
    fn replan(&mut self, terms: Terms, root_ended: bool) -> Option<Change> {
        let is_idle = self.is_empty() && !self.open_due;
        if is_idle || self.schedule == Schedule::Due {
            return None;
        }
        let hold = (terms.hold && self.exporting > 0)
            || (terms.trigger == FlushTrigger::LocalRootEnd && !root_ended && !self.open_due);
        let to = match (hold, self.may_spend(terms.allowance)) {
            (true, _) => Schedule::Held,
            (false, true) => Schedule::Due,
            (false, false) => Schedule::Paced,
        };
        let from = std::mem::replace(&mut self.schedule, to);
        (from != to).then_some(Change { from, to })
    }

    /// Whether the queue, if it is full, may leave now.
    pub(crate) fn may_leave(&self, allowance: Allowance) -> bool {
        let concurrent = allowance.concurrent;
        let slot = concurrent == 0 || self.exporting < concurrent;
        slot && self.may_spend(allowance)
    }

    fn may_spend(&self, allowance: Allowance) -> bool {
        allowance.exports == 0 || self.exports < allowance.exports
    }

    fn take(&mut self) -> Items {
        self.exporting += 1;
        self.exports = self.exports.saturating_add(1);
        self.end_plan();
        self.items.take()
    }

    fn take_if_any(&mut self) -> Option<Items> {
        if self.is_empty() {
            self.end_plan();
            return None;
        }
        Some(self.take())
    }

    /// What comes from now on needs a plan of its own.
    fn end_plan(&mut self) {
        if self.schedule == Schedule::Due {
            self.schedule = Schedule::Idle;
        }
    }
}

/// A request makes room at once for as many spans as others had lately, but for so many at the most.
const ROOM: usize = 16;

/// A request has a few spans at least.
const LEAST_ROOM: usize = 4;

/// The ids of all spans that a request started, ended ones too: a child may start after its parent ended.
///
/// Assignment is by proof, never by elimination: a span belongs to a request if its id, or its parent's, is in here. A
/// request has few spans as a rule, so they are a list first and are indexed only when there are many.
#[derive(Debug)]
pub(crate) enum SpanIds {
    Few(Vec<SpanId>),
    /// Boxed, because few requests have so many, and each has room for it.
    Many(Box<Indexed>),
}

#[derive(Debug)]
pub(crate) struct Indexed {
    list: Vec<SpanId>,
    index: HashSet<SpanId, IdHash>,
}

/// Up to this many ids, a search through the list is faster than a hash table.
const LISTED: usize = 32;

impl SpanIds {
    fn new(root: SpanId, usual: usize) -> Self {
        let mut list = Vec::with_capacity(usual.clamp(LEAST_ROOM, ROOM));
        list.push(root);
        Self::Few(list)
    }

    pub(crate) fn insert(&mut self, id: SpanId) {
        match self {
            Self::Few(list) => {
                list.push(id);
                if list.len() > LISTED {
                    let list = std::mem::take(list);
                    let index = list.iter().copied().collect();
                    *self = Self::Many(Box::new(Indexed { list, index }));
                }
            }
            Self::Many(many) => {
                many.list.push(id);
                many.index.insert(id);
            }
        }
    }

    /// Whether it was there. Of several that are the same, the latest goes.
    pub(crate) fn remove(&mut self, id: SpanId) -> bool {
        let list = match self {
            Self::Few(list) => list,
            Self::Many(many) => &mut many.list,
        };
        // Not the root, which is the first.
        let Some(at) = list.iter().skip(1).rposition(|known| *known == id) else {
            return false;
        };
        list.remove(at + 1);
        if let Self::Many(many) = self {
            if !many.list.contains(&id) {
                many.index.remove(&id);
            }
        }
        true
    }

    pub(crate) fn contains(&self, id: SpanId) -> bool {
        match self {
            // From the back: the span that ends, or has a child, is likely one of the latest.
            Self::Few(list) => list.iter().rev().any(|known| *known == id),
            Self::Many(many) => many.index.contains(&id),
        }
    }

    fn list(&self) -> &[SpanId] {
        match self {
            Self::Few(list) => list,
            Self::Many(many) => &many.list,
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = SpanId> + '_ {
        self.list().iter().copied()
    }

    pub(crate) fn len(&self) -> usize {
        self.list().len()
    }

    fn root(&self) -> SpanId {
        self.list()[0]
    }
}

/// A copy of `cx` that owns no live span and no tracer (R2): its other values stay, and of its active span only the ids.
///
/// A context that owns a live span would keep that span from ending on drop, and through its tracer the provider from
/// ever being shut down. So would the tracer of a request in whose context another one starts, for as long as that is live.
pub(crate) fn strip(cx: &Context) -> Context {
    let stripped = if cx.has_active_span() {
        cx.with_remote_span_context(cx.span().span_context().clone())
    } else {
        cx.clone()
    };
    match stripped.get::<RequestTracer>() {
        Some(_) => stripped.with_value(RequestTracer::global()),
        None => stripped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: a request starts few spans, then many.
    /// Guarantees: each id is found, before and after the list gets an index, and no other is.
    #[test]
    fn ids_are_found_in_the_list_and_in_the_index() {
        let mut ids = SpanIds::new(SpanId::from(1), 0);
        for n in 2..=200u64 {
            ids.insert(SpanId::from(n));
            assert!((1..=n).all(|known| ids.contains(SpanId::from(known))));
            assert!(!ids.contains(SpanId::from(n + 1)));
        }
        assert_eq!(ids.root(), SpanId::from(1));
        assert_eq!(ids.len(), 200);
    }

    /// Scenario: batches had few spans lately, or very many.
    /// Guarantees: a queue makes room for as many, within reason.
    #[test]
    fn queue_makes_room_for_a_usual_batch() {
        for (usual, capacity) in [(0, 1), (10, 10), (64, ROOM)] {
            let mut request = Request::new(Context::new(), SpanId::from(1), 0);
            request.push(crate::testing::span(1, 1), usual);
            let room = SpanData::list(&mut request.ended.items).map(|spans| spans.capacity());
            assert_eq!(room, Some(capacity));
        }
    }
}
