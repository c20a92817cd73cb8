//! gRPC: a server of tonic, and one that knows nothing of it.

use std::convert::Infallible;
use std::future::pending;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};

use axum::Router;
use axum::http::header;
use axum::routing::post;
use bytes::{Buf as _, BufMut as _};
use futures_util::StreamExt as _;
use http::HeaderName;
use http::uri::PathAndQuery;
use opentelemetry::trace::{SpanKind, Status as SpanStatus};
use opentelemetry_per_request::in_child;
use opentelemetry_per_request::server::ServerLayer;
use opentelemetry_sdk::trace::SpanData;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status};
use tower::{Service, service_fn};

use super::site::{Fed, Log, Serving, Site, attribute, in_runtime, is_cancelled};
use crate::support::{Tenant, wait_until};

/// Messages are texts.
#[derive(Clone, Copy, Debug, Default)]
struct Text;

impl Codec for Text {
    type Encode = String;
    type Decode = String;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Text {
    type Item = String;
    type Error = Status;

    fn encode(&mut self, item: String, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item.as_bytes());
        Ok(())
    }
}

impl Decoder for Text {
    type Item = String;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<String>, Status> {
        let bytes = from.copy_to_bytes(from.remaining());
        Ok(Some(String::from_utf8(bytes.to_vec()).unwrap()))
    }
}

/// `Buy` answers with the status whose code it is sent, `Watch` does so after a message, `Wait` never does,
/// and `Break` panics.
#[derive(Clone, Debug)]
struct Shop(Log);

impl tonic::server::NamedService for Shop {
    const NAME: &'static str = "test.Shop";
}

type Answer = http::Response<tonic::body::Body>;
type Answering = Pin<Box<dyn Future<Output = Result<Answer, Infallible>> + Send>>;

impl Service<http::Request<tonic::body::Body>> for Shop {
    type Response = Answer;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Answering {
        let log = self.0.clone();
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(Text);
            Ok(match request.uri().path() {
                "/test.Shop/Buy" => grpc.unary(service_fn(buy), request).await,
                "/test.Shop/Watch" => {
                    let watch = service_fn(move |request| watch(request, log.clone()));
                    grpc.server_streaming(watch, request).await
                }
                "/test.Shop/Break" => panic!("S3CRET"),
                "/test.Shop/Wait" => {
                    log.note("waits");
                    pending().await
                }
                _ => Status::unimplemented("no such method").into_http(),
            })
        })
    }
}

async fn buy(request: Request<String>) -> Result<Response<String>, Status> {
    in_child("child", tokio::task::yield_now()).await;
    let mut response = Response::new("bought".to_owned());
    response
        .metadata_mut()
        .insert("x-till", "3".parse().unwrap());
    match request.into_inner().parse().unwrap() {
        0 => Ok(response),
        code => Err(Status::new(Code::from_i32(code), "S3CRET")),
    }
}

type Messages = Pin<Box<dyn futures_util::Stream<Item = Result<String, Status>> + Send>>;

/// Without a code, the messages never end.
async fn watch(request: Request<String>, log: Log) -> Result<Response<Messages>, Status> {
    struct Watched(Log);
    impl Drop for Watched {
        fn drop(&mut self) {
            let log = self.0.clone();
            log.note("watched");
            tokio::spawn(async move { log.note("another task") });
        }
    }
    let watched = Watched(log);
    let first = futures_util::stream::iter([Ok("first".to_owned())]);
    Ok(Response::new(match request.into_inner().parse() {
        Ok(0) => Box::pin(first),
        Ok(code) => {
            let last = Err(Status::new(Code::from_i32(code), "S3CRET"));
            Box::pin(first.chain(futures_util::stream::iter([last])))
        }
        Err(_) => Box::pin(
            first
                .chain(futures_util::stream::pending())
                .inspect(move |_| {
                    let _ = &watched;
                }),
        ),
    }))
}

fn shop(site: &Site, change: impl FnOnce(ServerLayer) -> ServerLayer) -> Serving {
    let layer = change(site.layer());
    let shop = Shop(site.log.clone());
    Serving::start(move |listener| async move {
        tonic::transport::Server::builder()
            .layer(layer)
            .add_service(shop)
            .serve_with_incoming(TcpIncoming::from(listener))
            .await
            .unwrap();
    })
}

async fn client(serving: &Serving) -> tonic::client::Grpc<Channel> {
    let channel = Channel::from_shared(serving.url("")).unwrap();
    let mut client = tonic::client::Grpc::new(channel.connect().await.unwrap());
    client.ready().await.unwrap();
    client
}

fn message(text: impl ToString) -> Request<String> {
    let mut request = Request::new(text.to_string());
    request
        .metadata_mut()
        .insert("x-tenant", "7".parse().unwrap());
    request
}

fn path(method: &'static str) -> PathAndQuery {
    PathAndQuery::from_static(method)
}

fn server_span(site: &Site, count: usize) -> SpanData {
    let mut spans = site.spans(count);
    spans.retain(|(span, _)| span.span_kind == SpanKind::Server);
    assert_eq!((spans.len(), spans[0].1), (1, Some(Tenant(7))));
    spans.remove(0).0
}

/// Scenario: each status code, without a message, in the head of the answer, and after one, in the trailers; from tonic
/// to tonic.
/// Guarantees: it has its name on the span; those that a server is to blame for fail the span, with the name as the
/// type of the error, and the client's do not. Name and method are those of the call, unless it was refused as not
/// implemented before it began. Nothing that a server says of an error is kept.
#[test]
fn status_of_a_call_is_that_of_its_span() {
    for (code, name, fails) in [
        (0, "OK", false),
        (1, "CANCELLED", false),
        (2, "UNKNOWN", true),
        (3, "INVALID_ARGUMENT", false),
        (4, "DEADLINE_EXCEEDED", true),
        (5, "NOT_FOUND", false),
        (6, "ALREADY_EXISTS", false),
        (7, "PERMISSION_DENIED", false),
        (8, "RESOURCE_EXHAUSTED", false),
        (9, "FAILED_PRECONDITION", false),
        (10, "ABORTED", false),
        (11, "OUT_OF_RANGE", false),
        (12, "UNIMPLEMENTED", true),
        (13, "INTERNAL", true),
        (14, "UNAVAILABLE", true),
        (15, "DATA_LOSS", true),
        (16, "UNAUTHENTICATED", false),
    ] {
        for streams in [false, true] {
            let site = Site::new();
            let serving = shop(&site, |layer| {
                layer.with_response_headers([HeaderName::from_static("x-till")])
            });
            let answered = in_runtime(async {
                let mut client = client(&serving).await;
                if streams {
                    let answer =
                        client.server_streaming(message(code), path("/test.Shop/Watch"), Text);
                    let mut messages = answer.await.unwrap().into_inner();
                    assert_eq!(messages.message().await.unwrap().unwrap(), "first");
                    messages
                        .message()
                        .await
                        .err()
                        .map_or(Code::Ok, |status| status.code())
                } else {
                    let answer = client
                        .unary(message(code), path("/test.Shop/Buy"), Text)
                        .await;
                    answer.err().map_or(Code::Ok, |status| status.code())
                }
            });
            assert_eq!(answered, Code::from_i32(code));
            let span = server_span(&site, if streams { 1 } else { 2 });
            let method = if streams {
                "test.Shop/Watch"
            } else {
                "test.Shop/Buy"
            };
            let says = |key| attribute(&span, key);
            if name == "UNIMPLEMENTED" && !streams {
                assert_eq!(span.name, "grpc");
                assert_eq!(says("rpc.method").as_deref(), Some("_OTHER"));
                assert_eq!(says("rpc.method_original").as_deref(), Some(method));
            } else {
                assert_eq!(span.name, method, "{name}");
                assert_eq!(says("rpc.method").as_deref(), Some(method));
                assert_eq!(says("rpc.method_original"), None);
            }
            assert_eq!(says("rpc.system.name").as_deref(), Some("grpc"));
            assert_eq!(says("rpc.status_code").as_deref(), Some(name));
            assert_eq!(says("http.response.status_code"), None);
            assert_eq!(says("server.address").as_deref(), Some("127.0.0.1"));
            let port = serving.address.port().to_string();
            assert_eq!(says("server.port"), Some(port));
            let till = (code == 0 && !streams).then_some("[\"3\"]");
            assert_eq!(says("http.response.header.x-till").as_deref(), till);
            assert_eq!(says("error.type").as_deref(), fails.then_some(name));
            let status = if fails {
                SpanStatus::error("")
            } else {
                SpanStatus::Unset
            };
            assert_eq!(span.status, status, "{name}");
            assert!(!is_cancelled(&span), "{span:?}");
            assert!(!format!("{span:?}").contains("S3CRET"));
        }
    }
}

/// Scenario: methods and services that a server of tonic does not have.
/// Guarantees: the names that a client makes up are no names of spans, and no `rpc.method`; only `rpc.method_original`
/// has them.
#[test]
fn method_that_the_server_does_not_know_is_in_no_name() {
    for method in ["/test.Shop/MadeUp", "/made.Up/Buy", "/", "/MadeUp"] {
        let site = Site::new();
        let serving = shop(&site, |layer| layer);
        let answered = in_runtime(async {
            let mut client = client(&serving).await;
            client
                .unary(message(0), path(method), Text)
                .await
                .unwrap_err()
                .code()
        });
        assert_eq!(answered, Code::Unimplemented, "{method}");
        let span = server_span(&site, 1);
        assert_eq!(span.name, "grpc");
        assert_eq!(attribute(&span, "rpc.method").as_deref(), Some("_OTHER"));
        assert_eq!(
            attribute(&span, "rpc.method_original").as_deref(),
            method.strip_prefix('/')
        );
        assert_eq!(
            attribute(&span, "rpc.status_code").as_deref(),
            Some("UNIMPLEMENTED")
        );
    }
}

/// Scenario: a client leaves a stream after its first message, and another one a call that is not answered.
/// Guarantees: the span ends at once, with the status `CANCELLED`, which is no error, and says that it was cut off.
#[test]
fn call_that_the_client_leaves_is_cancelled() {
    let site = Site::new();
    let serving = shop(&site, |layer| layer);
    in_runtime(async {
        let mut client = client(&serving).await;
        let answer = client.server_streaming(message("for ever"), path("/test.Shop/Watch"), Text);
        let mut messages = answer.await.unwrap().into_inner();
        assert_eq!(messages.message().await.unwrap().unwrap(), "first");
        assert_eq!(site.ended(), 0);
        drop(messages);
        wait_until("the span ends", || site.ended() == 1);
    });
    let span = server_span(&site, 1);
    wait_until("the server goes on", || site.log.has("another task"));
    assert_eq!(
        site.log.entries(),
        ["watched", "test.Shop/Watch ended", "another task"]
    );
    assert_eq!(
        attribute(&span, "http.response.body.size").as_deref(),
        Some("10")
    );

    let site = Site::new();
    let serving = shop(&site, |layer| layer);
    in_runtime(async {
        let mut client = client(&serving).await;
        let call = tokio::spawn(async move {
            client
                .unary(message(0), path("/test.Shop/Wait"), Text)
                .await
        });
        while !site.log.has("waits") {
            tokio::task::yield_now().await;
        }
        call.abort();
        wait_until("the span ends", || site.ended() == 1);
    });
    for span in [span, server_span(&site, 1)] {
        assert!(is_cancelled(&span));
        assert_eq!(attribute(&span, "rpc.method").as_deref(), Some(&*span.name));
        assert_eq!(
            attribute(&span, "rpc.status_code").as_deref(),
            Some("CANCELLED")
        );
        assert_eq!(
            (span.status.clone(), attribute(&span, "error.type")),
            (SpanStatus::Unset, None)
        );
    }
}

/// Scenario: a method panics.
/// Guarantees: its span has its name, and says that there was a panic; there was no status.
#[test]
fn call_that_panics_fails_under_its_name() {
    let site = Site::new();
    let serving = shop(&site, |layer| layer);
    in_runtime(async {
        let mut client = client(&serving).await;
        let answer = client
            .unary(message(0), path("/test.Shop/Break"), Text)
            .await;
        answer.unwrap_err();
    });
    let span = server_span(&site, 1);
    assert_eq!(span.name, "test.Shop/Break");
    assert_eq!(
        attribute(&span, "rpc.method").as_deref(),
        Some("test.Shop/Break")
    );
    assert_eq!(attribute(&span, "rpc.status_code"), None);
    assert_eq!(attribute(&span, "error.type").as_deref(), Some("panic"));
    assert_eq!(span.status, SpanStatus::error("panicked"));
}

/// Scenario: requests that say they were gRPC, to a server of axum that knows nothing of it: to a route, to none, to
/// one that answers 500, and to one with a body whose length is known, which the server drops after its last byte.
/// Guarantees: what the client made up is in no name; the span has the status of HTTP, which fails it from 500 on; and
/// a body that was sent whole was not cut off.
#[test]
fn answer_that_is_not_grpc_takes_the_name_back() {
    for (path, code) in [
        ("/made/up", "404"),
        ("/orders/4711", "200"),
        ("/broken", "500"),
        ("/fed", "200"),
    ] {
        let site = Site::new();
        let (feed, body) = Fed::of_length(&site.log, Some(4));
        feed.data("sent");
        let app = Router::new()
            .route("/orders/{id}", post("order"))
            .route("/broken", post(http::StatusCode::INTERNAL_SERVER_ERROR))
            .route("/fed", post(move || async move { body.take().response() }))
            .layer(site.layer());
        let serving = Serving::axum(app);
        let kind = header::CONTENT_TYPE;
        serving.exchange(format!(
            "POST {path} HTTP/1.1\r\nhost: shop.test\r\nx-tenant: 7\r\nconnection: close\r\n{kind}: application/grpc\r\ncontent-length: 0\r\n\r\n"
        ));
        let span = server_span(&site, 1);
        assert_eq!(span.name, "grpc", "{path}");
        assert_eq!(attribute(&span, "rpc.method").as_deref(), Some("_OTHER"));
        assert_eq!(
            attribute(&span, "rpc.method_original").as_deref(),
            path.strip_prefix('/')
        );
        assert_eq!(attribute(&span, "rpc.status_code"), None);
        assert_eq!(
            attribute(&span, "http.response.status_code").as_deref(),
            Some(code)
        );
        let failed = code == "500";
        assert_eq!(
            attribute(&span, "error.type").as_deref(),
            failed.then_some(code)
        );
        assert_eq!(span.status == SpanStatus::error(""), failed);
        assert!(!is_cancelled(&span), "{path}: {span:?}");
        drop(feed);
    }
}
