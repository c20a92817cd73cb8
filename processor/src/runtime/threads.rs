//! The native runtime: one driver thread that paces everything, and workers that call the exporter.
//!
//! A span that ends wakes nobody while the driver is awake. The driver lets a millisecond pass, takes all that is due, and
//! calls for a worker; it never calls the exporter itself, nor a log subscriber, so neither can stop it. Workers start
//! exports and poll those that were woken, whoever started them, so an export that blocks its thread holds up no other.
//! While the exporter is not known to return quickly, a worker that takes something calls for another one for the rest; and
//! when there is something to take and nobody took it for a while, all workers are blocked, and the driver calls for one.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Context as TaskContext, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use opentelemetry::Context;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};

use crate::dispatch::{Batch, Garbage, Outcome};
use crate::export::Export;
use crate::hash::IdHash;
use crate::notices::{Example, Kind, Notice};
use crate::runtime::wait::mark_own_thread;
use crate::runtime::{Job, Shared, State, drop_quietly, give};
use crate::sync::{Arc, MutexGuard, Weak};

/// The driver's period while there is work.
const TICK: Duration = Duration::from_millis(1);

/// How often the driver looks after pending spans when nothing new comes.
const LOOK_AFTER: Duration = Duration::from_millis(20);

/// How many queues the driver takes before it lets others have the lock.
const QUEUES_PER_LOCK: usize = 64;

/// An exporter whose calls return within this time is quick: it does not block, or hardly.
const QUICK: Duration = Duration::from_micros(200);

/// How long an export that was taken back may take to be dropped, before it is accounted for without that.
const DROP_GRACE: Duration = Duration::from_millis(50);

/// An idle worker ends after this time.
const WORKER_IDLE: Duration = Duration::from_secs(10);

/// The most workers, when concurrent exports are not limited.
const MAX_WORKERS: usize = 256;

/// The shortest time that an exporter's `shutdown` is given.
const LEAST_SHUTDOWN: Duration = Duration::from_millis(100);

// ===== the driver =====

pub(crate) fn spawn_driver(shared: &Arc<Shared>) -> std::io::Result<()> {
    let shared = shared.clone();
    spawn("otel-per-request", move || drive(&shared))
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

fn drive(shared: &Arc<Shared>) {
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
    shared.workers.notify_all();
    shared.retire();
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
        let mut state = self.state.lock();
        for _ in 0..=state.dispatch.due() / QUEUES_PER_LOCK {
            state.dispatch.tick(QUEUES_PER_LOCK);
            drop(state);
            state = self.state.lock();
        }
        state.cancel_overdue(now, self.export_timeout);
        let answers = state.expire(now);
        state.advance();
        state.finalize();
        let summons = match state.wants_worker() {
            true => state.pool.summon_or_hire(),
            false => Summons::Nobody,
        };
        let worked = state.dispatch.take_batches_made() > 0;
        let over = state.is_over();
        let notices = state.take_notices(now, over);
        drop(state);
        self.obey(summons);
        give(answers);
        self.say(notices);
        match (over, worked) {
            (true, _) => Tick::Over,
            (false, true) => Tick::Worked,
            (false, false) => Tick::Idle,
        }
    }

    /// Sleeps until there is work, or until the next deadline; for a short time only while spans are pending, to see
    /// whether they get on.
    fn sleep(&self) {
        let mut state = self.state.lock();
        if state.has_news() {
            return;
        }
        state.dispatch.asleep = true;
        // What is taken from now on shows that workers get on.
        state.pool.seen = state.pool.taken;
        let look_after = match state.dispatch.is_quiet() && state.jobs.is_empty() {
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

    /// Logs on a thread of its own, because a subscriber may block, and exports must go on.
    fn say(self: &Arc<Self>, notices: Vec<Notice>) {
        if notices.is_empty() {
            return;
        }
        let shared = self.clone();
        let speaking = spawn("otel-per-request-log", move || {
            // A subscriber that panics must not leave us silent.
            let _ = catch_unwind(|| notices.iter().for_each(Notice::say));
            let mut state = shared.state.lock();
            state.speaking = false;
            shared.wake_driver(&mut state);
        });
        if speaking.is_err() {
            self.state.lock().speaking = false;
        }
    }
}

impl State {
    /// Whether the driver has a reason not to sleep.
    fn has_news(&self) -> bool {
        self.is_over()
            || self.dispatch.has_news()
            || (!self.speaking && self.dispatch.notices.has_news())
    }

    fn take_notices(&mut self, now: Instant, last: bool) -> Vec<Notice> {
        if self.speaking && !last {
            return Vec::new();
        }
        let notices = self.dispatch.notices.take(now, last);
        self.speaking |= !notices.is_empty();
        notices
    }

    /// Takes back exports whose deadline has passed, for a worker to drop: they are accounted for when nothing is left of
    /// them. One that is being polled cannot be taken back. It is accounted for now, and keeps its slot until the exporter
    /// returns.
    fn cancel_overdue(&mut self, now: Instant, timeout: Duration) {
        for overdue in self.dispatch.overdue(now) {
            let id = overdue.id;
            match self.pool.running.get_mut(&id).map(|r| r.export.take()) {
                Some(Some(export)) => {
                    self.pool.running.remove(&id);
                    self.pool.cancelled.push_back((id, export));
                }
                Some(None) => self.dispatch.give_up(id),
                // Taken back before: it is dropped by now, unless that blocks.
                None if overdue.by > DROP_GRACE => {
                    self.dispatch.give_up(id);
                    continue;
                }
                None => continue,
            }
            let example = Example::Error(format!("timed out after {timeout:?}"));
            let notices = &mut self.dispatch.notices;
            notices.note(Kind::ExportFailed, overdue.spans, example);
        }
    }
}

// ===== the pool =====

/// The workers and the exports under way, as the lock sees them.
pub(crate) struct Pool {
    /// Exports under way, by the id of their batch.
    running: HashMap<u64, Running, IdHash>,
    /// Those that were woken and wait for a worker. May name some that are over.
    woken: VecDeque<u64>,
    /// Those that were given up and wait to be dropped.
    cancelled: VecDeque<(u64, Export)>,
    workers: usize,
    max_workers: usize,
    /// Workers that wait for something to do.
    idle: usize,
    /// Counts what workers have taken on.
    taken: u64,
    /// What `taken` was when the driver last looked.
    seen: u64,
    /// Whether the exporter is known to return quickly.
    quick: bool,
    /// Whether a worker is in a call that is not an export. One at a time, so that one that hangs takes one thread.
    busy_with_job: bool,
}

/// An export under way.
struct Running {
    /// None while a worker polls it.
    export: Option<Export>,
    /// Whether it was woken since it was last polled.
    woken: bool,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool")
            .field("running", &self.running.len())
            .field("workers", &self.workers)
            .field("idle", &self.idle)
            .finish_non_exhaustive()
    }
}

/// What is to be done about workers once the lock is released.
#[derive(Debug)]
pub(crate) enum Summons {
    Nobody,
    Wake,
    Hire,
}

impl Pool {
    pub(crate) fn new(max_concurrent_exports: usize) -> Self {
        let max_workers = match max_concurrent_exports {
            0 => MAX_WORKERS,
            // And one for a call that is not an export, and one to drop things, for those may block, too.
            max => max.min(MAX_WORKERS) + 2,
        };
        Self {
            running: HashMap::default(),
            woken: VecDeque::new(),
            cancelled: VecDeque::new(),
            workers: 0,
            max_workers,
            idle: 0,
            taken: 0,
            seen: 0,
            quick: false,
            busy_with_job: false,
        }
    }

    /// Calls for a worker: one that is idle, or the first.
    pub(crate) fn summon(&mut self) -> Summons {
        match (self.idle, self.workers) {
            (0, 0) => self.hire(),
            (0, _) => Summons::Nobody,
            _ => Summons::Wake,
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
            Summons::Wake => self.workers.notify_one(),
            Summons::Hire => self.hire(),
        }
    }

    fn hire(self: &Arc<Self>) {
        let shared = self.clone();
        let hired = spawn("otel-per-request-export", move || {
            shared.runtime.enter(|| work(&shared));
        });
        if let Err(error) = hired {
            // The driver asks again at its next tick.
            self.state.lock().pool.workers -= 1;
            self.note(Kind::NoWorker, 1, Example::Error(error.to_string()));
        }
    }
}

/// Wakes an export.
struct Alarm {
    id: u64,
    /// Weak, because an exporter may keep a waker for long, and `Shared` owns the exporter.
    shared: Weak<Shared>,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        shared.note_progress();
        let mut state = shared.state.lock();
        let Some(running) = state.pool.running.get_mut(&self.id) else {
            return;
        };
        // While it is polled, or already in the line, the mark is enough.
        let line_up = running.export.is_some() && !running.woken;
        running.woken = true;
        if line_up {
            state.pool.woken.push_back(self.id);
            let summons = state.pool.summon();
            drop(state);
            shared.obey(summons);
        }
    }
}

// ===== a worker =====

/// Something for a worker to do.
enum Work {
    Start(Batch),
    Poll(u64, Export),
    /// Drop an export that was given up, and free its slot.
    Cancel(u64, Export),
    Job(Job),
    Discard(Garbage),
}

/// What a poll came to. An export that is over is dropped before that is said, and so is its context (R9).
struct Polled {
    id: u64,
    result: Poll<Result<(), Example>>,
    /// There while it is pending, and not given up.
    export: Option<Export>,
    quick: bool,
}

fn work(shared: &Arc<Shared>) {
    let mut polled = None;
    while let Some(work) = shared.next_work(polled.take()) {
        match work {
            Work::Job(job) => shared.perform(job),
            Work::Discard(garbage) => drop_quietly(garbage),
            Work::Cancel(id, export) => {
                drop_quietly(export);
                polled = Some(Polled {
                    id,
                    result: Poll::Pending,
                    export: None,
                    quick: false,
                });
            }
            Work::Poll(id, export) => polled = Some(shared.poll(id, export)),
            Work::Start(batch) => {
                let context = batch.context.with_telemetry_suppressed();
                // The batch's own copy goes first: when an export is done, no context may be left (R9).
                drop(batch.context);
                let export = shared.exporter().export_under(context, batch.spans);
                polled = Some(shared.poll(batch.id, export));
            }
        }
    }
}

impl Shared {
    /// Accounts for a poll, and waits for the next thing to do. `None` if this worker is no longer needed.
    fn next_work(self: &Arc<Self>, polled: Option<Polled>) -> Option<Work> {
        let mut state = self.state.lock();
        if let Some(polled) = polled {
            state = self.account(state, polled);
        }
        loop {
            if let Some(work) = state.take_work(self.export_timeout) {
                // The call into the exporter may block, so others must get at the rest.
                let quick = state.pool.quick && matches!(work, Work::Start(_) | Work::Poll(..));
                let summons = match !quick && state.wants_worker() {
                    true => state.pool.summon_another(),
                    false => Summons::Nobody,
                };
                drop(state);
                self.obey(summons);
                return Some(work);
            }
            if state.is_over() {
                state.pool.workers -= 1;
                return None;
            }
            let since = Instant::now();
            state.pool.idle += 1;
            state = self.workers.wait_timeout(state, WORKER_IDLE);
            state.pool.idle -= 1;
            if since.elapsed() >= WORKER_IDLE && !state.wants_worker() {
                state.pool.workers -= 1;
                return None;
            }
        }
    }

    fn account<'a>(
        self: &'a Arc<Self>,
        mut state: MutexGuard<'a, State>,
        polled: Polled,
    ) -> MutexGuard<'a, State> {
        let id = polled.id;
        state.pool.quick = polled.quick;
        // None if its deadline has passed: then it is accounted for, and only its slot is to be freed.
        let spans = state.dispatch.in_flight(id);
        let outcome = match (polled.result, polled.export) {
            (Poll::Pending, Some(export)) if spans.is_some() => {
                state.pool.put_back(id, export);
                return state;
            }
            (Poll::Ready(Ok(())), _) => Outcome::Exported,
            (Poll::Ready(Err(example)), _) => {
                if let Some(spans) = spans {
                    let notices = &mut state.dispatch.notices;
                    notices.note(Kind::ExportFailed, spans, example);
                }
                Outcome::Failed
            }
            (Poll::Pending, export) => {
                drop(state);
                drop_quietly(export);
                state = self.state.lock();
                Outcome::TimedOut
            }
        };
        state.pool.running.remove(&id);
        state.dispatch.complete(id, outcome);
        self.settle(&mut state);
        state
    }

    /// What follows when an export is over.
    fn settle(&self, state: &mut State) {
        state.advance();
        state.finalize();
        if state.dispatch.must_wake() {
            self.driver.notify_one();
        }
        self.note_progress();
    }

    /// Polls an export once.
    fn poll(self: &Arc<Self>, id: u64, mut export: Export) -> Polled {
        let began = Instant::now();
        let waker = Waker::from(Arc::new(Alarm {
            id,
            shared: Arc::downgrade(self),
        }));
        let polled = catch_unwind(AssertUnwindSafe(|| {
            export.as_mut().poll(&mut TaskContext::from_waker(&waker))
        }));
        let result = match polled {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(Ok(()))) => Poll::Ready(Ok(())),
            Ok(Poll::Ready(Err(error))) => Poll::Ready(Err(Example::Error(error.to_string()))),
            Err(panic) => {
                let message = format!("the exporter panicked: {}", panic_message(&*panic));
                Poll::Ready(Err(Example::Error(message)))
            }
        };
        let export = match result.is_pending() {
            true => Some(export),
            false => {
                drop_quietly(export);
                None
            }
        };
        Polled {
            id,
            result,
            export,
            quick: began.elapsed() < QUICK,
        }
    }
}

impl State {
    fn take_work(&mut self, export_timeout: Duration) -> Option<Work> {
        let work = self
            .take_job()
            .or_else(|| self.pool.take_cancelled())
            .or_else(|| self.take_garbage())
            .or_else(|| self.pool.take_woken())
            .or_else(|| self.take_batch(export_timeout))?;
        self.pool.taken += 1;
        Some(work)
    }

    fn take_job(&mut self) -> Option<Work> {
        if self.pool.busy_with_job {
            return None;
        }
        let job = self.jobs.pop_front()?;
        self.pool.busy_with_job = true;
        Some(Work::Job(job))
    }

    fn take_garbage(&mut self) -> Option<Work> {
        self.dispatch.take_garbage().map(Work::Discard)
    }

    fn take_batch(&mut self, export_timeout: Duration) -> Option<Work> {
        if !self.dispatch.has_ready_batch() {
            return None;
        }
        let deadline = Instant::now().checked_add(export_timeout);
        let batch = self.dispatch.next_batch(deadline)?;
        let running = Running {
            export: None,
            woken: false,
        };
        self.pool.running.insert(batch.id, running);
        Some(Work::Start(batch))
    }

    /// Whether there is something for a worker to do.
    pub(crate) fn wants_worker(&self) -> bool {
        (!self.jobs.is_empty() && !self.pool.busy_with_job)
            || !self.pool.cancelled.is_empty()
            || self.dispatch.has_garbage()
            || !self.pool.woken.is_empty()
            || self.dispatch.has_ready_batch()
    }
}

impl Pool {
    fn take_cancelled(&mut self) -> Option<Work> {
        let (id, export) = self.cancelled.pop_front()?;
        Some(Work::Cancel(id, export))
    }

    fn take_woken(&mut self) -> Option<Work> {
        while let Some(id) = self.woken.pop_front() {
            if let Some(running) = self.running.get_mut(&id) {
                running.woken = false;
                if let Some(export) = running.export.take() {
                    return Some(Work::Poll(id, export));
                }
            }
        }
        None
    }

    fn put_back(&mut self, id: u64, export: Export) {
        if let Some(running) = self.running.get_mut(&id) {
            running.export = Some(export);
            if running.woken {
                self.woken.push_back(id);
            }
        }
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
        let flushed = answered(|| exporter.any_force_flush());
        let result = match job {
            Job::Flush(_) => flushed,
            Job::Shutdown => {
                // Whatever became of the flush.
                let remaining = self.remaining();
                let shut_down = answered(|| exporter.any_shutdown(remaining));
                flushed.and(shut_down)
            }
        };
        drop_quietly(exporter);
        let mut state = self.state.lock();
        state.pool.busy_with_job = false;
        let answers = state.conclude(job, result);
        // The driver ends when the last waiter is gone.
        self.wake_driver(&mut state);
        drop(state);
        self.note_progress();
        give(answers);
    }

    /// The time that the exporter has for its shutdown: what is left of the latest deadline, and never nothing.
    fn remaining(&self) -> Duration {
        let state = self.state.lock();
        let latest = state.shutdown_deadlines().flatten().max();
        let left = latest.map(|latest| latest.saturating_duration_since(Instant::now()));
        left.unwrap_or_default().max(LEAST_SHUTDOWN)
    }
}

/// What an exporter answers to a call that is not an export. One that is shut down already has nothing to flush.
fn answered(call: impl FnOnce() -> OTelSdkResult) -> Result<(), String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(()) | Err(OTelSdkError::AlreadyShutdown)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(panic) => Err(format!("it panicked: {}", panic_message(&*panic))),
    }
}
