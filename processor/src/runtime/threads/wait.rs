//! Waiting for an answer: as a future, or synchronously, where that can end.
//!
//! A thread that waits cannot drive anything else. That is a deadlock in two places: inside an export, which would wait
//! for itself, and on the only thread of a runtime that the exporter needs (a gRPC channel that was built in a
//! current-thread runtime, for one). The first is known beforehand. The second is found out: a probe task tells whether
//! the caller's runtime still runs, and if it does not while no export makes progress, the wait ends early. A worker of a
//! multi-thread runtime hands over its other tasks before it waits.

use std::cell::Cell;
use std::future::Future;
use std::time::Duration;

use futures_channel::oneshot;

use super::{Answer, Shared, Told};
use crate::clock::Instant;
use crate::error::{Deadlock, FlushError};
use crate::sync::{Arc, AtomicBool, Ordering, mpsc, thread_local};

/// How long a wait on a blocked runtime goes on while no export makes progress.
const STALL: Duration = Duration::from_secs(1);

/// How often a wait on a runtime's thread looks around.
const LOOK: Duration = Duration::from_millis(50);

thread_local! {
    static OWN_THREAD: Cell<bool> = const { Cell::new(false) };
}

/// Marks this thread, for good, as one that exports run on.
pub(crate) fn mark_own_thread() {
    OWN_THREAD.with(|own| own.set(true));
}

fn is_own_thread() -> bool {
    OWN_THREAD.with(Cell::get)
}

impl Shared {
    /// An answer that is to be given, and the future of whoever waits for it. Only a future that ends has told somebody.
    pub(super) fn answer(
        self: &Arc<Self>,
    ) -> (
        Answer,
        impl Future<Output = Result<(), FlushError>> + Send + use<>,
    ) {
        let (answer, told) = oneshot::channel();
        let answer: Answer = Box::new(move |message| {
            // Nobody listens any more if the future was dropped.
            let _ = answer.send(message);
        });
        let shared = self.clone();
        let heard = async move {
            match told.await {
                Ok(told) => shared.hear(told),
                Err(oneshot::Canceled) => Err(FlushError::AlreadyShutdown),
            }
        };
        (answer, heard)
    }

    /// Starts something and blocks until it is answered, or until waiting is known to be in vain.
    pub(super) fn wait_for(&self, start: impl FnOnce(Answer)) -> Result<(), FlushError> {
        let (answer, answered) = mpsc::channel();
        start(Box::new(move |told| {
            // Nobody listens any more if the wait ended early.
            let _ = answer.send(told);
        }));
        if is_own_thread() {
            return match answered.try_recv() {
                Ok(told) => self.hear(told),
                Err(_) => Err(FlushError::WouldDeadlock(Deadlock::InsideExport)),
            };
        }
        self.runtime
            .block(|| self.listen(&answered))
            .unwrap_or(Err(FlushError::AlreadyShutdown))
    }

    fn listen(&self, answered: &mpsc::Receiver<Told>) -> Result<(), FlushError> {
        let probe = match self.independent {
            true => Probe::none(),
            false => self.runtime.probe(),
        };
        let mut watch = Watch::new(self.progress());
        loop {
            match answered.recv_timeout(LOOK) {
                Ok(told) => return self.hear(told),
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(FlushError::AlreadyShutdown);
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
            if watch.is_stalled(self.progress()) && probe.is_blocked() {
                return Err(FlushError::WouldDeadlock(Deadlock::RuntimeBlocked));
            }
        }
    }
}

/// Notices when exports make no progress.
struct Watch {
    seen: u64,
    since: Instant,
}

impl Watch {
    fn new(progress: u64) -> Self {
        Self {
            seen: progress,
            since: Instant::now(),
        }
    }

    fn is_stalled(&mut self, progress: u64) -> bool {
        if progress != self.seen {
            *self = Self::new(progress);
        }
        self.since.elapsed() >= STALL
    }
}

/// Tells whether the runtime of the thread that it was made on still runs.
pub(crate) struct Probe(Option<Arc<AtomicBool>>);

impl Probe {
    /// For a thread without a runtime: there is none that could be blocked.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// One that sees the caller's runtime run when `ran` is set.
    #[cfg(feature = "tokio")]
    pub(crate) fn new(ran: Arc<AtomicBool>) -> Self {
        Self(Some(ran))
    }

    fn is_blocked(&self) -> bool {
        // Nothing else is read on the strength of this.
        self.0
            .as_ref()
            .is_some_and(|ran| !ran.load(Ordering::Relaxed))
    }
}
