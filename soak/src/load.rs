//! The traffic: requests with a token and a witness each, from eight threads. Each logs a line, and is counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use opentelemetry::logs::{LogRecord as _, Logger as _, LoggerProvider as _};
use opentelemetry::metrics::{Counter, MeterProvider as _};
use opentelemetry::trace::{Span as _, TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp_direct::ExportToken;
use opentelemetry_per_request::Telemetry;
use opentelemetry_sdk::logs::SdkLogger;
use opentelemetry_sdk::trace::{SdkTracer, Span};

/// The attributes of a span or a line: its own number, and that of its request.
pub(crate) const NUMBER: &str = "soak.number";
pub(crate) const REQUEST: &str = "soak.request";

/// The counter of requests.
pub(crate) const REQUESTS: &str = "soak.requests";

pub(crate) const THREADS: u64 = 8;

/// Tokens are long, so that a few that stay are more than the noise.
const TOKEN_BYTES: usize = 512;

/// Spans of a request, its root included.
pub(crate) const SPANS: u64 = 3;

/// Makes requests, and knows how many of their contexts are alive.
#[derive(Debug)]
pub(crate) struct Load {
    tracer: SdkTracer,
    logger: SdkLogger,
    counter: Counter<u64>,
    requests: AtomicU64,
    spans: AtomicU64,
    lines: AtomicU64,
    witness: Arc<()>,
}

/// In the context of each request, to be counted.
#[derive(Debug)]
struct Witness(#[expect(dead_code, reason = "it is there to be counted")] Arc<()>);

/// The request that a token was made for.
pub(crate) fn request_of(authorization: &str) -> Option<u64> {
    authorization.strip_prefix("Bearer ")?.parse().ok()
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(-1)
}

impl Load {
    pub(crate) fn new(telemetry: &Telemetry) -> Self {
        let meter = telemetry.meter_provider().meter("soak");
        Self {
            tracer: telemetry.tracer_provider().tracer("soak"),
            logger: telemetry.logger_provider().logger("soak"),
            counter: meter.u64_counter(REQUESTS).build(),
            requests: AtomicU64::new(0),
            spans: AtomicU64::new(0),
            lines: AtomicU64::new(0),
            witness: Arc::new(()),
        }
    }

    /// Spans that were started so far.
    pub(crate) fn spans(&self) -> u64 {
        self.spans.load(Ordering::Relaxed)
    }

    /// Lines that were logged so far.
    pub(crate) fn lines(&self) -> u64 {
        self.lines.load(Ordering::Relaxed)
    }

    /// Requests that were made, and counted, so far.
    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Contexts of requests that somebody still has.
    pub(crate) fn contexts(&self) -> usize {
        Arc::strong_count(&self.witness) - 1
    }

    /// So many requests of so many spans, as fast as they can be made.
    pub(crate) fn burst(&self, requests: u64, spans: u64) {
        self.on_all_threads(|| (0..requests / THREADS).for_each(|_| self.request(spans)));
    }

    /// Requests at a steady pace, so many a second, while they are welcome.
    pub(crate) fn steady(
        &self,
        per_second: u64,
        duration: Duration,
        welcome: impl Fn() -> bool + Sync,
    ) {
        let pace = Duration::from_secs(THREADS) / u32::try_from(per_second).unwrap_or(u32::MAX);
        let end = Instant::now() + duration;
        self.on_all_threads(|| {
            let mut next = Instant::now();
            while next < end {
                while !welcome() {
                    thread::sleep(Duration::from_millis(1));
                }
                self.request(SPANS);
                next += pace;
                thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        });
    }

    /// So many spans that stay open: the roots of as many requests. In one of ten, a child has ended, and logged a line.
    pub(crate) fn open(&self, requests: u64) -> Vec<Span> {
        let open = |_| {
            let number = self.next_request();
            let root = self.start("open", number, &self.context(number));
            if number % 10 == 0 {
                // Not the context of the request: who holds that would count as one who keeps it alive.
                let parent = Context::new().with_remote_span_context(root.span_context().clone());
                let child = parent.with_span(self.start("step", number, &parent));
                self.log(number, &child);
                child.span().end();
            }
            root
        };
        let opened = self.on_all_threads(|| (0..requests / THREADS).map(open).collect::<Vec<_>>());
        opened.into_iter().flatten().collect()
    }

    /// A request of so many spans and a line.
    pub(crate) fn request(&self, spans: u64) {
        let number = self.next_request();
        let cx = self.context(number);
        let cx = cx.with_span(self.start("request", number, &cx));
        self.log(number, &cx);
        for _ in 1..spans {
            self.start("step", number, &cx).end();
        }
        cx.span().end();
    }

    fn context(&self, request: u64) -> Context {
        let witness = Witness(Arc::clone(&self.witness));
        let cx = Context::new().with_value(witness);
        match ExportToken::new(format!("{request:0TOKEN_BYTES$}")) {
            Ok(token) => token.attach_to(&cx),
            Err(_) => cx,
        }
    }

    fn start(&self, name: &'static str, request: u64, cx: &Context) -> Span {
        let span = self.spans.fetch_add(1, Ordering::Relaxed);
        let number = |key, number: u64| KeyValue::new(key, signed(number));
        self.tracer
            .span_builder(name)
            .with_attributes([number(NUMBER, span), number(REQUEST, request)])
            .start_with_context(&self.tracer, cx)
    }

    fn log(&self, request: u64, cx: &Context) {
        let line = self.lines.fetch_add(1, Ordering::Relaxed);
        let mut record = self.logger.create_log_record();
        record.set_body("a line".into());
        record.add_attribute(NUMBER, signed(line));
        record.add_attribute(REQUEST, signed(request));
        let _current = cx.clone().attach();
        self.logger.emit(record);
    }

    fn next_request(&self) -> u64 {
        self.counter.add(1, &[]);
        self.requests.fetch_add(1, Ordering::Relaxed)
    }

    fn on_all_threads<T: Send>(&self, work: impl Fn() -> T + Sync) -> Vec<T> {
        thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(&work)).collect();
            let done = threads.into_iter().map(|thread| thread.join());
            done.map(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        })
    }
}
