//! Under the SDK's processors and readers and every kind of runtime, with the default client.

use crate::support::{Collector, exporter};
use opentelemetry::trace::{Span, Tracer, TracerProvider};
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanExporter};
use tokio::runtime;

fn end_a_span(provider: &SdkTracerProvider) {
    provider.tracer("test").start("span-0").end();
}

/// Scenario: the batch processor, whose thread has no runtime.
/// Guarantees: the spans arrive when it is flushed.
#[test]
fn spans_arrive_under_the_batch_processor() {
    let collector = Collector::start();
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter(&collector))
        .build();
    end_a_span(&provider);
    provider.force_flush().unwrap();
    assert_eq!(collector.span_names(), ["span-0"]);
    provider.shutdown().unwrap();
}

/// Scenario: the simple processor, on a thread without a runtime and on every kind of runtime, which it blocks.
/// Guarantees: the span has arrived when `end` returns, and the exporter can be dropped there.
#[test]
fn spans_arrive_under_the_simple_processor_on_any_thread() {
    let collector = Collector::start();
    let run = || {
        let provider = SdkTracerProvider::builder()
            .with_simple_exporter(exporter(&collector))
            .build();
        end_a_span(&provider);
        provider.shutdown().unwrap();
    };
    run();
    let current = runtime::Builder::new_current_thread().enable_all().build();
    current.unwrap().block_on(async { run() });
    for workers in [1, 4] {
        let many = runtime::Builder::new_multi_thread()
            .worker_threads(workers)
            .enable_all()
            .build()
            .unwrap();
        let run = || async { run() };
        many.block_on(run());
    }
    assert_eq!(collector.span_names(), ["span-0"; 4]);
}

/// Scenario: an export is awaited inside a runtime, and the next one inside another, after the first is gone.
/// Guarantees: both arrive; no connection is bound to the caller's runtime.
#[test]
fn exporter_outlives_the_runtimes_it_is_used_on() {
    let collector = Collector::start();
    let exporter = exporter(&collector);
    for _ in 0..2 {
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        runtime
            .unwrap()
            .block_on(exporter.export(crate::support::spans(1)))
            .unwrap();
    }
    assert_eq!(collector.received().len(), 2);
}

#[cfg(feature = "logs")]
mod logs {
    use super::{Collector, exporter, runtime};
    use opentelemetry::logs::{LogRecord as _, Logger as _, LoggerProvider as _};
    use opentelemetry_otlp_direct::Signal;
    use opentelemetry_sdk::logs::SdkLoggerProvider;

    fn log_a_line(provider: &SdkLoggerProvider) {
        let logger = provider.logger("test");
        let mut record = logger.create_log_record();
        record.set_body("record-0".into());
        logger.emit(record);
    }

    fn bodies(collector: &Collector) -> Vec<String> {
        let received = collector.received();
        assert!(
            received
                .iter()
                .all(|request| request.signal() == Signal::Logs)
        );
        received
            .iter()
            .flat_map(|request| request.item_names())
            .collect()
    }

    /// Scenario: the batch processor for logs, whose thread has no runtime.
    /// Guarantees: the record arrives when it is flushed, with the resource of its provider.
    #[test]
    fn records_arrive_under_the_batch_processor() {
        let collector = Collector::start();
        let provider = SdkLoggerProvider::builder()
            .with_resource(crate::support::resource("shop"))
            .with_batch_exporter(exporter(&collector))
            .build();
        log_a_line(&provider);
        provider.force_flush().unwrap();
        assert_eq!(bodies(&collector), ["record-0"]);
        let request = collector.received().remove(0);
        assert!(request.mentions("shop"), "{request:?}");
        provider.shutdown().unwrap();
    }

    /// Scenario: the simple processor for logs, on a thread without a runtime and on every kind of runtime, which it blocks.
    /// Guarantees: the record has arrived when `emit` returns.
    #[test]
    fn records_arrive_under_the_simple_processor_on_any_thread() {
        let collector = Collector::start();
        let run = || {
            let provider = SdkLoggerProvider::builder()
                .with_simple_exporter(exporter(&collector))
                .build();
            log_a_line(&provider);
            provider.shutdown().unwrap();
        };
        run();
        let current = runtime::Builder::new_current_thread().enable_all().build();
        current.unwrap().block_on(async { run() });
        let many = runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        many.unwrap().block_on(async { run() });
        assert_eq!(bodies(&collector), ["record-0"; 3]);
    }
}

#[cfg(feature = "metric-export")]
mod metrics {
    use super::{Collector, exporter};
    use crate::support::builder;
    use opentelemetry::metrics::MeterProvider as _;
    use opentelemetry_otlp_direct::{DirectExporter, Signal};
    use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
    use opentelemetry_proto::tonic::metrics::v1::metric::Data;
    use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
    use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider, Temporality};
    use prost::Message as _;

    fn provider(exporter: DirectExporter) -> SdkMeterProvider {
        SdkMeterProvider::builder()
            .with_resource(crate::support::resource("shop"))
            .with_reader(PeriodicReader::builder(exporter).build())
            .build()
    }

    /// Scenario: the periodic reader, whose thread has no runtime.
    /// Guarantees: metrics arrive when it is flushed, with the resource of their provider, and again when it is shut down.
    #[test]
    fn metrics_arrive_under_the_periodic_reader() {
        let collector = Collector::start();
        let provider = provider(exporter(&collector));
        provider
            .meter("test")
            .u64_counter("metric-0")
            .build()
            .add(1, &[]);
        provider.force_flush().unwrap();
        provider.shutdown().unwrap();
        let received = collector.received();
        assert_eq!(received.len(), 2);
        for request in received {
            assert_eq!(request.signal(), Signal::Metrics);
            assert_eq!(request.item_names(), ["metric-0"]);
            assert!(request.mentions("shop"), "{request:?}");
        }
    }

    /// Scenario: a counter is increased by one before each of two flushes, under each temporality.
    /// Guarantees: the reader asks the exporter for it: the second value is two when it is cumulative, and one when it is
    /// delta.
    #[test]
    fn temporality_is_that_of_the_exporter() {
        let cases = [
            (Temporality::Cumulative, [1, 2]),
            (Temporality::Delta, [1, 1]),
        ];
        for (temporality, expected) in cases {
            let collector = Collector::start();
            let builder = builder(&collector.endpoint()).with_temporality(temporality);
            let provider = provider(builder.build().unwrap());
            let counter = provider.meter("test").u64_counter("metric-0").build();
            for _ in expected {
                counter.add(1, &[]);
                provider.force_flush().unwrap();
            }
            let received = collector.received();
            let values: Vec<_> = received
                .iter()
                .map(|request| value(&request.body))
                .collect();
            assert_eq!(values, expected, "{temporality:?}");
        }
    }

    /// Of the only data point of the only metric.
    fn value(body: &[u8]) -> i64 {
        let message = ExportMetricsServiceRequest::decode(body).unwrap();
        let metric = &message.resource_metrics[0].scope_metrics[0].metrics[0];
        match &metric.data {
            Some(Data::Sum(sum)) => match sum.data_points[0].value {
                Some(Value::AsInt(value)) => value,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }
}
