//! Scenarios of spans that are told of while they are open.

use std::future::pending;
use std::sync::{Mutex, PoisonError};

use futures_util::future::join_all;
use opentelemetry_per_request::observer::{LifecycleEvent, Stage};
use opentelemetry_per_request::{TelemetryBuilder, active_span};
use worker::{Env, Fetch, Response, Result};

use super::{Query, child, panic_after, wait};

/// What the observer of this instance has seen, a line for each event.
static SEEN: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Has somebody observe all spans if there is a binding `OBSERVED`.
pub(super) fn prepare(builder: TelemetryBuilder, env: &Env) -> TelemetryBuilder {
    match env.var("OBSERVED") {
        Ok(_) => builder.with_processor(|processor| processor.with_span_observer(note)),
        Err(_) => builder,
    }
}

/// Whether a panic is to leave something behind: unless a binding `RESCUE` says `off`.
pub(crate) fn wants_rescue(env: &Env) -> bool {
    let rescue = env.var("RESCUE").map(|rescue| rescue.to_string());
    !rescue.is_ok_and(|rescue| rescue == "off")
}

/// `<trace> <local root> <sequence> <span> <what> <name>`
fn note(event: &LifecycleEvent) {
    let (root, sequence) = match event.request {
        Some(request) => (request.local_root.to_string(), request.sequence),
        None => (String::new(), 0),
    };
    let (what, name) = match &event.stage {
        Stage::Open(open) => ("open", &*open.name),
        Stage::Rename(rename) => ("rename", &*rename.name),
        Stage::Close(_) => ("close", ""),
        _ => ("something else", ""),
    };
    let (trace, span) = (event.trace_id, event.span_id);
    let line = format!("{trace} {root} {sequence} {span} {what} {name}");
    SEEN.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(line);
}

/// Not part of any trace.
pub(super) fn seen() -> Result<Response> {
    let seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    Response::ok(seen.join("\n"))
}

pub(super) async fn handle(path: &str, query: &Query) -> Result<Response> {
    match path {
        "/open/hang" => hang(query).await?,
        "/open/quick" => {
            for n in 0..query.number("spans") {
                child(query, format!("child {n}"), async {}).await;
            }
        }
        "/open/many" => {
            let spans = (0..query.number("spans"))
                .map(|n| child(query, format!("child {n}"), wait(query.number("ms"))));
            join_all(spans).await;
        }
        "/open/renamed" => renamed(query).await,
        "/open/panic" => panic_below(query).await,
        _ => return Response::error("no such scenario", 404),
    }
    Response::ok("done")
}

/// Waits `before`, if that is not 0, and then in a span for what never happens: the answer of `url` if `how` is `fetch`, what
/// nobody resolves if it is `promise`, and otherwise for `ms`.
async fn hang(query: &Query) -> Result<()> {
    wait(query.number("before")).await;
    let never = async {
        match query.text("how") {
            "fetch" => {
                let url = query.text("url").parse()?;
                Fetch::Url(url).send().await.map(drop)
            }
            "promise" => pending().await,
            _ => {
                wait(query.number("ms")).await;
                Ok(())
            }
        }
    };
    child(query, "hangs".to_owned(), never).await
}

/// A span that has another name after `ms`, and goes on for `tail`.
async fn renamed(query: &Query) {
    let work = async {
        wait(query.number("ms")).await;
        active_span().update_name("its second name");
        wait(query.number("tail")).await;
    };
    child(query, "its first name".to_owned(), work).await;
}

/// Panics in a span below a span, after another one has ended.
async fn panic_below(query: &Query) {
    let deeper = child(query, "deeper".to_owned(), panic_after(query));
    let _ = child(query, "step".to_owned(), deeper).await;
}
