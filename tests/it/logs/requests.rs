//! Whose a record is (R1, R5, R8).

use std::collections::BTreeMap;

use opentelemetry::logs::{LogRecord as _, Logger as _, LoggerProvider as _, Severity};
use opentelemetry::trace::{
    SpanId, SpanKind, TraceContextExt as _, TraceId, TraceState, Tracer as _, TracerProvider as _,
    noop::NoopTracerProvider,
};
use opentelemetry::{Context, InstrumentationScope, KeyValue, Value};
use opentelemetry_per_request::{Config, FlushTrigger, LateReason};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::trace::{
    Sampler, SamplingDecision, SamplingResult, SdkTracerProvider, ShouldSample,
};

use super::{LogWorld, ids, say};
use crate::support::exporter::late_mark;
use crate::support::{
    FALLBACK, LogRecorder, Recorder, Tenant, World, held_back, parent, remote_parent, some_trace,
    tenant, wait_until,
};

// ===== In a request =====

/// Scenario: records are emitted in a root, in a child, in the child when it has ended, and in the root when that has; with
/// both triggers.
/// Guarantees: each leaves under the context of the request, at every poll and with telemetry suppressed, names its span, and
/// is not late.
#[test]
fn record_leaves_under_the_context_of_the_request_of_its_span() {
    for config in [Config::default(), held_back()] {
        let logs = LogWorld::new(config);
        let root = logs.world.start("root", &tenant(1));
        logs.say_in(&root, "in the root");
        let child = logs.world.start("child", &root);
        logs.say_in(&child, "in the child");
        logs.world.end(&child);
        logs.say_in(&child, "in the child that has ended");
        let other = logs.world.start("other", &child);
        logs.world.end(&root);
        logs.say_in(&root, "in the root that has ended");
        logs.world.end(&other);
        logs.flush().unwrap();
        for (body, cx) in [
            ("in the root", &root),
            ("in the child", &child),
            ("in the child that has ended", &child),
            ("in the root that has ended", &root),
        ] {
            logs.assert_left(body, Some(Tenant(1)), None);
            logs.assert_names(body, cx);
        }
        for seen in logs.exporter.seen() {
            assert_eq!(seen.after_await, Some(Tenant(1)));
            assert!(seen.suppressed);
        }
        let stats = logs.stats();
        assert_eq!((stats.logs.received, stats.logs.exported), (4, 4));
        assert_eq!(stats.logs.late.total(), 0);
    }
}

/// Scenario: with `LocalRootEnd`, records and ended children wait under an open root; the records fill a batch, then the root
/// ends while a child is open, then that one ends.
/// Guarantees: records have a queue of their own, which leaves when it is full and when the root ends, and takes no span
/// along before that.
#[test]
fn records_have_a_queue_of_their_own_with_the_same_trigger() {
    let logs = LogWorld::new(held_back().with_max_batch_size(3));
    let root = logs.world.start("root", &tenant(1));
    let open = logs.world.start("open", &root);
    for n in 0..2 {
        let child = logs.world.start("child", &root);
        logs.world.end(&child);
        logs.say_in(&root, n.to_string());
    }
    let stats = logs.stats();
    assert_eq!((stats.queued, stats.logs.queued), (2, 2));
    logs.say_in(&root, "2");
    logs.wait_for_logs(&["0", "1", "2"]);
    assert_eq!(logs.exporter.seen().len(), 1, "one batch");
    assert_eq!(logs.stats().queued, 2);

    logs.say_in(&root, "3");
    assert_eq!(logs.stats().logs.queued, 1);
    logs.world.end(&root);
    logs.wait_for_logs(&["0", "1", "2", "3"]);
    logs.say_in(&open, "4");
    logs.wait_for_logs(&["0", "1", "2", "3", "4"]);
    logs.world.end(&open);
    logs.world.flush().unwrap();
    assert_eq!(logs.world.exporter.names().len(), 4);
    assert_eq!(logs.stats().logs.exports, 3);
}

/// Scenario: with `NextTick` a record is emitted in a request that stays open.
/// Guarantees: it arrives nevertheless.
#[test]
fn record_arrives_while_its_request_is_open() {
    let logs = LogWorld::new(Config::default());
    let root = logs.world.start("root", &tenant(1));
    logs.say_in(&root, "early");
    logs.wait_for_logs(&["early"]);
    assert_eq!(logs.world.exporter.entered(), 0);
    logs.world.end(&root);
}

/// Scenario: a request whose only telemetry is its root and many records, then it is over; with both triggers and small
/// batches.
/// Guarantees: what is queued when it is over leaves with its context, and the context is let go.
#[test]
fn request_that_is_over_takes_its_records_along_and_lets_its_context_go() {
    for trigger in [FlushTrigger::NextTick, FlushTrigger::LocalRootEnd] {
        for max in [1, 4, 64] {
            let config = Config::default()
                .with_flush_trigger(trigger)
                .with_max_batch_size(max);
            let logs = LogWorld::new(config);
            let (witness, alive) = crate::support::Witness::new();
            let root = logs.world.start("root", &tenant(1).with_value(witness));
            for n in 0..10 {
                logs.say_in(&root, n.to_string());
            }
            logs.world.end(&root);
            drop(root);
            logs.flush().unwrap();
            let batches = logs.exporter.seen();
            assert!(batches.iter().all(|seen| seen.items.len() <= max));
            assert_eq!(logs.exporter.bodies().len(), 10);
            logs.world.flush().unwrap();
            wait_until("the context is gone", || !alive.is_alive());
            assert_eq!(logs.stats().traces, 0);
        }
    }
}

/// Scenario: four threads with eight open requests each, of a tenant of their own; in turns, each request starts a child, and
/// emits a record in it and in the root. Some records are emitted by another thread than that of the request.
/// Guarantees: each record leaves under the tenant of its own request, and names its own span.
#[test]
fn records_of_interleaved_requests_on_several_threads_are_kept_apart() {
    const THREADS: u32 = 4;
    const REQUESTS: u32 = 8;
    const ROUNDS: u32 = 10;
    for config in [
        Config::default().with_max_batch_size(4),
        held_back().with_max_batch_size(3),
    ] {
        let logs = &LogWorld::new(config);
        let expected = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|thread| {
                    scope.spawn(move || {
                        let mut expected = Vec::new();
                        let numbers = (1..=REQUESTS).map(|n| thread * REQUESTS + n);
                        let requests: Vec<_> = numbers
                            .map(|n| (n, logs.world.start("root", &tenant(n))))
                            .collect();
                        for round in 0..ROUNDS {
                            for (n, root) in &requests {
                                let child = logs.world.start("child", root);
                                for (place, cx) in [("root", root), ("child", &child)] {
                                    let body = format!("{n} {round} {place}");
                                    match round % 3 {
                                        0 => std::thread::scope(|other| {
                                            other.spawn(|| logs.say_in(cx, &body));
                                        }),
                                        _ => logs.say_in(cx, &body),
                                    }
                                    expected.push((body, (Tenant(*n), ids(cx))));
                                }
                                logs.world.end(&child);
                            }
                        }
                        requests.iter().for_each(|(_, root)| logs.world.end(root));
                        expected
                    })
                })
                .collect();
            let done = threads.into_iter().map(|thread| thread.join().unwrap());
            done.flatten().collect::<BTreeMap<_, _>>()
        });
        logs.flush().unwrap();
        let arrived: BTreeMap<_, _> = logs
            .exporter
            .items()
            .into_iter()
            .map(|(log, tenant)| (log.body(), (tenant.unwrap(), log.ids().unwrap())))
            .collect();
        assert_eq!(arrived, expected);
        let stats = logs.stats();
        assert_eq!(stats.logs.exported, expected.len() as u64);
        assert_eq!(stats.logs.late.total(), 0);
    }
}

/// What a request of [`two_requests_of_one_trace_never_mix_their_records`] does, in this order.
#[derive(Clone, Copy, Debug)]
enum Step {
    StartRoot,
    Say,
    StartChild,
    EndRoot,
    SayInChild,
    EndChild,
}

const STEPS: [Step; 6] = [
    Step::StartRoot,
    Step::Say,
    Step::StartChild,
    Step::EndRoot,
    Step::SayInChild,
    Step::EndChild,
];

/// Scenario: two requests of one trace, in every order in which their steps can be taken.
/// Guarantees: each record leaves under its own request's context, and none is late.
#[test]
fn two_requests_of_one_trace_never_mix_their_records() {
    let logs = LogWorld::new(Config::default());
    let mut said = 0;
    // Whose turn it is: each bit is a step of one of them.
    let orders = (0u32..1 << 12).filter(|order| order.count_ones() == 6);
    for order in orders {
        let trace = some_trace();
        let mut next = [0; 2];
        let mut roots = [Context::new(), Context::new()];
        let mut children = roots.clone();
        for turn in 0..12 {
            let request = (order >> turn & 1) as usize;
            let number = request as u32 + 1;
            match STEPS[next[request]] {
                Step::StartRoot => roots[request] = logs.world.continued("root", number, trace),
                Step::Say => logs.say_in(&roots[request], number.to_string()),
                Step::StartChild => children[request] = logs.world.start("child", &roots[request]),
                Step::EndRoot => logs.world.end(&roots[request]),
                Step::SayInChild => logs.say_in(&children[request], number.to_string()),
                Step::EndChild => logs.world.end(&children[request]),
            }
            next[request] += 1;
        }
        said += 4;
    }
    logs.flush().unwrap();
    for (log, tenant) in logs.exporter.items() {
        assert_eq!(tenant, Some(Tenant(log.body().parse().unwrap())));
    }
    let stats = logs.stats();
    assert_eq!((stats.logs.exported, stats.logs.late.total()), (said, 0));
}

/// Scenario: a request is kept open by a hold that the handle of logs gave, beyond the end of its only span.
/// Guarantees: a record that is emitted meanwhile joins it.
#[test]
fn record_joins_a_request_that_is_kept_open() {
    let logs = LogWorld::new(held_back());
    let root = logs.world.start("root", &tenant(1));
    let hold = logs.telemetry.hold(&root);
    logs.world.end(&root);
    logs.say_in(&root, "meanwhile");
    drop(hold);
    logs.say_in(&root, "afterwards");
    logs.flush().unwrap();
    logs.assert_left("meanwhile", Some(Tenant(1)), None);
    logs.assert_left("afterwards", Some(FALLBACK), Some("unknown_trace"));
}

/// Scenario: a record with everything that one can have, from a logger with a name and a version, of a provider with a
/// resource.
/// Guarantees: the exporter gets all of it.
#[test]
fn exporter_gets_the_record_its_scope_and_the_resource() {
    let exporter = LogRecorder::new();
    let (world, processor) = World::joined(
        Config::default(),
        Recorder::new(),
        |b| b,
        |spans| spans.log_processor(exporter.clone()).unwrap(),
    );
    let telemetry = processor.handle();
    let resource = Resource::builder_empty().with_service_name("shop").build();
    let provider = SdkLoggerProvider::builder()
        .with_resource(resource.clone())
        .with_log_processor(processor)
        .build();
    assert_eq!(exporter.resource(), Some(resource));
    assert!(world.exporter.resource().is_some(), "of spans: its own");

    let scope = InstrumentationScope::builder("scope")
        .with_version("7")
        .build();
    let logger = provider.logger_with_scope(scope.clone());
    assert!(logger.event_enabled(Severity::Trace, "target", None));
    let mut record = logger.create_log_record();
    record.set_event_name("event");
    record.set_target("target");
    record.set_severity_number(Severity::Warn);
    record.set_severity_text("WARN");
    record.set_body("body".into());
    record.add_attribute("key", "value");
    logger.emit(record);
    crate::support::soon(telemetry.flush()).unwrap();

    let (log, _) = exporter.log("body");
    assert_eq!(log.scope, scope);
    assert_eq!(log.record.event_name(), Some("event"));
    assert_eq!(
        log.record.target().map(|t| t.to_string()).as_deref(),
        Some("target")
    );
    assert_eq!(log.record.severity_number(), Some(Severity::Warn));
    assert_eq!(log.record.severity_text(), Some("WARN"));
    assert_eq!(log.attribute("key").as_deref(), Some("value"));
    assert!(log.record.observed_timestamp().is_some());
    assert_eq!(log.record.attributes_iter().count(), 1);
}

// ===== Outside of any request =====

/// Scenario: records are emitted where nothing is active, and where only a remote parent is; with both triggers, while another
/// request is open.
/// Guarantees: they leave promptly, together, under the fallback context; with the ids that they had; not late, not marked.
#[test]
fn record_outside_of_any_request_leaves_under_the_fallback_context() {
    for config in [Config::default(), held_back()] {
        let logs = LogWorld::new(config);
        let _open = logs.world.start("open", &tenant(1));
        logs.say("nowhere");
        logs.say_in(&tenant(2), "in a context without a span");
        let remote = tenant(3).with_remote_span_context(remote_parent(some_trace()));
        logs.say_in(&remote, "under a remote parent");
        logs.wait_for_logs(&[
            "nowhere",
            "in a context without a span",
            "under a remote parent",
        ]);

        for body in logs.exporter.bodies() {
            logs.assert_left(&body, Some(FALLBACK), None);
        }
        assert_eq!(logs.exporter.log("nowhere").0.ids(), None);
        logs.assert_names("under a remote parent", &remote);
        let stats = logs.stats();
        assert_eq!((stats.logs.received, stats.logs.late.total()), (3, 0));
    }
}

/// Scenario: records are emitted in a span of a tracer that does nothing, and with ids that are none.
/// Guarantees: they are outside of any request, too.
#[test]
fn record_that_names_no_trace_is_outside_of_any_request() {
    let logs = LogWorld::new(Config::default());
    let noop = NoopTracerProvider::new().tracer("noop").start("nothing");
    logs.say_in(&tenant(4).with_span(noop), "in a span that is none");
    logs.say_of(TraceId::INVALID, SpanId::INVALID, "with no ids");
    logs.flush().unwrap();
    logs.assert_left("in a span that is none", Some(FALLBACK), None);
    logs.assert_left("with no ids", Some(FALLBACK), None);
    assert_eq!(logs.stats().logs.late.total(), 0);
}

/// Scenario: many records outside of any request, more than a batch holds.
/// Guarantees: no batch is larger than it may be.
#[test]
fn records_outside_of_any_request_leave_in_batches() {
    let logs = LogWorld::new(Config::default().with_max_batch_size(8));
    (0..100).for_each(|n| logs.say(n.to_string()));
    logs.flush().unwrap();
    assert_eq!(logs.exporter.bodies().len(), 100);
    let sizes = logs
        .exporter
        .seen()
        .into_iter()
        .map(|seen| seen.items.len());
    assert!(sizes.max().unwrap() <= 8);
}

/// Scenario: records under suppressed telemetry, in and outside of a request.
/// Guarantees: there are none.
#[test]
fn nothing_is_emitted_under_suppressed_telemetry() {
    let logs = LogWorld::new(Config::default());
    let root = logs.world.start("root", &tenant(1));
    let _suppressed = Context::enter_telemetry_suppressed_scope();
    logs.say("nowhere");
    logs.say_in(&root.with_telemetry_suppressed(), "in a request");
    assert_eq!(logs.stats().logs, Default::default());
}

// ===== Late =====

/// Scenario: records are emitted in a span whose trace was evicted, whose request is over, which was refused because its trace
/// is full, and that another provider has started; another request's context is around them. Marked and not.
/// Guarantees: each leaves under the fallback context, by itself and promptly; it is marked, if that is asked for, and
/// counted by reason, apart from late spans.
#[test]
fn record_whose_request_is_not_known_is_late() {
    for mark in [true, false] {
        let config = held_back().with_max_traces(2).with_max_spans_per_trace(2);
        let logs = LogWorld::built(
            config,
            Recorder::new(),
            LogRecorder::new(),
            Sampler::AlwaysOn,
            |builder| builder.with_late_attribute(mark),
        );
        let evicted = logs.world.start("evicted", &tenant(1));
        let over = logs.world.start("over", &tenant(2));
        logs.world.end(&over);
        let full = logs.world.start("full", &tenant(3));
        let _child = logs.world.start("child", &full);
        let refused = logs.world.start("refused", &full);
        let _live = logs.world.start("live", &tenant(4));
        assert_eq!(logs.stats().evicted_traces, 1);
        let other = SdkTracerProvider::builder().build();
        let foreign = tenant(5).with_span(other.tracer("other").start("foreign"));

        let all = [
            ("evicted", &evicted, "trace_evicted"),
            ("over", &over, "unknown_trace"),
            ("refused", &refused, "unknown_trace"),
            ("foreign", &foreign, "unknown_trace"),
        ];
        for (body, cx, _) in all {
            logs.say_in(cx, body);
        }
        logs.wait_for_logs(&["evicted", "over", "refused", "foreign"]);
        logs.flush().unwrap();
        for (body, cx, reason) in all {
            logs.assert_left(body, Some(FALLBACK), mark.then_some(reason));
            logs.assert_names(body, cx);
        }
        let stats = logs.stats();
        assert_eq!(stats.logs.late.by(LateReason::TraceEvicted), 1);
        assert_eq!(stats.logs.late.by(LateReason::UnknownTrace), 3);
        assert_eq!(stats.late.total(), 0, "no span is");
        assert_eq!(stats.logs.exported, 4);
    }
}

/// Scenario: a trace is evicted while records of two of its requests are queued.
/// Guarantees: they leave at once, each under its own context, unmarked.
#[test]
fn queued_records_of_an_evicted_trace_leave_under_their_own_context() {
    let logs = LogWorld::new(held_back().with_max_traces(1));
    let trace = some_trace();
    let roots = [1, 2].map(|n| logs.world.continued("root", n, trace));
    for (root, body) in roots.iter().zip(["one", "two"]) {
        logs.say_in(root, body);
    }
    assert_eq!(logs.stats().logs.queued, 2);
    let _new = logs.world.start("new", &tenant(3));
    logs.wait_for_logs(&["one", "two"]);
    logs.assert_left("one", Some(Tenant(1)), None);
    logs.assert_left("two", Some(Tenant(2)), None);
}

/// Scenario: a record in a request marks its trace as used, and another trace must go.
/// Guarantees: the least recently used one is evicted.
#[test]
fn record_marks_its_trace_as_used() {
    let logs = LogWorld::new(Config::default().with_max_traces(2));
    let first = logs.world.start("first", &tenant(1));
    let second = logs.world.start("second", &tenant(2));
    logs.say_in(&first, "used");
    let _third = logs.world.start("third", &tenant(3));
    logs.world.end(&first);
    logs.world.end(&second);
    logs.world.flush().unwrap();
    assert_eq!(late_mark(&logs.world.exporter.span("first").0), None);
    assert_eq!(
        late_mark(&logs.world.exporter.span("second").0).as_deref(),
        Some("trace_evicted")
    );
}

// ===== Not sampled =====

/// Drops spans of the name `dropped`, and records others of the name `unsampled` without sampling them.
#[derive(Clone, Debug)]
struct ByName;

impl ShouldSample for ByName {
    fn should_sample(
        &self,
        _parent: Option<&Context>,
        _trace: TraceId,
        name: &str,
        _kind: &SpanKind,
        _attributes: &[KeyValue],
        _links: &[opentelemetry::trace::Link],
    ) -> SamplingResult {
        SamplingResult {
            decision: match name {
                "dropped" => SamplingDecision::Drop,
                "unsampled" => SamplingDecision::RecordOnly,
                _ => SamplingDecision::RecordAndSample,
            },
            attributes: Vec::new(),
            trace_state: TraceState::NONE,
        }
    }
}

/// Scenario: records in spans that the sampler has dropped, of two tenants, in roots and in a child; with both triggers.
/// Guarantees: each leaves under the context that is current where it is emitted, by itself, and promptly; with its ids, and
/// not late.
#[test]
fn record_in_a_span_that_is_not_recorded_leaves_under_its_own_context_by_itself() {
    for config in [Config::default(), held_back()] {
        let logs = LogWorld::sampled(config, ByName);
        let one = logs.world.start("dropped", &tenant(1));
        let child = logs.world.start("dropped", &one);
        let two = logs.world.start("dropped", &tenant(2));
        let all = [
            ("a", &one, 1),
            ("b", &two, 2),
            ("c", &one, 1),
            ("d", &child, 1),
        ];
        for (body, cx, _) in all {
            logs.say_in(cx, body);
        }
        logs.wait_for_logs(&["a", "b", "c", "d"]);
        for (body, cx, number) in all {
            logs.assert_left(body, Some(Tenant(number)), None);
            logs.assert_names(body, cx);
        }
        assert_eq!(logs.exporter.seen().len(), 4, "a batch for each");
        let stats = logs.stats();
        assert_eq!(stats.logs.late.total(), 0);
        assert_eq!((stats.ended, stats.traces), (0, 0));
    }
}

/// Scenario: a record in an unrecorded span inside of a recorded request.
/// Guarantees: it leaves under the context that is current there, which has the request's values.
#[test]
fn record_in_an_unrecorded_child_of_a_request_leaves_under_the_values_of_that() {
    let logs = LogWorld::sampled(held_back(), ByName);
    let root = logs.world.start("root", &tenant(1));
    let child = logs.world.start("dropped", &root);
    logs.say_in(&child, "below");
    logs.wait_for_logs(&["below"]);
    logs.assert_left("below", Some(Tenant(1)), None);
    logs.assert_names("below", &child);
}

/// Scenario: a request that is recorded and not sampled, as some samplers make them.
/// Guarantees: its records join it: they leave together, under its context; not one of its spans does.
#[test]
fn records_of_a_request_that_is_not_sampled_join_it_all_the_same() {
    let logs = LogWorld::sampled(held_back(), ByName);
    let root = logs.world.start("unsampled", &tenant(1));
    logs.say_in(&root, "a");
    logs.say_in(&root, "b");
    assert_eq!(logs.stats().logs.queued, 2);
    logs.world.end(&root);
    logs.wait_for_logs(&["a", "b"]);
    logs.assert_left("a", Some(Tenant(1)), None);
    assert_eq!(logs.exporter.seen().len(), 1);
    logs.world.flush().unwrap();
    assert_eq!(logs.world.exporter.entered(), 0);
}

/// Scenario: a record in an unrecorded span; what is kept of a context is a projection, which panics for one tenant.
/// Guarantees: the record leaves under what the projection keeps, and under the fallback context where it panics; a live span in
/// the context is not kept.
#[test]
fn record_in_an_unrecorded_span_leaves_under_the_projection() {
    #[derive(Clone)]
    struct Other;
    let logs = LogWorld::built(
        Config::default(),
        Recorder::new(),
        LogRecorder::new(),
        ByName,
        |builder| {
            builder.with_context_projection(|cx| match cx.get::<Tenant>() {
                Some(Tenant(13)) => panic!("a projection that panics"),
                Some(_) if cx.get::<Other>().is_some() => tenant(99),
                _ => cx.clone(),
            })
        },
    );
    let projected = logs.world.start("dropped", &tenant(1).with_value(Other));
    let panics = logs.world.start("dropped", &tenant(13));
    logs.say_in(&projected, "projected");
    logs.say_in(&panics, "panics");
    logs.flush().unwrap();
    logs.assert_left("projected", Some(Tenant(99)), None);
    logs.assert_left("panics", Some(FALLBACK), None);
}

// ===== Explicit ids =====

/// Scenario: records are given the ids of a span of another live request, of one that is over, and of none that is known; all
/// in the context of a request of their own.
/// Guarantees: the first joins the request that it names; the others are late: never do they leave under the context around.
#[test]
fn record_that_is_given_ids_belongs_to_what_it_names() {
    let logs = LogWorld::new(held_back());
    let named = logs.world.start("named", &tenant(1));
    let child = logs.world.start("child", &named);
    let over = logs.world.start("over", &tenant(2));
    logs.world.end(&over);
    let around = logs.world.start("around", &tenant(3));
    {
        let _attached = around.clone().attach();
        let (trace, span) = ids(&child);
        logs.say_of(trace, span, "of another");
        let (trace, span) = ids(&over);
        logs.say_of(trace, span, "of one that is over");
        logs.say_of(some_trace(), SpanId::from(7), "of nobody");
        let (trace, _) = ids(&named);
        logs.say_of(
            trace,
            SpanId::from(7),
            "of a trace, but no span that is known",
        );
    }
    for cx in [&child, &named, &around] {
        logs.world.end(cx);
    }
    logs.flush().unwrap();
    logs.assert_left("of another", Some(Tenant(1)), None);
    logs.assert_names("of another", &child);
    for body in [
        "of one that is over",
        "of nobody",
        "of a trace, but no span that is known",
    ] {
        logs.assert_left(body, Some(FALLBACK), Some("unknown_trace"));
    }
}

/// Scenario: an unsampled span that is not this process's own is active, and a record is given the ids of an unsampled span of
/// another tenant, which is not active.
/// Guarantees: neither leaves under a context that is not its own.
#[test]
fn unsampled_ids_alone_prove_nothing() {
    let logs = LogWorld::sampled(Config::default(), ByName);
    let hidden = logs.world.start("dropped", &tenant(1));
    let around = logs.world.start("dropped", &tenant(2));
    {
        let _attached = around.clone().attach();
        let (trace, span) = ids(&hidden);
        logs.say_of(trace, span, "of one that is not active");
    }
    let remote = opentelemetry::trace::SpanContext::new(
        some_trace(),
        SpanId::from(7),
        opentelemetry::TraceFlags::default(),
        true,
        TraceState::NONE,
    );
    logs.say_in(
        &tenant(3).with_remote_span_context(remote),
        "of a remote parent",
    );
    logs.flush().unwrap();
    logs.assert_left(
        "of one that is not active",
        Some(FALLBACK),
        Some("unknown_trace"),
    );
    logs.assert_left("of a remote parent", Some(FALLBACK), None);
}

/// Scenario: a request continues a trace, and a record is emitted under its remote parent when the request is open, as code
/// does that kept the incoming context.
/// Guarantees: it leaves under the fallback context: more than one request may have that parent.
#[test]
fn record_under_the_remote_parent_of_a_live_request_is_not_the_requests() {
    let logs = LogWorld::new(held_back());
    let trace = some_trace();
    let incoming = tenant(1).with_remote_span_context(remote_parent(trace));
    let root = logs.world.start("root", &incoming);
    logs.say_in(&incoming, "outside");
    logs.wait_for_logs(&["outside"]);
    logs.assert_left("outside", Some(FALLBACK), None);
    logs.world.end(&root);
}

/// Scenario: a record is emitted under a local span context that nobody has seen start.
/// Guarantees: it is late.
#[test]
fn record_under_ids_that_claim_to_be_local_is_late() {
    let logs = LogWorld::new(Config::default());
    let claimed = parent(some_trace(), SpanId::from(7), false);
    logs.say_in(&tenant(1).with_remote_span_context(claimed), "claimed");
    logs.flush().unwrap();
    logs.assert_left("claimed", Some(FALLBACK), Some("unknown_trace"));
}

/// Scenario: a logger is used by a thread that knows no context, for a value of a record.
/// Guarantees: nothing but the mark is ever added to a record.
#[test]
fn only_the_mark_is_added_to_a_late_record() {
    let logs = LogWorld::new(Config::default());
    let over = logs.world.start("over", &tenant(1));
    logs.world.end(&over);
    {
        let _attached = over.attach();
        let mut record = logs.logger.create_log_record();
        record.set_body("late".into());
        record.add_attribute("key", "value");
        logs.logger.emit(record);
        say(&logs.logger, "bare");
    }
    logs.flush().unwrap();
    let (log, _) = logs.exporter.log("late");
    let keys: Vec<_> = log
        .record
        .attributes_iter()
        .map(|(key, _)| key.to_string())
        .collect();
    assert_eq!(keys, ["key", "per_request.late"]);
    let mark = log.attribute("per_request.late").map(Value::from);
    assert_eq!(mark, Some(Value::from("unknown_trace")));
    assert_eq!(
        logs.exporter.log("bare").0.record.attributes_iter().count(),
        1
    );
}
