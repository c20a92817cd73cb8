//! One request without spans, and what its answer says about endpoint, path and credentials.

use crate::delivery::{Body, Delivery, Sent};
use crate::error::{CheckError, TransportError, refuses_credentials};
use http::StatusCode;
use opentelemetry::Context;
use opentelemetry_http::Bytes;

pub(crate) async fn check(delivery: &Delivery) -> Result<(), CheckError> {
    let cx = Context::current();
    // A request message without a single field is no bytes at all.
    let empty = Body {
        bytes: Bytes::new(),
        gzip: false,
    };
    let authorization = delivery.authorization(&cx);
    let sent = delivery
        .send(&cx, &empty, authorization, delivery.timeout())
        .await;
    let endpoint = delivery.endpoint().to_string();
    match sent {
        Sent::Answered(response) => {
            let result = judge(endpoint, response.status());
            if result.is_err() {
                delivery.log_body(&response);
            }
            result
        }
        Sent::TimedOut => Err(CheckError::Timeout {
            endpoint,
            timeout: delivery.timeout().unwrap_or_default(),
        }),
        Sent::Failed(error) => Err(CheckError::Endpoint {
            endpoint,
            source: TransportError::new(&error),
        }),
    }
}

fn judge(endpoint: String, status: StatusCode) -> Result<(), CheckError> {
    match status {
        status if status.is_success() => Ok(()),
        status if refuses_credentials(status) => Err(CheckError::Credentials { endpoint, status }),
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
            Err(CheckError::Path { endpoint, status })
        }
        status => Err(CheckError::Status { endpoint, status }),
    }
}
