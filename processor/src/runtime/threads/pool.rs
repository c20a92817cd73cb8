//! The workers and the exports under way, as the lock sees them: who is idle, what was woken, when another worker is needed.

use std::collections::{HashMap, VecDeque};
use std::task::Wake;

use super::Shared;
use super::spawn;
use super::worker::{Work, work};
use crate::export::Export;
use crate::hash::IdHash;
use crate::notices::{Example, Kind};
use crate::signal::{Signal, Signals};
use crate::sync::{Arc, Weak};

/// The most workers, when concurrent exports are not limited.
const MAX_WORKERS: usize = 256;

/// The workers and the exports under way, as the lock sees them.
pub(crate) struct Pool {
    /// Exports under way, by the id of their batch.
    pub(super) running: HashMap<u64, Running, IdHash>,
    /// Those that were woken and wait for a worker. May name some that are over.
    pub(super) woken: VecDeque<u64>,
    /// Those that were given up and wait to be dropped.
    pub(super) cancelled: VecDeque<(u64, Export)>,
    pub(super) workers: usize,
    pub(super) max_workers: usize,
    /// Workers that wait for something to do.
    pub(super) idle: usize,
    /// Counts what workers have taken on.
    pub(super) taken: u64,
    /// What `taken` was when the driver last looked.
    pub(super) seen: u64,
    /// Whether the exporter is known to return quickly.
    pub(super) quick: bool,
    /// The signals for which a worker is in a call that is not an export. Of each signal one at a time, so that one that hangs
    /// takes one thread, and holds up no other signal.
    pub(super) busy: Signals,
}

/// An export under way.
pub(super) struct Running {
    /// None while a worker polls it.
    pub(super) export: Option<Export>,
    /// Whether it was woken since it was last polled.
    pub(super) woken: bool,
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
            // Of each signal, with one for a call that is not an export. And one to drop things, for that may block, too.
            max => {
                let signals = Signal::ALL.len();
                max.saturating_mul(signals).min(MAX_WORKERS) + signals + 1
            }
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
            busy: Signals::NONE,
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
    pub(super) fn summon_or_hire(&mut self) -> Summons {
        let stuck = self.taken == self.seen;
        self.seen = self.taken;
        match stuck {
            true => self.summon_another(),
            false => self.summon(),
        }
    }

    /// Calls for one more worker than there is.
    pub(super) fn summon_another(&mut self) -> Summons {
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
pub(super) struct Alarm {
    pub(super) id: u64,
    /// Weak, because an exporter may keep a waker for long, and `Shared` owns the exporter.
    pub(super) shared: Weak<Shared>,
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

impl Pool {
    pub(super) fn take_cancelled(&mut self) -> Option<Work> {
        let (id, export) = self.cancelled.pop_front()?;
        Some(Work::Cancel(id, export))
    }

    pub(super) fn take_woken(&mut self) -> Option<Work> {
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

    pub(super) fn put_back(&mut self, id: u64, export: Export) {
        if let Some(running) = self.running.get_mut(&id) {
            running.export = Some(export);
            if running.woken {
                self.woken.push_back(id);
            }
        }
    }
}
