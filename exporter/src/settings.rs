//! Settings that each signal has: in code for one or for all, and together with the environment what holds.

use crate::config::{Compression, parse_header};
use crate::encode::Encoding;
use crate::endpoint::Endpoint;
use crate::env::FromEnv;
use crate::error::ConfigError;
use crate::exporter::DirectExporter;
use crate::redact;
use crate::signal::Signal;
use http::{HeaderMap, HeaderValue, header};
use std::fmt;
use std::time::Duration;

const USER_AGENT: &str = concat!(
    "opentelemetry-otlp-direct/",
    env!("CARGO_PKG_VERSION"),
    " OTel-OTLP-Exporter-Rust/",
    env!("CARGO_PKG_VERSION"),
);

/// What is different for one signal, in [`DirectExporterBuilder::with_signal`](crate::DirectExporterBuilder::with_signal).
///
/// What is not set here is as it is for all signals.
#[derive(Default)]
#[must_use = "nothing is set before it is returned to `with_signal`"]
pub struct SignalSettings {
    pub(crate) endpoint: Option<String>,
    headers: Vec<(String, String)>,
    timeout: Option<Duration>,
    compression: Option<Compression>,
    encoding: Option<Encoding>,
}

/// What holds for one signal.
#[derive(Debug)]
pub(crate) struct Resolved {
    /// `None` in a Worker if none is set.
    pub(crate) endpoint: Option<Endpoint>,
    pub(crate) headers: HeaderMap,
    /// `None` is no limit.
    pub(crate) timeout: Option<Duration>,
    pub(crate) compression: Compression,
    pub(crate) encoding: Encoding,
}

// ===== impl SignalSettings =====

impl SignalSettings {
    /// The full URL to send this signal to, used as it is.
    pub fn with_endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoint = Some(endpoint.into());
        self
    }

    /// A header to send with each request of this signal, beside those for all signals and in place of one of the same
    /// name.
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

    /// How long one export of this signal may take. Zero is no limit.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How bodies of this signal are compressed.
    pub fn with_compression(mut self, compression: Compression) -> Self {
        self.compression = Some(compression);
        self
    }

    /// How bodies of this signal are encoded.
    pub fn with_encoding(mut self, encoding: Encoding) -> Self {
        self.encoding = Some(encoding);
        self
    }

    /// Whether something is asked for that is not compiled in.
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        if self.compression == Some(Compression::Gzip) && !cfg!(feature = "gzip") {
            return Err(ConfigError::GzipUnavailable);
        }
        if self.encoding == Some(Encoding::Json) && !cfg!(feature = "json") {
            return Err(ConfigError::JsonUnavailable);
        }
        Ok(())
    }
}

/// Shows what is set, and no value that may be a secret.
impl fmt::Debug for SignalSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.headers.iter().map(|(name, _)| name).collect();
        f.debug_struct("SignalSettings")
            .field("endpoint", &self.endpoint.as_deref().map(redact::url))
            .field("headers", &names)
            .field("timeout", &self.timeout)
            .field("compression", &self.compression)
            .field("encoding", &self.encoding)
            .finish()
    }
}

// ===== impl Resolved =====

impl Resolved {
    /// Code for this signal wins over code for all of them, which wins over the environment.
    pub(crate) fn new(
        signal: Signal,
        own: &SignalSettings,
        general: &SignalSettings,
        env: FromEnv,
    ) -> Result<Self, ConfigError> {
        let timeout = own.timeout.or(general.timeout).or(env.timeout);
        let timeout = timeout.unwrap_or(DirectExporter::DEFAULT_TIMEOUT);
        let compression = own.compression.or(general.compression);
        let encoding = own.encoding.or(general.encoding).or(env.encoding);
        let encoding = encoding.unwrap_or_default();
        let mut headers = headers(env.headers, [general, own])?;
        let content_type = HeaderValue::from_static(encoding.content_type());
        headers.insert(header::CONTENT_TYPE, content_type);
        let endpoint = endpoint_in_code(signal, own, general)?;
        Ok(Self {
            endpoint: endpoint
                .or(env.endpoint)
                .or_else(|| Endpoint::by_default(signal)),
            headers,
            timeout: (!timeout.is_zero()).then_some(timeout),
            compression: compression.or(env.compression).unwrap_or_default(),
            encoding,
        })
    }
}

fn endpoint_in_code(
    signal: Signal,
    own: &SignalSettings,
    general: &SignalSettings,
) -> Result<Option<Endpoint>, ConfigError> {
    let (endpoint, parsed) = match (&own.endpoint, &general.endpoint) {
        (Some(endpoint), _) => (endpoint, Endpoint::parse(endpoint)),
        (None, Some(endpoint)) => (endpoint, Endpoint::parse_base(endpoint, signal)),
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
fn headers(
    from_env: Vec<(http::HeaderName, HeaderValue)>,
    in_code: [&SignalSettings; 2],
) -> Result<HeaderMap, ConfigError> {
    let mut headers = HeaderMap::new();
    headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    // Not `extend`, which would keep the earlier one beside the later one.
    for (name, value) in from_env {
        headers.insert(name, value);
    }
    for (name, value) in in_code.iter().flat_map(|settings| &settings.headers) {
        let (name, value) = parse_header(name, value)?;
        headers.insert(name, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(own: SignalSettings, general: SignalSettings, env: FromEnv) -> Resolved {
        Resolved::new(Signal::Logs, &own, &general, env).unwrap()
    }

    /// Settings of which each tells where it comes from.
    fn of(place: &str, milliseconds: u64) -> SignalSettings {
        SignalSettings::default()
            .with_endpoint(format!("http://{place}"))
            .with_header("x-place", place)
            .with_timeout(Duration::from_millis(milliseconds))
    }

    fn env() -> FromEnv {
        FromEnv {
            endpoint: Some(Endpoint::parse("http://env/env").unwrap()),
            headers: vec![parse_header("x-place", "env").unwrap()],
            timeout: Some(Duration::from_millis(3)),
            ..FromEnv::default()
        }
    }

    /// Scenario: each setting in code for the signal, in code for all, and in the environment; then without one after the
    /// other.
    /// Guarantees: they are asked in that order, then the default holds; an endpoint for the signal is used as it is.
    #[test]
    fn code_for_the_signal_wins_over_code_for_all_over_the_environment() {
        let none = SignalSettings::default;
        let cases = [
            (of("own", 1), of("all", 2), env(), "http://own/", "own", 1),
            (none(), of("all", 2), env(), "http://all/v1/logs", "all", 2),
            (none(), none(), env(), "http://env/env", "env", 3),
        ];
        for (own, general, env, endpoint, place, milliseconds) in cases {
            let resolved = resolve(own, general, env);
            assert_eq!(resolved.endpoint.unwrap().to_string(), endpoint);
            assert_eq!(resolved.headers["x-place"], place);
            assert_eq!(resolved.timeout, Some(Duration::from_millis(milliseconds)));
        }
        let resolved = resolve(none(), none(), FromEnv::default());
        let endpoint = resolved.endpoint.unwrap().to_string();
        assert_eq!(endpoint, "http://localhost:4318/v1/logs");
        assert_eq!(resolved.headers.get("x-place"), None);
        assert_eq!(resolved.timeout, Some(DirectExporter::DEFAULT_TIMEOUT));
    }

    /// Scenario: gzip and JSON, where they are compiled in, from each place.
    /// Guarantees: they are asked in the same order, and the content type is that of the encoding.
    #[cfg(all(feature = "gzip", feature = "json"))]
    #[test]
    fn compression_and_encoding_are_asked_in_the_same_order() {
        let gzip_and_json = || {
            SignalSettings::default()
                .with_compression(Compression::Gzip)
                .with_encoding(Encoding::Json)
        };
        let plain = || {
            SignalSettings::default()
                .with_compression(Compression::None)
                .with_encoding(Encoding::Protobuf)
        };
        let none = SignalSettings::default;
        let env = || FromEnv {
            compression: Some(Compression::Gzip),
            encoding: Some(Encoding::Json),
            ..FromEnv::default()
        };
        let cases = [
            (gzip_and_json(), plain(), FromEnv::default(), true),
            (none(), gzip_and_json(), FromEnv::default(), true),
            (none(), none(), env(), true),
            (none(), plain(), env(), false),
            (plain(), gzip_and_json(), env(), false),
            (none(), none(), FromEnv::default(), false),
        ];
        for (own, general, env, is_json) in cases {
            let resolved = resolve(own, general, env);
            let (compression, encoding) = match is_json {
                true => (Compression::Gzip, Encoding::Json),
                false => (Compression::None, Encoding::Protobuf),
            };
            assert_eq!(
                (resolved.compression, resolved.encoding),
                (compression, encoding)
            );
            let content_type = &resolved.headers[header::CONTENT_TYPE];
            assert_eq!(content_type, encoding.content_type());
        }
    }

    /// Scenario: headers that are set twice in the environment, there and by us, there and in code, and in code twice.
    /// Guarantees: the later one replaces the earlier one, those of the signal come last, and others stay beside them.
    #[test]
    fn later_header_replaces_an_earlier_one_of_the_same_name() {
        let from_env = [("a", "1"), ("a", "2"), ("User-Agent", "3"), ("c", "4")];
        let from_env = from_env.map(|(name, value)| parse_header(name, value).unwrap());
        let general =
            SignalSettings::default().with_headers([("c", "all"), ("d", "all"), ("e", "all")]);
        let own = SignalSettings::default().with_header("D", "own");
        let headers = headers(from_env.to_vec(), [&general, &own]).unwrap();
        let expected = [
            ("a", "2"),
            ("user-agent", "3"),
            ("c", "all"),
            ("d", "own"),
            ("e", "all"),
        ];
        for (name, expected) in expected {
            let all: Vec<_> = headers.get_all(name).iter().collect();
            assert_eq!(all, [expected], "{name}");
        }
    }
}
