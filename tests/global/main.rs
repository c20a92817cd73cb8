//! What depends on the global tracer provider. It can only be set for a whole process, so this is one, with one test.
#![allow(
    clippy::unwrap_used,
    reason = "a test that panics has failed, which is what it is for"
)]

use opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState, Tracer as _,
    TracerProvider as _,
};
use opentelemetry::{Context, global};
use opentelemetry_per_request::{
    Carry as _, Handle, PerRequestSpanProcessor, RequestTracer, active_span, in_child,
    in_child_sync,
};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};

fn provider() -> (SdkTracerProvider, Handle, InMemorySpanExporter) {
    let exporter = InMemorySpanExporter::default();
    let processor = PerRequestSpanProcessor::builder(exporter.clone())
        .build()
        .unwrap();
    let telemetry = processor.handle();
    let provider = SdkTracerProvider::builder().with_span_processor(processor);
    (provider.build(), telemetry, exporter)
}

/// `scope: name` of each span, in the order of the names.
fn arrived(telemetry: &Handle, exporter: &InMemorySpanExporter) -> Vec<String> {
    futures_executor::block_on(telemetry.flush()).unwrap();
    let stats = telemetry.stats();
    assert_eq!((stats.late.total(), stats.traces), (0, 0), "{stats:?}");
    let spans = exporter.get_finished_spans().unwrap();
    let mut lines: Vec<String> = spans
        .iter()
        .map(|span| format!("{}: {}", span.instrumentation_scope.name(), span.name))
        .collect();
    lines.sort();
    exporter.reset();
    lines
}

/// What a library does that knows nothing of who traces. Its spans are of whoever does.
async fn library() -> Option<TraceId> {
    in_child("async", async {
        in_child_sync("sync", || active_span().set_attribute("a", 1));
        async { active_span().trace_id() }.carried().await
    })
    .await
}

/// Scenario: a library is used before a global provider is set, with no span, under a caller elsewhere, and in a request of
/// the global tracer; then a global provider is set, and another one that is not global has requests, too.
/// Guarantees: before, nothing is recorded, and the caller's trace is known. Also a request that began before makes no
/// trace of its children's own. After, the spans of a request are of its own tracer, and else of the global provider; where
/// no span is active there are none.
#[test]
fn global_provider_is_used_where_a_request_has_no_tracer() {
    let block_on = futures_executor::block_on::<std::pin::Pin<Box<dyn Future<Output = _>>>>;
    let caller = SpanContext::new(
        TraceId::from(7),
        SpanId::from(8),
        TraceFlags::SAMPLED,
        true,
        TraceState::NONE,
    );
    let elsewhere = Context::new().with_remote_span_context(caller);
    let in_context = |cx: &Context| {
        let _attached = cx.clone().attach();
        block_on(Box::pin(library()))
    };
    let global_one = RequestTracer::global();

    assert_eq!(block_on(Box::pin(library())), None);
    assert_eq!(in_context(&elsewhere), Some(TraceId::from(7)));
    let before = global_one.run("request", &Context::new(), library());
    assert_eq!(block_on(Box::pin(before)), None);
    let begun = global_one.run("begun before", &Context::new(), library());

    let (the_global, telemetry, exporter) = provider();
    let (another, of_another, exporter_of_another) = provider();
    global::set_tracer_provider(the_global.clone());

    // It had no span, and gets none.
    assert_eq!(block_on(Box::pin(begun)), None);
    assert_eq!(block_on(Box::pin(library())), None);
    assert!(arrived(&telemetry, &exporter).is_empty());

    let request = global_one.run("request", &Context::new(), library());
    assert!(block_on(Box::pin(request)).is_some());
    let scope = "opentelemetry-per-request";
    assert_eq!(
        arrived(&telemetry, &exporter),
        ["async", "request", "sync"].map(|name| format!("{scope}: {name}"))
    );

    // A tracer that the context knows nothing of.
    let plain = the_global.tracer("plain").start("request");
    let cx = Context::new().with_span(plain);
    let trace = cx.span().span_context().trace_id();
    assert_eq!(in_context(&cx), Some(trace));
    drop(cx);
    assert_eq!(
        arrived(&telemetry, &exporter),
        [
            format!("{scope}: async"),
            format!("{scope}: sync"),
            "plain: request".to_owned()
        ]
    );

    // Below a caller elsewhere, without a request here: roots of this process, in the caller's trace.
    assert_eq!(in_context(&elsewhere), Some(TraceId::from(7)));
    assert_eq!(
        arrived(&telemetry, &exporter),
        ["async", "sync"].map(|name| format!("{scope}: {name}"))
    );

    // Not the global one.
    let own = RequestTracer::new(another.tracer("own")).with_handle(of_another.clone());
    assert!(block_on(Box::pin(own.run("request", &Context::new(), library()))).is_some());
    assert!(arrived(&telemetry, &exporter).is_empty());
    assert_eq!(
        arrived(&of_another, &exporter_of_another),
        ["own: async", "own: request", "own: sync"]
    );
}
