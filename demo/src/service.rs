//! The service: an ordinary axum application behind a `ServerLayer`.
//!
//! What this project asks of it is in `Service::start`: a layer, and how a request's own credentials become an
//! [`ExportToken`]. The handlers know nothing of tokens or exports.

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
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp_direct::ExportToken;
use opentelemetry_per_request::server::ServerLayer;
use opentelemetry_per_request::{Handle, RequestTracer, active_span, in_child};
use opentelemetry_sdk::trace::SdkTracerProvider;
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
    /// Spans that the service has ended, counted by itself.
    ended: Arc<AtomicU64>,
    /// Work that outlives its response. All permits are free when it is done.
    background: Arc<Semaphore>,
}

const BACKGROUND: u32 = 10_000;

impl Service {
    pub(crate) async fn start(provider: &SdkTracerProvider, telemetry: Handle) -> io::Result<Self> {
        let app = App {
            ended: Arc::default(),
            background: Arc::new(Semaphore::new(BACKGROUND as usize)),
        };
        let tracer = RequestTracer::new(provider.tracer("orders")).with_handle(telemetry);
        let layer = ServerLayer::new(tracer)
            .with_request_context(|request, cx| match request.extensions.get() {
                Some(token) => ExportToken::attach_to(token, &cx),
                None => cx,
            })
            .with_attributes(|request, attributes| {
                let id = request.uri.path().rsplit('/').next().unwrap_or_default();
                attributes.push(KeyValue::new(REQUEST_ATTRIBUTE, id.to_owned()));
            });
        let router = Router::new()
            .route("/orders/{id}", get(order))
            .layer(layer)
            .layer(middleware::from_fn(authenticate))
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

/// Whose request it is. Its telemetry is that one's, too.
async fn authenticate(mut request: Request, next: Next) -> Response {
    let Some(token) = bearer(&request).and_then(|token| ExportToken::new(token).ok()) else {
        return StatusCode::UNAUTHORIZED.into_response();
    };
    request.extensions_mut().insert(token);
    next.run(request).await
}

fn bearer(request: &Request) -> Option<&str> {
    let value = request.headers().get("authorization")?.to_str().ok()?;
    value.strip_prefix("Bearer ")
}

async fn order(State(app): State<App>, Path(id): Path<usize>) -> String {
    // The span of the request itself, which the layer ends.
    app.ended.fetch_add(1, Ordering::SeqCst);
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
    /// Runs `work` in a child of the active span.
    fn child<F: Future<Output = ()>>(
        &self,
        name: &'static str,
        id: usize,
        work: F,
    ) -> impl Future<Output = ()> + use<F> {
        let ended = self.ended.clone();
        in_child(name, async move {
            active_span().set_attribute(REQUEST_ATTRIBUTE, id.to_string());
            work.await;
            ended.fetch_add(1, Ordering::SeqCst);
        })
    }

    /// Starts a child of the active span that ends long after the response.
    fn after_response(&self, name: &'static str, id: usize) {
        let background = self.background.clone();
        let work = self.child(name, id, async move {
            let _working = background.acquire().await;
            tokio::time::sleep(AFTER_RESPONSE).await;
        });
        tokio::spawn(work);
    }
}
