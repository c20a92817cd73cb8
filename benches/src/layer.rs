//! What a span around a request costs a server: our layer beside tower-http's `TraceLayer` with `tracing-opentelemetry`.
//!
//! A service is called in process, without a socket, and its response's body is read to the end. Both layers continue the
//! caller's trace and say the same of the request, which is checked before anything is measured. Requests come in paced
//! bursts, as in [`span_cost`](crate::span_cost), and for the same reason.

use std::alloc::System;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::thread;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::MatchedPath;
use axum::routing::get;
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderName, Request, Response, header};
use opentelemetry::Context;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{SpanId, SpanKind, TraceId, TracerProvider as _};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_per_request::server::ServerLayer;
use opentelemetry_per_request::{PerRequestSpanProcessor, RequestTracer, active_span, in_child};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData, SpanExporter};
use stats_alloc::{Region, StatsAlloc};
use tower::{Service, ServiceBuilder, service_fn};
use tower_http::classify::{ServerErrorsAsFailures, SharedClassifier};
use tower_http::trace::{DefaultOnRequest, TraceLayer};
use tracing::level_filters::LevelFilter;
use tracing::{Span, Subscriber, field, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::layer::SubscriberExt as _;

use crate::span_cost::{CountingExporter, Kind, REQUESTS};
use crate::{percentile, provider};

/// Spans below that of a request, where there are any.
pub const CHILDREN: i64 = 3;
/// Time between two bursts.
const PACE: Duration = Duration::from_millis(5);
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// What is around the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Nothing: what the service and the request cost.
    None,
    /// Ours.
    Server,
    /// Ours, with a hook that puts something into the context of each request, as a token is.
    ServerWithHook,
    /// `TraceLayer`, and `tracing-opentelemetry` with everything switched off that ours does not say either: where the span
    /// is in the code, its thread, how long it was idle.
    TraceLean,
    /// `TraceLayer`, and `tracing-opentelemetry` as it comes.
    Trace,
}

impl Layer {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::None,
        Self::Server,
        Self::ServerWithHook,
        Self::TraceLean,
        Self::Trace,
    ];

    /// The name in the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Server => "server_layer",
            Self::ServerWithHook => "server_layer_with_hook",
            Self::TraceLean => "trace_layer_lean",
            Self::Trace => "trace_layer",
        }
    }
}

/// What is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum App {
    /// A function, so no layer knows a route.
    Function,
    /// A router of axum with one route.
    Axum,
    /// The same, and its handler has children: by `in_child`, and by `#[tracing::instrument]`.
    AxumChildren,
}

impl App {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Function, Self::Axum, Self::AxumChildren];

    /// The name in the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Function => "function",
            Self::Axum => "axum",
            Self::AxumChildren => "axum_children",
        }
    }

    /// Spans of a request that is traced.
    fn spans(self) -> u64 {
        match self {
            Self::AxumChildren => 1 + CHILDREN as u64,
            Self::Function | Self::Axum => 1,
        }
    }
}

/// Allocations for each request, of the whole process.
#[derive(Clone, Copy, Debug)]
pub struct Allocations {
    /// How many there were. One that grows or shrinks counts again.
    pub count: f64,
    /// How many bytes they had.
    pub bytes: f64,
}

/// Nanoseconds for a request on the thread that serves it: the median of so many bursts.
///
/// # Panics
///
/// If a span was lost.
pub fn measure(app: App, layer: Layer, kind: Kind, bursts: usize) -> f64 {
    let exporter = CountingExporter::default();
    let traced = Traced::new(kind, exporter.clone());
    let mut nanos = Vec::with_capacity(bursts);
    traced.serve(app, layer, &mut |call| {
        burst(call);
        nanos.extend((0..bursts).map(|_| {
            thread::sleep(PACE);
            burst(call)
        }));
    });
    traced.provider.shutdown().expect("nothing was lost");
    let requests = ((bursts + 1) * REQUESTS) as u64;
    let spans = match (layer, kind) {
        (Layer::None, _) | (_, Kind::Noop) => 0,
        _ => requests * app.spans(),
    };
    assert_eq!(exporter.received(), spans, "{}", layer.name());
    percentile(&mut nanos, 50)
}

/// Allocations for each request, with a processor that drops every span: what is behind the layers allocates the same for all.
pub fn allocations(allocator: &StatsAlloc<System>, app: App, layer: Layer) -> Allocations {
    let traced = Traced::new(Kind::Noop, CountingExporter::default());
    let mut result = None;
    traced.serve(app, layer, &mut |call| {
        // What the first ones set up is not part of a request.
        (0..10).for_each(|_| call(request()));
        let requests: Vec<_> = (0..REQUESTS).map(|_| request()).collect();
        let region = Region::new(allocator);
        requests.into_iter().for_each(&mut *call);
        let change = region.change();
        let each = |all: usize| all as f64 / REQUESTS as f64;
        result = Some(Allocations {
            count: each(change.allocations + change.reallocations),
            bytes: each(change.bytes_allocated),
        });
    });
    result.expect("requests were served")
}

/// Checks that all layers say the same, and where each span is in its trace.
///
/// # Panics
///
/// If they do not.
pub fn check() {
    for app in App::ALL {
        let [ours, lean, full] = [Layer::Server, Layer::TraceLean, Layer::Trace].map(|layer| {
            let exporter = InMemorySpanExporter::default();
            let traced = Traced::new(Kind::Simple, exporter.clone());
            traced.serve(app, layer, &mut |call| call(request()));
            exporter.get_finished_spans().expect("the exporter is open")
        });
        for spans in [&ours, &lean, &full] {
            assert_eq!(spans.len() as u64, app.spans());
            let (root, children) = spans.split_last().expect("there is a span");
            let name = match app {
                App::Function => "GET",
                App::Axum | App::AxumChildren => "GET /orders/{id}",
            };
            assert_eq!(root.name, name);
            assert_eq!(root.span_kind, SpanKind::Server);
            assert_eq!(root.parent_span_id, SpanId::from_hex(CALLER).expect("hex"));
            assert!(root.parent_span_is_remote);
            let trace = TraceId::from_hex(TRACE).expect("hex");
            for span in spans {
                assert_eq!(span.span_context.trace_id(), trace);
            }
            for child in children {
                assert_eq!(child.name, "step");
                assert_eq!(child.parent_span_id, root.span_context.span_id());
            }
        }
        for ((ours, lean), full) in ours.iter().zip(&lean).zip(&full) {
            assert_eq!(said(ours), said(lean));
            let full = said(full);
            assert!(said(ours).iter().all(|fact| full.contains(fact)));
        }
    }
}

fn said(span: &SpanData) -> Vec<String> {
    let attributes = span.attributes.iter();
    let mut said: Vec<String> = attributes
        .map(|attribute| format!("{}={}", attribute.key, attribute.value))
        .collect();
    said.sort();
    said
}

// ===== Requests =====

/// As a browser sends it by way of a proxy that traces.
fn request() -> Request<Body> {
    Request::builder()
        .uri("/orders/4711?page=2&token=secret")
        .header(header::HOST, "shop.example")
        .header(header::USER_AGENT, "Mozilla/5.0 (X11; Linux x86_64)")
        .header(header::ACCEPT, "text/html")
        .header("traceparent", format!("00-{TRACE}-{CALLER}-01"))
        .body(Body::empty())
        .expect("the request is valid")
}

/// Nanoseconds for each of the requests. Making them is not measured.
fn burst(call: &mut Call) -> f64 {
    let requests: Vec<_> = (0..REQUESTS).map(|_| request()).collect();
    let start = Instant::now();
    requests.into_iter().for_each(call);
    start.elapsed().as_nanos() as f64 / REQUESTS as f64
}

/// Serves one request to the end of its body.
fn call<S, B>(service: &mut S, request: Request<Body>)
where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible>,
    B: http_body::Body<Error: std::fmt::Debug>,
{
    let served = async {
        let Ok(()) = poll_fn(|task| service.poll_ready(task)).await;
        let Ok(response) = service.call(request).await;
        let mut body = pin!(response.into_body());
        let mut frames = 0;
        while let Some(frame) = poll_fn(|task| body.as_mut().poll_frame(task)).await {
            frame.expect("the body is whole");
            frames += 1;
        }
        assert_eq!(frames, 1);
    };
    served.now_or_never().expect("nothing here waits");
}

// ===== Services =====

/// Sends one request, and reads its response.
type Call = dyn FnMut(Request<Body>);

/// Where spans go.
struct Traced {
    provider: SdkTracerProvider,
    tracer: RequestTracer,
}

impl Traced {
    fn new<E: SpanExporter + 'static>(kind: Kind, exporter: E) -> Self {
        let Kind::PerRequest = kind else {
            let provider = provider(kind, exporter);
            let tracer = RequestTracer::new(provider.tracer("bench"));
            return Self { provider, tracer };
        };
        let processor = PerRequestSpanProcessor::builder(exporter)
            .build()
            .expect("the defaults are valid");
        let handle = processor.handle();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .build();
        let tracer = RequestTracer::new(provider.tracer("bench")).with_handle(handle);
        Self { provider, tracer }
    }

    /// Gives `work` something to send requests to.
    fn serve(&self, app: App, layer: Layer, work: &mut dyn FnMut(&mut Call)) {
        let ours = || match layer {
            Layer::ServerWithHook => ServerLayer::new(self.tracer.clone())
                .with_request_context(|_, cx| cx.with_value("a token")),
            _ => ServerLayer::new(self.tracer.clone()),
        };
        let function = service_fn(|_: Request<Body>| async { Ok(Response::new(answer())) });
        let router = |layer| match app {
            App::AxumChildren => router(layer),
            App::Function | App::Axum => Router::new().route(ROUTE, get(async || answer())),
        };
        let mut served: Box<Call> = match (app, layer) {
            (App::Function, Layer::None) => calls(function),
            (App::Function, Layer::Server | Layer::ServerWithHook) => {
                calls(ServiceBuilder::new().layer(ours()).service(function))
            }
            (App::Function, Layer::TraceLean | Layer::Trace) => {
                calls(ServiceBuilder::new().layer(trace_layer()).service(function))
            }
            (_, Layer::None) => calls(router(layer)),
            (_, Layer::Server | Layer::ServerWithHook) => calls(router(layer).layer(ours())),
            (_, Layer::TraceLean | Layer::Trace) => calls(router(layer).layer(trace_layer())),
        };
        match layer {
            Layer::None | Layer::Server | Layer::ServerWithHook => work(&mut *served),
            Layer::TraceLean | Layer::Trace => {
                // Of this thread, and only now: ours is measured in a process without a subscriber.
                let subscriber = subscriber(&self.provider, layer);
                tracing::subscriber::with_default(subscriber, || work(&mut *served));
            }
        }
    }
}

fn calls<S, B>(mut service: S) -> Box<Call>
where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible> + 'static,
    B: http_body::Body<Error: std::fmt::Debug>,
{
    Box::new(move |request| call(&mut service, request))
}

const ROUTE: &str = "/orders/{id}";

fn answer() -> Body {
    Body::from("an order")
}

/// A handler with children, as users of this layer write them.
fn router(layer: Layer) -> Router {
    let handler = match layer {
        Layer::None => get(async || answer_after(plain).await),
        Layer::Server | Layer::ServerWithHook => get(async || answer_after(in_spans_of_ours).await),
        Layer::TraceLean | Layer::Trace => get(async || answer_after(instrumented).await),
    };
    Router::new().route(ROUTE, handler)
}

async fn answer_after<F: Future<Output = ()>>(step: fn(i64) -> F) -> Body {
    for id in 0..CHILDREN {
        step(id).await;
    }
    answer()
}

async fn plain(_: i64) {}

async fn in_spans_of_ours(id: i64) {
    in_child("step", async { active_span().set_attribute("step.id", id) }).await;
}

#[tracing::instrument(name = "step", skip_all, fields(step.id = id))]
async fn instrumented(id: i64) {}

// ===== The alternative =====

fn subscriber(provider: &SdkTracerProvider, layer: Layer) -> impl Subscriber + Send + Sync {
    let lean = layer == Layer::TraceLean;
    let spans = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("bench"))
        .with_location(!lean)
        .with_threads(!lean)
        .with_target(!lean)
        .with_tracked_inactivity(!lean);
    // The layer's own events are below that level.
    tracing_subscriber::registry()
        .with(LevelFilter::INFO)
        .with(spans)
}

type Tracing = TraceLayer<
    SharedClassifier<ServerErrorsAsFailures>,
    fn(&Request<Body>) -> Span,
    DefaultOnRequest,
    fn(&Response<Body>, Duration, &Span),
>;

fn trace_layer() -> Tracing {
    TraceLayer::new_for_http()
        .make_span_with(open as fn(&Request<Body>) -> Span)
        .on_response(record as fn(&Response<Body>, Duration, &Span))
}

/// The same facts as ours.
fn open(request: &Request<Body>) -> Span {
    let method = request.method().as_str();
    let route = request.extensions().get::<MatchedPath>();
    let route = route.map(MatchedPath::as_str);
    let named = route.map(|route| format!("{method} {route}"));
    let span = info_span!(
        "request",
        otel.name = named.as_deref().unwrap_or(method),
        otel.kind = "server",
        otel.status_code = field::Empty,
        http.request.method = method,
        http.route = route,
        http.response.status_code = field::Empty,
        "error.type" = field::Empty,
        url.path = request.uri().path(),
        url.scheme = request.uri().scheme_str().unwrap_or("http"),
        url.query = request.uri().query().map(redacted),
        network.protocol.version = "1.1",
        user_agent.original = text(request.headers(), &header::USER_AGENT),
        server.address = text(request.headers(), &header::HOST),
    );
    let propagator = TraceContextPropagator::new();
    let headers = HeaderExtractor(request.headers());
    let parent = propagator.extract_with_context(&Context::new(), &headers);
    span.set_parent(parent).expect("it has not started");
    span
}

fn record(response: &Response<Body>, _: Duration, span: &Span) {
    let status = response.status();
    span.record("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        span.record("otel.status_code", "ERROR");
        span.record("error.type", status.as_str());
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The names in a query.
fn redacted(query: &str) -> String {
    let mut redacted = String::with_capacity(query.len() + 16);
    for part in query.split('&') {
        if !redacted.is_empty() {
            redacted.push('&');
        }
        if let Some((name, _)) = part.split_once('=') {
            redacted.push_str(name);
            redacted.push('=');
        }
        redacted.push_str("REDACTED");
    }
    redacted
}
