//! The dispatch, what was done to it, and what follows from that, computed in the most naive way.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, UNIX_EPOCH};

use opentelemetry::trace::{SpanId, Status, TraceFlags, TraceId};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::SpanData;
use proptest::prelude::*;

use super::super::{Check, Platform};
use super::action::{Action, Pick, Start};
use super::observer::Observer;
use super::{Case, MAX_BATCH_SIZE, config};
use crate::clock::Instant;
use crate::config::OpenEvents;
use crate::dispatch::{Batch, Dispatch, Outcome, Scope};
use crate::observer::{
    Close, InRequest, LifecycleEvent, MAX_OPEN_ATTRIBUTES, Open, Rename, Stage, Unfinished,
};
use crate::open_spans::OpenSpan;
use crate::request::RequestId;
use crate::signal::{Signal, Signals};
use crate::stats::OpenEventStats;
use crate::sync::{Arc, Weak};
use crate::testing::span_with_flags;

/// Names a span. Its id does not: two may have the same one.
pub(super) type Serial = usize;

/// The value that tells contexts apart. The fallback context has none.
pub(super) struct Credentials {
    pub(super) of: RequestId,
    _alive: Arc<()>,
}

/// A span, as the SDK has it.
pub(super) struct Span {
    pub(super) trace: u128,
    pub(super) id: u64,
    pub(super) is_sampled: bool,
    pub(super) has_ended: bool,
    pub(super) name: Cow<'static, str>,
    pub(super) attributes: Vec<KeyValue>,
    /// The request that it was known to be of when it started, if it was told of then.
    pub(super) request: Option<RequestId>,
    /// Of its open event.
    pub(super) sequence: u64,
    /// The name that was told last.
    pub(super) told: Cow<'static, str>,
    /// Whether something is remembered of it, or was when its request was sent off.
    pub(super) was_remembered: bool,
    /// Whether the collector was told that it is open.
    pub(super) is_sent: bool,
    /// Whether somebody has looked and found it old enough.
    pub(super) is_due: bool,
}

/// A span that is open and remembered.
#[derive(Clone)]
pub(super) struct Remembered {
    pub(super) span: Serial,
    pub(super) request: RequestId,
    since: Instant,
    /// How many attributes it had when it started.
    attributes: usize,
    /// Whether the collector is to be told.
    pub(super) leaves: bool,
}

/// In a Worker, somebody who will look at a request.
pub(super) struct Task {
    pub(super) of: RequestId,
    at: Instant,
}

pub(super) struct World {
    pub(super) case: Case,
    pub(super) dispatch: Dispatch,
    pub(super) now: Instant,
    pub(super) spans: Vec<Span>,
    /// In the order in which they opened.
    pub(super) remembered: Vec<Remembered>,
    pub(super) observer: Observer,
    /// What is to be heard of each request, and of each trace outside of its requests.
    pub(super) expected: HashMap<(TraceId, Option<SpanId>), Vec<LifecycleEvent>>,
    sequences: HashMap<RequestId, u64>,
    /// What the numbers are to be, but for what left and what could not.
    pub(super) counted: OpenEventStats,
    pub(super) joined: bool,
    pub(super) closed: HashSet<usize>,
    end: Unfinished,
    /// Until when the driver sleeps, while it does.
    pub(super) nap: Option<Instant>,
    keeps_alive: bool,
    pub(super) tasks: Vec<Task>,
    /// Requests that nobody could look at.
    pub(super) given_up: HashSet<RequestId>,
    looked: HashSet<RequestId>,
    exporter: Vec<Batch>,
    contexts: Vec<Weak<()>>,
    /// The ids that pending spans had.
    pub(super) own_ids: HashSet<SpanId>,
    pub(super) renames_seen: u64,
}

impl World {
    pub(super) fn new(case: Case) -> Self {
        let config = config(case);
        let mut dispatch = match case.platform {
            Platform::Native => Dispatch::new(&config, Context::new(), true),
            Platform::Workers => Dispatch::for_workers(&config, Context::new(), true),
        };
        if case.is_observed {
            dispatch.observe_spans();
        }
        Self {
            case,
            dispatch,
            now: Instant::now(),
            spans: Vec::new(),
            remembered: Vec::new(),
            observer: Observer::default(),
            expected: HashMap::new(),
            sequences: HashMap::new(),
            counted: OpenEventStats::default(),
            joined: false,
            closed: HashSet::new(),
            end: Unfinished::Shutdown,
            nap: None,
            keeps_alive: true,
            tasks: Vec::new(),
            given_up: HashSet::new(),
            looked: HashSet::new(),
            exporter: Vec::new(),
            contexts: Vec::new(),
            own_ids: HashSet::new(),
            renames_seen: 0,
        }
    }

    /// Does it, and checks what must be true then.
    pub(super) fn apply(&mut self, action: Action) -> Check {
        let before = self.snapshot();
        match action {
            Action::StartRoot { trace, start } => self.start_root(trace, start),
            Action::StartChild {
                parent,
                is_known,
                start,
            } => self.start_child(parent, is_known, start),
            Action::SetAttribute { span } => self.set_attribute(span),
            Action::Rename {
                span,
                is_news,
                is_told,
            } => self.rename(span, is_news, is_told),
            Action::RenameUnknown { trace } => {
                let (trace, nobody) = (TraceId::from(trace), SpanId::from(u64::MAX));
                self.dispatch.rename(trace, nobody, "nobody".into());
            }
            Action::End { open } => self.end(open),
            Action::Emit { span } => self.emit(span),
            Action::JoinLogs => self.join_logs(),
            Action::Pass { millis } => self.pass(Duration::from_millis(millis)),
            Action::Look => self.look(),
            Action::LookWhetherWanted => self.look_whether_wanted(),
            Action::KeepAlive(keeps) => self.keeps_alive = keeps,
            Action::Sleep => self.sleep(),
            Action::Tick { queues } => {
                self.wake_up();
                self.dispatch.tick(queues);
                self.dispatch.take_batches_made();
                self.dispatch.notices.take(self.now, false);
            }
            Action::EndPauses => {
                for (id, _) in self.dispatch.take_paced() {
                    self.dispatch.end_pause(id);
                }
            }
            Action::Export => self.exporter.extend(self.dispatch.next_batch(None)),
            Action::Answer { batch, takes } => self.answer(batch, takes),
            Action::Flush { trace } => self.flush(trace),
            Action::Close { signal, by_panic } => self.close(signal, by_panic),
            Action::Tell { thread } => self.observer.step(thread, &mut self.dispatch)?,
        }
        // Whoever did it releases the lock.
        self.observer.take_told(&mut self.dispatch);
        self.take_looks()?;
        self.forget_what_is_gone();
        let has_news = self.has_news();
        if self.dispatch.must_wake() {
            self.check_wake(has_news)?;
            self.nap = None;
        }
        drop(self.dispatch.take_contexts());
        drop(self.dispatch.take_garbage());
        self.check(&before)
    }

    // ----- spans -----

    fn start_root(&mut self, trace: u128, start: Start) {
        let span = self.new_span(trace, start);
        let id = RequestId {
            trace: TraceId::from(trace),
            root: SpanId::from(self.spans[span].id),
        };
        let alive = Arc::new(());
        self.contexts.push(Arc::downgrade(&alive));
        let credentials = Credentials {
            of: id,
            _alive: alive,
        };
        let context = Context::new().with_value(credentials);
        self.dispatch.start_root(id, context);
        self.open(span);
    }

    fn start_child(&mut self, parent: Pick, is_known: bool, start: Start) {
        if self.spans.is_empty() {
            return;
        }
        let parent = &self.spans[parent % self.spans.len()];
        let trace = parent.trace;
        let parent = SpanId::from(match is_known {
            true => parent.id,
            false => u64::MAX,
        });
        let span = self.new_span(trace, start);
        let id = SpanId::from(self.spans[span].id);
        self.dispatch.start_child(TraceId::from(trace), parent, id);
        self.open(span);
    }

    fn new_span(&mut self, trace: u128, start: Start) -> Serial {
        let serial = self.spans.len();
        let live: Vec<u64> = self
            .spans
            .iter()
            .filter(|span| span.trace == trace)
            .filter(|span| self.owner(trace, span.id).is_some())
            .map(|span| span.id)
            .collect();
        let id = match start.id_of {
            Some(pick) if !live.is_empty() => live[pick % live.len()],
            _ => serial as u64 + 1,
        };
        let name: Cow<'static, str> = serial.to_string().into();
        let attributes = (0..start.attributes).map(|n| KeyValue::new("at the start", n as i64));
        self.spans.push(Span {
            trace,
            id,
            is_sampled: start.is_sampled,
            has_ended: false,
            told: name.clone(),
            name,
            attributes: attributes.collect(),
            request: None,
            sequence: 0,
            was_remembered: false,
            is_sent: false,
            is_due: false,
        });
        serial
    }

    /// The span has started, which the processor tells of in the same critical section.
    fn open(&mut self, serial: Serial) {
        let span = self.data(serial);
        if !span.span_context.is_sampled() || !self.dispatch.remembers_open_spans() {
            return;
        }
        self.forget_what_is_gone();
        let (trace, id) = (self.spans[serial].trace, self.spans[serial].id);
        let request = self.owner(trace, id);
        self.dispatch.open(OpenSpan::starting(span, self.now));
        let nobody_listens = self.case.form == OpenEvents::Logs && !self.joined;
        let nobody_asks = !self.case.is_observed && !self.case.exports_unfinished;
        if self.is_closed(Signal::Spans) || (nobody_listens && nobody_asks) {
            return;
        }
        let attributes = self.spans[serial].attributes.clone();
        let told = attributes.len().min(MAX_OPEN_ATTRIBUTES);
        let open = Stage::Open(Open {
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            name: self.spans[serial].name.clone(),
            kind: opentelemetry::trace::SpanKind::Internal,
            start_time: UNIX_EPOCH,
            attributes: attributes[..told].to_vec(),
            dropped_attributes_count: (attributes.len() - told) as u32,
            links: Vec::new(),
        });
        let sequence = self.expect(serial, request, open);
        let Some(request) = request else {
            return;
        };
        self.spans[serial].request = Some(request);
        self.spans[serial].sequence = sequence;
        let leaves = self.form_signal().is_some() && !nobody_listens;
        self.counted.opened += u64::from(leaves);
        if self.remembered.len() < self.case.max_pending {
            self.spans[serial].was_remembered = true;
            self.remembered.push(Remembered {
                span: serial,
                request,
                since: self.now,
                attributes: attributes.len(),
                leaves,
            });
        }
    }

    fn set_attribute(&mut self, pick: Pick) {
        let open = self.open_spans();
        if let Some(serial) = open.get(pick % open.len().max(1)) {
            let attributes = &mut self.spans[*serial].attributes;
            attributes.push(KeyValue::new("later", attributes.len() as i64));
        }
    }

    fn rename(&mut self, pick: Pick, is_news: bool, is_told: bool) {
        if self.spans.is_empty() {
            return;
        }
        let serial = pick % self.spans.len();
        let span = &mut self.spans[serial];
        let name: Cow<'static, str> = match is_news {
            true => format!("{}'", span.name).into(),
            false => span.name.clone(),
        };
        if !span.has_ended {
            span.name = name.clone();
        }
        if !is_told {
            return;
        }
        let (trace, id) = (span.trace, span.id);
        let of = self.find(trace, id).map(|at| self.remembered[at].clone());
        let (trace, id) = (TraceId::from(trace), SpanId::from(id));
        self.dispatch.rename(trace, id, name.clone());
        // Of several with its id it is the latest.
        let Some(of) = of.filter(|of| self.spans[of.span].told != name) else {
            return;
        };
        self.spans[of.span].told = name.clone();
        let rename = Stage::Rename(Rename { name });
        self.expect(of.span, Some(of.request), rename);
    }

    fn end(&mut self, pick: Pick) {
        let open = self.open_spans();
        let Some(serial) = open.get(pick % open.len().max(1)).copied() else {
            return;
        };
        let mut data = Some(self.data(serial));
        let (trace, id) = (self.spans[serial].trace, self.spans[serial].id);
        let request = self.owner(trace, id);
        drop(self.dispatch.end(&mut data));
        self.spans[serial].has_ended = true;
        if !self.spans[serial].is_sampled || self.is_closed(Signal::Spans) {
            return;
        }
        let at = self.find(trace, id).filter(|_| request.is_some());
        let of = at.map(|at| self.remembered.remove(at));
        if let Some(of) = &of {
            self.spans[of.span].was_remembered = false;
        }
        let span = &self.spans[serial];
        let told = of
            .as_ref()
            .map_or(0, |of| of.attributes.min(MAX_OPEN_ATTRIBUTES));
        let renamed = of
            .as_ref()
            .is_none_or(|of| self.spans[of.span].told != span.name);
        let close = Stage::Close(Close {
            end_time: UNIX_EPOCH,
            status: Status::Unset,
            name: renamed.then(|| span.name.clone()),
            attributes: span.attributes[told.min(span.attributes.len())..].to_vec(),
            events: Vec::new(),
            links: Vec::new(),
            unfinished: None,
        });
        if self.case.is_observed {
            self.expect(serial, request, close);
        }
    }

    /// An event of a span, which takes a place in its request whether somebody hears it or not.
    fn expect(&mut self, serial: Serial, request: Option<RequestId>, stage: Stage) -> u64 {
        let sequence = request.map(|request| {
            let next = self.sequences.entry(request).or_default();
            *next += 1;
            *next - 1
        });
        if self.case.is_observed {
            let span = &self.spans[serial];
            let request = request.zip(sequence).map(|(request, sequence)| InRequest {
                local_root: request.root,
                sequence,
            });
            let event = LifecycleEvent {
                trace_id: TraceId::from(span.trace),
                span_id: SpanId::from(span.id),
                request,
                stage,
            };
            let key = (event.trace_id, request.map(|request| request.local_root));
            self.expected.entry(key).or_default().push(event);
        }
        sequence.unwrap_or_default()
    }

    // ----- time -----

    fn pass(&mut self, time: Duration) {
        self.now += time;
        if self.nap.is_some_and(|nap| nap <= self.now) {
            self.wake_up();
        }
    }

    fn sleep(&mut self) {
        if self.case.platform == Platform::Native && !self.has_news() {
            self.dispatch.asleep = true;
            self.nap = self.dispatch.plan_nap(self.now);
        }
    }

    /// Whether there is something for the driver that is not about open spans.
    fn has_news(&self) -> bool {
        self.dispatch.has_news() || self.dispatch.notices.has_news()
    }

    fn wake_up(&mut self) {
        self.dispatch.asleep = false;
        self.nap = None;
    }

    fn look(&mut self) {
        match self.case.platform {
            Platform::Native => {
                self.wake_up();
                self.dispatch.look_at_open_spans(self.now, usize::MAX);
                self.make_due(|_| true, self.case.min_age());
            }
            Platform::Workers => {
                for mut task in std::mem::take(&mut self.tasks) {
                    let goes_on = match task.at <= self.now {
                        true => self.look_as(&mut task),
                        false => true,
                    };
                    if goes_on {
                        self.tasks.push(task);
                    }
                }
            }
        }
    }

    /// Returns whether the task is to look again.
    fn look_as(&mut self, task: &mut Task) -> bool {
        let of = task.of;
        if !self.dispatch.wants_look(of) {
            self.dispatch.give_up_look(of);
            return false;
        }
        let next = self.dispatch.look_at_request(of, self.now);
        let first = self.looked.insert(of) && self.case.min_age.is_none();
        let min_age = match first {
            true => Duration::ZERO,
            false => self.case.min_age(),
        };
        self.make_due(|request| request == of, min_age);
        task.at = next.unwrap_or(task.at);
        next.is_some()
    }

    /// Whoever looks finds those that are old enough.
    fn make_due(&mut self, of: impl Fn(RequestId) -> bool, min_age: Duration) {
        for open in &self.remembered {
            let is_old = open.old_at(min_age).is_some_and(|at| at <= self.now);
            if open.leaves && of(open.request) && is_old {
                self.spans[open.span].is_due = true;
            }
        }
    }

    fn look_whether_wanted(&mut self) {
        let dispatch = &mut self.dispatch;
        self.tasks.retain(|task| {
            let wanted = dispatch.wants_look(task.of);
            if !wanted {
                dispatch.give_up_look(task.of);
            }
            wanted
        });
    }

    /// In a Worker, who releases the lock starts the tasks that are wanted, if there is an event that they could belong to.
    fn take_looks(&mut self) -> Check {
        for of in self.dispatch.take_looks() {
            if !self.keeps_alive {
                self.dispatch.give_up_look(of);
                self.given_up.insert(of);
                continue;
            }
            self.given_up.remove(&of);
            let wait = self.dispatch.first_look(of);
            // What is open when a request first waits is told of at once, unless there is an age for it.
            let first = self.case.min_age.is_none() && !self.looked.contains(&of);
            let expected = match first {
                true => Duration::ZERO,
                false => self.case.min_age(),
            };
            prop_assert_eq!(wait, expected, "how long {:?} waits", of);
            if let Some(at) = self.now.checked_add(wait) {
                self.tasks.push(Task { of, at });
            }
        }
        Ok(())
    }

    // ----- exports -----

    #[cfg(feature = "logs")]
    fn emit(&mut self, pick: Pick) {
        use crate::dispatch::Emitted;

        if self.spans.is_empty() || !self.joined {
            return;
        }
        let span = &self.spans[pick % self.spans.len()];
        let log = crate::testing::log(span.trace, span.id);
        let of = Emitted::Within {
            trace: TraceId::from(span.trace),
            span: SpanId::from(span.id),
            unrecorded: None,
        };
        self.dispatch.emit(&mut Some(log), of);
    }

    #[cfg(not(feature = "logs"))]
    fn emit(&mut self, _: Pick) {}

    #[cfg(feature = "logs")]
    pub(super) fn join_logs(&mut self) {
        self.dispatch.join(Signal::Logs);
        self.joined = true;
    }

    #[cfg(not(feature = "logs"))]
    pub(super) fn join_logs(&mut self) {}

    fn answer(&mut self, pick: Pick, takes: bool) {
        if self.exporter.is_empty() {
            return;
        }
        let batch = self.exporter.remove(pick % self.exporter.len());
        let outcome = match takes {
            true => Outcome::Exported,
            false => Outcome::Failed,
        };
        self.dispatch.complete(batch.id, outcome);
    }

    fn flush(&mut self, trace: Option<u128>) {
        let scope = match trace {
            Some(trace) => Scope::Trace(TraceId::from(trace)),
            None => Scope::All,
        };
        self.dispatch.begin_flush(Signals::ALL, scope);
        self.dispatch.take_finished();
    }

    fn close(&mut self, signal: Signal, by_panic: bool) {
        let is_first = self.closed.insert(signal as usize);
        if by_panic && self.case.platform == Platform::Workers {
            self.dispatch.will_die(None, usize::MAX);
            self.end = Unfinished::Panic;
        }
        self.dispatch.close(signal);
        if signal != Signal::Spans || !is_first {
            return;
        }
        let close = Close {
            end_time: UNIX_EPOCH,
            status: Status::Unset,
            name: None,
            attributes: Vec::new(),
            events: Vec::new(),
            links: Vec::new(),
            unfinished: Some(self.end),
        };
        for open in std::mem::take(&mut self.remembered) {
            self.counted.unfinished += 1;
            let close = Stage::Close(close.clone());
            self.expect(open.span, Some(open.request), close);
        }
    }

    // ----- questions -----

    /// The live request that a span of this id is of. That this is right is what the model of requests proves.
    pub(super) fn owner(&self, trace: u128, id: u64) -> Option<RequestId> {
        let id = SpanId::from(id);
        self.dispatch.registry.owner(TraceId::from(trace), id)
    }

    pub(super) fn is_live(&self, id: RequestId) -> bool {
        self.dispatch.registry.roots(id.trace).contains(&id)
    }

    /// Where the latest span of this id is remembered, if one is.
    fn find(&self, trace: u128, id: u64) -> Option<usize> {
        let mut all = self.remembered.iter();
        all.rposition(|open| {
            let span = &self.spans[open.span];
            (span.trace, span.id) == (trace, id)
        })
    }

    fn forget_what_is_gone(&mut self) {
        let registry = &self.dispatch.registry;
        let is_live = |id: RequestId| registry.roots(id.trace).contains(&id);
        self.remembered.retain(|open| is_live(open.request));
        self.given_up.retain(|id| is_live(*id));
    }

    pub(super) fn open_spans(&self) -> Vec<Serial> {
        let all = 0..self.spans.len();
        all.filter(|serial| !self.spans[*serial].has_ended)
            .collect()
    }

    pub(super) fn is_closed(&self, signal: Signal) -> bool {
        self.closed.contains(&(signal as usize))
    }

    pub(super) fn form_signal(&self) -> Option<Signal> {
        match self.case.form {
            OpenEvents::Off => None,
            OpenEvents::Logs => Some(Signal::Logs),
            OpenEvents::PendingSpans => Some(Signal::Spans),
        }
    }

    pub(super) fn is_exporting(&self) -> bool {
        !self.exporter.is_empty()
    }

    pub(super) fn contexts_left(&self) -> usize {
        let left = |context: &&Weak<()>| context.strong_count() > 0;
        self.contexts.iter().filter(left).count()
    }

    fn data(&self, serial: Serial) -> SpanData {
        let span = &self.spans[serial];
        let flags = match span.is_sampled {
            true => TraceFlags::SAMPLED,
            false => TraceFlags::default(),
        };
        let mut data = span_with_flags(span.trace, span.id, flags);
        data.name = span.name.clone();
        data.attributes = span.attributes.clone();
        data
    }
}

impl Remembered {
    pub(super) fn old_at(&self, min_age: Duration) -> Option<Instant> {
        self.since.checked_add(min_age)
    }
}

pub(super) fn most_in_a_batch(platform: Platform) -> usize {
    match platform {
        Platform::Native => MAX_BATCH_SIZE,
        Platform::Workers => usize::MAX,
    }
}
