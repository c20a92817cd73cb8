//! What a processor adds to the cost of a span, over one that does nothing.
//!
//! The load comes in paced bursts of [`REQUESTS`] requests, because flat out the SDK's batch processor looks cheap while
//! it drops. Nothing may be dropped here by anybody: each run counts what its exporter received.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cpu_time::ProcessTime;

use opentelemetry::trace::{Span as _, TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracer, Span, SpanData, SpanExporter, SpanProcessor};

use crate::{percentile, provider};

/// Requests in a burst.
pub const REQUESTS: usize = 50;
/// Spans in a request, its root included.
pub const SPANS: usize = 10;
/// Attributes of a span.
pub const ATTRIBUTES: usize = 8;
/// Time between two bursts of a thread.
pub const PACE: Duration = Duration::from_millis(5);

/// The processors that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Does nothing: what the SDK itself costs.
    Noop,
    /// The SDK's simple processor.
    Simple,
    /// The SDK's batch processor.
    Batch,
    /// Ours.
    PerRequest,
}

impl Kind {
    /// All but the one that the others are compared with.
    pub const COMPARED: [Self; 3] = [Self::Simple, Self::Batch, Self::PerRequest];

    /// The name in the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Noop => "noop",
            Self::Simple => "simple",
            Self::Batch => "batch",
            Self::PerRequest => "per_request",
        }
    }
}

/// Nanoseconds for each span.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Median over all bursts, on the thread that makes the spans.
    pub caller: f64,
    /// CPU time of the whole process.
    pub process: f64,
}

/// Counts spans and forgets them.
#[derive(Clone, Debug, Default)]
pub struct CountingExporter(Arc<AtomicU64>);

impl CountingExporter {
    /// How many spans came.
    pub fn received(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

impl SpanExporter for CountingExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.fetch_add(batch.len() as u64, Ordering::SeqCst);
        Ok(())
    }
}

/// Does nothing.
#[derive(Debug)]
pub struct NoopProcessor;

impl SpanProcessor for NoopProcessor {
    fn on_start(&self, _span: &mut Span, _cx: &Context) {}

    fn on_end(&self, _span: SpanData) {}

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Runs so many bursts on each of so many threads.
///
/// # Panics
///
/// If a span was lost.
pub fn measure(kind: Kind, threads: usize, bursts: usize) -> Cost {
    let exporter = CountingExporter::default();
    let provider = provider(kind, exporter.clone());
    let tracer = provider.tracer("bench");

    run(&tracer, threads, bursts / 10 + 1);
    let cpu = ProcessTime::now();
    let mut nanos = run(&tracer, threads, bursts);
    let process = cpu.elapsed().as_nanos() as f64 / (nanos.len() * REQUESTS * SPANS) as f64;
    let caller = percentile(&mut nanos, 50);

    provider.shutdown().expect("nothing was lost");
    let made = ((bursts + bursts / 10 + 1) * threads * REQUESTS * SPANS) as u64;
    if kind != Kind::Noop {
        assert_eq!(exporter.received(), made, "{} lost spans", kind.name());
    }
    Cost { caller, process }
}

/// Nanoseconds for each span, by burst.
fn run(tracer: &SdkTracer, threads: usize, bursts: usize) -> Vec<f64> {
    let workers: Vec<_> = (0..threads)
        .map(|_| {
            let tracer = tracer.clone();
            thread::spawn(move || {
                (0..bursts)
                    .map(|_| {
                        thread::sleep(PACE);
                        let start = Instant::now();
                        (0..REQUESTS).for_each(|_| request(&tracer, SPANS));
                        start.elapsed().as_nanos() as f64 / (REQUESTS * SPANS) as f64
                    })
                    .collect::<Vec<_>>()
            })
        })
        .collect();
    workers
        .into_iter()
        .flat_map(|worker| worker.join().expect("no burst panics"))
        .collect()
}

/// One request: a root, and children that end one after the other.
pub fn request(tracer: &SdkTracer, spans: usize) {
    let root = tracer
        .span_builder("request")
        .with_attributes(attributes())
        .start_with_context(tracer, &Context::new());
    let cx = Context::new().with_span(root);
    for _ in 1..spans {
        tracer
            .span_builder("step")
            .with_attributes(attributes())
            .start_with_context(tracer, &cx)
            .end();
    }
    cx.span().end();
}

/// The attributes of a span.
pub fn attributes() -> [KeyValue; ATTRIBUTES] {
    [
        KeyValue::new("http.request.method", "GET"),
        KeyValue::new("http.route", "/orders/{id}"),
        KeyValue::new("http.response.status_code", 200),
        KeyValue::new("server.address", "localhost"),
        KeyValue::new("server.port", 8080),
        KeyValue::new("url.scheme", "https"),
        KeyValue::new("network.protocol.version", "1.1"),
        KeyValue::new("app.retry", false),
    ]
}
