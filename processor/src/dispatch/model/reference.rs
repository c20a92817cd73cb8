//! What a processor promises, computed in the most naive way: lists, searches, and no thought for speed.

use std::collections::{HashMap, HashSet};

use super::super::{Losses, Outcome};
use super::{
    MAX_COLLECTIONS, MAX_SPANS_PER_TRACE, MAX_TRACES, METRIC_INTERVAL, METRIC_PERIOD, max_pending,
};
use crate::clock::Instant;
use crate::signal::{PerSignal, Signal};
use crate::stats::{DropReason, LateReason, SignalStats};

/// Names a span, a log record or a collection of metrics. The id of a span does not: two may have the same one.
pub(super) type Serial = usize;

/// Whose context something leaves under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Owner {
    /// The request whose root has this serial.
    Request(Serial),
    /// Late, for this reason, or nobody's in the first place.
    Fallback(Option<LateReason>),
    /// The log record of this serial, which has one of its own.
    Own(Serial),
}

/// Where something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A span that has not ended.
    Open,
    /// It is no span, and keeps its request open.
    Held,
    /// Metrics that are being collected.
    Collecting,
    /// Ended, and not taken: it was not sampled, or it was dropped, or there was nothing to collect.
    Gone,
    /// Queued, waiting or in flight.
    Pending(Owner),
    Exported(Owner),
    Lost(Owner),
}

#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) signal: Signal,
    /// That it names. 0 is none.
    pub(super) trace: u128,
    /// Of the span; of the span that the record is emitted in; or of the batch that metrics will be.
    pub(super) id: u64,
    /// How many it counts for.
    pub(super) count: u64,
    pub(super) place: Place,
}

#[derive(Debug, Default)]
pub(super) struct Reference {
    pub(super) items: Vec<Item>,
    /// What was started as a span, or holds a request as one would.
    pub(super) spans: Vec<Serial>,
    /// Those that are not at their end, and some that are.
    unsettled: Vec<Serial>,
    /// Live traces, least recently used first.
    traces: Vec<(u128, Trace)>,
    evicted: HashSet<u128>,
    pub(super) evicted_traces: u64,
    pub(super) closed: PerSignal<bool>,
    /// Whether the shutdown of metrics was given up.
    abandoned: bool,
    /// All numbers but those of what is pending.
    pub(super) stats: PerSignal<SignalStats>,
    /// Losses by signal and trace, and how many of them somebody has heard of.
    losses: HashMap<(Signal, u128), (Losses, Losses)>,
    reported: PerSignal<Losses>,
    /// Since when there is a reader of metrics, and when it has last read.
    reader: Option<Instant>,
    collected: Option<Instant>,
    /// Whether a request has ended since.
    wanted: bool,
}

/// Where a log record is emitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spot {
    /// In no span of this process.
    Outside,
    In,
    /// In one that may not be recorded, with a context of its own.
    Unrecorded,
}

#[derive(Debug, Default)]
struct Trace {
    requests: Vec<Request>,
    refused: usize,
}

#[derive(Debug)]
pub(super) struct Request {
    pub(super) root: Serial,
    pub(super) ids: Vec<u64>,
    open: usize,
    pub(super) root_ended: bool,
}

impl Reference {
    // ----- spans -----

    pub(super) fn start_root(&mut self, trace: u128, id: u64) -> Serial {
        let serial = self.new_span(trace, id);
        if self.closed[Signal::Spans] || self.drop_request_with(trace, id) {
            return serial;
        }
        if self.touch(trace).is_none() {
            if self.traces.len() == MAX_TRACES {
                let (evicted, _) = self.traces.remove(0);
                self.evicted.insert(evicted);
                self.evicted_traces += 1;
            }
            self.traces.push((trace, Trace::default()));
        }
        let entry = self.touch(trace).expect("it is there");
        match entry.is_full() {
            true => entry.refused += 1,
            false => entry.requests.push(Request {
                root: serial,
                ids: vec![id],
                open: 1,
                root_ended: false,
            }),
        }
        serial
    }

    pub(super) fn start_child(&mut self, trace: u128, parent: u64, id: u64) -> Serial {
        let serial = self.new_span(trace, id);
        if self.closed[Signal::Spans] {
            return serial;
        }
        let taken = self.is_live(trace, id);
        let Some(entry) = self.touch(trace) else {
            return serial;
        };
        let full = entry.is_full();
        let mut requests = entry.requests.iter_mut();
        match requests.find(|request| request.ids.contains(&parent)) {
            Some(family) if !full && (!taken || family.ids.contains(&id)) => {
                family.ids.push(id);
                family.open += 1;
            }
            _ if taken => {
                self.drop_request_with(trace, id);
            }
            _ => entry.refused += usize::from(full),
        }
        serial
    }

    /// As a child, but nobody ends it, and nobody counts it, also if it is refused.
    pub(super) fn hold(&mut self, trace: u128, parent: u64, id: u64) -> Serial {
        let serial = self.new_span(trace, id);
        self.items[serial].place = Place::Held;
        if let Some(entry) = self.touch(trace) {
            let full = entry.is_full();
            let mut requests = entry.requests.iter_mut();
            let held = requests.find(|request| request.ids.contains(&parent));
            if let Some(held) = held.filter(|_| !full) {
                held.ids.push(id);
                held.open += 1;
            }
        }
        serial
    }

    /// Nothing happens if it kept nothing open, or no longer.
    pub(super) fn release(&mut self, serial: Serial) {
        let Item { trace, id, .. } = self.items[serial];
        self.items[serial].place = Place::Gone;
        if let Some(entry) = self.touch(trace) {
            let mut requests = entry.requests.iter_mut();
            if let Some(held) = requests.find(|request| request.ids.contains(&id)) {
                // Its root is the first, and no hold.
                let at = held.ids.iter().skip(1).rposition(|known| *known == id);
                if let Some(at) = at {
                    held.ids.remove(at + 1);
                    held.open -= 1;
                }
            }
            self.forget_what_is_over();
        }
    }

    /// A span ends. Says whether it is taken.
    pub(super) fn end(&mut self, serial: Serial, sampled: bool) -> bool {
        // Whatever it is, its request learns that it has ended.
        let fate = self.fate(serial);
        match sampled {
            true => self.take_in(serial, fate),
            false => {
                self.items[serial].place = Place::Gone;
                false
            }
        }
    }

    /// Whose a span is that ends now, or why it is nobody's.
    fn fate(&mut self, serial: Serial) -> Result<Owner, DropReason> {
        let Item { trace, id, .. } = self.items[serial];
        if self.closed[Signal::Spans] {
            return Err(DropReason::AlreadyShutdown);
        }
        let late = Ok(self.late(trace));
        let Some(entry) = self.touch(trace) else {
            return late;
        };
        let owner = entry.requests.iter_mut().find(|r| r.ids.contains(&id));
        match owner {
            Some(request) => {
                request.open -= 1;
                // Its first id is that of its root.
                let ends_root = request.ids[0] == id;
                request.root_ended |= ends_root;
                let root = request.root;
                self.wanted |= ends_root && self.reader.is_some();
                self.forget_what_is_over();
                Ok(Owner::Request(root))
            }
            None if entry.refused > 0 => {
                entry.refused -= 1;
                self.forget_what_is_over();
                Err(DropReason::MaxSpansPerTrace)
            }
            None => late,
        }
    }

    /// A log record is emitted, which names this span or none. Says whether it is taken.
    pub(super) fn emit(&mut self, named: Option<(u128, u64)>, spot: Spot) -> (Serial, bool) {
        let (trace, id) = named.unwrap_or_default();
        let serial = self.new_item(Signal::Logs, trace, id, Place::Gone);
        let fate = match self.closed[Signal::Logs] {
            true => Err(DropReason::AlreadyShutdown),
            false => Ok(self.emitted(serial, spot)),
        };
        (serial, self.take_in(serial, fate))
    }

    fn emitted(&mut self, serial: Serial, spot: Spot) -> Owner {
        let Item { trace, id, .. } = self.items[serial];
        if spot == Spot::Outside {
            return Owner::Fallback(None);
        }
        if let Some(entry) = self.touch(trace) {
            let mut requests = entry.requests.iter();
            if let Some(request) = requests.find(|request| request.ids.contains(&id)) {
                return Owner::Request(request.root);
            }
        }
        match spot {
            Spot::Unrecorded => Owner::Own(serial),
            _ => self.late(trace),
        }
    }

    fn late(&self, trace: u128) -> Owner {
        Owner::Fallback(Some(match self.evicted.contains(&trace) {
            true => LateReason::TraceEvicted,
            false => LateReason::UnknownTrace,
        }))
    }

    /// It is counted, and pending if there is room for it.
    fn take_in(&mut self, serial: Serial, fate: Result<Owner, DropReason>) -> bool {
        let signal = self.items[serial].signal;
        self.stats[signal].received += 1;
        if let Ok(Owner::Fallback(Some(reason))) = fate {
            self.stats[signal].late.add(reason);
        }
        let room = self.pending(signal).count() < max_pending(signal);
        match fate {
            Ok(owner) if room => {
                self.items[serial].place = Place::Pending(owner);
                true
            }
            Ok(_) => self.refuse(serial, DropReason::QueueFull),
            Err(reason) => self.refuse(serial, reason),
        }
    }

    fn refuse(&mut self, serial: Serial, reason: DropReason) -> bool {
        let signal = self.items[serial].signal;
        self.stats[signal].dropped.add(reason, 1);
        self.lose(serial, Losses::dropped(1));
        self.items[serial].place = Place::Gone;
        false
    }

    // ----- metrics -----

    pub(super) fn add_reader(&mut self, now: Instant) {
        self.reader = Some(now);
    }

    pub(super) fn has_reader(&self) -> bool {
        self.reader.is_some()
    }

    /// Whether there is room for one more collection.
    pub(super) fn may_collect(&self) -> bool {
        let on_their_way = self.collecting().len() + self.pending(Signal::Metrics).count();
        on_their_way < MAX_COLLECTIONS
    }

    /// When the driver is to collect.
    pub(super) fn next_collection(&self) -> Option<Instant> {
        let since = self.reader?;
        if self.closed[Signal::Metrics] || !self.collecting().is_empty() || !self.may_collect() {
            return None;
        }
        let anyway = self.collected.unwrap_or(since) + METRIC_PERIOD;
        Some(match self.collected {
            _ if !self.wanted => anyway,
            None => since,
            Some(last) => anyway.min(last + METRIC_INTERVAL),
        })
    }

    pub(super) fn begin_collection(&mut self, batch: u64, now: Instant) -> Serial {
        self.wanted = false;
        self.collected = Some(now);
        self.new_item(Signal::Metrics, 0, batch, Place::Collecting)
    }

    pub(super) fn end_collection(&mut self, serial: Serial, points: u64) {
        let item = &mut self.items[serial];
        item.count = points;
        item.place = match points {
            0 => Place::Gone,
            _ => Place::Pending(Owner::Fallback(None)),
        };
        self.stats[Signal::Metrics].received += points;
        if self.abandoned && points > 0 {
            let dropped = Outcome::Dropped(DropReason::ShutdownTimeout);
            self.settle(&[serial], dropped);
        }
    }

    // ----- exports -----

    pub(super) fn settle(&mut self, batch: &[Serial], outcome: Outcome) {
        for serial in batch {
            let Item { signal, count, .. } = self.items[*serial];
            let stats = &mut self.stats[signal];
            let loss = match outcome {
                Outcome::Exported => {
                    stats.exported += count;
                    None
                }
                Outcome::Failed | Outcome::TimedOut => {
                    stats.failed += count;
                    Some(Losses::failed(count))
                }
                Outcome::Dropped(reason) => {
                    stats.dropped.add(reason, count);
                    Some(Losses::dropped(count))
                }
            };
            if outcome == Outcome::TimedOut && *serial == batch[0] {
                stats.timed_out_exports += 1;
            }
            let Place::Pending(owner) = self.items[*serial].place else {
                panic!("{serial} is settled twice");
            };
            self.items[*serial].place = match loss {
                None => Place::Exported(owner),
                Some(_) => Place::Lost(owner),
            };
            if let Some(loss) = loss {
                self.lose(*serial, loss);
            }
        }
    }

    pub(super) fn close(&mut self, signal: Signal) {
        self.closed[signal] = true;
        if signal == Signal::Spans {
            self.traces.clear();
        }
    }

    /// What waits is settled by whoever knows what does.
    pub(super) fn abandon(&mut self, signal: Signal) {
        self.abandoned |= signal == Signal::Metrics;
    }

    // ----- losses -----

    fn lose(&mut self, serial: Serial, loss: Losses) {
        let Item { signal, trace, .. } = self.items[serial];
        self.losses.entry((signal, trace)).or_default().0.add(loss);
    }

    /// All losses of a trace, or of all, and how many of them are reported.
    pub(super) fn losses(&self, signal: Signal, trace: Option<u128>) -> (Losses, Losses) {
        match trace {
            Some(trace) => {
                let lost = self.losses.get(&(signal, trace));
                lost.copied().unwrap_or_default()
            }
            None => {
                let mut all = Losses::default();
                let lost = self.losses.iter().filter(|((of, _), _)| *of == signal);
                lost.for_each(|(_, (lost, _))| all.add(*lost));
                (all, self.reported[signal])
            }
        }
    }

    /// Somebody has heard that there are so many.
    pub(super) fn report(&mut self, signal: Signal, trace: Option<u128>, losses: Losses) {
        let reported = match trace {
            Some(trace) => match self.losses.get_mut(&(signal, trace)) {
                Some((_, reported)) => reported,
                None => return,
            },
            None => &mut self.reported[signal],
        };
        reported.failed = reported.failed.max(losses.failed);
        reported.dropped = reported.dropped.max(losses.dropped);
    }

    // ----- questions -----

    pub(super) fn pending(&self, signal: Signal) -> impl Iterator<Item = (Serial, &Item, Owner)> {
        let unsettled = self.unsettled.iter();
        let items = unsettled.map(|serial| (*serial, &self.items[*serial]));
        items.filter_map(move |(serial, item)| match item.place {
            Place::Pending(owner) if item.signal == signal => Some((serial, item, owner)),
            _ => None,
        })
    }

    /// How many items of a signal are pending.
    pub(super) fn count_pending(&self, signal: Signal) -> u64 {
        self.pending(signal).map(|(_, item, _)| item.count).sum()
    }

    pub(super) fn is_pending(&self, serial: Serial) -> bool {
        let place = self.items[serial].place;
        matches!(place, Place::Pending(_) | Place::Collecting)
    }

    pub(super) fn open(&self) -> Vec<Serial> {
        self.all(|item| item.place == Place::Open)
    }

    pub(super) fn held(&self) -> Vec<Serial> {
        self.all(|item| item.place == Place::Held)
    }

    pub(super) fn collecting(&self) -> Vec<Serial> {
        self.all(|item| item.place == Place::Collecting)
    }

    pub(super) fn all(&self, which: impl Fn(&Item) -> bool) -> Vec<Serial> {
        let unsettled = self.unsettled.iter().copied();
        unsettled.filter(|at| which(&self.items[*at])).collect()
    }

    /// Looks no more at what is settled.
    pub(super) fn tidy(&mut self) {
        let items = &self.items;
        self.unsettled.retain(|serial| {
            let place = items[*serial].place;
            !matches!(place, Place::Gone | Place::Exported(_) | Place::Lost(_))
        });
    }

    pub(super) fn requests(&self) -> impl Iterator<Item = (u128, &Request)> {
        let entries = self.traces.iter();
        entries.flat_map(|(trace, entry)| entry.requests.iter().map(|r| (*trace, r)))
    }

    pub(super) fn request(&self, root: Serial) -> Option<&Request> {
        let mut requests = self.requests();
        requests.find_map(|(_, request)| (request.root == root).then_some(request))
    }

    pub(super) fn live_traces(&self) -> usize {
        self.traces.len()
    }

    /// Whether a live request of that trace has a span of that id.
    fn is_live(&self, trace: u128, id: u64) -> bool {
        let mut requests = self.requests();
        requests.any(|(of, request)| of == trace && request.ids.contains(&id))
    }

    fn new_span(&mut self, trace: u128, id: u64) -> Serial {
        self.new_item(Signal::Spans, trace, id, Place::Open)
    }

    fn new_item(&mut self, signal: Signal, trace: u128, id: u64, place: Place) -> Serial {
        self.items.push(Item {
            signal,
            trace,
            id,
            count: 1,
            place,
        });
        let serial = self.items.len() - 1;
        self.unsettled.push(serial);
        if signal == Signal::Spans {
            self.spans.push(serial);
        }
        serial
    }

    /// Marks a trace as used now.
    fn touch(&mut self, trace: u128) -> Option<&mut Trace> {
        let at = self.traces.iter().position(|(id, _)| *id == trace)?;
        let entry = self.traces.remove(at);
        self.traces.push(entry);
        self.traces.last_mut().map(|(_, entry)| entry)
    }

    /// A new span has the id of a span of a live request: neither is known from the other any more.
    fn drop_request_with(&mut self, trace: u128, id: u64) -> bool {
        let Some(entry) = self.touch(trace) else {
            return false;
        };
        let before = entry.requests.len();
        entry.requests.retain(|request| !request.ids.contains(&id));
        let dropped = entry.requests.len() < before;
        self.forget_empty_traces();
        dropped
    }

    /// Requests that have nothing open. That is a time to collect metrics.
    fn forget_what_is_over(&mut self) {
        let before = self.requests().count();
        for (_, entry) in &mut self.traces {
            entry.requests.retain(|request| request.open > 0);
        }
        self.wanted |= self.requests().count() < before && self.reader.is_some();
        self.forget_empty_traces();
    }

    fn forget_empty_traces(&mut self) {
        self.traces
            .retain(|(_, entry)| !entry.requests.is_empty() || entry.refused > 0);
    }
}

impl Trace {
    fn is_full(&self) -> bool {
        let spans = self.requests.iter().map(|request| request.ids.len());
        spans.sum::<usize>() >= MAX_SPANS_PER_TRACE
    }
}
