//! Lines on the console of the Worker, where its user looks. Not through `tracing`: a subscriber there may be one that makes
//! spans, and would come back to us.

use worker::{console_error, console_log, console_warn};

/// What every line starts with.
const NAME: &str = env!("CARGO_PKG_NAME");

pub(crate) fn error(line: &str) {
    console_error!("{NAME}: {line}");
}

pub(crate) fn warn(line: &str) {
    console_warn!("{NAME}: {line}");
}

pub(crate) fn log(line: &str) {
    console_log!("{NAME}: {line}");
}
