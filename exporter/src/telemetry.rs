//! What the exporter says about itself: counters, OpenTelemetry metrics, and warnings at a limited rate.

use crate::clock;
use crate::endpoint::Endpoint;
use crate::signal::Signal;
use crate::stats::{Counters, ExporterStats, FailureReason};
use http::StatusCode;
#[cfg(feature = "metrics")]
use opentelemetry::metrics::Meter;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// One warning per topic in this time; the next one says how many were left out.
const WARNING_INTERVAL: Duration = Duration::from_secs(10);

/// All self-telemetry of one exporter about one signal.
#[derive(Debug)]
pub(crate) struct Telemetry {
    counters: Counters,
    warnings: Mutex<WarningLimit>,
    #[cfg(feature = "metrics")]
    metrics: instruments::Metrics,
}

/// What the telemetry about the three signals of one exporter has in common.
#[derive(Debug)]
pub(crate) struct Component {
    /// Tells the exporters of one process apart.
    #[cfg(feature = "metrics")]
    number: u64,
    #[cfg(feature = "metrics")]
    meter: Option<Meter>,
}

/// Items inside one call of `export`. Those not settled when it is dropped were cancelled.
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

// ===== impl Component =====

impl Component {
    /// One with the next number.
    pub(crate) fn next(#[cfg(feature = "metrics")] meter: Option<Meter>) -> Self {
        Self {
            #[cfg(feature = "metrics")]
            number: instruments::next_number(),
            #[cfg(feature = "metrics")]
            meter,
        }
    }
}

// ===== impl Telemetry =====

impl Telemetry {
    pub(crate) fn new(signal: Signal, endpoint: Option<&Endpoint>, component: &Component) -> Self {
        #[cfg(not(feature = "metrics"))]
        let _ = (signal, endpoint, component);
        Self {
            counters: Counters::default(),
            warnings: Mutex::default(),
            #[cfg(feature = "metrics")]
            metrics: instruments::Metrics::new(signal, endpoint, component),
        }
    }

    pub(crate) fn snapshot(&self) -> ExporterStats {
        self.counters.snapshot()
    }

    pub(crate) fn begin(&self, items: usize) -> InFlight<'_> {
        self.counters.begin(items as u64);
        #[cfg(feature = "metrics")]
        self.metrics.in_flight(items as i64);
        InFlight {
            telemetry: self,
            unsettled: items as u64,
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

    fn end(&self, items: u64, result: Result<(), FailureReason>) {
        if items == 0 {
            return;
        }
        self.counters.end(items, result);
        #[cfg(feature = "metrics")]
        self.metrics.end(items, result);
    }
}

// ===== impl InFlight =====

impl InFlight<'_> {
    pub(crate) fn settle(&mut self, items: usize, result: Result<(), FailureReason>) {
        let items = (items as u64).min(self.unsettled);
        self.unsettled -= items;
        self.telemetry.end(items, result);
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

    use super::{Component, Duration, Endpoint, FailureReason, Meter, Signal, StatusCode};
    use opentelemetry::metrics::{Counter, Histogram, UpDownCounter};
    use opentelemetry::{KeyValue, global};
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Arc, OnceLock};

    /// What the conventions call things of one signal.
    struct Names {
        component_type: &'static str,
        in_flight: &'static str,
        exported: &'static str,
        unit: &'static str,
    }

    /// In seconds: the boundaries of the semantic conventions for HTTP, and longer ones, because retries are included.
    const DURATIONS: [f64; 16] = [
        0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 15.0, 30.0,
    ];

    /// The instruments, made at the first use: the application may set its global meter provider after it has built
    /// the exporter.
    #[derive(Debug)]
    pub(super) struct Metrics {
        signal: Signal,
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

    pub(super) fn next_number() -> u64 {
        /// It guards nothing else.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed)
    }

    fn names(signal: Signal) -> Names {
        match signal {
            Signal::Traces => Names {
                component_type: "otlp_http_span_exporter",
                in_flight: "otel.sdk.exporter.span.inflight",
                exported: "otel.sdk.exporter.span.exported",
                unit: "{span}",
            },
            Signal::Logs => Names {
                component_type: "otlp_http_log_exporter",
                in_flight: "otel.sdk.exporter.log.inflight",
                exported: "otel.sdk.exporter.log.exported",
                unit: "{log_record}",
            },
            Signal::Metrics => Names {
                component_type: "otlp_http_metric_exporter",
                in_flight: "otel.sdk.exporter.metric_data_point.inflight",
                exported: "otel.sdk.exporter.metric_data_point.exported",
                unit: "{data_point}",
            },
        }
    }

    impl Metrics {
        pub(super) fn new(
            signal: Signal,
            endpoint: Option<&Endpoint>,
            component: &Component,
        ) -> Self {
            let component_type = names(signal).component_type;
            let name = format!("{component_type}/{}", component.number);
            // They are cloned for each measurement.
            let shared = |text: &str| Arc::<str>::from(text);
            let mut attributes = vec![
                KeyValue::new("otel.component.type", component_type),
                KeyValue::new("otel.component.name", shared(&name)),
            ];
            if let Some(endpoint) = endpoint {
                attributes.push(KeyValue::new("server.address", shared(endpoint.host())));
                attributes.push(KeyValue::new("server.port", i64::from(endpoint.port())));
            }
            Self {
                signal,
                meter: component.meter.clone(),
                attributes,
                instruments: OnceLock::new(),
            }
        }

        pub(super) fn in_flight(&self, change: i64) {
            self.instruments().in_flight.add(change, &self.attributes);
        }

        pub(super) fn end(&self, items: u64, result: Result<(), FailureReason>) {
            self.in_flight(-(items as i64));
            let attributes = self.attributes_with(None, result.err());
            self.instruments().exported.add(items, &attributes);
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
                let meter = self.meter.clone().unwrap_or_else(global);
                Instruments::new(&meter, names(self.signal))
            })
        }
    }

    impl Instruments {
        fn new(meter: &Meter, names: Names) -> Self {
            Self {
                in_flight: meter
                    .i64_up_down_counter(names.in_flight)
                    .with_unit(names.unit)
                    .with_description("Passed to the exporter and not yet answered for.")
                    .build(),
                exported: meter
                    .u64_counter(names.exported)
                    .with_unit(names.unit)
                    .with_description("Those whose export has ended, with error.type if it failed.")
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
