//! Everything that shows something: each kind of failure, under tokens, with all there is to look at printed.
#![allow(clippy::print_stdout, reason = "what it prints is what is looked at")]

use std::fmt::{Debug, Display};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use axum::body::{Body, Bytes};
use axum::extract::Path;
use axum::http::{HeaderMap, Request, Response, header};
use axum::routing::post;
use futures_executor::block_on;
use opentelemetry::Context;
use opentelemetry::logs::{LogRecord as _, Logger as _, LoggerProvider as _};
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry::trace::{FutureExt as _, Tracer as _, TracerProvider as _};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_otlp_direct::{
    DirectExporter, DirectExporterBuilder, ExportToken, RetryPolicy, Signal, TokenClient,
    TokenInterceptor,
};
use opentelemetry_per_request::{Builder, Config, PerRequestSpanProcessor};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceResponse,
};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{LogBatch, LogExporter, SdkLoggerProvider};
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::{InMemoryMetricExporter, SdkMeterProvider};
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use prost::Message as _;
use tonic::service::Interceptor as _;

use super::{MARK, secret};

/// Answers of the collector, by the first part of the path. Whatever they say, it is about the token that came.
const ANSWERS: [&str; 12] = [
    "200", "400", "401", "403", "404", "500", "redirect", "throttle", "reject", "warn", "garbage",
    "hang",
];

/// Requests in which the collector saw a secret: without them nothing would be shown.
static SEEN: AtomicUsize = AtomicUsize::new(0);

pub(super) fn play() {
    // First, and open until the end: a processor that shuts down does not wait for its log lines.
    let open = [exporter_that_panics(), projection_that_panics()];
    let collector = start_collector();
    for answer in ANSWERS {
        deliver(answer, direct(&collector, answer));
    }
    deliver("refused", direct(&nowhere(), "refused"));
    assert!(SEEN.load(Ordering::Relaxed) >= 2 * ANSWERS.len());
    // A query is part of the URI, which cannot be marked as sensitive: a client that shows its requests shows that.
    let panics = with_endpoints(direct(&collector, "panics"), &collector, "panics", "");
    deliver("panics", panics.with_http_client(Panicking));
    through_the_usual_exporter(&collector);
    settings();
    interceptor();
    open.iter()
        .for_each(|provider| show_error(provider.shutdown()));
}

fn show(what: impl Debug) {
    println!("shown: {what:?}\nshown: {what:#?}");
}

fn show_error<T, E: Debug + Display>(result: Result<T, E>) {
    if let Err(error) = result {
        println!("shown: {error}");
        show(error);
    }
}

/// A context with a token that nobody else has.
fn tenant(place: &str) -> Context {
    let token = ExportToken::new(secret(place)).unwrap();
    let cx = token.attach_to(&Context::new());
    show((&token, &cx, ExportToken::from_context(&cx)));
    cx
}

// ===== the direct exporter =====

/// An exporter that has secrets wherever one can be.
fn direct(collector: &str, answer: &str) -> DirectExporterBuilder {
    let moment = Duration::from_millis(1);
    let builder = DirectExporter::builder()
        .with_env_lookup(|_| None)
        .with_header("authorization", secret("static"))
        .with_header("x-api-key", secret("key"))
        .with_timeout(Duration::from_millis(500))
        .with_retry_policy(
            RetryPolicy::default()
                .with_max_attempts(2)
                .with_backoff(moment, moment),
        )
        .with_signal(Signal::Logs, |logs| {
            shown(logs.with_header("x-logs-key", secret("logs-key")))
        });
    let query = format!("?key={}", secret("query"));
    shown(with_endpoints(builder, collector, answer, &query))
}

/// An endpoint for each signal, with this query.
fn with_endpoints(
    builder: DirectExporterBuilder,
    collector: &str,
    answer: &str,
    query: &str,
) -> DirectExporterBuilder {
    Signal::ALL.iter().fold(builder, |builder, signal| {
        let endpoint = format!("{collector}/{answer}/v1/{signal}{query}");
        builder.with_signal(*signal, |signal| signal.with_endpoint(endpoint))
    })
}

/// Has spans exported by it under tokens, late ones too, and shows all there is.
fn deliver(place: &str, exporter: DirectExporterBuilder) {
    let metrics = InMemoryMetricExporter::default();
    let meters = SdkMeterProvider::builder()
        .with_periodic_exporter(metrics.clone())
        .build();
    let exporter = exporter.with_meter_provider(&meters).build().unwrap();
    let handle = exporter.handle();
    show(&exporter);
    let of_other_signals = exporter.clone();
    let config = Config::default()
        .with_max_traces(1)
        .with_max_spans_per_trace(2)
        .with_export_timeout(Duration::from_secs(5));
    show(&config);
    let builder = PerRequestSpanProcessor::builder(exporter)
        .with_config(config)
        .with_meter_provider(&meters)
        .with_fallback_context(tenant("fallback"));
    show(&builder);
    let processor = builder.build().unwrap();
    let telemetry = processor.handle();
    show((&processor, &telemetry));
    let provider = SdkTracerProvider::builder()
        .with_span_processor(processor)
        .build();
    let tracer = provider.tracer("scene");

    let cx = tenant(place);
    for _ in 0..2 {
        let guard = cx.clone().attach();
        tracer.in_span("request", |_| {
            tracer.in_span("step", |_| tracer.in_span("one too many", |_| {}));
            // It evicts the request around it, which is late then.
            let other = tenant("other");
            drop(tracer.start_with_context("other", &other));
        });
        drop(guard);
        show_error(block_on(telemetry.flush()));
    }
    // While a refreshed token is refused, too.
    let token = ExportToken::from_context(&cx).unwrap();
    token.update(secret("refreshed")).unwrap();
    show_error(token.update(format!("{}\n", secret("bad"))));
    let check = || block_on(handle.check().with_context(cx.clone()));
    // A client that panics does so in the caller's hands here.
    let _ = catch_unwind(AssertUnwindSafe(check)).map(show_error);
    for _ in 0..2 {
        let export = || export_other_signals(&of_other_signals, &cx);
        let _ = catch_unwind(AssertUnwindSafe(export));
    }
    drop(tracer.start_with_context("last", &cx));
    show_error(provider.force_flush());
    show((
        telemetry.stats(),
        handle.stats(),
        &handle,
        &telemetry,
        &provider,
        &tracer,
    ));
    // A panic is caught, so what was in flight may be gone.
    let _ = meters.force_flush();
    show(metrics.get_finished_metrics());
    show_error(provider.shutdown());
    drop(tracer.start_with_context("too late", &cx));
    show_error(block_on(telemetry.flush()));
    show((telemetry.stats(), handle.stats(), &provider));
}

/// A log record and a metric under the same token.
fn export_other_signals(exporter: &DirectExporter, cx: &Context) {
    let logger = SdkLoggerProvider::builder().build().logger("scene");
    let mut record = logger.create_log_record();
    record.set_observed_timestamp(std::time::SystemTime::now());
    record.set_body("a line".into());
    let batch = [(&record, &Default::default())];
    let export = LogExporter::export(exporter, LogBatch::new(&batch));
    show_error(block_on(export.with_context(cx.clone())));

    let collected = InMemoryMetricExporter::default();
    let meters = SdkMeterProvider::builder()
        .with_periodic_exporter(collected.clone())
        .build();
    meters
        .meter("scene")
        .u64_counter("things")
        .build()
        .add(1, &[]);
    meters.force_flush().unwrap();
    for metrics in collected.get_finished_metrics().unwrap() {
        let export = PushMetricExporter::export(exporter, &metrics);
        show_error(block_on(export.with_context(cx.clone())));
    }
    for signal in Signal::ALL {
        let check = exporter.check_signal(*signal).with_context(cx.clone());
        show_error(block_on(check));
        show(exporter.stats_of(*signal));
    }
    show(exporter);
}

/// A client that panics with all that it has in its hands.
#[derive(Debug)]
struct Panicking;

#[async_trait]
impl HttpClient for Panicking {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let cx = Context::current();
        panic!(
            "the client panics with {request:?} {cx:?} {:?}",
            cx.get::<ExportToken>()
        );
    }
}

// ===== others =====

/// `opentelemetry-otlp` over a `TokenClient`.
fn through_the_usual_exporter(collector: &str) {
    for answer in ["200", "401", "panics"] {
        let builder = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_endpoint(format!("{collector}/{answer}/v1/traces"));
        let exporter = match answer {
            "panics" => builder.with_http_client(shown(TokenClient::new(Panicking))),
            _ => builder.with_http_client(shown(TokenClient::new(reqwest::Client::new()))),
        };
        let provider = export_with(exporter.build().unwrap(), answer);
        show_error(provider.shutdown());
    }
}

fn shown<T: Debug>(value: T) -> T {
    show(&value);
    value
}

/// A request under a token, and what is to be seen of it.
fn export_with(exporter: impl SpanExporter + 'static, place: &str) -> SdkTracerProvider {
    let builder = PerRequestSpanProcessor::builder(exporter).with_config(Config::default());
    export_by(builder, place)
}

fn export_by(builder: Builder, place: &str) -> SdkTracerProvider {
    let processor = builder.build().unwrap();
    let telemetry = processor.handle();
    let provider = SdkTracerProvider::builder()
        .with_span_processor(processor)
        .build();
    let tracer = provider.tracer("scene");
    drop(tracer.start_with_context("request", &tenant(place)));
    show_error(block_on(telemetry.flush()));
    show((&provider, telemetry.stats()));
    provider
}

fn exporter_that_panics() -> SdkTracerProvider {
    #[derive(Debug)]
    struct Exporter;
    impl SpanExporter for Exporter {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            let cx = Context::current();
            panic!(
                "the exporter panics in {cx:?} {:?} {batch:?}",
                cx.get::<ExportToken>()
            );
        }
    }
    export_with(Exporter, "panicking-exporter")
}

fn projection_that_panics() -> SdkTracerProvider {
    let exporter = opentelemetry_sdk::trace::InMemorySpanExporter::default();
    let builder = PerRequestSpanProcessor::builder(exporter)
        .with_config(Config::default())
        .with_context_projection(|cx| {
            panic!(
                "the projection panics at {cx:?} {:?}",
                cx.get::<ExportToken>()
            )
        });
    export_by(builder, "projection")
}

/// Settings that cannot be used, with a secret in each.
fn settings() {
    let builder = || DirectExporter::builder().with_env_lookup(|_| None);
    let user = format!("http://user:{}@localhost:4318", secret("user-info"));
    let space = format!("http://h /?{}", secret("no-url"));
    let line = format!("{}\n", secret("line-break"));
    for unusable in [
        builder().with_endpoint(&user),
        builder().with_traces_endpoint(&user),
        builder().with_endpoint(&space),
        builder().with_header("x-api-key", &line),
        builder().with_header("authorization", &line),
        builder().with_header("content-type", secret("reserved")),
        builder().with_logs_endpoint(&user),
        builder().with_metrics_endpoint(&space),
        builder().with_signal(Signal::Metrics, |metrics| {
            metrics.with_header("x-api-key", &line)
        }),
    ] {
        show(&unusable);
        show_error(unusable.build().map(drop));
    }
    show_error(ExportToken::new(&line).map(drop));
    show_error(ExportToken::with_scheme("Basic", &line).map(drop));
    let environment = DirectExporter::builder().with_env_lookup(move |variable| match variable {
        name if name.ends_with("_ENDPOINT") => Some(user.clone()),
        "OTEL_EXPORTER_OTLP_HEADERS" => {
            Some(format!("authorization={0}%0A,{0}", secret("environment")))
        }
        "OTEL_EXPORTER_OTLP_LOGS_HEADERS" => Some(secret("environment")),
        name if name.ends_with("_HEADERS") => Some(format!("x-api-key={}", secret("environment"))),
        _ => None,
    });
    show(&environment);
    show_error(environment.build().map(show));
}

fn interceptor() {
    let _guard = tenant("grpc").attach();
    let mut interceptor = TokenInterceptor::new();
    let request = interceptor.call(tonic::Request::new(())).unwrap();
    assert!(request.metadata().contains_key("authorization"));
    show((interceptor, request));
}

// ===== the collector =====

/// Where nobody listens: the port is free again.
fn nowhere() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// One that repeats the secrets that it is sent, wherever an answer has room for them. Gives its address.
fn start_collector() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let serve = async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let app = axum::Router::new().route("/{answer}/v1/{signal}", post(answer));
        axum::serve(listener, app).await.unwrap();
    };
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(serve);
    });
    format!("http://{address}")
}

async fn answer(
    Path((answer, _signal)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response<Body> {
    let sent = |name| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let (token, key) = (sent("authorization"), sent("x-api-key"));
    if token.contains(MARK) {
        SEEN.fetch_add(1, Ordering::Relaxed);
    }
    let partial = |rejected_spans| {
        let error_message = format!("under {token}, {key}");
        let partial_success = Some(ExportTracePartialSuccess {
            rejected_spans,
            error_message,
        });
        Body::from(ExportTraceServiceResponse { partial_success }.encode_to_vec())
    };
    let (status, body) = match answer.as_str() {
        "200" => (200, Body::empty()),
        "redirect" => (307, Body::from(token.to_owned())),
        "throttle" => (429, Body::from(token.to_owned())),
        "reject" => (200, partial(1)),
        "warn" => (200, partial(0)),
        "garbage" => (200, Body::from(format!("{token} {key}"))),
        "hang" => std::future::pending().await,
        status => {
            let body = format!("{{\"error\": \"bad token: {token}, bad key: {key}\"}}");
            (status.parse().unwrap(), Body::from(body))
        }
    };
    Response::builder()
        .status(status)
        .header(
            header::LOCATION,
            format!("/200/v1/traces?token={token}").replace(' ', "%20"),
        )
        .header(header::WWW_AUTHENTICATE, format!("Bearer realm={key}"))
        .header(
            header::RETRY_AFTER,
            if answer == "throttle" {
                "999999999"
            } else {
                token
            },
        )
        .header("x-echo", token)
        .body(body)
        .unwrap()
}
