//! A receiver to try things out with: real OTLP over real sockets, inside the process.

#![forbid(unsafe_code)]

pub mod receiver;

/// The code in the documents is compiled, and run where it can be.
#[cfg(doctest)]
mod documents {
    #[doc = include_str!("../../README.md")]
    struct Readme;
    #[doc = include_str!("../../docs/REQUESTS.md")]
    struct Requests;
    #[doc = include_str!("../../processor/README.md")]
    struct Processor;
    #[doc = include_str!("../../exporter/README.md")]
    struct Exporter;
}
