//! Scenarios of code that was handed no span, and of a tower service behind the layer.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query};
use axum::http::StatusCode;
use axum::response::Response as HttpResponse;
use axum::routing::get;
use futures_util::future::{join, select};
use futures_util::{StreamExt as _, stream};
use opentelemetry_per_request::{Carry as _, active_span, in_child, in_child_sync};
use tower_service::Service as _;
use worker::send::{SendFuture, SendWrapper};
use worker::{Context, Env, HttpRequest, Request, Response, Result};

use super::{HashMap, wait};
use crate::TELEMETRY;

type Numbers = Query<HashMap<String, String>>;

/// `levels` spans below each other, with siblings at each level: two at once, and one that is dropped half-way.
pub(super) async fn deep(levels: u64, id: &str) -> Result<Response> {
    level(levels, id).await;
    Response::ok(active_span().trace_id().unwrap().to_string())
}

async fn level(n: u64, id: &str) {
    sign(id);
    if n == 0 {
        return;
    }
    let below = in_child(format!("level {n}"), async {
        wait(n % 3).await;
        Box::pin(level(n - 1, id)).await;
    });
    let beside = in_child(format!("beside {n}"), async {
        sign(id);
        wait(3 - n % 3).await;
        in_child_sync(format!("below beside {n}"), || sign(id));
    });
    join(below, beside).await;
    let never = in_child(format!("dropped {n}"), async {
        sign(id);
        wait(60_000).await;
    });
    let soon = wait(1);
    select(Box::pin(never), Box::pin(soon)).await;
}

/// Says in the active span which request it is part of.
fn sign(id: &str) {
    active_span().set_attribute("request", id.to_owned());
}

/// An axum service as an event has it.
pub(crate) async fn serve(request: Request, env: &Env, ctx: Context) -> Result<Response> {
    let ctx = Arc::new(SendWrapper::new(ctx));
    let routes = Router::new()
        .route("/axum/orders/{id}", get(order))
        .route("/axum/stream/{id}", get(streamed))
        .route("/axum/fails", get(async || StatusCode::BAD_GATEWAY))
        .route(
            "/axum/behind/{id}",
            get(async move |Path(id): Path<String>| behind(&ctx, id)),
        );
    let mut routes = routes.layer(TELEMETRY.server_layer(env));
    let request = HttpRequest::try_from(request)?;
    let response: std::result::Result<_, Infallible> = routes.call(request).await;
    match response {
        Ok(response) => response.try_into(),
        Err(never) => match never {},
    }
}

async fn order(Path(id): Path<String>) -> String {
    let loaded = SendFuture::new(async {
        level(2, &id).await;
        id
    });
    loaded.await
}

/// Goes on behind the response.
fn behind(ctx: &Context, id: String) {
    let work = async move {
        wait(30).await;
        in_child("behind", async { sign(&id) }).await;
    };
    ctx.wait_until(work.carried());
}

/// `chunks` of a body, each of which takes `ms` and has a span.
async fn streamed(Path(id): Path<String>, Query(numbers): Numbers) -> HttpResponse {
    sign(&id);
    let number = |name: &str| numbers[name].parse::<u64>().unwrap();
    let (chunks, ms) = (number("chunks"), number("ms"));
    let chunks = stream::iter(0..chunks).then(move |n| {
        let id = id.clone();
        SendFuture::new(in_child(format!("chunk {n}"), async move {
            sign(&id);
            worker::Delay::from(Duration::from_millis(ms)).await;
            Ok::<_, Infallible>(format!("{n}\n"))
        }))
    });
    HttpResponse::new(Body::from_stream(chunks))
}
