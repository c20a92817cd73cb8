//! The service: an ordinary axum application, instrumented by hand.
//!
//! Three lines are what this project asks of it: make an [`ExportToken`] from the request's own credentials, attach it to
//! the request's context, and run the handler under that context.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use opentelemetry::context::FutureExt as _;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{SpanKind, TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_otlp_direct::ExportToken;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;

/// The attribute that tells, of each span, which request it belongs to: what the account checks tokens against.
pub(crate) const REQUEST_ATTRIBUTE: &str = "demo.request";

/// How long after the response the slow children end.
const AFTER_RESPONSE: Duration = Duration::from_millis(200);

/// A running service.
pub(crate) struct Service {
    address: SocketAddr,
    app: App,
    stop: oneshot::Sender<()>,
    server: JoinHandle<io::Result<()>>,
}

#[derive(Clone)]
struct App {
    tracer: SdkTracer,
    /// Spans that the service has ended, counted by itself.
    ended: Arc<AtomicU64>,
    /// Work that outlives its response. All permits are free when it is done.
    background: Arc<Semaphore>,
}

const BACKGROUND: u32 = 10_000;

impl Service {
    pub(crate) async fn start(provider: &SdkTracerProvider) -> io::Result<Self> {
        let app = App {
            tracer: provider.tracer("orders"),
            ended: Arc::default(),
            background: Arc::new(Semaphore::new(BACKGROUND as usize)),
        };
        let router = Router::new()
            .route("/orders/{id}", get(order))
            .layer(middleware::from_fn_with_state(app.clone(), trace_request))
            .with_state(app.clone());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(async move {
            axum::serve(listener, router)
                .with_graceful_shutdown(async {
                    let _ = stopped.await;
                })
                .await
        });
        Ok(Self {
            address,
            app,
            stop,
            server,
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits for what goes on after the responses. Returns how many spans ended.
    pub(crate) async fn stop(self) -> u64 {
        let _ = self.app.background.acquire_many(BACKGROUND).await;
        let _ = self.stop.send(());
        let _ = self.server.await;
        self.app.ended.load(Ordering::SeqCst)
    }
}

/// The root span of each request.
async fn trace_request(State(app): State<App>, request: Request, next: Next) -> Response {
    let Some(token) = bearer(&request).and_then(|token| ExportToken::new(token).ok()) else {
        return StatusCode::UNAUTHORIZED.into_response();
    };
    let parent = TraceContextPropagator::new().extract(&HeaderExtractor(request.headers()));
    let cx = token.attach_to(&parent);
    let path = request.uri().path();
    let id = path.rsplit('/').next().unwrap_or_default().to_owned();
    let span = app
        .tracer
        .span_builder("GET /orders/{id}")
        .with_kind(SpanKind::Server)
        .with_attributes([
            KeyValue::new("http.request.method", "GET"),
            KeyValue::new("http.route", "/orders/{id}"),
            KeyValue::new("url.path", path.to_owned()),
            KeyValue::new(REQUEST_ATTRIBUTE, id),
        ])
        .start_with_context(&app.tracer, &cx);
    let cx = cx.with_span(span);
    let response = next.run(request).with_context(cx.clone()).await;
    let status = i64::from(response.status().as_u16());
    cx.span()
        .set_attribute(KeyValue::new("http.response.status_code", status));
    app.end(&cx);
    response
}

fn bearer(request: &Request) -> Option<&str> {
    let value = request.headers().get("authorization")?.to_str().ok()?;
    value.strip_prefix("Bearer ")
}

/// The handler. It knows of spans, but nothing of tokens or exports.
async fn order(State(app): State<App>, Path(id): Path<usize>) -> String {
    app.child("load order", id, async {
        app.child("SELECT orders", id, pause(2 + id % 7)).await;
        app.child("SELECT items", id, pause(1 + id % 5)).await;
    })
    .await;
    app.child("render", id, pause(1 + id % 3)).await;
    if id % 4 == 0 {
        app.after_response("write audit log", id);
    }
    if id % 6 == 0 {
        app.after_response("warm cache", id);
    }
    format!("order {id}\n")
}

async fn pause(millis: usize) {
    tokio::time::sleep(Duration::from_millis(millis as u64)).await;
}

impl App {
    /// Runs `work` in a child of the current span.
    async fn child(&self, name: &'static str, id: usize, work: impl Future<Output = ()>) {
        let cx = self.start_child(name, id);
        work.with_context(cx.clone()).await;
        self.end(&cx);
    }

    /// Starts a child of the current span that ends long after the response.
    fn after_response(&self, name: &'static str, id: usize) {
        let app = self.clone();
        let cx = self.start_child(name, id);
        tokio::spawn(async move {
            let _working = app.background.acquire().await;
            tokio::time::sleep(AFTER_RESPONSE).await;
            app.end(&cx);
        });
    }

    fn start_child(&self, name: &'static str, id: usize) -> Context {
        let span = self
            .tracer
            .span_builder(name)
            .with_attributes([KeyValue::new(REQUEST_ATTRIBUTE, id.to_string())])
            .start(&self.tracer);
        Context::current_with_span(span)
    }

    fn end(&self, cx: &Context) {
        self.ended.fetch_add(1, Ordering::SeqCst);
        cx.span().end();
    }
}
