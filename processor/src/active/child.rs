//! A span that somebody has to end.

use std::future::Future;
use std::ops::Deref;

use opentelemetry::Context;
use opentelemetry::trace::{SpanBuilder, TraceContextExt as _};

use super::run::{self, InSpan};
use super::tracer::RequestTracer;
use super::{ActiveSpan, CANCELLED_ATTRIBUTE};

/// A span that was started here, and ends when this is dropped. It is not active by itself: [`run`](Self::run) and
/// [`run_sync`](Self::run_sync) make it so, for the work in it.
///
/// Everything that an [`ActiveSpan`] can do, this can do too. If a panic that began after the start drops it, the span
/// says so.
///
/// ```
/// use opentelemetry_per_request::active_span;
///
/// # futures_executor::block_on(async {
/// let call = active_span().start_child("call");
/// call.set_attribute("attempt", 1);
/// let answer = call.run(async { 42 }).await;
/// # assert_eq!(answer, 42);
/// # });
/// ```
#[derive(Debug)]
#[must_use = "a span ends when this is dropped"]
pub struct ChildSpan {
    span: ActiveSpan,
    /// Whether it is this one's to end.
    open: bool,
    /// Whether it was started by a destructor while a panic unwinds, which then says nothing of its work.
    unwinding: bool,
}

impl ChildSpan {
    pub(super) fn start(parent: &Context, builder: SpanBuilder) -> Self {
        let span = RequestTracer::global().build(builder, parent);
        Self::open(parent.with_span(span))
    }

    /// The span that is active in `cx`.
    pub(super) fn open(cx: Context) -> Self {
        Self {
            span: ActiveSpan::of(cx),
            open: true,
            unwinding: std::thread::panicking(),
        }
    }

    /// No span: nobody traces in `cx`.
    pub(super) fn none(cx: Context) -> Self {
        Self {
            span: ActiveSpan::of(cx),
            open: false,
            unwinding: false,
        }
    }

    /// No span, also in what runs in it, whatever that is polled in.
    #[cfg(feature = "tower")]
    pub(crate) fn outside() -> Self {
        Self::open(Context::new())
    }

    /// Runs `work` with this span active whenever it is polled, and then ends it.
    ///
    /// The span ends on every path: when `work` is done, when it panics, and when the future is dropped before, which
    /// the span says by [`per_request.cancelled`](CANCELLED_ATTRIBUTE). `work` is then dropped with the span active.
    /// Whether a value is an error is yours to say, with [`ActiveSpan::fail`]; [`in_child`](super::in_child) does it
    /// for a `Result`.
    ///
    /// The span starts before this is called, so it also lasts while the future waits for its first poll.
    pub fn run<F: Future>(self, work: F) -> InSpan<F> {
        InSpan::new(self, work)
    }

    /// Runs `work` with this span active, and then ends it, also when `work` panics.
    pub fn run_sync<T>(self, work: impl FnOnce() -> T) -> T {
        run::within(&self, work)
    }

    /// Ends the span now, which is what dropping it does.
    pub fn end(self) {}

    /// Whether a span was started, and so is to be active where work of it runs.
    pub(super) fn is_some(&self) -> bool {
        self.open
    }

    /// Ends the span, whose work was dropped before it was done.
    pub(crate) fn cancel(&mut self) {
        self.set_attribute(CANCELLED_ATTRIBUTE, true);
        self.close();
    }

    pub(crate) fn panicked(&self) {
        if self.open {
            self.fail_with("panic", "panicked");
        }
    }

    /// Once, whatever comes after it.
    pub(crate) fn close(&mut self) {
        if std::mem::take(&mut self.open) {
            self.context().span().end();
        }
    }
}

impl Deref for ChildSpan {
    type Target = ActiveSpan;

    fn deref(&self) -> &ActiveSpan {
        &self.span
    }
}

impl Drop for ChildSpan {
    fn drop(&mut self) {
        if self.open && !self.unwinding && std::thread::panicking() {
            self.panicked();
        }
        self.close();
    }
}
