//! The three signals alike: items to export of each, and their names as they are read from a request.

use super::{Received, spans};
use futures_executor::block_on;
use opentelemetry::Context;
use opentelemetry::trace::FutureExt as _;
use opentelemetry_otlp_direct::{DirectExporter, Signal};
#[cfg(any(feature = "logs", feature = "metric-export"))]
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::SpanExporter;
use serde_json::Value;

/// Those that this build exports.
pub(crate) fn exported_signals() -> impl Iterator<Item = Signal> {
    let is_exported = |signal: &Signal| {
        let logs = cfg!(feature = "logs") || *signal != Signal::Logs;
        let metrics = cfg!(feature = "metric-export") || *signal != Signal::Metrics;
        logs && metrics
    };
    Signal::ALL.iter().copied().filter(is_exported)
}

/// Exports so many items of a signal, each with a name of its own (see [`Received::item_names`]).
pub(crate) fn export_items(
    signal: Signal,
    exporter: &DirectExporter,
    count: usize,
) -> OTelSdkResult {
    export_items_under(Context::new(), signal, exporter, count)
}

pub(crate) fn export_items_under(
    cx: Context,
    signal: Signal,
    exporter: &DirectExporter,
    count: usize,
) -> OTelSdkResult {
    match signal {
        #[cfg(feature = "logs")]
        Signal::Logs => logs::export(cx, exporter, count),
        #[cfg(feature = "metric-export")]
        Signal::Metrics => metrics::export(cx, exporter, count),
        _ => block_on(SpanExporter::export(exporter, spans(count)).with_context(cx)),
    }
}

/// The resource of a provider.
#[cfg(any(feature = "logs", feature = "metric-export"))]
pub(crate) fn resource(service: &'static str) -> Resource {
    Resource::builder_empty().with_service_name(service).build()
}

/// The names that items of a signal have, in the order in which they are exported.
pub(crate) fn item_names(signal: Signal, count: usize) -> Vec<String> {
    let name = match signal {
        Signal::Logs => "record",
        Signal::Metrics => "metric",
        _ => "span",
    };
    (0..count).map(|n| format!("{name}-{n}")).collect()
}

#[cfg(feature = "logs")]
mod logs {
    use super::{Context, DirectExporter, OTelSdkResult, Signal, block_on};
    use opentelemetry::logs::{LogRecord as _, Logger as _, LoggerProvider as _};
    use opentelemetry::trace::FutureExt as _;
    use opentelemetry_sdk::logs::{LogBatch, LogExporter, SdkLoggerProvider};

    pub(super) fn export(cx: Context, exporter: &DirectExporter, count: usize) -> OTelSdkResult {
        // The SDK makes records only by way of a logger.
        let logger = SdkLoggerProvider::builder().build().logger("test");
        let record = |name: String| {
            let mut record = logger.create_log_record();
            record.set_observed_timestamp(std::time::UNIX_EPOCH);
            record.set_body(name.into());
            record
        };
        let records: Vec<_> = super::item_names(Signal::Logs, count)
            .into_iter()
            .map(record)
            .collect();
        let scope = Default::default();
        let batch: Vec<_> = records.iter().map(|record| (record, &scope)).collect();
        let batch = LogBatch::new(&batch);
        block_on(LogExporter::export(exporter, batch).with_context(cx))
    }
}

#[cfg(feature = "metric-export")]
mod metrics {
    use super::{Context, DirectExporter, OTelSdkResult, Signal, block_on};
    use opentelemetry::metrics::MeterProvider as _;
    use opentelemetry::trace::FutureExt as _;
    use opentelemetry_sdk::metrics::data::ResourceMetrics;
    use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
    use opentelemetry_sdk::metrics::{InMemoryMetricExporter, PeriodicReader, SdkMeterProvider};

    pub(super) fn export(cx: Context, exporter: &DirectExporter, count: usize) -> OTelSdkResult {
        // The SDK makes metrics only by way of a reader.
        let collected = InMemoryMetricExporter::default();
        let provider = SdkMeterProvider::builder()
            .with_reader(PeriodicReader::builder(collected.clone()).build())
            .build();
        let meter = provider.meter("test");
        for name in super::item_names(Signal::Metrics, count) {
            meter.u64_gauge(name).build().record(1, &[]);
        }
        provider.force_flush().unwrap();
        let collected = collected.get_finished_metrics().unwrap().pop();
        let metrics = collected.unwrap_or_else(ResourceMetrics::default);
        block_on(PushMetricExporter::export(exporter, &metrics).with_context(cx))
    }
}

// ===== impl Received =====

impl Received {
    /// Which signal it was sent as.
    pub(crate) fn signal(&self) -> Signal {
        let path = self.path.as_str();
        let signal = Signal::ALL
            .iter()
            .find(|signal| path.ends_with(&format!("v1/{signal}")));
        *signal.unwrap_or_else(|| panic!("{path} is of no signal"))
    }

    /// Whether such a text is somewhere in it.
    #[cfg(any(feature = "logs", feature = "metric-export"))]
    pub(crate) fn mentions(&self, text: &str) -> bool {
        let text = text.as_bytes();
        self.body.windows(text.len()).any(|bytes| bytes == text)
    }

    /// Names of spans, bodies of log records, names of metrics.
    pub(crate) fn item_names(&self) -> Vec<String> {
        match self.header("content-type") {
            Some("application/json") => self.item_names_in_json(),
            _ => match self.signal() {
                #[cfg(feature = "logs")]
                Signal::Logs => self.record_bodies(),
                #[cfg(feature = "metric-export")]
                Signal::Metrics => self.metric_names(),
                _ => self.span_names(),
            },
        }
    }

    #[cfg(feature = "logs")]
    fn record_bodies(&self) -> Vec<String> {
        use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
        use opentelemetry_proto::tonic::common::v1::any_value::Value;
        use prost::Message as _;

        let message = ExportLogsServiceRequest::decode(self.body.as_slice()).unwrap();
        let resources = message.resource_logs.into_iter();
        let scopes = resources.flat_map(|resource| resource.scope_logs);
        let records = scopes.flat_map(|scope| scope.log_records);
        let body = |value: Option<Value>| match value {
            Some(Value::StringValue(text)) => text,
            other => panic!("a text, not {other:?}"),
        };
        records
            .map(|record| body(record.body.and_then(|body| body.value)))
            .collect()
    }

    #[cfg(feature = "metric-export")]
    fn metric_names(&self) -> Vec<String> {
        use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
        use prost::Message as _;

        let message = ExportMetricsServiceRequest::decode(self.body.as_slice()).unwrap();
        let resources = message.resource_metrics.into_iter();
        let scopes = resources.flat_map(|resource| resource.scope_metrics);
        let metrics = scopes.flat_map(|scope| scope.metrics);
        metrics.map(|metric| metric.name).collect()
    }

    fn item_names_in_json(&self) -> Vec<String> {
        let (resources, scopes, items, name) = match self.signal() {
            Signal::Logs => (
                "resourceLogs",
                "scopeLogs",
                "logRecords",
                "/body/stringValue",
            ),
            Signal::Metrics => ("resourceMetrics", "scopeMetrics", "metrics", "/name"),
            _ => ("resourceSpans", "scopeSpans", "spans", "/name"),
        };
        let list = |value: &Value, name: &str| value[name].as_array().unwrap().clone();
        let message: Value = serde_json::from_slice(&self.body).unwrap();
        let resources = list(&message, resources).into_iter();
        let scopes = resources.flat_map(|resource| list(&resource, scopes));
        let items = scopes.flat_map(|scope| list(&scope, items));
        items
            .map(|item| item.pointer(name).unwrap().as_str().unwrap().to_owned())
            .collect()
    }
}
