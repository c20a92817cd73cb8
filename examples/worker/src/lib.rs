//! A Worker whose telemetry arrives: spans, log records and metrics, each in one request to the collector for each request that
//! it answers, under the credentials of that request.

#![forbid(unsafe_code)]

#[cfg(feature = "scenarios")]
#[path = "../../../tests/workers/scenarios.rs"]
mod scenarios;

mod orders;

use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_otlp_direct::{DirectExporter, ExportToken};
use opentelemetry_per_request::Carry as _;
use opentelemetry_per_request::workers::{SetUp, Telemetry};
use tracing_subscriber::layer::SubscriberExt as _;
use worker::{Context, Env, Request, Response, Result, event};

static TELEMETRY: Telemetry = Telemetry::new(|env| {
    let builder = opentelemetry_per_request::Telemetry::builder();
    #[cfg(feature = "scenarios")]
    let builder = scenarios::prepare(builder, env);
    let signals = builder
        .with_worker_env(env)
        .with_exporter(DirectExporter::builder().with_worker_env(env).build()?)
        .build()?;
    #[cfg(feature = "scenarios")]
    scenarios::subscribe(&signals);
    // What `tracing::info!` and the like say is a log record of the request that they are in.
    let logs = OpenTelemetryTracingBridge::new(signals.logger_provider());
    let subscriber = tracing_subscriber::registry().with(logs);
    let _ = tracing::subscriber::set_global_default(subscriber);
    // Whose telemetry this is. Without it, all of it leaves under the headers that are configured.
    let set_up = SetUp::from(signals).with_request_context(|request, cx| {
        let token = request.header("x-telemetry-token");
        match token.and_then(|token| ExportToken::new(&token).ok()) {
            Some(token) => token.attach_to(&cx),
            None => cx,
        }
    });
    #[cfg(feature = "scenarios")]
    if !scenarios::wants_rescue(env) {
        return Ok(set_up);
    }
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

/// Spans that are opened in here, however deep, are below the request's own span.
async fn handle(request: Request, env: Env, ctx: Context) -> Result<Response> {
    #[cfg(feature = "scenarios")]
    if request.path() != "/" {
        return scenarios::handle(request, env, ctx).await;
    }
    let _ = request;
    let prices = env.var("PRICES_URL").map(|url| url.to_string()).ok();
    let order = orders::load(4711, prices).await?;
    // Goes on after the response, and its spans are this request's nevertheless.
    ctx.wait_until(orders::send_receipt(order.number).carried());
    Response::ok(format!("order {}: {}\n", order.number, order.price))
}
