//! Whether the published crates keep what they promised: their public API beside that of an earlier commit.

use std::process::Command;

use crate::command::{Outcome, run};
use crate::steps::published;
use crate::tools::tool;

const CARGO_SEMVER_CHECKS_VERSION: &str = "0.51.0";

pub(crate) fn semver(arguments: &[&str]) -> Outcome {
    let [baseline] = arguments else {
        return Err("usage: cargo xtask semver <commit or tag>".to_owned());
    };
    let program = tool(
        "cargo-semver-checks",
        "cargo-semver-checks",
        CARGO_SEMVER_CHECKS_VERSION,
        &["--locked"],
    )?;
    let mut command = Command::new(program);
    command.args(["semver-checks", "--baseline-rev", baseline]);
    for package in published() {
        command.args(["--package", package]);
    }
    run(command)
}
