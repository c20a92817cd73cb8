//! The traffic: requests with a token and a witness each, from eight threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use opentelemetry::trace::{Span as _, TraceContextExt as _, Tracer as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp_direct::ExportToken;
use opentelemetry_sdk::trace::{SdkTracer, Span};

/// The attributes of a span: its own number, and that of its request.
pub(crate) const SPAN: &str = "soak.span";
pub(crate) const REQUEST: &str = "soak.request";

pub(crate) const THREADS: u64 = 8;

/// Tokens are long, so that a few that stay are more than the noise.
const TOKEN_BYTES: usize = 512;

/// Spans of a request, its root included.
pub(crate) const SPANS: u64 = 3;

/// Makes requests, and knows how many of their contexts are alive.
#[derive(Debug)]
pub(crate) struct Load {
    tracer: SdkTracer,
    requests: AtomicU64,
    spans: AtomicU64,
    witness: Arc<()>,
}

/// In the context of each request, to be counted.
#[derive(Debug)]
struct Witness(#[expect(dead_code, reason = "it is there to be counted")] Arc<()>);

/// The request that a token was made for.
pub(crate) fn request_of(authorization: &str) -> Option<u64> {
    authorization.strip_prefix("Bearer ")?.parse().ok()
}

impl Load {
    pub(crate) fn new(tracer: SdkTracer) -> Self {
        Self {
            tracer,
            requests: AtomicU64::new(0),
            spans: AtomicU64::new(0),
            witness: Arc::new(()),
        }
    }

    /// Spans that were started so far.
    pub(crate) fn spans(&self) -> u64 {
        self.spans.load(Ordering::Relaxed)
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

    /// So many spans that stay open: the roots of as many requests. In one of ten, a child has ended.
    pub(crate) fn open(&self, requests: u64) -> Vec<Span> {
        let open = |_| {
            let number = self.next_request();
            let root = self.start("open", number, &self.context(number));
            if number % 10 == 0 {
                // Not the context of the request: who holds that would count as one who keeps it alive.
                let parent = Context::new().with_remote_span_context(root.span_context().clone());
                self.start("step", number, &parent).end();
            }
            root
        };
        let opened = self.on_all_threads(|| (0..requests / THREADS).map(open).collect::<Vec<_>>());
        opened.into_iter().flatten().collect()
    }

    /// A request of so many spans.
    pub(crate) fn request(&self, spans: u64) {
        let number = self.next_request();
        let cx = self.context(number);
        let cx = cx.with_span(self.start("request", number, &cx));
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
        let number = |key, number: u64| KeyValue::new(key, i64::try_from(number).unwrap_or(-1));
        self.tracer
            .span_builder(name)
            .with_attributes([number(SPAN, span), number(REQUEST, request)])
            .start_with_context(&self.tracer, cx)
    }

    fn next_request(&self) -> u64 {
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
