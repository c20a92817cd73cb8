//! `TokenClient` under the exporter of `opentelemetry-otlp`.

use crate::support::{Collector, context_with, spans};
use futures_executor::block_on;
use opentelemetry::trace::FutureExt as _;
use opentelemetry_otlp::{WithExportConfig, WithHttpConfig};
use opentelemetry_otlp_direct::{ExportToken, TokenClient};
use opentelemetry_sdk::trace::SpanExporter;
use std::collections::HashMap;

/// Scenario: `opentelemetry-otlp` with a configured credential, over a `TokenClient`, exports under two tokens and under
/// none.
/// Guarantees: each request carries its own token; without one, the configured credential.
#[test]
fn other_exporters_send_the_token_of_the_context() {
    let collector = Collector::start();
    let configured = HashMap::from([("authorization".to_owned(), "configured".to_owned())]);
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_http_client(TokenClient::new(reqwest::blocking::Client::new()))
        .with_headers(configured)
        .with_endpoint(format!("{}/v1/traces", collector.endpoint()))
        .build()
        .unwrap();
    let export = |cx| block_on(exporter.export(spans(1)).with_context(cx)).unwrap();
    export(context_with(&ExportToken::new("a").unwrap()));
    export(context_with(&ExportToken::new("b").unwrap()));
    export(opentelemetry::Context::new());
    let expected = ["Bearer a", "Bearer b", "configured"].map(|token| Some(token.to_owned()));
    assert_eq!(collector.authorizations(), expected);
}
