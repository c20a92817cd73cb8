//! What a handler calls: no span, tracer or context is handed to any of it.

use std::sync::LazyLock;
use std::time::Duration;

use opentelemetry::global;
use opentelemetry::metrics::Counter;
use opentelemetry_per_request::workers::TracedFetch;
use opentelemetry_per_request::{Outcome, active_span, in_child, in_child_sync};
use tracing::info;
use worker::{Delay, Result};

static LOADED: LazyLock<Counter<u64>> =
    LazyLock::new(|| global::meter("orders").u64_counter("orders.loaded").build());

pub(crate) struct Order {
    pub(crate) number: u32,
    pub(crate) price: String,
}

/// It is no error.
impl Outcome for Order {}

/// An order with its price: that of a service of somebody else's, if there is one.
pub(crate) async fn load(number: u32, prices: Option<String>) -> Result<Order> {
    in_child("load order", async {
        let row = in_child("find order", find(number)).await;
        let price = match prices {
            Some(url) => price(url).await?,
            None => "unknown".to_owned(),
        };
        info!(order = row, "loaded");
        LOADED.add(1, &[]);
        Ok(Order { number: row, price })
    })
    .await
}

async fn find(number: u32) -> u32 {
    in_child("query database", async {
        Delay::from(Duration::from_millis(5)).await;
        in_child_sync("read row", || {
            in_child_sync("read number", || {
                // Five levels below the request.
                active_span().set_attribute("order", i64::from(number));
                number
            })
        })
    })
    .await
}

/// The call is a span of its own, and takes the trace along.
async fn price(url: String) -> Result<String> {
    let mut response = TracedFetch::url(url).send().await?;
    response.text().await
}

pub(crate) async fn send_receipt(number: u32) {
    Delay::from(Duration::from_millis(50)).await;
    in_child("send receipt", async {
        active_span().set_attribute("order", i64::from(number));
    })
    .await;
}
