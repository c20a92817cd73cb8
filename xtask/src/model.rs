//! The model test of the processor, searching longer than `cargo xtask test` does.

use std::process::Command;

use crate::command::{Outcome, run};

/// Sequences on each platform, if none are asked for: some minutes.
const SEQUENCES: &str = "1000000";

pub(crate) fn model(options: &[&str]) -> Outcome {
    let sequences = match options {
        [] => SEQUENCES,
        [sequences] if sequences.parse::<u32>().is_ok() => sequences,
        _ => return Err("usage: cargo xtask model [sequences]".to_owned()),
    };
    let mut command = Command::new(env!("CARGO"));
    command
        .args([
            "test",
            "--release",
            "--package",
            "opentelemetry-per-request",
        ])
        .args(["--all-features", "--lib", "dispatch::model"])
        .env("PROPTEST_CASES", sequences);
    run(command)
}
