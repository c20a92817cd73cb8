//! One request that holds nothing, and what its answer says about endpoint, path and credentials.

use crate::delivery::{Body, Delivery, Sent};
use crate::encode::Encoding;
use crate::error::{CheckError, TransportError, refuses_credentials};
use crate::signal::Signal;
use http::StatusCode;
use opentelemetry::Context;
use opentelemetry_http::Bytes;

pub(crate) async fn check(
    signal: Signal,
    delivery: &Delivery,
    encoding: Encoding,
) -> Result<(), CheckError> {
    let cx = Context::current();
    // A request message without a single field.
    let empty = Body {
        bytes: Bytes::from_static(match encoding {
            Encoding::Protobuf => b"",
            Encoding::Json => b"{}",
        }),
        gzip: false,
    };
    let authorization = delivery.authorization(&cx);
    let sent = delivery
        .send(&cx, &empty, authorization, delivery.timeout())
        .await;
    let endpoint = delivery.endpoint().to_string();
    match sent {
        Sent::Answered(response) => {
            let result = judge(signal, endpoint, response.status());
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

fn judge(signal: Signal, endpoint: String, status: StatusCode) -> Result<(), CheckError> {
    match status {
        status if status.is_success() => Ok(()),
        status if refuses_credentials(status) => Err(CheckError::Credentials { endpoint, status }),
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => Err(CheckError::Path {
            signal,
            endpoint,
            status,
        }),
        status => Err(CheckError::Status { endpoint, status }),
    }
}
