//! The dispatch and its reference, side by side: each action is done to both, and then both are asked.

mod checks;
#[cfg(feature = "logs")]
mod logs;
#[cfg(feature = "metric-reader")]
mod metrics;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry::trace::{SpanId, TraceFlags, TraceId};
use opentelemetry_sdk::trace::SpanData;
use proptest::prelude::*;

use super::super::{Batch, DropReason, Flush, Losses, Origin, Outcome, Scope};
use super::action::{ALL, Action, Id, Parent, Wanted};
use super::reference::{Item, Owner, Place, Reference, Serial};
use super::{
    Check, MAX_BATCH_SIZE, MAX_COLLECTIONS, MAX_CONCURRENT, MAX_EXPORTS, MAX_PENDING_LOGS,
    MAX_PENDING_SPANS, Platform, max_pending,
};
use crate::clock::Instant;
use crate::config::FlushTrigger;
use crate::dispatch::Dispatch;
use crate::request::{QueueId, RequestId, Schedule};
use crate::signal::{Items, LATE_ATTRIBUTE, PerSignal, Signal, Signals};
use crate::stats::{SignalStats, Stats};
use crate::sync::{Arc, Weak};
use crate::testing::span_with_flags;

/// Natively, how many exports of a signal there may be at once.
fn most_at_once(signal: Signal) -> usize {
    match signal {
        Signal::Metrics => 1,
        _ => MAX_CONCURRENT,
    }
}

/// How long an export may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The value that tells contexts apart, and whether one is still alive. The fallback context has none.
struct Credentials {
    /// The root of a request, or a log record that has a context of its own.
    of: Serial,
    _alive: Arc<()>,
}

pub(super) struct Pair {
    dispatch: Dispatch,
    reference: Reference,
    platform: Platform,
    trigger: FlushTrigger,
    now: Instant,
    /// What the exporters hold.
    exporter: Vec<Export>,
    /// What they have let go of in this step.
    returned: Vec<Export>,
    /// What the exporters were given, and in how many batches.
    exported: HashSet<Serial>,
    exports: PerSignal<u64>,
    /// By whose they are.
    contexts: HashMap<Serial, Weak<()>>,
    flushes: Vec<Watch>,
    /// In a Worker, how often each queue has left other than with a flush, and how many pauses it has had.
    departures: HashMap<QueueId, usize>,
    pauses: HashMap<QueueId, usize>,
    #[cfg(feature = "logs")]
    blank: opentelemetry_sdk::logs::SdkLogRecord,
    /// When the driver is to collect metrics, as far as it knows.
    #[cfg(feature = "metric-reader")]
    planned: Option<Instant>,
    /// What was done, for people.
    story: Vec<String>,
}

/// A batch that its exporter has.
struct Export {
    batch: Batch,
    items: Vec<Serial>,
    deadline: Instant,
    /// Accounted for at its deadline, though the exporter still has it.
    given_up: bool,
}

/// A flush that somebody waits for.
struct Watch {
    id: u64,
    /// In a Worker, where it is asked instead of being told.
    asked: Option<Flush>,
    signals: Signals,
    scope: Scope,
    /// What is pending of its scope when it begins.
    before: Vec<Serial>,
    /// What had been reported of its scope by then.
    reported: PerSignal<Losses>,
    /// What is lost of its scope when nothing of that is pending any more.
    lost: Option<PerSignal<Losses>>,
    heard: bool,
}

impl Export {
    fn signal(&self) -> Signal {
        self.batch.items.signal()
    }
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
            returned: Vec::new(),
            exported: HashSet::new(),
            exports: PerSignal::default(),
            contexts: HashMap::new(),
            flushes: Vec::new(),
            departures: HashMap::new(),
            pauses: HashMap::new(),
            #[cfg(feature = "logs")]
            blank: crate::testing::blank_record(),
            #[cfg(feature = "metric-reader")]
            planned: None,
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
        let before = PerSignal::new(|signal| self.dispatch.lanes[signal].stats.clone());
        let newest = self.dispatch.next_id;
        let mut flushed = None;
        self.reference.tidy();
        match action {
            Action::StartRoot { trace, id } => self.start_root(trace, id),
            Action::StartChild { parent, id } => self.start_child(parent, id),
            Action::End { open, sampled } => self.end(open, sampled)?,
            Action::Hold { parent } => self.hold(parent),
            Action::Release { hold } => self.release(hold),
            Action::Emit { spot } => self.emit(spot)?,
            Action::Read => self.read(),
            Action::Collect => self.collect()?,
            Action::Collected { collection, points } => self.collected(collection, points)?,
            Action::Tick { queues } => {
                self.tell(format!("the driver takes {queues} queues"));
                self.dispatch.tick(queues);
            }
            Action::EndPauses => self.end_pauses()?,
            Action::Export => self.export()?,
            Action::Answer { batch, takes } => self.answer(batch, takes)?,
            Action::Wait { seconds, blocks } => self.wait(seconds, blocks)?,
            Action::Flush {
                signals,
                scope,
                heard,
            } => flushed = self.flush(signals, scope, heard),
            Action::GiveUpFlush { flush } => self.give_up_flush(flush),
            Action::Shutdown { signal } => self.shutdown(signal)?,
            Action::Abandon { signal } => self.abandon(signal)?,
        }
        self.check_flushes()?;
        self.check_nothing_is_dropped()?;
        self.returned.clear();
        drop(self.dispatch.take_contexts());
        drop(self.dispatch.take_garbage());
        self.check_departures(action, flushed, &before, newest)?;
        self.check_account()?;
        self.check_contexts()?;
        self.check_collections()?;
        self.check_held()?;
        match action {
            Action::Tick { queues: ALL } => self.check_nothing_stays(),
            _ => Ok(()),
        }
    }

    fn start_root(&mut self, trace: u128, id: Id) {
        let id = self.id(trace, id);
        let root = self.reference.start_root(trace, id);
        self.tell(format!("trace {trace}: root {root} starts, with id {id}"));
        let context = self.context(root);
        self.dispatch.start_root(request_id(trace, id), context);
    }

    /// A context to be saved, which is watched from now on.
    fn context(&mut self, of: Serial) -> Context {
        let alive = Arc::new(());
        self.contexts.insert(of, Arc::downgrade(&alive));
        let credentials = Credentials { of, _alive: alive };
        Context::new().with_value(credentials)
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
        let span = &self.reference.items[hold];
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
            *self.pauses.entry(id).or_default() += 1;
            self.dispatch.end_pause(id);
        }
        Ok(())
    }

    fn export(&mut self) -> Check {
        let deadline = self.now + TIMEOUT;
        let oldest = self.oldest_that_may_leave();
        let batch = self.dispatch.next_batch(Some(deadline));
        let next = batch.as_ref().map(|batch| batch.id);
        prop_assert_eq!(next, oldest, "the oldest batch that there is a slot for");
        let Some(batch) = batch else {
            return Ok(());
        };
        let items = self.serials_of(&batch);
        let signal = batch.items.signal();
        let id = batch.id;
        self.tell(format!(
            "the exporter of {signal} gets batch {id}: {items:?}"
        ));
        self.check_batch(&batch, &items)?;
        self.exports[signal] += 1;
        self.exporter.push(Export {
            batch,
            items,
            deadline,
            given_up: false,
        });
        Ok(())
    }

    fn oldest_that_may_leave(&self) -> Option<u64> {
        let free = |signal: &Signal| self.slots_taken(*signal) < most_at_once(*signal);
        let unbounded = self.platform == Platform::Workers;
        let ready = Signal::ALL.into_iter().filter(|s| unbounded || free(s));
        ready
            .filter_map(|signal| Some(self.dispatch.lanes[signal].waiting.front()?.id))
            .min()
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
            self.settle(&export.items, outcome);
        }
        self.dispatch.complete(export.batch.id, outcome);
        self.returned.push(export);
        Ok(())
    }

    /// In the reference. Then some flushes are over.
    fn settle(&mut self, batch: &[Serial], outcome: Outcome) {
        self.reference.settle(batch, outcome);
        self.end_flushes();
    }

    fn end_flushes(&mut self) {
        for watch in &mut self.flushes {
            if watch.lost.is_none() && watch.is_done(&self.reference) {
                watch.lost = Some(lost(&self.reference, watch.scope));
            }
        }
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
            let items = self.exporter[at].items.clone();
            self.settle(&items, Outcome::TimedOut);
            match blocks {
                true => {
                    self.exporter[at].given_up = true;
                    self.dispatch.give_up(id);
                }
                false => {
                    self.returned.push(self.exporter.remove(at));
                    self.dispatch.complete(id, Outcome::TimedOut);
                }
            }
            self.check_flushes()?;
        }
        Ok(())
    }

    fn flush(&mut self, signals: Signals, wanted: Wanted, heard: bool) -> Option<(Signals, Scope)> {
        if signals.iter().all(|signal| self.reference.closed[signal]) {
            // The runtimes refuse it.
            return None;
        }
        let scope = match wanted {
            Wanted::All => Scope::All,
            Wanted::Trace(trace) => Scope::Trace(TraceId::from(trace)),
            // Only Workers have this one.
            Wanted::Request(pick) if self.platform == Platform::Workers => {
                let spans = &self.reference.spans;
                let root = *spans.get(pick % spans.len().max(1))?;
                Scope::Request(self.request_id_of(root))
            }
            Wanted::Request(_) => return None,
        };
        self.tell(format!("flush of {signals:?} of {scope:?}, heard: {heard}"));
        if scope == Scope::All && signals.contains(Signal::Metrics) {
            self.collect_now();
        }
        self.begin_flush(signals, scope, heard);
        Some((signals, scope))
    }

    fn begin_flush(&mut self, signals: Signals, scope: Scope, heard: bool) {
        let before = self
            .reference
            .all(|item| signals.contains(item.signal) && self.covers(scope, item));
        let trace = trace_of_scope(scope);
        let reported = PerSignal::new(|signal| self.reference.losses(signal, trace).1);
        let (id, asked) = match self.platform {
            Platform::Native => (self.dispatch.begin_flush(signals, scope), None),
            Platform::Workers => (0, Some(self.dispatch.open_flush(signals, scope))),
        };
        self.flushes.push(Watch {
            id,
            asked,
            signals,
            scope,
            before,
            reported,
            lost: None,
            heard,
        });
        self.end_flushes();
    }

    /// Whether something is pending that a flush of this scope waits for.
    fn covers(&self, scope: Scope, item: &Item) -> bool {
        let owner = match item.place {
            Place::Pending(owner) => owner,
            // Metrics are everybody's.
            Place::Collecting => return scope == Scope::All,
            _ => return false,
        };
        match scope {
            Scope::All => true,
            Scope::Trace(trace) => trace == TraceId::from(item.trace),
            Scope::Request(id) => match owner {
                Owner::Request(root) => id == self.request_id_of(root),
                Owner::Fallback(_) | Owner::Own(_) => false,
            },
        }
    }

    fn give_up_flush(&mut self, pick: usize) {
        if !self.flushes.is_empty() {
            let watch = self.flushes.remove(pick % self.flushes.len());
            self.tell(format!("nobody waits for the flush of {:?}", watch.scope));
            self.dispatch.cancel_flush(watch.id);
        }
    }

    fn shutdown(&mut self, signal: Signal) -> Check {
        if self.reference.closed[signal] {
            return Ok(());
        }
        self.tell(format!("shutdown of {signal}"));
        if signal == Signal::Metrics {
            self.collect_now();
        }
        self.reference.close(signal);
        self.dispatch.close(signal);
        let queued = self.dispatch.lanes[signal].stats.queued;
        prop_assert_eq!(queued, 0, "{} that stay", signal);
        self.begin_flush(Signals::of(signal), Scope::All, true);
        Ok(())
    }

    fn abandon(&mut self, signal: Signal) -> Check {
        if !self.reference.closed[signal] {
            return Ok(());
        }
        self.tell(format!("the shutdown of {signal} is given up"));
        self.reference.abandon(signal);
        // One after the other: a flush may be over in between.
        let waiting = self.dispatch.lanes[signal].waiting.iter();
        let waiting: Vec<Vec<Serial>> = waiting.map(|batch| self.serials_of(batch)).collect();
        for batch in waiting {
            self.settle(&batch, Outcome::Dropped(DropReason::ShutdownTimeout));
        }
        self.dispatch.abandon(signal);
        self.check_flushes()
    }

    // ----- the end -----

    /// Spans leave while others of their request are open, with nothing but ticks and answers (R4).
    pub(super) fn stream_out(&mut self) -> Check {
        self.let_out()?;
        prop_assert!(self.is_empty(), "something never leaves");
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
        prop_assert!(self.is_empty(), "{stats:?}");
        let live = self.reference.requests().count();
        prop_assert_eq!((live, stats.traces), (0, 0));
        prop_assert!(self.flushes.is_empty(), "a flush never ends");
        let mut held = self.dispatch.lanes.iter().flat_map(|lane| &lane.held);
        prop_assert!(held.all(|id| id.is_late()));
        prop_assert!(self.dispatch.slots.is_empty() && self.dispatch.in_flight.is_empty());
        Ok(())
    }

    /// In so many rounds as there can be batches.
    fn let_out(&mut self) -> Check {
        for _ in 0..=2 * (MAX_PENDING_SPANS + MAX_PENDING_LOGS + MAX_COLLECTIONS) {
            if self.exporter.is_empty() && self.is_empty() {
                break;
            }
            if !self.reference.collecting().is_empty() {
                let (collection, points) = (0, 1);
                self.apply(Action::Collected { collection, points })?;
            }
            if self.platform == Platform::Workers {
                self.apply(Action::EndPauses)?;
            }
            self.apply(Action::Tick { queues: 2 })?;
            self.apply(Action::Export)?;
            let (batch, takes) = (0, true);
            self.apply(Action::Answer { batch, takes })?;
        }
        Ok(())
    }

    fn is_empty(&self) -> bool {
        let pending = |signal| self.reference.count_pending(signal) > 0;
        !Signal::ALL.into_iter().any(pending) && self.reference.collecting().is_empty()
    }

    // ----- names -----

    /// The trace and the id of a parent, if any span was ever started.
    fn parent(&self, parent: Parent) -> Option<(u128, u64)> {
        let spans = &self.reference.spans;
        let (Parent::Of(pick) | Parent::UnknownBeside(pick)) = parent;
        let beside = spans.get(pick % spans.len().max(1))?;
        let Item { trace, id, .. } = self.reference.items[*beside];
        match parent {
            Parent::Of(_) => Some((trace, id)),
            Parent::UnknownBeside(_) => Some((trace, u64::MAX)),
        }
    }

    fn id(&self, trace: u128, id: Id) -> u64 {
        // Ids are never used again once their request is over.
        let new = self.reference.items.len() as u64 + 1;
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
        let span = &self.reference.items[serial];
        let mut data = span_with_flags(span.trace, span.id, flags);
        data.name = serial.to_string().into();
        data
    }

    /// What is in a batch.
    fn serials_of(&self, batch: &Batch) -> Vec<Serial> {
        let serial = |span: &SpanData| span.name.parse().expect("spans are named by their serial");
        match &batch.items {
            Items::Spans(spans) => spans.iter().map(serial).collect(),
            #[cfg(feature = "logs")]
            Items::Logs(logs) => logs.iter().map(logs::serial_of).collect(),
            #[cfg(feature = "metric-reader")]
            Items::Metrics(_) => self.serials_of_metrics(batch),
        }
    }

    /// How many batches the exporter of a signal has.
    fn slots_taken(&self, signal: Signal) -> usize {
        let of_signal = |export: &&Export| export.signal() == signal;
        self.exporter.iter().filter(of_signal).count()
    }

    fn request_id_of(&self, root: Serial) -> RequestId {
        let root = &self.reference.items[root];
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

/// All losses of a flush's scope, of each signal.
fn lost(reference: &Reference, scope: Scope) -> PerSignal<Losses> {
    let trace = trace_of_scope(scope);
    PerSignal::new(|signal| reference.losses(signal, trace).0)
}

impl Watch {
    fn is_done(&self, reference: &Reference) -> bool {
        !self.before.iter().any(|item| reference.is_pending(*item))
    }
}

/// What the dispatch lacks without its features, and so nothing does.
#[cfg(not(feature = "logs"))]
impl Pair {
    fn emit(&mut self, _spot: super::action::Spot) -> Check {
        Ok(())
    }
}

#[cfg(not(feature = "metric-reader"))]
impl Pair {
    fn read(&mut self) {}

    fn collect(&mut self) -> Check {
        Ok(())
    }

    fn collect_now(&mut self) {}

    fn collected(&mut self, _collection: usize, _points: u64) -> Check {
        Ok(())
    }

    fn check_collections(&self) -> Check {
        Ok(())
    }
}
