//! Time, the only place that reads a clock or waits for one.

use std::time::SystemTime;

#[cfg(not(target_family = "wasm"))]
pub(crate) use native::{monotonic, sleep};
#[cfg(target_family = "wasm")]
pub(crate) use workers::{monotonic, sleep, yield_once};

/// The time of day.
pub(crate) fn wall() -> SystemTime {
    opentelemetry::time::now()
}

#[cfg(not(target_family = "wasm"))]
mod native {
    use std::future::Future;
    use std::sync::OnceLock;
    use std::time::{Duration, Instant};

    /// Time that only moves forward, since an arbitrary moment of this process.
    pub(crate) fn monotonic() -> Duration {
        static ORIGIN: OnceLock<Instant> = OnceLock::new();
        ORIGIN.get_or_init(Instant::now).elapsed()
    }

    /// Waits under any executor, and under none. At most a year, since the end of the wait must be a moment that exists.
    pub(crate) fn sleep(duration: Duration) -> impl Future<Output = ()> + Send + Unpin {
        const A_YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
        futures_timer::Delay::new(duration.min(A_YEAR))
    }
}

#[cfg(target_family = "wasm")]
mod workers {
    //! `Instant` does not exist there, and timers are JavaScript's.
    //!
    //! `worker::Delay` is not used: it wakes the first waker it sees and no later one, so an export that is polled once
    //! before it is spawned would wait forever; and it panics where there are no timers.

    use js_sys::futures::JsFuture;
    use js_sys::{Function, Promise};
    use std::future::{Future, poll_fn};
    use std::task::Poll;
    use std::time::{Duration, UNIX_EPOCH};
    use wasm_bindgen::JsValue;
    use wasm_bindgen::prelude::wasm_bindgen;
    use worker::send::SendFuture;

    #[wasm_bindgen]
    extern "C" {
        #[wasm_bindgen(catch, js_name = setTimeout)]
        fn set_timeout(callback: &Function, milliseconds: i32) -> Result<JsValue, JsValue>;

        #[wasm_bindgen(catch, js_name = clearTimeout)]
        fn clear_timeout(timer: &JsValue) -> Result<(), JsValue>;
    }

    /// Stops the timer when nobody waits for it any more.
    struct Timer {
        id: JsValue,
        fire: Function,
    }

    /// The time of day, the only clock there is. In production it stands still between two operations on the network,
    /// and it could be set back, so differences must saturate.
    pub(crate) fn monotonic() -> Duration {
        let since_epoch = super::wall().duration_since(UNIX_EPOCH);
        since_epoch.unwrap_or_default()
    }

    /// Waits. At most 24 days, the most that a timer can do. Outside of a request there are no timers, so there it does
    /// not wait.
    ///
    /// The timer is set by the second poll. An export that a panic hook starts is polled once, and a timer that nobody
    /// can stop any more would make the client of the Worker wait for it, before it learns that the request has failed.
    pub(crate) fn sleep(duration: Duration) -> impl Future<Output = ()> + Send + Unpin {
        let milliseconds = i32::try_from(duration.as_millis()).unwrap_or(i32::MAX);
        Box::pin(SendFuture::new(async move {
            yield_once().await;
            let mut timer = None;
            let fired = Promise::new(&mut |fire, _| {
                let id = set_timeout(&fire, milliseconds).ok();
                timer = id.map(|id| Timer { id, fire });
            });
            if timer.is_some() {
                let _ = JsFuture::from(fired).await;
            }
            drop(timer);
        }))
    }

    /// Is ready in its second poll.
    pub(crate) async fn yield_once() {
        let mut is_first = true;
        poll_fn(|cx| {
            if !std::mem::take(&mut is_first) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    impl Drop for Timer {
        fn drop(&mut self) {
            let _ = clear_timeout(&self.id);
            // The future of a promise is freed when that is settled, and not before.
            let _ = self.fire.call0(&JsValue::UNDEFINED);
        }
    }
}
