//! What the processor says about itself as OpenTelemetry metrics: the numbers of `stats()`, and how long exports take. The
//! names are those of the semantic conventions for SDK metrics, and `per_request.…` where they have none.

use std::sync::OnceLock;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Histogram, Meter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
#[cfg(feature = "logs")]
use opentelemetry_sdk::logs::{LogBatch, LogExporter};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

use crate::clock::Instant;
use crate::runtime::Shared;
use crate::signal::{PerSignal, Signal};
use crate::stats::{DropReason, LateReason, SignalStats, Stats};
use crate::sync::{Arc, AtomicU64, Ordering, Weak};

/// In seconds: the boundaries of the semantic conventions for HTTP, and the default export timeout.
const DURATIONS: [f64; 15] = [
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0,
];

/// Numbers the processors of this program: `otel.component.name` must be unique.
static INSTANCES: AtomicU64 = AtomicU64::new(0);

/// How a processor is observed.
#[derive(Debug, Default)]
pub(crate) struct Observing {
    /// The global one if there is none.
    meter: Option<Meter>,
    /// Whether the meter is not known yet.
    deferred: bool,
    durations: PerSignal<Durations>,
}

/// The instruments of one signal.
struct Names {
    component: &'static str,
    unit: &'static str,
    processed: &'static str,
    size: &'static str,
    capacity: &'static str,
    pending: &'static str,
    late: &'static str,
}

const SPANS: Names = Names {
    component: "per_request_span_processor",
    unit: "{span}",
    processed: "otel.sdk.processor.span.processed",
    size: "otel.sdk.processor.span.queue.size",
    capacity: "otel.sdk.processor.span.queue.capacity",
    pending: "per_request.span.pending",
    late: "per_request.span.late",
};

const LOGS: Names = Names {
    component: "per_request_log_processor",
    unit: "{log_record}",
    processed: "otel.sdk.processor.log.processed",
    size: "otel.sdk.processor.log.queue.size",
    capacity: "otel.sdk.processor.log.queue.capacity",
    pending: "per_request.log.pending",
    late: "per_request.log.late",
};

impl Observing {
    pub(crate) fn set_meter(&mut self, meter: Meter) {
        self.meter = Some(meter);
    }

    /// Nothing is registered before [`Self::observe_with`] is called, unless a meter was given in code.
    #[cfg(feature = "metric-reader")]
    pub(crate) fn defer(&mut self) {
        self.deferred = self.meter.is_none();
    }

    /// Registers what was not.
    #[cfg(feature = "metric-reader")]
    pub(crate) fn observe_with(&mut self, shared: &Arc<Shared>, meter: Meter) {
        if std::mem::take(&mut self.deferred) {
            self.meter = Some(meter);
            let present = |signal: &Signal| shared.exports(*signal);
            let present = Signal::ALL.into_iter().filter(present);
            present.for_each(|signal| self.observe(shared, signal));
        }
    }

    /// Where the durations of exports of a signal are recorded.
    pub(crate) fn durations(&self, signal: Signal) -> Durations {
        self.durations[signal].clone()
    }

    /// Registers instruments: observable ones that ask the processor for as long as it exists, and the one of its exports.
    pub(crate) fn observe(&self, shared: &Arc<Shared>, signal: Signal) {
        let names = match signal {
            _ if self.deferred => return,
            Signal::Spans => &SPANS,
            Signal::Logs => &LOGS,
            // What a metric reader says of itself would be all that it ever finds.
            Signal::Metrics => return,
        };
        let global = || opentelemetry::global::meter(env!("CARGO_PKG_NAME"));
        let meter = self.meter.clone().unwrap_or_else(global);
        // Nothing but uniqueness depends on this number.
        let instance = INSTANCES.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}/{instance}", names.component);
        let component = [
            KeyValue::new("otel.component.type", names.component),
            KeyValue::new("otel.component.name", name),
        ];
        self.durations[signal].register(&meter, &component);
        let source = Source {
            shared: Arc::downgrade(shared),
            signal,
            component,
        };
        register_items(&meter, &source, names);
        if signal == Signal::Spans {
            register_traces(&meter, &source);
            register_open_events(&meter, &source);
        }
    }
}

fn register_items(meter: &Meter, source: &Source, names: &Names) {
    let from = source.clone();
    meter
        .u64_observable_counter(names.processed)
        .with_unit(names.unit)
        .with_description("What the processor is done with, successfully or not.")
        .with_callback(move |observer| {
            from.observe(|stats, attributes| {
                observer.observe(stats.handed_over(), attributes);
                for reason in DropReason::ALL {
                    let dropped = stats.dropped.by(reason);
                    observer.observe(dropped, &with(attributes, "error.type", reason.as_str()));
                }
            });
        })
        .build();

    let from = source.clone();
    meter
        .i64_observable_up_down_counter(names.size)
        .with_unit(names.unit)
        .with_description("What is inside the processor: queued, waiting and in flight.")
        .with_callback(move |observer| {
            from.observe(|stats, attributes| {
                observer.observe(clamp(stats.pending()), attributes);
            });
        })
        .build();

    let from = source.clone();
    meter
        .i64_observable_up_down_counter(names.capacity)
        .with_unit(names.unit)
        .with_description("The most that may be inside the processor.")
        .with_callback(move |observer| {
            if let Some(shared) = from.shared.upgrade() {
                observer.observe(clamp(shared.max_pending(from.signal)), &from.component);
            }
        })
        .build();

    let from = source.clone();
    meter
        .i64_observable_up_down_counter(names.pending)
        .with_unit(names.unit)
        .with_description("What is inside the processor, by where it is.")
        .with_callback(move |observer| {
            from.observe(|stats, attributes| {
                let places = [
                    ("queued", stats.queued),
                    ("waiting", stats.waiting),
                    ("in_flight", stats.in_flight),
                ];
                for (place, items) in places {
                    observer.observe(clamp(items), &with(attributes, "per_request.place", place));
                }
            });
        })
        .build();

    let from = source.clone();
    meter
        .u64_observable_counter(names.late)
        .with_unit(names.unit)
        .with_description("What ended, or was emitted, after the state of its request was gone.")
        .with_callback(move |observer| {
            from.observe(|stats, attributes| {
                for reason in LateReason::ALL {
                    let late = stats.late.by(reason);
                    observer.observe(late, &with(attributes, "per_request.late", reason.as_str()));
                }
            });
        })
        .build();
}

fn register_traces(meter: &Meter, source: &Source) {
    let from = source.clone();
    meter
        .i64_observable_up_down_counter("per_request.trace.live")
        .with_unit("{trace}")
        .with_description("Traces in memory: those with an open span.")
        .with_callback(move |observer| {
            from.observe_all(|stats, attributes| observer.observe(clamp(stats.traces), attributes));
        })
        .build();

    let from = source.clone();
    meter
        .u64_observable_counter("per_request.trace.evicted")
        .with_unit("{trace}")
        .with_description("Traces that were evicted, with spans open, to make room for others.")
        .with_callback(move |observer| {
            from.observe_all(|stats, attributes| {
                observer.observe(stats.evicted_traces, attributes);
            });
        })
        .build();
}

fn register_open_events(meter: &Meter, source: &Source) {
    let from = source.clone();
    meter
        .u64_observable_counter("per_request.open_event.processed")
        .with_unit("{event}")
        .with_description("Open events, by what became of them.")
        .with_callback(move |observer| {
            from.observe_all(|stats, attributes| {
                let events = &stats.open_events;
                let results = [
                    ("sent", events.sent),
                    ("elided", events.elided),
                    ("dropped", events.dropped),
                ];
                for (result, count) in results.into_iter().filter(|_| events.opened > 0) {
                    observer.observe(count, &with(attributes, "per_request.result", result));
                }
            });
        })
        .build();
}

/// Where the durations of exports are recorded, once there is a meter. Clones are the same place.
#[derive(Clone, Debug, Default)]
pub(crate) struct Durations(Arc<OnceLock<Recorder>>);

#[derive(Debug)]
struct Recorder {
    histogram: Histogram<f64>,
    component: [KeyValue; 2],
}

impl Durations {
    fn register(&self, meter: &Meter, component: &[KeyValue; 2]) {
        let histogram = meter
            .f64_histogram("per_request.export.duration")
            .with_unit("s")
            .with_description("How long the exporter takes for a batch.")
            .with_boundaries(DURATIONS.to_vec())
            .build();
        // A builder builds once.
        let _ = self.0.set(Recorder {
            histogram,
            component: component.clone(),
        });
    }

    fn record(&self, took: Duration, error: Option<&'static str>) {
        let Some(recorder) = self.0.get() else {
            return;
        };
        let seconds = took.as_secs_f64();
        match error {
            None => recorder.histogram.record(seconds, &recorder.component),
            Some(error) => {
                let attributes = with(&recorder.component, "error.type", error);
                recorder.histogram.record(seconds, &attributes);
            }
        }
    }
}

/// An exporter, with a watch.
#[derive(Debug)]
pub(crate) struct Timed<E> {
    exporter: E,
    durations: Durations,
}

impl<E> Timed<E> {
    pub(crate) fn new(exporter: E, durations: Durations) -> Self {
        Self {
            exporter,
            durations,
        }
    }
}

impl<E: SpanExporter> SpanExporter for Timed<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let watch = Watch::start(&self.durations);
        let result = self.exporter.export(batch).await;
        watch.stop(&result);
        result
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(feature = "logs")]
impl<E: LogExporter> LogExporter for Timed<E> {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        let watch = Watch::start(&self.durations);
        let result = self.exporter.export(batch).await;
        watch.stop(&result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// Measures one export.
struct Watch<'a> {
    durations: &'a Durations,
    began: Instant,
    /// What the exporter has answered.
    answer: Option<Result<(), &'static str>>,
}

impl<'a> Watch<'a> {
    fn start(durations: &'a Durations) -> Self {
        Self {
            durations,
            began: Instant::now(),
            answer: None,
        }
    }

    fn stop(mut self, result: &OTelSdkResult) {
        self.answer = Some(result.as_ref().copied().map_err(|error| match error {
            OTelSdkError::Timeout(_) => "timeout",
            OTelSdkError::AlreadyShutdown => "already_shutdown",
            OTelSdkError::InternalFailure(_) => "failed",
        }));
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let error = match self.answer {
            Some(answer) => answer.err(),
            None if std::thread::panicking() => Some("panic"),
            // It was taken back.
            None => Some("timeout"),
        };
        let took = Instant::now().checked_duration_since(self.began);
        self.durations.record(took.unwrap_or_default(), error);
    }
}

#[derive(Clone)]
struct Source {
    /// Weak, so that the meter provider does not keep the processor's state.
    shared: Weak<Shared>,
    signal: Signal,
    component: [KeyValue; 2],
}

impl Source {
    /// The numbers of its signal.
    fn observe(&self, observe: impl FnOnce(&SignalStats, &[KeyValue])) {
        self.observe_all(|stats, component| match self.signal {
            Signal::Spans => observe(&stats.of_spans(), component),
            Signal::Logs => observe(&stats.logs, component),
            Signal::Metrics => observe(&stats.metrics, component),
        });
    }

    fn observe_all(&self, observe: impl FnOnce(&Stats, &[KeyValue])) {
        if let Some(shared) = self.shared.upgrade() {
            observe(&shared.stats(), &self.component);
        }
    }
}

fn with(attributes: &[KeyValue], key: &'static str, value: &'static str) -> Vec<KeyValue> {
    let mut all = attributes.to_vec();
    all.push(KeyValue::new(key, value));
    all
}

fn clamp(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
