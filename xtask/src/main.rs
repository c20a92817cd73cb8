//! The project's own commands. `cargo xtask` lists them.

#![forbid(unsafe_code)]
// A command-line program talks to its user.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod command;
mod compare;
mod demo;
mod deny;
mod documents;
mod fuzz;
mod miri;
mod model;
mod python;
mod races;
mod semver;
mod soak;
mod steps;
mod tools;
mod wasm;
mod workers;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask <command>

  test             everything that must hold: format, lints, docs, each feature alone,
                   licences, packages, examples, the demo, the comparison's promises, soak,
                   race models, Workers in workerd, what Python decodes, unit, property,
                   integration and doc tests
  test <step>...   only these steps
  steps            the names of the steps
  model [n]        the model test with n sequences a platform, a million if not said
  fuzz [seconds] [target]...
                   searches for input that breaks a property, in each target for 60 seconds
  fuzz keep [target]...
                   keeps the few inputs that reach most of what was seen
  races            the race models, under loom and shuttle
  races <name>...  only those with one of these in their name
  bench            the benchmarks, for people
  bench --json     the benchmarks, as one JSON object on the last line
  compare [--json] [--check] [<scenario>...]
                   the SDK's processors and ours in the same scenarios, as tables or as JSON;
                   --check: ours only, and quicker
  soak             memory, live state and the account under long load, in release
  soak --minutes <n> [scenario]...
                   the same for this long, or only these scenarios
  miri             the tests of the pure parts under Miri, where there is a nightly compiler
  semver <commit>  what has changed in the public API since then";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        ["test", only @ ..] => steps::test(only),
        ["steps"] => {
            steps::names().for_each(|name| println!("{name}"));
            Ok(())
        }
        ["model", options @ ..] => model::model(options),
        ["fuzz", arguments @ ..] => fuzz::fuzz(arguments),
        ["races", only @ ..] => races::races(only),
        ["bench", options @ ..] => steps::bench(options),
        ["compare", arguments @ ..] => compare::compare(arguments),
        ["soak", arguments @ ..] => soak::soak(arguments),
        ["semver", arguments @ ..] => semver::semver(arguments),
        ["miri", arguments @ ..] => miri::miri(arguments),
        _ => Err(USAGE.to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}
