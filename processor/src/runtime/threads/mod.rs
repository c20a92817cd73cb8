//! The native runtime: one driver thread that paces everything, and workers that call the exporter.
//!
//! A span that ends wakes nobody while the driver is awake. The driver lets a millisecond pass, takes all that is due, and
//! calls for a worker; it never calls the exporter itself, nor a log subscriber, so neither can stop it. Workers start
//! exports and poll those that were woken, whoever started them, so an export that blocks its thread holds up no other.
//! While the exporter is not known to return quickly, a worker that takes something calls for another one for the rest; and
//! when there is something to take and nobody took it for a while, all workers are blocked, and the driver calls for one.

mod driver;
mod pool;
#[cfg(all(test, races))]
// Each checker uses a part of it.
#[allow(dead_code)]
mod races;
mod tokio_runtime;
mod wait;
mod worker;

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry::otel_warn;
use opentelemetry::trace::{SpanId, TraceId};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanData;

use crate::clock::Instant;
use crate::config::Config;
#[cfg(feature = "logs")]
use crate::dispatch::Emitted;
#[cfg(feature = "metric-reader")]
use crate::dispatch::collections::Pace;
use crate::dispatch::{Dispatch, Losses, Report, Scope};
use crate::error::{ConfigError, FlushError};
use crate::export::{AnyExporter, Retired};
use crate::hash::IdHash;
use crate::notices::{Example, Kind};
use crate::observer::{LifecycleEvent, SpanObserver};
use crate::open_spans::OpenSpan;
#[cfg(feature = "metric-reader")]
use crate::reader::{Collector, TOO_MANY};
use crate::request::RequestId;
use crate::runtime::{Observer, drop_quietly};
#[cfg(feature = "logs")]
use crate::signal::LogData;
use crate::signal::{PerSignal, Signal, Signals};
use crate::stats::Stats;
use crate::sync::{Arc, AtomicU64, Condvar, Mutex, MutexGuard, Ordering, thread};

use pool::{Pool, Summons};
pub(crate) use tokio_runtime::OwnRuntime;
use wait::mark_own_thread;

/// What the processors, their handles and their threads share.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Wakes the driver. Its partner is `Dispatch::asleep`, which says whether that is needed.
    driver: Condvar,
    /// Wakes an idle worker.
    workers: Condvar,
    /// Shared with exports under way. Only `set_resource` changes one, before the first span.
    exporters: Mutex<PerSignal<Arc<dyn AnyExporter>>>,
    #[cfg(feature = "metric-reader")]
    collector: Mutex<Option<Arc<Collector>>>,
    export_timeout: Duration,
    runtime: OwnRuntime,
    /// Whether the exporters were made inside our own runtime, and so need no other.
    independent: bool,
    /// Until the spans' exporter is let go.
    observer: Mutex<Option<Observer>>,
    /// Goes up whenever an export wakes up or ends. A synchronous wait watches it (see `wait`).
    progress: AtomicU64,
}

/// What the one lock protects.
#[derive(Debug)]
pub(crate) struct State {
    dispatch: Dispatch,
    pool: Pool,
    /// Calls that are not exports, for the next free thread.
    jobs: VecDeque<Job>,
    waiters: HashMap<u64, Waiter, IdHash>,
    /// How far each signal is.
    life: PerSignal<Life>,
    /// Whether a thread is logging notices.
    speaking: bool,
}

/// Where a signal is between its first item and the shutdown of its exporter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// Nobody exports it.
    Absent,
    Running,
    /// The exporter's `shutdown` has been scheduled.
    Finalized,
    /// The exporter's `shutdown` has been called.
    ShutDown,
}

impl Life {
    fn is_over(self) -> bool {
        matches!(self, Self::Absent | Self::ShutDown)
    }
}

/// Something that calls code of the user's, and is no export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Job {
    /// Call the exporter's `force_flush`, for this flush, whose batches are done.
    Flush(u64, Signal),
    /// Call the exporter's `force_flush` and then its `shutdown`.
    Shutdown(Signal),
    /// Collect metrics, for the batch of this id.
    #[cfg(feature = "metric-reader")]
    Collect(u64),
}

/// Somebody who waits for a flush.
struct Waiter {
    kind: WaiterKind,
    signals: Signals,
    /// Those whose exporter has not answered to its `force_flush`.
    unanswered: Signals,
    /// Whether metrics are collected for it.
    collects: bool,
    /// Why it will not have done all, whatever becomes of its batches.
    failure: Option<FlushError>,
    timeout: Duration,
    deadline: Option<Instant>,
    report: Report,
    answer: Answer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WaiterKind {
    Flush,
    Shutdown(Signal),
}

/// What a waiter is told.
#[derive(Debug)]
struct Told {
    result: Result<(), FlushError>,
    report: Report,
}

/// Events, and who is to be told of them.
struct Telling {
    observer: Observer,
    events: Vec<LifecycleEvent>,
}

/// How a waiter is told. Called once, never under the lock.
type Answer = Box<dyn FnOnce(Told) + Send>;

/// Answers that are to be given once the lock is released.
type Answers = Vec<(Answer, Told)>;

impl Told {
    fn now(result: Result<(), FlushError>) -> Self {
        let report = Report::default();
        Self { result, report }
    }
}

fn give(answers: Answers) {
    for (answer, told) in answers {
        // It wakes somebody, with a waker that is not ours.
        let _ = catch_unwind(AssertUnwindSafe(|| answer(told)));
    }
}

impl Shared {
    pub(crate) fn start(
        config: &Config,
        fallback: Context,
        mark_late: bool,
        exporter: Arc<dyn AnyExporter>,
        runtime: OwnRuntime,
        independent: bool,
        observer: Option<Arc<dyn SpanObserver>>,
    ) -> Result<Arc<Self>, ConfigError> {
        let mut dispatch = Dispatch::new(config, fallback, mark_late);
        if observer.is_some() {
            dispatch.observe_spans();
        }
        let shared = Self::new(config, dispatch, exporter, runtime, independent, observer);
        driver::spawn_driver(&shared).map_err(ConfigError::Thread)?;
        Ok(shared)
    }

    /// Without a driver yet.
    fn new(
        config: &Config,
        dispatch: Dispatch,
        exporter: Arc<dyn AnyExporter>,
        runtime: OwnRuntime,
        independent: bool,
        observer: Option<Arc<dyn SpanObserver>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                dispatch,
                pool: Pool::new(config.max_concurrent_exports()),
                jobs: VecDeque::new(),
                waiters: HashMap::default(),
                life: PerSignal::new(|signal| match signal {
                    Signal::Spans => Life::Running,
                    Signal::Logs | Signal::Metrics => Life::Absent,
                }),
                speaking: false,
            }),
            driver: Condvar::default(),
            workers: Condvar::default(),
            exporters: Mutex::new(PerSignal::new(|signal| match signal {
                Signal::Spans => exporter.clone(),
                Signal::Logs | Signal::Metrics => Arc::new(Retired),
            })),
            #[cfg(feature = "metric-reader")]
            collector: Mutex::new(None),
            export_timeout: config.export_timeout(),
            runtime,
            independent,
            observer: Mutex::new(observer.map(Observer)),
            progress: AtomicU64::new(0),
        })
    }

    /// Another signal is exported from now on, by this exporter. False if one is already, or if everything is shut down:
    /// then the signal is shut down, too.
    #[cfg(any(feature = "logs", feature = "metric-reader"))]
    pub(crate) fn join(&self, signal: Signal, exporter: Arc<dyn AnyExporter>) -> bool {
        // In this order: an exporter that is given its resource holds the exporters, and may log, which takes the state.
        let mut exporters = self.exporters.lock();
        let mut state = self.state.lock();
        let absent = state.life[signal] == Life::Absent;
        if absent && state.has_ended() {
            state.life[signal] = Life::ShutDown;
            state.dispatch.close(signal);
            return true;
        }
        if absent {
            state.dispatch.join(signal);
            state.life[signal] = Life::Running;
            exporters[signal] = exporter;
        }
        absent
    }

    /// Metrics come from this collector, as often as it says.
    #[cfg(feature = "metric-reader")]
    pub(crate) fn collect_from(&self, collector: Arc<Collector>, pace: Pace) {
        *self.collector.lock() = Some(collector);
        let mut state = self.state.lock();
        state.dispatch.set_pace(pace);
        self.wake_driver(&mut state);
    }

    // ----- the hot path -----

    pub(crate) fn start_root(&self, id: RequestId, context: Context, open: Option<Box<OpenSpan>>) {
        let mut state = self.state.lock();
        state.dispatch.start_root(id, context);
        if let Some(open) = open {
            state.dispatch.open(open);
        }
        self.unlock(state);
    }

    pub(crate) fn start_child(
        &self,
        trace: TraceId,
        parent: SpanId,
        span: SpanId,
        open: Option<Box<OpenSpan>>,
    ) {
        let mut state = self.state.lock();
        state.dispatch.start_child(trace, parent, span);
        if let Some(open) = open {
            state.dispatch.open(open);
        }
        self.unlock(state);
    }

    pub(crate) fn end(&self, span: SpanData) {
        let mut span = Some(span);
        let mut state = self.state.lock();
        let _open = state.dispatch.end(&mut span);
        self.unlock(state);
        // What is left of it is dropped here, without the lock.
    }

    /// A span has got another name.
    pub(crate) fn rename(&self, trace: TraceId, span: SpanId, name: Cow<'static, str>) {
        let mut state = self.state.lock();
        state.dispatch.rename(trace, span, name);
        self.unlock(state);
    }

    /// Whether this span is one of a live request.
    #[cfg(feature = "logs")]
    pub(crate) fn knows(&self, trace: TraceId, span: SpanId) -> bool {
        self.state.lock().dispatch.knows(trace, span)
    }

    #[cfg(feature = "logs")]
    pub(crate) fn emit(&self, log: LogData, of: Emitted) {
        let mut log = Some(log);
        let mut state = self.state.lock();
        state.dispatch.emit(&mut log, of);
        self.unlock(state);
        drop(log);
    }

    /// Keeps a request open with a child that is no span.
    pub(crate) fn hold(&self, trace: TraceId, parent: SpanId, id: SpanId) {
        let mut state = self.state.lock();
        state.dispatch.hold(trace, parent, id);
        self.unlock(state);
    }

    /// Lets go of a child that is no span.
    pub(crate) fn release(&self, trace: TraceId, id: SpanId) {
        let mut state = self.state.lock();
        state.dispatch.release(trace, id);
        self.unlock(state);
    }

    /// Notes something that the user should hear.
    pub(crate) fn note(&self, kind: Kind, count: u64, example: Example) {
        let mut state = self.state.lock();
        state.dispatch.notices.note(kind, count, example);
        self.unlock(state);
    }

    /// Releases the lock, wakes the driver if it sleeps while there is work, drops what is left over, and tells the observer.
    fn unlock(&self, state: MutexGuard<'_, State>) {
        if let Some(told) = self.unlock_untold(state) {
            self.tell(told);
        }
    }

    /// The same, and leaves it to the caller to tell the observer.
    fn unlock_untold(&self, mut state: MutexGuard<'_, State>) -> Option<Telling> {
        let wake = state.dispatch.must_wake();
        let left = state.dispatch.has_left_overs().then(|| {
            let contexts = state.dispatch.take_contexts();
            (contexts, self.take_told(&mut state))
        });
        drop(state);
        if wake {
            self.driver.notify_one();
        }
        let (contexts, told) = left?;
        drop_quietly(contexts);
        told
    }

    /// What is for this thread to tell.
    fn take_told(&self, state: &mut State) -> Option<Telling> {
        // Taken with the events, because the processor may let go of it before they are told.
        let observer = self.observer.lock().clone()?;
        let events = observer.take_told(&mut state.dispatch);
        Some(Telling { observer, events })
    }

    fn tell(&self, told: Telling) {
        let Telling { observer, events } = told;
        observer.tell(events, |act| {
            let mut state = self.state.lock();
            act(&mut state.dispatch);
            if state.dispatch.must_wake() {
                self.driver.notify_one();
            }
        });
        drop_quietly(observer);
    }

    // ----- flush and shutdown -----

    /// Starts a flush, which is done when its future is, or when its deadline has passed.
    pub(crate) fn flush(
        self: &Arc<Self>,
        signals: Signals,
        scope: Scope,
        timeout: Duration,
    ) -> impl Future<Output = Result<(), FlushError>> + Send + use<> {
        let (answer, heard) = self.answer();
        self.begin_flush(signals, scope, timeout, answer);
        heard
    }

    pub(crate) fn flush_blocking(
        self: &Arc<Self>,
        signals: Signals,
        timeout: Duration,
    ) -> Result<(), FlushError> {
        self.wait_for(|answer| self.begin_flush(signals, Scope::All, timeout, answer))
    }

    /// Takes no more of this signal, flushes, and shuts its exporter down. A second call is answered when the first one is
    /// done.
    pub(crate) fn shutdown(
        self: &Arc<Self>,
        signal: Signal,
        timeout: Duration,
    ) -> impl Future<Output = Result<(), FlushError>> + Send + use<> {
        let (answer, heard) = self.answer();
        self.begin_shutdown(signal, timeout, answer);
        heard
    }

    pub(crate) fn shutdown_blocking(
        self: &Arc<Self>,
        signal: Signal,
        timeout: Duration,
    ) -> Result<(), FlushError> {
        self.wait_for(|answer| self.begin_shutdown(signal, timeout, answer))
    }

    fn begin_flush(
        self: &Arc<Self>,
        signals: Signals,
        scope: Scope,
        timeout: Duration,
        answer: Answer,
    ) {
        // Metrics are of no trace.
        let signals = match scope {
            Scope::All => signals,
            _ if signals == Signals::of(Signal::Metrics) => signals,
            _ => signals.without(Signal::Metrics),
        };
        let mut state = self.state.lock();
        let covered = signals.iter().filter(|s| state.life[*s] != Life::Absent);
        let closed: Vec<bool> = covered.map(|s| state.dispatch.is_closed(s)).collect();
        if closed.iter().all(|closed| *closed) {
            drop(state);
            // What nobody exports is flushed.
            let result = closed
                .first()
                .map_or(Ok(()), |_| Err(FlushError::AlreadyShutdown));
            answer(Told::now(result));
            return;
        }
        let mut waiter = Waiter::new(WaiterKind::Flush, signals, timeout, answer);
        if scope == Scope::All && signals.contains(Signal::Metrics) {
            waiter.collects = true;
            waiter.failure = state.collect().err();
        }
        let id = state.dispatch.begin_flush(signals, scope);
        self.wait_with(state, id, waiter);
    }

    fn begin_shutdown(self: &Arc<Self>, signal: Signal, timeout: Duration, answer: Answer) {
        let mut state = self.state.lock();
        if state.life[signal].is_over() {
            drop(state);
            answer(Told::now(Ok(())));
            return;
        }
        let signals = Signals::of(signal);
        let mut waiter = Waiter::new(WaiterKind::Shutdown(signal), signals, timeout, answer);
        let id = match state.dispatch.is_closed(signal) {
            // A shutdown is under way: this one waits for its end.
            true => state.dispatch.new_id(),
            false => {
                if signal == Signal::Metrics {
                    waiter.collects = true;
                    waiter.failure = state.collect().err();
                }
                state.dispatch.close(signal);
                state.dispatch.begin_flush(signals, Scope::All)
            }
        };
        self.wait_with(state, id, waiter);
    }

    fn wait_with(self: &Arc<Self>, mut state: MutexGuard<'_, State>, id: u64, waiter: Waiter) {
        state.waiters.insert(id, waiter);
        state.advance();
        let summons = match state.wants_worker() {
            true => state.pool.summon(),
            false => Summons::Nobody,
        };
        // The driver watches the deadline, so it must look at it.
        self.wake_driver(&mut state);
        let told = self.unlock_untold(state);
        self.obey(summons);
        // The exports of a shutdown do not wait for the observer.
        if let Some(told) = told {
            self.tell(told);
        }
    }

    fn wake_driver(&self, state: &mut State) {
        state.dispatch.asleep = false;
        self.driver.notify_one();
    }

    /// The end of a wait: its caller hears the result, so no later flush needs to report the same losses.
    fn hear(&self, told: Told) -> Result<(), FlushError> {
        self.state.lock().dispatch.mark_reported(&told.report);
        told.result
    }

    /// The deadline of a flush for which none was given.
    pub(crate) fn default_timeout(&self) -> Duration {
        self.export_timeout
    }

    // ----- the exporter -----

    fn exporter(&self, signal: Signal) -> Arc<dyn AnyExporter> {
        self.exporters.lock()[signal].clone()
    }

    /// Lets go of the exporters, the observer and the runtime when all have done their work: handles may stay for long.
    fn retire(&self) {
        let observer = self.observer.lock().take();
        drop_quietly(observer);
        let retired = PerSignal::new(|_| Arc::new(Retired) as Arc<dyn AnyExporter>);
        let exporters = std::mem::replace(&mut *self.exporters.lock(), retired);
        drop_quietly(exporters);
        #[cfg(feature = "metric-reader")]
        drop_quietly(self.collector.lock().take());
        self.runtime.stop();
    }

    pub(crate) fn set_resource(&self, signal: Signal, resource: &Resource) {
        let mut exporters = self.exporters.lock();
        match Arc::get_mut(&mut exporters[signal]) {
            Some(exporter) => exporter.any_set_resource(resource),
            None => {
                otel_warn!(
                    name: "PerRequestSpanProcessor.ResourceIgnored",
                    message = "the resource was set while an export was under way; the exporter keeps the one it has"
                );
            }
        }
    }

    // ----- questions -----

    /// Whether there is an exporter of this signal.
    #[cfg(all(feature = "metrics", feature = "metric-reader"))]
    pub(crate) fn exports(&self, signal: Signal) -> bool {
        self.state.lock().life[signal] != Life::Absent
    }

    pub(crate) fn is_closed(&self, signal: Signal) -> bool {
        self.state.lock().dispatch.is_closed(signal)
    }

    pub(crate) fn stats(&self) -> Stats {
        self.state.lock().dispatch.stats()
    }

    #[cfg(feature = "metrics")]
    pub(crate) fn max_pending(&self, signal: Signal) -> u64 {
        self.state.lock().dispatch.max_pending(signal)
    }

    /// Whether it wants to know of spans that start.
    pub(crate) fn remembers_open_spans(&self) -> bool {
        self.state.lock().dispatch.remembers_open_spans()
    }

    fn progress(&self) -> u64 {
        // Pairs with nothing: it is compared with earlier values of itself only.
        self.progress.load(Ordering::Relaxed)
    }

    fn note_progress(&self) {
        // See `progress`.
        self.progress.fetch_add(1, Ordering::Relaxed);
    }
}

impl State {
    /// Begins to collect metrics, if there is somebody who does.
    fn collect(&mut self) -> Result<(), FlushError> {
        #[cfg(feature = "metric-reader")]
        if self.life[Signal::Metrics] == Life::Running {
            if !self.dispatch.may_collect() {
                return Err(FlushError::Collect(TOO_MANY.to_owned()));
            }
            let id = self.dispatch.begin_collection(Instant::now());
            self.jobs.push_back(Job::Collect(id));
        }
        Ok(())
    }

    /// Schedules what follows for flushes whose batches are done, and for a shutdown when nothing is pending any more.
    fn advance(&mut self) {
        for (id, report) in self.dispatch.take_finished() {
            if let Some(waiter) = self.waiters.get_mut(&id) {
                waiter.report = report;
                if waiter.kind == WaiterKind::Flush {
                    let flushes = waiter.signals.iter().map(|signal| Job::Flush(id, signal));
                    self.jobs.extend(flushes);
                }
            }
        }
        // After the flushes that began before it. Its own may have been given up.
        for signal in Signal::ALL {
            let done = self.dispatch.is_closed(signal) && self.dispatch.is_drained(signal);
            if done && self.life[signal] == Life::Running {
                self.life[signal] = Life::Finalized;
                self.jobs.push_back(Job::Shutdown(signal));
            }
        }
    }

    /// The last step of a flush or a shutdown: the exporter has answered.
    fn conclude(&mut self, job: Job, exporter: Result<(), String>) -> Answers {
        let concluded: Vec<u64> = match job {
            Job::Flush(id, signal) => {
                let waiter = self.waiters.get_mut(&id);
                let answered = waiter.is_some_and(|waiter| waiter.hear(signal, &exporter));
                answered.then_some(id).into_iter().collect()
            }
            Job::Shutdown(signal) => {
                self.life[signal] = Life::ShutDown;
                let of_signal = |(_, waiter): &(&u64, &Waiter)| {
                    waiter.kind == WaiterKind::Shutdown(signal)
                        || (self.has_ended() && waiter.kind == WaiterKind::Flush)
                };
                let waiters = self.waiters.iter().filter(of_signal);
                waiters.map(|(id, _)| *id).collect()
            }
            #[cfg(feature = "metric-reader")]
            Job::Collect(_) => Vec::new(),
        };
        let mut answers = Answers::new();
        for id in concluded {
            if let Some(waiter) = self.waiters.remove(&id) {
                let Losses { failed, dropped } = waiter.report.losses;
                let result = match (waiter.failure, &exporter) {
                    _ if failed + dropped > 0 => Err(FlushError::Lost { failed, dropped }),
                    (Some(failure), _) => Err(failure),
                    (None, Ok(())) => Ok(()),
                    (None, Err(message)) => Err(FlushError::Exporter(message.clone())),
                };
                let report = waiter.report;
                answers.push((waiter.answer, Told { result, report }));
            }
        }
        answers
    }

    /// Gives up on flushes whose deadline has passed. A shutdown then drops what still waits for a slot; what is in
    /// flight may end.
    fn expire(&mut self, now: Instant) -> Answers {
        let late: Vec<u64> = self
            .waiters
            .iter()
            .filter(|(_, waiter)| waiter.deadline.is_some_and(|deadline| deadline <= now))
            .map(|(id, _)| *id)
            .collect();
        let mut answers = Answers::new();
        for id in late {
            self.dispatch.cancel_flush(id);
            self.jobs
                .retain(|job| !matches!(job, Job::Flush(of, _) if *of == id));
            if let Some(waiter) = self.waiters.remove(&id) {
                let error = FlushError::Timeout(waiter.timeout);
                answers.push((waiter.answer, Told::now(Err(error))));
                // Another call may have given it more time.
                match waiter.kind {
                    WaiterKind::Shutdown(signal)
                        if self.shutdown_deadlines(signal).count() == 0 =>
                    {
                        self.dispatch.abandon(signal);
                    }
                    _ => {}
                }
            }
        }
        answers
    }

    /// Of those who wait for the shutdown.
    fn shutdown_deadlines(&self, signal: Signal) -> impl Iterator<Item = Option<Instant>> {
        let waiters = self.waiters.values();
        waiters
            .filter(move |waiter| waiter.kind == WaiterKind::Shutdown(signal))
            .map(|waiter| waiter.deadline)
    }

    /// Whether every signal that there ever was is shut down.
    fn has_ended(&self) -> bool {
        self.life.iter().all(|life| life.is_over())
    }

    /// Whether everything is shut down, and all that belongs to that is done or under way.
    fn is_over(&self) -> bool {
        self.has_ended() && self.waiters.is_empty() && !self.dispatch.has_garbage()
    }

    fn next_deadline(&self) -> Option<Instant> {
        let flushes = self.waiters.values().filter_map(|waiter| waiter.deadline);
        let exports = self.dispatch.next_expiry();
        let notices = match self.speaking {
            true => None,
            false => self.dispatch.notices.next_due(),
        };
        #[cfg(feature = "metric-reader")]
        let collection = self.dispatch.next_collection();
        #[cfg(not(feature = "metric-reader"))]
        let collection = None;
        let deadlines = flushes.chain(exports).chain(notices);
        deadlines.chain(collection).min()
    }
}

impl Waiter {
    fn new(kind: WaiterKind, signals: Signals, timeout: Duration, answer: Answer) -> Self {
        Self {
            kind,
            signals,
            unanswered: signals,
            collects: false,
            failure: None,
            timeout,
            deadline: Instant::now().checked_add(timeout),
            report: Report::default(),
            answer,
        }
    }

    /// An exporter has answered to its `force_flush`. Returns whether all have.
    fn hear(&mut self, signal: Signal, answer: &Result<(), String>) -> bool {
        self.unanswered = self.unanswered.without(signal);
        if let Err(message) = answer {
            let failure = FlushError::Exporter(message.clone());
            self.failure.get_or_insert(failure);
        }
        self.unanswered == Signals::NONE
    }
}

impl Job {
    fn signal(self) -> Signal {
        match self {
            Self::Flush(_, signal) | Self::Shutdown(signal) => signal,
            #[cfg(feature = "metric-reader")]
            Self::Collect(_) => Signal::Metrics,
        }
    }
}

impl std::fmt::Debug for Waiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiter")
            .field("kind", &self.kind)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// Starts a thread of ours: one that is never traced, and on which nobody may wait for us.
fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let _suppressed = Context::enter_telemetry_suppressed_scope();
            mark_own_thread();
            run();
        })
        .map(drop)
}
