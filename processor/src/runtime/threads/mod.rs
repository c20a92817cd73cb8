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
use crate::dispatch::{Dispatch, Losses, Report, Scope};
use crate::error::{ConfigError, FlushError};
use crate::export::{AnyExporter, Retired};
use crate::hash::IdHash;
use crate::notices::{Example, Kind};
use crate::request::RequestId;
use crate::runtime::drop_quietly;
use crate::stats::Stats;
use crate::sync::{Arc, AtomicU64, Condvar, Mutex, MutexGuard, Ordering, thread};

use pool::{Pool, Summons};
pub(crate) use tokio_runtime::OwnRuntime;
use wait::mark_own_thread;

/// What the processor, its handles and its threads share.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Wakes the driver. Its partner is `Dispatch::asleep`, which says whether that is needed.
    driver: Condvar,
    /// Wakes an idle worker.
    workers: Condvar,
    /// Shared with exports under way. Only `set_resource` changes it, before the first span.
    exporter: Mutex<Arc<dyn AnyExporter>>,
    export_timeout: Duration,
    runtime: OwnRuntime,
    /// Whether the exporter was made inside our own runtime, and so needs no other.
    independent: bool,
    /// Goes up whenever an export wakes up or ends. A synchronous wait watches it (see `wait`).
    progress: AtomicU64,
}

/// What the one lock protects.
#[derive(Debug)]
pub(crate) struct State {
    dispatch: Dispatch,
    pool: Pool,
    /// Exporter calls that are not exports, for the next free thread.
    jobs: VecDeque<Job>,
    waiters: HashMap<u64, Waiter, IdHash>,
    /// Whether the exporter's `shutdown` has been scheduled.
    finalized: bool,
    /// Whether the exporter's `shutdown` has been called.
    shut_down: bool,
    /// Whether a thread is logging notices.
    speaking: bool,
}

/// What remains to be done for a flush once its batches are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Job {
    /// Call the exporter's `force_flush`, for this flush.
    Flush(u64),
    /// Call the exporter's `force_flush` and then its `shutdown`.
    Shutdown,
}

/// Somebody who waits for a flush.
struct Waiter {
    kind: WaiterKind,
    timeout: Duration,
    deadline: Option<Instant>,
    report: Report,
    answer: Answer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WaiterKind {
    Flush,
    Shutdown,
}

/// What a waiter is told.
#[derive(Debug)]
struct Told {
    result: Result<(), FlushError>,
    report: Report,
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
    ) -> Result<Arc<Self>, ConfigError> {
        let dispatch = Dispatch::new(config, fallback, mark_late);
        let shared = Self::new(config, dispatch, exporter, runtime, independent);
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
    ) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                dispatch,
                pool: Pool::new(config.max_concurrent_exports()),
                jobs: VecDeque::new(),
                waiters: HashMap::default(),
                finalized: false,
                shut_down: false,
                speaking: false,
            }),
            driver: Condvar::default(),
            workers: Condvar::default(),
            exporter: Mutex::new(exporter),
            export_timeout: config.export_timeout(),
            runtime,
            independent,
            progress: AtomicU64::new(0),
        })
    }

    // ----- the hot path -----

    pub(crate) fn start_root(&self, id: RequestId, context: Context) {
        let mut state = self.state.lock();
        state.dispatch.start_root(id, context);
        self.unlock(state);
    }

    pub(crate) fn start_child(&self, trace: TraceId, parent: SpanId, span: SpanId) {
        let mut state = self.state.lock();
        state.dispatch.start_child(trace, parent, span);
        self.unlock(state);
    }

    pub(crate) fn end(&self, span: SpanData) {
        let mut span = Some(span);
        let mut state = self.state.lock();
        state.dispatch.end(&mut span);
        self.unlock(state);
        drop(span);
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

    /// Releases the lock, wakes the driver if it sleeps while there is work, and drops what is left over.
    fn unlock(&self, mut state: MutexGuard<'_, State>) {
        let contexts = state.dispatch.take_contexts();
        let wake = state.dispatch.must_wake();
        drop(state);
        if wake {
            self.driver.notify_one();
        }
        if !contexts.is_empty() {
            drop_quietly(contexts);
        }
    }

    // ----- flush and shutdown -----

    /// Starts a flush, which is done when its future is, or when its deadline has passed.
    pub(crate) fn flush(
        self: &Arc<Self>,
        scope: Scope,
        timeout: Duration,
    ) -> impl Future<Output = Result<(), FlushError>> + Send + use<> {
        let (answer, heard) = self.answer();
        self.begin(WaiterKind::Flush, scope, timeout, answer);
        heard
    }

    pub(crate) fn flush_blocking(self: &Arc<Self>, timeout: Duration) -> Result<(), FlushError> {
        self.wait_for(|answer| self.begin(WaiterKind::Flush, Scope::All, timeout, answer))
    }

    /// Takes no more spans, flushes, and shuts the exporter down. A second call is answered when the first one is done.
    pub(crate) fn shutdown(
        self: &Arc<Self>,
        timeout: Duration,
    ) -> impl Future<Output = Result<(), FlushError>> + Send + use<> {
        let (answer, heard) = self.answer();
        self.begin(WaiterKind::Shutdown, Scope::All, timeout, answer);
        heard
    }

    pub(crate) fn shutdown_blocking(self: &Arc<Self>, timeout: Duration) -> Result<(), FlushError> {
        self.wait_for(|answer| self.begin(WaiterKind::Shutdown, Scope::All, timeout, answer))
    }

    fn begin(self: &Arc<Self>, kind: WaiterKind, scope: Scope, timeout: Duration, answer: Answer) {
        let mut state = self.state.lock();
        let id = match (kind, state.dispatch.is_closed()) {
            (WaiterKind::Flush, true) => {
                drop(state);
                answer(Told::now(Err(FlushError::AlreadyShutdown)));
                return;
            }
            (_, true) if state.shut_down => {
                drop(state);
                answer(Told::now(Ok(())));
                return;
            }
            // A shutdown is under way: this one waits for its end.
            (_, true) => state.dispatch.new_id(),
            (WaiterKind::Flush, false) => state.dispatch.begin_flush(scope),
            (WaiterKind::Shutdown, false) => {
                state.dispatch.close();
                state.dispatch.begin_flush(scope)
            }
        };
        let waiter = Waiter {
            kind,
            timeout,
            deadline: Instant::now().checked_add(timeout),
            report: Report::default(),
            answer,
        };
        state.waiters.insert(id, waiter);
        state.advance();
        let summons = match state.wants_worker() {
            true => state.pool.summon(),
            false => Summons::Nobody,
        };
        // The driver watches the deadline, so it must look at it.
        self.wake_driver(&mut state);
        self.unlock(state);
        self.obey(summons);
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

    fn exporter(&self) -> Arc<dyn AnyExporter> {
        self.exporter.lock().clone()
    }

    /// Lets go of the exporter and the runtime when both have done their work: handles may stay for long.
    fn retire(&self) {
        let exporter = std::mem::replace(&mut *self.exporter.lock(), Arc::new(Retired));
        drop_quietly(exporter);
        self.runtime.stop();
    }

    pub(crate) fn set_resource(&self, resource: &Resource) {
        let mut exporter = self.exporter.lock();
        match Arc::get_mut(&mut exporter) {
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

    pub(crate) fn is_closed(&self) -> bool {
        self.state.lock().dispatch.is_closed()
    }

    pub(crate) fn stats(&self) -> Stats {
        self.state.lock().dispatch.stats()
    }

    #[cfg(feature = "metrics")]
    pub(crate) fn max_pending_spans(&self) -> u64 {
        self.state.lock().dispatch.max_pending_spans()
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
    /// Schedules what follows for flushes whose batches are done, and for a shutdown when nothing is pending any more.
    fn advance(&mut self) {
        for (id, report) in self.dispatch.take_finished() {
            if let Some(waiter) = self.waiters.get_mut(&id) {
                waiter.report = report;
                if waiter.kind == WaiterKind::Flush {
                    self.jobs.push_back(Job::Flush(id));
                }
            }
        }
        // After the flushes that began before it. Its own may have been given up.
        if self.dispatch.is_closed() && self.dispatch.is_drained() && !self.finalized {
            self.finalized = true;
            self.jobs.push_back(Job::Shutdown);
        }
    }

    /// The last step of a flush or a shutdown: the exporter has answered.
    fn conclude(&mut self, job: Job, exporter: Result<(), String>) -> Answers {
        let concluded: Vec<u64> = match job {
            Job::Flush(id) => vec![id],
            Job::Shutdown => {
                self.shut_down = true;
                // Nobody else waits once the dispatch is closed and drained.
                self.waiters.keys().copied().collect()
            }
        };
        let mut answers = Answers::new();
        for id in concluded {
            if let Some(waiter) = self.waiters.remove(&id) {
                let Losses { failed, dropped } = waiter.report.losses;
                let result = match &exporter {
                    _ if failed + dropped > 0 => Err(FlushError::Lost { failed, dropped }),
                    Ok(()) => Ok(()),
                    Err(message) => Err(FlushError::Exporter(message.clone())),
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
            self.jobs.retain(|job| *job != Job::Flush(id));
            if let Some(waiter) = self.waiters.remove(&id) {
                let error = FlushError::Timeout(waiter.timeout);
                answers.push((waiter.answer, Told::now(Err(error))));
                // Another call may have given it more time.
                if waiter.kind == WaiterKind::Shutdown && self.shutdown_deadlines().count() == 0 {
                    self.dispatch.abandon();
                }
            }
        }
        answers
    }

    /// Of those who wait for the shutdown.
    fn shutdown_deadlines(&self) -> impl Iterator<Item = Option<Instant>> {
        let waiters = self.waiters.values();
        waiters
            .filter(|waiter| waiter.kind == WaiterKind::Shutdown)
            .map(|waiter| waiter.deadline)
    }

    /// Whether the processor is shut down and everything that belongs to that is done or under way.
    fn is_over(&self) -> bool {
        self.shut_down && self.waiters.is_empty() && !self.dispatch.has_garbage()
    }

    fn next_deadline(&self) -> Option<Instant> {
        let flushes = self.waiters.values().filter_map(|waiter| waiter.deadline);
        let exports = self.dispatch.next_expiry();
        let notices = match self.speaking {
            true => None,
            false => self.dispatch.notices.next_due(),
        };
        flushes.chain(exports).chain(notices).min()
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
