//! The numbers of `stats()` as OpenTelemetry metrics, by the names of the semantic conventions for SDK metrics.

use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;

use crate::runtime::Shared;
use crate::stats::{DropReason, LateReason, Stats};
use crate::sync::{Arc, AtomicU64, Ordering, Weak};

const COMPONENT_TYPE: &str = "per_request_span_processor";

/// Numbers the processors of this program: `otel.component.name` must be unique.
static INSTANCES: AtomicU64 = AtomicU64::new(0);

/// Registers observable instruments that ask the processor for as long as it exists.
pub(crate) fn register(shared: &Arc<Shared>, meter: Option<Meter>) {
    let meter = meter.unwrap_or_else(|| opentelemetry::global::meter(env!("CARGO_PKG_NAME")));
    // Nothing but uniqueness depends on this number.
    let instance = INSTANCES.fetch_add(1, Ordering::Relaxed);
    let component = [
        KeyValue::new("otel.component.type", COMPONENT_TYPE),
        KeyValue::new(
            "otel.component.name",
            format!("{COMPONENT_TYPE}/{instance}"),
        ),
    ];
    let source = Source {
        shared: Arc::downgrade(shared),
        component,
    };

    let from = source.clone();
    meter
        .u64_observable_counter("otel.sdk.processor.span.processed")
        .with_unit("{span}")
        .with_description("Spans for which the processing has finished, successfully or not.")
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
        .i64_observable_up_down_counter("otel.sdk.processor.span.queue.size")
        .with_unit("{span}")
        .with_description("Spans inside the processor: queued, waiting and in flight.")
        .with_callback(move |observer| {
            from.observe(|stats, attributes| {
                observer.observe(clamp(stats.pending()), attributes);
            });
        })
        .build();

    let from = source.clone();
    meter
        .i64_observable_up_down_counter("otel.sdk.processor.span.queue.capacity")
        .with_unit("{span}")
        .with_description("The most spans that may be inside the processor.")
        .with_callback(move |observer| {
            if let Some(shared) = from.shared.upgrade() {
                observer.observe(clamp(shared.max_pending_spans()), &from.component);
            }
        })
        .build();

    let from = source;
    meter
        .u64_observable_counter("per_request.span.late")
        .with_unit("{span}")
        .with_description("Spans that ended after the state of their request was gone.")
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

#[derive(Clone)]
struct Source {
    /// Weak, so that the meter provider does not keep the processor's state.
    shared: Weak<Shared>,
    component: [KeyValue; 2],
}

impl Source {
    fn observe(&self, observe: impl FnOnce(&Stats, &[KeyValue])) {
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
