//! The tests of the pure parts under Miri. Neither crate has `unsafe`; this is about what they build on, as they use it.
//!
//! Miri comes with nightly compilers only, so this is no step of `cargo xtask test`.

use std::process::Command;

use crate::command::{Outcome, run};
use crate::tools::root;

/// The pure parts of each crate, by their tests. Property tests are left out: Miri is a few hundred times as slow.
const PURE: [(&str, &[&str]); 2] = [
    (
        "opentelemetry-per-request",
        &[
            "dispatch::tests",
            "hash::tests",
            "notices::tests",
            "request::tests",
            "stats::tests",
        ],
    ),
    (
        "opentelemetry-otlp-direct",
        &[
            "circuit::tests",
            "credentials::tests",
            "redact::tests",
            "retry::tests",
            "stats::tests",
            "telemetry::tests",
        ],
    ),
];

pub(crate) fn miri(arguments: &[&str]) -> Outcome {
    if !arguments.is_empty() {
        return Err("usage: cargo xtask miri".to_owned());
    }
    let mut component = Command::new("rustup");
    component.args([
        "component",
        "add",
        "miri",
        "rust-src",
        "--toolchain",
        "nightly",
    ]);
    run(component).map_err(|error| {
        format!("{error}. Miri needs a nightly compiler: `rustup toolchain install nightly`")
    })?;
    for (package, tests) in PURE {
        let mut command = Command::new("cargo");
        command
            .args(["+nightly", "miri", "test", "--package", package])
            .args(["--no-default-features", "--lib", "--"])
            .args(tests)
            .env("CARGO_TARGET_DIR", root().join("target/miri"));
        run(command)?;
    }
    Ok(())
}
