//! What a collector may answer, through a whole export: any status, `Retry-After` and body, and no answer at all.

use super::Input;
use super::encoding::plain_span;
use crate::{DirectExporter, Encoding, RetryPolicy};
use async_trait::async_trait;
use futures_util::FutureExt as _;
use http::{Request, Response, header};
use opentelemetry_http::{Bytes, HttpClient, HttpError, ResponseBodyTooLarge};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_sdk::trace::SpanExporter;
use prost::Message;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[derive(Clone, Debug)]
enum Answer {
    Response {
        status: u16,
        retry_after: Option<&'static str>,
        body: Vec<u8>,
    },
    Broken,
    TooLarge,
}

/// One request as the collector got it, and what it answered.
#[derive(Debug)]
struct Call {
    encoding: Encoding,
    body: Bytes,
    answer: Answer,
}

/// Answers as it is told, and notes it. Without anything left to answer, it takes everything.
#[derive(Clone, Debug, Default)]
struct Collector {
    answers: Arc<Mutex<VecDeque<Answer>>>,
    calls: Arc<Mutex<Vec<Call>>>,
}

/// The first bytes say how many spans there are, how many attempts they get, how large a request may be, and how it is
/// encoded; then come the answers.
///
/// The export ends; every span is counted once, as the collector's answers say; only what may be is sent again; and the
/// result is `Ok` exactly if everything arrived.
pub fn property(data: &[u8]) {
    let mut input = Input(data);
    let given = usize::from(input.below(12));
    let attempts = u32::from(input.below(4)) + 1;
    let shape = usize::from(input.byte());
    let max_request_bytes = [usize::MAX, 60, 120, 240][shape % 4];
    // As text it is several times as long.
    let (encoding, max_request_bytes) = match shape / 4 % 2 {
        1 if cfg!(feature = "json") => (Encoding::Json, max_request_bytes.saturating_mul(5)),
        _ => (Encoding::Protobuf, max_request_bytes),
    };
    let collector = Collector::default();
    while !input.is_empty() {
        let answer = answer(&mut input);
        collector.answers.lock().unwrap().push_back(answer);
    }
    let no_time = Duration::ZERO;
    let policy = RetryPolicy::default()
        .with_max_attempts(attempts)
        .with_backoff(no_time, no_time)
        .with_max_retry_after(no_time);
    let exporter = DirectExporter::builder()
        .with_env_lookup(|_| None)
        .with_http_client(collector.clone())
        .with_retry_policy(policy)
        .with_timeout(no_time)
        .with_encoding(encoding)
        .with_max_request_bytes(max_request_bytes)
        .build()
        .unwrap();

    let spans = (0..given).map(|n| plain_span(format!("span {n}")));
    let result = wait_for(exporter.export(spans.collect()));

    let calls = std::mem::take(&mut *collector.calls.lock().unwrap());
    let exported: usize = calls.iter().map(Call::exported).sum();
    let stats = exporter.stats();
    assert_eq!(stats.exported(), exported as u64, "{calls:?}");
    assert_eq!(
        stats.failed_in_total(),
        (given - exported) as u64,
        "{calls:?}"
    );
    assert_eq!(stats.in_flight(), 0);
    assert_eq!(stats.attempts(), calls.len() as u64);
    assert_eq!(result.is_ok(), exported == given, "{result:?}");
    for request in calls.chunk_by(|one, next| one.body == next.body) {
        assert!(request.len() <= attempts as usize);
        let (_, before) = request.split_last().unwrap();
        assert!(before.iter().all(Call::may_be_sent_again), "{request:?}");
    }
}

fn answer(input: &mut Input<'_>) -> Answer {
    const STATUSES: [u16; 14] = [
        200, 200, 200, 204, 206, 301, 400, 401, 403, 408, 429, 502, 503, 504,
    ];
    let status = match input.below(17) {
        14 => return Answer::Broken,
        15 => return Answer::TooLarge,
        16 => u16::from(input.byte()) * 3 + 100,
        known => STATUSES[usize::from(known)],
    };
    let retry_after = match input.below(8) {
        0 => Some("0"),
        1 => Some("1"),
        2 => Some("Thu, 01 Jan 1970 00:00:00 GMT"),
        3 => Some("99999999999999999999999999"),
        4 => Some("soon"),
        _ => None,
    };
    let len = usize::from(input.byte());
    let body = input.piece(len).to_vec();
    let body = match input.byte() {
        // Beyond what is looked at.
        0xfe => body.repeat(5 << 20 >> 8),
        _ => body,
    };
    Answer::Response {
        status,
        retry_after,
        body,
    }
}

/// Polls it without a runtime. What it waits for takes no time.
pub(super) fn wait_for<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    loop {
        match future.as_mut().now_or_never() {
            Some(value) => return value,
            None => std::thread::yield_now(),
        }
    }
}

// ===== impl Collector =====

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let nothing = Answer::Response {
            status: 200,
            retry_after: None,
            body: Vec::new(),
        };
        let answer = self.answers.lock().unwrap().pop_front();
        let answer = answer.unwrap_or(nothing);
        let content_type = request.headers()[header::CONTENT_TYPE].to_str()?;
        let encoding = match content_type {
            "application/json" => Encoding::Json,
            _ => Encoding::Protobuf,
        };
        self.calls.lock().unwrap().push(Call {
            encoding,
            body: request.into_body(),
            answer: answer.clone(),
        });
        match answer {
            Answer::Broken => Err("the connection broke".into()),
            Answer::TooLarge => Err(Box::new(ResponseBodyTooLarge::new())),
            Answer::Response {
                status,
                retry_after,
                body,
            } => {
                let mut response = Response::builder().status(status);
                if let Some(retry_after) = retry_after {
                    response = response.header(header::RETRY_AFTER, retry_after);
                }
                Ok(response.body(body.into())?)
            }
        }
    }
}

// ===== impl Call =====

impl Call {
    fn may_be_sent_again(&self) -> bool {
        match self.answer {
            Answer::Broken => true,
            Answer::TooLarge => false,
            Answer::Response { status, .. } => [429, 502, 503, 504].contains(&status),
        }
    }

    /// How many spans the collector took, by its answer; more than it was given it cannot have refused.
    fn exported(&self) -> usize {
        let Answer::Response { status, body, .. } = &self.answer else {
            return 0;
        };
        if !(200..300).contains(status) {
            return 0;
        }
        let given = self.spans();
        let looked_at = Some(body).filter(|body| body.len() <= 4 << 20);
        let rejected = looked_at.and_then(|body| match self.encoding {
            Encoding::Protobuf => rejected_in_protobuf(body),
            Encoding::Json => rejected_in_json(body),
        });
        given - rejected.unwrap_or(0).clamp(0, given as i64) as usize
    }

    fn spans(&self) -> usize {
        if self.encoding == Encoding::Json {
            // Each has exactly one.
            let text = String::from_utf8(self.body.to_vec()).unwrap();
            return text.matches("\"spanId\"").count();
        }
        let request = ExportTraceServiceRequest::decode(self.body.clone()).unwrap();
        let resources = request.resource_spans.iter();
        let scopes = resources.flat_map(|resource| &resource.scope_spans);
        scopes.map(|scope| scope.spans.len()).sum()
    }
}

fn rejected_in_protobuf(body: &[u8]) -> Option<i64> {
    let response = ExportTraceServiceResponse::decode(body).ok()?;
    Some(response.partial_success?.rejected_spans)
}

#[cfg(not(feature = "json"))]
fn rejected_in_json(_: &[u8]) -> Option<i64> {
    None
}

/// What is not as it should be makes the whole answer one that says nothing.
#[cfg(feature = "json")]
fn rejected_in_json(body: &[u8]) -> Option<i64> {
    use serde_json::Value;

    let response: Value = serde_json::from_slice(body).ok()?;
    let partial = response.as_object()?.get("partialSuccess")?.as_object()?;
    let message = partial.get("errorMessage").unwrap_or(&Value::Null);
    if !message.is_null() && !message.is_string() {
        return None;
    }
    match partial.get("rejectedSpans")? {
        Value::String(text) => text.parse().ok(),
        number => number.as_i64(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTracePartialSuccess;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// A response as a collector would write it, whatever it says, and the same broken off or with wrong bytes in it.
    fn body() -> impl Strategy<Value = Vec<u8>> {
        let rejected = prop_oneof![
            0_i64..16,
            any::<i64>(),
            Just(i64::MAX),
            Just(i64::MIN),
            Just(-1)
        ];
        let whole = (rejected, "[a-z ]{0,20}").prop_map(|(rejected_spans, error_message)| {
            let partial = ExportTracePartialSuccess {
                rejected_spans,
                error_message,
            };
            let partial_success = Some(partial);
            ExportTraceServiceResponse { partial_success }.encode_to_vec()
        });
        let cut = (whole.clone(), any::<prop::sample::Index>()).prop_map(|(mut body, at)| {
            body.truncate(at.index(body.len() + 1));
            body
        });
        let wrong = (whole.clone(), any::<prop::sample::Index>(), any::<u8>());
        let wrong = wrong.prop_map(|(mut body, at, byte)| {
            let at = at.index(body.len());
            body[at] = byte;
            body
        });
        // A group in a group in a group, which is as deep as a message can get without being long.
        let deep = Just([[0x0b].repeat(120), [0x0c].repeat(120)].concat());
        prop_oneof![
            4 => whole,
            2 => cut,
            2 => wrong,
            1 => deep,
            3 => json_body(),
            1 => vec(any::<u8>(), 0..60)
        ]
    }

    /// The same as text, with values that should not be there as well.
    fn json_body() -> impl Strategy<Value = Vec<u8>> {
        let value = prop_oneof![
            3 => (-3_i64..16).prop_map(|n| format!("\"{n}\"")),
            2 => (-3_i64..16).prop_map(|n| n.to_string()),
            1 => any::<i64>().prop_map(|n| format!("\"{n}\"")),
            1 => prop::sample::select(vec!["null", "\"\"", "1.5", "\"1.5\"", "[]", "{}", "true", "1e3"])
                .prop_map(str::to_owned),
        ];
        let message = prop::sample::select(vec!["\"no\"", "\"\"", "null", "1"]);
        (value, message, 0_u8..4).prop_map(|(value, message, shape)| {
            let partial = match shape {
                0 => format!(r#"{{"rejectedSpans":{value}}}"#),
                1 => format!(r#"{{"errorMessage":{message},"rejectedSpans":{value}}}"#),
                2 => format!(r#"{{"errorMessage":{message}}}"#),
                _ => value,
            };
            format!(r#"{{"partialSuccess":{partial}}}"#).into_bytes()
        })
    }

    fn answer() -> impl Strategy<Value = Vec<u8>> {
        let large = prop_oneof![20 => Just(0), 1 => Just(0xfe)];
        (0_u8..17, any::<u8>(), body(), large).prop_map(|(status, retry_after, body, large)| {
            match status {
                14 | 15 => vec![status],
                16 => vec![status, retry_after, retry_after, 0, 0],
                _ => [
                    &[status, retry_after, body.len() as u8],
                    body.as_slice(),
                    &[large],
                ]
                .concat(),
            }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(600))]

        /// Scenario: any sequence of answers: all kinds of status, broken connections, partial successes of any number, and
        /// bodies that are broken off, wrong, deep, long, or no message at all.
        /// Guarantees: the export ends, each span counts once and as the answer says, and only what may be is sent again.
        #[test]
        fn every_span_is_counted_once_whatever_the_collector_answers(
            head in any::<[u8; 3]>(),
            answers in vec(answer(), 0..12),
        ) {
            property(&[&head[..], &answers.concat()].concat());
        }
    }
}
