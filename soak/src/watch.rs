//! A thread that looks at the account and the memory all the time, and remembers the extremes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use opentelemetry_per_request::{Handle, Stats};

use crate::measure::{self, Line};

const LOOK: Duration = Duration::from_millis(1);

/// What the system has to be asked about takes longer.
const ASK: Duration = Duration::from_millis(50);

/// What was seen since somebody asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Extremes {
    pub(crate) looks: u64,
    pub(crate) pending: u64,
    /// Of log records.
    pub(crate) pending_logs: u64,
    pub(crate) traces: u64,
    pub(crate) live_bytes: i64,
    pub(crate) resident_bytes: i64,
    pub(crate) threads: usize,
    /// Bytes on the heap by seconds, since the warm-up.
    pub(crate) live_line: Line,
    /// An account that did not add up (R12).
    pub(crate) unbalanced: Option<Stats>,
}

/// Watches until it is dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    extremes: Arc<Mutex<Extremes>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub(crate) fn start(telemetry: Handle) -> Self {
        let extremes = Arc::<Mutex<Extremes>>::default();
        let stop = Arc::<AtomicBool>::default();
        let thread = {
            let (extremes, stop) = (Arc::clone(&extremes), Arc::clone(&stop));
            thread::spawn(move || {
                let start = Instant::now();
                let mut next = start;
                while !stop.load(Ordering::Relaxed) {
                    lock(&extremes).look(&telemetry.stats());
                    if Instant::now() >= next {
                        next = Instant::now() + ASK;
                        lock(&extremes).ask(start.elapsed());
                    }
                    thread::sleep(LOOK);
                }
            })
        };
        Self {
            extremes,
            stop,
            thread: Some(thread),
        }
    }

    /// What comes now is no longer the warm-up.
    pub(crate) fn is_warm(&self) {
        lock(&self.extremes).live_line = Line::default();
    }

    pub(crate) fn extremes(&self) -> Extremes {
        lock(&self.extremes).clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(extremes: &Mutex<Extremes>) -> MutexGuard<'_, Extremes> {
    extremes.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Extremes {
    fn look(&mut self, stats: &Stats) {
        self.looks += 1;
        self.pending = self.pending.max(stats.pending());
        self.pending_logs = self.pending_logs.max(stats.logs.pending());
        self.traces = self.traces.max(stats.traces);
        self.live_bytes = self.live_bytes.max(measure::live_bytes());
        if !stats.is_balanced() && self.unbalanced.is_none() {
            self.unbalanced = Some(stats.clone());
        }
    }

    fn ask(&mut self, at: Duration) {
        self.threads = self.threads.max(measure::processor_threads());
        self.resident_bytes = self.resident_bytes.max(measure::resident_bytes());
        let live_bytes = measure::live_bytes() as f64;
        self.live_line.add(at.as_secs_f64(), live_bytes);
    }
}
