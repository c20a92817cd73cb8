//! Spans, log lines and a counter of one service, exported together: each request's spans and lines under its own token, the
//! metrics under the service's, and one flush for all of it.
//!
//! `cargo run --package demo --example three_signals`

// An example talks to its reader.
#![allow(clippy::print_stdout)]

use std::time::Duration;

use demo::receiver::Receiver;
use opentelemetry::metrics::{Counter, MeterProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_otlp_direct::{DirectExporter, ExportToken};
use opentelemetry_per_request::{Telemetry, in_child};
use tracing::info;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;

/// A service that takes orders. It is handed no token, no span and no logger.
struct Shop {
    orders: Counter<u64>,
}

impl Shop {
    async fn order(&self, cheeses: u64) {
        info!(cheeses, "taking an order");
        in_child("wrap cheese", async {
            tokio::time::sleep(Duration::from_millis(2)).await;
            info!("wrapped");
        })
        .await;
        self.orders.add(cheeses, &[KeyValue::new("item", "cheese")]);
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let collector = Receiver::http()?;
    let exporter = DirectExporter::builder()
        .with_endpoint(collector.endpoint())
        .build()?;
    let none = Context::new();
    let telemetry = Telemetry::builder()
        .with_exporter(exporter)
        .with_fallback_context(ExportToken::new("token-of-the-service")?.attach_to(&none))
        .build()?;
    // The lines of this program, and not those about exporting them.
    let own = Targets::new().with_target(module_path!(), LevelFilter::INFO);
    let bridge = OpenTelemetryTracingBridge::new(telemetry.logger_provider());
    let subscriber = tracing_subscriber::registry().with(bridge.with_filter(own));
    tracing::subscriber::set_global_default(subscriber)?;
    let meter = telemetry.meter_provider().meter("shop");
    let shop = Shop {
        orders: meter.u64_counter("orders").build(),
    };

    // Two requests at a time. A `telemetry.server_layer()` does this for each request of axum, hyper or tonic.
    let tracer = telemetry.request_tracer("shop");
    let blue = ExportToken::new("token-of-blue")?.attach_to(&none);
    let green = ExportToken::new("token-of-green")?.attach_to(&none);
    tokio::join!(
        tracer.run("order of blue", &blue, shop.order(3)),
        tracer.run("order of green", &green, shop.order(4)),
    );
    // Whether all of all three is acknowledged.
    telemetry.flush().await?;

    let (spans, logs) = (collector.received(), collector.logs());
    for received in &spans {
        println!("span   {:<16} under {}", received.span.name, received.token);
    }
    for received in &logs {
        let message = received.message().unwrap_or_default();
        println!("line   {message:<16} under {}", received.token);
    }
    // Collected when a request ended, and by the flush: the last one knows of all.
    let metrics = collector.metrics();
    let orders = metrics.iter().filter(|m| m.metric.name == "orders");
    let orders = orders.max_by_key(|m| m.sum()).ok_or("no metric")?;
    println!("metric {:<16} under {}", "orders", orders.token);
    // Each line is in its span, and under the same token.
    for received in &logs {
        let span = spans
            .iter()
            .find(|s| s.span.span_id == received.record.span_id)
            .ok_or("a line without its span")?;
        assert_eq!(span.span.trace_id, received.record.trace_id);
        assert_eq!(span.token, received.token);
    }
    assert_eq!((spans.len(), logs.len()), (4, 4));
    assert_eq!(orders.sum(), Some(7));
    assert_eq!(orders.token, "token-of-the-service");
    telemetry.shutdown(Duration::from_secs(5)).await?;
    Ok(())
}
