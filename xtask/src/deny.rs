//! What we build on: licences, sources, versions, and known vulnerabilities.

use std::process::Command;
use std::time::Duration;

use crate::command::{Outcome, run, run_within};
use crate::tools::tool;

const CARGO_DENY_VERSION: &str = "0.20.2";

/// How long fetching the advisories may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Everything that needs no network, and the advisories where they can be fetched.
pub(crate) fn deny() -> Outcome {
    let program = tool(
        "cargo-deny",
        "cargo-deny",
        CARGO_DENY_VERSION,
        &["--locked"],
    )?;
    let deny = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.args(arguments);
        command
    };
    run(deny(&["check", "bans", "licenses", "sources"]))?;
    match run_within(deny(&["fetch", "db"]), PATIENCE) {
        Ok(()) => run(deny(&["check", "advisories"])),
        Err(error) => {
            println!("the advisories cannot be reached from here, so they are not asked: {error}");
            Ok(())
        }
    }
}
