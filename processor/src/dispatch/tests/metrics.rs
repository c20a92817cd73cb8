//! When metrics are collected, and what becomes of them.

use std::time::Duration;

use opentelemetry_sdk::metrics::data::ResourceMetrics;

use super::super::collections::{MAX_PENDING, Pace};
use super::*;
use crate::clock::Instant;
use crate::signal::Collected;

const SECOND: Duration = Duration::from_secs(1);
const INTERVAL: Duration = Duration::from_secs(10);
const PERIOD: Duration = Duration::from_secs(60);

/// A dispatch whose metrics are read, at this time.
struct Read {
    dispatch: Dispatch,
    now: Instant,
}

impl Read {
    fn new() -> Self {
        Self::every(PERIOD)
    }

    fn every(period: impl Into<Option<Duration>>) -> Self {
        let config = config()
            .with_metric_interval(INTERVAL)
            .with_metric_period(period);
        let now = Instant::now();
        let mut dispatch = Dispatch::new(&config, Context::new().with_value("fallback"), true);
        dispatch.set_pace(Pace::new(&config, now));
        Self { dispatch, now }
    }

    /// The driver looks, so much later. Says whether it collects, and what that is to become.
    fn after(&mut self, time: Duration) -> Option<u64> {
        self.now += time;
        self.dispatch.collect_if_due(self.now)
    }

    fn end_a_request(&mut self) {
        self.dispatch.start_root(root_of(1), Context::new());
        self.dispatch.end(&mut Some(crate::testing::span(1, 1)));
    }

    fn found(&mut self, id: u64) {
        let metrics = ResourceMetrics::default();
        let points = 3;
        let found = Collected { metrics, points };
        self.dispatch.end_collection(id, Some(found));
    }

    /// Whether the driver is told to look again.
    fn is_told(&self) -> bool {
        self.dispatch.collections.has_news()
    }
}

/// Scenario: requests end, one after the other.
/// Guarantees: metrics are collected at once the first time, and then when the interval is over, once for all requests that
/// have ended meanwhile.
#[test]
fn metrics_are_collected_when_a_request_ends_but_once_in_an_interval() {
    let mut read = Read::new();
    assert_eq!(read.after(SECOND), None, "nothing has ended");
    read.end_a_request();
    let first = read.after(Duration::ZERO).expect("the first time");
    read.found(first);
    assert_eq!(read.after(INTERVAL), None, "no other request has ended");
    for _ in 0..2 {
        read.end_a_request();
    }
    let second = read.after(Duration::ZERO).expect("the interval is over");
    read.found(second);
    read.end_a_request();
    assert_eq!(read.after(INTERVAL - SECOND), None);
    assert!(read.after(SECOND).is_some());
}

/// Scenario: a root ends while another span of its request is open; then that ends.
/// Guarantees: both are an end that metrics are collected at.
#[test]
fn end_of_a_root_and_end_of_a_request_are_both_a_time_to_collect() {
    let mut read = Read::new();
    let (trace, root, child) = (TraceId::from(1), SpanId::from(1), SpanId::from(2));
    read.dispatch.start_root(root_of(1), Context::new());
    read.dispatch.start_child(trace, root, child);
    for id in [1, 2] {
        assert_eq!(read.after(INTERVAL), None);
        read.dispatch.end(&mut Some(crate::testing::span(1, id)));
        let id = read.after(Duration::ZERO).expect("an end");
        read.found(id);
    }
}

/// Scenario: no request ends.
/// Guarantees: metrics are collected once in a period, counted from the last time, whatever that was for; without a period
/// never.
#[test]
fn metrics_are_collected_once_in_a_period_if_no_request_ends() {
    let mut read = Read::new();
    assert_eq!(read.after(PERIOD - SECOND), None);
    let first = read.after(SECOND).expect("a period is over");
    read.found(first);
    read.now += SECOND;
    let flushed = read.dispatch.begin_collection(read.now);
    read.found(flushed);
    assert_eq!(read.after(PERIOD - SECOND), None);
    assert!(read.after(SECOND).is_some());

    let mut read = Read::every(None);
    assert_eq!(read.dispatch.next_collection(), None);
    assert_eq!(read.after(100 * PERIOD), None);
    read.end_a_request();
    assert!(read.after(Duration::ZERO).is_some());
}

/// Scenario: it is time to collect while a collection is under way.
/// Guarantees: another one begins when that is done, and the driver is told.
#[test]
fn one_collection_at_a_time_is_begun_by_the_driver() {
    let mut read = Read::new();
    read.end_a_request();
    let first = read.after(Duration::ZERO).expect("the first time");
    read.end_a_request();
    assert_eq!(read.after(INTERVAL), None);
    assert!(!read.is_told());
    read.dispatch.end_collection(first, None);
    assert!(read.is_told());
    assert!(read.after(Duration::ZERO).is_some());
}

/// Scenario: the exporter of metrics does not answer, while requests end and somebody flushes.
/// Guarantees: so many collections are on their way and no more; when one is done, there is room, and the driver is told.
#[test]
fn collections_that_are_on_their_way_are_bounded() {
    assert_eq!(MAX_PENDING, 32, "what is documented");
    let mut read = Read::new();
    let mut in_flight = None;
    for n in 0..MAX_PENDING {
        assert!(read.dispatch.may_collect(), "collection {n}");
        read.end_a_request();
        let id = read.after(INTERVAL).expect("it is time");
        read.found(id);
        // Some wait, some are in flight.
        if n % 2 == 0 {
            in_flight = read.dispatch.next_metrics(None);
        }
    }
    read.end_a_request();
    assert!(!read.dispatch.may_collect());
    assert_eq!(read.after(INTERVAL), None);
    assert!(!read.is_told());
    // At its deadline, though the exporter still has it.
    read.dispatch.give_up(in_flight.expect("one that is").id);
    assert!(read.dispatch.may_collect() && read.is_told());
    assert!(read.after(Duration::ZERO).is_some());
    assert!(!read.dispatch.may_collect(), "what is under way counts");
}

/// Scenario: nobody reads metrics, or not any more.
/// Guarantees: nothing is ever due, and the driver is not bothered.
#[test]
fn without_a_reader_nothing_is_collected() {
    let mut lone = Lone::native();
    lone.end(1);
    assert_eq!(lone.dispatch.next_collection(), None);
    assert!(!lone.dispatch.collections.has_news());

    let mut read = Read::new();
    read.end_a_request();
    read.dispatch.close(Signal::Metrics);
    assert_eq!(read.dispatch.next_collection(), None);
    assert_eq!(read.after(100 * PERIOD), None);
}

/// Scenario: a flush begins while metrics are being collected.
/// Guarantees: it waits for the collection, and for the export of what that finds; a flush of one trace does not.
#[test]
fn flush_waits_for_a_collection_that_is_under_way() {
    for finds in [true, false] {
        let mut read = Read::new();
        let id = read.dispatch.begin_collection(read.now);
        let metrics = Signals::of(Signal::Metrics);
        read.dispatch
            .begin_flush(metrics, Scope::Trace(TraceId::from(1)));
        assert_eq!(read.dispatch.take_finished().len(), 1, "of a trace");
        let flush = read.dispatch.begin_flush(metrics, Scope::All);
        let finished = |dispatch: &mut Dispatch| {
            let finished = dispatch.take_finished();
            finished.first().map(|(id, report)| (*id, report.losses))
        };
        assert_eq!(finished(&mut read.dispatch), None);
        let mut expected = Losses::default();
        if finds {
            read.found(id);
            assert_eq!(finished(&mut read.dispatch), None);
            let batch = read.dispatch.next_batch(None).expect("what was found");
            assert_eq!((batch.id, batch.items.len()), (id, 3));
            assert!(batch.context.get::<&str>().is_some(), "the fallback");
            read.dispatch.complete(id, Outcome::Failed);
            expected = Losses::failed(3);
        } else {
            read.dispatch.end_collection(id, None);
        }
        assert_eq!(finished(&mut read.dispatch), Some((flush, expected)));
    }
}

/// Scenario: the deadline of the shutdown passes while one batch waits, and another collection is under way.
/// Guarantees: what waits is dropped, and so is what is found afterwards; both are counted, and a flush that waits for them
/// reports them (R11, R12).
#[test]
fn metrics_that_come_too_late_for_the_shutdown_are_counted() {
    let mut read = Read::new();
    let waits = read.dispatch.begin_collection(read.now);
    read.found(waits);
    let under_way = read.dispatch.begin_collection(read.now);
    read.dispatch.close(Signal::Metrics);
    let flush = read.dispatch.begin_flush(Signals::ALL, Scope::All);
    read.dispatch.abandon(Signal::Metrics);
    assert!(!read.dispatch.is_drained(Signal::Metrics));
    assert!(read.dispatch.take_finished().is_empty());
    read.found(under_way);
    let finished = read.dispatch.take_finished();
    let finished = finished.first().map(|(id, report)| (*id, report.losses));
    assert_eq!(finished, Some((flush, Losses::dropped(6))));
    let metrics = read.dispatch.stats().metrics;
    assert_eq!(metrics.dropped.by(DropReason::ShutdownTimeout), 6);
    assert!(metrics.is_balanced() && read.dispatch.is_drained(Signal::Metrics));
    assert!(read.dispatch.next_batch(None).is_none());
}

/// Scenario: in a Worker, spans and metrics wait.
/// Guarantees: an event can take the metrics alone.
#[test]
fn metrics_can_be_taken_alone() {
    let mut dispatch = Dispatch::for_workers(&config(), Context::new(), true);
    let id = dispatch.begin_collection(Instant::now());
    dispatch.start_root(root_of(1), Context::new());
    dispatch.end(&mut Some(crate::testing::span(1, 1)));
    assert!(dispatch.next_metrics(None).is_none());
    let metrics = ResourceMetrics::default();
    let found = Collected { metrics, points: 1 };
    dispatch.end_collection(id, Some(found));
    let next = dispatch.next_metrics(None);
    assert_eq!(
        next.map(|batch| batch.items.signal()),
        Some(Signal::Metrics)
    );
    assert!(dispatch.next_metrics(None).is_none());
    assert_eq!(dispatch.stats().waiting, 1);
}

/// Scenario: two collections wait, and the exporter takes its time with the first, natively and in a Worker.
/// Guarantees: natively the second one waits for it, so a sum never goes back in time; in a Worker it waits for nobody (R13).
#[test]
fn exports_of_metrics_follow_one_another_natively() {
    let native = Dispatch::new(&config(), Context::new(), true);
    let in_worker = Dispatch::for_workers(&config(), Context::new(), true);
    for (mut dispatch, waits) in [(native, true), (in_worker, false)] {
        for _ in 0..2 {
            let id = dispatch.begin_collection(Instant::now());
            let (metrics, points) = (ResourceMetrics::default(), 1);
            dispatch.end_collection(id, Some(Collected { metrics, points }));
        }
        let first = dispatch.next_batch(None).expect("the first one");
        assert_eq!(dispatch.next_batch(None).is_none(), waits);
        dispatch.complete(first.id, Outcome::Exported);
        assert_eq!(dispatch.next_batch(None).is_some(), waits);
    }
}
