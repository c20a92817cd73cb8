//! A thousand requests at once, on a server that has one thread.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::HeaderMap;
use axum::routing::get;
use futures_util::StreamExt as _;
use opentelemetry::trace::{SpanId, SpanKind, get_active_span};
use opentelemetry_per_request::{Carry as _, active_span, in_child, in_child_sync};
use tokio::sync::Barrier;

use super::site::{Serving, Site, attribute, in_runtime, is_cancelled, tenant_of};
use crate::support::Tenant;

const REQUESTS: u32 = 1_000;
const AT_ONCE: usize = 200;

/// So many wait for each other: each request is one of them, and they are really under way together.
const TOGETHER: usize = 50;

/// Lets others go first, in one way or another: 0 to 3 ms.
async fn pause(seed: u32) {
    match seed % 5 {
        0 => {}
        1 => tokio::task::yield_now().await,
        other => tokio::time::sleep(Duration::from_millis(u64::from(other) - 1)).await,
    }
}

/// Each span's name is its request's number and its own, and that of the span it must be below.
async fn work(number: u32) {
    let name = |child: &str| format!("{number} {child}");
    let deep = in_child(name("1<server"), async move {
        pause(number).await;
        in_child(name("2<1"), async move {
            pause(number / 5).await;
            in_child(name("3<2"), pause(number / 7)).await;
            in_child_sync(name("4<2"), || {});
            pause(number / 11).await;
        })
        .await;
    });
    let beside = in_child(name("5<server"), pause(number / 3));
    tokio::join!(deep, beside);
    let never = in_child(name("12<server"), std::future::pending());
    tokio::select! {
        biased;
        () = never => {}
        () = pause(number / 17) => {}
    }
    // Inside of a borrow of the current context.
    get_active_span(|_| active_span().set_attribute("borrowed", true));
}

/// Scenario: a thousand requests of as many tenants, 200 at a time, over connections of axum on a runtime of one
/// thread. Each has children three deep and side by side, which wait at random, and one that a `select!` drops; it streams its body with a child for each
/// of two parts, and leaves three pieces of work behind, which make spans after it: a carried task, a carried closure
/// on another thread, and a task in a span.
/// Guarantees: each child is below the span that it was made in, in its own request's trace, and leaves under its own
/// tenant's context; none is late, none is lost, and nothing stays.
#[test]
fn each_of_a_thousand_requests_on_one_thread_keeps_its_own() {
    let site = Site::new();
    let together = Arc::new(Barrier::new(TOGETHER));
    let handler = move |headers: HeaderMap| {
        let together = together.clone();
        async move {
            let Tenant(number) = tenant_of(&headers).unwrap();
            together.wait().await;
            work(number).await;
            let name = move |child: &str| format!("{number} {child}");
            let left = async move {
                pause(number / 2).await;
                in_child(name("6<server"), pause(number)).await;
            };
            tokio::spawn(left.carried());
            let left = move || in_child_sync(name("7<server"), || {});
            tokio::task::spawn_blocking(left.carried_fn());
            tokio::spawn(in_child(name("8<server"), async move {
                pause(number).await;
                in_child(name("9<8"), pause(number / 2)).await;
            }));
            let parts = futures_util::stream::iter([10, 11]).then(move |part| async move {
                pause(number / 13).await;
                in_child(name(&format!("{part}<server")), pause(number)).await;
                Ok::<_, Infallible>(format!("{number}."))
            });
            Body::from_stream(parts)
        }
    };
    let serving = Serving::axum(Router::new().route("/", get(handler)).layer(site.layer()));
    let url = serving.url("/");
    in_runtime(async {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let requests = (1..=REQUESTS).map(|number| {
            let request = client.get(&url).header("x-tenant", number);
            async move {
                let answer = request.send().await.unwrap().text().await.unwrap();
                assert_eq!(answer, format!("{number}.{number}."));
            }
        });
        futures_util::stream::iter(requests)
            .buffer_unordered(AT_ONCE)
            .collect::<()>()
            .await;
    });
    let spans = site.spans(REQUESTS as usize * 13);
    let names: HashMap<SpanId, &str> = spans
        .iter()
        .map(|(span, _)| (span.span_context.span_id(), &*span.name))
        .collect();
    let traces: HashMap<_, Tenant> = spans
        .iter()
        .filter(|(span, _)| span.span_kind == SpanKind::Server)
        .map(|(span, tenant)| (span.span_context.trace_id(), tenant.unwrap()))
        .collect();
    assert_eq!(traces.len(), REQUESTS as usize);
    let children: HashSet<&str> = spans
        .iter()
        .filter(|(span, _)| span.span_kind != SpanKind::Server)
        .map(|(span, _)| &*span.name)
        .collect();
    assert_eq!(children.len(), REQUESTS as usize * 12);
    for (span, tenant) in &spans {
        assert_eq!(
            Some(traces[&span.span_context.trace_id()]),
            *tenant,
            "{span:?}"
        );
        assert_eq!(is_cancelled(span), span.name.ends_with(" 12<server"));
        if span.span_kind == SpanKind::Server {
            assert_eq!(attribute(span, "borrowed").as_deref(), Some("true"));
            continue;
        }
        let (number, place) = span.name.split_once(' ').unwrap();
        assert_eq!(Some(Tenant(number.parse().unwrap())), *tenant, "{span:?}");
        let (_, expected) = place.split_once('<').unwrap();
        let parent = names[&span.parent_span_id];
        match expected {
            "server" => assert_eq!(parent, "GET /", "{span:?}"),
            expected => assert!(
                parent.starts_with(&format!("{number} {expected}<")),
                "{span:?} below {parent}"
            ),
        }
    }
}
