//! The SDK's `SpanProcessor`, and how one is built.

use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

#[cfg(not(target_family = "wasm"))]
use opentelemetry::otel_info;
use opentelemetry::trace::{Span as _, TraceContextExt as _};
use opentelemetry::{Context, otel_warn};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
#[cfg(feature = "logs")]
use opentelemetry_sdk::logs::LogExporter;
#[cfg(feature = "metric-reader")]
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter, SpanProcessor};

use crate::clock::Instant;
use crate::config::Config;
#[cfg(feature = "metric-reader")]
use crate::dispatch::collections::Pace;
use crate::error::ConfigError;
#[cfg(feature = "logs")]
use crate::export::OfLogs;
#[cfg(feature = "metric-reader")]
use crate::export::OfMetrics;
use crate::export::{AnyExporter, OfSpans};
use crate::handle::Handle;
#[cfg(feature = "logs")]
use crate::log_processor::PerRequestLogProcessor;
#[cfg(feature = "metrics")]
use crate::metrics::{Observing, Timed};
use crate::notices::{Example, Kind};
use crate::observer::SpanObserver;
use crate::open_spans::OpenSpan;
#[cfg(feature = "metric-reader")]
use crate::reader::{Collector, PerRequestMetricReader};
use crate::renames;
use crate::request::{RequestId, strip};
use crate::runtime::{OwnRuntime, Shared};
use crate::signal::{Signal, Signals};
use crate::sync::Arc;

/// How long the last owner of a processor waits that was never shut down.
pub(crate) const DROP_TIMEOUT: Duration = Duration::from_secs(5);

type Projection = Box<dyn Fn(&Context) -> Context + Send + Sync>;

thread_local! {
    /// Whether a projection runs on this thread.
    static PROJECTING: Cell<bool> = const { Cell::new(false) };
}

/// A span processor that exports every span as it ends, in small batches, under the saved context of its own request.
///
/// See the [crate documentation](crate) for what it promises, and [`Config`] for its settings.
///
/// Dropping it shuts it down, as dropping its provider does.
pub struct PerRequestSpanProcessor {
    /// None if it is not enabled.
    shared: Option<Arc<Shared>>,
    saving: Arc<Saving>,
    /// Whether anybody is to be told of spans that are open.
    remembers_open_spans: bool,
    #[cfg(feature = "metric-reader")]
    config: Config,
    /// For what joins it.
    #[cfg(all(feature = "metrics", any(feature = "logs", feature = "metric-reader")))]
    observing: Observing,
}

/// What is kept of a context (R2).
pub(crate) struct Saving {
    fallback: Context,
    projection: Option<Projection>,
}

impl PerRequestSpanProcessor {
    /// A builder of a processor that exports through this exporter.
    ///
    /// An exporter that is bound to the runtime in which it was built (one that uses gRPC, as a rule) works as long as
    /// that runtime runs. See [`builder_with`](Self::builder_with) for one that needs no runtime of the caller's.
    pub fn builder<E: SpanExporter + 'static>(exporter: E) -> Builder {
        Builder::new(exporter, None)
    }

    /// As [`builder`](Self::builder), for an exporter that `make` makes inside the processor's own Tokio runtime.
    ///
    /// A gRPC channel that is built there lives there: it works without a runtime of the caller's, and while the caller
    /// blocks its own, in `force_flush` for one.
    ///
    /// Without the feature `tokio`, `make` is called where it is.
    ///
    /// # Errors
    ///
    /// What `make` returns, or [`std::io::Error`] if the runtime could not be started.
    ///
    /// ```
    /// # use opentelemetry_sdk::trace::InMemorySpanExporter;
    /// use opentelemetry_per_request::PerRequestSpanProcessor;
    ///
    /// let processor = PerRequestSpanProcessor::builder_with(|| {
    ///     // For example `opentelemetry_otlp::SpanExporter::builder().with_tonic().build()`.
    ///     Ok::<_, std::io::Error>(InMemorySpanExporter::default())
    /// })?
    /// .build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn builder_with<E, R>(make: impl FnOnce() -> Result<E, R>) -> Result<Builder, R>
    where
        E: SpanExporter + 'static,
        R: From<std::io::Error>,
    {
        let runtime = OwnRuntime::new()?;
        let exporter = runtime.enter(make)?;
        Ok(Builder::new(exporter, Some(runtime)))
    }

    /// A handle to flush this processor and to read its numbers, which stays valid when the processor is given away. Its
    /// flush is one of spans only.
    pub fn handle(&self) -> Handle {
        Handle::new(self.shared.clone(), Signals::of(Signal::Spans))
    }

    /// A log processor whose records join the requests of this one, and leave through this exporter. See
    /// [`PerRequestLogProcessor`](crate::PerRequestLogProcessor).
    ///
    /// It has the settings of this processor, and lives and is shut down by itself: in whichever order. If everything that there
    /// was is shut down already, so is what is returned; in Cloudflare Workers it runs nevertheless.
    ///
    /// # Errors
    ///
    /// [`ConfigError::AlreadyJoined`] if it was called before.
    #[cfg(feature = "logs")]
    pub fn log_processor<E>(&self, exporter: E) -> Result<PerRequestLogProcessor, ConfigError>
    where
        E: LogExporter + 'static,
    {
        #[cfg(feature = "metrics")]
        let exporter = Timed::new(exporter, self.observing.durations(Signal::Logs));
        self.join(Signal::Logs, Arc::new(OfLogs(exporter)))?;
        let saving = self.saving.clone();
        Ok(PerRequestLogProcessor::new(self.shared.clone(), saving))
    }

    /// A metric reader that collects when requests of this processor end, and exports through this exporter. See
    /// [`PerRequestMetricReader`](crate::PerRequestMetricReader).
    ///
    /// It has the settings of this processor, and lives and is shut down by itself: in whichever order. If everything that there
    /// was is shut down already, so is what is returned; in Cloudflare Workers it runs nevertheless.
    ///
    /// # Errors
    ///
    /// [`ConfigError::AlreadyJoined`] if it was called before.
    #[cfg(feature = "metric-reader")]
    pub fn metric_reader<E>(&self, exporter: E) -> Result<PerRequestMetricReader, ConfigError>
    where
        E: PushMetricExporter,
    {
        let collector = Arc::new(Collector::new(exporter.temporality()));
        self.join(Signal::Metrics, Arc::new(OfMetrics(exporter)))?;
        if let Some(shared) = &self.shared {
            shared.collect_from(collector.clone(), Pace::new(&self.config, Instant::now()));
        }
        Ok(PerRequestMetricReader::new(self.shared.clone(), collector))
    }

    /// Its own metrics go here from now on.
    #[cfg(all(feature = "metrics", feature = "metric-reader"))]
    pub(crate) fn observe_with(&mut self, provider: &impl opentelemetry::metrics::MeterProvider) {
        if let Some(shared) = &self.shared {
            let meter = provider.meter(env!("CARGO_PKG_NAME"));
            self.observing.observe_with(shared, meter);
        }
    }

    #[cfg(any(feature = "logs", feature = "metric-reader"))]
    fn join(&self, signal: Signal, exporter: Arc<dyn AnyExporter>) -> Result<(), ConfigError> {
        let Some(shared) = &self.shared else {
            return Ok(());
        };
        if !shared.join(signal, exporter) {
            return Err(ConfigError::AlreadyJoined(signal.as_str()));
        }
        #[cfg(feature = "metrics")]
        self.observing.observe(shared, signal);
        Ok(())
    }
}

impl Saving {
    /// What is kept of the context that a local root starts in.
    pub(crate) fn save(&self, shared: &Arc<Shared>, cx: &Context) -> Context {
        let Some(projection) = &self.projection else {
            return strip(cx);
        };
        // A projection that logs, or starts a span, would be called for that, and so for ever.
        if PROJECTING.replace(true) {
            return self.fallback.clone();
        }
        let projected = catch_unwind(AssertUnwindSafe(|| strip(&projection(cx))));
        PROJECTING.set(false);
        match projected {
            Ok(saved) => saved,
            Err(_) => {
                shared.note(Kind::ProjectionPanicked, 1, Example::None);
                self.fallback.clone()
            }
        }
    }
}

impl SpanProcessor for PerRequestSpanProcessor {
    fn on_start(&self, span: &mut Span, cx: &Context) {
        let Some(shared) = &self.shared else {
            return;
        };
        let (trace, id) = {
            let started = span.span_context();
            (started.trace_id(), started.span_id())
        };
        let open = match self.remembers_open_spans {
            true => opening(span),
            false => None,
        };
        let parent = cx.span();
        let parent = parent.span_context();
        if parent.is_valid() && !parent.is_remote() {
            shared.start_child(trace, parent.span_id(), id, open);
        } else {
            let saved = self.saving.save(shared, cx);
            shared.start_root(RequestId { trace, root: id }, saved, open);
        }
    }

    fn on_end(&self, span: SpanData) {
        if let Some(shared) = &self.shared {
            shared.end(span);
        }
    }

    /// Blocks until every span that had ended before the call is done, and then calls the exporter's `force_flush`. The
    /// deadline is the export timeout.
    ///
    /// # Errors
    ///
    /// As [`Handle::flush`], which does the same without blocking. On a thread where waiting could only deadlock it fails
    /// at once, or after a second without progress, with an error that names that way.
    fn force_flush(&self) -> OTelSdkResult {
        let Some(shared) = &self.shared else {
            return Ok(());
        };
        let timeout = shared.default_timeout();
        shared.flush_blocking(Signals::of(Signal::Spans), timeout)?;
        Ok(())
    }

    /// As [`Handle::shutdown`], blocking.
    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        let Some(shared) = &self.shared else {
            return Ok(());
        };
        let done = shared.shutdown_blocking(Signal::Spans, timeout);
        done.inspect_err(|error| {
            // Shutting down is often the work of a drop, where nobody sees the error.
            otel_warn!(
                name: "PerRequestSpanProcessor.ShutdownFailed",
                error = error.to_string()
            );
        })?;
        Ok(())
    }

    fn set_resource(&mut self, resource: &Resource) {
        if let Some(shared) = &self.shared {
            shared.set_resource(Signal::Spans, resource);
        }
    }
}

/// What is remembered of a span that starts. Nothing of one that is not sampled.
fn opening(span: &Span) -> Option<Box<OpenSpan>> {
    if !span.span_context().is_sampled() {
        return None;
    }
    Some(OpenSpan::starting(span.exported_data()?, Instant::now()))
}

impl Drop for PerRequestSpanProcessor {
    fn drop(&mut self) {
        // A provider shuts it down before it drops it, and has waited for that.
        if self
            .shared
            .as_ref()
            .is_some_and(|shared| !shared.is_closed(Signal::Spans))
        {
            let _ = self.shutdown_with_timeout(DROP_TIMEOUT);
        }
    }
}

impl fmt::Debug for PerRequestSpanProcessor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerRequestSpanProcessor")
            .field("enabled", &self.shared.is_some())
            .field("stats", &self.handle().stats())
            .finish_non_exhaustive()
    }
}

/// Builds a [`PerRequestSpanProcessor`].
///
/// ```
/// # use opentelemetry_sdk::trace::InMemorySpanExporter;
/// use opentelemetry::Context;
/// use opentelemetry_per_request::{Config, PerRequestSpanProcessor};
///
/// #[derive(Debug)]
/// struct Tenant(&'static str);
///
/// let processor = PerRequestSpanProcessor::builder(InMemorySpanExporter::default())
///     .with_config(Config::from_env().with_max_traces(5000))
///     .with_fallback_context(Context::new().with_value(Tenant("the service itself")))
///     .build()?;
/// # Ok::<(), opentelemetry_per_request::ConfigError>(())
/// ```
#[must_use = "a builder does nothing until `build` is called"]
pub struct Builder {
    exporter: Arc<dyn AnyExporter>,
    runtime: Option<OwnRuntime>,
    config: Option<Config>,
    fallback: Context,
    projection: Option<Projection>,
    mark_late: bool,
    observer: Option<Arc<dyn SpanObserver>>,
    #[cfg(feature = "metrics")]
    observing: Observing,
}

impl Builder {
    fn new<E: SpanExporter + 'static>(exporter: E, runtime: Option<OwnRuntime>) -> Self {
        #[cfg(feature = "metrics")]
        let observing = Observing::default();
        #[cfg(feature = "metrics")]
        let exporter = Timed::new(exporter, observing.durations(Signal::Spans));
        Self {
            exporter: Arc::new(OfSpans(exporter)),
            runtime,
            config: None,
            fallback: Context::new(),
            projection: None,
            mark_late: true,
            observer: None,
            #[cfg(feature = "metrics")]
            observing,
        }
    }

    /// The settings. [`Config::from_env`] by default.
    pub fn with_config(mut self, config: Config) -> Self {
        self.config = Some(config);
        self
    }

    /// The context that late spans are exported under (R8), and log records outside of any request, and metrics. An empty one
    /// by default.
    ///
    /// Give it the credentials of the service itself, if they are to arrive. It is never the context that happens
    /// to be current where a span ends, because that may be another request's. A live span in it is not kept.
    pub fn with_fallback_context(mut self, context: Context) -> Self {
        self.fallback = strip(&context);
        self
    }

    /// What is kept of the context that a request's local root starts in, for the time of the request. Everything but its
    /// live span by default (R2).
    ///
    /// `projection` is called once for each request, where its root span starts, and for each log record in a span that is not
    /// recorded, so it should be quick. If it panics, the request is exported under the fallback context; so are root spans
    /// that it starts, and such log records of its own.
    ///
    /// ```
    /// # use opentelemetry_sdk::trace::InMemorySpanExporter;
    /// use opentelemetry::Context;
    /// use opentelemetry_per_request::PerRequestSpanProcessor;
    ///
    /// #[derive(Clone)]
    /// struct Tenant(u32);
    ///
    /// let processor = PerRequestSpanProcessor::builder(InMemorySpanExporter::default())
    ///     .with_context_projection(|cx| match cx.get::<Tenant>() {
    ///         Some(tenant) => Context::new().with_value(tenant.clone()),
    ///         None => Context::new(),
    ///     })
    ///     .build()?;
    /// # Ok::<(), opentelemetry_per_request::ConfigError>(())
    /// ```
    pub fn with_context_projection(
        mut self,
        projection: impl Fn(&Context) -> Context + Send + Sync + 'static,
    ) -> Self {
        self.projection = Some(Box::new(projection));
        self
    }

    /// Whether a late span gets the attribute `per_request.late`, with the reason as its value. True by default.
    pub fn with_late_attribute(mut self, mark: bool) -> Self {
        self.mark_late = mark;
        self
    }

    /// Who is told of each sampled span when it opens, when it is renamed, and when it closes. See [`SpanObserver`].
    ///
    /// Of several, the last one.
    pub fn with_span_observer(mut self, observer: impl SpanObserver) -> Self {
        self.observer = Some(Arc::new(observer));
        self
    }

    /// Where the processor's own metrics go, in place of the global meter provider.
    ///
    /// The global one is asked when `build` is called, so it should be set before.
    #[cfg(feature = "metrics")]
    pub fn with_meter_provider(
        mut self,
        provider: &impl opentelemetry::metrics::MeterProvider,
    ) -> Self {
        self.observing
            .set_meter(provider.meter(env!("CARGO_PKG_NAME")));
        self
    }

    /// Exports run in this runtime, in which the exporter was made.
    pub(crate) fn in_runtime(mut self, runtime: Option<OwnRuntime>) -> Self {
        self.runtime = self.runtime.or(runtime);
        self
    }

    /// Nothing observes the processor until it is told what does.
    #[cfg(all(feature = "metrics", feature = "metric-reader"))]
    pub(crate) fn observed_later(mut self) -> Self {
        self.observing.defer();
        self
    }

    /// Builds the processor and starts the thread that drives it.
    ///
    /// # Errors
    ///
    /// A [`ConfigError`] for a setting given in code that makes no sense, or if the thread cannot be started.
    pub fn build(self) -> Result<PerRequestSpanProcessor, ConfigError> {
        let config = self.config.unwrap_or_else(Config::from_env);
        config.validate()?;
        let shared = match config.enabled() {
            true => {
                let independent = self.runtime.is_some();
                let runtime = match self.runtime {
                    Some(runtime) => runtime,
                    None => OwnRuntime::new().map_err(ConfigError::Thread)?,
                };
                let exporter = self.exporter;
                Some(Shared::start(
                    &config,
                    self.fallback.clone(),
                    self.mark_late,
                    exporter,
                    runtime,
                    independent,
                    self.observer,
                )?)
            }
            false => {
                say_disabled();
                None
            }
        };
        #[cfg(feature = "metrics")]
        if let Some(shared) = &shared {
            self.observing.observe(shared, Signal::Spans);
        }
        let listening = shared.as_ref().filter(|s| s.remembers_open_spans());
        if let Some(shared) = listening {
            renames::listen(shared);
        }
        let remembers_open_spans = listening.is_some();
        Ok(PerRequestSpanProcessor {
            shared,
            saving: Arc::new(Saving {
                fallback: self.fallback,
                projection: self.projection,
            }),
            remembers_open_spans,
            #[cfg(feature = "metric-reader")]
            config,
            #[cfg(all(feature = "metrics", any(feature = "logs", feature = "metric-reader")))]
            observing: self.observing,
        })
    }
}

const DISABLED: &str = "per-request export is switched off; no span will be exported";

#[cfg(not(target_family = "wasm"))]
fn say_disabled() {
    otel_info!(name: "PerRequestSpanProcessor.Disabled", message = DISABLED);
}

#[cfg(target_family = "wasm")]
fn say_disabled() {
    crate::workers::console::log(DISABLED);
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("exporter", &self.exporter)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
