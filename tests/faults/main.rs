//! The fault matrix: everything that can be wrong with a collector, over real sockets, and what becomes of an export.
//!
//! [`table`] is the specification. [`over_the_exporter`] holds `DirectExporter` to it through every HTTP client, and
//! [`over_the_processor`] holds the processor with that exporter to it. [`fault`] says what each fault is on the wire.
#![allow(
    clippy::unwrap_used,
    reason = "a test that panics has failed, which is what it is for"
)]

mod client;
mod fault;
mod logs;
mod over_the_exporter;
mod over_the_processor;
mod run;
mod server;
mod signals;
mod table;
mod tls;
