//! `opentelemetry-otlp` over gRPC under the processor. Each request's token is added by `TokenInterceptor`.
//!
//! `cargo run --package demo --example otlp_grpc`

// An example talks to its reader.
#![allow(clippy::print_stdout)]

use demo::receiver::Receiver;
use opentelemetry::Context;
use opentelemetry::trace::{Tracer as _, TracerProvider as _};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_otlp_direct::{ExportToken, TokenInterceptor};
use opentelemetry_per_request::PerRequestSpanProcessor;
use opentelemetry_sdk::trace::SdkTracerProvider;

// No runtime here: with `builder_with`, the channel lives in the processor's own.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let collector = Receiver::grpc()?;
    let endpoint = collector.endpoint();
    let processor = PerRequestSpanProcessor::builder_with(|| {
        SpanExporter::builder()
            .with_tonic()
            .with_interceptor(TokenInterceptor::default())
            .with_endpoint(endpoint)
            .build()
            .map_err(std::io::Error::other)
    })?
    .build()?;
    let provider = SdkTracerProvider::builder()
        .with_span_processor(processor)
        .build();

    let tracer = provider.tracer("example");
    let cx = ExportToken::new("token-of-this-request")?.attach_to(&Context::current());
    let guard = cx.attach();
    tracer.in_span("request", |_cx| {});
    drop(guard);

    provider.force_flush()?;
    for received in collector.received() {
        println!("arrived: {} under {}", received.span.name, received.token);
        assert_eq!(received.token, "token-of-this-request");
    }
    assert_eq!(collector.received().len(), 1);
    provider.shutdown()?;
    Ok(())
}
