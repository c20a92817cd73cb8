//! placeholder docs
#![forbid(unsafe_code)]

mod config;
mod dispatch;
mod error;
mod export;
mod handle;
mod hash;
#[cfg(feature = "metrics")]
mod metrics;
mod notices;
mod processor;
mod registry;
mod request;
mod runtime;
mod stats;
mod sync;
#[cfg(test)]
mod testing;

pub use config::{
    Config, DEFAULT_EXPORT_TIMEOUT, DEFAULT_MAX_BATCH_SIZE, DEFAULT_MAX_CONCURRENT_EXPORTS,
    DEFAULT_MAX_PENDING_SPANS, DEFAULT_MAX_SPANS_PER_TRACE, DEFAULT_MAX_TRACES, ENABLED,
    EXPORT_TIMEOUT_MS, FLUSH_TRIGGER, FlushTrigger, MAX_BATCH_SIZE, MAX_CONCURRENT_EXPORTS,
    MAX_PENDING_SPANS, MAX_SPANS_PER_TRACE, MAX_TRACES,
};
pub use error::{ConfigError, Deadlock, FlushError};
pub use handle::Handle;
pub use processor::{Builder, PerRequestSpanProcessor};
pub use stats::{DropReason, Dropped, Late, LateReason, Stats};
