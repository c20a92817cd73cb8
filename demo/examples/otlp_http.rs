//! `opentelemetry-otlp` over HTTP under the processor. Each request's token is added by `TokenClient`.
//!
//! `cargo run --package demo --example otlp_http`

// An example talks to its reader.
#![allow(clippy::print_stdout)]

use demo::receiver::Receiver;
use opentelemetry::Context;
use opentelemetry::trace::{Tracer as _, TracerProvider as _};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_otlp_direct::{ExportToken, TokenClient};
use opentelemetry_per_request::PerRequestSpanProcessor;
use opentelemetry_sdk::trace::SdkTracerProvider;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let collector = Receiver::http()?;
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(TokenClient::new(reqwest::Client::new()))
        .with_endpoint(format!("{}/v1/traces", collector.endpoint()))
        .build()?;
    let processor = PerRequestSpanProcessor::builder(exporter).build()?;
    let telemetry = processor.handle();
    let provider = SdkTracerProvider::builder()
        .with_span_processor(processor)
        .build();

    let tracer = provider.tracer("example");
    let cx = ExportToken::new("token-of-this-request")?.attach_to(&Context::current());
    let guard = cx.attach();
    tracer.in_span("request", |_cx| {});
    drop(guard);

    telemetry.flush().await?;
    for received in collector.received() {
        println!("arrived: {} under {}", received.span.name, received.token);
        assert_eq!(received.token, "token-of-this-request");
    }
    assert_eq!(collector.received().len(), 1);
    provider.shutdown()?;
    Ok(())
}
