//! Moments in time. `std`'s `Instant` cannot tell the time in a Worker: it panics.

#[cfg(races)]
pub(crate) use crate::sync::races::clock::Instant;
#[cfg(not(any(races, target_family = "wasm")))]
pub(crate) use std::time::Instant;

#[cfg(target_family = "wasm")]
pub(crate) use wasm::Instant;

#[cfg(target_family = "wasm")]
mod wasm {
    use std::time::{Duration, SystemTime};

    /// As `std::time::Instant`, by the clock of the Worker, which stands still between two I/O operations.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    pub(crate) struct Instant(Duration);

    impl Instant {
        pub(crate) fn now() -> Self {
            let since_epoch = opentelemetry::time::now().duration_since(SystemTime::UNIX_EPOCH);
            Self(since_epoch.unwrap_or_default())
        }

        pub(crate) fn checked_add(self, duration: Duration) -> Option<Self> {
            self.0.checked_add(duration).map(Self)
        }

        pub(crate) fn checked_duration_since(self, earlier: Self) -> Option<Duration> {
            self.0.checked_sub(earlier.0)
        }
    }
}
