//! The open spans of a request, as far as they are remembered: to tell of them while they are open. Pure.
//!
//! They are remembered only if somebody is to be told. What is here was copied when the span started, because nobody can
//! look into a span after that.

use std::time::Duration;

use opentelemetry::trace::SpanId;
use opentelemetry_sdk::trace::SpanData;

use crate::clock::Instant;
use crate::observer::{Close, InRequest, MAX_OPEN_ATTRIBUTES, Open};

/// A span that is open. Boxed as it is made, because it is moved often and is large.
#[derive(Debug)]
pub(crate) struct OpenSpan {
    /// With the name that was told last, and the first attributes.
    pub(crate) span: SpanData,
    /// Of the event that told of it, in its request.
    #[cfg_attr(not(feature = "logs"), allow(dead_code))]
    pub(crate) sequence: u64,
    pub(crate) event: Event,
    since: Instant,
}

/// How far its open event is on its way to the collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// It is not to leave at all.
    Never,
    /// It is not old enough.
    Young,
    /// It leaves with the next batch of its request.
    Due,
    Sent,
    /// It was to leave, and could not.
    Dropped,
}

/// Those of a request. See the module.
#[derive(Debug, Default)]
pub(crate) struct OpenSpans {
    /// In the order in which they opened, by id: a request may have very many.
    list: Vec<(SpanId, Box<OpenSpan>)>,
    /// How many events there were.
    events: u64,
    /// How many of the list are [`Event::Young`].
    young: usize,
    /// How many of the list are [`Event::Due`].
    due: usize,
    /// Whether a rename is in the queue of the request.
    pub(crate) rename_waits: bool,
    /// When somebody is going to look whether one is old enough.
    pub(crate) look: Option<Instant>,
    /// Whether somebody did.
    pub(crate) looked: bool,
}

impl OpenSpan {
    /// A span that starts.
    pub(crate) fn starting(span: SpanData, at: Instant) -> Box<Self> {
        let more = span.attributes.len().saturating_sub(MAX_OPEN_ATTRIBUTES);
        let mut open = Box::new(Self {
            span,
            sequence: 0,
            event: Event::Never,
            since: at,
        });
        if more > 0 {
            let more = u32::try_from(more).unwrap_or(u32::MAX);
            let span = &mut open.span;
            span.attributes.truncate(MAX_OPEN_ATTRIBUTES);
            span.dropped_attributes_count = span.dropped_attributes_count.saturating_add(more);
        }
        open
    }

    pub(crate) fn id(&self) -> SpanId {
        self.span.span_context.span_id()
    }

    /// Whether its open event may still leave.
    pub(crate) fn is_pending(&self) -> bool {
        matches!(self.event, Event::Young | Event::Due)
    }

    /// What is told of it when it starts.
    pub(crate) fn open(&self) -> Open {
        let span = &self.span;
        Open {
            parent_span_id: span.parent_span_id,
            parent_span_is_remote: span.parent_span_is_remote,
            name: span.name.clone(),
            kind: span.span_kind.clone(),
            start_time: span.start_time,
            attributes: span.attributes.clone(),
            dropped_attributes_count: span.dropped_attributes_count,
            links: span.links.links.clone(),
        }
    }

    pub(crate) fn old_at(&self, min_age: Duration) -> Option<Instant> {
        self.since.checked_add(min_age)
    }

    /// Whether it has opened after this.
    pub(crate) fn is_younger_than(&self, moment: Instant) -> bool {
        self.since > moment
    }

    /// What is to be told of a span that has ended, beyond what was told when it opened.
    pub(crate) fn close(of: Option<&Self>, span: &SpanData) -> Close {
        let told =
            |count: fn(&SpanData) -> usize| of.map_or(0, |open| count(&open.span).min(count(span)));
        let renamed = of.is_none_or(|open| open.span.name != span.name);
        Close {
            end_time: span.end_time,
            status: span.status.clone(),
            name: renamed.then(|| span.name.clone()),
            attributes: span.attributes[told(|span| span.attributes.len())..].to_vec(),
            events: span.events.events[told(|span| span.events.events.len())..].to_vec(),
            links: span.links.links[told(|span| span.links.links.len())..].to_vec(),
            unfinished: None,
        }
    }
}

impl OpenSpans {
    /// The place of the next event.
    pub(crate) fn next(&mut self, local_root: SpanId) -> InRequest {
        let sequence = self.events;
        self.events += 1;
        InRequest {
            local_root,
            sequence,
        }
    }

    pub(crate) fn add(&mut self, open: Box<OpenSpan>) {
        self.young += usize::from(open.event == Event::Young);
        self.list.push((open.id(), open));
    }

    pub(crate) fn get_mut(&mut self, id: SpanId) -> Option<&mut OpenSpan> {
        // From the back: it is likely one of the latest.
        let mut list = self.list.iter_mut().rev();
        list.find(|(known, _)| *known == id)
            .map(|(_, open)| open.as_mut())
    }

    /// Takes out a span that ends.
    pub(crate) fn remove(&mut self, id: SpanId) -> Option<Box<OpenSpan>> {
        let at = self.list.iter().rposition(|(known, _)| *known == id)?;
        // The others stay in the order in which they opened. It is nearly always the last one.
        let (_, open) = self.list.remove(at);
        self.young -= usize::from(open.event == Event::Young);
        self.due -= usize::from(open.event == Event::Due);
        Some(open)
    }

    /// Takes all, in the order in which they opened.
    pub(crate) fn take_all(&mut self) -> Vec<(SpanId, Box<OpenSpan>)> {
        (self.young, self.due) = (0, 0);
        std::mem::take(&mut self.list)
    }

    /// Whether one leaves with the next batch.
    pub(crate) fn has_due(&self) -> bool {
        self.due > 0
    }

    /// Whether there is something to tell that does not wait for the local root.
    pub(crate) fn has_news(&self) -> bool {
        self.has_due() || self.rename_waits
    }

    /// Whether one may become due.
    #[cfg(any(test, target_family = "wasm"))]
    pub(crate) fn has_young(&self) -> bool {
        self.young > 0
    }

    /// So many of those that leave, in the order in which they opened. It is for `leave` to say what becomes of each.
    pub(crate) fn take_due(&mut self, max: usize, leave: impl FnMut(&mut OpenSpan)) {
        // Those that were told of are older, and there may be very many.
        let list = self.list.iter_mut().rev().map(|(_, open)| open.as_mut());
        let due = list.filter(|open| open.event == Event::Due).take(self.due);
        let mut due: Vec<_> = due.collect();
        let leaving = due.len().min(max);
        self.due -= leaving;
        due.drain(due.len() - leaving..).rev().for_each(leave);
    }

    /// Those that are so old are due. Returns when the next one will be.
    pub(crate) fn make_due(&mut self, min_age: Duration, now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        let list = self.list.iter_mut().rev().map(|(_, open)| open);
        let young = list.filter(|open| open.event == Event::Young);
        for open in young.take(self.young) {
            match open.old_at(min_age) {
                Some(at) if at <= now => {
                    open.event = Event::Due;
                    self.young -= 1;
                    self.due += 1;
                }
                Some(at) => next = Some(next.map_or(at, |next| next.min(at))),
                // Longer than time lasts.
                None => {}
            }
        }
        next
    }
}

#[cfg(test)]
impl OpenSpans {
    /// How far each is, in the order in which they opened.
    pub(crate) fn events(&self) -> impl Iterator<Item = (SpanId, Event)> + '_ {
        let list = self.list.iter();
        list.map(|(id, open)| (*id, open.event))
    }

    /// How many are due, as far as it has counted.
    pub(crate) fn due(&self) -> usize {
        self.due
    }
}
