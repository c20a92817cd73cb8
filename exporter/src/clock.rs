//! Time, the only place that reads a clock or waits for one.

use std::future::Future;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

/// Time that only moves forward, since an arbitrary moment of this process.
pub(crate) fn monotonic() -> Duration {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    ORIGIN.get_or_init(Instant::now).elapsed()
}

/// The time of day.
pub(crate) fn wall() -> SystemTime {
    opentelemetry::time::now()
}

/// Waits under any executor, and under none. At most a year, since the end of the wait must be a moment that exists.
pub(crate) fn sleep(duration: Duration) -> impl Future<Output = ()> + Send + Unpin {
    const A_YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
    futures_timer::Delay::new(duration.min(A_YEAR))
}
