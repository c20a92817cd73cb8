//! Two requests in one process may carry the same trace id; neither is ever exported under the other's context (R1).

use opentelemetry::Context;
use opentelemetry::trace::{SpanId, TraceContextExt as _, TraceId};
use opentelemetry_per_request::{Config, LateReason};

use crate::support::exporter::late_mark;
use crate::support::{FALLBACK, Tenant, World, held_back, parent, some_trace, wait_until};

/// What each request does, in this order.
#[derive(Clone, Copy, Debug)]
enum Step {
    StartRoot,
    StartChild,
    EndChild,
    EndRoot,
}

const IN_ORDER: [Step; 4] = [
    Step::StartRoot,
    Step::StartChild,
    Step::EndChild,
    Step::EndRoot,
];
/// The child outlives its root.
const LATE_CHILD: [Step; 4] = [
    Step::StartRoot,
    Step::StartChild,
    Step::EndRoot,
    Step::EndChild,
];

/// All ways to merge `left[i]` steps of each request `i`: whose turn it is.
fn interleavings(left: &[usize]) -> Vec<Vec<usize>> {
    if left.iter().all(|steps| *steps == 0) {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for request in (0..left.len()).filter(|request| left[*request] > 0) {
        let mut rest = left.to_vec();
        rest[request] -= 1;
        for tail in interleavings(&rest) {
            all.push([vec![request], tail].concat());
        }
    }
    all
}

/// Runs the requests of tenants 1, 2, … in this order, all in one trace of their own.
fn run(world: &World, scripts: &[[Step; 4]], turns: &[usize]) {
    let trace = some_trace();
    let mut next = vec![0; scripts.len()];
    let mut roots = vec![Context::new(); scripts.len()];
    let mut children = roots.clone();
    for &request in turns {
        let number = request as u32 + 1;
        match scripts[request][next[request]] {
            Step::StartRoot => {
                roots[request] = world.continued(&number.to_string(), number, trace);
            }
            Step::StartChild => {
                children[request] = world.start(number.to_string(), &roots[request]);
            }
            Step::EndChild => world.end(&children[request]),
            Step::EndRoot => world.end(&roots[request]),
        }
        next[request] += 1;
    }
}

/// Everything so far was exported under the tenant that its name tells.
fn check_all(world: &World, spans: usize) {
    world.flush().unwrap();
    let all = world.exporter.spans();
    assert_eq!(all.len(), spans);
    for (span, tenant) in all {
        assert_eq!(tenant, Some(Tenant(span.name.parse().unwrap())));
        assert_eq!(late_mark(&span), None);
    }
    let stats = world.stats();
    assert_eq!((stats.late.total(), stats.traces), (0, 0));
}

/// Scenario: two requests with one trace id, their starts and ends interleaved in every order, under both triggers; a
/// child ends before its root, or after it.
/// Guarantees: each span leaves under the context of its own request, none is late, and nothing remains.
#[test]
fn two_requests_of_one_trace_never_mix_in_any_order() {
    let orders = interleavings(&[4, 4]);
    assert_eq!(orders.len(), 70);
    for config in [Config::default(), held_back()] {
        let world = World::new(config);
        let mut spans = 0;
        for scripts in [
            [IN_ORDER, IN_ORDER],
            [IN_ORDER, LATE_CHILD],
            [LATE_CHILD, LATE_CHILD],
        ] {
            for turns in &orders {
                run(&world, &scripts, turns);
                spans += 4;
            }
        }
        check_all(&world, spans);
    }
}

/// Scenario: three requests with one trace id, in every eleventh of all orders.
/// Guarantees: as for two.
#[test]
fn three_requests_of_one_trace_never_mix() {
    let orders = interleavings(&[4, 4, 4]);
    assert_eq!(orders.len(), 34_650);
    let world = World::new(Config::default());
    let mut spans = 0;
    for turns in orders.iter().step_by(11) {
        run(&world, &[IN_ORDER, LATE_CHILD, IN_ORDER], turns);
        spans += 6;
    }
    check_all(&world, spans);
}

/// A span whose parent is local and unknown to the processor.
fn start_orphan(world: &World, name: &str, trace: TraceId) -> Context {
    let unknown = parent(trace, SpanId::from(0xdead), false);
    world.start(
        name,
        &Context::new()
            .with_value(Tenant(66))
            .with_remote_span_context(unknown),
    )
}

/// Scenario: a span with an unknown local parent, in a trace of which one request or two are live.
/// Guarantees: it leaves under the fallback, marked `unknown_trace`: neither under a live request's context nor under
/// the one it was started in.
#[test]
fn span_that_cannot_be_assigned_leaves_under_the_fallback_context() {
    for requests in [1, 2] {
        let world = World::new(Config::default());
        let trace = some_trace();
        let live: Vec<_> = (1..=requests)
            .map(|n| world.continued("live", n, trace))
            .collect();
        let orphan = start_orphan(&world, "orphan", trace);
        let child = world.start("child of the orphan", &orphan);
        world.end(&child);
        world.end(&orphan);
        live.iter().for_each(|cx| world.end(cx));
        world.flush().unwrap();
        for name in ["orphan", "child of the orphan"] {
            let (span, tenant) = world.exporter.span(name);
            assert_eq!(tenant, Some(FALLBACK), "{name} beside {requests}");
            assert_eq!(late_mark(&span).as_deref(), Some("unknown_trace"));
        }
        assert_eq!(world.stats().late.by(LateReason::UnknownTrace), 2);
    }
}

/// Scenario: request A is over, B is live with the same trace id, and a child starts from A's root only now.
/// Guarantees: it leaves under the fallback context, not under B's.
#[test]
fn late_child_of_a_finished_request_does_not_leave_under_a_live_ones_context() {
    for b_starts_first in [true, false] {
        let world = World::new(Config::default());
        let trace = some_trace();
        let early_b = b_starts_first.then(|| world.continued("b", 2, trace));
        let a = world.continued("a", 1, trace);
        world.end(&a);
        let b = early_b.unwrap_or_else(|| world.continued("b", 2, trace));
        let late = world.start("late", &a);
        let _attached = b.clone().attach();
        world.end(&late);
        wait_until("the late span", || {
            world.exporter.names().contains(&"late".to_owned())
        });
        world.end(&b);
        world.flush().unwrap();
        let (span, tenant) = world.exporter.span("late");
        assert_eq!(tenant, Some(FALLBACK));
        assert_eq!(late_mark(&span).as_deref(), Some("unknown_trace"));
        assert_eq!(world.exporter.span("b").1, Some(Tenant(2)));
    }
}

/// Scenario: request A was evicted with open spans, and B continues the same trace id afterwards.
/// Guarantees: A's spans leave under the fallback context, not under B's, and B's leave under B's.
#[test]
fn late_span_of_an_evicted_request_does_not_leave_under_a_live_one_of_the_same_trace() {
    let world = World::new(Config::default().with_max_traces(1));
    let trace = some_trace();
    let a = world.continued("a", 1, trace);
    let a_child = world.start("a's child", &a);
    world.request("evicts a", &crate::support::tenant(3));
    let b = world.continued("b", 2, trace);
    let b_child = world.start("b's child", &b);
    for cx in [&a_child, &b_child, &a, &b] {
        world.end(cx);
    }
    world.flush().unwrap();
    for (name, tenant) in [
        ("a", FALLBACK),
        ("a's child", FALLBACK),
        ("b", Tenant(2)),
        ("b's child", Tenant(2)),
    ] {
        let (span, seen) = world.exporter.span(name);
        assert_eq!(seen, Some(tenant), "{name}");
        let mark = (tenant == FALLBACK).then_some("trace_evicted");
        assert_eq!(late_mark(&span).as_deref(), mark, "{name}");
    }
}

/// Scenario: a client sends the same trace id again and again; the requests overlap, so that the trace is never idle.
/// Guarantees: finished ones leave nothing behind, and the limit of spans per trace counts live requests only.
#[test]
fn endless_chain_of_overlapping_requests_of_one_trace_does_not_add_up() {
    let world = World::new(Config::default().with_max_spans_per_trace(4));
    let trace = some_trace();
    let mut last = world.continued("0", 0, trace);
    for number in 1..500 {
        let next = world.continued(&number.to_string(), number, trace);
        let child = world.start((number - 1).to_string(), &last);
        world.end(&last);
        world.end(&child);
        last = next;
    }
    world.end(&last);
    check_all(&world, 999);
    assert_eq!(world.stats().dropped.total(), 0);
}

/// Scenario: an id generator of the user's gives two live local roots of one trace the same span id.
/// Guarantees: nothing panics, the account stays balanced, and no span leaves under a context that may be another's.
#[test]
fn two_live_roots_with_the_same_ids_keep_the_account_balanced() {
    #[derive(Debug)]
    struct Same;
    impl opentelemetry_sdk::trace::IdGenerator for Same {
        fn new_trace_id(&self) -> TraceId {
            TraceId::from(7)
        }
        fn new_span_id(&self) -> SpanId {
            SpanId::from(7)
        }
    }
    let mut world = World::new(held_back());
    let processor =
        opentelemetry_per_request::PerRequestSpanProcessor::builder(world.exporter.clone())
            .with_config(held_back())
            .build()
            .unwrap();
    world.telemetry = processor.handle();
    world.provider = opentelemetry_sdk::trace::SdkTracerProvider::builder()
        .with_id_generator(Same)
        .with_span_processor(processor)
        .build();
    world.tracer = opentelemetry::trace::TracerProvider::tracer(&world.provider, "same");
    let first = world.start("span", &crate::support::tenant(1));
    let child = world.start("span", &first);
    world.end(&child);
    let second = world.start("span", &crate::support::tenant(2));
    for cx in [&first, &second] {
        world.end(cx);
    }
    world.flush().unwrap();
    let stats = world.stats();
    assert_eq!((stats.ended, stats.exported, stats.pending()), (3, 3, 0));
}

/// Scenario: an id generator of the user's repeats itself: a span whose parent nobody knows, and later one that is over the
/// limit of its trace, has the id of a span of a live request.
/// Guarantees: neither leaves under that request's context, although its id is among the request's.
#[test]
fn span_of_nobody_does_not_leave_under_the_context_of_a_live_span_of_the_same_id() {
    #[derive(Debug)]
    struct Repeated;
    impl opentelemetry_sdk::trace::IdGenerator for Repeated {
        fn new_trace_id(&self) -> TraceId {
            TraceId::from(7)
        }
        fn new_span_id(&self) -> SpanId {
            SpanId::from(7)
        }
    }
    for max_spans in [0, 1] {
        let exporter = crate::support::Recorder::new();
        let processor =
            opentelemetry_per_request::PerRequestSpanProcessor::builder(exporter.clone())
                .with_config(Config::default().with_max_spans_per_trace(max_spans))
                .with_fallback_context(crate::support::tenant(FALLBACK.0))
                .build()
                .unwrap();
        let telemetry = processor.handle();
        let provider = opentelemetry_sdk::trace::SdkTracerProvider::builder()
            .with_id_generator(Repeated)
            .with_span_processor(processor)
            .build();
        let world = World {
            tracer: opentelemetry::trace::TracerProvider::tracer(&provider, "repeated"),
            provider,
            telemetry,
            exporter,
        };
        let live = world.start("live", &crate::support::tenant(1));
        let orphan = start_orphan(&world, "orphan", TraceId::from(7));
        world.end(&orphan);
        world.end(&live);
        // Where there is a limit it may be counted as over it.
        let _ = world.flush();
        for (span, tenant) in world.exporter.spans() {
            assert_eq!(tenant, Some(FALLBACK), "{span:?}");
        }
        let stats = world.stats();
        assert_eq!((stats.ended, stats.traces, stats.pending()), (2, 0, 0));
    }
}
