//! The blocking reqwest client as one that never blocks its caller: each request runs on a thread of its own.

use async_trait::async_trait;
use futures_channel::oneshot;
use futures_util::FutureExt as _;
use http::{Request, Response};
use opentelemetry::Context;
use opentelemetry_http::{Bytes, HttpClient, HttpError};
use reqwest::blocking::Client;
use std::io;
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A request that nobody waits for any more cannot be stopped, but its thread ends this much later than the exporter's
/// timeout. It is not the timeout itself, so that the exporter's is always the one that counts.
const GRACE: Duration = Duration::from_secs(5);

/// `None` only while it is being dropped.
#[derive(Debug)]
pub(super) struct BlockingClient {
    client: Option<Client>,
}

// ===== impl BlockingClient =====

impl BlockingClient {
    pub(super) fn new(timeout: Option<Duration>) -> Result<Self, HttpError> {
        // Inside an async runtime, reqwest can be neither built nor dropped on the calling thread.
        let built = on_thread(move || {
            Client::builder()
                .redirect(reqwest::redirect::Policy::none())
                .timeout(timeout.map(|timeout| timeout.saturating_add(GRACE)))
                .build()
        })?;
        let client = built
            .join()
            .map_err(|_| io::Error::other("the thread that makes the client panicked"))??;
        Ok(Self {
            client: Some(client),
        })
    }
}

#[async_trait]
impl HttpClient for BlockingClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let cx = Context::current();
        let (answer, answered) = oneshot::channel();
        on_thread(move || {
            let _guard = cx.attach();
            // This client blocks inside its future, so the first poll is the whole request.
            let result = client.and_then(|client| client.send_bytes(request).now_or_never());
            if let Some(result) = result {
                // The receiver is gone when the exporter has no more time; then nobody wants the answer.
                let _ = answer.send(result);
            }
        })?;
        answered.await?
    }
}

impl Drop for BlockingClient {
    fn drop(&mut self) {
        let client = self.client.take();
        // If there is no thread to be had, the client is dropped right here, which is the best that is left.
        let _ = on_thread(move || drop(client));
    }
}

fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    thread::Builder::new()
        .name("otlp-direct".to_owned())
        .spawn(work)
}
