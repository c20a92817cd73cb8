//! What stands in for the standard library in the race models: locks and threads of a checker of interleavings, and a clock
//! that only a model moves.
//!
//! A wait with a timeout ends by a notification, or because a model lets enough time [pass]. While no time passes, no
//! timeout can save a lost wake-up: it becomes a deadlock, which both checkers report.
//!
//! `Arc` and `Weak` are those of the standard library, so the checkers do not see reference counts change. Nothing here is
//! ordered by those.
//!
//! [pass]: clock::pass

/// As `std::sync`.
pub(crate) mod sync {
    use std::sync::{LockResult, PoisonError};
    use std::time::Duration;

    #[cfg(races = "loom")]
    use loom::sync as checker;
    #[cfg(races = "shuttle")]
    use shuttle::sync as checker;

    pub(crate) use checker::{Mutex, MutexGuard, atomic};
    pub(crate) use std::sync::{Arc, Weak};

    // loom has no receiver that waits for a limited time. Its models make no blocking call that would need one.
    #[cfg(races = "shuttle")]
    pub(crate) use shuttle::sync::mpsc;
    #[cfg(races = "loom")]
    pub(crate) use std::sync::mpsc;

    use super::clock::{self, Instant};

    /// As `std::sync::Condvar`, on the models' clock.
    #[derive(Debug, Default)]
    pub(crate) struct Condvar(Arc<checker::Condvar>);

    type Waited<'a, T> = LockResult<MutexGuard<'a, T>>;
    type WaitedFor<'a, T> = LockResult<(MutexGuard<'a, T>, ())>;

    impl Condvar {
        pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> Waited<'a, T> {
            self.0.wait(guard)
        }

        pub(crate) fn wait_timeout<'a, T>(
            &self,
            guard: MutexGuard<'a, T>,
            timeout: Duration,
        ) -> WaitedFor<'a, T> {
            let Some(deadline) = Instant::now().checked_add(timeout) else {
                return with_unit(self.wait(guard));
            };
            let condvar = self.0.clone();
            let alarm = clock::set_alarm(deadline, move || condvar.notify_all());
            let waited = self.wait(guard);
            drop(alarm);
            with_unit(waited)
        }

        pub(crate) fn notify_one(&self) {
            self.0.notify_one();
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }
    }

    fn with_unit<T>(waited: Waited<'_, T>) -> WaitedFor<'_, T> {
        waited
            .map(|guard| (guard, ()))
            .map_err(|poisoned| PoisonError::new((poisoned.into_inner(), ())))
    }
}

/// As `std::thread`.
pub(crate) mod thread {
    #[cfg(races = "loom")]
    use loom::thread as checker;
    #[cfg(races = "shuttle")]
    use shuttle::thread as checker;

    use std::time::Duration;

    use opentelemetry::Context;

    pub(crate) use checker::{JoinHandle, yield_now};

    /// As `std::thread::Builder`.
    pub(crate) struct Builder(checker::Builder);

    impl Builder {
        pub(crate) fn new() -> Self {
            Self(checker::Builder::new())
        }

        pub(crate) fn name(self, name: String) -> Self {
            Self(self.0.name(name))
        }

        /// The current context belongs to the thread of the operating system, which all threads of a model share. So each
        /// starts by covering what another one has attached, or it would take it for its own.
        pub(crate) fn spawn<T: Send + 'static>(
            self,
            run: impl FnOnce() -> T + Send + 'static,
        ) -> std::io::Result<JoinHandle<T>> {
            self.0.spawn(move || {
                let _covered = Context::new().attach();
                run()
            })
        }
    }

    /// Lets others go first. No time passes.
    pub(crate) fn sleep(_: Duration) {
        yield_now();
    }
}

/// As that of `std`, with one constant value, for which loom's own has no word.
#[cfg(races = "loom")]
macro_rules! constant_thread_local {
    (static $name:ident: $type:ty = const { $value:expr };) => {
        loom::thread_local! { static $name: $type = $value; }
    };
}
#[cfg(races = "loom")]
pub(crate) use constant_thread_local as thread_local;
#[cfg(races = "shuttle")]
pub(crate) use shuttle::thread_local;

/// The models' time. Each model has its own, because each runs on one thread of the operating system.
pub(crate) mod clock {
    use std::cell::{Cell, RefCell};
    use std::ops::{Add, AddAssign};
    use std::rc::Rc;
    use std::time::Duration;

    use super::thread;

    std::thread_local! {
        static NOW: Cell<Duration> = const { Cell::new(Duration::ZERO) };
        static ALARMS: RefCell<Vec<Rc<Ring>>> = const { RefCell::new(Vec::new()) };
    }

    struct Ring {
        deadline: Instant,
        ring: Box<dyn Fn()>,
    }

    /// Rings when its deadline has passed, until it is dropped.
    pub(super) struct Alarm(Rc<Ring>);

    pub(super) fn set_alarm(deadline: Instant, ring: impl Fn() + 'static) -> Alarm {
        let ring = Rc::new(Ring {
            deadline,
            ring: Box::new(ring),
        });
        ALARMS.with_borrow_mut(|alarms| alarms.push(ring.clone()));
        Alarm(ring)
    }

    impl Drop for Alarm {
        fn drop(&mut self) {
            ALARMS.with_borrow_mut(|alarms| alarms.retain(|ring| !Rc::ptr_eq(ring, &self.0)));
        }
    }

    /// A model begins: so does its time.
    pub(crate) fn reset() {
        NOW.set(Duration::ZERO);
        ALARMS.take();
    }

    /// Lets time pass. Returns when everybody has noticed who waited for a moment that is over.
    pub(crate) fn pass(time: Duration) {
        NOW.set(NOW.get() + time);
        while let Some(due) = next_due() {
            (due.ring)();
            thread::yield_now();
        }
    }

    fn next_due() -> Option<Rc<Ring>> {
        let now = Instant::now();
        ALARMS.with_borrow(|alarms| alarms.iter().find(|ring| ring.deadline <= now).cloned())
    }

    /// As `std::time::Instant`, by the time of the model.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    pub(crate) struct Instant(Duration);

    impl Instant {
        pub(crate) fn now() -> Self {
            Self(NOW.get())
        }

        pub(crate) fn elapsed(&self) -> Duration {
            Self::now().saturating_duration_since(*self)
        }

        pub(crate) fn checked_add(&self, duration: Duration) -> Option<Self> {
            self.0.checked_add(duration).map(Self)
        }

        pub(crate) fn checked_duration_since(&self, earlier: Self) -> Option<Duration> {
            self.0.checked_sub(earlier.0)
        }

        pub(crate) fn saturating_duration_since(&self, earlier: Self) -> Duration {
            self.0.saturating_sub(earlier.0)
        }
    }

    impl Add<Duration> for Instant {
        type Output = Self;

        fn add(self, duration: Duration) -> Self {
            Self(self.0 + duration)
        }
    }

    impl AddAssign<Duration> for Instant {
        fn add_assign(&mut self, duration: Duration) {
            *self = *self + duration;
        }
    }
}
