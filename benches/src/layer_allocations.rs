//! Prints what a request allocates under each layer, as JSON, and fails if ours allocates more often than the lean alternative.
//! Apart from the report, because its allocator counts.

#![forbid(unsafe_code)]
// A command-line program talks to its user.
#![allow(clippy::print_stdout)]

use std::alloc::System;

use benches::layer::{self, App, Layer};
use serde_json::{Map, Value, json};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn main() {
    layer::check();
    let apps: Map<_, _> = App::ALL
        .into_iter()
        .map(|app| (app.name().to_owned(), by_layer(app)))
        .collect();
    let counted = Value::from(apps);
    println!("{counted}");
    for app in App::ALL {
        let count = |layer: Layer| counted[app.name()][layer.name()]["count"].as_f64();
        let (ours, theirs) = (count(Layer::Server), count(Layer::TraceLean));
        assert!(
            ours <= theirs,
            "{}: ours allocates {ours:?} times, theirs {theirs:?}",
            app.name()
        );
    }
}

fn by_layer(app: App) -> Value {
    Layer::ALL
        .into_iter()
        .map(|layer| {
            let allocations = layer::allocations(ALLOCATOR, app, layer);
            let value = json!({"count": allocations.count, "bytes": allocations.bytes});
            (layer.name().to_owned(), value)
        })
        .collect::<Map<_, _>>()
        .into()
}
