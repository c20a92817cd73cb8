//! Spans that are told of while they are open: to an observer, from several threads, and to the collector, by a driver that
//! sleeps. See the parent.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Mutex as Quiet;

use opentelemetry::trace::{SpanId, TraceId};

use super::{Shared, quiet};
use crate::observer::{InRequest, LifecycleEvent, SpanObserver, Stage};
use crate::sync::{Arc, Weak};

/// An observer that takes its time, and asks back.
#[derive(Default)]
pub(super) struct Ear {
    shared: Quiet<Weak<Shared>>,
    heard: Quiet<Vec<LifecycleEvent>>,
    inside: Quiet<HashSet<TraceId>>,
}

impl Ear {
    pub(super) fn listen_to(&self, shared: &Arc<Shared>) {
        *quiet(&self.shared) = Arc::downgrade(shared);
    }

    /// What was heard of a span.
    fn of(&self, span: u64) -> Vec<LifecycleEvent> {
        let heard = quiet(&self.heard);
        let of_span = heard.iter().filter(|e| e.span_id == SpanId::from(span));
        of_span.cloned().collect()
    }

    /// The events of each request came in their order, without a gap.
    fn check(&self) {
        let mut next: HashMap<(TraceId, SpanId), u64> = HashMap::new();
        for event in quiet(&self.heard).iter() {
            let Some(InRequest {
                local_root,
                sequence,
            }) = event.request
            else {
                continue;
            };
            let next = next.entry((event.trace_id, local_root)).or_default();
            assert_eq!(sequence, *next, "{event:?}");
            *next += 1;
        }
    }
}

impl SpanObserver for Ear {
    fn on_event(&self, event: &LifecycleEvent) {
        let trace = event.trace_id;
        assert!(quiet(&self.inside).insert(trace), "two at once: {event:?}");
        // Others get ahead here. Under the lock, it would wait for itself (R3).
        let shared = quiet(&self.shared).upgrade();
        if let Some(shared) = shared {
            shared.stats();
        }
        quiet(&self.heard).push(event.clone());
        quiet(&self.inside).remove(&trace);
    }
}

impl std::fmt::Debug for Ear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ear")
    }
}

/// A span opened first and closed last, each once. Returns the names that were told in between and with the close, and whether
/// it closed because it would not end.
fn told(events: &[LifecycleEvent]) -> (Vec<Cow<'static, str>>, bool) {
    let [first, between @ .., last] = events else {
        panic!("it opens and closes: {events:?}");
    };
    let (Stage::Open(_), Stage::Close(close)) = (&first.stage, &last.stage) else {
        panic!("it opens first and closes last: {events:?}");
    };
    let renames = between.iter().map(|event| match &event.stage {
        Stage::Rename(rename) => rename.name.clone(),
        stage => panic!("between open and close: {stage:?}"),
    });
    let names = renames.chain(close.name.clone()).collect();
    (names, close.unfinished.is_some())
}

#[cfg(races = "loom")]
mod exhaustive {
    use super::super::{Manner, Model, TIMEOUT, also, check, config, driver, span_id};
    use super::told;
    use crate::signal::Signal;

    /// Scenario: two threads each start a span of the same request and end it, at the same moment.
    /// Guarantees: each opens before it closes, the events of the request come in their order, one at a time, not under the
    /// lock, and none is lost.
    #[test]
    fn open_against_end_is_told_in_order() {
        check(|| {
            let model = Model::observed(&config(), Manner::AtOnce, 1);
            model.start(1);
            let other = also(&model, |model| {
                model.start_child(1, 1);
                model.end(1, 1);
            });
            model.start_child(1, 2);
            model.end(1, 2);
            other();
            model.end(1, 0);
            for index in 0..=2 {
                let (names, is_unfinished) = told(&model.ear.of(span_id(1, index)));
                assert!(names.is_empty() && !is_unfinished, "{names:?}");
            }
            model.ear.check();
            assert_eq!(model.shut_down_driving(), Ok(()));
            model.check(1);
        });
    }

    /// Scenario: a span ends on one thread while another one tells that it has got another name.
    /// Guarantees: the name is told once, before the close or with it.
    #[test]
    fn rename_against_end_is_told_once() {
        check(|| {
            let model = Model::observed(&config(), Manner::AtOnce, 1);
            model.start(1);
            model.start_child(1, 1);
            let renames = also(&model, |model| model.rename(1, 1, "renamed"));
            model.end_as(1, 1, "renamed");
            renames();
            model.end(1, 0);
            let (names, _) = told(&model.ear.of(span_id(1, 1)));
            assert_eq!(names, ["renamed"]);
            model.ear.check();
            assert_eq!(model.shut_down_driving(), Ok(()));
            model.check(1);
        });
    }

    /// Scenario: a span ends on one thread while another one shuts the processor down.
    /// Guarantees: it closes once: because it has ended, or because of the shutdown.
    #[test]
    fn shutdown_against_end_closes_once() {
        check(|| {
            let model = Model::observed(&config(), Manner::AtOnce, 1);
            model.start(1);
            model.start_child(1, 1);
            let ends = also(&model, |model| model.end(1, 1));
            // Its future is dropped: nobody hears, and it is done nevertheless.
            drop(model.shared.shutdown(Signal::Spans, TIMEOUT));
            ends();
            let (_, is_unfinished) = told(&model.ear.of(span_id(1, 1)));
            let dropped = model.stats().dropped.total();
            assert_eq!(u64::from(is_unfinished), dropped, "it ended too late");
            let (_, is_unfinished) = told(&model.ear.of(span_id(1, 0)));
            assert!(is_unfinished, "the root never ends");
            model.ear.check();
            driver::drive(&model.shared);
            model.check(1);
        });
    }

    /// Scenario: with room for one trace, a span ends on one thread while another thread starts a request that evicts it.
    /// Guarantees: it closes once, as one of its request or as one of none.
    #[test]
    fn eviction_against_end_closes_once() {
        check(|| {
            let model = Model::observed(&config().with_max_traces(1), Manner::AtOnce, 1);
            model.start(1);
            model.start_child(1, 1);
            let evicts = also(&model, |model| model.request(2));
            model.end(1, 1);
            evicts();
            model.end(1, 0);
            for (request, index) in [(1, 0), (1, 1), (2, 0)] {
                let (_, is_unfinished) = told(&model.ear.of(span_id(request, index)));
                assert!(!is_unfinished, "nobody shut down");
            }
            model.ear.check();
            assert_eq!(model.shut_down_driving(), Ok(()));
            model.check(1);
        });
    }
}

#[cfg(races = "shuttle")]
mod shell {
    use std::time::Duration;

    use super::super::{Manner, Model, also, check, config, quiet, span_id};
    use super::told;
    use crate::config::OpenEvents;
    use crate::signal::Signal;
    use crate::sync::races::clock;

    const MIN_AGE: Duration = Duration::from_millis(500);

    /// Scenario: spans open while the driver goes to sleep, or sleeps, and nothing else happens but that they get old.
    /// Guarantees: the driver is awake when they are old enough: the collector is told of each.
    #[test]
    fn driver_never_sleeps_through_an_open_span() {
        check(|| {
            let config = config()
                .with_open_events(OpenEvents::Logs)
                .with_open_event_min_age(MIN_AGE);
            let model = Model::driven(&config, Manner::AtOnce);
            model.join_logs(Manner::AtOnce);
            let logs = model.collectors[Signal::Logs].clone();
            for request in 1..=2 {
                let opens = also(&model, move |model| model.start(request));
                opens();
                quiet(&model.emitted).push(span_id(request, 0));
                clock::pass(MIN_AGE);
                logs.wait_until(|ids| ids.contains(&span_id(request, 0)));
            }
            for request in 1..=2 {
                model.end(request, 0);
            }
            assert_eq!(model.shut_down_signal(Signal::Logs), Ok(()));
            assert_eq!(model.shut_down(), Ok(()));
            let told = model.stats().open_events;
            assert_eq!((told.opened, told.sent), (2, 2));
            model.check(1);
        });
    }

    /// Scenario: three threads start spans of the same request and end them, and a fourth one renames the root.
    /// Guarantees: each opens first and closes last, and the events of the request come in their order, one at a time.
    #[test]
    fn many_threads_tell_in_order() {
        check(|| {
            let model = Model::observed_and_driven(&config(), Manner::AtOnce);
            model.start(1);
            let work = |child| {
                also(&model, move |model| {
                    model.start_child(1, child);
                    model.end(1, child);
                })
            };
            let threads = [1, 2, 3].map(work);
            let renames = also(&model, |model| model.rename(1, 0, "renamed"));
            threads.into_iter().for_each(|thread| thread());
            renames();
            model.end_as(1, 0, "renamed");
            let (names, _) = told(&model.ear.of(span_id(1, 0)));
            assert_eq!(names, ["renamed"]);
            for child in 1..=3 {
                told(&model.ear.of(span_id(1, child)));
            }
            model.ear.check();
            assert_eq!(model.shut_down(), Ok(()));
            model.check(1);
        });
    }
}
