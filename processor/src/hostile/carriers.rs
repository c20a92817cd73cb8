//! Headers of requests: what the SDK's propagators make of any text, and the spans that start under it.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use opentelemetry::Context;
use opentelemetry::propagation::{TextMapCompositePropagator, TextMapPropagator};
use opentelemetry::trace::{SpanContext, TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry_sdk::propagation::{BaggagePropagator, TraceContextPropagator};
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};

use super::{Recorder, Tenant, texts};
use crate::config::Config;
use crate::handle::Handle;
use crate::processor::PerRequestSpanProcessor;

/// Few enough that no trace is evicted, however many of them are told apart.
const MAX_REQUESTS: usize = 16;

/// One for all inputs: its threads would be most of the work.
struct World {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    handle: Handle,
    recorder: Recorder,
}

/// Three texts are the headers of one request: `traceparent`, `tracestate` and `baggage`.
///
/// With all requests open at once, each of a tenant of its own, every span is accounted for at every moment, leaves under
/// its own tenant, and continues the trace of its headers if that is one.
pub fn property(data: &[u8]) {
    static WORLD: OnceLock<Mutex<World>> = OnceLock::new();
    let world = WORLD.get_or_init(|| Mutex::new(World::new()));
    // A property that did not hold for another input says nothing of this one, and nothing of it may be left.
    let world = world.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = world.provider.force_flush();
    world.recorder.0.lock().unwrap().clear();

    let texts: Vec<_> = texts(data).take(3 * MAX_REQUESTS).collect();
    let parents: Vec<_> = texts.chunks(3).map(parent).collect();
    let late = world.handle.stats().late.total();

    let start = |name: String, cx: &Context| {
        let span = world.tracer.start_with_context(name, cx);
        world.check_account();
        cx.with_span(span)
    };
    let roots: Vec<_> = (0..)
        .zip(&parents)
        .map(|(n, parent)| start(format!("{n} root"), &parent.with_value(Tenant(n))))
        .collect();
    let children: Vec<_> = (0..)
        .zip(&roots)
        .map(|(n, root)| start(format!("{n} child"), root))
        .collect();
    // Some roots end before their children, some after them.
    let (before, after) = roots.split_at(roots.len() / 2);
    for cx in before.iter().chain(&children).chain(after) {
        cx.span().end();
        world.check_account();
    }
    world.provider.force_flush().unwrap();
    let stats = world.handle.stats();
    assert_eq!((stats.pending(), stats.traces), (0, 0), "{stats:?}");
    assert_eq!(stats.late.total(), late, "{stats:?}");

    let spans = std::mem::take(&mut *world.recorder.0.lock().unwrap());
    assert_eq!(spans.len(), 2 * parents.len());
    for (span, tenant) in spans {
        let (n, role) = span.name.split_once(' ').unwrap();
        let n: usize = n.parse().unwrap();
        assert_eq!(tenant, Some(Tenant(n)), "{span:?}");
        let root = roots[n].span().span_context().clone();
        assert_eq!(span.span_context.trace_id(), root.trace_id());
        let named = parents[n].span().span_context().clone();
        match role {
            "root" if named.is_valid() => {
                assert_eq!(span.span_context.trace_id(), named.trace_id());
                assert_eq!(span.parent_span_id, named.span_id());
                assert!(span.parent_span_is_remote);
            }
            "root" => assert!(!span.parent_span_is_remote),
            _ => assert_eq!(span.parent_span_id, root.span_id()),
        }
    }
}

/// What the headers name. What they say has to be remote, or it could be taken for one of our own spans.
fn parent(headers: &[String]) -> Context {
    let names = ["traceparent", "tracestate", "baggage"].map(str::to_owned);
    let carrier: HashMap<String, String> = names.into_iter().zip(headers.iter().cloned()).collect();
    let propagator = TextMapCompositePropagator::new(vec![
        Box::new(TraceContextPropagator::new()),
        Box::new(BaggagePropagator::new()),
    ]);
    let cx = propagator.extract_with_context(&Context::new(), &carrier);
    let named = cx.span().span_context().clone();
    assert!(named.is_remote() || named == SpanContext::NONE, "{named:?}");
    cx
}

impl World {
    fn new() -> Self {
        let recorder = Recorder::default();
        let processor = PerRequestSpanProcessor::builder(recorder.clone())
            .with_config(Config::default())
            .build()
            .unwrap();
        let handle = processor.handle();
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::AlwaysOn)
            .with_span_processor(processor)
            .build();
        Self {
            tracer: provider.tracer("test"),
            provider,
            handle,
            recorder,
        }
    }

    fn check_account(&self) {
        let stats = self.handle.stats();
        assert!(stats.is_balanced(), "{stats:?}");
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Few trace ids and span ids, so that requests share them.
    fn traceparent() -> impl Strategy<Value = String> {
        let valid = (1_u128..4, 1_u64..4, 0_u8..4)
            .prop_map(|(trace, span, flags)| format!("00-{trace:032x}-{span:016x}-{flags:02x}"));
        let wrong = (valid.clone(), any::<prop::sample::Index>(), "[ -~é]").prop_map(
            |(valid, at, with)| {
                let at = at.index(valid.len());
                format!("{}{with}{}", &valid[..at], &valid[at + 1..])
            },
        );
        prop_oneof![
            4 => valid,
            2 => wrong,
            1 => "[0-9a-f]{2}-[0-9a-f+]{1,33}-[0-9a-f+]{1,17}-[0-9a-f]{1,3}(-[a-z-]{0,5})?",
            1 => "[0-9a-zA-Z -]{0,60}",
            1 => any::<String>(),
        ]
    }

    fn list() -> impl Strategy<Value = String> {
        prop_oneof![
            2 => "([a-z0-9@]{1,5}=[!-~]{0,5},?){0,5}",
            1 => "([a-z]=(%[0-9a-fA-F]{2}){0,3}(;[a-z=]{0,3})?,?){0,5}",
            1 => "(a=b,){30,40}",
            1 => any::<String>(),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Scenario: requests that are open at once, with headers that are valid, nearly valid, and not at all; many of the
        /// same trace and even of the same parent.
        /// Guarantees: every span is accounted for at every moment, leaves once and under its own tenant, and continues the
        /// trace of its headers if that is one.
        #[test]
        fn every_span_leaves_under_its_own_tenant_whatever_the_headers_are(
            requests in vec((traceparent(), list(), list()), 1..6),
        ) {
            let texts = requests.into_iter().flat_map(|(parent, state, baggage)| [parent, state, baggage]);
            property(texts.collect::<Vec<_>>().join("\0").as_bytes());
        }
    }
}
