//! The measurements behind `cargo xtask bench`: ours beside the obvious alternative, in one run.
//!
//! Each module answers one question, and checks that what it measured was done right. No number is compared with another
//! one here: that is for the reader, who knows the machine.

#![forbid(unsafe_code)]
// A measurement that could not be made is a failed run.
#![allow(clippy::expect_used)]

use opentelemetry_per_request::{Config, PerRequestSpanProcessor};
use opentelemetry_sdk::trace::{
    BatchSpanProcessor, SdkTracerProvider, SimpleSpanProcessor, SpanExporter,
};

use span_cost::{Kind, NoopProcessor};

pub mod delivery;
pub mod encode;
pub mod layer;
pub mod memory;
pub mod open_events;
pub mod registry;
pub mod span_cost;
pub mod wire;

/// A provider with a processor of this kind, with its defaults, over this exporter.
pub fn provider<E: SpanExporter + 'static>(kind: Kind, exporter: E) -> SdkTracerProvider {
    let builder = SdkTracerProvider::builder();
    match kind {
        Kind::Noop => builder.with_span_processor(NoopProcessor),
        Kind::Simple => builder.with_span_processor(SimpleSpanProcessor::new(exporter)),
        Kind::Batch => builder.with_span_processor(BatchSpanProcessor::builder(exporter).build()),
        Kind::PerRequest => {
            let processor = PerRequestSpanProcessor::builder(exporter)
                .with_config(Config::default())
                .build();
            builder.with_span_processor(processor.expect("the defaults are valid"))
        }
    }
    .build()
}

/// The value below which so many of a hundred lie. Sorts.
pub fn percentile(values: &mut [f64], percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() - 1) * percent / 100]
}
