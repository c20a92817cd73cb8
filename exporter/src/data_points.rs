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

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::KeyValue;
    use opentelemetry::metrics::MeterProvider as _;
    use opentelemetry_sdk::metrics::{
        Aggregation, InMemoryMetricExporter, SdkMeterProvider, Stream,
    };

    /// Scenario: instruments of every kind, some with several sets of attributes, some without a measurement.
    /// Guarantees: each point counts once, whatever it belongs to.
    #[test]
    fn points_of_every_kind_are_counted() {
        let exporter = InMemoryMetricExporter::default();
        let provider = SdkMeterProvider::builder()
            .with_periodic_exporter(exporter.clone())
            .with_view(|instrument: &opentelemetry_sdk::metrics::Instrument| {
                let exponential = Aggregation::Base2ExponentialHistogram {
                    max_size: 10,
                    max_scale: 5,
                    record_min_max: true,
                };
                let stream = Stream::builder().with_aggregation(exponential);
                (instrument.name() == "exponential").then(|| stream.build().unwrap())
            })
            .build();
        let meter = provider.meter("test");
        let of = |n: i64| [KeyValue::new("n", n)];
        meter.u64_counter("never").build();
        for n in 0..2 {
            meter.u64_counter("sum").build().add(1, &of(n));
        }
        meter.i64_up_down_counter("up-down").build().add(-1, &[]);
        for n in 0..3 {
            meter.f64_gauge("gauge").build().record(0.5, &of(n));
        }
        for n in 0..4 {
            meter.f64_histogram("histogram").build().record(0.5, &of(n));
        }
        for n in 0..5 {
            meter.u64_histogram("exponential").build().record(1, &of(n));
        }
        provider
            .meter("other")
            .u64_counter("sum")
            .build()
            .add(1, &[]);
        provider.force_flush().unwrap();
        let metrics = exporter.get_finished_metrics().unwrap().pop().unwrap();
        assert_eq!(count(&metrics), 2 + 1 + 3 + 4 + 5 + 1);
        assert_eq!(count(&ResourceMetrics::default()), 0);
    }
}
