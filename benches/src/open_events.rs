//! What it costs to be able to tell of open spans: nothing is told, what would be is elided, all of it is sent.
//!
//! Requests come in paced bursts, as in [`span_cost`](crate::span_cost), and for the same reason. They are the same requests, of which
//! few spans are open at once and none for long, but for what is to be sent: there all spans of a burst are open at once, and end
//! after a wait that is not counted, in which they are told of. That is another load, so it has a measurement of its own with
//! nothing told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cpu_time::ProcessTime;
use opentelemetry::Context;
use opentelemetry::trace::{TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry_per_request::{
    Config, Handle, OpenEvents, PerRequestLogProcessor, PerRequestSpanProcessor,
};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{LogBatch, LogExporter};
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span, SpanData, SpanProcessor};

use crate::percentile;
use crate::span_cost::{
    Cost, CountingExporter, NoopProcessor, PACE, REQUESTS, SPANS, attributes, request,
};

/// Requests in a burst whose spans are open at once.
pub const OPEN_REQUESTS: usize = 20;
/// How long the spans of a burst are open.
const OPEN: Duration = Duration::from_millis(10);

/// What is told of open spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// There is no processor: what the SDK itself costs.
    Noop,
    /// A copy of each span is made when it starts, and dropped. No processor can look into a span later, so that is the least
    /// that anybody pays who wants to tell of it.
    Copied,
    /// Nothing: the feature is off.
    Off,
    /// Each span ends before it is old enough.
    Elided,
    /// What the SDK costs where all spans are open at once.
    OpenNoop,
    /// Nothing of spans that are open at once.
    OpenOff,
    /// A log record of each span leaves.
    Sent,
}

impl Told {
    /// Those that are compared with [`Noop`](Self::Noop).
    pub const QUICK: [Self; 3] = [Self::Copied, Self::Off, Self::Elided];
    /// Those that are compared with [`OpenNoop`](Self::OpenNoop).
    pub const OPEN: [Self; 2] = [Self::OpenOff, Self::Sent];

    /// The name in the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Noop => "noop",
            Self::Copied => "copied",
            Self::Off => "off",
            Self::Elided => "elided",
            Self::OpenNoop => "open_noop",
            Self::OpenOff => "open_off",
            Self::Sent => "sent",
        }
    }
}

/// Counts log records and forgets them.
#[derive(Clone, Debug, Default)]
struct CountingLogExporter(Arc<AtomicU64>);

impl LogExporter for CountingLogExporter {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        let records = batch.iter().count() as u64;
        self.0.fetch_add(records, Ordering::SeqCst);
        Ok(())
    }
}

/// Copies each span that starts.
#[derive(Debug)]
struct CopyingProcessor;

impl SpanProcessor for CopyingProcessor {
    fn on_start(&self, span: &mut Span, _cx: &Context) {
        drop(std::hint::black_box(span.exported_data()));
    }

    fn on_end(&self, _span: SpanData) {}

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// What is measured, and what it counts.
struct Subject {
    provider: SdkTracerProvider,
    /// Log records end with it.
    ours: Option<(Handle, PerRequestLogProcessor)>,
    logs: CountingLogExporter,
}

/// Runs so many bursts.
///
/// # Panics
///
/// If a span was lost, or told of otherwise than it should.
pub fn measure(told: Told, bursts: usize) -> Cost {
    let subject = Subject::new(told);
    let tracer = subject.provider.tracer("bench");
    let (run, requests) = match told {
        Told::OpenNoop | Told::OpenOff | Told::Sent => (run_open as fn(_, _) -> _, OPEN_REQUESTS),
        _ => (run_quick as fn(_, _) -> _, REQUESTS),
    };
    run(&tracer, bursts / 10 + 1);
    let cpu = ProcessTime::now();
    let mut nanos: Vec<f64> = run(&tracer, bursts);
    let process = cpu.elapsed().as_nanos() as f64 / (bursts * requests * SPANS) as f64;
    let caller = percentile(&mut nanos, 50);
    subject.check(told, ((bursts + bursts / 10 + 1) * requests * SPANS) as u64);
    Cost { caller, process }
}

impl Subject {
    fn new(told: Told) -> Self {
        let logs = CountingLogExporter::default();
        let builder = SdkTracerProvider::builder();
        let config = match told {
            Told::Noop | Told::OpenNoop => {
                return Self::other(builder.with_span_processor(NoopProcessor).build());
            }
            Told::Copied => {
                return Self::other(builder.with_span_processor(CopyingProcessor).build());
            }
            Told::Off | Told::OpenOff => Config::default(),
            Told::Elided => Config::default()
                .with_open_events(OpenEvents::Logs)
                .with_open_event_min_age(Duration::from_secs(3600)),
            Told::Sent => Config::default()
                .with_open_events(OpenEvents::Logs)
                .with_open_event_min_age(Duration::ZERO),
        };
        let processor = PerRequestSpanProcessor::builder(CountingExporter::default())
            .with_config(config)
            .build()
            .expect("the settings are valid");
        let joined = processor.log_processor(logs.clone()).expect("it has none");
        Self {
            ours: Some((processor.handle(), joined)),
            provider: builder.with_span_processor(processor).build(),
            logs,
        }
    }

    fn other(provider: SdkTracerProvider) -> Self {
        let logs = CountingLogExporter::default();
        Self {
            provider,
            ours: None,
            logs,
        }
    }

    fn check(self, told: Told, made: u64) {
        self.provider.shutdown().expect("nothing was lost");
        let Some((telemetry, joined)) = self.ours else {
            return;
        };
        drop(joined);
        let stats = telemetry.stats();
        assert_eq!(stats.exported, made, "spans were lost");
        let (elided, sent) = match told {
            Told::Elided => (made, 0),
            Told::Sent => (0, made),
            _ => (0, 0),
        };
        let found = (stats.open_events.elided, stats.open_events.sent);
        // A burst that is held up may end before all of it has left.
        let is_close = found.0.abs_diff(elided) <= made / 20;
        assert!(is_close, "{told:?}: elided and sent {found:?} of {made}");
        assert_eq!(found.0 + found.1, elided + sent);
        assert_eq!(self.logs.0.load(Ordering::SeqCst), found.1);
    }
}

/// Nanoseconds for each span, by burst.
fn run_quick(tracer: &SdkTracer, bursts: usize) -> Vec<f64> {
    let burst = |_| {
        thread::sleep(PACE);
        let start = Instant::now();
        (0..REQUESTS).for_each(|_| request(tracer, SPANS));
        start.elapsed().as_nanos() as f64 / (REQUESTS * SPANS) as f64
    };
    (0..bursts).map(burst).collect()
}

/// The same where all spans of a burst are open at once.
fn run_open(tracer: &SdkTracer, bursts: usize) -> Vec<f64> {
    let burst = |_| {
        let start = Instant::now();
        let open: Vec<_> = (0..OPEN_REQUESTS).map(|_| open_request(tracer)).collect();
        let opened = start.elapsed();
        thread::sleep(OPEN);
        let start = Instant::now();
        for cx in open.iter().flat_map(|spans| spans.iter().rev()) {
            cx.span().end();
        }
        let nanos = (opened + start.elapsed()).as_nanos() as f64;
        drop(open);
        nanos / (OPEN_REQUESTS * SPANS) as f64
    };
    (0..bursts).map(burst).collect()
}

/// A root, and children below it, all open.
fn open_request(tracer: &SdkTracer) -> Vec<Context> {
    let mut open = Vec::with_capacity(SPANS);
    let start = |name, cx: &Context| {
        let span = tracer
            .span_builder(name)
            .with_attributes(attributes())
            .start_with_context(tracer, cx);
        cx.with_span(span)
    };
    let root = start("request", &Context::new());
    open.extend((1..SPANS).map(|_| start("step", &root)));
    open.insert(0, root);
    open
}
