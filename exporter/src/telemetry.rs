//! What the exporter says about itself: counters, OpenTelemetry metrics, and warnings at a limited rate.

use crate::clock;
use crate::endpoint::Endpoint;
use crate::stats::{Counters, ExporterStats, FailureReason};
use http::StatusCode;
#[cfg(feature = "metrics")]
use opentelemetry::metrics::Meter;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// One warning per topic in this time; the next one says how many were left out.
const WARNING_INTERVAL: Duration = Duration::from_secs(10);

/// All self-telemetry of one exporter.
#[derive(Debug)]
pub(crate) struct Telemetry {
    counters: Counters,
    warnings: Mutex<WarningLimit>,
    #[cfg(feature = "metrics")]
    metrics: instruments::Metrics,
}

/// Spans inside one call of `export`. Those not settled when it is dropped were cancelled.
#[derive(Debug)]
pub(crate) struct InFlight<'a> {
    telemetry: &'a Telemetry,
    unsettled: u64,
}

/// What a warning is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Topic {
    Failure(FailureReason),
    /// The collector says something although it rejected nothing.
    CollectorMessage,
    /// A success whose body is no OTLP response.
    UndecodableResponse,
}

/// Admits one warning per topic and interval, pure: time is an argument.
#[derive(Debug, Default)]
struct WarningLimit {
    topics: HashMap<Topic, Admitted>,
}

#[derive(Debug)]
struct Admitted {
    at: Duration,
    suppressed: u64,
}

// ===== impl Telemetry =====

impl Telemetry {
    pub(crate) fn new(
        endpoint: &Endpoint,
        #[cfg(feature = "metrics")] meter: Option<Meter>,
    ) -> Self {
        #[cfg(not(feature = "metrics"))]
        let _ = endpoint;
        Self {
            counters: Counters::default(),
            warnings: Mutex::default(),
            #[cfg(feature = "metrics")]
            metrics: instruments::Metrics::new(endpoint, meter),
        }
    }

    pub(crate) fn snapshot(&self) -> ExporterStats {
        self.counters.snapshot()
    }

    pub(crate) fn begin(&self, spans: usize) -> InFlight<'_> {
        self.counters.begin(spans as u64);
        #[cfg(feature = "metrics")]
        self.metrics.in_flight(spans as i64);
        InFlight {
            telemetry: self,
            unsettled: spans as u64,
        }
    }

    pub(crate) fn attempt(&self, number: u32) {
        self.counters.attempt(number);
    }

    /// One request is over, its retries included.
    pub(crate) fn operation(
        &self,
        took: Duration,
        status: Option<StatusCode>,
        failure: Option<FailureReason>,
    ) {
        #[cfg(feature = "metrics")]
        self.metrics.operation(took, status, failure);
        #[cfg(not(feature = "metrics"))]
        let _ = (took, status, failure);
    }

    /// How many warnings on this topic were left out since the last one, or `None` when this one is to be left out.
    pub(crate) fn admit_warning(&self, topic: Topic) -> Option<u64> {
        self.warnings
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .admit(topic, clock::monotonic())
    }

    fn end(&self, spans: u64, result: Result<(), FailureReason>) {
        if spans == 0 {
            return;
        }
        self.counters.end(spans, result);
        #[cfg(feature = "metrics")]
        self.metrics.end(spans, result);
    }
}

// ===== impl InFlight =====

impl InFlight<'_> {
    pub(crate) fn settle(&mut self, spans: usize, result: Result<(), FailureReason>) {
        let spans = (spans as u64).min(self.unsettled);
        self.unsettled -= spans;
        self.telemetry.end(spans, result);
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.telemetry
            .end(self.unsettled, Err(FailureReason::Cancelled));
    }
}

// ===== impl WarningLimit =====

impl WarningLimit {
    fn admit(&mut self, topic: Topic, now: Duration) -> Option<u64> {
        let first = Admitted {
            at: now,
            suppressed: 0,
        };
        let Some(last) = self.topics.get_mut(&topic) else {
            self.topics.insert(topic, first);
            return Some(0);
        };
        if now.saturating_sub(last.at) < WARNING_INTERVAL {
            last.suppressed += 1;
            return None;
        }
        Some(std::mem::replace(last, first).suppressed)
    }
}

#[cfg(feature = "metrics")]
mod instruments {
    //! The instruments of the semantic conventions for SDK metrics.

    use super::{Duration, Endpoint, FailureReason, Meter, StatusCode};
    use opentelemetry::metrics::{Counter, Histogram, UpDownCounter};
    use opentelemetry::{KeyValue, global};
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Arc, OnceLock};

    const COMPONENT_TYPE: &str = "otlp_http_span_exporter";

    /// In seconds: the boundaries of the semantic conventions for HTTP, and longer ones, because retries are included.
    const DURATIONS: [f64; 16] = [
        0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 15.0, 30.0,
    ];

    /// The instruments, made at the first use: the application may set its global meter provider after it has built
    /// the exporter.
    #[derive(Debug)]
    pub(super) struct Metrics {
        meter: Option<Meter>,
        attributes: Vec<KeyValue>,
        instruments: OnceLock<Instruments>,
    }

    #[derive(Debug)]
    struct Instruments {
        in_flight: UpDownCounter<i64>,
        exported: Counter<u64>,
        duration: Histogram<f64>,
    }

    impl Metrics {
        pub(super) fn new(endpoint: &Endpoint, meter: Option<Meter>) -> Self {
            /// Tells the exporters of one process apart; it guards nothing else.
            static NEXT: AtomicU64 = AtomicU64::new(0);
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            // They are cloned for each measurement.
            let shared = |text: &str| Arc::<str>::from(text);
            let attributes = vec![
                KeyValue::new("otel.component.type", COMPONENT_TYPE),
                KeyValue::new(
                    "otel.component.name",
                    shared(&format!("{COMPONENT_TYPE}/{number}")),
                ),
                KeyValue::new("server.address", shared(endpoint.host())),
                KeyValue::new("server.port", i64::from(endpoint.port())),
            ];
            Self {
                meter,
                attributes,
                instruments: OnceLock::new(),
            }
        }

        pub(super) fn in_flight(&self, change: i64) {
            self.instruments().in_flight.add(change, &self.attributes);
        }

        pub(super) fn end(&self, spans: u64, result: Result<(), FailureReason>) {
            self.in_flight(-(spans as i64));
            let attributes = self.attributes_with(None, result.err());
            self.instruments().exported.add(spans, &attributes);
        }

        pub(super) fn operation(
            &self,
            took: Duration,
            status: Option<StatusCode>,
            failure: Option<FailureReason>,
        ) {
            let attributes = self.attributes_with(status, failure);
            self.instruments()
                .duration
                .record(took.as_secs_f64(), &attributes);
        }

        fn attributes_with(
            &self,
            status: Option<StatusCode>,
            failure: Option<FailureReason>,
        ) -> Vec<KeyValue> {
            let status = status.map(|status| {
                KeyValue::new("http.response.status_code", i64::from(status.as_u16()))
            });
            let failure = failure.map(|reason| KeyValue::new("error.type", reason.as_str()));
            let own = self.attributes.iter().cloned();
            own.chain(status).chain(failure).collect()
        }

        fn instruments(&self) -> &Instruments {
            self.instruments.get_or_init(|| {
                let global = || global::meter(env!("CARGO_PKG_NAME"));
                Instruments::new(&self.meter.clone().unwrap_or_else(global))
            })
        }
    }

    impl Instruments {
        fn new(meter: &Meter) -> Self {
            Self {
                in_flight: meter
                    .i64_up_down_counter("otel.sdk.exporter.span.inflight")
                    .with_unit("{span}")
                    .with_description("Spans passed to the exporter and not yet answered for.")
                    .build(),
                exported: meter
                    .u64_counter("otel.sdk.exporter.span.exported")
                    .with_unit("{span}")
                    .with_description("Spans whose export has ended, with error.type if it failed.")
                    .build(),
                duration: meter
                    .f64_histogram("otel.sdk.exporter.operation.duration")
                    .with_unit("s")
                    .with_description("The duration of one request, its retries included.")
                    .with_boundaries(DURATIONS.to_vec())
                    .build(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: two topics warn again and again.
    /// Guarantees: one warning per topic and interval, and the next one says how many were left out.
    #[test]
    fn one_warning_per_topic_and_interval_and_the_rest_is_counted() {
        let mut limit = WarningLimit::default();
        let (a, b) = (Topic::CollectorMessage, Topic::UndecodableResponse);
        let cases = [
            (a, 0, Some(0)),
            (a, 1, None),
            (b, 1, Some(0)),
            (a, 9, None),
            (a, 10, Some(2)),
            (a, 11, None),
            (b, 30, Some(0)),
        ];
        for (topic, at, expected) in cases {
            let now = Duration::from_secs(at);
            assert_eq!(limit.admit(topic, now), expected, "{topic:?} at {at}");
        }
    }
}
