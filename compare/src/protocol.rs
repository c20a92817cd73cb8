//! What a child process tells its parent: lines of JSON on its standard output.

use std::io::{self, Write as _};

use serde::{Deserialize, Serialize};

use crate::service::Said;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Line {
    /// So many sampled spans have begun to end, or log records to be emitted.
    Ended(u64),
    /// The collector is to go down now, and to come back after so many milliseconds.
    CollectorDown(u64),
    /// The scenario is over. What arrives from now on still counts.
    Done(Done),
}

/// The child's part of the result.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Done {
    pub(crate) ended: u64,
    pub(crate) held_up_ms: f64,
    /// How much more memory the process had at most than before the traffic. None where the system does not say.
    pub(crate) grown_bytes: Option<u64>,
    pub(crate) said: Said,
    /// What ours counts.
    pub(crate) account: Option<Account>,
}

/// Losses and late items, as ours counts them.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Account {
    pub(crate) lost: u64,
    /// What is still inside of it, and may be lost or not.
    pub(crate) pending: u64,
    pub(crate) late: u64,
}

impl Line {
    /// Says it. A parent that has gone does not hear it.
    pub(crate) fn say(&self) {
        let mut out = io::stdout().lock();
        let _ = serde_json::to_writer(&mut out, self);
        let _ = writeln!(out);
        let _ = out.flush();
    }
}
