//! Programs that are not Rust's own: found where they are, or installed to `target/tools`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use crate::command::{Outcome, output, run};

/// The folder of the workspace.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map_or_else(PathBuf::new, Path::to_path_buf)
}

/// The program in this version: ours, or one on the `PATH`, or a new one, installed with these options.
pub(crate) fn tool(
    package: &str,
    program: &str,
    version: &str,
    options: &[&str],
) -> Result<PathBuf, String> {
    let tools = root().join("target/tools");
    let ours = tools.join("bin").join(program);
    for known in [ours.clone(), PathBuf::from(program)] {
        if has_version(&known, version) {
            return Ok(known);
        }
    }
    let mut install = Command::new(env!("CARGO"));
    install
        .args(["install", "--force", "--root"])
        .arg(tools)
        .args(options)
        .arg(format!("{package}@{version}"));
    run(install)?;
    Ok(ours)
}

/// Installs packages of a Debian, as root.
pub(crate) fn install_packages(packages: &[&str]) -> Outcome {
    let apt = |arguments: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        run(apt)
    };
    apt(&["update", "--quiet"])?;
    let install = ["install", "--yes", "--quiet", "--no-install-recommends"];
    apt(&[&install[..], packages].concat())
}

fn has_version(program: &Path, version: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version");
    // `wasm-bindgen 0.2.0`, or only the number.
    output(command).is_ok_and(|said| said.split_whitespace().last() == Some(version))
}

/// When a file was last changed, if it is there.
pub(crate) fn modified(file: &Path) -> Option<SystemTime> {
    fs::metadata(file).ok()?.modified().ok()
}
