//! A client that adds the request's token to what another client sends.

use crate::credentials::ExportToken;
use async_trait::async_trait;
use http::{Request, Response, header};
use opentelemetry_http::{Bytes, HttpClient, HttpError};

/// An [`HttpClient`] that sends the [`ExportToken`] of the current context as `authorization`, through another client.
///
/// It gives per-request credentials to any exporter that takes an `HttpClient`, such as those of `opentelemetry-otlp`.
/// The token is read at each call, so it is the current one of each attempt, and replaces an `authorization` header that
/// is already there. Without a token in the context, the request is passed on as it is.
/// [`DirectExporter`](crate::DirectExporter) does this by itself and needs no `TokenClient`.
///
/// ```
/// use opentelemetry_http::HttpClient;
/// use opentelemetry_otlp_direct::TokenClient;
///
/// fn with_tokens(client: impl HttpClient + 'static) -> impl HttpClient {
///     TokenClient::new(client) // opentelemetry_otlp: .with_http().with_http_client(…)
/// }
/// ```
#[derive(Clone, Debug)]
pub struct TokenClient<C> {
    inner: C,
}

// ===== impl TokenClient =====

impl<C: HttpClient> TokenClient<C> {
    /// Sends through `inner`.
    pub fn new(inner: C) -> Self {
        Self { inner }
    }
}

#[async_trait]
impl<C: HttpClient> HttpClient for TokenClient<C> {
    async fn send_bytes(&self, mut request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        if let Some(token) = ExportToken::current_header() {
            request.headers_mut().insert(header::AUTHORIZATION, token);
        }
        self.inner.send_bytes(request).await
    }
}
