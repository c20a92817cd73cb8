//! The collector of a run: real HTTP on loopback. It remembers what it has answered, and it can go down and come back.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use tokio::sync::oneshot;

use crate::service::{TENANT, now};

/// Another program may take the port for a moment while the collector is down.
const PATIENCE_FOR_THE_PORT: Duration = Duration::from_secs(5);

const SAMPLED: u32 = 1;

/// A span as it arrived. Times are in nanoseconds since the epoch.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    /// Distinguishes the spans of a run.
    pub(crate) id: Vec<u8>,
    pub(crate) sampled: bool,
    /// Whose span it is.
    pub(crate) tenant: String,
    /// Under whose token it came. Empty if there was none.
    pub(crate) token: String,
    pub(crate) ended: u64,
    pub(crate) arrived: u64,
}

#[derive(Clone, Debug, Default)]
struct Inbox(Arc<Mutex<Vec<Arrival>>>);

/// A collector that runs until it is dropped.
#[derive(Debug)]
pub(crate) struct Receiver {
    address: SocketAddr,
    delay: Duration,
    inbox: Inbox,
    /// None while it is down.
    listening: Option<Listening>,
}

#[derive(Debug)]
struct Listening {
    stop: oneshot::Sender<()>,
    thread: thread::JoinHandle<io::Result<()>>,
}

// ===== impl Receiver =====

impl Receiver {
    /// Starts one that takes so long for each answer.
    pub(crate) fn start(delay: Duration) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let mut receiver = Self {
            address: listener.local_addr()?,
            delay,
            inbox: Inbox::default(),
            listening: None,
        };
        receiver.listen(listener)?;
        Ok(receiver)
    }

    pub(crate) fn traces_url(&self) -> String {
        format!("http://{}/v1/traces", self.address)
    }

    /// What it has answered, in the order in which it did.
    pub(crate) fn arrivals(&self) -> Vec<Arrival> {
        self.inbox.lock().clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.inbox.lock().len()
    }

    /// Breaks all connections, and refuses new ones.
    pub(crate) fn down(&mut self) {
        if let Some(listening) = self.listening.take() {
            let _ = listening.stop.send(());
            let _ = listening.thread.join();
        }
    }

    /// Listens again on the same port.
    pub(crate) fn up(&mut self) -> io::Result<()> {
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

    fn listen(&mut self, listener: TcpListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let (stop, stopped) = oneshot::channel::<()>();
        let state = (self.inbox.clone(), self.delay);
        let thread = thread::spawn(move || {
            // The runtime ends with this thread, and all connections with it.
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?
                .block_on(async {
                    let app = Router::new()
                        .route("/v1/traces", post(receive))
                        .layer(DefaultBodyLimit::disable())
                        .with_state(state);
                    let listener = tokio::net::TcpListener::from_std(listener)?;
                    tokio::select! {
                        served = axum::serve(listener, app) => served,
                        _ = stopped => Ok(()),
                    }
                })
        });
        self.listening = Some(Listening { stop, thread });
        Ok(())
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.down();
    }
}

// ===== impl Inbox =====

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Vec<Arrival>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A span has arrived when its request is about to be answered: what the collector has not answered for, the sender
/// cannot know of.
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
    let token = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "))
        .unwrap_or_default();
    let arrived = now();
    let spans = request
        .resource_spans
        .into_iter()
        .flat_map(|resource| resource.scope_spans)
        .flat_map(|scope| scope.spans);
    inbox.lock().extend(spans.map(|span| Arrival {
        tenant: tenant(&span),
        id: span.span_id,
        sampled: span.flags & SAMPLED != 0,
        token: token.to_owned(),
        ended: span.end_time_unix_nano,
        arrived,
    }));
    StatusCode::OK
}

fn tenant(span: &Span) -> String {
    span.attributes
        .iter()
        .find(|attribute| attribute.key == TENANT)
        .and_then(
            |attribute| match attribute.value.as_ref()?.value.as_ref()? {
                Value::StringValue(tenant) => Some(tenant.clone()),
                _ => None,
            },
        )
        .unwrap_or_default()
}
