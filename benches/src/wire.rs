//! How long it takes from a span's end until it is at a receiver on the same machine.

use std::thread;
use std::time::{Duration, Instant};

use demo::receiver::Receiver;
use opentelemetry::trace::{Span as _, Tracer as _, TracerProvider as _};
use opentelemetry_otlp_direct::DirectExporter;

use crate::span_cost::Kind;
use crate::{percentile, provider};

/// Spans end over more than one of the batch processor's periods of 5 s.
const DURATION: Duration = Duration::from_millis(5_500);
const PACE: Duration = Duration::from_millis(7);
/// The last span is there after this time, or the run has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    /// Half of the spans are there by then.
    pub p50: f64,
    /// All but one in a hundred are there by then.
    pub p99: f64,
}

/// Ends one span after the other, at a steady pace, under this processor with its defaults.
///
/// # Panics
///
/// If a span did not arrive.
pub fn measure(kind: Kind) -> Latency {
    let receiver = Receiver::http().expect("a port is free");
    let exporter = DirectExporter::builder()
        .with_endpoint(receiver.endpoint())
        .build()
        .expect("the settings are valid");
    let provider = provider(kind, exporter);
    let tracer = provider.tracer("bench");

    let start = Instant::now();
    let mut ended = 0;
    while start.elapsed() < DURATION {
        tracer.start("request").end();
        ended += 1;
        thread::sleep(PACE);
    }
    // No flush: the question is when spans arrive by themselves.
    let deadline = Instant::now() + PATIENCE;
    while receiver.received().len() < ended && Instant::now() < deadline {
        thread::sleep(PACE);
    }
    let received = receiver.received();
    assert_eq!(received.len(), ended, "{} lost spans", kind.name());
    provider.shutdown().expect("nothing was lost");

    let mut millis: Vec<f64> = received
        .iter()
        .map(|received| {
            let nanos = received
                .arrived
                .saturating_sub(received.span.end_time_unix_nano);
            nanos as f64 / 1e6
        })
        .collect();
    Latency {
        p50: percentile(&mut millis, 50),
        p99: percentile(&mut millis, 99),
    }
}
