//! The steps of `cargo xtask test`, in the order in which they are cheapest to fail.

use std::process::Command;
use std::time::Instant;

use crate::command::{Outcome, cargo, output, run};
use crate::compare::compare;
use crate::demo::demo;
use crate::deny::deny;
use crate::documents;
use crate::fuzz;
use crate::python::python;
use crate::races::races;
use crate::soak;
use crate::workers::workers;

/// The crates that are published, with the features that must each compile alone.
const PUBLISHED: [(&str, &[&str]); 2] = [
    (
        "opentelemetry-per-request",
        &[
            "tokio",
            "metrics",
            "internal-logs",
            "logs",
            "metric-reader",
            "tower",
            "axum",
            "reqwest",
            "tracing",
        ],
    ),
    (
        "opentelemetry-otlp-direct",
        &[
            "reqwest",
            "reqwest-blocking",
            "hyper",
            "tls",
            "gzip",
            "logs",
            "metric-export",
            "json",
            "metrics",
            "tonic",
            "internal-logs",
        ],
    ),
];

const EXAMPLES: [&str; 8] = [
    "direct",
    "three_signals",
    "otlp_http",
    "otlp_grpc",
    "per_request_tokens",
    "axum_service",
    "deep_library",
    "tracing",
];

/// The names of the crates that are published.
pub(crate) fn published() -> impl Iterator<Item = &'static str> {
    PUBLISHED.iter().map(|(package, _)| *package)
}

/// A named part of `cargo xtask test`.
struct Step {
    name: &'static str,
    run: fn() -> Outcome,
}

const STEPS: &[Step] = &[
    Step {
        name: "format",
        run: || cargo(&["fmt", "--all", "--check"]),
    },
    Step {
        name: "lints",
        run: lints,
    },
    Step {
        name: "features",
        run: features,
    },
    Step {
        name: "docs",
        run: docs,
    },
    Step {
        name: "deny",
        run: deny,
    },
    Step {
        name: "package",
        run: package,
    },
    Step {
        name: "examples",
        run: examples,
    },
    Step {
        name: "demo",
        run: demo,
    },
    Step {
        name: "compare",
        run: || compare(&["--check"]),
    },
    Step {
        name: "soak",
        run: soak::step,
    },
    Step {
        name: "allocations",
        // They are counted, not timed, so they can fail.
        run: || {
            let program = ["--package", "benches", "--bin", "layer_allocations"];
            cargo(&[&["run", "--quiet"], &program[..]].concat())
        },
    },
    Step {
        name: "races",
        run: || races(&[]),
    },
    Step {
        name: "workers",
        run: workers,
    },
    Step {
        name: "clients",
        run: clients,
    },
    Step {
        name: "python",
        run: python,
    },
    Step {
        name: "tests",
        // Last, so that the runner's own closing lines close the output.
        run: || cargo(&["test", "--workspace", "--all-features", "--no-fail-fast"]),
    },
];

pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    STEPS.iter().map(|step| step.name)
}

/// Runs the steps that are named, or all.
pub(crate) fn test(only: &[&str]) -> Outcome {
    if let Some(unknown) = only.iter().find(|name| !names().any(|step| step == **name)) {
        let known: Vec<_> = names().collect();
        return Err(format!(
            "no step `{unknown}`; there are: {}",
            known.join(", ")
        ));
    }
    let wanted = |step: &&Step| only.is_empty() || only.contains(&step.name);
    let start = Instant::now();
    for step in STEPS.iter().filter(wanted) {
        // Nothing after a step: the last one's own closing lines are to close the output.
        println!(
            "==> {} ({:.0} s so far)",
            step.name,
            start.elapsed().as_secs_f64()
        );
        (step.run)().map_err(|error| format!("step `{}` failed: {error}", step.name))?;
    }
    Ok(())
}

/// Runs the benchmarks of the member `benches`, in release.
pub(crate) fn bench(options: &[&str]) -> Outcome {
    match options {
        [] => cargo(&["bench", "--package", "benches"]),
        ["--json"] => {
            // The report starts another program of the package, so that has to be there, too.
            cargo(&["build", "--release", "--package", "benches", "--bins"])?;
            cargo(&[
                "run",
                "--release",
                "--package",
                "benches",
                "--bin",
                "report",
            ])
        }
        _ => Err("usage: cargo xtask bench [--json]".to_owned()),
    }
}

fn lints() -> Outcome {
    cargo(&[
        "clippy",
        "--workspace",
        "--all-targets",
        "--all-features",
        "--",
        "-D",
        "warnings",
    ])?;
    fuzz::lint()
}

/// Each published crate without default features, and with each feature alone.
fn features() -> Outcome {
    for (package, features) in PUBLISHED {
        for feature in std::iter::once(&"").chain(features) {
            cargo(&[
                "clippy",
                "--quiet",
                "--package",
                package,
                "--no-default-features",
                "--features",
                feature,
                "--",
                "-D",
                "warnings",
            ])?;
        }
        let mut tree = Command::new(env!("CARGO"));
        tree.args(["tree", "--package", package, "--all-features"])
            .args(["--edges", "normal"]);
        if output(tree)?.lines().any(|line| line.contains(" worker v")) {
            return Err(format!(
                "{package} pulls the crate `worker` into a native build"
            ));
        }
    }
    Ok(())
}

/// The fault matrix through the default HTTP clients that are not the default one when all features are on.
fn clients() -> Outcome {
    for client in ["hyper", "reqwest-blocking"] {
        cargo(&[
            "test",
            "--package",
            "integration-tests",
            "--test",
            "faults",
            "--no-default-features",
            "--features",
            client,
            "--",
            // The others do not depend on the features.
            "default_client",
            "over_the_processor",
        ])?;
    }
    Ok(())
}

fn docs() -> Outcome {
    documents::check()?;
    let mut command = Command::new(env!("CARGO"));
    command
        .args(["doc", "--workspace", "--no-deps", "--all-features"])
        .env("RUSTDOCFLAGS", "-D warnings");
    run(command)
}

/// Runs each example: they check what arrived.
fn examples() -> Outcome {
    for example in EXAMPLES {
        cargo(&["run", "--quiet", "--package", "demo", "--example", example])?;
    }
    Ok(())
}

fn package() -> Outcome {
    let mut arguments = vec!["package", "--allow-dirty"];
    for package in published() {
        arguments.extend(["--package", package]);
    }
    cargo(&arguments)
}
