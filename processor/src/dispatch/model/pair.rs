//! The dispatch and its reference, side by side: each action is done to both, and then both are asked.

mod checks;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry::trace::{SpanId, TraceFlags, TraceId};
use opentelemetry_sdk::trace::SpanData;
use proptest::prelude::*;

use super::super::{Batch, DropReason, Flush, Losses, Origin, Outcome, Scope};
use super::action::{ALL, Action, Id, Parent, Wanted};
use super::reference::{Owner, Place, Reference, Serial};
use super::{Check, MAX_BATCH_SIZE, MAX_CONCURRENT, MAX_EXPORTS, MAX_PENDING, Platform};
use crate::clock::Instant;
use crate::config::FlushTrigger;
use crate::dispatch::Dispatch;
use crate::request::{RequestId, Schedule};
use crate::signal::{Items, LATE_ATTRIBUTE, Signal, Signals};
use crate::stats::Stats;
use crate::sync::{Arc, Weak};
use crate::testing::span_with_flags;

const SPANS: Signals = Signals::of(Signal::Spans);

/// How long an export may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The value that tells contexts apart, and whether one is still alive. The fallback context has none.
struct Credentials {
    root: Serial,
    _alive: Arc<()>,
}

pub(super) struct Pair {
    dispatch: Dispatch,
    reference: Reference,
    platform: Platform,
    trigger: FlushTrigger,
    now: Instant,
    /// What the exporter holds.
    exporter: Vec<Export>,
    /// Spans that the exporter was given, and in how many batches.
    exported: HashSet<Serial>,
    exports: u64,
    /// By the root of their request.
    contexts: HashMap<Serial, Weak<()>>,
    flushes: Vec<Watch>,
    /// In a Worker, how often each request has left other than with a flush, and how many pauses it has had.
    departures: HashMap<RequestId, usize>,
    pauses: HashMap<RequestId, usize>,
    /// Whether the shutdown is being given up.
    abandoning: bool,
    /// What was done, for people.
    story: Vec<String>,
}

/// A batch that the exporter has.
struct Export {
    batch: Batch,
    spans: Vec<Serial>,
    deadline: Instant,
    /// Accounted for at its deadline, though the exporter still has it.
    given_up: bool,
}

/// A flush that somebody waits for.
struct Watch {
    id: u64,
    /// In a Worker, where it is asked instead of being told.
    asked: Option<Flush>,
    scope: Scope,
    /// What is pending of its scope when it begins.
    before: Vec<Serial>,
    /// What had been reported of its scope by then.
    reported: Losses,
    heard: bool,
}

impl Pair {
    pub(super) fn new(platform: Platform, trigger: FlushTrigger) -> Self {
        let config = super::config().with_flush_trigger(trigger);
        Self {
            dispatch: match platform {
                Platform::Native => Dispatch::new(&config, Context::new(), true),
                Platform::Workers => Dispatch::for_workers(&config, Context::new(), true),
            },
            reference: Reference::default(),
            platform,
            trigger,
            now: Instant::now(),
            exporter: Vec::new(),
            exported: HashSet::new(),
            exports: 0,
            contexts: HashMap::new(),
            flushes: Vec::new(),
            departures: HashMap::new(),
            pauses: HashMap::new(),
            abandoning: false,
            story: Vec::new(),
        }
    }

    pub(super) fn story(&self) -> String {
        self.story.join("\n")
    }

    fn tell(&mut self, line: impl Into<String>) {
        self.story.push(line.into());
    }

    // ----- actions -----

    pub(super) fn apply(&mut self, action: Action) -> Check {
        let before = self.dispatch.stats();
        let newest = self.dispatch.next_id;
        let mut flushed = None;
        match action {
            Action::StartRoot { trace, id } => self.start_root(trace, id),
            Action::StartChild { parent, id } => self.start_child(parent, id),
            Action::End { open, sampled } => self.end(open, sampled)?,
            Action::Hold { parent } => self.hold(parent),
            Action::Release { hold } => self.release(hold),
            Action::Tick { queues } => {
                self.tell(format!("the driver takes {queues} queues"));
                self.dispatch.tick(queues);
            }
            Action::EndPauses => self.end_pauses()?,
            Action::Export => self.export()?,
            Action::Answer { batch, takes } => self.answer(batch, takes)?,
            Action::Wait { seconds, blocks } => self.wait(seconds, blocks)?,
            Action::Flush { scope, heard } => flushed = self.flush(scope, heard),
            Action::GiveUpFlush { flush } => self.give_up_flush(flush),
            Action::Shutdown => self.shutdown(),
            Action::Abandon => self.abandon()?,
        }
        self.check_flushes()?;
        drop(self.dispatch.take_contexts());
        drop(self.dispatch.take_garbage());
        self.check_departures(action, flushed, &before, newest)?;
        self.check_account()?;
        self.check_contexts()?;
        match action {
            Action::Tick { queues: ALL } => self.check_nothing_stays(),
            _ => Ok(()),
        }
    }

    fn start_root(&mut self, trace: u128, id: Id) {
        let id = self.id(trace, id);
        let root = self.reference.start_root(trace, id);
        self.tell(format!("trace {trace}: root {root} starts, with id {id}"));
        let alive = Arc::new(());
        self.contexts.insert(root, Arc::downgrade(&alive));
        let credentials = Credentials {
            root,
            _alive: alive,
        };
        self.dispatch.start_root(
            request_id(trace, id),
            Context::new().with_value(credentials),
        );
    }

    fn start_child(&mut self, parent: Parent, id: Id) {
        let Some((trace, parent)) = self.parent(parent) else {
            return;
        };
        let id = self.id(trace, id);
        let child = self.reference.start_child(trace, parent, id);
        self.tell(format!(
            "trace {trace}: span {child} starts under id {parent}, with id {id}"
        ));
        let (parent, span) = (SpanId::from(parent), SpanId::from(id));
        self.dispatch
            .start_child(TraceId::from(trace), parent, span);
    }

    fn end(&mut self, open: usize, sampled: bool) -> Check {
        let spans = self.reference.open();
        if spans.is_empty() {
            return Ok(());
        }
        let serial = spans[open % spans.len()];
        let taken = self.reference.end(serial, sampled);
        self.tell(format!("span {serial} ends, sampled: {sampled}"));
        let mut span = Some(self.span(serial, sampled));
        self.dispatch.end(&mut span);
        prop_assert_eq!(span.is_none(), taken, "whether span {} is taken", serial);
        Ok(())
    }

    fn hold(&mut self, parent: Parent) {
        let Some((trace, parent)) = self.parent(parent) else {
            return;
        };
        let id = self.id(trace, Id::New);
        let hold = self.reference.hold(trace, parent, id);
        self.tell(format!(
            "trace {trace}: {hold} holds what id {parent} is of"
        ));
        let (parent, id) = (SpanId::from(parent), SpanId::from(id));
        self.dispatch.hold(TraceId::from(trace), parent, id);
    }

    fn release(&mut self, pick: usize) {
        let held = self.reference.held();
        if held.is_empty() {
            return;
        }
        let hold = held[pick % held.len()];
        self.tell(format!("{hold} is released"));
        self.reference.release(hold);
        let span = &self.reference.spans[hold];
        let (trace, id) = (TraceId::from(span.trace), SpanId::from(span.id));
        self.dispatch.release(trace, id);
    }

    fn end_pauses(&mut self) -> Check {
        let paced = self.dispatch.take_paced();
        prop_assert!(
            paced.is_empty() || self.platform == Platform::Workers,
            "natively nobody ends a pause"
        );
        for (id, _) in paced {
            self.tell(format!("the pause of {id:?} ends"));
            *self.pauses.entry(id.request).or_default() += 1;
            self.dispatch.end_pause(id);
        }
        Ok(())
    }

    fn export(&mut self) -> Check {
        let deadline = self.now + TIMEOUT;
        let Some(batch) = self.dispatch.next_batch(Some(deadline)) else {
            return Ok(());
        };
        let spans: Vec<Serial> = spans_of(&batch).iter().map(serial_of).collect();
        self.tell(format!("the exporter gets batch {}: {spans:?}", batch.id));
        self.check_batch(&batch, &spans)?;
        self.exports += 1;
        self.exporter.push(Export {
            batch,
            spans,
            deadline,
            given_up: false,
        });
        Ok(())
    }

    fn answer(&mut self, pick: usize, takes: bool) -> Check {
        if self.exporter.is_empty() {
            return Ok(());
        }
        let export = self.exporter.remove(pick % self.exporter.len());
        let outcome = match takes {
            true => Outcome::Exported,
            false => Outcome::Failed,
        };
        self.tell(format!("batch {}: {outcome:?}", export.batch.id));
        if !export.given_up {
            self.reference.settle(&export.spans, outcome);
        }
        self.dispatch.complete(export.batch.id, outcome);
        Ok(())
    }

    fn wait(&mut self, seconds: u64, blocks: bool) -> Check {
        self.now += Duration::from_secs(seconds);
        self.tell(format!(
            "{seconds} seconds pass, the exporter blocks: {blocks}"
        ));
        let mut overdue: Vec<u64> = self
            .dispatch
            .overdue(self.now)
            .iter()
            .map(|o| o.id)
            .collect();
        overdue.sort_unstable();
        let expected = |export: &&Export| !export.given_up && export.deadline <= self.now;
        let expected = self.exporter.iter().filter(expected);
        let mut expected: Vec<u64> = expected.map(|export| export.batch.id).collect();
        expected.sort_unstable();
        prop_assert_eq!(&overdue, &expected, "what is overdue");
        for id in overdue {
            self.tell(format!("batch {id} is overdue"));
            let at = self.exporter.iter().position(|e| e.batch.id == id);
            let at = at.expect("it is in flight");
            self.reference
                .settle(&self.exporter[at].spans, Outcome::TimedOut);
            match blocks {
                true => {
                    self.exporter[at].given_up = true;
                    self.dispatch.give_up(id);
                }
                false => {
                    drop(self.exporter.remove(at));
                    self.dispatch.complete(id, Outcome::TimedOut);
                }
            }
            self.check_flushes()?;
        }
        Ok(())
    }

    fn flush(&mut self, wanted: Wanted, heard: bool) -> Option<Scope> {
        if self.reference.closed {
            // The runtimes refuse it.
            return None;
        }
        let scope = match wanted {
            Wanted::All => Scope::All,
            Wanted::Trace(trace) => Scope::Trace(TraceId::from(trace)),
            // Only Workers have this one.
            Wanted::Request(pick) if self.platform == Platform::Workers => {
                let spans = &self.reference.spans;
                let root = spans.get(pick % spans.len().max(1))?;
                Scope::Request(request_id(root.trace, root.id))
            }
            Wanted::Request(_) => return None,
        };
        self.tell(format!("flush of {scope:?}, heard: {heard}"));
        self.begin_flush(scope, heard);
        Some(scope)
    }

    fn begin_flush(&mut self, scope: Scope, heard: bool) {
        let covered = self
            .reference
            .pending()
            .filter(|(_, span, owner)| match scope {
                Scope::All => true,
                Scope::Trace(trace) => trace == TraceId::from(span.trace),
                Scope::Request(id) => match owner {
                    Owner::Request(root) => id == self.request_id_of(*root),
                    Owner::Fallback(_) => false,
                },
            });
        let before = covered.map(|(serial, ..)| serial).collect();
        let (_, reported) = self.reference.losses(trace_of_scope(scope));
        let (id, asked) = match self.platform {
            Platform::Native => (self.dispatch.begin_flush(SPANS, scope), None),
            Platform::Workers => (0, Some(self.dispatch.open_flush(SPANS, scope))),
        };
        self.flushes.push(Watch {
            id,
            asked,
            scope,
            before,
            reported,
            heard,
        });
    }

    fn give_up_flush(&mut self, pick: usize) {
        if !self.flushes.is_empty() {
            let watch = self.flushes.remove(pick % self.flushes.len());
            self.tell(format!("nobody waits for the flush of {:?}", watch.scope));
            self.dispatch.cancel_flush(watch.id);
        }
    }

    fn shutdown(&mut self) {
        if !self.reference.closed {
            self.tell("shutdown");
            self.reference.close();
            self.dispatch.close(Signal::Spans);
            self.begin_flush(Scope::All, true);
        }
    }

    fn abandon(&mut self) -> Check {
        if !self.reference.closed {
            return Ok(());
        }
        self.tell("the shutdown is given up");
        let waiting = self.dispatch.lanes[Signal::Spans].waiting.iter();
        let waiting = waiting.flat_map(spans_of);
        let waiting: Vec<Serial> = waiting.map(serial_of).collect();
        self.reference
            .settle(&waiting, Outcome::Dropped(DropReason::ShutdownTimeout));
        self.dispatch.abandon(Signal::Spans);
        self.abandoning = true;
        let checked = self.check_flushes();
        self.abandoning = false;
        checked
    }

    // ----- the end -----

    /// Spans leave while others of their request are open, with nothing but ticks and answers (R4).
    pub(super) fn stream_out(&mut self) -> Check {
        self.let_out()?;
        prop_assert_eq!(
            self.reference.pending().count(),
            0,
            "something never leaves"
        );
        Ok(())
    }

    /// Ends everything, and lets everything out.
    pub(super) fn drain(&mut self) -> Check {
        while !self.reference.open().is_empty() {
            let (open, sampled) = (0, true);
            self.apply(Action::End { open, sampled })?;
        }
        while !self.reference.held().is_empty() {
            self.apply(Action::Release { hold: 0 })?;
        }
        self.let_out()?;
        let stats = self.dispatch.stats();
        prop_assert_eq!(stats.pending(), 0, "{:?}", stats);
        let live = self.reference.requests().count();
        prop_assert_eq!((live, stats.traces), (0, 0));
        prop_assert!(self.flushes.is_empty(), "a flush never ends");
        prop_assert!(
            self.dispatch.lanes[Signal::Spans]
                .held
                .iter()
                .all(|id| id.is_late())
        );
        Ok(())
    }

    /// In so many rounds as there can be batches.
    fn let_out(&mut self) -> Check {
        for _ in 0..=2 * MAX_PENDING {
            if self.exporter.is_empty() && self.reference.pending().next().is_none() {
                break;
            }
            self.apply(Action::EndPauses)?;
            self.apply(Action::Tick { queues: 2 })?;
            self.apply(Action::Export)?;
            let (batch, takes) = (0, true);
            self.apply(Action::Answer { batch, takes })?;
        }
        Ok(())
    }

    // ----- names -----

    /// The trace and the id of a parent, if any span was ever started.
    fn parent(&self, parent: Parent) -> Option<(u128, u64)> {
        let spans = &self.reference.spans;
        let (Parent::Of(pick) | Parent::UnknownBeside(pick)) = parent;
        let beside = spans.get(pick % spans.len().max(1))?;
        let id = match parent {
            Parent::Of(_) => beside.id,
            Parent::UnknownBeside(_) => u64::MAX,
        };
        Some((beside.trace, id))
    }

    fn id(&self, trace: u128, id: Id) -> u64 {
        // Ids are never used again once their request is over.
        let new = self.reference.spans.len() as u64 + 1;
        match id {
            Id::New => new,
            Id::Of(pick) => {
                let requests = self.reference.requests();
                let of_trace = requests.filter(|(of, _)| *of == trace);
                let ids: Vec<u64> = of_trace.flat_map(|(_, r)| r.ids.clone()).collect();
                ids.get(pick % ids.len().max(1)).copied().unwrap_or(new)
            }
        }
    }

    fn span(&self, serial: Serial, sampled: bool) -> SpanData {
        let flags = match sampled {
            true => TraceFlags::SAMPLED,
            false => TraceFlags::default(),
        };
        let span = &self.reference.spans[serial];
        let mut data = span_with_flags(span.trace, span.id, flags);
        data.name = serial.to_string().into();
        data
    }

    fn request_id_of(&self, root: Serial) -> RequestId {
        let root = &self.reference.spans[root];
        request_id(root.trace, root.id)
    }

    /// The root of a live request.
    fn root_of(&self, id: RequestId) -> Option<Serial> {
        let mut requests = self.reference.requests();
        requests.find_map(|(_, r)| (self.request_id_of(r.root) == id).then_some(r.root))
    }
}

fn request_id(trace: u128, root: u64) -> RequestId {
    RequestId {
        trace: TraceId::from(trace),
        root: SpanId::from(root),
    }
}

fn trace_of_scope(scope: Scope) -> Option<u128> {
    let trace = scope.trace()?;
    Some(u128::from_be_bytes(trace.to_bytes()))
}

fn serial_of(span: &SpanData) -> Serial {
    span.name.parse().expect("spans are named by their serial")
}

fn spans_of(batch: &Batch) -> &[SpanData] {
    match &batch.items {
        Items::Spans(spans) => spans,
        _ => panic!("a batch of {}", batch.items.signal()),
    }
}
