//! `cargo xtask soak`: the member `soak`, for as long as one likes.

use crate::command::{Outcome, cargo};

/// As a step of the tests: its short form, unoptimized, because that is built already. Optimized it takes less time, and
/// much more to build.
pub(crate) fn step() -> Outcome {
    cargo(&["run", "--quiet", "--package", "soak"])
}

/// In release, with the arguments that it is given: `--minutes <n>`, and the names of scenarios.
pub(crate) fn soak(arguments: &[&str]) -> Outcome {
    let program = ["run", "--release", "--quiet", "--package", "soak", "--"];
    cargo(&[&program, arguments].concat())
}
