//! Waiting, by JavaScript's timers.
//!
//! `worker::Delay` is not used: it wakes the first waker that it sees and no later one, it cannot wait longer than 24 days
//! without firing at once, and it panics where there are no timers.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::time::Duration;

use wasm_bindgen::JsValue;
use wasm_bindgen::prelude::wasm_bindgen;
use worker::js_sys::futures::JsFuture;
use worker::js_sys::{Function, Promise};

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(catch, js_name = setTimeout)]
    fn set_timeout(callback: &Function, milliseconds: i32) -> Result<JsValue, JsValue>;

    #[wasm_bindgen(catch, js_name = clearTimeout)]
    fn clear_timeout(timer: &JsValue) -> Result<(), JsValue>;
}

thread_local! {
    static NEXT: Cell<u64> = const { Cell::new(0) };
    /// Timers that are set, by our own numbers.
    static TIMERS: RefCell<HashMap<u64, JsValue>> = RefCell::new(HashMap::new());
}

/// Waits, at most 24 days. Outside of a request there are no timers, so there it does not wait.
pub(crate) async fn sleep(duration: Duration) {
    let milliseconds = i32::try_from(duration.as_millis()).unwrap_or(i32::MAX);
    let mut timer = None;
    let fired = Promise::new(&mut |fire, _| timer = Timer::set(fire, milliseconds));
    if timer.is_some() {
        let _ = JsFuture::from(fired).await;
    }
}

/// Stops all timers of ours, before this instance dies. The runtime would let a request whose instance is gone wait for the
/// last of them.
pub(super) fn stop_all() {
    TIMERS.with(|timers| {
        if let Ok(mut timers) = timers.try_borrow_mut() {
            for (_, id) in timers.drain() {
                let _ = clear_timeout(&id);
            }
        }
    });
}

/// A timer that is set. It is stopped when nobody waits for it any more.
struct Timer {
    number: u64,
    fire: Function,
}

impl Timer {
    fn set(fire: Function, milliseconds: i32) -> Option<Self> {
        let id = set_timeout(&fire, milliseconds).ok()?;
        let number = NEXT.get();
        NEXT.set(number + 1);
        TIMERS.with(|timers| timers.borrow_mut().insert(number, id));
        Some(Self { number, fire })
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let id = TIMERS.with(|timers| timers.borrow_mut().remove(&self.number));
        if let Some(id) = id {
            let _ = clear_timeout(&id);
        }
        // The future of a promise is freed when that is settled, and not before.
        let _ = self.fire.call0(&JsValue::UNDEFINED);
    }
}
