//! Under the SDK's processors and every kind of runtime, with the default client.

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
