//! What the tests beside this file ask of a Worker: each route is a scenario. It is compiled into the example Worker with the
//! cargo feature `scenarios`.
//!
//! `id` in the query becomes the attribute `request` of the root and of every span below it, so that a test can tell which
//! request a span was made in, whatever it arrives under.

#[path = "scenarios/open_events.rs"]
mod open_events;
#[path = "scenarios/requests.rs"]
mod requests;
#[path = "scenarios/signals.rs"]
mod signals;
#[path = "scenarios/tracing.rs"]
mod tracing;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{FutureExt as _, TraceContextExt as _, Tracer as _};
use opentelemetry::{Context as Cx, KeyValue};
use opentelemetry_otlp_direct::{DirectExporter, ExportToken};
use opentelemetry_per_request::workers::{TracedFetch, WorkerHeaderInjector};
use opentelemetry_per_request::{TelemetryBuilder, active_span};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use worker::js_sys::{Function, Reflect, global};
use worker::wasm_bindgen::JsValue;
use worker::{
    AbortSignal, Context, Delay, DurableObject, Env, Fetch, Headers, MessageBatch, Method, Request,
    RequestInit, Response, Result, ScheduleContext, ScheduledEvent, State, console_error,
    console_log, console_warn, durable_object, event, wasm_bindgen,
};

use crate::TELEMETRY;

/// The query of a scenario. A number that is not there is 0, and a text is empty.
#[derive(Clone)]
struct Query(HashMap<String, String>);

impl Query {
    fn of(request: &Request) -> Result<Self> {
        let url = request.url()?;
        Ok(Self(url.query_pairs().into_owned().collect()))
    }

    fn number(&self, name: &str) -> u64 {
        self.text(name).parse().unwrap_or_default()
    }

    fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// Says in the current span which request it is part of.
    fn sign(&self) {
        if let Some(id) = self.0.get("id") {
            let id = KeyValue::new("request", id.clone());
            Cx::current().span().set_attribute(id);
        }
    }
}

/// What is not to be part of any trace. `None` if the path is a scenario.
pub(crate) async fn handle_outside(request: &Request, env: &Env) -> Option<Result<Response>> {
    match request.path().as_str() {
        "/plain" => Some(Response::ok("plain")),
        "/console" => Some(console()),
        "/slow" => Some(slow(request).await),
        "/visits" => Some(visits()),
        "/stats" => Some(stats(env)),
        "/flush" => Some(flush(env).await),
        "/flush-all" => Some(signals::flush(env).await),
        "/shutdown" => Some(signals::shutdown(env).await),
        "/log-outside" => Some(signals::log_outside()),
        "/seen" => Some(open_events::seen()),
        "/check" => Some(check(env).await),
        _ => None,
    }
}

pub(crate) use open_events::wants_rescue;
pub(crate) use tracing::subscribe;

/// What else telemetry is to be, by the bindings.
pub(crate) fn prepare(builder: TelemetryBuilder, env: &Env) -> TelemetryBuilder {
    open_events::prepare(signals::prepare(builder, env), env)
}

/// What has a span of its own around it: that of a layer.
pub(crate) use requests::serve;

pub(crate) async fn handle(request: Request, env: Env, ctx: Context) -> Result<Response> {
    let query = Query::of(&request)?;
    query.sign();
    match request.path().as_str() {
        "/work" => work(&query).await,
        "/deep" => requests::deep(query.number("levels"), query.text("id")).await,
        "/nested" => nested(&query, query.number("depth")).await,
        "/background" => background(&query, &ctx),
        "/late" => late(&query, &ctx),
        "/by-hand" => by_hand(&query, &ctx),
        "/status" => Ok(Response::ok("")?.with_status(query.number("code") as u16)),
        "/error" => Err("it went wrong".into()),
        "/panic" => panic_after(&query).await,
        "/panic-behind" => panic_behind(&query, &ctx),
        "/subrequest" => subrequest(&query).await,
        "/traced-fetch" => traced_fetch(&query).await,
        // As a proxy does: to whatever `host` says.
        "/echo" => TracedFetch::request(request).send().await,
        "/refresh" => refresh(&query).await,
        path if path.starts_with("/open/") => open_events::handle(path, &query).await,
        path if path.starts_with("/signals/") => signals::handle(path, &query, &ctx).await,
        "/durable" => durable(&query, &env).await,
        "/reset" => reset(&query, &env).await,
        path => tracing::handle(path, &query, &ctx).await,
    }
}

/// `spans` children, one after the other, each of which takes `ms`; then the root goes on for `tail`.
async fn work(query: &Query) -> Result<Response> {
    for n in 0..query.number("spans") {
        child(query, format!("child {n}"), wait(query.number("ms"))).await;
    }
    wait(query.number("tail")).await;
    Response::ok("done")
}

/// Children below children, each of which waits `ms` before it has one.
async fn nested(query: &Query, depth: u64) -> Result<Response> {
    if depth == 0 {
        return Response::ok("done");
    }
    let below = Box::pin(async move {
        wait(query.number("ms")).await;
        nested(query, depth - 1).await
    });
    child(query, format!("level {depth}"), below).await
}

/// `spans` children, one after the other, that take `ms` each. The response does not wait for them.
fn background(query: &Query, ctx: &Context) -> Result<Response> {
    let query = query.clone();
    TELEMETRY.wait_until(ctx, async move {
        for n in 0..query.number("spans") {
            let name = format!("background {n}");
            child(&query, name, wait(query.number("ms"))).await;
        }
    });
    Response::ok("done")
}

/// The same below a root that was started by hand, in a context that names no telemetry.
fn by_hand(query: &Query, ctx: &Context) -> Result<Response> {
    let tracer = opentelemetry::global::tracer("by hand");
    let cx = Cx::new().with_span(tracer.start_with_context("by hand", &Cx::new()));
    let query = query.clone();
    let attached = cx.clone().attach();
    TELEMETRY.wait_until(ctx, async move {
        wait(query.number("ms")).await;
        let tracer = opentelemetry::global::tracer("by hand");
        drop(tracer.start("behind it"));
    });
    drop(attached);
    cx.span().end();
    Response::ok("done")
}

/// The same without telling telemetry, and under the context of the request, which is over when the spans start.
fn late(query: &Query, ctx: &Context) -> Result<Response> {
    let query = query.clone();
    let work = async move {
        wait(1).await;
        for n in 0..query.number("spans") {
            child(&query, format!("late {n}"), wait(query.number("ms"))).await;
        }
    };
    ctx.wait_until(work.with_context(Cx::current()));
    Response::ok("done")
}

async fn panic_after(query: &Query) -> Result<Response> {
    let name = "before the panic".to_owned();
    child(query, name, wait(query.number("ms"))).await;
    panic!("the handler panicked");
}

/// The same behind the response.
fn panic_behind(query: &Query, ctx: &Context) -> Result<Response> {
    let query = query.clone();
    TELEMETRY.wait_until(ctx, async move {
        let _ = panic_after(&query).await;
    });
    Response::ok("done")
}

/// Calls `url` inside a span, and sends the trace along.
async fn subrequest(query: &Query) -> Result<Response> {
    let url = query.text("url").to_owned();
    in_span("call", async move {
        let headers = Headers::new();
        TraceContextPropagator::new().inject(&mut WorkerHeaderInjector(&headers));
        let mut init = RequestInit::new();
        init.with_headers(headers);
        let request = Request::new_with_init(&url, &init)?;
        Fetch::Request(request).send().await
    })
    .await
}

/// Calls `url` in a CLIENT span. `how` is `aborted` or `timeout` for a signal that ends it at once, and `outside` for no active
/// span.
async fn traced_fetch(query: &Query) -> Result<Response> {
    let fetch = TracedFetch::url(query.text("url"));
    match query.text("how") {
        "aborted" => fetch.send_with_signal(&AbortSignal::abort()).await,
        "timeout" => {
            let reason = worker::js_sys::Error::new("it took too long");
            reason.set_name("TimeoutError");
            let signal = AbortSignal::abort_with_reason(reason);
            fetch.send_with_signal(&signal).await
        }
        "outside" => fetch.send().with_context(Cx::new()).await,
        _ => fetch.send().await,
    }
}

/// Learns another token, `to`, after a span has ended under the one it had.
async fn refresh(query: &Query) -> Result<Response> {
    child(query, "before".to_owned(), wait(1)).await;
    let token = ExportToken::from_context(&Cx::current()).ok_or("no token")?;
    let updated = token.update(query.text("to"));
    updated.map_err(|error| error.to_string())?;
    child(query, "after".to_owned(), wait(1)).await;
    Response::ok("done")
}

/// Runs `work` in a span below the current one.
async fn child<T>(query: &Query, name: String, work: impl Future<Output = T>) -> T {
    let signed = async {
        query.sign();
        work.await
    };
    in_span(name, signed).await
}

/// The same, for a span that says nothing. It starts when it is first polled.
async fn in_span<T>(name: impl Into<Cow<'static, str>>, work: impl Future<Output = T>) -> T {
    active_span().start_child(name).run(work).await
}

async fn wait(ms: u64) {
    if ms > 0 {
        Delay::from(Duration::from_millis(ms)).await;
    }
}

// ----- what is not traced -----

fn console() -> Result<Response> {
    console_log!("a log line");
    console_warn!("a warning");
    console_error!("an error\nof two lines");
    Response::ok("said")
}

/// Takes longer than an impatient client.
async fn slow(request: &Request) -> Result<Response> {
    let name = Query::of(request)?.text("name").to_owned();
    console_log!("{name} begun");
    wait(500).await;
    console_log!("{name} done");
    Response::ok("done")
}

fn visits() -> Result<Response> {
    static VISITS: AtomicU32 = AtomicU32::new(0);
    let before = VISITS.fetch_add(1, Ordering::Relaxed);
    Response::ok((before + 1).to_string())
}

/// The processor's numbers, and the pages of this instance's memory.
fn stats(env: &Env) -> Result<Response> {
    let stats = TELEMETRY.handle(env).map(|handle| handle.stats());
    let stats = stats.unwrap_or_default();
    let (logs, metrics, open) = (&stats.logs, &stats.metrics, &stats.open_events);
    Response::from_json(&HashMap::from([
        ("logs", logs.received),
        ("logs_exported", logs.exported),
        ("logs_failed", logs.failed),
        ("logs_dropped", logs.dropped.total()),
        ("logs_late", logs.late.total()),
        ("logs_pending", logs.pending()),
        ("log_exports", logs.exports),
        ("points", metrics.received),
        ("points_exported", metrics.exported),
        ("points_pending", metrics.pending()),
        ("metric_exports", metrics.exports),
        ("open_opened", open.opened),
        ("open_sent", open.sent),
        ("open_elided", open.elided),
        ("open_pending", open.pending),
        ("open_renamed", open.renamed),
        ("ended", stats.ended),
        ("exported", stats.exported),
        ("failed", stats.failed),
        ("dropped", stats.dropped.total()),
        ("pending", stats.pending()),
        ("late", stats.late.total()),
        ("traces", stats.traces),
        ("evicted", stats.evicted_traces),
        ("exports", stats.exports),
        ("balanced", u64::from(stats.is_balanced())),
        ("memory_pages", core::arch::wasm32::memory_size(0) as u64),
    ]))
}

async fn flush(env: &Env) -> Result<Response> {
    let Some(handle) = TELEMETRY.handle(env) else {
        return Response::ok("off");
    };
    match handle.flush().await {
        Ok(()) => Response::ok("ok"),
        Err(error) => Response::ok(error.to_string()),
    }
}

async fn check(env: &Env) -> Result<Response> {
    let exporter = DirectExporter::builder().with_worker_env(env).build();
    let exporter = exporter.map_err(|error| error.to_string())?;
    match exporter.check().await {
        Ok(()) => Response::ok("ok"),
        Err(error) => Response::ok(error.to_string()),
    }
}

// ----- other events -----

#[event(scheduled)]
async fn scheduled(event: ScheduledEvent, env: Env, ctx: ScheduleContext) {
    let handler = |_, _, _| in_span("tick", wait(1));
    TELEMETRY
        .instrument_scheduled(event, env, ctx, handler)
        .await;
}

/// Fails if a message says so.
#[event(queue)]
async fn queue(batch: MessageBatch<serde_json::Value>, env: Env, ctx: Context) -> Result<()> {
    TELEMETRY
        .instrument_queue(batch, env, ctx, |batch, _, _| async move {
            for message in batch.messages()? {
                in_span("message", wait(1)).await;
                if message.body()["fail"].as_bool() == Some(true) {
                    return Err("a message says so".into());
                }
            }
            Ok(())
        })
        .await
}

// ----- a Durable Object -----

/// Calls the object `calls` times at once.
async fn durable(query: &Query, env: &Env) -> Result<Response> {
    let calls = (0..query.number("calls")).map(|n| {
        call_object(
            env,
            format!("object-{n}"),
            format!("http://object/call?n={n}"),
        )
    });
    for answer in join_all(calls).await {
        answer?;
    }
    Response::ok("called")
}

/// Calls the object, which is reset after `ms` in the middle of that.
async fn reset(query: &Query, env: &Env) -> Result<Response> {
    let url = format!("http://object/reset?ms={}", query.number("ms"));
    match call_object(env, "object-0".to_owned(), url).await {
        Ok(_) => Response::error("there was an answer", 500),
        Err(_) => Response::ok("reset"),
    }
}

async fn call_object(env: &Env, token: String, url: String) -> Result<Response> {
    let stub = env.durable_object("COUNTER")?.get_by_name("the one")?;
    let headers = Headers::new();
    headers.set("x-telemetry-token", &token)?;
    let mut init = RequestInit::new();
    init.with_method(Method::Post).with_headers(headers);
    stub.fetch_with_request(Request::new_with_init(&url, &init)?)
        .await
}

/// An object whose calls are traced as a Worker's are.
#[durable_object]
pub struct Counter {
    state: State,
    env: Env,
    /// Ends all calls of this object, as the runtime does when it moves the object.
    abort: Function,
}

impl DurableObject for Counter {
    fn new(state: State, env: Env) -> Self {
        let state = state._inner();
        let abort = function(&state, "abort").bind0(&state);
        let state = State::from(state);
        Self { state, env, abort }
    }

    async fn fetch(&self, request: Request) -> Result<Response> {
        let handler = |request: Request, _, ()| async move {
            match request.path().as_str() {
                "/reset" => self.reset(request).await,
                _ => self.count(request).await,
            }
        };
        TELEMETRY
            .instrument_fetch(request, self.env.clone(), (), handler)
            .await
    }
}

impl Counter {
    async fn count(&self, request: Request) -> Result<Response> {
        let n = Query::of(&request)?.number("n");
        in_span(format!("count {n}"), wait(50)).await;
        TELEMETRY.wait_until(&self.state, in_span(format!("afterwards {n}"), wait(50)));
        console_log!("counted {n}");
        Response::ok("counted")
    }

    async fn reset(&self, request: Request) -> Result<Response> {
        let ms = Query::of(&request)?.number("ms") as u32;
        function(&global(), "setTimeout").call2(&global(), &self.abort, &ms.into())?;
        in_span("before the reset", wait(1)).await;
        wait(60_000).await;
        Response::ok("not reset")
    }
}

/// A method that `worker` does not know.
fn function(of: &JsValue, name: &str) -> Function {
    let function = Reflect::get(of, &JsValue::from_str(name));
    Function::from(function.unwrap_or_default())
}
