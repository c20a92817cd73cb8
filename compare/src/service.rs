//! A service as the scenarios see it: requests of tenants, whose spans start and end, and a provider that is flushed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{
    Link, SpanContext, SpanId, SpanKind, TraceContextExt as _, TraceFlags, TraceId, TraceState,
    Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp_direct::ExportToken;
use opentelemetry_per_request::Stats;
use opentelemetry_sdk::trace::{
    SamplingDecision, SamplingResult, SdkTracer, SdkTracerProvider, ShouldSample,
};
use serde::{Deserialize, Serialize};

use crate::contestant::{Caller, Contestant, Failed, Installed};

/// The attribute that says whose span it is.
pub(crate) const TENANT: &str = "tenant";

/// The tenants. Each one's token is its name.
pub(crate) const TENANTS: [&str; 2] = ["blue", "green"];

/// How many threads make requests at a fixed rate, and how late they may be in the end.
const THREADS: usize = 4;
const LATE: Duration = Duration::from_millis(500);

/// Sampled spans that this process has begun to end. A simple processor may never come back from that.
static ENDED: AtomicU64 = AtomicU64::new(0);

/// Nanoseconds that starting and ending spans took the threads of the service, all together.
static HELD_UP: AtomicU64 = AtomicU64::new(0);

fn held_up(since: Instant) {
    HELD_UP.fetch_add(since.elapsed().as_nanos() as u64, Ordering::Relaxed);
}

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
    installed: Installed,
    tracer: SdkTracer,
    /// Of each tenant, with its token.
    contexts: [Context; TENANTS.len()],
}

impl Service {
    pub(crate) fn start(
        contestant: Contestant,
        caller: Caller,
        traces_url: &str,
    ) -> Result<Self, Failed> {
        let builder = SdkTracerProvider::builder().with_sampler(RecordEverything);
        let installed = contestant.install(caller, builder, traces_url)?;
        let [blue, green] = TENANTS.map(|tenant| {
            let cx = Context::new().with_value(Tenant(tenant));
            ExportToken::new(tenant).map(|token| token.attach_to(&cx))
        });
        Ok(Self {
            tracer: installed.provider.tracer("compare"),
            installed,
            contexts: [blue?, green?],
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
        let tenant = cx.get::<Tenant>().map_or("nobody", |tenant| tenant.0);
        let span = self
            .tracer
            .span_builder(name)
            .with_attributes([KeyValue::new(TENANT, tenant)]);
        let start = Instant::now();
        let span = span.start_with_context(&self.tracer, cx);
        held_up(start);
        cx.with_span(span)
    }

    /// Ends the span of `cx` while `cx` is the current context.
    pub(crate) fn end_span(&self, cx: &Context) {
        self.end_span_elsewhere(cx, cx);
    }

    /// Ends the span of `cx` while `current` is the current context.
    pub(crate) fn end_span_elsewhere(&self, cx: &Context, current: &Context) {
        if cx.span().span_context().is_sampled() {
            ENDED.fetch_add(1, Ordering::SeqCst);
        }
        let _current = current.clone().attach();
        let start = Instant::now();
        cx.span().end();
        held_up(start);
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
        Said::new(asked, self.installed.provider.force_flush())
    }

    pub(crate) fn shut_down(&self) -> Said {
        let asked = Instant::now();
        Said::new(asked, self.installed.provider.shutdown())
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
    pub(crate) fn stats(&self) -> Option<Stats> {
        let handle = self.installed.handle.as_ref()?;
        Some(handle.stats())
    }
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
