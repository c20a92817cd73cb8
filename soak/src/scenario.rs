//! The four scenarios, and what must hold in each.
//!
//! A scenario is a number of equal rounds. After each of them everything is drained, and what is on the heap then must not
//! depend on how much traffic there was: the first round warms up, and all later ones together may add no more than
//! [`SLACK`]. So it takes no judgement of a noisy curve to see a leak: each scenario has so many requests after its
//! warm-up that 8 bytes for each would be more. And when the provider has been shut down, all is as it was before.

use std::io;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use opentelemetry_otlp_direct::Signal;
use opentelemetry_per_request::{DropReason, Dropped, LateReason};

use crate::load::{SPANS, THREADS};
use crate::measure::Line;
use crate::receiver::{Items, Mode};
use crate::watch::{Extremes, Watch};
use crate::world::{
    Drained, MAX_EXPORTS, MAX_PENDING, MAX_TRACES, World, settled_bytes, wait_until,
};

/// What libraries set up for themselves meanwhile, and what a few more idle threads have.
const SLACK: i64 = 64 * 1024;

/// The same for the memory of the process, which the allocator gives back when it likes.
const RESIDENT_SLACK: i64 = 48 * 1024 * 1024;

/// What a pending span, or log record, may take on the heap, with its share of a context, a token, a batch and a request's body.
const PENDING_BYTES: i64 = 2 * 1024;

/// Workers for each signal, one for a call that is not an export and one to drop things; the driver, the I/O and the log
/// thread.
const MAX_THREADS: usize = 3 * MAX_EXPORTS as usize + 2 + 3;

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
    /// Spans and lines that were made.
    made: [u64; 2],
    /// Spans that an observer saw open, and close.
    seen: [u64; 2],
    /// Of spans, log records and points, by the exporter's numbers.
    exporter_exported: [u64; 3],
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
        let watch = Watch::start(world.telemetry.handle());
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
            made: [world.load.spans(), world.load.lines()],
            seen: [&world.seen.opened, &world.seen.closed].map(|seen| seen.load(Ordering::Relaxed)),
            exporter_exported: [Signal::Traces, Signal::Logs, Signal::Metrics]
                .map(|signal| world.exporter.stats_of(signal).exported()),
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
        let taken_in = [stats.ended, stats.logs.received];
        must(broken, taken_in == self.made, || {
            let made = self.made;
            format!("{made:?} spans and lines were made, {taken_in:?} ended")
        });
        must(broken, self.seen == [self.made[0]; 2], || {
            let [opened, closed] = self.seen;
            format!(
                "{} spans were made, {opened} were seen to open, {closed} to close",
                self.made[0]
            )
        });
        let exported = [stats.exported, stats.logs.exported, stats.metrics.exported];
        must(broken, exported == self.exporter_exported, || {
            let by_exporter = self.exporter_exported;
            format!(
                "exported: {exported:?} say the processor's numbers, {by_exporter:?} the exporter's"
            )
        });
    }

    /// All that the rounds made has arrived, each span and each line once.
    fn must_be_complete(&self, broken: &mut Broken) {
        let numbers = |drained: &Drained| {
            drained.signals().map(|signal| {
                let items = signal.items;
                [signal.exported, items.taken, items.distinct].map(|arrived| signal.made - arrived)
            })
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
        let within = seen.pending.max(seen.pending_logs) <= MAX_PENDING
            && seen.traces <= MAX_TRACES
            && seen.threads <= MAX_THREADS;
        must(broken, within, || format!("out of bounds: {seen:?}"));
    }
}

/// The account of a signal whose items belong to requests, drained, beside what the receiver has of it.
struct Account {
    name: &'static str,
    made: u64,
    exported: u64,
    failed: u64,
    dropped: Dropped,
    items: Items,
}

impl Drained {
    fn signals(&self) -> [Account; 2] {
        let (stats, tally) = (&self.stats, &self.tally);
        [
            Account {
                name: "spans",
                made: stats.ended,
                exported: stats.exported,
                failed: stats.failed,
                dropped: stats.dropped,
                items: tally.spans,
            },
            Account {
                name: "logs",
                made: stats.logs.received,
                exported: stats.logs.exported,
                failed: stats.logs.failed,
                dropped: stats.logs.dropped,
                items: tally.logs,
            },
        ]
    }

    fn check(&self, broken: &mut Broken) {
        let (stats, tally) = (&self.stats, &self.tally);
        for signal in self.signals() {
            let name = signal.name;
            let accounted = signal.exported + signal.failed + signal.dropped.total();
            must(broken, signal.made == accounted, || {
                format!("{name}: drained, and not accounted for: {stats:?}")
            });
            must(broken, signal.items.strays == 0, || {
                format!("{name} under a token that is not their own: {tally:?}")
            });
            let Items {
                taken, distinct, ..
            } = signal.items;
            let held = taken == distinct && signal.arrived_as_counted(taken);
            must(broken, held, || {
                format!("{name}: the receiver has something else: {tally:?} {stats:?}")
            });
        }
        let metrics = &stats.metrics;
        let held = metrics.received == metrics.exported + metrics.failed
            && metrics.exported <= tally.points
            && tally.points <= metrics.exported + metrics.failed
            && tally.stray_points == 0;
        must(broken, held, || {
            format!("points: the receiver has something else: {tally:?} {metrics:?}")
        });
        // Totals, of which the last has arrived: whatever was lost before is in it.
        must(broken, tally.counted == self.requests, || {
            format!("of {} requests are counted: {tally:?}", self.requests)
        });
    }
}

impl Account {
    /// What was answered 200 is never sent again; what was not may be, and then arrives twice. An answer that came when the
    /// exporter had given up is an item that arrived and counts as failed: at least once, never less.
    fn arrived_as_counted(&self, taken: u64) -> bool {
        self.exported <= taken && taken <= self.exported + self.failed
    }
}

fn check_hung(outcome: &Outcome, broken: &mut Broken) {
    let last = outcome.last();
    for signal in last.signals() {
        let dropped = signal.dropped.by(DropReason::QueueFull);
        must(
            broken,
            dropped > 0 && dropped == signal.dropped.total(),
            || {
                let stats = &last.stats;
                format!("what does not fit is to be dropped for that reason: {stats:?}")
            },
        );
    }
    let seen = &outcome.extremes;
    let least = seen.pending.min(seen.pending_logs);
    must(broken, least > MAX_PENDING * 9 / 10, || {
        format!("it was never full: {seen:?}")
    });
    // Those that are being made are not pending.
    let most = (2 * MAX_PENDING + THREADS * (SPANS + 1)) as i64 * PENDING_BYTES;
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
        0 < evicted && evicted <= late && late == tally.spans.late,
        || format!("{evicted} were evicted with an open span, {late} were late: {tally:?}"),
    );
    must(broken, stats.late.by(LateReason::TraceEvicted) > 0, || {
        format!("no eviction was remembered: {stats:?}")
    });
    let late = stats.logs.late.total();
    must(broken, late == tally.logs.late, || {
        format!("{late} lines were late: {tally:?}")
    });
}

fn check_flapping(outcome: &Outcome, broken: &mut Broken) {
    let tally = &outcome.last().tally;
    must(broken, tally.spans.late + tally.logs.late == 0, || {
        format!("some were late: {tally:?}")
    });
}

fn check_steady(outcome: &Outcome, broken: &mut Broken) {
    outcome.must_be_complete(broken);
}
