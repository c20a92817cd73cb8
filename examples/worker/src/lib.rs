//! A Worker whose spans arrive: all of them, in one request to the collector for each request that it answers, under the
//! credentials of that request.

#![forbid(unsafe_code)]

#[cfg(feature = "scenarios")]
#[path = "../../../tests/workers/scenarios.rs"]
mod scenarios;

mod orders;

use opentelemetry_otlp_direct::{DirectExporter, ExportToken};
use opentelemetry_per_request::workers::{SetUp, Telemetry};
use opentelemetry_per_request::{Carry as _, Config, PerRequestSpanProcessor};
use worker::{Context, Env, Request, Response, Result, event};

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
