//! What the code size of Workers is compared with: one without telemetry, and with the feature `telemetry` one with telemetry
//! around its events, which uses nothing else of it.

#![forbid(unsafe_code)]

use std::time::Duration;

use worker::{Context, Delay, Env, Request, Response, Result};

#[cfg(not(feature = "telemetry"))]
#[worker::event(fetch)]
async fn fetch(request: Request, env: Env, ctx: Context) -> Result<Response> {
    handle(request, env, ctx).await
}

#[cfg(feature = "telemetry")]
mod telemetry {
    use opentelemetry_otlp_direct::{DirectExporter, ExportToken};
    use opentelemetry_per_request::workers::{SetUp, Telemetry};
    use opentelemetry_per_request::{Config, PerRequestSpanProcessor};
    use worker::{Context, Env, Request, Response, Result};

    static TELEMETRY: Telemetry = Telemetry::new(|env| {
        let exporter = DirectExporter::builder().with_worker_env(env).build()?;
        let processor = PerRequestSpanProcessor::builder(exporter)
            .with_config(Config::from_worker_env(env))
            .build()?;
        let set_up = SetUp::new(processor).with_request_context(|request, cx| {
            let token = request.header("x-telemetry-token");
            match token.and_then(|token| ExportToken::new(&token).ok()) {
                Some(token) => token.attach_to(&cx),
                None => cx,
            }
        });
        Ok(set_up.with_panic_rescue())
    });

    #[worker::event(fetch)]
    async fn fetch(request: Request, env: Env, ctx: Context) -> Result<Response> {
        let handler = super::handle;
        TELEMETRY.instrument_fetch(request, env, ctx, handler).await
    }
}

async fn handle(_request: Request, _env: Env, ctx: Context) -> Result<Response> {
    let order = load_order().await;
    ctx.wait_until(send_receipt(order));
    Response::ok(format!("order {order}\n"))
}

async fn load_order() -> u32 {
    Delay::from(Duration::from_millis(5)).await;
    4711
}

async fn send_receipt(_order: u32) {
    Delay::from(Duration::from_millis(50)).await;
}
