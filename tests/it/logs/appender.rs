//! Code that only knows `tracing`, under `opentelemetry-appender-tracing`: its events are log records of the request that they
//! happen in.

use axum::Router;
use axum::routing::get;
use opentelemetry::logs::{Logger as _, Severity};
use opentelemetry::trace::TraceContextExt as _;
use opentelemetry::{Context, TraceId};
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_per_request::server::ServerLayer;
use opentelemetry_per_request::{Carry as _, Config, RequestTracer, in_child, tracing_layer};
use opentelemetry_sdk::trace::SpanData;
use tokio::task::{LocalSet, yield_now};
use tracing::{error, info, info_span, instrument, trace, warn};
use tracing_subscriber::layer::SubscriberExt as _;

use super::LogWorld;
use crate::support::{FALLBACK, SOON, Tenant, held_back, tenant};

/// A world whose logger is that of this thread's subscriber, without any filter, and with `tracing_layer` its tracer too.
struct Traced {
    logs: LogWorld,
    tracer: RequestTracer,
    _subscriber: tracing::subscriber::DefaultGuard,
}

impl Traced {
    fn new(config: Config, with_spans: bool) -> Self {
        let logs = LogWorld::new(config);
        let handle = logs.world.telemetry.clone();
        let tracer = RequestTracer::new(logs.world.tracer.clone()).with_handle(handle);
        let layer = with_spans.then(|| tracing_layer(tracer.clone()));
        let subscriber = tracing_subscriber::registry()
            .with(layer)
            .with(OpenTelemetryTracingBridge::new(&logs.provider));
        Self {
            logs,
            tracer,
            _subscriber: tracing::subscriber::set_default(subscriber),
        }
    }

    fn flush(&self) {
        self.logs.world.flush().unwrap();
        self.logs.flush().unwrap();
    }

    /// The only span of that name.
    fn span(&self, name: &str) -> SpanData {
        self.logs.world.exporter.span(name).0
    }

    /// Asserts that the record names the span of that name, and left under the same tenant.
    fn assert_is_of(&self, body: &str, span: &str) {
        let (log, tenant) = self.logs.exporter.log(body);
        let (span, of_span) = self.logs.world.exporter.span(span);
        let context = &span.span_context;
        assert_eq!(
            log.ids(),
            Some((context.trace_id(), context.span_id())),
            "{body}"
        );
        assert_eq!(tenant, of_span, "{body}");
        assert_eq!(log.late_mark(), None, "{body}");
    }
}

fn block_on<F: Future>(work: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async { tokio::time::timeout(SOON, work).await.unwrap() })
}

#[instrument]
async fn load(order: i64) {
    yield_now().await;
    warn!(target: "shop", order, cheap = true, "loaded");
    in_child("deeper", async {
        yield_now().await;
        error!("from deeper");
    })
    .await;
}

/// Scenario: an axum handler behind `ServerLayer` logs, calls an `#[instrument]`ed function that does, and answers; over real HTTP;
/// a line is logged before the server runs.
/// Guarantees: each record names the span that it was logged in, leaves under the token of the request, and has the level, the
/// target and the fields of the event; the events of the spans stay; the line before is nobody's.
#[test]
fn lines_of_a_handler_are_records_of_the_request() {
    for config in [Config::default(), held_back()] {
        let traced = Traced::new(config, true);
        info!("before");
        let layer = ServerLayer::new(traced.tracer.clone())
            .with_request_context(|_, cx| cx.with_value(Tenant(9)));
        let handler = || async {
            info!("in the handler");
            load(7).await;
            "done"
        };
        let app = Router::new()
            .route("/orders/{id}", get(handler))
            .layer(layer);
        block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}/orders/1", listener.local_addr().unwrap());
            let server = axum::serve(listener, app);
            let client = async { reqwest::get(url).await.unwrap().text().await.unwrap() };
            tokio::select! {
                served = server => served.unwrap(),
                answer = client => assert_eq!(answer, "done"),
            }
        });
        traced.flush();
        traced.assert_is_of("in the handler", "GET /orders/{id}");
        traced.assert_is_of("loaded", "load");
        traced.assert_is_of("from deeper", "deeper");
        assert_eq!(traced.logs.exporter.log("loaded").1, Some(Tenant(9)));
        traced.logs.assert_left("before", Some(FALLBACK), None);

        let (log, _) = traced.logs.exporter.log("loaded");
        assert_eq!(log.record.severity_number(), Some(Severity::Warn));
        assert_eq!(log.record.target().map(AsRef::as_ref), Some("shop"));
        assert!(log.attribute("order").unwrap().contains('7'));
        let events = traced.span("load").events;
        assert!(events.iter().any(|event| event.name == "loaded"));
        assert_eq!(traced.logs.stats().logs.late.total(), 0);
    }
}

/// Scenario: the same without the layer that makes spans.
/// Guarantees: each record names the span of the request, or that of an `in_child`.
#[test]
fn lines_are_records_of_the_request_without_spans_of_tracing() {
    let traced = Traced::new(Config::default(), false);
    block_on(traced.tracer.run("request", &tenant(3), async {
        info!("in the request");
        load(7).await;
    }));
    traced.flush();
    traced.assert_is_of("in the request", "request");
    traced.assert_is_of("loaded", "request");
    traced.assert_is_of("from deeper", "deeper");
}

#[instrument(skip_all)]
async fn outer(n: u32) {
    for step in 0..3 {
        trace!("{n} outer {step}");
        yield_now().await;
        inner(n, step).await;
    }
}

#[instrument(skip_all)]
async fn inner(n: u32, step: u32) {
    yield_now().await;
    info!("{n} inner {step}");
}

/// Scenario: fifty requests at once on one thread, whose lines interleave over awaits; with carried tasks that go on when their
/// requests are over.
/// Guarantees: each record leaves under the tenant of its own request, and names a span of its trace; none is late.
#[test]
fn lines_of_fifty_interleaved_requests_are_kept_apart() {
    let traced = Traced::new(Config::default(), true);
    let traces = block_on(LocalSet::new().run_until(async {
        let requests: Vec<_> = (1..=50)
            .map(|n| {
                traced.tracer.run("request", &tenant(n), async move {
                    let after = async move {
                        yield_now().await;
                        info!("{n} after");
                    };
                    tokio::task::spawn_local(after.carried());
                    outer(n).await;
                    (Context::current().span().span_context().trace_id(),)
                })
            })
            .map(tokio::task::spawn_local)
            .collect();
        let mut traces = Vec::new();
        for request in requests {
            traces.push(request.await.unwrap().0);
        }
        for _ in 0..3 {
            yield_now().await;
        }
        traces
    }));
    traced.flush();
    let traces: Vec<TraceId> = traces;
    let of_us = |body: &str| body.starts_with(|c: char| c.is_ascii_digit());
    let mut items = traced.logs.exporter.items();
    items.retain(|(log, _)| of_us(&log.body()));
    assert_eq!(items.len(), 50 * 7);
    for (log, tenant) in items {
        let body = log.body();
        let number: u32 = body.split(' ').next().unwrap().parse().unwrap();
        assert_eq!(tenant, Some(Tenant(number)), "{body}");
        let (trace, _) = log.ids().unwrap();
        assert_eq!(trace, traces[number as usize - 1], "{body}");
    }
    assert_eq!(traced.logs.stats().logs.late.total(), 0);
}

/// Scenario: the subscriber hears the SDK's and the processor's own events, and there is something to hear: providers are made,
/// records dropped, exports refused, everything is shut down, and after that lines are logged.
/// Guarantees: nothing hangs or overflows the stack; what is said on threads of the processor's own is no record.
#[test]
fn own_events_of_the_processor_make_no_loop() {
    crate::support::within(SOON, "logging of logging", || {
        let config = Config::default().with_max_pending_logs(1);
        let traced = Traced::new(config, true);
        for n in 0..100 {
            info!("{n}");
        }
        let _ = crate::support::soon(traced.logs.telemetry.flush());
        let _ = traced.logs.provider.force_flush();
        let _ = traced.logs.provider.shutdown();
        info_span!("after").in_scope(|| info!("it"));
        let _ = traced.logs.world.provider.shutdown();
        info!("after everything");
        let stats = traced.logs.stats();
        assert!(stats.logs.received < 300, "{stats:?}");
        assert_eq!(stats.logs.pending(), 0);
    });
}

/// Scenario: targets of clients that an exporter may have, at each level, and targets that only look like them.
/// Guarantees: what the first say below INFO is not enabled, and everything else is.
#[test]
fn what_clients_of_exporters_say_below_info_is_not_enabled() {
    let logs = LogWorld::new(Config::default());
    let of_clients = [
        "h2::codec::framed_read",
        "hyper_util::client::legacy::connect::http",
        "tonic::transport::channel::service::reconnect",
        "tower::buffer::worker",
    ];
    let others = [
        "h2",
        "h2o::server",
        "tonic::server",
        "tower::limit",
        "hyper_util::server",
    ];
    let enabled = |level, target| logs.logger.event_enabled(level, target, None);
    for target in of_clients {
        for level in [Severity::Trace, Severity::Debug, Severity::Debug4] {
            assert!(!enabled(level, target), "{target} {level:?}");
        }
        for level in [Severity::Info, Severity::Warn, Severity::Error] {
            assert!(enabled(level, target), "{target} {level:?}");
        }
    }
    for target in others {
        assert!(enabled(Severity::Trace, target), "{target}");
    }
}
