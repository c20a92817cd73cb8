//! The one way in for synchronization, so that the rest of the crate does not care where a lock comes from.
//!
//! A panic in somebody's exporter or callback must never turn into a second panic in the host (R14), so a poisoned
//! lock is taken as it is. That is sound here: nothing that can panic runs while one of our locks is held (R3).

#[cfg(not(target_family = "wasm"))]
pub(crate) use std::sync::atomic::AtomicBool;
pub(crate) use std::sync::{Arc, MutexGuard};
#[cfg(any(feature = "metrics", not(target_family = "wasm")))]
pub(crate) use std::sync::{
    Weak,
    atomic::{AtomicU64, Ordering},
};

use std::sync::PoisonError;
#[cfg(target_family = "wasm")]
use std::sync::TryLockError;
#[cfg(not(target_family = "wasm"))]
use std::time::Duration;

/// A mutex that ignores poison.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(std::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(std::sync::Mutex::new(value))
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
pub(crate) struct Condvar(std::sync::Condvar);

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
