//! The SDK's `MetricReader` that needs no timer of its own: metrics are collected when requests end, and when somebody
//! flushes.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{OnceLock, Weak};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData, ResourceMetrics};
use opentelemetry_sdk::metrics::reader::MetricReader;
use opentelemetry_sdk::metrics::{InstrumentKind, ManualReader, Pipeline, Temporality};

use crate::handle::Handle;
use crate::processor::DROP_TIMEOUT;
use crate::runtime::Shared;
use crate::signal::{Collected, Signal, Signals};
use crate::sync::Arc;

/// Why a flush does not collect.
pub(crate) const TOO_MANY: &str = "too many earlier collections are still being exported";

/// A metric reader that collects and exports when requests end, and when it is flushed: on any platform, and in no thread of
/// its own.
///
/// Made by [`PerRequestSpanProcessor::metric_reader`](crate::PerRequestSpanProcessor::metric_reader), for
/// `SdkMeterProvider::builder().with_reader(…)`.
///
/// - It collects when a local root ends, or the last work of a request that was kept open, at most once in
///   [`metric_interval`](crate::Config::with_metric_interval); natively also when
///   [`metric_period`](crate::Config::with_metric_period) is over. What is measured after that leaves with the next
///   collection.
/// - [`Handle::flush`], `force_flush` of the provider and the shutdown collect and export at once, whatever was collected a
///   moment ago.
/// - Without a data point nothing is exported.
/// - Metrics are nobody's alone, so they leave under the
///   [fallback context](crate::Builder::with_fallback_context), whoever's request has ended.
/// - At most 32 collections are on their way at once, each with the
///   [export timeout](crate::Config::with_export_timeout). While there are so many, none is made: what is measured stays in
///   the instruments, and a flush says so ([`FlushError::Collect`](crate::FlushError::Collect)).
/// - Natively exports of metrics follow one another, as the SDK promises exporters: a sum never goes back in time.
/// - The temporality is that of the exporter.
/// - Dropping it shuts it down, as dropping its provider does; spans go on.
///
/// Callbacks of observable instruments run on a thread of the processor's own; in Cloudflare Workers, in the event that
/// collects. Telemetry is suppressed there: spans and log records of a callback are none. One that panics is caught natively, and said in a warning; but the SDK holds a lock while it calls it, which
/// is poisoned by that, so nothing of that provider is ever collected again, and each flush says so. One that makes an
/// instrument waits for that lock for good.
///
/// ```
/// # use opentelemetry_sdk::metrics::InMemoryMetricExporter;
/// # use opentelemetry_sdk::trace::InMemorySpanExporter;
/// use opentelemetry::metrics::MeterProvider as _;
/// use opentelemetry_per_request::PerRequestSpanProcessor;
/// use opentelemetry_sdk::metrics::SdkMeterProvider;
///
/// # futures_executor::block_on(async {
/// let spans = PerRequestSpanProcessor::builder(InMemorySpanExporter::default()).build()?;
/// let reader = spans.metric_reader(InMemoryMetricExporter::default())?;
/// let metrics = reader.handle();
/// let provider = SdkMeterProvider::builder().with_reader(reader).build();
///
/// provider.meter("docs").u64_counter("orders").build().add(1, &[]);
///
/// metrics.flush().await?;
/// assert_eq!(metrics.stats().metrics.exported, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
pub struct PerRequestMetricReader {
    /// None if the processor is not enabled.
    shared: Option<Arc<Shared>>,
    collector: Arc<Collector>,
}

/// What asks all instruments.
pub(crate) struct Collector {
    reader: ManualReader,
    /// Kept to know whether there is a provider.
    pipeline: OnceLock<Weak<Pipeline>>,
}

impl PerRequestMetricReader {
    pub(crate) fn new(shared: Option<Arc<Shared>>, collector: Arc<Collector>) -> Self {
        Self { shared, collector }
    }

    /// A handle to flush metrics, and to read numbers. Its flush is one of metrics only.
    pub fn handle(&self) -> Handle {
        Handle::new(self.shared.clone(), Signals::of(Signal::Metrics))
    }
}

impl MetricReader for PerRequestMetricReader {
    fn register_pipeline(&self, pipeline: Weak<Pipeline>) {
        // The first one counts, for both.
        let _ = self.collector.pipeline.set(pipeline.clone());
        self.collector.reader.register_pipeline(pipeline);
    }

    fn collect(&self, metrics: &mut ResourceMetrics) -> OTelSdkResult {
        self.collector.reader.collect(metrics)
    }

    /// Blocks until metrics are collected and exported. The deadline is the export timeout.
    ///
    /// # Errors
    ///
    /// As [`Handle::flush`], which does the same without blocking. On a thread where waiting could only deadlock it fails
    /// at once, or after a second without progress, with an error that names that way.
    fn force_flush(&self) -> OTelSdkResult {
        let Some(shared) = &self.shared else {
            return Ok(());
        };
        let timeout = shared.default_timeout();
        shared.flush_blocking(Signals::of(Signal::Metrics), timeout)?;
        Ok(())
    }

    /// Collects and exports once more, and shuts the exporter down.
    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        if let Some(shared) = &self.shared {
            shared.shutdown_blocking(Signal::Metrics, timeout)?;
        }
        Ok(())
    }

    fn temporality(&self, kind: InstrumentKind) -> Temporality {
        self.collector.reader.temporality(kind)
    }
}

impl Drop for PerRequestMetricReader {
    fn drop(&mut self) {
        // A provider shuts it down before it drops it, and has waited for that.
        let shared = self.shared.as_ref();
        if shared.is_some_and(|shared| !shared.is_closed(Signal::Metrics)) {
            let _ = self.shutdown_with_timeout(DROP_TIMEOUT);
        }
    }
}

impl fmt::Debug for PerRequestMetricReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerRequestMetricReader")
            .field("enabled", &self.shared.is_some())
            .field("stats", &self.handle().stats().metrics)
            .finish_non_exhaustive()
    }
}

// ===== impl Collector =====

impl Collector {
    pub(crate) fn new(temporality: Temporality) -> Self {
        Self {
            reader: ManualReader::builder()
                .with_temporality(temporality)
                .build(),
            pipeline: OnceLock::new(),
        }
    }

    /// Everything that instruments have to say, if there is any. Runs callbacks of the user's, so never under a lock of ours.
    pub(crate) fn collect(&self) -> Result<Option<Collected>, String> {
        let provider = self.pipeline.get().map_or(0, Weak::strong_count);
        if provider == 0 {
            return Ok(None);
        }
        let mut metrics = ResourceMetrics::default();
        // A request of a callback's own would be a reason to collect again, for ever.
        let _quiet = Context::enter_telemetry_suppressed_scope();
        let collect = || self.reader.collect(&mut metrics);
        match catch_unwind(AssertUnwindSafe(collect)) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err("a callback of an instrument panicked".to_owned()),
        }
        let points = count(&metrics);
        Ok((points > 0).then_some(Collected { metrics, points }))
    }
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collector").finish_non_exhaustive()
    }
}

/// How many data points there are.
fn count(metrics: &ResourceMetrics) -> usize {
    fn of<T>(data: &MetricData<T>) -> usize {
        match data {
            MetricData::Gauge(gauge) => gauge.data_points().count(),
            MetricData::Sum(sum) => sum.data_points().count(),
            MetricData::Histogram(histogram) => histogram.data_points().count(),
            MetricData::ExponentialHistogram(histogram) => histogram.data_points().count(),
        }
    }
    let scopes = metrics.scope_metrics();
    let data = scopes.flat_map(|scope| scope.metrics().map(|metric| metric.data()));
    data.map(|data| match data {
        AggregatedMetrics::F64(data) => of(data),
        AggregatedMetrics::U64(data) => of(data),
        AggregatedMetrics::I64(data) => of(data),
    })
    .sum()
}
