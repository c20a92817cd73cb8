//! Calls of other servers: their spans, and the trace that goes along, over real HTTP and gRPC.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::{Future, pending, poll_fn, ready};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Poll};

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::any;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Uri};
use http_body::{Body, Frame};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::rt::TokioExecutor;
use opentelemetry::baggage::BaggageExt as _;
use opentelemetry::propagation::TextMapCompositePropagator;
use opentelemetry::trace::{
    FutureExt as _, SpanBuilder, SpanKind, Status, TraceContextExt as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_per_request::client::{ClientLayer, inject, send};
use opentelemetry_per_request::{RequestTracer, active_span, in_child, in_child_sync};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::ResourceSpans;
use opentelemetry_sdk::propagation::{BaggagePropagator, TraceContextPropagator};
use opentelemetry_sdk::trace::{InMemorySpanExporter, Sampler, SdkTracerProvider, SpanData};
use socket2::{Domain, Socket, Type};
use tokio::sync::Notify;
use tower::{Layer as _, Service, ServiceExt as _, service_fn};

use crate::support::{remote_parent, some_trace};

/// In each place where a secret may be.
const SECRET: &str = "S3CRET";

const STALE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

// ===== What spans come from, and where calls go to =====

/// A tracer, and the spans that have ended.
struct Traces {
    exporter: InMemorySpanExporter,
    tracer: RequestTracer,
    _provider: SdkTracerProvider,
}

impl Traces {
    fn new() -> Self {
        Self::sampled_by(Sampler::AlwaysOn)
    }

    fn sampled_by(sampler: Sampler) -> Self {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder()
            .with_simple_exporter(exporter.clone())
            .with_sampler(sampler)
            .build();
        Self {
            exporter,
            tracer: RequestTracer::new(provider.tracer("test")),
            _provider: provider,
        }
    }

    /// Runs `work` in a root span.
    async fn run<T>(&self, work: impl Future<Output = T>) -> T {
        let builder = SpanBuilder::from_name("root");
        self.tracer.start(builder, &Context::new()).run(work).await
    }

    /// Those that have ended. None of them shows a secret.
    fn spans(&self) -> Vec<SpanData> {
        let spans = self.exporter.get_finished_spans().unwrap();
        assert!(!format!("{spans:?}").contains(SECRET), "{spans:#?}");
        spans
    }

    /// The only span of a call.
    fn call(&self) -> SpanData {
        let mut calls = self.spans();
        calls.retain(|span| span.span_kind == SpanKind::Client);
        assert_eq!(calls.len(), 1, "{calls:#?}");
        calls.remove(0)
    }
}

fn said(span: &SpanData) -> HashMap<&str, String> {
    let said = |attribute: &'_ KeyValue| attribute.value.to_string();
    let attributes = span.attributes.iter();
    attributes
        .map(|attribute| (attribute.key.as_str(), said(attribute)))
        .collect()
}

/// What a header says of a span.
fn traceparent(span: &SpanData) -> String {
    let (trace, id) = (span.span_context.trace_id(), span.span_context.span_id());
    format!("00-{trace}-{id}-01")
}

/// A server that keeps what it was asked. `/status/{code}` answers so, `/hang` never does, and `/moved` is somewhere else.
#[derive(Clone, Default)]
struct Server {
    asked: Arc<Mutex<Vec<(Uri, HeaderMap)>>>,
    hanging: Arc<Notify>,
}

impl Server {
    async fn start() -> (Self, String) {
        let server = Self::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new()
            .route("/status/{code}", any(status))
            .route("/moved", any(moved))
            .route("/hang", any(hang))
            .with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        (server, address)
    }

    fn asked(&self) -> Vec<(Uri, HeaderMap)> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    fn note(&self, uri: Uri, headers: HeaderMap) {
        self.asked.lock().unwrap().push((uri, headers));
    }
}

async fn status(
    State(server): State<Server>,
    Path(code): Path<u16>,
    uri: Uri,
    headers: HeaderMap,
) -> StatusCode {
    server.note(uri, headers);
    StatusCode::from_u16(code).unwrap()
}

async fn moved(State(server): State<Server>, uri: Uri, headers: HeaderMap) -> Response<String> {
    server.note(uri, headers);
    let response = Response::builder().status(307);
    response
        .header("location", format!("/status/200?key={SECRET}"))
        .body(String::new())
        .unwrap()
}

async fn hang(State(server): State<Server>) {
    server.hanging.notify_one();
    pending().await
}

fn reqwest_client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

fn get(url: impl AsRef<str>) -> reqwest::Request {
    reqwest_client().get(url.as_ref()).build().unwrap()
}

/// A port that nobody listens on, and nobody else gets for as long as the socket is there.
fn nobody() -> (String, Socket) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    socket.bind(&any.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (format!("http://{address}"), socket)
}

/// Polls `work` until `reached`, and drops it then.
async fn cut_off<T>(work: impl Future<Output = T>, reached: impl Future<Output = ()>) {
    tokio::select! {
        biased;
        _ = work => panic!("it ended"),
        () = reached => {}
    }
}

// ===== Clients =====

/// Scenario: calls with reqwest: by `send`, and as the tower service that it is, in a layer.
/// Guarantees: each is a CLIENT span below the active one, with the attributes of the conventions; the server gets its ids
/// in the place of stale ones.
#[tokio::test]
async fn call_of_reqwest_is_a_client_span_that_goes_along() {
    let (server, address) = Server::start().await;
    let url = format!("{address}/status/201?key={SECRET}#{SECRET}");
    for layered in [false, true] {
        let traces = Traces::new();
        let mut request = get(&url);
        request
            .headers_mut()
            .insert("traceparent", STALE.parse().unwrap());
        request
            .headers_mut()
            .insert("tracestate", "stale=1".parse().unwrap());
        let client = reqwest_client();
        let call = async {
            match layered {
                false => send(request, |request| client.execute(request)).await,
                true => ClientLayer::new().layer(client).oneshot(request).await,
            }
        };
        let step = async { in_child("step", call).await };
        let response = traces.run(step).await.unwrap();
        assert_eq!(response.status(), 201);

        let spans = traces.spans();
        let names: Vec<_> = spans.iter().map(|span| &*span.name).collect();
        assert_eq!(names, ["GET", "step", "root"]);
        let call = traces.call();
        assert_eq!(call.parent_span_id, spans[1].span_context.span_id());
        assert_eq!(call.status, Status::Unset);
        let port = address.rsplit_once(':').unwrap().1.to_owned();
        let full = format!("{address}/status/201?key=REDACTED");
        let expected = [
            ("http.request.method", "GET"),
            ("http.response.status_code", "201"),
            ("server.address", "127.0.0.1"),
            ("server.port", &port),
            ("url.full", &full),
        ];
        assert_eq!(said(&call), expected.map(|(k, v)| (k, v.to_owned())).into());
        let (uri, headers) = server.asked().remove(0);
        assert_eq!(uri.query(), Some(&*format!("key={SECRET}")));
        assert_eq!(headers["traceparent"], traceparent(&call));
        assert_eq!(headers.get("tracestate"), None);
    }
}

/// Scenario: a call with hyper-util's client, in a layer, with a method that nobody knows.
/// Guarantees: the same; the method is no name of a span.
#[tokio::test]
async fn call_of_hyper_is_a_client_span_that_goes_along() {
    let (server, address) = Server::start().await;
    let traces = Traces::new();
    let client = HyperClient::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let mut client = ClientLayer::new().layer(client);
    let request = Request::builder()
        .method("MERGE")
        .uri(format!("{address}/status/200?{SECRET}"))
        .body(Empty::new())
        .unwrap();
    let call = async { client.ready().await.unwrap().call(request).await.unwrap() };
    let response = traces.run(call).await;
    assert_eq!(response.status(), 200);
    response.into_body().collect().await.unwrap();

    let call = traces.call();
    let said = said(&call);
    assert_eq!(call.name, "HTTP");
    assert_eq!(said["http.request.method"], "_OTHER");
    assert_eq!(said["http.request.method_original"], "MERGE");
    assert_eq!(said["url.full"], format!("{address}/status/200?REDACTED"));
    let (_, headers) = server.asked().remove(0);
    assert_eq!(headers["traceparent"], traceparent(&call));
}

/// A gRPC service that refuses an empty request.
#[derive(Default)]
struct Refusing {
    traceparents: Arc<Mutex<Vec<String>>>,
}

#[tonic::async_trait]
impl TraceService for Refusing {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let sent = request.metadata().get("traceparent");
        let sent = sent.map_or(String::new(), |sent| sent.to_str().unwrap().to_owned());
        self.traceparents.lock().unwrap().push(sent);
        match request.into_inner().resource_spans.is_empty() {
            true => Err(tonic::Status::not_found("nothing")),
            false => Ok(tonic::Response::new(ExportTraceServiceResponse::default())),
        }
    }
}

/// Scenario: calls with tonic's `Channel` in a layer, one of which is answered, and one refused, and one of a server that is
/// not there.
/// Guarantees: the spans follow the conventions for RPC; the status is that of the trailers, or of the head; the server gets
/// the ids of each.
#[tokio::test]
async fn call_of_tonic_is_a_span_of_rpc_with_its_status() {
    let refusing = Refusing::default();
    let traceparents = refusing.traceparents.clone();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let service = TraceServiceServer::new(refusing);
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(incoming),
    );
    let layer = ClientLayer::new().with_attributes(|_, attributes| {
        attributes.push(KeyValue::new("server.address", "traces.internal"));
    });
    let method = "opentelemetry.proto.collector.trace.v1.TraceService/Export";
    let (nobody, _port) = nobody();
    for (address, spans, rpc_status, error_type) in [
        (address.clone(), 1, Some("OK"), None),
        (address, 0, Some("NOT_FOUND"), Some("NOT_FOUND")),
        (nobody, 1, None, Some("tonic::transport::error::Error")),
    ] {
        let traces = Traces::new();
        let endpoint = tonic::transport::Endpoint::from_shared(address).unwrap();
        let channel = layer.layer(endpoint.connect_lazy());
        let mut client = TraceServiceClient::new(channel);
        let resource_spans = vec![ResourceSpans::default(); spans];
        let request = ExportTraceServiceRequest { resource_spans };
        let answer = traces.run(async { client.export(request).await }).await;

        let call = traces.call();
        let said = said(&call);
        assert_eq!(answer.is_err(), error_type.is_some());
        assert_eq!(call.name, method);
        assert_eq!(said["rpc.system.name"], "grpc");
        assert_eq!(said["rpc.method"], method);
        assert_eq!(said["server.address"], "traces.internal");
        assert_eq!(said.get("rpc.status_code").map(String::as_str), rpc_status);
        assert_eq!(said.get("error.type").map(String::as_str), error_type);
        let failed = call.status == Status::error("");
        assert_eq!(failed, error_type.is_some(), "{:?}", call.status);
        if rpc_status.is_some() {
            let sent = traceparents.lock().unwrap().pop();
            assert_eq!(sent, Some(traceparent(&call)));
        }
    }
}

// ===== What becomes of a call =====

/// Scenario: answers of all sorts.
/// Guarantees: those from 400 on are errors of the span, with the code and without a message. No other is.
#[tokio::test]
async fn status_from_400_on_is_an_error_of_a_call() {
    let (_server, address) = Server::start().await;
    for (code, fails) in [(204, false), (304, false), (404, true), (503, true)] {
        let traces = Traces::new();
        let request = get(format!("{address}/status/{code}"));
        let call = async { send(request, |request| reqwest_client().execute(request)).await };
        traces.run(call).await.unwrap();
        let call = traces.call();
        let status = match fails {
            true => Status::error(""),
            false => Status::Unset,
        };
        assert_eq!(call.status, status, "{code}");
        let said = said(&call);
        assert_eq!(said["http.response.status_code"], code.to_string());
        let error_type = fails.then(|| code.to_string());
        assert_eq!(said.get("error.type"), error_type.as_ref());
    }
}

/// Scenario: a redirect.
/// Guarantees: there is one span around both requests, with the last status, and both carry it.
#[tokio::test]
async fn redirects_are_inside_of_the_one_span() {
    let (server, address) = Server::start().await;
    let traces = Traces::new();
    let request = get(format!("{address}/moved"));
    let call = async { send(request, |request| reqwest_client().execute(request)).await };
    traces.run(call).await.unwrap();
    let call = traces.call();
    assert_eq!(said(&call)["http.response.status_code"], "200");
    let asked = server.asked();
    assert_eq!(asked.len(), 2);
    for (_, headers) in asked {
        assert_eq!(headers["traceparent"], traceparent(&call));
    }
}

/// Scenario: nobody listens, and the URL has secrets; with two clients. A call that takes too long.
/// Guarantees: the span has failed, with a kind of error and without a message, since that would show the URL.
#[tokio::test]
async fn error_of_a_call_is_one_of_its_span_without_the_url() {
    let (nobody, _port) = nobody();
    let url = format!("{nobody}/path?key={SECRET}");
    let traces = Traces::new();
    let request = get(&url);
    let call = async { send(request, |request| reqwest_client().execute(request)).await };
    let error = traces.run(call).await.unwrap_err();
    assert!(error.to_string().contains(SECRET), "that is why: {error}");
    let call = traces.call();
    assert_eq!(call.status, Status::error(""));
    assert_eq!(said(&call)["error.type"], "connect");
    assert!(call.events.is_empty());

    let traces = Traces::new();
    let client = HyperClient::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let request = Request::get(&url).body(Empty::new()).unwrap();
    let call = async { ClientLayer::new().layer(client).oneshot(request).await };
    traces.run(call).await.unwrap_err();
    let error_type = said(&traces.call())["error.type"].clone();
    assert_eq!(error_type, "hyper_util::client::legacy::client::Error");

    let (_server, address) = Server::start().await;
    let traces = Traces::new();
    let mut request = get(format!("{address}/hang"));
    *request.timeout_mut() = Some(std::time::Duration::from_millis(1));
    let call = async { send(request, |request| reqwest_client().execute(request)).await };
    traces.run(call).await.unwrap_err();
    assert_eq!(said(&traces.call())["error.type"], "timeout");
}

/// Scenario: a call is dropped while the server thinks about it.
/// Guarantees: its span ends at once, says so, and is no error.
#[tokio::test]
async fn call_that_is_dropped_is_cancelled_and_no_error() {
    let (server, address) = Server::start().await;
    let traces = Traces::new();
    let request = get(format!("{address}/hang"));
    let call = async { send(request, |request| reqwest_client().execute(request)).await };
    let ended = traces.run(async {
        cut_off(call, server.hanging.notified()).await;
        traces.call()
    });
    let call = ended.await;
    assert_eq!(call.status, Status::Unset);
    let said = said(&call);
    assert_eq!(said["per_request.cancelled"], "true");
    assert_eq!(said.get("error.type"), None);
    assert_eq!(said.get("http.response.status_code"), None);
}

/// Scenario: a call panics, when it is made and when it is polled.
/// Guarantees: its span ends, and says so.
#[tokio::test]
async fn call_that_panics_ends_its_span() {
    for at_once in [true, false] {
        let traces = Traces::new();
        let call = move |_| {
            assert!(!at_once, "it panics");
            poll_fn(|_| -> Poll<Result<Response<Empty<Bytes>>, Infallible>> { panic!("it panics") })
        };
        let work = async move { send(Request::new(()), call).await.map(drop) };
        let task = tokio::spawn(traces.tracer.run("root", &Context::new(), work));
        assert!(task.await.unwrap_err().is_panic());
        let call = traces.call();
        assert_eq!(said(&call)["error.type"], "panic");
        assert_eq!(call.status, Status::error("panicked"));
    }
}

// ===== The status of gRPC =====

/// A body of these frames.
struct Frames {
    left: std::vec::IntoIter<Result<Frame<Bytes>, std::io::Error>>,
    /// Whether it says that it has none any more before it is asked for the next.
    says_so: bool,
}

impl Body for Frames {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        Poll::Ready(self.left.next())
    }

    fn is_end_stream(&self) -> bool {
        self.says_so && self.left.len() == 0
    }
}

fn data() -> Result<Frame<Bytes>, std::io::Error> {
    Ok(Frame::data(Bytes::from_static(b"a message")))
}

fn trailers(status: &'static str) -> Result<Frame<Bytes>, std::io::Error> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", status.parse().unwrap());
    Ok(Frame::trailers(trailers))
}

/// Calls a method of gRPC that is answered with this.
async fn call_rpc(traces: &Traces, response: http::response::Builder, frames: Frames) -> impl Body {
    let request = Request::post("http://a.example/pkg.Service/Method");
    let request = request.header("content-type", "application/grpc");
    let answer = Ok::<_, Infallible>(response.body(frames).unwrap());
    let call = async { send(request.body(()).unwrap(), |_| ready(answer)).await };
    traces.run(call).await.unwrap().into_body()
}

/// Scenario: bodies of gRPC with trailers, without, with an error, and dropped in the middle.
/// Guarantees: the span is open until then. It has the status of the trailers, `UNKNOWN` without any, the kind of the error,
/// or says that it was cut off.
#[tokio::test]
async fn span_of_rpc_ends_with_the_body_of_its_answer() {
    let broken = || Err(std::io::Error::other(SECRET));
    let io = "std::io::error::Error";
    for (frames, polls, status, error_type, cancelled) in [
        (vec![data(), trailers("0")], 2, "OK", "", false),
        (
            vec![data(), trailers("14")],
            2,
            "UNAVAILABLE",
            "UNAVAILABLE",
            false,
        ),
        (
            vec![data(), trailers("5")],
            2,
            "NOT_FOUND",
            "NOT_FOUND",
            false,
        ),
        (vec![data()], 2, "UNKNOWN", "UNKNOWN", false),
        (vec![data(), broken()], 2, "", io, false),
        (vec![data(), trailers("0")], 1, "CANCELLED", "", true),
        (vec![data(), trailers("0")], 0, "CANCELLED", "", true),
    ] {
        let traces = Traces::new();
        let left = frames.into_iter();
        let says_so = false;
        let body = call_rpc(&traces, Response::builder(), Frames { left, says_so }).await;
        let mut body = Box::pin(body);
        for _ in 0..polls {
            assert_eq!(traces.spans().len(), 1, "only the root has ended");
            let _ = body.frame().await;
        }
        drop(body);
        let call = traces.call();
        let said = said(&call);
        let text = |key| said.get(key).map_or("", String::as_str);
        assert_eq!(call.name, "pkg.Service/Method");
        assert_eq!(text("server.address"), "a.example");
        assert_eq!(text("server.port"), "80");
        assert_eq!(text("rpc.status_code"), status);
        assert_eq!(text("error.type"), error_type);
        assert_eq!(said.contains_key("per_request.cancelled"), cancelled);
        assert_eq!(call.status == Status::Unset, error_type.is_empty());
    }
}

/// Scenario: bodies of gRPC without a status that say that they are at their end, at once and after some data. Whoever knows
/// that does not ask for more.
/// Guarantees: the span ends there, with the status that clients make up.
#[tokio::test]
async fn span_of_rpc_ends_when_its_body_says_that_it_is_at_the_end() {
    for frames in [vec![], vec![data()]] {
        let traces = Traces::new();
        let polls = frames.len();
        let left = frames.into_iter();
        let says_so = true;
        let body = call_rpc(&traces, Response::builder(), Frames { left, says_so }).await;
        let mut body = Box::pin(body);
        for _ in 0..polls {
            body.frame().await;
        }
        assert_eq!(said(&traces.call())["rpc.status_code"], "UNKNOWN");
    }
}

/// Scenario: something that does not speak gRPC answers instead.
/// Guarantees: the span has failed with the status of HTTP, at once.
#[tokio::test]
async fn status_of_http_is_an_error_of_rpc() {
    let traces = Traces::new();
    let left = vec![data()].into_iter();
    let says_so = false;
    let response = Response::builder().status(502);
    let _body = call_rpc(&traces, response, Frames { left, says_so }).await;
    let call = traces.call();
    assert_eq!(said(&call)["error.type"], "502");
    assert_eq!(said(&call).get("rpc.status_code"), None);
    assert_eq!(call.status, Status::error(""));
}

// ===== When nobody traces =====

/// Scenario: calls without an active span, under suppressed telemetry in spite of one, and with a filter that is against it.
/// Guarantees: no span, nothing that is found out for one, and the request is as it was, also its `traceparent`.
#[tokio::test]
async fn call_that_is_not_traced_goes_out_unchanged() {
    let (server, address) = Server::start().await;
    let traces = Traces::new();
    let url = format!("{address}/status/200");
    let call = |layer: ClientLayer| {
        let layer = layer.with_attributes(|_, _| panic!("there is no span"));
        let url = url.clone();
        async move {
            let mut request = get(url);
            request
                .headers_mut()
                .insert("traceparent", STALE.parse().unwrap());
            let call = layer.send(request, |request| reqwest_client().execute(request));
            call.await.unwrap();
        }
    };
    call(ClientLayer::new()).await;
    let in_root = traces.tracer.run("root", &Context::new(), async {
        let suppressed = Context::current().with_telemetry_suppressed();
        async {
            let mut headers = HeaderMap::new();
            inject(&mut headers);
            assert!(headers.is_empty());
            call(ClientLayer::new()).await;
        }
        .with_context(suppressed)
        .await;
        // An exporter has the saved context: without the live span in it, and suppressed.
        let saved = Context::new()
            .with_remote_span_context(remote_parent(some_trace()))
            .with_telemetry_suppressed();
        call(ClientLayer::new()).with_context(saved).await;
        let elsewhere = |uri: Uri| uri.host() != Some("127.0.0.1");
        call(ClientLayer::new().with_filter(move |request| request.uri().is_some_and(elsewhere)))
            .await;
    });
    in_root.await;
    let names: Vec<_> = traces.spans().into_iter().map(|span| span.name).collect();
    assert_eq!(names, ["root"]);
    let asked = server.asked();
    assert_eq!(asked.len(), 4);
    for (_, headers) in asked {
        assert_eq!(headers["traceparent"], STALE);
    }
}

/// Scenario: a root that is not sampled, and a call in it.
/// Guarantees: no span arrives, but the other server learns that it is not to sample either.
#[tokio::test]
async fn trace_that_is_not_sampled_goes_along_as_such() {
    let (server, address) = Server::start().await;
    let traces = Traces::sampled_by(Sampler::AlwaysOff);
    let request = get(format!("{address}/status/200"));
    let trace = traces.run(async {
        send(request, |request| reqwest_client().execute(request))
            .await
            .unwrap();
        active_span().trace_id().unwrap()
    });
    let trace = trace.await;
    assert!(traces.spans().is_empty());
    let (_, headers) = server.asked().remove(0);
    let sent = headers["traceparent"].to_str().unwrap();
    assert!(sent.starts_with(&format!("00-{trace}-")), "{sent}");
    assert!(sent.ends_with("-00"), "{sent}");
}

/// Scenario: headers that have a trace already, and an active span.
/// Guarantees: they name the active span, once; a state of that trace is replaced, too.
#[tokio::test]
async fn injector_names_the_active_span_and_nothing_stale() {
    let traces = Traces::new();
    let mut headers = HeaderMap::new();
    headers.append("traceparent", STALE.parse().unwrap());
    headers.append("traceparent", STALE.parse().unwrap());
    headers.append("tracestate", "stale=1".parse().unwrap());
    traces.run(async { inject(&mut headers) }).await;
    let root = traces.spans().remove(0);
    assert_eq!(headers.len(), 1);
    assert_eq!(headers["traceparent"], traceparent(&root));
}

// ===== Settings, and the rules of tower =====

/// Scenario: a layer with all settings.
/// Guarantees: the query is shown but for signatures, attributes are those of the hook, and baggage goes along.
#[tokio::test]
async fn settings_of_the_layer_are_followed() {
    let (server, address) = Server::start().await;
    let traces = Traces::new();
    let propagator = TextMapCompositePropagator::new(vec![
        Box::new(TraceContextPropagator::new()),
        Box::new(BaggagePropagator::new()),
    ]);
    let layer = ClientLayer::new()
        .with_query()
        .with_propagator(propagator)
        .with_attributes(|request, attributes| {
            attributes.retain(|attribute| attribute.key.as_str() != "server.port");
            let tenant = request.headers()["x-tenant"].to_str().unwrap().to_owned();
            attributes.push(KeyValue::new("tenant", tenant));
        });
    let mut request = get(format!("{address}/status/200?page=2&sig={SECRET}"));
    request
        .headers_mut()
        .insert("x-tenant", "blue".parse().unwrap());
    let call = async {
        let cx = Context::current().with_baggage([KeyValue::new("user", "someone")]);
        let call = async {
            layer
                .send(request, |request| reqwest_client().execute(request))
                .await
        };
        call.with_context(cx).await
    };
    traces.run(call).await.unwrap();
    let call = traces.call();
    let said = said(&call);
    let shown = format!("{address}/status/200?page=2&sig=REDACTED");
    assert_eq!(said["url.full"], shown);
    assert_eq!(said["tenant"], "blue");
    assert_eq!(said.get("server.port"), None);
    let (_, headers) = server.asked().remove(0);
    assert_eq!(headers["baggage"], "user=someone");
    assert_eq!(headers["traceparent"], traceparent(&call));
}

/// Ready once for each time that it was asked, as the contract of tower allows. A clone is not.
#[derive(Default)]
struct ReadyOnce {
    ready: bool,
}

impl Clone for ReadyOnce {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Service<Request<()>> for ReadyOnce {
    type Response = Response<Empty<Bytes>>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, task: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        // Not at the first time.
        if !std::mem::replace(&mut self.ready, true) {
            task.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        assert!(
            std::mem::take(&mut self.ready),
            "called without being ready"
        );
        ready(Ok(Response::new(Empty::new())))
    }
}

/// Scenario: a service that panics if it is called without being ready, or if a clone of it is called instead.
/// Guarantees: the layer is not ready before the service is, and calls the one that was ready.
#[tokio::test]
async fn layer_calls_the_service_that_was_ready() {
    let traces = Traces::new();
    let calls = async {
        let mut client = ClientLayer::new().layer(ReadyOnce::default());
        for _ in 0..2 {
            let mut asked = pin!(poll_fn(|task| client.poll_ready(task)));
            let first = poll_fn(|task| Poll::Ready(asked.as_mut().poll(task)));
            let first: Poll<Result<(), Infallible>> = first.await;
            assert!(first.is_pending());
            asked.await.unwrap();
            client.call(Request::new(())).await.unwrap();
            let _other = client.clone();
        }
    };
    traces.run(calls).await;
    assert_eq!(traces.spans().len(), 3);
}

/// Starts a span when it is dropped.
struct Closing;

impl Drop for Closing {
    fn drop(&mut self) {
        in_child_sync("close", || ());
    }
}

/// Scenario: a service that starts spans when it is called, when it is polled and when its future is dropped, with a layer
/// around it. One call is done, and one is dropped.
/// Guarantees: they are children of the call, and not siblings; nothing else is active afterwards.
#[tokio::test]
async fn what_a_client_does_is_below_the_span_of_the_call() {
    for done in [true, false] {
        let traces = Traces::new();
        let inner = service_fn(|_: Request<()>| {
            in_child_sync("queue", || ());
            let closing = Closing;
            poll_fn(move |_| {
                let _held = &closing;
                in_child_sync("resolve", || ());
                match done {
                    true => Poll::Ready(Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))),
                    false => Poll::Pending,
                }
            })
        });
        let call = async {
            let call = ClientLayer::new().layer(inner).oneshot(Request::new(()));
            match done {
                true => drop(call.await.unwrap()),
                false => cut_off(call, ready(())).await,
            }
            active_span().span_id().unwrap()
        };
        let active = traces.run(call).await;

        let spans = traces.spans();
        let names: Vec<_> = spans.iter().map(|span| &*span.name).collect();
        assert_eq!(names, ["queue", "resolve", "close", "GET", "root"]);
        let id = |n: usize| spans[n].span_context.span_id();
        for child in &spans[..3] {
            assert_eq!(child.parent_span_id, id(3), "{}", child.name);
        }
        assert_eq!((spans[3].parent_span_id, active), (id(4), id(4)));
    }
}
