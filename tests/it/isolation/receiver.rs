//! One receiver for all cases: it sees the token of each request, and the marks of each span.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, mpsc};

use axum::Router;
use axum::body::Bytes;
use axum::extract::Path;
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;

/// The attribute that says which span this is.
pub(super) const NUMBER: &str = "test.number";

/// One request.
#[derive(Clone, Debug)]
pub(super) struct Arrived {
    /// The value of `authorization`.
    pub(super) token: Option<String>,
    pub(super) spans: Vec<ArrivedSpan>,
}

#[derive(Clone, Debug)]
pub(super) struct ArrivedSpan {
    pub(super) number: usize,
    /// Its `per_request.late`.
    pub(super) late: Option<String>,
}

/// By case.
static INBOX: Mutex<Option<HashMap<u64, Vec<Arrived>>>> = Mutex::new(None);

/// Where the spans of this case go.
pub(super) fn endpoint(case: u64) -> String {
    static ADDRESS: OnceLock<String> = OnceLock::new();
    format!("{}/{case}", ADDRESS.get_or_init(start))
}

/// What arrived for this case.
pub(super) fn take(case: u64) -> Vec<Arrived> {
    let mut inbox = INBOX.lock().unwrap();
    inbox
        .as_mut()
        .and_then(|all| all.remove(&case))
        .unwrap_or_default()
}

/// Starts it, for as long as the process lives.
fn start() -> String {
    let (address, bound) = mpsc::channel();
    let serve = async move {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        address.send(listener.local_addr().unwrap()).unwrap();
        let app = Router::new().route("/{case}/v1/traces", post(receive));
        axum::serve(listener, app).await.unwrap();
    };
    std::thread::spawn(move || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(serve);
    });
    format!("http://{}", bound.recv().unwrap())
}

async fn receive(Path(case): Path<u64>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    let token = headers.get(header::AUTHORIZATION);
    let arrived = Arrived {
        token: token.map(|token| token.to_str().unwrap().to_owned()),
        spans: request
            .resource_spans
            .iter()
            .flat_map(|resource| &resource.scope_spans)
            .flat_map(|scope| &scope.spans)
            .map(ArrivedSpan::new)
            .collect(),
    };
    let mut inbox = INBOX.lock().unwrap();
    inbox
        .get_or_insert_default()
        .entry(case)
        .or_default()
        .push(arrived);
    StatusCode::OK
}

impl ArrivedSpan {
    fn new(span: &Span) -> Self {
        let Some(Value::IntValue(number)) = attribute(span, NUMBER) else {
            panic!("not a span of this test: {span:?}");
        };
        let late = attribute(span, "per_request.late").map(|late| match late {
            Value::StringValue(reason) => reason.clone(),
            other => panic!("not a reason: {other:?}"),
        });
        Self {
            number: usize::try_from(*number).unwrap(),
            late,
        }
    }
}

fn attribute<'a>(span: &'a Span, key: &str) -> Option<&'a Value> {
    let attribute = span.attributes.iter().find(|kv| kv.key == key)?;
    attribute.value.as_ref()?.value.as_ref()
}
