//! A service as the scenarios see it: requests of tenants, whose spans start and end and which log lines, and a provider that
//! is flushed.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use opentelemetry::logs::{AnyValue, LogRecord as _, Logger as _, LoggerProvider as _, Severity};
use opentelemetry::trace::{
    Link, SpanContext, SpanId, SpanKind, TraceContextExt as _, TraceFlags, TraceId, TraceState,
    Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp_direct::ExportToken;
use opentelemetry_sdk::logs::SdkLogger;
use opentelemetry_sdk::trace::{
    SamplingDecision, SamplingResult, SdkTracer, SdkTracerProvider, ShouldSample,
};
use serde::{Deserialize, Serialize};

use crate::contestant::{Caller, Contestant, Failed, Installed, Signal};
use crate::protocol::Account;

/// The attribute that says whose span or log record it is.
pub(crate) const TENANT: &str = "tenant";

/// The attribute that tells log records apart.
pub(crate) const NUMBER: &str = "number";

/// The tenants. Each one's token is its name.
pub(crate) const TENANTS: [&str; 2] = ["blue", "green"];

/// How many threads make requests at a fixed rate, and how late they may be in the end.
const THREADS: usize = 4;
const LATE: Duration = Duration::from_millis(500);

/// Sampled spans that this process has begun to end, or log records that it has begun to emit. A simple processor may never
/// come back from that.
static ENDED: AtomicU64 = AtomicU64::new(0);

/// Nanoseconds that the signal's part in it took the threads of the service, all together.
static HELD_UP: AtomicU64 = AtomicU64::new(0);

pub(crate) fn held_up_ms() -> f64 {
    HELD_UP.load(Ordering::Relaxed) as f64 / 1e6
}

pub(crate) fn ended() -> u64 {
    ENDED.load(Ordering::SeqCst)
}

/// Nanoseconds since the epoch.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as u64)
}

/// What a flush or a shutdown said.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Said {
    /// None is Ok.
    pub(crate) error: Option<String>,
    /// When it returned.
    pub(crate) at: u64,
    pub(crate) took_ms: f64,
}

#[derive(Clone, Copy, Debug)]
struct Tenant(&'static str);

/// A service with one of the contestants in it.
#[derive(Debug)]
pub(crate) struct Service {
    signal: Signal,
    installed: Installed,
    tracer: SdkTracer,
    logger: SdkLogger,
    /// Before the traffic.
    resident_bytes: Option<u64>,
    /// Of each tenant, with its token.
    contexts: [Context; TENANTS.len()],
}

impl Service {
    pub(crate) fn start(
        contestant: Contestant,
        caller: Caller,
        signal: Signal,
        url: &str,
    ) -> Result<Self, Failed> {
        let builder = SdkTracerProvider::builder().with_sampler(RecordEverything);
        let installed = contestant.install(caller, signal, builder, url)?;
        let [blue, green] = TENANTS.map(|tenant| {
            let cx = Context::new().with_value(Tenant(tenant));
            ExportToken::new(tenant).map(|token| token.attach_to(&cx))
        });
        Ok(Self {
            signal,
            tracer: installed.tracers.tracer("compare"),
            logger: installed.loggers.logger("compare"),
            installed,
            contexts: [blue?, green?],
            resident_bytes: memory("VmRSS:"),
        })
    }

    /// The context in which a request arrives. Tenants take turns.
    pub(crate) fn arriving(&self, number: usize) -> Context {
        self.contexts[number % TENANTS.len()].clone()
    }

    /// The same, for a request that its caller does not sample.
    pub(crate) fn arriving_unsampled(&self, number: usize) -> Context {
        let parent = SpanContext::new(
            TraceId::from(number as u128 + 1),
            SpanId::from(0xfeed),
            TraceFlags::NOT_SAMPLED,
            true,
            TraceState::NONE,
        );
        self.arriving(number).with_remote_span_context(parent)
    }

    /// Starts a span in `cx`, and returns the context that holds it.
    pub(crate) fn start_span(&self, name: &'static str, cx: &Context) -> Context {
        let tenant = Tenant::of(cx);
        let span = self
            .tracer
            .span_builder(name)
            .with_attributes([KeyValue::new(TENANT, tenant)]);
        let start = Instant::now();
        let span = span.start_with_context(&self.tracer, cx);
        self.held_up(Signal::Spans, start);
        cx.with_span(span)
    }

    /// Ends the span of `cx` while `cx` is the current context.
    pub(crate) fn end_span(&self, cx: &Context) {
        self.end_span_elsewhere(cx, cx);
    }

    /// Ends the span of `cx` while `current` is the current context.
    pub(crate) fn end_span_elsewhere(&self, cx: &Context, current: &Context) {
        if cx.span().span_context().is_sampled() {
            self.count(Signal::Spans);
        }
        let _current = current.clone().attach();
        let start = Instant::now();
        cx.span().end();
        self.held_up(Signal::Spans, start);
    }

    /// Logs a line in the span of `cx` while `cx` is the current context.
    pub(crate) fn log(&self, cx: &Context) {
        self.log_elsewhere(cx, cx);
    }

    /// Logs a line in the span of `cx`, which its record names, while `current` is the current context.
    pub(crate) fn log_elsewhere(&self, cx: &Context, current: &Context) {
        static LINES: AtomicU64 = AtomicU64::new(0);
        let number = LINES.fetch_add(1, Ordering::Relaxed).to_string();
        let mut record = self.logger.create_log_record();
        record.set_timestamp(SystemTime::now());
        record.set_severity_number(Severity::Info);
        record.set_body(AnyValue::from(
            "a line of a service, as long as such lines are",
        ));
        record.add_attribute(TENANT, Tenant::of(cx));
        record.add_attribute(NUMBER, number);
        let span = cx.span();
        let span = span.span_context();
        record.set_trace_context(span.trace_id(), span.span_id(), Some(span.trace_flags()));
        self.count(Signal::Logs);
        let _current = current.clone().attach();
        let start = Instant::now();
        self.logger.emit(record);
        self.held_up(Signal::Logs, start);
    }

    /// A request of a root and so many steps.
    pub(crate) fn request(&self, cx: &Context, steps: usize) {
        let root = self.start_span("request", cx);
        for _ in 0..steps {
            let step = self.start_span("step", &root);
            self.end_span(&step);
        }
        self.end_span(&root);
    }

    /// A request of a root and so many lines.
    pub(crate) fn logging_request(&self, cx: &Context, lines: usize) {
        let root = self.start_span("request", cx);
        (0..lines).for_each(|_| self.log(&root));
        self.end_span(&root);
    }

    /// So many requests a second for this long, from four threads. Who falls behind catches up, until it is `LATE`.
    pub(crate) fn requests(
        &self,
        a_second: u32,
        duration: Duration,
        request: impl Fn(usize) + Sync,
    ) {
        let period = Duration::from_secs(1) / a_second;
        let start = Instant::now();
        let number_at = |moment: Duration| (moment.as_nanos() / period.as_nanos()) as usize;
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let request = &request;
                scope.spawn(move || {
                    for number in (thread..number_at(duration)).step_by(THREADS) {
                        sleep_until(start + period * number as u32);
                        if start.elapsed() > duration + LATE {
                            break;
                        }
                        request(number);
                    }
                });
            }
        });
    }

    /// The flush that every processor has.
    pub(crate) fn flush(&self) -> Said {
        let asked = Instant::now();
        Said::new(
            asked,
            match self.signal {
                Signal::Spans => self.installed.tracers.force_flush(),
                Signal::Logs => self.installed.loggers.force_flush(),
            },
        )
    }

    pub(crate) fn shut_down(&self) -> Said {
        // What the SDK's own `shutdown` gives it.
        self.shut_down_within(Duration::from_secs(5))
    }

    pub(crate) fn shut_down_within(&self, timeout: Duration) -> Said {
        let asked = Instant::now();
        Said::new(
            asked,
            match self.signal {
                Signal::Spans => self.installed.tracers.shutdown_with_timeout(timeout),
                Signal::Logs => self.installed.loggers.shutdown_with_timeout(timeout),
            },
        )
    }

    /// The flush that only ours has.
    pub(crate) async fn flush_awaited(&self) -> Said {
        let asked = Instant::now();
        match &self.installed.handle {
            Some(handle) => Said::new(asked, handle.flush().await),
            None => Said::new(asked, Err("there is no such flush")),
        }
    }

    /// Ours counts.
    pub(crate) fn account(&self) -> Option<Account> {
        let stats = self.installed.handle.as_ref()?.stats();
        Some(match self.signal {
            Signal::Spans => Account {
                lost: stats.failed + stats.dropped.total(),
                pending: stats.pending(),
                late: stats.late.total(),
            },
            Signal::Logs => Account {
                lost: stats.logs.failed + stats.logs.dropped.total(),
                pending: stats.logs.pending(),
                late: stats.logs.late.total(),
            },
        })
    }

    /// How much more memory the process had at most than before the traffic.
    pub(crate) fn grown_bytes(&self) -> Option<u64> {
        let most = memory("VmHWM:")?;
        Some(most.saturating_sub(self.resident_bytes?))
    }

    fn count(&self, signal: Signal) {
        if signal == self.signal {
            ENDED.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn held_up(&self, signal: Signal, since: Instant) {
        if signal == self.signal {
            HELD_UP.fetch_add(since.elapsed().as_nanos() as u64, Ordering::Relaxed);
        }
    }
}

impl Tenant {
    fn of(cx: &Context) -> &'static str {
        cx.get::<Self>().map_or("nobody", |tenant| tenant.0)
    }
}

/// Bytes, of what the system says of this process.
fn memory(what: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(what))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

impl Said {
    fn new<E: ToString>(asked: Instant, answer: Result<(), E>) -> Self {
        Self {
            at: now(),
            took_ms: asked.elapsed().as_secs_f64() * 1e3,
            error: answer.err().map(|error| error.to_string()),
        }
    }
}

pub(crate) fn sleep_until(moment: Instant) {
    thread::sleep(moment.saturating_duration_since(Instant::now()));
}

/// Samples as the parent does, and records what is not sampled, for a processor that counts errors, for example.
#[derive(Clone, Debug)]
struct RecordEverything;

impl ShouldSample for RecordEverything {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        _trace_id: TraceId,
        _name: &str,
        _span_kind: &SpanKind,
        _attributes: &[KeyValue],
        _links: &[Link],
    ) -> SamplingResult {
        let sampled = parent.is_none_or(|cx| {
            let span = cx.span();
            let parent = span.span_context();
            !parent.is_valid() || parent.is_sampled()
        });
        SamplingResult {
            decision: match sampled {
                true => SamplingDecision::RecordAndSample,
                false => SamplingDecision::RecordOnly,
            },
            attributes: Vec::new(),
            trace_state: TraceState::NONE,
        }
    }
}
