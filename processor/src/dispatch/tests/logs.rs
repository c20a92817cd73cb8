//! Log records beside the spans of a request.

use super::*;
use crate::sync::Arc;
use crate::testing::{log, span};

const OF_ROOT: (u128, u64) = (1, 1);

/// Emits a record in a span that is recorded, as far as anybody says.
fn emit(dispatch: &mut Dispatch, (trace, span): (u128, u64)) -> Option<LogData> {
    emit_as(dispatch, (trace, span), within(trace, span, None))
}

/// Returns the record if it is not taken.
fn emit_as(dispatch: &mut Dispatch, (trace, span): (u128, u64), of: Emitted) -> Option<LogData> {
    let mut log = Some(log(trace, span));
    dispatch.emit(&mut log, of);
    log
}

fn within(trace: u128, span: u64, unrecorded: Option<Context>) -> Emitted {
    Emitted::Within {
        trace: TraceId::from(trace),
        span: SpanId::from(span),
        unrecorded,
    }
}

/// What the exporters get after a tick: the signal and the size of each batch.
fn batches(dispatch: &mut Dispatch) -> Vec<(Signal, usize)> {
    dispatch.tick(64);
    let next = std::iter::from_fn(|| dispatch.next_batch(None));
    next.map(|batch| (batch.items.signal(), batch.items.len()))
        .collect()
}

fn losses(dispatch: &mut Dispatch, signal: Signal, scope: Scope) -> Losses {
    dispatch.begin_flush(Signals::of(signal), scope);
    let [(_, report)] = dispatch.take_finished()[..] else {
        panic!("one flush");
    };
    report.losses
}

/// Scenario: with the trigger `LocalRootEnd`, a root ends while an export of its request's spans is under way, and another span
/// is open.
/// Guarantees: the log records leave at the next tick, though the spans still wait for their export (R4).
#[test]
fn queue_of_records_leaves_at_the_end_of_the_root_whatever_the_spans_wait_for() {
    let config = config().with_flush_trigger(FlushTrigger::LocalRootEnd);
    let mut lone = Lone::of(Dispatch::new(&config, Context::new(), true));
    let _open = lone.start_a_child();
    (0..MAX_BATCH_SIZE).for_each(|_| lone.end_a_child());
    assert!(lone.next_batch().is_some(), "a full queue of spans");
    assert!(emit(&mut lone.dispatch, OF_ROOT).is_none());
    assert_eq!(
        batches(&mut lone.dispatch),
        [],
        "before the end of the root"
    );
    lone.end(1);
    assert_eq!(batches(&mut lone.dispatch), [(Signal::Logs, 1)]);
    assert_eq!(lone.dispatch.stats().queued, 1);
}

/// Scenario: a request has spans and log records when it is over.
/// Guarantees: they leave as two batches under its context, which is dropped when both are done, in either order (R9).
#[test]
fn context_of_a_request_goes_with_the_last_of_its_two_batches() {
    for spans_first in [true, false] {
        let mut dispatch = Dispatch::new(&config(), Context::new(), true);
        let alive = Arc::new(());
        let left = Arc::downgrade(&alive);
        dispatch.start_root(root_of(1), Context::new().with_value(alive));
        emit(&mut dispatch, OF_ROOT);
        dispatch.end(&mut Some(span(1, 1)));
        let mut pair = [dispatch.next_batch(None), dispatch.next_batch(None)].map(Option::unwrap);
        assert_eq!(
            pair.each_ref().map(|batch| batch.items.signal()),
            Signal::QUEUED
        );
        if !spans_first {
            pair.reverse();
        }
        let [first, second] = pair;
        for (batch, contexts) in [(first, 1), (second, 0)] {
            dispatch.complete(batch.id, Outcome::Exported);
            drop((batch, dispatch.take_contexts(), dispatch.take_garbage()));
            assert_eq!(left.strong_count(), contexts);
        }
    }
}

/// Scenario: as many spans, or as many log records, are pending as may be, and an item of each signal comes.
/// Guarantees: only the one whose signal has no room is dropped (R6).
#[test]
fn signal_that_is_full_takes_no_room_of_another() {
    let config = Config::default()
        .with_max_pending_spans(2)
        .with_max_pending_logs(2);
    for full in Signal::QUEUED {
        let mut lone = Lone::of(Dispatch::new(&config, Context::new(), true));
        for _ in 0..2 {
            match full {
                Signal::Spans => lone.end_a_child(),
                _ => assert!(emit(&mut lone.dispatch, OF_ROOT).is_none()),
            }
        }
        // What is handed over makes no room, so nothing but a drop is left.
        assert_eq!(batches(&mut lone.dispatch), [(full, 2)]);
        lone.end_a_child();
        let refused = emit(&mut lone.dispatch, OF_ROOT).is_some();
        let stats = lone.dispatch.stats();
        let dropped = [stats.dropped, stats.logs.dropped].map(|d| d.by(DropReason::QueueFull));
        let expected = Signal::QUEUED.map(|signal| u64::from(signal == full));
        assert_eq!(dropped, expected, "full of {full}");
        assert_eq!(refused, full == Signal::Logs);
    }
}

/// Scenario: with the trigger `LocalRootEnd`, all that may be pending of a signal waits for an open root, and more comes.
/// Guarantees: what comes is dropped, and what waits leaves, or nothing would ever make room; the other signal still waits.
#[test]
fn signal_that_is_full_of_what_waits_makes_room() {
    let config = config()
        .with_flush_trigger(FlushTrigger::LocalRootEnd)
        .with_max_pending_spans(2)
        .with_max_pending_logs(2);
    for full in Signal::QUEUED {
        let mut lone = Lone::of(Dispatch::new(&config, Context::new(), true));
        let mut add = |signal| match signal {
            Signal::Spans => lone.end_a_child(),
            _ => drop(emit(&mut lone.dispatch, OF_ROOT)),
        };
        Signal::QUEUED.into_iter().for_each(&mut add);
        (0..2).for_each(|_| add(full));
        assert_eq!(batches(&mut lone.dispatch), [(full, 2)]);
        let stats = lone.dispatch.stats();
        let dropped = [stats.dropped, stats.logs.dropped].map(|d| d.total());
        assert_eq!(
            dropped,
            Signal::QUEUED.map(|signal| u64::from(signal == full))
        );
    }
}

/// Scenario: the exporter of one signal never answers, and has all its slots.
/// Guarantees: batches of the other still leave, as many at once as may (R6).
#[test]
fn exporter_that_hangs_takes_no_slot_of_another_signal() {
    let config = Config::default()
        .with_max_batch_size(1)
        .with_max_concurrent_exports(2);
    for hangs in Signal::QUEUED {
        let mut lone = Lone::of(Dispatch::new(&config, Context::new(), true));
        let mut add = |signal| match signal {
            Signal::Spans => lone.end_a_child(),
            _ => assert!(emit(&mut lone.dispatch, OF_ROOT).is_none()),
        };
        (0..3).for_each(|_| add(hangs));
        let other = match hangs {
            Signal::Spans => Signal::Logs,
            _ => Signal::Spans,
        };
        (0..3).for_each(|_| add(other));
        let expected = [(hangs, 1), (hangs, 1), (other, 1), (other, 1)];
        assert_eq!(batches(&mut lone.dispatch), expected);
    }
}

/// Scenario: batches of both signals wait, and there are slots for all.
/// Guarantees: they are taken in the order in which they were made, whatever they are of.
#[test]
fn oldest_batch_is_next_whatever_it_is_of() {
    let config = Config::default().with_max_batch_size(1);
    let mut lone = Lone::of(Dispatch::new(&config, Context::new(), true));
    let made = [
        Signal::Logs,
        Signal::Spans,
        Signal::Spans,
        Signal::Logs,
        Signal::Spans,
    ];
    for signal in made {
        match signal {
            Signal::Spans => lone.end_a_child(),
            _ => assert!(emit(&mut lone.dispatch, OF_ROOT).is_none()),
        }
    }
    assert_eq!(batches(&mut lone.dispatch), made.map(|signal| (signal, 1)));
}

/// Scenario: log records are emitted outside of any span, in a span whose request is over, and in one that is not recorded.
/// Guarantees: the first are nobody's and not marked, the second late and marked, and the third leaves alone under its own
/// context.
#[test]
fn record_of_no_request_leaves_under_what_its_place_says() {
    let mut dispatch = Dispatch::new(&Config::default(), Context::new(), true);
    let own = Context::new().with_value("own");
    emit_as(&mut dispatch, (0, 0), Emitted::Outside);
    emit(&mut dispatch, (7, 7));
    emit_as(&mut dispatch, (8, 8), within(8, 8, Some(own.clone())));
    emit_as(&mut dispatch, (8, 8), within(8, 8, Some(own)));
    dispatch.tick(64);
    let mut seen = Vec::new();
    while let Some(batch) = dispatch.next_batch(None) {
        let Items::Logs(logs) = &batch.items else {
            panic!("log records");
        };
        let marks = logs.iter().map(|log| log.record.attributes_iter().count());
        let own = batch.context.get::<&str>().is_some();
        seen.push((own, marks.collect::<Vec<_>>()));
    }
    let alone = (true, vec![0]);
    assert_eq!(seen, [alone.clone(), alone, (false, vec![0, 1])]);
    assert_eq!(dispatch.stats().logs.late.by(LateReason::UnknownTrace), 1);
}

/// Scenario: a log record is emitted under a remote span, or after the shutdown, and is dropped.
/// Guarantees: a flush of the trace that it names reports the loss (R11).
#[test]
fn dropped_record_is_a_loss_of_the_trace_that_it_names() {
    let lost = Losses::dropped(1);
    let of_trace = Scope::Trace(TraceId::from(5));

    let config = Config::default().with_max_pending_logs(1);
    let mut dispatch = Dispatch::new(&config, Context::new(), true);
    emit(&mut dispatch, (7, 7));
    batches(&mut dispatch);
    let refused = emit_as(&mut dispatch, (5, 5), Emitted::Outside);
    assert!(refused.is_some());
    assert_eq!(losses(&mut dispatch, Signal::Logs, of_trace), lost);

    let mut dispatch = Dispatch::new(&config, Context::new(), true);
    dispatch.close(Signal::Logs);
    emit_as(&mut dispatch, (5, 5), Emitted::Outside);
    assert_eq!(losses(&mut dispatch, Signal::Logs, of_trace), lost);
    assert_eq!(
        losses(&mut dispatch, Signal::Spans, of_trace),
        Losses::default()
    );
}

/// Scenario: a log record of a span that is not recorded finds no room.
/// Guarantees: it is dropped as `queue_full`, and not late: it would have left under its own context.
#[test]
fn record_with_a_context_of_its_own_is_never_late() {
    let config = Config::default().with_max_pending_logs(1);
    let mut dispatch = Dispatch::new(&config, Context::new(), true);
    for taken in [true, false] {
        let of = within(8, 8, Some(Context::new()));
        assert_eq!(emit_as(&mut dispatch, (8, 8), of).is_none(), taken);
    }
    let logs = dispatch.stats().logs;
    assert_eq!(logs.dropped.by(DropReason::QueueFull), 1);
    assert_eq!(logs.late.total(), 0);
}

/// Scenario: only log records are shut down, or only spans.
/// Guarantees: what is queued of that signal leaves, and the other signal goes on: spans are exported as before, and a log
/// record whose request is not known any more is late.
#[test]
fn shutdown_of_one_signal_leaves_the_other_running() {
    let mut lone = Lone::native();
    emit(&mut lone.dispatch, OF_ROOT);
    lone.end_a_child();
    lone.dispatch.close(Signal::Logs);
    assert!(emit(&mut lone.dispatch, OF_ROOT).is_some());
    let next = lone.dispatch.next_batch(None).expect("the record");
    assert_eq!(next.items.signal(), Signal::Logs);
    assert!(lone.dispatch.next_batch(None).is_none(), "no span yet");
    assert_eq!(batches(&mut lone.dispatch), [(Signal::Spans, 1)]);

    let mut lone = Lone::native();
    emit(&mut lone.dispatch, OF_ROOT);
    lone.dispatch.close(Signal::Spans);
    assert_eq!(lone.dispatch.stats().logs.waiting, 1);
    assert!(emit(&mut lone.dispatch, OF_ROOT).is_none());
    assert_eq!(lone.dispatch.stats().logs.late.total(), 1);
    assert_eq!(batches(&mut lone.dispatch), [(Signal::Logs, 1); 2]);
}

/// Scenario: in a Worker, the pause of a queue ends while an export of it is under way, which a flush has begun; then more comes.
/// Guarantees: it waits for that export, as any queue does (R4).
#[test]
fn queue_whose_pause_is_over_still_waits_for_its_export() {
    for signal in Signal::QUEUED {
        let mut lone = Lone::in_worker();
        lone.start_a_child();
        lone.end(1);
        let add = |lone: &mut Lone| match signal {
            Signal::Spans => lone.end_a_child(),
            _ => drop(emit(&mut lone.dispatch, OF_ROOT)),
        };
        for _ in 0..MAX_EXPORTS {
            add(&mut lone);
            assert!(!lone.export().is_empty());
        }
        add(&mut lone);
        let [(paused, _)] = lone.dispatch.take_paced()[..] else {
            panic!("one pause");
        };
        assert_eq!(paused.signal, signal);
        lone.dispatch
            .open_flush(Signals::ALL, Scope::Request(root_of(1)));
        let under_way = lone.next_batch().expect("what was flushed");
        lone.dispatch.end_pause(paused);
        add(&mut lone);
        assert!(lone.next_batch().is_none(), "{signal} do not wait");
        lone.dispatch.complete(under_way.id, Outcome::Exported);
        lone.dispatch.tick(64);
        assert!(lone.dispatch.is_paced(paused), "{signal} are not paced");
    }
}

/// Scenario: in a Worker, a request has used up the exports of its spans, and log records are emitted in it.
/// Guarantees: each signal has an allowance of its own, and both leave when the root ends.
#[test]
fn each_signal_of_a_request_has_its_allowance() {
    let mut lone = Lone::without_exports_left();
    lone.start_a_child();
    (0..20).for_each(|_| lone.end_a_child());
    for n in 1..=MAX_EXPORTS {
        (0..MAX_BATCH_SIZE).for_each(|_| drop(emit(&mut lone.dispatch, OF_ROOT)));
        assert_eq!(lone.export(), [MAX_BATCH_SIZE], "export {n} of records");
    }
    (0..20).for_each(|_| drop(emit(&mut lone.dispatch, OF_ROOT)));
    assert_eq!(lone.export(), []);
    lone.end(1);
    assert_eq!(lone.export(), [21, 20]);
}

/// Scenario: in a Worker, a line outside of any request is on its way to a collector that does not answer, when somebody else
/// says another one.
/// Guarantees: it waits for nobody (R13).
#[test]
fn record_of_no_request_waits_for_no_export_of_another() {
    let mut dispatch = Dispatch::for_workers(&config(), Context::new(), true);
    for _ in 0..MAX_EXPORTS {
        assert!(emit_as(&mut dispatch, (0, 0), Emitted::Outside).is_none());
        assert_eq!(batches(&mut dispatch), [(Signal::Logs, 1)]);
    }
    assert!(emit_as(&mut dispatch, (0, 0), Emitted::Outside).is_none());
    assert_eq!(batches(&mut dispatch), [], "they are subrequests");
    assert_eq!(dispatch.take_paced().len(), 1);
}
