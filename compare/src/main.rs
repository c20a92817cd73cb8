//! `cargo xtask compare`: the SDK's processors of spans and log records and ours in the same scenarios, in one run.
//!
//! It judges nobody but ours: it fails if one of our promises was broken.

#![forbid(unsafe_code)]
// A command-line program talks to its user.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod child;
mod contestant;
mod outcome;
mod protocol;
mod report;
mod run;
mod scenario;
mod service;

use std::io;
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;

use contestant::{Contestant, Failed};
use outcome::Outcome;
use scenario::{SCENARIOS, Scenario, Size};

/// The first argument of a process that is one contestant in one scenario.
const CHILD: &str = "child";

/// How many runs of a check go on at a time. It measures nothing, so they may get in each other's way.
const CHECKS_AT_A_TIME: usize = 4;

const USAGE: &str = "usage: cargo xtask compare [--json] [--check] [<scenario>…]

  --json    one JSON document instead of tables
  --check   ours only, and less of everything: whether promises are kept";

/// What was asked for.
#[derive(Debug)]
struct Wanted {
    json: bool,
    check: bool,
    scenarios: Vec<&'static Scenario>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        [CHILD, scenario, contestant, size, url] => {
            be_child(scenario, contestant, size, url).map(|()| true)
        }
        _ => wanted(&arguments)
            .map_err(Failed::from)
            .and_then(|wanted| Ok(compare(&wanted)?)),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn wanted(arguments: &[&str]) -> Result<Wanted, String> {
    let (options, names): (Vec<&str>, Vec<&str>) = arguments
        .iter()
        .partition(|argument| argument.starts_with("--"));
    if let Some(unknown) = options
        .iter()
        .find(|option| !["--json", "--check"].contains(option))
    {
        return Err(format!("no option `{unknown}`\n{USAGE}"));
    }
    let named: Result<Vec<&Scenario>, String> = names.iter().map(|name| named(name)).collect();
    let scenarios = match names.is_empty() {
        true => SCENARIOS.iter().collect(),
        false => named?,
    };
    Ok(Wanted {
        json: options.contains(&"--json"),
        check: options.contains(&"--check"),
        scenarios,
    })
}

fn named(name: &str) -> Result<&'static Scenario, String> {
    let known = || SCENARIOS.iter().map(|scenario| scenario.name);
    let found = SCENARIOS.iter().find(|scenario| scenario.name == name);
    found.ok_or_else(|| {
        let known: Vec<&str> = known().collect();
        format!("no scenario `{name}`; there are: {}", known.join(", "))
    })
}

fn be_child(scenario: &str, contestant: &str, size: &str, url: &str) -> Result<(), Failed> {
    let contestant = Contestant::ALL
        .into_iter()
        .find(|known| known.key() == contestant)
        .ok_or("no such contestant")?;
    let size = Size::named(size).ok_or("no such size")?;
    child::run(named(scenario)?, contestant, size, url)
}

/// Whether ours kept its promises.
fn compare(wanted: &Wanted) -> io::Result<bool> {
    let outcomes = match wanted.check {
        true => check(&wanted.scenarios)?,
        false => measure(wanted)?,
    };
    if wanted.json {
        println!("{}", report::json(&outcomes));
    }
    let ours = outcomes
        .iter()
        .filter(|outcome| outcome.contestant.is_ours());
    let broken: Vec<String> = ours
        .flat_map(|outcome| {
            let scenario = wanted.scenarios.iter();
            let mut scenario = scenario.filter(|scenario| scenario.name == outcome.scenario);
            let allowance = scenario.next().map(|scenario| scenario.allowance);
            outcome.broken_promises(allowance.unwrap_or(scenario::Allowance::Nothing))
        })
        .collect();
    broken.iter().for_each(|what| eprintln!("broken: {what}"));
    Ok(broken.is_empty())
}

/// One after the other, with nothing beside it.
fn measure(wanted: &Wanted) -> io::Result<Vec<Outcome>> {
    if !wanted.json {
        println!("{}", report::heading());
    }
    let mut all = Vec::new();
    for scenario in &wanted.scenarios {
        let mut outcomes = Vec::new();
        for contestant in scenario.contestants {
            eprintln!("{}: {} …", scenario.name, contestant.key());
            outcomes.push(run::run(scenario, *contestant, Size::Full)?);
        }
        if !wanted.json {
            println!("{}", report::table(scenario, &outcomes));
        }
        all.extend(outcomes);
    }
    Ok(all)
}

/// Ours only, several at a time.
fn check(scenarios: &[&Scenario]) -> io::Result<Vec<Outcome>> {
    let runs = scenarios
        .iter()
        .flat_map(|scenario| Contestant::OURS.map(|contestant| (*scenario, contestant)));
    let runs = Mutex::new(runs);
    let next = || match runs.lock() {
        Ok(mut runs) => runs.next(),
        Err(_) => None,
    };
    let outcomes: Vec<io::Result<Vec<Outcome>>> = thread::scope(|scope| {
        let one = || {
            std::iter::from_fn(next)
                .map(|(scenario, contestant)| run::run(scenario, contestant, Size::Small))
                .collect()
        };
        let threads: Vec<_> = (0..CHECKS_AT_A_TIME).map(|_| scope.spawn(one)).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined
            .map(|outcomes| outcomes.unwrap_or_else(|_| Err(io::Error::other("a run panicked"))))
            .collect()
    });
    let outcomes: io::Result<Vec<Vec<Outcome>>> = outcomes.into_iter().collect();
    Ok(outcomes?.into_iter().flatten().collect())
}
