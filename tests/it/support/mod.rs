//! What the tests share: a processor with a scripted exporter, patience with a deadline, and witnesses of drops.

pub(crate) mod collector;
pub(crate) mod exporter;
pub(crate) mod logs;

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak, mpsc};
use std::time::{Duration, Instant};

use opentelemetry::Context;
use opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState, Tracer as _,
    TracerProvider as _,
};
use opentelemetry_per_request::{
    Builder, Config, FlushError, Handle, PerRequestSpanProcessor, Stats,
};
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider, ShouldSample};

pub(crate) use exporter::{Act, Gate, LogRecorder, MetricRecorder, Recorder};

/// How long anything may take that should take no time at all.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// The per-request value that an exporter looks for in its context. 0 is nobody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Tenant(pub(crate) u32);

/// The tenant of the fallback context of a [`World`].
pub(crate) const FALLBACK: Tenant = Tenant(0);

/// A context with nothing but this tenant.
pub(crate) fn tenant(number: u32) -> Context {
    Context::new().with_value(Tenant(number))
}

/// The tenant of the current context.
pub(crate) fn current_tenant() -> Option<Tenant> {
    Context::map_current(|cx| cx.get::<Tenant>().copied())
}

/// Waits until `condition` holds. It only ever fails by being slow.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {SOON:?}: {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Runs `f` on a thread of its own, and fails if it takes longer than `limit`. Its panics are passed on.
pub(crate) fn within<T: Send + 'static>(
    limit: Duration,
    what: &str,
    f: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (done, result) = mpsc::channel();
    std::thread::spawn(move || {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
        let _ = done.send(outcome);
    });
    match result.recv_timeout(limit) {
        Ok(Ok(value)) => value,
        Ok(Err(panic)) => std::panic::resume_unwind(panic),
        Err(_) => panic!("hangs: {what} did not end within {limit:?}"),
    }
}

/// `None` if `f` panics: for a test that must let others go before it fails.
pub(crate) fn caught<T>(f: impl FnOnce() -> T) -> Option<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).ok()
}

/// Tells other threads to stop, also when the test fails: a scope would wait for them for ever.
#[derive(Debug)]
pub(crate) struct StopOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Drives a future without any runtime, and fails if it takes long.
pub(crate) fn soon<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    within(SOON, "a future", || futures_executor::block_on(future))
}

/// The accounting law (R12), to be asked after each step.
pub(crate) fn balanced(telemetry: &Handle) -> Stats {
    let stats = telemetry.stats();
    assert!(
        stats.is_balanced(),
        "the account does not add up: {stats:?}"
    );
    stats
}

/// A trace id that no other test uses.
pub(crate) fn some_trace() -> TraceId {
    use opentelemetry_sdk::trace::{IdGenerator as _, RandomIdGenerator};
    RandomIdGenerator::default().new_trace_id()
}

/// What a `traceparent` header with this trace id becomes.
pub(crate) fn remote_parent(trace: TraceId) -> SpanContext {
    parent(trace, SpanId::from(0xfeed), true)
}

pub(crate) fn parent(trace: TraceId, span: SpanId, remote: bool) -> SpanContext {
    SpanContext::new(trace, span, TraceFlags::SAMPLED, remote, TraceState::NONE)
}

/// A value for a context whose drop is observed.
#[derive(Debug)]
pub(crate) struct Witness(#[expect(dead_code, reason = "it is there to be counted")] Arc<()>);

/// Sees how many copies of a witness' content are alive.
#[derive(Clone, Debug)]
pub(crate) struct Alive(Weak<()>);

impl Witness {
    pub(crate) fn new() -> (Self, Alive) {
        let content = Arc::new(());
        let alive = Alive(Arc::downgrade(&content));
        (Self(content), alive)
    }
}

impl Alive {
    pub(crate) fn is_alive(&self) -> bool {
        self.0.strong_count() > 0
    }
}

/// A provider with one processor, its handle, and what its exporter saw.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) provider: SdkTracerProvider,
    pub(crate) telemetry: Handle,
    pub(crate) exporter: Recorder,
    pub(crate) tracer: SdkTracer,
}

impl World {
    /// With an exporter that takes everything.
    pub(crate) fn new(config: Config) -> Self {
        Self::with_exporter(config, Recorder::new())
    }

    pub(crate) fn with_exporter(config: Config, exporter: Recorder) -> Self {
        Self::built(config, exporter, |builder| builder)
    }

    pub(crate) fn built(
        config: Config,
        exporter: Recorder,
        customize: impl FnOnce(Builder) -> Builder,
    ) -> Self {
        Self::joined(config, exporter, customize, |_| ()).0
    }

    /// Another signal joins before the processor is given away.
    pub(crate) fn joined<T>(
        config: Config,
        exporter: Recorder,
        customize: impl FnOnce(Builder) -> Builder,
        join: impl FnOnce(&PerRequestSpanProcessor) -> T,
    ) -> (Self, T) {
        Self::sampled(config, exporter, Sampler::AlwaysOn, customize, join)
    }

    pub(crate) fn sampled<T>(
        config: Config,
        exporter: Recorder,
        sampler: impl ShouldSample + 'static,
        customize: impl FnOnce(Builder) -> Builder,
        join: impl FnOnce(&PerRequestSpanProcessor) -> T,
    ) -> (Self, T) {
        let builder = PerRequestSpanProcessor::builder(exporter.clone())
            .with_config(config)
            .with_fallback_context(Context::new().with_value(FALLBACK));
        let processor = customize(builder).build().unwrap();
        let joined = join(&processor);
        let telemetry = processor.handle();
        let provider = SdkTracerProvider::builder()
            .with_sampler(sampler)
            .with_span_processor(processor)
            .build();
        let tracer = provider.tracer("test");
        let world = Self {
            provider,
            telemetry,
            exporter,
            tracer,
        };
        (world, joined)
    }

    /// Starts a span in `cx`, and returns the context that holds it.
    pub(crate) fn start(&self, name: impl Into<String>, cx: &Context) -> Context {
        let span = self.tracer.start_with_context(name.into(), cx);
        balanced(&self.telemetry);
        cx.with_span(span)
    }

    /// Starts a local root that continues this trace, for this tenant.
    pub(crate) fn continued(&self, name: &str, number: u32, trace: TraceId) -> Context {
        let cx = tenant(number).with_remote_span_context(remote_parent(trace));
        self.start(name, &cx)
    }

    /// Ends the span that `cx` holds.
    pub(crate) fn end(&self, cx: &Context) {
        cx.span().end();
        balanced(&self.telemetry);
    }

    /// A request of one span.
    pub(crate) fn request(&self, name: impl Into<String>, cx: &Context) -> TraceId {
        let cx = self.start(name, cx);
        self.end(&cx);
        cx.span().span_context().trace_id()
    }

    pub(crate) fn flush(&self) -> Result<(), FlushError> {
        let result = soon(self.telemetry.flush());
        balanced(&self.telemetry);
        result
    }

    pub(crate) fn stats(&self) -> Stats {
        balanced(&self.telemetry)
    }

    /// Waits until the exporter was given spans of these names, in any order, and no others.
    pub(crate) fn wait_for_spans(&self, names: &[&str]) {
        let mut expected: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        expected.sort();
        wait_until(&format!("{names:?} at the exporter"), || {
            balanced(&self.telemetry);
            self.exporter.names() == expected
        });
    }
}

/// A configuration for tests that look at single batches: nothing leaves by itself before its root ends.
pub(crate) fn held_back() -> Config {
    Config::default().with_flush_trigger(opentelemetry_per_request::FlushTrigger::LocalRootEnd)
}
