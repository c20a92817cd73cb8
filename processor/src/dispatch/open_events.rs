//! What is told of spans while they are open: to an observer, at once, and to the collector, once they are old enough.

use std::borrow::Cow;
#[cfg(any(test, not(target_family = "wasm")))]
use std::collections::BTreeSet;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use opentelemetry::trace::{SpanId, TraceId};
use opentelemetry_sdk::trace::SpanData;

use super::{Dispatch, Lane, Origin};
use crate::clock::Instant;
use crate::config::{Config, OpenEvents};
use crate::hash::IdHash;
use crate::notices::{Example, Kind};
use crate::observer::{Close, LifecycleEvent, Rename, Stage, Unfinished};
use crate::open_form::{self, Form, OpenEvent};
use crate::open_spans::{Event, OpenSpan, OpenSpans};
use crate::request::{QueueId, Request, RequestId};
use crate::signal::Signal;
use crate::stats::{DropReason, OpenEventStats};

/// How many events of one trace may wait for an observer before renames are left to the close.
const MAX_WAITING: usize = 1024;

/// How much later than planned a look at a request may come, in a Worker, before it is taken for one that will not come.
const LOOK_GRACE: Duration = Duration::from_secs(1);

/// Below this age the driver does not stay awake for spans that might open.
#[cfg(any(test, not(target_family = "wasm")))]
const SHORTEST_NAP: Duration = Duration::from_millis(20);

/// See the module.
#[derive(Debug)]
pub(super) struct Opened {
    /// How they leave, if they do.
    form: Option<Form>,
    is_observed: bool,
    /// Whether spans that never ended are exported as if they had.
    exports_unfinished: bool,
    min_age: Duration,
    looks: Looks,
    /// How many open spans are remembered, at most.
    max_remembered: u64,
    remembered: u64,
    stats: OpenEventStats,
    told: Told,
    /// Why spans will not end that are open when spans are closed.
    end: Unfinished,
    /// Of how many requests that is told, at most.
    max_buried: usize,
    has_complained: bool,
}

/// When somebody looks whether open spans are old enough, by request.
#[derive(Debug)]
enum Looks {
    /// The driver does, at these times.
    #[cfg(any(test, not(target_family = "wasm")))]
    Timed {
        at: BTreeSet<(Instant, RequestId)>,
        /// When it will be awake in any case.
        awake_at: Option<Instant>,
        /// Whether that is too late.
        is_early: bool,
        /// Whether a span has opened since the driver last went to sleep.
        is_busy: bool,
    },
    /// A task of the request does, in a Worker: those that need one.
    #[cfg_attr(not(any(test, target_family = "wasm")), allow(dead_code))]
    ByRequest {
        wanted: Vec<RequestId>,
        /// Whether the first look does not ask for the age.
        first_wait: bool,
    },
}

/// Events on their way to the observer: those of a trace one after the other, whoever they come from.
#[derive(Debug, Default)]
struct Told {
    /// What waits, of each trace that somebody is telling of.
    waiting: HashMap<TraceId, VecDeque<LifecycleEvent>, IdHash>,
    /// What whoever releases the lock is to tell of.
    first: Vec<LifecycleEvent>,
}

impl Opened {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            form: match config.open_events() {
                OpenEvents::Off => None,
                OpenEvents::Logs => Form::logs(),
                OpenEvents::PendingSpans => Some(Form::PendingSpans),
            },
            is_observed: false,
            exports_unfinished: config.export_unfinished(),
            min_age: config.open_event_min_age(),
            #[cfg(not(target_family = "wasm"))]
            looks: Looks::Timed {
                at: BTreeSet::new(),
                awake_at: None,
                is_early: false,
                is_busy: false,
            },
            #[cfg(target_family = "wasm")]
            looks: Looks::by_request(config),
            max_remembered: config.max_pending_spans() as u64,
            remembered: 0,
            stats: OpenEventStats::default(),
            told: Told::default(),
            end: Unfinished::Shutdown,
            max_buried: usize::MAX,
            has_complained: false,
        }
    }

    /// The same for a Worker.
    #[cfg(any(test, target_family = "wasm"))]
    pub(super) fn by_request(mut self, config: &Config) -> Self {
        self.looks = Looks::by_request(config);
        self
    }

    pub(super) fn observe(&mut self) {
        self.is_observed = true;
    }

    /// Whether anything is to be remembered of open spans.
    pub(super) fn is_on(&self) -> bool {
        self.form.is_some() || self.is_observed || self.exports_unfinished
    }

    pub(super) fn stats(&self) -> OpenEventStats {
        self.stats.clone()
    }

    /// Whether there are events to tell the observer of.
    #[cfg(not(target_family = "wasm"))]
    pub(super) fn has_told(&self) -> bool {
        !self.told.first.is_empty()
    }

    /// Somebody is to look at this request at that time.
    fn plan_look(&mut self, id: RequestId, at: Instant) {
        match &mut self.looks {
            #[cfg(any(test, not(target_family = "wasm")))]
            Looks::Timed {
                at: looks,
                awake_at,
                is_early,
                is_busy,
            } => {
                looks.insert((at, id));
                *is_early |= awake_at.is_none_or(|awake_at| at < awake_at);
                *is_busy = true;
            }
            Looks::ByRequest { wanted, .. } => {
                let _ = at;
                wanted.push(id);
            }
        }
    }

    /// Whether the driver sleeps for longer than an open span may wait.
    #[cfg(not(target_family = "wasm"))]
    pub(super) fn naps_too_long(&self) -> bool {
        matches!(self.looks, Looks::Timed { is_early: true, .. })
    }

    /// Whether nobody is going to look at these. In a Worker, who was to may have gone with its event.
    fn needs_look(&self, open_spans: &OpenSpans, latest: &OpenSpan) -> bool {
        let Some(look) = open_spans.look else {
            return true;
        };
        match &self.looks {
            #[cfg(any(test, not(target_family = "wasm")))]
            Looks::Timed { .. } => false,
            Looks::ByRequest { .. } => {
                let given_up = look.checked_add(LOOK_GRACE);
                given_up.is_some_and(|given_up| latest.is_younger_than(given_up))
            }
        }
    }

    fn cancel_look(&mut self, id: RequestId, planned: Option<Instant>) {
        match (&mut self.looks, planned) {
            #[cfg(any(test, not(target_family = "wasm")))]
            (Looks::Timed { at, .. }, Some(planned)) => {
                at.remove(&(planned, id));
            }
            _ => {
                let _ = id;
            }
        }
    }

    /// A sampled span of this request ends. What was remembered of it is for the caller to drop, without the lock.
    pub(super) fn close(
        &mut self,
        request: &mut Request,
        span: &SpanData,
    ) -> Option<Box<OpenSpan>> {
        let root = request.root();
        let open_spans = request.open_spans.as_deref_mut()?;
        let open = open_spans.remove(span.span_context.span_id());
        if self.is_observed {
            let close = Stage::Close(OpenSpan::close(open.as_deref(), span));
            let place = open_spans.next(root);
            self.told.tell(LifecycleEvent::of(span, Some(place), close));
        }
        if let Some(open) = &open {
            let was_last = open.event == Event::Due && !open_spans.has_news();
            if let Some(form) = self.form.as_ref().filter(|_| was_last) {
                request.set_open_due(form.signal(), false);
            }
            self.forget(open);
        }
        open
    }

    /// A sampled span ends whose request is not known.
    pub(super) fn close_unknown(&mut self, span: Option<&SpanData>) {
        if let Some(span) = span.filter(|_| self.is_observed) {
            let close = Stage::Close(OpenSpan::close(None, span));
            self.told.tell(LifecycleEvent::of(span, None, close));
        }
    }

    /// Says what became of the open event of a span that has ended, or will not.
    fn forget(&mut self, open: &OpenSpan) {
        self.remembered -= 1;
        if open.is_pending() {
            self.stats.pending -= 1;
            self.stats.elided += 1;
        }
    }
}

#[cfg(any(test, target_family = "wasm"))]
impl Looks {
    fn by_request(config: &Config) -> Self {
        Self::ByRequest {
            wanted: Vec::new(),
            first_wait: !config.has_open_event_min_age(),
        }
    }
}

impl Told {
    fn tell(&mut self, event: LifecycleEvent) {
        match self.waiting.get_mut(&event.trace_id) {
            Some(waiting) => waiting.push_back(event),
            None => {
                self.waiting.insert(event.trace_id, VecDeque::new());
                self.first.push(event);
            }
        }
    }

    fn is_behind(&self, trace: TraceId) -> bool {
        let waiting = self.waiting.get(&trace);
        waiting.is_some_and(|waiting| waiting.len() >= MAX_WAITING)
    }
}

impl Dispatch {
    /// Whether [`Self::open`] wants to know of spans that start.
    pub(crate) fn remembers_open_spans(&self) -> bool {
        self.opened.is_on()
    }

    /// A sampled span has started.
    pub(crate) fn open(&mut self, mut open: Box<OpenSpan>) {
        if self.is_closed(Signal::Spans) || !self.may_remember() {
            return;
        }
        let (trace, span) = (open.span.span_context.trace_id(), open.id());
        let opened = &mut self.opened;
        let Ok(request) = self.registry.find(trace, span) else {
            // Its request is not known, so there is no context to send anything under.
            if opened.is_observed {
                let stage = Stage::Open(open.open());
                opened
                    .told
                    .tell(LifecycleEvent::of(&open.span, None, stage));
            }
            return;
        };
        let root = request.root();
        let id = RequestId { trace, root };
        let open_spans = request.open_spans.get_or_insert_default();
        let place = open_spans.next(root);
        if opened.is_observed {
            let stage = Stage::Open(open.open());
            let event = LifecycleEvent::of(&open.span, Some(place), stage);
            opened.told.tell(event);
        }
        let lanes = &self.lanes;
        let form = opened.form.as_ref();
        let is_sent = form.is_some_and(|form| lanes[form.signal()].is_exported);
        opened.stats.opened += u64::from(is_sent);
        if opened.remembered >= opened.max_remembered {
            if is_sent {
                self.drop_open_event(DropReason::QueueFull, trace);
            }
            return;
        }
        opened.remembered += 1;
        if is_sent {
            open.event = Event::Young;
            opened.stats.pending += 1;
            if opened.needs_look(open_spans, &open) {
                open_spans.look = open.old_at(opened.min_age);
                if let Some(at) = open_spans.look {
                    opened.plan_look(id, at);
                }
            }
        }
        open.sequence = place.sequence;
        open_spans.add(open);
    }

    /// Complains if open events are to leave as log records, and nobody exports those.
    fn may_remember(&mut self) -> bool {
        let opened = &mut self.opened;
        let Some(form) = &opened.form else {
            return true;
        };
        if self.lanes[form.signal()].is_exported {
            return true;
        }
        if !std::mem::replace(&mut opened.has_complained, true) {
            self.notices
                .note(Kind::OpenEventsWithoutLogs, 1, Example::None);
        }
        opened.is_observed || opened.exports_unfinished
    }

    fn drop_open_event(&mut self, reason: DropReason, trace: TraceId) {
        self.opened.stats.dropped += 1;
        let kind = Kind::OpenEventsDropped(reason);
        self.notices.note(kind, 1, Example::Trace(trace));
    }

    /// A span has got another name. If that cannot be told now, it will be when the span closes.
    pub(crate) fn rename(&mut self, trace: TraceId, span: SpanId, name: Cow<'static, str>) {
        if self.opened.told.is_behind(trace) || self.is_closed(Signal::Spans) {
            return;
        }
        let Ok(request) = self.registry.find(trace, span) else {
            return;
        };
        let root = request.root();
        let id = RequestId { trace, root };
        let Some(open_spans) = request.open_spans.as_deref_mut() else {
            return;
        };
        let opened = &mut self.opened;
        let is_news = |open: &mut OpenSpan| open.span.name != name;
        if !open_spans.get_mut(span).is_some_and(is_news) {
            return;
        }
        let place = open_spans.next(root);
        let Some(open) = open_spans.get_mut(span) else {
            return;
        };
        open.span.name = name.clone();
        if opened.is_observed {
            let stage = Stage::Rename(Rename { name });
            opened
                .told
                .tell(LifecycleEvent::of(&open.span, Some(place), stage));
        }
        if open.event != Event::Sent {
            // The open event will have the new name.
            return;
        }
        let item = opened
            .form
            .as_ref()
            .and_then(|form| form.rename(open, place.sequence));
        let lane = &mut self.lanes[Signal::Logs];
        if let Some(item) = item.filter(|_| lane.refuses().is_none()) {
            opened.stats.renamed += 1;
            open_spans.rename_waits = true;
            lane.push(item, request);
            request.set_open_due(Signal::Logs, true);
            let terms = self.terms_of(id);
            if let Some(next) = self.registry.get(id).map(|r| r.next(Signal::Logs, terms)) {
                self.follow(id.queue(Signal::Logs), next);
            }
        }
    }

    // ----- when they are old enough -----

    /// Makes those leave that are old enough by now, of so many requests. Returns whether there are more. The driver calls it.
    #[cfg(any(test, not(target_family = "wasm")))]
    pub(crate) fn look_at_open_spans(&mut self, now: Instant, limit: usize) -> bool {
        for _ in 0..limit {
            let Looks::Timed { at, .. } = &mut self.opened.looks else {
                return false;
            };
            let Some((_, id)) = at.first().filter(|(at, _)| *at <= now).copied() else {
                return false;
            };
            at.pop_first();
            let min_age = self.opened.min_age;
            if let Some(next) = self.look_at(id, min_age, now) {
                self.opened.plan_look(id, next);
            }
        }
        true
    }

    /// Those of a request that are so old leave with its next batch. Returns when the next one will be.
    fn look_at(&mut self, id: RequestId, min_age: Duration, now: Instant) -> Option<Instant> {
        let signal = self.opened.form.as_ref()?.signal();
        let request = self.registry.get(id)?;
        let open_spans = request.open_spans.as_deref_mut()?;
        let next = open_spans.make_due(min_age, now);
        open_spans.look = next;
        open_spans.looked = true;
        if open_spans.has_due() {
            request.set_open_due(signal, true);
            self.schedule(id.queue(signal));
        }
        next
    }

    /// Until when the driver may sleep, as far as open spans are concerned. For it to call before it does.
    #[cfg(any(test, not(target_family = "wasm")))]
    pub(crate) fn plan_nap(&mut self, now: Instant) -> Option<Instant> {
        let min_age = self.opened.min_age;
        let Looks::Timed {
            at,
            awake_at,
            is_early,
            is_busy,
        } = &mut self.opened.looks
        else {
            return None;
        };
        let busy = std::mem::take(is_busy) && min_age >= SHORTEST_NAP;
        *is_early = false;
        *awake_at = match at.first() {
            Some((first, _)) => Some(*first),
            // Where spans open all the time, the first one to open should not have to wake it.
            None if busy => now.checked_add(min_age),
            None => None,
        };
        *awake_at
    }

    /// Requests with open spans that nobody is going to look at. A task for each is to call [`Self::look_at_request`].
    #[cfg(any(test, target_family = "wasm"))]
    pub(crate) fn take_looks(&mut self) -> Vec<RequestId> {
        match &mut self.opened.looks {
            Looks::ByRequest { wanted, .. } => std::mem::take(wanted),
            #[cfg(any(test, not(target_family = "wasm")))]
            Looks::Timed { .. } => Vec::new(),
        }
    }

    /// How long that task is to wait first.
    #[cfg(any(test, target_family = "wasm"))]
    pub(crate) fn first_look(&mut self, id: RequestId) -> Duration {
        match self.is_first_look(id) {
            true => Duration::ZERO,
            false => self.opened.min_age,
        }
    }

    #[cfg(any(test, target_family = "wasm"))]
    fn is_first_look(&mut self, id: RequestId) -> bool {
        let first_wait = matches!(
            self.opened.looks,
            Looks::ByRequest {
                first_wait: true,
                ..
            }
        );
        let open_spans = self.registry.get(id).and_then(|r| r.open_spans.as_deref());
        first_wait && open_spans.is_some_and(|open_spans| !open_spans.looked)
    }

    /// There is nobody who could look at this request. When its next span opens, there may be.
    #[cfg(any(test, target_family = "wasm"))]
    pub(crate) fn give_up_look(&mut self, id: RequestId) {
        let request = self.registry.get(id);
        if let Some(open_spans) = request.and_then(|r| r.open_spans.as_deref_mut()) {
            open_spans.look = None;
        }
    }

    /// Whether somebody is still to look at this request.
    #[cfg(any(test, target_family = "wasm"))]
    pub(crate) fn wants_look(&mut self, id: RequestId) -> bool {
        let request = self.registry.get(id);
        let open_spans = request.and_then(|r| r.open_spans.as_deref());
        open_spans.is_some_and(OpenSpans::has_young)
    }

    /// Makes those of a request leave that are old enough by now, or the first time all that are open. Returns when it is to be
    /// called again.
    #[cfg(any(test, target_family = "wasm"))]
    pub(crate) fn look_at_request(&mut self, id: RequestId, now: Instant) -> Option<Instant> {
        let min_age = self.first_look(id);
        self.look_at(id, min_age, now)
    }

    // ----- into batches -----

    /// Puts the open events of a request that are due into its queue, which is about to leave. Returns whether there are more
    /// than fit.
    pub(super) fn add_open_events(&mut self, id: QueueId) -> bool {
        let Some(request) = self.registry.get(id.request) else {
            return false;
        };
        if !request.queue(id.signal).is_some_and(|queue| queue.open_due) {
            return false;
        }
        let Opened { form, stats, .. } = &mut self.opened;
        let (Some(form), Some(mut open_spans)) = (form, request.open_spans.take()) else {
            return false;
        };
        let lane = &mut self.lanes[id.signal];
        let queued = request.queue(id.signal).map_or(0, |queue| queue.len());
        let room = self.terms.max_batch_size.saturating_sub(queued);
        let mut refused = Vec::new();
        open_spans.take_due(room, |open| {
            stats.pending -= 1;
            open.event = match lane.refuses() {
                None => {
                    lane.push(form.open(open), request);
                    stats.sent += 1;
                    Event::Sent
                }
                Some(reason) => {
                    refused.push(reason);
                    Event::Dropped
                }
            };
        });
        let more = open_spans.has_due();
        open_spans.rename_waits = false;
        request.open_spans = Some(open_spans);
        request.set_open_due(id.signal, more);
        for reason in refused {
            self.drop_open_event(reason, id.request.trace);
        }
        more
    }

    // ----- when a request goes -----

    /// A request is sent off, and its open spans are forgotten. What has not been told of them leaves with it: that they are
    /// open, or if spans are closed, that they will not end any more, as far as anybody will see.
    pub(super) fn let_go(&mut self, id: RequestId, request: &mut Request) {
        let Some(mut open_spans) = request.open_spans.take() else {
            return;
        };
        self.opened.cancel_look(id, open_spans.look);
        if self.is_closed(Signal::Spans) {
            return self.bury(id, request, *open_spans);
        }
        for (_, open) in open_spans.take_all() {
            self.opened.remembered -= 1;
            let Some(form) = &self.opened.form else {
                continue;
            };
            if !open.is_pending() {
                continue;
            }
            self.opened.stats.pending -= 1;
            match self.lanes[form.signal()].refuses() {
                None => {
                    let event = form.open(&open);
                    self.opened.stats.sent += 1;
                    self.push_leaving(event, id, request);
                }
                Some(reason) => self.drop_open_event(reason, id.trace),
            }
        }
    }

    fn bury(&mut self, id: RequestId, request: &mut Request, mut open_spans: OpenSpans) {
        let now = opentelemetry::time::now();
        let why = self.opened.end;
        let all = open_spans.take_all();
        all.iter().for_each(|(_, open)| self.opened.forget(open));
        self.opened.stats.unfinished += all.len() as u64;
        if all.is_empty() {
            return;
        }
        let Some(left) = self.opened.max_buried.checked_sub(1) else {
            return;
        };
        self.opened.max_buried = left;
        for (_, open) in all {
            let opened = &mut self.opened;
            let place = open_spans.next(id.root);
            if opened.is_observed {
                let close = Stage::Close(Close::of_unfinished(why, now));
                let event = LifecycleEvent::of(&open.span, Some(place), close);
                opened.told.tell(event);
            }
            let event = match &opened.form {
                // The span itself will say it.
                Some(Form::PendingSpans) if opened.exports_unfinished => None,
                Some(form) => Some(form.unfinished(&open, place.sequence, why, now)),
                None => None,
            };
            let exports = opened.exports_unfinished;
            let span = exports.then(|| OpenEvent::Span(open_form::ended(open.span, why, now)));
            for event in event.into_iter().chain(span) {
                self.push_unfinished(event, id, request);
            }
        }
    }

    /// What is said of a span that will not end. Of spans, although they are closed.
    fn push_unfinished(&mut self, event: OpenEvent, id: RequestId, request: &mut Request) {
        let signal = event.signal();
        let lane = &mut self.lanes[signal];
        let reason = match lane.has_room() {
            _ if !lane.is_exported => return,
            _ if lane.closed && signal != Signal::Spans => DropReason::AlreadyShutdown,
            false => DropReason::QueueFull,
            true => return self.push_leaving(event, id, request),
        };
        lane.stats.received += 1;
        self.refuse(signal, true, reason, id.trace);
    }

    /// Appends to a queue that leaves when the request goes, and at once if it is full.
    fn push_leaving(&mut self, event: OpenEvent, id: RequestId, request: &mut Request) {
        let signal = event.signal();
        self.lanes[signal].push(event, request);
        if let Some((context, items)) = request.take_full(signal, self.terms) {
            self.enqueue(context, items, Origin::Request(id));
        }
    }

    /// What is open when spans are closed is so because the instance dies. That is told of so many requests: each of them is an
    /// export of the event that the instance dies in. Those of its own trace come first, then the latest.
    #[cfg(any(test, target_family = "wasm"))]
    pub(crate) fn will_die(&mut self, own: Option<TraceId>, max_requests: usize) {
        self.opened.end = Unfinished::Panic;
        self.opened.max_buried = max_requests;
        self.registry.make_latest_first(own);
    }

    // ----- to the observer -----

    /// Events that whoever releases the lock is to tell the observer, each with what [`Self::next_told`] gives after it.
    pub(crate) fn take_told(&mut self) -> Vec<LifecycleEvent> {
        std::mem::take(&mut self.opened.told.first)
    }

    /// The next event of a trace, when the one before has been told. After `None` somebody else tells what comes then.
    pub(crate) fn next_told(&mut self, trace: TraceId) -> Option<LifecycleEvent> {
        let told = &mut self.opened.told;
        let next = told.waiting.get_mut(&trace)?.pop_front();
        if next.is_none() {
            told.waiting.remove(&trace);
        }
        next
    }
}

impl Lane {
    /// Why an open event cannot be taken in, if it cannot. At least half of the room is for what it is about.
    fn refuses(&self) -> Option<DropReason> {
        match self.stats.pending() < self.max_pending.div_ceil(2) {
            _ if self.closed => Some(DropReason::AlreadyShutdown),
            false => Some(DropReason::QueueFull),
            true => None,
        }
    }

    fn push(&mut self, event: OpenEvent, request: &mut Request) {
        self.stats.received += 1;
        self.stats.queued += 1;
        match event {
            OpenEvent::Span(span) => request.push(span, self.usual_batch),
            #[cfg(feature = "logs")]
            OpenEvent::Log(log) => request.push(log, self.usual_batch),
        }
    }
}

/// For the model.
#[cfg(test)]
impl Dispatch {
    /// How many open spans are remembered, as far as it has counted.
    pub(super) fn remembered(&self) -> u64 {
        self.opened.remembered
    }

    /// Which requests the driver is to look at, and when.
    pub(super) fn planned_looks(&self) -> Vec<(Instant, RequestId)> {
        match &self.opened.looks {
            Looks::Timed { at, .. } => at.iter().copied().collect(),
            Looks::ByRequest { .. } => Vec::new(),
        }
    }

    /// Of how many traces somebody is telling the observer.
    pub(super) fn waits_to_be_told(&self) -> usize {
        self.opened.told.waiting.len()
    }
}
