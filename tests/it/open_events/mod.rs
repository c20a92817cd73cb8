//! Spans are told of while they are open: to the collector as log records or pending spans, and to an observer.

mod forms;

use std::time::Duration;

use opentelemetry_per_request::{Builder, Config, OpenEvents, PerRequestLogProcessor};

use crate::support::exporter::Logged;
use crate::support::{LogRecorder, Recorder, World};

/// Old enough for a test that does not wait for it, and too old for one that does not want it.
const SOON_OLD: Duration = Duration::from_millis(20);
const NEVER_OLD: Duration = Duration::from_secs(3600);

/// A world in which open events leave, and what the exporter of log records saw.
struct OpenWorld {
    world: World,
    logs: LogRecorder,
    /// Its end is the end of log records.
    _processor: PerRequestLogProcessor,
}

impl OpenWorld {
    fn new(form: OpenEvents, min_age: Duration) -> Self {
        Self::built(config(form, min_age), Recorder::new(), |builder| builder)
    }

    fn built(config: Config, spans: Recorder, customize: impl FnOnce(Builder) -> Builder) -> Self {
        let logs = LogRecorder::new();
        let (world, processor) = World::joined(config, spans, customize, |processor| {
            processor.log_processor(logs.clone()).unwrap()
        });
        Self {
            world,
            logs,
            _processor: processor,
        }
    }

    /// The states that log records tell of, with the name that each has for its span, in the order in which they left.
    fn told(&self) -> Vec<(String, String)> {
        let logs = self.logs.items().into_iter();
        logs.map(|(log, _)| (state(&log), log.body())).collect()
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
