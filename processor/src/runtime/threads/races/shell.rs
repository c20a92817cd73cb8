//! The whole native shell under shuttle: the driver, as many workers as it hires, and users. See the parent.

use std::pin::pin;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use super::{FlushError, Manner, Model, TIMEOUT, also, block_on, check, config, span_id};
use crate::dispatch::Scope;
use crate::signal::{Signal, Signals};
use crate::sync::races::clock;
use crate::sync::thread;

const SPANS: Signals = Signals::of(Signal::Spans);

/// A second. Longer than any look-around of the shell, shorter than its idle time.
const SECOND: Duration = Duration::from_secs(1);

/// Shorter than any deadline of an export.
const LOOK: Duration = Duration::from_millis(50);

/// Scenario: two requests end on two threads, nobody flushes, and no time passes.
/// Guarantees: the driver is woken, however the ends fall into its going to sleep, and both are exported.
#[test]
fn driver_never_sleeps_through_an_end() {
    check(|| {
        let model = Model::driven(&config(), Manner::AtOnce);
        let other = also(&model, |model| model.request(1));
        model.request(2);
        other();
        model.collector.wait_until(|ids| ids.len() == 2);
        assert_eq!(model.shut_down(), Ok(()));
        model.check(1);
    });
}

/// Scenario: requests end while a flush begins; exports are answered by other threads, two at a time.
/// Guarantees: an Ok covers what had ended; nothing is exported twice, or above the bound.
#[test]
fn flush_of_concurrent_exports_tells_the_truth() {
    check(|| {
        let model = Model::driven(&config().with_max_concurrent_exports(2), Manner::Later);
        let other = also(&model, |model| {
            model.request(1);
            model.request(2);
        });
        model.request(3);
        assert_eq!(model.flush(), Ok(()));
        other();
        assert_eq!(model.shut_down(), Ok(()));
        model.check(2);
    });
}

/// Scenario: two threads shut down at once while a third ends a span and a fourth flushes.
/// Guarantees: both shutdowns are answered after the exporter's, of which there is one; the span is exported, or dropped as
/// `already_shutdown`; and all threads of ours end.
#[test]
fn two_shutdowns_are_one() {
    check(|| {
        let model = Model::driven(&config(), Manner::AtOnce);
        let ends = also(&model, |model| model.request(1));
        let flushes = also(&model, |model| {
            let flushed = model.flush();
            assert!(
                !matches!(flushed, Err(FlushError::Timeout(_))),
                "{flushed:?}"
            );
        });
        let other = also(&model, |model| assert_no_deadline(model.shut_down()));
        assert_no_deadline(model.shut_down());
        other();
        ends();
        flushes();
        model.check(1);
    });
}

fn assert_no_deadline(result: Result<(), FlushError>) {
    // A span that came too late is a loss to be reported.
    let possible = matches!(
        result,
        Ok(())
            | Err(FlushError::Lost {
                failed: 0,
                dropped: 1
            })
    );
    assert!(possible, "{result:?}");
}

/// Scenario: an export has failed, and a flush is dropped while it is about to be told.
/// Guarantees: the loss is told to whoever listens, exactly once: to that flush, or to the next.
#[test]
fn loss_is_reported_until_somebody_has_heard() {
    check(|| {
        let model = Model::driven(&config(), Manner::Refused);
        model.request(1);
        let lost = Err(FlushError::Lost {
            failed: 1,
            dropped: 0,
        });
        let heard = poll_twice(model.shared.flush(SPANS, Scope::All, TIMEOUT));
        let next = block_on(model.shared.flush(SPANS, Scope::All, TIMEOUT));
        match heard {
            None => assert_eq!(next, lost),
            Some(heard) => assert_eq!((heard, next), (lost, Ok(()))),
        }
        assert_eq!(model.shut_down(), Ok(()));
        model.check(1);
    });
}

/// Polls, lets others go first, polls again, and drops it.
fn poll_twice<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut context = TaskContext::from_waker(Waker::noop());
    for _ in 0..2 {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Some(output);
        }
        thread::yield_now();
    }
    None
}

/// Scenario: spans of an open request end while an export of that request is under way, so they wait for it (R4).
/// Guarantees: they leave when it is done, without a flush and without time passing.
#[test]
fn queue_that_waits_for_an_export_of_its_request_leaves_after_it() {
    check(|| {
        let model = Model::driven(&config(), Manner::Later);
        model.start(1);
        for child in 1..=3 {
            model.start_child(1, child);
        }
        let ends = also(&model, |model| model.end(1, 1));
        model.end(1, 2);
        model.end(1, 3);
        ends();
        model.collector.wait_until(|ids| ids.len() == 3);
        model.end(1, 0);
        assert_eq!(model.shut_down(), Ok(()));
        model.check(1);
    });
}

/// Scenario: an export is answered and woken at the moment when its deadline passes.
/// Guarantees: it is exported or timed out, once; its slot is free again; and the next request is exported.
#[test]
fn deadline_against_answer_is_accounted_once_and_frees_the_slot() {
    check(|| {
        let model = Model::driven(&config(), Manner::Later);
        model.request(1);
        while model.stats().in_flight + model.stats().exported == 0 {
            thread::yield_now();
        }
        clock::pass(TIMEOUT);
        model.request(2);
        model
            .collector
            .wait_until(|ids| ids.contains(&span_id(2, 0)));
        let _ = model.shut_down();
        model.check(1);
    });
}

/// Scenario: nothing is pending, so the driver sleeps without a limit; a flush hangs in the exporter's own.
/// Guarantees: the driver learns of the flush's deadline, and the flush is told when it has passed.
#[test]
fn deadline_of_a_flush_is_kept_by_a_driver_that_slept_for_good() {
    check(|| {
        let model = Model::driven(&config(), Manner::FlushBlocks);
        let done = model.shared.flush(SPANS, Scope::All, SECOND);
        let waits = also(&model, move |_| {
            assert_eq!(block_on(done), Err(FlushError::Timeout(SECOND)));
        });
        clock::pass(SECOND);
        waits();
        model.request(1);
        while model.collector.acknowledged().is_empty() {
            clock::pass(LOOK);
            thread::yield_now();
        }
        assert_eq!(model.shut_down(), Ok(()));
        model.check(1);
    });
}

/// Scenario: an exporter that never answers; the shutdown's deadline passes, and then the export's.
/// Guarantees: what waits is dropped, what is in flight times out, the exporter is shut down after that, and all threads end.
#[test]
fn shutdown_ends_even_when_no_export_does() {
    check(|| {
        let model = Model::driven(&config(), Manner::Never);
        model.request(1);
        model.request(2);
        let done = model.shared.shutdown(Signal::Spans, SECOND);
        let waits = also(&model, move |_| {
            assert_eq!(block_on(done), Err(FlushError::Timeout(SECOND)));
        });
        clock::pass(SECOND);
        waits();
        while model.collector.shutdowns() == 0 {
            clock::pass(TIMEOUT);
            thread::yield_now();
        }
        model.check(1);
    });
}

/// Scenario: two shutdowns with deadlines of their own, one export that never ends, and one that waits for its slot.
/// Guarantees: each is told at its own deadline, and what waits is dropped at the later one.
#[test]
fn shutdown_with_more_time_is_not_cut_short_by_another() {
    check(|| {
        let model = Model::driven(&config(), Manner::Never);
        model.request(1);
        model.request(2);
        let both =
            [SECOND, 10 * SECOND].map(|time| (time, model.shared.shutdown(Signal::Spans, time)));
        for (dropped, (time, done)) in (0..).zip(both) {
            let waits = also(&model, move |_| {
                assert_eq!(block_on(done), Err(FlushError::Timeout(time)));
            });
            clock::pass(time);
            waits();
            assert_eq!(model.stats().dropped.total(), dropped);
        }
        while model.collector.shutdowns() == 0 {
            clock::pass(TIMEOUT);
            thread::yield_now();
        }
        model.check(1);
    });
}

/// Scenario: the shutdown's deadline passes while exports are being answered.
/// Guarantees: each span is exported, or dropped as `shutdown_timeout`; the exporter is shut down once, behind them.
#[test]
fn deadline_of_a_shutdown_against_its_last_export_loses_no_count() {
    check(|| {
        let model = Model::driven(&config(), Manner::Later);
        model.request(1);
        model.request(2);
        let done = model.shared.shutdown(Signal::Spans, SECOND);
        let waits = also(&model, move |_| {
            let _ = block_on(done);
        });
        clock::pass(SECOND);
        waits();
        // It answers when the exporter is shut down, if that is still to come.
        let _ = model.shut_down();
        model.check(1);
    });
}

/// Scenario: the only worker has been idle for so long that it leaves, at the moment when a request ends.
/// Guarantees: the request is exported, by that worker or by another.
#[test]
fn worker_that_leaves_takes_no_summons_with_it() {
    check(|| {
        let model = Model::driven(&config(), Manner::AtOnce);
        model.request(1);
        model.collector.wait_until(|ids| ids.len() == 1);
        let ends = also(&model, |model| model.request(2));
        clock::pass(10 * SECOND);
        ends();
        model.collector.wait_until(|ids| ids.len() == 2);
        assert_eq!(model.shut_down(), Ok(()));
        model.check(1);
    });
}

/// Scenario: an export blocks its thread until another one is acknowledged, with two slots; time passes.
/// Guarantees: another worker is called, so the other one is exported.
#[test]
fn export_that_blocks_holds_up_no_other() {
    check(|| {
        let model = Model::driven(
            &config().with_max_concurrent_exports(2),
            Manner::FirstBlocks,
        );
        model.request(1);
        let other = also(&model, |model| model.request(2));
        while model.collector.acknowledged().len() < 2 {
            clock::pass(LOOK);
            thread::yield_now();
        }
        other();
        assert_eq!(model.shut_down(), Ok(()));
        model.check(2);
    });
}

/// Scenario: two threads block, one in a flush and one in a shutdown.
/// Guarantees: both are answered.
#[test]
fn blocking_calls_are_answered() {
    check(|| {
        let model = Model::driven(&config(), Manner::Later);
        model.request(1);
        let flushes = also(&model, |model| {
            let flushed = model.shared.flush_blocking(SPANS, TIMEOUT);
            let possible = [Ok(()), Err(FlushError::AlreadyShutdown)];
            assert!(possible.contains(&flushed), "{flushed:?}");
        });
        assert_eq!(
            model.shared.shutdown_blocking(Signal::Spans, TIMEOUT),
            Ok(())
        );
        flushes();
        model.check(1);
    });
}

/// Scenario: a request ends, so the driver collects metrics, while somebody flushes them.
/// Guarantees: an Ok covers what was measured before, whoever has collected it; the driver ends.
#[test]
fn flush_of_metrics_covers_what_the_driver_has_just_collected() {
    check(|| {
        let config = config();
        let model = Model::driven(&config, Manner::AtOnce);
        model.join_metrics(&config, Manner::Later);
        let ends = also(&model, |model| model.request(1));
        let metrics = Signals::of(Signal::Metrics);
        let flushed = block_on(model.shared.flush(metrics, Scope::All, TIMEOUT));
        assert_eq!(flushed, Ok(()));
        let acknowledged = model.collectors[Signal::Metrics].acknowledged();
        assert_eq!(acknowledged.len(), 1, "flush said Ok without the metrics");
        ends();
        model.measure();
        assert_eq!(model.shut_down_signal(Signal::Metrics), Ok(()));
        let acknowledged = model.collectors[Signal::Metrics].acknowledged();
        assert_eq!(
            acknowledged.len(),
            2,
            "shutdown said Ok without the metrics"
        );
        assert_eq!(model.shut_down(), Ok(()));
        model.check(1);
    });
}

/// Scenario: nobody flushes and no time passes; a request ends for the first time since metrics are read, and nothing of it
/// is exported, because it is not sampled.
/// Guarantees: the driver is woken, and what was measured is exported.
#[test]
fn driver_never_sleeps_through_a_time_to_collect() {
    check(|| {
        let config = config();
        let model = Model::driven(&config, Manner::AtOnce);
        model.join_metrics(&config, Manner::AtOnce);
        model.start(1);
        model.end_unsampled(1, 0);
        model.collectors[Signal::Metrics].wait_until(|ids| ids.len() == 1);
        assert_eq!(model.shut_down_signal(Signal::Metrics), Ok(()));
        assert_eq!(model.shut_down(), Ok(()));
        model.check(1);
    });
}

/// Scenario: a request ends before it is time to collect metrics again, and then nothing happens but that time passes.
/// Guarantees: the driver wakes up for it, and what was measured is exported.
#[test]
fn driver_wakes_up_when_it_is_time_to_collect() {
    check(|| {
        let config = config().with_metric_interval(SECOND);
        let model = Model::driven(&config, Manner::AtOnce);
        model.join_metrics(&config, Manner::AtOnce);
        let metrics = model.collectors[Signal::Metrics].clone();
        model.request(1);
        metrics.wait_until(|ids| ids.len() == 1);
        model.measure();
        let ends = also(&model, |model| model.request(2));
        clock::pass(SECOND);
        ends();
        // The time may have passed before the request was over, but not before the driver slept.
        clock::pass(SECOND);
        metrics.wait_until(|ids| ids.len() == 2);
        assert_eq!(model.shut_down_signal(Signal::Metrics), Ok(()));
        assert_eq!(model.shut_down(), Ok(()));
        model.check(1);
    });
}

/// Scenario: log records and spans are shut down on two threads, while a third emits a record and a fourth flushes everything.
/// Guarantees: both shutdowns are answered behind their exporter's, of which there is one each; everything is exported, or
/// dropped as `already_shutdown`; and all threads of ours end.
#[test]
fn shutdowns_of_two_signals_do_not_meet() {
    check(|| {
        let model = Model::driven(&config(), Manner::Later);
        model.join_logs(Manner::Later);
        model.start(1);
        let emits = also(&model, |model| {
            model.emit(1, 0);
            model.end(1, 0);
        });
        let flushes = also(&model, |model| {
            let flushed = block_on(model.shared.flush(Signals::ALL, Scope::All, TIMEOUT));
            assert!(
                !matches!(flushed, Err(FlushError::Timeout(_))),
                "{flushed:?}"
            );
        });
        let logs = also(&model, |model| {
            assert_no_deadline(model.shut_down_signal(Signal::Logs));
        });
        assert_no_deadline(model.shut_down());
        logs();
        emits();
        flushes();
        model.check(1);
    });
}

/// Scenario: an export of log records blocks its thread until another one is acknowledged, with two slots; no span is
/// pending, and time passes.
/// Guarantees: another worker is called, so the other one is exported.
#[test]
fn export_of_records_that_blocks_holds_up_no_other() {
    check(|| {
        let config = config().with_max_concurrent_exports(2);
        let model = Model::driven(&config, Manner::AtOnce);
        model.join_logs(Manner::FirstBlocks);
        for request in 1..=2 {
            model.start(request);
            model.emit(request, 0);
            model.end_unsampled(request, 0);
        }
        while model.collectors[Signal::Logs].acknowledged().len() < 2 {
            clock::pass(LOOK);
            thread::yield_now();
        }
        assert_eq!(model.shut_down_signal(Signal::Logs), Ok(()));
        assert_eq!(model.shut_down(), Ok(()));
        model.check(2);
    });
}

/// Scenario: log records are shut down with less time than spans, and neither exporter ever answers.
/// Guarantees: what waits of log records is dropped at their deadline, and what waits of spans at theirs.
#[test]
fn deadline_of_a_shutdown_is_that_of_its_signal() {
    check(|| {
        let model = Model::driven(&config(), Manner::Never);
        model.join_logs(Manner::Never);
        for request in 1..=2 {
            model.start(request);
            model.emit(request, 0);
            model.end(request, 0);
        }
        let in_flight = || [model.stats().logs.in_flight, model.stats().in_flight];
        while in_flight() != [1, 1] {
            thread::yield_now();
        }
        let both = [(Signal::Logs, SECOND), (Signal::Spans, 10 * SECOND)];
        let both = both.map(|(signal, time)| (time, model.shared.shutdown(signal, time)));
        for (spans, (time, done)) in (0..).zip(both) {
            let waits = also(&model, move |_| {
                assert_eq!(block_on(done), Err(FlushError::Timeout(time)));
            });
            clock::pass(time);
            waits();
            let stats = model.stats();
            let dropped = [stats.logs.dropped, stats.dropped].map(|dropped| dropped.total());
            assert_eq!(dropped, [1, spans]);
        }
        for signal in Signal::QUEUED {
            while model.collectors[signal].shutdowns() == 0 {
                clock::pass(TIMEOUT);
                thread::yield_now();
            }
        }
        model.check(1);
    });
}

/// Scenario: the exporter of log records never answers, and has its slot. Spans are flushed and shut down.
/// Guarantees: spans wait for none of it, and no time passes for them; all threads end when the deadlines of log records
/// have passed.
#[test]
fn exporter_of_records_that_hangs_holds_up_no_span() {
    check(|| {
        let model = Model::driven(&config(), Manner::AtOnce);
        model.join_logs(Manner::Never);
        model.start(1);
        let emits = also(&model, |model| model.emit(1, 0));
        model.end(1, 0);
        assert_eq!(model.flush(), Ok(()));
        model.request(2);
        assert_eq!(model.shut_down(), Ok(()));
        emits();
        let done = model.shared.shutdown(Signal::Logs, SECOND);
        let waits = also(&model, move |_| drop(block_on(done)));
        clock::pass(SECOND);
        waits();
        while model.collectors[Signal::Logs].shutdowns() == 0 {
            clock::pass(TIMEOUT);
            thread::yield_now();
        }
        model.check(1);
    });
}
