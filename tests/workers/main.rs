//! Tests of Workers in workerd, with a real receiver outside of it. `cargo xtask test workers` builds the Workers first.

#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "the helpers of tests are tests too"
)]

mod background;
mod budget;
mod cancelled;
mod events;
mod example;
mod faults;
mod fetch;
mod harness;
mod isolation;
mod one_request;
mod open_events;
mod panics;
mod requests;
mod set_up;
mod signals;
mod spans;
mod support;
mod tracing;
