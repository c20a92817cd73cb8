//! What can go wrong, by operation: building ([`ConfigError`]), checking ([`CheckError`]), exporting.

use crate::redact;
use crate::signal::Signal;
use crate::stats::FailureReason;
use http::StatusCode;
use opentelemetry_http::HttpError;
use opentelemetry_sdk::error::OTelSdkError;
use std::time::Duration;
use thiserror::Error;

/// A setting made in code that cannot work, found by [`DirectExporterBuilder::build`](crate::DirectExporterBuilder::build).
///
/// Settings from the environment never cause one: an unusable value there is warned about and ignored. No message holds
/// a header value, or credentials of a URL.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The endpoint is not an absolute `http` or `https` URL without user info.
    #[error("invalid endpoint {endpoint:?}: {reason}")]
    InvalidEndpoint {
        /// The endpoint, without user info and query.
        endpoint: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A header's name has characters that HTTP does not allow there.
    #[error("invalid header name {name:?}")]
    InvalidHeaderName {
        /// The name.
        name: String,
    },
    /// A header's value is empty or has characters that HTTP does not allow there.
    #[error("invalid value for header {name:?}")]
    InvalidHeaderValue {
        /// The name of the header; its value may be a secret.
        name: String,
    },
    /// A header that the exporter sets itself, because it describes the body.
    #[error("header {name:?} is set by the exporter")]
    ReservedHeader {
        /// The name.
        name: String,
    },
    /// `with_max_request_bytes(0)`: nothing would ever fit.
    #[error("max_request_bytes is 0, so nothing would fit")]
    ZeroMaxRequestBytes,
    /// A retry policy without a single attempt.
    #[error("retry policy allows 0 attempts")]
    NoAttempts,
    /// A retry policy whose first backoff is above its largest.
    #[error("initial backoff {initial:?} is above the maximum backoff {max:?}")]
    BackoffOutOfOrder {
        /// The first backoff.
        initial: Duration,
        /// The largest backoff.
        max: Duration,
    },
    /// Gzip was asked for, but the feature `gzip` is off.
    #[error("gzip compression needs the feature `gzip`")]
    GzipUnavailable,
    /// JSON was asked for, but the feature `json` is off.
    #[error("encoding as JSON needs the feature `json`")]
    JsonUnavailable,
    /// No endpoint was given for any signal, and this is a Cloudflare Worker, where there is none by default.
    #[error(
        "no endpoint: set the variable OTEL_EXPORTER_OTLP_ENDPOINT of the Worker and call with_worker_env, or call with_endpoint"
    )]
    NoEndpoint,
    /// No client was given, and no feature that brings a default one is on.
    #[error(
        "no HTTP client: call with_http_client, or turn on feature `reqwest`, `hyper` or `reqwest-blocking`"
    )]
    NoHttpClient,
    /// An endpoint is `https`, and the default client cannot speak it.
    #[error(
        "the default HTTP client cannot speak https: turn on feature `tls` together with `reqwest` or `reqwest-blocking`, or call with_http_client"
    )]
    HttpsUnavailable,
    /// The default client could not be made.
    #[error("the default HTTP client could not be made")]
    HttpClient(#[source] HttpError),
}

/// What does not work, as found by [`check`](crate::ExporterHandle::check).
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CheckError {
    /// There is no endpoint for this signal. Only in a Cloudflare Worker, where there is none by default.
    #[error("no endpoint is set for {signal}")]
    NoEndpoint {
        /// What was to be checked.
        signal: Signal,
    },
    /// Nothing answered: the name does not resolve, the connection is refused or breaks, or TLS fails.
    #[error("endpoint {endpoint} cannot be reached")]
    Endpoint {
        /// The endpoint, without its query.
        endpoint: String,
        /// What the HTTP client said.
        source: TransportError,
    },
    /// No answer within the exporter's timeout.
    #[error("endpoint {endpoint} did not answer within {timeout:?}")]
    Timeout {
        /// The endpoint, without its query.
        endpoint: String,
        /// The exporter's timeout.
        timeout: Duration,
    },
    /// Something answered that does not know this path: 404 or 405.
    #[error("path of {endpoint} is not an OTLP {signal} receiver: {status}")]
    Path {
        /// What was checked.
        signal: Signal,
        /// The endpoint, without its query.
        endpoint: String,
        /// The answer.
        status: StatusCode,
    },
    /// The credentials are missing, wrong, or not allowed to write: 401 or 403.
    #[error("credentials are not accepted by {endpoint}: {status}")]
    Credentials {
        /// The endpoint, without its query.
        endpoint: String,
        /// The answer.
        status: StatusCode,
    },
    /// Any other answer that is no success. Redirects are among them, because they are not followed.
    #[error("{endpoint} answered {status}")]
    Status {
        /// The endpoint, without its query.
        endpoint: String,
        /// The answer.
        status: StatusCode,
    },
}

/// A request that got no usable answer, in the HTTP client's words with credentials taken out of URLs.
#[derive(Clone, Debug, Error)]
#[error("{text}")]
pub struct TransportError {
    text: String,
}

/// Why some of one export, or all of it, did not arrive.
#[derive(Debug, Error)]
pub(crate) enum ExportError {
    #[error("exporter is shut down")]
    AlreadyShutdown,
    #[error("no endpoint is set for {0}")]
    NoEndpoint(Signal),
    #[error("{count} of {of} {} are each larger than a request of {max_bytes} bytes", signal.items())]
    TooLarge {
        signal: Signal,
        count: usize,
        of: usize,
        max_bytes: usize,
    },
    #[error("not sent: credentials were refused, next try in {remaining:?}")]
    CircuitOpen { remaining: Duration },
    #[error("collector answered {status} to attempt {attempts}")]
    Status { status: StatusCode, attempts: u32 },
    #[error(
        "collector answered {status} and asked for {asked:?} of patience, more than is left of {max:?}"
    )]
    Throttled {
        status: StatusCode,
        asked: Duration,
        max: Duration,
    },
    #[error("attempt {attempts} got no response")]
    Transport {
        source: TransportError,
        attempts: u32,
    },
    #[error("response is larger than {max_bytes} bytes")]
    ResponseTooLarge { max_bytes: usize },
    #[error("no response within {0:?}")]
    Timeout(Duration),
    #[error("collector rejected {rejected} of {of} {}", signal.items())]
    Rejected {
        signal: Signal,
        rejected: usize,
        of: usize,
    },
}

// ===== impl TransportError =====

impl TransportError {
    pub(crate) fn new(error: &HttpError) -> Self {
        Self {
            text: redact::error_chain(error.as_ref()),
        }
    }

    #[cfg(target_family = "wasm")]
    pub(crate) fn from_text(text: &str) -> Self {
        Self {
            text: redact::message(text),
        }
    }
}

// ===== impl ExportError =====

impl ExportError {
    pub(crate) fn reason(&self) -> FailureReason {
        match self {
            Self::AlreadyShutdown => FailureReason::AlreadyShutdown,
            Self::NoEndpoint(_) => FailureReason::NoEndpoint,
            Self::TooLarge { .. } => FailureReason::TooLarge,
            Self::CircuitOpen { .. } => FailureReason::CircuitOpen,
            Self::Status { status, .. } if refuses_credentials(*status) => {
                FailureReason::Unauthorized
            }
            Self::Status { .. } => FailureReason::Status,
            Self::Throttled { .. } => FailureReason::Throttled,
            Self::Transport { .. } => FailureReason::Transport,
            Self::ResponseTooLarge { .. } => FailureReason::ResponseTooLarge,
            Self::Timeout(_) => FailureReason::Timeout,
            Self::Rejected { .. } => FailureReason::Rejected,
        }
    }

    /// The same, for a collector that asked for more patience than there is.
    pub(crate) fn throttled(self, asked: Duration, max: Duration) -> Self {
        match self {
            Self::Status { status, .. } => Self::Throttled { status, asked, max },
            other => other,
        }
    }

    pub(crate) fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Status { status, .. } | Self::Throttled { status, .. } => Some(*status),
            _ => None,
        }
    }
}

/// The message with its causes, for logs and for the SDK's error, which holds no source.
pub(crate) fn describe(error: &ExportError) -> String {
    redact::error_chain(error)
}

pub(crate) fn refuses_credentials(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

/// The one place where our errors become the SDK's.
pub(crate) fn to_sdk(errors: &[ExportError]) -> Result<(), OTelSdkError> {
    match errors {
        [] => Ok(()),
        [ExportError::AlreadyShutdown] => Err(OTelSdkError::AlreadyShutdown),
        [ExportError::Timeout(timeout)] => Err(OTelSdkError::Timeout(*timeout)),
        errors => {
            let texts: Vec<_> = errors.iter().map(describe).collect();
            Err(OTelSdkError::InternalFailure(texts.join("; ")))
        }
    }
}
