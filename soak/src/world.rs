//! Real parts under load: a `Telemetry` over `DirectExporter`, and a receiver on loopback.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use futures_executor::block_on;
use opentelemetry_otlp_direct::{DirectExporter, ExporterHandle, RetryPolicy};
use opentelemetry_per_request::observer::{LifecycleEvent, Stage};
use opentelemetry_per_request::{Config, FlushError, Stats, Telemetry};
use opentelemetry_sdk::trace::Sampler;

use crate::collector::Collector;
use crate::load::Load;
use crate::measure;
use crate::receiver::{Mode, Tally};

pub(crate) const MAX_TRACES: u64 = 1_000;
/// Of spans, and of log records.
pub(crate) const MAX_PENDING: u64 = 4_096;
pub(crate) const MAX_EXPORTS: u64 = 20;

/// What an export may take, retries included. A collector that hangs for a second is not the end of a batch.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How long anything may take that should be over soon. Only something that hangs takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) collector: Collector,
    pub(crate) exporter: ExporterHandle,
    pub(crate) telemetry: Telemetry,
    pub(crate) load: Load,
    pub(crate) seen: Arc<Seen>,
}

/// How many spans an observer saw open, and close.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) opened: AtomicU64,
    pub(crate) closed: AtomicU64,
}

impl Seen {
    fn see(&self, event: &LifecycleEvent) {
        let count = match event.stage {
            Stage::Open(_) => &self.opened,
            Stage::Close(_) => &self.closed,
            _ => return,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// How things stand when everything that was under way is over.
#[derive(Clone, Debug)]
pub(crate) struct Drained {
    pub(crate) at: Instant,
    pub(crate) stats: Stats,
    pub(crate) tally: Tally,
    /// Requests that were made by then.
    pub(crate) requests: u64,
    pub(crate) live_bytes: i64,
    pub(crate) resident_bytes: i64,
}

impl World {
    pub(crate) fn new() -> io::Result<Self> {
        let collector = Collector::start()?;
        let retry = RetryPolicy::default()
            .with_max_attempts(20)
            .with_backoff(Duration::from_millis(50), Duration::from_millis(400));
        let exporter = DirectExporter::builder()
            .with_env_lookup(|_| None)
            .with_endpoint(collector.endpoint())
            .with_timeout(TIMEOUT)
            .with_retry_policy(retry)
            .build()
            .map_err(io::Error::other)?;
        let handle = exporter.handle();
        let config = Config::default()
            .with_max_traces(MAX_TRACES as usize)
            .with_max_pending_spans(MAX_PENDING as usize)
            .with_max_pending_logs(MAX_PENDING as usize)
            .with_max_concurrent_exports(MAX_EXPORTS as usize)
            // So that open spans are remembered, and nothing else comes of it.
            .with_export_unfinished(true);
        let seen = Arc::<Seen>::default();
        let observer = seen.clone();
        let telemetry = Telemetry::builder()
            .with_exporter(exporter)
            .with_config(config)
            .with_sampler(Sampler::AlwaysOn)
            .with_processor(|builder| {
                builder.with_span_observer(move |event: &_| observer.see(event))
            })
            .build()
            .map_err(io::Error::other)?;
        Ok(Self {
            collector,
            exporter: handle,
            load: Load::new(&telemetry),
            telemetry,
            seen,
        })
    }

    /// Has every table and queue grow as far as it can, so that none does so by chance later: as many batches wait as spans
    /// may be pending.
    pub(crate) fn fill(&mut self) -> io::Result<Drained> {
        self.collector.be(Mode::Hang)?;
        self.load.burst(2 * MAX_PENDING, 1);
        self.collector.be(Mode::Answer)?;
        self.drain()
    }

    /// Waits for what was under way. What was lost is in the account, and no error here.
    pub(crate) fn flush(&self) -> io::Result<()> {
        let Err(error) = block_on(self.telemetry.flush_with_timeout(PATIENCE)) else {
            return Ok(());
        };
        let errors = [&error.spans, &error.logs, &error.metrics];
        let is_lost = |error: &FlushError| matches!(error, FlushError::Lost { .. });
        if errors.into_iter().flatten().all(is_lost) {
            return Ok(());
        }
        Err(io::Error::other(error))
    }

    /// Waits until nothing is left of the traffic: not an item, a trace, a context or a connection.
    pub(crate) fn drain(&mut self) -> io::Result<Drained> {
        self.flush()?;
        let telemetry = self.telemetry.clone();
        wait_until("no trace, and nothing pending", || {
            let stats = telemetry.stats();
            let pending = [
                stats.pending(),
                stats.logs.pending(),
                stats.metrics.pending(),
            ];
            Ok(stats.traces == 0 && pending == [0; 3])
        })?;
        wait_until("no context of a request", || Ok(self.load.contexts() == 0))?;
        self.hush()?;
        // The pool of connections forgets those that are closed when it looks for one, so have it look.
        self.load.request(1);
        self.flush()?;
        self.hush()?;
        Ok(Drained {
            at: Instant::now(),
            stats: self.telemetry.stats(),
            tally: self.collector.tally()?,
            requests: self.load.requests(),
            live_bytes: settled_bytes(),
            resident_bytes: measure::resident_bytes(),
        })
    }

    fn hush(&mut self) -> io::Result<()> {
        self.collector.hush()?;
        wait_until("no connection", || {
            Ok(self.collector.tally()?.connections == 0)
        })
    }

    /// Ends it all, and waits for its threads.
    pub(crate) fn end(self) -> io::Result<()> {
        // A shutdown reports the losses of the last round, which are in the account.
        let _ = block_on(self.telemetry.shutdown(PATIENCE));
        drop(self);
        wait_until("no thread of the processor", || {
            Ok(measure::processor_threads() == 0)
        })
    }
}

/// The bytes on the heap once they no longer change: threads and connections that end take a moment for it.
pub(crate) fn settled_bytes() -> i64 {
    let (mut least, mut unchanged) = (measure::live_bytes(), 0);
    while unchanged < 20 {
        thread::sleep(Duration::from_millis(5));
        let now = measure::live_bytes();
        unchanged = if now < least { 0 } else { unchanged + 1 };
        least = least.min(now);
    }
    least
}

pub(crate) fn wait_until(
    what: &str,
    mut condition: impl FnMut() -> io::Result<bool>,
) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !condition()? {
        if Instant::now() > deadline {
            let message = format!("not within {PATIENCE:?}: {what}");
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
