//! The three signals, and what there is one of for each.

use std::fmt;
use std::ops::{Index, IndexMut};

/// What is exported: traces, logs or metrics. The words are those of the endpoints' paths and of warnings.
///
/// Each has its own endpoint, settings, counters and shutdown in one [`DirectExporter`](crate::DirectExporter).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Signal {
    /// `traces`: spans.
    Traces,
    /// `logs`: log records. Exported with the feature `logs`.
    Logs,
    /// `metrics`: counted in data points. Exported with the feature `metric-export`.
    Metrics,
}

/// One of something for each signal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PerSignal<T>([T; Signal::ALL.len()]);

// ===== impl Signal =====

impl Signal {
    /// Every signal.
    pub const ALL: &'static [Self] = &[Self::Traces, Self::Logs, Self::Metrics];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Traces => "traces",
            Self::Logs => "logs",
            Self::Metrics => "metrics",
        }
    }

    /// What stands behind the path of a collector's endpoint.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Traces => "v1/traces",
            Self::Logs => "v1/logs",
            Self::Metrics => "v1/metrics",
        }
    }

    /// What its batches are counted in.
    pub(crate) fn items(self) -> &'static str {
        match self {
            Self::Traces => "spans",
            Self::Logs => "log records",
            Self::Metrics => "data points",
        }
    }

    /// Whether the exporter that was compiled can export it.
    pub(crate) fn is_exported(self) -> bool {
        match self {
            Self::Traces => true,
            Self::Logs => cfg!(feature = "logs"),
            Self::Metrics => cfg!(feature = "metric-export"),
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// ===== impl PerSignal =====

impl<T> PerSignal<T> {
    pub(crate) const fn new(traces: T, logs: T, metrics: T) -> Self {
        Self([traces, logs, metrics])
    }

    pub(crate) fn from_fn(mut make: impl FnMut(Signal) -> T) -> Self {
        Self(std::array::from_fn(|place| make(Signal::ALL[place])))
    }

    /// The first error of `make` ends it.
    pub(crate) fn try_from_fn<E>(mut make: impl FnMut(Signal) -> Result<T, E>) -> Result<Self, E> {
        Ok(Self([
            make(Signal::Traces)?,
            make(Signal::Logs)?,
            make(Signal::Metrics)?,
        ]))
    }

    pub(crate) fn map<U>(self, mut make: impl FnMut(Signal, T) -> U) -> PerSignal<U> {
        let [traces, logs, metrics] = self.0;
        PerSignal([
            make(Signal::Traces, traces),
            make(Signal::Logs, logs),
            make(Signal::Metrics, metrics),
        ])
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Signal, &T)> {
        Signal::ALL.iter().copied().zip(&self.0)
    }
}

impl<T> IntoIterator for PerSignal<T> {
    type Item = T;
    type IntoIter = std::array::IntoIter<T, { Signal::ALL.len() }>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<T> Index<Signal> for PerSignal<T> {
    type Output = T;

    fn index(&self, signal: Signal) -> &T {
        &self.0[signal as usize]
    }
}

impl<T> IndexMut<Signal> for PerSignal<T> {
    fn index_mut(&mut self, signal: Signal) -> &mut T {
        &mut self.0[signal as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: every signal, in the order of the list.
    /// Guarantees: each has its own place and its own words, and a path of its word.
    #[test]
    fn each_signal_has_its_own_place_and_words() {
        let places = PerSignal::from_fn(|signal| signal);
        let mut items = std::collections::HashSet::new();
        for (place, signal) in Signal::ALL.iter().enumerate() {
            assert_eq!(*signal as usize, place);
            assert_eq!(places[*signal], *signal);
            assert_eq!(signal.path(), format!("v1/{signal}"));
            assert!(items.insert(signal.items()));
        }
    }
}
