//! An independent check of what goes over the wire: protobuf's Python library decodes captured bodies.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{Outcome, cargo, run};
use crate::tools::{install_packages, root};

/// Debian's Python, for a machine that has none or none that makes virtual environments.
const DEBIAN_PACKAGES: [&str; 2] = ["python3", "python3-venv"];

/// Sends every signal in both encodings to a receiver that keeps the bodies, and has Python decode and compare them.
pub(crate) fn python() -> Outcome {
    let interpreter = environment()?;
    let bodies = root().join("target/python-check");
    // What an earlier run has left is no answer.
    if bodies.exists() {
        fs::remove_dir_all(&bodies).map_err(|error| format!("{}: {error}", bodies.display()))?;
    }
    let example = [
        "--package",
        "integration-tests",
        "--example",
        "python_check",
    ];
    let folder = bodies.to_string_lossy();
    cargo(&[&["run", "--quiet"], &example[..], &["--", &*folder]].concat())?;
    let mut decode = Command::new(interpreter);
    decode
        .arg(root().join("tests/python/decode.py"))
        .arg(&bodies);
    run(decode)
}

/// The Python of a virtual environment with what `requirements.txt` pins, made anew when that has changed.
fn environment() -> Result<PathBuf, String> {
    let folder = root().join("target/python");
    let interpreter = folder.join("bin/python");
    let requirements = root().join("tests/python/requirements.txt");
    let installed = folder.join("installed.txt");
    let wanted = read(&requirements)?;
    if interpreter.exists() && read(&installed).is_ok_and(|installed| installed == wanted) {
        return Ok(interpreter);
    }
    create(&folder).or_else(|first| {
        install_packages(&DEBIAN_PACKAGES)
            .and_then(|()| create(&folder))
            .map_err(|second| {
                format!(
                    "Python cannot make a virtual environment here. As root on Debian run \
                     `apt-get install {}`. What was tried:\n{first}\n{second}",
                    DEBIAN_PACKAGES.join(" ")
                )
            })
    })?;
    let mut install = Command::new(&interpreter);
    install
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ])
        .arg("--requirement")
        .arg(&requirements);
    run(install)?;
    fs::write(&installed, wanted).map_err(|error| format!("{}: {error}", installed.display()))?;
    Ok(interpreter)
}

fn create(folder: &Path) -> Outcome {
    let mut venv = Command::new("python3");
    venv.args(["-m", "venv", "--clear"]).arg(folder);
    run(venv)
}

fn read(file: &Path) -> Result<String, String> {
    fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))
}
