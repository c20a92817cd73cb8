//! The three signals, and lists of what is exported of each.

use std::fmt;

use opentelemetry::KeyValue;
use opentelemetry::trace::TraceId;
#[cfg(feature = "logs")]
use opentelemetry::{InstrumentationScope, logs::LogRecord as _};
#[cfg(feature = "logs")]
use opentelemetry_sdk::logs::SdkLogRecord;
#[cfg(feature = "metric-reader")]
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::trace::SpanData;

use crate::stats::LateReason;

/// The attribute of a late span or log record. Its value is a word of [`LateReason`].
pub(crate) const LATE_ATTRIBUTE: &str = "per_request.late";

/// What telemetry there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Signal {
    Spans,
    Logs,
    Metrics,
}

impl Signal {
    pub(crate) const ALL: [Self; 3] = [Self::Spans, Self::Logs, Self::Metrics];

    /// Those whose items belong to requests, and wait in a queue of theirs.
    pub(crate) const QUEUED: [Self; 2] = [Self::Spans, Self::Logs];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Spans => "spans",
            Self::Logs => "logs",
            Self::Metrics => "metrics",
        }
    }
}

/// What its items are called.
impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Spans => "spans",
            Self::Logs => "log records",
            Self::Metrics => "data points",
        })
    }
}

/// Some of the signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Signals(u8);

impl Signals {
    pub(crate) const ALL: Self = Self(0b111);

    pub(crate) const fn of(signal: Signal) -> Self {
        Self(1 << signal as u8)
    }

    pub(crate) const fn contains(self, signal: Signal) -> bool {
        self.0 & Self::of(signal).0 != 0
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = Signal> {
        Signal::ALL.into_iter().filter(move |s| self.contains(*s))
    }
}

#[cfg(not(target_family = "wasm"))]
impl Signals {
    pub(crate) const NONE: Self = Self(0);

    pub(crate) const fn with(self, signal: Signal) -> Self {
        Self(self.0 | Self::of(signal).0)
    }

    pub(crate) const fn without(self, signal: Signal) -> Self {
        Self(self.0 & !Self::of(signal).0)
    }
}

/// A log record, and who emitted it.
#[cfg(feature = "logs")]
#[derive(Debug)]
pub(crate) struct LogData {
    pub(crate) record: SdkLogRecord,
    pub(crate) scope: InstrumentationScope,
}

/// What was collected of all instruments at one moment.
#[cfg(feature = "metric-reader")]
#[derive(Debug)]
pub(crate) struct Collected {
    pub(crate) metrics: ResourceMetrics,
    /// How many data points that is. Never 0.
    pub(crate) points: usize,
}

/// A list of one signal's items, to be exported together.
#[derive(Debug)]
pub(crate) enum Items {
    Spans(Vec<SpanData>),
    #[cfg(feature = "logs")]
    Logs(Vec<LogData>),
    #[cfg(feature = "metric-reader")]
    Metrics(Box<Collected>),
}

/// Something that belongs to a request, and waits in its queue.
pub(crate) trait Item: Sized {
    const SIGNAL: Signal;

    fn none() -> Items;
    /// None if the list is one of another signal.
    fn list(items: &mut Items) -> Option<&mut Vec<Self>>;
    /// The trace that it names, or an invalid one.
    fn trace(&self) -> TraceId;
    fn mark_late(&mut self, reason: LateReason);
}

// ===== impl Items =====

impl Items {
    pub(crate) fn signal(&self) -> Signal {
        match self {
            Self::Spans(_) => Signal::Spans,
            #[cfg(feature = "logs")]
            Self::Logs(_) => Signal::Logs,
            #[cfg(feature = "metric-reader")]
            Self::Metrics(_) => Signal::Metrics,
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Spans(spans) => spans.len(),
            #[cfg(feature = "logs")]
            Self::Logs(logs) => logs.len(),
            #[cfg(feature = "metric-reader")]
            Self::Metrics(collected) => collected.points,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes all, and leaves none. Metrics are never in a queue.
    pub(crate) fn take(&mut self) -> Self {
        match self {
            Self::Spans(spans) => Self::Spans(std::mem::take(spans)),
            #[cfg(feature = "logs")]
            Self::Logs(logs) => Self::Logs(std::mem::take(logs)),
            #[cfg(feature = "metric-reader")]
            Self::Metrics(_) => std::mem::replace(self, Self::Spans(Vec::new())),
        }
    }

    /// Appends. The first one makes room for as many as there usually are.
    #[inline]
    pub(crate) fn push<T: Item>(&mut self, item: T, usual: usize) {
        if let Some(list) = T::list(self) {
            if list.capacity() == 0 {
                list.reserve_exact(usual);
            }
            list.push(item);
        }
    }

    /// The trace of each.
    pub(crate) fn traces(&self) -> Vec<TraceId> {
        match self {
            Self::Spans(spans) => spans.iter().map(Item::trace).collect(),
            #[cfg(feature = "logs")]
            Self::Logs(logs) => logs.iter().map(Item::trace).collect(),
            #[cfg(feature = "metric-reader")]
            Self::Metrics(_) => Vec::new(),
        }
    }
}

// ===== impl Item =====

impl Item for SpanData {
    const SIGNAL: Signal = Signal::Spans;

    fn none() -> Items {
        Items::Spans(Vec::new())
    }

    fn list(items: &mut Items) -> Option<&mut Vec<Self>> {
        match items {
            Items::Spans(spans) => Some(spans),
            #[cfg(any(feature = "logs", feature = "metric-reader"))]
            _ => None,
        }
    }

    fn trace(&self) -> TraceId {
        self.span_context.trace_id()
    }

    fn mark_late(&mut self, reason: LateReason) {
        self.attributes
            .push(KeyValue::new(LATE_ATTRIBUTE, reason.as_str()));
    }
}

#[cfg(feature = "logs")]
impl Item for LogData {
    const SIGNAL: Signal = Signal::Logs;

    fn none() -> Items {
        Items::Logs(Vec::new())
    }

    fn list(items: &mut Items) -> Option<&mut Vec<Self>> {
        match items {
            Items::Logs(logs) => Some(logs),
            _ => None,
        }
    }

    fn trace(&self) -> TraceId {
        let context = self.record.trace_context();
        context.map_or(TraceId::INVALID, |context| context.trace_id)
    }

    fn mark_late(&mut self, reason: LateReason) {
        self.record.add_attribute(LATE_ATTRIBUTE, reason.as_str());
    }
}

// ===== PerSignal =====

/// One of something for each signal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PerSignal<T>([T; 3]);

impl<T> PerSignal<T> {
    pub(crate) fn new(make: impl FnMut(Signal) -> T) -> Self {
        Self(Signal::ALL.map(make))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter()
    }
}

impl<T> std::ops::Index<Signal> for PerSignal<T> {
    type Output = T;

    fn index(&self, signal: Signal) -> &T {
        &self.0[signal as usize]
    }
}

impl<T> std::ops::IndexMut<Signal> for PerSignal<T> {
    fn index_mut(&mut self, signal: Signal) -> &mut T {
        &mut self.0[signal as usize]
    }
}
