//! Requests and responses, whatever client they are of.

use ::http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body::Body;

use super::body::ClientBody;
use super::describe::record_rpc_status;
use crate::active::ChildSpan;

/// A request that goes out: an `http::Request`, or one of `reqwest` with that feature. For another client, implement it.
pub trait OutgoingRequest {
    /// The method.
    fn method(&self) -> &Method;
    /// The URL as it is called. `None` if it is no URI.
    fn uri(&self) -> Option<Uri>;
    /// The headers.
    fn headers(&self) -> &HeaderMap;
    /// The headers, to write the trace into.
    fn headers_mut(&mut self) -> &mut HeaderMap;
}

/// The answer to an [`OutgoingRequest`]: an `http::Response`, or one of `reqwest` with that feature. For another client,
/// implement it.
///
/// ```
/// use http::{HeaderMap, StatusCode};
/// use opentelemetry_per_request::client::{IncomingResponse, Rest};
///
/// struct Answer { status: StatusCode, headers: HeaderMap }
///
/// impl IncomingResponse for Answer {
///     type Traced = Self;
///
///     fn status(&self) -> StatusCode {
///         self.status
///     }
///
///     fn headers(&self) -> &HeaderMap {
///         &self.headers
///     }
///
///     fn traced(self, _rest: Rest) -> Self {
///         self
///     }
/// }
/// ```
pub trait IncomingResponse {
    /// What the caller gets: the response, with or without something around its body.
    type Traced;

    /// The status.
    fn status(&self) -> StatusCode;
    /// The headers.
    fn headers(&self) -> &HeaderMap;
    /// This response, with what is left of its call. Where nothing is done with that, the span ends here.
    fn traced(self, rest: Rest) -> Self::Traced;
}

/// What is left of a call whose head is there: of gRPC the span, until its status is there. Of any other call nothing.
/// When it is dropped, the span ends.
#[derive(Debug)]
pub struct Rest {
    span: Option<ChildSpan>,
}

impl Rest {
    pub(super) fn of(span: ChildSpan) -> Self {
        Self { span: Some(span) }
    }

    pub(super) fn nothing() -> Self {
        Self { span: None }
    }

    /// The body has ended, with trailers or without.
    pub(super) fn ended(&mut self, trailers: Option<&HeaderMap>) {
        if let Some(span) = self.span.take() {
            // A client makes up a status where a server sent none.
            let status = trailers.and_then(crate::grpc::status);
            record_rpc_status(&span, status.unwrap_or("UNKNOWN"));
        }
    }

    pub(super) fn failed(&mut self, error_type: &'static str) {
        if let Some(span) = self.span.take() {
            span.fail_with(error_type, "");
        }
    }

    pub(super) fn cut_off(&mut self) {
        if let Some(mut span) = self.span.take() {
            span.set_attribute("rpc.status_code", "CANCELLED");
            span.cancel();
        }
    }
}

impl<B> OutgoingRequest for Request<B> {
    fn method(&self) -> &Method {
        self.method()
    }

    fn uri(&self) -> Option<Uri> {
        Some(self.uri().clone())
    }

    fn headers(&self) -> &HeaderMap {
        self.headers()
    }

    fn headers_mut(&mut self) -> &mut HeaderMap {
        self.headers_mut()
    }
}

impl<B: Body> IncomingResponse for Response<B> {
    type Traced = Response<ClientBody<B>>;

    fn status(&self) -> StatusCode {
        self.status()
    }

    fn headers(&self) -> &HeaderMap {
        self.headers()
    }

    fn traced(self, rest: Rest) -> Self::Traced {
        self.map(|body| ClientBody::new(body, rest))
    }
}

#[cfg(all(feature = "reqwest", not(target_family = "wasm")))]
impl OutgoingRequest for reqwest::Request {
    fn method(&self) -> &Method {
        self.method()
    }

    fn uri(&self) -> Option<Uri> {
        self.url().as_str().parse().ok()
    }

    fn headers(&self) -> &HeaderMap {
        self.headers()
    }

    fn headers_mut(&mut self) -> &mut HeaderMap {
        self.headers_mut()
    }
}

#[cfg(all(feature = "reqwest", not(target_family = "wasm")))]
impl IncomingResponse for reqwest::Response {
    type Traced = Self;

    fn status(&self) -> StatusCode {
        self.status()
    }

    fn headers(&self) -> &HeaderMap {
        self.headers()
    }

    fn traced(self, _rest: Rest) -> Self {
        self
    }
}
