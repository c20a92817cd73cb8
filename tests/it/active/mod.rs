//! The active span: code that was not handed one reaches it, starts spans below it, and takes its request along.
//!
//! - `nesting`: whose child a span is, over awaits, on whichever thread. `crowd` and `trees` ask the same of many at random.
//! - `cancelling`, `panicking`, `outcomes`: the three ways in which work ends.
//! - `carrying`, `holding`: requests that stay open for work that outlives the call.
//! - `odd_places`: inside borrows, drops, processors and exporters. `tracers`: who starts the spans, and when nobody does.
//! - `types`: what the compiler can check.
//!
//! What needs the global tracer provider has a process of its own: `tests/global`.

mod cancelling;
mod carrying;
mod crowd;
mod holding;
mod nesting;
mod odd_places;
mod outcomes;
mod panicking;
mod tracers;
mod trees;
mod types;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll, Waker};

use opentelemetry::Value;
use opentelemetry::trace::{SpanBuilder, SpanId, Status};
use opentelemetry_per_request::{Config, Handle, InSpan, RequestTracer, in_child_sync};
use opentelemetry_sdk::trace::SpanData;

use crate::support::{FALLBACK, Tenant, World, balanced, held_back, tenant};

/// A service whose requests carry what starts their spans, and the handle that keeps them open.
struct Service {
    world: World,
    tracer: RequestTracer,
}

impl Service {
    fn new() -> Self {
        Self::of(World::new(Config::default()))
    }

    /// All spans of a request leave together, in the order in which they ended.
    fn in_order() -> Self {
        Self::of(World::new(held_back()))
    }

    fn of(world: World) -> Self {
        let tracer = RequestTracer::new(world.tracer.clone());
        Self {
            tracer: tracer.with_handle(world.telemetry.clone()),
            world,
        }
    }

    fn handle(&self) -> Handle {
        self.world.telemetry.clone()
    }

    /// A request of this tenant: a span around this work.
    fn request<F: Future>(&self, name: &'static str, number: u32, work: F) -> InSpan<F> {
        let root = SpanBuilder::from_name(name);
        self.tracer.start(root, &tenant(number)).run(work)
    }

    /// How many spans have ended by now.
    fn ended(&self) -> u64 {
        balanced(&self.world.telemetry).ended
    }

    /// What has arrived when nothing is open any more: each span once, none of them late, and no request left.
    fn arrived(&self) -> Arrived {
        self.world.flush().unwrap();
        let stats = self.world.stats();
        let spans = Arrived(self.world.exporter.spans());
        assert_eq!(stats.exported, stats.ended, "{stats:?}");
        assert_eq!(stats.ended, spans.0.len() as u64, "{stats:?}");
        assert_eq!((stats.late.total(), stats.traces), (0, 0), "{stats:?}");
        for (span, tenant) in &spans.0 {
            assert_ne!(*tenant, Some(FALLBACK), "{span:?}");
        }
        spans
    }
}

/// The spans that the exporter was given, in its order.
struct Arrived(Vec<(SpanData, Option<Tenant>)>);

impl Arrived {
    /// The only one of that name.
    fn span(&self, name: &str) -> &SpanData {
        let mut found = self.0.iter().filter(|(span, _)| span.name == name);
        let (span, _) = found.next().unwrap_or_else(|| panic!("no span {name}"));
        assert!(found.next().is_none(), "several spans {name}");
        span
    }

    fn tenant(&self, name: &str) -> u32 {
        let id = self.span(name).span_context.span_id();
        let mut spans = self.0.iter();
        let found = spans.find(|(span, _)| span.span_context.span_id() == id);
        found.unwrap().1.unwrap().0
    }

    /// `parent > child` of each span, sorted. A root has no parent here.
    fn tree(&self) -> Vec<String> {
        let name_of = |id: SpanId| {
            let mut spans = self.0.iter().map(|(span, _)| span);
            let parent = spans.find(|span| span.span_context.span_id() == id);
            parent.map_or("", |span| span.name.as_ref()).to_owned()
        };
        let line = |span: &SpanData| format!("{} > {}", name_of(span.parent_span_id), span.name);
        let mut lines: Vec<String> = self.0.iter().map(|(span, _)| line(span)).collect();
        lines.sort();
        lines
    }

    fn order(&self) -> Vec<&str> {
        self.0.iter().map(|(span, _)| span.name.as_ref()).collect()
    }

    fn end_of(&self, name: &str) -> End {
        End::of(self.span(name))
    }
}

/// How the work of a span ended, as far as the span says.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    Done,
    Cancelled,
    Failed { kind: String, message: String },
}

impl End {
    fn of(span: &SpanData) -> Self {
        let cancelled = attribute(span, "per_request.cancelled");
        match (attribute(span, "error.type"), cancelled, &span.status) {
            (None, None, Status::Unset) => Self::Done,
            (None, Some(Value::Bool(true)), Status::Unset) => Self::Cancelled,
            (Some(kind), None, Status::Error { description }) => Self::Failed {
                kind: kind.to_string(),
                message: description.to_string(),
            },
            mixed => panic!("{} says {mixed:?}", span.name),
        }
    }

    fn failed(kind: &str, message: &str) -> Self {
        Self::Failed {
            kind: kind.to_owned(),
            message: message.to_owned(),
        }
    }

    fn panicked() -> Self {
        Self::failed("panic", "panicked")
    }
}

/// The value of the only attribute of that key.
fn attribute(span: &SpanData, key: &str) -> Option<Value> {
    let mut found = span.attributes.iter().filter(|kv| kv.key.as_str() == key);
    let value = found.next().map(|kv| kv.value.clone());
    assert!(found.next().is_none(), "{key} is there twice: {span:?}");
    value
}

/// Lets others go first.
async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|task| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        task.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

async fn never() {
    std::future::pending().await
}

fn poll_once<F: Future>(future: &mut Pin<Box<F>>) -> Poll<F::Output> {
    let mut task = TaskContext::from_waker(Waker::noop());
    future.as_mut().poll(&mut task)
}

/// A panic that the compiler does not see.
fn fails(message: &'static str) {
    panic!("{message}");
}

/// What `f` panics with.
fn panic_of<T>(f: impl FnOnce() -> T) -> String {
    let panic = catch_unwind(AssertUnwindSafe(f)).err().expect("no panic");
    match panic.downcast::<String>() {
        Ok(message) => *message,
        Err(other) => other.downcast_ref::<&str>().unwrap().to_string(),
    }
}

/// Cleans up when it is dropped, and says so with a span.
struct CleansUp(&'static str);

impl Drop for CleansUp {
    fn drop(&mut self) {
        in_child_sync(self.0, || {});
    }
}

/// A runtime with one thread, which nothing else runs on.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    let builder = &mut tokio::runtime::Builder::new_current_thread();
    builder.enable_time().build().unwrap().block_on(work)
}
