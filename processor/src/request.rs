//! One request: its saved context, its queue, and the spans that are known to be its own.

use std::collections::HashSet;

use opentelemetry::Context;
use opentelemetry::trace::{SpanId, TraceContextExt as _, TraceId};
use opentelemetry_sdk::trace::SpanData;

use crate::active::RequestTracer;
use crate::config::FlushTrigger;
use crate::hash::IdHash;

/// Names a request: its trace, and its local root in that trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RequestId {
    pub(crate) trace: TraceId,
    pub(crate) root: SpanId,
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
    pub(crate) exports: u32,
    /// At once.
    pub(crate) concurrent: u32,
}

/// The live state of one request.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) context: Context,
    pub(crate) queue: Vec<SpanData>,
    pub(crate) spans: SpanIds,
    /// Spans that started and have not ended. The request is over when this reaches 0: its root is one of them.
    pub(crate) open: u32,
    /// Batches of this request that are waiting or in flight.
    pub(crate) exporting: u32,
    /// Batches that were taken of this request so far.
    pub(crate) exports: u32,
    pub(crate) root_ended: bool,
    pub(crate) schedule: Schedule,
}

impl Request {
    pub(crate) fn new(context: Context, root: SpanId, usual_spans: usize) -> Self {
        Self {
            context,
            queue: Vec::new(),
            spans: SpanIds::new(root, usual_spans),
            open: 1,
            exporting: 0,
            exports: 0,
            root_ended: false,
            schedule: Schedule::Idle,
        }
    }

    /// The local root: the first span of the request.
    pub(crate) fn root(&self) -> SpanId {
        self.spans.root()
    }

    /// Plans when the queue leaves (R4): at the next tick, unless an export of this request is under way, its root is still
    /// open and the trigger waits for it, or it has used up its exports. Returns what has changed.
    pub(crate) fn replan(&mut self, trigger: FlushTrigger, allowance: Allowance) -> Option<Change> {
        if self.queue.is_empty() || self.schedule == Schedule::Due {
            return None;
        }
        let hold =
            self.exporting > 0 || (trigger == FlushTrigger::LocalRootEnd && !self.root_ended);
        let to = match (hold, self.may_spend(allowance)) {
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

    /// The local root has ended: what is queued may leave, whatever was spent before. Once, also if a span has its id.
    pub(crate) fn end_root(&mut self, allowance: Allowance) {
        if std::mem::replace(&mut self.root_ended, true) {
            return;
        }
        self.exports = self.exports.min(allowance.exports.saturating_sub(1));
    }

    /// Takes the queue, to be exported while the request lives on.
    pub(crate) fn take_batch(&mut self) -> (Context, Vec<SpanData>) {
        self.exporting += 1;
        self.exports = self.exports.saturating_add(1);
        if self.schedule == Schedule::Due {
            // What ends from now on needs a plan of its own.
            self.schedule = Schedule::Idle;
        }
        (self.context.clone(), std::mem::take(&mut self.queue))
    }

    /// Appends to the queue, which makes room for as many as a batch usually has, within reason.
    pub(crate) fn push(&mut self, span: SpanData, usual_batch: usize) {
        if self.queue.capacity() == 0 {
            self.queue.reserve_exact(usual_batch.clamp(1, ROOM));
        }
        self.queue.push(span);
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
pub(crate) struct SpanIds {
    list: Vec<SpanId>,
    /// Boxed, because few requests have one and each has room for it.
    index: Option<Box<Index>>,
}

#[derive(Debug)]
struct Index(HashSet<SpanId, IdHash>);

/// Up to this many ids, a search through the list is faster than a hash table.
const LISTED: usize = 32;

impl SpanIds {
    fn new(root: SpanId, usual: usize) -> Self {
        let mut list = Vec::with_capacity(usual.clamp(LEAST_ROOM, ROOM));
        list.push(root);
        Self { list, index: None }
    }

    pub(crate) fn insert(&mut self, id: SpanId) {
        self.list.push(id);
        if let Some(index) = &mut self.index {
            index.0.insert(id);
        } else if self.list.len() > LISTED {
            self.index = Some(Box::new(Index(self.list.iter().copied().collect())));
        }
    }

    /// Whether it was there. Of several that are the same, the latest goes.
    pub(crate) fn remove(&mut self, id: SpanId) -> bool {
        // Not the root, which is the first.
        let Some(at) = self.list.iter().skip(1).rposition(|known| *known == id) else {
            return false;
        };
        self.list.remove(at + 1);
        if let Some(index) = &mut self.index {
            if !self.list.contains(&id) {
                index.0.remove(&id);
            }
        }
        true
    }

    pub(crate) fn contains(&self, id: SpanId) -> bool {
        match &self.index {
            Some(index) => index.0.contains(&id),
            // From the back: the span that ends, or has a child, is likely one of the latest.
            None => self.list.iter().rev().any(|known| *known == id),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = SpanId> + '_ {
        self.list.iter().copied()
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    fn root(&self) -> SpanId {
        self.list[0]
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
            assert_eq!(request.queue.capacity(), capacity);
        }
    }
}
