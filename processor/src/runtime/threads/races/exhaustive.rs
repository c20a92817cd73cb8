//! What loom tries every interleaving of. See the parent.

use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;

use super::{FlushError, Manner, Model, Shared, TIMEOUT, also, block_on, check, config, driver};
use crate::dispatch::Scope;
use crate::export::{AnyExporter, Export};
use crate::signal::{Items, Signal, Signals};
use crate::stats::DropReason;
use crate::sync::{Arc, Weak};

/// Scenario: with room for one trace, a span ends on one thread while another thread starts a request that evicts it, and
/// then one that carries its trace id.
/// Guarantees: it is exported once, under its own context if it ended first and under the fallback if it is late, never
/// under another request's; and the law holds at every moment.
#[test]
fn span_that_ends_while_its_trace_is_evicted_leaves_once_under_a_context_it_may_have() {
    check(|| {
        let model = Model::undriven(&config().with_max_traces(1), Manner::AtOnce, 1);
        model.start(1);
        model.start_child(1, 1);
        let evicts = also(&model, |model| {
            model.request(2);
            model.request(101);
        });
        model.end(1, 1);
        model.end(1, 0);
        evicts();
        assert_eq!(model.shut_down_driving(), Ok(()));
        let late = model.stats().late.total();
        assert_eq!(model.collector.under_fallback(), late);
        model.check(1);
    });
}

/// Scenario: a request ends while the driver goes to sleep. Nobody flushes, and no time passes.
/// Guarantees: the driver is woken, or has not gone to sleep: the request is exported.
#[test]
fn driver_never_sleeps_through_an_end() {
    check(|| {
        let model = Model::undriven(&config(), Manner::AtOnce, 1);
        let drives = also(&model, |model| driver::drive(&model.shared));
        model.request(1);
        model.collector.wait_until(|ids| ids.len() == 1);
        assert_eq!(model.shut_down(), Ok(()));
        drives();
        model.check(1);
    });
}

/// Scenario: a span of an open request ends on one thread while another one flushes.
/// Guarantees: a flush that says Ok covers each span whose end had returned before the flush began.
#[test]
fn flush_covers_what_ended_before_it_and_loses_nothing_that_ends_meanwhile() {
    check(|| {
        let model = Model::undriven(&config(), Manner::AtOnce, 1);
        model.start(1);
        model.start_child(1, 1);
        let ends = also(&model, |model| model.end(1, 1));
        let flushes = also(&model, |model| assert_eq!(model.flush(), Ok(())));
        ends();
        flushes();
        model.end(1, 0);
        assert_eq!(model.shut_down_driving(), Ok(()));
        model.check(1);
    });
}

/// Scenario: the last two spans of a request end at the same moment.
/// Guarantees: the request is released once, both leave under its context, and the context is dropped.
#[test]
fn last_two_ends_release_the_request_once() {
    check(|| {
        let model = Model::undriven(&config(), Manner::AtOnce, 1);
        model.start(1);
        model.start_child(1, 1);
        let ends = also(&model, |model| model.end(1, 1));
        model.end(1, 0);
        ends();
        assert_eq!(model.stats().traces, 0);
        assert_eq!(model.shut_down_driving(), Ok(()));
        assert_eq!(model.collector.under_fallback(), 0);
        model.check(1);
    });
}

/// Scenario: a child starts while the last open span of its request ends.
/// Guarantees: it belongs to the request, which then stays open for it, or it is late; nothing in between.
#[test]
fn child_that_starts_while_its_request_ends_is_its_own_or_late() {
    check(|| {
        let model = Model::undriven(&config(), Manner::AtOnce, 1);
        model.start(1);
        let child = also(&model, |model| {
            model.start_child(1, 1);
            model.end(1, 1);
        });
        model.end(1, 0);
        child();
        assert_eq!(model.stats().traces, 0);
        assert_eq!(model.shut_down_driving(), Ok(()));
        let late = model.stats().late.total();
        assert_eq!(model.collector.under_fallback(), late);
        model.check(1);
    });
}

/// Scenario: work that holds a request opens a span and lets go, while the root of the request ends.
/// Guarantees: the span is never late, and the context is dropped when both are done.
#[test]
fn what_is_held_open_is_never_late() {
    check(|| {
        let model = Model::undriven(&config(), Manner::AtOnce, 1);
        model.start(1);
        // The hold.
        model.start_child(1, 1);
        let work = also(&model, |model| {
            model.start_child(1, 2);
            model.end(1, 2);
            model.release(1, 1);
        });
        model.end(1, 0);
        work();
        assert_eq!(model.stats().traces, 0);
        assert_eq!(model.shut_down_driving(), Ok(()));
        assert_eq!(model.collector.under_fallback(), 0);
        model.check(1);
    });
}

/// Scenario: two requests that carry the same trace id start and end at the same moment.
/// Guarantees: each span leaves under the context of its own request, and none is late.
#[test]
fn requests_of_the_same_trace_id_are_never_mixed_up() {
    check(|| {
        let model = Model::undriven(&config(), Manner::AtOnce, 1);
        let other = also(&model, |model| {
            model.start(101);
            model.start_child(101, 1);
            model.end(101, 0);
            model.end(101, 1);
        });
        model.request(1);
        other();
        assert_eq!(model.shut_down_driving(), Ok(()));
        assert_eq!(model.collector.under_fallback(), 0);
        model.check(1);
    });
}

/// Scenario: room for one pending span, and two end at the same moment.
/// Guarantees: each is exported, or dropped and counted as `queue_full`; the law holds at every moment.
#[test]
fn two_ends_that_compete_for_the_last_room_are_both_accounted_for() {
    check(|| {
        let model = Model::undriven(&config().with_max_pending_spans(1), Manner::AtOnce, 1);
        let other = also(&model, |model| model.request(1));
        model.request(2);
        other();
        assert_eq!(model.stats().dropped.total(), 1);
        let lost = FlushError::Lost {
            failed: 0,
            dropped: 1,
        };
        assert_eq!(model.shut_down_driving(), Err(lost));
        model.check(1);
    });
}

/// Scenario: three requests leave at once through one slot, with two workers.
/// Guarantees: never more than one export at once, and the slot is handed over to the next.
#[test]
fn slot_is_never_taken_twice_and_always_handed_over() {
    check(|| {
        let model = Model::undriven(&config(), Manner::AtOnce, 2);
        for trace in 1..=3 {
            model.request(trace);
        }
        assert_eq!(model.flush(), Ok(()));
        assert_eq!(model.shut_down_driving(), Ok(()));
        model.check(1);
    });
}

/// Scenario: an export is woken from another thread while a worker polls it, puts it back, or waits for work.
/// Guarantees: it is polled again, and the flush that waits for it is answered.
#[test]
fn export_that_is_woken_at_any_moment_is_polled_again() {
    check(|| {
        let model = Model::undriven(&config(), Manner::Later, 1);
        model.request(1);
        assert_eq!(model.flush(), Ok(()));
        assert_eq!(model.shut_down_driving(), Ok(()));
        model.check(1);
    });
}

/// Scenario: a flush begins while another thread shuts down.
/// Guarantees: the flush covers what ended before it, or says that it came too late; the exporter is shut down once, after
/// its last export.
#[test]
fn flush_against_shutdown_is_true_or_too_late() {
    check(|| {
        let model = Model::undriven(&config(), Manner::AtOnce, 1);
        model.request(1);
        let flushes = also(&model, |model| {
            let flushed = model.flush();
            let possible = [Ok(()), Err(FlushError::AlreadyShutdown)];
            assert!(possible.contains(&flushed), "{flushed:?}");
        });
        assert_eq!(model.shut_down_driving(), Ok(()));
        flushes();
        model.check(1);
    });
}

/// Scenario: a log record is emitted in a request while the last span of that request ends.
/// Guarantees: it leaves once, under the context of the request, or late under the fallback; it is never lost, and the context
/// is dropped.
#[test]
fn record_that_is_emitted_while_its_request_ends_is_its_own_or_late() {
    check(|| {
        let model = Model::undriven(&config(), Manner::AtOnce, 1);
        model.join_logs(Manner::AtOnce);
        model.start(1);
        let emits = also(&model, |model| model.emit(1, 0));
        model.end(1, 0);
        emits();
        assert_eq!(model.stats().traces, 0);
        assert_eq!(model.shut_down_both_driving(Signal::Logs), [Ok(()), Ok(())]);
        assert_eq!(model.collectors[Signal::Logs].acknowledged(), [10]);
        model.check(1);
    });
}

/// Scenario: log records are shut down on one thread, spans on another, while something of both is pending.
/// Guarantees: both are exported, each exporter is shut down once, behind its last export, and the driver ends.
#[test]
fn two_signals_are_shut_down_at_once() {
    check(|| {
        let model = Model::undriven(&config(), Manner::AtOnce, 1);
        model.join_logs(Manner::AtOnce);
        model.start(1);
        model.emit(1, 0);
        model.end(1, 0);
        let other = also(&model, |model| {
            assert_eq!(model.shut_down_signal(Signal::Logs), Ok(()));
        });
        assert_eq!(model.shut_down_driving(), Ok(()));
        other();
        model.check(1);
    });
}

/// Scenario: a log record is emitted while log records are shut down, and spans go on.
/// Guarantees: the record is exported, or dropped as `already_shutdown`; the span is exported.
#[test]
fn record_against_the_shutdown_of_its_signal_is_accounted_for() {
    check(|| {
        let model = Model::undriven(&config(), Manner::AtOnce, 1);
        model.join_logs(Manner::AtOnce);
        model.start(1);
        let emits = also(&model, |model| model.emit(1, 0));
        // Its future is dropped: nobody hears, and it is done nevertheless.
        drop(model.shared.shutdown(Signal::Logs, TIMEOUT));
        model.end(1, 0);
        emits();
        assert_eq!(model.shut_down_driving(), Ok(()));
        let logs = model.stats().logs;
        let dropped = logs.dropped.by(DropReason::AlreadyShutdown);
        assert_eq!(logs.exported + dropped, 1, "{logs:?}");
        assert_eq!(model.stats().exported, 1);
        model.check(1);
    });
}

/// Scenario: log records join while the only other signal is shut down.
/// Guarantees: they are exported from then on, and shut down by themselves; or they are shut down already, and a record is
/// dropped. The driver ends in either case.
#[test]
fn signal_that_joins_during_the_shutdown_runs_or_is_shut_down() {
    check(|| {
        let model = Model::undriven(&config(), Manner::AtOnce, 1);
        let joins = also(&model, |model| {
            model.join_logs(Manner::AtOnce);
            model.emit(1, 0);
            // Its future is dropped: nobody hears, and it is done nevertheless.
            drop(model.shared.shutdown(Signal::Logs, TIMEOUT));
        });
        let done = model.shared.shutdown(Signal::Spans, TIMEOUT);
        driver::drive(&model.shared);
        drop(done);
        joins();
        let logs = model.stats().logs;
        let joined = model.collectors[Signal::Logs].shutdowns() as u64;
        assert_eq!(logs.exported, joined, "{logs:?}");
        let dropped = logs.dropped.by(DropReason::AlreadyShutdown);
        assert_eq!(dropped, 1 - joined, "{logs:?}");
        model.check(1);
    });
}

/// Scenario: two flushes of metrics begin at the same moment. The first collection finds all that there is.
/// Guarantees: both wait for what was found, whichever finds it.
#[test]
fn flush_of_metrics_waits_for_a_collection_that_is_under_way() {
    check(|| {
        let config = config();
        let model = Model::undriven(&config, Manner::AtOnce, 1);
        model.join_metrics(&config, Manner::AtOnce);
        let flush = |model: &Model| {
            let metrics = Signals::of(Signal::Metrics);
            let flushed = block_on(model.shared.flush(metrics, Scope::All, TIMEOUT));
            assert_eq!(flushed, Ok(()));
            let acknowledged = model.collectors[Signal::Metrics].acknowledged();
            assert_eq!(acknowledged.len(), 1, "flush said Ok without the metrics");
        };
        let flushes = also(&model, flush);
        flush(&model);
        flushes();
        assert_eq!(
            model.shut_down_both_driving(Signal::Metrics),
            [Ok(()), Ok(())]
        );
        model.check(1);
    });
}

/// Scenario: an exporter asks for numbers while it is given its resource, and another signal joins at that moment.
/// Guarantees: both go through.
#[test]
fn exporter_that_asks_back_while_another_joins_blocks_nobody() {
    check(|| {
        let model = Model::undriven(&config(), Manner::AtOnce, 1);
        let asks = Asks(Arc::downgrade(&model.shared));
        assert!(model.shared.join(Signal::Logs, Arc::new(asks)));
        let joins = also(&model, |model| {
            model.join_metrics(&config(), Manner::AtOnce)
        });
        let nobody = Resource::builder_empty().build();
        model.shared.set_resource(Signal::Logs, &nobody);
        joins();
        drop(model.shared.shutdown(Signal::Logs, TIMEOUT));
        assert_eq!(
            model.shut_down_both_driving(Signal::Metrics),
            [Ok(()), Ok(())]
        );
        model.check(1);
    });
}

/// An exporter that wants to know how its processor is.
#[derive(Debug)]
struct Asks(Weak<Shared>);

impl AnyExporter for Asks {
    fn export_under(self: Arc<Self>, _: Context, _: Items) -> Export {
        Box::pin(async { Ok(()) })
    }

    fn any_force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn any_shutdown(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }

    fn any_set_resource(&mut self, _: &Resource) {
        if let Some(shared) = self.0.upgrade() {
            shared.stats();
        }
    }
}
