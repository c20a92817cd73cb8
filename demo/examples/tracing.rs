//! An axum service whose handlers only know `tracing`: each account's spans leave under that account's token, with the log lines
//! that were said in them.
//!
//! `cargo run --package demo --example tracing`

// An example talks to its reader.
#![allow(clippy::print_stdout)]

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::routing::get;
use demo::receiver::{Received, Receiver};
use opentelemetry_otlp_direct::{DirectExporter, ExportToken};
use opentelemetry_per_request::{Carry as _, Telemetry};
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};
use tracing::{Instrument as _, info, info_span, instrument};
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;

// ----- a service as it is written without a thought of OpenTelemetry -----

async fn order(Path(id): Path<i64>) -> Result<String, StatusCode> {
    info!(id, "asked for an order");
    let row = load(id).await.map_err(|_| StatusCode::NOT_FOUND)?;
    // Goes on after the response. `carried` is all that it takes to be this request's nevertheless.
    tokio::spawn(send_receipt(id).instrument(info_span!("receipt")).carried());
    Ok(row)
}

#[instrument(err)]
async fn load(id: i64) -> Result<String, io::Error> {
    query(id).await;
    match id {
        4711 => Ok(format!("order {id}\n")),
        _ => Err(io::Error::other("no such order")),
    }
}

#[instrument(fields(db.system.name = "postgresql"))]
async fn query(id: i64) {
    sleep(Duration::from_millis(2)).await;
    info!(rows = 1, "queried");
}

#[instrument]
async fn send_receipt(id: i64) {
    sleep(Duration::from_millis(50)).await;
}

// ----- and the set-up -----

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let collector = Receiver::http()?;
    let exporter = DirectExporter::builder()
        .with_endpoint(collector.endpoint())
        .build()?;
    let telemetry = Telemetry::builder().with_exporter(exporter).build()?;

    let layer = telemetry.tracing_layer();
    let subscriber = tracing_subscriber::registry().with(layer.with_filter(LevelFilter::INFO));
    tracing::subscriber::set_global_default(subscriber)?;

    let server = telemetry
        .server_layer()
        .with_request_context(|request, cx| {
            let account = request.headers.get("x-account");
            let account = account.and_then(|account| account.to_str().ok());
            match account.map(|account| ExportToken::new(format!("token-of-{account}"))) {
                Some(Ok(token)) => token.attach_to(&cx),
                _ => cx,
            }
        });
    let app = Router::new()
        .route("/orders/{id}", get(order))
        .layer(server);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, app).await });

    let client = reqwest::Client::new();
    let ask = |id: i64, account| {
        let request = client.get(format!("http://{address}/orders/{id}"));
        request.header("x-account", account).send()
    };
    let (blue, green) = tokio::join!(ask(4711, "blue"), ask(1, "green"));
    assert_eq!(
        (blue?.status(), green?.status().as_u16()),
        (StatusCode::OK, 404)
    );
    // The receipt is still to come.
    let all_ended = async {
        while telemetry.stats().ended < 8 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(30), all_ended).await?;
    telemetry.flush().await?;

    let received = collector.received();
    for Received { span, token, .. } in &received {
        let events: Vec<_> = span.events.iter().map(|event| &*event.name).collect();
        println!("{:<16} under {token:<14} {events:?}", span.name);
    }
    let find = |name: &str, token: &str| {
        let found = received
            .iter()
            .find(|r| r.span.name == name && r.token == token);
        found
            .map(|received| received.span.clone())
            .ok_or(format!("no {name} under {token}"))
    };
    for token in ["token-of-blue", "token-of-green"] {
        let root = find("GET /orders/{id}", token)?;
        let (load, query) = (find("load", token)?, find("query", token)?);
        assert_eq!(load.parent_span_id, root.span_id);
        assert_eq!(query.parent_span_id, load.span_id);
        assert_eq!(root.events[0].name, "asked for an order");
        assert_eq!(query.events[0].name, "queried");
    }
    let receipt = find("receipt", "token-of-blue")?;
    let sent = find("send_receipt", "token-of-blue")?;
    assert_eq!(sent.parent_span_id, receipt.span_id);
    let failed = find("load", "token-of-green")?;
    assert_eq!(
        failed.status.map(|status| status.message),
        Some("no such order".to_owned())
    );
    assert_eq!((received.len(), telemetry.stats().late.total()), (8, 0));
    telemetry.shutdown(Duration::from_secs(5)).await?;
    Ok(())
}
