//! The HTTP clients that the table is run through, each with the exporter that it makes.

use std::sync::OnceLock;
use std::time::Duration;

use opentelemetry_http::hyper::HyperClient;
use opentelemetry_otlp_direct::{DirectExporter, DirectExporterBuilder, RetryPolicy};
use reqwest::Certificate;
use reqwest::redirect::Policy;
use tokio::runtime::Runtime;

use crate::run::SECRET;
use crate::server::Server;
use crate::table::{Ends, Row};
use crate::tls;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    /// The exporter's own: that of the first client feature that is on.
    Default,
    /// A client of the user's, called as it is.
    Reqwest,
    Hyper,
    ReqwestBlocking,
}

/// After a 401 or 403.
const COOLDOWN: Duration = Duration::from_secs(6);

// ===== impl Client =====

impl Client {
    /// Whether the row holds through this client.
    pub(crate) fn can(self, row: &Row) -> bool {
        match self {
            // It trusts whom the system trusts, see `crate::over_the_exporter`.
            Self::Default => !row.is_of_https(),
            Self::Reqwest => true,
            Self::Hyper => !row.is_of_https(),
            // Called as it is, it blocks the export, so that time cannot run out but by its own setting.
            Self::ReqwestBlocking => row.ends == Ends::AtOnce,
        }
    }

    /// An exporter of a row. Retries wait for next to nothing.
    pub(crate) fn exporter(self, row: &Row, server: &Server) -> DirectExporter {
        let moment = Duration::from_millis(1);
        let builder = DirectExporter::builder()
            .with_env_lookup(|_| None)
            .with_endpoint(format!("{}?key={SECRET}", server.endpoint()))
            .with_header("x-api-key", SECRET)
            .with_timeout(row.timeout())
            .with_retry_policy(RetryPolicy::default().with_backoff(moment, moment))
            .with_circuit_cooldown(COOLDOWN);
        self.add_to(builder).build().unwrap()
    }

    fn add_to(self, builder: DirectExporterBuilder) -> DirectExporterBuilder {
        match self {
            Self::Default => builder,
            Self::Reqwest => builder.with_http_client(
                reqwest::Client::builder()
                    .redirect(Policy::none())
                    .tls_certs_only([root()])
                    .build()
                    .unwrap(),
            ),
            Self::Hyper => builder.with_http_client(HyperClient::with_default_connector(
                Duration::from_secs(3600),
                None,
            )),
            Self::ReqwestBlocking => builder.with_http_client(
                reqwest::blocking::Client::builder()
                    .redirect(Policy::none())
                    .tls_certs_only([root()])
                    .build()
                    .unwrap(),
            ),
        }
    }

    /// What a client called as it is has to find where an export is polled.
    pub(crate) fn runtime(self) -> Option<&'static Runtime> {
        static RUNTIME: OnceLock<Runtime> = OnceLock::new();
        let runtime = || Runtime::new().unwrap();
        match self {
            Self::Reqwest | Self::Hyper => Some(RUNTIME.get_or_init(runtime)),
            Self::Default | Self::ReqwestBlocking => None,
        }
    }
}

fn root() -> Certificate {
    Certificate::from_der(&tls::root()).unwrap()
}
