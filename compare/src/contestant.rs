//! Who is compared, and how each is set up: as its documentation says, with its defaults.

use std::io;
use std::thread;
use std::time::Duration;

use opentelemetry_http::HttpClient;
use opentelemetry_otlp::{LogExporter, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_otlp_direct::{DirectExporter, TokenClient};
use opentelemetry_per_request::{Config, Handle, PerRequestSpanProcessor};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{
    BatchLogProcessor, SdkLoggerProvider, SimpleLogProcessor,
    log_processor_with_async_runtime::BatchLogProcessor as AsyncBatchLogProcessor,
};
use opentelemetry_sdk::runtime::{Tokio, TokioCurrentThread};
use opentelemetry_sdk::trace::{
    BatchSpanProcessor, SdkTracerProvider, SimpleSpanProcessor, SpanData, TracerProviderBuilder,
    span_processor_with_async_runtime::BatchSpanProcessor as AsyncBatchSpanProcessor,
};
use tokio::runtime::Runtime;

/// What the OTLP exporter gives a client that it makes itself.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) type Failed = Box<dyn std::error::Error + Send + Sync>;

/// What a scenario is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    Spans,
    Logs,
}

/// A processor of spans, or of log records, with an exporter and an HTTP client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contestant {
    /// The SDK's, with reqwest's blocking client.
    Simple,
    /// The same with the async client, which its documentation names for threads of a runtime.
    SimpleAsync,
    /// The SDK's, with reqwest's blocking client.
    Batch,
    /// The SDK's experimental one, with the async client, in the kind of runtime that the caller has.
    AsyncBatch,
    /// The same on the caller's runtime, also where that has one thread.
    AsyncBatchOfCaller,
    /// Ours over `opentelemetry-otlp`, with the async client.
    PerRequest,
    /// Ours over our exporter.
    PerRequestDirect,
}

/// Where the program runs that has the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// On threads of its own, with a multi-thread runtime beside them.
    Threads,
    /// In a tokio runtime with one thread.
    CurrentThread,
}

/// Providers, of which the one of the scenario's signal has a contestant in it.
#[derive(Debug)]
pub(crate) struct Installed {
    pub(crate) tracers: SdkTracerProvider,
    pub(crate) loggers: SdkLoggerProvider,
    /// Ours has one.
    pub(crate) handle: Option<Handle>,
    /// What the processor runs on, if it needs one of the caller's.
    _runtime: Option<Runtime>,
}

impl Signal {
    /// As in URLs.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Spans => "/v1/traces",
            Self::Logs => "/v1/logs",
        }
    }

    /// What its items are called.
    pub(crate) fn items(self) -> &'static str {
        match self {
            Self::Spans => "spans",
            Self::Logs => "log records",
        }
    }

    /// What becomes of them in a service.
    pub(crate) fn ended(self) -> &'static str {
        match self {
            Self::Spans => "ended",
            Self::Logs => "emitted",
        }
    }
}

/// Takes spans, and sends them nowhere.
#[derive(Debug)]
struct Nowhere;

impl opentelemetry_sdk::trace::SpanExporter for Nowhere {
    async fn export(&self, _batch: Vec<SpanData>) -> OTelSdkResult {
        Ok(())
    }
}

impl Contestant {
    pub(crate) const ALL: [Self; 7] = [
        Self::Simple,
        Self::SimpleAsync,
        Self::Batch,
        Self::AsyncBatch,
        Self::AsyncBatchOfCaller,
        Self::PerRequest,
        Self::PerRequestDirect,
    ];

    /// Each processor once, and ours with both exporters.
    pub(crate) const MAIN: [Self; 5] = [
        Self::Simple,
        Self::Batch,
        Self::AsyncBatch,
        Self::PerRequest,
        Self::PerRequestDirect,
    ];

    pub(crate) const OURS: [Self; 2] = [Self::PerRequest, Self::PerRequestDirect];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Simple => "simple",
            Self::SimpleAsync => "simple, async client",
            Self::Batch => "batch",
            Self::AsyncBatch => "async-runtime batch",
            Self::AsyncBatchOfCaller => "async-runtime batch, `runtime::Tokio`",
            Self::PerRequest => "**per-request**",
            Self::PerRequestDirect => "**per-request, `DirectExporter`**",
        }
    }

    /// The name for a command line and for JSON.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::Simple => "simple",
            Self::SimpleAsync => "simple_async_client",
            Self::Batch => "batch",
            Self::AsyncBatch => "async_batch",
            Self::AsyncBatchOfCaller => "async_batch_runtime_tokio",
            Self::PerRequest => "per_request",
            Self::PerRequestDirect => "per_request_direct",
        }
    }

    pub(crate) fn is_ours(self) -> bool {
        Self::OURS.contains(&self)
    }

    /// Sets it up, to send to this URL. A current-thread runtime has to be entered by then.
    pub(crate) fn install(
        self,
        caller: Caller,
        signal: Signal,
        builder: TracerProviderBuilder,
        url: &str,
    ) -> Result<Installed, Failed> {
        let runtime = match (self, caller) {
            (Self::AsyncBatch, Caller::Threads) => Some(Runtime::new()?),
            _ => None,
        };
        let _entered = runtime.as_ref().map(Runtime::enter);
        let (tracers, loggers, handle) = match signal {
            Signal::Spans => {
                let (tracers, handle) = self.install_spans(caller, builder, url)?;
                (tracers, SdkLoggerProvider::builder().build(), handle)
            }
            Signal::Logs => self.install_logs(builder, url)?,
        };
        drop(_entered);
        Ok(Installed {
            tracers,
            loggers,
            handle,
            _runtime: runtime,
        })
    }

    fn install_spans(
        self,
        caller: Caller,
        builder: TracerProviderBuilder,
        url: &str,
    ) -> Result<(SdkTracerProvider, Option<Handle>), Failed> {
        let blocking = || otlp_spans(blocking_client()?, url);
        let asynchronous = || otlp_spans(async_client()?, url);
        let mut handle = None;
        let builder = match self {
            Self::Simple => builder.with_span_processor(SimpleSpanProcessor::new(blocking()?)),
            Self::SimpleAsync => {
                builder.with_span_processor(SimpleSpanProcessor::new(asynchronous()?))
            }
            Self::Batch => {
                builder.with_span_processor(BatchSpanProcessor::builder(blocking()?).build())
            }
            Self::AsyncBatch if caller == Caller::CurrentThread => builder.with_span_processor(
                AsyncBatchSpanProcessor::builder(asynchronous()?, TokioCurrentThread).build(),
            ),
            Self::AsyncBatch | Self::AsyncBatchOfCaller => builder.with_span_processor(
                AsyncBatchSpanProcessor::builder(asynchronous()?, Tokio).build(),
            ),
            Self::PerRequest | Self::PerRequestDirect => {
                let ours = match self {
                    Self::PerRequest => PerRequestSpanProcessor::builder(asynchronous()?),
                    _ => PerRequestSpanProcessor::builder(
                        DirectExporter::builder()
                            .with_traces_endpoint(url)
                            .build()?,
                    ),
                };
                let ours = ours.with_config(Config::default()).build()?;
                handle = Some(ours.handle());
                builder.with_span_processor(ours)
            }
        };
        Ok((builder.build(), handle))
    }

    /// Spans are there, because records belong to them, and are sent nowhere.
    fn install_logs(
        self,
        tracers: TracerProviderBuilder,
        url: &str,
    ) -> Result<(SdkTracerProvider, SdkLoggerProvider, Option<Handle>), Failed> {
        let blocking = || otlp_logs(blocking_client()?, url);
        let asynchronous = || otlp_logs(async_client()?, url);
        let builder = SdkLoggerProvider::builder();
        let builder = match self {
            Self::Simple => builder.with_log_processor(SimpleLogProcessor::new(blocking()?)),
            Self::SimpleAsync => {
                builder.with_log_processor(SimpleLogProcessor::new(asynchronous()?))
            }
            Self::Batch => {
                builder.with_log_processor(BatchLogProcessor::builder(blocking()?).build())
            }
            Self::AsyncBatch | Self::AsyncBatchOfCaller => builder.with_log_processor(
                AsyncBatchLogProcessor::builder(asynchronous()?, Tokio).build(),
            ),
            Self::PerRequest | Self::PerRequestDirect => {
                let spans = PerRequestSpanProcessor::builder(Nowhere);
                let spans = spans.with_config(Config::default()).build()?;
                let logs = match self {
                    Self::PerRequest => spans.log_processor(asynchronous()?)?,
                    _ => {
                        let direct = DirectExporter::builder().with_logs_endpoint(url);
                        spans.log_processor(direct.build()?)?
                    }
                };
                let handle = Some(logs.handle());
                let loggers = builder.with_log_processor(logs).build();
                return Ok((tracers.with_span_processor(spans).build(), loggers, handle));
            }
        };
        Ok((tracers.build(), builder.build(), None))
    }
}

fn otlp_spans(client: impl HttpClient + 'static, url: &str) -> Result<SpanExporter, Failed> {
    Ok(SpanExporter::builder()
        .with_http()
        .with_http_client(TokenClient::new(client))
        .with_endpoint(url)
        .build()?)
}

fn otlp_logs(client: impl HttpClient + 'static, url: &str) -> Result<LogExporter, Failed> {
    Ok(LogExporter::builder()
        .with_http()
        .with_http_client(TokenClient::new(client))
        .with_endpoint(url)
        .build()?)
}

fn async_client() -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder().timeout(CLIENT_TIMEOUT).build()
}

/// Made on a thread of its own, as the OTLP exporter does: it may not be made on one of a runtime.
fn blocking_client() -> Result<reqwest::blocking::Client, Failed> {
    let make = || {
        reqwest::blocking::Client::builder()
            .timeout(CLIENT_TIMEOUT)
            .build()
    };
    let made = thread::spawn(make).join();
    Ok(made.map_err(|_| io::Error::other("making a client panicked"))??)
}
