//! Settings: the builder, and how an exporter is made of what code, environment and defaults say together.

use crate::client;
use crate::delivery::{Delivery, Limits};
use crate::encode::Encoding;
use crate::endpoint::Endpoint;
use crate::env::{self, Environment, Lookup};
use crate::error::ConfigError;
use crate::exporter::{DirectExporter, Shared};
use crate::log::log_warning;
use crate::pipeline::{Format, Pipeline};
use crate::retry::RetryPolicy;
use crate::settings::{Resolved, SignalSettings};
use crate::signal::{PerSignal, Signal};
use crate::telemetry::{Component, Telemetry};
use http::{HeaderName, HeaderValue, header};
use opentelemetry_http::HttpClient;
#[cfg(feature = "metric-export")]
use opentelemetry_sdk::metrics::Temporality;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

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
    /// For all signals. The endpoint in it is a base.
    general: SignalSettings,
    signals: PerSignal<SignalSettings>,
    #[cfg(feature = "metric-export")]
    temporality: Option<Temporality>,
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
            general: SignalSettings::default(),
            signals: PerSignal::default(),
            #[cfg(feature = "metric-export")]
            temporality: None,
            retry: RetryPolicy::default(),
            max_request_bytes: DirectExporter::DEFAULT_MAX_REQUEST_BYTES,
            circuit_cooldown: DirectExporter::DEFAULT_CIRCUIT_COOLDOWN,
            client: None,
            lookup: Box::new(env::of_process),
            #[cfg(feature = "metrics")]
            meter: None,
        }
    }

    /// The base endpoint of a collector, to which `v1/traces`, `v1/logs` and `v1/metrics` are appended behind its own path,
    /// with one slash.
    ///
    /// Default `http://localhost:4318`; in a Worker there is none. Variable: `OTEL_EXPORTER_OTLP_ENDPOINT`. The endpoint
    /// of a signal, where one is set in the same place or in code, wins.
    pub fn with_endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.general = self.general.with_endpoint(endpoint);
        self
    }

    /// The full URL to send traces to, used as it is. Variable: `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`.
    pub fn with_traces_endpoint(self, endpoint: impl Into<String>) -> Self {
        self.with_signal(Signal::Traces, |traces| traces.with_endpoint(endpoint))
    }

    /// The full URL to send logs to, used as it is. Variable: `OTEL_EXPORTER_OTLP_LOGS_ENDPOINT`.
    pub fn with_logs_endpoint(self, endpoint: impl Into<String>) -> Self {
        self.with_signal(Signal::Logs, |logs| logs.with_endpoint(endpoint))
    }

    /// The full URL to send metrics to, used as it is. Variable: `OTEL_EXPORTER_OTLP_METRICS_ENDPOINT`.
    pub fn with_metrics_endpoint(self, endpoint: impl Into<String>) -> Self {
        self.with_signal(Signal::Metrics, |metrics| metrics.with_endpoint(endpoint))
    }

    /// What is different for one signal. A second call for the same signal goes on from the first.
    ///
    /// It wins over what is set for all signals, in whatever order they are set. Variables: those with `TRACES`, `LOGS` or
    /// `METRICS` in them, which win over the general ones.
    ///
    /// ```
    /// use opentelemetry_otlp_direct::{DirectExporter, Signal};
    /// use std::time::Duration;
    ///
    /// let builder = DirectExporter::builder()
    ///     .with_endpoint("http://collector:4318")
    ///     .with_signal(Signal::Logs, |logs| {
    ///         logs.with_endpoint("http://logs:4318/v1/logs")
    ///             .with_header("x-retention", "7d")
    ///             .with_timeout(Duration::from_secs(3))
    ///     });
    /// ```
    pub fn with_signal(
        mut self,
        signal: Signal,
        set: impl FnOnce(SignalSettings) -> SignalSettings,
    ) -> Self {
        let settings = std::mem::take(&mut self.signals[signal]);
        self.signals[signal] = set(settings);
        self
    }

    /// A header to send with each request; a second one of the same name replaces the first.
    ///
    /// An [`ExportToken`](crate::ExportToken) in the context of an export replaces `authorization`. Variables, whose
    /// other entries are sent as well: for traces `OTEL_EXPORTER_OTLP_TRACES_HEADERS`, likewise for `LOGS` and `METRICS`,
    /// or else `OTEL_EXPORTER_OTLP_HEADERS`, as `name=value,name=value` with percent-encoded values.
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.general = self.general.with_header(name, value);
        self
    }

    /// Many headers at once, each as with [`with_header`](Self::with_header).
    pub fn with_headers<N: Into<String>, V: Into<String>>(
        mut self,
        headers: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        self.general = self.general.with_headers(headers);
        self
    }

    /// How long one export may take: all its attempts and the backoff between them. Zero is no limit.
    ///
    /// Time that the collector asks for with `Retry-After` comes on top, within
    /// [`RetryPolicy::with_max_retry_after`]; an attempt made after such a wait gets at least a second. Default 10 s.
    /// Variables, in milliseconds: `OTEL_EXPORTER_OTLP_TIMEOUT`, and `OTEL_EXPORTER_OTLP_TRACES_TIMEOUT` and the like.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.general = self.general.with_timeout(timeout);
        self
    }

    /// How bodies are compressed. Default [`Compression::None`]. Variables: `OTEL_EXPORTER_OTLP_COMPRESSION`, and
    /// `OTEL_EXPORTER_OTLP_TRACES_COMPRESSION` and the like.
    pub fn with_compression(mut self, compression: Compression) -> Self {
        self.general = self.general.with_compression(compression);
        self
    }

    /// How bodies are encoded. Default [`Encoding::Protobuf`]. Variables: `OTEL_EXPORTER_OTLP_PROTOCOL`, and
    /// `OTEL_EXPORTER_OTLP_TRACES_PROTOCOL` and the like, which are `http/protobuf` or `http/json`.
    pub fn with_encoding(mut self, encoding: Encoding) -> Self {
        self.general = self.general.with_encoding(encoding);
        self
    }

    /// Whether metrics are exported as sums since the start, or as what was added since the last export.
    ///
    /// Default [`Temporality::Cumulative`], and in a Worker [`Temporality::Delta`]: isolates come and go there by the
    /// dozen, and each would begin a series of its own at zero that never ends. A backend adds up deltas whoever sends
    /// them. The price is that a lost export is a lost difference, where the next cumulative one would make up for it.
    /// Variable: `OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE`, which is `cumulative`, `delta` or `lowmemory`, in
    /// any case.
    #[cfg(feature = "metric-export")]
    pub fn with_temporality(mut self, temporality: Temporality) -> Self {
        self.temporality = Some(temporality);
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
        let mut from_env = env.signals;
        let resolved = PerSignal::try_from_fn(|signal| {
            let from_env = std::mem::take(&mut from_env[signal]);
            Resolved::new(signal, &self.signals[signal], &self.general, from_env)
        })?;
        let exported = resolved.iter().filter(|(signal, _)| signal.is_exported());
        let exported: Vec<_> = exported.map(|(_, resolved)| resolved).collect();
        if exported.iter().all(|resolved| resolved.endpoint.is_none()) {
            return Err(ConfigError::NoEndpoint);
        }
        let client = match self.client {
            Some(client) => client,
            None => default_client(&exported)?,
        };
        let component = Component::next(
            #[cfg(feature = "metrics")]
            self.meter,
        );
        let pipelines = resolved.map(|signal, resolved| {
            let telemetry = Telemetry::new(signal, resolved.endpoint.as_ref(), &component);
            let limits = Limits {
                timeout: resolved.timeout,
                retry: self.retry,
                circuit_cooldown: self.circuit_cooldown,
            };
            let format = Format {
                encoding: resolved.encoding,
                compression: resolved.compression,
                max_request_bytes: self.max_request_bytes,
            };
            let client = Arc::clone(&client);
            let delivery = resolved
                .endpoint
                .map(|endpoint| Delivery::new(client, endpoint, resolved.headers, limits));
            Pipeline::new(signal, delivery, telemetry, format)
        });
        Ok(DirectExporter::new(Shared {
            pipelines,
            #[cfg(feature = "metric-export")]
            temporality: self
                .temporality
                .or(env.temporality)
                .unwrap_or(DirectExporter::DEFAULT_TEMPORALITY),
        }))
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
        self.general.validate()?;
        self.signals.iter().try_for_each(|(_, own)| own.validate())
    }
}

/// One client for all signals, that can speak to the endpoints of all of them.
fn default_client(signals: &[&Resolved]) -> Result<Arc<dyn HttpClient>, ConfigError> {
    let mut endpoints = signals.iter().filter_map(|signal| signal.endpoint.as_ref());
    // The longest, and none if one of them has none.
    let timeouts: Option<Vec<_>> = signals.iter().map(|signal| signal.timeout).collect();
    let timeout = timeouts.and_then(|timeouts| timeouts.into_iter().max());
    client::default_client(endpoints.any(Endpoint::is_https), timeout)
}

/// Shows what is set, and no value that may be a secret.
impl fmt::Debug for DirectExporterBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("DirectExporterBuilder");
        shown.field("all", &self.general);
        for (signal, settings) in self.signals.iter() {
            shown.field(signal.as_str(), settings);
        }
        #[cfg(feature = "metric-export")]
        shown.field("temporality", &self.temporality);
        shown
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
                builder().with_logs_endpoint("http://u:s3cret@h"),
                "user info",
            ),
            (builder().with_metrics_endpoint("h"), "no scheme"),
            (
                builder().with_signal(Signal::Metrics, |metrics| {
                    metrics.with_header("a", "s3cret\n")
                }),
                "header \"a\"",
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

    /// Scenario: gzip and JSON without their features, https without TLS, no client at all.
    /// Guarantees: what is not compiled in is refused with the name of the feature.
    #[test]
    fn what_is_not_compiled_in_is_refused() {
        if !cfg!(feature = "gzip") {
            check_refused(
                builder().with_compression(Compression::Gzip),
                "feature `gzip`",
            );
        }
        if !cfg!(feature = "json") {
            let json = |signal: SignalSettings| signal.with_encoding(Encoding::Json);
            check_refused(builder().with_encoding(Encoding::Json), "feature `json`");
            check_refused(builder().with_signal(Signal::Logs, json), "feature `json`");
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
        #[cfg(feature = "metric-export")]
        assert_eq!(DirectExporter::DEFAULT_TEMPORALITY, Temporality::Cumulative);
    }

    /// Scenario: an endpoint that is https for one signal only.
    /// Guarantees: the one client of all of them must be able to speak it, unless nothing of that signal can be exported.
    #[test]
    fn one_https_endpoint_is_enough_to_need_https() {
        if !cfg!(any(
            feature = "reqwest",
            feature = "hyper",
            feature = "reqwest-blocking"
        )) {
            return;
        }
        for signal in Signal::ALL {
            let builder = builder().with_signal(*signal, |s| s.with_endpoint("https://h"));
            let result = builder.build();
            let can =
                cfg!(feature = "tls") && cfg!(any(feature = "reqwest", not(feature = "hyper")));
            assert_eq!(
                result.is_ok(),
                can || !signal.is_exported(),
                "{signal}: {result:?}"
            );
        }
    }

    /// Scenario: a builder with secrets in its headers and its endpoints' queries, for all signals and for one, is printed for
    /// debugging.
    /// Guarantees: none of them shows.
    #[test]
    fn debug_of_the_builder_shows_no_secret() {
        let builder = builder()
            .with_endpoint("http://h/?key=s3cret")
            .with_header("authorization", "s3cret")
            .with_signal(Signal::Logs, |logs| {
                logs.with_endpoint("http://h/?key=s3cret")
                    .with_header("x-api-key", "s3cret")
            });
        let printed = format!("{builder:?}");
        assert!(printed.contains("authorization"), "{printed}");
        assert!(printed.contains("x-api-key"), "{printed}");
        assert!(!printed.contains("s3cret"), "{printed}");
    }
}
