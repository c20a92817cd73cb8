//! The Workers: what they are built with, the builds, and their tests in workerd.
//!
//! All that is installed is found again the next time, in `target/tools` and `tests/workers/node_modules`.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::command::{Outcome, cargo, run};
use crate::tools::{modified, root, tool};
use crate::wasm::{TARGET, Toolchain};

const WORKER_BUILD_VERSION: &str = "0.8.7";

/// The published crates, which must compile for Workers by themselves, and with all features that work there.
const PUBLISHED: [(&str, &str); 8] = [
    ("opentelemetry-per-request", "worker"),
    ("opentelemetry-per-request", "worker,logs"),
    ("opentelemetry-per-request", "worker,metric-reader"),
    ("opentelemetry-per-request", "worker,tower,axum"),
    (
        "opentelemetry-per-request",
        "worker,tokio,metrics,internal-logs,logs,metric-reader,tower,axum,reqwest,tracing",
    ),
    ("opentelemetry-otlp-direct", "worker"),
    ("opentelemetry-otlp-direct", "worker,logs,metric-export"),
    (
        "opentelemetry-otlp-direct",
        "worker,gzip,metrics,internal-logs,logs,metric-export,json,tonic",
    ),
];

/// What a Worker with telemetry around its events may have in code. It is a tenth more than it was before there was anything
/// else to use: what is not used is to cost nothing.
const MAX_TRACED_BYTES: usize = 246_000;

/// What every Worker may be made of.
const SHARED_SOURCES: [&str; 5] = [
    "processor",
    "exporter",
    "tests/workers/scenarios.rs",
    "tests/workers/scenarios",
    "Cargo.toml",
];

/// A Worker as it is built.
struct Build {
    /// The folder of its output, in `target/workers`.
    name: &'static str,
    folder: &'static str,
    features: &'static str,
}

const PLAIN: Build = Build {
    name: "plain",
    folder: "tests/workers/plain",
    features: "",
};

/// The same with telemetry around its events, which uses nothing else of it.
const TRACED: Build = Build {
    name: "traced",
    folder: "tests/workers/plain",
    features: "telemetry",
};

const EXAMPLE: Build = Build {
    name: "example",
    folder: "examples/worker",
    features: "",
};

/// The example with the routes that tests need.
const SCENARIOS: Build = Build {
    name: "scenarios",
    folder: "examples/worker",
    features: "scenarios",
};

/// Builds the Workers, and tests them in workerd.
pub(crate) fn workers() -> Outcome {
    let toolchain = Toolchain::prepare(&root().join("target/workers"))?;
    lint(&toolchain)?;
    let wasm_bindgen = tool(
        "wasm-bindgen-cli",
        "wasm-bindgen",
        &wasm_bindgen_version()?,
        // The rest is for tests in browsers.
        &["--no-default-features"],
    )?;
    let worker_build = tool("worker-build", "worker-build", WORKER_BUILD_VERSION, &[])?;
    install_packages()?;
    for worker in [PLAIN, TRACED, EXAMPLE, SCENARIOS] {
        if is_stale(&worker, &toolchain)? {
            build(&worker, &toolchain, &worker_build, &wasm_bindgen)?;
        }
    }
    report_size()?;
    cargo(&[
        "test",
        "--package",
        "integration-tests",
        "--test",
        "workers",
    ])
}

/// Wasm builds have a target folder of their own, so that no other build waits for them.
fn target_folder() -> PathBuf {
    root().join("target/workers/cargo")
}

// ===== Lints =====

fn lint(toolchain: &Toolchain) -> Outcome {
    for (package, features) in PUBLISHED {
        check(
            toolchain,
            &root(),
            &[
                "--package",
                package,
                "--no-default-features",
                "--features",
                features,
            ],
        )?;
    }
    for worker in [PLAIN, TRACED, SCENARIOS] {
        let folder = root().join(worker.folder);
        check(toolchain, &folder, &["--features", worker.features])?;
        let mut format = Command::new(env!("CARGO"));
        format.args(["fmt", "--check"]).current_dir(&folder);
        run(format)?;
    }
    // Not among the targets of the workspace's lints, because they cannot be run without the Workers.
    cargo(&[
        "clippy",
        "--package",
        "integration-tests",
        "--test",
        "workers",
        "--",
        "-D",
        "warnings",
    ])
}

/// Lints, or only compiles where there is no linter for wasm.
fn check(toolchain: &Toolchain, folder: &Path, arguments: &[&str]) -> Outcome {
    let mut cargo = toolchain.cargo();
    cargo
        .current_dir(folder)
        .env("CARGO_TARGET_DIR", target_folder());
    match toolchain.has_linter() {
        true => cargo
            .args(["clippy", "--target", TARGET])
            .args(arguments)
            .args(["--", "-D", "warnings"]),
        false => cargo.args(["check", "--target", TARGET]).args(arguments),
    };
    run(cargo)
}

// ===== Tools =====

/// The version that the Workers are compiled with: the program must have the same.
fn wasm_bindgen_version() -> Result<String, String> {
    let [example, plain] = [EXAMPLE, PLAIN].map(|worker| {
        let lock = root().join(worker.folder).join("Cargo.lock");
        let lock = read(&lock)?;
        let version = lock
            .split_once("name = \"wasm-bindgen\"\nversion = \"")
            .and_then(|(_, rest)| rest.split_once('"'));
        let (version, _) = version.ok_or("a Worker does not use wasm-bindgen")?;
        Ok::<_, String>(version.to_owned())
    });
    let (example, plain) = (example?, plain?);
    match example == plain {
        true => Ok(example),
        false => Err(format!(
            "the Workers use wasm-bindgen {example} and {plain}: `cargo update` in both"
        )),
    }
}

/// What runs on Node: workerd, and two programs that a build needs.
fn install_packages() -> Outcome {
    let folder = root().join("tests/workers");
    let installed = modified(&folder.join("node_modules/.package-lock.json"));
    if installed > modified(&folder.join("package-lock.json")) {
        return Ok(());
    }
    let mut npm = Command::new("npm");
    npm.args(["ci", "--loglevel=error"]).current_dir(folder);
    run(npm).map_err(|error| format!("{error}. Node.js 20 or later and its npm are needed"))
}

// ===== Builds =====

fn build(
    worker: &Build,
    toolchain: &Toolchain,
    worker_build: &Path,
    wasm_bindgen: &Path,
) -> Outcome {
    let programs = root().join("tests/workers/node_modules/.bin");
    let mut command = toolchain.command(worker_build);
    command
        .args(["--release", "--out-dir"])
        .arg(output_folder(worker))
        .args(["--", "--features", worker.features])
        .current_dir(root().join(worker.folder))
        .env("CARGO_TARGET_DIR", target_folder())
        // It would download all three.
        .env("WASM_BINDGEN_BIN", wasm_bindgen)
        .env("ESBUILD_BIN", programs.join("esbuild"))
        .env("WASM_OPT_BIN", programs.join("wasm-opt"));
    // As old as the beginning: what is edited during the build is newer.
    let begun = output_folder(worker).join(".begun");
    write(&begun, &toolchain.version()?)?;
    run(command)?;
    fs::rename(&begun, stamp(worker)).map_err(|error| format!("{}: {error}", begun.display()))
}

/// Whether a file that may matter is newer than the build, or the compiler is another one. Cargo cannot tell, since builds
/// of the same package with other features replace each other.
fn is_stale(worker: &Build, toolchain: &Toolchain) -> Result<bool, String> {
    let stamp = stamp(worker);
    if fs::read_to_string(&stamp).ok() != Some(toolchain.version()?) {
        return Ok(true);
    }
    let built = modified(&stamp);
    for source in SHARED_SOURCES.into_iter().chain([worker.folder]) {
        let newest = newest(&root().join(source));
        if newest.map_err(|error| format!("{source}: {error}"))? > built {
            return Ok(true);
        }
    }
    Ok(false)
}

fn newest(path: &Path) -> std::io::Result<Option<SystemTime>> {
    let metadata = fs::metadata(path)?;
    let mut newest = metadata.modified().ok();
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            newest = newest.max(self::newest(&entry?.path())?);
        }
    }
    Ok(newest)
}

fn stamp(worker: &Build) -> PathBuf {
    output_folder(worker).join(".built")
}

fn output_folder(worker: &Build) -> PathBuf {
    root().join("target/workers").join(worker.name)
}

/// How much code a Worker is, gzipped as it is uploaded: with nothing, with telemetry around its events, and the example,
/// whose own code uses telemetry, too.
fn report_size() -> Outcome {
    let (plain, traced, example) = (size(&PLAIN)?, size(&TRACED)?, size(&EXAMPLE)?);
    println!(
        "code size, gzipped: {plain} bytes without telemetry, {traced} with it, {example} of the example"
    );
    match traced <= MAX_TRACED_BYTES {
        true => Ok(()),
        false => Err(format!(
            "telemetry has become {traced} bytes, of at most {MAX_TRACED_BYTES}"
        )),
    }
}

fn size(worker: &Build) -> Result<usize, String> {
    let wasm = output_folder(worker).join("index_bg.wasm");
    let compressed = fs::read(&wasm).and_then(|wasm| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&wasm)?;
        encoder.finish()
    });
    let compressed = compressed.map_err(|error| format!("{}: {error}", wasm.display()))?;
    Ok(compressed.len())
}

fn write(file: &Path, text: &str) -> Outcome {
    let written = file.parent().map_or(Ok(()), fs::create_dir_all);
    let written = written.and_then(|()| fs::write(file, text));
    written.map_err(|error| format!("{}: {error}", file.display()))
}

fn read(file: &Path) -> Result<String, String> {
    fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))
}
