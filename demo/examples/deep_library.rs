//! A library that only calls `active_span` and `in_child`, without knowing whether anybody traces: once where nobody does, and
//! once in requests that run at the same time.
//!
//! `cargo run --package demo --example deep_library`

// An example talks to its reader.
#![allow(clippy::print_stdout)]

use opentelemetry::Context;
use opentelemetry::trace::{SpanId, TracerProvider as _};
use opentelemetry_per_request::{PerRequestSpanProcessor, RequestTracer};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};

/// What somebody else wrote. No tracer, no span and no context in its signatures.
mod prices {
    use std::num::ParseIntError;

    use opentelemetry_per_request::{active_span, in_child, in_child_sync};

    pub(super) async fn total(items: &[&str]) -> Result<u32, ParseIntError> {
        in_child("add up prices", async {
            active_span().set_attribute("items", items.len() as i64);
            let mut total = 0;
            for item in items {
                // The error is that of this span, too, because it is what it returns.
                total += in_child_sync(format!("price of {item}"), || item.parse::<u32>())?;
                tokio::task::yield_now().await;
            }
            Ok(total)
        })
        .await
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Nobody traces, and nothing is different.
    assert_eq!(prices::total(&["1", "2"]).await, Ok(3));

    let exporter = InMemorySpanExporter::default();
    let processor = PerRequestSpanProcessor::builder(exporter.clone()).build()?;
    let telemetry = processor.handle();
    let provider = SdkTracerProvider::builder()
        .with_span_processor(processor)
        .build();
    let tracer = RequestTracer::new(provider.tracer("example"));

    let none = Context::new();
    let (good, bad) = tokio::join!(
        tracer.run("a good request", &none, prices::total(&["3", "4"])),
        tracer.run("a bad request", &none, prices::total(&["5", "six", "7"])),
    );
    assert_eq!(good, Ok(7));
    assert!(bad.is_err());
    telemetry.flush().await?;

    let spans = exporter.get_finished_spans()?;
    let depth = |mut parent: SpanId| {
        let mut depth = 0;
        while let Some(span) = spans.iter().find(|s| s.span_context.span_id() == parent) {
            (depth, parent) = (depth + 1, span.parent_span_id);
        }
        depth
    };
    for root in spans
        .iter()
        .filter(|span| span.parent_span_id == SpanId::INVALID)
    {
        let trace = root.span_context.trace_id();
        let mut of_trace: Vec<_> = spans
            .iter()
            .filter(|span| span.span_context.trace_id() == trace)
            .collect();
        of_trace.sort_by_key(|span| (span.start_time, depth(span.parent_span_id)));
        for span in of_trace {
            let indent = "  ".repeat(depth(span.parent_span_id));
            println!("{indent}{} {:?}", span.name, span.status);
        }
    }
    // Each has its own, and what failed says so, up to the request.
    assert_eq!(spans.len(), 8);
    let failed = |name: &str| {
        let span = spans.iter().find(|span| span.name == name);
        span.map(|span| span.status != opentelemetry::trace::Status::Unset)
    };
    assert_eq!(failed("price of six"), Some(true));
    assert_eq!(failed("price of 5"), Some(false));
    assert_eq!(failed("a bad request"), Some(true));
    assert_eq!(failed("a good request"), Some(false));
    provider.shutdown()?;
    Ok(())
}
