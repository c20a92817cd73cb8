//! The client: real requests, each with a token of its own, and some of them in pairs under one `traceparent`.

use std::net::SocketAddr;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};

/// The token of a request: what its spans must be sent under.
pub(crate) fn token(request: usize) -> String {
    format!("token-{request}")
}

/// Sends all requests, so many at a time. Returns how many were answered with success.
pub(crate) async fn load(
    service: SocketAddr,
    requests: usize,
    concurrency: usize,
) -> Result<usize, reqwest::Error> {
    let client = reqwest::Client::new();
    stream::iter(0..requests)
        .map(|request| send(&client, service, request))
        .buffer_unordered(concurrency)
        .try_fold(0, |answered, success| async move {
            Ok(answered + usize::from(success))
        })
        .await
}

async fn send(
    client: &reqwest::Client,
    service: SocketAddr,
    request: usize,
) -> Result<bool, reqwest::Error> {
    let mut call = client
        .get(format!("http://{service}/orders/{request}"))
        .header("authorization", format!("Bearer {}", token(request)));
    if let Some(traceparent) = traceparent(request) {
        call = call.header("traceparent", traceparent);
    }
    let response = call.send().await?;
    let success = response.status().is_success();
    response.bytes().await?;
    Ok(success)
}

/// In each ten requests, the first two continue one and the same trace, the third one of its own.
fn traceparent(request: usize) -> Option<String> {
    let trace = match request % 10 {
        0 | 1 => request / 10 * 10,
        2 => request,
        _ => return None,
    };
    Some(format!("00-{:032x}-{:016x}-01", trace + 1, request + 1))
}
