//! Two requests at a time, each with a token of its own, one of which is refreshed while the request runs; and work that
//! goes on after its request is over.
//!
//! `cargo run --package demo --example per_request_tokens`

// An example talks to its reader.
#![allow(clippy::print_stdout)]

use demo::receiver::Receiver;
use opentelemetry::Context;
use opentelemetry::context::FutureExt as _;
use opentelemetry::trace::{TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry_otlp_direct::{DirectExporter, ExportToken};
use opentelemetry_per_request::PerRequestSpanProcessor;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

/// Answers a request for a tenant. The tracer knows nothing of tokens.
async fn handle(tracer: &SdkTracer, tenant: &'static str) {
    let root = Context::current_with_span(tracer.start(format!("request of {tenant}")));
    async {
        tokio::task::yield_now().await;
        tracer.in_span(format!("step for {tenant}"), |_cx| {});
    }
    .with_context(root.clone())
    .await;
    root.span().end();
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let collector = Receiver::http()?;
    let exporter = DirectExporter::builder()
        .with_endpoint(collector.endpoint())
        .build()?;
    let service = ExportToken::new("token-of-the-service")?;
    let processor = PerRequestSpanProcessor::builder(exporter)
        .with_fallback_context(service.attach_to(&Context::new()))
        .build()?;
    let telemetry = processor.handle();
    let provider = SdkTracerProvider::builder()
        .with_span_processor(processor)
        .build();
    let tracer = provider.tracer("example");

    // Two requests, interleaved on one task.
    let blue = ExportToken::new("token-of-blue")?;
    let green = ExportToken::new("token-of-green")?;
    let none = Context::new();
    tokio::join!(
        handle(&tracer, "blue").with_context(blue.attach_to(&none)),
        handle(&tracer, "green").with_context(green.attach_to(&none)),
    );
    telemetry.flush().await?;

    // A token that is refreshed while its request runs reaches all exports from then on.
    let cx = blue.attach_to(&none);
    let root = cx.with_span(tracer.start_with_context("long request of blue", &cx));
    blue.update("new-token-of-blue")?;
    root.span().end();
    telemetry.flush().await?;

    // A span that starts when its request is over has no token any more: it leaves under the service's own.
    drop(tracer.start_with_context("afterthought of blue", &root));
    telemetry.flush().await?;

    for received in collector.received() {
        println!("{:<24} under {}", received.span.name, received.token);
    }
    let token = |name: &str| {
        let received = collector.received();
        let received = received.iter().find(|received| received.span.name == name);
        received.map(|received| received.token.clone())
    };
    assert_eq!(token("step for blue").as_deref(), Some("token-of-blue"));
    assert_eq!(token("step for green").as_deref(), Some("token-of-green"));
    assert_eq!(
        token("long request of blue").as_deref(),
        Some("new-token-of-blue")
    );
    assert_eq!(
        token("afterthought of blue").as_deref(),
        Some("token-of-the-service")
    );
    provider.shutdown()?;
    Ok(())
}
