//! A batch, measured: its spans or log records grouped by scope, and where it divides into requests.

use super::scope::{MeasuredScope, Scope, Scopes};
use super::scratch::{Mark, Replay, Scratch};
use super::wire::{Out, delimited, field_len, put_header};
use super::{Encoded, EncodedResource, Encoding, Requests};
use crate::signal::Signal;
use std::ops::Range;

// Requests with spans and with log records have the same frame.
const RESOURCE_ITEMS: u8 = delimited(1);
const SCOPE_ITEMS: u8 = delimited(2);
const ITEMS: u8 = delimited(2);

/// A span or a log record: one message among those of its scope.
pub(crate) trait Item<'a>: Copy {
    /// Whose requests hold it.
    const SIGNAL: Signal;

    fn scope(self) -> Scope<'a>;

    /// The length of the message.
    fn measure(self, scratch: &mut Scratch) -> usize;

    /// Writes the message that [`measure`](Self::measure) has measured.
    fn write(self, out: &mut Out, replay: &mut Replay<'_>);
}

/// Items with their lengths, in the order in which they are written.
#[derive(Debug)]
pub(crate) struct Plan<'a, I> {
    resource: &'a EncodedResource,
    scopes: Scopes<'a>,
    /// Invariant: items of one scope lie together, scopes in order of first appearance.
    items: Vec<MeasuredItem<I>>,
    scratch: Scratch,
}

/// Where a batch divides, see [`Plan::divide`].
#[derive(Debug)]
pub(crate) struct Division {
    /// Each is one request's items. Never empty ranges.
    pub(crate) requests: Vec<Range<usize>>,
    /// Items that are larger than a request may be, each by itself.
    pub(crate) too_large: usize,
}

#[derive(Debug)]
struct MeasuredItem<I> {
    item: I,
    scope: usize,
    /// The item's message.
    len: usize,
    mark: Mark,
}

/// The length of a request that grows by one item at a time.
#[derive(Clone, Debug, Default)]
struct RequestLen {
    /// Fields of scopes that are complete.
    closed: usize,
    /// The message of the scope that grows, and which scope it is.
    open: Option<(usize, usize)>,
}

// ===== impl Plan =====

impl<'a, I: Item<'a>> Plan<'a, I> {
    pub(crate) fn new(resource: &'a EncodedResource, batch: impl IntoIterator<Item = I>) -> Self {
        let batch = batch.into_iter();
        let mut plan = Plan {
            resource,
            scopes: Scopes::default(),
            items: Vec::with_capacity(batch.size_hint().0),
            scratch: Scratch::default(),
        };
        let mut last = 0;
        let mut in_order = true;
        for item in batch {
            let scope = plan.scopes.place_of(item.scope(), last, &mut plan.scratch);
            in_order &= scope >= last;
            last = scope;
            let mark = plan.scratch.mark();
            let len = item.measure(&mut plan.scratch);
            plan.items.push(MeasuredItem {
                item,
                scope,
                len,
                mark,
            });
        }
        if !in_order {
            plan.items.sort_by_key(|item| item.scope);
        }
        plan
    }

    /// The whole batch as one request, whatever its length.
    pub(crate) fn everything(&self) -> Range<usize> {
        0..self.items.len()
    }

    /// Divides the batch into requests of at most `max_bytes` each. Items too large for any request are taken out.
    pub(crate) fn divide(&mut self, max_bytes: usize) -> Division {
        let whole = self.everything();
        if whole.is_empty() || self.request_len(whole.clone()) <= max_bytes {
            return Division {
                requests: Some(whole)
                    .into_iter()
                    .filter(|whole| !whole.is_empty())
                    .collect(),
                too_large: 0,
            };
        }
        let before = self.items.len();
        let (scopes, resource) = (&self.scopes, self.resource);
        self.items
            .retain(|item| RequestLen::default().with(item, scopes).total(resource) <= max_bytes);

        let mut requests = Vec::new();
        let mut start = 0;
        let mut request = RequestLen::default();
        for (place, item) in self.items.iter().enumerate() {
            let grown = request.with(item, &self.scopes);
            if grown.total(self.resource) <= max_bytes {
                request = grown;
            } else {
                requests.push(start..place);
                start = place;
                request = RequestLen::default().with(item, &self.scopes);
            }
        }
        if start < self.items.len() {
            requests.push(start..self.items.len());
        }
        Division {
            requests,
            too_large: before - self.items.len(),
        }
    }

    /// The batch as requests of at most `max_bytes` each.
    pub(crate) fn requests(mut self, encoding: Encoding, max_bytes: usize) -> Requests {
        let division = match encoding {
            Encoding::Protobuf => self.divide(max_bytes),
            Encoding::Json => return self.halves(encoding, max_bytes),
        };
        let encode = |range: Range<usize>| Encoded {
            items: range.len(),
            bytes: self.encode(range),
        };
        Requests {
            bodies: division.requests.into_iter().map(encode).collect(),
            too_large: division.too_large,
        }
    }

    /// [`requests`](Self::requests) in an encoding whose lengths are not known before it is made: what turns out to be too
    /// large is halved until it fits.
    fn halves(&self, encoding: Encoding, max_bytes: usize) -> Requests {
        let mut requests = Requests::default();
        // The last is next.
        let mut waiting = vec![self.everything()];
        while let Some(range) = waiting.pop() {
            let items = range.len();
            if items == 0 {
                continue;
            }
            // No encoding is shorter than protobuf.
            let encoded = (self.request_len(range.clone()) <= max_bytes)
                .then(|| encoding.request(I::SIGNAL, self.encode(range.clone())))
                .filter(|bytes| bytes.len() <= max_bytes);
            match encoded {
                Some(bytes) => requests.bodies.push(Encoded { bytes, items }),
                None if items == 1 => requests.too_large += 1,
                None => {
                    let middle = range.start + items / 2;
                    waiting.extend([middle..range.end, range.start..middle]);
                }
            }
        }
        requests
    }

    /// The length of a request with the items of `range`.
    fn request_len(&self, range: Range<usize>) -> usize {
        field_len(self.resource_items_len(range))
    }

    /// Writes one request with the items of `range`.
    pub(crate) fn encode(&self, range: Range<usize>) -> Vec<u8> {
        let len = self.resource_items_len(range.clone());
        let mut out = Out::with_len(field_len(len));
        put_header(&mut out, RESOURCE_ITEMS, len);
        out.slice(&self.resource.head);
        for run in self.runs(range) {
            self.write_scope_items(&mut out, run);
        }
        out.slice(&self.resource.tail);
        out.into_bytes()
    }

    fn resource_items_len(&self, range: Range<usize>) -> usize {
        let scope_items: usize = self
            .runs(range)
            .map(|run| field_len(self.scope_items_len(run)))
            .sum();
        self.resource.head.len() + scope_items + self.resource.tail.len()
    }

    fn scope_items_len(&self, run: &[MeasuredItem<I>]) -> usize {
        let frame = run
            .first()
            .map_or(0, |item| self.scopes.get(item.scope).frame_len);
        let items: usize = run.iter().map(|item| field_len(item.len)).sum();
        frame + items
    }

    /// The items of `range`, scope by scope.
    fn runs(&self, range: Range<usize>) -> impl Iterator<Item = &[MeasuredItem<I>]> {
        self.items[range].chunk_by(|a, b| a.scope == b.scope)
    }

    fn write_scope_items(&self, out: &mut Out, run: &[MeasuredItem<I>]) {
        let Some(first) = run.first() else { return };
        let scope: &MeasuredScope<'_> = self.scopes.get(first.scope);
        put_header(out, SCOPE_ITEMS, self.scope_items_len(run));
        scope.write_head(out, &self.scratch);
        for item in run {
            put_header(out, ITEMS, item.len);
            item.item.write(out, &mut self.scratch.replay(item.mark));
        }
        scope.write_tail(out);
    }
}

// ===== impl RequestLen =====

impl RequestLen {
    fn with<I>(&self, item: &MeasuredItem<I>, scopes: &Scopes<'_>) -> Self {
        let item_len = field_len(item.len);
        match self.open {
            Some((scope, len)) if scope == item.scope => RequestLen {
                closed: self.closed,
                open: Some((scope, len + item_len)),
            },
            _ => RequestLen {
                closed: self.scope_items(),
                open: Some((item.scope, scopes.get(item.scope).frame_len + item_len)),
            },
        }
    }

    fn scope_items(&self) -> usize {
        self.closed + self.open.map_or(0, |(_, len)| field_len(len))
    }

    fn total(&self, resource: &EncodedResource) -> usize {
        field_len(resource.head.len() + self.scope_items() + resource.tail.len())
    }
}
