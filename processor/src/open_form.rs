//! What open events look like to the collector: log records, or pending spans.

use std::time::SystemTime;

use opentelemetry::KeyValue;
#[cfg(feature = "logs")]
use opentelemetry::logs::{AnyValue, LogRecord as _, Logger as _, LoggerProvider as _, Severity};
use opentelemetry::trace::{SpanContext, Status};
#[cfg(feature = "logs")]
use opentelemetry::trace::{SpanId, SpanKind};
#[cfg(feature = "logs")]
use opentelemetry::{Array, Value};
#[cfg(feature = "logs")]
use opentelemetry_sdk::Resource;
#[cfg(feature = "logs")]
use opentelemetry_sdk::logs::{SdkLogRecord, SdkLoggerProvider};
use opentelemetry_sdk::trace::{IdGenerator as _, RandomIdGenerator, SpanData};

use crate::observer::Unfinished;
use crate::open_spans::OpenSpan;
#[cfg(feature = "logs")]
use crate::signal::LogData;
use crate::signal::Signal;

/// The event name of all log records that tell of a span while it is open.
pub const OPEN_EVENT_NAME: &str = "span.state";

/// The attribute of a span, or of what tells of it, that never ended. Its value is a word of [`Unfinished`].
pub const UNFINISHED_ATTRIBUTE: &str = "per_request.unfinished";

/// How open events leave.
#[derive(Debug)]
pub(crate) enum Form {
    /// As log records, which are copies of a blank one: only a logger makes that.
    #[cfg(feature = "logs")]
    Logs(Box<SdkLogRecord>),
    PendingSpans,
}

/// What leaves.
pub(crate) enum OpenEvent {
    Span(SpanData),
    #[cfg(feature = "logs")]
    Log(LogData),
}

impl OpenEvent {
    pub(crate) fn signal(&self) -> Signal {
        match self {
            Self::Span(_) => Signal::Spans,
            #[cfg(feature = "logs")]
            Self::Log(_) => Signal::Logs,
        }
    }
}

impl Form {
    /// `None` without the feature `logs`.
    #[cfg(feature = "logs")]
    pub(crate) fn logs() -> Option<Self> {
        let nobody = Resource::builder_empty().build();
        let provider = SdkLoggerProvider::builder().with_resource(nobody).build();
        let blank = provider.logger(env!("CARGO_PKG_NAME")).create_log_record();
        Some(Self::Logs(Box::new(blank)))
    }

    #[cfg(not(feature = "logs"))]
    pub(crate) fn logs() -> Option<Self> {
        None
    }

    pub(crate) fn signal(&self) -> Signal {
        match self {
            #[cfg(feature = "logs")]
            Self::Logs(_) => Signal::Logs,
            Self::PendingSpans => Signal::Spans,
        }
    }

    /// That a span is open.
    pub(crate) fn open(&self, open: &OpenSpan) -> OpenEvent {
        match self {
            #[cfg(feature = "logs")]
            Self::Logs(blank) => {
                let span = &open.span;
                let mut log = log_of(blank, span, "open", open.sequence, span.start_time);
                describe(&mut log.record, span);
                OpenEvent::Log(log)
            }
            Self::PendingSpans => OpenEvent::Span(pending(&open.span)),
        }
    }

    /// That a span has another name. `None` if that is not said in this form.
    pub(crate) fn rename(&self, open: &OpenSpan, sequence: u64) -> Option<OpenEvent> {
        match self {
            #[cfg(feature = "logs")]
            Self::Logs(blank) => {
                let now = opentelemetry::time::now();
                Some(OpenEvent::Log(log_of(
                    blank, &open.span, "rename", sequence, now,
                )))
            }
            Self::PendingSpans => {
                let _ = (open, sequence);
                None
            }
        }
    }

    /// That a span will not end.
    pub(crate) fn unfinished(
        &self,
        open: &OpenSpan,
        sequence: u64,
        why: Unfinished,
        now: SystemTime,
    ) -> OpenEvent {
        match self {
            #[cfg(feature = "logs")]
            Self::Logs(blank) => {
                let mut log = log_of(blank, &open.span, "unfinished", sequence, now);
                log.record.set_severity_number(Severity::Warn);
                log.record.set_severity_text("WARN");
                describe(&mut log.record, &open.span);
                log.record.add_attribute(UNFINISHED_ATTRIBUTE, why.as_str());
                OpenEvent::Log(log)
            }
            Self::PendingSpans => {
                let _ = (sequence, now);
                let mut span = pending(&open.span);
                mark_unfinished(&mut span, why);
                OpenEvent::Span(span)
            }
        }
    }
}

/// A span that never ended, as if it had.
pub(crate) fn ended(mut span: SpanData, why: Unfinished, now: SystemTime) -> SpanData {
    span.end_time = now;
    mark_unfinished(&mut span, why);
    span
}

fn mark_unfinished(span: &mut SpanData, why: Unfinished) {
    span.status = Status::error(match why {
        Unfinished::Shutdown => "it was open when the processor was shut down",
        Unfinished::Panic => "the instance died of a panic while this was open",
    });
    let attribute = KeyValue::new(UNFINISHED_ATTRIBUTE, why.as_str());
    span.attributes.push(attribute);
}

/// A span below this one that says that it is open, as Pydantic Logfire has it: of no length, and with an id of its own.
fn pending(span: &SpanData) -> SpanData {
    let real = &span.span_context;
    let mut pending = span.clone();
    pending.span_context = SpanContext::new(
        real.trace_id(),
        RandomIdGenerator::default().new_span_id(),
        real.trace_flags(),
        false,
        real.trace_state().clone(),
    );
    pending.parent_span_id = real.span_id();
    pending.parent_span_is_remote = false;
    pending.end_time = span.start_time;
    pending.attributes.extend([
        KeyValue::new("logfire.span_type", "pending_span"),
        // Of a root it is all zeros.
        KeyValue::new("logfire.pending_parent_id", span.parent_span_id.to_string()),
    ]);
    pending
}

#[cfg(feature = "logs")]
fn log_of(
    blank: &SdkLogRecord,
    span: &SpanData,
    state: &'static str,
    sequence: u64,
    at: SystemTime,
) -> LogData {
    let mut record = blank.clone();
    record.set_event_name(OPEN_EVENT_NAME);
    record.set_timestamp(at);
    record.set_observed_timestamp(opentelemetry::time::now());
    record.set_severity_number(Severity::Info);
    record.set_severity_text("INFO");
    record.set_body(AnyValue::from(span.name.clone()));
    let context = &span.span_context;
    record.set_trace_context(
        context.trace_id(),
        context.span_id(),
        Some(context.trace_flags()),
    );
    record.add_attribute("span.state", state);
    record.add_attribute("span.name", span.name.clone());
    let sequence = i64::try_from(sequence).unwrap_or(i64::MAX);
    record.add_attribute("span.sequence", sequence);
    let scope = span.instrumentation_scope.clone();
    LogData { record, scope }
}

/// What a span is, beyond its name.
#[cfg(feature = "logs")]
fn describe(record: &mut SdkLogRecord, span: &SpanData) {
    record.add_attribute("span.kind", kind(&span.span_kind));
    if span.parent_span_id != SpanId::INVALID {
        record.add_attribute("span.parent_span_id", span.parent_span_id.to_string());
    }
    for attribute in &span.attributes {
        record.add_attribute(attribute.key.clone(), any_value(&attribute.value));
    }
}

#[cfg(feature = "logs")]
fn kind(kind: &SpanKind) -> &'static str {
    match kind {
        SpanKind::Client => "client",
        SpanKind::Server => "server",
        SpanKind::Producer => "producer",
        SpanKind::Consumer => "consumer",
        SpanKind::Internal => "internal",
    }
}

#[cfg(feature = "logs")]
fn any_value(value: &Value) -> AnyValue {
    fn list<T: Clone + Into<AnyValue>>(values: &[T]) -> AnyValue {
        AnyValue::ListAny(Box::new(values.iter().cloned().map(Into::into).collect()))
    }
    match value {
        Value::Bool(value) => AnyValue::Boolean(*value),
        Value::I64(value) => AnyValue::Int(*value),
        Value::F64(value) => AnyValue::Double(*value),
        Value::String(value) => AnyValue::String(value.clone()),
        Value::Array(Array::Bool(values)) => list(values),
        Value::Array(Array::I64(values)) => list(values),
        Value::Array(Array::F64(values)) => list(values),
        Value::Array(Array::String(values)) => list(values),
        // Whatever else there may be once.
        other => AnyValue::String(other.to_string().into()),
    }
}
