//! An OTLP receiver inside the process, over HTTP or gRPC: it decodes what arrives, and remembers under whose token it came.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

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
pub struct Receiver {
    address: SocketAddr,
    inbox: Inbox,
    serve: Serve,
    /// None while it is down.
    listening: Option<Listening>,
}

/// Answers whoever connects, for as long as it is polled.
type Serve = Arc<dyn Fn(tokio::net::TcpListener, Inbox) -> Serving + Send + Sync>;
type Serving = Pin<Box<dyn Future<Output = io::Result<()>>>>;

#[derive(Debug)]
struct Listening {
    stop: oneshot::Sender<()>,
    thread: thread::JoinHandle<io::Result<()>>,
}

/// Another program may take the port for a moment while the receiver is down.
const PATIENCE_FOR_THE_PORT: Duration = Duration::from_secs(5);

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
        Self::start(move |listener, inbox| {
            let router = Router::new()
                .route("/v1/traces", post(receive))
                .layer(DefaultBodyLimit::disable())
                .with_state((inbox, delay));
            Box::pin(async { axum::serve(listener, router).await })
        })
    }

    /// Starts one for OTLP over gRPC, on a port of the system's choice.
    ///
    /// # Errors
    ///
    /// If it cannot listen.
    pub fn grpc() -> io::Result<Self> {
        Self::start(|listener, inbox| {
            Box::pin(async {
                tonic::transport::Server::builder()
                    .add_service(TraceServiceServer::new(inbox))
                    .serve_with_incoming(TcpIncoming::from(listener))
                    .await
                    .map_err(io::Error::other)
            })
        })
    }

    fn start(
        serve: impl Fn(tokio::net::TcpListener, Inbox) -> Serving + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let mut receiver = Self {
            address: listener.local_addr()?,
            inbox: Inbox::default(),
            serve: Arc::new(serve),
            listening: None,
        };
        receiver.listen(listener)?;
        Ok(receiver)
    }

    fn listen(&mut self, listener: TcpListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let (stop, stopped) = oneshot::channel::<()>();
        let (serve, inbox) = (self.serve.clone(), self.inbox.clone());
        let thread = thread::spawn(move || {
            // The runtime ends with this thread, and all connections with it.
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?
                .block_on(async {
                    let listener = tokio::net::TcpListener::from_std(listener)?;
                    tokio::select! {
                        served = serve(listener, inbox) => served,
                        _ = stopped => Ok(()),
                    }
                })
        });
        self.listening = Some(Listening { stop, thread });
        Ok(())
    }

    /// Breaks all connections, and refuses new ones.
    pub fn down(&mut self) {
        if let Some(listening) = self.listening.take() {
            let _ = listening.stop.send(());
            let _ = listening.thread.join();
        }
    }

    /// Listens again on the same port, after it was down.
    ///
    /// # Errors
    ///
    /// If it cannot listen.
    pub fn up(&mut self) -> io::Result<()> {
        let start = Instant::now();
        let listener = loop {
            match TcpListener::bind(self.address) {
                Err(_) if start.elapsed() < PATIENCE_FOR_THE_PORT => {
                    thread::sleep(Duration::from_millis(5));
                }
                bound => break bound?,
            }
        };
        self.listen(listener)
    }

    /// Where it listens, as `http://address:port`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All spans that have arrived, in the order in which they did.
    pub fn received(&self) -> Vec<Received> {
        self.inbox.lock().clone()
    }

    /// How many spans have arrived.
    pub fn count(&self) -> usize {
        self.inbox.lock().len()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.down();
    }
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver")
            .field("address", &self.address)
            .field("spans", &self.count())
            .finish_non_exhaustive()
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
