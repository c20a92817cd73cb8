//! `DirectExporter` under the processor, in the fewest lines.
//!
//! `cargo run --package demo --example direct`

// An example talks to its reader.
#![allow(clippy::print_stdout)]

use demo::receiver::Receiver;
use opentelemetry::trace::{Tracer as _, TracerProvider as _};
use opentelemetry_otlp_direct::DirectExporter;
use opentelemetry_per_request::PerRequestSpanProcessor;
use opentelemetry_sdk::trace::SdkTracerProvider;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // A collector of yours needs no line here: OTEL_EXPORTER_OTLP_ENDPOINT, or http://localhost:4318, is the default.
    let collector = Receiver::http()?;
    let exporter = DirectExporter::builder()
        .with_endpoint(collector.endpoint())
        .build()?;
    exporter.check().await?;

    let processor = PerRequestSpanProcessor::builder(exporter).build()?;
    let telemetry = processor.handle();
    let provider = SdkTracerProvider::builder()
        .with_span_processor(processor)
        .build();

    let tracer = provider.tracer("example");
    tracer.in_span("request", |_cx| tracer.in_span("step", |_cx| {}));

    telemetry.flush().await?;
    for received in collector.received() {
        println!("arrived: {}", received.span.name);
    }
    assert_eq!(collector.received().len(), 2);
    provider.shutdown()?;
    Ok(())
}
