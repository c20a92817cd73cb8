//! Exporters as the processor sees them: any `SpanExporter`, `LogExporter` or `PushMetricExporter`, behind one pointer.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry::context::FutureExt as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
#[cfg(feature = "logs")]
use opentelemetry_sdk::logs::{LogBatch, LogExporter};
#[cfg(feature = "metric-reader")]
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::trace::SpanExporter;

use crate::dispatch::Batch;
use crate::signal::Items;
use crate::sync::Arc;

pub(crate) type Export = Pin<Box<dyn Future<Output = OTelSdkResult> + Send>>;

/// An exporter of one signal, with its one generic method made into an object's.
pub(crate) trait AnyExporter: fmt::Debug + Send + Sync {
    /// Exports under `cx`: at every poll, and already while the exporter's own future is made (R5).
    fn export_under(self: Arc<Self>, cx: Context, items: Items) -> Export;
    fn any_force_flush(&self) -> OTelSdkResult;
    fn any_shutdown(&self, timeout: Duration) -> OTelSdkResult;
    fn any_set_resource(&mut self, resource: &Resource);
}

/// An exporter of spans.
#[derive(Debug)]
pub(crate) struct OfSpans<E>(pub(crate) E);

/// An exporter of log records.
#[cfg(feature = "logs")]
#[derive(Debug)]
pub(crate) struct OfLogs<E>(pub(crate) E);

/// An exporter of metrics.
#[cfg(feature = "metric-reader")]
pub(crate) struct OfMetrics<E>(pub(crate) E);

impl<E: SpanExporter + 'static> AnyExporter for OfSpans<E> {
    fn export_under(self: Arc<Self>, cx: Context, items: Items) -> Export {
        let export = async move {
            match items {
                Items::Spans(spans) => self.0.export(spans).await,
                #[cfg(any(feature = "logs", feature = "metric-reader"))]
                _ => not_its_signal(),
            }
        };
        Box::pin(export.with_context(cx))
    }

    fn any_force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn any_shutdown(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn any_set_resource(&mut self, resource: &Resource) {
        self.0.set_resource(resource);
    }
}

#[cfg(feature = "logs")]
impl<E: LogExporter + 'static> AnyExporter for OfLogs<E> {
    fn export_under(self: Arc<Self>, cx: Context, items: Items) -> Export {
        let export = async move {
            let Items::Logs(logs) = items else {
                return not_its_signal();
            };
            let logs: Vec<_> = logs.iter().map(|log| (&log.record, &log.scope)).collect();
            self.0.export(LogBatch::new(&logs)).await
        };
        Box::pin(export.with_context(cx))
    }

    fn any_force_flush(&self) -> OTelSdkResult {
        // A `LogExporter` has none.
        Ok(())
    }

    fn any_shutdown(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn any_set_resource(&mut self, resource: &Resource) {
        self.0.set_resource(resource);
    }
}

#[cfg(feature = "metric-reader")]
impl<E: PushMetricExporter> AnyExporter for OfMetrics<E> {
    fn export_under(self: Arc<Self>, cx: Context, items: Items) -> Export {
        let export = async move {
            let Items::Metrics(collected) = items else {
                return not_its_signal();
            };
            self.0.export(&collected.metrics).await
        };
        Box::pin(export.with_context(cx))
    }

    fn any_force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn any_shutdown(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn any_set_resource(&mut self, _resource: &Resource) {
        // It comes with the metrics.
    }
}

#[cfg(feature = "metric-reader")]
impl<E> fmt::Debug for OfMetrics<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A `PushMetricExporter` need not be `Debug`.
        f.write_str("OfMetrics")
    }
}

/// An exporter is only ever given what it exports.
#[cfg(any(feature = "logs", feature = "metric-reader"))]
fn not_its_signal() -> OTelSdkResult {
    let message = "given to an exporter of another signal";
    Err(OTelSdkError::InternalFailure(message.to_owned()))
}

impl Batch {
    /// Begins the export of this batch under its context, with telemetry suppressed (R5). Never under the lock.
    pub(crate) fn export_with(self, exporter: Arc<dyn AnyExporter>) -> Export {
        let context = self.context.with_telemetry_suppressed();
        // The batch's own copy goes first: when an export is done, no context may be left (R9).
        drop(self.context);
        exporter.export_under(context, self.items)
    }
}

/// Stands in the place of an exporter that was shut down, or that there never was.
#[derive(Debug)]
pub(crate) struct Retired;

impl AnyExporter for Retired {
    fn export_under(self: Arc<Self>, _cx: Context, _items: Items) -> Export {
        Box::pin(async { Err(OTelSdkError::AlreadyShutdown) })
    }

    fn any_force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn any_shutdown(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }

    fn any_set_resource(&mut self, _resource: &Resource) {}
}
