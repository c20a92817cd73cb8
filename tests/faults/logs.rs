//! Warnings and errors of the whole process, told apart by the endpoint that they name: each row has one of its own.

use std::fmt::{self, Write as _};
use std::sync::{Mutex, OnceLock};

use opentelemetry_otlp_direct::Signal;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt as _};

static LINES: OnceLock<Mutex<Vec<String>>> = OnceLock::new();

/// Starts to listen, if nobody has yet.
pub(crate) fn listen() {
    LINES.get_or_init(|| {
        let subscriber =
            tracing_subscriber::registry().with(Recorder.with_filter(LevelFilter::WARN));
        tracing::subscriber::set_global_default(subscriber).unwrap();
        Mutex::default()
    });
}

/// All lines so far, whoever wrote them.
pub(crate) fn all() -> Vec<String> {
    LINES.get().unwrap().lock().unwrap().clone()
}

/// Those of the exporter of this endpoint about a signal.
pub(crate) fn of(endpoint: &str, signal: Signal) -> Vec<String> {
    let named = format!("endpoint=\"{endpoint}/v1/{signal}\"");
    let mut lines = all();
    lines.retain(|line| line.starts_with("opentelemetry-otlp-direct ") && line.contains(&named));
    lines
}

struct Recorder;

struct Line(String);

impl<S: Subscriber> Layer<S> for Recorder {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let mut line = Line(format!("{} {}", metadata.target(), metadata.name()));
        event.record(&mut line);
        // Empty only while the subscriber is being set.
        if let Some(lines) = LINES.get() {
            lines.lock().unwrap().push(line.0);
        }
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = write!(self.0, " {}={value:?}", field.name());
    }
}
