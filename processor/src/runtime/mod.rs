//! The only code that waits: it moves batches from `Dispatch` to the exporter, and tells who waits for them.
//!
//! There are two, of which one is compiled: threads, and Cloudflare Workers, which have none. Both offer the same `Shared`.

#[cfg(not(target_family = "wasm"))]
mod threads;
#[cfg(target_family = "wasm")]
mod workers;

#[cfg(not(target_family = "wasm"))]
pub(crate) use threads::{OwnRuntime, Shared};
#[cfg(target_family = "wasm")]
pub(crate) use workers::{OwnRuntime, Shared};

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Drops what runs code of the exporter's or of the user's when it is dropped. Never under the lock. A panic in there is told
/// by the panic hook, and not passed on (R14).
fn drop_quietly<T>(value: T) {
    let _ = catch_unwind(AssertUnwindSafe(|| drop(value)));
}
