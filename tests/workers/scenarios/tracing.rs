//! Scenarios of code that only knows `tracing`.

use std::io;

use futures_util::future::{join, select};
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_per_request::{Carry as _, Telemetry, in_child};
use tracing::{Instrument as _, error, info, info_span, instrument, warn};
use tracing_subscriber::layer::SubscriberExt as _;
use worker::{Context, Response, Result};

use super::{Query, wait};

/// Spans and log records of what only knows `tracing`. Its events are also events of spans.
pub(crate) fn subscribe(signals: &Telemetry) {
    let logs = OpenTelemetryTracingBridge::new(signals.logger_provider());
    let subscriber = tracing_subscriber::registry()
        .with(signals.tracing_layer())
        .with(logs);
    let _ = tracing::subscriber::set_global_default(subscriber);
}

pub(super) async fn handle(path: &str, query: &Query, ctx: &Context) -> Result<Response> {
    let id = query.text("id");
    match path {
        "/tracing/nested" => {
            info!(request = id, "in the handler");
            one(id).await;
        }
        "/tracing/dropped" => {
            select(Box::pin(never(id)), Box::pin(wait(1))).await;
        }
        "/tracing/behind" => {
            let work = behind(id.to_owned());
            ctx.wait_until(work.instrument(info_span!("made", request = id)).carried());
        }
        _ => return Response::error("no such scenario", 404),
    }
    Response::ok("done")
}

#[instrument(skip_all, fields(request = id))]
async fn one(id: &str) {
    wait(5).await;
    let _ = join(two(id, 1), two(id, 2)).await;
    // OpenTelemetry's own below `tracing`, and the other way round.
    in_child("three", async { four(id).await }).await;
}

#[instrument(skip_all, fields(request = id, n = n), err)]
async fn two(id: &str, n: u64) -> std::result::Result<(), io::Error> {
    warn!(request = id, n, "in two");
    wait(3 - n).await;
    four(id).await;
    match n {
        2 => Err(io::Error::other("two is too many")),
        _ => Ok(()),
    }
}

#[instrument(skip_all, fields(request = id))]
async fn four(id: &str) {
    wait(2).await;
    error!(request = id, "in four");
}

#[instrument(skip_all, fields(request = id))]
async fn never(id: &str) {
    info!(request = id, "begun");
    wait(60_000).await;
}

/// Begins when the response has left.
async fn behind(id: String) {
    wait(30).await;
    four(&id).await;
}
