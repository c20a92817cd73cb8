//! The crate's own log lines, as a subscriber sees them.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, OnceLock};
use std::thread::ThreadId;

use opentelemetry::trace::TraceId;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt as _};

/// The processor's target.
pub(crate) const TARGET: &str = "opentelemetry-per-request";

#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) level: Level,
    pub(crate) target: String,
    /// The name of the event itself, next to the field `name`.
    pub(crate) event: String,
    pub(crate) fields: HashMap<String, String>,
    thread: ThreadId,
}

impl Line {
    pub(crate) fn field(&self, name: &str) -> &str {
        self.fields
            .get(name)
            .map(String::as_str)
            .unwrap_or_default()
    }
}

static LINES: OnceLock<Mutex<Vec<Line>>> = OnceLock::new();

/// Starts to listen, if nobody has yet. Lines come from the processor's own threads, so the subscriber is for all of them.
pub(crate) fn listen() {
    LINES.get_or_init(|| {
        let subscriber = tracing_subscriber::registry().with(Recorder);
        tracing::subscriber::set_global_default(subscriber).unwrap();
        Mutex::default()
    });
}

/// The lines so far for which `wanted` holds.
pub(crate) fn lines(wanted: impl Fn(&Line) -> bool) -> Vec<Line> {
    let lines = LINES.get().expect("listen first").lock().unwrap();
    lines.iter().filter(|line| wanted(line)).cloned().collect()
}

/// The lines that `f` leads to on this thread.
pub(crate) fn lines_of<T>(f: impl FnOnce() -> T) -> (T, Vec<Line>) {
    listen();
    let here = std::thread::current().id();
    let before = lines(|line| line.thread == here).len();
    let result = f();
    (result, lines(|line| line.thread == here).split_off(before))
}

type Hook = (String, Box<dyn FnOnce() + Send>);

static HOOKS: Mutex<Vec<Hook>> = Mutex::new(Vec::new());

/// Has `f` called inside the subscriber, on the thread that logs, when the next line about this trace comes.
pub(crate) fn inside_next_line(trace: TraceId, f: impl FnOnce() + Send + 'static) {
    HOOKS.lock().unwrap().push((trace.to_string(), Box::new(f)));
}

fn take_hook(line: &Line) -> Option<Hook> {
    let mut hooks = HOOKS.lock().unwrap();
    let at = hooks
        .iter()
        .position(|(trace, _)| trace == line.field("trace_id"))?;
    Some(hooks.remove(at))
}

struct Recorder;

impl<S: Subscriber> Layer<S> for Recorder {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        metadata.target() == TARGET
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let line = Line {
            level: *event.metadata().level(),
            target: event.metadata().target().to_owned(),
            event: event.metadata().name().to_owned(),
            fields: fields.0,
            thread: std::thread::current().id(),
        };
        // Empty only while the subscriber is being set.
        if let Some(lines) = LINES.get() {
            lines.lock().unwrap().push(line.clone());
        }
        if let Some((_, hook)) = take_hook(&line) {
            hook();
        }
    }
}

#[derive(Default)]
struct Fields(HashMap<String, String>);

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }
}
