//! When spans leave, and how many together (R4).

use std::collections::HashSet;

use opentelemetry::trace::TraceContextExt as _;
use opentelemetry_per_request::{Config, PerRequestSpanProcessor};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    Sampler, SamplingDecision, SamplingResult, SdkTracerProvider, ShouldSample,
};

use crate::support::{Act, Gate, Recorder, Tenant, World, held_back, tenant, wait_until};

/// Scenario: a child ends while its root stays open, with the default trigger. Nobody flushes.
/// Guarantees: it reaches the exporter while the root is open.
#[test]
fn child_that_ended_reaches_the_exporter_while_its_root_is_open() {
    let world = World::new(Config::default());
    let root = world.start("root", &tenant(1));
    for name in ["first", "second"] {
        let child = world.start(name, &root);
        world.end(&child);
        wait_until("the child at the exporter", || {
            world.exporter.names().contains(&name.to_owned())
        });
    }
    assert!(root.span().is_recording());
    assert_eq!(world.stats().traces, 1);
}

/// Scenario: with `LocalRootEnd` and an open root, as many children end as a batch holds, and one more.
/// Guarantees: the full queue leaves at once, which nothing but its size can explain, and the rest stays.
#[test]
fn queue_that_reaches_max_batch_size_leaves_at_once() {
    let world = World::new(held_back().with_max_batch_size(3));
    let root = world.start("root", &tenant(1));
    for n in 0..7 {
        let child = world.start(format!("child {n}"), &root);
        world.end(&child);
    }
    let full = [
        "child 0", "child 1", "child 2", "child 3", "child 4", "child 5",
    ];
    world.wait_for_spans(&full);
    assert_eq!(world.stats().queued, 1);
    let sizes: Vec<_> = world
        .exporter
        .seen()
        .iter()
        .map(|s| s.items.len())
        .collect();
    assert_eq!(sizes, [3, 3]);
    world.end(&root);
    world.flush().unwrap();
    assert_eq!(world.exporter.seen()[2].items.len(), 2);
}

/// Scenario: an export of a request hangs, and a queue of the same request fills up.
/// Guarantees: a full queue never waits for an export under way, while a part-filled one does.
#[test]
fn full_queue_does_not_wait_for_an_export_in_flight() {
    let gate = Gate::default();
    let world = World::with_exporter(
        Config::default().with_max_batch_size(4),
        Recorder::always(Act::Hang(gate.clone())),
    );
    let root = world.start("root", &tenant(1));
    let end_some = |number: usize| {
        for _ in 0..number {
            let child = world.start("child", &root);
            world.end(&child);
        }
    };
    end_some(1);
    wait_until("the first export", || world.exporter.entered() == 1);
    end_some(3);
    assert_eq!(world.stats().queued, 3);
    end_some(1);
    wait_until("the full queue's export", || world.exporter.entered() == 2);
    assert_eq!(world.exporter.seen()[1].items.len(), 4);
    end_some(2);
    gate.open();
    wait_until("the rest, by itself", || world.stats().exported == 7);
}

/// Scenario: requests of many sizes, spans late and in time, with several batch sizes.
/// Guarantees: no export holds more spans than `max_batch_size`, and each span is exported exactly once.
#[test]
fn no_batch_is_larger_than_max_batch_size() {
    for max in [1, 2, 5, 64] {
        let world = World::new(
            Config::default()
                .with_max_batch_size(max)
                .with_max_traces(2),
        );
        let mut late = Vec::new();
        for size in [1, 2, 5, 6, 64, 65, 130] {
            let root = world.start("root", &tenant(1));
            late.push(world.start("left open", &root));
            for _ in 1..size {
                let child = world.start("child", &root);
                world.end(&child);
            }
            world.end(&root);
        }
        late.iter().for_each(|cx| world.end(cx));
        world.flush().unwrap();
        let seen = world.exporter.seen();
        assert!(
            seen.iter()
                .all(|seen| (1..=max).contains(&seen.items.len()))
        );
        let spans = world.exporter.spans();
        let ids: HashSet<_> = spans
            .iter()
            .map(|(s, _)| s.span_context.span_id())
            .collect();
        assert_eq!((spans.len(), ids.len()), (280, 280), "max_batch_size {max}");
        assert_eq!(world.stats().exports, seen.len() as u64);
        assert!(world.stats().late.total() > 0);
    }
}

/// Records spans whose name says so without sampling them.
#[derive(Clone, Debug)]
struct RecordOnly;

impl ShouldSample for RecordOnly {
    fn should_sample(
        &self,
        cx: Option<&opentelemetry::Context>,
        id: opentelemetry::trace::TraceId,
        name: &str,
        kind: &opentelemetry::trace::SpanKind,
        attributes: &[opentelemetry::KeyValue],
        links: &[opentelemetry::trace::Link],
    ) -> SamplingResult {
        let mut result = Sampler::AlwaysOn.should_sample(cx, id, name, kind, attributes, links);
        if name.contains("unsampled") {
            result.decision = SamplingDecision::RecordOnly;
        }
        result
    }
}

/// Scenario: a recorded but unsampled root with a sampled child, and the other way around; an unsampled late span.
/// Guarantees: only sampled spans are exported and counted, each under its request's context.
#[test]
fn unsampled_spans_are_neither_exported_nor_counted() {
    let exporter = Recorder::new();
    let processor = PerRequestSpanProcessor::builder(exporter.clone())
        .with_config(Config::default().with_max_traces(1))
        .build()
        .unwrap();
    let telemetry = processor.handle();
    let provider = SdkTracerProvider::builder()
        .with_sampler(RecordOnly)
        .with_span_processor(processor)
        .build();
    let tracer = opentelemetry::trace::TracerProvider::tracer(&provider, "test");
    let world = World {
        provider,
        telemetry,
        exporter,
        tracer,
    };
    let mut late = None;
    for (number, names) in [
        (1, ["unsampled root", "child"]),
        (2, ["root", "unsampled child"]),
    ] {
        let root = world.start(names[0], &tenant(number));
        let child = world.start(names[1], &root);
        world.end(&child);
        world.end(&root);
        let left = world.start("unsampled, left open", &tenant(3));
        late.get_or_insert(world.start("unsampled late", &left));
    }
    world.end(&late.unwrap());
    world.flush().unwrap();
    assert_eq!(world.exporter.names(), ["child", "root"]);
    assert_eq!(world.exporter.span("child").1, Some(Tenant(1)));
    assert_eq!(world.exporter.span("root").1, Some(Tenant(2)));
    let stats = world.stats();
    assert_eq!((stats.ended, stats.exported, stats.late.total()), (2, 2, 0));
}

/// Scenario: a provider with a resource of its own is built.
/// Guarantees: the exporter is told the resource before the first span.
#[test]
fn exporter_learns_the_resource_of_the_provider() {
    let exporter = Recorder::new();
    let processor = PerRequestSpanProcessor::builder(exporter.clone())
        .build()
        .unwrap();
    let _provider = SdkTracerProvider::builder()
        .with_resource(Resource::builder_empty().with_service_name("shop").build())
        .with_span_processor(processor)
        .build();
    let resource = exporter.resource().unwrap();
    let name = resource.get(&opentelemetry::Key::from_static_str("service.name"));
    assert_eq!(name, Some("shop".into()));
}
