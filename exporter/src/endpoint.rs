//! Where requests go: an absolute URL, from a setting or by default.

use crate::redact;
use crate::signal::Signal;
use http::Uri;
use http::uri::{PathAndQuery, Scheme};
use std::fmt;

/// Where requests go. Invariant: `http` or `https`, with a host, without user info.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    uri: Uri,
}

// ===== impl Endpoint =====

impl Endpoint {
    /// A URL that is used as it is.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let uri: Uri = text.trim().parse().map_err(|_| "not a URL")?;
        match uri.scheme() {
            None => return Err("has no scheme, such as http://"),
            Some(scheme) if *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS => {}
            Some(_) => return Err("scheme is neither http nor https"),
        }
        if uri.host().is_none_or(str::is_empty) {
            return Err("has no host");
        }
        if uri.authority().is_some_and(|a| a.as_str().contains('@')) {
            return Err("has user info; send credentials as a header");
        }
        Ok(Self { uri })
    }

    /// A base URL, to which the path of the signal is appended.
    pub(crate) fn parse_base(text: &str, signal: Signal) -> Result<Self, &'static str> {
        let mut parts = Self::parse(text)?.uri.into_parts();
        let base = parts.path_and_query.as_ref();
        let path = base.map_or("", PathAndQuery::path).trim_end_matches('/');
        let query = base.and_then(PathAndQuery::query);
        let query = query.map_or_else(String::new, |query| format!("?{query}"));
        let path = format!("{path}/{}{query}", signal.path());
        parts.path_and_query = Some(path.parse().map_err(|_| "path cannot be extended")?);
        let uri = Uri::from_parts(parts).map_err(|_| "not a URL")?;
        Ok(Self { uri })
    }

    /// In a Worker there is no local collector to assume.
    pub(crate) fn by_default(signal: Signal) -> Option<Self> {
        if cfg!(target_family = "wasm") {
            return None;
        }
        Some(Self {
            uri: Uri::from_static(match signal {
                Signal::Traces => "http://localhost:4318/v1/traces",
                Signal::Logs => "http://localhost:4318/v1/logs",
                Signal::Metrics => "http://localhost:4318/v1/metrics",
            }),
        })
    }

    pub(crate) fn uri(&self) -> &Uri {
        &self.uri
    }

    pub(crate) fn is_https(&self) -> bool {
        self.uri.scheme() == Some(&Scheme::HTTPS)
    }

    #[cfg(feature = "metrics")]
    pub(crate) fn host(&self) -> &str {
        self.uri.host().unwrap_or_default()
    }

    #[cfg(feature = "metrics")]
    pub(crate) fn port(&self) -> u16 {
        let default = if self.is_https() { 443 } else { 80 };
        self.uri.port_u16().unwrap_or(default)
    }
}

/// Without the query, which can hold a credential.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redact::url(&self.uri.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: base endpoints with and without path, slashes and query, for each signal.
    /// Guarantees: the signal's path follows the base's own path behind exactly one slash, and the query stays.
    #[test]
    fn signal_path_follows_the_base_path_with_one_slash() {
        let cases = [
            ("http://h", "http://h/v1/SIGNAL"),
            ("http://h/", "http://h/v1/SIGNAL"),
            ("http://h//", "http://h/v1/SIGNAL"),
            ("https://h:1/p", "https://h:1/p/v1/SIGNAL"),
            ("http://h/p/q/", "http://h/p/q/v1/SIGNAL"),
            ("http://h/p?k=v", "http://h/p/v1/SIGNAL?k=v"),
            ("http://[::1]:4318", "http://[::1]:4318/v1/SIGNAL"),
        ];
        for (base, expected) in cases {
            for signal in Signal::ALL {
                let endpoint = Endpoint::parse_base(base, *signal).unwrap();
                let expected = expected.replace("SIGNAL", signal.as_str());
                assert_eq!(endpoint.uri().to_string(), expected, "{base}");
            }
        }
    }

    /// Scenario: nothing is set.
    /// Guarantees: a collector on this machine, under the path of the signal.
    #[test]
    fn default_is_a_collector_on_this_machine() {
        for signal in Signal::ALL {
            let by_default = Endpoint::by_default(*signal).unwrap().to_string();
            assert_eq!(by_default, format!("http://localhost:4318/v1/{signal}"));
        }
    }
}
