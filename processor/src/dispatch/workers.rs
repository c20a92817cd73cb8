//! What only a Worker asks of the dispatch: there, nothing may wait for another request (R13), and a request has few exports.

use std::time::Duration;

use lru::LruCache;
use opentelemetry::Context;
use opentelemetry::trace::TraceId;

use super::{Batch, Dispatch, Flush, Late, Report};
use crate::clock::Instant;
use crate::config::Config;
use crate::hash::IdHash;
use crate::request::{Allowance, Change, RequestId, Schedule};

impl Dispatch {
    /// The same for Workers, where nothing may wait for another request (R13): what bounds concurrent exports is counted
    /// for each request by itself, and so is the number of its exports.
    pub(crate) fn for_workers(config: &Config, fallback: Context, mark_late: bool) -> Self {
        Self {
            max_concurrent_exports: 0,
            allowance: Allowance {
                exports: clamp(config.max_exports_per_request()),
                concurrent: clamp(config.max_concurrent_exports()),
            },
            late: Late::ByTrace(LruCache::unbounded_with_hasher(IdHash::default())),
            ..Self::new(config, fallback, mark_late)
        }
    }

    /// Makes everything of a request leave that it has queued.
    pub(crate) fn send(&mut self, id: RequestId) {
        self.take_queue(id);
    }

    /// As [`Dispatch::next_batch`], of this trace only.
    pub(crate) fn next_batch_of(
        &mut self,
        trace: TraceId,
        deadline: Option<Instant>,
    ) -> Option<Batch> {
        let mut waiting = self.waiting.iter();
        let at = waiting.position(|batch| batch.origin.trace() == trace)?;
        if at > 0 {
            let batch = self.waiting.remove(at)?;
            self.waiting.push_front(batch);
        }
        self.next_batch(deadline)
    }

    /// To be dropped with the rest of what must not be dropped under the lock.
    pub(crate) fn discard(&mut self, batch: Batch) {
        self.garbage.batches.push(batch);
    }

    /// The requests that have used up their exports since the last call. After the time that each is given with,
    /// [`Self::end_pause`] is to be called.
    pub(crate) fn take_paced(&mut self) -> Vec<(RequestId, Duration)> {
        std::mem::take(&mut self.paced)
    }

    pub(crate) fn is_live(&mut self, id: RequestId) -> bool {
        self.request(id).is_some()
    }

    pub(crate) fn is_paced(&mut self, id: RequestId) -> bool {
        let request = self.request(id);
        request.is_some_and(|request| request.schedule == Schedule::Paced)
    }

    /// The next tick takes the queue of a request that waited for its turn.
    pub(crate) fn end_pause(&mut self, id: RequestId) {
        let Some(request) = self.request(id) else {
            return;
        };
        if request.schedule == Schedule::Paced {
            request.schedule = Schedule::Due;
            let (from, to) = (Schedule::Paced, Schedule::Due);
            self.apply(id, Change { from, to });
        }
    }

    /// What a flush has to report, if all its batches are done.
    pub(crate) fn done(&self, flush: &Flush) -> Option<Report> {
        let waiting = self.waiting.iter().map(|batch| (batch.id, &batch.origin));
        let in_flight = self.in_flight.iter().map(|(id, f)| (*id, &f.origin));
        let remains = waiting
            .chain(in_flight)
            .any(|(id, origin)| id < flush.id && flush.scope.covers(origin));
        (!remains).then(|| self.report_of(flush))
    }
}

fn clamp(limit: usize) -> u32 {
    u32::try_from(limit).unwrap_or(u32::MAX)
}
