//! What is asked after each action, and in the end. The parent module lists it.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use opentelemetry::trace::{SpanId, TraceId};
use proptest::prelude::*;

use super::super::{Check, Platform};
use super::action::{ALL, Action};
use super::wire::{self, Said, State};
use super::world::{Credentials, Remembered, Serial, Span, World, most_in_a_batch};
use crate::clock::Instant;
use crate::config::OpenEvents;
use crate::observer::{Close, LifecycleEvent, Open, Stage};
use crate::open_spans::Event;
use crate::request::{Request, RequestId, Schedule};
use crate::signal::Signal;
use crate::stats::{DropReason, Stats};

/// What was the case before an action.
pub(super) struct Before {
    stats: Stats,
    newest: u64,
}

/// What a step has told the collector.
#[derive(Default)]
struct Told {
    open: u64,
    unfinished: u64,
    /// Spans that were exported as if they had ended.
    exported: u64,
}

impl World {
    pub(super) fn snapshot(&mut self) -> Before {
        Before {
            stats: self.dispatch.stats(),
            newest: self.dispatch.new_id(),
        }
    }

    pub(super) fn check(&mut self, before: &Before) -> Check {
        let told = self.check_batches(before.newest)?;
        self.check_remembered()?;
        self.check_numbers(before, &told)?;
        self.check_unfinished(before, &told)?;
        match self.case.platform {
            Platform::Native => {
                self.check_looks()?;
                self.check_nap()
            }
            Platform::Workers => self.check_tasks(),
        }
    }

    // ----- what leaves -----

    fn check_batches(&mut self, newest: u64) -> Result<Told, TestCaseError> {
        let mut told = Told::default();
        for signal in Signal::QUEUED {
            let waiting = self.dispatch.lanes[signal].waiting.iter();
            let new = waiting.filter(|batch| batch.id > newest);
            let new: Vec<_> = new
                .map(|batch| {
                    let of = batch.context.get::<Credentials>().map(|c| c.of);
                    (of, wire::read(&batch.items))
                })
                .collect();
            for (of, items) in new {
                let most = most_in_a_batch(self.case.platform);
                prop_assert!(items.len() <= most, "{} in a batch", items.len());
                for item in items {
                    self.check_item(of, item, &mut told)?;
                }
            }
        }
        Ok(told)
    }

    fn check_item(&mut self, of: Option<RequestId>, item: Said, told: &mut Told) -> Check {
        let (span, event) = match item {
            Said::Record => return Ok(()),
            Said::Ended { is_unfinished } => {
                told.exported += u64::from(is_unfinished);
                return Ok(());
            }
            Said::Of { span, event } => (span, event),
        };
        let Some(of) = of else {
            return Err(TestCaseError::fail("told of under the fallback context"));
        };
        if let Some(id) = event.own_id {
            prop_assert!(self.own_ids.insert(id), "an id of its own");
            let is_real = |s: &Span| SpanId::from(s.id) == id;
            prop_assert!(!self.spans.iter().any(is_real), "an id of its own");
        }
        let Some(serial) = self.told_of(of, span, &event) else {
            return Err(TestCaseError::fail(format!(
                "{event:?} leaves, of span {span} of {of:?}"
            )));
        };
        let span = &mut self.spans[serial];
        match event.state {
            State::Open => {
                told.open += 1;
                span.is_sent = true;
            }
            State::Rename => self.renames_seen += 1,
            State::Unfinished => told.unfinished += 1,
        }
        Ok(())
    }

    /// The span that such an event may leave of now, under the context of this request.
    fn told_of(&self, of: RequestId, span: SpanId, event: &wire::Event) -> Option<Serial> {
        let is_gone = !self.is_live(of);
        let mut all = 0..self.spans.len();
        all.find(|serial| {
            let s = &self.spans[*serial];
            let is_it = s.request == Some(of) && SpanId::from(s.id) == span;
            let sequence = event.sequence.is_none_or(|at| at == s.sequence);
            is_it
                && match event.state {
                    State::Open => {
                        let is_time = s.is_due || is_gone;
                        !s.is_sent
                            && s.was_remembered
                            && is_time
                            && sequence
                            && event.name == s.told
                    }
                    // It waits for its batch, so there may be later ones.
                    State::Rename => s.is_sent && event.sequence > Some(s.sequence),
                    State::Unfinished => s.was_remembered && event.name == s.told,
                }
        })
    }

    // ----- what is known -----

    /// Exactly those are remembered that should be, and how far each is.
    fn check_remembered(&mut self) -> Check {
        let count = self.remembered.len() as u64;
        prop_assert_eq!(self.dispatch.remembered(), count, "remembered");
        let mut requests: HashMap<RequestId, Vec<usize>> = HashMap::new();
        for (at, open) in self.remembered.iter().enumerate() {
            requests.entry(open.request).or_default().push(at);
        }
        let signal = self.form_signal();
        for (id, expected) in requests {
            let request = self.dispatch.registry.get(id);
            let schedule = |r: &Request| Some(r.queue(signal?)?.schedule);
            let plan = request.as_deref().and_then(schedule);
            let Some(open_spans) = request.and_then(|r| r.open_spans.as_deref()) else {
                return Err(TestCaseError::fail("nothing is remembered of a request"));
            };
            let is_planned = plan.is_some_and(|plan| plan != Schedule::Idle);
            prop_assert!(!open_spans.has_due() || is_planned, "nothing is planned");
            let events: Vec<(SpanId, Event)> = open_spans.events().collect();
            prop_assert_eq!(events.len(), expected.len());
            let due = events.iter().filter(|(_, e)| *e == Event::Due).count();
            prop_assert_eq!(open_spans.due(), due, "how many are due");
            for ((span, event), at) in events.into_iter().zip(expected) {
                let open = &self.remembered[at];
                let s = &self.spans[open.span];
                prop_assert_eq!(span, SpanId::from(s.id));
                let is_right = match event {
                    Event::Never => !open.leaves,
                    Event::Young => open.leaves && !s.is_due && !s.is_sent,
                    Event::Due => open.leaves && s.is_due && !s.is_sent,
                    Event::Sent => s.is_sent,
                    Event::Dropped => open.leaves && s.is_due && !s.is_sent,
                };
                prop_assert!(is_right, "span {} is {event:?}", open.span);
            }
        }
        Ok(())
    }

    /// The account (R12).
    fn check_numbers(&mut self, before: &Before, told: &Told) -> Check {
        let stats = self.dispatch.stats();
        prop_assert!(stats.is_balanced(), "{stats:?}");
        let (was, is) = (&before.stats.open_events, &stats.open_events);
        let settled = is.sent + is.elided + is.dropped;
        prop_assert_eq!(is.opened, settled + is.pending, "{:?}", is);
        prop_assert_eq!(is.opened, self.counted.opened, "{:?}", is);
        prop_assert_eq!(is.unfinished, self.counted.unfinished, "{:?}", is);
        prop_assert_eq!(is.pending, self.waiting(), "{:?}", is);
        prop_assert_eq!(is.sent, was.sent + told.open, "{:?}", is);
        prop_assert!(is.elided >= was.elided && is.renamed >= was.renamed);
        prop_assert!(is.dropped >= was.dropped, "{:?}", is);
        if is.dropped > was.dropped {
            let signal = self.form_signal().expect("something was to leave");
            let lane = &self.dispatch.lanes[signal];
            // Half of the room is for what open events are about.
            let full = lane.stats.pending() >= lane.max_pending.div_ceil(2);
            let forgetful = self.remembered.len() == self.case.max_pending;
            let reason = full || forgetful || self.is_closed(signal);
            prop_assert!(reason, "dropped for no reason: {is:?}");
        }
        Ok(())
    }

    /// How many open events are still to leave, by what is remembered.
    fn waiting(&mut self) -> u64 {
        let ids: HashSet<RequestId> = self.remembered.iter().map(|open| open.request).collect();
        let mut waiting = 0;
        for id in ids {
            let request = self.dispatch.registry.get(id);
            let open_spans = request.and_then(|r| r.open_spans.as_deref());
            let events = open_spans.into_iter().flat_map(|open| open.events());
            let waits = |(_, event): &(SpanId, Event)| matches!(event, Event::Young | Event::Due);
            waiting += events.filter(waits).count() as u64;
        }
        waiting
    }

    /// At the shutdown each span that is remembered is told of once more, once in each way, or that is dropped and counted.
    fn check_unfinished(&mut self, before: &Before, told: &Told) -> Check {
        let stats = self.dispatch.stats();
        let now = stats.open_events.unfinished - before.stats.open_events.unfinished;
        if now == 0 {
            prop_assert_eq!((told.unfinished, told.exported), (0, 0));
            return Ok(());
        }
        let exports = self.case.exports_unfinished;
        let of_spans = match self.case.form {
            OpenEvents::PendingSpans if !exports => now,
            _ => 0,
        };
        let of_logs = match self.case.form {
            OpenEvents::Logs if self.joined => now,
            _ => 0,
        };
        let exported = u64::from(exports) * now;
        let [spans, logs] = [
            (stats.dropped, before.stats.dropped),
            (stats.logs.dropped, before.stats.logs.dropped),
        ]
        .map(|(is, was)| is.total() - was.total());
        if self.is_closed(Signal::Logs) {
            let closed = |stats: &Stats| stats.logs.dropped.by(DropReason::AlreadyShutdown);
            prop_assert_eq!(closed(&stats) - closed(&before.stats), of_logs);
        }
        let said = told.unfinished + told.exported + spans + logs;
        prop_assert_eq!(said, of_spans + of_logs + exported, "of {} spans", now);
        prop_assert!(told.exported <= exported);
        Ok(())
    }

    // ----- who looks -----

    /// The driver has a look planned for each request that needs one, early enough, and for no other.
    fn check_looks(&mut self) -> Check {
        let mut planned = self.dispatch.planned_looks();
        for open in &self.remembered {
            let is_young = open.leaves && !self.spans[open.span].is_due;
            let Some(at) = open.old_at(self.case.min_age()).filter(|_| is_young) else {
                continue;
            };
            let look = planned.iter().find(|(_, id)| *id == open.request);
            let is_looked_at = look.is_some_and(|(look, _)| *look <= at);
            prop_assert!(is_looked_at, "nobody looks at span {}", open.span);
        }
        planned.retain(|(look, id)| self.look_of(*id) != Some(*look));
        prop_assert_eq!(planned, [], "looks at nothing");
        Ok(())
    }

    /// The driver sleeps no longer than a span may wait.
    fn check_nap(&self) -> Check {
        if !self.dispatch.asleep {
            return Ok(());
        }
        for open in &self.remembered {
            let is_young = open.leaves && !self.spans[open.span].is_due;
            let Some(at) = open.old_at(self.case.min_age()).filter(|_| is_young) else {
                continue;
            };
            let wakes = self.nap.is_some_and(|nap| nap <= at);
            prop_assert!(wakes, "the driver sleeps past span {}", open.span);
        }
        Ok(())
    }

    /// The driver is woken for something that is new, or for a span that may not wait until it wakes up by itself.
    pub(super) fn check_wake(&self, has_news: bool) -> Check {
        let is_early = |open: &Remembered| {
            let at = open.old_at(self.case.min_age());
            let is_young = open.leaves && !self.spans[open.span].is_due;
            is_young && at.is_some_and(|at| self.nap.is_none_or(|nap| at < nap))
        };
        let has_reason = has_news || self.remembered.iter().any(is_early);
        prop_assert!(has_reason, "the driver is woken for nothing");
        Ok(())
    }

    /// In a Worker a task looks at each request that needs it, and only one.
    fn check_tasks(&mut self) -> Check {
        let mut tasks = HashSet::new();
        for task in &self.tasks {
            prop_assert!(tasks.insert(task.of), "two tasks for {:?}", task.of);
        }
        for open in &self.remembered {
            let is_young = open.leaves && !self.spans[open.span].is_due;
            let can_be_old = open.old_at(self.case.min_age()).is_some();
            let is_looked_at =
                tasks.contains(&open.request) || self.given_up.contains(&open.request);
            prop_assert!(
                !is_young || !can_be_old || is_looked_at,
                "nobody looks at span {}",
                open.span
            );
        }
        Ok(())
    }

    fn look_of(&mut self, id: RequestId) -> Option<Instant> {
        let open_spans = self.dispatch.registry.get(id)?.open_spans.as_deref()?;
        open_spans.look
    }

    // ----- the end -----

    /// While its spans are open, everything leaves that is to leave, with nothing but looks, ticks and answers.
    pub(super) fn stream_out(&mut self) -> Check {
        let min_age = self.case.min_age();
        if min_age == Duration::MAX {
            return Ok(());
        }
        let millis = min_age.as_millis() as u64 + 1;
        self.apply(Action::Pass { millis })?;
        self.let_out()?;
        for at in 0..self.remembered.len() {
            let open = self.remembered[at].clone();
            if self.given_up.contains(&open.request) || !open.leaves {
                continue;
            }
            prop_assert!(self.spans[open.span].is_due, "{} is not due", open.span);
        }
        let given_up = self.given_up.clone();
        for id in self
            .remembered
            .iter()
            .map(|open| open.request)
            .collect::<HashSet<_>>()
        {
            let request = self.dispatch.registry.get(id);
            let open_spans = request.and_then(|r| r.open_spans.as_deref());
            let has_due = open_spans.is_some_and(|open| open.has_due());
            prop_assert!(!has_due, "something of {id:?} never leaves");
            let has_young = open_spans.is_some_and(|open| open.has_young());
            prop_assert!(!has_young || given_up.contains(&id));
        }
        let renamed = self.dispatch.stats().open_events.renamed;
        prop_assert_eq!(self.renames_seen, renamed, "renames that wait");
        Ok(())
    }

    /// Ends everything, lets everything out, and tells everything.
    pub(super) fn drain(&mut self) -> Check {
        while !self.open_spans().is_empty() {
            self.apply(Action::End { open: 0 })?;
        }
        self.let_out()?;
        self.apply(Action::Look)?;
        self.apply(Action::LookWhetherWanted)?;
        self.observer.drain(&mut self.dispatch)?;
        let stats = self.dispatch.stats();
        prop_assert_eq!(
            (stats.traces, stats.pending(), stats.logs.pending()),
            (0, 0, 0)
        );
        prop_assert_eq!(stats.open_events.pending, 0, "{:?}", stats);
        prop_assert_eq!(self.renames_seen, stats.open_events.renamed);
        prop_assert_eq!(self.dispatch.remembered(), 0);
        prop_assert_eq!(self.dispatch.planned_looks(), []);
        prop_assert_eq!(self.tasks.len(), 0, "tasks that nobody needs");
        prop_assert_eq!(self.dispatch.waits_to_be_told(), 0);
        prop_assert_eq!(self.contexts_left(), 0);
        self.check_heard()
    }

    fn let_out(&mut self) -> Check {
        for _ in 0..200 {
            self.apply(Action::Look)?;
            self.apply(Action::EndPauses)?;
            self.apply(Action::Tick { queues: ALL })?;
            self.apply(Action::Export)?;
            if !self.is_exporting() && !self.dispatch.has_news() {
                break;
            }
            let (batch, takes) = (0, true);
            self.apply(Action::Answer { batch, takes })?;
        }
        Ok(())
    }

    /// What the observer has heard, in the end: that all is in order, that it is what should be heard, and that it adds up.
    fn check_heard(&self) -> Check {
        self.observer.check_order()?;
        let mut heard: HashMap<(TraceId, Option<SpanId>), Vec<LifecycleEvent>> = HashMap::new();
        for event in &self.observer.heard {
            let key = (event.trace_id, event.request.map(|r| r.local_root));
            heard.entry(key).or_default().push(event.clone());
        }
        for (key, expected) in &self.expected {
            let heard = heard.remove(key).unwrap_or_default();
            prop_assert_eq!(&heard, expected, "of {:?}", key);
        }
        prop_assert_eq!(heard, HashMap::new(), "of nobody");
        for serial in 0..self.spans.len() {
            self.check_sum(serial)?;
        }
        Ok(())
    }

    /// What was told of a span is what it was in the end.
    fn check_sum(&self, serial: Serial) -> Check {
        let span = &self.spans[serial];
        let same = |s: &&Span| (s.trace, s.id) == (span.trace, span.id);
        if self.spans.iter().filter(same).count() > 1 {
            // Nobody can tell which of them was meant.
            return Ok(());
        }
        let key = (TraceId::from(span.trace), SpanId::from(span.id));
        let is_it = |event: &&LifecycleEvent| (event.trace_id, event.span_id) == key;
        let events: Vec<_> = self.observer.heard.iter().filter(is_it).collect();
        prop_assert!(span.is_sampled || events.is_empty(), "span {serial}");
        let Some((first, later)) = events.split_first() else {
            return Ok(());
        };
        let Stage::Open(open) = &first.stage else {
            return Err(TestCaseError::fail(format!("first of {serial}: {first:?}")));
        };
        let mut name = &open.name;
        for (at, event) in later.iter().enumerate() {
            match &event.stage {
                Stage::Open(_) => return Err(TestCaseError::fail(format!("{event:?}"))),
                Stage::Rename(rename) => name = &rename.name,
                Stage::Close(close) => {
                    prop_assert_eq!(at + 1, later.len(), "span {} closes last", serial);
                    if close.unfinished.is_none() {
                        let name = close.name.as_ref().unwrap_or(name);
                        prop_assert_eq!(name, &span.name, "the name of {}", serial);
                        check_attributes(span, open, close)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Those that came with the close are the rest, or all.
fn check_attributes(span: &Span, open: &Open, close: &Close) -> Check {
    let told = &open.attributes[..];
    prop_assert_eq!(told, &span.attributes[..told.len()]);
    let rest = &span.attributes[told.len()..];
    let closed = &close.attributes[..];
    prop_assert!(
        closed == rest || closed == &span.attributes[..],
        "{close:?}"
    );
    Ok(())
}
