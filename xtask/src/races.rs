//! The race models: the unit tests named `races`, under the checkers of interleavings that they are written for.
//!
//! Each checker is a build of its own, in a target folder of its own: the locks of the crates come from the checker then,
//! and nothing else can use such a build.

use std::process::Command;

use crate::command::{Outcome, output, run};
use crate::tools::root;

/// What models need of the crates, and nothing else: each feature is code that a checker would have to see.
const FEATURES: &str = "opentelemetry-per-request/logs,opentelemetry-per-request/metric-reader";

/// A checker, and the crates that have models for it.
const CHECKERS: [(&str, &[&str]); 2] = [
    (
        "loom",
        &["opentelemetry-per-request", "opentelemetry-otlp-direct"],
    ),
    ("shuttle", &["opentelemetry-per-request"]),
];

/// Runs the models with one of these in their name, or all.
pub(crate) fn races(only: &[&str]) -> Outcome {
    let only = match only {
        [] => &["races::"],
        only => only,
    };
    let mut found = false;
    for (checker, packages) in CHECKERS {
        let mut list = tests(checker, packages, only);
        list.arg("--list");
        if output(list)?.lines().any(|line| line.ends_with(": test")) {
            found = true;
            run(tests(checker, packages, only))?;
        }
    }
    match found {
        true => Ok(()),
        false => Err(format!("no model has {} in its name", only.join(" or "))),
    }
}

fn tests(checker: &str, packages: &[&str], only: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command.args(["test", "--lib", "--no-default-features"]);
    command.args(["--features", FEATURES]);
    for package in packages {
        command.args(["--package", package]);
    }
    command
        // Other unit tests cannot run here: outside of a model a checker's locks panic.
        .args(["--", "--skip", "tests::", "--skip", "model::"])
        .args(only)
        .env("CARGO_TARGET_DIR", root().join("target/races"))
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "1")
        .env(
            "RUSTFLAGS",
            format!("--cfg races --cfg races=\"{checker}\""),
        );
    command
}
