//! An HTTP client of the user's, called as it is.

use crate::support::{builder, check_account, context_with, export_under, spans};
use async_trait::async_trait;
use http::{Request, Response};
use opentelemetry::Context;
use opentelemetry_http::{Bytes, HttpClient, HttpError};
use opentelemetry_otlp_direct::ExportToken;
use opentelemetry_otlp_direct::FailureReason::Transport;
use std::sync::Mutex;
use std::thread::{self, ThreadId};

/// Where and under what it was called.
#[derive(Debug, PartialEq)]
struct Call {
    thread: ThreadId,
    suppressed: bool,
    has_token: bool,
}

static CALLS: Mutex<Vec<Call>> = Mutex::new(Vec::new());

#[derive(Debug)]
struct Noting;

#[async_trait]
impl HttpClient for Noting {
    async fn send_bytes(&self, _request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        CALLS.lock().unwrap().push(Call {
            thread: thread::current().id(),
            suppressed: Context::is_current_telemetry_suppressed(),
            has_token: ExportToken::from_context(&Context::current()).is_some(),
        });
        Ok(Response::new(Bytes::from(vec![0; (4 << 20) + 1])))
    }
}

#[derive(Debug)]
struct Failing;

#[async_trait]
impl HttpClient for Failing {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let uri = request.uri();
        Err(format!("cannot reach http://user:s3cret@host/x ({uri})").into())
    }
}

/// Scenario: the user's client is called for an export under a context with a token, and returns a huge body.
/// Guarantees: it runs on the calling thread, in the request's context, with telemetry suppressed, so that a client that
/// traces its own calls makes no endless loop; a success is one, whatever its body.
#[test]
fn client_is_called_as_it_is_under_the_context_with_telemetry_suppressed() {
    let exporter = builder("http://host")
        .with_http_client(Noting)
        .build()
        .unwrap();
    let token = ExportToken::new("t").unwrap();
    export_under(context_with(&token), &exporter, spans(1)).unwrap();
    let expected = Call {
        thread: thread::current().id(),
        suppressed: true,
        has_token: true,
    };
    assert_eq!(*CALLS.lock().unwrap(), [expected]);
    check_account(&exporter, 1, &[]);
}

/// Scenario: the client's own error text repeats credentials of URLs.
/// Guarantees: the export's error says what happened without them.
#[test]
fn error_of_the_client_loses_the_credentials_of_its_urls() {
    let exporter = builder("http://host?key=s3cret")
        .with_http_client(Failing)
        .build()
        .unwrap();
    let result = export_under(Context::new(), &exporter, spans(1));
    let error = result.unwrap_err().to_string();
    assert!(
        error.contains("cannot reach http://host/x (http://host/v1/traces)"),
        "{error}"
    );
    check_account(&exporter, 0, &[(Transport, 1)]);
}
