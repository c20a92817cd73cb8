//! When traces do not fit: who goes, where the spans go, and what is said about it (R7, R8).

use opentelemetry::trace::{SpanId, TraceContextExt as _};
use opentelemetry_per_request::{Config, LateReason};

use crate::support::exporter::late_mark;
use crate::support::{
    FALLBACK, Recorder, Tenant, World, balanced, held_back, logs, parent, some_trace, tenant,
    wait_until,
};

/// Scenario: one trace more than fits, after the oldest was touched by a start, by an end, or not at all.
/// Guarantees: the least recently used trace is evicted, and only that one.
#[test]
fn least_recently_used_trace_is_evicted() {
    for (touch, evicted) in [
        ("none", 1),
        ("start of a child", 2),
        ("end of a child", 2),
        ("another root", 2),
    ] {
        let world = World::new(Config::default().with_max_traces(2));
        let first = world.continued("first", 1, some_trace());
        let child = world.start("child", &first);
        let second = world.start("second", &tenant(2));
        let trace = first.span().span_context().trace_id();
        let mut others = Vec::new();
        match touch {
            "start of a child" => others.push(world.start("touch", &first)),
            "end of a child" => world.end(&child),
            "another root" => others.push(world.continued("touch", 1, trace)),
            _ => {}
        }
        let third = world.start("third", &tenant(3));
        assert_eq!((world.stats().evicted_traces, world.stats().traces), (1, 2));
        for cx in others.iter().chain([&child, &first, &second, &third]) {
            world.end(cx);
        }
        world.flush().unwrap();
        for (name, number) in [("first", 1), ("second", 2), ("third", 3)] {
            let expected = if number == evicted {
                FALLBACK
            } else {
                Tenant(number)
            };
            assert_eq!(
                world.exporter.span(name).1,
                Some(expected),
                "{name} after {touch}"
            );
        }
        assert_eq!(world.stats().evicted_traces, 1);
    }
}

/// Scenario: a trace is evicted while spans of two of its requests are queued.
/// Guarantees: they leave at once, by themselves, each under its own context, unmarked.
#[test]
fn queued_spans_of_an_evicted_trace_leave_under_their_own_context() {
    let world = World::new(held_back().with_max_traces(1));
    let trace = some_trace();
    let roots = [
        world.continued("a", 1, trace),
        world.continued("b", 2, trace),
    ];
    for (root, name) in roots.iter().zip(["a's child", "b's child"]) {
        let child = world.start(name, root);
        world.end(&child);
    }
    assert_eq!(world.stats().queued, 2);
    let _new = world.start("new", &tenant(3));
    world.wait_for_spans(&["a's child", "b's child"]);
    for (name, number) in [("a's child", 1), ("b's child", 2)] {
        let (span, seen) = world.exporter.span(name);
        assert_eq!(seen, Some(Tenant(number)));
        assert_eq!(late_mark(&span), None);
    }
    assert_eq!(world.stats().late.total(), 0);
}

/// Scenario: spans end after their trace was evicted, or under an unknown parent, while another live request's context
/// is attached; one of them was only started after the eviction.
/// Guarantees: they leave, by themselves and promptly, under the fallback context; marked and counted by reason.
#[test]
fn late_span_of_an_evicted_trace_leaves_under_the_fallback_context() {
    for config in [Config::default(), held_back()] {
        let world = World::new(config.with_max_traces(1));
        let old = world.start("old", &tenant(1));
        let live = world.start("live", &tenant(2));
        let young = world.start("young", &old);
        let unknown = parent(some_trace(), SpanId::from(1), false);
        let lost = world.start("lost", &tenant(3).with_remote_span_context(unknown));
        let attached = live.clone().attach();
        for cx in [&old, &young, &lost] {
            world.end(cx);
        }
        drop(attached);
        world.wait_for_spans(&["lost", "old", "young"]);
        for (name, mark) in [
            ("old", "trace_evicted"),
            ("young", "trace_evicted"),
            ("lost", "unknown_trace"),
        ] {
            let (span, seen) = world.exporter.span(name);
            assert_eq!(seen, Some(FALLBACK), "{name}");
            assert_eq!(late_mark(&span).as_deref(), Some(mark), "{name}");
        }
        let late = world.stats().late;
        assert_eq!(late.by(LateReason::TraceEvicted), 2);
        assert_eq!(late.by(LateReason::UnknownTrace), 1);
        world.end(&live);
    }
}

/// Scenario: the attribute is switched off; and no fallback context is given at all.
/// Guarantees: a late span carries no mark but is counted; without a fallback it leaves under an empty context, also
/// when another request's is attached where it ends.
#[test]
fn late_attribute_can_be_switched_off_and_the_default_fallback_is_empty() {
    for mark in [true, false] {
        let exporter = Recorder::new();
        let inner = exporter.clone();
        let world = World::built(Config::default(), exporter, move |_| {
            opentelemetry_per_request::PerRequestSpanProcessor::builder(inner)
                .with_config(Config::default().with_max_traces(1))
                .with_late_attribute(mark)
        });
        let old = world.start("old", &tenant(1));
        let live = world.start("live", &tenant(2));
        let _attached = live.clone().attach();
        world.end(&old);
        world.flush().unwrap();
        let (span, seen) = world.exporter.span("old");
        assert_eq!(seen, None);
        assert_eq!(late_mark(&span).is_some(), mark);
        assert_eq!(world.stats().late.total(), 1);
    }
}

/// Scenario: a thousand late spans of one trace end one after the other, for each reason.
/// Guarantees: there is one warning, with target, name, reason and trace; the rest is said, with its number, at the end.
#[test]
fn late_spans_are_warned_about_at_a_limited_rate() {
    logs::listen();
    for reason in LateReason::ALL {
        let world = World::new(Config::default().with_max_traces(1));
        let trace = some_trace();
        let late: Vec<_> = match reason {
            LateReason::TraceEvicted => {
                let old = world.continued("old", 1, trace);
                let children = (1..1000).map(|_| world.start("late", &old));
                let late = [old.clone()].into_iter().chain(children).collect();
                world.request("evicts it", &tenant(2));
                late
            }
            _ => {
                let unknown = parent(trace, SpanId::from(1), false);
                let cx = tenant(1).with_remote_span_context(unknown);
                (0..1000).map(|_| world.start("late", &cx)).collect()
            }
        };
        let warnings = || logs::lines(|line| line.field("trace_id") == trace.to_string());
        let (first, rest) = late.split_at(500);
        first.iter().for_each(|cx| world.end(cx));
        wait_until("the warning", || !warnings().is_empty());
        // The processor looks for what to say more than once after the first half, and after the rest.
        for cx in rest {
            world.end(cx);
            world.flush().unwrap();
        }
        assert_eq!(world.stats().late.by(reason), 1000);
        let said = warnings();
        assert_eq!(said.len(), 1);
        assert_eq!(said[0].level, tracing::Level::WARN);
        assert_eq!(said[0].target, logs::TARGET);
        assert_eq!(said[0].event, "PerRequestSpanProcessor.LateSpans");
        assert_eq!(said[0].field("reason"), reason.as_str());
        let _ = world.provider.shutdown();
        let total = || -> u64 {
            warnings()
                .iter()
                .map(|l| l.field("spans").parse::<u64>().unwrap())
                .sum()
        };
        wait_until("the rest of the account", || total() >= 1000);
        assert!(warnings().len() <= 2, "{:?}", warnings());
    }
}

/// Scenario: many more evictions than are remembered, and then the spans of the oldest and the youngest end.
/// Guarantees: both leave under the fallback; the oldest has a reason that is still true.
#[test]
fn memory_of_evicted_traces_is_bounded() {
    let world = World::new(Config::default().with_max_traces(1));
    let oldest = world.start("oldest", &tenant(1));
    let mut youngest = oldest.clone();
    for _ in 0..3000 {
        youngest = world.start("youngest", &tenant(2));
    }
    let _last = world.start("last", &tenant(3));
    balanced(&world.telemetry);
    let before = world.stats();
    world.end(&oldest);
    world.end(&youngest);
    let late = world.stats().late;
    assert_eq!(
        late.by(LateReason::UnknownTrace) - before.late.by(LateReason::UnknownTrace),
        1
    );
    assert!(late.by(LateReason::TraceEvicted) > before.late.by(LateReason::TraceEvicted));
    world.flush().unwrap();
    assert_eq!(world.exporter.span("oldest").1, Some(FALLBACK));
    assert_eq!(world.stats().traces, 1);
}
