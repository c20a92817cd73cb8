//! The exporter as the processor sees it: any `SpanExporter`, behind one pointer.

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry::context::FutureExt as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

use crate::dispatch::Batch;
use crate::sync::Arc;

pub(crate) type Export = Pin<Box<dyn Future<Output = OTelSdkResult> + Send>>;

/// `SpanExporter` with its one generic method made into an object's.
pub(crate) trait AnyExporter: Debug + Send + Sync {
    /// Exports under `cx`: at every poll, and already while the exporter's own future is made (R5).
    fn export_under(self: Arc<Self>, cx: Context, spans: Vec<SpanData>) -> Export;
    fn any_force_flush(&self) -> OTelSdkResult;
    fn any_shutdown(&self, timeout: Duration) -> OTelSdkResult;
    fn any_set_resource(&mut self, resource: &Resource);
}

impl<E: SpanExporter + 'static> AnyExporter for E {
    fn export_under(self: Arc<Self>, cx: Context, spans: Vec<SpanData>) -> Export {
        Box::pin(async move { self.export(spans).await }.with_context(cx))
    }

    fn any_force_flush(&self) -> OTelSdkResult {
        self.force_flush()
    }

    fn any_shutdown(&self, timeout: Duration) -> OTelSdkResult {
        self.shutdown_with_timeout(timeout)
    }

    fn any_set_resource(&mut self, resource: &Resource) {
        self.set_resource(resource);
    }
}

impl Batch {
    /// Begins the export of these spans under their context, with telemetry suppressed (R5). Never under the lock.
    pub(crate) fn export_with(self, exporter: Arc<dyn AnyExporter>) -> Export {
        let context = self.context.with_telemetry_suppressed();
        // The batch's own copy goes first: when an export is done, no context may be left (R9).
        drop(self.context);
        exporter.export_under(context, self.spans)
    }
}

/// Stands in the place of an exporter that was shut down.
#[derive(Debug)]
pub(crate) struct Retired;

impl SpanExporter for Retired {
    async fn export(&self, _batch: Vec<SpanData>) -> OTelSdkResult {
        Err(OTelSdkError::AlreadyShutdown)
    }
}
