//! Log records take the way of spans: each joins the request that it is emitted in, and leaves under its saved context.

mod appender;
mod bounds;
mod ending;
mod exporters;
mod flushing;
mod reentrancy;
mod requests;

use opentelemetry::Context;
use opentelemetry::logs::{LogRecord as _, Logger as _, LoggerProvider as _};
use opentelemetry::trace::{SpanId, TraceContextExt as _, TraceId};
use opentelemetry_per_request::{Builder, Config, FlushError, Handle, Stats};
use opentelemetry_sdk::logs::{SdkLogger, SdkLoggerProvider};
use opentelemetry_sdk::trace::{Sampler, ShouldSample};

use crate::support::{LogRecorder, Recorder, Tenant, World, balanced, soon, wait_until};

/// A world that log records have joined, their provider, its handle, and what their exporter saw.
#[derive(Debug)]
struct LogWorld {
    /// Of spans.
    world: World,
    provider: SdkLoggerProvider,
    logger: SdkLogger,
    telemetry: Handle,
    exporter: LogRecorder,
}

impl LogWorld {
    /// With exporters that take everything.
    fn new(config: Config) -> Self {
        Self::with_exporters(config, Recorder::new(), LogRecorder::new())
    }

    fn with_exporter(config: Config, logs: LogRecorder) -> Self {
        Self::with_exporters(config, Recorder::new(), logs)
    }

    fn with_exporters(config: Config, spans: Recorder, logs: LogRecorder) -> Self {
        Self::built(config, spans, logs, Sampler::AlwaysOn, |builder| builder)
    }

    fn sampled(config: Config, sampler: impl ShouldSample + 'static) -> Self {
        let (spans, logs) = (Recorder::new(), LogRecorder::new());
        Self::built(config, spans, logs, sampler, |builder| builder)
    }

    fn built(
        config: Config,
        spans: Recorder,
        exporter: LogRecorder,
        sampler: impl ShouldSample + 'static,
        customize: impl FnOnce(Builder) -> Builder,
    ) -> Self {
        let (world, processor) = World::sampled(config, spans, sampler, customize, |processor| {
            processor.log_processor(exporter.clone()).unwrap()
        });
        let telemetry = processor.handle();
        let provider = SdkLoggerProvider::builder()
            .with_log_processor(processor)
            .build();
        let logger = provider.logger("test");
        Self {
            world,
            provider,
            logger,
            telemetry,
            exporter,
        }
    }

    /// Emits a record in the context that is current.
    fn say(&self, body: impl Into<String>) {
        say(&self.logger, body);
        balanced(&self.telemetry);
    }

    fn say_in(&self, cx: &Context, body: impl Into<String>) {
        let _attached = cx.clone().attach();
        self.say(body);
    }

    /// Emits a record that was given these ids.
    fn say_of(&self, trace: TraceId, span: SpanId, body: impl Into<String>) {
        let mut record = self.logger.create_log_record();
        record.set_body(body.into().into());
        record.set_trace_context(trace, span, None);
        self.logger.emit(record);
        balanced(&self.telemetry);
    }

    fn flush(&self) -> Result<(), FlushError> {
        let result = soon(self.telemetry.flush());
        balanced(&self.telemetry);
        result
    }

    fn stats(&self) -> Stats {
        balanced(&self.telemetry)
    }

    /// Waits until the exporter was given records with these bodies, in any order, and no others.
    fn wait_for_logs(&self, bodies: &[&str]) {
        let mut expected = bodies.to_vec();
        expected.sort_unstable();
        wait_until(&format!("{bodies:?} at the exporter"), || {
            balanced(&self.telemetry);
            self.exporter.bodies() == expected
        });
    }

    /// Asserts under whose context the record left, and that it is marked as late, or not.
    fn assert_left(&self, body: &str, tenant: Option<Tenant>, late: Option<&str>) {
        let (log, seen) = self.exporter.log(body);
        assert_eq!(seen, tenant, "{body}");
        assert_eq!(log.late_mark().as_deref(), late, "{body}");
    }

    /// Asserts that the record names the span of this context.
    fn assert_names(&self, body: &str, cx: &Context) {
        let (log, _) = self.exporter.log(body);
        assert_eq!(log.ids(), Some(ids(cx)), "{body}");
    }
}

fn say(logger: &SdkLogger, body: impl Into<String>) {
    let mut record = logger.create_log_record();
    record.set_body(body.into().into());
    logger.emit(record);
}

fn ids(cx: &Context) -> (TraceId, SpanId) {
    let span = cx.span();
    let context = span.span_context();
    (context.trace_id(), context.span_id())
}
