//! Real receivers on loopback. Each has a thread and a runtime of its own, so that it answers whatever the caller blocks.

use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderMap, header};
use axum::routing::post;
use fake_opentelemetry_collector::FakeCollectorServer;
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use tokio::sync::oneshot;

/// One request as the receiver got it. gRPC requests have one span each, and no header that could be seen.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) authorization: Option<String>,
    pub(crate) spans: Vec<String>,
    /// The same spans as they came. Empty over gRPC.
    pub(crate) decoded: Vec<Span>,
}

/// One log record as the receiver got it. Over gRPC no header could be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReceivedLog {
    pub(crate) authorization: Option<String>,
    pub(crate) body: String,
    /// In hex. Empty if there is none.
    pub(crate) trace: String,
    pub(crate) span: String,
}

/// One request with log records as the receiver got it. None over gRPC.
#[derive(Clone, Debug)]
pub(crate) struct LogPost {
    pub(crate) authorization: Option<String>,
    pub(crate) decoded: Vec<LogRecord>,
}

/// One metric as the receiver got it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReceivedMetric {
    pub(crate) authorization: Option<String>,
    pub(crate) name: String,
}

/// Receives until it is dropped.
#[derive(Debug)]
pub(crate) struct Collector {
    endpoint: String,
    store: Arc<Store>,
    _stop: oneshot::Sender<()>,
}

#[derive(Debug, Default)]
struct Store {
    spans: Mutex<Vec<Received>>,
    logs: Mutex<Vec<ReceivedLog>>,
    log_posts: Mutex<Vec<LogPost>>,
    metrics: Mutex<Vec<ReceivedMetric>>,
}

impl Collector {
    /// OTLP over HTTP.
    pub(crate) fn http() -> Self {
        Self::slow_http(Duration::ZERO)
    }

    /// OTLP over HTTP, from somebody who takes this long for each answer.
    pub(crate) fn slow_http(delay: Duration) -> Self {
        Self::start(move |store, stop, address| async move {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            address
                .send(format!("http://{}", listener.local_addr().unwrap()))
                .unwrap();
            let route = |take: fn(&Store, &HeaderMap, Bytes) -> Vec<u8>| {
                let store = store.clone();
                post(move |headers: HeaderMap, body: Bytes| async move {
                    tokio::time::sleep(delay).await;
                    let answer = take(&store, &headers, body);
                    ([(header::CONTENT_TYPE, "application/x-protobuf")], answer)
                })
            };
            let app = Router::new()
                .route("/v1/traces", route(Store::take_spans))
                .route("/v1/logs", route(Store::take_logs))
                .route("/v1/metrics", route(Store::take_metrics))
                .layer(DefaultBodyLimit::disable());
            tokio::select! {
                served = axum::serve(listener, app) => served.unwrap(),
                _ = stop => {}
            }
        })
    }

    /// OTLP over gRPC.
    pub(crate) fn grpc() -> Self {
        Self::start(|store, mut stop, address| async move {
            let mut server = FakeCollectorServer::start().await.unwrap();
            address.send(server.endpoint()).unwrap();
            while stop.try_recv() == Err(oneshot::error::TryRecvError::Empty) {
                let spans = server.exported_spans(1, Duration::from_millis(20)).await;
                let spans = spans.into_iter().map(|span| Received {
                    authorization: None,
                    spans: vec![span.name],
                    decoded: Vec::new(),
                });
                store.spans.lock().unwrap().extend(spans);
                let logs = server.exported_logs(0, Duration::ZERO).await;
                let logs = logs.into_iter().map(|log| ReceivedLog {
                    authorization: None,
                    // It is shown as the value that it is.
                    body: log
                        .body
                        .and_then(|body| Some(body.split('"').nth(1)?.to_owned()))
                        .unwrap_or_default(),
                    trace: log.trace_id,
                    span: log.span_id,
                });
                store.logs.lock().unwrap().extend(logs);
                let metrics = server.exported_metrics(0, Duration::ZERO).await;
                let metrics = metrics.into_iter().flat_map(|export| export.metrics);
                let metrics = metrics.map(|metric| ReceivedMetric {
                    authorization: None,
                    name: metric.name,
                });
                store.metrics.lock().unwrap().extend(metrics);
            }
            server.abort();
        })
    }

    fn start<F>(
        serve: impl FnOnce(Arc<Store>, oneshot::Receiver<()>, mpsc::Sender<String>) -> F
        + Send
        + 'static,
    ) -> Self
    where
        F: Future<Output = ()>,
    {
        let store = Arc::<Store>::default();
        let (stop, stopped) = oneshot::channel();
        let (address, bound) = mpsc::channel();
        let kept = store.clone();
        std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(serve(kept, stopped, address));
        });
        Self {
            endpoint: bound.recv().unwrap(),
            store,
            _stop: stop,
        }
    }

    /// The address, without a path.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Where spans go over HTTP.
    pub(crate) fn traces_url(&self) -> String {
        format!("{}/v1/traces", self.endpoint)
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.store.spans.lock().unwrap().clone()
    }

    pub(crate) fn logs(&self) -> Vec<ReceivedLog> {
        self.store.logs.lock().unwrap().clone()
    }

    pub(crate) fn log_posts(&self) -> Vec<LogPost> {
        self.store.log_posts.lock().unwrap().clone()
    }

    pub(crate) fn metrics(&self) -> Vec<ReceivedMetric> {
        self.store.metrics.lock().unwrap().clone()
    }

    /// The names of all spans received, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.received().into_iter().flat_map(|r| r.spans).collect();
        names.sort();
        names
    }
}

impl Store {
    /// What it answers.
    fn take_spans(&self, headers: &HeaderMap, body: Bytes) -> Vec<u8> {
        let request = ExportTraceServiceRequest::decode(body).unwrap();
        let resources = request.resource_spans.into_iter();
        let scopes = resources.flat_map(|resource| resource.scope_spans);
        let decoded: Vec<Span> = scopes.flat_map(|scope| scope.spans).collect();
        self.spans.lock().unwrap().push(Received {
            authorization: authorization(headers),
            spans: decoded.iter().map(|span| span.name.clone()).collect(),
            decoded,
        });
        ExportTraceServiceResponse::default().encode_to_vec()
    }

    fn take_logs(&self, headers: &HeaderMap, body: Bytes) -> Vec<u8> {
        let request = ExportLogsServiceRequest::decode(body).unwrap();
        let resources = request.resource_logs.into_iter();
        let scopes = resources.flat_map(|resource| resource.scope_logs);
        let records: Vec<_> = scopes.flat_map(|scope| scope.log_records).collect();
        self.log_posts.lock().unwrap().push(LogPost {
            authorization: authorization(headers),
            decoded: records.clone(),
        });
        let received = records.into_iter().map(|record| ReceivedLog {
            authorization: authorization(headers),
            trace: hex(&record.trace_id),
            span: hex(&record.span_id),
            body: body_of(record),
        });
        self.logs.lock().unwrap().extend(received);
        ExportLogsServiceResponse::default().encode_to_vec()
    }

    fn take_metrics(&self, headers: &HeaderMap, body: Bytes) -> Vec<u8> {
        let request = ExportMetricsServiceRequest::decode(body).unwrap();
        let resources = request.resource_metrics.into_iter();
        let scopes = resources.flat_map(|resource| resource.scope_metrics);
        let metrics = scopes.flat_map(|scope| scope.metrics);
        let received = metrics.map(|metric| ReceivedMetric {
            authorization: authorization(headers),
            name: metric.name,
        });
        self.metrics.lock().unwrap().extend(received);
        ExportMetricsServiceResponse::default().encode_to_vec()
    }
}

fn authorization(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?;
    Some(value.to_str().unwrap().to_owned())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn body_of(record: LogRecord) -> String {
    match record.body.and_then(|body| body.value) {
        Some(any_value::Value::StringValue(text)) => text,
        other => format!("{other:?}"),
    }
}
