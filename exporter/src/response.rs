//! What a collector says with a success, pure: how much of a request it did not take.

use crate::encode::Encoding;
use opentelemetry_http::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;

/// How much of a request was not taken, and what the collector says to that. The default is a success in full.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PartialSuccess {
    /// Spans, log records or data points. As the collector has it: it may be more than it was sent.
    pub(crate) rejected: usize,
    /// Empty when there is nothing to say.
    pub(crate) message: String,
}

/// A body that is no OTLP response in the encoding of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Undecodable;

/// Reads the body of a successful response to a request in `encoding`, for any of the three signals. The three responses
/// differ in what they call the number: not at all as protobuf, by the field's name as JSON.
///
/// No bytes at all are a success in full, also as JSON. Fewer than none rejected are none, and a number that is too large
/// for this machine is the largest that is not.
pub(crate) fn partial_success(
    encoding: Encoding,
    body: &Bytes,
) -> Result<PartialSuccess, Undecodable> {
    match encoding {
        _ if body.is_empty() => Ok(PartialSuccess::default()),
        #[cfg(feature = "json")]
        Encoding::Json => json::partial_success(body),
        _ => protobuf(body),
    }
}

fn protobuf(body: &Bytes) -> Result<PartialSuccess, Undecodable> {
    let response = ExportTraceServiceResponse::decode(body.clone()).map_err(|_| Undecodable)?;
    let partial = response.partial_success.unwrap_or_default();
    Ok(PartialSuccess {
        rejected: count(partial.rejected_spans),
        message: partial.error_message,
    })
}

fn count(rejected: i64) -> usize {
    usize::try_from(rejected.max(0)).unwrap_or(usize::MAX)
}

#[cfg(feature = "json")]
mod json {
    use super::{PartialSuccess, Undecodable, count};
    use serde_json::Value;

    /// What each signal calls it.
    const REJECTED: [&str; 3] = ["rejectedSpans", "rejectedLogRecords", "rejectedDataPoints"];

    pub(super) fn partial_success(body: &[u8]) -> Result<PartialSuccess, Undecodable> {
        let response = match serde_json::from_slice(body) {
            Ok(Value::Object(response)) => response,
            _ => return Err(Undecodable),
        };
        let partial = match response.get("partialSuccess") {
            None | Some(Value::Null) => return Ok(PartialSuccess::default()),
            Some(Value::Object(partial)) => partial,
            Some(_) => return Err(Undecodable),
        };
        let rejected = REJECTED.iter().find_map(|name| partial.get(*name));
        let message = match partial.get("errorMessage") {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(message)) => message.clone(),
            Some(_) => return Err(Undecodable),
        };
        Ok(PartialSuccess {
            rejected: rejected.map_or(Ok(0), number)?,
            message,
        })
    }

    /// A 64-bit integer is a string, and a number is accepted, as in protobuf's mapping to JSON.
    fn number(value: &Value) -> Result<usize, Undecodable> {
        let number = match value {
            Value::Null => Some(0),
            Value::String(text) => text.parse().ok(),
            Value::Number(number) => number.as_i64(),
            _ => None,
        };
        number.map(count).ok_or(Undecodable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(feature = "json")]
    use proptest::prelude::*;

    #[track_caller]
    fn check(encoding: Encoding, body: &[u8], expected: Result<(usize, &str), Undecodable>) {
        let got = partial_success(encoding, &Bytes::copy_from_slice(body));
        let expected = expected.map(|(rejected, message)| PartialSuccess {
            rejected,
            message: message.to_owned(),
        });
        assert_eq!(got, expected, "{}", String::from_utf8_lossy(body));
    }

    /// Scenario: no bytes, in either encoding.
    /// Guarantees: a success in full. Collectors answer so, whatever they were sent.
    #[test]
    fn no_bytes_are_a_success_in_full() {
        check(Encoding::Protobuf, b"", Ok((0, "")));
        check(Encoding::Json, b"", Ok((0, "")));
    }

    /// Scenario: protobuf with and without a partial success, of a number that makes no sense, and text.
    /// Guarantees: numbers are those of the message, cut to what a number of items can be; text is undecodable.
    #[test]
    fn protobuf_says_how_many_were_rejected() {
        let partial = |rejected: i64, message: &str| {
            use opentelemetry_proto::tonic::collector::trace::v1::ExportTracePartialSuccess;
            ExportTraceServiceResponse {
                partial_success: Some(ExportTracePartialSuccess {
                    rejected_spans: rejected,
                    error_message: message.to_owned(),
                }),
            }
            .encode_to_vec()
        };
        let most = usize::try_from(i64::MAX).unwrap_or(usize::MAX);
        check(Encoding::Protobuf, &partial(3, "why"), Ok((3, "why")));
        check(Encoding::Protobuf, &partial(0, "hm"), Ok((0, "hm")));
        check(Encoding::Protobuf, &partial(-1, ""), Ok((0, "")));
        check(Encoding::Protobuf, &partial(i64::MAX, ""), Ok((most, "")));
        check(Encoding::Protobuf, b"<html>", Err(Undecodable));
    }

    /// Scenario: the responses to logs and metrics.
    /// Guarantees: they are read as that to spans is.
    #[cfg(all(feature = "logs", feature = "metric-export"))]
    #[test]
    fn protobuf_of_each_signal_is_read_alike() {
        use opentelemetry_proto::tonic::collector::{logs::v1 as logs, metrics::v1 as metrics};

        let logs = logs::ExportLogsServiceResponse {
            partial_success: Some(logs::ExportLogsPartialSuccess {
                rejected_log_records: 4,
                error_message: "logs".to_owned(),
            }),
        };
        let metrics = metrics::ExportMetricsServiceResponse {
            partial_success: Some(metrics::ExportMetricsPartialSuccess {
                rejected_data_points: 5,
                error_message: "metrics".to_owned(),
            }),
        };
        check(Encoding::Protobuf, &logs.encode_to_vec(), Ok((4, "logs")));
        check(
            Encoding::Protobuf,
            &metrics.encode_to_vec(),
            Ok((5, "metrics")),
        );
    }

    /// Scenario: JSON as collectors answer it, with numbers in both forms, nulls, fields from the future, and other things.
    /// Guarantees: what is a response is read, and nothing else is.
    #[cfg(feature = "json")]
    #[test]
    fn json_says_how_many_were_rejected() {
        let most = usize::try_from(i64::MAX).unwrap_or(usize::MAX);
        let largest = format!(r#"{{"partialSuccess":{{"rejectedSpans":"{}"}}}}"#, i64::MAX);
        let cases = [
            ("{}", Ok((0, ""))),
            (r#"{"partialSuccess":null}"#, Ok((0, ""))),
            (r#" {"partialSuccess" : {} }"#, Ok((0, ""))),
            (
                r#"{"partialSuccess":{"rejectedSpans":"3","errorMessage":"why"}}"#,
                Ok((3, "why")),
            ),
            (
                r#"{"partialSuccess":{"rejectedLogRecords":4}}"#,
                Ok((4, "")),
            ),
            (
                r#"{"partialSuccess":{"rejectedDataPoints":"5"}}"#,
                Ok((5, "")),
            ),
            (r#"{"partialSuccess":{"rejectedSpans":null}}"#, Ok((0, ""))),
            (r#"{"partialSuccess":{"rejectedSpans":"-2"}}"#, Ok((0, ""))),
            (&largest, Ok((most, ""))),
            (
                r#"{"future":[1],"partialSuccess":{"errorMessage":"hm","future":{}}}"#,
                Ok((0, "hm")),
            ),
            (
                r#"{"partialSuccess":{"rejectedSpans":"x"}}"#,
                Err(Undecodable),
            ),
            (
                r#"{"partialSuccess":{"rejectedSpans":[]}}"#,
                Err(Undecodable),
            ),
            (r#"{"partialSuccess":{"errorMessage":1}}"#, Err(Undecodable)),
            (r#"{"partialSuccess":1}"#, Err(Undecodable)),
            ("null", Err(Undecodable)),
            ("<html>", Err(Undecodable)),
            (r#"{"partialSuccess":{}"#, Err(Undecodable)),
        ];
        for (body, expected) in cases {
            check(Encoding::Json, body.as_bytes(), expected);
        }
    }

    #[cfg(feature = "json")]
    proptest! {
        /// Scenario: a partial success of any number and any message, as JSON has it, and the same cut anywhere.
        /// Guarantees: number and message are read as they are; what is cut is undecodable.
        #[test]
        fn any_partial_success_is_read_and_none_that_is_cut(
            rejected in any::<i64>(),
            message in any::<String>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let partial = serde_json::json!({
                "rejectedSpans": rejected.to_string(),
                "errorMessage": message,
            });
            let whole = serde_json::json!({ "partialSuccess": partial }).to_string();
            check(Encoding::Json, whole.as_bytes(), Ok((count(rejected), &message)));
            let cut = &whole.as_bytes()[..cut.index(whole.len())];
            let expected = if cut.is_empty() { Ok((0, "")) } else { Err(Undecodable) };
            check(Encoding::Json, cut, expected);
        }
    }

    /// Scenario: brackets in brackets, a hundred thousand deep.
    /// Guarantees: undecodable, and no overflow of the stack.
    #[cfg(feature = "json")]
    #[test]
    fn deeply_nested_json_is_undecodable() {
        check(
            Encoding::Json,
            "[".repeat(100_000).as_bytes(),
            Err(Undecodable),
        );
    }
}
