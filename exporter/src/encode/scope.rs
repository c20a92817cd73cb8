//! Instrumentation scopes: which items share one, and the part of a request that says it.

use super::attributes;
use super::scratch::{Mark, Scratch};
use super::wire::{Out, delimited, field_len, optional_len, put_header, put_optional};
use opentelemetry::{InstrumentationScope, KeyValue};
use std::collections::HashMap;
use std::hash::{Hash, Hasher};

const SCOPE: u8 = delimited(1);
const SCHEMA_URL: u8 = delimited(3);
const NAME: u8 = delimited(1);
const VERSION: u8 = delimited(2);
const ATTRIBUTES: u8 = delimited(3);

/// Up to here, comparing a scope with each of those seen is quicker than hashing it.
const SCOPES_TO_SCAN: usize = 8;

/// A scope as it is exported. Those that are equal are written once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope<'a> {
    name: &'a str,
    version: Option<&'a str>,
    schema_url: Option<&'a str>,
    /// For its attributes.
    scope: &'a InstrumentationScope,
}

/// The scopes of a batch, in the order of their first appearance.
#[derive(Debug, Default)]
pub(super) struct Scopes<'a> {
    seen: Vec<MeasuredScope<'a>>,
    /// The places of those that are not scanned.
    hashed: HashMap<Scope<'a>, usize>,
}

#[derive(Debug)]
pub(super) struct MeasuredScope<'a> {
    scope: Scope<'a>,
    /// The `InstrumentationScope` message.
    len: usize,
    /// A `ScopeSpans` or `ScopeLogs` message without items.
    pub(super) frame_len: usize,
    mark: Mark,
}

// ===== impl Scope =====

impl<'a> Scope<'a> {
    /// A span's.
    pub(crate) fn new(scope: &'a InstrumentationScope) -> Self {
        Self {
            name: scope.name(),
            version: scope.version(),
            schema_url: scope.schema_url(),
            scope,
        }
    }

    /// A log record's: its target stands for the name, and what is missing is as if it were empty, as in
    /// `opentelemetry-proto`.
    #[cfg(feature = "logs")]
    pub(crate) fn of_record(scope: &'a InstrumentationScope, target: Option<&'a str>) -> Self {
        Self {
            name: target.unwrap_or_else(|| scope.name()),
            version: Some(scope.version().unwrap_or_default()),
            schema_url: Some(scope.schema_url().unwrap_or_default()),
            scope,
        }
    }

    fn version(&self) -> &'a str {
        self.version.unwrap_or_default()
    }

    fn schema_url(&self) -> &'a str {
        self.schema_url.unwrap_or_default()
    }

    /// Scopes of one tracer share their texts, so comparing addresses is enough for most items. Scopes with attributes
    /// are compared in full: a NaN in one makes it differ even from itself.
    fn is_plainly(&self, other: &Self) -> bool {
        std::ptr::eq(self.name, other.name)
            && same_address(self.version, other.version)
            && same_address(self.schema_url, other.schema_url)
            && self.scope.attributes().next().is_none()
            && other.scope.attributes().next().is_none()
    }

    /// By key: scopes with the same attributes in another order are equal.
    fn sorted_attributes(&self) -> Vec<&'a KeyValue> {
        let mut attributes: Vec<_> = self.scope.attributes().collect();
        attributes.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        attributes
    }
}

fn same_address(a: Option<&str>, b: Option<&str>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => std::ptr::eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

/// That of [`InstrumentationScope`].
impl PartialEq for Scope<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
            && self.version == other.version
            && self.schema_url == other.schema_url
            && self.scope.attributes().count() == other.scope.attributes().count()
            && self.sorted_attributes() == other.sorted_attributes()
    }
}

impl Eq for Scope<'_> {}

impl Hash for Scope<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
        self.version.hash(state);
        self.schema_url.hash(state);
        self.sorted_attributes().hash(state);
    }
}

// ===== impl Scopes =====

impl<'a> Scopes<'a> {
    pub(super) fn get(&self, place: usize) -> &MeasuredScope<'a> {
        &self.seen[place]
    }

    /// The place of `scope`, most often that of the item before.
    pub(super) fn place_of(
        &mut self,
        scope: Scope<'a>,
        last: usize,
        scratch: &mut Scratch,
    ) -> usize {
        match self.seen.get(last) {
            Some(known) if known.scope.is_plainly(&scope) => return last,
            _ => {}
        }
        if let Some(place) = self.find(&scope) {
            return place;
        }
        let place = self.seen.len();
        if place >= SCOPES_TO_SCAN {
            self.hashed.insert(scope, place);
        }
        self.seen.push(MeasuredScope::new(scope, scratch));
        place
    }

    fn find(&self, scope: &Scope<'a>) -> Option<usize> {
        let scan = &self.seen[..self.seen.len().min(SCOPES_TO_SCAN)];
        scan.iter()
            .position(|known| known.scope == *scope)
            .or_else(|| self.hashed.get(scope).copied())
    }
}

// ===== impl MeasuredScope =====

impl<'a> MeasuredScope<'a> {
    fn new(scope: Scope<'a>, scratch: &mut Scratch) -> Self {
        let mark = scratch.mark();
        let len = optional_len(scope.name.len())
            + optional_len(scope.version().len())
            + attributes::measure(scope.scope.attributes(), scratch);
        Self {
            scope,
            len,
            frame_len: field_len(len) + optional_len(scope.schema_url().len()),
            mark,
        }
    }

    /// What stands before the items.
    pub(super) fn write_head(&self, out: &mut Out, scratch: &Scratch) {
        put_header(out, SCOPE, self.len);
        put_optional(out, NAME, self.scope.name.as_bytes());
        put_optional(out, VERSION, self.scope.version().as_bytes());
        let mut replay = scratch.replay(self.mark);
        let attributes = self.scope.scope.attributes();
        attributes::write(out, ATTRIBUTES, attributes, &mut replay);
    }

    /// What stands behind them.
    pub(super) fn write_tail(&self, out: &mut Out) {
        put_optional(out, SCHEMA_URL, self.scope.schema_url().as_bytes());
    }
}
