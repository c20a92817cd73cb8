//! The example Worker without telemetry.

#![forbid(unsafe_code)]

use std::time::Duration;

use worker::{Context, Delay, Env, Request, Response, Result, event};

#[event(fetch)]
async fn fetch(request: Request, env: Env, ctx: Context) -> Result<Response> {
    handle(request, env, ctx).await
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
