//! A collector outside of workerd, with every way of not being there.

use std::collections::{BTreeMap, HashMap};
use std::future::pending;
use std::io::Read as _;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, Response, StatusCode, Uri};
use axum::routing::{any, post};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::metrics::v1::{Metric, metric, number_data_point};
use opentelemetry_proto::tonic::trace::v1 as proto;
use prost::Message as _;
use tokio::sync::{oneshot, watch};

pub(crate) use proto::span::SpanKind;
pub(crate) use proto::status::StatusCode as SpanStatus;

pub(crate) type Attributes = BTreeMap<String, String>;

/// What the receiver does with a POST.
#[derive(Clone, Debug)]
pub(crate) enum Behaviour {
    Accept,
    /// Takes what there is at once if the other one does, and does the rest after so long.
    After(Duration, Box<Behaviour>),
    /// Never answers.
    Hang,
    /// Breaks the connection instead of an answer.
    Reset,
    /// Answers this and takes nothing.
    Answer {
        status: u16,
        headers: Vec<(&'static str, String)>,
        body: Bytes,
    },
}

impl Behaviour {
    /// Answers this status with an empty body.
    pub(crate) fn status(status: u16) -> Self {
        Self::Answer {
            status,
            headers: Vec::new(),
            body: Bytes::new(),
        }
    }

    /// The same after so long.
    pub(crate) fn after(self, delay: Duration) -> Self {
        Self::After(delay, Box::new(self))
    }

    fn accepts(&self) -> bool {
        match self {
            Self::Accept => true,
            Self::After(_, then) => then.accepts(),
            Self::Hang | Self::Reset | Self::Answer { .. } => false,
        }
    }
}

/// A POST to `/v1/traces`, `/v1/logs` or `/v1/metrics`, whatever became of it.
#[derive(Clone, Debug)]
pub(crate) struct Post {
    /// The last part of its path.
    pub(crate) signal: &'static str,
    pub(crate) arrived: Instant,
    pub(crate) headers: HeaderMap,
    /// What follows `Bearer`, or nothing.
    pub(crate) token: String,
    /// Whether what it holds was taken.
    pub(crate) accepted: bool,
    pub(crate) spans: Vec<Span>,
    pub(crate) logs: Vec<Log>,
    pub(crate) points: Vec<Point>,
}

/// A log record as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    pub(crate) token: String,
    pub(crate) resource: Attributes,
    pub(crate) event: String,
    pub(crate) body: String,
    pub(crate) severity: String,
    pub(crate) trace_id: String,
    pub(crate) span_id: String,
    pub(crate) flags: u32,
    pub(crate) attributes: Attributes,
    /// In nanoseconds since the epoch, as `observed`.
    pub(crate) time: u64,
    pub(crate) observed: u64,
}

/// A data point of a sum or a gauge, as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Point {
    pub(crate) token: String,
    pub(crate) resource: Attributes,
    pub(crate) name: String,
    pub(crate) value: i64,
    /// Of a sum: 1 is delta, and 2 cumulative.
    pub(crate) temporality: i32,
    pub(crate) attributes: Attributes,
}

/// A span as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    /// That of its POST.
    pub(crate) token: String,
    /// The position of its POST among all.
    pub(crate) post: usize,
    pub(crate) resource: Attributes,
    pub(crate) scope: String,
    pub(crate) name: String,
    /// Ids are hexadecimal. A root has an empty parent.
    pub(crate) trace_id: String,
    pub(crate) span_id: String,
    pub(crate) parent_span_id: String,
    pub(crate) kind: SpanKind,
    pub(crate) status: SpanStatus,
    pub(crate) status_message: String,
    pub(crate) attributes: Attributes,
    /// Names and attributes.
    pub(crate) events: Vec<(String, Attributes)>,
    /// Trace ids and span ids.
    pub(crate) links: Vec<(String, String)>,
    /// In nanoseconds since the epoch, as the end.
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// A request of `/echo…`, which any Worker can make for a subrequest.
#[derive(Clone, Debug)]
pub(crate) struct Echo {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Receives until it is dropped, on a thread and a runtime of its own.
#[derive(Debug)]
pub(crate) struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    posts: watch::Sender<Vec<Post>>,
    echoes: Mutex<Vec<Echo>>,
    behaviours: Mutex<Behaviours>,
}

#[derive(Debug, Default)]
struct Behaviours {
    all: Option<Behaviour>,
    by_token: HashMap<String, Behaviour>,
}

impl Receiver {
    /// One that accepts.
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::<Shared>::default();
        let (stop, stopped) = oneshot::channel();
        let served = shared.clone();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.unwrap().block_on(serve(listener, served, stopped));
        });
        Self {
            address,
            shared,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Its address, without a path.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it does from now on with the POSTs under any token that has no behaviour of its own.
    pub(crate) fn behave(&self, behaviour: Behaviour) {
        self.shared.behaviours.lock().unwrap().all = Some(behaviour);
    }

    /// What it does from now on with the POSTs under this token.
    pub(crate) fn behave_for(&self, token: &str, behaviour: Behaviour) {
        let mut behaviours = self.shared.behaviours.lock().unwrap();
        behaviours.by_token.insert(token.to_owned(), behaviour);
    }

    /// All POSTs of spans, in the order in which they arrived.
    pub(crate) fn posts(&self) -> Vec<Post> {
        self.posts_of("traces")
    }

    /// All POSTs of `traces`, `logs` or `metrics`, in the order in which they arrived.
    pub(crate) fn posts_of(&self, signal: &str) -> Vec<Post> {
        let posts = self.shared.posts.borrow();
        let posts = posts.iter().filter(|post| post.signal == signal);
        posts.cloned().collect()
    }

    /// All log records that were taken.
    pub(crate) fn logs(&self) -> Vec<Log> {
        let posts = self.posts_of("logs").into_iter();
        posts
            .filter(|post| post.accepted)
            .flat_map(|post| post.logs)
            .collect()
    }

    /// All data points that were taken.
    pub(crate) fn points(&self) -> Vec<Point> {
        let posts = self.posts_of("metrics").into_iter();
        posts
            .filter(|post| post.accepted)
            .flat_map(|post| post.points)
            .collect()
    }

    /// All spans that were taken.
    pub(crate) fn spans(&self) -> Vec<Span> {
        accepted(&self.shared.posts.borrow()).cloned().collect()
    }

    pub(crate) fn echoes(&self) -> Vec<Echo> {
        self.shared.echoes.lock().unwrap().clone()
    }

    /// Forgets what has arrived.
    pub(crate) fn clear(&self) {
        self.shared.posts.send_modify(Vec::clear);
        self.shared.echoes.lock().unwrap().clear();
    }

    /// Returns all spans once there are so many. Panics when there are not after so long.
    pub(crate) async fn wait_for_spans(&self, count: usize, patience: Duration) -> Vec<Span> {
        self.wait(patience, |posts| accepted(posts).count() >= count)
            .await;
        self.spans()
    }

    /// Returns all POSTs once there are so many, also refused ones. Panics when there are not after so long.
    pub(crate) async fn wait_for_posts(&self, count: usize, patience: Duration) -> Vec<Post> {
        let of_spans = |post: &&Post| post.signal == "traces";
        self.wait(patience, |posts| {
            posts.iter().filter(of_spans).count() >= count
        })
        .await;
        self.posts()
    }

    /// Returns all log records once there are so many. Panics when there are not after so long.
    pub(crate) async fn wait_for_logs(&self, count: usize, patience: Duration) -> Vec<Log> {
        let logs = |post: &Post| post.logs.len() * usize::from(post.accepted);
        self.wait(patience, |posts| {
            posts.iter().map(logs).sum::<usize>() >= count
        })
        .await;
        self.logs()
    }

    /// Returns all data points once there are so many. Panics when there are not after so long.
    pub(crate) async fn wait_for_points(&self, count: usize, patience: Duration) -> Vec<Point> {
        let points = |post: &Post| post.points.len() * usize::from(post.accepted);
        self.wait(patience, |posts| {
            posts.iter().map(points).sum::<usize>() >= count
        })
        .await;
        self.points()
    }

    /// Returns when a span of this kind was taken.
    pub(crate) async fn wait_until(&self, patience: Duration, wanted: impl Fn(&Span) -> bool) {
        self.wait(patience, |posts| accepted(posts).any(&wanted))
            .await;
    }

    async fn wait(&self, patience: Duration, enough: impl Fn(&Vec<Post>) -> bool) {
        let mut posts = self.shared.posts.subscribe();
        let waited = tokio::time::timeout(patience, posts.wait_for(|posts| enough(posts)));
        if waited.await.is_err() {
            let names: Vec<_> = self.spans().into_iter().map(|span| span.name).collect();
            let posts = self.shared.posts.borrow().len();
            let (logs, points) = (self.logs().len(), self.points().len());
            panic!(
                "after {patience:?} there are only {posts} POSTs, with {names:?}, {logs} log records and {points} data points accepted"
            );
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accepted(posts: &[Post]) -> impl Iterator<Item = &Span> {
    let accepted = posts.iter().filter(|post| post.accepted);
    accepted.flat_map(|post| &post.spans)
}

// ===== The server =====

async fn serve(listener: TcpListener, shared: Arc<Shared>, stopped: oneshot::Receiver<()>) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let router = Router::new()
        .route("/v1/{signal}", post(receive))
        .route("/hang", any(pending::<StatusCode>))
        .route("/echo", any(echo))
        .route("/echo/{*rest}", any(echo))
        .layer(DefaultBodyLimit::disable())
        .with_state(shared);
    tokio::select! {
        served = axum::serve(listener, router) => served.unwrap(),
        _ = stopped => {}
    }
}

async fn receive(
    State(shared): State<Arc<Shared>>,
    Path(signal): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let authorization = headers.get("authorization");
    let token = authorization
        .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "))
        .unwrap_or_default();
    let behaviour = shared.behaviour(token);
    shared.take_in(&signal, token, &headers, &body, behaviour.accepts());
    let mut behaviour = behaviour;
    while let Behaviour::After(delay, then) = behaviour {
        tokio::time::sleep(delay).await;
        behaviour = *then;
    }
    match behaviour {
        Behaviour::Accept | Behaviour::After(..) => answer(200, &[], Bytes::new()),
        Behaviour::Hang => pending().await,
        // Ends the task of this connection and nothing else. No message is printed.
        Behaviour::Reset => std::panic::resume_unwind(Box::new("reset")),
        Behaviour::Answer {
            status,
            headers,
            body,
        } => answer(status, &headers, body),
    }
}

async fn echo(
    State(shared): State<Arc<Shared>>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    let echo = Echo {
        path: uri.to_string(),
        headers,
        body,
    };
    shared.echoes.lock().unwrap().push(echo);
    StatusCode::OK
}

fn answer(status: u16, headers: &[(&'static str, String)], body: Bytes) -> Response<Body> {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, value);
    }
    response.body(body.into()).unwrap()
}

impl Shared {
    fn behaviour(&self, token: &str) -> Behaviour {
        let behaviours = self.behaviours.lock().unwrap();
        let behaviour = behaviours.by_token.get(token).or(behaviours.all.as_ref());
        behaviour.cloned().unwrap_or(Behaviour::Accept)
    }

    fn take_in(&self, signal: &str, token: &str, headers: &HeaderMap, body: &[u8], accepted: bool) {
        let arrived = Instant::now();
        let body = plain(headers, body);
        self.posts.send_modify(|posts| {
            let mut post = Post {
                signal: "traces",
                arrived,
                headers: headers.clone(),
                token: token.to_owned(),
                accepted,
                spans: Vec::new(),
                logs: Vec::new(),
                points: Vec::new(),
            };
            match signal {
                "traces" => {
                    let before = posts.iter().filter(|post| post.signal == "traces").count();
                    let request = ExportTraceServiceRequest::decode(&*body).unwrap();
                    post.spans = spans(request, token, before);
                }
                "logs" => {
                    post.signal = "logs";
                    post.logs = logs(ExportLogsServiceRequest::decode(&*body).unwrap(), token);
                }
                "metrics" => {
                    post.signal = "metrics";
                    let request = ExportMetricsServiceRequest::decode(&*body).unwrap();
                    post.points = points(request, token);
                }
                other => panic!("there is no signal {other}"),
            }
            posts.push(post);
        });
    }
}

fn plain(headers: &HeaderMap, body: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    match headers.get("content-encoding") {
        Some(_) => flate2::read::GzDecoder::new(body).read_to_end(&mut plain),
        None => (&mut &*body).read_to_end(&mut plain),
    }
    .unwrap();
    plain
}

fn spans(request: ExportTraceServiceRequest, token: &str, post: usize) -> Vec<Span> {
    let mut spans = Vec::new();
    for of_resource in request.resource_spans {
        let resource = attributes(of_resource.resource.unwrap_or_default().attributes);
        for of_scope in of_resource.scope_spans {
            let scope = of_scope.scope.unwrap_or_default().name;
            spans.extend(of_scope.spans.into_iter().map(|span| Span {
                token: token.to_owned(),
                post,
                resource: resource.clone(),
                scope: scope.clone(),
                ..Span::from(span)
            }));
        }
    }
    spans
}

fn logs(request: ExportLogsServiceRequest, token: &str) -> Vec<Log> {
    let mut logs = Vec::new();
    for of_resource in request.resource_logs {
        let resource = attributes(of_resource.resource.unwrap_or_default().attributes);
        let records = of_resource.scope_logs.into_iter();
        let records = records.flat_map(|scope| scope.log_records);
        logs.extend(records.map(|record| Log {
            token: token.to_owned(),
            resource: resource.clone(),
            ..Log::from(record)
        }));
    }
    logs
}

impl From<LogRecord> for Log {
    fn from(record: LogRecord) -> Self {
        Self {
            token: String::new(),
            resource: Attributes::new(),
            event: record.event_name,
            body: text(record.body),
            severity: record.severity_text,
            trace_id: hex(&record.trace_id),
            span_id: hex(&record.span_id),
            flags: record.flags,
            attributes: attributes(record.attributes),
            time: record.time_unix_nano,
            observed: record.observed_time_unix_nano,
        }
    }
}

fn points(request: ExportMetricsServiceRequest, token: &str) -> Vec<Point> {
    let mut points = Vec::new();
    for of_resource in request.resource_metrics {
        let resource = attributes(of_resource.resource.unwrap_or_default().attributes);
        let metrics = of_resource.scope_metrics.into_iter();
        for metric in metrics.flat_map(|scope| scope.metrics) {
            points.extend(points_of(metric).map(|point| Point {
                token: token.to_owned(),
                resource: resource.clone(),
                ..point
            }));
        }
    }
    points
}

fn points_of(metric: Metric) -> impl Iterator<Item = Point> {
    let name = metric.name;
    let (points, temporality) = match metric.data {
        Some(metric::Data::Sum(sum)) => (sum.data_points, sum.aggregation_temporality),
        Some(metric::Data::Gauge(gauge)) => (gauge.data_points, 0),
        other => panic!("no scenario makes {other:?}"),
    };
    points.into_iter().map(move |point| Point {
        token: String::new(),
        resource: Attributes::new(),
        name: name.clone(),
        value: match point.value {
            Some(number_data_point::Value::AsInt(value)) => value,
            other => panic!("no scenario makes {other:?}"),
        },
        temporality,
        attributes: attributes(point.attributes),
    })
}

impl From<proto::Span> for Span {
    fn from(span: proto::Span) -> Self {
        let kind = span.kind();
        let status = span.status.unwrap_or_default();
        let events = span.events.into_iter();
        let links = span.links.iter();
        Self {
            token: String::new(),
            post: 0,
            resource: Attributes::new(),
            scope: String::new(),
            name: span.name,
            trace_id: hex(&span.trace_id),
            span_id: hex(&span.span_id),
            parent_span_id: hex(&span.parent_span_id),
            kind,
            status: status.code(),
            status_message: status.message,
            attributes: attributes(span.attributes),
            events: events
                .map(|event| (event.name, attributes(event.attributes)))
                .collect(),
            links: links
                .map(|link| (hex(&link.trace_id), hex(&link.span_id)))
                .collect(),
            start: span.start_time_unix_nano,
            end: span.end_time_unix_nano,
        }
    }
}

fn attributes(attributes: Vec<KeyValue>) -> Attributes {
    let attributes = attributes.into_iter();
    attributes.map(|kv| (kv.key, text(kv.value))).collect()
}

fn text(value: Option<AnyValue>) -> String {
    match value.and_then(|value| value.value) {
        Some(Value::StringValue(value)) => value,
        Some(Value::BoolValue(value)) => value.to_string(),
        Some(Value::IntValue(value)) => value.to_string(),
        Some(Value::DoubleValue(value)) => value.to_string(),
        other => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
