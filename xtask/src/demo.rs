//! The demo, as a step of the tests: its account, and its live view as a pipe sees it.

use std::process::{Command, Stdio};

use crate::command::{Outcome, cargo, no_proxy};

/// What a line of the live view has for each thing that can happen to a span.
const MARKS: [&str; 4] = ["  + open ", "  ~ rename ", "  - close ", "  ! unfinished "];

pub(crate) fn demo() -> Outcome {
    cargo(&["demo", "--", "--json"])?;
    live()
}

/// It fails by itself if what was received is not what happened. Short, because what takes seconds takes less then.
fn live() -> Outcome {
    let mut command = Command::new(env!("CARGO"));
    command
        .args(["demo", "--", "--live", "--seconds", "4", "--json"])
        .env("NO_PROXY", no_proxy())
        .stderr(Stdio::inherit());
    let output = command
        .output()
        .map_err(|error| format!("{command:?} could not be started: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    print!("{said}");
    match output.status.success() {
        true => check(&said),
        false => Err(format!("{command:?} ended with {}", output.status)),
    }
}

/// Everything that can happen to a span did, in plain lines, and the last line has the numbers.
fn check(said: &str) -> Outcome {
    if said.contains('\x1b') {
        return Err("the live view sends escape codes into a pipe".to_owned());
    }
    if let Some(mark) = MARKS.iter().find(|mark| !said.contains(**mark)) {
        return Err(format!("the live view has no line with `{}`", mark.trim()));
    }
    let last = said.lines().next_back().unwrap_or_default();
    let is_json = last.starts_with('{') && last.ends_with('}');
    match is_json && last.contains("\"agrees\":true") {
        true => Ok(()),
        false => Err(format!(
            "the live view does not end in its numbers: `{last}`"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "\
  0.405  + open        1/2  token-1  \"GET\"  age 202 ms
  1.407  ~ rename      1/2  token-1  \"GET /\"  was \"GET\"  age 1.2 s
  3.511  - close       1/2  token-1  \"GET /\"  took 2.1 s
  9.002  ! unfinished  1/3  token-1  \"work\"  age 2.1 s
{\"agrees\":true,\"wrong_token\":0}
";

    /// Scenario: all that is to be there, and then one thing is not.
    /// Guarantees: only the first is accepted.
    #[test]
    fn live_view_is_accepted_only_if_everything_is_there() {
        assert_eq!(check(SAID), Ok(()));
        for missing in MARKS {
            assert!(check(&SAID.replace(missing, "")).is_err(), "{missing}");
        }
        for (from, to) in [
            ("{\"agrees\":true", "\x1b[K{\"agrees\":true"),
            ("true", "false"),
            ("\n{", "\nso: {"),
            ("0}\n", "0}\nbye\n"),
        ] {
            assert!(check(&SAID.replace(from, to)).is_err(), "{to}");
        }
    }
}
