//! The one way in for synchronization and threads, so that the rest of the crate does not care where they come from: from the
//! standard library, or in the race models from a checker of interleavings (`sync_races.rs`).
//!
//! A panic in somebody's exporter or callback must never turn into a second panic in the host (R14), so a poisoned
//! lock is taken as it is. That is sound here: nothing that can panic runs while one of our locks is held (R3).

// Each checker uses a part of it.
#[cfg(races)]
#[allow(dead_code)]
#[path = "sync_races.rs"]
pub(crate) mod races;

#[cfg(races)]
use races as platform;
#[cfg(not(races))]
use std as platform;

#[cfg(any(feature = "metrics", not(target_family = "wasm")))]
pub(crate) use platform::sync::atomic::{AtomicU64, Ordering};
pub(crate) use platform::sync::{Arc, MutexGuard, Weak};
#[cfg(not(target_family = "wasm"))]
pub(crate) use platform::{
    sync::{atomic::AtomicBool, mpsc},
    thread, thread_local,
};

use std::sync::PoisonError;
#[cfg(target_family = "wasm")]
use std::sync::TryLockError;
#[cfg(not(target_family = "wasm"))]
use std::time::Duration;

/// A mutex that ignores poison.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(platform::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(platform::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a panic hook, which may run anywhere.
    #[cfg(target_family = "wasm")]
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// A condition variable that ignores poison.
#[cfg(not(target_family = "wasm"))]
#[derive(Debug, Default)]
pub(crate) struct Condvar(platform::sync::Condvar);

#[cfg(not(target_family = "wasm"))]
impl Condvar {
    pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.0.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wait_timeout<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        timeout: Duration,
    ) -> MutexGuard<'a, T> {
        self.0
            .wait_timeout(guard, timeout)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    pub(crate) fn notify_one(&self) {
        self.0.notify_one();
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
}
