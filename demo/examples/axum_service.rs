//! An axum service with accounts of its own: each account's spans leave under that account's token. One answer is a stream, and
//! one request leaves work behind that goes on after it.
//!
//! `cargo run --package demo --example axum_service`

// An example talks to its reader.
#![allow(clippy::print_stdout)]

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use demo::receiver::Receiver;
use futures_util::{StreamExt as _, stream};
use opentelemetry_otlp_direct::{DirectExporter, ExportToken};
use opentelemetry_per_request::{Carry as _, Telemetry, active_span, in_child};
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};

/// Who calls, as far as the service knows: it gives each account a token for its telemetry.
async fn authenticate(mut request: Request, next: Next) -> Response {
    let account = match request
        .headers()
        .get("authorization")
        .map(|key| key.as_bytes())
    {
        Some(b"Bearer key-of-blue") => "blue",
        Some(b"Bearer key-of-green") => "green",
        _ => return StatusCode::UNAUTHORIZED.into_response(),
    };
    match ExportToken::new(format!("token-of-{account}")) {
        Ok(token) => request.extensions_mut().insert(token),
        Err(_) => return StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    };
    next.run(request).await
}

/// What it calls is below the request's span, without being handed one.
async fn order(Path(id): Path<i64>) -> String {
    active_span().set_attribute("order.id", id);
    in_child("load order", async {
        in_child("query database", sleep(Duration::from_millis(2))).await;
    })
    .await;
    // Goes on after the response, and is this request's nevertheless.
    let receipt = async {
        sleep(Duration::from_millis(50)).await;
        in_child("send receipt", async {}).await;
    };
    tokio::spawn(receipt.carried());
    format!("order {id}\n")
}

/// The span of this request ends when the last of it was sent.
async fn numbers() -> Body {
    let numbers = stream::iter(1..=3).then(|n| {
        in_child("make a number", async move {
            sleep(Duration::from_millis(5)).await;
            Ok::<_, Infallible>(format!("{n}\n"))
        })
    });
    Body::from_stream(numbers)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let collector = Receiver::http()?;
    let exporter = DirectExporter::builder()
        .with_endpoint(collector.endpoint())
        .build()?;
    let telemetry = Telemetry::builder().with_exporter(exporter).build()?;

    let layer = telemetry
        .server_layer()
        .with_filter(|request| request.uri.path() != "/health")
        .with_request_context(|request, cx| match request.extensions.get() {
            Some(token) => ExportToken::attach_to(token, &cx),
            None => cx,
        });
    let app = Router::new()
        .route("/orders/{id}", get(order))
        .route("/numbers", get(numbers))
        .route("/health", get(|| async { "healthy" }))
        // Inside of the router, so that the span has the route for its name; and inside of the authentication.
        .layer(layer)
        .layer(middleware::from_fn(authenticate));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, app).await });

    let client = reqwest::Client::new();
    for (path, key) in [
        ("orders/4711", "key-of-blue"),
        ("numbers", "key-of-green"),
        ("health", "key-of-green"),
    ] {
        let url = format!("http://{address}/{path}");
        let response = client.get(url).bearer_auth(key).send().await?;
        response.error_for_status()?.text().await?;
    }
    // The receipt is still to come.
    let all_ended = async {
        while telemetry.stats().ended < 8 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(30), all_ended).await?;
    telemetry.flush().await?;

    let received = collector.received();
    for received in &received {
        println!("{:<20} under {}", received.span.name, received.token);
    }
    let under = |name: &str, token: &str| {
        let named = received
            .iter()
            .filter(|received| received.span.name == name);
        named.filter(|received| received.token == token).count()
    };
    assert_eq!(received.len(), 8);
    assert_eq!(under("GET /orders/{id}", "token-of-blue"), 1);
    assert_eq!(under("query database", "token-of-blue"), 1);
    assert_eq!(under("send receipt", "token-of-blue"), 1);
    assert_eq!(under("GET /numbers", "token-of-green"), 1);
    assert_eq!(under("make a number", "token-of-green"), 3);
    assert_eq!(telemetry.stats().late.total(), 0);
    telemetry.shutdown(Duration::from_secs(5)).await?;
    Ok(())
}
