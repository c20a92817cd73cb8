//! The exporter against real HTTP over loopback, through the default client of whichever client feature is on.

#![allow(
    clippy::unwrap_used,
    reason = "a test that panics has failed, which is what it is for"
)]
#![cfg(any(feature = "reqwest", feature = "hyper", feature = "reqwest-blocking"))]

mod check;
mod circuit;
mod custom_client;
mod delivery;
#[cfg(feature = "internal-logs")]
mod logs;
#[cfg(feature = "metrics")]
mod metrics;
mod processors;
mod retry;
mod signals;
mod support;
mod token_client;
