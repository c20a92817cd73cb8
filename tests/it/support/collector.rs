//! Real receivers on loopback. Each has a thread and a runtime of its own, so that it answers whatever the caller blocks.

use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderMap, header};
use axum::routing::post;
use fake_opentelemetry_collector::FakeCollectorServer;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
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

/// Receives until it is dropped.
#[derive(Debug)]
pub(crate) struct Collector {
    endpoint: String,
    received: Arc<Mutex<Vec<Received>>>,
    _stop: oneshot::Sender<()>,
}

impl Collector {
    /// OTLP over HTTP.
    pub(crate) fn http() -> Self {
        Self::slow_http(Duration::ZERO)
    }

    /// OTLP over HTTP, from somebody who takes this long for each answer.
    pub(crate) fn slow_http(delay: Duration) -> Self {
        Self::start(move |received, stop, address| async move {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            address
                .send(format!("http://{}", listener.local_addr().unwrap()))
                .unwrap();
            let handle = move |headers: HeaderMap, body: Bytes| {
                let received = received.clone();
                async move {
                    tokio::time::sleep(delay).await;
                    received.lock().unwrap().push(decode(&headers, body));
                    let answer = ExportTraceServiceResponse::default().encode_to_vec();
                    ([(header::CONTENT_TYPE, "application/x-protobuf")], answer)
                }
            };
            let app = Router::new()
                .route("/v1/traces", post(handle))
                .layer(DefaultBodyLimit::disable());
            tokio::select! {
                served = axum::serve(listener, app) => served.unwrap(),
                _ = stop => {}
            }
        })
    }

    /// OTLP over gRPC.
    pub(crate) fn grpc() -> Self {
        Self::start(|received, mut stop, address| async move {
            let mut server = FakeCollectorServer::start().await.unwrap();
            address.send(server.endpoint()).unwrap();
            while stop.try_recv() == Err(oneshot::error::TryRecvError::Empty) {
                let spans = server.exported_spans(1, Duration::from_millis(20)).await;
                received
                    .lock()
                    .unwrap()
                    .extend(spans.into_iter().map(|span| Received {
                        authorization: None,
                        spans: vec![span.name],
                        decoded: Vec::new(),
                    }));
            }
            server.abort();
        })
    }

    fn start<F>(
        serve: impl FnOnce(Arc<Mutex<Vec<Received>>>, oneshot::Receiver<()>, mpsc::Sender<String>) -> F
        + Send
        + 'static,
    ) -> Self
    where
        F: Future<Output = ()>,
    {
        let received = Arc::<Mutex<Vec<Received>>>::default();
        let (stop, stopped) = oneshot::channel();
        let (address, bound) = mpsc::channel();
        let kept = received.clone();
        std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(serve(kept, stopped, address));
        });
        Self {
            endpoint: bound.recv().unwrap(),
            received,
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
        self.received.lock().unwrap().clone()
    }

    /// The names of all spans received, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.received().into_iter().flat_map(|r| r.spans).collect();
        names.sort();
        names
    }
}

fn decode(headers: &HeaderMap, body: Bytes) -> Received {
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    let decoded: Vec<Span> = request
        .resource_spans
        .into_iter()
        .flat_map(|resource| resource.scope_spans)
        .flat_map(|scope| scope.spans)
        .collect();
    Received {
        authorization: headers
            .get(header::AUTHORIZATION)
            .map(|value| value.to_str().unwrap().to_owned()),
        spans: decoded.iter().map(|span| span.name.clone()).collect(),
        decoded,
    }
}
