//! What goes on while one looks: a service whose handlers take seconds, and who asks it for what.
//!
//! Nothing here knows that spans are told of while they are open. Times are for a run of ten seconds, and a shorter one has
//! shorter ones.

use std::error::Error;
use std::future::{self, Future};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use opentelemetry::KeyValue;
use opentelemetry::trace::SpanBuilder;
use opentelemetry_per_request::{Telemetry, active_span};
use reqwest::Method;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::client::token;
use crate::service::{REQUEST_ATTRIBUTE, authenticate, server_layer};

/// What a quick handler takes, however long the run is.
const QUICK: Duration = Duration::from_millis(20);

/// How long the whole takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace(pub(super) Duration);

/// The running service.
pub(super) struct Service {
    address: SocketAddr,
    app: App,
}

#[derive(Clone)]
struct App {
    pace: Pace,
    /// Spans that were started, counted by the service itself.
    started: Arc<AtomicU64>,
}

/// Whether a request was answered, whatever the answer.
type Answer = Result<(), reqwest::Error>;

/// Requests that are not answered.
#[must_use = "a client that goes away ends the spans of its requests"]
pub(super) struct Hanging(#[expect(dead_code, reason = "it is dropped")] JoinSet<Answer>);

/// A request, which is made so many seconds after the start.
struct Visit {
    after: f64,
    method: Method,
    path: &'static str,
    /// Those of one trace are in one, and each is sent under its own token nevertheless.
    trace: u8,
    is_answered: bool,
}

fn visits() -> [Visit; 8] {
    let visit = |after, method: &Method, path, trace| Visit {
        after,
        method: method.clone(),
        path,
        trace,
        is_answered: true,
    };
    let hanging = visit(2.8, &Method::GET, "/reports", 4);
    [
        visit(0.2, &Method::GET, "/orders", 1),
        visit(1.0, &Method::GET, "/orders", 1),
        visit(1.5, &Method::POST, "/imports", 2),
        visit(2.5, &Method::POST, "/payments", 3),
        Visit {
            is_answered: false,
            ..hanging
        },
        visit(3.5, &Method::GET, "/health", 5),
        visit(5.0, &Method::GET, "/orders", 6),
        visit(6.5, &Method::GET, "/health", 7),
    ]
}

// ===== impl Pace =====

impl Pace {
    /// What this is of the whole, if the whole takes ten seconds.
    async fn wait(self, seconds: f64) {
        tokio::time::sleep(self.0.mul_f64(seconds / 10.0)).await;
    }
}

// ===== impl Service =====

impl Service {
    pub(super) async fn start(telemetry: &Telemetry, pace: Pace) -> io::Result<Self> {
        let app = App {
            pace,
            started: Arc::default(),
        };
        let layer = server_layer(telemetry);
        let routes = Router::new()
            .route("/orders/{id}", get(order))
            .route("/imports/{id}", post(import))
            .route("/payments/{id}", post(pay))
            .route("/reports/{id}", get(report))
            .route("/health/{id}", get(health))
            // Knows the route, and gives the span its name.
            .layer(layer.clone())
            .with_state(app.clone());
        let router = Router::new()
            .fallback_service(routes)
            .layer(middleware::from_fn_with_state(app.clone(), admit))
            // Knows no route yet. The span starts here, so waiting for admission is part of it.
            .layer(layer)
            .layer(middleware::from_fn(authenticate));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { address, app })
    }

    /// Makes all requests, and waits until the time is over and all are answered that ever will be. Returns the others, of
    /// which the client despairs when they are dropped.
    pub(super) async fn visit(&self) -> Result<Hanging, Box<dyn Error>> {
        let client = reqwest::Client::new();
        let mut answers = JoinSet::new();
        let mut hanging = JoinSet::<Answer>::new();
        for (request, visit) in visits().into_iter().enumerate() {
            let (pace, address, client) = (self.app.pace, self.address, client.clone());
            let tasks = match visit.is_answered {
                true => &mut answers,
                false => &mut hanging,
            };
            tasks.spawn(async move {
                pace.wait(visit.after).await;
                visit.send(&client, address, request + 1).await
            });
        }
        self.app.pace.wait(10.0).await;
        while let Some(answer) = answers.join_next().await {
            answer??;
        }
        Ok(Hanging(hanging))
    }

    /// How many spans it has started.
    pub(super) fn started(&self) -> u64 {
        self.app.started.load(Ordering::SeqCst)
    }
}

impl Visit {
    async fn send(self, client: &reqwest::Client, service: SocketAddr, request: usize) -> Answer {
        let Self {
            method,
            path,
            trace,
            ..
        } = self;
        client
            .request(method, format!("http://{service}{path}/{request}"))
            .header("authorization", format!("Bearer {}", token(request)))
            .header("traceparent", format!("00-{trace:032x}-{request:016x}-01"))
            .send()
            .await?
            .bytes()
            .await?;
        Ok(())
    }
}

// ===== the service =====

/// Orders wait for their turn, before anybody looks at what is asked for.
async fn admit(State(app): State<App>, request: Request, next: Next) -> Response {
    // The span of the request itself, which the layer has started.
    app.started.fetch_add(1, Ordering::SeqCst);
    if request.uri().path().starts_with("/orders/") {
        app.pace.wait(1.2).await;
    }
    next.run(request).await
}

async fn order(State(app): State<App>, Path(id): Path<usize>) -> &'static str {
    app.child("load order", id, async {
        app.child("SELECT orders", id, app.pace.wait(1.2)).await;
        app.child("SELECT items", id, app.pace.wait(0.9)).await;
    })
    .await;
    app.child("render", id, app.pace.wait(0.1)).await;
    "an order\n"
}

async fn import(State(app): State<App>, Path(id): Path<usize>) -> &'static str {
    app.child("import", id, async {
        for part in 1..=3 {
            active_span().update_name(format!("import, part {part} of 3"));
            app.pace.wait(1.5).await;
        }
    })
    .await;
    "imported\n"
}

async fn pay(State(app): State<App>, Path(id): Path<usize>) -> (StatusCode, &'static str) {
    app.child("charge card", id, async {
        app.pace.wait(2.0).await;
        active_span().fail("the bank did not answer");
    })
    .await;
    (StatusCode::BAD_GATEWAY, "not paid\n")
}

async fn report(State(app): State<App>, Path(id): Path<usize>) -> &'static str {
    app.child("build report", id, async {
        app.child("wait for the archive", id, future::pending())
            .await
    })
    .await;
    "never\n"
}

async fn health(State(app): State<App>, Path(id): Path<usize>) -> &'static str {
    app.child("ping", id, tokio::time::sleep(QUICK)).await;
    "well\n"
}

impl App {
    /// Runs `work` in a child of the active span that says from its start which request it is of.
    async fn child(&self, name: &'static str, id: usize, work: impl Future<Output = ()>) {
        self.started.fetch_add(1, Ordering::SeqCst);
        let attribute = KeyValue::new(REQUEST_ATTRIBUTE, id.to_string());
        let builder = SpanBuilder::from_name(name).with_attributes([attribute]);
        active_span().start_child_with(builder).run(work).await;
    }
}
