//! What is in a batch, as whoever decodes it would read it.

use std::borrow::Cow;

#[cfg(feature = "logs")]
use opentelemetry::logs::AnyValue;
use opentelemetry::trace::SpanId;
use opentelemetry_sdk::trace::SpanData;

#[cfg(feature = "logs")]
use crate::open_form::OPEN_EVENT_NAME;
use crate::open_form::UNFINISHED_ATTRIBUTE;
use crate::signal::Items;
#[cfg(feature = "logs")]
use crate::signal::LogData;

/// One item of a batch.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Said {
    /// A span has ended, or is exported as if it had.
    Ended { is_unfinished: bool },
    /// Something about the span with this id.
    Of { span: SpanId, event: Event },
    /// A log record of somebody else's.
    Record,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Event {
    pub(super) state: State,
    pub(super) name: Cow<'static, str>,
    /// A log record has it.
    pub(super) sequence: Option<u64>,
    /// A pending span has one of its own.
    pub(super) own_id: Option<SpanId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Open,
    Rename,
    Unfinished,
}

pub(super) fn read(items: &Items) -> Vec<Said> {
    match items {
        Items::Spans(spans) => spans.iter().map(of_span).collect(),
        #[cfg(feature = "logs")]
        Items::Logs(logs) => logs.iter().map(of_log).collect(),
        #[cfg(feature = "metric-reader")]
        Items::Metrics(_) => panic!("nothing is measured"),
    }
}

fn of_span(span: &SpanData) -> Said {
    let is_unfinished = text(span, UNFINISHED_ATTRIBUTE).is_some();
    if text(span, "logfire.span_type").as_deref() != Some("pending_span") {
        return Said::Ended { is_unfinished };
    }
    assert_eq!(span.start_time, span.end_time, "it is of no length");
    Said::Of {
        span: span.parent_span_id,
        event: Event {
            state: match is_unfinished {
                true => State::Unfinished,
                false => State::Open,
            },
            name: span.name.clone(),
            sequence: None,
            own_id: Some(span.span_context.span_id()),
        },
    }
}

fn text(span: &SpanData, key: &str) -> Option<String> {
    let mut attributes = span.attributes.iter();
    let found = attributes.find(|attribute| attribute.key.as_str() == key);
    found.map(|attribute| attribute.value.to_string())
}

#[cfg(feature = "logs")]
fn of_log(log: &LogData) -> Said {
    let record = &log.record;
    if record.event_name() != Some(OPEN_EVENT_NAME) {
        return Said::Record;
    }
    let find = |key: &str| {
        let mut attributes = record.attributes_iter();
        let found = attributes.find(|(found, _)| found.as_str() == key);
        found.map(|(_, value)| value.clone())
    };
    let text = |key: &str| match find(key) {
        Some(AnyValue::String(text)) => Some(text.to_string()),
        _ => None,
    };
    let state = match text("span.state").as_deref() {
        Some("open") => State::Open,
        Some("rename") => State::Rename,
        Some("unfinished") => State::Unfinished,
        other => panic!("not a state: {other:?}"),
    };
    assert_eq!(
        text(UNFINISHED_ATTRIBUTE).is_some(),
        state == State::Unfinished
    );
    let Some(AnyValue::Int(sequence)) = find("span.sequence") else {
        panic!("each has its sequence");
    };
    let context = record.trace_context().expect("each has the real ids");
    Said::Of {
        span: context.span_id,
        event: Event {
            state,
            name: text("span.name").expect("each has the name").into(),
            sequence: u64::try_from(sequence).ok(),
            own_id: None,
        },
    }
}
