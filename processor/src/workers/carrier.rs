//! Headers that carry a trace context: of a request that came in, or of one that goes out.

use opentelemetry::propagation::text_map_propagator::TextMapPropagator;
use opentelemetry::propagation::{Extractor, Injector};
use worker::Headers;

/// What a propagator wants to read of `worker::Headers`.
///
/// For an `http::HeaderMap` there is [`HeaderExtractor`](super::HeaderExtractor).
///
/// ```ignore
/// let propagator = TraceContextPropagator::new();
/// let parent = propagator.extract_with_context(
///     &Context::new(),
///     &WorkerHeaderExtractor::new(request.headers(), &propagator),
/// );
/// ```
#[derive(Debug)]
pub struct WorkerHeaderExtractor {
    found: Vec<(String, String)>,
}

impl WorkerHeaderExtractor {
    /// Reads the headers that `propagator` knows, and no others: each costs a call into JavaScript.
    pub fn new(headers: &Headers, propagator: &dyn TextMapPropagator) -> Self {
        let read = |name: &str| Some((name.to_owned(), headers.get(name).ok()??));
        Self {
            found: propagator.fields().filter_map(read).collect(),
        }
    }
}

impl Extractor for WorkerHeaderExtractor {
    fn get(&self, key: &str) -> Option<&str> {
        let mut found = self.found.iter();
        found
            .find(|(name, _)| name.eq_ignore_ascii_case(key))
            .map(|(_, value)| value.as_str())
    }

    fn keys(&self) -> Vec<&str> {
        self.found.iter().map(|(name, _)| name.as_str()).collect()
    }
}

/// Writes a trace context into `worker::Headers`, for a request that goes out.
///
/// A header that cannot be written is left out: those of a request that came in are immutable. For an `http::HeaderMap` there
/// is [`HeaderInjector`](super::HeaderInjector).
///
/// ```ignore
/// let headers = Headers::new();
/// TraceContextPropagator::new().inject(&mut WorkerHeaderInjector(&headers));
/// ```
#[derive(Debug)]
pub struct WorkerHeaderInjector<'a>(pub &'a Headers);

impl Injector for WorkerHeaderInjector<'_> {
    fn set(&mut self, key: &str, value: String) {
        let _ = self.0.set(key, &value);
    }
}
