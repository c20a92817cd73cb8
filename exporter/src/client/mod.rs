//! HTTP clients: the default one of each feature, and the one that adds a token to another.

mod token;

#[cfg(target_family = "wasm")]
mod fetch;

#[cfg(feature = "tonic")]
mod interceptor;

#[cfg(any(feature = "reqwest", feature = "hyper"))]
mod runtime;

#[cfg(all(
    feature = "reqwest-blocking",
    not(any(feature = "reqwest", feature = "hyper"))
))]
mod blocking;

#[cfg(target_family = "wasm")]
pub use fetch::FetchClient;
#[cfg(feature = "tonic")]
pub use interceptor::TokenInterceptor;
pub use token::TokenClient;

use crate::error::ConfigError;
use opentelemetry_http::HttpClient;
use std::sync::Arc;
use std::time::Duration;

/// In Workers, their `fetch`. Natively, the client of the first of these features that is on: `reqwest`, `hyper`,
/// `reqwest-blocking`.
///
/// None of them follows redirects. `timeout` is for one that cannot be stopped: the exporter drops its future when time
/// is up, and that stops the others.
pub(crate) fn default_client(
    https: bool,
    timeout: Option<Duration>,
) -> Result<Arc<dyn HttpClient>, ConfigError> {
    default::client(https, timeout)
}

#[cfg(target_family = "wasm")]
mod default {
    use super::{Arc, ConfigError, Duration, FetchClient, HttpClient};

    pub(super) fn client(
        _https: bool,
        _timeout: Option<Duration>,
    ) -> Result<Arc<dyn HttpClient>, ConfigError> {
        Ok(Arc::new(FetchClient::new().with_timeout(Duration::ZERO)))
    }
}

#[cfg(feature = "reqwest")]
mod default {
    use super::{Arc, ConfigError, Duration, HttpClient, runtime::RuntimeClient};

    pub(super) fn client(
        https: bool,
        _timeout: Option<Duration>,
    ) -> Result<Arc<dyn HttpClient>, ConfigError> {
        if https && !cfg!(feature = "tls") {
            return Err(ConfigError::HttpsUnavailable);
        }
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| ConfigError::HttpClient(error.into()))?;
        Ok(Arc::new(RuntimeClient::new(client)))
    }
}

#[cfg(all(feature = "hyper", not(feature = "reqwest")))]
mod default {
    use super::{Arc, ConfigError, Duration, HttpClient, runtime::RuntimeClient};
    use opentelemetry_http::hyper::HyperClient;

    /// This client cannot be without a timeout.
    const A_YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

    pub(super) fn client(
        https: bool,
        _timeout: Option<Duration>,
    ) -> Result<Arc<dyn HttpClient>, ConfigError> {
        if https {
            return Err(ConfigError::HttpsUnavailable);
        }
        let client = HyperClient::with_default_connector(A_YEAR, None);
        Ok(Arc::new(RuntimeClient::new(client)))
    }
}

#[cfg(all(
    feature = "reqwest-blocking",
    not(any(feature = "reqwest", feature = "hyper"))
))]
mod default {
    use super::{Arc, ConfigError, Duration, HttpClient, blocking::BlockingClient};

    pub(super) fn client(
        https: bool,
        timeout: Option<Duration>,
    ) -> Result<Arc<dyn HttpClient>, ConfigError> {
        if https && !cfg!(feature = "tls") {
            return Err(ConfigError::HttpsUnavailable);
        }
        let client = BlockingClient::new(timeout).map_err(ConfigError::HttpClient)?;
        Ok(Arc::new(client))
    }
}

#[cfg(not(any(
    feature = "reqwest",
    feature = "hyper",
    feature = "reqwest-blocking",
    target_family = "wasm"
)))]
mod default {
    use super::{Arc, ConfigError, Duration, HttpClient};

    pub(super) fn client(
        _https: bool,
        _timeout: Option<Duration>,
    ) -> Result<Arc<dyn HttpClient>, ConfigError> {
        Err(ConfigError::NoHttpClient)
    }
}
