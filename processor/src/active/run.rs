//! Work in a span, which ends with it on every path.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt::{self, Display};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};

use opentelemetry::trace::TraceContextExt as _;
use opentelemetry::{Context, ContextGuard};
use pin_project_lite::pin_project;

use super::child::ChildSpan;
use super::{ActiveSpan, active_span};

/// Runs `work` in a span below the active one, and ends it on every path.
///
/// - `work` is done: the span ends. An `Err` is marked as one, by [`ActiveSpan::fail`].
/// - `work` panics: the span ends while the panic unwinds, marked as failed with `error.type` `panic`.
/// - The future is dropped before it is done, by a `select!`, a timeout or a client that left: `work` is dropped, and then
///   the span ends, with the attribute [`per_request.cancelled`](super::CANCELLED_ATTRIBUTE).
///
/// The span is active whenever `work` is polled and when it is dropped, on whichever thread, and nowhere else. It
/// starts when this function is called, not when the future is first polled: so `tokio::spawn(in_child("receipt",
/// work))` belongs to the request that spawns it, also if that is over before the task runs.
///
/// Without an active span, `work` runs without one.
///
/// For a type that is no [`Outcome`] there is [`ChildSpan::run`]: `active_span().start_child(name).run(work)`.
///
/// # Panics
///
/// The future panics as `work` does, and if it is polled inside of a closure that was given to OpenTelemetry's
/// `get_active_span` or `Context::map_current`, where no context can be attached. If it is dropped there, or by a
/// thread that is being torn down, the span ends as ever, but is not active meanwhile.
///
/// ```
/// use opentelemetry_per_request::in_child;
///
/// async fn load(id: u32) -> Result<String, std::num::ParseIntError> {
///     in_child("load order", async move {
///         let row = in_child("query database", async { "4711" }).await;
///         row.parse::<u32>().map(|row| format!("order {id} in row {row}"))
///     }).await
/// }
/// # assert_eq!(futures_executor::block_on(load(1)).unwrap(), "order 1 in row 4711");
/// ```
pub fn in_child<F>(name: impl Into<Cow<'static, str>>, work: F) -> InSpan<F>
where
    F: Future<Output: Outcome>,
{
    InSpan::recording(active_span().start_child(name), work)
}

/// Runs `work` in a span below the active one, as [`in_child`] does with a future.
///
/// # Panics
///
/// As `work` does; the span ends nevertheless. And inside of a closure that was given to OpenTelemetry's
/// `get_active_span` or `Context::map_current`, where no context can be attached.
///
/// ```
/// use opentelemetry_per_request::in_child_sync;
///
/// let parsed = in_child_sync("parse", || "4711".parse::<u32>());
/// assert_eq!(parsed, Ok(4711));
/// ```
pub fn in_child_sync<T: Outcome>(
    name: impl Into<Cow<'static, str>>,
    work: impl FnOnce() -> T,
) -> T {
    let span = active_span().start_child(name);
    let result = within(&span, work);
    result.record(&span);
    result
}

/// What work may return, and what that says to its span: an `Err` is a failure, everything else is just a value.
///
/// For a type of your own an empty implementation will do, or one that knows better:
///
/// ```
/// use opentelemetry_per_request::{ActiveSpan, Outcome, in_child_sync};
///
/// enum Answer { Found(u32), Refused }
///
/// impl Outcome for Answer {
///     fn record(&self, span: &ActiveSpan) {
///         if let Answer::Refused = self {
///             span.fail("refused");
///         }
///     }
/// }
///
/// in_child_sync("ask", || Answer::Refused);
/// # let _ = Answer::Found(1);
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say whether it is an error",
    note = "return a `Result` whose error implements `Display`, or write `impl Outcome for` a type of your own",
    note = "for any other type: `active_span().start_child(name).run(work)`, and `.run_sync(work)`"
)]
pub trait Outcome {
    /// Tells `span` what became of its work. Nothing, unless it is overridden.
    fn record(&self, span: &ActiveSpan) {
        let _ = span;
    }
}

impl<T, E: Display> Outcome for Result<T, E> {
    fn record(&self, span: &ActiveSpan) {
        if let Err(error) = self {
            span.fail(error);
        }
    }
}

/// Types whose values are never errors.
macro_rules! values {
    ($([$($parameters:tt)*] $type:ty;)*) => {
        $(impl<$($parameters)*> Outcome for $type {})*
    };
}

values! {
    [] ();
    [] bool;
    [] char;
    [] i8; [] i16; [] i32; [] i64; [] i128; [] isize;
    [] u8; [] u16; [] u32; [] u64; [] u128; [] usize;
    [] f32; [] f64;
    [] String;
    [] std::time::Duration;
    [] std::convert::Infallible;
    [T: ?Sized] &T;
    [T: ?Sized] Box<T>;
    [T: ?Sized] Rc<T>;
    [T: ?Sized] Arc<T>;
    ['a, T: ToOwned + ?Sized] Cow<'a, T>;
    [T] Option<T>;
    [T] Vec<T>;
    [T, const N: usize] [T; N];
    [K, V, S] HashMap<K, V, S>;
    [T, S] HashSet<T, S>;
    [K, V] BTreeMap<K, V>;
    [T] BTreeSet<T>;
    [T] VecDeque<T>;
    [A] (A,);
    [A, B] (A, B);
    [A, B, C] (A, B, C);
    [A, B, C, D] (A, B, C, D);
}

/// A response is one, whatever its status.
#[cfg(feature = "tower")]
impl<B> Outcome for http::Response<B> {}

pin_project! {
    /// Work that runs in a span: the future of [`in_child`], [`ChildSpan::run`] and
    /// [`RequestTracer::run`](super::RequestTracer::run).
    ///
    /// Polled again after it is done, it stays pending.
    #[must_use = "futures do nothing unless polled"]
    pub struct InSpan<F: Future> {
        // None when it is done. It is dropped before the span ends.
        #[pin]
        work: Option<F>,
        span: ChildSpan,
        outcome: fn(&F::Output, &ActiveSpan),
    }

    impl<F: Future> PinnedDrop for InSpan<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            if this.work.is_some() {
                drop_within(this.span, || this.work.set(None));
                this.span.cancel();
            }
        }
    }
}

impl<F: Future> InSpan<F> {
    pub(super) fn new(span: ChildSpan, work: F) -> Self {
        Self {
            work: Some(work),
            span,
            outcome: |_, _| {},
        }
    }

    /// The same, where the span is told what became of the work.
    pub(super) fn recording(span: ChildSpan, work: F) -> Self
    where
        F::Output: Outcome,
    {
        let mut running = Self::new(span, work);
        running.outcome = |result, span| result.record(span);
        running
    }
}

impl<F: Future> Future for InSpan<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        let result = ready!(within(this.span, || poll_once(this.work.as_mut(), task)));
        // It may run code of the user's, such as the `Display` of an error.
        let panicking = EndOnPanic(this.span);
        (this.outcome)(&result, this.span);
        std::mem::forget(panicking);
        this.span.close();
        // Whatever its context holds is not to stay as long as this.
        *this.span = ChildSpan::none(Context::new());
        Poll::Ready(result)
    }
}

impl<F: Future> fmt::Debug for InSpan<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InSpan")
            .field("span", &self.span)
            .field("done", &self.work.is_none())
            .finish()
    }
}

/// Runs `work` with a span active. If it panics, the span ends here: whoever catches the panic may keep what owns it.
pub(crate) fn within<T>(span: &ChildSpan, work: impl FnOnce() -> T) -> T {
    if !span.is_some() {
        return work();
    }
    let panicking = EndOnPanic(span);
    let attached = span.context().clone().attach();
    let result = work();
    drop(attached);
    std::mem::forget(panicking);
    result
}

/// Polls work, and drops it when it is done: both in one go, so that its context is attached once. After that it stays
/// pending.
pub(crate) fn poll_once<F: Future>(
    mut work: Pin<&mut Option<F>>,
    task: &mut TaskContext<'_>,
) -> Poll<F::Output> {
    let Some(running) = work.as_mut().as_pin_mut() else {
        return Poll::Pending;
    };
    let result = running.poll(task);
    if result.is_ready() {
        work.set(None);
    }
    result
}

/// Drops something of a span's with it active. If that panics, the span ends here.
pub(crate) fn drop_within(span: &ChildSpan, dropping: impl FnOnce()) {
    let panicking = EndOnPanic(span);
    let attached = attach_in_drop(span.context());
    dropping();
    drop(attached);
    std::mem::forget(panicking);
}

/// Attaches a context in a destructor, where a panic can end the process: not at all if it cannot be done, because the
/// current one is borrowed, or because the thread is being torn down.
pub(super) fn attach_in_drop(cx: &Context) -> Option<ContextGuard> {
    catch_unwind(AssertUnwindSafe(|| cx.clone().attach())).ok()
}

struct EndOnPanic<'a>(&'a ChildSpan);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        if self.0.is_some() {
            self.0.panicked();
            self.0.context().span().end();
        }
    }
}
