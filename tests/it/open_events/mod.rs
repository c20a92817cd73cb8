//! Spans are told of while they are open: to the collector as log records or pending spans, and to an observer.

mod age;
mod bounds;
mod ending;
mod evicting;
mod forms;
mod observing;
mod renaming;
mod wire;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_per_request::{Builder, Config, OpenEvents, PerRequestLogProcessor};
use opentelemetry_sdk::trace::SpanData;

use crate::support::exporter::{Logged, Scripted};
use crate::support::{
    Act, Gate, LogRecorder, Recorder, Tenant, World, balanced, tenant, wait_until,
};

/// Old enough for a test that does not wait for it, and too old for one that does not want it.
const SOON_OLD: Duration = Duration::from_millis(20);
const NEVER_OLD: Duration = Duration::from_secs(3600);

const FORMS: [OpenEvents; 2] = [OpenEvents::Logs, OpenEvents::PendingSpans];

/// Whose the spans are that show how far the processor is.
const MARKER: u32 = 999;

/// A world in which open events leave, and what the exporter of log records saw.
struct OpenWorld {
    world: World,
    logs: LogRecorder,
    /// Its end is the end of log records.
    processor: PerRequestLogProcessor,
}

impl OpenWorld {
    fn new(form: OpenEvents, min_age: Duration) -> Self {
        Self::built(config(form, min_age), Recorder::new(), |builder| builder)
    }

    fn built(config: Config, spans: Recorder, customize: impl FnOnce(Builder) -> Builder) -> Self {
        Self::with_exporters(config, spans, LogRecorder::new(), customize)
    }

    fn with_exporters(
        config: Config,
        spans: Recorder,
        logs: LogRecorder,
        customize: impl FnOnce(Builder) -> Builder,
    ) -> Self {
        let (world, processor) = World::joined(config, spans, customize, |processor| {
            processor.log_processor(logs.clone()).unwrap()
        });
        Self {
            world,
            logs,
            processor,
        }
    }

    /// With exporters that hang in the batch that tells of the root, which is open: nothing else of its request leaves before the
    /// gate is opened.
    fn held(form: OpenEvents, gate: &Gate) -> (Self, Context) {
        let open = Self::with_exporters(
            config(form, SOON_OLD),
            hanging(gate, |span: &SpanData| span.name.to_string()),
            hanging(gate, Logged::body),
            |builder| builder,
        );
        let root = open.world.start("request", &tenant(1));
        wait_until("the root is told of", || open.opened().len() == 1);
        (open, root)
    }

    /// The states that log records tell of, with the name that each has for its span, in the order in which they left.
    fn told(&self) -> Vec<(String, String)> {
        let logs = self.logs.items().into_iter();
        logs.map(|(log, _)| (state(&log), log.body())).collect()
    }

    /// The spans that were told of as open, by name and with the tenant that it left under, whatever the form.
    fn opened(&self) -> Vec<(String, Option<Tenant>)> {
        let mut opened = self.all_opened();
        opened.retain(|(_, seen)| *seen != Some(Tenant(MARKER)));
        opened
    }

    fn all_opened(&self) -> Vec<(String, Option<Tenant>)> {
        let logs = self.logs.items().into_iter();
        let logs = logs.filter(|(log, _)| state(log) == "open");
        let logs = logs.map(|(log, seen)| (log.body(), seen));
        let spans = self.world.exporter.spans().into_iter();
        let pending = spans.filter(|(span, _)| is_pending(span));
        let pending = pending.map(|(span, seen)| (span.name.into_owned(), seen));
        logs.chain(pending).collect()
    }

    /// The spans that were exported because they had ended, by name, sorted.
    fn ended(&self) -> Vec<String> {
        let spans = self.world.exporter.spans().into_iter();
        let real = spans.filter(|(span, seen)| !is_pending(span) && *seen != Some(Tenant(MARKER)));
        let mut names: Vec<_> = real.map(|(span, _)| span.name.into_owned()).collect();
        names.sort();
        names
    }

    /// Waits until whatever is open now is old enough, and the processor has seen that it is: something that is opened after it
    /// was told of.
    fn wait_for_age(&self) {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("marker {}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let marker = self.world.start(name.clone(), &tenant(MARKER));
        wait_until("a later span is told of", || {
            balanced(&self.world.telemetry);
            self.all_opened().iter().any(|(opened, _)| *opened == name)
        });
        self.world.end(&marker);
    }

    /// How many open events were sent, elided, dropped, and are pending. They add up to those that were opened.
    fn account(&self) -> [u64; 4] {
        let events = self.world.stats().open_events;
        let account = [events.sent, events.elided, events.dropped, events.pending];
        assert_eq!(account.iter().sum::<u64>(), events.opened, "{events:?}");
        account
    }
}

fn config(form: OpenEvents, min_age: Duration) -> Config {
    Config::default()
        .with_open_events(form)
        .with_open_event_min_age(min_age)
}

/// What a log record says of its span.
fn state(log: &Logged) -> String {
    log.attribute("span.state").unwrap_or_default()
}

fn attribute(span: &SpanData, key: &str) -> Option<String> {
    let mut attributes = span.attributes.iter();
    let found = attributes.find(|attribute| attribute.key.as_str() == key)?;
    Some(found.value.to_string())
}

fn is_pending(span: &SpanData) -> bool {
    attribute(span, "logfire.span_type").as_deref() == Some("pending_span")
}

/// An exporter that hangs in a batch that has something of the name `request`, and takes everything else.
fn hanging<T: Clone + Send + Sync + 'static>(
    gate: &Gate,
    name: impl Fn(&T) -> String + Send + Sync + 'static,
) -> Scripted<T> {
    let gate = gate.clone();
    Scripted::by(
        move |batch: &[T]| match batch.iter().any(|item| name(item) == "request") {
            true => Act::Hang(gate.clone()),
            false => Act::Take,
        },
    )
}
