//! The SDK's traits, one for each signal, and what can be asked of an exporter.

use crate::config::DirectExporterBuilder;
#[cfg(feature = "metric-export")]
use crate::data_points;
use crate::encode::{self, EncodedResource};
use crate::error::CheckError;
use crate::pipeline::Pipeline;
use crate::signal::{PerSignal, Signal};
use crate::stats::ExporterStats;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
#[cfg(feature = "logs")]
use opentelemetry_sdk::logs::{LogBatch, LogExporter};
#[cfg(feature = "metric-export")]
use opentelemetry_sdk::metrics::{
    Temporality, data::ResourceMetrics, exporter::PushMetricExporter,
};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use std::sync::Arc;
use std::time::Duration;

/// An OTLP/HTTP exporter of spans, log records and metrics without a buffer: when an `export` returns, what it was given has
/// been answered for, or the error says what happened.
///
/// It is a [`SpanExporter`], with the feature `logs` a `LogExporter`, and with `metric-export` a `PushMetricExporter`. Clones
/// are cheap: they share settings, connections and counters, and each has the resource of its own provider. So one
/// exporter is built, and each provider gets a clone.
///
/// - A batch becomes one request, or several when it is larger than the limit. An empty batch sends nothing.
/// - The credential is the [`ExportToken`](crate::ExportToken) of the context in which the export is first polled, read
///   anew for each attempt, or else the configured `authorization` header.
/// - Exports may run concurrently, on any thread, under any executor and under none. They run with telemetry suppressed.
/// - `Ok` means that the collector took everything. It does not mean that it stored it.
/// - An error may come after part of a batch was taken; [`stats_of`](DirectExporter::stats_of) counts both parts. Dropping
///   the future of an export stops it and counts what is left of it as `cancelled`.
/// - Each failure is counted by reason and said in a warning, at most one per signal and reason in ten seconds.
/// - A `shutdown` is that of one signal, for all clones: after the one of the span exporter, exports of spans fail with
///   [`OTelSdkError::AlreadyShutdown`](opentelemetry_sdk::error::OTelSdkError::AlreadyShutdown), and logs and metrics go
///   on. Exports already on their way finish. A second `shutdown` changes nothing and says `AlreadyShutdown`, as that of
///   `opentelemetry-otlp` does. `force_flush` has nothing to do.
///
/// ```
/// use opentelemetry_otlp_direct::{Compression, DirectExporter, Signal};
/// use opentelemetry_sdk::trace::SdkTracerProvider;
///
/// # #[cfg(all(feature = "reqwest", feature = "logs", feature = "metric-export"))]
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use opentelemetry_sdk::{logs::SdkLoggerProvider, metrics::SdkMeterProvider};
///
/// let exporter = DirectExporter::builder()
///     .with_endpoint("http://collector:4318")
///     .with_header("x-team", "checkout")
///     .with_compression(Compression::None)
///     .build()?;
/// let tracers = SdkTracerProvider::builder().with_batch_exporter(exporter.clone()).build();
/// let loggers = SdkLoggerProvider::builder().with_batch_exporter(exporter.clone()).build();
/// let meters = SdkMeterProvider::builder().with_periodic_exporter(exporter.clone()).build();
/// // … later
/// for signal in Signal::ALL {
///     assert_eq!(exporter.stats_of(*signal).failed_in_total(), 0);
/// }
/// # tracers.shutdown()?;
/// # loggers.shutdown()?;
/// # meters.shutdown()?;
/// # Ok(())
/// # }
/// # #[cfg(not(all(feature = "reqwest", feature = "logs", feature = "metric-export")))]
/// # fn main() {}
/// ```
///
/// # Its own metrics
///
/// With the feature `metrics` it records what it does, by default with the global meter provider. If that is the one whose
/// metrics it exports, it exports its own metrics as well, and that is fine: nothing waits for itself. An export of metrics
/// is itself something to record, and that arrives with the next one. So such a provider always has something new to
/// export, and what its last export did is seen in [`stats_of`](DirectExporter::stats_of) only.
#[derive(Clone, Debug)]
pub struct DirectExporter {
    shared: Arc<Shared>,
    resource: Arc<EncodedResource>,
}

/// What can be asked of a [`DirectExporter`] after it has moved into a provider. Clones are cheap and refer to the same
/// exporter; they stay usable after its shutdown.
#[derive(Clone, Debug)]
pub struct ExporterHandle {
    shared: Arc<Shared>,
}

/// What the exporter, its clones and its handles share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) pipelines: PerSignal<Pipeline>,
    #[cfg(feature = "metric-export")]
    pub(crate) temporality: Temporality,
}

// ===== impl DirectExporter =====

impl DirectExporter {
    /// Default of [`DirectExporterBuilder::with_timeout`].
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
    /// Default of [`DirectExporterBuilder::with_max_request_bytes`].
    pub const DEFAULT_MAX_REQUEST_BYTES: usize = 64 * 1024 * 1024;
    /// Default of [`DirectExporterBuilder::with_circuit_cooldown`].
    pub const DEFAULT_CIRCUIT_COOLDOWN: Duration = Duration::from_secs(30);
    /// Default of [`DirectExporterBuilder::with_temporality`].
    #[cfg(feature = "metric-export")]
    pub const DEFAULT_TEMPORALITY: Temporality = match cfg!(target_family = "wasm") {
        true => Temporality::Delta,
        false => Temporality::Cumulative,
    };

    /// Settings with their defaults; everything is optional.
    pub fn builder() -> DirectExporterBuilder {
        DirectExporterBuilder::new()
    }

    pub(crate) fn new(shared: Shared) -> Self {
        Self {
            shared: Arc::new(shared),
            resource: Arc::default(),
        }
    }

    /// A handle, for what is to be asked when the exporter and its clones have moved into providers.
    pub fn handle(&self) -> ExporterHandle {
        ExporterHandle {
            shared: Arc::clone(&self.shared),
        }
    }

    /// What happened to spans so far, see [`ExporterStats`].
    pub fn stats(&self) -> ExporterStats {
        self.stats_of(Signal::Traces)
    }

    /// What happened to one signal so far, see [`ExporterStats`].
    pub fn stats_of(&self, signal: Signal) -> ExporterStats {
        self.shared.pipelines[signal].stats()
    }

    /// See [`ExporterHandle::check`].
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn check(&self) -> Result<(), CheckError> {
        self.check_signal(Signal::Traces).await
    }

    /// See [`ExporterHandle::check_signal`].
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn check_signal(&self, signal: Signal) -> Result<(), CheckError> {
        self.shared.pipelines[signal].check().await
    }

    fn encode_resource(&mut self, resource: &Resource) {
        self.resource = Arc::new(EncodedResource::new(resource));
    }
}

impl SpanExporter for DirectExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let pipeline = &self.shared.pipelines[Signal::Traces];
        let (resource, spans) = (&self.resource, batch.len());
        // It takes the batch along, so the spans are gone before anything is sent.
        let encode =
            move |encoding, max_bytes| encode::spans(resource, &batch, encoding, max_bytes);
        pipeline.export(spans, encode).await
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        self.shared.pipelines[Signal::Traces].shutdown()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.encode_resource(resource);
    }
}

#[cfg(feature = "logs")]
impl LogExporter for DirectExporter {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        let pipeline = &self.shared.pipelines[Signal::Logs];
        let records = batch.iter().count();
        let encode =
            |encoding, max_bytes| encode::logs(&self.resource, &batch, encoding, max_bytes);
        pipeline.export(records, encode).await
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        self.shared.pipelines[Signal::Logs].shutdown()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.encode_resource(resource);
    }
}

/// Metrics bring their resource along.
#[cfg(feature = "metric-export")]
impl PushMetricExporter for DirectExporter {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let pipeline = &self.shared.pipelines[Signal::Metrics];
        let encode = |encoding, max_bytes| encode::metrics(metrics, encoding, max_bytes);
        pipeline.export(data_points::count(metrics), encode).await
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        self.shared.pipelines[Signal::Metrics].shutdown()
    }

    fn temporality(&self) -> Temporality {
        self.shared.temporality
    }
}

// ===== impl ExporterHandle =====

impl ExporterHandle {
    /// What happened to spans so far, see [`ExporterStats`].
    pub fn stats(&self) -> ExporterStats {
        self.stats_of(Signal::Traces)
    }

    /// What happened to one signal so far, see [`ExporterStats`].
    pub fn stats_of(&self, signal: Signal) -> ExporterStats {
        self.shared.pipelines[signal].stats()
    }

    /// Finds out whether endpoint, path and credentials for traces work, by sending one request without spans.
    ///
    /// It is sent once, within the timeout for traces, under the [`ExportToken`](crate::ExportToken) of the current
    /// context if there is one. It neither counts in [`stats`](ExporterHandle::stats) nor opens or asks a circuit.
    /// Success promises that the collector takes requests under these credentials, not that it stores what they hold.
    /// Never blocks; dropping the future stops it.
    ///
    /// # Errors
    ///
    /// A [`CheckError`] that says which of the three does not work.
    ///
    /// ```no_run
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// use opentelemetry_otlp_direct::{CheckError, DirectExporter};
    ///
    /// let exporter = DirectExporter::builder().build()?;
    /// match exporter.check().await {
    ///     Err(CheckError::Credentials { status, .. }) => eprintln!("wrong token: {status}"),
    ///     other => other?,
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn check(&self) -> Result<(), CheckError> {
        self.check_signal(Signal::Traces).await
    }

    /// The same as [`check`](ExporterHandle::check) for any signal, also for one that nothing is exported of.
    ///
    /// # Errors
    ///
    /// A [`CheckError`] that says what does not work.
    pub async fn check_signal(&self, signal: Signal) -> Result<(), CheckError> {
        self.shared.pipelines[signal].check().await
    }
}
