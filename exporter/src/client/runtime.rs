//! Runs an async HTTP client on a tokio runtime of its own, so that it works on any thread.
//!
//! An HTTP client binds each connection to the runtime it was opened on. If exports ran on the caller's runtime, a
//! connection could be driven by a thread that is blocked in `force_flush`, waiting for that very export; and a pooled
//! connection outlives the runtime it was opened on. With one runtime for all of them neither can happen, and a thread
//! without any runtime, such as that of the SDK's batch processor, is served as well.

use async_trait::async_trait;
use http::{Request, Response};
use opentelemetry::Context;
use opentelemetry::trace::FutureExt as _;
use opentelemetry_http::{Bytes, HttpClient, HttpError};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::{Handle, Runtime};
use tokio::task::JoinHandle;

/// An async client with its runtime. The runtime has one thread and is started by the first request.
#[derive(Debug)]
pub(super) struct RuntimeClient<C> {
    client: Arc<C>,
    runtime: Mutex<Option<Runtime>>,
}

/// A spawned request, stopped when nobody waits for it any more.
#[derive(Debug)]
struct AbortOnDrop<T>(JoinHandle<T>);

// ===== impl RuntimeClient =====

impl<C: HttpClient> RuntimeClient<C> {
    pub(super) fn new(client: C) -> Self {
        Self {
            client: Arc::new(client),
            runtime: Mutex::new(None),
        }
    }
}

impl<C> RuntimeClient<C> {
    fn handle(&self) -> io::Result<Handle> {
        let mut runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = &*runtime {
            return Ok(runtime.handle().clone());
        }
        let started = start_runtime()?;
        let handle = started.handle().clone();
        *runtime = Some(started);
        Ok(handle)
    }
}

#[async_trait]
impl<C: HttpClient + 'static> HttpClient for RuntimeClient<C> {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = Arc::clone(&self.client);
        let cx = Context::current();
        let send = async move { client.send_bytes(request).await }.with_context(cx);
        let mut task = AbortOnDrop(self.handle()?.spawn(send));
        (&mut task.0).await?
    }
}

/// Waiting for a runtime to end is not allowed inside another one, so it ends in the background.
impl<C> Drop for RuntimeClient<C> {
    fn drop(&mut self) {
        let runtime = self.runtime.get_mut();
        if let Some(runtime) = runtime.unwrap_or_else(PoisonError::into_inner).take() {
            runtime.shutdown_background();
        }
    }
}

fn start_runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("otlp-direct")
        .enable_all()
        // Tasks that the client spawns for its connections have no context of their own: nothing on these threads may
        // become telemetry again. The guard lasts as long as the thread.
        .on_thread_start(|| std::mem::forget(Context::enter_telemetry_suppressed_scope()))
        .build()
}

// ===== impl AbortOnDrop =====

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
