//! The service: an ordinary axum application behind a `ServerLayer`.
//!
//! What this project asks of it is in `server_layer`: a layer, and how a request's own credentials become an
//! [`ExportToken`]. The handlers know nothing of tokens or exports: they log with `tracing`, and count with an ordinary meter.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, MeterProvider as _};
use opentelemetry_otlp_direct::ExportToken;
use opentelemetry_per_request::server::ServerLayer;
use opentelemetry_per_request::{Telemetry, active_span, in_child};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;
use tracing::info;

use crate::measured::ROUTE_ATTRIBUTE;

/// The attribute that tells, of each span and line of a request, which request it belongs to: what the account checks tokens against.
pub(crate) const REQUEST_ATTRIBUTE: &str = "demo.request";

/// The name of the instrumentation.
pub(crate) const SCOPE: &str = "orders";

/// The only route.
pub(crate) const ROUTE: &str = "/orders/{id}";

/// The instruments: a counter of requests, and a histogram of the seconds that each of them took.
pub(crate) const ANSWERED: &str = "orders.answered";
pub(crate) const DURATION: &str = "orders.duration";

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
    answered: Counter<u64>,
    duration: Histogram<f64>,
}

const BACKGROUND: u32 = 10_000;

/// Each request is a span, exported under its own token, and says which request it is.
pub(crate) fn server_layer(telemetry: &Telemetry) -> ServerLayer {
    telemetry
        .server_layer()
        .with_request_context(|request, cx| match request.extensions.get() {
            Some(token) => ExportToken::attach_to(token, &cx),
            None => cx,
        })
        .with_attributes(|request, attributes| {
            let id = request.uri.path().rsplit('/').next().unwrap_or_default();
            attributes.push(KeyValue::new(REQUEST_ATTRIBUTE, id.to_owned()));
        })
}

impl Service {
    pub(crate) async fn start(telemetry: &Telemetry) -> io::Result<Self> {
        let meter = telemetry.meter_provider().meter(SCOPE);
        let app = App {
            ended: Arc::default(),
            background: Arc::new(Semaphore::new(BACKGROUND as usize)),
            answered: meter.u64_counter(ANSWERED).build(),
            duration: meter.f64_histogram(DURATION).with_unit("s").build(),
        };
        let layer = server_layer(telemetry);
        let router = Router::new()
            .route(ROUTE, get(order))
            .layer(layer)
            .layer(middleware::from_fn(authenticate))
            .with_state(app.clone());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        info!("the service listens");
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
        info!("the service has stopped");
        self.app.ended.load(Ordering::SeqCst)
    }
}

/// Whose request it is. Its telemetry is that one's, too.
pub(crate) async fn authenticate(mut request: Request, next: Next) -> Response {
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
    let start = Instant::now();
    info!(demo.request = %id, "asked for an order");
    // The span of the request itself, which the layer ends.
    app.ended.fetch_add(1, Ordering::SeqCst);
    app.child("load order", id, async {
        app.child("SELECT orders", id, pause(2 + id % 7)).await;
        app.child("SELECT items", id, pause(1 + id % 5)).await;
        info!(demo.request = %id, "order loaded");
    })
    .await;
    app.child("render", id, pause(1 + id % 3)).await;
    if id % 4 == 0 {
        app.after_response("write audit log", id);
    }
    if id % 6 == 0 {
        app.after_response("warm cache", id);
    }
    let route = [KeyValue::new(ROUTE_ATTRIBUTE, ROUTE)];
    app.answered.add(1, &route);
    app.duration.record(start.elapsed().as_secs_f64(), &route);
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
        // Taken before the task runs, and given back when its span has ended.
        let working = self.background.clone().try_acquire_owned();
        let work = self.child(name, id, async move {
            tokio::time::sleep(AFTER_RESPONSE).await;
            info!(demo.request = %id, "done");
        });
        tokio::spawn(async move {
            work.await;
            drop(working);
        });
    }
}
