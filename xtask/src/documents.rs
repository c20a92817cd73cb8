//! Whether the documents are true, as far as a program can tell: a test that is named exists, and so does a file that is
//! linked.

use std::fs;
use std::path::{Path, PathBuf};

use crate::command::Outcome;
use crate::tools::root;

/// Where tests are.
const SOURCES: [&str; 4] = ["processor", "exporter", "tests", "soak"];

pub(crate) fn check() -> Outcome {
    let mut sources = String::new();
    for folder in SOURCES {
        read_all(&root().join(folder), "rs", &mut |_, text| {
            sources.push_str(text)
        })?;
    }
    let mut wrong = Vec::new();
    let mut check = |file: &Path, text: &str| {
        let names = code_spans(text).filter(|code| is_test_name(code));
        let missing = names.filter(|name| !sources.contains(&format!("fn {name}(")));
        wrong.extend(missing.map(|name| format!("{}: no test `{name}`", file.display())));
        let folder = file.parent().unwrap_or(file);
        let dead = links(text).filter(|link| !folder.join(link).exists());
        wrong.extend(dead.map(|link| format!("{}: no file {link}", file.display())));
    };
    read_all(&root().join("docs"), "md", &mut check)?;
    for file in ["README.md", "processor/README.md", "exporter/README.md"] {
        let file = root().join(file);
        let text = fs::read_to_string(&file).map_err(|error| error.to_string())?;
        check(&file, &text);
    }
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(wrong.join("\n")),
    }
}

/// Calls `each` with every file of this kind in the folder, and in those in it.
fn read_all(folder: &Path, kind: &str, each: &mut dyn FnMut(&Path, &str)) -> Outcome {
    let failed = |error| format!("{}: {error}", folder.display());
    let entries = fs::read_dir(folder).map_err(failed)?;
    let paths: Vec<PathBuf> = entries.map_while(|e| Some(e.ok()?.path())).collect();
    for path in paths {
        let others = path.ends_with("node_modules") || path.ends_with("target");
        if path.is_dir() && !others {
            read_all(&path, kind, each)?;
        } else if path.extension().is_some_and(|extension| extension == kind) {
            each(&path, &fs::read_to_string(&path).map_err(failed)?);
        }
    }
    Ok(())
}

/// What stands between two backticks.
fn code_spans(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Tests are sentences: no other name has so many words.
fn is_test_name(code: &str) -> bool {
    let word = |word: &str| {
        word.bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    code.matches('_').count() >= 4 && code.split('_').all(word)
}

/// The targets of links within the repository, without the places in them.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next());
    let files = targets.filter_map(|target| target.split('#').next());
    files.filter(|file| !file.is_empty() && !file.contains("://"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: a text with names, code that is none, and links.
    /// Guarantees: the names of tests and the files that are linked are found, and nothing else.
    #[test]
    fn names_and_links_are_found() {
        let text = "a `test_of_a_single_thing`, `per_request.span`, `MAX_A_B_C_D`, [x](a/b.md#c) [y](https://z) [w](#v)";
        let names: Vec<_> = code_spans(text).filter(|code| is_test_name(code)).collect();
        assert_eq!(names, ["test_of_a_single_thing"]);
        assert_eq!(links(text).collect::<Vec<_>>(), ["a/b.md"]);
    }
}
