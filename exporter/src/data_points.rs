//! How many data points there are in metrics.

use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData, ResourceMetrics};

/// All of them, whatever they belong to.
pub(crate) fn count(metrics: &ResourceMetrics) -> usize {
    let metrics = metrics.scope_metrics().flat_map(|scope| scope.metrics());
    let counts = metrics.map(|metric| match metric.data() {
        AggregatedMetrics::F64(data) => count_of(data),
        AggregatedMetrics::U64(data) => count_of(data),
        AggregatedMetrics::I64(data) => count_of(data),
    });
    counts.sum()
}

fn count_of<T>(data: &MetricData<T>) -> usize {
    match data {
        MetricData::Gauge(gauge) => gauge.data_points().count(),
        MetricData::Sum(sum) => sum.data_points().count(),
        MetricData::Histogram(histogram) => histogram.data_points().count(),
        MetricData::ExponentialHistogram(histogram) => histogram.data_points().count(),
    }
}
