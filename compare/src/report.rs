//! The tables, as markdown, and everything, as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::outcome::{End, Flush, Outcome};
use crate::scenario::Scenario;

/// What was compared decides what came out, so it is said with it.
const VERSIONS_OF: [&str; 5] = [
    "opentelemetry_sdk",
    "opentelemetry-otlp",
    "reqwest",
    "opentelemetry-per-request",
    "opentelemetry-otlp-direct",
];

const NOTES: &str = "\
Each processor has its default settings. *simple* and *batch* send with reqwest's blocking client, *async-runtime batch* \
(`span_processor_with_async_runtime::BatchSpanProcessor`) and *per-request* with reqwest's async client, as the \
documentation of each recommends, through `opentelemetry-otlp` over HTTP; the last row is *per-request* over \
`DirectExporter` with its own client. `TokenClient` adds the request's token wherever the request's context reaches the \
client. Each row is a process of its own; the collector is real HTTP on loopback in another one. Traffic is made by \
threads that have a fixed rate and time: who is held up makes less.

*ended* and *arrived* count sampled spans; a span has arrived when the collector answers for it. *foreign* and *none* are \
spans that came under another tenant's token, or under none. A service that has only one token can set it as a header, and \
then these two columns do not concern it. *p50* and *p99* are the time from a span's end until it arrived; the flush at the end cuts \
it short for those who wait. *held up* is what starting and ending spans took the threads of the service together. *true?* says whether Ok meant \
that everything had arrived when the flush returned, and an error that something had not.

The scenarios of log records come last. *simple*, *batch* and *async-runtime batch* are the SDK's log processors there \
(`log_processor_with_async_runtime::BatchLogProcessor` is the last), and all that is said of spans is said of records: \
*emitted* takes the place of *ended*. Each request has a span, which is sent nowhere. *memory MB* is how much more the \
process had at most than before the traffic.
";

pub(crate) fn heading() -> String {
    let versions: Vec<String> = VERSIONS_OF
        .into_iter()
        .map(|package| format!("{package} {}", version(package)))
        .collect();
    format!(
        "`cargo xtask compare`, release, with {}.\n\n{NOTES}",
        versions.join(", ")
    )
}

/// As in the lock file that this program was built with.
fn version(package: &str) -> &'static str {
    const LOCK: &str = include_str!("../../Cargo.lock");
    LOCK.split("[[package]]")
        .find(|entry| entry.contains(&format!("name = \"{package}\"\n")))
        .and_then(|entry| entry.split("version = \"").nth(1)?.split('"').next())
        .unwrap_or("?")
}

/// The table of one scenario.
pub(crate) fn table(scenario: &Scenario, outcomes: &[Outcome]) -> String {
    let (memory, line) = match scenario.weighs {
        true => (" memory MB |", "---:|"),
        false => ("", ""),
    };
    let mut table = format!(
        "### {}\n\n{}\n\n\
         | processor | {} | arrived | foreign | none | p50 ms | p99 ms | held up s |{memory} flush | true? |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|{line}---|---|\n",
        scenario.title,
        scenario.what,
        scenario.signal.ended(),
    );
    for outcome in outcomes {
        // Writing to a string does not fail.
        let _ = writeln!(table, "{}", row(scenario, outcome));
    }
    let _ = writeln!(table, "\n{}", scenario.why);
    table
}

fn row(scenario: &Scenario, outcome: &Outcome) -> String {
    let number = |value: Option<f64>, digits| {
        value.map_or("–".to_owned(), |value| format!("{value:.digits$}"))
    };
    let mut arrived = outcome.arrived.to_string();
    if outcome.unsampled_arrived > 0 {
        arrived += &format!(" + {} unsampled", outcome.unsampled_arrived);
    }
    if outcome.duplicates > 0 {
        arrived += &format!(" + {} twice", outcome.duplicates);
    }
    let (said, truth) = match (&outcome.flush, outcome.end) {
        (Some(flush), _) => (said(flush), truth(flush)),
        (None, End::Hung) => ("hung".to_owned(), "–".to_owned()),
        (None, _) => ("ended without a word".to_owned(), "–".to_owned()),
    };
    let grown = outcome.grown_bytes.map(|bytes| bytes as f64 / 1e6);
    let memory = match scenario.weighs {
        true => format!(" {} |", number(grown, 0)),
        false => String::new(),
    };
    format!(
        "| {} | {} | {arrived} | {} | {} | {} | {} | {} |{memory} {said} | {truth} |",
        outcome.contestant.name(),
        outcome.ended,
        outcome.foreign_token,
        outcome.no_token,
        number(outcome.p50_ms, 1),
        number(outcome.p99_ms, 1),
        number(outcome.held_up_ms.map(|millis| millis / 1e3), 2),
    )
}

fn said(flush: &Flush) -> String {
    let said = match &flush.error {
        None => "Ok",
        Some(_) => "Err",
    };
    format!("{said} after {:.0} ms", flush.took_ms)
}

fn truth(flush: &Flush) -> String {
    match (flush.is_true(), flush.missing) {
        (true, 0) => "yes".to_owned(),
        (true, missing) => format!("yes, {missing} missing"),
        (false, 0) => "**no**, all there".to_owned(),
        (false, missing) => format!("**no**, {missing} missing"),
    }
}

/// Everything in one document.
pub(crate) fn json(outcomes: &[Outcome]) -> Value {
    let versions: serde_json::Map<String, Value> = VERSIONS_OF
        .into_iter()
        .map(|package| (package.to_owned(), version(package).into()))
        .collect();
    json!({"versions": versions, "outcomes": outcomes})
}
