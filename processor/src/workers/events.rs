//! A root span around each event, and a flush behind it.

use std::borrow::Cow;
use std::fmt::Display;
use std::future::Future;

use opentelemetry::trace::{Link, SpanKind, TraceContextExt as _};
use opentelemetry::{Context, KeyValue};
use worker::js_sys::Reflect;
use worker::wasm_bindgen::JsValue;
use worker::{Env, MessageBatch, ScheduledEvent};

use super::root::{Opening, Root};
use super::telemetry::{Running, Telemetry};
use super::{IncomingRequest, OutgoingResponse};
use crate::http;

impl Telemetry {
    /// Handles a `fetch` event inside a SERVER span: of a Worker, with its `Context`, or of a Durable Object, with whatever it
    /// hands to its handler.
    ///
    /// The span continues the trace of the header `traceparent`, and has the attributes of the semantic conventions for HTTP
    /// servers; of a query only the names, since the values may be secrets. The handler runs under it whenever it is polled, so
    /// spans that it starts are its children. A status of 500 and above, and an error, are marked as such. When the handler
    /// is done the span ends, and what is queued of this request leaves; the response does not wait for that. What the
    /// handler returned as an error is in the span, in its own words.
    ///
    /// # Errors
    ///
    /// What `handler` returns.
    pub async fn instrument_fetch<Q, C, F, R, E>(
        &self,
        request: Q,
        env: Env,
        ctx: C,
        handler: impl FnOnce(Q, Env, C) -> F,
    ) -> Result<R, E>
    where
        Q: IncomingRequest,
        F: Future<Output = Result<R, E>>,
        R: OutgoingResponse,
        E: Display,
    {
        let Some(running) = self.running(&env) else {
            return handler(request, env, ctx).await;
        };
        let opening = Opening {
            name: http::span_name(&request.method()).into(),
            kind: SpanKind::Server,
            attributes: http::attributes(&request),
            links: Vec::new(),
        };
        let root = Root::start(running, &running.parent_of(&request), opening);
        let result = root.run(async { handler(request, env, ctx).await }).await;
        match &result {
            Ok(response) => {
                let status = response.status();
                root.set_attribute(KeyValue::new(
                    "http.response.status_code",
                    i64::from(status),
                ));
                if status >= 500 {
                    root.fail(status.to_string(), String::new());
                }
            }
            Err(error) => root.fail_with(error),
        }
        root.end();
        result
    }

    /// Handles a scheduled event inside a SERVER span, as [`instrument_fetch`](Self::instrument_fetch) does.
    pub async fn instrument_scheduled<C, F>(
        &self,
        event: ScheduledEvent,
        env: Env,
        ctx: C,
        handler: impl FnOnce(ScheduledEvent, Env, C) -> F,
    ) where
        F: Future<Output = ()>,
    {
        let Some(running) = self.running(&env) else {
            return handler(event, env, ctx).await;
        };
        let opening = Opening {
            name: "scheduled".into(),
            kind: SpanKind::Server,
            attributes: vec![
                KeyValue::new("faas.trigger", "timer"),
                KeyValue::new("faas.cron", event.cron()),
            ],
            links: Vec::new(),
        };
        let root = Root::start(running, &Context::new(), opening);
        root.run(async { handler(event, env, ctx).await }).await;
        root.end();
    }

    /// Does any other work inside a span that is the root of its trace: an alarm, a WebSocket message, an email, a call of a
    /// Durable Object's method.
    ///
    /// A span needs to be there for other spans to belong to a request at all, and to leave under its context.
    pub async fn instrument<T>(
        &self,
        env: &Env,
        name: impl Into<Cow<'static, str>>,
        kind: SpanKind,
        work: impl Future<Output = T>,
    ) -> T {
        let Some(running) = self.running(env) else {
            return work.await;
        };
        let opening = Opening {
            name: name.into(),
            kind,
            attributes: Vec::new(),
            links: Vec::new(),
        };
        let root = Root::start(running, &Context::new(), opening);
        let result = root.run(work).await;
        root.end();
        result
    }

    /// Handles a batch of a queue inside a CONSUMER span, with a link to the trace of each message that names one.
    ///
    /// Messages have no headers, so a message names its trace in its body: `traceparent`, and `tracestate` if there is
    /// one, as text fields of an object.
    ///
    /// If the handler fails, the flush is waited for, for as long as an export may take: an error that a queue handler returns
    /// is a panic of the whole instance in the crate `worker`, and nothing leaves after that. What the handler returned as an
    /// error is in the span, in its own words.
    ///
    /// # Errors
    ///
    /// What `handler` returns.
    pub async fn instrument_queue<T, C, F, E>(
        &self,
        batch: MessageBatch<T>,
        env: Env,
        ctx: C,
        handler: impl FnOnce(MessageBatch<T>, Env, C) -> F,
    ) -> Result<(), E>
    where
        F: Future<Output = Result<(), E>>,
        E: Display,
    {
        let Some(running) = self.running(&env) else {
            return handler(batch, env, ctx).await;
        };
        let queue = batch.queue();
        let messages = batch.raw_iter().len() as i64;
        let links = links(running, &batch);
        let opening = Opening {
            name: format!("process {queue}").into(),
            kind: SpanKind::Consumer,
            attributes: vec![
                KeyValue::new("messaging.system", "cloudflare_queues"),
                KeyValue::new("messaging.operation.name", "process"),
                KeyValue::new("messaging.operation.type", "process"),
                KeyValue::new("messaging.destination.name", queue),
                KeyValue::new("messaging.batch.message_count", messages),
            ],
            links,
        };
        let root = Root::start(running, &Context::new(), opening);
        let result = root.run(async { handler(batch, env, ctx).await }).await;
        match &result {
            Ok(()) => root.end(),
            Err(error) => {
                root.fail_with(error);
                root.end_and_flush().await;
            }
        }
        result
    }
}

/// The traces that the messages name.
fn links<T>(running: &Running, batch: &MessageBatch<T>) -> Vec<Link> {
    let link = |body: JsValue| {
        if !body.is_object() {
            return None;
        }
        let field = |name: &str| {
            Reflect::get(&body, &JsValue::from_str(name))
                .ok()?
                .as_string()
        };
        let cx = running.extract(field);
        let named = cx.span().span_context().clone();
        named.is_valid().then(|| Link::new(named, Vec::new(), 0))
    };
    batch
        .raw_iter()
        .filter_map(|message| link(message.body()))
        .collect()
}
