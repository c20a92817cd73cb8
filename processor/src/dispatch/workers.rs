//! What only a Worker asks of the dispatch: there, nothing may wait for another request (R13), and a request has few exports.

use std::time::Duration;

use lru::LruCache;
use opentelemetry::Context;
use opentelemetry::trace::TraceId;

use super::{Batch, Dispatch, Flush, Late, Report};
use crate::clock::Instant;
use crate::config::Config;
use crate::hash::IdHash;
use crate::request::{Allowance, Change, QueueId, RequestId, Schedule, Terms};
use crate::signal::Signal;

impl Dispatch {
    /// The same for Workers, where nothing may wait for another request (R13): what bounds concurrent exports is counted
    /// for each request by itself, and so is the number of its exports.
    pub(crate) fn for_workers(config: &Config, fallback: Context, mark_late: bool) -> Self {
        let dispatch = Self::new(config, fallback, mark_late);
        Self {
            max_concurrent_exports: 0,
            terms: Terms {
                allowance: Allowance {
                    // So many are not counted, and are no limit.
                    exports: u16::try_from(config.max_exports_per_request()).unwrap_or(0),
                    concurrent: u32::try_from(config.max_concurrent_exports()).unwrap_or(u32::MAX),
                },
                ..dispatch.terms
            },
            late: Late::ByTrace(LruCache::unbounded_with_hasher(IdHash::default())),
            opened: dispatch.opened.by_request(config),
            ..dispatch
        }
    }

    /// Makes everything of a request leave that it has queued.
    pub(crate) fn send(&mut self, id: RequestId) {
        for signal in Signal::QUEUED {
            self.take_queue(id.queue(signal));
        }
    }

    /// As [`Dispatch::next_batch`], of this trace only.
    pub(crate) fn next_batch_of(
        &mut self,
        trace: TraceId,
        deadline: Option<Instant>,
    ) -> Option<Batch> {
        Signal::QUEUED.into_iter().find_map(|signal| {
            let mut waiting = self.lanes[signal].waiting.iter();
            let place = waiting.position(|batch| batch.origin.trace() == trace)?;
            self.next_batch_at(signal, place, deadline)
        })
    }

    /// As [`Dispatch::next_batch`], of metrics only.
    #[cfg(any(feature = "metric-reader", target_family = "wasm"))]
    pub(crate) fn next_metrics(&mut self, deadline: Option<Instant>) -> Option<Batch> {
        self.next_batch_at(Signal::Metrics, 0, deadline)
    }

    /// To be dropped with the rest of what must not be dropped under the lock.
    pub(crate) fn discard(&mut self, batch: Batch) {
        self.garbage.batches.push(batch);
    }

    /// The queues that have used up their exports since the last call. After the time that each is given with,
    /// [`Self::end_pause`] is to be called.
    pub(crate) fn take_paced(&mut self) -> Vec<(QueueId, Duration)> {
        let mut all = Vec::new();
        for signal in Signal::QUEUED {
            let paced = std::mem::take(&mut self.lanes[signal].paced);
            all.extend(
                paced
                    .into_iter()
                    .map(|(id, pause)| (id.queue(signal), pause)),
            );
        }
        all
    }

    pub(crate) fn is_live(&mut self, id: RequestId) -> bool {
        self.request(id).is_some()
    }

    pub(crate) fn is_paced(&mut self, id: QueueId) -> bool {
        let request = self.request(id.request);
        let queue = request.and_then(|request| request.queue(id.signal));
        queue.is_some_and(|queue| queue.schedule == Schedule::Paced)
    }

    /// The next tick takes a queue that waited for its turn.
    pub(crate) fn end_pause(&mut self, id: QueueId) {
        let request = self.request(id.request);
        let Some(queue) = request.and_then(|request| request.queue_mut(id.signal)) else {
            return;
        };
        if queue.schedule == Schedule::Paced {
            queue.schedule = Schedule::Due;
            let (from, to) = (Schedule::Paced, Schedule::Due);
            self.apply(id, Change { from, to });
        }
    }

    /// What a flush has to report, if all its batches are done.
    pub(crate) fn done(&self, flush: &Flush) -> Option<Report> {
        let mut pending = self.pending_batches();
        let remains =
            pending.any(|(id, signal, origin)| id < flush.id && flush.covers(signal, origin));
        (!remains).then(|| self.report_of(flush))
    }
}
