//! Other programs: how they are run, and what their ends mean.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

pub(crate) type Outcome = Result<(), String>;

pub(crate) fn cargo(arguments: &[&str]) -> Outcome {
    let mut command = Command::new(env!("CARGO"));
    command.args(arguments);
    run(command)
}

pub(crate) fn run(mut command: Command) -> Outcome {
    let status = command
        .env("NO_PROXY", no_proxy())
        .status()
        .map_err(|error| format!("{command:?} could not be started: {error}"))?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("{command:?} ended with {status}")),
    }
}

/// What is tested is on this machine, also where everything else is behind a proxy. What is named already stays.
pub(crate) fn no_proxy() -> String {
    let named = std::env::var("NO_PROXY").unwrap_or_default();
    format!("127.0.0.1,localhost,{named}")
}

/// Kills it when it takes longer.
pub(crate) fn run_within(mut command: Command, limit: Duration) -> Outcome {
    let mut child = command
        .spawn()
        .map_err(|error| format!("{command:?} could not be started: {error}"))?;
    let start = Instant::now();
    while start.elapsed() < limit {
        match child.try_wait() {
            Ok(None) => thread::sleep(Duration::from_millis(50)),
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(format!("{command:?} ended with {status}")),
            Err(error) => return Err(format!("{command:?}: {error}")),
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    Err(format!("{command:?} took longer than {limit:?}"))
}

/// What it says on its standard output. Fails as [`run`] does.
pub(crate) fn output(mut command: Command) -> Result<String, String> {
    let output = command
        .output()
        .map_err(|error| format!("{command:?} could not be started: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("{command:?} ended with {}", output.status)),
    }
}
