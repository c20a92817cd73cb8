//! A `fetch` in a CLIENT span.

use std::any::type_name;
use std::borrow::Cow;
use std::future::Future;

use ::http::Uri;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use worker::js_sys::Reflect;
use worker::wasm_bindgen::JsValue;
use worker::{AbortSignal, Fetch, Method, Request, Response, Result};

use super::WorkerHeaderInjector;
use crate::CANCELLED_ATTRIBUTE;
use crate::active::{ActiveSpan, active_span};
use crate::client::describe::{Call, client_span, record_status};
use crate::client::headers::{NotEmpty, is_traced};

/// `worker::Fetch` in a CLIENT span, which the other server can continue. What the span says, and when it ends, is as
/// [`client`](crate::client) has it.
///
/// The request is copied for that, because one that came in cannot be changed: its body goes along, and `traceparent` and
/// `tracestate` are those of the span. Without an active span, the request goes out as it is.
///
/// ```ignore
/// let orders = TracedFetch::url("https://orders.example/4711").send().await?;
///
/// // What came in goes on to another server.
/// TracedFetch::request(request).send().await
/// ```
#[derive(Debug)]
#[must_use = "nothing is sent until one of the methods `send` is called"]
pub struct TracedFetch {
    request: Result<Request>,
    attributes: Vec<KeyValue>,
    query: bool,
}

impl TracedFetch {
    /// A GET of this URL: a text, or a `worker::Url`. What is wrong with it, sending it says.
    pub fn url(url: impl AsRef<str>) -> Self {
        Self::of(Request::new(url.as_ref(), Method::Get))
    }

    /// This request: one that was made here, or one that came in.
    pub fn request(request: Request) -> Self {
        Self::of(Ok(request))
    }

    fn of(request: Result<Request>) -> Self {
        Self {
            request,
            attributes: Vec::new(),
            query: false,
        }
    }

    /// Shows the query in `url.full`, except for the values that sign a URL, such as that of `X-Amz-Signature`. Any other
    /// secret in a query is shown. Without this, all values are left out.
    pub fn with_query(mut self) -> Self {
        self.query = true;
        self
    }

    /// Adds attributes that the span starts with.
    pub fn with_attributes(mut self, attributes: impl IntoIterator<Item = KeyValue>) -> Self {
        self.attributes.extend(attributes);
        self
    }

    /// Sends the request, and waits for the head of the response.
    ///
    /// # Errors
    ///
    /// As `worker::Fetch`: the URL is none, the body was used, or there is no response.
    pub async fn send(self) -> Result<Response> {
        let fetch = |request| async { Fetch::Request(request).send().await };
        self.send_through(fetch).await
    }

    /// Sends the request, and waits for the head of the response, or for the signal. When the signal aborts it, the
    /// span has the attribute [`per_request.cancelled`](CANCELLED_ATTRIBUTE), and is no error unless the signal was a
    /// timeout.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send), and when the signal aborts it.
    pub async fn send_with_signal(self, signal: &AbortSignal) -> Result<Response> {
        let fetch = |request| async { Fetch::Request(request).send_with_signal(signal).await };
        self.sent(fetch, Some(signal)).await
    }

    /// Sends the request through something else: a service binding, or the stub of a Durable Object.
    ///
    /// ```ignore
    /// let stub = env.durable_object("COUNTER")?.get_by_name("the one")?;
    /// TracedFetch::request(request)
    ///     .send_through(|request| stub.fetch_with_request(request))
    ///     .await
    /// ```
    ///
    /// # Errors
    ///
    /// What `call` returns, or the body was used.
    pub async fn send_through<F>(self, call: impl FnOnce(Request) -> F) -> Result<Response>
    where
        F: Future<Output = Result<Response>>,
    {
        self.sent(call, None).await
    }

    async fn sent<F>(
        self,
        call: impl FnOnce(Request) -> F,
        signal: Option<&AbortSignal>,
    ) -> Result<Response>
    where
        F: Future<Output = Result<Response>>,
    {
        let parent = active_span();
        let request = self.request?;
        if !is_traced(parent.context()) {
            return call(request).await;
        }
        let (name, mut attributes) = describe(&request, self.query);
        attributes.extend(self.attributes);
        let span = parent.start_child_with(client_span(name, attributes));
        let handle = (*span).clone();
        span.run(async move {
            let result = match with_trace(request, handle.context()) {
                Ok(request) => call(request).await,
                Err(error) => Err(error),
            };
            record(&handle, &result, signal);
            result
        })
        .await
    }
}

fn describe(request: &Request, query: bool) -> (Cow<'static, str>, Vec<KeyValue>) {
    // Neither `worker::Method` nor `worker::Url`: see the module `http`.
    let method = request.inner().method();
    let uri = request.inner().url().parse::<Uri>().ok();
    let call = Call {
        method: &method,
        uri: uri.as_ref(),
        host: None,
        query,
    };
    call.http()
}

/// A copy of a request, with its body, that carries the span of `cx`.
fn with_trace(request: Request, cx: &Context) -> Result<Request> {
    if !is_traced(cx) {
        return Ok(request);
    }
    let copy = request.clone_mut()?;
    let propagator = TraceContextPropagator::new();
    for field in propagator.fields() {
        copy.headers().delete(field)?;
    }
    let mut injector = NotEmpty(WorkerHeaderInjector(copy.headers()));
    propagator.inject_context(cx, &mut injector);
    Ok(copy)
}

fn record(span: &ActiveSpan, result: &Result<Response>, signal: Option<&AbortSignal>) {
    match (result, signal.and_then(AbortSignal::reason)) {
        (Ok(response), _) => record_status(span, response.status_code()),
        (Err(_), Some(reason)) if is_timeout(&reason) => span.fail_with("timeout", ""),
        (Err(_), Some(_)) => span.set_attribute(CANCELLED_ATTRIBUTE, true),
        // Not its message, which may show the URL.
        (Err(error), None) => span.fail_with(type_of(error), ""),
    }
}

/// Whether it is what `AbortSignal.timeout` aborts with.
fn is_timeout(reason: &JsValue) -> bool {
    let name = Reflect::get(reason, &JsValue::from_str("name"));
    name.is_ok_and(|name| name.as_string().as_deref() == Some("TimeoutError"))
}

fn type_of<T>(_: &T) -> &'static str {
    type_name::<T>()
}
