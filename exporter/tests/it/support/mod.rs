//! A scripted collector on loopback, spans to send to it, and a view on the log.

mod collector;
#[cfg(feature = "internal-logs")]
mod logs;
mod signals;

pub(crate) use collector::{Collector, Received, Reply};
#[cfg(feature = "internal-logs")]
pub(crate) use logs::Logs;
#[cfg(any(feature = "logs", feature = "metric-export"))]
pub(crate) use signals::resource;
pub(crate) use signals::{export_items, export_items_under, exported_signals, item_names};

use futures_executor::block_on;
use opentelemetry::Context;
use opentelemetry::trace::{
    FutureExt as _, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry_otlp_direct::{
    DirectExporter, DirectExporterBuilder, ExportToken, FailureReason, RetryPolicy, Signal,
};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter, SpanLinks};
use std::time::{Duration, UNIX_EPOCH};

/// Where nobody listens: the port is free again by the time this returns.
pub(crate) fn nowhere() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// Settings for tests: nothing from the environment, and retries without waiting.
pub(crate) fn builder(endpoint: &str) -> DirectExporterBuilder {
    let moment = Duration::from_millis(1);
    DirectExporter::builder()
        .with_env_lookup(|_| None)
        .with_endpoint(endpoint)
        .with_retry_policy(RetryPolicy::default().with_backoff(moment, moment))
}

pub(crate) fn exporter(collector: &Collector) -> DirectExporter {
    builder(&collector.endpoint()).build().unwrap()
}

/// Exports on this thread, which has no runtime.
pub(crate) fn export(exporter: &DirectExporter, spans: Vec<SpanData>) -> OTelSdkResult {
    block_on(exporter.export(spans))
}

pub(crate) fn export_under(
    cx: Context,
    exporter: &DirectExporter,
    spans: Vec<SpanData>,
) -> OTelSdkResult {
    block_on(exporter.export(spans).with_context(cx))
}

pub(crate) fn context_with(token: &ExportToken) -> Context {
    token.attach_to(&Context::new())
}

pub(crate) fn span(name: impl Into<String>) -> SpanData {
    SpanData {
        span_context: SpanContext::new(
            TraceId::from(1),
            SpanId::from(2),
            TraceFlags::SAMPLED,
            false,
            TraceState::NONE,
        ),
        parent_span_id: SpanId::INVALID,
        parent_span_is_remote: false,
        span_kind: SpanKind::Internal,
        name: name.into().into(),
        start_time: UNIX_EPOCH,
        end_time: UNIX_EPOCH,
        attributes: Vec::new(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: Default::default(),
    }
}

pub(crate) fn spans(count: usize) -> Vec<SpanData> {
    (0..count).map(|n| span(format!("span-{n}"))).collect()
}

/// Asserts the law: what was given is exported or failed for the reasons named, and nothing is in flight.
#[track_caller]
pub(crate) fn check_account(
    exporter: &DirectExporter,
    exported: u64,
    failed: &[(FailureReason, u64)],
) {
    check_account_of(Signal::Traces, exporter, exported, failed);
}

/// The same for any signal.
#[track_caller]
pub(crate) fn check_account_of(
    signal: Signal,
    exporter: &DirectExporter,
    exported: u64,
    failed: &[(FailureReason, u64)],
) {
    let stats = exporter.stats_of(signal);
    assert_eq!(stats.exported(), exported, "{stats:?}");
    for (reason, items) in failed {
        assert_eq!(stats.failed(*reason), *items, "{reason:?} {stats:?}");
    }
    let total: u64 = failed.iter().map(|(_, items)| items).sum();
    assert_eq!(stats.failed_in_total(), total, "{stats:?}");
    assert_eq!(stats.in_flight(), 0, "{stats:?}");
}
