//! The native runtime: one driver thread that paces everything, and workers that call the exporter.
//!
//! A span that ends wakes nobody while the driver is awake. The driver lets a millisecond pass, takes all that is due, and
//! calls for a worker; it never calls the exporter itself, nor a log subscriber, so neither can stop it. Workers start
//! exports and poll those that were woken, whoever started them, so an export that blocks its thread holds up no other.
//! While the exporter is not known to return quickly, a worker that takes something calls for another one for the rest; and
//! when there is something to take and nobody took it for a while, all workers are blocked, and the driver calls for one.

mod driver;
mod pool;
mod worker;

use std::thread;

use opentelemetry::Context;

use crate::runtime::wait::mark_own_thread;

pub(crate) use driver::spawn_driver;
pub(crate) use pool::{Pool, Summons};

/// Starts a thread of ours: one that is never traced, and on which nobody may wait for us.
fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let _suppressed = Context::enter_telemetry_suppressed_scope();
            mark_own_thread();
            run();
        })
        .map(drop)
}
