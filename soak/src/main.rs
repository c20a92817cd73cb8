//! `cargo xtask soak`: the processor and the exporter under load for as long as one likes, and what stays of it.

#![forbid(unsafe_code)]
// A command-line program talks to its user.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod collector;
mod load;
mod measure;
mod receiver;
mod scenario;
mod table;
mod watch;
mod world;

use std::io;
use std::process::ExitCode;
use std::time::Duration;

const USAGE: &str = "usage: soak [--minutes <n>] [scenario]...";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        [receiver::RECEIVE] => receiver::receive(),
        ["--minutes", minutes, only @ ..] => match minutes.parse() {
            Ok(minutes) => soak(Duration::from_secs(60) * minutes, only),
            Err(_) => Err(io::Error::other(USAGE)),
        },
        only => soak(Duration::ZERO, only),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs all scenarios, or those that are named, together at least for this time.
fn soak(at_least: Duration, only: &[&str]) -> io::Result<()> {
    let names = scenario::ALL.map(|scenario| scenario.name);
    if only.iter().any(|name| !names.contains(name)) {
        return Err(io::Error::other(format!("{USAGE}\nscenarios: {names:?}")));
    }
    let wanted = |name: &str| only.is_empty() || only.contains(&name);
    let share = at_least / names.iter().filter(|name| wanted(name)).count().max(1) as u32;
    let mut outcomes = Vec::new();
    let mut all_broken = Vec::new();
    for scenario in scenario::ALL.iter().filter(|s| wanted(s.name)) {
        eprintln!("{} …", scenario.name);
        let (outcome, broken) = scenario.run(share)?;
        let named = |what| format!("{}: {what}", scenario.name);
        all_broken.extend(broken.into_iter().map(named));
        outcomes.push(outcome);
    }
    table::print(&outcomes);
    match all_broken.is_empty() {
        true => Ok(()),
        false => Err(io::Error::other(all_broken.join("\n"))),
    }
}
