//! The search for hostile input: every property of the two `hostile` modules as a fuzz target, guided by coverage.
//!
//! What it has seen is kept in `target/fuzz`, the few inputs that reach most of it in `fuzz/corpus`, and each input that broke
//! a property in `fuzz/found`. The last two belong to the repository: each `cargo test` asks for them again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{Outcome, output, run};
use crate::steps::published;
use crate::tools::{modified, root, tool};

const CARGO_FUZZ_VERSION: &str = "0.13.1";

const DEFAULT_SECONDS: u32 = 60;

/// Longer inputs are slower and, so far, have reached nothing that shorter ones do not.
const MAX_BYTES: u32 = 4096;

/// As many inputs are kept for a target: a test runs all of them each time, and nobody wants to review more.
const KEPT: usize = 20;

/// `[seconds] [target]...`, or `keep [target]...`.
pub(crate) fn fuzz(arguments: &[&str]) -> Outcome {
    let fuzz = Fuzz {
        program: tool("cargo-fuzz", "cargo-fuzz", CARGO_FUZZ_VERSION, &[])?,
    };
    if let ["keep", only @ ..] = arguments {
        return chosen(only)?.iter().try_for_each(|name| fuzz.keep(name));
    }
    let (seconds, only) = match arguments {
        [first, rest @ ..] if first.parse::<u32>().is_ok() => (first.parse().ok(), rest),
        all => (None, all),
    };
    let seconds = seconds.unwrap_or(DEFAULT_SECONDS);
    let mut broken = Vec::new();
    for name in chosen(only)? {
        println!("==> {name}, for {seconds} s");
        // The others are still searched when one was found to be broken.
        if let Err(error) = fuzz.search(&name, seconds) {
            broken.push(format!("{name}: {error}"));
        }
    }
    match broken.is_empty() {
        true => Ok(()),
        false => Err(format!(
            "{}\nThe inputs are in fuzz/found: `cargo test` shows what they break.",
            broken.join("\n")
        )),
    }
}

/// Lints what the targets use of the crates. The targets themselves are only looked at, since libFuzzer takes a while to build.
pub(crate) fn lint() -> Outcome {
    let mut format = Command::new(env!("CARGO"));
    format
        .args(["fmt", "--check"])
        .current_dir(root().join("fuzz"));
    run(format)?;
    // A workspace of its own has a lock file of its own, which follows nobody.
    let mut locked = Command::new(env!("CARGO"));
    locked
        .args(["metadata", "--locked", "--format-version", "1"])
        .current_dir(root().join("fuzz"));
    output(locked)?;
    let mut clippy = Command::new(env!("CARGO"));
    clippy
        .args(["clippy", "--quiet"])
        .args(published().flat_map(|package| ["--package", package]))
        .args(["--", "-D", "warnings"])
        .env("RUSTFLAGS", "--cfg fuzzing")
        .env("CARGO_TARGET_DIR", root().join("target/fuzzing"));
    run(clippy)
}

/// The targets of these names, or all.
fn chosen(only: &[&str]) -> Result<Vec<String>, String> {
    let folder = root().join("fuzz/targets");
    let files = fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut known: Vec<_> = files
        .filter_map(|file| Some(file.ok()?.path().file_stem()?.to_str()?.to_owned()))
        .collect();
    known.sort();
    if let Some(unknown) = only.iter().find(|name| !known.iter().any(|k| k == *name)) {
        return Err(format!(
            "no target `{unknown}`; there are: {}",
            known.join(", ")
        ));
    }
    known.retain(|name| only.is_empty() || only.contains(&name.as_str()));
    Ok(known)
}

/// cargo-fuzz, which builds a target and runs it.
struct Fuzz {
    program: PathBuf,
}

impl Fuzz {
    fn search(&self, target: &str, seconds: u32) -> Outcome {
        let seen = existing(format!("target/fuzz/corpus/{target}"))?;
        let kept = existing(format!("fuzz/corpus/{target}"))?;
        let found = existing(format!("fuzz/found/{target}"))?;
        let mut command = self.command(target);
        command
            .args([seen, kept])
            .arg("--")
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-max_len={MAX_BYTES}"))
            .arg(format!("-artifact_prefix={}/", found.display()))
            // In seconds, for one input: nothing is waited for.
            .args(["-timeout=10", "-print_final_stats=1"]);
        run(command)
    }

    /// Replaces what is kept for a target by the few inputs that reach most of what all that it has seen reach.
    fn keep(&self, target: &str) -> Outcome {
        let seen = existing(format!("target/fuzz/corpus/{target}"))?;
        let kept = existing(format!("fuzz/corpus/{target}"))?;
        let fewest = existing(format!("target/fuzz/fewest/{target}"))?;
        clear(&fewest)?;
        let mut command = self.command(target);
        command
            .args([&fewest, &kept, &seen])
            // Without counters: what code is reached matters, and not how often.
            .args(["--", "-set_cover_merge=1", "-use_counters=0"])
            .arg(format!("-max_len={MAX_BYTES}"));
        run(command)?;
        clear(&kept)?;
        let mut fewest = files(&fewest)?;
        // They were written one after the other, first those that reach most.
        fewest.sort_by_cached_key(|file| modified(file));
        for file in fewest.iter().take(KEPT) {
            let name = file.file_name().unwrap_or_default();
            fs::copy(file, kept.join(name)).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    fn command(&self, target: &str) -> Command {
        let mut command = Command::new(&self.program);
        // Sanitizers look for errors that only `unsafe` code can have, and need a nightly compiler.
        command
            .args(["run", "--sanitizer", "none", "--target-dir"])
            .arg(root().join("target/fuzz"))
            .arg(target)
            .current_dir(root());
        command
    }
}

fn existing(folder: String) -> Result<PathBuf, String> {
    let folder = root().join(folder);
    match fs::create_dir_all(&folder) {
        Ok(()) => Ok(folder),
        Err(error) => Err(format!("{}: {error}", folder.display())),
    }
}

fn clear(folder: &Path) -> Outcome {
    let mut files = files(folder)?.into_iter();
    files.try_for_each(|file| fs::remove_file(file).map_err(|error| error.to_string()))
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok(entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect())
}
