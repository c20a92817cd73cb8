//! The Workers' `fetch` as an HTTP client.
//!
//! All that is needed for a request to be sent happens in the first poll: the data is on its way, and the runtime knows
//! that it has to wait for it. There may be no second poll, since a panic hook has only one.

use crate::clock;
use crate::delivery::MAX_RESPONSE_BYTES;
use crate::error::TransportError;
use async_trait::async_trait;
use futures_util::future::{Either, select};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use js_sys::futures::JsFuture;
use js_sys::{Array, Promise, Uint8Array};
use opentelemetry_http::{Bytes, HttpClient, HttpError, ResponseBodyTooLarge};
use std::pin::pin;
use std::time::Duration;
use wasm_bindgen::prelude::wasm_bindgen;
use wasm_bindgen::{JsCast, JsValue};
use web_sys::{
    AbortSignal, Headers, ReadableStream, ReadableStreamDefaultReader, ReadableStreamReadResult,
    RequestInit, RequestRedirect,
};
use worker::send::SendFuture;

/// The body of a refusal is for debugging only, so no more of it is read.
const MAX_REFUSAL_BYTES: usize = 64 * 1024;

/// An [`HttpClient`] over the `fetch` of Cloudflare Workers, for `http` and `https`.
///
/// [`DirectExporter`](crate::DirectExporter) uses it by itself. Other exporters can be given it, inside a
/// [`TokenClient`](crate::TokenClient) if they are to send tokens.
///
/// - The first poll calls `fetch` and hands the request to the runtime with `waitUntil`. So it leaves even if nobody
///   polls again, and also after the Worker has responded. What the runtime waits for that way is the head of the
///   response; to see it, the future itself must be awaited, or run under a `wait_until`.
/// - Dropping the future aborts the request, wherever it is. One that is to leave without anybody waiting for the
///   answer, as in a panic hook, must be forgotten instead.
/// - Redirects are not followed.
/// - At most 4 MiB of a success are read; one that is larger fails with [`ResponseBodyTooLarge`]. Of any other response
///   at most 64 KiB are read. The rest is cut off, because a body that is left unread holds one of the few connections
///   of a Worker.
/// - A failure has the runtime's own words, with credentials taken out of URLs.
///
/// A future has to be polled in the request of the Worker in which it was polled first; the client itself can be shared
/// by all of them. The runtime must have `waitUntil` in `cloudflare:workers`, as those since August 2025 do.
#[derive(Clone, Debug)]
pub struct FetchClient {
    /// `None` is no limit.
    timeout: Option<Duration>,
}

/// Ends a request that nobody waits for any more, or whose response nobody reads to the end.
struct AbortOnDrop(AbortController);

/// How far a body was read.
enum Read {
    ToTheEnd,
    UpToLimit,
}

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(catch)]
    fn fetch(url: &str, init: &RequestInit) -> Result<Promise<web_sys::Response>, JsValue>;

    type AbortController;

    #[wasm_bindgen(constructor, catch)]
    fn new() -> Result<AbortController, JsValue>;

    #[wasm_bindgen(method, getter)]
    fn signal(this: &AbortController) -> AbortSignal;

    // It throws in another request than the one it was made in.
    #[wasm_bindgen(method, catch)]
    fn abort(this: &AbortController) -> Result<(), JsValue>;
}

#[wasm_bindgen(module = "cloudflare:workers")]
extern "C" {
    // It throws outside of a request.
    #[wasm_bindgen(catch, js_name = waitUntil)]
    fn wait_until(promise: &Promise) -> Result<(), JsValue>;
}

// ===== impl FetchClient =====

impl FetchClient {
    /// Default of [`with_timeout`](FetchClient::with_timeout).
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

    /// A client with the default timeout.
    pub fn new() -> Self {
        Self::default()
    }

    /// How long one request may take, its response included. Zero is no limit. Default 10 s.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = (!timeout.is_zero()).then_some(timeout);
        self
    }

    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let Some(timeout) = self.timeout else {
            return exchange(request).await;
        };
        match select(pin!(exchange(request)), clock::sleep(timeout)).await {
            Either::Left((result, _)) => result,
            Either::Right(_) => {
                let text = format!("no response within {timeout:?}");
                Err(TransportError::from_text(&text).into())
            }
        }
    }
}

impl Default for FetchClient {
    fn default() -> Self {
        Self {
            timeout: Some(Self::DEFAULT_TIMEOUT),
        }
    }
}

#[async_trait]
impl HttpClient for FetchClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        // JavaScript's values must stay on their thread. A Worker has only one.
        SendFuture::new(self.send(request)).await
    }
}

/// One request and its response. Nothing is awaited before the request is on its way.
async fn exchange(request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let abort = AbortOnDrop::new()?;
    let response = start(&request, &abort.0.signal())?;
    keep_alive(&response);
    // A panic hook polls once. Nothing of this instance may be called when the response comes, because it is gone by then.
    clock::yield_once().await;
    let response = JsFuture::from(response).await.map_err(thrown)?;

    let status = StatusCode::from_u16(response.status())?;
    let mut body = Vec::new();
    if let Some(stream) = response.body() {
        if status.is_success() {
            if let Read::UpToLimit = read(stream, MAX_RESPONSE_BYTES, &mut body).await? {
                return Err(ResponseBodyTooLarge::new().into());
            }
        } else {
            // Whatever becomes of the body, the status is the answer.
            let _ = read(stream, MAX_REFUSAL_BYTES, &mut body).await;
        }
    }
    let mut answer = Response::new(body.into());
    *answer.status_mut() = status;
    *answer.headers_mut() = headers_of(&response);
    Ok(answer)
}

fn start(
    request: &Request<Bytes>,
    signal: &AbortSignal,
) -> Result<Promise<web_sys::Response>, HttpError> {
    let headers = Headers::new().map_err(thrown)?;
    for (name, value) in request.headers() {
        let value = std::str::from_utf8(value.as_bytes()).ok();
        let appended = value.and_then(|value| headers.append(name.as_str(), value).ok());
        // JavaScript's own words for it can repeat the value.
        appended.ok_or_else(|| TransportError::from_text(&format!("cannot send header {name}")))?;
    }
    let init = RequestInit::new();
    init.set_method(request.method().as_str());
    init.set_headers(&headers);
    init.set_redirect(RequestRedirect::Manual);
    init.set_signal(Some(signal));
    if !request.body().is_empty() {
        init.set_body(&Uint8Array::from(request.body().as_ref()));
    }
    fetch(&request.uri().to_string(), &init).map_err(thrown)
}

/// Lets the runtime wait for the response. Without it the request is dropped when the Worker has responded.
///
/// What it is given never fails, because a failure there is an error in the Worker's log. And it calls nothing of ours
/// when it is settled, because this instance may be gone by then: it could be running its panic hook right now.
fn keep_alive(response: &Promise<web_sys::Response>) {
    let settled = Promise::all_settled(&Array::of1(response));
    let _ = wait_until(&settled);
}

/// Reads at most `limit` bytes into `body`. What is left then goes with the [`AbortOnDrop`].
async fn read(stream: ReadableStream, limit: usize, body: &mut Vec<u8>) -> Result<Read, HttpError> {
    let reader: ReadableStreamDefaultReader = stream.get_reader().unchecked_into();
    loop {
        let next = JsFuture::from(reader.read()).await.map_err(thrown)?;
        let next: ReadableStreamReadResult = next.unchecked_into();
        if next.get_done() != Some(false) {
            return Ok(Read::ToTheEnd);
        }
        let chunk: Uint8Array = next.get_value().unchecked_into();
        let (start, room) = (body.len(), limit - body.len());
        let fits = room.min(chunk.length() as usize);
        body.resize(start + fits, 0);
        chunk.subarray(0, fits as u32).copy_to(&mut body[start..]);
        if (chunk.length() as usize) > room {
            return Ok(Read::UpToLimit);
        }
    }
}

fn headers_of(response: &web_sys::Response) -> HeaderMap {
    let pairs = Array::from(&response.headers());
    let header = |pair: JsValue| {
        let pair: Array = pair.unchecked_into();
        let name: HeaderName = pair.get(0).as_string()?.parse().ok()?;
        let value: HeaderValue = pair.get(1).as_string()?.parse().ok()?;
        Some((name, value))
    };
    let mut headers = HeaderMap::new();
    for (name, value) in pairs.iter().filter_map(header) {
        headers.append(name, value);
    }
    headers
}

/// What JavaScript says about a failure.
fn thrown(value: JsValue) -> HttpError {
    let text = match value.dyn_ref::<js_sys::Error>() {
        Some(error) => error.message().into(),
        None => value.as_string().unwrap_or_default(),
    };
    TransportError::from_text(&text).into()
}

// ===== impl AbortOnDrop =====

impl AbortOnDrop {
    fn new() -> Result<Self, HttpError> {
        AbortController::new().map(Self).map_err(thrown)
    }
}

/// Nothing happens when the request is over.
impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        let _ = self.0.abort();
    }
}
