//! An OTLP receiver inside the process: it decodes what arrives, and remembers under whose token it came. Over HTTP it takes
//! spans, log records and metrics, over gRPC spans.

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
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{Metric, number_data_point};
use opentelemetry_proto::tonic::trace::v1::Span;
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

/// A log record as it arrived.
#[derive(Clone, Debug)]
pub struct ReceivedLog {
    /// The record.
    pub record: LogRecord,
    /// The bearer token that it was sent under. Empty if there was none.
    pub token: String,
    /// When it arrived, in nanoseconds since the epoch.
    pub arrived: u64,
}

/// A metric as it arrived, with all its points. Each collection is one of its own.
#[derive(Clone, Debug)]
pub struct ReceivedMetric {
    /// The metric.
    pub metric: Metric,
    /// The name of the instrumentation that measured it.
    pub scope: String,
    /// The bearer token that it was sent under. Empty if there was none.
    pub token: String,
}

/// All that has arrived, of each signal in the order in which it did.
#[derive(Debug, Default)]
struct Everything {
    spans: Vec<Received>,
    logs: Vec<ReceivedLog>,
    metrics: Vec<ReceivedMetric>,
}

#[derive(Clone, Debug, Default)]
struct Inbox(Arc<Mutex<Everything>>);

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
                .route("/v1/traces", post(receive::<ExportTraceServiceRequest>))
                .route("/v1/logs", post(receive::<ExportLogsServiceRequest>))
                .route("/v1/metrics", post(receive::<ExportMetricsServiceRequest>))
                .layer(DefaultBodyLimit::disable())
                .with_state((inbox, delay));
            Box::pin(async { axum::serve(listener, router).await })
        })
    }

    /// Starts one for spans in OTLP over gRPC, on a port of the system's choice.
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
        self.inbox.lock().spans.clone()
    }

    /// All log records that have arrived, in the order in which they did.
    pub fn logs(&self) -> Vec<ReceivedLog> {
        self.inbox.lock().logs.clone()
    }

    /// All metrics that have arrived, in the order in which they did.
    pub fn metrics(&self) -> Vec<ReceivedMetric> {
        self.inbox.lock().metrics.clone()
    }

    /// All spans that have arrived after the first so many.
    pub fn received_after(&self, count: usize) -> Vec<Received> {
        let inbox = self.inbox.lock();
        inbox.spans.get(count..).unwrap_or_default().to_vec()
    }

    /// All log records that have arrived after the first so many.
    pub fn logs_after(&self, count: usize) -> Vec<ReceivedLog> {
        let inbox = self.inbox.lock();
        inbox.logs.get(count..).unwrap_or_default().to_vec()
    }

    /// How many spans have arrived.
    pub fn count(&self) -> usize {
        self.inbox.lock().spans.len()
    }

    /// How many log records have arrived.
    pub fn count_logs(&self) -> usize {
        self.inbox.lock().logs.len()
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
            .field("logs", &self.count_logs())
            .finish_non_exhaustive()
    }
}

// ===== impl Received =====

impl Received {
    /// A string attribute of the span.
    pub fn attribute(&self, key: &str) -> Option<&str> {
        attribute(&self.span.attributes, key)
    }
}

// ===== impl ReceivedLog =====

impl ReceivedLog {
    /// A string attribute of the record.
    pub fn attribute(&self, key: &str) -> Option<&str> {
        attribute(&self.record.attributes, key)
    }

    /// An attribute of the record that is a whole number.
    pub fn number(&self, key: &str) -> Option<i64> {
        match value(&self.record.attributes, key)? {
            Value::IntValue(number) => Some(*number),
            _ => None,
        }
    }

    /// What it says, if that is a string.
    pub fn message(&self) -> Option<&str> {
        text(self.record.body.as_ref()?.value.as_ref()?)
    }

    /// When it was logged or, where the appender did not say that, seen by the SDK. In nanoseconds since the epoch.
    pub fn logged(&self) -> u64 {
        match self.record.time_unix_nano {
            0 => self.record.observed_time_unix_nano,
            time => time,
        }
    }
}

// ===== impl ReceivedMetric =====

impl ReceivedMetric {
    /// What a counter of whole numbers says, on all its attributes together.
    pub fn sum(&self) -> Option<i64> {
        let Some(Data::Sum(sum)) = &self.metric.data else {
            return None;
        };
        let values = sum.data_points.iter().map(|point| match point.value {
            Some(number_data_point::Value::AsInt(value)) => Some(value),
            _ => None,
        });
        values.sum()
    }
}

fn attribute<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a str> {
    text(value(attributes, key)?)
}

fn value<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Value> {
    let attribute = attributes.iter().find(|kv| kv.key == key)?;
    attribute.value.as_ref()?.value.as_ref()
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

// ===== what arrives =====

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Everything> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_in(&self, authorization: Option<&str>, request: impl Export) {
        let token = authorization.and_then(|value| value.strip_prefix("Bearer "));
        let arrived = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos() as u64);
        request.put_into(&mut self.lock(), token.unwrap_or_default(), arrived);
    }
}

/// A request of one of the signals.
trait Export: prost::Message + Default {
    fn put_into(self, all: &mut Everything, token: &str, arrived: u64);
}

impl Export for ExportTraceServiceRequest {
    fn put_into(self, all: &mut Everything, token: &str, arrived: u64) {
        let resources = self.resource_spans.into_iter();
        let scopes = resources.flat_map(|resource| resource.scope_spans);
        let spans = scopes.flat_map(|scope| scope.spans);
        all.spans.extend(spans.map(|span| Received {
            span,
            token: token.to_owned(),
            arrived,
        }));
    }
}

impl Export for ExportLogsServiceRequest {
    fn put_into(self, all: &mut Everything, token: &str, arrived: u64) {
        let resources = self.resource_logs.into_iter();
        let scopes = resources.flat_map(|resource| resource.scope_logs);
        let records = scopes.flat_map(|scope| scope.log_records);
        all.logs.extend(records.map(|record| ReceivedLog {
            record,
            token: token.to_owned(),
            arrived,
        }));
    }
}

impl Export for ExportMetricsServiceRequest {
    fn put_into(self, all: &mut Everything, token: &str, _arrived: u64) {
        let resources = self.resource_metrics.into_iter();
        for scope in resources.flat_map(|resource| resource.scope_metrics) {
            let name = scope.scope.map(|scope| scope.name).unwrap_or_default();
            all.metrics
                .extend(scope.metrics.into_iter().map(|metric| ReceivedMetric {
                    metric,
                    scope: name.clone(),
                    token: token.to_owned(),
                }));
        }
    }
}

async fn receive<E: Export>(
    State((inbox, delay)): State<(Inbox, Duration)>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let Ok(request) = E::decode(body) else {
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
