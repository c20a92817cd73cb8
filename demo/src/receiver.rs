//! An OTLP receiver inside the process, over HTTP or gRPC: it decodes what arrives, and remembers under whose token it came.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use tokio::sync::oneshot;
use tonic::transport::server::TcpIncoming;

/// A span as it arrived.
#[derive(Clone, Debug)]
pub struct Received {
    /// The span.
    pub span: Span,
    /// The bearer token that it was sent under. Empty if there was none.
    pub token: String,
    /// When it arrived, in nanoseconds since the epoch.
    pub arrived: u64,
}

impl Received {
    /// A string attribute of the span.
    pub fn attribute(&self, key: &str) -> Option<&str> {
        let attribute = self.span.attributes.iter().find(|kv| kv.key == key)?;
        match attribute.value.as_ref()?.value.as_ref()? {
            Value::StringValue(value) => Some(value),
            _ => None,
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Inbox(Arc<Mutex<Vec<Received>>>);

/// A running receiver, on a thread and a runtime of its own. It stops when it is dropped.
#[derive(Debug)]
pub struct Receiver {
    address: SocketAddr,
    inbox: Inbox,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<io::Result<()>>>,
}

impl Receiver {
    /// Starts one for OTLP over HTTP, on a port of the system's choice.
    ///
    /// # Errors
    ///
    /// If it cannot listen.
    pub fn http() -> io::Result<Self> {
        Self::slow_http(Duration::ZERO)
    }

    /// As [`http`](Self::http), with so much time before each answer.
    ///
    /// # Errors
    ///
    /// If it cannot listen.
    pub fn slow_http(delay: Duration) -> io::Result<Self> {
        Self::start(move |listener, inbox, stopped| async move {
            let router = Router::new()
                .route("/v1/traces", post(receive))
                .layer(DefaultBodyLimit::disable())
                .with_state((inbox, delay));
            axum::serve(listener, router)
                .with_graceful_shutdown(stopped)
                .await
        })
    }

    /// Starts one for OTLP over gRPC, on a port of the system's choice.
    ///
    /// # Errors
    ///
    /// If it cannot listen.
    pub fn grpc() -> io::Result<Self> {
        Self::start(|listener, inbox, stopped| async move {
            tonic::transport::Server::builder()
                .add_service(TraceServiceServer::new(inbox))
                .serve_with_incoming_shutdown(TcpIncoming::from(listener), stopped)
                .await
                .map_err(io::Error::other)
        })
    }

    fn start<S, F>(serve: S) -> io::Result<Self>
    where
        S: FnOnce(tokio::net::TcpListener, Inbox, Stopped) -> F + Send + 'static,
        F: Future<Output = io::Result<()>>,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let inbox = Inbox::default();
        let (stop, stopped) = oneshot::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread = {
            let inbox = inbox.clone();
            thread::spawn(move || {
                runtime.block_on(async {
                    let listener = tokio::net::TcpListener::from_std(listener)?;
                    let stopped = Box::pin(async {
                        let _ = stopped.await;
                    });
                    serve(listener, inbox, stopped).await
                })
            })
        };
        Ok(Self {
            address,
            inbox,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where it listens, as `http://address:port`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All spans that have arrived, in the order in which they did.
    pub fn received(&self) -> Vec<Received> {
        self.inbox.lock().clone()
    }
}

type Stopped = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

impl Drop for Receiver {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Vec<Received>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_in(&self, authorization: Option<&str>, request: ExportTraceServiceRequest) {
        let token = authorization
            .and_then(|value| value.strip_prefix("Bearer "))
            .unwrap_or_default();
        let arrived = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos() as u64);
        let spans = request
            .resource_spans
            .into_iter()
            .flat_map(|resource| resource.scope_spans)
            .flat_map(|scope| scope.spans);
        self.lock().extend(spans.map(|span| Received {
            span,
            token: token.to_owned(),
            arrived,
        }));
    }
}

async fn receive(
    State((inbox, delay)): State<(Inbox, Duration)>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let Ok(request) = ExportTraceServiceRequest::decode(body) else {
        return StatusCode::BAD_REQUEST;
    };
    let authorization = headers.get("authorization");
    inbox.take_in(authorization.and_then(|value| value.to_str().ok()), request);
    StatusCode::OK
}

#[tonic::async_trait]
impl TraceService for Inbox {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let (metadata, _, request) = request.into_parts();
        let authorization = metadata.get("authorization");
        self.take_in(authorization.and_then(|value| value.to_str().ok()), request);
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}
