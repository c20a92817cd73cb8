//! Race models: two or three threads do what may happen at the same moment, and a checker tries the interleavings.
//!
//! Each model asks one question of the real code, from `on_end` to the exporter; only the exporter is scripted, and only
//! the tokio runtime is left out. Two checkers take turns, because each reaches what the other cannot:
//!
//! - loom (`exhaustive`) tries *every* interleaving with at most [`PREEMPTIONS`] forced switches. It has room for five
//!   threads and no more than short models, so these have no driver until the end, where the model's own thread is it.
//! - shuttle (`shell`) tries [`RUNS`] interleavings of the whole shell, driver and workers and all, half of them at random
//!   and half by a scheduler that looks for bugs of few switches (PCT).
//!
//! Time stands still unless a model lets it pass, so no deadline, look-around or idle time ever saves a lost wake-up: it
//! is reported as a deadlock. So is a thread of ours that never ends.
//!
//! `cargo xtask races` runs them, and `cargo xtask races <name>` those with that in their name. A model of shuttle that
//! fails prints its schedule; `RACES_REPLAY=<schedule> cargo xtask races <name>` runs that one interleaving again. One of
//! loom takes the same way each time, so it fails again by itself; `LOOM_LOG=1` says what happens in it.

#[cfg(races = "loom")]
mod exhaustive;
mod exporter;
mod open_spans;
#[cfg(races = "shuttle")]
mod shell;

use std::future::Future;
use std::pin::pin;
use std::sync::{Mutex as Quiet, PoisonError};
use std::task::{Context as TaskContext, Poll, Wake, Waker};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry::trace::{SpanId, TraceFlags, TraceId};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{SdkMeterProvider, Temporality};

use super::{OwnRuntime, Shared, driver};
use crate::clock::Instant;
use crate::config::{Config, OpenEvents};
use crate::dispatch::collections::Pace;
use crate::dispatch::{Dispatch, Emitted, Scope};
use crate::error::FlushError;
use crate::export::{OfLogs, OfMetrics, OfSpans};
use crate::observer::SpanObserver;
use crate::open_spans::OpenSpan;
use crate::reader::{Collector as Instruments, PerRequestMetricReader};
use crate::request::RequestId;
use crate::signal::{PerSignal, Signal, Signals};
use crate::stats::{DropReason, SignalStats, Stats};
use crate::sync::races::clock;
use crate::sync::{Arc, Condvar, Mutex, Weak, thread};
use crate::testing::{log, span, span_with_flags};

use exporter::{Collector, Manner, Scripted};
use open_spans::Ear;

/// Three switches at bad moments are what it takes for each known kind of lost wake-up or double account, and four take
/// ten times as long.
#[cfg(races = "loom")]
const PREEMPTIONS: usize = 3;

/// A run of loom that takes more steps than this is one that never ends.
#[cfg(races = "loom")]
const MAX_BRANCHES: usize = 10_000;

#[cfg(races = "shuttle")]
const RUNS: usize = 10_000;

/// A run of shuttle that takes more steps than this is one that never ends.
#[cfg(races = "shuttle")]
const MAX_STEPS: usize = 100_000;

/// How many switches at bad moments PCT looks for.
#[cfg(races = "shuttle")]
const DEPTH: usize = 3;

/// Long, and irrelevant: see [`clock::pass`].
const TIMEOUT: Duration = Duration::from_secs(30);

#[cfg(races = "loom")]
fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(PREEMPTIONS);
    builder.max_branches = MAX_BRANCHES;
    builder.check(move || {
        clock::reset();
        model();
    });
}

#[cfg(races = "shuttle")]
fn check(model: impl Fn() + Send + Sync + 'static) {
    use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler};

    let model = Arc::new(move || {
        clock::reset();
        model();
    });
    let mut config = shuttle::Config::new();
    // What is moved through here unoptimized takes more stack than shuttle gives by default.
    config.stack_size = 0x4_0000;
    config.max_steps = shuttle::MaxSteps::FailAfter(MAX_STEPS);
    // It warns that it knows no relaxed atomics. The two there are order nothing.
    config.silence_warnings = true;
    let run = model.clone();
    if let Ok(schedule) = std::env::var("RACES_REPLAY") {
        let replay = ReplayScheduler::new_from_encoded(schedule.trim());
        shuttle::Runner::new(replay, config).run(move || run());
        return;
    }
    shuttle::Runner::new(RandomScheduler::new(RUNS / 2), config.clone()).run(move || run());
    shuttle::Runner::new(PctScheduler::new(DEPTH, RUNS / 2), config).run(move || model());
}

/// A value in the context of a request: its number. What is left of it can be counted.
#[derive(Debug)]
struct Tenant {
    number: u64,
    /// Asked when it is dropped, as a span that ends then would ask: under the lock, that would wait for itself (R3).
    shared: Weak<Shared>,
}

impl Drop for Tenant {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.stats();
        }
    }
}

/// Whose spans leave under the fallback context.
const FALLBACK: u64 = 0;

/// The processor of one run, with everything that it was asked to do.
#[derive(Debug)]
struct Model {
    shared: Arc<Shared>,
    /// Of spans.
    collector: Arc<Collector>,
    /// Of all signals, whether they are exported or not.
    collectors: PerSignal<Arc<Collector>>,
    tenants: Quiet<Vec<Weak<Tenant>>>,
    /// The spans whose end has returned.
    ended: Quiet<Vec<u64>>,
    /// The spans in which a record was emitted, when that has returned.
    emitted: Quiet<Vec<u64>>,
    /// Whether anybody is to be told of open spans.
    tells: bool,
    /// Who is told, if it listens.
    ear: Arc<Ear>,
    /// What metrics come from.
    meters: Quiet<Option<SdkMeterProvider>>,
}

fn config() -> Config {
    Config::from_lookup(|_| None)
        .with_max_concurrent_exports(1)
        .with_export_timeout(TIMEOUT)
}

impl Model {
    /// The processor without its driver, with so few workers that loom has room for all threads.
    #[cfg(races = "loom")]
    fn undriven(config: &Config, manner: Manner, max_workers: usize) -> Arc<Self> {
        let model = Self::new(config, manner, false);
        model.shared.state.lock().pool.max_workers = max_workers;
        model
    }

    /// The same, with an observer.
    #[cfg(races = "loom")]
    fn observed(config: &Config, manner: Manner, max_workers: usize) -> Arc<Self> {
        let model = Self::new(config, manner, true);
        model.shared.state.lock().pool.max_workers = max_workers;
        model
    }

    /// The whole processor.
    #[cfg(races = "shuttle")]
    fn driven(config: &Config, manner: Manner) -> Arc<Self> {
        let model = Self::new(config, manner, false);
        driver::spawn_driver(&model.shared).expect("the checker has room for a thread");
        model
    }

    /// The same, with an observer.
    #[cfg(races = "shuttle")]
    fn observed_and_driven(config: &Config, manner: Manner) -> Arc<Self> {
        let model = Self::new(config, manner, true);
        driver::spawn_driver(&model.shared).expect("the checker has room for a thread");
        model
    }

    fn new(config: &Config, manner: Manner, is_observed: bool) -> Arc<Self> {
        let collectors = PerSignal::new(|_| Arc::new(Collector::default()));
        let collector = collectors[Signal::Spans].clone();
        let exporter = Arc::new(OfSpans(Scripted::new(&collector, manner)));
        let (fallback, tenant) = context(FALLBACK, Weak::new());
        let mut dispatch = Dispatch::new(config, fallback, false);
        let ear = Arc::new(Ear::default());
        let observer = is_observed.then(|| ear.clone() as Arc<dyn SpanObserver>);
        if is_observed {
            dispatch.observe_spans();
        }
        let Ok(runtime) = OwnRuntime::new() else {
            unreachable!("there is none to start");
        };
        let shared = Shared::new(config, dispatch, exporter, runtime, false, observer);
        ear.listen_to(&shared);
        Arc::new(Self {
            shared,
            collector,
            collectors,
            tenants: Quiet::new(vec![tenant]),
            ended: Quiet::default(),
            emitted: Quiet::default(),
            tells: is_observed || config.open_events() != OpenEvents::Off,
            ear,
            meters: Quiet::default(),
        })
    }

    // ----- other signals -----

    /// From now on log records are exported, too.
    fn join_logs(&self, manner: Manner) {
        let exporter = Scripted::new(&self.collectors[Signal::Logs], manner);
        let joined = self.shared.join(Signal::Logs, Arc::new(OfLogs(exporter)));
        assert!(joined, "once");
    }

    /// From now on metrics are, and the first thing is measured.
    fn join_metrics(&self, config: &Config, manner: Manner) {
        let exporter = Scripted::new(&self.collectors[Signal::Metrics], manner);
        let joined = self
            .shared
            .join(Signal::Metrics, Arc::new(OfMetrics(exporter)));
        assert!(joined, "once");
        let instruments = Arc::new(Instruments::new(Temporality::Delta));
        // It shuts nothing down when it is dropped.
        let reader = PerRequestMetricReader::new(None, instruments.clone());
        let meters = SdkMeterProvider::builder()
            .with_resource(Resource::builder_empty().build())
            .with_reader(reader)
            .build();
        *quiet(&self.meters) = Some(meters);
        self.measure();
        let pace = Pace::new(config, Instant::now());
        self.shared.collect_from(instruments, pace);
    }

    /// There is something for the next collection to find.
    fn measure(&self) {
        if let Some(meters) = &*quiet(&self.meters) {
            let measured = meters.meter("model").u64_counter("measured").build();
            measured.add(1, &[]);
        }
    }

    /// Emits the record of a span.
    fn emit(&self, request: u64, index: u64) {
        let id = span_id(request, index);
        let of = Emitted::Within {
            trace: TraceId::from(trace(request)),
            span: SpanId::from(id),
            unrecorded: None,
        };
        self.shared.emit(log(trace(request), id), of);
        quiet(&self.emitted).push(id);
        self.stats();
    }

    // ----- what users do -----

    /// Starts the root of a request, in a context of its own.
    fn start(&self, request: u64) {
        let (context, tenant) = context(request, Arc::downgrade(&self.shared));
        quiet(&self.tenants).push(tenant);
        let root = SpanId::from(span_id(request, 0));
        let trace = TraceId::from(trace(request));
        self.shared
            .start_root(RequestId { trace, root }, context, self.opening(request, 0));
    }

    fn start_child(&self, request: u64, child: u64) {
        let id = |index| SpanId::from(span_id(request, index));
        let trace = TraceId::from(trace(request));
        let opening = self.opening(request, child);
        self.shared.start_child(trace, id(0), id(child), opening);
    }

    /// What is remembered of a span that starts.
    fn opening(&self, request: u64, index: u64) -> Option<Box<OpenSpan>> {
        let id = span_id(request, index);
        let opening = || OpenSpan::starting(span(trace(request), id), Instant::now());
        self.tells.then(opening)
    }

    fn rename(&self, request: u64, index: u64, name: &'static str) {
        let id = SpanId::from(span_id(request, index));
        let trace = TraceId::from(trace(request));
        self.shared.rename(trace, id, name.into());
        self.stats();
    }

    /// Lets go of a child that is no span: of a hold.
    fn release(&self, request: u64, index: u64) {
        let id = SpanId::from(span_id(request, index));
        self.shared.release(TraceId::from(trace(request)), id);
        self.stats();
    }

    fn end(&self, request: u64, index: u64) {
        self.end_as(request, index, "test");
    }

    /// A span ends that has got this name.
    fn end_as(&self, request: u64, index: u64, name: &'static str) {
        let id = span_id(request, index);
        let mut span = span(trace(request), id);
        span.name = name.into();
        self.shared.end(span);
        quiet(&self.ended).push(id);
        self.stats();
    }

    /// A span that is not sampled ends, so nothing leaves.
    fn end_unsampled(&self, request: u64, index: u64) {
        let id = span_id(request, index);
        let flags = TraceFlags::default();
        self.shared.end(span_with_flags(trace(request), id, flags));
        self.stats();
    }

    /// A request of one span.
    fn request(&self, request: u64) {
        self.start(request);
        self.end(request, 0);
    }

    /// Flushes. What Ok promises is checked (R11).
    fn flush(&self) -> Result<(), FlushError> {
        let before = quiet(&self.ended).clone();
        let spans = Signals::of(Signal::Spans);
        let result = block_on(self.shared.flush(spans, Scope::All, TIMEOUT));
        if result.is_ok() {
            let acknowledged = self.collector.acknowledged();
            let missing: Vec<_> = before
                .iter()
                .filter(|id| !acknowledged.contains(id))
                .collect();
            assert!(missing.is_empty(), "flush said Ok without {missing:?}");
        }
        result
    }

    /// Shuts down. What Ok promises is checked.
    fn shut_down(&self) -> Result<(), FlushError> {
        self.shut_down_signal(Signal::Spans)
    }

    fn shut_down_signal(&self, signal: Signal) -> Result<(), FlushError> {
        let result = block_on(self.shared.shutdown(signal, TIMEOUT));
        if result.is_ok() {
            let shutdowns = self.collectors[signal].shutdowns();
            assert_eq!(shutdowns, 1, "shutdown returned early");
        }
        result
    }

    /// Shuts down, with this thread for a driver.
    fn shut_down_driving(&self) -> Result<(), FlushError> {
        let done = self.shared.shutdown(Signal::Spans, TIMEOUT);
        driver::drive(&self.shared);
        block_on(done)
    }

    /// The same, with another signal.
    fn shut_down_both_driving(&self, other: Signal) -> [Result<(), FlushError>; 2] {
        let both = [Signal::Spans, other];
        let done = both.map(|signal| self.shared.shutdown(signal, TIMEOUT));
        driver::drive(&self.shared);
        done.map(block_on)
    }

    /// A snapshot, in which the accounting law holds (R12).
    fn stats(&self) -> Stats {
        let stats = self.shared.stats();
        assert!(stats.is_balanced(), "{stats:?}");
        stats
    }

    // ----- what must be true at the end -----

    /// After a shutdown: all threads end; every span reached the exporter once, or is counted as lost; nothing was exported
    /// under another request's context, above the bound or behind the shutdown; and no saved context is left.
    fn check(self: Arc<Self>, max_concurrent: usize) {
        while Arc::strong_count(&self.shared) > 1 {
            thread::yield_now();
        }
        let stats = self.stats();
        assert_eq!(stats.ended, quiet(&self.ended).len() as u64, "{stats:?}");
        let emitted = quiet(&self.emitted).len() as u64;
        assert_eq!(stats.logs.received, emitted, "{stats:?}");
        let of_each = [of_spans(&stats), stats.logs, stats.metrics];
        for (signal, stats) in Signal::ALL.into_iter().zip(&of_each) {
            let collector = &self.collectors[signal];
            assert_eq!(stats.pending(), 0, "{stats:?}");
            // One that nobody exports has nothing to be shut down.
            if signal == Signal::Spans || collector.shutdowns() > 0 {
                collector.check(stats, max_concurrent);
            }
            if signal != Signal::Metrics {
                // What is dropped before its export is late nevertheless.
                let (under_fallback, late) = (collector.under_fallback(), stats.late.total());
                let dropped = stats.dropped.by(DropReason::ShutdownTimeout);
                let possible = late.saturating_sub(dropped)..=late;
                assert!(possible.contains(&under_fallback), "{stats:?} (R8)");
            }
        }
        // The processor itself is still there, as it is for as long as there are handles.
        let left: Vec<u64> = quiet(&self.tenants)
            .iter()
            .filter_map(Weak::upgrade)
            .map(|tenant| tenant.number)
            .filter(|tenant| *tenant != FALLBACK)
            .collect();
        assert_eq!(left, [], "contexts of these tenants are left (R9)");
    }
}

/// A context of this tenant, and what tells whether it is left.
fn context(number: u64, shared: Weak<Shared>) -> (Context, Weak<Tenant>) {
    let tenant = Arc::new(Tenant { number, shared });
    let left = Arc::downgrade(&tenant);
    (Context::new().with_value(tenant), left)
}

/// What the account says of spans that an exporter can be asked about.
fn of_spans(stats: &Stats) -> SignalStats {
    SignalStats {
        received: stats.ended,
        exported: stats.exported,
        failed: stats.failed,
        dropped: stats.dropped,
        late: stats.late,
        queued: stats.queued,
        waiting: stats.waiting,
        in_flight: stats.in_flight,
        exports: stats.exports,
        timed_out_exports: stats.timed_out_exports,
    }
}

/// The id of a span, which tells its request. The root has index 0.
fn span_id(request: u64, index: u64) -> u64 {
    request * 10 + index
}

/// Requests 1 and 101 have the same trace id.
fn trace(request: u64) -> u128 {
    u128::from(request % 100)
}

/// Locks what is no part of the model: the checker does not notice, so nobody may wait while holding it.
fn quiet<T>(lock: &Quiet<T>) -> std::sync::MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a thread of the model.
fn also(model: &Arc<Model>, run: impl FnOnce(&Model) + Send + 'static) -> impl FnOnce() {
    let model = model.clone();
    let thread = spawn(move || run(&model));
    move || assert!(thread.join().is_ok(), "a thread of the model panicked")
}

fn spawn(run: impl FnOnce() + Send + 'static) -> thread::JoinHandle<()> {
    let thread = thread::Builder::new().spawn(run);
    thread.expect("the checker has room for a thread")
}

#[derive(Debug, Default)]
struct Bell {
    rung: Mutex<bool>,
    heard: Condvar,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        *self.rung.lock() = true;
        self.heard.notify_one();
    }
}

/// Polls only when woken, so a future that is not woken is a deadlock.
fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let bell = Arc::new(Bell::default());
    let waker = Waker::from(bell.clone());
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut TaskContext::from_waker(&waker)) {
            return output;
        }
        let mut rung = bell.rung.lock();
        while !*rung {
            rung = bell.heard.wait(rung);
        }
        *rung = false;
    }
}
