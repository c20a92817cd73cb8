//! What is open when the processor is shut down is found, and nothing is told twice.

use std::time::SystemTime;

use opentelemetry::logs::Severity;
use opentelemetry::trace::{Span as _, Tracer as _, TracerProvider as _};
use opentelemetry::trace::{SpanBuilder, SpanId, SpanKind, Status, TraceContextExt as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_per_request::{DropReason, FlushError, Telemetry, UNFINISHED_ATTRIBUTE};
use opentelemetry_sdk::logs::SdkLoggerProvider;

use super::*;
use crate::support::{MetricRecorder, SOON, remote_parent, some_trace, soon, within};

/// Who shuts it down.
#[derive(Clone, Copy, Debug)]
enum By {
    Provider,
    Handle,
}

fn shut_down(open: &OpenWorld, by: By) -> Result<(), FlushError> {
    match by {
        By::Provider => {
            let provider = open.world.provider.clone();
            within(SOON, "shutdown", move || provider.shutdown()).unwrap();
            Ok(())
        }
        By::Handle => soon(open.world.telemetry.shutdown(SOON)),
    }
}

/// A request of this tenant from elsewhere, with an open child of another kind. Returns both.
fn open_request(open: &OpenWorld, number: u32) -> [Context; 2] {
    let start = |name: String, kind, key, parent: &Context| {
        let builder = SpanBuilder::from_name(name)
            .with_kind(kind)
            .with_attributes([KeyValue::new(key, i64::from(number))]);
        let span = open.world.tracer.build_with_context(builder, parent);
        parent.with_span(span)
    };
    let parent = tenant(number).with_remote_span_context(remote_parent(some_trace()));
    let root = start(
        format!("request {number}"),
        SpanKind::Server,
        "order",
        &parent,
    );
    let step = start(format!("step {number}"), SpanKind::Client, "row", &root);
    [root, step]
}

/// Scenario: several requests with open spans of some kinds, and one with a span that has ended, when the processor is shut down:
/// in both forms, with and without the option, by the provider and by the handle.
/// Guarantees: each open span is told of once, with all that it started with, the reason, and under its own request's context; with
/// the option each is exported once, with its own ids, as one that ended then with an error; a second shutdown adds nothing.
#[test]
fn what_is_open_at_the_shutdown_is_told_of_in_full() {
    for form in FORMS {
        for export in [false, true] {
            for by in [By::Provider, By::Handle] {
                let config = config(form, NEVER_OLD).with_export_unfinished(export);
                let open = OpenWorld::built(config, Recorder::new(), |builder| builder);
                let requests = [1, 2, 3].map(|number| open_request(&open, number));
                open.world.request("ended", &requests[0][1]);
                let before = SystemTime::now();
                assert_eq!(shut_down(&open, by), Ok(()));
                assert_eq!(shut_down(&open, By::Handle), Ok(()), "a second time");
                soon(open.processor.handle().shutdown(SOON)).unwrap();
                let what = format!("{form}, {export}, {by:?}");

                let logs = open.logs.items().len();
                let spans = open.world.exporter.spans();
                let pending = spans.iter().filter(|(span, _)| is_pending(span)).count();
                let real = spans.len() - pending;
                let expected = match (form, export) {
                    (OpenEvents::Logs, false) => [6, 0, 1],
                    (OpenEvents::Logs, true) => [6, 0, 7],
                    (_, false) => [0, 6, 1],
                    // The spans themselves say it.
                    (_, true) => [0, 0, 7],
                };
                assert_eq!([logs, pending, real], expected, "{what}");
                for (number, [root, step]) in (1..).zip(&requests) {
                    let parent = root.span().span_context().clone();
                    let remote = SpanId::from(0xfeed);
                    let root = Expected {
                        name: format!("request {number}"),
                        kind: SpanKind::Server,
                        attribute: ("order", number),
                        parent: remote,
                        cx: root,
                    };
                    let step = Expected {
                        name: format!("step {number}"),
                        kind: SpanKind::Client,
                        attribute: ("row", number),
                        parent: parent.span_id(),
                        cx: step,
                    };
                    for expected in [root, step] {
                        expected.check(&open, form, export, before);
                    }
                }
                let events = open.world.stats().open_events;
                assert_eq!((events.opened, events.unfinished), (7, 6), "{what}");
                assert_eq!(open.account(), [0, 7, 0, 0], "{what}");

                // They end after all, which nobody sees any more.
                for cx in requests.iter().flatten() {
                    cx.span().end();
                }
                let stats = open.world.stats();
                assert!(stats.is_balanced());
                assert_eq!(open.world.exporter.spans().len(), spans.len());
                assert_eq!(open.logs.items().len(), logs);
            }
        }
    }
}

struct Expected<'a> {
    name: String,
    kind: SpanKind,
    attribute: (&'static str, u32),
    parent: SpanId,
    cx: &'a Context,
}

impl Expected<'_> {
    fn check(&self, open: &OpenWorld, form: OpenEvents, export: bool, before: SystemTime) {
        let id = self.cx.span().span_context().clone();
        let seen_by = Some(Tenant(self.attribute.1));
        if form == OpenEvents::Logs {
            let (log, seen) = open.logs.log(&self.name);
            assert_eq!(seen, seen_by);
            assert_eq!(state(&log), "unfinished");
            assert_eq!(log.ids(), Some((id.trace_id(), id.span_id())));
            assert_eq!(log.record.severity_number(), Some(Severity::Warn));
            let says = |key| log.attribute(key);
            assert_eq!(says(UNFINISHED_ATTRIBUTE).as_deref(), Some("shutdown"));
            assert_eq!(says("span.parent_span_id"), Some(self.parent.to_string()));
            let (key, number) = self.attribute;
            assert_eq!(says(key), Some(format!("Int({number})")));
            let kind = format!("{:?}", self.kind).to_lowercase();
            assert_eq!(says("span.kind"), Some(kind));
            assert!(log.record.timestamp() >= Some(before));
        }
        let spans = open.world.exporter.spans();
        let mut named = spans.iter().filter(|(span, _)| span.name == self.name);
        if form == OpenEvents::Logs && !export {
            assert!(named.next().is_none());
            return;
        }
        let (span, seen) = named.next().unwrap();
        assert_eq!(*seen, seen_by);
        assert!(named.next().is_none());
        assert_eq!(span.span_context.trace_id(), id.trace_id());
        assert!(matches!(span.status, Status::Error { .. }), "{span:?}");
        assert_eq!(span.span_kind, self.kind);
        let says = |key| attribute(span, key);
        assert_eq!(says(UNFINISHED_ATTRIBUTE).as_deref(), Some("shutdown"));
        let (key, number) = self.attribute;
        assert_eq!(says(key), Some(number.to_string()));
        match export {
            true => {
                assert_eq!(span.span_context, id);
                assert_eq!(span.parent_span_id, self.parent);
                assert!(span.end_time >= before && span.start_time <= span.end_time);
                assert_eq!(says("logfire.span_type"), None);
            }
            false => {
                assert_ne!(span.span_context.span_id(), id.span_id());
                assert_eq!(span.parent_span_id, id.span_id());
                assert_eq!(span.start_time, span.end_time);
                let parent = self.parent.to_string();
                assert_eq!(says("logfire.pending_parent_id"), Some(parent));
            }
        }
    }
}

/// Scenario: spans that were told of as open are open at the shutdown.
/// Guarantees: that they will not end is told nevertheless, with the name that they have by then.
#[test]
fn span_that_was_told_of_as_open_is_told_of_as_unfinished_too() {
    for form in FORMS {
        let open = OpenWorld::new(form, SOON_OLD);
        let root = open.world.start("request", &tenant(1));
        wait_until("it is told of", || open.opened().len() == 1);
        {
            let _active = root.clone().attach();
            opentelemetry_per_request::active_span().update_name("GET /orders");
        }
        assert_eq!(shut_down(&open, By::Handle), Ok(()));
        soon(open.processor.handle().shutdown(SOON)).unwrap();
        match form {
            OpenEvents::Logs => {
                let told = ["open", "rename", "unfinished"].map(str::to_owned);
                let names = ["request", "GET /orders", "GET /orders"].map(str::to_owned);
                let expected: Vec<_> = told.into_iter().zip(names).collect();
                assert_eq!(open.told(), expected);
            }
            _ => assert_eq!(open.world.exporter.names(), ["GET /orders", "request"]),
        }
        assert_eq!(open.account(), [1, 0, 0, 0]);
        drop(root);
    }
}

/// Scenario: the option alone, without open events and without log records.
/// Guarantees: open spans are exported as ended ones; without the option there is nothing of them.
#[test]
fn unfinished_spans_are_exported_without_open_events_too() {
    for export in [false, true] {
        let world = World::new(Config::default().with_export_unfinished(export));
        let root = world.start("request", &tenant(1));
        let step = world.start("step", &root);
        world.provider.shutdown().unwrap();
        let expected: &[&str] = if export { &["request", "step"] } else { &[] };
        assert_eq!(world.exporter.names(), expected);
        for (span, seen) in world.exporter.spans() {
            assert_eq!(seen, Some(Tenant(1)));
            assert!(attribute(&span, UNFINISHED_ATTRIBUTE).is_some());
        }
        drop((root, step));
    }
}

/// Scenario: very many spans of one request are open at the shutdown.
/// Guarantees: all are told of, and exported, in batches that are not too large.
#[test]
fn very_many_unfinished_spans_leave_in_batches() {
    for form in FORMS {
        let config = config(form, NEVER_OLD).with_export_unfinished(true);
        let open = OpenWorld::built(config, Recorder::new(), |builder| builder);
        let root = open.world.start("request", &tenant(1));
        let steps: Vec<_> = (0..200).map(|_| open.world.start("step", &root)).collect();
        assert_eq!(shut_down(&open, By::Handle), Ok(()));
        soon(open.processor.handle().shutdown(SOON)).unwrap();
        let spans = open.world.exporter.seen().into_iter();
        let spans: Vec<_> = spans.map(|seen| seen.items.len()).collect();
        let logs: Vec<_> = open.logs.seen().iter().map(|s| s.items.len()).collect();
        assert!(spans.iter().all(|size| *size <= 64), "{form}: {spans:?}");
        assert!(logs.iter().all(|size| *size <= 64), "{form}: {logs:?}");
        assert_eq!(spans.iter().sum::<usize>(), 201);
        let told = if form == OpenEvents::Logs { 201 } else { 0 };
        assert_eq!(logs.iter().sum::<usize>(), told);
        drop((root, steps));
    }
}

/// Scenario: log records are shut down before spans are; spans are open, old and young.
/// Guarantees: what cannot be told is counted, as dropped open events and as dropped log records; spans are exported as ever.
#[test]
fn log_records_that_are_shut_down_first_lose_no_span() {
    let config = config(OpenEvents::Logs, SOON_OLD).with_export_unfinished(true);
    let open = OpenWorld::built(config, Recorder::new(), |builder| builder);
    let root = open.world.start("request", &tenant(1));
    wait_until("it is told of", || open.opened().len() == 1);
    soon(open.processor.handle().shutdown(SOON)).unwrap();
    let old = open.world.start("old", &root);
    wait_until("the next one is dropped", || open.account()[2] == 1);
    let ended = open.world.start("ended", &root);
    open.world.end(&ended);
    open.world.flush().unwrap();
    assert_eq!(shut_down(&open, By::Handle), Ok(()));
    let stats = open.world.stats();
    assert_eq!(stats.logs.dropped.by(DropReason::AlreadyShutdown), 2);
    assert_eq!(stats.logs.dropped.total(), 2);
    assert_eq!(open.opened().len(), 1);
    assert_eq!(open.ended(), ["ended", "old", "request"]);
    assert_eq!(stats.open_events.unfinished, 2);
    drop((root, old));
}

/// Scenario: the exporter of log records never answers, and the shutdown has little time; spans are open.
/// Guarantees: the shutdown of spans does not wait for it; that of log records ends by its deadline, and counts what is lost.
#[test]
fn exporter_of_records_that_never_answers_does_not_hold_up_the_shutdown_of_spans() {
    let gate = Gate::default();
    let open = OpenWorld::with_exporters(
        config(OpenEvents::Logs, NEVER_OLD).with_max_concurrent_exports(1),
        Recorder::new(),
        LogRecorder::always(Act::Hang(gate.clone())),
        |builder| builder,
    );
    let requests = [1, 2, 3].map(|number| open_request(&open, number));
    open.world.request("ended", &requests[0][1]);
    assert_eq!(shut_down(&open, By::Handle), Ok(()));
    assert_eq!(open.ended(), ["ended"]);
    let handle = open.processor.handle();
    let result = soon(handle.shutdown(Duration::from_millis(20)));
    assert!(matches!(result, Err(FlushError::Timeout(_))), "{result:?}");
    gate.open();
    wait_until("all are accounted for", || {
        balanced(&open.world.telemetry).logs.pending() == 0
    });
    let logs = open.world.stats().logs;
    assert_eq!(logs.received, 6);
    assert_eq!(logs.dropped.by(DropReason::ShutdownTimeout), 4);
    drop(requests);
}

/// Scenario: as many spans and log records are pending as may be, at an exporter that never answers, when the processor is shut
/// down with open spans.
/// Guarantees: what does not fit is counted and reported, and the bound holds.
#[test]
fn unfinished_spans_have_the_bounds_of_all_others() {
    let gate = Gate::default();
    let open = OpenWorld::with_exporters(
        config(OpenEvents::Logs, NEVER_OLD)
            .with_export_unfinished(true)
            .with_max_pending_spans(4)
            .with_max_pending_logs(2),
        Recorder::always(Act::Hang(gate.clone())),
        LogRecorder::always(Act::Hang(gate.clone())),
        |builder| builder,
    );
    for _ in 0..3 {
        open.world.request("ended", &tenant(1));
    }
    let spans: Vec<_> = (0..4)
        .map(|_| open.world.start("open", &tenant(2)))
        .collect();
    let handle = open.world.telemetry.clone();
    let shutdown = handle.shutdown(SOON);
    let stats = open.world.stats();
    assert_eq!((stats.pending(), stats.logs.pending()), (4, 2));
    assert_eq!(stats.dropped.by(DropReason::QueueFull), 3);
    assert_eq!(stats.logs.dropped.by(DropReason::QueueFull), 2);
    assert_eq!(stats.open_events.unfinished, 4);
    gate.open();
    let lost = FlushError::Lost {
        failed: 0,
        dropped: 3,
    };
    assert_eq!(soon(shutdown), Err(lost));
    drop(spans);
}

/// Scenario: the provider is dropped and never shut down, while a span is open.
/// Guarantees: the span owns the provider, so it ends as ever and is exported, and nothing is told of it as unfinished.
#[test]
fn provider_that_is_dropped_leaves_open_spans_their_end() {
    for form in FORMS {
        let config = config(form, NEVER_OLD).with_export_unfinished(true);
        let open = OpenWorld::built(config, Recorder::new(), |builder| builder);
        let root = open.world.start("request", &tenant(1));
        let OpenWorld {
            world,
            logs,
            processor,
        } = open;
        let World {
            provider,
            telemetry,
            exporter,
            tracer,
        } = world;
        drop((provider, tracer));
        assert_eq!(exporter.spans().len(), 0);
        drop(root);
        let (span, _) = exporter.span("request");
        assert_eq!(attribute(&span, UNFINISHED_ATTRIBUTE), None);
        drop(processor);
        assert_eq!(logs.items().len(), 0);
        let events = balanced(&telemetry).open_events;
        assert_eq!((events.elided, events.unfinished), (1, 0));
    }
}

/// Scenario: a processor is dropped, and not shut down, without a provider that could know of open spans.
/// Guarantees: nothing is told, and nothing hangs.
#[test]
fn processor_without_any_span_is_dropped_quietly() {
    for form in FORMS {
        let logs = LogRecorder::new();
        let exporter = Recorder::new();
        let processor =
            opentelemetry_per_request::PerRequestSpanProcessor::builder(exporter.clone())
                .with_config(config(form, NEVER_OLD).with_export_unfinished(true))
                .build()
                .unwrap();
        let log_processor = processor.log_processor(logs.clone()).unwrap();
        within(SOON, "dropping them", move || {
            drop(processor);
            drop(log_processor);
        });
        assert_eq!((exporter.entered(), logs.entered()), (0, 0));
    }
}

/// Scenario: all signals in one, with spans that are open: it is shut down as a whole.
/// Guarantees: the last events are delivered before it says that it is done, in both forms, with and without the option.
#[test]
fn shutdown_of_all_signals_delivers_what_is_told_of_open_spans() {
    for form in FORMS {
        for export in [false, true] {
            let (spans, logs) = (Recorder::new(), LogRecorder::new());
            let telemetry = Telemetry::builder()
                .with_span_exporter(spans.clone())
                .with_log_exporter(logs.clone())
                .with_metric_exporter(MetricRecorder::new())
                .with_config(config(form, NEVER_OLD).with_export_unfinished(export))
                .build()
                .unwrap();
            let tracer = telemetry.tracer_provider().tracer("test");
            let open: Vec<_> = (0..3)
                .map(|n| tracer.start_with_context("request", &tenant(n)))
                .collect();
            soon(telemetry.shutdown(SOON)).unwrap();
            let expected = match (form, export) {
                (OpenEvents::Logs, false) => (0, 3),
                (OpenEvents::Logs, true) => (3, 3),
                _ => (3, 0),
            };
            let arrived = (spans.spans().len(), logs.items().len());
            assert_eq!(arrived, expected, "{form}, {export}");
            for (log, seen) in logs.items() {
                assert_eq!(state(&log), "unfinished");
                assert!(matches!(seen, Some(Tenant(0..3))));
            }
            assert!(telemetry.stats().is_balanced());
            assert_eq!(telemetry.stats().open_events.unfinished, 3);
            soon(telemetry.shutdown(SOON)).unwrap();
            assert_eq!((spans.spans().len(), logs.items().len()), expected);
            drop(open);
        }
    }
}

/// Scenario: the providers are shut down one after the other, spans first, as they are when all of them are dropped.
/// Guarantees: that of log records delivers the last events.
#[test]
fn logger_provider_that_is_shut_down_after_spans_delivers_the_last_events() {
    let logs = LogRecorder::new();
    let (world, processor) = World::joined(
        config(OpenEvents::Logs, NEVER_OLD),
        Recorder::new(),
        |builder| builder,
        |processor| processor.log_processor(logs.clone()).unwrap(),
    );
    let loggers = SdkLoggerProvider::builder()
        .with_log_processor(processor)
        .build();
    let mut root = world.tracer.start_with_context("request", &tenant(1));
    world.provider.shutdown().unwrap();
    loggers.shutdown().unwrap();
    let (log, seen) = logs.log("request");
    assert_eq!(
        (state(&log).as_str(), seen),
        ("unfinished", Some(Tenant(1)))
    );
    root.end();
}
