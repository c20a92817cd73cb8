//! What has happened to a span, as it arrived: read from the log records that tell of open spans, and from ended spans.

use demo::receiver::{Received, ReceivedLog};
use opentelemetry::trace::{SpanId, TraceId};
use opentelemetry_per_request::OPEN_EVENT_NAME;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;

use crate::client::token;
use crate::service::REQUEST_ATTRIBUTE;

/// A span.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Id {
    pub(super) trace: TraceId,
    pub(super) span: SpanId,
}

/// See the module. All times are in nanoseconds since the epoch.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Event {
    pub(super) id: Id,
    pub(super) parent: Option<SpanId>,
    pub(super) name: String,
    pub(super) what: What,
    /// The token that it came under.
    pub(super) token: String,
    /// The token of its request, if it says which one that is. A rename does not.
    pub(super) own: Option<String>,
    pub(super) arrived: u64,
}

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Open { sequence: i64, start: u64 },
    Rename { sequence: i64, at: u64 },
    Unfinished { at: u64 },
    Close { start: u64, end: u64, failed: bool },
}

impl Event {
    /// `None` if it tells of no span.
    pub(super) fn of_log(log: &ReceivedLog) -> Option<Self> {
        let record = &log.record;
        if record.event_name != OPEN_EVENT_NAME {
            return None;
        }
        let (at, sequence) = (record.time_unix_nano, log.number("span.sequence")?);
        let what = match log.attribute("span.state")? {
            "open" => What::Open {
                sequence,
                start: at,
            },
            "rename" => What::Rename { sequence, at },
            "unfinished" => What::Unfinished { at },
            _ => return None,
        };
        let parent = log.attribute("span.parent_span_id");
        Some(Self {
            id: id(&record.trace_id, &record.span_id)?,
            parent: parent.and_then(|parent| SpanId::from_hex(parent).ok()),
            name: log.attribute("span.name")?.to_owned(),
            what,
            token: log.token.clone(),
            own: own(log.attribute(REQUEST_ATTRIBUTE)),
            arrived: log.arrived,
        })
    }

    /// `None` if its ids are none.
    pub(super) fn of_span(received: &Received) -> Option<Self> {
        let span = &received.span;
        let status = span.status.as_ref();
        let parent = id(&span.trace_id, &span.parent_span_id);
        Some(Self {
            id: id(&span.trace_id, &span.span_id)?,
            parent: parent.map(|parent| parent.span),
            name: span.name.clone(),
            what: What::Close {
                start: span.start_time_unix_nano,
                end: span.end_time_unix_nano,
                failed: status.is_some_and(|status| status.code() == StatusCode::Error),
            },
            token: received.token.clone(),
            own: own(received.attribute(REQUEST_ATTRIBUTE)),
            arrived: received.arrived,
        })
    }
}

fn id(trace: &[u8], span: &[u8]) -> Option<Id> {
    let id = Id {
        trace: TraceId::from_bytes(trace.try_into().ok()?),
        span: SpanId::from_bytes(span.try_into().ok()?),
    };
    (id.trace != TraceId::INVALID && id.span != SpanId::INVALID).then_some(id)
}

fn own(request: Option<&str>) -> Option<String> {
    request?.parse().ok().map(token)
}

#[cfg(test)]
mod tests {
    use opentelemetry::Value;
    use opentelemetry_proto::tonic::common::v1::KeyValue;
    use opentelemetry_proto::tonic::logs::v1::LogRecord;
    use opentelemetry_proto::tonic::trace::v1::{Span, Status};

    use super::*;

    fn attribute(key: &str, value: impl Into<Value>) -> KeyValue {
        KeyValue {
            key: key.to_owned(),
            value: Some(value.into().into()),
            ..KeyValue::default()
        }
    }

    fn told(state: &'static str) -> ReceivedLog {
        ReceivedLog {
            record: LogRecord {
                event_name: "span.state".to_owned(),
                time_unix_nano: 5,
                trace_id: vec![1; 16],
                span_id: vec![2; 8],
                attributes: vec![
                    attribute("span.state", state),
                    attribute("span.name", "work"),
                    attribute("span.sequence", 3),
                    attribute("span.parent_span_id", "0404040404040404"),
                    attribute(REQUEST_ATTRIBUTE, "7"),
                ],
                ..LogRecord::default()
            },
            token: "some".to_owned(),
            arrived: 9,
        }
    }

    fn event(what: What) -> Event {
        Event {
            id: Id {
                trace: TraceId::from_bytes([1; 16]),
                span: SpanId::from_bytes([2; 8]),
            },
            parent: Some(SpanId::from_bytes([4; 8])),
            name: "work".to_owned(),
            what,
            token: "some".to_owned(),
            own: Some("token-7".to_owned()),
            arrived: 9,
        }
    }

    /// Scenario: a log record of each state of a span, one of a state that nobody knows, and an ordinary log record.
    /// Guarantees: the first three are what they say, and the others tell of no span.
    #[test]
    fn log_record_is_read_as_what_has_happened_to_its_span() {
        let read = |state| Event::of_log(&told(state));
        let (sequence, at) = (3, 5);
        assert_eq!(
            read("open"),
            Some(event(What::Open {
                sequence,
                start: at
            }))
        );
        assert_eq!(read("rename"), Some(event(What::Rename { sequence, at })));
        assert_eq!(read("unfinished"), Some(event(What::Unfinished { at })));
        assert_eq!(read("undead"), None);
        let mut line = told("open");
        line.record.event_name.clear();
        assert_eq!(Event::of_log(&line), None);
        let mut of_no_span = told("open");
        of_no_span.record.span_id.clear();
        assert_eq!(Event::of_log(&of_no_span), None);
    }

    /// Scenario: a span that has failed, and one without a parent or an error.
    /// Guarantees: both close, and only the first has failed and has a parent.
    #[test]
    fn ended_span_is_read_as_its_close() {
        let mut received = Received {
            span: Span {
                trace_id: vec![1; 16],
                span_id: vec![2; 8],
                parent_span_id: vec![4; 8],
                name: "work".to_owned(),
                start_time_unix_nano: 5,
                end_time_unix_nano: 8,
                attributes: vec![attribute(REQUEST_ATTRIBUTE, "7")],
                status: Some(Status {
                    code: StatusCode::Error.into(),
                    ..Status::default()
                }),
                ..Span::default()
            },
            token: "some".to_owned(),
            arrived: 9,
        };
        let close = |failed| What::Close {
            start: 5,
            end: 8,
            failed,
        };
        assert_eq!(Event::of_span(&received), Some(event(close(true))));
        (received.span.status, received.span.parent_span_id) = (None, Vec::new());
        let root = Event {
            parent: None,
            ..event(close(false))
        };
        assert_eq!(Event::of_span(&received), Some(root));
    }
}
