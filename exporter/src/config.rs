//! Settings: the builder, the endpoint, and how code, environment and defaults come together.

use crate::client;
use crate::delivery::{Delivery, Limits};
use crate::endpoint::Endpoint;
use crate::env::{self, Environment, Lookup};
use crate::error::ConfigError;
use crate::exporter::{DirectExporter, Shared};
use crate::log::log_warning;
use crate::redact;
use crate::retry::RetryPolicy;
use crate::telemetry::Telemetry;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use opentelemetry_http::HttpClient;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

const USER_AGENT: &str = concat!(
    "opentelemetry-otlp-direct/",
    env!("CARGO_PKG_VERSION"),
    " OTel-OTLP-Exporter-Rust/",
    env!("CARGO_PKG_VERSION"),
);

/// They describe the body, so they are the exporter's to set.
const RESERVED: [HeaderName; 4] = [
    header::CONTENT_TYPE,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
];

/// How request bodies are compressed. In environment variables: `none`, `gzip`, in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// Gzip, where it makes the body smaller. Needs the feature `gzip`.
    Gzip,
}

/// Settings for a [`DirectExporter`], made by [`DirectExporter::builder`].
///
/// What is set here wins over the environment, which wins over defaults. An environment variable that is empty is unset;
/// one that cannot be used is named in a warning and ignored.
#[must_use = "nothing is built before `build`"]
pub struct DirectExporterBuilder {
    endpoint: Option<String>,
    traces_endpoint: Option<String>,
    headers: Vec<(String, String)>,
    timeout: Option<Duration>,
    compression: Option<Compression>,
    retry: RetryPolicy,
    max_request_bytes: usize,
    circuit_cooldown: Duration,
    client: Option<Arc<dyn HttpClient>>,
    lookup: Box<Lookup>,
    #[cfg(feature = "metrics")]
    meter: Option<opentelemetry::metrics::Meter>,
}

// ===== impl DirectExporterBuilder =====

impl DirectExporterBuilder {
    pub(crate) fn new() -> Self {
        Self {
            endpoint: None,
            traces_endpoint: None,
            headers: Vec::new(),
            timeout: None,
            compression: None,
            retry: RetryPolicy::default(),
            max_request_bytes: DirectExporter::DEFAULT_MAX_REQUEST_BYTES,
            circuit_cooldown: DirectExporter::DEFAULT_CIRCUIT_COOLDOWN,
            client: None,
            lookup: Box::new(env::of_process),
            #[cfg(feature = "metrics")]
            meter: None,
        }
    }

    /// The base endpoint of a collector, to which `v1/traces` is appended behind its own path, with one slash.
    ///
    /// Default `http://localhost:4318`; in a Worker there is none. Variable: `OTEL_EXPORTER_OTLP_ENDPOINT`. A traces
    /// endpoint, where one is set in the same place or in code, wins.
    pub fn with_endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoint = Some(endpoint.into());
        self
    }

    /// The full URL to send traces to, used as it is. Variable: `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`.
    pub fn with_traces_endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.traces_endpoint = Some(endpoint.into());
        self
    }

    /// A header to send with each request; a second one of the same name replaces the first.
    ///
    /// An [`ExportToken`](crate::ExportToken) in the context of an export replaces `authorization`. Variables, whose
    /// other entries are sent as well: `OTEL_EXPORTER_OTLP_TRACES_HEADERS`, or else `OTEL_EXPORTER_OTLP_HEADERS`, as
    /// `name=value,name=value` with percent-encoded values.
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Many headers at once, each as with [`with_header`](Self::with_header).
    pub fn with_headers<N: Into<String>, V: Into<String>>(
        mut self,
        headers: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        let headers = headers.into_iter();
        self.headers
            .extend(headers.map(|(name, value)| (name.into(), value.into())));
        self
    }

    /// How long one export may take: all its attempts and the backoff between them. Zero is no limit.
    ///
    /// Time that the collector asks for with `Retry-After` comes on top, within
    /// [`RetryPolicy::with_max_retry_after`]; an attempt made after such a wait gets at least a second. Default 10 s.
    /// Variables, in milliseconds: `OTEL_EXPORTER_OTLP_TRACES_TIMEOUT`, `OTEL_EXPORTER_OTLP_TIMEOUT`.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How bodies are compressed. Default [`Compression::None`]. Variables: `OTEL_EXPORTER_OTLP_TRACES_COMPRESSION`,
    /// `OTEL_EXPORTER_OTLP_COMPRESSION`.
    pub fn with_compression(mut self, compression: Compression) -> Self {
        self.compression = Some(compression);
        self
    }

    /// When and how often a request is sent again.
    pub fn with_retry_policy(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }

    /// How large a request body may be, before and after compression. Default 64 MiB.
    ///
    /// A batch that is larger is sent in several requests. A single span that is larger is dropped, counted
    /// `too_large`, and said in the export's error.
    pub fn with_max_request_bytes(mut self, bytes: usize) -> Self {
        self.max_request_bytes = bytes;
        self
    }

    /// How long credentials are left alone after a 401 or 403. Default 30 s; zero never leaves them alone.
    ///
    /// Meanwhile exports under the same credentials fail at once and are counted `circuit_open`. Exports under other
    /// credentials are not affected, and neither are those of a token that has been updated.
    pub fn with_circuit_cooldown(mut self, cooldown: Duration) -> Self {
        self.circuit_cooldown = cooldown;
        self
    }

    /// The HTTP client to send with, in place of the default one.
    ///
    /// It is called as it is, on whatever thread polls the export: if it needs a runtime, one must be there. It should
    /// not follow redirects, and not read responses without a limit. The exporter drops its future when time is up.
    pub fn with_http_client(mut self, client: impl HttpClient + 'static) -> Self {
        self.client = Some(Arc::new(client));
        self
    }

    /// Where environment variables are looked up, in place of the process environment. It is called during `build` only.
    ///
    /// ```
    /// use opentelemetry_otlp_direct::DirectExporter;
    ///
    /// let builder = DirectExporter::builder().with_env_lookup(|_| None); // no environment at all
    /// ```
    pub fn with_env_lookup(mut self, lookup: impl Fn(&str) -> Option<String> + 'static) -> Self {
        self.lookup = Box::new(lookup);
        self
    }

    /// The environment is that of a Worker: its variables and secrets, under the names of the environment variables.
    ///
    /// They are read here, once. Numbers and booleans count as text. A binding of any other kind under one of these names
    /// is named in a warning and ignored; so is a secret of the Secrets Store, which cannot be read without waiting.
    /// This takes the place of [`with_env_lookup`](Self::with_env_lookup), and the later call wins.
    ///
    /// ```
    /// # #[cfg(target_family = "wasm")]
    /// # mod worker_only {
    /// use opentelemetry_otlp_direct::{ConfigError, DirectExporter};
    ///
    /// fn exporter(env: &worker::Env) -> Result<DirectExporter, ConfigError> {
    ///     DirectExporter::builder().with_worker_env(env).build()
    /// }
    /// # }
    /// ```
    #[cfg(target_family = "wasm")]
    pub fn with_worker_env(self, env: &worker::Env) -> Self {
        let bindings = crate::bindings::read(env);
        self.with_env_lookup(move |variable| bindings.get(variable).cloned())
    }

    /// Where the exporter's own metrics go, in place of the global meter provider.
    ///
    /// The global one is asked at the first export, so it may be set after this exporter is built.
    #[cfg(feature = "metrics")]
    pub fn with_meter_provider(
        mut self,
        provider: &impl opentelemetry::metrics::MeterProvider,
    ) -> Self {
        self.meter = Some(provider.meter(env!("CARGO_PKG_NAME")));
        self
    }

    /// Checks the settings together and makes the exporter. Sends nothing; see
    /// [`DirectExporter::check`] for that.
    ///
    /// # Errors
    ///
    /// A [`ConfigError`] for a value set in code that cannot work, when there is no HTTP client that can speak to the
    /// endpoint, and in a Worker when there is no endpoint. Never for what the environment says.
    pub fn build(self) -> Result<DirectExporter, ConfigError> {
        let env = Environment::read(&self.lookup);
        for complaint in &env.complaints {
            log_warning!(
                name: "DirectExporter.SettingIgnored",
                variable = complaint.variable.as_str(),
                value = complaint.value.as_str(),
                used_instead = complaint.used_instead
            );
        }
        self.validate()?;
        let headers = self.headers(env.headers)?;
        let endpoint = match self.endpoint_in_code()? {
            Some(endpoint) => endpoint,
            None => env.endpoint.map_or_else(Endpoint::by_default, Ok)?,
        };
        let timeout = self
            .timeout
            .or(env.timeout)
            .unwrap_or(DirectExporter::DEFAULT_TIMEOUT);
        let timeout = (!timeout.is_zero()).then_some(timeout);
        let client = match self.client {
            Some(client) => client,
            None => client::default_client(endpoint.is_https(), timeout)?,
        };
        let telemetry = Telemetry::new(
            &endpoint,
            #[cfg(feature = "metrics")]
            self.meter,
        );
        let limits = Limits {
            timeout,
            retry: self.retry,
            circuit_cooldown: self.circuit_cooldown,
        };
        let compression = self.compression.or(env.compression).unwrap_or_default();
        let delivery = Delivery::new(client, endpoint, headers, limits);
        let shared = Shared::new(delivery, telemetry, compression, self.max_request_bytes);
        Ok(DirectExporter::new(shared))
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let retry = &self.retry;
        if self.max_request_bytes == 0 {
            return Err(ConfigError::ZeroMaxRequestBytes);
        }
        if retry.max_attempts == 0 {
            return Err(ConfigError::NoAttempts);
        }
        if retry.initial_backoff > retry.max_backoff {
            return Err(ConfigError::BackoffOutOfOrder {
                initial: retry.initial_backoff,
                max: retry.max_backoff,
            });
        }
        if self.compression == Some(Compression::Gzip) && !cfg!(feature = "gzip") {
            return Err(ConfigError::GzipUnavailable);
        }
        Ok(())
    }

    fn endpoint_in_code(&self) -> Result<Option<Endpoint>, ConfigError> {
        let (endpoint, parsed) = match (&self.traces_endpoint, &self.endpoint) {
            (Some(endpoint), _) => (endpoint, Endpoint::parse(endpoint)),
            (None, Some(endpoint)) => (endpoint, Endpoint::parse_base(endpoint)),
            (None, None) => return Ok(None),
        };
        parsed
            .map(Some)
            .map_err(|reason| ConfigError::InvalidEndpoint {
                endpoint: redact::url(endpoint),
                reason,
            })
    }

    /// Ours, then those of the environment, then those set in code; a later one replaces an earlier one.
    fn headers(&self, from_env: Vec<(HeaderName, HeaderValue)>) -> Result<HeaderMap, ConfigError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        // Not `extend`, which would keep the earlier one beside the later one.
        for (name, value) in from_env {
            headers.insert(name, value);
        }
        for (name, value) in &self.headers {
            let (name, value) = parse_header(name, value)?;
            headers.insert(name, value);
        }
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/x-protobuf"),
        );
        Ok(headers)
    }
}

/// Shows what is set, and no value that may be a secret.
impl fmt::Debug for DirectExporterBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.headers.iter().map(|(name, _)| name).collect();
        f.debug_struct("DirectExporterBuilder")
            .field("endpoint", &self.endpoint.as_deref().map(redact::url))
            .field(
                "traces_endpoint",
                &self.traces_endpoint.as_deref().map(redact::url),
            )
            .field("headers", &names)
            .field("timeout", &self.timeout)
            .field("compression", &self.compression)
            .field("retry", &self.retry)
            .field("max_request_bytes", &self.max_request_bytes)
            .field("circuit_cooldown", &self.circuit_cooldown)
            .finish_non_exhaustive()
    }
}

/// A header that may be sent with every request. Its value is marked sensitive, since it may be.
pub(crate) fn parse_header(
    name: &str,
    value: &str,
) -> Result<(HeaderName, HeaderValue), ConfigError> {
    let name: HeaderName = name
        .trim()
        .parse()
        .map_err(|_| ConfigError::InvalidHeaderName {
            name: name.to_owned(),
        })?;
    if RESERVED.contains(&name) {
        return Err(ConfigError::ReservedHeader {
            name: name.to_string(),
        });
    }
    match HeaderValue::from_str(value) {
        Ok(mut value) if !value.is_empty() => {
            value.set_sensitive(true);
            Ok((name, value))
        }
        _ => Err(ConfigError::InvalidHeaderValue {
            name: name.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn builder() -> DirectExporterBuilder {
        DirectExporter::builder().with_env_lookup(|_| None)
    }

    fn check_refused(builder: DirectExporterBuilder, message: &str) {
        let error = builder.build().map(drop).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
        assert!(!error.contains("s3cret"), "{error}");
    }

    /// Scenario: each setting in code that cannot work, with a secret where there may be one.
    /// Guarantees: each has its own error, which never holds the secret.
    #[test]
    fn settings_in_code_that_cannot_work_are_refused() {
        let ms = Duration::from_millis;
        let cases = [
            (builder().with_endpoint("localhost:4318"), "no scheme"),
            (builder().with_endpoint("h"), "no scheme"),
            (builder().with_endpoint(""), "not a URL"),
            (builder().with_endpoint("ftp://h"), "neither http nor https"),
            (builder().with_endpoint("http://u:s3cret@h"), "user info"),
            (
                builder().with_traces_endpoint("http://h /?s3cret"),
                "not a URL",
            ),
            (
                builder().with_header("a b", "s3cret"),
                "header name \"a b\"",
            ),
            (builder().with_header("a", "s3cret\n"), "header \"a\""),
            (builder().with_header("a", ""), "header \"a\""),
            (
                builder().with_header("Content-Type", "s3cret"),
                "set by the exporter",
            ),
            (builder().with_max_request_bytes(0), "max_request_bytes"),
            (
                builder().with_retry_policy(RetryPolicy::default().with_max_attempts(0)),
                "0 attempts",
            ),
            (
                builder().with_retry_policy(RetryPolicy::default().with_backoff(ms(2), ms(1))),
                "initial backoff 2ms is above the maximum backoff 1ms",
            ),
        ];
        for (builder, message) in cases {
            check_refused(builder, message);
        }
    }

    /// Scenario: gzip without its feature, https without TLS, no client at all.
    /// Guarantees: what is not compiled in is refused with the name of the feature.
    #[test]
    fn what_is_not_compiled_in_is_refused() {
        if !cfg!(feature = "gzip") {
            check_refused(
                builder().with_compression(Compression::Gzip),
                "feature `gzip`",
            );
        }
        if !cfg!(any(
            feature = "reqwest",
            feature = "hyper",
            feature = "reqwest-blocking"
        )) {
            check_refused(builder(), "no HTTP client");
        } else if !cfg!(feature = "tls") {
            check_refused(builder().with_endpoint("https://h"), "feature `tls`");
        }
    }

    /// Scenario: the documented defaults.
    /// Guarantees: they are the constants.
    #[test]
    fn documented_defaults_are_the_constants() {
        let secs = Duration::from_secs;
        assert_eq!(DirectExporter::DEFAULT_TIMEOUT, secs(10));
        assert_eq!(DirectExporter::DEFAULT_CIRCUIT_COOLDOWN, secs(30));
        assert_eq!(DirectExporter::DEFAULT_MAX_REQUEST_BYTES, 64 * 1024 * 1024);
        let retry = RetryPolicy::default();
        assert_eq!(retry.max_attempts, 6);
        assert_eq!(retry.initial_backoff, Duration::from_millis(250));
        assert_eq!(retry.max_backoff, secs(5));
        assert_eq!(retry.max_retry_after, secs(15));
        let endpoint = Endpoint::by_default().unwrap();
        assert_eq!(endpoint.to_string(), "http://localhost:4318/v1/traces");
    }

    /// Scenario: headers that are set twice in the environment, there and by us, and there and in code.
    /// Guarantees: the later one replaces the earlier one.
    #[test]
    fn later_header_replaces_an_earlier_one_of_the_same_name() {
        let builder = builder().with_header("c", "in code");
        let from_env = [("a", "1"), ("a", "2"), ("User-Agent", "3"), ("c", "4")];
        let from_env = from_env.map(|(name, value)| parse_header(name, value).unwrap());
        let headers = builder.headers(from_env.to_vec()).unwrap();
        for (name, expected) in [("a", "2"), ("user-agent", "3"), ("c", "in code")] {
            let all: Vec<_> = headers.get_all(name).iter().collect();
            assert_eq!(all, [expected], "{name}");
        }
    }

    /// Scenario: a builder with secrets in its headers and its endpoint's query is printed for debugging.
    /// Guarantees: neither shows.
    #[test]
    fn debug_of_the_builder_shows_no_secret() {
        let builder = builder()
            .with_endpoint("http://h/?key=s3cret")
            .with_header("authorization", "s3cret");
        let printed = format!("{builder:?}");
        assert!(printed.contains("authorization"), "{printed}");
        assert!(!printed.contains("s3cret"), "{printed}");
    }
}
