//! What a new trace costs when the registry is full, by how much is in it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use opentelemetry::Context;
use opentelemetry::trace::{Tracer as _, TracerProvider as _};
use opentelemetry_per_request::{Config, Handle, PerRequestSpanProcessor};
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span};

use crate::percentile;
use crate::span_cost::{CountingExporter, NoopProcessor};

/// Sizes of the registry that are compared.
pub const SIZES: [usize; 3] = [1_000, 100_000, 1_000_000];

/// New traces in a round.
pub const ROUND: usize = 1_000;

/// A tracer whose processor has as many open traces as it keeps.
#[derive(Debug)]
pub struct Full {
    provider: SdkTracerProvider,
    telemetry: Handle,
    open: VecDeque<Span>,
}

impl Full {
    /// With so many open traces.
    pub fn new(size: usize) -> Self {
        let processor = PerRequestSpanProcessor::builder(CountingExporter::default())
            .with_config(Config::default().with_max_traces(size))
            .build()
            .expect("the settings are valid");
        let telemetry = processor.handle();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .build();
        let mut full = Self {
            provider,
            telemetry,
            open: VecDeque::with_capacity(size + ROUND),
        };
        start(&full.provider.tracer("bench"), size, &mut full.open);
        assert_eq!(full.telemetry.stats().evicted_traces, 0);
        full
    }

    /// The time it takes to start so many traces, at most [`ROUND`], each in the place of another one.
    pub fn start(&mut self, traces: usize) -> Duration {
        let traces = traces.min(ROUND);
        let tracer = self.provider.tracer("bench");
        let begin = Instant::now();
        start(&tracer, traces, &mut self.open);
        let elapsed = begin.elapsed();
        // The evicted ones end after that.
        self.open.drain(..traces);
        elapsed
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        // Before the open spans are dropped: they would all be exported as late ones.
        let _ = self.provider.shutdown();
    }
}

fn start(tracer: &SdkTracer, traces: usize, open: &mut VecDeque<Span>) {
    let root = Context::new();
    open.extend((0..traces).map(|_| tracer.start_with_context("request", &root)));
}

/// Median nanoseconds for each new trace, over a processor that does nothing.
pub fn eviction_ns(size: usize) -> f64 {
    let rounds = 31;
    let idle = SdkTracerProvider::builder()
        .with_span_processor(NoopProcessor)
        .build();
    let tracer = idle.tracer("bench");
    let mut open = VecDeque::with_capacity(rounds * ROUND);
    let mut full = Full::new(size);
    let mut nanos = Vec::new();
    for _ in 0..rounds {
        let begin = Instant::now();
        start(&tracer, ROUND, &mut open);
        let noop = begin.elapsed();
        let ours = full.start(ROUND);
        nanos.push((ours.as_nanos() as f64 - noop.as_nanos() as f64) / ROUND as f64);
    }
    assert_eq!(
        full.telemetry.stats().evicted_traces,
        (rounds * ROUND) as u64
    );
    percentile(&mut nanos, 50)
}
