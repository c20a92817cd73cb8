//! A small Tokio runtime that the processor owns.
//!
//! Asynchronous HTTP clients bind their connections to the runtime that is entered when they are called. All exports run
//! on threads that have entered this one, so such a client works whether the caller has a runtime or not, and also while
//! the caller blocks its own.

#[cfg(feature = "tokio")]
pub(crate) use with_tokio::OwnRuntime;
#[cfg(not(feature = "tokio"))]
pub(crate) use without_tokio::OwnRuntime;

#[cfg(feature = "tokio")]
mod with_tokio {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use opentelemetry::Context;
    use tokio::runtime::{Builder, Handle, Runtime, RuntimeFlavor};
    use tokio::task::block_in_place;

    use super::super::wait::Probe;
    use crate::sync::{Arc, AtomicBool, Mutex, Ordering};

    #[derive(Debug)]
    pub(crate) struct OwnRuntime {
        handle: Handle,
        /// Empty when it was stopped.
        runtime: Mutex<Option<Runtime>>,
    }

    impl OwnRuntime {
        pub(crate) fn new() -> std::io::Result<Self> {
            let runtime = Builder::new_multi_thread()
                .worker_threads(1)
                .thread_name("otel-per-request-io")
                .on_thread_start(|| {
                    super::super::wait::mark_own_thread();
                    // For the life of the thread: a task that a client spawns here must not be traced either (R5).
                    std::mem::forget(Context::enter_telemetry_suppressed_scope());
                })
                .enable_all()
                .build()?;
            Ok(Self {
                handle: runtime.handle().clone(),
                runtime: Mutex::new(Some(runtime)),
            })
        }

        /// Runs `f` on this thread, with the runtime entered.
        pub(crate) fn enter<T>(&self, f: impl FnOnce() -> T) -> T {
            let _entered = self.handle.enter();
            f()
        }

        /// Ends its threads. What still runs there is dropped.
        pub(crate) fn stop(&self) {
            let runtime = self.runtime.lock().take();
            // This may be an asynchronous context, where waiting for the runtime would panic.
            if let Some(runtime) = runtime {
                runtime.shutdown_background();
            }
        }

        /// Runs `wait`, which blocks. A worker of a multi-thread runtime first hands its other tasks over: one of them may
        /// be what the wait is for, and some of them nobody else could take from it.
        ///
        /// `None` if `wait` itself panics.
        pub(crate) fn block<T>(&self, wait: impl FnOnce() -> T) -> Option<T> {
            let mut wait = Some(wait);
            let mut answer = None;
            if may_be_worker() {
                // It panics, before it runs anything, on a thread that is no worker after all.
                let _ = catch_unwind(AssertUnwindSafe(|| {
                    block_in_place(|| answer = wait.take().map(|wait| wait()));
                }));
            }
            answer.or_else(|| wait.map(|wait| wait()))
        }

        /// Finds out whether the runtime of the calling thread, if it has one, still runs: by an empty task. That comes
        /// from one of our threads, because what a thread of the caller's runtime spawns may wait for that very thread.
        pub(crate) fn probe(&self) -> Probe {
            let Ok(callers) = Handle::try_current() else {
                return Probe::none();
            };
            let ran = Arc::new(AtomicBool::new(false));
            let noted = ran.clone();
            self.handle.spawn(async move {
                let _ = callers.spawn(async {}).await;
                // Nothing is written that a reader of this would need.
                noted.store(true, Ordering::Relaxed);
            });
            Probe::new(ran)
        }
    }

    /// Whether this thread is a worker of somebody's multi-thread runtime, as far as its name tells. `block_in_place`
    /// panics on some threads that are not, such as one that runs a `LocalSet`, and hardly any of those has that name.
    fn may_be_worker() -> bool {
        let multi_thread = Handle::try_current()
            .is_ok_and(|callers| callers.runtime_flavor() == RuntimeFlavor::MultiThread);
        multi_thread && std::thread::current().name() == Some(TOKIO_WORKER)
    }

    /// Tokio's default name for its workers.
    const TOKIO_WORKER: &str = "tokio-rt-worker";

    impl Drop for OwnRuntime {
        fn drop(&mut self) {
            self.stop();
        }
    }
}

#[cfg(not(feature = "tokio"))]
mod without_tokio {
    /// Without the feature `tokio` there is none: an exporter that needs a runtime brings its own.
    #[derive(Debug)]
    pub(crate) struct OwnRuntime;

    impl OwnRuntime {
        pub(crate) fn new() -> std::io::Result<Self> {
            Ok(Self)
        }

        pub(crate) fn enter<T>(&self, f: impl FnOnce() -> T) -> T {
            f()
        }

        pub(crate) fn block<T>(&self, wait: impl FnOnce() -> T) -> Option<T> {
            Some(wait())
        }

        pub(crate) fn stop(&self) {}

        pub(crate) fn probe(&self) -> super::super::wait::Probe {
            super::super::wait::Probe::none()
        }
    }
}
