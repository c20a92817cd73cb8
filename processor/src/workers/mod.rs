//! For Cloudflare Workers: telemetry around each event, settings from bindings, and what keeps exports alive.
//!
//! ```ignore
//! use opentelemetry_otlp_direct::DirectExporter;
//! use opentelemetry_per_request::workers::{SetUp, Telemetry};
//! use opentelemetry_per_request::{Config, PerRequestSpanProcessor};
//! use worker::{Context, Env, Request, Response, Result, event};
//!
//! static TELEMETRY: Telemetry = Telemetry::new(|env| {
//!     let exporter = DirectExporter::builder().with_worker_env(env).build()?;
//!     let processor = PerRequestSpanProcessor::builder(exporter)
//!         .with_config(Config::from_worker_env(env))
//!         .build()?;
//!     Ok(SetUp::new(processor))
//! });
//!
//! #[event(fetch)]
//! async fn fetch(request: Request, env: Env, ctx: Context) -> Result<Response> {
//!     TELEMETRY.instrument_fetch(request, env, ctx, handle).await
//! }
//!
//! async fn handle(_request: Request, _env: Env, _ctx: Context) -> Result<Response> {
//!     Response::ok("spans that start here are children of the request's span")
//! }
//! ```
//!
//! # What is different from a native service
//!
//! - There is one thread, and no I/O outside of an event. A batch leaves in the I/O context of the event in which a span
//!   made it leave, kept alive by `waitUntil`: nothing waits for a next request, and no request waits for another one.
//! - Spans leave when the local root ends ([`FlushTrigger::LocalRootEnd`](crate::FlushTrigger::LocalRootEnd)): one export for an
//!   ordinary request. What ends after the root leaves by itself.
//! - [`max_exports_per_request`](crate::Config::with_max_exports_per_request) keeps a request within its subrequests.
//! - [`force_flush`](opentelemetry_sdk::trace::SpanProcessor::force_flush) can send, but not wait; use
//!   [`Handle::flush`](crate::Handle::flush).
//! - A panic is the end of the instance, also one in the context projection or in an exporter.
//! - When the runtime cancels a request, its spans that have not ended never end. Its queued spans leave when its trace is
//!   evicted, or with a flush, in the event of another request; a request sends four batches of others when it starts, at
//!   the most.
//! - Warnings are on the console.

mod carrier;
pub(crate) mod console;
mod env;
mod events;
mod fetch;
mod keep_alive;
mod rescue;
mod root;
mod telemetry;
mod timer;

pub use crate::http::{IncomingRequest, OutgoingResponse};
pub(crate) use env::resource_of_instance;

pub use carrier::{WorkerHeaderExtractor, WorkerHeaderInjector};
pub use fetch::TracedFetch;
pub(crate) use keep_alive::KeepAlive;
pub use keep_alive::WaitUntil;
pub use opentelemetry_http::{HeaderExtractor, HeaderInjector};
pub use telemetry::{SetUp, Telemetry};
pub(crate) use timer::sleep;
