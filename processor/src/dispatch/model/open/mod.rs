//! Random sequences of what can happen to spans that are to be told of while they are open, against a naive reference, under a
//! virtual clock, and with an observer whom several threads tell, each at its own pace. Which request a span is of is what the
//! other model proves; this one asks.
//!
//! After each step:
//!
//! - the collector is told of a span at most once, while it is open, when somebody has looked and found it old enough or its
//!   request is sent off; by the name that was told last, with its own ids, or as a pending span with an id that nothing else
//!   has; under the context of its own request, in a batch that is no larger than it may be;
//! - exactly those spans are remembered that are open in a live request, up to the bound, and what is counted of them is what
//!   can be counted; what is dropped is dropped for a reason;
//! - somebody is going to look at each request with a span that is not old enough, and never too late: the driver sleeps no
//!   longer than such a span may wait, and is not woken for less. Nobody is going to look at a request that is gone;
//! - at the shutdown each span that is remembered is told of once more, once in each way, or that is dropped and counted;
//! - no number ever falls, and the law holds (R12);
//! - no two events of a trace are with the observer at once.
//!
//! In the end everything is told. What the observer has heard of each request is what happened there, in that order and without
//! a gap; each span opens first and closes last; and the names and attributes that were told add up to those of the span. No
//! context, nothing remembered and no look is left.

mod action;
mod checks;
mod observer;
// Each feature uses a part of it.
#[cfg_attr(not(feature = "logs"), allow(dead_code))]
mod wire;
mod world;

use std::time::Duration;

use proptest::prelude::*;

use action::Action;
use world::World;

use super::{Check, Platform, trigger};
use crate::config::{Config, DEFAULT_OPEN_EVENT_MIN_AGE, FlushTrigger, OpenEvents};

const MAX_TRACES: usize = 2;
const MAX_SPANS_PER_TRACE: usize = 10;
const MAX_BATCH_SIZE: usize = 3;
const MAX_EXPORTS: usize = 3;

/// The settings of a sequence.
#[derive(Clone, Copy, Debug)]
struct Case {
    platform: Platform,
    trigger: FlushTrigger,
    form: OpenEvents,
    is_observed: bool,
    exports_unfinished: bool,
    min_age: Option<Duration>,
    /// Of spans, and of log records.
    max_pending: usize,
    /// Whether log records are exported from the start.
    joins_at_once: bool,
    /// Whether spans stay open until everything has left that may leave before.
    streams_out: bool,
}

impl Case {
    fn min_age(&self) -> Duration {
        self.min_age.unwrap_or(DEFAULT_OPEN_EVENT_MIN_AGE)
    }
}

fn config(case: Case) -> Config {
    let config = Config::default()
        .with_max_traces(MAX_TRACES)
        .with_max_spans_per_trace(MAX_SPANS_PER_TRACE)
        .with_max_batch_size(MAX_BATCH_SIZE)
        .with_max_pending_spans(case.max_pending)
        .with_max_pending_logs(case.max_pending)
        .with_max_concurrent_exports(2)
        .with_max_exports_per_request(MAX_EXPORTS)
        .with_flush_trigger(case.trigger)
        .with_open_events(case.form)
        .with_export_unfinished(case.exports_unfinished);
    match case.min_age {
        Some(min_age) => config.with_open_event_min_age(min_age),
        None => config,
    }
}

/// How many sequences are tried on each platform.
const SEQUENCES: u32 = 5_000;

proptest! {
    #![proptest_config(super::settings(SEQUENCES))]

    /// Scenario: any sequence of actions, with any settings, with the rules of threads.
    /// Guarantees: the properties at the top of this file.
    #[test]
    fn open_spans_are_told_of_in_order_natively(
        actions in prop::collection::vec(action::action(), 1..120),
        case in case(Platform::Native),
    ) {
        run(case, &actions)?;
    }

    /// Scenario: the same, with the rules of Workers.
    /// Guarantees: the properties at the top of this file.
    #[test]
    fn open_spans_are_told_of_in_order_in_workers(
        actions in prop::collection::vec(action::action(), 1..120),
        case in case(Platform::Workers),
    ) {
        run(case, &actions)?;
    }
}

fn case(platform: Platform) -> impl Strategy<Value = Case> {
    let form = match cfg!(feature = "logs") {
        true => &[OpenEvents::Logs, OpenEvents::PendingSpans, OpenEvents::Off][..],
        false => &[OpenEvents::PendingSpans, OpenEvents::Off],
    };
    let min_age = prop_oneof![
        4 => Just(Some(Duration::from_millis(30))),
        2 => Just(Some(Duration::ZERO)),
        2 => Just(None),
        1 => Just(Some(Duration::MAX)),
    ];
    let flags = (
        prop::bool::weighted(0.7),
        any::<bool>(),
        prop::bool::weighted(0.8),
        any::<bool>(),
    );
    let max_pending = prop::sample::select(&[4, 10, 1000][..]);
    let form = prop::sample::select(form);
    (trigger(), form, flags, min_age, max_pending).prop_map(
        move |(trigger, form, flags, min_age, max_pending)| {
            let (is_observed, exports_unfinished, joins_at_once, streams_out) = flags;
            Case {
                platform,
                trigger,
                form,
                is_observed,
                exports_unfinished,
                min_age,
                max_pending,
                joins_at_once,
                streams_out,
            }
        },
    )
}

fn run(case: Case, actions: &[Action]) -> Check {
    let mut world = World::new(case);
    if case.joins_at_once {
        world.join_logs();
    }
    for action in actions {
        world.apply(*action)?;
    }
    if case.streams_out {
        world.stream_out()?;
    }
    world.drain()
}
