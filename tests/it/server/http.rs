//! What a span says of an HTTP request and of its answer.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::IntoResponse as _;
use axum::routing::{any, get};
use http::Request;
use http_body_util::{BodyExt as _, Full};
use opentelemetry::trace::{
    Link, SpanId, SpanKind, Status, TraceContextExt as _, TraceId, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_per_request::server::ServerLayer;
use opentelemetry_per_request::{active_span, in_child};
use opentelemetry_sdk::trace::{Sampler, SamplingDecision, SamplingResult, ShouldSample, SpanData};
use tower::Layer as _;
use tower::util::MapRequestLayer;

use super::site::{Log, Serving, Site, attribute, in_runtime};
use crate::support::Recorder;

async fn status(Path(code): Path<u16>) -> StatusCode {
    StatusCode::from_u16(code).unwrap()
}

fn shop(layer: ServerLayer) -> Router {
    let orders = Router::new()
        .route("/{id}", any("order"))
        .route("/{id}/lines/{line}", any("line"));
    let files = Router::new().route("/{*path}", any("file"));
    Router::new()
        .route("/", any("home"))
        .route("/status/{code}", get(status))
        .nest("/orders", orders)
        .nest_service("/files", files)
        .layer(layer)
}

/// The span of a request that is answered and then hung up by the server.
fn asked(request: impl AsRef<[u8]>) -> SpanData {
    asked_with(|layer| layer, request)
}

fn asked_with(
    change: impl FnOnce(ServerLayer) -> ServerLayer,
    request: impl AsRef<[u8]>,
) -> SpanData {
    let site = Site::new();
    let serving = Serving::axum(shop(change(site.layer())));
    serving.exchange(request);
    site.span()
}

/// A request of HTTP/1.1 that is the only one of its connection.
fn request(line: &str, headers: &[(&str, &str)]) -> String {
    let mut request = format!("{line} HTTP/1.1\r\nconnection: close\r\n");
    let host = ("host", "shop.test");
    let hosts = headers.iter().filter(|(name, _)| *name == "host").count();
    for (name, value) in headers.iter().chain((hosts == 0).then_some(&host)) {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request + "\r\n"
}

fn assert_says(what: &str, span: &SpanData, expected: &[(&str, Option<&str>)]) {
    for (key, value) in expected {
        let said = attribute(span, key);
        assert_eq!(said.as_deref(), *value, "{what}: {key} of {span:?}");
    }
}

/// Scenario: methods that are known, that are not, and one in small letters; routes, nested ones, a nested service,
/// which axum knows no route of, and none.
/// Guarantees: the name is the method and the route; what a client makes up is in no name; an original method that is not
/// known is kept beside `_OTHER`.
#[test]
fn span_is_named_by_method_and_route() {
    for (line, name, method, original, route) in [
        ("GET /", "GET /", "GET", None, Some("/")),
        (
            "POST /orders/4711",
            "POST /orders/{id}",
            "POST",
            None,
            Some("/orders/{id}"),
        ),
        (
            "GET /orders/4711/lines/2",
            "GET /orders/{id}/lines/{line}",
            "GET",
            None,
            Some("/orders/{id}/lines/{line}"),
        ),
        ("GET /files/a/b", "GET", "GET", None, None),
        (
            "QUERY /orders/1",
            "QUERY /orders/{id}",
            "QUERY",
            None,
            Some("/orders/{id}"),
        ),
        (
            "BREW /orders/1",
            "HTTP /orders/{id}",
            "_OTHER",
            Some("BREW"),
            Some("/orders/{id}"),
        ),
        (
            "get /orders/1",
            "HTTP /orders/{id}",
            "_OTHER",
            Some("get"),
            Some("/orders/{id}"),
        ),
        ("GET /nowhere/4711", "GET", "GET", None, None),
        ("GET /orders/1/nowhere", "GET", "GET", None, None),
        ("BREW /nowhere", "HTTP", "_OTHER", Some("BREW"), None),
        (
            "POST /status/200",
            "POST /status/{code}",
            "POST",
            None,
            Some("/status/{code}"),
        ),
        ("OPTIONS *", "OPTIONS", "OPTIONS", None, None),
    ] {
        let span = asked(request(line, &[]));
        assert_eq!(
            (&*span.name, &span.span_kind),
            (name, &SpanKind::Server),
            "{line}"
        );
        assert_says(
            line,
            &span,
            &[
                ("http.request.method", Some(method)),
                ("http.request.method_original", original),
                ("http.route", route),
                ("url.path", line.split(' ').nth(1)),
            ],
        );
    }
}

/// Scenario: a server of hyper alone, which knows no routes, with a hook that does, and one that knows none.
/// Guarantees: the hook's route is the span's; without one there is none.
#[test]
fn route_is_what_the_hook_says_where_nobody_else_knows() {
    let routes = [("/orders/1", "GET /orders/:id"), ("/nowhere", "GET")];
    for (path, name) in routes {
        let site = Site::new();
        let layer = site.layer().with_route(|request| {
            request
                .uri
                .path()
                .starts_with("/orders/")
                .then(|| "/orders/:id".into())
        });
        let home = tower::service_fn(|_| async {
            Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(&b"home"[..])))
        });
        let serving = Serving::hyper(layer.layer(home));
        let answer = serving.exchange(request(&format!("GET {path}"), &[]));
        assert!(answer.ends_with("home"), "{answer}");
        assert_eq!(site.span().name, name);
    }
}

/// Scenario: secrets in the query, in the user info of an absolute URL and of the header `host`, and in headers.
/// Guarantees: no attribute, and not the name, shows one; of the query its names are kept.
#[test]
fn secret_of_a_request_is_nowhere_in_its_span() {
    for line in [
        "GET /orders/1?token=S3CRET&S3CRET&empty=&b=1%3DS3CRET=S3CRET;c=S3CRET",
        "GET http://user:S3CRET@shop.test:8080/orders/1?token=S3CRET&x",
        "GET /nowhere?a=S3CRET",
    ] {
        let span = asked(request(
            line,
            &[
                ("host", "user:S3CRET@shop.test"),
                ("authorization", "Bearer S3CRET"),
                ("cookie", "S3CRET"),
            ],
        ));
        assert!(!format!("{span:?}").contains("S3CRET"), "{line}: {span:?}");
        let names = attribute(&span, "url.query").unwrap();
        assert!(names.contains("=REDACTED"), "{line}: {names}");
    }
    let span = asked(request("GET /orders/1?token=S3CRET&S3CRET&empty=", &[]));
    let query = "token=REDACTED&REDACTED&empty=REDACTED";
    assert_says("a query", &span, &[("url.query", Some(query))]);
    assert_says(
        "no query",
        &asked(request("GET /", &[])),
        &[("url.query", None)],
    );
}

/// Scenario: the header `host` as clients and attackers send it, an absolute URL that contradicts it, and none at all.
/// Guarantees: address and port are those that the server was called by; an IPv6 address has no brackets; what is no host is
/// left out, and the request is answered nevertheless.
#[test]
fn server_is_named_as_it_was_called() {
    for (line, host, address, port) in [
        ("GET /", "shop.test", Some("shop.test"), None),
        ("GET /", "shop.test:8080", Some("shop.test"), Some("8080")),
        ("GET /", "127.0.0.1:80", Some("127.0.0.1"), Some("80")),
        ("GET /", "[::1]:8080", Some("::1"), Some("8080")),
        ("GET /", "[2001:db8::1]", Some("2001:db8::1"), None),
        ("GET /", "user@shop.test:1", Some("shop.test"), Some("1")),
        (
            "GET http://other.test:81/",
            "shop.test:8080",
            Some("other.test"),
            Some("81"),
        ),
        (
            "GET http://other.test/",
            "shop.test:8080",
            Some("other.test"),
            Some("80"),
        ),
        (
            "GET http://[::1]/",
            "shop.test:8080",
            Some("::1"),
            Some("80"),
        ),
        ("GET /", "shop.test:99999", Some("shop.test"), None),
        ("GET /", "", None, None),
        ("GET /", "sh op", None, None),
        ("GET /", "shop/x", None, None),
        ("GET /", "sh\u{f6}p.test", None, None),
        ("GET /", "[::1", None, None),
        ("GET /", ":8080", None, None),
        ("GET /", "@", None, None),
    ] {
        let span = asked(request(line, &[("host", host)]));
        let expected = [("server.address", address), ("server.port", port)];
        assert_says(&format!("{line} of {host:?}"), &span, &expected);
        assert_says(host, &span, &[("http.response.status_code", Some("200"))]);
    }
    let span = asked("GET / HTTP/1.0\r\n\r\n");
    assert_says(
        "no host",
        &span,
        &[("server.address", None), ("server.port", None)],
    );
}

/// Scenario: the same request in HTTP/1.0, in HTTP/1.1 by a real client, and in HTTP/2.
/// Guarantees: the version is what was spoken; HTTP/2 names the server by its authority.
#[test]
fn version_is_that_of_the_protocol() {
    let version = |span: &SpanData, expected| {
        assert_says(
            expected,
            span,
            &[
                ("network.protocol.version", Some(expected)),
                ("url.scheme", Some("http")),
                ("http.route", Some("/orders/{id}")),
            ],
        );
    };
    version(&asked("GET /orders/1 HTTP/1.0\r\n\r\n"), "1.0");

    let site = Site::new();
    let serving = Serving::axum(shop(site.layer()));
    let url = serving.url("/orders/1");
    let answer = reqwest::blocking::Client::builder()
        .no_proxy()
        .user_agent("curious/1")
        .build()
        .unwrap()
        .get(url)
        .send()
        .unwrap();
    assert_eq!(answer.text().unwrap(), "order");
    let span = site.span();
    version(&span, "1.1");
    let port = serving.address.port().to_string();
    assert_says(
        "reqwest",
        &span,
        &[
            ("user_agent.original", Some("curious/1")),
            ("server.address", Some("127.0.0.1")),
            ("server.port", Some(&port)),
        ],
    );

    let site = Site::new();
    let serving = Serving::axum(shop(site.layer()));
    let asked = async move {
        let request = Request::get("http://shop.test:8443/orders/1")
            .body(Full::default())
            .unwrap();
        let answer = serving.http2().await.send_request(request).await.unwrap();
        answer.into_body().collect().await.unwrap().to_bytes()
    };
    let body = in_runtime(asked);
    assert_eq!(&body[..], b"order");
    let span = site.span();
    version(&span, "2");
    assert_says(
        "HTTP/2",
        &span,
        &[
            ("server.address", Some("shop.test")),
            ("server.port", Some("8443")),
            ("user_agent.original", None),
        ],
    );
}

/// Scenario: answers of each class.
/// Guarantees: the code is on the span; from 500 on the span has failed, with the code as the type of the error; below that
/// its status is not set.
#[test]
fn server_error_fails_the_span_and_no_other_answer_does() {
    for code in [200, 201, 204, 302, 304, 400, 404, 429, 499, 500, 503, 599] {
        let span = asked(request(&format!("GET /status/{code}"), &[]));
        let code = code.to_string();
        let (status, kind) = match code.as_str() < "500" {
            true => (Status::Unset, None),
            false => (Status::error(""), Some(code.as_str())),
        };
        assert_eq!(span.status, status, "{code}");
        let expected = [
            ("http.response.status_code", Some(code.as_str())),
            ("error.type", kind),
        ];
        assert_says(&code, &span, &expected);
    }
}

/// Scenario: headers with one value, with two, and with bytes that are no text; some asked for, some not, and some that were
/// marked as sensitive before the layer.
/// Guarantees: only those asked for are kept, with all their values; a sensitive one never is.
#[test]
fn headers_are_kept_by_name_only_and_sensitive_ones_never() {
    let site = Site::new();
    let answer = || async {
        let mut secret = HeaderValue::from_static("S3CRET");
        secret.set_sensitive(true);
        let mut answer = ([("x-cache", "hit"), ("x-other", "S3CRET")], "home").into_response();
        answer
            .headers_mut()
            .append("x-cache", HeaderValue::from_static("miss"));
        answer.headers_mut().insert(header::SET_COOKIE, secret);
        answer
    };
    let layer = site
        .layer()
        .with_request_headers(
            ["x-kept", "x-twice", "x-absent", "x-bytes", "authorization"]
                .map(http::HeaderName::from_static),
        )
        .with_response_headers([http::HeaderName::from_static("x-cache"), header::SET_COOKIE]);
    let app = Router::new()
        .route("/", get(answer))
        .layer(layer)
        .layer(MapRequestLayer::new(
            |mut request: axum::extract::Request| {
                if let Some(value) = request.headers_mut().get_mut("authorization") {
                    value.set_sensitive(true);
                }
                request
            },
        ));
    let serving = Serving::axum(app);
    serving.exchange(
        b"GET / HTTP/1.1\r\nhost: shop.test\r\nconnection: close\r\nX-Kept: 1\r\nx-twice: 1\r\nx-twice: 2\r\n\
          x-bytes: \xff\r\nauthorization: S3CRET\r\nx-unwanted: S3CRET\r\n\r\n",
    );
    let span = site.span();
    assert_says(
        "headers",
        &span,
        &[
            ("http.request.header.x-kept", Some("[\"1\"]")),
            ("http.request.header.x-twice", Some("[\"1\",\"2\"]")),
            ("http.request.header.x-bytes", Some("[\"\u{fffd}\"]")),
            ("http.request.header.x-absent", None),
            ("http.request.header.authorization", None),
            ("http.response.header.x-cache", Some("[\"hit\",\"miss\"]")),
            ("http.response.header.set-cookie", None),
        ],
    );
    assert!(!format!("{span:?}").contains("S3CRET"), "{span:?}");
}

/// Notes what each span starts with, and takes none whose attributes say so.
#[derive(Clone, Debug, Default)]
struct Seen(Arc<Mutex<Vec<Start>>>);

type Start = (String, Vec<KeyValue>);

impl ShouldSample for Seen {
    fn should_sample(
        &self,
        _: Option<&Context>,
        _: TraceId,
        name: &str,
        _: &SpanKind,
        attributes: &[KeyValue],
        _: &[Link],
    ) -> SamplingResult {
        self.0
            .lock()
            .unwrap()
            .push((name.to_owned(), attributes.to_vec()));
        let refused = attributes.contains(&KeyValue::new("refuse", true));
        SamplingResult {
            decision: if refused {
                SamplingDecision::Drop
            } else {
                SamplingDecision::RecordAndSample
            },
            attributes: Vec::new(),
            trace_state: Default::default(),
        }
    }
}

/// Scenario: a hook takes an attribute away and adds one of the request's extensions, and a sampler goes by what was added.
/// Guarantees: the sampler sees name and attributes as the hook left them, and what it refuses is not exported.
#[test]
fn attributes_of_a_hook_are_there_when_a_sampler_decides() {
    let seen = Seen::default();
    let site = Site::with(Recorder::new(), seen.clone());
    let layer = site.layer().with_attributes(|request, attributes| {
        attributes.retain(|attribute| attribute.key.as_str() != "user_agent.original");
        attributes.push(KeyValue::new("refuse", request.uri.path() == "/"));
    });
    let serving = Serving::axum(shop(layer));
    for path in ["/", "/orders/1"] {
        serving.exchange(request(&format!("GET {path}"), &[("user-agent", "S3CRET")]));
    }
    assert_eq!(site.span().name, "GET /orders/{id}");
    let seen = seen.0.lock().unwrap().clone();
    let names: Vec<_> = seen.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["GET /", "GET /orders/{id}"]);
    for (name, attributes) in seen {
        assert!(
            attributes.contains(&KeyValue::new("refuse", name == "GET /")),
            "{attributes:?}"
        );
        assert!(
            attributes.contains(&KeyValue::new("http.request.method", "GET")),
            "{attributes:?}"
        );
        assert!(!format!("{attributes:?}").contains("S3CRET"));
    }
}

/// Scenario: a layer around everything filters a request out, and one for the routes filters nothing.
/// Guarantees: the request has no span of the inner one either.
#[test]
fn request_that_is_filtered_outside_has_no_span_inside() {
    let site = Site::new();
    let outer = site
        .layer()
        .with_filter(|request| request.uri.path() != "/health");
    let routes = Router::new()
        .route("/health", get(|| async { "healthy" }))
        .route("/", get(|| async { "here" }))
        .layer(site.layer());
    let serving = Serving::axum(routes.layer(outer));
    for path in ["/health", "/"] {
        serving.exchange(request(&format!("GET {path}"), &[]));
    }
    let (span, _) = site.spans(1).remove(0);
    assert_eq!(span.name, "GET /");
}

/// Scenario: health checks are filtered out, on a server whose main task itself runs in a span.
/// Guarantees: a request that is filtered has no span, and no span is active inside, not in the service's call either;
/// all others have theirs, which has nothing to do with the main task's.
#[test]
fn filtered_request_has_no_span_and_none_is_active_in_it() {
    let site = Site::new();
    let layer = site
        .layer()
        .with_filter(|request| request.uri.path() != "/health");
    let log = Log::default();
    let app = {
        let log = log.clone();
        let inside = move |request: axum::extract::Request| {
            let log = log.clone();
            let note = move |log: &Log, place| {
                let active = if active_span().is_active() {
                    "active"
                } else {
                    "none"
                };
                log.note(format!("{} {place}: {active}", request.uri().path()));
            };
            note(&log, "called");
            async move {
                in_child("child", async {}).await;
                note(&log, "polled");
            }
        };
        Router::new()
            .route("/health", get(inside.clone()))
            .route("/", get(inside))
            .layer(layer)
    };
    let main = Context::new().with_span(site.provider.tracer("main").start("main"));
    let trace = main.span().span_context().trace_id();
    let ambient = main.clone();
    let serving = Serving::start(|listener| async move {
        let _attached = ambient.attach();
        axum::serve(listener, app).await.unwrap();
    });
    for path in ["/health", "/"] {
        serving.exchange(request(&format!("GET {path}"), &[]));
    }
    assert_eq!(
        log.entries(),
        [
            "/health called: none",
            "/health polled: none",
            "/ called: active",
            "/ polled: active"
        ]
    );
    main.span().end();
    let spans = site.spans(3);
    let mut names: Vec<_> = spans.iter().map(|(span, _)| &*span.name).collect();
    names.sort_unstable();
    assert_eq!(names, ["GET /", "child", "main"]);
    for (span, _) in &spans {
        assert_eq!(
            span.span_context.trace_id() == trace,
            span.name == "main",
            "{span:?}"
        );
    }
}

/// Scenario: `traceparent` as callers send it: sampled, not sampled, malformed, of a version to come, twice, and none.
/// Guarantees: what is valid is continued, with its `tracestate`, and its span is the parent; a trace that the caller
/// does not sample is not exported, nor are children of its span; everything else starts a trace of its own.
#[test]
fn trace_of_the_caller_is_continued() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let app = |site: &Site| {
        let handler = || in_child("child", async {});
        Router::new().route("/", get(handler)).layer(site.layer())
    };
    for (traceparent, state, continued) in [
        (format!("00-{TRACE}-00f067aa0ba902b7-01"), "a=1,b=2", true),
        (
            format!("cc-{TRACE}-00f067aa0ba902b7-01-what-is-to-come"),
            "",
            true,
        ),
        (format!("00-{TRACE}-0000000000000000-01"), "a=1", false),
        (
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01".to_owned(),
            "",
            false,
        ),
        (format!("00-{TRACE}-00f067aa0ba902b7"), "", false),
        ("nonsense".to_owned(), "a=1", false),
        (String::new(), "", false),
    ] {
        let site = Site::new();
        let serving = Serving::axum(app(&site));
        serving.exchange(request(
            "GET /",
            &[("traceparent", &traceparent), ("tracestate", state)],
        ));
        let spans = site.spans(2);
        let server = &spans
            .iter()
            .find(|(span, _)| span.name == "GET /")
            .unwrap()
            .0;
        let child = &spans
            .iter()
            .find(|(span, _)| span.name == "child")
            .unwrap()
            .0;
        assert_eq!(child.parent_span_id, server.span_context.span_id());
        let is_continued = server.span_context.trace_id() == TraceId::from_hex(TRACE).unwrap();
        assert_eq!(is_continued, continued, "{traceparent}");
        let parent = if continued {
            SpanId::from_hex("00f067aa0ba902b7").unwrap()
        } else {
            SpanId::INVALID
        };
        assert_eq!(server.parent_span_id, parent, "{traceparent}");
        assert_eq!(server.parent_span_is_remote, continued, "{traceparent}");
        let kept = if continued { state } else { "" };
        assert_eq!(
            server.span_context.trace_state().header(),
            kept,
            "{traceparent}"
        );
        assert_eq!(
            child.span_context.trace_state().header(),
            kept,
            "{traceparent}"
        );
    }

    let site = Site::new();
    let serving = Serving::axum(app(&site));
    let unsampled = format!("00-{TRACE}-00f067aa0ba902b7-00");
    serving.exchange(request("GET /", &[("traceparent", &unsampled)]));
    serving.exchange(request("GET /", &[]));
    for (span, _) in site.spans(2) {
        assert_ne!(
            span.span_context.trace_id(),
            TraceId::from_hex(TRACE).unwrap()
        );
    }

    let site = Site::with(Recorder::new(), Sampler::AlwaysOn);
    let serving = Serving::axum(app(&site));
    serving.exchange(request("GET /", &[("traceparent", &unsampled)]));
    for (span, _) in site.spans(2) {
        assert_eq!(
            span.span_context.trace_id(),
            TraceId::from_hex(TRACE).unwrap()
        );
    }
}
