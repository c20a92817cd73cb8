//! The layer of servers over real HTTP: axum, hyper and tonic on loopback, asked by real clients and by bare sockets.

mod bodies;
mod contexts;
mod contract;
mod disconnects;
mod failures;
mod grpc;
mod http;
mod interleaved;
mod nobody_waits;
pub(crate) mod site;
