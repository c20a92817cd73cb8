//! What leaves for the collector.

use opentelemetry::trace::{SpanId, TraceContextExt as _};
use opentelemetry_per_request::{OPEN_EVENT_NAME, OpenEvents};

use super::*;
use crate::support::{Tenant, tenant, wait_until};

/// Scenario: a span stays open for longer than the minimum age, in a request with a tenant.
/// Guarantees: one log record leaves under the tenant's context, with the real ids of the span, and when the span ends it is
/// exported as ever.
#[test]
fn open_span_is_told_of_by_a_log_record_with_its_own_ids() {
    let open = OpenWorld::new(OpenEvents::Logs, SOON_OLD);
    let root = open.world.start("request", &tenant(7));
    let child = open.world.start("step", &root);
    wait_until("both are told of", || open.told().len() == 2);
    for (log, seen) in open.logs.items() {
        let cx = if log.body() == "request" {
            &root
        } else {
            &child
        };
        let span = cx.span().span_context().clone();
        assert_eq!(log.ids(), Some((span.trace_id(), span.span_id())));
        assert_eq!(log.record.event_name(), Some(OPEN_EVENT_NAME));
        assert_eq!(state(&log), "open");
        assert_eq!(seen, Some(Tenant(7)));
    }
    open.world.end(&child);
    open.world.end(&root);
    open.world.flush().unwrap();
    assert_eq!(open.world.exporter.names(), ["request", "step"]);
    let stats = open.world.stats().open_events;
    assert_eq!((stats.opened, stats.sent, stats.elided), (2, 2, 0));
}

/// Scenario: a span stays open for longer than the minimum age, and pending spans are to tell of it.
/// Guarantees: a span of no length and with an id of its own leaves below it, and the real one when it ends.
#[test]
fn open_span_is_told_of_by_a_pending_span_below_it() {
    let open = OpenWorld::new(OpenEvents::PendingSpans, SOON_OLD);
    let root = open.world.start("request", &tenant(7));
    open.world.wait_for_spans(&["request"]);
    let (pending, seen) = open.world.exporter.span("request");
    let real = root.span().span_context().clone();
    assert_eq!(seen, Some(Tenant(7)));
    assert_eq!(pending.span_context.trace_id(), real.trace_id());
    assert_ne!(pending.span_context.span_id(), real.span_id());
    assert_eq!(pending.parent_span_id, real.span_id());
    assert_eq!(pending.start_time, pending.end_time);
    let text = |key| {
        let mut attributes = pending.attributes.iter();
        let found = attributes.find(|attribute| attribute.key.as_str() == key);
        found.map(|attribute| attribute.value.to_string())
    };
    assert_eq!(text("logfire.span_type").as_deref(), Some("pending_span"));
    let no_parent = SpanId::INVALID.to_string();
    assert_eq!(text("logfire.pending_parent_id"), Some(no_parent));
    open.world.end(&root);
    open.world.flush().unwrap();
    assert_eq!(open.world.exporter.names(), ["request", "request"]);
}

/// Scenario: spans end long before they are old enough.
/// Guarantees: nothing is told of them, and they are counted as elided.
#[test]
fn span_that_ends_early_is_not_told_of() {
    let open = OpenWorld::new(OpenEvents::Logs, NEVER_OLD);
    for _ in 0..3 {
        open.world.request("request", &tenant(7));
    }
    open.world.flush().unwrap();
    assert_eq!(open.told(), []);
    let stats = open.world.stats().open_events;
    assert_eq!((stats.opened, stats.sent, stats.elided), (3, 0, 3));
}

/// Scenario: a span gets another name, by our handle, after it was told of.
/// Guarantees: that is told at once, though the trigger waits for the root.
#[test]
fn rename_is_told_at_once() {
    let config = config(OpenEvents::Logs, SOON_OLD)
        .with_flush_trigger(opentelemetry_per_request::FlushTrigger::LocalRootEnd);
    let open = OpenWorld::built(config, Recorder::new(), |builder| builder);
    let root = open.world.start("request", &tenant(7));
    wait_until("it is told of", || open.told().len() == 1);
    {
        let _active = root.clone().attach();
        opentelemetry_per_request::active_span().update_name("GET /orders");
    }
    wait_until("the rename is told", || {
        open.told().last() == Some(&("rename".to_owned(), "GET /orders".to_owned()))
    });
    open.world.end(&root);
}

/// Scenario: the processor is shut down while a span is open, with and without the option to export it.
/// Guarantees: a last log record says so, with the reason, and the option exports the span with an error.
#[test]
fn span_that_is_open_at_the_shutdown_is_found() {
    for export in [false, true] {
        let config = config(OpenEvents::Logs, NEVER_OLD).with_export_unfinished(export);
        let open = OpenWorld::built(config, Recorder::new(), |builder| builder);
        let root = open.world.start("request", &tenant(7));
        open.world.provider.shutdown().unwrap();
        wait_until("the end is told", || open.told().len() == 1);
        let (log, seen) = open.logs.log("request");
        assert_eq!(state(&log), "unfinished");
        assert_eq!(
            log.attribute("per_request.unfinished").as_deref(),
            Some("shutdown")
        );
        assert_eq!(seen, Some(Tenant(7)));
        assert_eq!(open.world.exporter.names().len(), usize::from(export));
        drop(root);
    }
}
