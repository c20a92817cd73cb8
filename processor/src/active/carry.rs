//! A request that goes along with work that outlives the call.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};

use futures_core::Stream;
use opentelemetry::Context;
use pin_project_lite::pin_project;

use super::current;
use super::run::attach_in_drop;
use super::tracer::RequestTracer;
use crate::handle::{Handle, Hold};

/// Takes the current request along to work that runs elsewhere or later: in a task, on another thread, in a stream, or
/// behind the response.
///
/// The mistake that it prevents: a context is current on one thread, for as long as a future is polled under it. A task
/// that is spawned, a closure for another thread and a stream that somebody else polls run without it. Their spans are
/// then roots of traces of their own, under no request's credentials. And what does take the context along, such as
/// OpenTelemetry's `with_current_context`, still starts its spans after the request is over, when nothing proves any
/// more whose they are: they are late, and leave under the fallback context.
///
/// What is carried runs under the context that was current when `carried` was called, and keeps its request open until
/// it is done or dropped, if the context has a [`RequestTracer`] with a handle: the layers of this crate, and
/// `Telemetry` in Workers, see to that. Without one, give the work a span of its own: `tokio::spawn(in_child("receipt",
/// work))` keeps the request open too, by its span.
///
/// # Panics
///
/// What is carried panics as the work does, and if it runs inside of a closure that was given to OpenTelemetry's
/// `get_active_span` or `Context::map_current`, where no context can be attached. If it is dropped there, or by a
/// thread that is being torn down, it is dropped without its context.
///
/// ```
/// use opentelemetry_per_request::{Carry as _, active_span};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tokio::task::JoinError> {
/// // In a task of its own, or on another thread: the spans are this request's nevertheless.
/// let task = tokio::spawn(async { active_span().set_attribute("receipt", "sent") }.carried());
/// let thread = tokio::task::spawn_blocking((|| active_span().add_event("hashed", [])).carried_fn());
/// task.await?;
/// thread.await
/// # }
/// ```
pub trait Carry: Sized {
    /// This future or stream with the request that is current now.
    ///
    /// It runs and is dropped under that request's context, and keeps it open until it is done or dropped.
    fn carried(self) -> Carried<Self> {
        Carried::by(self, None)
    }

    /// This closure with the request that is current now, for another thread: `spawn_blocking`, `std::thread::spawn`.
    ///
    /// It runs, or is dropped without, under that request's context, and keeps it open until then.
    fn carried_fn<T>(self) -> impl FnOnce() -> T
    where
        Self: FnOnce() -> T,
    {
        let mut carried = self.carried();
        move || {
            let attached = carried.cx.clone().attach();
            let result = match carried.work.take() {
                Some(work) => work(),
                None => unreachable!("this closure is called once"),
            };
            drop(attached);
            drop(carried);
            result
        }
    }
}

impl<T> Carry for T {}

pin_project! {
    /// Work that goes along with its request: a future or a stream, by [`Carry::carried`].
    #[must_use = "futures and streams do nothing unless polled"]
    pub struct Carried<T> {
        // None when it is done.
        #[pin]
        work: Option<T>,
        cx: Context,
        // Behind the work: what that does when it is dropped is still part of the request.
        hold: Option<Hold>,
    }

    impl<T> PinnedDrop for Carried<T> {
        fn drop(this: Pin<&mut Self>) {
            this.finish();
        }
    }
}

impl<T> Carried<T> {
    /// What keeps the request open is that of its context, or else this.
    pub(crate) fn by(work: T, handle: Option<&Handle>) -> Self {
        let cx = current();
        let hold = RequestTracer::hold(&cx).or_else(|| Some(handle?.hold(&cx)));
        Self {
            work: Some(work),
            cx,
            hold,
        }
    }

    /// Lets go of the work, and then of its request.
    fn finish(self: Pin<&mut Self>) {
        let mut this = self.project();
        if this.work.is_some() {
            let attached = attach_in_drop(this.cx);
            this.work.set(None);
            drop(attached);
        }
        drop(this.hold.take());
        // Whatever it holds is not to stay as long as this.
        *this.cx = Context::new();
    }
}

/// Polled again after it is done, it stays pending.
impl<F: Future> Future for Carried<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<F::Output> {
        let this = self.as_mut().project();
        let Some(work) = this.work.as_pin_mut() else {
            return Poll::Pending;
        };
        let attached = this.cx.clone().attach();
        let result = work.poll(task);
        drop(attached);
        if result.is_ready() {
            self.finish();
        }
        result
    }
}

/// After its end, there are no more items.
impl<S: Stream> Stream for Carried<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<Option<S::Item>> {
        let this = self.as_mut().project();
        let Some(work) = this.work.as_pin_mut() else {
            return Poll::Ready(None);
        };
        let attached = this.cx.clone().attach();
        let item = work.poll_next(task);
        drop(attached);
        if let Poll::Ready(None) = item {
            self.finish();
        }
        item
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.work.as_ref().map_or((0, Some(0)), S::size_hint)
    }
}

impl<T> fmt::Debug for Carried<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Carried")
            .field("done", &self.work.is_none())
            .field("hold", &self.hold)
            .finish_non_exhaustive()
    }
}
