//! A Worker whose spans arrive: all of them, in one request to the collector for each request that it answers, under the
//! credentials of that request.

#![forbid(unsafe_code)]

#[cfg(feature = "scenarios")]
#[path = "../../../tests/workers/scenarios.rs"]
mod scenarios;

use std::borrow::Cow;
use std::time::Duration;

use opentelemetry::global;
use opentelemetry::trace::{FutureExt as _, TraceContextExt as _, Tracer as _};
use opentelemetry::{Context as Cx, KeyValue};
use opentelemetry_otlp_direct::{DirectExporter, ExportToken};
use opentelemetry_per_request::workers::{SetUp, Telemetry};
use opentelemetry_per_request::{Config, PerRequestSpanProcessor};
use worker::{Context, Delay, Env, Request, Response, Result, event};

static TELEMETRY: Telemetry = Telemetry::new(|env| {
    let exporter = DirectExporter::builder().with_worker_env(env).build()?;
    let processor = PerRequestSpanProcessor::builder(exporter)
        .with_config(Config::from_worker_env(env))
        .build()?;
    // Whose telemetry this is. Without it, all spans leave under the headers that are configured.
    let set_up = SetUp::new(processor).with_request_context(|request, cx| {
        let token = request.header("x-telemetry-token");
        match token.and_then(|token| ExportToken::new(&token).ok()) {
            Some(token) => token.attach_to(&cx),
            None => cx,
        }
    });
    Ok(set_up.with_panic_rescue())
});

#[event(fetch)]
async fn fetch(request: Request, env: Env, ctx: Context) -> Result<Response> {
    #[cfg(feature = "scenarios")]
    if let Some(response) = scenarios::handle_outside(&request, &env).await {
        return response;
    }
    #[cfg(feature = "scenarios")]
    if request.path().starts_with("/axum/") {
        return scenarios::serve(request, &env, ctx).await;
    }
    TELEMETRY.instrument_fetch(request, env, ctx, handle).await
}

/// Spans that start here are children of the request's own span.
async fn handle(request: Request, env: Env, ctx: Context) -> Result<Response> {
    #[cfg(feature = "scenarios")]
    if request.path() != "/" {
        return scenarios::handle(request, env, ctx).await;
    }
    let _ = (request, env);
    let order = in_span("load order", load_order()).await;
    // Goes on after the response, and its spans are this request's nevertheless.
    TELEMETRY.wait_until(&ctx, in_span("send receipt", send_receipt(order)));
    Response::ok(format!("order {order}\n"))
}

async fn load_order() -> u32 {
    in_span("query database", Delay::from(Duration::from_millis(5))).await;
    4711
}

async fn send_receipt(order: u32) {
    Delay::from(Duration::from_millis(50)).await;
    Cx::current()
        .span()
        .set_attribute(KeyValue::new("order", i64::from(order)));
}

/// Runs `work` in a span below the one that is active when it is first polled.
async fn in_span<T>(name: impl Into<Cow<'static, str>>, work: impl Future<Output = T>) -> T {
    let span = global::tracer("example-worker").start(name);
    work.with_context(Cx::current_with_span(span)).await
}
