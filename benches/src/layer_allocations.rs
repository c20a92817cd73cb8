//! Prints what a request allocates under each layer, as JSON. Apart from the report, because its allocator counts.

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
    println!("{}", Value::from(apps));
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
