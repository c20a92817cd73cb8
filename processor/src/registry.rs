//! All live requests, by trace: lookup, eviction, release. Pure: no clock, no lock, nothing is exported or dropped here.
//!
//! Whatever leaves the registry is returned, because dropping a saved context can run code of the user's, and end spans.

use std::collections::HashMap;

use lru::LruCache;
use opentelemetry::Context;
use opentelemetry::trace::{SpanId, TraceId};

use crate::hash::IdHash;
use crate::request::{Request, RequestId};
use crate::stats::LateReason;

/// How many evicted trace ids are remembered, so that a late span can say why it is late.
const REMEMBERED_EVICTIONS: usize = 1024;

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
    /// How many spans the last request had: a guess at how many the next one will have.
    usual_spans: usize,
}

/// What is held for one trace id.
#[derive(Debug)]
struct Entry {
    requests: Requests,
    /// Spans that the live requests of this trace have started.
    spans: usize,
    /// Open spans that were refused because the trace had too many (R10). They are in no request.
    refused: usize,
}

/// The live requests of one trace: nearly always one.
#[derive(Debug)]
pub(crate) enum Requests {
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
        let remembered = std::num::NonZeroUsize::new(REMEMBERED_EVICTIONS)
            .unwrap_or(std::num::NonZeroUsize::MIN);
        Self {
            // Unbounded for the crate, bounded by us: a bounded cache reserves its whole capacity at once.
            traces: LruCache::unbounded_with_hasher(IdHash::default()),
            max_traces,
            max_spans_per_trace,
            evicted: {
                let mut ring = LruCache::unbounded_with_hasher(IdHash::default());
                ring.resize(remembered);
                ring
            },
            usual_spans: 0,
        }
    }

    /// Adds a request, in the place of the least recently used trace if there is no room.
    pub(crate) fn start_root(&mut self, id: RequestId, context: Context) -> RootStart {
        if let Some(entry) = self.traces.get_mut(&id.trace) {
            return match entry.admit(self.max_spans_per_trace) {
                true => {
                    entry
                        .requests
                        .add(Request::new(context, id.root, self.usual_spans));
                    RootStart::Added
                }
                false => RootStart::Refused(context),
            };
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
                self.evicted.put(trace, ());
                RootStart::Evicted(trace, entry.requests)
            }
        }
    }

    /// Records a span under its parent's request. A parent that nobody knows leaves the span unassigned: it will be late.
    pub(crate) fn start_child(&mut self, trace: TraceId, parent: SpanId, span: SpanId) {
        let Some(entry) = self.traces.get_mut(&trace) else {
            return;
        };
        if entry.requests.knows(parent) {
            if entry.admit(self.max_spans_per_trace) {
                entry.requests.adopt(parent, span);
            }
        } else if entry.is_full(self.max_spans_per_trace) {
            // Its parent may well have been refused: then so is this one, for the same reason.
            entry.refused += 1;
        }
    }

    /// Finds the request of a span that ends, and marks its trace as recently used.
    pub(crate) fn end(&mut self, trace: TraceId, span: SpanId) -> Lookup<'_> {
        // The borrow checker does not see that the late case is over with `traces`, so it is decided first.
        let late = |evicted: &LruCache<TraceId, (), IdHash>| match evicted.contains(&trace) {
            true => LateReason::TraceEvicted,
            false => LateReason::UnknownTrace,
        };
        match self.traces.get_mut(&trace) {
            None => Lookup::Late(late(&self.evicted)),
            Some(entry) => match entry.requests.owner(span) {
                Some(request) => Lookup::Known(request),
                None if entry.refused > 0 => {
                    entry.refused -= 1;
                    Lookup::Refused
                }
                None => Lookup::Late(late(&self.evicted)),
            },
        }
    }

    /// The live request of that name, without marking it as used.
    pub(crate) fn get(&mut self, id: RequestId) -> Option<&mut Request> {
        match &mut self.traces.peek_mut(&id.trace)?.requests {
            Requests::One(request) => (request.root() == id.root).then_some(request),
            Requests::Many(many) => many.by_root.get_mut(&id.root),
        }
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
        match entry.requests {
            Requests::One(request) => {
                self.usual_spans = request.spans.len();
                Some(request)
            }
            Requests::Many(mut many) => {
                let request = many.remove(id.root);
                if !many.by_root.is_empty() {
                    let gone = request.as_ref().map_or(0, |request| request.spans.len());
                    entry.spans = entry.spans.saturating_sub(gone);
                    entry.requests = Requests::Many(many);
                    self.traces.put(id.trace, entry);
                }
                request
            }
        }
    }

    /// Takes out everything.
    pub(crate) fn clear(&mut self) -> Vec<(TraceId, Requests)> {
        let mut all = Vec::with_capacity(self.traces.len());
        while let Some((trace, entry)) = self.traces.pop_lru() {
            all.push((trace, entry.requests));
        }
        all
    }

    pub(crate) fn len(&self) -> usize {
        self.traces.len()
    }
}

// ===== impl Entry =====

impl Entry {
    fn is_full(&self, max_spans: usize) -> bool {
        max_spans != 0 && self.spans >= max_spans
    }

    /// Counts one more span, as started or as refused. Says whether it may be recorded.
    fn admit(&mut self, max_spans: usize) -> bool {
        let full = self.is_full(max_spans);
        match full {
            true => self.refused += 1,
            false => self.spans += 1,
        }
        !full
    }
}

// ===== impl Requests =====

impl Requests {
    /// The request that is known to have started this span.
    fn owner(&mut self, span: SpanId) -> Option<&mut Request> {
        match self {
            Requests::One(request) => request.spans.contains(span).then_some(request),
            Requests::Many(many) => many.by_root.get_mut(many.root_of.get(&span)?),
        }
    }

    fn knows(&self, span: SpanId) -> bool {
        match self {
            Requests::One(request) => request.spans.contains(span),
            Requests::Many(many) => many.root_of.contains_key(&span),
        }
    }

    /// Adds a span to its parent's request.
    fn adopt(&mut self, parent: SpanId, span: SpanId) {
        if let Requests::Many(many) = self {
            if let Some(root) = many.root_of.get(&parent).copied() {
                many.root_of.insert(span, root);
            }
        }
        if let Some(request) = self.owner(parent) {
            request.spans.insert(span);
            request.open += 1;
        }
    }

    /// Adds another request of this trace. From the second one on, the owner of each span is looked up by its id.
    fn add(&mut self, request: Request) {
        if let Requests::One(_) = self {
            let Requests::One(first) = std::mem::replace(self, Requests::Many(Box::default()))
            else {
                return;
            };
            self.add(first);
        }
        if let Requests::Many(many) = self {
            let root = request.root();
            many.root_of
                .extend(request.spans.iter().map(|span| (span, root)));
            many.by_root.insert(root, request);
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Request> {
        let (one, many) = match self {
            Requests::One(request) => (Some(request), None),
            Requests::Many(many) => (None, Some(many.by_root.values())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    pub(crate) fn into_vec(self) -> Vec<Request> {
        match self {
            Requests::One(request) => vec![request],
            Requests::Many(many) => many.by_root.into_values().collect(),
        }
    }
}

// ===== impl Many =====

impl Many {
    fn remove(&mut self, root: SpanId) -> Option<Request> {
        let request = self.by_root.remove(&root)?;
        for span in request.spans.iter() {
            self.root_of.remove(&span);
        }
        Some(request)
    }
}
