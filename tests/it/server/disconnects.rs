//! Clients that leave before they have everything.

use std::future::pending;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::routing::get;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use opentelemetry::trace::{SpanKind, Status, TracerProvider as _};
use opentelemetry_otlp_direct::{DirectExporter, ExportToken};
use opentelemetry_per_request::server::ServerLayer;
use opentelemetry_per_request::{
    ActiveSpan, PerRequestSpanProcessor, RequestTracer, active_span, in_child,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_sdk::trace::SdkTracerProvider;

use super::site::{Fed, Log, Serving, Site, attribute, in_runtime, is_cancelled};
use crate::support::collector::Collector;
use crate::support::{Tenant, balanced, wait_until};

/// Handles to spans, which keep none of them open.
type Kept = Arc<Mutex<Vec<ActiveSpan>>>;

/// The order of what happens on the server once it sees that the client is gone: nothing is between the first and the last.
fn assert_ended_at_once(log: &Log, ended: &str) {
    wait_until("the server goes on", || log.has("another task"));
    let entries = log.entries();
    assert_eq!(entries, ["body dropped in its span", ended, "another task"]);
}

/// Scenario: a client hangs up while a stream pauses: nothing is being written, and nobody will ever write again. With
/// HTTP/1 and a length that is not known, one that is, and with HTTP/2, where it resets its stream.
/// Guarantees: the span ends in the very poll in which the server drops the body, and before anything else happens
/// there. It says that it was cut off, and after how many bytes, and is an error if there should have been more. Its
/// tenant's context is the one it leaves under.
#[test]
fn client_that_leaves_in_mid_body_ends_the_span_at_once() {
    for (length, http2) in [
        (None, false),
        (Some(100), false),
        (None, true),
        (Some(100), true),
    ] {
        let site = Site::new();
        let (feed, body) = Fed::of_length(&site.log, length);
        let kept = Kept::default();
        let keep = kept.clone();
        let handler = move || async move {
            keep.lock().unwrap().push(active_span());
            body.take().response()
        };
        let app = Router::new()
            .route("/stream", get(handler))
            .layer(site.layer());
        let serving = Serving::axum(app);
        feed.data("0123456789");
        feed.data("abcd");
        if http2 {
            in_runtime(async {
                let request = Request::get("http://shop.test/stream").header("x-tenant", "7");
                let request = request.body(Full::default()).unwrap();
                let mut client = serving.http2().await;
                let mut answer = client.send_request(request).await.unwrap().into_body();
                let mut read = 0;
                while read < 14 {
                    let frame = answer.frame().await.unwrap().unwrap();
                    read += frame.data_ref().unwrap().len();
                }
                assert_eq!(site.ended(), 0);
                drop(answer);
                // The connection stays: it is the stream that ends.
                while site.ended() == 0 {
                    tokio::task::yield_now().await;
                }
                assert!(!client.is_closed());
            });
        } else {
            let mut client = serving.connect();
            client.send("GET /stream HTTP/1.1\r\nhost: shop.test\r\nx-tenant: 7\r\n\r\n");
            client.read_until("abcd");
            assert_eq!(site.ended(), 0);
            client.hang_up();
        }
        assert_ended_at_once(&site.log, "GET /stream ended");
        assert!(!kept.lock().unwrap()[0].is_recording());
        let (span, tenant) = site.spans(1).remove(0);
        assert_eq!(tenant, Some(Tenant(7)));
        assert!(is_cancelled(&span), "{span:?}");
        assert_eq!(
            attribute(&span, "http.response.body.size").as_deref(),
            Some("14")
        );
        assert_eq!(
            attribute(&span, "http.response.status_code").as_deref(),
            Some("200")
        );
        // Without a length, it may be all that the client wanted.
        let (status, kind) = match length {
            Some(_) => (Status::error(""), Some("cancelled")),
            None => (Status::Unset, None),
        };
        assert_eq!(span.status, status);
        assert_eq!(attribute(&span, "error.type").as_deref(), kind);
        drop(feed);
    }
}

/// Notes that it was dropped, and whether in a span.
struct Noted(Log, &'static str);

impl Drop for Noted {
    fn drop(&mut self) {
        let place = if active_span().is_recording() {
            "in"
        } else {
            "outside of"
        };
        self.0.note(format!("{} dropped {place} a span", self.1));
    }
}

/// Scenario: a client hangs up while the handler waits, three children deep.
/// Guarantees: handler, children and span end at once, innermost first, each in its span; all say that they were cut
/// off, none has failed, and there is no status code.
#[test]
fn client_that_leaves_before_the_head_ends_the_span_and_all_in_it() {
    for http2 in [false, true] {
        let site = Site::new();
        let log = site.log.clone();
        let (entered, mut waits) = tokio::sync::mpsc::unbounded_channel();
        let handler = move || {
            let noted = Noted(log.clone(), "handler");
            let entered = entered.clone();
            in_child("outer", async move {
                in_child("middle", async move {
                    in_child("inner", async move {
                        let _noted = noted;
                        entered.send(()).unwrap();
                        pending::<()>().await;
                    })
                    .await;
                })
                .await;
            })
        };
        let app = Router::new()
            .route("/wait", get(handler))
            .layer(site.layer());
        let serving = Serving::axum(app);
        in_runtime(async {
            if http2 {
                let request = Request::get("http://shop.test/wait").header("x-tenant", "7");
                let mut client = serving.http2().await;
                let answer = client.send_request(request.body(Full::default()).unwrap());
                let answer = tokio::spawn(answer);
                waits.recv().await.unwrap();
                answer.abort();
                wait_until("the handler is dropped", || site.ended() == 4);
            } else {
                let mut client = serving.connect();
                client.send("GET /wait HTTP/1.1\r\nhost: shop.test\r\nx-tenant: 7\r\n\r\n");
                waits.recv().await.unwrap();
                assert_eq!(site.ended(), 0);
                client.hang_up();
            }
        });
        for (span, tenant) in site.spans(4) {
            assert_eq!(tenant, Some(Tenant(7)));
            assert!(is_cancelled(&span), "{span:?}");
            // Of the request, whose answer could not be sent, and not of what was under way in it.
            let (status, kind) = match span.span_kind {
                SpanKind::Server => (Status::error(""), Some("cancelled")),
                _ => (Status::Unset, None),
            };
            assert_eq!(span.status, status);
            assert_eq!(attribute(&span, "error.type").as_deref(), kind);
            assert_eq!(attribute(&span, "http.response.status_code"), None);
            assert_eq!(attribute(&span, "http.response.body.size"), None);
        }
        assert_eq!(
            site.log.entries(),
            [
                "handler dropped in a span",
                "inner ended",
                "middle ended",
                "outer ended",
                "GET /wait ended"
            ]
        );
    }
}

/// Scenario: two clients of two tenants read streams whose handlers take the export token from the caller's
/// authorization; one hangs up in the middle, the other reads to the end. Everything is real: axum, `DirectExporter`,
/// and a receiver of OTLP.
/// Guarantees: each span arrives under the token of its own request, and the receiver can read from the one that it was
/// cut off, and where.
#[test]
fn span_that_was_cut_off_arrives_under_its_own_token() {
    let collector = Collector::http();
    let exporter = DirectExporter::builder()
        .with_endpoint(collector.endpoint())
        .build()
        .unwrap();
    let processor = PerRequestSpanProcessor::builder(exporter).build().unwrap();
    let telemetry = processor.handle();
    let provider = SdkTracerProvider::builder()
        .with_span_processor(processor)
        .build();
    let tracer = RequestTracer::new(provider.tracer("shop")).with_handle(telemetry.clone());
    let layer = ServerLayer::new(tracer).with_request_context(|request, cx| {
        let token = request
            .headers
            .get("authorization")
            .and_then(|value| value.to_str().ok());
        let token = token.and_then(|value| ExportToken::new(value.strip_prefix("Bearer ")?).ok());
        token.map_or(cx.clone(), |token| token.attach_to(&cx))
    });
    let log = Log::default();
    let (left, left_body) = Fed::new(&log);
    let (stayed, stayed_body) = Fed::new(&log);
    let app = Router::new()
        .route(
            "/left",
            get(move || async move { left_body.take().response() }),
        )
        .route(
            "/stayed",
            get(move || async move { stayed_body.take().response() }),
        )
        .layer(layer);
    let serving = Serving::axum(app);
    let [mut leaves, mut stays] = ["left", "stayed"].map(|name| {
        let mut client = serving.connect();
        client.send(format!(
            "GET /{name} HTTP/1.1\r\nhost: shop.test\r\nauthorization: Bearer token-of-{name}\r\n\r\n"
        ));
        client
    });
    for feed in [&left, &stayed] {
        feed.data("0123456789");
    }
    leaves.read_until("0123456789");
    stays.read_until("0123456789");
    leaves.hang_up();
    wait_until("the span that was cut off arrives by itself", || {
        collector.names() == ["GET /left"]
    });
    drop(stayed);
    stays.read_until("0\r\n\r\n");
    wait_until("both arrive", || {
        collector.names() == ["GET /left", "GET /stayed"]
    });
    for received in collector.received() {
        let name = received.spans[0].strip_prefix("GET /").unwrap();
        let token = format!("Bearer token-of-{name}");
        assert_eq!(received.authorization, Some(token));
        let span = &received.decoded[0];
        let value = |key| {
            let found = span
                .attributes
                .iter()
                .find(|attribute| attribute.key == key);
            found.and_then(|found| found.value.clone()?.value)
        };
        let cut_off = name == "left";
        assert_eq!(
            value("per_request.cancelled"),
            cut_off.then_some(Value::BoolValue(true))
        );
        assert_eq!(
            value("http.response.body.size"),
            cut_off.then_some(Value::IntValue(10))
        );
        assert_eq!(
            value("http.response.status_code"),
            Some(Value::IntValue(200))
        );
        assert_eq!(span.status.clone().unwrap_or_default().code, 0);
    }
    wait_until("both are accounted for", || {
        balanced(&telemetry).exported == 2
    });
    let stats = balanced(&telemetry);
    assert_eq!(
        (stats.exported, stats.late.total(), stats.traces),
        (2, 0, 0)
    );
    drop(left);
}
