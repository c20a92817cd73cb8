//! When metrics are collected. Pure: the time is an argument, and who collects tells what came of it.

use std::time::Duration;

use super::{Batch, Dispatch, Origin};
use crate::clock::Instant;
use crate::config::Config;
use crate::signal::{Collected, Items, Signal};

/// So many collections may be on their way. With more, what is measured stays where it is, in the instruments, and a later
/// collection takes it.
pub(crate) const MAX_PENDING: usize = 32;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Collections {
    /// None as long as there is no reader.
    pace: Option<Pace>,
    /// Whether a request has come to its end since the last one.
    wanted: bool,
    /// Whether the driver must look, because something has changed for it.
    news: bool,
    /// The ids of the batches that collections under way will be.
    under_way: Vec<u64>,
    /// The shutdown is over for what they find.
    abandoned: bool,
}

/// How often metrics are collected.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// At most once in this time, when requests end.
    interval: Duration,
    /// Also when none does.
    period: Option<Duration>,
    /// When there was a reader first.
    since: Instant,
    /// The last time.
    last: Option<Instant>,
}

impl Collections {
    /// A request has come to its end.
    pub(super) fn want(&mut self) {
        // In a Worker nobody else runs meanwhile: it is one of a callback's own, and would be a reason to call it again.
        if cfg!(target_family = "wasm") && !self.under_way.is_empty() {
            return;
        }
        self.news |= self.pace.is_some() && !self.wanted;
        self.wanted = self.pace.is_some();
    }

    /// What is found from now on comes too late.
    pub(super) fn abandon(&mut self) {
        self.abandoned = true;
    }

    /// Something that stood in the way of a collection may be gone.
    pub(super) fn look_again(&mut self) {
        self.news = self.pace.is_some();
    }

    pub(super) fn has_news(&self) -> bool {
        self.news
    }

    pub(super) fn under_way(&self) -> impl Iterator<Item = u64> + '_ {
        self.under_way.iter().copied()
    }

    fn next(&self) -> Option<Instant> {
        self.pace?.next(self.wanted)
    }
}

impl Pace {
    pub(crate) fn new(config: &Config, now: Instant) -> Self {
        Self {
            interval: config.metric_interval(),
            // In a Worker nothing runs when no event does.
            period: config
                .metric_period()
                .filter(|_| cfg!(not(target_family = "wasm"))),
            since: now,
            last: None,
        }
    }

    fn next(&self, wanted: bool) -> Option<Instant> {
        let after_a_request = match self.last {
            _ if !wanted => None,
            None => Some(self.since),
            Some(last) => last.checked_add(self.interval),
        };
        let last = self.last.unwrap_or(self.since);
        let anyway = self.period.and_then(|period| last.checked_add(period));
        after_a_request.into_iter().chain(anyway).min()
    }
}

impl Dispatch {
    /// There is a reader from now on.
    pub(crate) fn set_pace(&mut self, pace: Pace) {
        self.collections.pace = Some(pace);
        self.collections.look_again();
    }

    /// When metrics are to be collected next, unless they are being, or enough of them are on their way.
    pub(crate) fn next_collection(&self) -> Option<Instant> {
        let idle = self.collections.under_way.is_empty();
        match idle && !self.is_closed(Signal::Metrics) && self.may_collect() {
            true => self.collections.next(),
            false => None,
        }
    }

    /// Whether there is room for another collection.
    pub(crate) fn may_collect(&self) -> bool {
        let in_flight = self.in_flight.values();
        let in_flight = in_flight.filter(|flight| flight.signal == Signal::Metrics);
        let waiting = self.lanes[Signal::Metrics].waiting.len();
        self.collections.under_way.len() + waiting + in_flight.count() < MAX_PENDING
    }

    /// Begins a collection if it is time for one, and none is under way. Returns its id.
    pub(crate) fn collect_if_due(&mut self, now: Instant) -> Option<u64> {
        self.collections.news = false;
        let due = self.next_collection().is_some_and(|next| next <= now);
        due.then(|| self.begin_collection(now))
    }

    /// Whether a request has come to its end since metrics were collected last.
    #[cfg(target_family = "wasm")]
    pub(crate) fn wants_metrics(&self) -> bool {
        self.collections.wanted
    }

    /// How long to wait until metrics are to be collected, if they are to be.
    #[cfg(target_family = "wasm")]
    pub(crate) fn wait_to_collect(&self, now: Instant) -> Option<Duration> {
        let next = self.next_collection()?;
        Some(next.checked_duration_since(now).unwrap_or_default())
    }

    /// Begins a collection. Flushes that begin from now on wait for it, and for what it finds.
    pub(crate) fn begin_collection(&mut self, now: Instant) -> u64 {
        let id = self.new_id();
        self.collections.under_way.push(id);
        self.collections.wanted = false;
        if let Some(pace) = &mut self.collections.pace {
            pace.last = Some(now);
        }
        id
    }

    /// A collection has ended, and found this. What is found after the deadline of a shutdown is dropped: the instruments do
    /// not have it any more.
    pub(crate) fn end_collection(&mut self, id: u64, found: Option<Collected>) {
        let under_way = &mut self.collections.under_way;
        let Some(place) = under_way.iter().position(|other| *other == id) else {
            return;
        };
        under_way.remove(place);
        self.collections.look_again();
        let Some(found) = found else {
            return self.advance_flushes(id, Signal::Metrics, &Origin::Metrics);
        };
        self.lanes[Signal::Metrics].stats.received += found.points as u64;
        let batch = Batch {
            id,
            context: self.fallback.clone(),
            items: Items::Metrics(Box::new(found)),
            origin: Origin::Metrics,
        };
        match self.collections.abandoned {
            false => self.line_up(batch),
            true => self.give_up_waiting(batch),
        }
    }
}
