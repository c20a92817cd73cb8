//! What is asked of both after each action. The parent module lists it.

use std::collections::{BTreeSet, HashSet};

use opentelemetry::Value;
use proptest::prelude::*;

use super::super::action::TRACES;
use super::*;

impl Pair {
    /// Whose a batch is, and under which context it leaves (R1, R4, R5, R8).
    pub(super) fn check_batch(&mut self, batch: &Batch, spans: &[Serial]) -> Check {
        let most = match self.platform {
            Platform::Native => MAX_BATCH_SIZE,
            Platform::Workers => MAX_PENDING,
        };
        prop_assert!((1..=most).contains(&spans.len()), "{} spans", spans.len());
        let credentials = batch.context.get::<Credentials>();
        for (span, serial) in spans_of(batch).iter().zip(spans) {
            prop_assert!(self.exported.insert(*serial), "span {serial} leaves twice");
            let Place::Pending(owner) = self.reference.spans[*serial].place else {
                return Err(TestCaseError::fail(format!("span {serial} is not pending")));
            };
            let (expected, mark) = match owner {
                Owner::Request(root) => (Some(root), None),
                Owner::Fallback(reason) => (None, Some(Value::from(reason.as_str()))),
            };
            let root = credentials.map(|credentials| credentials.root);
            prop_assert_eq!(root, expected, "whose context span {} is under", serial);
            let marked = span.attributes.iter();
            let mut marked = marked.filter(|kv| kv.key.as_str() == LATE_ATTRIBUTE);
            let said = marked.next().map(|kv| kv.value.clone());
            prop_assert_eq!(said, mark, "the mark of span {}", serial);
        }
        let traces = spans_of(batch).iter().map(|s| s.span_context.trace_id());
        let traces = traces.collect::<HashSet<_>>().len();
        prop_assert!(self.platform == Platform::Native || traces == 1);
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
            let done = !watch.before.iter().any(|s| self.reference.is_pending(*s));
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
        let trace = trace_of_scope(watch.scope);
        let (lost, _) = self.reference.losses(trace);
        let lost = lost.minus(watch.reported);
        let exact = match self.abandoning {
            // It drops one batch after the other, and a flush may end in between.
            true => said.failed == lost.failed && said.dropped <= lost.dropped,
            false => said == lost,
        };
        prop_assert!(exact, "a flush says {said:?}, and it is {lost:?}");
        let arrived =
            |serial: &Serial| matches!(self.reference.spans[*serial].place, Place::Exported(_));
        let lies = said == Losses::default() && !watch.before.iter().all(arrived);
        prop_assert!(!lies, "a flush of {:?} lies", watch.scope);
        if watch.heard {
            let mut heard = watch.reported;
            heard.add(said);
            self.reference.report(trace, heard);
        }
        Ok(())
    }

    /// Why batches leave (R4).
    pub(super) fn check_departures(
        &mut self,
        action: Action,
        flushed: Option<Scope>,
        before: &Stats,
        newest: u64,
    ) -> Check {
        let batches = self.dispatch.lanes[Signal::Spans]
            .waiting
            .iter()
            .filter(|b| b.id > newest);
        let batches: Vec<_> = batches.map(|b| (b.origin.clone(), b.items.len())).collect();
        // A span was dropped although all that is pending waits for roots to end.
        let dropped = |stats: &Stats| stats.dropped.by(DropReason::QueueFull);
        let burst =
            before.queued == before.pending() && dropped(&self.dispatch.stats()) > dropped(before);
        for (origin, spans) in batches {
            let flushed = flushed.is_some_and(|scope| scope.covers(&origin));
            if flushed || burst || matches!(action, Action::Shutdown) {
                continue;
            }
            let full = spans >= MAX_BATCH_SIZE;
            let entitled = match (&origin, action) {
                (Origin::Late(_), Action::Tick { .. }) => true,
                (Origin::Late(_), _) => full,
                (Origin::Request(id), _) if self.is_over(*id) => true,
                (Origin::Request(id), Action::End { .. }) => full && self.has_slot(*id),
                (Origin::Request(id), Action::Tick { .. }) => {
                    self.under_way(*id) == 1 && !self.waits_for_root(*id)
                }
                _ => false,
            };
            prop_assert!(entitled, "{origin:?} leaves with {spans} spans");
            if let (Origin::Request(id), Platform::Workers) = (&origin, self.platform) {
                self.check_allowance(*id)?;
            }
        }
        Ok(())
    }

    /// In a Worker, how often a request may leave while it is live, and how often late spans of a trace may.
    fn check_allowance(&mut self, id: RequestId) -> Check {
        let left = self.departures.entry(id).or_default();
        *left += 1;
        let left = *left;
        let pauses = self.pauses.get(&id).copied().unwrap_or_default();
        // One more when its root ends.
        let most = MAX_EXPORTS + 1 + pauses;
        prop_assert!(
            self.is_over(id) || left <= most,
            "{id:?} leaves {left} times"
        );
        Ok(())
    }

    /// After a tick, a queue stays only for a reason (R4).
    pub(super) fn check_nothing_stays(&mut self) -> Check {
        let live = self.reference.requests();
        let live = live.map(|(_, r)| self.request_id_of(r.root));
        let late = (1..=TRACES).map(|trace| RequestId::late(TraceId::from(trace)));
        for id in live.chain(late).collect::<Vec<_>>() {
            let request = self.dispatch.request(id);
            let queue = request.and_then(|request| request.queue(Signal::Spans));
            let Some(queue) = queue.filter(|queue| !queue.is_empty()) else {
                continue;
            };
            let paced = self.platform == Platform::Workers && queue.schedule == Schedule::Paced;
            let reason = paced || self.under_way(id) > 0 || self.waits_for_root(id);
            prop_assert!(reason, "the queue of {id:?} stays");
        }
        prop_assert!(!self.dispatch.late.is_due(), "late spans stay");
        Ok(())
    }

    /// The law, the bounds, and every single number (R6, R7, R10, R12).
    pub(super) fn check_account(&self) -> Check {
        let stats = self.dispatch.stats();
        prop_assert!(stats.is_balanced(), "{stats:?}");
        prop_assert!(stats.pending() <= MAX_PENDING as u64, "{stats:?}");
        let pending = self.reference.pending().count() as u64;
        let waiting: usize = self.dispatch.lanes[Signal::Spans]
            .waiting
            .iter()
            .map(|b| b.items.len())
            .sum();
        let flying = self.exporter.iter().filter(|export| !export.given_up);
        let flying: usize = flying.map(|export| export.spans.len()).sum();
        prop_assert!(waiting + flying <= pending as usize, "{stats:?}");
        let expected = Stats {
            traces: self.reference.live_traces() as u64,
            queued: pending - waiting as u64 - flying as u64,
            waiting: waiting as u64,
            in_flight: flying as u64,
            exports: self.exports,
            ..self.reference.stats.clone()
        };
        prop_assert_eq!(&stats, &expected);
        prop_assert!(
            self.platform == Platform::Workers || self.exporter.len() <= MAX_CONCURRENT,
            "{} exports at once",
            self.exporter.len()
        );
        let live = |id: &RequestId| !self.is_over(*id);
        prop_assert!(
            self.dispatch.lanes[Signal::Spans].held.iter().all(live),
            "what is over is held"
        );
        Ok(())
    }

    /// A saved context lives exactly as long as something needs it (R9).
    pub(super) fn check_contexts(&self) -> Check {
        let live = self.reference.requests().map(|(_, request)| request.root);
        let inside = self.reference.pending();
        let inside = inside.filter_map(|(.., owner)| match owner {
            Owner::Request(root) => Some(root),
            Owner::Fallback(_) => None,
        });
        let contexts = self.exporter.iter().map(|export| &export.batch.context);
        let outside = contexts.filter_map(|cx| cx.get::<Credentials>().map(|c| c.root));
        let needed: BTreeSet<Serial> = live.chain(inside).chain(outside).collect();
        let alive = self.contexts.iter();
        let alive = alive.filter(|(_, context)| context.strong_count() > 0);
        let alive: BTreeSet<Serial> = alive.map(|(root, _)| *root).collect();
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
    fn has_slot(&self, id: RequestId) -> bool {
        self.platform == Platform::Native || self.under_way(id) <= MAX_CONCURRENT
    }

    /// How many batches of a request wait or are in flight.
    fn under_way(&self, id: RequestId) -> usize {
        let waiting = self.dispatch.lanes[Signal::Spans]
            .waiting
            .iter()
            .map(|batch| &batch.origin);
        let in_flight = self.dispatch.in_flight.values().map(|f| &f.origin);
        waiting
            .chain(in_flight)
            .filter(|origin| matches!(origin, Origin::Request(of) if *of == id))
            .count()
    }
}
