//! The root span of an event, while it is handled.

use std::borrow::Cow;
use std::fmt::Display;
use std::future::Future;

use lru::LruCache;
use opentelemetry::trace::{
    FutureExt as _, Link, SpanBuilder, SpanId, SpanKind, SpanRef, Status, TraceContextExt as _,
};
use opentelemetry::{Context, KeyValue};

use super::telemetry::Running;
use crate::request::RequestId;
use crate::sync::{Arc, Mutex};

/// How many root spans are remembered for a panic hook. The runtime never says that it cancelled a request, so the oldest are
/// forgotten.
const REMEMBERED_ROOTS: usize = 1024;

/// How many of them a panic hook ends, the latest first: each is a request of the one that panicked.
pub(super) const REPORTED_ROOTS: usize = 32;

/// What a root span is to be.
pub(super) struct Opening {
    pub(super) name: Cow<'static, str>,
    pub(super) kind: SpanKind,
    pub(super) attributes: Vec<KeyValue>,
    pub(super) links: Vec<Link>,
}

/// A root span that has not ended. It ends with this at the latest.
pub(super) struct Root<'a> {
    running: &'a Running,
    cx: Context,
    id: RequestId,
}

/// Names the root span of whatever runs under a context.
#[derive(Clone, Copy)]
pub(super) struct RootOf(SpanId);

/// The roots that are open, for a panic hook.
#[derive(Clone, Debug)]
pub(super) struct OpenRoots(Arc<Mutex<LruCache<SpanId, Context>>>);

impl<'a> Root<'a> {
    /// Starts a root span. What it starts under is the context that all spans of its request are exported under.
    pub(super) fn start(running: &'a Running, parent: &Context, opening: Opening) -> Self {
        let builder = SpanBuilder::from_name(opening.name)
            .with_kind(opening.kind)
            .with_attributes(opening.attributes)
            .with_links(opening.links);
        let cx = running.tracer().start_in(builder, parent);
        let started = cx.span().span_context().clone();
        let (trace, root) = (started.trace_id(), started.span_id());
        let cx = cx.with_value(RootOf(root));
        if let Some(open) = running.open_roots() {
            open.add(root, cx.clone());
        }
        Self {
            running,
            cx,
            id: RequestId { trace, root },
        }
    }

    /// Runs `work` under the context of this span, whenever it is polled.
    pub(super) fn run<T>(&self, work: impl Future<Output = T>) -> impl Future<Output = T> {
        work.with_context(self.cx.clone())
    }

    pub(super) fn set_attribute(&self, attribute: KeyValue) {
        self.cx.span().set_attribute(attribute);
    }

    pub(super) fn fail(&self, kind: impl Into<Cow<'static, str>>, description: String) {
        let span = self.cx.span();
        span.set_attribute(KeyValue::new("error.type", kind.into()));
        span.set_status(Status::error(description));
    }

    /// Records an error that the handler returned.
    pub(super) fn fail_with(&self, error: &impl Display) {
        let message = error.to_string();
        self.cx.span().add_event(
            "exception",
            vec![KeyValue::new("exception.message", message.clone())],
        );
        self.fail("_OTHER", message);
    }

    /// Ends the span, and makes everything of this request leave, whatever else of it is under way.
    pub(super) fn end(self) {
        let (handle, id) = (self.running.handle(), self.id);
        drop(self);
        handle.send(id);
    }

    /// As [`Self::end`], and waits until all of it is done.
    pub(super) async fn end_and_flush(self) {
        let (handle, id) = (self.running.handle(), self.id);
        drop(self);
        // What it could say is on the console.
        let _ = handle.flush_request(id).await;
    }
}

impl Drop for Root<'_> {
    fn drop(&mut self) {
        if let Some(open) = self.running.open_roots() {
            open.remove(self.id.root);
        }
        self.cx.span().end();
    }
}

// ===== impl OpenRoots =====

impl OpenRoots {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(LruCache::unbounded())))
    }

    fn add(&self, root: SpanId, cx: Context) {
        let mut open = self.0.lock();
        open.put(root, cx);
        let forgotten = match open.len() > REMEMBERED_ROOTS {
            true => open.pop_lru(),
            false => None,
        };
        drop(open);
        // Not under the lock: it may end a span.
        drop(forgotten);
    }

    fn remove(&self, root: SpanId) {
        let removed = self.0.lock().pop(&root);
        drop(removed);
    }

    /// Ends those that are open, with an error: this instance is about to die of a panic.
    ///
    /// What the panic says goes to the request that panicked only. It may be nobody else's business. Of the others, those that
    /// are not live any more were cancelled long ago.
    pub(super) fn end_all(&self, panic: &str, is_live: impl Fn(RequestId) -> bool) {
        let Some(mut open) = self.0.try_lock() else {
            return;
        };
        let mut open = std::mem::replace(&mut *open, LruCache::unbounded());
        let current = Context::map_current(|cx| cx.get::<RootOf>().copied());
        if let Some(cx) = current.and_then(|RootOf(root)| open.pop(&root)) {
            let span = cx.span();
            let exception = vec![
                KeyValue::new("exception.type", "panic"),
                KeyValue::new("exception.message", panic.to_owned()),
            ];
            span.add_event("exception", exception);
            end_with(&span, panic.to_owned());
            std::mem::forget(cx);
        }
        let live = |(root, cx): &(&SpanId, &Context)| {
            let trace = cx.span().span_context().trace_id();
            is_live(RequestId {
                trace,
                root: **root,
            })
        };
        for (_, cx) in open.iter().filter(live).take(REPORTED_ROOTS) {
            end_with(
                &cx.span(),
                "the instance died of a panic while this was open".to_owned(),
            );
        }
        // Whatever its contexts would do when they are dropped, this instance is past it.
        std::mem::forget(open);
    }
}

fn end_with(span: &SpanRef<'_>, description: String) {
    span.set_attribute(KeyValue::new("error.type", "panic"));
    span.set_status(Status::error(description));
    span.end();
}
