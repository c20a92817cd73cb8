//! The observer, whom several threads tell of events, each at its own pace, and what it has heard in the end.

use std::collections::{HashMap, VecDeque};
use std::time::UNIX_EPOCH;

use opentelemetry::trace::{SpanId, TraceId};
use proptest::prelude::*;

use super::super::Check;
use super::action::Pick;
use crate::dispatch::Dispatch;
use crate::observer::{LifecycleEvent, Stage};

/// See the module.
#[derive(Default)]
pub(super) struct Observer {
    threads: Vec<Thread>,
    /// In the order in which they came.
    pub(super) heard: Vec<LifecycleEvent>,
}

/// Somebody who has released the lock, and has events to tell of.
struct Thread {
    first: VecDeque<LifecycleEvent>,
    /// The trace of the event that the observer is called with.
    inside: Option<TraceId>,
}

impl Observer {
    /// A thread releases the lock.
    pub(super) fn take_told(&mut self, dispatch: &mut Dispatch) {
        let first = VecDeque::from(dispatch.take_told());
        if !first.is_empty() {
            let inside = None;
            self.threads.push(Thread { first, inside });
        }
    }

    /// A thread gets on: it calls the observer, or the observer returns.
    pub(super) fn step(&mut self, pick: Pick, dispatch: &mut Dispatch) -> Check {
        if self.threads.is_empty() {
            return Ok(());
        }
        let at = pick % self.threads.len();
        let thread = &mut self.threads[at];
        let next = match thread.inside.take() {
            Some(trace) => dispatch.next_told(trace),
            None => None,
        };
        match next.or_else(|| thread.first.pop_front()) {
            Some(event) => self.hear(at, event),
            None => {
                self.threads.remove(at);
                Ok(())
            }
        }
    }

    fn hear(&mut self, thread: usize, mut event: LifecycleEvent) -> Check {
        let trace = event.trace_id;
        let is_busy = self.threads.iter().any(|t| t.inside == Some(trace));
        prop_assert!(!is_busy, "two events of trace {trace} at once");
        self.threads[thread].inside = Some(trace);
        if let Stage::Close(close) = &mut event.stage {
            if close.unfinished.is_some() {
                // By the clock.
                close.end_time = UNIX_EPOCH;
            }
        }
        self.heard.push(event);
        Ok(())
    }

    /// Everybody tells everything.
    pub(super) fn drain(&mut self, dispatch: &mut Dispatch) -> Check {
        while !self.threads.is_empty() {
            self.step(0, dispatch)?;
        }
        Ok(())
    }

    /// What can be said of all that was heard without knowing what has happened.
    pub(super) fn check_order(&self) -> Check {
        let mut sequences: HashMap<(TraceId, SpanId), u64> = HashMap::new();
        let mut open: HashMap<(TraceId, SpanId), usize> = HashMap::new();
        for event in &self.heard {
            if let Some(request) = event.request {
                let expected = sequences
                    .entry((event.trace_id, request.local_root))
                    .or_default();
                prop_assert_eq!(request.sequence, *expected, "of {:?}", event);
                *expected += 1;
            }
            let span = (event.trace_id, event.span_id);
            let open = open.entry(span).or_default();
            match event.stage {
                Stage::Open(_) => *open += 1,
                _ => prop_assert!(*open > 0, "not open: {event:?}"),
            }
            if let Stage::Close(_) = event.stage {
                *open -= 1;
            }
        }
        Ok(())
    }
}
