//! What is asked of both after each action. The parent module lists it.

use std::collections::HashSet;

use proptest::prelude::*;

use super::super::action::TRACES;
use super::*;

impl Pair {
    /// Whose a batch is, and under which context it leaves (R1, R4, R5, R8).
    pub(super) fn check_batch(&mut self, batch: &Batch, items: &[Serial]) -> Check {
        let signal = batch.items.signal();
        let most = match self.platform {
            Platform::Native => MAX_BATCH_SIZE,
            Platform::Workers => max_pending(signal),
        };
        prop_assert!((1..=most).contains(&items.len()), "{} items", items.len());
        let credentials = batch.context.get::<Credentials>();
        let under = credentials.map(|credentials| credentials.of);
        let marks = marks_of(batch);
        prop_assert_eq!(marks.len(), items.len());
        for (serial, said) in items.iter().zip(marks) {
            prop_assert!(self.exported.insert(*serial), "{serial} leaves twice");
            let item = &self.reference.items[*serial];
            prop_assert_eq!(item.signal, signal, "which exporter gets {}", serial);
            let Place::Pending(owner) = item.place else {
                return Err(TestCaseError::fail(format!("{serial} is not pending")));
            };
            let (expected, mark) = match owner {
                Owner::Request(root) => (Some(root), None),
                Owner::Fallback(reason) => (None, reason.map(|reason| reason.as_str())),
                Owner::Own(record) => (Some(record), None),
            };
            prop_assert_eq!(under, expected, "whose context {} is under", serial);
            prop_assert_eq!(said.as_deref(), mark, "the mark of {}", serial);
            let alone = items.len() == 1 || !matches!(owner, Owner::Own(_));
            prop_assert!(alone, "{serial} is not alone");
        }
        let counts = items
            .iter()
            .map(|serial| self.reference.items[*serial].count);
        prop_assert_eq!(batch.items.len() as u64, counts.sum::<u64>());
        let traces = batch.items.traces().into_iter().collect::<HashSet<_>>();
        prop_assert!(self.platform == Platform::Native || traces.len() <= 1);
        Ok(())
    }

    /// What a flush claims, and when (R11).
    pub(super) fn check_flushes(&mut self) -> Check {
        let mut told = self.dispatch.take_finished();
        let mut still = Vec::new();
        for watch in std::mem::take(&mut self.flushes) {
            let said = match &watch.asked {
                Some(flush) => self.dispatch.done(flush),
                None => {
                    let at = told.iter().position(|(id, _)| *id == watch.id);
                    at.map(|at| told.remove(at).1)
                }
            };
            let done = watch.is_done(&self.reference);
            prop_assert_eq!(said.is_some(), done, "a flush of {:?} ends", watch.scope);
            let Some(report) = said else {
                still.push(watch);
                continue;
            };
            self.check_report(&watch, report.losses)?;
            if watch.heard {
                self.dispatch.mark_reported(&report);
            }
        }
        prop_assert!(told.is_empty(), "flushes that nobody began: {told:?}");
        self.flushes = still;
        Ok(())
    }

    fn check_report(&mut self, watch: &Watch, said: Losses) -> Check {
        // Who asks is told of everything until then, and who is told of everything until it was over.
        let lost = match (&watch.asked, watch.lost) {
            (None, Some(lost)) => lost,
            _ => lost(&self.reference, watch.scope),
        };
        let mut expected = Losses::default();
        for signal in watch.signals.iter() {
            expected.add(lost[signal].minus(watch.reported[signal]));
        }
        prop_assert_eq!(said, expected, "what {:?} reports", watch.scope);
        let arrived = |serial: &Serial| {
            let item = &self.reference.items[*serial];
            // A collection may find nothing.
            let nothing = item.signal == Signal::Metrics && item.place == Place::Gone;
            nothing || matches!(item.place, Place::Exported(_))
        };
        let lies = said == Losses::default() && !watch.before.iter().all(arrived);
        prop_assert!(!lies, "a flush of {:?} lies", watch.scope);
        if watch.heard {
            let trace = trace_of_scope(watch.scope);
            for signal in watch.signals.iter() {
                self.reference.report(signal, trace, lost[signal]);
            }
        }
        Ok(())
    }

    /// Why batches leave (R4).
    pub(super) fn check_departures(
        &mut self,
        action: Action,
        flushed: Option<(Signals, Scope)>,
        before: &PerSignal<SignalStats>,
        newest: u64,
    ) -> Check {
        for signal in Signal::QUEUED {
            let lane = &self.dispatch.lanes[signal];
            // Something was dropped although all that is pending waits for roots to end.
            let dropped = |stats: &SignalStats| stats.dropped.by(DropReason::QueueFull);
            let before = &before[signal];
            let burst = before.queued == before.pending() && dropped(&lane.stats) > dropped(before);
            let closed = matches!(action, Action::Shutdown { signal: of } if of == signal);
            let made = lane.waiting.iter().filter(|batch| batch.id > newest);
            let made: Vec<_> = made.map(Departure::of).collect();
            for batch in made {
                let flushed = flushed.is_some_and(|(signals, scope)| {
                    signals.contains(signal) && scope.covers(&batch.origin)
                });
                if !flushed && !burst && !closed {
                    self.check_departure(action, signal, &batch)?;
                }
            }
        }
        Ok(())
    }

    fn check_departure(&mut self, action: Action, signal: Signal, batch: &Departure) -> Check {
        let Departure { origin, items, own } = batch;
        let full = *items >= MAX_BATCH_SIZE;
        let adds = match signal {
            Signal::Spans => matches!(action, Action::End { .. }),
            _ => matches!(action, Action::Emit { .. }),
        };
        let entitled = match (origin, action) {
            (Origin::Late(_), Action::Emit { .. }) if *own => true,
            (Origin::Late(_), Action::Tick { .. }) => !own,
            (Origin::Late(_), _) => full && adds,
            (Origin::Request(id), _) if self.is_over(*id) => true,
            (Origin::Request(id), Action::Tick { .. }) => {
                // What is of no trace waits for nothing.
                let waits = self.under_way(id.queue(signal)) > 1 && id.trace != TraceId::INVALID;
                !waits && !self.waits_for_root(*id)
            }
            (Origin::Request(id), _) => full && adds && self.has_slot(id.queue(signal)),
            #[cfg(feature = "metric-reader")]
            (Origin::Metrics, _) => false,
        };
        prop_assert!(entitled, "{origin:?} leaves with {items} {signal}");
        match (origin, self.platform) {
            (Origin::Request(id), Platform::Workers) => self.check_allowance(id.queue(signal)),
            _ => Ok(()),
        }
    }

    /// In a Worker, how often a queue may leave while its request is live, and how often what is late of a trace may.
    fn check_allowance(&mut self, id: QueueId) -> Check {
        let left = self.departures.entry(id).or_default();
        *left += 1;
        let left = *left;
        let pauses = self.pauses.get(&id).copied().unwrap_or_default();
        // One more when its root ends.
        let most = MAX_EXPORTS + 1 + pauses;
        prop_assert!(
            self.is_over(id.request) || left <= most,
            "{id:?} leaves {left} times"
        );
        Ok(())
    }

    /// After a tick, a queue stays only for a reason (R4).
    pub(super) fn check_nothing_stays(&mut self) -> Check {
        for id in self.queues() {
            let request = self.dispatch.request(id.request);
            let queue = request.and_then(|request| request.queue(id.signal));
            let Some(queue) = queue.filter(|queue| !queue.is_empty()) else {
                continue;
            };
            let paced = self.platform == Platform::Workers && queue.schedule == Schedule::Paced;
            let reason = paced || self.under_way(id) > 0 || self.waits_for_root(id.request);
            prop_assert!(reason, "{id:?} stays");
        }
        prop_assert!(!self.dispatch.late.is_due(), "what is late stays");
        Ok(())
    }

    /// Those of live requests, and in a Worker those of what is late.
    fn queues(&self) -> Vec<QueueId> {
        let live = self.reference.requests();
        let live = live.map(|(_, r)| self.request_id_of(r.root));
        // Natively it has no queues.
        let traces = match self.platform {
            Platform::Native => 0..0,
            Platform::Workers => 0..TRACES + 1,
        };
        let late = traces.map(|trace| RequestId::late(TraceId::from(trace)));
        let of_both = |id: RequestId| Signal::QUEUED.map(|signal| id.queue(signal));
        live.chain(late).flat_map(of_both).collect()
    }

    /// Only those that wait for something other than a tick. That all of those are held is what flushes find out.
    pub(super) fn check_held(&mut self) -> Check {
        for signal in Signal::ALL {
            let held: Vec<RequestId> = self.dispatch.lanes[signal].held.iter().copied().collect();
            for id in held {
                prop_assert!(!self.is_over(id), "what is over is held");
                let request = self.dispatch.request(id);
                let queue = request.and_then(|request| request.queue(signal));
                let waits = queue.is_some_and(|queue| queue.schedule.waits());
                prop_assert!(waits, "{id:?} is held, for its {signal}");
            }
        }
        Ok(())
    }

    /// The law, the bounds, and every single number (R6, R7, R10, R12).
    pub(super) fn check_account(&self) -> Check {
        let mut expected = self.reference.stats.clone();
        let collecting = self.reference.collecting().len();
        for signal in Signal::ALL {
            let lane = &self.dispatch.lanes[signal];
            let pending = self.reference.count_pending(signal);
            let waiting: usize = lane.waiting.iter().map(|batch| batch.items.len()).sum();
            let flying = self.exporter.iter();
            let flying = flying.filter(|export| export.signal() == signal && !export.given_up);
            let flying: usize = flying.map(|export| export.batch.items.len()).sum();
            let handed_over = (waiting + flying) as u64;
            prop_assert!(handed_over <= pending, "{:?}", lane.stats);
            let expected = &mut expected[signal];
            expected.queued = pending - handed_over;
            expected.waiting = waiting as u64;
            expected.in_flight = flying as u64;
            expected.exports = self.exports[signal];
            prop_assert!(pending <= max_pending(signal) as u64, "{:?}", lane.stats);
            let slots = self.slots_taken(signal);
            prop_assert_eq!(lane.slots_taken, slots, "slots of {}", signal);
            prop_assert!(
                self.platform == Platform::Workers || slots <= most_at_once(signal),
                "{slots} exports of {signal} at once"
            );
            let drained = pending == 0 && (signal != Signal::Metrics || collecting == 0);
            prop_assert_eq!(self.dispatch.is_drained(signal), drained, "{}", signal);
        }
        let on_their_way = self.reference.pending(Signal::Metrics).count();
        prop_assert!(
            on_their_way <= MAX_COLLECTIONS,
            "{on_their_way} collections"
        );
        let stats = self.dispatch.stats();
        prop_assert!(stats.is_balanced(), "{stats:?}");
        let [spans, logs, metrics] = Signal::ALL.map(|signal| &expected[signal]);
        let traces = self.reference.live_traces() as u64;
        let evicted = self.reference.evicted_traces;
        prop_assert_eq!(stats, Stats::new(spans, logs, metrics, traces, evicted));
        Ok(())
    }

    /// Everything that a step was about is still there: it must not be dropped under the lock (R3).
    pub(super) fn check_nothing_is_dropped(&self) -> Check {
        for (of, context) in &self.contexts {
            prop_assert!(context.strong_count() > 0, "the context of {of} is dropped");
        }
        Ok(())
    }

    /// A saved context lives exactly as long as something needs it (R9).
    pub(super) fn check_contexts(&mut self) -> Check {
        let live = self.reference.requests().map(|(_, request)| request.root);
        let inside = Signal::ALL.into_iter();
        let inside = inside.flat_map(|signal| self.reference.pending(signal));
        let inside = inside.filter_map(|(.., owner)| match owner {
            Owner::Request(of) | Owner::Own(of) => Some(of),
            Owner::Fallback(_) => None,
        });
        let contexts = self.exporter.iter().map(|export| &export.batch.context);
        let outside = contexts.filter_map(|cx| cx.get::<Credentials>().map(|c| c.of));
        let mut needed: Vec<Serial> = live.chain(inside).chain(outside).collect();
        needed.sort_unstable();
        needed.dedup();
        self.contexts
            .retain(|_, context| context.strong_count() > 0);
        let mut alive: Vec<Serial> = self.contexts.keys().copied().collect();
        alive.sort_unstable();
        prop_assert_eq!(alive, needed, "whose contexts are alive");
        Ok(())
    }

    // ----- questions -----

    /// Late spans are never over.
    fn is_over(&self, id: RequestId) -> bool {
        !id.is_late() && self.root_of(id).is_none()
    }

    fn waits_for_root(&self, id: RequestId) -> bool {
        let request = self
            .root_of(id)
            .and_then(|root| self.reference.request(root));
        self.trigger == FlushTrigger::LocalRootEnd && request.is_some_and(|r| !r.root_ended)
    }

    /// Whether the latest batch of a live request is not one too many at once.
    fn has_slot(&self, id: QueueId) -> bool {
        self.platform == Platform::Native || self.under_way(id) <= MAX_CONCURRENT
    }

    /// How many batches of a queue wait or are in flight.
    fn under_way(&self, id: QueueId) -> usize {
        let waiting = self.dispatch.lanes[id.signal].waiting.iter();
        let waiting = waiting.map(|batch| &batch.origin);
        let in_flight = self.dispatch.in_flight.values();
        let in_flight = in_flight.filter(|flight| flight.signal == id.signal);
        waiting
            .chain(in_flight.map(|flight| &flight.origin))
            .filter(|origin| matches!(origin, Origin::Request(of) if *of == id.request))
            .count()
    }
}

/// A batch that has just been made.
struct Departure {
    origin: Origin,
    items: usize,
    /// Whether it is no request's and has a context nevertheless.
    own: bool,
}

impl Departure {
    fn of(batch: &Batch) -> Self {
        let late = matches!(batch.origin, Origin::Late(_));
        Self {
            origin: batch.origin.clone(),
            items: batch.items.len(),
            own: late && batch.context.get::<Credentials>().is_some(),
        }
    }
}

/// What each item is marked with as late. Metrics have no marks.
fn marks_of(batch: &Batch) -> Vec<Option<String>> {
    let mark_of_span = |span: &SpanData| {
        let mut attributes = span.attributes.iter();
        let mark = attributes.find(|kv| kv.key.as_str() == LATE_ATTRIBUTE);
        mark.map(|kv| kv.value.to_string())
    };
    match &batch.items {
        Items::Spans(spans) => spans.iter().map(mark_of_span).collect(),
        #[cfg(feature = "logs")]
        Items::Logs(logs) => logs.iter().map(logs::mark_of).collect(),
        #[cfg(feature = "metric-reader")]
        Items::Metrics(_) => vec![None],
    }
}
