//! The blocking reqwest client as one that never blocks its caller: each request runs on a thread of its own.

use crate::delivery::MAX_RESPONSE_BYTES;
use async_trait::async_trait;
use futures_channel::oneshot;
use http::{Request, Response};
use opentelemetry::Context;
use opentelemetry_http::{Bytes, HttpClient, HttpError, ResponseBodyTooLarge};
use reqwest::blocking::Client;
use std::io::{self, Read as _};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A request that nobody waits for any more cannot be stopped, but its thread ends this much later than the exporter's
/// timeout. It is not the timeout itself, so that the exporter's is always the one that counts.
const GRACE: Duration = Duration::from_secs(5);

/// `None` only while it is being dropped.
#[derive(Debug)]
pub(super) struct BlockingClient {
    client: Option<Client>,
    timeout: Option<Duration>,
}

// ===== impl BlockingClient =====

impl BlockingClient {
    pub(super) fn new(timeout: Option<Duration>) -> Result<Self, HttpError> {
        // Inside an async runtime, reqwest can be neither built nor dropped on the calling thread.
        let built = on_thread(|| {
            Client::builder()
                .redirect(reqwest::redirect::Policy::none())
                // Each request has its own.
                .timeout(None)
                .build()
        })?;
        let client = built
            .join()
            .map_err(|_| io::Error::other("the thread that makes the client panicked"))??;
        Ok(Self {
            client: Some(client),
            timeout: timeout.map(|timeout| timeout.saturating_add(GRACE)),
        })
    }
}

#[async_trait]
impl HttpClient for BlockingClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (client, timeout) = (self.client.clone(), self.timeout);
        let (answer, answered) = oneshot::channel();
        on_thread(move || {
            // In place of the request's context, which this thread could keep alive for longer than the export.
            let _guard = Context::enter_telemetry_suppressed_scope();
            if let Some(client) = client {
                // The receiver is gone when the exporter has no more time; then nobody wants the answer.
                let _ = answer.send(send(&client, request, timeout));
            }
        })?;
        answered.await?
    }
}

/// As `opentelemetry-http` does it, but with a timeout that covers the body as well. That of a client starts anew with each
/// read, so an answer of one byte a second would keep its thread for as long as it lasts.
fn send(
    client: &Client,
    request: Request<Bytes>,
    timeout: Option<Duration>,
) -> Result<Response<Bytes>, HttpError> {
    let mut request = reqwest::blocking::Request::try_from(request)?;
    *request.timeout_mut() = timeout;
    let mut answer = client.execute(request)?;
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = answer.status();
    *response.headers_mut() = std::mem::take(answer.headers_mut());
    let mut body = Vec::new();
    let limit = MAX_RESPONSE_BYTES as u64;
    answer.take(limit + 1).read_to_end(&mut body)?;
    if body.len() > MAX_RESPONSE_BYTES {
        return Err(ResponseBodyTooLarge::new().into());
    }
    *response.body_mut() = Bytes::from(body);
    Ok(response)
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
