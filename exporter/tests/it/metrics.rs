//! The exporter's own metrics, by their names in the semantic conventions.

use crate::support::{Collector, Reply, builder, export, spans};
use opentelemetry_sdk::metrics::{InMemoryMetricExporter, PeriodicReader, SdkMeterProvider};

/// Scenario: one export succeeds, one is refused, one is partly rejected.
/// Guarantees: each instrument has its values under the names and attributes of the conventions.
#[test]
fn metrics_carry_the_conventional_names_and_reasons() {
    let metrics = InMemoryMetricExporter::default();
    let provider = SdkMeterProvider::builder()
        .with_reader(PeriodicReader::builder(metrics.clone()).build())
        .build();
    let collector = Collector::scripted([
        Reply::status(200),
        Reply::status(400),
        Reply::partial(1, ""),
    ]);
    let exporter = builder(&collector.endpoint())
        .with_meter_provider(&provider)
        .build()
        .unwrap();
    let _ = [(); 3].map(|()| export(&exporter, spans(2)));
    provider.force_flush().unwrap();

    let text = format!("{:?}", metrics.get_finished_metrics().unwrap());
    for part in [
        "otel.sdk.exporter.span.inflight",
        "otel.sdk.exporter.span.exported",
        "otel.sdk.exporter.operation.duration",
        "otlp_http_span_exporter/",
        "server.port",
        "http.response.status_code",
        "error.type",
        "rejected",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    provider.shutdown().unwrap();
}
