//! A batch, measured: its spans grouped by scope, and where it divides into requests.

use super::scratch::{Mark, Scratch};
use super::wire::{Out, delimited, field_len, optional_len, put_header, put_optional};
use super::{EncodedResource, attributes, span};
use opentelemetry::InstrumentationScope;
use opentelemetry_sdk::trace::SpanData;
use std::collections::HashMap;
use std::ops::Range;

const RESOURCE_SPANS: u8 = delimited(1);
const SCOPE_SPANS: u8 = delimited(2);
const SCOPE: u8 = delimited(1);
const SPANS: u8 = delimited(2);
const SCHEMA_URL: u8 = delimited(3);
const SCOPE_NAME: u8 = delimited(1);
const SCOPE_VERSION: u8 = delimited(2);
const SCOPE_ATTRIBUTES: u8 = delimited(3);

/// Up to here, comparing a scope with each of those seen is quicker than hashing it.
const SCOPES_TO_SCAN: usize = 8;

/// Spans with their lengths, in the order in which they are written.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    resource: &'a EncodedResource,
    scopes: Vec<MeasuredScope<'a>>,
    /// Invariant: spans of one scope lie together, scopes in order of first appearance.
    spans: Vec<MeasuredSpan<'a>>,
    scratch: Scratch,
}

/// Where a batch divides, see [`Plan::divide`].
#[derive(Debug)]
pub(crate) struct Division {
    /// Each is one request's spans. Never empty ranges.
    pub(crate) requests: Vec<Range<usize>>,
    /// Spans that are larger than a request may be, each by itself.
    pub(crate) too_large: usize,
}

#[derive(Debug)]
struct MeasuredScope<'a> {
    scope: &'a InstrumentationScope,
    /// The `InstrumentationScope` message.
    len: usize,
    /// A `ScopeSpans` message without spans.
    frame_len: usize,
    mark: Mark,
}

#[derive(Debug)]
struct MeasuredSpan<'a> {
    span: &'a SpanData,
    scope: usize,
    /// The `Span` message.
    len: usize,
    mark: Mark,
}

/// The length of a request that grows by one span at a time.
#[derive(Clone, Debug, Default)]
struct RequestLen {
    /// `ScopeSpans` fields that are complete.
    closed: usize,
    /// The `ScopeSpans` message that grows, and its scope.
    open: Option<(usize, usize)>,
}

/// Finds the place of a scope among those seen.
#[derive(Default)]
struct ScopeIndex<'a> {
    hashed: HashMap<&'a InstrumentationScope, usize>,
}

// ===== impl Plan =====

impl<'a> Plan<'a> {
    pub(crate) fn new(resource: &'a EncodedResource, batch: &'a [SpanData]) -> Self {
        let mut plan = Plan {
            resource,
            scopes: Vec::new(),
            spans: Vec::with_capacity(batch.len()),
            scratch: Scratch::default(),
        };
        let mut index = ScopeIndex::default();
        let mut last = 0;
        let mut in_order = true;
        for span in batch {
            let scope = plan.scope_of(&span.instrumentation_scope, last, &mut index);
            in_order &= scope >= last;
            last = scope;
            let mark = plan.scratch.mark();
            let len = span::measure(span, &mut plan.scratch);
            plan.spans.push(MeasuredSpan {
                span,
                scope,
                len,
                mark,
            });
        }
        if !in_order {
            plan.spans.sort_by_key(|span| span.scope);
        }
        plan
    }

    /// The whole batch as one request, whatever its length.
    pub(crate) fn everything(&self) -> Range<usize> {
        0..self.spans.len()
    }

    /// Divides the batch into requests of at most `max_bytes` each. Spans too large for any request are taken out.
    pub(crate) fn divide(&mut self, max_bytes: usize) -> Division {
        if self.request_len(self.everything()) <= max_bytes {
            return Division {
                requests: vec![self.everything()],
                too_large: 0,
            };
        }
        let before = self.spans.len();
        let (scopes, resource) = (&self.scopes, self.resource);
        self.spans
            .retain(|span| RequestLen::default().with(span, scopes).total(resource) <= max_bytes);

        let mut requests = Vec::new();
        let mut start = 0;
        let mut request = RequestLen::default();
        for (place, span) in self.spans.iter().enumerate() {
            let grown = request.with(span, &self.scopes);
            if grown.total(self.resource) <= max_bytes {
                request = grown;
            } else {
                requests.push(start..place);
                start = place;
                request = RequestLen::default().with(span, &self.scopes);
            }
        }
        if start < self.spans.len() {
            requests.push(start..self.spans.len());
        }
        Division {
            requests,
            too_large: before - self.spans.len(),
        }
    }

    /// Writes one request with the spans of `range`.
    pub(crate) fn encode(&self, range: Range<usize>) -> Vec<u8> {
        let resource_spans_len = self.resource_spans_len(range.clone());
        let mut out = Out::with_len(field_len(resource_spans_len));
        put_header(&mut out, RESOURCE_SPANS, resource_spans_len);
        out.slice(&self.resource.head);
        for run in self.runs(range) {
            self.write_scope_spans(&mut out, run);
        }
        out.slice(&self.resource.tail);
        out.into_bytes()
    }

    fn request_len(&self, range: Range<usize>) -> usize {
        field_len(self.resource_spans_len(range))
    }

    fn resource_spans_len(&self, range: Range<usize>) -> usize {
        let scope_spans: usize = self
            .runs(range)
            .map(|run| field_len(self.scope_spans_len(run)))
            .sum();
        self.resource.head.len() + scope_spans + self.resource.tail.len()
    }

    fn scope_spans_len(&self, run: &[MeasuredSpan<'a>]) -> usize {
        let frame = run
            .first()
            .map_or(0, |span| self.scopes[span.scope].frame_len);
        let spans: usize = run.iter().map(|span| field_len(span.len)).sum();
        frame + spans
    }

    /// The spans of `range`, scope by scope.
    fn runs(&self, range: Range<usize>) -> impl Iterator<Item = &[MeasuredSpan<'a>]> {
        self.spans[range].chunk_by(|a, b| a.scope == b.scope)
    }

    fn write_scope_spans(&self, out: &mut Out, run: &[MeasuredSpan<'a>]) {
        let Some(first) = run.first() else { return };
        let scope = &self.scopes[first.scope];
        put_header(out, SCOPE_SPANS, self.scope_spans_len(run));
        put_header(out, SCOPE, scope.len);
        self.write_scope(out, scope);
        for span in run {
            put_header(out, SPANS, span.len);
            span::write(out, span.span, &mut self.scratch.replay(span.mark));
        }
        put_optional(out, SCHEMA_URL, schema_url(scope.scope).as_bytes());
    }

    fn write_scope(&self, out: &mut Out, scope: &MeasuredScope<'a>) {
        put_optional(out, SCOPE_NAME, scope.scope.name().as_bytes());
        put_optional(out, SCOPE_VERSION, version(scope.scope).as_bytes());
        let mut replay = self.scratch.replay(scope.mark);
        attributes::write(out, SCOPE_ATTRIBUTES, scope.scope.attributes(), &mut replay);
    }

    /// The place of `scope`, most often that of the span before.
    fn scope_of(
        &mut self,
        scope: &'a InstrumentationScope,
        last: usize,
        index: &mut ScopeIndex<'a>,
    ) -> usize {
        match self.scopes.get(last) {
            Some(known) if plainly_the_same(known.scope, scope) => return last,
            _ => {}
        }
        if let Some(place) = index.find(scope, &self.scopes) {
            return place;
        }
        let place = self.scopes.len();
        index.insert(scope, place);
        let mark = self.scratch.mark();
        let len = optional_len(scope.name().len())
            + optional_len(version(scope).len())
            + attributes::measure(scope.attributes(), &mut self.scratch);
        self.scopes.push(MeasuredScope {
            scope,
            len,
            frame_len: field_len(len) + optional_len(schema_url(scope).len()),
            mark,
        });
        place
    }
}

fn version(scope: &InstrumentationScope) -> &str {
    scope.version().unwrap_or_default()
}

fn schema_url(scope: &InstrumentationScope) -> &str {
    scope.schema_url().unwrap_or_default()
}

/// Scopes of one tracer share their texts, so comparing addresses is enough for most spans. Scopes with attributes are
/// compared in full: a NaN in one makes it differ even from itself.
fn plainly_the_same(a: &InstrumentationScope, b: &InstrumentationScope) -> bool {
    std::ptr::eq(a.name(), b.name())
        && same_address(a.version(), b.version())
        && same_address(a.schema_url(), b.schema_url())
        && a.attributes().next().is_none()
        && b.attributes().next().is_none()
}

fn same_address(a: Option<&str>, b: Option<&str>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => std::ptr::eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

// ===== impl ScopeIndex =====

impl<'a> ScopeIndex<'a> {
    fn find(&self, scope: &InstrumentationScope, seen: &[MeasuredScope<'a>]) -> Option<usize> {
        let scan = &seen[..seen.len().min(SCOPES_TO_SCAN)];
        scan.iter()
            .position(|known| known.scope == scope)
            .or_else(|| self.hashed.get(scope).copied())
    }

    fn insert(&mut self, scope: &'a InstrumentationScope, place: usize) {
        if place >= SCOPES_TO_SCAN {
            self.hashed.insert(scope, place);
        }
    }
}

// ===== impl RequestLen =====

impl RequestLen {
    fn with(&self, span: &MeasuredSpan<'_>, scopes: &[MeasuredScope<'_>]) -> Self {
        let span_len = field_len(span.len);
        match self.open {
            Some((scope, len)) if scope == span.scope => RequestLen {
                closed: self.closed,
                open: Some((scope, len + span_len)),
            },
            _ => RequestLen {
                closed: self.scope_spans(),
                open: Some((span.scope, scopes[span.scope].frame_len + span_len)),
            },
        }
    }

    fn scope_spans(&self) -> usize {
        self.closed + self.open.map_or(0, |(_, len)| field_len(len))
    }

    fn total(&self, resource: &EncodedResource) -> usize {
        field_len(resource.head.len() + self.scope_spans() + resource.tail.len())
    }
}
