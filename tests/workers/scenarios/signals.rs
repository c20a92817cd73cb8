//! Scenarios of all three signals.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::global;
use opentelemetry::metrics::Counter;
use opentelemetry::trace::Tracer as _;
use opentelemetry::{Context as Cx, KeyValue};
use opentelemetry_per_request::{Carry as _, TelemetryBuilder};
use opentelemetry_sdk::trace::Sampler;
use tracing::info;
use worker::{Context, Env, Response, Result, console_log};

use super::{Query, TELEMETRY, child, wait};

static HANDLED: LazyLock<Counter<u64>> =
    LazyLock::new(|| global::meter("scenarios").u64_counter("handled").build());

/// Samples as many of all traces as the binding `SAMPLED` says.
pub(super) fn prepare(builder: TelemetryBuilder, env: &Env) -> TelemetryBuilder {
    let ratio = env.var("SAMPLED").ok();
    match ratio.and_then(|ratio| ratio.to_string().parse().ok()) {
        Some(ratio) => builder.with_sampler(Sampler::TraceIdRatioBased(ratio)),
        None => builder,
    }
}

pub(super) async fn handle(path: &str, query: &Query, ctx: &Context) -> Result<Response> {
    match path {
        "/signals/all" => all(query).await,
        "/signals/behind" => behind(query, ctx),
        "/signals/observed" => observed(),
        "/signals/logs" => {
            for n in 0..query.number("lines") {
                say(query, n);
                wait(query.number("ms")).await;
            }
        }
        _ => return Response::error("no such scenario", 404),
    }
    Response::ok("done")
}

/// Counts, logs `lines` lines and ends `spans` spans, each in the one before.
async fn all(query: &Query) {
    for n in 0..query.number("spans") {
        let work = async {
            wait(query.number("ms")).await;
            count(query);
            (0..query.number("lines")).for_each(|n| say(query, n));
        };
        child(query, format!("child {n}"), work).await;
    }
}

/// The same behind the response, after `after`.
fn behind(query: &Query, ctx: &Context) {
    let query = query.clone();
    let work = async move {
        wait(query.number("after")).await;
        all(&query).await;
    };
    ctx.wait_until(work.carried());
}

/// An instrument that is asked when metrics are collected, and then does what is not to be done in the end of a span.
fn observed() {
    static THERE: AtomicBool = AtomicBool::new(false);
    if THERE.swap(true, Ordering::Relaxed) {
        return;
    }
    global::meter("scenarios")
        .u64_observable_gauge("observed")
        .with_callback(|observer| {
            info!("in a callback");
            drop(global::tracer("scenarios").start("in a callback"));
            let _attached = Cx::new().attach();
            drop(global::tracer("scenarios").start("somewhere else"));
            console_log!("observed");
            observer.observe(1, &[]);
        })
        .build();
}

fn count(query: &Query) {
    let id = query.text("id").to_owned();
    HANDLED.add(1, &[KeyValue::new("request", id)]);
}

fn say(query: &Query, n: u64) {
    info!(request = query.text("id"), n, "a line");
}

/// Not part of any trace.
pub(super) fn log_outside() -> Result<Response> {
    info!("outside of any request");
    Response::ok("said")
}

pub(super) async fn flush(env: &Env) -> Result<Response> {
    let Some(signals) = TELEMETRY.signals(env) else {
        return Response::ok("off");
    };
    match signals.flush().await {
        Ok(()) => Response::ok("ok"),
        Err(error) => Response::ok(error.to_string()),
    }
}

pub(super) async fn shutdown(env: &Env) -> Result<Response> {
    let Some(signals) = TELEMETRY.signals(env) else {
        return Response::ok("off");
    };
    match signals.shutdown(Duration::from_secs(5)).await {
        Ok(()) => Response::ok("ok"),
        Err(error) => Response::ok(error.to_string()),
    }
}
