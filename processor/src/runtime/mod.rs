//! The only code that waits: it moves batches from `Dispatch` to the exporter, and tells who waits for them.
//!
//! There are two, of which one is compiled: threads, and Cloudflare Workers, which have none. Both offer the same `Shared`.

#[cfg(not(target_family = "wasm"))]
mod threads;
#[cfg(target_family = "wasm")]
mod workers;

#[cfg(not(target_family = "wasm"))]
pub(crate) use threads::{OwnRuntime, Shared};
#[cfg(target_family = "wasm")]
pub(crate) use workers::{OwnRuntime, Shared};

use std::cell::RefCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use opentelemetry::trace::TraceId;

use crate::dispatch::Dispatch;
use crate::notices::{Example, Kind};
use crate::observer::{LifecycleEvent, SpanObserver};
use crate::sync::Arc;
#[cfg(not(target_family = "wasm"))]
use crate::sync::thread_local;

/// Drops what runs code of the exporter's or of the user's when it is dropped. Never under the lock. A panic in there is told
/// by the panic hook, and not passed on (R14).
fn drop_quietly<T>(value: T) {
    let _ = catch_unwind(AssertUnwindSafe(|| drop(value)));
}

/// Who is told of spans that open, are renamed and close.
#[derive(Clone)]
struct Observer(Arc<dyn SpanObserver>);

thread_local! {
    // The observers that are called on this thread, by their addresses: one may make spans of a processor that has another.
    static CALLED: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

impl Observer {
    /// Whether it is called on this thread, so that what happens now is to be told when it has returned.
    fn is_called_here(&self) -> bool {
        let called = CALLED.try_with(|called| called.borrow().contains(&self.address()));
        called.unwrap_or_default()
    }

    /// What there is to tell now. Nothing inside of the observer: whoever called it tells that when it has returned.
    fn take_told(&self, dispatch: &mut Dispatch) -> Vec<LifecycleEvent> {
        match self.is_called_here() {
            true => Vec::new(),
            false => dispatch.take_told(),
        }
    }

    /// Tells of these, of what comes to their traces meanwhile, and of what the observer causes itself. Never under the lock, under
    /// which `locked` calls what it is given.
    fn tell(
        &self,
        mut events: Vec<LifecycleEvent>,
        locked: impl Fn(&mut dyn FnMut(&mut Dispatch)),
    ) {
        while !events.is_empty() {
            let panics = self.call(std::mem::take(&mut events), |trace| {
                let mut next = None;
                locked(&mut |dispatch| next = dispatch.next_told(trace));
                next
            });
            locked(&mut |dispatch| {
                if panics > 0 {
                    let notices = &mut dispatch.notices;
                    notices.note(Kind::ObserverPanicked, panics, Example::None);
                }
                events = self.take_told(dispatch);
            });
        }
    }

    /// Calls it with these, and with what `next` finds after each. Returns how often it panicked.
    fn call(
        &self,
        first: Vec<LifecycleEvent>,
        next: impl Fn(TraceId) -> Option<LifecycleEvent>,
    ) -> u64 {
        let _ = CALLED.try_with(|called| called.borrow_mut().push(self.address()));
        let mut panics = 0;
        for event in first {
            let trace = event.trace_id;
            let mut event = Some(event);
            while let Some(told) = event {
                if catch_unwind(AssertUnwindSafe(|| self.0.on_event(&told))).is_err() {
                    panics += 1;
                }
                event = next(trace);
            }
        }
        let _ = CALLED.try_with(|called| called.borrow_mut().pop());
        panics
    }

    fn address(&self) -> usize {
        Arc::as_ptr(&self.0).cast::<()>() as usize
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}
