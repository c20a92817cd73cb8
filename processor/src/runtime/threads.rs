//! The native runtime: one driver thread that paces everything, and workers that call the exporter.
//!
//! A span that ends wakes nobody while the driver is awake. The driver lets a millisecond pass, takes all that is due, and
//! hands it to a worker; it never calls the exporter itself, so an exporter that blocks cannot stop it. One worker drives
//! any number of asynchronous exports. While the exporter is not known to return quickly, each worker that takes a batch
//! calls for another one for the rest; and when batches are ready and nobody took one for a while, all workers are blocked
//! inside the exporter, and the driver calls for another.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Context as TaskContext, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use opentelemetry::{Context, otel_debug, otel_warn};
use opentelemetry_sdk::error::OTelSdkError;

use crate::dispatch::{Batch, Garbage, Outcome};
use crate::export::Export;
use crate::notices::{Example, Kind};
use crate::runtime::wait::mark_own_thread;
use crate::runtime::{Answers, Job, Shared, State, give, note_progress};
use crate::sync::{Arc, AtomicBool, AtomicU64, Ordering};

/// The driver's period while there is work.
const TICK: Duration = Duration::from_millis(1);

/// How often the driver looks after pending spans when nothing new comes.
const LOOK_AFTER: Duration = Duration::from_millis(20);

/// An exporter whose calls return within this time is quick: it does not block, or hardly.
const QUICK: Duration = Duration::from_micros(200);

/// How many batches a worker takes at once from a quick exporter's queue.
const BULK: usize = 16;

/// How many queues the driver takes before it lets others have the lock.
const QUEUES_PER_LOCK: usize = 64;

/// How long after its deadline an export is given up by the driver. Its worker does that at the deadline, unless the
/// exporter blocks it.
const GRACE: Duration = Duration::from_millis(50);

/// An idle worker ends after this time.
const WORKER_IDLE: Duration = Duration::from_secs(10);

/// The most workers, when concurrent exports are not limited.
const MAX_WORKERS: usize = 256;

/// The shortest time that an exporter's `shutdown` is given.
const LEAST_SHUTDOWN: Duration = Duration::from_millis(100);

pub(crate) fn with_grace(deadline: Instant) -> Instant {
    deadline.checked_add(GRACE).unwrap_or(deadline)
}

// ===== the driver =====

pub(crate) fn spawn_driver(shared: &Arc<Shared>) -> std::io::Result<()> {
    let shared = shared.clone();
    thread::Builder::new()
        .name("otel-per-request".to_owned())
        .spawn(move || drive(&shared))
        .map(drop)
}

fn drive(shared: &Arc<Shared>) {
    let _suppressed = Context::enter_telemetry_suppressed_scope();
    mark_own_thread();
    let mut streak = 0;
    loop {
        match shared.tick() {
            Tick::Worked => streak += 1,
            Tick::Idle => streak = 0,
            Tick::Over => break,
        }
        // One more tick is cheaper than a wake-up when there is work in tick after tick, and dearer when there is not.
        if streak < 2 {
            shared.sleep();
        }
        thread::sleep(TICK);
    }
    shared.dismiss_workers();
}

enum Tick {
    Worked,
    Idle,
    Over,
}

impl Shared {
    /// One round of the driver: deadlines, queues that are due, workers, and what the user should hear.
    fn tick(self: &Arc<Self>) -> Tick {
        let now = Instant::now();
        let mut garbage = Garbage::default();
        let mut state = self.state.lock();
        for _ in 0..=state.dispatch.due() / QUEUES_PER_LOCK {
            state.dispatch.tick(QUEUES_PER_LOCK);
            drop(state);
            state = self.state.lock();
        }
        state.expire_exports(now, self.export_timeout);
        let answers = state.expire(now, &mut garbage);
        state.advance();
        state.finalize();
        let wants_worker = state.wants_worker();
        let summons = match wants_worker {
            true => state.pool.summon_or_hire(),
            false => Summons::Nobody,
        };
        let worked = state.dispatch.take_batches_made();
        let over = state.is_over();
        let notices = state.dispatch.notices.take(now, over);
        drop(state);
        self.obey(summons);
        give(answers);
        notices.iter().for_each(|notice| notice.say());
        drop(garbage);
        match (over, worked > 0) {
            (true, _) => Tick::Over,
            (false, true) => Tick::Worked,
            (false, false) => Tick::Idle,
        }
    }

    /// Sleeps until there is work, or until the next deadline; for a short time only while spans are pending, to see
    /// whether they get on.
    fn sleep(&self) {
        let mut state = self.state.lock();
        if state.dispatch.has_due() {
            return;
        }
        state.dispatch.asleep = true;
        let look_after = match state.dispatch.is_drained() && state.jobs.is_empty() {
            true => None,
            false => Instant::now().checked_add(LOOK_AFTER),
        };
        while state.dispatch.asleep {
            match look_after.into_iter().chain(state.next_deadline()).min() {
                None => state = self.driver.wait(state),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break;
                    }
                    state = self.driver.wait_timeout(state, left);
                }
            }
        }
        state.dispatch.asleep = false;
    }

    fn dismiss_workers(&self) {
        let parked = std::mem::take(&mut self.state.lock().pool.parked);
        parked.iter().for_each(|signal| signal.notify());
    }
}

impl State {
    /// Accounts for exports that block their worker beyond the deadline.
    fn expire_exports(&mut self, now: Instant, timeout: Duration) {
        let Some(before) = now.checked_sub(GRACE) else {
            return;
        };
        let spans = self.dispatch.expire(before);
        if spans > 0 {
            self.dispatch
                .notices
                .note(Kind::ExportFailed, spans, timed_out(timeout));
        }
    }
}

fn timed_out(after: Duration) -> Example {
    Example::Error(format!("timed out after {after:?}"))
}

// ===== the pool =====

/// The workers, as the lock sees them.
#[derive(Debug)]
pub(crate) struct Pool {
    /// Workers that wait. They may have exports of their own under way.
    parked: Vec<Arc<Signal>>,
    workers: usize,
    max_workers: usize,
    /// Counts what workers have taken on.
    taken: u64,
    /// What `taken` was when the driver last looked.
    seen: u64,
    /// Whether the exporter is known to return quickly.
    quick: bool,
}

/// What is to be done about workers once the lock is released.
#[derive(Debug)]
pub(crate) enum Summons {
    Nobody,
    Wake(Arc<Signal>),
    Hire,
}

impl Pool {
    pub(crate) fn new(max_concurrent_exports: usize) -> Self {
        let max_workers = match max_concurrent_exports {
            0 => MAX_WORKERS,
            // One more, for calls that are not exports.
            max => max.min(MAX_WORKERS) + 1,
        };
        Self {
            parked: Vec::new(),
            workers: 0,
            max_workers,
            taken: 0,
            seen: 0,
            quick: false,
        }
    }

    /// Calls for a worker: one that is parked, or the first.
    pub(crate) fn summon(&mut self) -> Summons {
        match self.parked.pop() {
            Some(signal) => Summons::Wake(signal),
            None if self.workers == 0 => self.hire(),
            None => Summons::Nobody,
        }
    }

    /// Calls for a worker, and for a new one if no worker has taken anything since the last call.
    fn summon_or_hire(&mut self) -> Summons {
        let stuck = self.taken == self.seen;
        self.seen = self.taken;
        match self.summon() {
            Summons::Nobody if stuck => self.hire(),
            summons => summons,
        }
    }

    /// Calls for one more worker than there is.
    fn summon_another(&mut self) -> Summons {
        match self.summon() {
            Summons::Nobody => self.hire(),
            summons => summons,
        }
    }

    fn hire(&mut self) -> Summons {
        if self.workers >= self.max_workers {
            return Summons::Nobody;
        }
        self.workers += 1;
        Summons::Hire
    }
}

impl Shared {
    pub(crate) fn obey(self: &Arc<Self>, summons: Summons) {
        match summons {
            Summons::Nobody => {}
            Summons::Wake(signal) => signal.notify(),
            Summons::Hire => self.hire(),
        }
    }

    fn hire(self: &Arc<Self>) {
        let shared = self.clone();
        let hired = thread::Builder::new()
            .name("otel-per-request-export".to_owned())
            .spawn(move || shared.clone().runtime.enter(|| Worker::new(shared).run()));
        if let Err(error) = hired {
            // The driver asks again at its next tick.
            self.state.lock().pool.workers -= 1;
            otel_warn!(
                name: "PerRequestSpanProcessor.NoWorker",
                error = error.to_string(),
                message = "a thread for exports could not be started; trying again"
            );
        }
    }
}

/// Wakes a parked worker.
#[derive(Debug)]
pub(crate) struct Signal {
    thread: Thread,
    /// Set before the thread is unparked. An exporter that parks the thread itself may swallow the unpark, never this.
    notified: AtomicBool,
}

impl Signal {
    fn notify(&self) {
        // Release: pairs with `take`, so that what was done before the wake-up is seen after it.
        self.notified.store(true, Ordering::Release);
        self.thread.unpark();
    }

    fn take(&self) -> bool {
        // Acquire: pairs with `notify`.
        self.notified.swap(false, Ordering::Acquire)
    }
}

// ===== a worker =====

struct Worker {
    shared: Arc<Shared>,
    signal: Arc<Signal>,
    running: Vec<Running>,
    /// Exports that are over, to be accounted for together.
    done: Vec<Done>,
}

/// An export that is over.
struct Done {
    id: u64,
    spans: u64,
    outcome: Result<(), (Outcome, Example)>,
}

/// An export under way.
struct Running {
    id: u64,
    spans: u64,
    deadline: Option<Instant>,
    export: Export,
    alarm: Arc<Alarm>,
}

/// Wakes a worker for one of its exports.
struct Alarm {
    // Not the whole of `Shared`: the exporter may keep a waker for long, and `Shared` owns the exporter.
    progress: Arc<AtomicU64>,
    signal: Arc<Signal>,
    rung: AtomicBool,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        // Release: pairs with `Worker::poll_rung`, which must see what made the export ready.
        self.rung.store(true, Ordering::Release);
        note_progress(&self.progress);
        self.signal.notify();
    }
}

impl Worker {
    fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            signal: Arc::new(Signal {
                thread: thread::current(),
                notified: AtomicBool::new(false),
            }),
            running: Vec::new(),
            done: Vec::new(),
        }
    }

    fn run(mut self) {
        let _suppressed = Context::enter_telemetry_suppressed_scope();
        mark_own_thread();
        let mut batches = Vec::with_capacity(BULK);
        loop {
            let job = self.take(&mut batches);
            let idle = job.is_none() && batches.is_empty();
            if let Some(job) = job {
                self.shared.perform(job);
            }
            match batches.is_empty() {
                true => self.poll(),
                false => self.start(&mut batches),
            }
            if idle && !self.park() {
                break;
            }
        }
    }

    /// Takes what there is to do: a call that is not an export, or batches.
    fn take(&self, batches: &mut Vec<(Batch, Option<Instant>)>) -> Option<Job> {
        let mut state = self.shared.state.lock();
        let job = state.jobs.pop_front();
        if job.is_none() && state.dispatch.has_ready_batch() {
            let deadline = Instant::now().checked_add(self.shared.export_timeout);
            let bulk = match state.pool.quick {
                true => BULK,
                false => 1,
            };
            let taken = std::iter::from_fn(|| state.dispatch.next_batch(deadline)).take(bulk);
            batches.extend(taken.map(|batch| (batch, deadline)));
        }
        if job.is_none() && batches.is_empty() {
            return None;
        }
        state.pool.taken += 1;
        // The call into the exporter may block, so others must get at the rest.
        let summons = match !state.pool.quick && state.wants_worker() {
            true => state.pool.summon_another(),
            false => Summons::Nobody,
        };
        drop(state);
        self.shared.obey(summons);
        job
    }

    /// Starts exports and polls each once, and learns whether that is quick.
    fn start(&mut self, batches: &mut Vec<(Batch, Option<Instant>)>) {
        let started = Instant::now();
        let calls = batches.len() as u32;
        let exporter = self.shared.exporter();
        for (batch, deadline) in batches.drain(..) {
            let context = batch.context.with_telemetry_suppressed();
            // The batch's own copy of the context goes first: when an export is done, none may be left (R9).
            drop(batch.context);
            self.running.push(Running {
                id: batch.id,
                spans: batch.spans.len() as u64,
                deadline,
                export: exporter.clone().export_under(context, batch.spans),
                alarm: Arc::new(Alarm {
                    progress: self.shared.progress.clone(),
                    signal: self.signal.clone(),
                    rung: AtomicBool::new(true),
                }),
            });
        }
        drop(exporter);
        self.poll_rung();
        self.account(Some(started.elapsed() / calls < QUICK));
    }

    fn poll(&mut self) {
        self.poll_rung();
        if !self.done.is_empty() {
            self.account(None);
        }
    }

    /// Polls the exports that asked for it, and gives up those whose deadline has passed.
    fn poll_rung(&mut self) {
        let mut at = 0;
        while let Some(running) = self.running.get_mut(at) {
            // Acquire: pairs with `Alarm::wake`.
            let result = match running.alarm.rung.swap(false, Ordering::Acquire) {
                true => running.poll(),
                false => None,
            };
            let overdue = || {
                let deadline = running.deadline;
                deadline.is_some_and(|deadline| deadline <= Instant::now())
            };
            let outcome = match result {
                Some(Ok(())) => Ok(()),
                Some(Err(error)) => Err((Outcome::Failed, error)),
                None if overdue() => {
                    let error = timed_out(self.shared.export_timeout);
                    Err((Outcome::TimedOut, error))
                }
                None => {
                    at += 1;
                    continue;
                }
            };
            let over = self.running.swap_remove(at);
            drop_quietly(over.export);
            self.done.push(Done {
                id: over.id,
                spans: over.spans,
                outcome,
            });
        }
    }

    /// Accounts for the exports that are over, and for how quick they were.
    fn account(&mut self, quick: Option<bool>) {
        let shared = &self.shared;
        let mut state = shared.state.lock();
        state.pool.quick = quick.unwrap_or(state.pool.quick);
        for done in self.done.drain(..) {
            let outcome = match done.outcome {
                Ok(()) => Outcome::Exported,
                Err((outcome, example)) => {
                    let notices = &mut state.dispatch.notices;
                    notices.note(Kind::ExportFailed, done.spans, example);
                    outcome
                }
            };
            state.dispatch.complete(done.id, outcome);
        }
        state.advance();
        state.finalize();
        shared.unlock(state);
        note_progress(&shared.progress);
    }

    /// Waits for a signal or a deadline. False if this worker is no longer needed.
    fn park(&self) -> bool {
        let mut state = self.shared.state.lock();
        if state.wants_worker() {
            return true;
        }
        if self.running.is_empty() && state.is_over() {
            state.pool.workers -= 1;
            return false;
        }
        state.pool.parked.push(self.signal.clone());
        drop(state);

        let deadline = self.running.iter().filter_map(|running| running.deadline);
        let rest = match deadline.min() {
            Some(deadline) => deadline.saturating_duration_since(Instant::now()),
            None => WORKER_IDLE,
        };
        if !self.signal.take() {
            thread::park_timeout(rest);
        }
        let signalled = self.signal.take();

        let mut state = self.shared.state.lock();
        let before = state.pool.parked.len();
        state
            .pool
            .parked
            .retain(|signal| !Arc::ptr_eq(signal, &self.signal));
        // Taken out by somebody else means summoned.
        let summoned = state.pool.parked.len() == before;
        let needed = signalled || summoned || !self.running.is_empty() || state.wants_worker();
        if !needed {
            state.pool.workers -= 1;
        }
        needed
    }
}

impl Running {
    /// `None` while it is pending.
    fn poll(&mut self) -> Option<Result<(), Example>> {
        let waker = Waker::from(self.alarm.clone());
        let export = &mut self.export;
        let polled = catch_unwind(AssertUnwindSafe(|| {
            export.as_mut().poll(&mut TaskContext::from_waker(&waker))
        }));
        match polled {
            Ok(Poll::Pending) => None,
            Ok(Poll::Ready(Ok(()))) => Some(Ok(())),
            Ok(Poll::Ready(Err(error))) => Some(Err(Example::Error(error.to_string()))),
            Err(panic) => Some(Err(Example::Error(format!(
                "the exporter panicked: {}",
                panic_message(&*panic)
            )))),
        }
    }
}

/// Drops an export, which runs code of the exporter's and of the user's.
fn drop_quietly(export: Export) {
    if catch_unwind(AssertUnwindSafe(|| drop(export))).is_err() {
        otel_debug!(
            name: "PerRequestSpanProcessor.PanicInDrop",
            message = "an export panicked while it was dropped"
        );
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

impl Shared {
    /// Calls into the exporter for something that is not an export.
    fn perform(self: &Arc<Self>, job: Job) {
        let exporter = self.exporter();
        let (waiter, remaining) = match job {
            Job::Flush(id) | Job::Shutdown(id) => (Some(id), self.remaining(id)),
            Job::Finalize => (None, LEAST_SHUTDOWN),
        };
        let result = catch_unwind(AssertUnwindSafe(|| {
            let flushed = exporter.any_force_flush();
            match job {
                Job::Flush(_) => flushed,
                // Shut down whatever became of the flush.
                Job::Shutdown(_) | Job::Finalize => exporter.any_shutdown(remaining).and(flushed),
            }
        }));
        let result = match result {
            Ok(Ok(()) | Err(OTelSdkError::AlreadyShutdown)) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(panic) => Err(format!("it panicked: {}", panic_message(&*panic))),
        };
        drop(exporter);
        let answers: Answers = match waiter {
            Some(id) => self.state.lock().conclude(id, result),
            None => Vec::new(),
        };
        give(answers);
        // The driver ends when the last waiter is gone.
        self.state.lock().dispatch.asleep = false;
        self.driver.notify_one();
        note_progress(&self.progress);
    }

    fn remaining(&self, waiter: u64) -> Duration {
        let state = self.state.lock();
        state
            .waiters
            .get(&waiter)
            .and_then(|waiter| waiter.deadline)
            .map_or(Duration::MAX, |deadline| {
                deadline.saturating_duration_since(Instant::now())
            })
            .max(LEAST_SHUTDOWN)
    }
}
