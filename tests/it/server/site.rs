//! What the tests of the layer share: a provider, a server on one thread of its own, bodies that a test feeds, and an
//! account of what came after what.

use std::fmt;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::response::Response;
use http::{HeaderMap, Request};
use http_body::{Frame, SizeHint};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use opentelemetry::Context;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_per_request::server::ServerLayer;
use opentelemetry_per_request::{
    Config, Handle, PerRequestSpanProcessor, RequestTracer, active_span,
};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    Sampler, SdkTracerProvider, ShouldSample, Span, SpanData, SpanProcessor,
};
use tokio::sync::{mpsc, oneshot};
use tower::Service;

use crate::support::{FALLBACK, Recorder, Tenant, balanced, wait_until};

// ===== what happened =====

/// How long a test waits for what must come, on the slowest of machines.
const PATIENCE: Duration = Duration::from_secs(60);

/// What happened, in its order. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    pub(crate) fn note(&self, what: impl Into<String>) {
        self.0.lock().unwrap().push(what.into());
    }

    pub(crate) fn entries(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn has(&self, what: &str) -> bool {
        self.0.lock().unwrap().iter().any(|entry| entry == what)
    }
}

/// Notes each end of a span when it happens, and not when it is exported.
#[derive(Debug)]
struct Ends(Log);

impl SpanProcessor for Ends {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        self.0.note(format!("{} ended", span.name));
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

// ===== the telemetry of a site =====

/// A provider and what became of its spans. A request's tenant is in its header `x-tenant`.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) provider: SdkTracerProvider,
    pub(crate) telemetry: Handle,
    pub(crate) exporter: Recorder,
    pub(crate) log: Log,
}

impl Site {
    pub(crate) fn new() -> Self {
        Self::with(
            Recorder::new(),
            Sampler::ParentBased(Box::new(Sampler::AlwaysOn)),
        )
    }

    pub(crate) fn with(exporter: Recorder, sampler: impl ShouldSample + 'static) -> Self {
        let processor = PerRequestSpanProcessor::builder(exporter.clone())
            .with_config(Config::default())
            .with_fallback_context(Context::new().with_value(FALLBACK))
            .build()
            .unwrap();
        let telemetry = processor.handle();
        let log = Log::default();
        let provider = SdkTracerProvider::builder()
            .with_sampler(sampler)
            .with_span_processor(Ends(log.clone()))
            .with_span_processor(processor)
            .build();
        Self {
            provider,
            telemetry,
            exporter,
            log,
        }
    }

    pub(crate) fn tracer(&self) -> RequestTracer {
        RequestTracer::new(self.provider.tracer("site")).with_handle(self.telemetry.clone())
    }

    pub(crate) fn layer(&self) -> ServerLayer {
        ServerLayer::new(self.tracer()).with_request_context(|request, cx| {
            match tenant_of(&request.headers) {
                Some(tenant) => cx.with_value(tenant),
                None => cx,
            }
        })
    }

    /// How many spans have ended.
    pub(crate) fn ended(&self) -> u64 {
        balanced(&self.telemetry).ended
    }

    /// Waits until so many spans are at the exporter, and asserts that nothing of their requests is left.
    pub(crate) fn spans(&self, count: usize) -> Vec<(SpanData, Option<Tenant>)> {
        wait_until(&format!("{count} spans at the exporter"), || {
            balanced(&self.telemetry).exported as usize >= count
        });
        wait_until("no request is left", || self.telemetry.stats().traces == 0);
        let spans = self.exporter.spans();
        let stats = balanced(&self.telemetry);
        assert_eq!(spans.len(), count, "{spans:?}");
        spans.iter().for_each(|(span, _)| assert_unique(span));
        assert_eq!((stats.late.total(), stats.pending()), (0, 0), "{stats:?}");
        spans
    }

    /// The only span there is to be.
    pub(crate) fn span(&self) -> SpanData {
        self.spans(1).remove(0).0
    }
}

pub(crate) fn tenant_of(headers: &HeaderMap) -> Option<Tenant> {
    let tenant = headers.get("x-tenant")?.to_str().ok()?;
    tenant.parse().ok().map(Tenant)
}

/// OTLP asks for it, and the SDK does not see to it.
fn assert_unique(span: &SpanData) {
    let mut keys: Vec<_> = span.attributes.iter().map(|kv| kv.key.as_str()).collect();
    keys.sort_unstable();
    let all = keys.len();
    keys.dedup();
    assert_eq!(keys.len(), all, "a key is there twice: {span:?}");
}

pub(crate) fn attribute(span: &SpanData, key: &str) -> Option<String> {
    let found = span.attributes.iter().find(|kv| kv.key.as_str() == key)?;
    Some(found.value.to_string())
}

/// Whether the span says that it was cut off.
pub(crate) fn is_cancelled(span: &SpanData) -> bool {
    attribute(span, "per_request.cancelled").as_deref() == Some("true")
}

// ===== a server =====

/// A server on a thread and a runtime of its own, which has no other thread. It stops when this is dropped.
#[derive(Debug)]
pub(crate) struct Serving {
    pub(crate) address: SocketAddr,
    _stop: oneshot::Sender<()>,
}

impl Serving {
    /// By axum, with HTTP/1 and HTTP/2.
    pub(crate) fn axum(app: Router) -> Self {
        Self::start(|listener| async { axum::serve(listener, app).await.unwrap() })
    }

    /// By hyper alone, with HTTP/1 and HTTP/2.
    pub(crate) fn hyper<S, B, E>(service: S) -> Self
    where
        S: Service<Request<hyper::body::Incoming>, Response = http::Response<B>, Error = E>
            + Clone
            + Send
            + 'static,
        S::Future: Send,
        B: http_body::Body<Error: Into<tower::BoxError> + Send + Sync, Data: Send> + Send + 'static,
        E: Into<tower::BoxError> + 'static,
    {
        Self::start(|listener| async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let service = TowerToHyperService::new(service.clone());
                tokio::spawn(async move {
                    // It fails when its client is gone, for one.
                    let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                        .serve_connection_with_upgrades(TokioIo::new(stream), service)
                        .await;
                });
            }
        })
    }

    pub(crate) fn start<F>(
        serve: impl FnOnce(tokio::net::TcpListener) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()>,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(async {
                    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                    tokio::select! {
                        () = serve(listener) => {}
                        _ = stopped => {}
                    }
                });
        });
        Self {
            address,
            _stop: stop,
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// A connection on which nothing has been said.
    pub(crate) fn connect(&self) -> Wire {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Wire(stream)
    }

    /// What is answered to these bytes until the server ends the connection, which they should ask for.
    pub(crate) fn exchange(&self, request: impl AsRef<[u8]>) -> String {
        let mut wire = self.connect();
        wire.send(request);
        wire.rest()
    }

    /// A connection of HTTP/2, driven by the runtime that this is called in.
    pub(crate) async fn http2(
        &self,
    ) -> hyper::client::conn::http2::SendRequest<http_body_util::Full<Bytes>> {
        let stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let (client, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        tokio::spawn(connection);
        client
    }
}

/// The client's end of a connection, in bytes.
#[derive(Debug)]
pub(crate) struct Wire(TcpStream);

impl Wire {
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).unwrap();
    }

    /// A request for a path that ends with its head.
    pub(crate) fn get(&mut self, path: &str) {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: shop.test\r\n\r\n"));
    }

    /// What arrives, up to `end`.
    pub(crate) fn read_until(&mut self, end: &str) -> String {
        let mut read = Vec::new();
        while !read.ends_with(end.as_bytes()) {
            let mut byte = [0];
            let count = self.0.read(&mut byte).unwrap();
            assert_eq!(count, 1, "the end of {:?}", String::from_utf8_lossy(&read));
            read.push(byte[0]);
        }
        String::from_utf8(read).unwrap()
    }

    pub(crate) fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        // A server that breaks the connection is at its end, too.
        let _ = self.0.read_to_end(&mut rest);
        String::from_utf8_lossy(&rest).into_owned()
    }

    /// The client is gone.
    pub(crate) fn hang_up(self) {
        self.0.shutdown(Shutdown::Both).unwrap();
    }
}

/// Runs a client's work in a runtime of its own, and fails if it takes long.
pub(crate) fn in_runtime<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new()
        .unwrap()
        .block_on(async { tokio::time::timeout(PATIENCE, work).await })
        .expect("it takes no time")
}

// ===== a body =====

/// What becomes a body, fed by a test through a [`Feed`]. It is at its end when the feed is dropped, and does not say
/// so before it is asked, as a stream does.
pub(crate) struct Fed {
    frames: mpsc::UnboundedReceiver<Result<Frame<Bytes>, String>>,
    length: Option<u64>,
    log: Log,
    done: bool,
}

/// Where a [`Fed`] gets its frames from.
#[derive(Clone, Debug)]
pub(crate) struct Feed(mpsc::UnboundedSender<Result<Frame<Bytes>, String>>);

/// Something for the first who asks.
#[derive(Debug)]
pub(crate) struct Once<T>(Arc<Mutex<Option<T>>>);

impl<T> Once<T> {
    pub(crate) fn new(content: T) -> Self {
        Self(Arc::new(Mutex::new(Some(content))))
    }

    pub(crate) fn take(&self) -> T {
        self.0.lock().unwrap().take().expect("nobody took it yet")
    }
}

impl<T> Clone for Once<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl Fed {
    /// One for the first request that is answered with it.
    pub(crate) fn new(log: &Log) -> (Feed, Once<Self>) {
        Self::of_length(log, None)
    }

    /// One whose length is known beforehand.
    pub(crate) fn of_length(log: &Log, length: Option<u64>) -> (Feed, Once<Self>) {
        let (feed, frames) = mpsc::unbounded_channel();
        let log = log.clone();
        let body = Self {
            frames,
            length,
            log,
            done: false,
        };
        (Feed(feed), Once::new(body))
    }

    pub(crate) fn response(self) -> Response {
        Response::new(Body::new(self))
    }
}

impl Feed {
    pub(crate) fn data(&self, data: &'static str) {
        let _ = self
            .0
            .send(Ok(Frame::data(Bytes::from_static(data.as_bytes()))));
    }

    pub(crate) fn trailers(&self, name: &'static str, value: &'static str) {
        let trailers = HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())]);
        let _ = self.0.send(Ok(Frame::trailers(trailers)));
    }

    pub(crate) fn error(&self, error: &str) {
        let _ = self.0.send(Err(error.to_owned()));
    }
}

impl http_body::Body for Fed {
    type Data = Bytes;
    type Error = String;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, String>>> {
        assert!(!self.done, "polled after its end");
        if !active_span().is_recording() {
            self.log.note("polled without a span");
        }
        let frame = ready!(self.frames.poll_recv(task));
        self.done = frame.is_none();
        Poll::Ready(frame)
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map(SizeHint::with_exact).unwrap_or_default()
    }
}

/// Notes it, and starts a task: whatever is noted before that was done in the same poll.
impl Drop for Fed {
    fn drop(&mut self) {
        self.log.note(match active_span().is_recording() {
            true => "body dropped in its span",
            false => "body dropped",
        });
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let log = self.log.clone();
            runtime.spawn(async move { log.note("another task") });
        }
    }
}

impl fmt::Debug for Fed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fed")
    }
}
