//! Spans and log records made by hand, for the tests of the pure parts.

use std::time::UNIX_EPOCH;

use opentelemetry::InstrumentationScope;
#[cfg(feature = "logs")]
use opentelemetry::logs::{LogRecord as _, Logger as _, LoggerProvider as _};
use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
#[cfg(feature = "logs")]
use opentelemetry_sdk::Resource;
#[cfg(feature = "logs")]
use opentelemetry_sdk::logs::{SdkLogRecord, SdkLoggerProvider};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

#[cfg(feature = "logs")]
use crate::signal::LogData;

/// A sampled span that has ended.
pub(crate) fn span(trace: u128, id: u64) -> SpanData {
    span_with_flags(trace, id, TraceFlags::SAMPLED)
}

pub(crate) fn span_with_flags(trace: u128, id: u64, flags: TraceFlags) -> SpanData {
    SpanData {
        span_context: SpanContext::new(
            TraceId::from(trace),
            SpanId::from(id),
            flags,
            false,
            TraceState::NONE,
        ),
        parent_span_id: SpanId::INVALID,
        parent_span_is_remote: false,
        span_kind: SpanKind::Internal,
        name: "test".into(),
        start_time: UNIX_EPOCH,
        end_time: UNIX_EPOCH,
        attributes: Vec::new(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: InstrumentationScope::default(),
    }
}

/// A log record that names this span.
#[cfg(feature = "logs")]
pub(crate) fn log(trace: u128, span: u64) -> LogData {
    let mut record = blank_record();
    record.set_trace_context(TraceId::from(trace), SpanId::from(span), None);
    LogData {
        record,
        scope: InstrumentationScope::default(),
    }
}

/// A log record that says nothing. Only a logger makes one.
#[cfg(feature = "logs")]
pub(crate) fn blank_record() -> SdkLogRecord {
    let nobody = Resource::builder_empty().build();
    let provider = SdkLoggerProvider::builder().with_resource(nobody).build();
    provider.logger("test").create_log_record()
}
