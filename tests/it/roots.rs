//! What a local root is, and that a request leaves as soon as it is over.

use opentelemetry::Context;
use opentelemetry::trace::TraceContextExt as _;
use opentelemetry_per_request::{Config, FlushTrigger};

use crate::support::{Tenant, World, held_back, remote_parent, some_trace, tenant};

/// Scenario: a request without a parent, and one that continues somebody's trace, under both triggers. Nobody flushes.
/// Guarantees: both leave by themselves, whole, under their own context, and are no late spans.
#[test]
fn request_with_a_remote_parent_leaves_as_promptly_as_one_without() {
    for trigger in [FlushTrigger::NextTick, FlushTrigger::LocalRootEnd] {
        let world = World::new(Config::default().with_flush_trigger(trigger));
        let continued = tenant(2).with_remote_span_context(remote_parent(some_trace()));
        for (cx, names) in [
            (tenant(1), ["own root", "own child"]),
            (continued, ["continued root", "continued child"]),
        ] {
            let root = world.start(names[0], &cx);
            let child = world.start(names[1], &root);
            world.end(&child);
            world.end(&root);
        }
        world.wait_for_spans(&["own root", "own child", "continued root", "continued child"]);
        for (span, tenant) in world.exporter.spans() {
            let expected = if span.name.starts_with("own") { 1 } else { 2 };
            assert_eq!(tenant, Some(Tenant(expected)), "{trigger}: {}", span.name);
        }
        assert_eq!(world.stats().late.total(), 0, "{trigger}");
    }
}

/// Scenario: with `LocalRootEnd`, the root of a continued trace ends while a child is open, and the child ends later.
/// Guarantees: the end of the root is what sends the queue; the later child leaves at the next tick, under the same context.
#[test]
fn child_that_ends_after_its_root_leaves_under_the_context_of_its_request() {
    let world = World::new(held_back());
    let root = world.continued("root", 7, some_trace());
    let (early, late) = (world.start("early", &root), world.start("late", &root));
    world.end(&early);
    world.end(&root);
    world.wait_for_spans(&["early", "root"]);
    world.end(&late);
    world.wait_for_spans(&["early", "late", "root"]);
    assert_eq!(world.exporter.span("late").1, Some(Tenant(7)));
    assert_eq!(world.stats().late.total(), 0);
}

/// Scenario: a child starts from a parent that has ended, while the request has another open span.
/// Guarantees: it belongs to its parent's request.
#[test]
fn child_of_an_ended_parent_belongs_to_the_request_while_that_is_live() {
    let world = World::new(Config::default());
    let root = world.start("root", &tenant(1));
    let parent = world.start("parent", &root);
    world.end(&parent);
    let child = world.start("child", &parent);
    world.end(&root);
    world.end(&child);
    world.flush().unwrap();
    assert_eq!(world.exporter.span("child").1, Some(Tenant(1)));
    assert_eq!(world.stats().late.total(), 0);
}

/// Scenario: spans start with the ambient context of another request attached.
/// Guarantees: what counts is the context that a span is started in, not the one that is current.
#[test]
fn request_is_saved_from_the_context_it_starts_in_and_not_from_the_current_one() {
    let world = World::new(Config::default());
    let _other = tenant(99).attach();
    let root = world.start("root", &tenant(1));
    world.end(&root);
    let ambient = world.start("ambient", &Context::current());
    world.end(&ambient);
    world.flush().unwrap();
    assert_eq!(world.exporter.span("root").1, Some(Tenant(1)));
    assert_eq!(world.exporter.span("ambient").1, Some(Tenant(99)));
}
