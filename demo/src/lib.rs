//! A receiver to try things out with: real OTLP over real sockets, inside the process.

#![forbid(unsafe_code)]

pub mod receiver;
