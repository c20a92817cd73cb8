//! What an open request takes on the heap, beyond its context.

use std::alloc::System;

use opentelemetry::Context;
use opentelemetry::trace::{Tracer as _, TracerProvider as _};
use opentelemetry_per_request::{Config, PerRequestSpanProcessor};
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanProcessor};
use stats_alloc::{Region, StatsAlloc};

use crate::span_cost::{CountingExporter, NoopProcessor};

/// Open requests. Not a power of two, and not just below or above one, where a hash table is at its best or its worst.
const REQUESTS: usize = 10_000;

/// Bytes for each open request: what is live with our processor, less what is live without.
pub fn entry_bytes(allocator: &StatsAlloc<System>) -> f64 {
    let config = Config::default().with_max_traces(REQUESTS);
    let processor = PerRequestSpanProcessor::builder(CountingExporter::default())
        .with_config(config)
        .build()
        .expect("the settings are valid");
    let ours = live_bytes(allocator, processor);
    let noop = live_bytes(allocator, NoopProcessor);
    (ours - noop) / REQUESTS as f64
}

fn live_bytes<P: SpanProcessor + 'static>(allocator: &StatsAlloc<System>, processor: P) -> f64 {
    let provider = SdkTracerProvider::builder()
        .with_span_processor(processor)
        .build();
    let tracer = provider.tracer("bench");
    let mut open = Vec::with_capacity(REQUESTS);
    // What the first span sets up is not part of an entry.
    open.push(tracer.start_with_context("first", &Context::new()));
    let region = Region::new(allocator);
    open.extend((1..REQUESTS).map(|_| tracer.start_with_context("request", &Context::new())));
    let change = region.change();
    let live = change.bytes_allocated as f64 - change.bytes_deallocated as f64;
    let _ = provider.shutdown();
    live
}
