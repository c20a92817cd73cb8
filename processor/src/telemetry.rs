//! All three signals in one: providers that share a resource, exporters, settings and requests.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::Resource;
#[cfg(feature = "logs")]
use opentelemetry_sdk::logs::{LogExporter, LoggerProviderBuilder, SdkLoggerProvider};
#[cfg(feature = "metric-reader")]
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
#[cfg(feature = "metric-reader")]
use opentelemetry_sdk::metrics::{MeterProviderBuilder, SdkMeterProvider};
use opentelemetry_sdk::trace::{
    SdkTracerProvider, ShouldSample, SpanExporter, TracerProviderBuilder,
};

use crate::active::RequestTracer;
use crate::config::Config;
use crate::error::{ConfigError, FlushError};
use crate::handle::Handle;
#[cfg(feature = "logs")]
use crate::log_processor::PerRequestLogProcessor;
use crate::processor::{Builder, PerRequestSpanProcessor};
#[cfg(feature = "metric-reader")]
use crate::reader::PerRequestMetricReader;
use crate::runtime::OwnRuntime;
#[cfg(feature = "logs")]
use crate::sampler::RecordUnsampled;
#[cfg(feature = "tower")]
use crate::server::ServerLayer;
use crate::signal::Signal;
use crate::stats::Stats;

/// Spans, log records and metrics, exported by request: the providers of all three, and one flush.
///
/// It is what [`PerRequestSpanProcessor`], `PerRequestLogProcessor` and `PerRequestMetricReader` are put together to by hand
/// otherwise. Cheap to clone; a provider is shut down when the last of its clones is dropped.
///
/// ```
/// # use opentelemetry_sdk::trace::InMemorySpanExporter;
/// # use opentelemetry_sdk::logs::InMemoryLogExporter;
/// # use opentelemetry_sdk::metrics::InMemoryMetricExporter;
/// # #[cfg(all(feature = "logs", feature = "metric-reader"))]
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let (spans, logs, metrics) = (
/// #     InMemorySpanExporter::default(),
/// #     InMemoryLogExporter::default(),
/// #     InMemoryMetricExporter::default(),
/// # );
/// use opentelemetry::Context;
/// use opentelemetry::metrics::MeterProvider as _;
/// use opentelemetry_per_request::{Telemetry, in_child};
///
/// # futures_executor::block_on(async {
/// // Or `.with_exporter(exporter)`, for one that takes all three, such as a `DirectExporter`.
/// let telemetry = Telemetry::builder()
///     .with_span_exporter(spans)
///     .with_log_exporter(logs)
///     .with_metric_exporter(metrics)
///     .build()?;
/// let orders = telemetry.meter_provider().meter("shop").u64_counter("orders").build();
///
/// let tracer = telemetry.request_tracer("shop");
/// tracer.run("order", &Context::new(), async {
///     in_child("pay", async { orders.add(1, &[]) }).await;
/// }).await;
///
/// telemetry.flush().await?; // all three are acknowledged, or the error says what of which is lost
/// assert_eq!(telemetry.stats().exported, 2);
/// # Ok::<(), Box<dyn std::error::Error>>(()) })
/// # }
/// # #[cfg(not(all(feature = "logs", feature = "metric-reader")))]
/// # fn main() {}
/// ```
#[derive(Clone)]
pub struct Telemetry {
    handle: Handle,
    tracer_provider: SdkTracerProvider,
    #[cfg(feature = "logs")]
    logger_provider: SdkLoggerProvider,
    #[cfg(feature = "metric-reader")]
    meter_provider: SdkMeterProvider,
}

/// What a flush or a shutdown has to report, for each signal: `None` is that all of it arrived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TelemetryError {
    /// Of spans.
    pub spans: Option<FlushError>,
    /// Of log records.
    pub logs: Option<FlushError>,
    /// Of metrics.
    pub metrics: Option<FlushError>,
}

#[cfg(feature = "logs")]
type JoinLogs =
    Box<dyn FnOnce(&PerRequestSpanProcessor) -> Result<PerRequestLogProcessor, ConfigError>>;
#[cfg(feature = "metric-reader")]
type JoinMetrics =
    Box<dyn FnOnce(&PerRequestSpanProcessor) -> Result<PerRequestMetricReader, ConfigError>>;
type More<B> = Box<dyn FnOnce(B) -> B>;

/// Builds a [`Telemetry`].
#[must_use = "a builder does nothing until `build` is called"]
#[derive(Default)]
pub struct TelemetryBuilder {
    spans: Option<Builder>,
    runtime: Option<OwnRuntime>,
    #[cfg(feature = "logs")]
    logs: Option<JoinLogs>,
    #[cfg(feature = "metric-reader")]
    metrics: Option<JoinMetrics>,
    config: Option<Config>,
    resource: Option<Resource>,
    sampler: Option<Box<dyn ShouldSample>>,
    processor: Vec<More<Builder>>,
    tracer_provider: Option<More<TracerProviderBuilder>>,
    #[cfg(feature = "logs")]
    logger_provider: Option<More<LoggerProviderBuilder>>,
    #[cfg(feature = "metric-reader")]
    meter_provider: Option<More<MeterProviderBuilder>>,
}

// ===== impl Telemetry =====

impl Telemetry {
    /// A builder. An exporter of spans must be given; the others are optional.
    pub fn builder() -> TelemetryBuilder {
        TelemetryBuilder::default()
    }

    /// As [`builder`](Self::builder), for exporters that are made inside the runtime that exports run in: those of gRPC, as a
    /// rule. See [`PerRequestSpanProcessor::builder_with`].
    ///
    /// # Errors
    ///
    /// What `give` returns, or [`std::io::Error`] if the runtime could not be started.
    ///
    /// ```
    /// # use opentelemetry_sdk::trace::InMemorySpanExporter;
    /// use opentelemetry_per_request::Telemetry;
    ///
    /// let telemetry = Telemetry::builder_with(|builder| {
    ///     // For example `opentelemetry_otlp::SpanExporter::builder().with_tonic().build()`.
    ///     let spans = InMemorySpanExporter::default();
    ///     Ok::<_, std::io::Error>(builder.with_span_exporter(spans))
    /// })?
    /// .build()?;
    /// # drop(telemetry);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn builder_with<R>(
        give: impl FnOnce(TelemetryBuilder) -> Result<TelemetryBuilder, R>,
    ) -> Result<TelemetryBuilder, R>
    where
        R: From<std::io::Error>,
    {
        let runtime = OwnRuntime::new()?;
        let mut builder = runtime.enter(|| give(Self::builder()))?;
        builder.runtime = Some(runtime);
        Ok(builder)
    }

    /// The provider of tracers.
    pub fn tracer_provider(&self) -> &SdkTracerProvider {
        &self.tracer_provider
    }

    /// The provider of loggers, for an appender such as `OpenTelemetryTracingBridge`. It exports nothing if no log exporter
    /// was given.
    #[cfg(feature = "logs")]
    pub fn logger_provider(&self) -> &SdkLoggerProvider {
        &self.logger_provider
    }

    /// The provider of meters. It exports nothing if no metric exporter was given.
    #[cfg(feature = "metric-reader")]
    pub fn meter_provider(&self) -> &SdkMeterProvider {
        &self.meter_provider
    }

    /// What starts the first span of a request, and keeps requests open for work that is carried out of them: for the layers,
    /// and for requests that are none of HTTP. `scope` names the instrumentation.
    pub fn request_tracer(&self, scope: &'static str) -> RequestTracer {
        let tracer = self.tracer_provider.tracer(scope);
        RequestTracer::new(tracer).with_handle(self.handle.clone())
    }

    /// A layer that puts a span around each request of an axum, hyper or tonic server.
    #[cfg(feature = "tower")]
    pub fn server_layer(&self) -> ServerLayer {
        ServerLayer::new(self)
    }

    /// A layer for `tracing`: its spans become those of the request that they happen in. See
    /// [`tracing_layer`](crate::tracing_layer), and what it says of its panics.
    ///
    /// Its events become events of spans. For log records, put the layer of an appender beside it, such as
    /// `OpenTelemetryTracingBridge::new(telemetry.logger_provider())`, and this one under a filter that lets no events pass.
    #[cfg(feature = "tracing")]
    pub fn tracing_layer<S>(
        &self,
    ) -> impl tracing_subscriber::Layer<S> + Send + Sync + 'static + use<S>
    where
        S: tracing_core::Subscriber
            + for<'span> tracing_subscriber::registry::LookupSpan<'span>
            + Send
            + Sync,
    {
        crate::tracing_layer::tracing_layer(self.into())
    }

    /// A handle to all three signals: to flush or shut them down together, to read numbers, to keep requests open.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// The numbers of all three signals at this moment. All zero if exporting is switched off.
    pub fn stats(&self) -> Stats {
        self.handle.stats()
    }

    /// Makes these the global providers, of traces and of metrics. There is no global one of logs: appenders are given theirs.
    pub fn set_global(&self) {
        opentelemetry::global::set_tracer_provider(self.tracer_provider.clone());
        #[cfg(feature = "metric-reader")]
        opentelemetry::global::set_meter_provider(self.meter_provider.clone());
    }

    /// Puts everything of all three signals on the wire, and waits until it is acknowledged, failed or dropped. Metrics are
    /// collected first. The deadline is the export timeout, 30 s by default.
    ///
    /// No signal waits for another. The future needs no particular runtime and does not block. It is cancel safe, and the
    /// flush starts when this method is called.
    ///
    /// # Errors
    ///
    /// [`TelemetryError`] says of each signal what [`Handle::flush`] would say of it.
    pub fn flush(&self) -> impl Future<Output = Result<(), TelemetryError>> + Send + use<> {
        let flush = |signal| self.handle.of(signal).flush();
        Self::all(Signal::ALL.map(flush))
    }

    /// As [`flush`](Self::flush), with a deadline of its own.
    ///
    /// # Errors
    ///
    /// As [`flush`](Self::flush).
    pub fn flush_with_timeout(
        &self,
        timeout: Duration,
    ) -> impl Future<Output = Result<(), TelemetryError>> + Send + use<> {
        let flush = |signal| self.handle.of(signal).flush_with_timeout(timeout);
        Self::all(Signal::ALL.map(flush))
    }

    /// Takes no more of any signal, flushes all three within the deadline, and shuts their exporters down. See
    /// [`Handle::shutdown`].
    ///
    /// # Errors
    ///
    /// As [`flush`](Self::flush); everything is shut down nevertheless.
    pub fn shutdown(
        &self,
        timeout: Duration,
    ) -> impl Future<Output = Result<(), TelemetryError>> + Send + use<> {
        let shutdown = |signal| self.handle.of(signal).shutdown(timeout);
        Self::all(Signal::ALL.map(shutdown))
    }

    /// All of them were started, so none waits for the one before it.
    async fn all(
        [spans, logs, metrics]: [impl Future<Output = Result<(), FlushError>>; 3],
    ) -> Result<(), TelemetryError> {
        let error = TelemetryError {
            spans: spans.await.err(),
            logs: logs.await.err(),
            metrics: metrics.await.err(),
        };
        match error == TelemetryError::default() {
            true => Ok(()),
            false => Err(error),
        }
    }

    /// Spans alone, by a provider that has a processor of this handle.
    #[cfg(target_family = "wasm")]
    pub(crate) fn of_spans(handle: Handle, tracer_provider: SdkTracerProvider) -> Self {
        Self {
            handle: handle.of_all(),
            tracer_provider,
            #[cfg(feature = "logs")]
            logger_provider: SdkLoggerProvider::builder().build(),
            #[cfg(feature = "metric-reader")]
            meter_provider: SdkMeterProvider::builder().build(),
        }
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

/// With the name of this crate as the instrumentation's.
impl From<&Telemetry> for RequestTracer {
    fn from(telemetry: &Telemetry) -> Self {
        telemetry.request_tracer(env!("CARGO_PKG_NAME"))
    }
}

// ===== impl TelemetryError =====

impl fmt::Display for TelemetryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let signals = [&self.spans, &self.logs, &self.metrics];
        let mut separator = "";
        for (signal, error) in Signal::ALL.into_iter().zip(signals) {
            if let Some(error) = error {
                write!(f, "{separator}{}: {error}", signal.as_str())?;
                separator = "; ";
            }
        }
        Ok(())
    }
}

impl std::error::Error for TelemetryError {}

// ===== impl TelemetryBuilder =====

impl TelemetryBuilder {
    /// An exporter of all three signals, such as a `DirectExporter`.
    #[cfg(all(feature = "logs", feature = "metric-reader"))]
    pub fn with_exporter<E>(self, exporter: E) -> Self
    where
        E: SpanExporter + LogExporter + PushMetricExporter + Clone + 'static,
    {
        self.with_span_exporter(exporter.clone())
            .with_log_exporter(exporter.clone())
            .with_metric_exporter(exporter)
    }

    /// What spans are exported by.
    pub fn with_span_exporter<E: SpanExporter + 'static>(mut self, exporter: E) -> Self {
        self.spans = Some(PerRequestSpanProcessor::builder(exporter));
        self
    }

    /// What log records are exported by. Without it there are none.
    #[cfg(feature = "logs")]
    pub fn with_log_exporter<E: LogExporter + 'static>(mut self, exporter: E) -> Self {
        self.logs = Some(Box::new(|spans| spans.log_processor(exporter)));
        self
    }

    /// What metrics are exported by. Without it there are none. Its temporality is that of the metrics.
    #[cfg(feature = "metric-reader")]
    pub fn with_metric_exporter<E: PushMetricExporter>(mut self, exporter: E) -> Self {
        self.metrics = Some(Box::new(|spans| spans.metric_reader(exporter)));
        self
    }

    /// The settings. [`Config::from_env`] by default. If they switch exporting off, all three providers do nothing.
    pub fn with_config(mut self, config: Config) -> Self {
        self.config = Some(config);
        self
    }

    /// What leaves under no request's context does under this one: metrics, log records outside of any request, and what is
    /// late. See [`Builder::with_fallback_context`].
    pub fn with_fallback_context(self, context: Context) -> Self {
        self.with_processor(|builder| builder.with_fallback_context(context))
    }

    /// What else the span processor is to have: a projection, for one. See [`Builder`].
    pub fn with_processor(mut self, more: impl FnOnce(Builder) -> Builder + 'static) -> Self {
        self.processor.push(Box::new(more));
        self
    }

    /// Who is telling all of this. What the SDK finds in the environment by default.
    pub fn with_resource(mut self, resource: Resource) -> Self {
        self.resource = Some(resource);
        self
    }

    /// Which traces are sampled. What `OTEL_TRACES_SAMPLER` says by default, and otherwise all but those whose caller says
    /// that they are not.
    ///
    /// Log records and metrics are exported whatever it says. With a log exporter it is put into a
    /// [`RecordUnsampled`](crate::RecordUnsampled), so that records of a request that is not sampled leave as that request's.
    pub fn with_sampler(mut self, sampler: impl Into<Box<dyn ShouldSample>>) -> Self {
        self.sampler = Some(sampler.into());
        self
    }

    /// What else the tracer provider is to have: limits, or more processors. A sampler belongs into
    /// [`with_sampler`](Self::with_sampler). With a log exporter, other processors see spans that are not sampled, which the SDK's
    /// batch processor exports; a sampler that is set here again keeps it from that.
    pub fn with_tracer_provider(
        mut self,
        more: impl FnOnce(TracerProviderBuilder) -> TracerProviderBuilder + 'static,
    ) -> Self {
        self.tracer_provider = Some(Box::new(more));
        self
    }

    /// What else the logger provider is to have.
    #[cfg(feature = "logs")]
    pub fn with_logger_provider(
        mut self,
        more: impl FnOnce(LoggerProviderBuilder) -> LoggerProviderBuilder + 'static,
    ) -> Self {
        self.logger_provider = Some(Box::new(more));
        self
    }

    /// What else the meter provider is to have: views, for one.
    #[cfg(feature = "metric-reader")]
    pub fn with_meter_provider(
        mut self,
        more: impl FnOnce(MeterProviderBuilder) -> MeterProviderBuilder + 'static,
    ) -> Self {
        self.meter_provider = Some(Box::new(more));
        self
    }

    /// The settings in the bindings of a Worker, and a resource from its bindings `OTEL_SERVICE_NAME` and
    /// `OTEL_RESOURCE_ATTRIBUTES`. A `service.instance.id` of its own tells this isolate from others: it is what makes their
    /// metrics add up.
    #[cfg(target_family = "wasm")]
    pub fn with_worker_env(self, env: &worker::Env) -> Self {
        self.with_config(Config::from_worker_env(env))
            .with_resource(crate::workers::resource_of_instance(env))
    }

    /// Builds the providers, and starts the thread that drives exports.
    ///
    /// # Errors
    ///
    /// [`ConfigError::NoExporter`] without an exporter of spans, and what [`Builder::build`] refuses.
    pub fn build(self) -> Result<Telemetry, ConfigError> {
        let mut spans = self.spans.ok_or(ConfigError::NoExporter)?;
        if let Some(config) = self.config {
            spans = spans.with_config(config);
        }
        for more in self.processor {
            spans = more(spans);
        }
        let spans = spans.in_runtime(self.runtime);
        #[cfg(all(feature = "metrics", feature = "metric-reader"))]
        let spans = match self.metrics {
            // It is to be observed by the metrics that it exports, which are not there yet.
            Some(_) => spans.observed_later(),
            None => spans,
        };
        let spans = spans.build()?;
        let handle = spans.handle().of_all();
        let resource = self.resource.unwrap_or_else(|| Resource::builder().build());

        #[cfg(feature = "logs")]
        let (logs, sampler) = {
            let logs = self.logs.map(|join| join(&spans)).transpose()?;
            let sampler = match logs.is_some() {
                false => self.sampler,
                true => {
                    let default = || opentelemetry_sdk::trace::Config::default().sampler;
                    let sampler = self.sampler.unwrap_or_else(default);
                    Some(RecordUnsampled::new(sampler).into())
                }
            };
            (logs, sampler)
        };
        #[cfg(not(feature = "logs"))]
        let sampler = self.sampler;

        #[cfg(feature = "metric-reader")]
        let (spans, meter_provider) = {
            #[cfg(feature = "metrics")]
            let mut spans = spans;
            let observed = self.metrics.is_some();
            let reader = self.metrics.map(|join| join(&spans)).transpose()?;
            let mut builder = SdkMeterProvider::builder().with_resource(resource.clone());
            if let Some(more) = self.meter_provider {
                builder = more(builder);
            }
            if let Some(reader) = reader {
                builder = builder.with_reader(reader);
            }
            let provider = builder.build();
            #[cfg(feature = "metrics")]
            if observed {
                spans.observe_with(&provider);
            }
            #[cfg(not(feature = "metrics"))]
            let _ = observed;
            (spans, provider)
        };

        #[cfg(feature = "logs")]
        let logger_provider = {
            let mut builder = SdkLoggerProvider::builder().with_resource(resource.clone());
            if let Some(more) = self.logger_provider {
                builder = more(builder);
            }
            if let Some(logs) = logs {
                builder = builder.with_log_processor(logs);
            }
            builder.build()
        };

        let mut builder = SdkTracerProvider::builder().with_resource(resource);
        if let Some(sampler) = sampler {
            builder = builder.with_sampler(sampler);
        }
        if let Some(more) = self.tracer_provider {
            builder = more(builder);
        }
        Ok(Telemetry {
            handle,
            tracer_provider: builder.with_span_processor(spans).build(),
            #[cfg(feature = "logs")]
            logger_provider,
            #[cfg(feature = "metric-reader")]
            meter_provider,
        })
    }
}

impl fmt::Debug for TelemetryBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TelemetryBuilder")
            .field("spans", &self.spans)
            .field("config", &self.config)
            .field("resource", &self.resource)
            .field("sampler", &self.sampler)
            .finish_non_exhaustive()
    }
}
