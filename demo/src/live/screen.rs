//! What a person sees: on a terminal a tree that is drawn in place, and elsewhere a line for each change.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use super::event::{Event, What};
use super::view::{Change, Row, State, View};

/// How many rows the tree has at most, so that a small terminal has room for it.
const MAX_ROWS: usize = 18;
/// The width of names in the tree.
const NAMES: usize = 44;

/// The start of a line after which the cursor can go up by lines: what is too long is cut off.
const NO_WRAP: &str = "\x1b[?7l";
const WRAP: &str = "\x1b[?7h";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";

/// See the module.
#[derive(Debug)]
pub(super) enum Screen {
    Lines,
    Tree {
        colours: bool,
        /// How many lines of the last frame are above the cursor.
        drawn: usize,
    },
}

#[derive(Clone, Copy, Debug)]
enum Colour {
    Red,
    Green,
    Yellow,
    Grey,
}

impl Screen {
    /// As the standard output and the environment have it.
    pub(super) fn of_process() -> Self {
        let is = |name, value: &str| std::env::var_os(name).is_some_and(|given| given == value);
        if !io::stdout().is_terminal() || is("TERM", "dumb") {
            return Self::Lines;
        }
        // https://no-color.org: whatever its value, unless it is empty.
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self::Tree {
            colours: !no_colour,
            drawn: 0,
        }
    }

    pub(super) fn is_tree(&self) -> bool {
        matches!(self, Self::Tree { .. })
    }

    pub(super) fn has_colours(&self) -> bool {
        matches!(self, Self::Tree { colours: true, .. })
    }

    /// Something has changed, so long after the start.
    pub(super) fn tell(&self, event: &Event, change: &Change, after: Duration) -> io::Result<()> {
        match self {
            Self::Lines => writeln!(io::stdout(), "{}", line(event, change, after)),
            Self::Tree { .. } => Ok(()),
        }
    }

    /// Draws what there is now, below `above`, which stays.
    pub(super) fn draw(
        &mut self,
        above: &str,
        view: &View,
        now: u64,
        after: Duration,
    ) -> io::Result<()> {
        let Self::Tree { colours, drawn } = self else {
            return Ok(());
        };
        let lines = lines(view, now, after, *colours);
        let frame = frame(above, &lines, *drawn);
        *drawn = lines.len();
        let mut out = io::stdout();
        // At once, so that nobody sees half of it.
        out.write_all(frame.as_bytes())?;
        out.flush()
    }
}

// ===== lines of changes =====

fn line(event: &Event, change: &Change, after: Duration) -> String {
    let (mark, age) = match event.what {
        What::Open { .. } => ("+ open      ", "age"),
        What::Rename { .. } => ("~ rename    ", "age"),
        What::Unfinished { .. } => ("! unfinished", "age"),
        What::Close { .. } => ("- close     ", "took"),
    };
    let Event {
        id, token, name, ..
    } = event;
    let mut line = format!(
        "{:>7.3}  {mark}  {}/{}  {token}  \"{name}\"",
        after.as_secs_f64(),
        id.trace,
        id.span
    );
    if let Some(parent) = event.parent {
        line += &format!("  below {parent}");
    }
    if let Some(before) = &change.before {
        line += &format!("  was \"{before}\"");
    }
    if let Some(time) = change.age {
        line += &format!("  {age} {}", readable(time));
    }
    if let What::Close { failed, .. } = event.what {
        if failed {
            line += "  failed";
        }
        if !change.was_open {
            line += "  never seen open";
        }
    }
    line
}

// ===== the tree =====

/// What takes the place of the last frame, of so many lines.
fn frame(above: &str, lines: &[String], drawn: usize) -> String {
    let mut frame = NO_WRAP.to_owned();
    if drawn > 0 {
        frame += &format!("\x1b[{drawn}A\r");
    }
    if !above.is_empty() {
        frame += CLEAR_BELOW;
        frame += above;
    }
    for line in lines {
        frame += line;
        frame += CLEAR_LINE;
        frame += "\n";
    }
    frame + CLEAR_BELOW + WRAP
}

fn lines(view: &View, now: u64, after: Duration, colours: bool) -> Vec<String> {
    let mut lines = vec![
        format!(
            "What is open, as the receiver knows it {:>15.1} s",
            after.as_secs_f64()
        ),
        String::new(),
    ];
    let rows = view.rows(now);
    let shown = rows.iter().take(MAX_ROWS);
    lines.extend(shown.map(|row| row_line(row, colours)));
    if rows.len() > MAX_ROWS {
        lines.push(format!("  and {} more", rows.len() - MAX_ROWS));
    }
    let numbers = view.numbers().named();
    let numbers = numbers.map(|(name, number)| format!("{number} {name}"));
    lines.extend([String::new(), numbers.join(", ")]);
    lines
}

fn row_line(row: &Row, colours: bool) -> String {
    let (mark, time, note, colour) = match row.state {
        State::Open(age) => ('●', age, "", Colour::Green),
        State::Ended {
            took,
            failed: false,
        } => ('✓', Some(took), "", Colour::Grey),
        State::Ended { took, failed: true } => ('✗', Some(took), "  failed", Colour::Red),
        State::Unfinished(age) => ('!', age, "  unfinished", Colour::Yellow),
    };
    let name = cut(&format!("{}{mark} {}", "  ".repeat(row.depth), row.name));
    let time = time.map_or("?".to_owned(), readable);
    let line = format!("  {name:<NAMES$} {time:>8}  {}{note}", row.token);
    match colours {
        true => format!("\x1b[{}m{line}\x1b[0m", colour.code()),
        false => line,
    }
}

fn cut(name: &str) -> String {
    match name.char_indices().nth(NAMES) {
        Some(_) => name.chars().take(NAMES - 1).chain(['…']).collect(),
        None => name.to_owned(),
    }
}

fn readable(time: Duration) -> String {
    match time.as_millis() {
        millis @ ..1000 => format!("{millis} ms"),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}

impl Colour {
    fn code(self) -> u8 {
        match self {
            Self::Red => 31,
            Self::Green => 32,
            Self::Yellow => 33,
            Self::Grey => 90,
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{SpanId, TraceId};

    use super::*;
    use crate::live::event::Id;

    const MILLI: u64 = 1_000_000;

    fn event(what: What) -> Event {
        Event {
            id: Id {
                trace: TraceId::from_bytes([0x11; 16]),
                span: SpanId::from_bytes([0x22; 8]),
            },
            parent: None,
            name: "work".to_owned(),
            what,
            token: "token-7".to_owned(),
            own: Some("token-7".to_owned()),
            arrived: 210 * MILLI,
        }
    }

    const OPEN: What = What::Open {
        sequence: 0,
        start: 0,
    };

    /// Scenario: a change of each kind, of a span below another or below none, of which something is known or not.
    /// Guarantees: the line has the mark, the ids, the token, the name, and what is known beyond that.
    #[test]
    fn line_says_all_that_is_known_of_a_change() {
        let check =
            |what, parent: Option<u8>, change: (Option<u64>, Option<&str>, bool), end: &str| {
                let (age, before, was_open) = change;
                let event = Event {
                    parent: parent.map(|id| SpanId::from_bytes([id; 8])),
                    ..event(what)
                };
                let change = Change {
                    age: age.map(Duration::from_millis),
                    before: before.map(str::to_owned),
                    was_open,
                };
                let line = line(&event, &change, Duration::from_millis(1250));
                let (head, rest) = line.split_at(9);
                assert_eq!((head, rest), ("  1.250  ", end));
            };
        let ids = "11111111111111111111111111111111/2222222222222222  token-7  \"work\"";
        let close = |failed| What::Close {
            start: 0,
            end: 0,
            failed,
        };
        let rename = What::Rename { sequence: 1, at: 0 };
        check(
            OPEN,
            Some(0x33),
            (Some(210), None, false),
            &format!("+ open        {ids}  below 3333333333333333  age 210 ms"),
        );
        check(
            rename,
            None,
            (Some(1210), Some("wirk"), true),
            &format!("~ rename      {ids}  was \"wirk\"  age 1.2 s"),
        );
        check(
            What::Unfinished { at: 0 },
            None,
            (None, None, false),
            &format!("! unfinished  {ids}"),
        );
        check(
            close(false),
            None,
            (Some(999), None, true),
            &format!("- close       {ids}  took 999 ms"),
        );
        check(
            close(true),
            None,
            (Some(20), None, false),
            &format!("- close       {ids}  took 20 ms  failed  never seen open"),
        );
    }

    /// Scenario: a frame is drawn after one of three lines, and with something to stay above it.
    /// Guarantees: it starts where the other one did, what is above it is not overwritten, and nothing of the other is left.
    #[test]
    fn frame_takes_the_place_of_the_one_before() {
        let lines = ["a".to_owned(), "b".to_owned()];
        assert_eq!(
            frame("", &lines, 0),
            "\x1b[?7la\x1b[K\nb\x1b[K\n\x1b[J\x1b[?7h"
        );
        assert_eq!(
            frame("", &lines, 3),
            "\x1b[?7l\x1b[3A\ra\x1b[K\nb\x1b[K\n\x1b[J\x1b[?7h"
        );
        assert_eq!(
            frame("warning\n", &lines[..1], 3),
            "\x1b[?7l\x1b[3A\r\x1b[Jwarning\na\x1b[K\n\x1b[J\x1b[?7h"
        );
    }

    /// Scenario: a span that is open is drawn, with colours and without.
    /// Guarantees: its row has name, age and token; and without colours not one escape.
    #[test]
    fn tree_without_colours_is_the_same_text() {
        let mut view = View::default();
        view.take_in(&event(OPEN));
        let lines = |colours| lines(&view, 500 * MILLI, Duration::from_secs(1), colours);
        let plain = lines(false);
        assert_eq!(
            plain[2],
            format!("  {:<NAMES$} {:>8}  token-7", "● work", "500 ms")
        );
        assert!(plain.iter().all(|line| !line.contains('\x1b')));
        assert_eq!(lines(true)[2], format!("\x1b[32m{}\x1b[0m", plain[2]));
        assert_eq!(lines(true)[4], plain[4]);
        assert_eq!(
            plain[4],
            "1 opened, 1 sent, 0 elided, 0 renamed, 0 unfinished, 0 closed"
        );
    }

    /// Scenario: more spans are open than there is room for, with names that are too long.
    /// Guarantees: so many rows are left out, and the frame says how many; names end in an ellipsis.
    #[test]
    fn tree_is_never_higher_than_a_small_terminal() {
        let mut view = View::default();
        for span in 1..=MAX_ROWS as u8 + 2 {
            let mut event = event(OPEN);
            event.id.span = SpanId::from_bytes([span; 8]);
            event.name = "ä".repeat(NAMES);
            view.take_in(&event);
        }
        let lines = lines(&view, 0, Duration::ZERO, false);
        assert!(lines.len() <= 23, "{}", lines.len());
        assert!(lines.contains(&"  and 2 more".to_owned()));
        let name = format!("● {}…", "ä".repeat(NAMES - 3));
        assert!(lines[2].contains(&name), "{}", lines[2]);
    }
}
