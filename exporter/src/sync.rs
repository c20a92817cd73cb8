//! The one way in for locks that exports share: those of the standard library, or in the race models those of a checker of
//! interleavings.

#[cfg(races = "loom")]
pub(crate) use loom::sync::{Mutex, MutexGuard, RwLock};
#[cfg(not(races = "loom"))]
pub(crate) use std::sync::{Mutex, MutexGuard, RwLock};
