//! What a processor promises, computed in the most naive way: lists, searches, and no thought for speed.

use std::collections::{BTreeMap, HashSet};

use super::super::{Losses, Outcome};
use super::{MAX_PENDING, MAX_SPANS_PER_TRACE, MAX_TRACES};
use crate::stats::{DropReason, LateReason, Stats};

/// Names a span. Its id does not: two spans may have the same one.
pub(super) type Serial = usize;

/// Whose context a span leaves under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Owner {
    /// The request whose root has this serial.
    Request(Serial),
    Fallback(LateReason),
}

/// Where a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Open,
    /// It is no span, and keeps its request open.
    Held,
    /// Ended, and not taken: it was not sampled, or it was dropped.
    Gone,
    /// Queued, waiting or in flight.
    Pending(Owner),
    Exported(Owner),
    Lost(Owner),
}

#[derive(Clone, Debug)]
pub(super) struct Span {
    pub(super) trace: u128,
    pub(super) id: u64,
    pub(super) place: Place,
}

#[derive(Debug, Default)]
pub(super) struct Reference {
    pub(super) spans: Vec<Span>,
    /// Live traces, least recently used first.
    traces: Vec<(u128, Trace)>,
    evicted: HashSet<u128>,
    pub(super) closed: bool,
    /// All numbers but those of what is pending.
    pub(super) stats: Stats,
    /// Losses by trace, and how many of them somebody has heard of.
    losses: BTreeMap<u128, (Losses, Losses)>,
    reported: Losses,
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
        if self.closed || self.drop_request_with(trace, id) {
            return serial;
        }
        if self.touch(trace).is_none() {
            if self.traces.len() == MAX_TRACES {
                let (evicted, _) = self.traces.remove(0);
                self.evicted.insert(evicted);
                self.stats.evicted_traces += 1;
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
        if self.closed {
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
        self.spans[serial].place = Place::Held;
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
        let Span { trace, id, .. } = self.spans[serial];
        self.spans[serial].place = Place::Gone;
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
            entry.requests.retain(|request| request.open > 0);
            self.forget_empty_traces();
        }
    }

    /// A span ends. Says whether it is taken.
    pub(super) fn end(&mut self, serial: Serial, sampled: bool) -> bool {
        let room = self.pending().count() < MAX_PENDING;
        let fate = self.fate(serial);
        let place = match fate {
            _ if !sampled => Place::Gone,
            Err(reason) => self.drop_span(serial, reason),
            Ok(_) if !room => self.drop_span(serial, DropReason::QueueFull),
            Ok(owner) => Place::Pending(owner),
        };
        if sampled {
            self.stats.ended += 1;
            if let Ok(Owner::Fallback(reason)) = fate {
                self.stats.late.add(reason);
            }
        }
        self.spans[serial].place = place;
        matches!(place, Place::Pending(_))
    }

    /// Whose a span is that ends now, or why it is nobody's.
    fn fate(&mut self, serial: Serial) -> Result<Owner, DropReason> {
        let Span { trace, id, .. } = self.spans[serial];
        if self.closed {
            return Err(DropReason::AlreadyShutdown);
        }
        let evicted = self.evicted.contains(&trace);
        let late = Ok(Owner::Fallback(match evicted {
            true => LateReason::TraceEvicted,
            false => LateReason::UnknownTrace,
        }));
        let Some(entry) = self.touch(trace) else {
            return late;
        };
        let owner = entry.requests.iter_mut().find(|r| r.ids.contains(&id));
        let fate = match owner {
            Some(request) => {
                request.open -= 1;
                // Its first id is that of its root.
                request.root_ended |= request.ids[0] == id;
                Ok(Owner::Request(request.root))
            }
            None if entry.refused > 0 => {
                entry.refused -= 1;
                Err(DropReason::MaxSpansPerTrace)
            }
            None => late,
        };
        entry.requests.retain(|request| request.open > 0);
        self.forget_empty_traces();
        fate
    }

    fn drop_span(&mut self, serial: Serial, reason: DropReason) -> Place {
        self.stats.dropped.add(reason, 1);
        self.lose(serial, Losses::dropped(1));
        Place::Gone
    }

    // ----- exports -----

    pub(super) fn settle(&mut self, spans: &[Serial], outcome: Outcome) {
        let count = spans.len() as u64;
        let loss = match outcome {
            Outcome::Exported => None,
            Outcome::Failed | Outcome::TimedOut => Some(Losses::failed(1)),
            Outcome::Dropped(_) => Some(Losses::dropped(1)),
        };
        match outcome {
            Outcome::Exported => self.stats.exported += count,
            Outcome::Failed => self.stats.failed += count,
            Outcome::TimedOut => {
                self.stats.failed += count;
                self.stats.timed_out_exports += 1;
            }
            Outcome::Dropped(reason) => self.stats.dropped.add(reason, count),
        }
        for serial in spans {
            let Place::Pending(owner) = self.spans[*serial].place else {
                panic!("span {serial} is settled twice");
            };
            self.spans[*serial].place = match loss {
                None => Place::Exported(owner),
                Some(_) => Place::Lost(owner),
            };
            if let Some(loss) = loss {
                self.lose(*serial, loss);
            }
        }
    }

    pub(super) fn close(&mut self) {
        self.closed = true;
        self.traces.clear();
    }

    // ----- losses -----

    fn lose(&mut self, serial: Serial, loss: Losses) {
        let trace = self.spans[serial].trace;
        self.losses.entry(trace).or_default().0.add(loss);
    }

    /// All losses of a trace, or of all, and how many of them are reported.
    pub(super) fn losses(&self, trace: Option<u128>) -> (Losses, Losses) {
        match trace {
            Some(trace) => self.losses.get(&trace).copied().unwrap_or_default(),
            None => {
                let mut all = Losses::default();
                self.losses.values().for_each(|(lost, _)| all.add(*lost));
                (all, self.reported)
            }
        }
    }

    /// Somebody has heard that there are so many.
    pub(super) fn report(&mut self, trace: Option<u128>, losses: Losses) {
        let reported = match trace {
            Some(trace) => match self.losses.get_mut(&trace) {
                Some((_, reported)) => reported,
                None => return,
            },
            None => &mut self.reported,
        };
        reported.failed = reported.failed.max(losses.failed);
        reported.dropped = reported.dropped.max(losses.dropped);
    }

    // ----- questions -----

    pub(super) fn pending(&self) -> impl Iterator<Item = (Serial, &Span, Owner)> {
        let spans = self.spans.iter().enumerate();
        spans.filter_map(|(serial, span)| match span.place {
            Place::Pending(owner) => Some((serial, span, owner)),
            _ => None,
        })
    }

    pub(super) fn is_pending(&self, serial: Serial) -> bool {
        matches!(self.spans[serial].place, Place::Pending(_))
    }

    pub(super) fn open(&self) -> Vec<Serial> {
        let open = |serial: &Serial| self.spans[*serial].place == Place::Open;
        (0..self.spans.len()).filter(open).collect()
    }

    pub(super) fn held(&self) -> Vec<Serial> {
        let held = |serial: &Serial| self.spans[*serial].place == Place::Held;
        (0..self.spans.len()).filter(held).collect()
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
        let place = Place::Open;
        self.spans.push(Span { trace, id, place });
        self.spans.len() - 1
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
