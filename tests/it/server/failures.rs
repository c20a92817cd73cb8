//! Errors and panics: of the service, and of the body.

use axum::Router;
use axum::response::Response;
use axum::routing::get;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use opentelemetry::trace::Status;
use opentelemetry_per_request::in_child;
use opentelemetry_sdk::trace::SpanData;
use tower::{BoxError, Layer as _};
use tower_http::catch_panic::CatchPanicLayer;

use super::site::{Fed, Serving, Site, attribute, in_runtime, is_cancelled};
use crate::support::Tenant;

const GET: &str = "GET / HTTP/1.1\r\nhost: shop.test\r\nx-tenant: 7\r\nconnection: close\r\n\r\n";

fn assert_failed(span: &SpanData, kind: &str, description: &str, code: Option<&str>) {
    assert_eq!(
        span.status,
        Status::error(description.to_owned()),
        "{span:?}"
    );
    let found = attribute(span, "error.type");
    assert!(
        found.as_deref().is_some_and(|found| found.contains(kind)),
        "{kind}: {span:?}"
    );
    assert_eq!(
        attribute(span, "http.response.status_code").as_deref(),
        code,
        "{span:?}"
    );
    assert!(!is_cancelled(span), "{span:?}");
}

/// Scenario: a body fails after a part of it was sent, over HTTP/1 and HTTP/2.
/// Guarantees: the span has failed in the words of the error, ends at once, and was not cut off by anybody.
#[test]
fn error_of_the_body_fails_the_span() {
    for http2 in [false, true] {
        let site = Site::new();
        let (feed, body) = Fed::new(&site.log);
        let handler = move || async move { body.take().response() };
        let serving = Serving::axum(Router::new().route("/", get(handler)).layer(site.layer()));
        feed.data("first.");
        if http2 {
            in_runtime(async {
                let request = Request::get("http://shop.test/").header("x-tenant", "7");
                let request = request.body(Full::default()).unwrap();
                let mut client = serving.http2().await;
                let mut answer = client.send_request(request).await.unwrap().into_body();
                answer.frame().await.unwrap().unwrap();
                feed.error("the disk is gone");
                assert!(answer.frame().await.unwrap().is_err());
            });
        } else {
            let mut client = serving.connect();
            client.send(GET);
            client.read_until("first.");
            assert_eq!(site.ended(), 0);
            feed.error("the disk is gone");
            assert!(!client.rest().contains("0\r\n\r\n"));
        }
        let (span, tenant) = site.spans(1).remove(0);
        assert_eq!(tenant, Some(Tenant(7)));
        assert_failed(&span, "Error", "the disk is gone", Some("200"));
    }
}

/// Scenario: a response with the status 503 whose body fails, too.
/// Guarantees: the span says once what has failed: the status, which came first.
#[test]
fn error_of_the_body_of_an_error_is_said_once() {
    let site = Site::new();
    let (feed, body) = Fed::new(&site.log);
    let handler = move || async move {
        let mut response = body.take().response();
        *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
        response
    };
    let serving = Serving::axum(Router::new().route("/", get(handler)).layer(site.layer()));
    feed.data("first.");
    let mut client = serving.connect();
    client.send(GET);
    client.read_until("first.");
    feed.error("the disk is gone");
    client.rest();
    let (span, _) = site.spans(1).remove(0);
    let types: Vec<_> = span
        .attributes
        .iter()
        .filter(|attribute| attribute.key.as_str() == "error.type")
        .map(|attribute| attribute.value.to_string())
        .collect();
    assert_eq!(types, ["503"]);
    assert_failed(&span, "503", "", Some("503"));
}

/// Scenario: services of hyper whose error is a box, one that fails at once and one after an await.
/// Guarantees: the error goes on to the server, which breaks the connection, and the span has failed in its words.
#[test]
fn error_of_the_service_fails_the_span() {
    for late in [false, true] {
        let site = Site::new();
        let service = tower::service_fn(move |_| async move {
            if late {
                in_child("child", tokio::task::yield_now()).await;
            }
            Err::<http::Response<Full<&'static [u8]>>, BoxError>("out of order".into())
        });
        let serving = Serving::hyper(site.layer().layer(service));
        assert_eq!(serving.exchange(GET), "");
        let spans = site.spans(if late { 2 } else { 1 });
        let (span, tenant) = spans.iter().find(|(span, _)| span.name == "GET").unwrap();
        assert_eq!(*tenant, Some(Tenant(7)));
        assert_failed(span, "_OTHER", "out of order", None);
    }
}

async fn panics_after_an_await() -> Response {
    in_child("child", tokio::task::yield_now()).await;
    panic!("S3CRET")
}

/// Scenario: a handler panics in the middle of its work, with nobody to catch it, with a layer that catches it outside
/// of the span, and with one inside; over HTTP/1 and HTTP/2.
/// Guarantees: the span leaves under its own context in each case. It says that there was a panic, not in its words,
/// unless that became an answer inside: then it says that this was 500.
#[test]
fn panic_of_a_handler_fails_the_span() {
    for http2 in [false, true] {
        for caught in ["nowhere", "outside", "inside"] {
            let site = Site::new();
            let app = Router::new().route("/", get(panics_after_an_await));
            let app = match caught {
                "inside" => app.layer(CatchPanicLayer::new()).layer(site.layer()),
                "outside" => app.layer(site.layer()).layer(CatchPanicLayer::new()),
                _ => app.layer(site.layer()),
            };
            let serving = Serving::axum(app);
            let status = match http2 {
                false => serving.exchange(GET).get(9..12).map(str::to_owned),
                true => in_runtime(async {
                    let request = Request::get("http://shop.test/").header("x-tenant", "7");
                    let request = request.body(Full::default()).unwrap();
                    let answer = serving.http2().await.send_request(request).await.ok()?;
                    Some(answer.status().as_str().to_owned())
                }),
            };
            let answered = (caught != "nowhere").then(|| "500".to_owned());
            assert_eq!(status, answered, "caught {caught}");
            let spans = site.spans(2);
            let (span, tenant) = spans.iter().find(|(span, _)| span.name == "GET /").unwrap();
            assert_eq!(*tenant, Some(Tenant(7)));
            match caught {
                "inside" => assert_failed(span, "500", "", Some("500")),
                _ => assert_failed(span, "panic", "panicked", None),
            }
            assert!(!format!("{spans:?}").contains("S3CRET"));
        }
    }
}

/// Scenario: a service panics in its call, before there is a future, and while it is dropped because its client is
/// gone, and a body panics when it is polled.
/// Guarantees: each says that there was a panic, and leaves.
#[test]
fn panic_outside_of_the_future_fails_the_span_too() {
    let site = Site::new();
    let service = tower::service_fn(
        |_: Request<_>| -> std::future::Ready<Result<Response, BoxError>> { panic!("in the call") },
    );
    let serving = Serving::hyper(site.layer().layer(service));
    assert_eq!(serving.exchange(GET), "");
    assert_failed(&site.span(), "panic", "panicked", None);

    let site = Site::new();
    let handler = || async {
        let mut polls = 0;
        axum::body::Body::from_stream(futures_util::stream::poll_fn(move |_| {
            polls += 1;
            assert!(polls < 2, "in the body");
            std::task::Poll::Ready(Some(Ok::<_, BoxError>("first.")))
        }))
    };
    let serving = Serving::axum(Router::new().route("/", get(handler)).layer(site.layer()));
    let answer = serving.exchange(GET);
    assert!(!answer.contains("0\r\n\r\n"), "{answer}");
    assert_failed(&site.span(), "panic", "panicked", Some("200"));

    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("in the drop");
        }
    }
    let site = Site::new();
    let (entered, waits) = std::sync::mpsc::channel();
    let handler = move || {
        let entered = entered.clone();
        async move {
            let _bomb = Bomb;
            entered.send(()).unwrap();
            std::future::pending::<()>().await;
        }
    };
    let serving = Serving::axum(Router::new().route("/", get(handler)).layer(site.layer()));
    let mut client = serving.connect();
    client.send(GET);
    waits.recv().unwrap();
    client.hang_up();
    assert_eq!(
        attribute(&site.span(), "error.type").as_deref(),
        Some("panic")
    );
    in_runtime(async {
        let request = Request::get("http://shop.test/nowhere")
            .body(Full::default())
            .unwrap();
        let answer = serving.http2().await.send_request(request).await.unwrap();
        answer.into_body().collect().await.unwrap();
    });
}
