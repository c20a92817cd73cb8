//! `cargo demo -- --live`: spans as they open, get other names and close, from nothing but what the receiver gets.
//!
//! Open spans arrive as log records, ended ones as ever. What is shown is made of both, and in the end compared with what the
//! processor says.

mod event;
mod screen;
mod summary;
mod view;
mod workload;

use std::error::Error;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use demo::receiver::Receiver;
use opentelemetry_per_request::{Config, OpenEvents};
use tokio::time::MissedTickBehavior;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt};

use event::Event;
use screen::Screen;
use summary::Summary;
use view::View;
use workload::{Pace, Service};

/// How old a span must be before it is told of. Shorter than the default, so that one sees it promptly.
const MIN_AGE: Duration = Duration::from_millis(200);
/// How often one looks at what has arrived.
const FRAME: Duration = Duration::from_millis(100);

/// Warnings that wait to be shown above the tree, which they would tear otherwise.
#[derive(Clone, Debug, Default)]
struct Held(Arc<Mutex<Vec<u8>>>);

/// Who looks at what arrives.
struct Viewer {
    receiver: Receiver,
    /// How many spans and log records have been looked at.
    spans: usize,
    logs: usize,
    view: View,
    screen: Screen,
    held: Held,
    start: u64,
}

/// Takes about so long. Returns whether what was received is what happened.
pub(crate) async fn run(seconds: u64, json: bool) -> Result<bool, Box<dyn Error>> {
    let start = Instant::now();
    let screen = Screen::of_process();
    let held = Held::default();
    show_warnings(&screen, &held);
    let receiver = Receiver::http()?;
    let config = Config::from_env()
        .with_open_events(OpenEvents::Logs)
        .with_open_event_min_age(MIN_AGE);
    let telemetry = crate::install(Some(&receiver), config).await?;
    let service = Service::start(&telemetry, Pace(Duration::from_secs(seconds))).await?;

    let mut viewer = Viewer::new(receiver, screen, held);
    let watched = viewer.watch(service.visit()).await;
    // Not the service: it would wait for its handlers, and one hangs.
    telemetry
        .shutdown(crate::SHUTDOWN)
        .await
        .unwrap_or_else(|error| eprintln!("shutdown: {error}"));
    let stats = telemetry.stats();
    // What hangs ends with this process. Nothing is to be said of that: its spans have been given up.
    let _ = telemetry.tracer_provider().shutdown();
    viewer.look()?;
    drop(watched?);

    let summary = Summary::new(service.started(), &viewer.view, &stats, start.elapsed());
    match json {
        true => println!("{}", summary.to_json()),
        false => println!("\n{summary}"),
    }
    Ok(summary.is_clean())
}

/// The warnings of the processor and the exporter, which a service would see in its log.
fn show_warnings(screen: &Screen, held: &Held) {
    let subscriber = tracing_subscriber::registry();
    match screen.is_tree() {
        true => {
            let held = held.clone();
            let layer = fmt::layer().with_writer(move || held.clone());
            let layer = layer.with_ansi(screen.has_colours());
            subscriber.with(layer.with_filter(LevelFilter::WARN)).init();
        }
        false => subscriber.with(crate::warnings()).init(),
    }
}

// ===== impl Held =====

impl Held {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> String {
        let held = std::mem::take(&mut *self.lock());
        String::from_utf8_lossy(&held).into_owned()
    }
}

impl io::Write for Held {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lock().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

// ===== impl Viewer =====

impl Viewer {
    fn new(receiver: Receiver, screen: Screen, held: Held) -> Self {
        Self {
            receiver,
            spans: 0,
            logs: 0,
            view: View::default(),
            screen,
            held,
            start: now(),
        }
    }

    /// Looks until `work` is done.
    async fn watch<T>(
        &mut self,
        work: impl Future<Output = Result<T, Box<dyn Error>>>,
    ) -> Result<T, Box<dyn Error>> {
        let mut frames = tokio::time::interval(FRAME);
        frames.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = frames.tick() => self.look()?,
            }
        }
    }

    /// Takes in what has arrived since, and shows what is there now.
    fn look(&mut self) -> io::Result<()> {
        for event in self.arrived() {
            let after = self.since_start(event.arrived);
            if let Some(change) = self.view.take_in(&event) {
                self.screen.tell(&event, &change, after)?;
            }
        }
        let above = self.held.take();
        let now = now();
        let after = self.since_start(now);
        self.screen.draw(&above, &self.view, now, after)
    }

    /// What has arrived since, in the order in which it did.
    fn arrived(&mut self) -> Vec<Event> {
        let logs = self.receiver.logs_after(self.logs);
        let spans = self.receiver.received_after(self.spans);
        (self.logs, self.spans) = (self.logs + logs.len(), self.spans + spans.len());
        let logs = logs.iter().filter_map(Event::of_log);
        let spans = spans.iter().filter_map(Event::of_span);
        let mut events: Vec<Event> = logs.chain(spans).collect();
        events.sort_by_key(|event| event.arrived);
        events
    }

    fn since_start(&self, at: u64) -> Duration {
        Duration::from_nanos(at.saturating_sub(self.start))
    }
}

/// In nanoseconds since the epoch.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
}
