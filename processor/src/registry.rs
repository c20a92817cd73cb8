//! All live requests, by trace: lookup, eviction, release. Pure: no clock, no lock, nothing is exported or dropped here.
//!
//! Whatever leaves the registry is returned, because dropping a saved context can run code of the user's, and end spans.

use std::collections::HashMap;
use std::num::NonZeroUsize;

use lru::LruCache;
use opentelemetry::Context;
use opentelemetry::trace::{SpanId, TraceId};

use crate::hash::IdHash;
use crate::request::{Request, RequestId};
use crate::stats::LateReason;

/// How many evicted trace ids are remembered, so that a late span can say why it is late.
const REMEMBERED_EVICTIONS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1023);

/// Requests by trace id, least recently used first out.
///
/// A request is here exactly as long as one of its spans is open: the last one to end takes its queue along (see
/// [`Registry::release`]). So a finished request never takes the place of a live one, and the least recently used entry
/// is the right one to evict (R7).
#[derive(Debug)]
pub(crate) struct Registry {
    traces: LruCache<TraceId, Entry, IdHash>,
    max_traces: usize,
    /// 0 is no limit.
    max_spans_per_trace: usize,
    /// Trace ids evicted lately. The value is nothing: this is a set that forgets its oldest.
    evicted: LruCache<TraceId, (), IdHash>,
    /// Open spans that were refused, in all traces.
    refused: usize,
    /// How many spans the last request had: a guess at how many the next one will have.
    usual_spans: usize,
}

/// What is held for one trace id.
#[derive(Debug)]
struct Entry {
    requests: Requests,
    /// Spans that the live requests of this trace have started.
    spans: u32,
    /// Open spans that were refused because the trace had too many (R10). They are in no request.
    refused: u32,
}

/// The live requests of one trace: nearly always one.
#[derive(Debug)]
pub(crate) enum Requests {
    /// All are over. The entry is kept for the spans that were refused and are still open.
    None,
    One(Request),
    Many(Box<Many>),
}

/// Several requests that carry the same trace id, and which span belongs to which (R1).
#[derive(Debug, Default)]
pub(crate) struct Many {
    by_root: HashMap<SpanId, Request, IdHash>,
    root_of: HashMap<SpanId, SpanId, IdHash>,
}

/// What became of a local root.
#[derive(Debug)]
pub(crate) enum RootStart {
    Added,
    /// The trace had too many spans. The context comes back, to be dropped elsewhere.
    Refused(Context),
    /// A live request of that trace has a span of that very id, so neither can be told from the other any more. Both
    /// come back: the context, to be dropped elsewhere, and the request, to be sent off.
    Ambiguous(Context, RequestId, Request),
    /// It was added in the place of another trace.
    Evicted(TraceId, Requests),
}

/// What the registry knows of a span that ends.
#[derive(Debug)]
pub(crate) enum Lookup<'a> {
    Known(&'a mut Request),
    /// The span was over `max_spans_per_trace` when it started.
    Refused,
    Late(LateReason),
}

impl Registry {
    pub(crate) fn new(max_traces: usize, max_spans_per_trace: usize) -> Self {
        let mut evicted = LruCache::unbounded_with_hasher(IdHash::default());
        evicted.resize(REMEMBERED_EVICTIONS);
        Self {
            // Unbounded for the crate, bounded by us: a bounded cache reserves its whole capacity at once.
            traces: LruCache::unbounded_with_hasher(IdHash::default()),
            max_traces,
            max_spans_per_trace,
            evicted,
            refused: 0,
            usual_spans: 0,
        }
    }

    /// Adds a request, in the place of the least recently used trace if there is no room.
    pub(crate) fn start_root(&mut self, id: RequestId, context: Context) -> RootStart {
        if let Some(entry) = self.traces.get_mut(&id.trace) {
            if let Some(other) = entry.requests.root_of(id.root) {
                return match self.take_out(id.trace, other) {
                    Some((other, request)) => RootStart::Ambiguous(context, other, request),
                    None => RootStart::Refused(context),
                };
            }
            if entry.is_full(self.max_spans_per_trace) {
                entry.refused += 1;
                self.refused += 1;
                return RootStart::Refused(context);
            }
            entry.spans += 1;
            let request = Request::new(context, id.root, self.usual_spans);
            entry.requests.add(request);
            return RootStart::Added;
        }
        let evicted = match self.traces.len() >= self.max_traces {
            true => self.traces.pop_lru(),
            false => None,
        };
        let entry = Entry {
            requests: Requests::One(Request::new(context, id.root, self.usual_spans)),
            spans: 1,
            refused: 0,
        };
        self.traces.put(id.trace, entry);
        match evicted {
            None => RootStart::Added,
            Some((trace, entry)) => {
                self.refused -= entry.refused as usize;
                self.evicted.put(trace, ());
                RootStart::Evicted(trace, entry.requests)
            }
        }
    }

    /// Records a span under its parent's request. A parent that nobody knows leaves the span unassigned: it will be late.
    ///
    /// Returns another request that has a span of this very id, if there is one: neither can be told from the other.
    pub(crate) fn start_child(
        &mut self,
        trace: TraceId,
        parent: SpanId,
        span: SpanId,
    ) -> Option<(RequestId, Request)> {
        let entry = touch(&mut self.traces, trace)?;
        let full = entry.is_full(self.max_spans_per_trace);
        let other = match entry.requests.root_of(parent) {
            Some(root) if !full => {
                let other = entry.requests.adopt(root, span);
                entry.spans += u32::from(other.is_none());
                other
            }
            _ => entry.requests.root_of(span),
        };
        if let Some(other) = other {
            return self.take_out(trace, other);
        }
        if full {
            // Whether its parent is known or not: that may well have been refused, too.
            entry.refused += 1;
            self.refused += 1;
        }
        None
    }

    /// Keeps a parent's request open with a child that is no span. Nothing happens if the trace is full, or nobody knows the
    /// parent: what is no span is never counted as refused, and never late.
    pub(crate) fn hold(&mut self, trace: TraceId, parent: SpanId, hold: SpanId) {
        let Some(entry) = touch(&mut self.traces, trace) else {
            return;
        };
        if entry.is_full(self.max_spans_per_trace) {
            return;
        }
        if let Some(root) = entry.requests.root_of(parent) {
            let other = entry.requests.adopt(root, hold);
            entry.spans += u32::from(other.is_none());
        }
    }

    /// Forgets a hold. Returns the request that it kept open, if it did, which is marked as used now.
    pub(crate) fn end_hold(&mut self, trace: TraceId, hold: SpanId) -> Option<&mut Request> {
        let entry = touch(&mut self.traces, trace)?;
        let request = entry.requests.give_up(hold)?;
        entry.spans -= 1;
        Some(request)
    }

    fn take_out(&mut self, trace: TraceId, root: SpanId) -> Option<(RequestId, Request)> {
        let id = RequestId { trace, root };
        self.release(id).map(|request| (id, request))
    }

    /// Finds the request of a span that ends, and marks its trace as recently used.
    pub(crate) fn end(&mut self, trace: TraceId, span: SpanId) -> Lookup<'_> {
        if self.refused > 0 && self.end_refused(trace, span) {
            return Lookup::Refused;
        }
        match self.find(trace, span) {
            Ok(request) => Lookup::Known(request),
            Err(reason) => Lookup::Late(reason),
        }
    }

    /// Finds the live request that a span is known to be of, ended or not, and marks its trace as recently used.
    pub(crate) fn find(
        &mut self,
        trace: TraceId,
        span: SpanId,
    ) -> Result<&mut Request, LateReason> {
        let entry = touch(&mut self.traces, trace);
        match entry.and_then(|entry| entry.requests.owner(span)) {
            Some(request) => Ok(request),
            None if self.evicted.contains(&trace) => Err(LateReason::TraceEvicted),
            None => Err(LateReason::UnknownTrace),
        }
    }

    /// Whether a span that ends is one of those that were refused: its trace has some, and no request has it.
    fn end_refused(&mut self, trace: TraceId, span: SpanId) -> bool {
        let Some(entry) = self.traces.get_mut(&trace) else {
            return false;
        };
        if entry.refused == 0 || entry.requests.root_of(span).is_some() {
            return false;
        }
        entry.refused -= 1;
        self.refused -= 1;
        if entry.is_over() {
            self.traces.pop(&trace);
        }
        true
    }

    /// The live request of that name, without marking it as used.
    pub(crate) fn get(&mut self, id: RequestId) -> Option<&mut Request> {
        match &mut self.traces.peek_mut(&id.trace)?.requests {
            Requests::None => None,
            Requests::One(request) => (request.root() == id.root).then_some(request),
            Requests::Many(many) => many.by_root.get_mut(&id.root),
        }
    }

    /// The live request that a span is known to be of, without marking it as used.
    #[cfg(test)]
    pub(crate) fn owner(&self, trace: TraceId, span: SpanId) -> Option<RequestId> {
        let root = self.traces.peek(&trace)?.requests.root_of(span)?;
        Some(RequestId { trace, root })
    }

    /// The live requests of a trace.
    pub(crate) fn roots(&self, trace: TraceId) -> Vec<RequestId> {
        match self.traces.peek(&trace) {
            None => Vec::new(),
            Some(entry) => entry
                .requests
                .iter()
                .map(|request| RequestId {
                    trace,
                    root: request.root(),
                })
                .collect(),
        }
    }

    /// Takes out a request that is over (R9).
    pub(crate) fn release(&mut self, id: RequestId) -> Option<Request> {
        // The whole entry first, because it nearly always goes with its only request. One that stays was used just now, so
        // it is right to put it back as the latest.
        let mut entry = self.traces.pop(&id.trace)?;
        let request = entry.requests.remove(id.root);
        if let Some(request) = &request {
            self.usual_spans = request.spans.len();
            entry.spans = entry.spans.saturating_sub(request.spans.len() as u32);
        }
        if !entry.is_over() {
            self.traces.put(id.trace, entry);
        }
        request
    }

    /// Takes out everything.
    pub(crate) fn clear(&mut self) -> Vec<(TraceId, Requests)> {
        let mut all = Vec::with_capacity(self.traces.len());
        while let Some((trace, entry)) = self.traces.pop_lru() {
            all.push((trace, entry.requests));
        }
        self.refused = 0;
        all
    }

    /// Turns the order of traces around: the latest is the least recently used one, but for this one.
    #[cfg(any(test, target_family = "wasm"))]
    pub(crate) fn make_latest_first(&mut self, first: Option<TraceId>) {
        let mut oldest_first = Vec::with_capacity(self.traces.len());
        while let Some(trace) = self.traces.pop_lru() {
            oldest_first.push(trace);
        }
        for (trace, entry) in oldest_first.into_iter().rev() {
            self.traces.put(trace, entry);
        }
        if let Some(first) = first {
            self.traces.demote(&first);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.traces.len()
    }
}

/// The entry of a trace, which is marked as used now. Often it is the one that was used last: that needs no look-up.
fn touch(traces: &mut LruCache<TraceId, Entry, IdHash>, trace: TraceId) -> Option<&mut Entry> {
    match traces.peek_mru() {
        Some((latest, _)) if *latest == trace => traces.iter_mut().next().map(|(_, entry)| entry),
        _ => traces.get_mut(&trace),
    }
}

// ===== impl Entry =====

impl Entry {
    fn is_over(&self) -> bool {
        self.refused == 0 && self.requests.is_empty()
    }

    fn is_full(&self, max_spans: usize) -> bool {
        max_spans != 0 && self.spans as usize >= max_spans
    }
}

// ===== impl Requests =====

impl Requests {
    fn is_empty(&self) -> bool {
        match self {
            Requests::None => true,
            Requests::One(_) => false,
            Requests::Many(many) => many.by_root.is_empty(),
        }
    }

    /// The request that is known to have started this span.
    fn owner(&mut self, span: SpanId) -> Option<&mut Request> {
        match self {
            Requests::None => None,
            Requests::One(request) => request.spans.contains(span).then_some(request),
            Requests::Many(many) => many.by_root.get_mut(many.root_of.get(&span)?),
        }
    }

    /// The root of the request that is known to have started this span.
    fn root_of(&self, span: SpanId) -> Option<SpanId> {
        match self {
            Requests::None => None,
            Requests::One(request) => request.spans.contains(span).then(|| request.root()),
            Requests::Many(many) => many.root_of.get(&span).copied(),
        }
    }

    /// Adds a span to a request. If another one has a span of this id, it does nothing but name that.
    fn adopt(&mut self, root: SpanId, span: SpanId) -> Option<SpanId> {
        let request = match self {
            Requests::None => return None,
            Requests::One(request) => request,
            Requests::Many(many) => {
                let owner = *many.root_of.entry(span).or_insert(root);
                if owner != root {
                    return Some(owner);
                }
                many.by_root.get_mut(&root)?
            }
        };
        request.spans.insert(span);
        request.open += 1;
        None
    }

    /// Takes a span from the request that has it, because nobody will ask for it again.
    fn give_up(&mut self, span: SpanId) -> Option<&mut Request> {
        match self {
            Requests::None => None,
            Requests::One(request) => request.spans.remove(span).then_some(request),
            Requests::Many(many) => {
                let root = *many.root_of.get(&span)?;
                let request = many.by_root.get_mut(&root)?;
                let removed = request.spans.remove(span);
                if !request.spans.contains(span) {
                    many.root_of.remove(&span);
                }
                removed.then_some(request)
            }
        }
    }

    /// Adds another request of this trace. From the second one on, the owner of each span is looked up by its id.
    fn add(&mut self, request: Request) {
        match std::mem::replace(self, Requests::None) {
            Requests::None => *self = Requests::One(request),
            Requests::One(first) => {
                let mut many = Box::<Many>::default();
                many.add(first);
                many.add(request);
                *self = Requests::Many(many);
            }
            Requests::Many(mut many) => {
                many.add(request);
                *self = Requests::Many(many);
            }
        }
    }

    fn remove(&mut self, root: SpanId) -> Option<Request> {
        match std::mem::replace(self, Requests::None) {
            Requests::One(request) if request.root() == root => Some(request),
            Requests::Many(mut many) => {
                let request = many.remove(root);
                *self = Requests::Many(many);
                request
            }
            other => {
                *self = other;
                None
            }
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Request> {
        let (one, many) = match self {
            Requests::None => (None, None),
            Requests::One(request) => (Some(request), None),
            Requests::Many(many) => (None, Some(many.by_root.values())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    pub(crate) fn into_vec(self) -> Vec<Request> {
        match self {
            Requests::None => Vec::new(),
            Requests::One(request) => vec![request],
            Requests::Many(many) => many.by_root.into_values().collect(),
        }
    }
}

// ===== impl Many =====

impl Many {
    fn add(&mut self, request: Request) {
        let root = request.root();
        self.root_of
            .extend(request.spans.iter().map(|span| (span, root)));
        self.by_root.insert(root, request);
    }

    fn remove(&mut self, root: SpanId) -> Option<Request> {
        let request = self.by_root.remove(&root)?;
        for span in request.spans.iter() {
            self.root_of.remove(&span);
        }
        Some(request)
    }
}
