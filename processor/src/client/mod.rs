//! A CLIENT span around each call of another server, and its trace on the way there.
//!
//! Calls are traced below the active span: where none is active, or telemetry is suppressed, as it is for the requests
//! of an exporter, a request goes out as it is.
//!
//! | the client | |
//! |---|---|
//! | `reqwest` | [`send`], or [`ClientLayer`], with the feature `reqwest` |
//! | a tower service of `http::Request`: that of `hyper-util`, tonic's `Channel` | [`ClientLayer`], with the feature `tower` |
//! | anything else with an `http::HeaderMap` | [`inject`] in a span of your own, or [`OutgoingRequest`] for its request |
//! | `fetch` in a Worker | `workers::TracedFetch` |
//!
//! # What the span says
//!
//! It follows the semantic conventions for HTTP, 1.45: the name is the method; `url.full` is without user info and
//! fragment, and of a query only the names are kept, because the values may be secrets ([`ClientLayer::with_query`]
//! keeps more). A status from 400 on is an error, with the status as `error.type`. An error of the call is one, too:
//! `error.type` is the name of its type, or for `reqwest`, `timeout` or `connect` where it is one. There is no message,
//! since those of clients show URLs. A call that is dropped before there is an answer has the attribute
//! [`per_request.cancelled`](crate::CANCELLED_ATTRIBUTE) instead, and is no error.
//!
//! A call of gRPC (by its content type) follows the conventions for RPC: the name is the method, and `rpc.status_code`
//! a name such as `NOT_FOUND`. All but `OK` are errors. For tonic's `Channel` the request does not say whom it calls;
//! see [`ClientLayer::with_attributes`].
//!
//! # When it ends
//!
//! When the response's head is there, as the conventions have it, because nobody has to read the body. What the client does
//! before that, such as redirects, is inside of the one span. The status of gRPC comes behind the body: the span of such a
//! call ends with the body, or when that is dropped, which is a cancelled call.

#[cfg(feature = "tower")]
mod body;
pub(crate) mod describe;
pub(crate) mod headers;
#[cfg(feature = "tower")]
mod layer;
#[cfg(feature = "tower")]
mod message;
#[cfg(feature = "tower")]
mod service;

#[cfg(feature = "tower")]
pub use body::ClientBody;
pub use headers::inject;
#[cfg(feature = "tower")]
pub use layer::{ClientLayer, send};
#[cfg(feature = "tower")]
pub use message::{IncomingResponse, OutgoingRequest, Rest};
#[cfg(feature = "tower")]
pub use service::{Client, ClientFuture};
