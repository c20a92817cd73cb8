//! What keeps work alive once an event is answered: `waitUntil`.

use std::future::Future;

use wasm_bindgen::JsValue;
use wasm_bindgen::prelude::wasm_bindgen;

use worker::js_sys::futures::spawn_local;
use worker::js_sys::{Function, Promise};

#[wasm_bindgen(module = "cloudflare:workers")]
extern "C" {
    /// That of the event which is being handled. Throws outside of one.
    #[wasm_bindgen(js_name = waitUntil, catch)]
    fn js_wait_until(promise: &Promise) -> Result<(), JsValue>;
}

/// Something that can keep work alive after its event is answered: the context of a `fetch`, a scheduled or a queue event, or
/// the state of a Durable Object.
pub trait WaitUntil {
    /// Runs `work` to its end, in the event's own I/O context. The answer does not wait for it.
    ///
    /// Cloudflare gives such work 30 seconds after the answer.
    fn wait_until(&self, work: impl Future<Output = ()> + 'static);
}

impl WaitUntil for worker::Context {
    fn wait_until(&self, work: impl Future<Output = ()> + 'static) {
        self.wait_until(work);
    }
}

impl WaitUntil for worker::ScheduleContext {
    fn wait_until(&self, work: impl Future<Output = ()> + 'static) {
        self.wait_until(work);
    }
}

impl WaitUntil for worker::durable::State {
    fn wait_until(&self, work: impl Future<Output = ()> + 'static) {
        self.wait_until(work);
    }
}

/// The event that is being handled, whichever it is, for as long as the work that is spawned here.
#[derive(Debug)]
pub(crate) struct KeepAlive {
    done: Function,
}

impl KeepAlive {
    /// `None` outside of an event, where there is no I/O either.
    pub(crate) fn new() -> Option<Self> {
        let mut done = None;
        let promise = Promise::new(&mut |resolve, _reject| done = Some(resolve));
        js_wait_until(&promise).ok()?;
        // A promise calls its executor at once.
        Some(Self { done: done? })
    }

    pub(crate) fn spawn(self, work: impl Future<Output = ()> + 'static) {
        spawn_local(async move {
            work.await;
            drop(self);
        });
    }
}

impl Drop for KeepAlive {
    /// The runtime takes a promise that nothing can settle any more for a hung event, and aborts it.
    fn drop(&mut self) {
        let _ = self.done.call0(&JsValue::UNDEFINED);
    }
}
