//! Service and body run in the span of their request, and so does what they leave behind.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::routing::get;
use opentelemetry::trace::{SpanId, SpanKind};
use opentelemetry_per_request::{Carry as _, active_span, in_child, in_child_sync};
use opentelemetry_sdk::trace::SpanData;
use tower::{Layer as _, service_fn};

use super::site::{Once, Serving, Site, attribute};
use crate::support::{Tenant, wait_until};

fn get_of(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: shop.test\r\nx-tenant: 7\r\nconnection: close\r\n\r\n")
}

/// All spans of the one request of tenant 7, the SERVER span first.
fn spans_of_one_request(site: &Site, count: usize) -> Vec<SpanData> {
    let spans = site.spans(count).into_iter();
    let mut spans: Vec<_> = spans
        .map(|(span, tenant)| {
            assert_eq!(tenant, Some(Tenant(7)), "{span:?}");
            span
        })
        .collect();
    spans.sort_by_key(|span| span.parent_span_id != SpanId::INVALID);
    let trace = spans[0].span_context.trace_id();
    assert!(
        spans
            .iter()
            .all(|span| span.span_context.trace_id() == trace)
    );
    assert_eq!(
        spans
            .iter()
            .filter(|span| span.span_kind == SpanKind::Server)
            .count(),
        1
    );
    spans
}

fn parent_of<'a>(spans: &'a [SpanData], name: &str) -> &'a str {
    let child = spans.iter().find(|span| span.name == name).unwrap();
    let parent = spans
        .iter()
        .find(|span| span.span_context.span_id() == child.parent_span_id);
    &parent
        .unwrap_or_else(|| panic!("the parent of {name}"))
        .name
}

/// Scenario: a service makes spans when it is called, before and after awaits, in its body's stream, and when its
/// future is dropped, which is done.
/// Guarantees: each is a child of the SERVER span.
#[test]
fn service_and_body_run_in_the_span() {
    struct Dropped(&'static str);
    impl Drop for Dropped {
        fn drop(&mut self) {
            in_child_sync(self.0, || {});
        }
    }
    /// Drops something when it is dropped itself, which is after it is done.
    struct Keeps<F>(
        Pin<Box<F>>,
        #[expect(dead_code, reason = "it is there to be dropped")] Dropped,
    );
    impl<F: Future> Future for Keeps<F> {
        type Output = F::Output;

        fn poll(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<F::Output> {
            self.0.as_mut().poll(task)
        }
    }
    let site = Site::new();
    let service = service_fn(|_: http::Request<hyper::body::Incoming>| {
        in_child_sync("in the call", || {});
        let work = async {
            in_child("before", async {}).await;
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            tokio::task::yield_now().await;
            in_child("after", async {
                in_child("deeper", tokio::task::yield_now()).await;
            })
            .await;
            let mut parts = 0;
            let stream = futures_util::stream::poll_fn(move |task| {
                parts += 1;
                match parts {
                    1 => in_child_sync("first part", || {}),
                    2 => {
                        task.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    3 => in_child_sync("second part", || {}),
                    _ => {
                        in_child_sync("the end", || {});
                        return Poll::Ready(None);
                    }
                }
                Poll::Ready(Some(Ok::<_, Infallible>("part.")))
            });
            Ok::<_, Infallible>(http::Response::new(Body::from_stream(stream)))
        };
        Keeps(Box::pin(work), Dropped("in the drop of the future"))
    });
    let serving = Serving::hyper(site.layer().layer(service));
    let answer = serving.exchange(get_of("/"));
    assert!(answer.ends_with("0\r\n\r\n"), "{answer}");
    let spans = spans_of_one_request(&site, 9);
    for name in [
        "in the call",
        "before",
        "after",
        "first part",
        "second part",
        "the end",
        "in the drop of the future",
    ] {
        assert_eq!(parent_of(&spans, name), "GET", "{name}");
    }
    assert_eq!(parent_of(&spans, "deeper"), "after");
}

/// Scenario: one layer is around everything, where no route is known, another at the routes, with a middleware in
/// between that runs the rest in a child; a nested service of axum has a third one. Some have a hook that says a route
/// of its own.
/// Guarantees: one span of a server for each request. It has the route, once, from the outermost layer that knows one,
/// although a deeper span is active there.
#[test]
fn inner_layer_adds_the_route_to_the_span_of_the_outer_one() {
    for (path, hook, name) in [
        ("/orders/4711", false, "GET /orders/{id}"),
        ("/files/a/b", false, "GET /files/{*path}"),
        ("/nowhere", false, "GET"),
        ("/orders/4711", true, "GET /by-hook"),
    ] {
        let site = Site::new();
        let files = Router::new()
            .route("/{*path}", get("file"))
            .layer(site.layer())
            .layer(site.layer());
        let routes = Router::new()
            .route(
                "/orders/{id}",
                get(|| in_child("handler", async { "order" })),
            )
            .nest_service("/files", files)
            .layer(site.layer())
            .layer(from_fn(|request: Request, next: Next| {
                active_span().start_child("deep").run(next.run(request))
            }));
        let outer = match hook {
            true => site.layer().with_route(|_| Some("/by-hook".into())),
            false => site.layer(),
        };
        let serving = Serving::hyper(outer.layer(routes));
        serving.exchange(get_of(path));
        let is_order = path == "/orders/4711";
        let spans = spans_of_one_request(&site, if is_order { 3 } else { 2 });
        assert_eq!(spans[0].name, name);
        let route = attribute(&spans[0], "http.route");
        assert_eq!(route.as_deref(), name.strip_prefix("GET "));
        assert_eq!(parent_of(&spans, "deep"), name);
        if is_order {
            assert_eq!(parent_of(&spans, "handler"), "deep");
        }
        let deep = spans.iter().find(|span| span.name == "deep").unwrap();
        assert!(deep.attributes.is_empty(), "{deep:?}");
    }
}

/// Scenario: a handler answers, and leaves one piece of work behind: a carried task, a carried closure on another thread, or
/// a task in a span of its own. It makes its span after the answer was read and the SERVER span has ended.
/// Guarantees: no span is late; each is in the trace of its request, below the span it was left by, and leaves under the
/// request's context.
#[test]
fn work_that_outlives_the_answer_is_still_its_requests() {
    for kind in ["a carried task", "a carried closure", "a task in a span"] {
        let site = Site::new();
        let (go, goes_on) = std::sync::mpsc::channel::<()>();
        let goes_on = Once::new(goes_on);
        let handler = move || async move {
            // Until the test lets go.
            let wait = move || goes_on.take().recv().unwrap_err();
            let waiting = wait.clone();
            let waits = async {
                tokio::task::spawn_blocking(waiting).await.unwrap();
                in_child("later", tokio::task::yield_now()).await;
            };
            match kind {
                "a carried task" => drop(tokio::spawn(waits.carried())),
                "a task in a span" => drop(tokio::spawn(in_child("receipt", waits))),
                _ => {
                    let closure = move || {
                        wait();
                        in_child_sync("later", || {});
                    };
                    drop(tokio::task::spawn_blocking(closure.carried_fn()));
                }
            }
            "answer"
        };
        let serving = Serving::axum(Router::new().route("/", get(handler)).layer(site.layer()));
        assert!(serving.exchange(get_of("/")).ends_with("answer"));
        wait_until("the span ends", || site.log.has("GET / ended"));
        assert_eq!(site.ended(), 1);
        drop(go);
        let in_a_span = kind == "a task in a span";
        let spans = spans_of_one_request(&site, if in_a_span { 3 } else { 2 });
        let parent = if in_a_span { "receipt" } else { "GET /" };
        assert_eq!(parent_of(&spans, "later"), parent, "{kind}");
    }
}
