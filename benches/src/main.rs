//! `cargo xtask bench --json`: all measurements from one run, as one JSON object on the last line.

#![forbid(unsafe_code)]
// A command-line program talks to its user.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::process::Command;

use benches::layer::{App, Layer};
use benches::open_events::{self, Told};
use benches::span_cost::{Cost, Kind};
use benches::{delivery, encode, layer, percentile, registry, span_cost, wire};
use serde_json::{Map, Value, json};

/// Bursts in a run of `span_cost` or of `layer`, and runs: kinds take turns, and the median run counts.
const BURSTS: usize = 200;
const LAYER_BURSTS: usize = 60;
const OPEN_EVENT_BURSTS: usize = 100;
const RUNS: usize = 5;

fn main() -> std::io::Result<()> {
    if std::env::args().nth(1).as_deref() == Some(delivery::RECEIVER) {
        return delivery::receive(|line| println!("{line}"));
    }
    let say = |what: &str| eprintln!("measuring {what} …");
    say("span_cost_ns");
    let span_cost = table([1, 2], span_cost_ns);
    say("open_events_ns");
    let open_events = open_events_ns();
    say("layer_ns");
    let layer = compared(layer_ns);
    say("layer_allocations");
    let layer_allocations: Value =
        serde_json::from_str(&beside("layer_allocations")?).map_err(std::io::Error::other)?;
    say("encode_us");
    let encode = table(encode::SIZES, |size| both_ways(encode::measure(size)));
    say("encode_logs_us");
    let encode_logs = table(encode::SIZES, |size| both_ways(encode::measure_logs(size)));
    say("eviction_ns");
    let eviction = table(registry::SIZES, |size| round(registry::eviction_ns(size)));
    say("entry_bytes");
    let entry_bytes: f64 = beside("entry_bytes")?
        .trim()
        .parse()
        .map_err(std::io::Error::other)?;
    say("time_to_wire_ms");
    let time_to_wire = compared(|kind| {
        let latency = wire::measure(kind);
        json!({"p50": round(latency.p50), "p99": round(latency.p99)})
    });
    say("delivery");
    let delivery = compared(|kind| {
        let delivery = delivery::measure(kind);
        json!({
            "ended": delivery.ended,
            "received": delivery.received,
            "dropped": delivery.dropped,
            "cpu_us_per_span": round(delivery.cpu_us_per_span),
        })
    });
    println!(
        "{}",
        json!({
            "span_cost_ns": span_cost,
            "open_events_ns": open_events,
            "layer_ns": layer,
            "layer_allocations": layer_allocations,
            "encode_us": encode,
            "encode_logs_us": encode_logs,
            "eviction_ns": eviction,
            "entry_bytes": round(entry_bytes),
            "time_to_wire_ms": time_to_wire,
            "delivery": delivery,
        })
    );
    Ok(())
}

/// What a program beside this one prints, whose allocator counts. Here, counting would be part of what is measured.
fn beside(program: &str) -> std::io::Result<String> {
    let program = std::env::current_exe()?.with_file_name(program);
    let output = Command::new(program).output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(std::io::Error::other(said));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Nanoseconds for a request, by what is served and by layer.
fn layer_ns(kind: Kind) -> Value {
    layer::check();
    let cells = App::ALL.map(|app| Layer::ALL.map(|layer| (app, layer)));
    let mut runs: Vec<_> = cells
        .into_iter()
        .flatten()
        .map(|cell| (cell, Vec::new()))
        .collect();
    for _ in 0..RUNS {
        for ((app, layer), nanos) in &mut runs {
            nanos.push(layer::measure(*app, *layer, kind, LAYER_BURSTS));
        }
    }
    let mut apps = Map::new();
    for ((app, layer), nanos) in &mut runs {
        apps.entry(app.name()).or_insert_with(|| json!({}))[layer.name()] =
            round(percentile(nanos, 50));
    }
    apps.into()
}

/// Added cost over the processor that does nothing, by kind.
fn span_cost_ns(threads: usize) -> Value {
    let noop = || span_cost::measure(Kind::Noop, threads, BURSTS);
    added(Kind::COMPARED, Kind::name, noop, |kind| {
        span_cost::measure(kind, threads, BURSTS)
    })
    .into()
}

/// Added cost over the processor that does nothing, by what is told of open spans.
fn open_events_ns() -> Value {
    let measure = |told| open_events::measure(told, OPEN_EVENT_BURSTS);
    let mut all = added(Told::QUICK, Told::name, || measure(Told::Noop), measure);
    let open = added(Told::OPEN, Told::name, || measure(Told::OpenNoop), measure);
    all.extend(open);
    all.into()
}

/// The median over all runs of what each costs more than `noop` in the same run.
fn added<T: Copy, const N: usize>(
    compared: [T; N],
    name: fn(T) -> &'static str,
    noop: impl Fn() -> Cost,
    measure: impl Fn(T) -> Cost,
) -> Map<String, Value> {
    let mut runs = compared.map(|what| (what, Vec::new()));
    for _ in 0..RUNS {
        let noop = noop();
        for (what, costs) in &mut runs {
            let cost = measure(*what);
            costs.push(Cost {
                caller: cost.caller - noop.caller,
                process: cost.process - noop.process,
            });
        }
    }
    let median = |costs: &[Cost], part: fn(&Cost) -> f64| {
        let mut values: Vec<f64> = costs.iter().map(part).collect();
        round(percentile(&mut values, 50))
    };
    runs.iter()
        .map(|(what, costs)| {
            let caller = median(costs, |cost| cost.caller);
            let process = median(costs, |cost| cost.process);
            (
                name(*what).to_owned(),
                json!({"caller": caller, "process": process}),
            )
        })
        .collect()
}

fn table<const N: usize>(keys: [usize; N], value: impl Fn(usize) -> Value) -> Value {
    keys.into_iter()
        .map(|key| (key.to_string(), value(key)))
        .collect::<Map<_, _>>()
        .into()
}

fn both_ways((direct, proto): (f64, f64)) -> Value {
    json!({"direct": round(direct), "proto": round(proto)})
}

/// Ours and the SDK's batch processor.
fn compared(value: impl Fn(Kind) -> Value) -> Value {
    [Kind::PerRequest, Kind::Batch]
        .into_iter()
        .map(|kind| (kind.name().to_owned(), value(kind)))
        .collect::<Map<_, _>>()
        .into()
}

/// Three decimal places are more than the machine is good for.
fn round(value: f64) -> Value {
    json!((value * 1e3).round() / 1e3)
}
