//! The active span, for code that was not handed one: how it is reached, and how spans are started below it.
//!
//! On the OpenTelemetry API alone. What is active is what the current [`Context`] says, so it is right wherever a
//! context is attached for each poll: by the helpers of this crate, or by OpenTelemetry's own `FutureExt`.

mod carry;
mod child;
mod run;
mod tracer;

use std::any::type_name;
use std::borrow::Cow;
use std::fmt::{self, Display};
use std::panic::catch_unwind;

use opentelemetry::trace::{
    SpanBuilder, SpanContext, SpanId, SpanRef, Status, TraceContextExt as _, TraceId,
};
use opentelemetry::{Context, Key, KeyValue, Value};

use crate::renames;

pub use carry::{Carried, Carry};
pub use child::ChildSpan;
pub use run::{InSpan, Outcome, in_child, in_child_sync};
#[cfg(feature = "tower")]
pub(crate) use run::{drop_within, poll_once, within};
pub use tracer::RequestTracer;

/// The attribute of a span whose work was dropped before it was done. Its value is `true`.
///
/// As any other, it is missing from a span that has as many attributes as its limits allow.
pub const CANCELLED_ATTRIBUTE: &str = "per_request.cancelled";

/// The span that is active here, as far as the current [`Context`] says. Without one, everything on it does nothing.
///
/// So a library can call it without knowing whether anybody traces. The cost is that of a clone of the context, some ten
/// nanoseconds.
///
/// ```
/// use opentelemetry_per_request::active_span;
///
/// fn load_order(id: i64) {
///     active_span().set_attribute("order.id", id);
/// }
/// load_order(4711); // nobody traces here, and nothing happens
/// ```
pub fn active_span() -> ActiveSpan {
    ActiveSpan { cx: current() }
}

/// The current context. An empty one while the thread is torn down and there is none any more, where asking for it
/// would panic, which in the drop of a thread-local is the end of the process.
pub(crate) fn current() -> Context {
    /// Whether there was a context yet, or still.
    struct Alive(bool);

    impl Drop for Alive {
        // Having one is what makes it die, and before the context, since that was there first.
        fn drop(&mut self) {}
    }

    thread_local! {
        static ALIVE: Alive = Alive(catch_unwind(|| Context::map_current(|_| ())).is_ok());
    }
    match ALIVE.try_with(|alive| alive.0) {
        Ok(true) => Context::current(),
        _ => Context::new(),
    }
}

/// A handle to a span, which does nothing if there was none. Cheap to clone, and usable from any thread.
///
/// It keeps what the span was started with in memory. Once whoever started the span has ended it, everything here does
/// nothing. A span that nobody ends, but that ends when its last owner drops it, as OpenTelemetry's `in_span` leaves
/// it, stays open for as long as a handle to it is kept, or work that was [carried](Carry) out of it.
///
/// ```
/// # use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};
/// use opentelemetry::trace::{Tracer as _, TracerProvider as _};
/// use opentelemetry_per_request::active_span;
///
/// fn deep_down() {
///     let span = active_span();
///     span.set_attribute("cache.hit", true);
///     span.add_event("looked up", []);
/// }
///
/// # let exporter = InMemorySpanExporter::default();
/// # let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
/// provider.tracer("docs").in_span("request", |_cx| deep_down());
/// # let spans = exporter.get_finished_spans()?;
/// assert_eq!(spans[0].attributes[0].key.as_str(), "cache.hit");
/// # Ok::<(), opentelemetry_sdk::error::OTelSdkError>(())
/// ```
#[derive(Clone)]
pub struct ActiveSpan {
    cx: Context,
}

impl ActiveSpan {
    /// The span that `cx` says is active.
    pub(crate) fn of(cx: Context) -> Self {
        Self { cx }
    }

    /// Whether there is a span at all: one of this process, or that of a caller elsewhere.
    ///
    /// One without ids is none: it is what a tracer gives that records nothing, and what would be below it would be a
    /// trace of its own.
    pub fn is_active(&self) -> bool {
        self.span().span_context().is_valid()
    }

    /// Whether what is set here is kept: the span is sampled and has not ended. Takes the span's lock.
    ///
    /// For what is expensive to find out; everything else may be set without asking.
    pub fn is_recording(&self) -> bool {
        self.span().is_recording()
    }

    /// Sets an attribute. If the span has one of this key already, the SDK keeps both, so set each key once.
    pub fn set_attribute(&self, key: impl Into<Key>, value: impl Into<Value>) {
        self.span().set_attribute(KeyValue::new(key, value));
    }

    /// Sets several attributes.
    pub fn set_attributes(&self, attributes: impl IntoIterator<Item = KeyValue>) {
        // One by one: whatever makes them may use the span, which would be locked meanwhile.
        let span = self.span();
        for attribute in attributes {
            span.set_attribute(attribute);
        }
    }

    /// Adds an event, at this moment.
    pub fn add_event(
        &self,
        name: impl Into<Cow<'static, str>>,
        attributes: impl IntoIterator<Item = KeyValue>,
    ) {
        let (name, attributes) = (name.into(), attributes.into_iter().collect());
        self.span().add_event(name, attributes);
    }

    /// Gives the span another name.
    ///
    /// Whoever is told of open spans, a [`SpanObserver`](crate::SpanObserver) or the collector, is told of it at once, if the
    /// span's request is known and it is remembered.
    pub fn update_name(&self, name: impl Into<Cow<'static, str>>) {
        let name = name.into();
        let span = self.span();
        if !renames::has_listeners() {
            return span.update_name(name);
        }
        span.update_name(name.clone());
        renames::tell(span.span_context(), name);
    }

    /// Records an error that was handled: an event `exception` with its type and message. The span itself has not failed.
    ///
    /// The message is the error's own words, so it must not contain secrets.
    pub fn record_error<E: Display + ?Sized>(&self, error: &E) {
        self.add_event(
            "exception",
            [
                KeyValue::new("exception.type", error_type::<E>()),
                KeyValue::new("exception.message", error.to_string()),
            ],
        );
    }

    /// Marks the span as failed with this error: the status is an error with its message, and `error.type` its type.
    ///
    /// The message is the error's own words, so it must not contain secrets. To be called once: of two messages the SDK
    /// keeps the one that sorts last, and both types. A status that was set to ok stays ok. In a handler whose answer
    /// has a status from 500 on, which its layer marks as failed, or which may be cut off, use
    /// [`record_error`](Self::record_error).
    pub fn fail<E: Display + ?Sized>(&self, error: &E) {
        self.fail_with(error_type::<E>(), error.to_string());
    }

    /// The same with a kind of error of which there are few: a name or a code.
    pub(crate) fn fail_with(
        &self,
        error_type: impl Into<Value>,
        description: impl Into<Cow<'static, str>>,
    ) {
        let span = self.span();
        span.set_attribute(KeyValue::new("error.type", error_type));
        span.set_status(Status::error(description));
    }

    /// The id of the trace, for a log line or an answer. `None` without a span.
    pub fn trace_id(&self) -> Option<TraceId> {
        let id = self.span().span_context().trace_id();
        (id != TraceId::INVALID).then_some(id)
    }

    /// The id of the span. `None` without one.
    pub fn span_id(&self) -> Option<SpanId> {
        let id = self.span().span_context().span_id();
        (id != SpanId::INVALID).then_some(id)
    }

    /// All that is known elsewhere of the span: to link it, or to send it along. Invalid without a span.
    pub fn span_context(&self) -> SpanContext {
        self.span().span_context().clone()
    }

    /// Starts a span below this one. It ends when it is dropped.
    ///
    /// It is started by the [`RequestTracer`] of the context, or else by the global tracer provider. Without an active span
    /// none is started, so that work outside of requests does not make traces of its own.
    ///
    /// ```
    /// use opentelemetry_per_request::active_span;
    ///
    /// let query = active_span().start_child("query database");
    /// query.set_attribute("db.system.name", "postgresql");
    /// drop(query);
    /// ```
    pub fn start_child(&self, name: impl Into<Cow<'static, str>>) -> ChildSpan {
        self.start_child_with(SpanBuilder::from_name(name))
    }

    /// As [`start_child`](Self::start_child), with a kind, attributes, links, or a time to start at.
    pub fn start_child_with(&self, builder: SpanBuilder) -> ChildSpan {
        match self.is_active() {
            true => ChildSpan::start(&self.cx, builder),
            false => ChildSpan::none(self.cx.clone()),
        }
    }

    /// The context that the span is active in, with everything else that is in it. For what this crate has no name for.
    pub fn context(&self) -> &Context {
        &self.cx
    }

    fn span(&self) -> SpanRef<'_> {
        self.cx.span()
    }
}

/// What kind of error it is. A box says nothing of what is in it.
pub(crate) fn error_type<E: ?Sized>() -> &'static str {
    match type_name::<E>() {
        name if name.starts_with("alloc::boxed::Box<dyn ") => "_OTHER",
        name => name,
    }
}

impl fmt::Debug for ActiveSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ActiveSpan")
            .field("span_context", self.span().span_context())
            .finish_non_exhaustive()
    }
}
