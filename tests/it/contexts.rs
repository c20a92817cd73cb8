//! Exports run under the saved context of their request, with telemetry suppressed (R2, R5).

use opentelemetry::Context;
use opentelemetry::trace::{
    SpanContext, TraceContextExt as _, Tracer as _, TracerProvider as _, noop::NoopTracerProvider,
};
use opentelemetry_per_request::Config;
use opentelemetry_sdk::trace::SdkTracerProvider;

use crate::support::{
    Act, FALLBACK, Gate, Recorder, Tenant, Witness, World, parent, tenant, wait_until,
};

/// Scenario: requests of several tenants end on a thread where yet another tenant is current; some hang for a while.
/// Guarantees: both the call of `export` and what follows an await see the tenant of the spans' own request, suppressed.
#[test]
fn export_and_the_call_itself_run_under_the_saved_context_with_telemetry_suppressed() {
    let gate = Gate::default();
    let world = World::with_exporter(Config::default(), Recorder::always(Act::Hang(gate.clone())));
    let _ambient = tenant(99).attach();
    for number in 1..=5 {
        world.request(format!("{number}"), &tenant(number));
    }
    wait_until("all inside the exporter", || world.exporter.running() == 5);
    gate.open();
    world.flush().unwrap();
    for seen in world.exporter.seen() {
        let own = Tenant(seen.items[0].name.parse().unwrap());
        assert_eq!((seen.at_call, seen.after_await), (Some(own), Some(own)));
        assert!(seen.suppressed);
    }
}

/// Scenario: an exporter starts and ends spans of the very provider it exports for, in `export` and in its future.
/// Guarantees: no such span is exported, and the number of exports stays what the user's spans explain: no endless loop.
#[test]
fn exporter_that_traces_itself_makes_no_endless_loop() {
    let world = World::with_exporter(Config::default(), Recorder::new());
    let own = world.tracer.clone();
    let traced = move || {
        let root = own.start("exporter's own");
        let cx = Context::current_with_span(root);
        let _ = own.start_with_context("exporter's own child", &cx);
    };
    world.exporter.set_inside(move |_| traced());
    for number in 0..10 {
        world.request("user's", &tenant(number));
        world.flush().unwrap();
    }
    assert!(world.exporter.names().iter().all(|name| name == "user's"));
    let stats = world.stats();
    assert_eq!((stats.ended, stats.exports, stats.exported), (10, 10, 10));
}

/// Scenario: a projection keeps the tenant only, or panics, or smuggles in a live span.
/// Guarantees: the export sees what the projection kept; after a panic the request leaves under the fallback context and
/// is not late; what the projection did not keep is gone at once; a live span is not kept.
#[test]
fn context_projection_decides_what_is_saved() {
    let world = World::built(Config::default(), Recorder::new(), |builder| {
        builder.with_context_projection(|cx| match cx.get::<Tenant>() {
            Some(Tenant(13)) => panic!("a projection that panics"),
            Some(tenant) => Context::new().with_value(*tenant),
            None => cx.clone(),
        })
    });
    let (witness, alive) = Witness::new();
    let root = world.start("kept", &tenant(5).with_value(witness));
    let child = world.start("child", &root);
    world.end(&root);
    drop(root);
    drop(world.start("other", &tenant(13)));
    let open = child.span().span_context().clone();
    drop(child);
    world.flush().unwrap();
    assert!(open.is_valid());
    assert!(!alive.is_alive());
    assert_eq!(world.exporter.span("kept").1, Some(Tenant(5)));
    assert_eq!(world.exporter.span("child").1, Some(Tenant(5)));
    assert_eq!(world.exporter.span("other").1, Some(FALLBACK));
    assert_eq!(world.stats().late.total(), 0);

    let (witness, alive) = Witness::new();
    let root = world.start("open", &tenant(6).with_value(witness));
    let keep_open = world.start(
        "keeps the request live",
        &Context::new().with_remote_span_context(root.span().span_context().clone()),
    );
    drop(root);
    assert!(!alive.is_alive(), "the projection kept only the tenant");
    drop(keep_open);
}

/// Scenario: a request starts in a context that holds a span which is not recording and has no ids.
/// Guarantees: it is a local root like any other.
#[test]
fn root_inside_a_span_that_records_nothing_is_a_root() {
    let world = World::new(Config::default());
    let noop = NoopTracerProvider::new().tracer("noop").start("nothing");
    let cx = tenant(3).with_span(noop);
    assert_eq!(cx.span().span_context(), &SpanContext::NONE);
    world.request("root", &cx);
    world.flush().unwrap();
    assert_eq!(world.exporter.span("root").1, Some(Tenant(3)));
    assert_eq!(world.stats().late.total(), 0);
}

/// Scenario: a span starts under a live span of another provider, which this processor never saw.
/// Guarantees: it cannot be assigned, so it leaves under the fallback context, and the other provider's span still ends
/// when its last owner lets go.
#[test]
fn span_under_another_providers_span_cannot_be_assigned_and_keeps_nothing_alive() {
    let world = World::new(Config::default());
    let other = Recorder::new();
    let other_provider = SdkTracerProvider::builder()
        .with_simple_exporter(other.clone())
        .build();
    let foreign = tenant(3).with_span(other_provider.tracer("other").start("foreign"));
    let span = world.start("span", &foreign);
    let held = {
        let ids = foreign.span().span_context().clone();
        let ids = parent(ids.trace_id(), ids.span_id(), true);
        let cx = foreign.with_remote_span_context(ids);
        world.start("root", &cx)
    };
    drop(foreign);
    world.end(&span);
    drop(span);
    assert_eq!(other.names(), ["foreign"], "ended on drop");
    drop(held);
    world.flush().unwrap();
    assert_eq!(world.exporter.span("span").1, Some(FALLBACK));
    assert_eq!(world.exporter.span("root").1, Some(Tenant(3)));
}
