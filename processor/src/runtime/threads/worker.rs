//! A worker: it starts exports, polls those that were woken, and does whatever else could block.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};

use super::Summons;
use super::pool::{Alarm, Running};
use super::{Job, Shared, State, drop_quietly, give};
use crate::clock::Instant;
use crate::dispatch::{Batch, Garbage, Outcome};
#[cfg(feature = "metric-reader")]
use crate::error::FlushError;
use crate::export::Export;
use crate::notices::{Example, Kind};
use crate::signal::Signal;
use crate::sync::{Arc, MutexGuard};

/// An exporter whose calls return within this time is quick: it does not block, or hardly.
const QUICK: Duration = Duration::from_micros(200);

/// An idle worker ends after this time.
const WORKER_IDLE: Duration = Duration::from_secs(10);

/// The shortest time that an exporter's `shutdown` is given.
const LEAST_SHUTDOWN: Duration = Duration::from_millis(100);

/// Something for a worker to do.
pub(super) enum Work {
    /// Start an export, which was taken at this time.
    Start(Batch, Instant),
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

pub(super) fn work(shared: &Arc<Shared>) {
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
            Work::Poll(id, export) => polled = Some(shared.poll(id, export, Instant::now())),
            Work::Start(batch, began) => {
                let id = batch.id;
                let exporter = shared.exporter(batch.items.signal());
                let export = batch.export_with(exporter);
                polled = Some(shared.poll(id, export, began));
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
                let quick = state.pool.quick && matches!(work, Work::Start(..) | Work::Poll(..));
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
        let flight = state.dispatch.in_flight(id);
        let outcome = match (polled.result, polled.export) {
            (Poll::Pending, Some(export)) if flight.is_some() => {
                state.pool.put_back(id, export);
                return state;
            }
            (Poll::Ready(Ok(())), _) => Outcome::Exported,
            (Poll::Ready(Err(example)), _) => {
                if let Some((signal, items)) = flight {
                    let notices = &mut state.dispatch.notices;
                    notices.note(Kind::ExportFailed(signal), items, example);
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
        if state.dispatch.must_wake() {
            self.driver.notify_one();
        }
        self.note_progress();
    }

    /// Polls an export once.
    fn poll(self: &Arc<Self>, id: u64, mut export: Export, began: Instant) -> Polled {
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
        let job = self.jobs.remove(self.next_job()?)?;
        self.pool.busy = self.pool.busy.with(job.signal());
        Some(Work::Job(job))
    }

    /// The place of the first job whose signal has none under way.
    fn next_job(&self) -> Option<usize> {
        let mut jobs = self.jobs.iter();
        jobs.position(|job| !self.pool.busy.contains(job.signal()))
    }

    fn take_garbage(&mut self) -> Option<Work> {
        self.dispatch.take_garbage().map(Work::Discard)
    }

    fn take_batch(&mut self, export_timeout: Duration) -> Option<Work> {
        if !self.dispatch.has_ready_batch() {
            return None;
        }
        let now = Instant::now();
        let batch = self.dispatch.next_batch(now.checked_add(export_timeout))?;
        let running = Running {
            export: None,
            woken: false,
        };
        self.pool.running.insert(batch.id, running);
        Some(Work::Start(batch, now))
    }

    /// Whether there is something for a worker to do.
    pub(crate) fn wants_worker(&self) -> bool {
        self.next_job().is_some()
            || !self.pool.cancelled.is_empty()
            || self.dispatch.has_garbage()
            || !self.pool.woken.is_empty()
            || self.dispatch.has_ready_batch()
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
    /// Calls code of the user's for something that is not an export.
    fn perform(self: &Arc<Self>, job: Job) {
        let result = match job {
            Job::Flush(_, signal) => self.flush_exporter(signal),
            Job::Shutdown(signal) => {
                let flushed = self.flush_exporter(signal);
                // Whatever became of the flush.
                let remaining = self.remaining(signal);
                let exporter = self.exporter(signal);
                let shut_down = answered(|| exporter.any_shutdown(remaining));
                drop_quietly(exporter);
                flushed.and(shut_down)
            }
            #[cfg(feature = "metric-reader")]
            Job::Collect(id) => {
                self.collect(id);
                Ok(())
            }
        };
        let mut state = self.state.lock();
        state.pool.busy = state.pool.busy.without(job.signal());
        let answers = state.conclude(job, result);
        // The driver ends when the last waiter is gone.
        self.wake_driver(&mut state);
        drop(state);
        self.note_progress();
        give(answers);
    }

    fn flush_exporter(&self, signal: Signal) -> Result<(), String> {
        let exporter = self.exporter(signal);
        let flushed = answered(|| exporter.any_force_flush());
        drop_quietly(exporter);
        flushed
    }

    /// Collects metrics, which runs callbacks of the user's. Flushes that have begun since it was asked for hear if it fails.
    #[cfg(feature = "metric-reader")]
    fn collect(&self, id: u64) {
        let collector = self.collector.lock().clone();
        let collected = collector.map_or(Ok(None), |collector| collector.collect());
        let mut state = self.state.lock();
        if let Err(error) = &collected {
            let example = Example::Error(error.clone());
            state.dispatch.notices.note(Kind::CollectFailed, 1, example);
            let waiters = state.waiters.iter_mut();
            for (_, waiter) in waiters.filter(|(of, waiter)| **of > id && waiter.collects) {
                waiter.failure = Some(FlushError::Collect(error.clone()));
            }
        }
        state
            .dispatch
            .end_collection(id, collected.unwrap_or_default());
        state.advance();
    }

    /// The time that the exporter has for its shutdown: what is left of the latest deadline, and never nothing.
    fn remaining(&self, signal: Signal) -> Duration {
        let state = self.state.lock();
        let latest = state.shutdown_deadlines(signal).flatten().max();
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
