//! The headers that carry a trace to another server.

use ::http::HeaderMap;
use opentelemetry::Context;
use opentelemetry::propagation::Injector;
use opentelemetry::propagation::text_map_propagator::TextMapPropagator;
use opentelemetry::trace::TraceContextExt as _;
use opentelemetry_http::HeaderInjector;
use opentelemetry_sdk::propagation::TraceContextPropagator;

use crate::active::current;

/// Writes the active span into the headers of a request, as `traceparent` and `tracestate` of W3C Trace Context. What
/// is there already is replaced.
///
/// So what the other server does becomes a child of the active span. That of a span that is not sampled goes along,
/// too, and says so. Without an active span, and where telemetry is suppressed, nothing is changed.
///
/// It makes no span; [`send`](super::send) and [`ClientLayer`](super::ClientLayer) do, and inject that.
///
/// ```
/// use opentelemetry_per_request::client::inject;
///
/// // The `HeaderMap` of `reqwest` is the same.
/// let mut headers = http::HeaderMap::new();
/// inject(&mut headers);
/// assert!(headers.is_empty()); // nobody traces here
/// ```
pub fn inject(headers: &mut HeaderMap) {
    inject_with(&TraceContextPropagator::new(), &current(), headers);
}

/// Replaces all that `propagator` writes, so that nothing stays of another trace.
pub(super) fn inject_with(
    propagator: &dyn TextMapPropagator,
    cx: &Context,
    headers: &mut HeaderMap,
) {
    if !is_traced(cx) {
        return;
    }
    for field in propagator.fields() {
        headers.remove(field);
    }
    propagator.inject_context(cx, &mut NotEmpty(HeaderInjector(headers)));
}

/// Whether there is a span that another server could continue.
pub(crate) fn is_traced(cx: &Context) -> bool {
    !cx.is_telemetry_suppressed() && cx.span().span_context().is_valid()
}

/// Leaves out what has no value: mostly a `tracestate`.
pub(crate) struct NotEmpty<I>(pub(crate) I);

impl<I: Injector> Injector for NotEmpty<I> {
    fn set(&mut self, key: &str, value: String) {
        if !value.is_empty() {
            self.0.set(key, value);
        }
    }
}
