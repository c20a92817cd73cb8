//! The span ends with the response's body, whatever kind of body that is.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, get};
use futures_util::StreamExt as _;
use http::{Method, Request};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper_util::rt::TokioIo;
use opentelemetry_per_request::{active_span, in_child_sync};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tower::Layer as _;

use super::site::{Fed, Once, Serving, Site, attribute, in_runtime, is_cancelled};
use crate::support::{Tenant, wait_until};

fn answering(site: &Site, body: &Once<Fed>) -> Router {
    let body = body.clone();
    let handler = move || async move { body.take().response() };
    Router::new().route("/", any(handler)).layer(site.layer())
}

/// The span that ended well.
fn ended_well(site: &Site) {
    let span = site.span();
    assert!(!is_cancelled(&span), "{span:?}");
    assert_eq!(attribute(&span, "http.response.body.size"), None);
    assert_eq!(
        attribute(&span, "http.response.status_code").as_deref(),
        Some("200")
    );
    assert!(
        !site.log.has("polled without a span"),
        "{:?}",
        site.log.entries()
    );
}

/// Scenario: a stream without a length over HTTP/1.1, where it is chunked, and over HTTP/1.0, where it ends with the
/// connection. The client has read the first part, and the server has nothing else to send.
/// Guarantees: the span is open as long as the stream is, it is active whenever the stream is polled, and it ends with
/// the stream, not with the connection.
#[test]
fn span_of_a_stream_is_open_until_its_end() {
    for version in ["1.1", "1.0"] {
        let site = Site::new();
        let (feed, body) = Fed::new(&site.log);
        let serving = Serving::axum(answering(&site, &body));
        let mut client = serving.connect();
        client.send(format!("GET / HTTP/{version}\r\nhost: shop.test\r\n\r\n"));
        feed.data("first.");
        client.read_until("first.");
        assert_eq!(site.ended(), 0, "{version}");
        feed.data("");
        feed.data("second.");
        client.read_until("second.");
        assert_eq!(site.ended(), 0, "{version}");
        drop(feed);
        if version == "1.1" {
            client.read_until("0\r\n\r\n");
        } else {
            assert_eq!(client.rest(), "");
        }
        ended_well(&site);
    }
}

/// Scenario: the same over HTTP/2.
/// Guarantees: the same.
#[test]
fn span_of_a_stream_over_http2_is_open_until_its_end() {
    let site = Site::new();
    let (feed, body) = Fed::new(&site.log);
    let serving = Serving::axum(answering(&site, &body));
    in_runtime(async {
        let request = Request::get("http://shop.test/")
            .body(Full::default())
            .unwrap();
        let mut client = serving.http2().await;
        let mut answer = client.send_request(request).await.unwrap().into_body();
        feed.data("first.");
        let frame = answer.frame().await.unwrap().unwrap();
        assert_eq!(frame.data_ref().unwrap(), &"first.");
        assert_eq!(site.ended(), 0);
        drop(feed);
        let rest = answer.collect().await.unwrap().to_bytes();
        assert!(rest.is_empty());
    });
    ended_well(&site);
}

/// Scenario: bodies whose length is known, from `content-length` or from the body itself. A server of HTTP/1 asks such
/// a body for what it is to have, and drops it without asking for its end. Whoever feeds it does not end it either.
/// Guarantees: the span ends when the last byte was taken, as one that ended well, and not before.
#[test]
fn body_that_is_dropped_after_its_last_byte_was_not_cut_off() {
    for declared in [true, false] {
        let site = Site::new();
        let length = (!declared).then_some(12);
        let (feed, body) = Fed::of_length(&site.log, length);
        let handler = move || async move {
            let mut answer = body.take().response();
            if declared {
                let headers = answer.headers_mut();
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("12"));
            }
            answer
        };
        let app = Router::new().route("/", get(handler)).layer(site.layer());
        let serving = Serving::axum(app);
        let mut client = serving.connect();
        client.get("/");
        feed.data("first.");
        let head = client.read_until("first.");
        assert!(head.contains("content-length: 12"), "{head}");
        assert_eq!(site.ended(), 0, "declared: {declared}");
        feed.data("second");
        client.read_until("second");
        ended_well(&site);
        // The connection is as good as new.
        client.get("/nowhere");
        client.read_until("404");
        drop(feed);
    }
}

/// Scenario: a fixed body, an empty one, and an empty stream that has a length; over both protocols.
/// Guarantees: each ends its span well.
#[test]
fn fixed_and_empty_bodies_end_their_spans() {
    for path in ["/fixed", "/empty", "/empty-stream", "/large"] {
        let site = Site::new();
        let (_feed, body) = Fed::of_length(&site.log, Some(0));
        let app = Router::new()
            .route("/fixed", get("fixed"))
            .route("/empty", get(|| async { Response::new(Body::empty()) }))
            .route("/large", get(|| async { vec![b'x'; 1 << 20] }))
            .route(
                "/empty-stream",
                get(move || async move { body.take().response() }),
            )
            .layer(site.layer());
        let serving = Serving::axum(app);
        let mut client = serving.connect();
        client.get(path);
        client.read_until("\r\n\r\n");
        if path == "/large" {
            let part = "x".repeat(1 << 16);
            (0..16).for_each(|_| drop(client.read_until(&part)));
        }
        ended_well(&site);
        if path == "/empty-stream" {
            continue;
        }
        in_runtime(async {
            let request = Request::get(format!("http://shop.test{path}")).body(Full::default());
            let mut client = serving.http2().await;
            let answer = client.send_request(request.unwrap()).await.unwrap();
            answer.into_body().collect().await.unwrap();
        });
        for (span, _) in site.spans(2) {
            assert!(!is_cancelled(&span), "{path}: {span:?}");
        }
    }
}

/// Scenario: answers to HEAD, and with 204, 205 and 304, whose handlers give them a body that never ends; by hyper
/// alone, since axum takes the body of HEAD away.
/// Guarantees: where no body is sent, the span ends with the head, and does not say that anything was cut off.
#[test]
fn answer_that_has_no_body_ends_its_span_at_the_head() {
    for (method, status) in [
        (Method::HEAD, StatusCode::OK),
        (Method::GET, StatusCode::NO_CONTENT),
        (Method::GET, StatusCode::NOT_MODIFIED),
    ] {
        let site = Site::new();
        let (_feed, body) = Fed::new(&site.log);
        let service = tower::service_fn(move |_| {
            let mut answer = body.take().response();
            *answer.status_mut() = status;
            std::future::ready(Ok::<_, Infallible>(answer))
        });
        let serving = Serving::hyper(site.layer().layer(service));
        let mut client = serving.connect();
        client.send(format!("{method} / HTTP/1.1\r\nhost: shop.test\r\n\r\n"));
        client.read_until("\r\n\r\n");
        let span = site.span();
        assert_eq!(span.name, method.as_str());
        assert!(!is_cancelled(&span), "{method} {status}: {span:?}");
        // What the server threw away was not part of the request any more.
        wait_until("the body is dropped", || site.log.has("body dropped"));
    }
}

/// Scenario: server-sent events, with a comment to keep the connection alive, read one by one.
/// Guarantees: the span is open between the events, and so are the children that are made in the stream: all below it.
#[test]
fn events_are_sent_within_the_span() {
    let site = Site::new();
    let (events, stream) = tokio::sync::mpsc::unbounded_channel::<&'static str>();
    let stream = Once::new(stream);
    let handler = move || async move {
        let mut stream = stream.take();
        let events = futures_util::stream::poll_fn(move |task| stream.poll_recv(task));
        let events = events.map(|event| {
            in_child_sync("event", || active_span().set_attribute("event", event));
            Ok::<_, Infallible>(Event::default().data(event))
        });
        Sse::new(events)
            .keep_alive(axum::response::sse::KeepAlive::new().interval(Duration::from_millis(1)))
    };
    let app = Router::new()
        .route("/events", get(handler))
        .layer(site.layer());
    let serving = Serving::axum(app);
    let mut client = serving.connect();
    client.get("/events");
    for (number, event) in ["one", "two"].into_iter().enumerate() {
        events.send(event).unwrap();
        client.read_until(&format!("data: {event}"));
        wait_until("the child left", || site.ended() == number as u64 + 1);
        assert!(!site.log.has("GET /events ended"));
    }
    drop(events);
    client.read_until("0\r\n\r\n");
    let spans = site.spans(3);
    let server = &spans
        .iter()
        .find(|(span, _)| span.name == "GET /events")
        .unwrap()
        .0;
    assert!(!is_cancelled(server));
    for (span, _) in spans.iter().filter(|(span, _)| span.name == "event") {
        assert_eq!(span.parent_span_id, server.span_context.span_id());
    }
}

/// Scenario: a stream that ends with trailers, and is not asked for anything after them: over HTTP/1.1 to a client that
/// takes trailers, to one that does not, and over HTTP/2.
/// Guarantees: trailers are the end, so nothing was cut off.
#[test]
fn trailers_are_the_end_of_a_body() {
    for te in ["te: trailers\r\n", ""] {
        let site = Site::new();
        let (feed, body) = Fed::new(&site.log);
        let handler = move || async move {
            let mut answer = body.take().response();
            let headers = answer.headers_mut();
            headers.insert(header::TRAILER, HeaderValue::from_static("x-sum"));
            answer
        };
        let app = Router::new().route("/", get(handler)).layer(site.layer());
        let serving = Serving::axum(app);
        let mut client = serving.connect();
        client.send(format!("GET / HTTP/1.1\r\nhost: shop.test\r\n{te}\r\n"));
        feed.data("all.");
        client.read_until("all.");
        assert_eq!(site.ended(), 0);
        feed.trailers("x-sum", "1");
        if !te.is_empty() {
            client.read_until("x-sum: 1\r\n\r\n");
        }
        ended_well(&site);
    }

    let site = Site::new();
    let frames = || {
        let trailers = http::HeaderMap::from_iter([(
            http::HeaderName::from_static("x-sum"),
            HeaderValue::from_static("1"),
        )]);
        let frames = [
            Frame::data(Bytes::from_static(b"all.")),
            Frame::trailers(trailers),
        ];
        let frames = futures_util::stream::iter(frames.map(Ok::<_, Infallible>));
        async { Body::new(StreamBody::new(frames)).into_response() }
    };
    let serving = Serving::axum(Router::new().route("/", get(frames)).layer(site.layer()));
    in_runtime(async {
        let request = Request::get("http://shop.test/")
            .body(Full::default())
            .unwrap();
        let mut client = serving.http2().await;
        let answer = client.send_request(request).await.unwrap().into_body();
        let answer = answer.collect().await.unwrap();
        assert_eq!(answer.trailers().unwrap()["x-sum"], "1");
    });
    ended_well(&site);
}

/// Scenario: a connection that becomes one of another protocol, and goes on.
/// Guarantees: the span ends when the protocol changes, with 101; what is said after that is not part of it.
#[test]
fn upgraded_connection_ends_the_span_at_the_upgrade() {
    let site = Site::new();
    let handler = |mut request: axum::extract::Request| async move {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut stream = TokioIo::new(upgrade.await.unwrap());
            let mut said = [0; 5];
            stream.read_exact(&mut said).await.unwrap();
            stream.write_all(&said).await.unwrap();
        });
        let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, "echo")];
        (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
    };
    let serving = Serving::axum(Router::new().route("/", get(handler)).layer(site.layer()));
    let mut client = serving.connect();
    client
        .send("GET / HTTP/1.1\r\nhost: shop.test\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n");
    client.read_until("\r\n\r\n");
    let span = site.span();
    assert_eq!(
        attribute(&span, "http.response.status_code").as_deref(),
        Some("101")
    );
    assert!(!is_cancelled(&span));
    client.send("hello");
    client.read_until("hello");
    assert_eq!(site.ended(), 1);
}

/// Scenario: CONNECT is accepted, and CONNECT is refused with a body that says why, which comes in two parts.
/// Guarantees: a tunnel has no body, so its span ends at the head; a refusal has one, and its span ends with that.
#[test]
fn refused_tunnel_has_a_body_and_an_accepted_one_has_none() {
    let connect = "CONNECT shop.test:443 HTTP/1.1\r\nhost: shop.test:443\r\n\r\n";
    for status in [StatusCode::OK, StatusCode::FORBIDDEN] {
        let site = Site::new();
        let (feed, body) = Fed::new(&site.log);
        let service = tower::service_fn(move |_| {
            let mut answer = body.take().response();
            *answer.status_mut() = status;
            std::future::ready(Ok::<_, Infallible>(answer))
        });
        let serving = Serving::hyper(site.layer().layer(service));
        let mut client = serving.connect();
        client.send(connect);
        client.read_until("\r\n\r\n");
        if status != StatusCode::OK {
            feed.data("because.");
            client.read_until("because.");
            assert_eq!(site.ended(), 0);
            drop(feed);
            client.read_until("0\r\n\r\n");
        }
        let span = site.span();
        assert_eq!(span.name, "CONNECT");
        assert!(!is_cancelled(&span), "{status}: {span:?}");
        assert_eq!(attribute(&span, "server.port").as_deref(), Some("443"));
        assert!(status == StatusCode::OK || !site.log.has("polled without a span"));
    }
}

/// Scenario: with `with_end_at_head`, a stream goes on after its head, and its client leaves.
/// Guarantees: the span ends at the head, before anything of the body is there, the body is polled without a span, and
/// how it ends is not said.
#[test]
fn span_can_end_at_the_head() {
    let site = Site::new();
    let (feed, body) = Fed::new(&site.log);
    let handler = move || async move { body.take().response() };
    let layer = site.layer().with_end_at_head();
    let serving = Serving::axum(Router::new().route("/", get(handler)).layer(layer));
    let mut client = serving.connect();
    client.send("GET / HTTP/1.1\r\nhost: shop.test\r\nx-tenant: 7\r\n\r\n");
    client.read_until("\r\n\r\n");
    let (span, tenant) = site.spans(1).remove(0);
    assert_eq!((&*span.name, tenant), ("GET /", Some(Tenant(7))));
    feed.data("later.");
    client.read_until("later.");
    client.hang_up();
    wait_until("the body is dropped", || site.log.has("body dropped"));
    assert!(site.log.has("polled without a span"));
    assert!(!is_cancelled(&site.span()));
}
