//! What can be seen of a span while it is open: an event when it opens, when it is renamed, and when it closes.
//!
//! A [`SpanObserver`] gets them in this process, all of them and at once. What leaves for the collector is a setting:
//! [`OpenEvents`](crate::OpenEvents).

use std::borrow::Cow;
use std::fmt;
use std::time::SystemTime;

use opentelemetry::KeyValue;
use opentelemetry::trace::{Event, Link, SpanId, SpanKind, Status, TraceId};
use opentelemetry_sdk::trace::SpanData;

/// Of how many attributes an open span is remembered with, at most, and is told of when it opens.
pub const MAX_OPEN_ATTRIBUTES: usize = 32;

/// Sees every sampled span open, be renamed, and close. Given to
/// [`Builder::with_span_observer`](crate::Builder::with_span_observer).
///
/// # What it can rely on
///
/// - Of each span it sees one [`Open`](Stage::Open), before anything else of that span, and one [`Close`](Stage::Close), after
///   everything else of it. A span that is not sampled has no event.
/// - The events of one trace come one at a time, and those of one request in the order of their
///   [`sequence`](InRequest::sequence), without a gap. Events of different traces come at the same time, from different
///   threads.
/// - None of the processor's locks is held. It may start and end spans: what comes of that is told after it has returned, never
///   inside of it.
/// - A panic in it is caught and warned about, and the next event comes nevertheless.
///
/// A span that never ends closes with [`Close::unfinished`] when the processor is shut down, if its request is still known and
/// it is remembered: as many as [`max_pending_spans`](crate::Config::with_max_pending_spans) allows are. If its request was
/// evicted, or was never known, it closes when it ends, with no [`LifecycleEvent::request`]; and if that is after the shutdown,
/// not at all. When all signals are shut down, the observer is dropped.
///
/// # What it should not do
///
/// It is called on threads where spans start, end or are renamed, or where the processor is shut down, so what it takes is their
/// time: hand the event to somebody else if there is much to do. It need not be the thread of this very event, because one that
/// is telling already also tells what comes from others, so what is current there has nothing to do with it. While a span ends, OpenTelemetry holds the
/// lock of that very span, so an observer that sets something on a span, or ends one, may wait for ever. Logging is fine.
///
/// One that starts a span for each event that it sees has no end. While it blocks in one trace, what happens in that trace waits
/// for it in memory, and so may what the same thread had to tell of others. In Cloudflare Workers a panic in it takes the
/// instance down, as any other does.
///
/// ```
/// # use opentelemetry_sdk::trace::InMemorySpanExporter;
/// use std::sync::mpsc;
///
/// use opentelemetry::trace::{Tracer as _, TracerProvider as _};
/// use opentelemetry_per_request::PerRequestSpanProcessor;
/// use opentelemetry_per_request::observer::{LifecycleEvent, Stage};
/// use opentelemetry_sdk::trace::SdkTracerProvider;
///
/// let (seen, events) = mpsc::channel();
/// let processor = PerRequestSpanProcessor::builder(InMemorySpanExporter::default())
///     .with_span_observer(move |event: &LifecycleEvent| {
///         let _ = seen.send(event.clone());
///     })
///     .build()?;
/// let provider = SdkTracerProvider::builder().with_span_processor(processor).build();
///
/// provider.tracer("docs").in_span("work", |_cx| {
///     let Ok(Stage::Open(open)) = events.recv().map(|event| event.stage) else {
///         panic!("it has opened, and nothing else happened");
///     };
///     assert_eq!(open.name, "work");
/// });
/// assert!(matches!(events.recv().map(|event| event.stage), Ok(Stage::Close(_))));
/// # Ok::<(), opentelemetry_per_request::ConfigError>(())
/// ```
pub trait SpanObserver: Send + Sync + 'static {
    /// Something has happened to a span.
    fn on_event(&self, event: &LifecycleEvent);
}

impl<F: Fn(&LifecycleEvent) + Send + Sync + 'static> SpanObserver for F {
    fn on_event(&self, event: &LifecycleEvent) {
        self(event);
    }
}

/// Something that has happened to a span.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LifecycleEvent {
    /// Its trace.
    pub trace_id: TraceId,
    /// The span.
    pub span_id: SpanId,
    /// The request that it is of. `None` if that is not known, or no longer: such a span is late.
    pub request: Option<InRequest>,
    /// What has happened.
    pub stage: Stage,
}

/// Where an event is in its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InRequest {
    /// The first span of the request, which with the trace id is its name.
    pub local_root: SpanId,
    /// How many events of this request came before.
    pub sequence: u64,
}

/// What has happened to a span.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Stage {
    /// It has started.
    Open(Open),
    /// It has another name, by [`ActiveSpan::update_name`](crate::ActiveSpan::update_name). A rename by any other way, or of a span
    /// that is late or not remembered, is in [`Close::name`].
    Rename(Rename),
    /// It has ended, or never will.
    Close(Close),
}

/// What is known of a span when it starts.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Open {
    /// The span that it is below, or an invalid id.
    pub parent_span_id: SpanId,
    /// Whether that is a span of another process.
    pub parent_span_is_remote: bool,
    /// Its name.
    pub name: Cow<'static, str>,
    /// Its kind.
    pub kind: SpanKind,
    /// When it started.
    pub start_time: SystemTime,
    /// The first [`MAX_OPEN_ATTRIBUTES`] of its attributes.
    pub attributes: Vec<KeyValue>,
    /// How many more it has.
    pub dropped_attributes_count: u32,
    /// The spans that it is linked to.
    pub links: Vec<Link>,
}

/// The new name of a span.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rename {
    /// The name.
    pub name: Cow<'static, str>,
}

/// What is known of a span when it has ended, beyond what was told before.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Close {
    /// When it ended; of one that is unfinished, when that was found.
    pub end_time: SystemTime,
    /// What became of it; unset of one that is unfinished.
    pub status: Status,
    /// Its name, if that is not the one that was told last, or where nothing was remembered of it.
    pub name: Option<Cow<'static, str>>,
    /// The attributes that were not told when it opened: those that were set since, and those beyond
    /// [`MAX_OPEN_ATTRIBUTES`]. All, where nothing was remembered of it.
    pub attributes: Vec<KeyValue>,
    /// The events that were added since it opened.
    pub events: Vec<Event>,
    /// The links that were added since it opened.
    pub links: Vec<Link>,
    /// Why it will not end, or not that anybody could see.
    pub unfinished: Option<Unfinished>,
}

/// Why a span was closed that had not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unfinished {
    /// The processor was shut down (`shutdown`).
    Shutdown,
    /// In Cloudflare Workers, its instance died of a panic (`panic`). The collector is told, by the panic rescue; an observer is
    /// told nothing while an instance dies.
    Panic,
}

impl Unfinished {
    /// The word for this reason in the attribute `per_request.unfinished`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Shutdown => "shutdown",
            Self::Panic => "panic",
        }
    }
}

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Close {
    /// Of a span that has not ended.
    pub(crate) fn of_unfinished(why: Unfinished, now: SystemTime) -> Self {
        Self {
            end_time: now,
            status: Status::Unset,
            name: None,
            attributes: Vec::new(),
            events: Vec::new(),
            links: Vec::new(),
            unfinished: Some(why),
        }
    }
}

impl LifecycleEvent {
    pub(crate) fn of(span: &SpanData, request: Option<InRequest>, stage: Stage) -> Self {
        Self {
            trace_id: span.span_context.trace_id(),
            span_id: span.span_context.span_id(),
            request,
            stage,
        }
    }
}
