//! Who starts the spans, and what happens when nobody does. The global tracer provider is never set in this process: see
//! `tests/global`.

use opentelemetry::trace::{
    SpanBuilder, SpanKind, Status, TraceContextExt as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_per_request::{
    Carry as _, Config, PerRequestSpanProcessor, RequestTracer, active_span, in_child,
    in_child_sync,
};
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};

use super::{Arrived, Service, attribute, block_on, never, yield_now};
use crate::support::{
    Recorder, SOON, Tenant, World, balanced, current_tenant, remote_parent, some_trace, soon,
    tenant,
};

/// Scenario: a library runs a span of its own by the global tracer inside of a request, where no global provider is set.
/// Guarantees: that span and what is below it are of the request's tracer, and what it carries out keeps the request open.
#[test]
fn global_tracer_is_that_of_the_request_all_the_way_down() {
    let service = Service::new();
    let carried = block_on(service.request("root", 1, async {
        let cx = active_span().context().clone();
        let below = RequestTracer::global().run("of library", &cx, async {
            in_child_sync("below", || {});
            Some(async { in_child_sync("later", || {}) }.carried())
        });
        below.await
    }));
    block_on(carried.unwrap());
    let tree = [
        " > root",
        "of library > below",
        "of library > later",
        "root > of library",
    ];
    assert_eq!(service.arrived().tree(), tree);
}

/// Scenario: a job is started by a global tracer with a handle, below one by a global tracer without, and carries work out.
/// Guarantees: the handle is the job's: what is carried keeps it open, and is not late.
#[test]
fn handle_of_a_tracer_is_not_lost_below_one_that_has_none() {
    let service = Service::new();
    let inner = RequestTracer::global().with_handle(service.handle());
    let named = RequestTracer::new(service.world.tracer.clone());
    let carried = block_on(named.run("outer", &tenant(1), async {
        let outer = active_span().context().clone();
        let job = inner.run("job", &outer, async {
            Some(async { in_child_sync("later", || {}) }.carried())
        });
        job.await
    }));
    block_on(carried.unwrap());
    let tree = [" > outer", "job > later", "outer > job"];
    assert_eq!(service.arrived().tree(), tree);
    assert_eq!(balanced(&service.world.telemetry).late.total(), 0);
}

/// Scenario: no span is active, and a library does all that it can.
/// Guarantees: the work runs and gives its values, and nothing else happens: no ids, no context, no span.
#[test]
fn nothing_happens_where_nobody_traces() {
    let _tenant = tenant(3).attach();
    let span = active_span();
    span.set_attribute("a", 1);
    span.set_attributes([KeyValue::new("b", 2)]);
    span.add_event("event", []);
    span.record_error("error");
    span.fail("failed");
    span.update_name("name");
    assert!(!span.is_active() && !span.is_recording());
    assert_eq!((span.trace_id(), span.span_id()), (None, None));
    assert!(!span.span_context().is_valid());
    let child = span.start_child("child");
    assert!(!child.is_active());
    assert_eq!(child.run_sync(current_tenant), Some(Tenant(3)));
    let work = in_child("async", async {
        yield_now().await;
        assert_eq!(current_tenant(), Some(Tenant(3)));
        in_child_sync("sync", || active_span().is_active())
    });
    assert!(!block_on(work));
    assert!(block_on(async { Err::<(), _>("kept") }.carried()).is_err());
}

/// Scenario: a request is not sampled.
/// Guarantees: its children are not either, but they are of its trace, which a caller further down can be told; nothing
/// is exported, counted, or kept.
#[test]
fn children_of_an_unsampled_request_are_not_recorded() {
    let exporter = Recorder::new();
    let processor = PerRequestSpanProcessor::builder(exporter.clone())
        .build()
        .unwrap();
    let telemetry = processor.handle();
    let provider = SdkTracerProvider::builder()
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOff)))
        .with_span_processor(processor)
        .build();
    let tracer = RequestTracer::new(provider.tracer("test")).with_handle(telemetry.clone());
    let carried = block_on(tracer.run("root", &tenant(1), async {
        let trace = active_span().trace_id().unwrap();
        assert!(active_span().is_active() && !active_span().is_recording());
        in_child("child", async {
            yield_now().await;
            active_span().set_attribute("a", 1);
            let span = active_span().span_context();
            assert_eq!((span.trace_id(), span.is_sampled()), (trace, false));
            assert_eq!(current_tenant(), Some(Tenant(1)));
        })
        .await;
        drop(in_child("cancelled", never()));
        Some(async { in_child_sync("later", || {}) }.carried())
    }));
    block_on(carried.unwrap());
    soon(telemetry.flush()).unwrap();
    let stats = balanced(&telemetry);
    assert_eq!((stats.ended, stats.exports, stats.traces), (0, 0, 0));
    assert!(exporter.spans().is_empty());
}

/// Scenario: a request continues a trace of a caller elsewhere, with a kind, attributes and a name of its own.
/// Guarantees: its root is below the caller's span, its children below it, all in the caller's trace, under its context.
#[test]
fn request_continues_a_remote_trace() {
    let service = Service::new();
    let trace = some_trace();
    let caller = remote_parent(trace);
    let cx = tenant(4).with_remote_span_context(caller.clone());
    let mut builder = SpanBuilder::from_name("root").with_kind(SpanKind::Server);
    builder.attributes = Some(vec![KeyValue::new("route", "/")]);
    let root = service.tracer.start(builder, &cx);
    assert_eq!(root.trace_id(), Some(trace));
    block_on(root.run(async {
        in_child("child", yield_now()).await;
        let builder = SpanBuilder::from_name("client").with_kind(SpanKind::Client);
        drop(active_span().start_child_with(builder));
    }));
    let arrived = service.arrived();
    let root = arrived.span("root");
    assert_eq!(
        (root.parent_span_id, root.parent_span_is_remote),
        (caller.span_id(), true)
    );
    assert_eq!(root.span_kind, SpanKind::Server);
    assert!(attribute(root, "route").is_some());
    let child = arrived.span("child");
    assert_eq!(child.span_context.trace_id(), trace);
    assert!(!child.parent_span_is_remote);
    assert_eq!(arrived.span("client").span_kind, SpanKind::Client);
    assert_eq!((arrived.tenant("root"), arrived.tenant("child")), (4, 4));
}

/// Scenario: only a caller elsewhere has a span, and nobody has a tracer.
/// Guarantees: the caller's trace is known here and in children, so that it can be logged and sent along.
#[test]
fn remote_trace_is_known_without_a_tracer() {
    let trace = some_trace();
    let cx = tenant(1).with_remote_span_context(remote_parent(trace));
    let _attached = cx.attach();
    assert!(active_span().is_active() && !active_span().is_recording());
    assert_eq!(active_span().trace_id(), Some(trace));
    let inside = in_child_sync("child", || (active_span().trace_id(), current_tenant()));
    assert_eq!(inside, (Some(trace), Some(Tenant(1))));
}

/// Scenario: requests of two providers, one inside of the other, and one of a plain tracer, which the context knows nothing of.
/// Guarantees: children are of the innermost request's own provider. Those of the plain one go to the global provider, and
/// are nobody's while there is none.
#[test]
fn children_are_of_the_provider_of_their_request() {
    let (a, b) = (Service::new(), Service::new());
    block_on(a.request("a", 1, async {
        let inner = b.tracer.run("b", &tenant(2), async {
            in_child("b's child", yield_now()).await;
        });
        tokio::join!(inner, in_child("a's child", yield_now()));
    }));
    let plain = a.world.start("plain", &tenant(3));
    let attached = plain.clone().attach();
    in_child_sync("nobody's", || assert!(!active_span().is_recording()));
    drop(attached);
    a.world.end(&plain);
    let (a, b) = (a.arrived(), b.arrived());
    assert_eq!(a.tree(), [" > a", " > plain", "a > a's child"]);
    assert_eq!(b.tree(), [" > b", "b > b's child"]);
    assert_eq!(a.span("a's child").instrumentation_scope.name(), "test");
    assert_eq!((a.tenant("a's child"), b.tenant("b's child")), (1, 2));
}

/// Scenario: spans of one attribute and one event, which they have already.
/// Guarantees: they end all the same and count what was dropped. The status of an error stays; the marks of one, and of a
/// cancelled work, do not fit, as the documentation says.
#[test]
fn marks_of_a_full_span_are_dropped() {
    let exporter = Recorder::new();
    let processor = PerRequestSpanProcessor::builder(exporter.clone())
        .build()
        .unwrap();
    let telemetry = processor.handle();
    let provider = SdkTracerProvider::builder()
        .with_max_attributes_per_span(1)
        .with_max_events_per_span(1)
        .with_span_processor(processor)
        .build();
    let tracer = RequestTracer::new(provider.tracer("test"));
    block_on(tracer.run("root", &Context::new(), async {
        let fill = || active_span().set_attribute("full", true);
        let cancelled = in_child("cancelled", async {
            fill();
            never().await;
        });
        let mut cancelled = Box::pin(cancelled);
        assert!(super::poll_once(&mut cancelled).is_pending());
        drop(cancelled);
        in_child_sync("failed", || {
            fill();
            active_span().record_error("one");
            active_span().record_error("two");
            Err::<(), _>("so")
        })
        .unwrap_err();
    }));
    soon(telemetry.flush()).unwrap();
    let arrived = Arrived(exporter.spans());
    let cancelled = arrived.span("cancelled");
    assert_eq!(cancelled.dropped_attributes_count, 1);
    assert!(attribute(cancelled, "full").is_some());
    let failed = arrived.span("failed");
    assert_eq!(failed.status, Status::error("so"));
    assert_eq!(
        (failed.dropped_attributes_count, failed.events.dropped_count),
        (1, 1)
    );
}

/// Scenario: the provider is shut down in the middle of a request.
/// Guarantees: the work goes on, with its values and the tenant's context, and nothing panics.
#[test]
fn work_goes_on_after_the_provider_is_shut_down() {
    let service = Service::of(World::new(Config::default()));
    let got = block_on(service.request("root", 1, async {
        in_child("before", yield_now()).await;
        service.world.provider.shutdown_with_timeout(SOON).unwrap();
        let work = async {
            yield_now().await;
            in_child_sync("deeper", current_tenant)
        };
        active_span().start_child("after").run(work.carried()).await
    }));
    assert_eq!(got, Some(Tenant(1)));
    assert_eq!(service.world.exporter.names(), ["before"]);
    assert!(service.world.stats().is_balanced());
}

/// Scenario: a request's spans are started by a tracer that records nothing and gives no ids.
/// Guarantees: there is no active span then, so that children do not make traces of their own once somebody records.
#[test]
fn span_without_ids_is_not_active() {
    let tracer = RequestTracer::new(opentelemetry::trace::noop::NoopTracer::new());
    block_on(tracer.run("root", &tenant(1), async {
        assert!(!active_span().is_active());
        assert_eq!(current_tenant(), Some(Tenant(1)));
        in_child_sync("child", || assert!(!active_span().is_active()));
    }));
}
