//! The only code that waits: it moves batches from [`Dispatch`] to the exporter, and tells who waits for them.

mod threads;
mod tokio_runtime;
mod wait;

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use opentelemetry::Context;
use opentelemetry::otel_warn;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanData;

use crate::config::Config;
use crate::dispatch::{Dispatch, Garbage, Losses, Scope};
use crate::error::{ConfigError, FlushError};
use crate::export::AnyExporter;
use crate::request::RequestId;
use crate::stats::Stats;
use crate::sync::{Arc, AtomicU64, Condvar, Mutex, Ordering};

use threads::{Pool, Summons};
pub(crate) use tokio_runtime::OwnRuntime;

/// What the processor, its handles and its threads share.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Wakes the driver. Its partner is `Dispatch::asleep`, which says whether that is needed.
    driver: Condvar,
    /// Shared with exports under way. Only `set_resource` changes it, before the first span.
    exporter: Mutex<Arc<dyn AnyExporter>>,
    export_timeout: Duration,
    runtime: OwnRuntime,
    /// Goes up whenever an export wakes up or ends. A synchronous wait watches it (see `wait`).
    progress: Arc<AtomicU64>,
}

/// What the one lock protects.
#[derive(Debug)]
pub(crate) struct State {
    dispatch: Dispatch,
    pool: Pool,
    /// Exporter calls that are not exports, for the next free thread.
    jobs: VecDeque<Job>,
    waiters: HashMap<u64, Waiter>,
    /// Whether the exporter's `shutdown` has been scheduled.
    finalized: bool,
}

/// What remains to be done for a flush once its batches are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Job {
    /// Call the exporter's `force_flush`, for this flush.
    Flush(u64),
    /// Call the exporter's `force_flush` and then its `shutdown`, for this flush.
    Shutdown(u64),
    /// Call the exporter's `shutdown`; nobody waits any more.
    Finalize,
}

/// Somebody who waits for a flush.
struct Waiter {
    kind: WaiterKind,
    timeout: Duration,
    deadline: Option<Instant>,
    losses: Losses,
    answer: Answer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WaiterKind {
    Flush,
    Shutdown,
}

/// How a waiter is told. Called once, never under the lock.
pub(crate) type Answer = Box<dyn FnOnce(Result<(), FlushError>) + Send>;

/// Answers that are to be given once the lock is released.
type Answers = Vec<(Answer, Result<(), FlushError>)>;

fn give(answers: Answers) {
    for (answer, result) in answers {
        answer(result);
    }
}

impl Shared {
    pub(crate) fn start(
        config: &Config,
        dispatch: Dispatch,
        exporter: Arc<dyn AnyExporter>,
        runtime: OwnRuntime,
    ) -> Result<Arc<Self>, ConfigError> {
        let shared = Arc::new(Self {
            state: Mutex::new(State {
                dispatch,
                pool: Pool::new(config.max_concurrent_exports()),
                jobs: VecDeque::new(),
                waiters: HashMap::new(),
                finalized: false,
            }),
            driver: Condvar::default(),
            exporter: Mutex::new(exporter),
            export_timeout: config.export_timeout(),
            runtime,
            progress: Arc::default(),
        });
        threads::spawn_driver(&shared).map_err(ConfigError::Thread)?;
        Ok(shared)
    }

    // ----- the hot path -----

    pub(crate) fn start_root(&self, id: RequestId, context: Context) {
        let mut garbage = Garbage::default();
        let mut state = self.state.lock();
        state.dispatch.start_root(id, context, &mut garbage);
        self.unlock(state);
        drop(garbage);
    }

    pub(crate) fn start_child(
        &self,
        trace: opentelemetry::trace::TraceId,
        parent: opentelemetry::trace::SpanId,
        span: opentelemetry::trace::SpanId,
    ) {
        self.state.lock().dispatch.start_child(trace, parent, span);
    }

    pub(crate) fn end(&self, span: SpanData) {
        let mut span = Some(span);
        let mut garbage = Garbage::default();
        let mut state = self.state.lock();
        state.dispatch.end(&mut span, &mut garbage);
        self.unlock(state);
        drop((span, garbage));
    }

    /// Releases the lock, and wakes the driver if it sleeps while there is work.
    fn unlock(&self, mut state: crate::sync::MutexGuard<'_, State>) {
        let wake = state.dispatch.must_wake();
        drop(state);
        if wake {
            self.driver.notify_one();
        }
    }

    // ----- flush and shutdown -----

    /// Starts a flush, and answers when it is done or its deadline has passed.
    pub(crate) fn flush(self: &Arc<Self>, scope: Scope, timeout: Duration, answer: Answer) {
        self.begin(WaiterKind::Flush, scope, timeout, answer);
    }

    /// Takes no more spans, flushes, and shuts the exporter down. A second call is answered at once.
    pub(crate) fn shutdown(self: &Arc<Self>, timeout: Duration, answer: Answer) {
        self.begin(WaiterKind::Shutdown, Scope::All, timeout, answer);
    }

    fn begin(self: &Arc<Self>, kind: WaiterKind, scope: Scope, timeout: Duration, answer: Answer) {
        let mut garbage = Garbage::default();
        let mut state = self.state.lock();
        if state.dispatch.is_closed() {
            drop(state);
            return answer(match kind {
                WaiterKind::Flush => Err(FlushError::AlreadyShutdown),
                WaiterKind::Shutdown => Ok(()),
            });
        }
        if kind == WaiterKind::Shutdown {
            state.dispatch.close(&mut garbage);
        }
        let id = state.dispatch.begin_flush(scope);
        state.waiters.insert(
            id,
            Waiter {
                kind,
                timeout,
                deadline: Instant::now().checked_add(timeout),
                losses: Losses::default(),
                answer,
            },
        );
        state.advance();
        let summons = match state.wants_worker() {
            true => state.pool.summon(),
            false => Summons::Nobody,
        };
        // The driver watches the deadline, so it must look at it.
        state.dispatch.asleep = false;
        drop(state);
        self.driver.notify_one();
        self.obey(summons);
        drop(garbage);
    }

    /// The deadline of a flush for which none was given.
    pub(crate) fn default_timeout(&self) -> Duration {
        self.export_timeout
    }

    // ----- the exporter -----

    fn exporter(&self) -> Arc<dyn AnyExporter> {
        self.exporter.lock().clone()
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
}

fn note_progress(progress: &AtomicU64) {
    // See `Shared::progress`.
    progress.fetch_add(1, Ordering::Relaxed);
}

impl State {
    /// Schedules what follows for flushes whose batches are done.
    fn advance(&mut self) {
        for (id, losses) in self.dispatch.take_finished() {
            let Some(waiter) = self.waiters.get_mut(&id) else {
                continue;
            };
            waiter.losses = losses;
            let job = match waiter.kind {
                WaiterKind::Flush => Job::Flush(id),
                WaiterKind::Shutdown => {
                    self.finalized = true;
                    Job::Shutdown(id)
                }
            };
            self.jobs.push_back(job);
        }
    }

    /// The last step of a flush: the exporter has answered.
    fn conclude(&mut self, id: u64, exporter: Result<(), String>) -> Answers {
        let Some(waiter) = self.waiters.remove(&id) else {
            return Vec::new();
        };
        let Losses { failed, dropped } = waiter.losses;
        let result = match exporter {
            _ if failed + dropped > 0 => Err(FlushError::Lost { failed, dropped }),
            Ok(()) => Ok(()),
            Err(message) => Err(FlushError::Exporter(message)),
        };
        vec![(waiter.answer, result)]
    }

    /// Gives up on flushes whose deadline has passed. A shutdown then drops what still waits for a slot; what is in
    /// flight may end.
    fn expire(&mut self, now: Instant, garbage: &mut Garbage) -> Answers {
        let late: Vec<u64> = self
            .waiters
            .iter()
            .filter(|(_, waiter)| waiter.deadline.is_some_and(|deadline| deadline <= now))
            .map(|(id, _)| *id)
            .collect();
        let mut answers = Vec::new();
        for id in late {
            self.dispatch.cancel_flush(id);
            if let Some(waiter) = self.waiters.remove(&id) {
                if waiter.kind == WaiterKind::Shutdown {
                    self.dispatch.abandon(garbage);
                }
                answers.push((waiter.answer, Err(FlushError::Timeout(waiter.timeout))));
            }
        }
        answers
    }

    /// Schedules the exporter's `shutdown` if the flush that should have led there was given up.
    fn finalize(&mut self) {
        let nobody_waits = !self
            .waiters
            .values()
            .any(|waiter| waiter.kind == WaiterKind::Shutdown);
        if self.dispatch.is_closed()
            && self.dispatch.is_drained()
            && nobody_waits
            && !self.finalized
        {
            self.finalized = true;
            self.jobs.push_back(Job::Finalize);
        }
    }

    /// Whether there is something for a worker to do.
    fn wants_worker(&self) -> bool {
        !self.jobs.is_empty() || self.dispatch.has_ready_batch()
    }

    /// Whether the processor is shut down and everything that belongs to that is done or under way.
    fn is_over(&self) -> bool {
        self.finalized && self.jobs.is_empty() && self.waiters.is_empty()
    }

    fn next_deadline(&self) -> Option<Instant> {
        let flushes = self.waiters.values().filter_map(|waiter| waiter.deadline);
        let exports = self.dispatch.next_expiry().map(threads::with_grace);
        let notices = self.dispatch.notices.next_due();
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
