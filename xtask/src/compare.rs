//! `cargo xtask compare`: the SDK's processors and ours in the same scenarios.

use crate::command::{Outcome, cargo};

/// Runs the member `compare`, in release, with these arguments.
pub(crate) fn compare(arguments: &[&str]) -> Outcome {
    let mut command = vec!["run", "--quiet", "--release", "--package", "compare", "--"];
    command.extend(arguments);
    cargo(&command)
}
