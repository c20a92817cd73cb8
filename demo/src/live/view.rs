//! What is known of spans from what has arrived: events in, rows out. Pure.
//!
//! Spans and log records take separate ways, and either may be sent again, so events come in any order, and twice.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use opentelemetry::trace::SpanId;

use super::event::{Event, Id, What};
use super::summary::Numbers;

/// How long a span that is over stays in the rows.
const LINGER: Duration = Duration::from_millis(1500);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct View(HashMap<Id, Seen>);

/// What has arrived of a span.
#[derive(Debug)]
struct Seen {
    name: String,
    /// The sequence of the event that has the name. The end of a span is after all of those.
    named_by: i64,
    parent: Option<SpanId>,
    start: Option<u64>,
    /// When anything of it arrived first.
    first: u64,
    opened: bool,
    renames: HashSet<i64>,
    unfinished: bool,
    closed: bool,
    over: Option<Over>,
    /// Whether anybody could see it before it was over.
    shown: bool,
    own: Option<String>,
    /// Of all that has arrived.
    tokens: Vec<String>,
}

/// How a span was over first.
#[derive(Clone, Copy, Debug)]
struct Over {
    /// When that arrived.
    since: u64,
    state: State,
}

/// How a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Since when it is open, if that is known.
    Open(Option<Duration>),
    Ended {
        took: Duration,
        failed: bool,
    },
    /// How old it was when it was given up.
    Unfinished(Option<Duration>),
}

/// A span to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// Below how many others it is.
    pub(super) depth: usize,
    pub(super) name: String,
    /// The token that it came under last.
    pub(super) token: String,
    pub(super) state: State,
}

/// What an event has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// How old the span was then, or how long it took, if that is known.
    pub(super) age: Option<Duration>,
    /// The name that it had before, if it has another one now.
    pub(super) before: Option<String>,
    /// Whether its open event had arrived before.
    pub(super) was_open: bool,
}

// ===== impl View =====

impl View {
    /// `None` if all of it was known.
    pub(super) fn take_in(&mut self, event: &Event) -> Option<Change> {
        let seen = self.0.entry(event.id).or_insert_with(|| Seen::new(event));
        seen.take_in(event)
    }

    /// The spans to show, each below its parent, in the order in which they started.
    pub(super) fn rows(&self, now: u64) -> Vec<Row> {
        let mut visible = HashSet::new();
        for (id, seen) in &self.0 {
            if seen.is_of_interest(now) {
                self.reveal(*id, &mut visible);
            }
        }
        let mut below: HashMap<Option<Id>, Vec<Id>> = HashMap::new();
        for id in &visible {
            let parent = self.parent(*id).filter(|parent| visible.contains(parent));
            below.entry(parent).or_default().push(*id);
        }
        for ids in below.values_mut() {
            // From the last one to the first, as they are taken from the end.
            ids.sort_by_key(|id| std::cmp::Reverse((self.0[id].started(), id.span.to_bytes())));
        }
        let mut rows = Vec::new();
        let roots = below.remove(&None).unwrap_or_default();
        let mut to_do: Vec<(usize, Id)> = roots.into_iter().map(|id| (0, id)).collect();
        while let Some((depth, id)) = to_do.pop() {
            rows.push(self.0[&id].row(depth, now));
            let ids = below.remove(&Some(id)).unwrap_or_default();
            to_do.extend(ids.into_iter().map(|id| (depth + 1, id)));
        }
        rows
    }

    /// A span is visible, and so is what it is below.
    fn reveal(&self, id: Id, visible: &mut HashSet<Id>) {
        let mut next = Some(id);
        while let Some(id) = next.filter(|id| visible.insert(*id)) {
            next = self.parent(id);
        }
    }

    /// What a span is below, if that was ever shown.
    fn parent(&self, id: Id) -> Option<Id> {
        let span = self.0.get(&id)?.parent?;
        let parent = Id { span, ..id };
        self.0.get(&parent).filter(|seen| seen.shown)?;
        Some(parent)
    }

    /// What has arrived, in numbers.
    pub(super) fn numbers(&self) -> Numbers {
        let count = |is: fn(&Seen) -> bool| self.0.values().filter(|seen| is(seen)).count() as u64;
        Numbers {
            opened: self.0.len() as u64,
            sent: count(|seen| seen.opened),
            elided: count(|seen| !seen.opened),
            renamed: self.0.values().map(|seen| seen.renames.len() as u64).sum(),
            unfinished: count(|seen| seen.unfinished),
            closed: count(|seen| seen.closed),
        }
    }

    /// How often something came under a token that is not that of its request.
    pub(super) fn wrong_tokens(&self) -> u64 {
        let wrong = |seen: &Seen| {
            let tokens = seen.tokens.iter();
            tokens
                .filter(|token| Some(*token) != seen.own.as_ref())
                .count() as u64
        };
        self.0.values().map(wrong).sum()
    }
}

// ===== impl Seen =====

impl Seen {
    fn new(event: &Event) -> Self {
        Self {
            name: event.name.clone(),
            named_by: i64::MIN,
            parent: None,
            start: None,
            first: event.arrived,
            opened: false,
            renames: HashSet::new(),
            unfinished: false,
            closed: false,
            over: None,
            shown: false,
            own: None,
            tokens: Vec::new(),
        }
    }

    fn take_in(&mut self, event: &Event) -> Option<Change> {
        self.tokens.push(event.token.clone());
        self.own = self.own.take().or_else(|| event.own.clone());
        self.parent = self.parent.or(event.parent);
        let was_open = self.opened;
        let is_news = match event.what {
            What::Open { .. } => !std::mem::replace(&mut self.opened, true),
            What::Rename { sequence, .. } => self.renames.insert(sequence),
            What::Unfinished { .. } => !std::mem::replace(&mut self.unfinished, true),
            What::Close { .. } => !std::mem::replace(&mut self.closed, true),
        };
        if !is_news {
            return None;
        }
        if let What::Open { start, .. } | What::Close { start, .. } = event.what {
            self.start = Some(start);
        }
        let age = self.age(event.what.at().unwrap_or(event.arrived));
        let ended = match event.what {
            What::Open { .. } | What::Rename { .. } => None,
            What::Unfinished { .. } => Some(State::Unfinished(age)),
            What::Close { failed, .. } => Some(State::Ended {
                took: age.unwrap_or_default(),
                failed,
            }),
        };
        self.shown |= self.over.is_none() && !matches!(event.what, What::Close { .. });
        self.over = self.over.or(ended.map(|state| Over {
            since: event.arrived,
            state,
        }));
        Some(Change {
            age,
            before: self.rename(event),
            was_open,
        })
    }

    /// Returns the old name, if there is another one now.
    fn rename(&mut self, event: &Event) -> Option<String> {
        let named_by = match event.what {
            What::Open { sequence, .. } | What::Rename { sequence, .. } => sequence,
            // They are the last to come of a span, whatever arrives after them.
            What::Unfinished { .. } | What::Close { .. } => i64::MAX,
        };
        if named_by < self.named_by {
            return None;
        }
        self.named_by = named_by;
        let before = std::mem::replace(&mut self.name, event.name.clone());
        (before != self.name).then_some(before)
    }

    fn age(&self, at: u64) -> Option<Duration> {
        let start = self.start?;
        Some(Duration::from_nanos(at.saturating_sub(start)))
    }

    fn started(&self) -> u64 {
        self.start.unwrap_or(self.first)
    }

    /// Whether it is to be shown for its own sake.
    fn is_of_interest(&self, now: u64) -> bool {
        self.shown
            && match self.over {
                Some(Over {
                    since,
                    state: State::Ended { .. },
                }) => Duration::from_nanos(now.saturating_sub(since)) < LINGER,
                // Nothing else will ever be heard of it.
                Some(_) | None => true,
            }
    }

    fn row(&self, depth: usize, now: u64) -> Row {
        Row {
            depth,
            name: self.name.clone(),
            token: self.tokens.last().cloned().unwrap_or_default(),
            state: match self.over {
                Some(over) => over.state,
                None => State::Open(self.age(now)),
            },
        }
    }
}

// ===== impl What =====

impl What {
    /// When it happened. A span that is open is as old as it is when one hears of it.
    fn at(self) -> Option<u64> {
        match self {
            Self::Open { .. } => None,
            Self::Rename { at, .. } | Self::Unfinished { at } => Some(at),
            Self::Close { end, .. } => Some(end),
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::TraceId;

    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const START: u64 = 100 * SECOND;

    const OPEN: What = What::Open {
        sequence: 0,
        start: START,
    };
    const CLOSE: What = What::Close {
        start: START,
        end: START + SECOND,
        failed: false,
    };
    const UNFINISHED: What = What::Unfinished {
        at: START + 2 * SECOND,
    };

    fn rename(sequence: i64) -> What {
        What::Rename {
            sequence,
            at: START + SECOND,
        }
    }

    /// Of a span below another, or none if that is zero. It arrives so many seconds after the first one started.
    fn event((span, parent): (u8, u8), name: &str, what: What, seconds: u64) -> Event {
        let span_id = |id| SpanId::from_bytes([id; 8]);
        Event {
            id: Id {
                trace: TraceId::from_bytes([1; 16]),
                span: span_id(span),
            },
            parent: (parent > 0).then(|| span_id(parent)),
            name: name.to_owned(),
            what,
            token: "token-1".to_owned(),
            own: Some("token-1".to_owned()).filter(|_| !matches!(what, What::Rename { .. })),
            arrived: START + seconds * SECOND,
        }
    }

    const ROOT: (u8, u8) = (1, 0);

    fn view(events: &[(&str, What, u64)]) -> View {
        let mut view = View::default();
        for (name, what, seconds) in events {
            view.take_in(&event(ROOT, name, *what, *seconds));
        }
        view
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// What is shown of the only span, so many seconds after it started.
    fn shown(view: &View, at: u64) -> Option<(String, State)> {
        let mut rows = view.rows(START + at * SECOND);
        assert!(rows.len() <= 1, "{rows:?}");
        rows.pop().map(|row| (row.name, row.state))
    }

    fn is(name: &str, state: State) -> Option<(String, State)> {
        Some((name.to_owned(), state))
    }

    const ENDED: State = State::Ended {
        took: Duration::from_secs(1),
        failed: false,
    };

    /// Scenario: a span opens, is renamed and closes.
    /// Guarantees: it is shown with its name and its growing age, then with its duration, and after a moment no more.
    #[test]
    fn span_is_shown_from_its_open_event_until_a_moment_after_its_end() {
        let open = ("a", OPEN, 0);
        let renamed = ("b", rename(3), 1);
        assert_eq!(
            shown(&view(&[open]), 1),
            is("a", State::Open(Some(seconds(1))))
        );
        let events = [open, renamed];
        assert_eq!(
            shown(&view(&events), 5),
            is("b", State::Open(Some(seconds(5))))
        );
        let over = view(&[open, renamed, ("b", CLOSE, 6)]);
        assert_eq!(shown(&over, 7), is("b", ENDED));
        assert_eq!(shown(&over, 8), None);
    }

    /// Scenario: the end of a span arrives before its open event, or its open event never does.
    /// Guarantees: it is over, and never shown as open; only the second is elided.
    #[test]
    fn span_that_has_ended_is_not_opened_by_a_late_open_event() {
        let late = view(&[("b", CLOSE, 1), ("a", OPEN, 1)]);
        assert_eq!(shown(&late, 1), None);
        let numbers = late.numbers();
        assert_eq!((numbers.opened, numbers.sent, numbers.closed), (1, 1, 1));
        assert_eq!(numbers.elided, 0);

        let elided = view(&[("a", CLOSE, 1)]);
        assert_eq!(shown(&elided, 1), None);
        assert_eq!((elided.numbers().sent, elided.numbers().elided), (0, 1));
    }

    /// Scenario: a rename arrives before the open event, and renames arrive in the wrong order.
    /// Guarantees: the span has the name of the later one, and its age is known as soon as its start is.
    #[test]
    fn name_is_that_of_the_last_event_in_order_whatever_arrives_last() {
        let early = view(&[("b", rename(3), 1)]);
        assert_eq!(shown(&early, 2), is("b", State::Open(None)));
        let events = [("b", rename(3), 1), ("a", OPEN, 1)];
        assert_eq!(
            shown(&view(&events), 2),
            is("b", State::Open(Some(seconds(2))))
        );
        let events = [("a", OPEN, 0), ("c", rename(5), 1), ("b", rename(3), 1)];
        assert_eq!(
            shown(&view(&events), 1),
            is("c", State::Open(Some(seconds(1))))
        );
        assert_eq!(view(&events).numbers().renamed, 2);
        let events = [("a", OPEN, 0), ("d", CLOSE, 1), ("b", rename(3), 1)];
        assert_eq!(shown(&view(&events), 1), is("d", ENDED));
    }

    /// Scenario: a span is found unfinished, with an open event or without one; and one is exported as ended afterwards.
    /// Guarantees: it is shown as that for ever, with its age if its start is known. It counts as what has arrived.
    #[test]
    fn unfinished_span_stays_also_without_an_open_event() {
        let told = view(&[("a", OPEN, 0), ("a", UNFINISHED, 2)]);
        assert_eq!(
            shown(&told, 99),
            is("a", State::Unfinished(Some(seconds(2))))
        );
        let untold = view(&[("a", UNFINISHED, 2)]);
        assert_eq!(shown(&untold, 99), is("a", State::Unfinished(None)));
        assert_eq!(
            (untold.numbers().unfinished, untold.numbers().elided),
            (1, 1)
        );

        let both = view(&[("a", OPEN, 0), ("a", UNFINISHED, 2), ("a", CLOSE, 2)]);
        assert_eq!(
            shown(&both, 99),
            is("a", State::Unfinished(Some(seconds(2))))
        );
        assert_eq!((both.numbers().unfinished, both.numbers().closed), (1, 1));
    }

    /// Scenario: everything arrives twice.
    /// Guarantees: the second time nothing has changed, and nothing is counted.
    #[test]
    fn what_arrives_again_is_no_news() {
        let mut view = View::default();
        let events =
            [OPEN, rename(1), rename(2), UNFINISHED, CLOSE].map(|w| event(ROOT, "a", w, 2));
        assert!(events.iter().all(|event| view.take_in(event).is_some()));
        let before = view.numbers();
        assert!(events.iter().all(|event| view.take_in(event).is_none()));
        assert_eq!(view.numbers(), before);
        assert_eq!(before.renamed, 2);
    }

    /// Scenario: a span is opened, gets another name, and ends, each after a second more.
    /// Guarantees: each change has the age that the span had then, and the name that it had before.
    #[test]
    fn change_says_what_was_before() {
        let mut view = View::default();
        let mut change = |name, what, seconds| view.take_in(&event(ROOT, name, what, seconds));
        let of = |age, before: Option<&str>, was_open| {
            Some(Change {
                age: Some(seconds(age)),
                before: before.map(str::to_owned),
                was_open,
            })
        };
        assert_eq!(change("a", OPEN, 3), of(3, None, false));
        assert_eq!(change("b", rename(1), 4), of(1, Some("a"), true));
        assert_eq!(change("b", CLOSE, 5), of(1, None, true));
    }

    /// Scenario: a span with two children, of which one has a child itself, all told of in the wrong order; then the first
    /// two end, and one below them does not.
    /// Guarantees: each is below its parent, in the order of their starts. What has ended stays for as long as anything
    /// below it is shown.
    #[test]
    fn rows_are_a_tree_in_the_order_of_time() {
        let open = |start| What::Open {
            sequence: 0,
            start: START + start,
        };
        let names = |view: &View, at| {
            let rows = view.rows(START + at * SECOND).into_iter();
            rows.map(|row| (row.depth, row.name)).collect::<Vec<_>>()
        };
        let mut view = View::default();
        for (span, name, start) in [
            ((4, 2), "grandchild", 2),
            ((3, 1), "later child", 3),
            ((2, 1), "child", 1),
            ((1, 9), "root", 0),
        ] {
            view.take_in(&event(span, name, open(start), 1));
        }
        let tree = |names: &[(usize, &str)]| {
            let owned = |(depth, name): &(usize, &str)| (*depth, (*name).to_owned());
            names.iter().map(owned).collect::<Vec<_>>()
        };
        let all = tree(&[
            (0, "root"),
            (1, "child"),
            (2, "grandchild"),
            (1, "later child"),
        ]);
        assert_eq!(names(&view, 1), all);

        for (span, name) in [((1, 9), "root"), ((2, 1), "child"), ((3, 1), "later child")] {
            view.take_in(&event(span, name, CLOSE, 2));
        }
        assert_eq!(names(&view, 2), all);
        let rest = tree(&[(0, "root"), (1, "child"), (2, "grandchild")]);
        assert_eq!(names(&view, 9), rest);
    }

    /// Scenario: two spans that each say they are below the other, and one that says so of itself.
    /// Guarantees: nothing hangs.
    #[test]
    fn spans_in_a_circle_are_no_trouble() {
        let mut view = View::default();
        for span in [(1, 2), (2, 1), (3, 3)] {
            view.take_in(&event(span, "a", OPEN, 1));
        }
        assert!(view.rows(START + SECOND).is_empty());
    }

    /// Scenario: what a span has to say comes under the token of its request, under another's, or without saying whose the
    /// span is.
    /// Guarantees: each event under another token is wrong, whichever it is, and so is all of a span that is nobody's.
    #[test]
    fn token_of_each_event_must_be_that_of_its_request() {
        let wrong = |events: &[Event]| {
            let mut view = View::default();
            events.iter().for_each(|event| drop(view.take_in(event)));
            view.wrong_tokens()
        };
        let right = [rename(1), OPEN, CLOSE, UNFINISHED].map(|what| event(ROOT, "a", what, 1));
        assert_eq!(wrong(&right), 0);
        for astray in 0..right.len() {
            let mut events = right.clone();
            events[astray].token = "token-2".to_owned();
            assert_eq!(wrong(&events), 1, "{:?}", events[astray]);
        }
        let nobodys = event(ROOT, "a", rename(1), 1);
        assert_eq!(wrong(&[nobodys]), 1);
    }
}
