//! The four scenarios, and what must hold in each.
//!
//! A scenario is a number of equal rounds. After each of them everything is drained, and what is on the heap then must not
//! depend on how much traffic there was: the first round warms up, and all later ones together may add no more than
//! [`SLACK`]. So it takes no judgement of a noisy curve to see a leak: each scenario has so many requests after its
//! warm-up that 8 bytes for each would be more. And when the provider has been shut down, all is as it was before.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use opentelemetry_per_request::{DropReason, LateReason};

use crate::load::{SPANS, THREADS};
use crate::measure::Line;
use crate::receiver::Mode;
use crate::watch::{Extremes, Watch};
use crate::world::{
    Drained, MAX_EXPORTS, MAX_PENDING, MAX_TRACES, World, settled_bytes, wait_until,
};

/// What libraries set up for themselves meanwhile, and what a few more idle threads have.
const SLACK: i64 = 64 * 1024;

/// The same for the memory of the process, which the allocator gives back when it likes.
const RESIDENT_SLACK: i64 = 48 * 1024 * 1024;

/// What a pending span may take on the heap, with its share of a context, a token, a batch and a request's body.
const PENDING_BYTES: i64 = 2 * 1024;

/// Workers, one for a call that is not an export and one to drop things; the driver, the I/O and the log thread.
const MAX_THREADS: usize = MAX_EXPORTS as usize + 2 + 3;

/// One kind of load.
#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// Rounds after the one that warms up.
    rounds: u32,
    round: fn(&mut World) -> io::Result<()>,
    /// What must hold in this one and need not in others.
    check: fn(&Outcome, &mut Broken),
}

pub(crate) const ALL: [Scenario; 4] = [
    Scenario {
        name: "hung",
        rounds: 1,
        round: hung,
        check: check_hung,
    },
    Scenario {
        name: "never ending",
        rounds: 1,
        round: never_ending,
        check: check_never_ending,
    },
    Scenario {
        name: "flapping",
        rounds: 2,
        round: flapping,
        check: check_flapping,
    },
    Scenario {
        name: "steady",
        rounds: 2,
        round: steady,
        check: check_steady,
    },
];

/// How a scenario went.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) name: &'static str,
    pub(crate) live_before: i64,
    pub(crate) live_after: i64,
    /// Before the first round.
    pub(crate) filled: Drained,
    /// After each round. The first one is the warm-up.
    pub(crate) drained: Vec<Drained>,
    pub(crate) extremes: Extremes,
    pub(crate) took: Duration,
    spans: u64,
    exporter_exported: u64,
}

/// What did not hold.
pub(crate) type Broken = Vec<String>;

impl Scenario {
    /// Runs it for this time, and at least all its rounds.
    pub(crate) fn run(&self, at_least: Duration) -> io::Result<(Outcome, Broken)> {
        let start = Instant::now();
        // Made before anything is measured, with room for some hours.
        let mut drained = Vec::with_capacity(1 << 12);
        let live_before = settled_bytes();
        let mut world = World::new()?;
        let filled = world.fill()?;
        let watch = Watch::start(world.telemetry.clone());
        while drained.len() <= self.rounds as usize || start.elapsed() < at_least {
            (self.round)(&mut world)?;
            drained.push(world.drain()?);
            if drained.len() == 1 {
                watch.is_warm();
            }
        }
        let mut outcome = Outcome {
            name: self.name,
            live_before,
            live_after: 0,
            extremes: watch.extremes(),
            filled,
            took: Duration::ZERO,
            spans: world.load.spans(),
            exporter_exported: world.exporter.stats().exported(),
            drained,
        };
        drop(watch);
        world.end()?;
        outcome.live_after = settled_bytes();
        outcome.took = start.elapsed();
        let mut broken = Broken::new();
        outcome.check(&mut broken);
        (self.check)(&outcome, &mut broken);
        Ok((outcome, broken))
    }
}

// ===== rounds =====

/// 100,000 requests while nobody answers, so 200,000 in the short form, and until exports are given up. Then somebody does.
fn hung(world: &mut World) -> io::Result<()> {
    world.collector.be(Mode::Hang)?;
    let failed = world.telemetry.stats().failed;
    world.load.burst(100_000, SPANS);
    wait_until("an export that is given up", || {
        Ok(world.telemetry.stats().failed > failed)
    })?;
    world.collector.be(Mode::Answer)
}

/// 50,000 spans that stay open until all of them have started: all but the last ones are evicted. Then they do end.
fn never_ending(world: &mut World) -> io::Result<()> {
    let mut open = Vec::new();
    for _ in 0..25 {
        open.extend(world.load.open(2_000));
        // Not to be a question of how many may be pending.
        world.flush()?;
    }
    let (traces, contexts) = (world.telemetry.stats().traces, world.load.contexts() as u64);
    if (traces, contexts) != (MAX_TRACES, MAX_TRACES) {
        let message = format!(
            "{} spans are open: {traces} traces, {contexts} contexts",
            open.len()
        );
        return Err(io::Error::other(message));
    }
    while !open.is_empty() {
        // Dropping a span ends it.
        open.drain(..open.len().min(2_000));
        world.flush()?;
    }
    Ok(())
}

/// A collector that answers for a second, and for the next one does not, in three ways.
fn flapping(world: &mut World) -> io::Result<()> {
    const SECOND: Duration = Duration::from_secs(1);
    let World {
        load,
        collector,
        telemetry,
        ..
    } = world;
    thread::scope(|scope| {
        scope.spawn(|| load.steady(2_000, 6 * SECOND, || true));
        for fault in [Mode::Busy, Mode::Break, Mode::Hang] {
            let before = telemetry.stats().exported;
            collector.be(Mode::Answer)?;
            thread::sleep(SECOND);
            if telemetry.stats().exported == before {
                return Err(io::Error::other(
                    "nothing arrives while the collector answers",
                ));
            }
            collector.be(fault)?;
            thread::sleep(SECOND);
        }
        collector.be(Mode::Answer)
    })
}

fn steady(world: &mut World) -> io::Result<()> {
    // On a machine that is too slow for it, it is not to be a question of how many may be pending.
    let welcome = || world.telemetry.stats().pending() < MAX_PENDING / 2;
    let duration = Duration::from_secs(4);
    world.load.steady(2_000, duration, welcome);
    Ok(())
}

// ===== what must hold =====

fn must(broken: &mut Broken, holds: bool, what: impl FnOnce() -> String) {
    if !holds {
        broken.push(what());
    }
}

impl Outcome {
    pub(crate) fn last(&self) -> &Drained {
        &self.drained[self.drained.len() - 1]
    }

    pub(crate) fn warm(&self) -> &Drained {
        &self.drained[0]
    }

    /// Bytes on the heap, drained, by this measure of the traffic, after the warm-up.
    pub(crate) fn slope_by(&self, measure: impl Fn(&Drained) -> f64) -> f64 {
        let point = |drained: &Drained| (measure(drained), drained.live_bytes as f64);
        self.drained.iter().map(point).collect::<Line>().slope()
    }

    /// What must hold in every scenario.
    fn check(&self, broken: &mut Broken) {
        self.check_memory(broken);
        self.check_bounds(broken);
        for drained in &self.drained {
            drained.check(broken);
        }
        let stats = &self.last().stats;
        must(broken, stats.ended == self.spans, || {
            format!("{} spans were made, {} ended", self.spans, stats.ended)
        });
        must(broken, stats.exported == self.exporter_exported, || {
            let by_exporter = self.exporter_exported;
            format!(
                "exported: {} say the processor's numbers, {by_exporter} the exporter's",
                stats.exported
            )
        });
    }

    /// All that the rounds made has arrived, each span once.
    fn must_be_complete(&self, broken: &mut Broken) {
        let numbers = |Drained { stats, tally, .. }: &Drained| {
            let made = stats.ended;
            [stats.exported, tally.taken, tally.distinct].map(|arrived| made - arrived)
        };
        let (before, after) = (numbers(&self.filled), numbers(self.last()));
        must(broken, before == after, || {
            format!("not everything arrived: {:?}", self.last())
        });
    }

    fn check_memory(&self, broken: &mut Broken) {
        let grown = self.last().live_bytes - self.warm().live_bytes;
        must(broken, grown <= SLACK, || {
            format!("{grown} bytes more on the heap than after the warm-up")
        });
        let grown = self.last().resident_bytes - self.warm().resident_bytes;
        must(broken, grown <= RESIDENT_SLACK, || {
            format!("{grown} bytes more in memory than after the warm-up")
        });
        let left = self.live_after - self.live_before;
        must(broken, left <= SLACK, || {
            format!("{left} bytes are left on the heap after shutdown")
        });
    }

    fn check_bounds(&self, broken: &mut Broken) {
        let seen = &self.extremes;
        must(
            broken,
            seen.unbalanced.is_none() && seen.looks > 100,
            || format!("the account did not add up: {seen:?}"),
        );
        let within =
            seen.pending <= MAX_PENDING && seen.traces <= MAX_TRACES && seen.threads <= MAX_THREADS;
        must(broken, within, || format!("out of bounds: {seen:?}"));
    }
}

impl Drained {
    fn check(&self, broken: &mut Broken) {
        let (stats, tally) = (&self.stats, &self.tally);
        let accounted = stats.exported + stats.failed + stats.dropped.total();
        must(broken, stats.ended == accounted, || {
            format!("drained, and not accounted for: {stats:?}")
        });
        must(broken, tally.strays == 0, || {
            format!("spans under a token that is not their own: {tally:?}")
        });
        // What was answered 200 is never sent again; what was not may be, and then arrives twice. An answer that came
        // when the exporter had given up is a span that arrived and counts as failed: at least once, never less.
        let held = tally.taken == tally.distinct
            && stats.exported <= tally.taken
            && tally.taken <= stats.exported + stats.failed;
        must(broken, held, || {
            format!("the receiver has something else: {tally:?} {stats:?}")
        });
    }
}

fn check_hung(outcome: &Outcome, broken: &mut Broken) {
    let stats = &outcome.last().stats;
    let dropped = stats.dropped.by(DropReason::QueueFull);
    must(
        broken,
        dropped > 0 && dropped == stats.dropped.total(),
        || format!("what does not fit is to be dropped for that reason: {stats:?}"),
    );
    let seen = &outcome.extremes;
    must(broken, seen.pending > MAX_PENDING * 9 / 10, || {
        format!("it was never full: {seen:?}")
    });
    // Those that are being made are not pending.
    let most = (MAX_PENDING + THREADS * SPANS) as i64 * PENDING_BYTES;
    let grown = seen.live_bytes - outcome.live_before;
    must(broken, grown <= most, || {
        format!("{grown} bytes on the heap while the collector hung, of {most}")
    });
}

fn check_never_ending(outcome: &Outcome, broken: &mut Broken) {
    let Drained { stats, tally, .. } = outcome.last();
    outcome.must_be_complete(broken);
    let late = stats.late.total();
    let evicted = stats.evicted_traces;
    // Each trace had its root open, and a few were evicted before their child started.
    must(
        broken,
        0 < evicted && evicted <= late && late == tally.late,
        || format!("{evicted} were evicted with an open span, {late} were late: {tally:?}"),
    );
    must(broken, stats.late.by(LateReason::TraceEvicted) > 0, || {
        format!("no eviction was remembered: {stats:?}")
    });
}

fn check_flapping(outcome: &Outcome, broken: &mut Broken) {
    let tally = &outcome.last().tally;
    must(broken, tally.late == 0, || {
        format!("some were late: {tally:?}")
    });
}

fn check_steady(outcome: &Outcome, broken: &mut Broken) {
    outcome.must_be_complete(broken);
}
