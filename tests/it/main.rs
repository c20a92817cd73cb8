//! What the crates of this workspace promise, asked from the outside: one module per feature.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "the helpers of tests are tests too"
)]

mod support;

mod accounting;
mod active;
mod batches;
mod bounds;
mod client;
mod contexts;
mod corners;
mod eviction;
mod flush;
mod isolation;
mod logs;
mod matrix;
mod metrics;
mod open_events;
mod promises;
mod reader;
mod receivers;
mod reentrancy;
mod release;
mod roots;
mod same_trace;
mod secrets;
mod server;
mod settings;
mod shutdown;
mod tracing;
mod waiting;
