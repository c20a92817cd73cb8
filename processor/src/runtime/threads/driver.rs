//! The driver: it takes what is due, watches all deadlines, and calls for workers.

use std::panic::catch_unwind;
use std::time::Duration;

use super::{Shared, State, give};
use super::{Summons, spawn};
use crate::clock::Instant;
use crate::notices::{Example, Kind, Notice};
use crate::sync::{Arc, thread};

/// The driver's period while there is work.
const TICK: Duration = Duration::from_millis(1);

/// How often the driver looks after pending spans when nothing new comes.
const LOOK_AFTER: Duration = Duration::from_millis(20);

/// How many queues the driver takes, or looks at, before it lets others have the lock.
const QUEUES_PER_LOCK: usize = 64;

/// How long an export that was taken back may take to be dropped, before it is accounted for without that.
const DROP_GRACE: Duration = Duration::from_millis(50);

pub(crate) fn spawn_driver(shared: &Arc<Shared>) -> std::io::Result<()> {
    let shared = shared.clone();
    spawn("otel-per-request", move || drive(&shared))
}

pub(super) fn drive(shared: &Arc<Shared>) {
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
        while state.dispatch.look_at_open_spans(now, QUEUES_PER_LOCK) {
            drop(state);
            state = self.state.lock();
        }
        for _ in 0..=state.dispatch.due() / QUEUES_PER_LOCK {
            state.dispatch.tick(QUEUES_PER_LOCK);
            drop(state);
            state = self.state.lock();
        }
        state.cancel_overdue(now, self.export_timeout);
        #[cfg(feature = "metric-reader")]
        if let Some(id) = state.dispatch.collect_if_due(now) {
            state.jobs.push_back(super::Job::Collect(id));
        }
        let answers = state.expire(now);
        state.advance();
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
        let nap = state.dispatch.plan_nap(Instant::now());
        while state.dispatch.asleep {
            let deadlines = look_after.into_iter().chain(nap);
            match deadlines.chain(state.next_deadline()).min() {
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
            notices.note(Kind::ExportFailed(overdue.signal), overdue.items, example);
        }
    }
}
