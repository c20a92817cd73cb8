//! Random sequences of what can happen to a dispatch, against a naive reference, under a virtual clock. Left to
//! `dispatch/tests.rs` are what only a Worker does (taking the batches of one trace first), and large numbers.
//!
//! After each step:
//!
//! - every span, and every log record, that leaves is under the saved context of its own request, or, if it is late, under the
//!   fallback context with the reason as its mark; a record that nobody's span is active for is under the fallback without a
//!   mark, and one whose span is not recorded under its own context, alone; a batch holds items of one signal, and of one
//!   request only, or late ones (R1, R5, R8);
//! - a batch leaves for a reason: it is full, or its request is over, or evicted, or flushed, or the driver took it while no
//!   other of that request and signal was under way; it is no larger than it may be; after a tick nothing stays without a
//!   reason (R4);
//! - no bound is exceeded, and no signal takes up the room, the slots or the turn of another (R6); the least recently used
//!   trace is the one that is evicted (R7);
//! - a saved context is alive exactly while a span of its request is open, or somebody holds the request, or a batch of it is
//!   somewhere (R9); the context of an unrecorded span's record only while the record is; holding, releasing and emitting
//!   count no span; no context is dropped under the lock (R3);
//! - metrics are collected when they are due and not before, one collection at a time, and the driver is told when that
//!   changes;
//! - a flush ends when the last item that it covers is accounted for, or the last collection, not before and not later; it
//!   reports exactly the losses of its signals that no flush of its scope had reported to somebody before; if it reports none,
//!   all that it covers was exported (R11);
//! - every number of the account is what the reference has counted, and the law holds for each signal (R12).
//!
//! In the end everything is drained by ticks alone, and nothing is left.
//!
//! All of that holds natively and in Workers, where batches are not bounded by their size, what is late of two traces never
//! shares one, and a request that has used up its exports needs its pauses to end.
//!
//! One lock protects the dispatch, so whatever threads do is a sequence of these actions; what lies between them is what the
//! models of races are for.
//!
//! A failure is reduced to a short sequence, which the last message tells line by line. Its seed is kept in
//! `proptest-regressions` and tried first from then on. `cargo xtask model` searches longer.

// Each feature uses a part of it.
#[cfg_attr(
    not(all(feature = "logs", feature = "metric-reader")),
    allow(dead_code)
)]
mod action;
mod open;
mod pair;
#[cfg_attr(
    not(all(feature = "logs", feature = "metric-reader")),
    allow(dead_code)
)]
mod reference;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use proptest::prelude::*;

use action::Action;
use pair::Pair;

use crate::config::{Config, FlushTrigger};
use crate::signal::Signal;

/// What a step came to, said by whoever found it wrong.
type Check = Result<(), TestCaseError>;

const MAX_TRACES: usize = 3;
const MAX_SPANS_PER_TRACE: usize = 10;
const MAX_BATCH_SIZE: usize = 2;
const MAX_PENDING_SPANS: usize = 12;
const MAX_PENDING_LOGS: usize = 7;
const MAX_COLLECTIONS: usize = 32;
const METRIC_INTERVAL: Duration = Duration::from_secs(20);
const METRIC_PERIOD: Duration = Duration::from_secs(70);
const MAX_CONCURRENT: usize = 2;
const MAX_EXPORTS: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Platform {
    Native,
    Workers,
}

fn config() -> Config {
    Config::default()
        .with_max_traces(MAX_TRACES)
        .with_max_spans_per_trace(MAX_SPANS_PER_TRACE)
        .with_max_batch_size(MAX_BATCH_SIZE)
        .with_max_pending_spans(MAX_PENDING_SPANS)
        .with_max_pending_logs(MAX_PENDING_LOGS)
        .with_metric_interval(METRIC_INTERVAL)
        .with_metric_period(METRIC_PERIOD)
        .with_max_concurrent_exports(MAX_CONCURRENT)
        .with_max_exports_per_request(MAX_EXPORTS)
}

/// How many items of a signal may be pending. Collections are bounded by their number.
fn max_pending(signal: Signal) -> usize {
    match signal {
        Signal::Spans => MAX_PENDING_SPANS,
        Signal::Logs => MAX_PENDING_LOGS,
        Signal::Metrics => usize::MAX,
    }
}

/// How many sequences are tried on each platform.
const SEQUENCES: u32 = 10_000;

/// So many sequences, unless `PROPTEST_CASES` says otherwise.
fn settings(sequences: u32) -> ProptestConfig {
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => ProptestConfig::default(),
        None => ProptestConfig::with_cases(sequences),
    }
}

proptest! {
    #![proptest_config(settings(SEQUENCES))]

    /// Scenario: any sequence of actions, with either trigger, with the rules of threads.
    /// Guarantees: the properties at the top of this file.
    #[test]
    fn dispatch_agrees_with_its_reference_natively(
        actions in prop::collection::vec(action::action(), 1..120),
        trigger in trigger(),
    ) {
        run(Platform::Native, trigger, &actions)?;
    }

    /// Scenario: the same, with the rules of Workers.
    /// Guarantees: the properties at the top of this file.
    #[test]
    fn dispatch_agrees_with_its_reference_in_workers(
        actions in prop::collection::vec(action::action(), 1..120),
        trigger in trigger(),
    ) {
        run(Platform::Workers, trigger, &actions)?;
    }
}

fn trigger() -> impl Strategy<Value = FlushTrigger> {
    prop_oneof![
        Just(FlushTrigger::NextTick),
        Just(FlushTrigger::LocalRootEnd)
    ]
}

fn run(platform: Platform, trigger: FlushTrigger, actions: &[Action]) -> Check {
    let mut pair = Pair::new(platform, trigger);
    let ran = catch_unwind(AssertUnwindSafe(|| {
        for action in actions {
            pair.apply(*action)?;
        }
        if trigger == FlushTrigger::NextTick {
            pair.stream_out()?;
        }
        pair.drain()
    }));
    let problem = match ran {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(wrong)) => wrong.to_string(),
        Err(panic) => panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref().copied())
            .unwrap_or("a panic")
            .to_owned(),
    };
    let story = pair.story();
    Err(TestCaseError::fail(format!(
        "{problem}\n\nThis is what happened ({platform:?}, {trigger:?}):\n{story}\n"
    )))
}
