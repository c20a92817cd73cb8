//! Any exporter of each signal: that of `opentelemetry-otlp` over HTTP and gRPC, `DirectExporter`, and the one in memory.

use std::time::Duration;

use opentelemetry::Context;
use opentelemetry::logs::LoggerProvider as _;
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry::trace::{TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{
    LogExporter, MetricExporter, SpanExporter, WithExportConfig as _, WithHttpConfig as _,
};
use opentelemetry_otlp_direct::{DirectExporter, ExportToken};
use opentelemetry_per_request::{Config, Handle, PerRequestSpanProcessor};
use opentelemetry_sdk::logs::{InMemoryLogExporter, SdkLoggerProvider};
use opentelemetry_sdk::metrics::{InMemoryMetricExporter, SdkMeterProvider};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};

use super::{ids, say};
use crate::support::collector::Collector;
use crate::support::{SOON, Tenant, balanced, current_tenant, soon, tenant, wait_until, within};

const TENANTS: u32 = 5;

/// What is the service's own.
const OWN: u32 = 99;

/// The same tenant, for those who look for one and for those who look for a token.
fn credentials(number: u32) -> Context {
    let token = ExportToken::new(number.to_string()).unwrap();
    token.attach_to(&tenant(number))
}

fn bearer(number: u32) -> Option<String> {
    Some(format!("Bearer {number}"))
}

/// Providers of all signals, whose telemetry goes one way.
struct All {
    tracers: SdkTracerProvider,
    loggers: SdkLoggerProvider,
    meters: SdkMeterProvider,
    handles: [Handle; 3],
}

/// A processor that all signals have joined, with these exporters.
macro_rules! joined {
    ($builder:expr, $logs:expr, $metrics:expr) => {{
        let config = Config::default()
            .with_metric_interval(Duration::MAX)
            .with_metric_period(None);
        let spans = $builder
            .with_config(config)
            .with_fallback_context(credentials(OWN))
            .build()
            .unwrap();
        let logs = spans.log_processor($logs).unwrap();
        let metrics = spans.metric_reader($metrics).unwrap();
        let handles = [spans.handle(), logs.handle(), metrics.handle()];
        All {
            tracers: SdkTracerProvider::builder()
                .with_span_processor(spans)
                .build(),
            loggers: SdkLoggerProvider::builder()
                .with_log_processor(logs)
                .build(),
            meters: SdkMeterProvider::builder().with_reader(metrics).build(),
            handles,
        }
    }};
}

impl All {
    /// A request of each tenant, at once, and a line outside of them. Returns the ids that each line names, in hex.
    fn work(&self) -> Vec<(String, String, String)> {
        let tracer = self.tracers.tracer("test");
        let logger = self.loggers.logger("test");
        let counter = self.meters.meter("test").u64_counter("requests").build();
        let requests: Vec<_> = (0..TENANTS)
            .map(|n| {
                let cx = credentials(n);
                cx.with_span(tracer.start_with_context(format!("span {n}"), &cx))
            })
            .collect();
        let mut said = Vec::new();
        for (n, cx) in requests.iter().enumerate() {
            let _attached = cx.clone().attach();
            let body = format!("line {n}");
            say(&logger, &body);
            let (trace, span) = ids(cx);
            said.push((body, trace.to_string(), span.to_string()));
            counter.add(1, &[]);
        }
        say(&logger, "outside");
        said.push(("outside".to_owned(), String::new(), String::new()));
        requests.iter().for_each(|cx| cx.span().end());
        self.handles
            .iter()
            .for_each(|handle| soon(handle.flush()).unwrap());
        let stats = balanced(&self.handles[0]);
        assert_eq!(stats.exported, u64::from(TENANTS));
        assert_eq!(stats.logs.exported, u64::from(TENANTS) + 1);
        assert!(stats.metrics.exported > 0);
        said
    }

    fn shut_down(self) {
        self.meters.shutdown().unwrap();
        self.loggers.shutdown().unwrap();
        self.tracers.shutdown().unwrap();
    }
}

/// Everything has arrived, under its own credentials if the collector has seen any.
fn check(collector: &Collector, said: &[(String, String, String)], sees_tokens: bool) {
    wait_until("everything has arrived", || {
        collector.names().len() == TENANTS as usize
            && collector.logs().len() == said.len()
            && !collector.metrics().is_empty()
    });
    let mut logs: Vec<_> = collector
        .logs()
        .into_iter()
        .map(|log| {
            let number = log.body.strip_prefix("line ").map(|n| n.parse().unwrap());
            let expected = bearer(number.unwrap_or(OWN)).filter(|_| sees_tokens);
            assert_eq!(log.authorization, expected, "{}", log.body);
            (log.body, log.trace, log.span)
        })
        .collect();
    logs.sort();
    assert_eq!(logs, said);
    for metric in collector.metrics() {
        assert_eq!(metric.authorization, bearer(OWN).filter(|_| sees_tokens));
    }
    for received in collector.received().iter().filter(|_| sees_tokens) {
        for name in &received.spans {
            let number = name.strip_prefix("span ").unwrap().parse().unwrap();
            assert_eq!(received.authorization, bearer(number));
        }
    }
}

/// Adds the tenant of the current context as the credential.
#[derive(Debug)]
struct TenantClient(reqwest::Client);

#[async_trait::async_trait]
impl HttpClient for TenantClient {
    async fn send_bytes(&self, mut request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        if let Some(Tenant(number)) = current_tenant() {
            let value = format!("Bearer {number}").parse()?;
            request.headers_mut().insert("authorization", value);
        }
        self.0.send_bytes(request).await
    }
}

/// Scenario: the exporters of `opentelemetry-otlp` over HTTP, with a client that takes the credential from the current context; the
/// caller has no runtime.
/// Guarantees: all three signals arrive, each item under its own request's credential, what is nobody's under the service's.
#[test]
fn all_signals_leave_through_the_exporters_of_otlp_over_http() {
    let collector = Collector::http();
    let client = || TenantClient(reqwest::Client::new());
    let url = |path: &str| format!("{}/v1/{path}", collector.endpoint());
    let spans = SpanExporter::builder()
        .with_http()
        .with_http_client(client())
        .with_endpoint(url("traces"));
    let logs = LogExporter::builder()
        .with_http()
        .with_http_client(client())
        .with_endpoint(url("logs"));
    let metrics = MetricExporter::builder()
        .with_http()
        .with_http_client(client())
        .with_endpoint(url("metrics"));
    let spans = PerRequestSpanProcessor::builder(spans.build().unwrap());
    let all = joined!(spans, logs.build().unwrap(), metrics.build().unwrap());
    let said = all.work();
    check(&collector, &said, true);
    all.shut_down();
}

/// Scenario: the exporters of `opentelemetry-otlp` over gRPC, all made in the processor's own runtime; the caller has none, or
/// blocks the only thread of its own.
/// Guarantees: all three signals arrive, with their ids.
#[test]
fn all_signals_leave_through_the_exporters_of_otlp_over_grpc() {
    for in_runtime in [false, true] {
        within(SOON, "exporting over gRPC", move || {
            let collector = Collector::grpc();
            let work = || {
                let (mut logs, mut metrics) = (None, None);
                let spans = PerRequestSpanProcessor::builder_with(|| {
                    let endpoint = || collector.endpoint();
                    let log_exporter = LogExporter::builder()
                        .with_tonic()
                        .with_endpoint(endpoint());
                    let metric_exporter = MetricExporter::builder()
                        .with_tonic()
                        .with_endpoint(endpoint());
                    logs = Some(log_exporter.build().map_err(std::io::Error::other)?);
                    metrics = Some(metric_exporter.build().map_err(std::io::Error::other)?);
                    let spans = SpanExporter::builder()
                        .with_tonic()
                        .with_endpoint(endpoint());
                    spans.build().map_err(std::io::Error::other)
                })
                .unwrap();
                let all = joined!(spans, logs.unwrap(), metrics.unwrap());
                let said = all.work();
                check(&collector, &said, false);
                all.loggers.force_flush().unwrap();
                all.meters.force_flush().unwrap();
                all.shut_down();
            };
            match in_runtime {
                false => work(),
                true => tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap()
                    .block_on(async { work() }),
            }
        });
    }
}

/// Scenario: one `DirectExporter` for all three signals, to a collector over HTTP.
/// Guarantees: all three arrive, each item under the token of its own request, what is nobody's under the service's.
#[test]
fn all_signals_leave_through_one_direct_exporter() {
    let collector = Collector::http();
    let exporter = DirectExporter::builder()
        .with_env_lookup(|_| None)
        .with_endpoint(collector.endpoint())
        .build()
        .unwrap();
    let spans = PerRequestSpanProcessor::builder(exporter.clone());
    let all = joined!(spans, exporter.clone(), exporter);
    let said = all.work();
    check(&collector, &said, true);
    all.shut_down();
}

/// Scenario: the exporters in memory.
/// Guarantees: everything is in them.
#[test]
fn all_signals_leave_through_the_exporters_in_memory() {
    let (spans, logs) = (
        InMemorySpanExporter::default(),
        InMemoryLogExporter::default(),
    );
    let metrics = InMemoryMetricExporter::default();
    let builder = PerRequestSpanProcessor::builder(spans.clone());
    let all = joined!(builder, logs.clone(), metrics.clone());
    let said = all.work();
    assert_eq!(spans.get_finished_spans().unwrap().len(), TENANTS as usize);
    let emitted = logs.get_emitted_logs().unwrap();
    assert_eq!(emitted.len(), said.len());
    assert!(!metrics.get_finished_metrics().unwrap().is_empty());
    all.shut_down();
}
