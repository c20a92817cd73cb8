//! What [`TokenClient`](super::TokenClient) is to HTTP, for gRPC.

use crate::credentials::ExportToken;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::{Request, Status};

/// A tonic interceptor that sends the [`ExportToken`] of the current context as `authorization`.
///
/// The token is read at each call and replaces one that is already there. Without a token in the context, the call is
/// passed on as it is. It never fails a call.
///
/// ```
/// use opentelemetry_otlp_direct::TokenInterceptor;
/// use tonic::service::Interceptor;
///
/// fn interceptor() -> impl Interceptor + Clone + Send + Sync + 'static {
///     TokenInterceptor::new() // opentelemetry_otlp: .with_tonic().with_interceptor(…)
/// }
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct TokenInterceptor {
    _private: (),
}

// ===== impl TokenInterceptor =====

impl TokenInterceptor {
    /// An interceptor; all of them are the same.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Interceptor for TokenInterceptor {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let token = ExportToken::current_header();
        // Every token was checked to be visible ASCII when it was made.
        let token = token.and_then(|token| AsciiMetadataValue::try_from(token.as_bytes()).ok());
        if let Some(mut token) = token {
            token.set_sensitive(true);
            request.metadata_mut().insert("authorization", token);
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::Context;

    /// Scenario: a call inside and outside a context with a token, with a static credential on it.
    /// Guarantees: the token wins inside; outside the call stays as it is; the value is marked sensitive.
    #[test]
    fn token_of_the_context_is_sent() -> Result<(), Box<dyn std::error::Error>> {
        let intercept = || {
            let mut request = Request::new(());
            let fixed = AsciiMetadataValue::from_static("static");
            request.metadata_mut().insert("authorization", fixed);
            TokenInterceptor::new().call(request)
        };
        let sent = |request: &Request<()>| request.metadata().get("authorization").cloned();
        assert_eq!(
            sent(&intercept()?),
            Some(AsciiMetadataValue::from_static("static"))
        );

        let _guard = ExportToken::new("t")?.attach_to(&Context::new()).attach();
        let token = sent(&intercept()?).ok_or("no credential")?;
        assert_eq!(token, "Bearer t");
        assert!(token.is_sensitive());
        Ok(())
    }
}
