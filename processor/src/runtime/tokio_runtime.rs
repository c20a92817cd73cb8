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
    use opentelemetry::Context;
    use tokio::runtime::{Builder, Runtime};

    /// Empty only while it is being dropped.
    #[derive(Debug)]
    pub(crate) struct OwnRuntime(Option<Runtime>);

    impl OwnRuntime {
        pub(crate) fn new() -> std::io::Result<Self> {
            let runtime = Builder::new_multi_thread()
                .worker_threads(1)
                .thread_name("otel-per-request-io")
                .on_thread_start(|| {
                    crate::runtime::wait::mark_own_thread();
                    // For the life of the thread: a task that a client spawns here must not be traced either (R5).
                    std::mem::forget(Context::enter_telemetry_suppressed_scope());
                })
                .enable_all()
                .build()?;
            Ok(Self(Some(runtime)))
        }

        /// Runs `f` on this thread, with the runtime entered.
        pub(crate) fn enter<T>(&self, f: impl FnOnce() -> T) -> T {
            let _entered = self.0.as_ref().map(Runtime::enter);
            f()
        }
    }

    impl Drop for OwnRuntime {
        fn drop(&mut self) {
            // The last handle may be dropped inside an asynchronous context, where waiting for the runtime would panic.
            if let Some(runtime) = self.0.take() {
                runtime.shutdown_background();
            }
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
    }
}
