//! What tower asks of a service, and what remains of a request.

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::pin::{Pin, pin};
use std::task::{Context as TaskContext, Poll, Waker};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::routing::get;
use http::{Request, Response};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Empty, Full};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry::trace::noop::NoopTracerProvider;
use opentelemetry_per_request::server::{Server, ServerBody, ServerFuture, ServerLayer};
use opentelemetry_per_request::{RequestTracer, in_child};
use tower::{BoxError, Layer as _, Service, ServiceExt as _};

use super::site::{Fed, Once, Serving, Site, attribute, is_cancelled, tenant_of};
use crate::support::{Tenant, Witness, soon, wait_until};

/// Not `Clone`, and must be asked whether it is ready before each call. Its error is a box.
#[derive(Debug, Default)]
struct Strict {
    polls: u32,
    ready: bool,
    broken: bool,
}

impl Service<Request<Empty<Bytes>>> for Strict {
    type Response = Response<Full<Bytes>>;
    type Error = BoxError;
    type Future = Ready<Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, task: &mut TaskContext<'_>) -> Poll<Result<(), BoxError>> {
        if self.broken {
            return Poll::Ready(Err("broken".into()));
        }
        self.polls += 1;
        self.ready = self.polls > 1;
        if self.ready {
            return Poll::Ready(Ok(()));
        }
        task.waker().wake_by_ref();
        Poll::Pending
    }

    fn call(&mut self, _: Request<Empty<Bytes>>) -> Self::Future {
        assert!(
            std::mem::take(&mut self.ready),
            "called without being ready"
        );
        ready(Ok(Response::new("whole".into())))
    }
}

fn empty() -> Request<Empty<Bytes>> {
    Request::new(Empty::new())
}

/// Scenario: a service that is no `Clone`, is ready at the second question only, and asks to be asked before each call;
/// then it breaks.
/// Guarantees: the layer passes on the question, its answers and its errors, and calls the very service that was ready.
/// What is not ready makes no span.
#[test]
fn readiness_is_the_services_own() {
    let site = Site::new();
    let mut task = TaskContext::from_waker(Waker::noop());
    let mut server = site.layer().layer(Strict::default());
    assert!(Service::poll_ready(&mut server, &mut task).is_pending());
    assert!(Service::poll_ready(&mut server, &mut task).is_ready());
    let answer = soon(server.call(empty())).unwrap();
    assert_eq!(answer.body().size_hint().exact(), Some(5));
    assert!(!answer.body().is_end_stream());
    let body = soon(answer.into_body().collect()).unwrap();
    assert_eq!(body.to_bytes(), "whole");
    site.span();

    let mut broken = site.layer().layer(Strict {
        broken: true,
        ..Strict::default()
    });
    let error = soon(async move { broken.ready().await.map(drop).unwrap_err() });
    assert_eq!(error.to_string(), "broken");
    assert_eq!(site.ended(), 1);
}

/// A service that counts its calls, each clone its own.
#[derive(Debug)]
struct Counting(u32);

impl Clone for Counting {
    fn clone(&self) -> Self {
        Self(0)
    }
}

impl Service<Request<Empty<Bytes>>> for Counting {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Empty<Bytes>>) -> Self::Future {
        self.0 += 1;
        ready(Ok(Response::new(self.0.to_string())))
    }
}

/// Scenario: a server and its clone are called in turn.
/// Guarantees: a clone has a clone of the service, and a call is one of the service itself, not of another clone.
#[test]
fn clone_is_of_the_service_and_a_call_is_not() {
    let site = Site::new();
    let mut server = site.layer().layer(Counting(0));
    let call = |server: &mut Server<Counting>| {
        let answer = soon(server.call(empty())).unwrap();
        soon(answer.into_body().collect()).unwrap().to_bytes()
    };
    assert_eq!(call(&mut server), "1");
    assert_eq!(call(&mut server), "2");
    let mut clone = server.clone();
    assert_eq!(call(&mut clone), "1");
    assert_eq!(call(&mut server), "3");
    site.spans(4);
}

/// Scenario: a future and a body are polled after their ends, and a body is asked for its end before that.
/// Guarantees: the future stays pending, and neither the service's future nor a body that said it was at its end is
/// polled again by the layer itself; the span ended once.
#[test]
fn polls_after_the_end_do_no_harm() {
    let site = Site::new();
    let mut task = TaskContext::from_waker(Waker::noop());
    let mut server = site.layer().layer(Counting(0));
    let mut future = pin!(server.call(empty()));
    let Poll::Ready(Ok(answer)) = future.as_mut().poll(&mut task) else {
        panic!("it was ready");
    };
    assert!(future.as_mut().poll(&mut task).is_pending());
    let mut body = pin!(answer.into_body());
    let Poll::Ready(Some(Ok(frame))) = body.as_mut().poll_frame(&mut task) else {
        panic!("it has a frame");
    };
    assert_eq!(frame.into_data().unwrap(), "1");
    assert!(body.is_end_stream());
    assert_eq!(site.ended(), 1);
    for _ in 0..2 {
        assert!(matches!(
            body.as_mut().poll_frame(&mut task),
            Poll::Ready(None)
        ));
    }
    let span = site.span();
    assert!(!is_cancelled(&span), "{span:?}");
}

/// Scenario: a body is dropped that nobody has polled, by a middleware that puts another one in its place.
/// Guarantees: the span ends, and says that nothing of the body was taken.
#[test]
fn body_that_is_replaced_was_cut_off_at_its_start() {
    let site = Site::new();
    let app = Router::new().route("/", get("answer")).layer(site.layer());
    let app = app.layer(tower::util::MapResponseLayer::new(
        |_: Response<Body>| "another",
    ));
    let serving = Serving::axum(app);
    let answer = serving.exchange("GET / HTTP/1.0\r\n\r\n");
    assert!(answer.ends_with("another"), "{answer}");
    let span = site.span();
    assert!(is_cancelled(&span));
    assert_eq!(
        attribute(&span, "http.response.body.size").as_deref(),
        Some("0")
    );
}

/// Scenario: two requests over one connection, which stays open; one was read to the end, the other one waits for more
/// of its body, and is then dropped.
/// Guarantees: a request's context is kept while its span is open, and nothing keeps it after that: neither the
/// processor nor the connection.
#[test]
fn nothing_of_a_request_stays_behind() {
    let site = Site::new();
    let (feed, body) = Fed::new(&site.log);
    let ((first, first_alive), (second, second_alive)) = (Witness::new(), Witness::new());
    let witnesses = [Once::new(first), Once::new(second)];
    let layer = site.layer().with_request_context(move |request, cx| {
        let Tenant(number) = tenant_of(&request.headers).unwrap();
        cx.with_value(witnesses[number as usize - 1].take())
    });
    let app = Router::new()
        .route("/fixed", get(|| in_child("child", async { "answer" })))
        .route(
            "/stream",
            get(move || async move { body.take().response() }),
        )
        .layer(layer);
    let serving = Serving::axum(app);
    let mut client = serving.connect();
    client.send("GET /fixed HTTP/1.1\r\nhost: shop.test\r\nx-tenant: 1\r\n\r\n");
    client.read_until("answer");
    wait_until("both spans left", || site.telemetry.stats().exported == 2);
    wait_until("the first request is forgotten", || !first_alive.is_alive());
    client.send("GET /stream HTTP/1.1\r\nhost: shop.test\r\nx-tenant: 2\r\n\r\n");
    feed.data("part.");
    client.read_until("part.");
    assert!(second_alive.is_alive());
    client.hang_up();
    wait_until("the second request is forgotten", || {
        !second_alive.is_alive()
    });
    wait_until("its span left", || site.telemetry.stats().exported == 3);
    assert_eq!(site.telemetry.stats().traces, 0);
}

/// Scenario: nobody traces: the tracer records nothing.
/// Guarantees: requests are answered as they would be without the layer.
#[test]
fn layer_without_a_provider_changes_nothing() {
    let tracer = RequestTracer::new(NoopTracerProvider::new().tracer("nobody"));
    let app = Router::new().route("/", get(|| in_child("child", async { "answer" })));
    let serving = Serving::axum(app.layer(ServerLayer::new(tracer)));
    let mut client = serving.connect();
    for _ in 0..2 {
        client.get("/");
        let answer = client.read_until("answer");
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.contains("content-length: 6"),
            "{answer}"
        );
    }
}

/// Scenario: what a layer is put around, and what comes of it.
/// Guarantees: it can be sent and shared where the service and its parts can.
#[test]
fn types_go_where_their_services_go() {
    fn send<T: Send + 'static>() {}
    fn sync<T: Sync>() {}
    fn clone<T: Clone>() {}
    send::<ServerLayer>();
    sync::<ServerLayer>();
    clone::<ServerLayer>();
    send::<Server<Counting>>();
    sync::<Server<Counting>>();
    clone::<Server<Counting>>();
    send::<ServerFuture<Pin<Box<dyn Future<Output = ()> + Send>>>>();
    send::<ServerBody<Body>>();
    send::<ServerBody<Full<Bytes>>>();
    sync::<ServerBody<Full<Bytes>>>();
}
