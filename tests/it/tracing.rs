//! Code that only knows `tracing`, under the layer of the processor: its spans and events are those of the request that they
//! happen in.

use std::collections::BTreeMap;
use std::future::{pending, ready};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use opentelemetry::trace::{SpanId, Status, TraceContextExt as _};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_per_request::server::ServerLayer;
use opentelemetry_per_request::{
    Carry as _, Config, Outcome, RequestTracer, active_span, in_child, tracing_layer,
};
use opentelemetry_sdk::trace::SpanData;
use tokio::task::{LocalSet, yield_now};
use tower::ServiceExt as _;
use tracing::{Instrument as _, debug, error, info, info_span, instrument, warn};
use tracing_opentelemetry::OpenTelemetryLayer;
use tracing_subscriber::Registry;
use tracing_subscriber::layer::{Layer, SubscriberExt as _};

use crate::support::{SOON, Tenant, World, current_tenant, remote_parent, some_trace, tenant};

type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// A world whose tracer is that of this thread's subscriber.
struct Traced {
    world: World,
    tracer: RequestTracer,
    _subscriber: tracing::subscriber::DefaultGuard,
}

impl Traced {
    fn new() -> Self {
        Self::with(|tracer| tracing_layer(tracer).boxed())
    }

    fn with(layer: impl FnOnce(RequestTracer) -> BoxedLayer) -> Self {
        let world = World::new(Config::default());
        let tracer = RequestTracer::new(world.tracer.clone()).with_handle(world.telemetry.clone());
        let subscriber = tracing_subscriber::registry().with(layer(tracer.clone()));
        Self {
            world,
            tracer,
            _subscriber: tracing::subscriber::set_default(subscriber),
        }
    }

    /// Runs a request of this tenant on this thread.
    fn request<F: Future<Output: Outcome>>(&self, number: u32, work: F) -> F::Output {
        block_on(self.tracer.run("request", &tenant(number), work))
    }

    /// Everything that has arrived, and that none of it is late.
    fn spans(&self) -> Vec<(SpanData, Option<Tenant>)> {
        self.world.flush().unwrap();
        assert_eq!(self.world.stats().late.total(), 0);
        self.world.exporter.spans()
    }

    fn span(&self, name: &str) -> SpanData {
        let spans = self.spans();
        let mut named = spans.into_iter().filter(|(span, _)| span.name == name);
        let (span, _) = named.next().unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(named.count(), 0, "more than one {name}");
        span
    }

    fn assert_is_below(&self, child: &str, parent: &str) {
        let (child, parent) = (self.span(child), self.span(parent));
        let expected = parent.span_context.span_id();
        assert_eq!(
            child.parent_span_id, expected,
            "{} below {}",
            child.name, parent.name
        );
    }

    fn tenant_of(&self, name: &str) -> Option<Tenant> {
        self.spans();
        self.world.exporter.span(name).1
    }
}

fn block_on<F: Future>(work: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async { tokio::time::timeout(SOON, work).await.unwrap() })
}

fn attribute<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Value> {
    let found = attributes.iter().find(|kv| kv.key.as_str() == key);
    found.map(|kv| &kv.value)
}

fn events(span: &SpanData) -> Vec<&str> {
    span.events.iter().map(|event| &*event.name).collect()
}

// ===== Parents and requests =====

#[instrument(skip_all, fields(tenant = n))]
async fn one(n: u32) {
    yield_now().await;
    tokio::join!(two(n, 1), two(n, 2));
    leaf(n);
}

#[instrument(skip_all, fields(tenant = n))]
async fn two(n: u32, times: u32) {
    for _ in 0..times + n % 5 {
        yield_now().await;
    }
    three(n).await;
    tokio::time::sleep(Duration::from_micros(u64::from(n % 3))).await;
    assert_eq!(current_tenant(), Some(Tenant(n)));
}

#[instrument(skip_all, fields(tenant = n))]
async fn three(n: u32) {
    yield_now().await;
    info!(tenant = n, "in three");
}

#[instrument(skip_all, fields(tenant = n))]
fn leaf(n: u32) {}

/// Scenario: fifty requests at once on one thread, of six `#[instrument]`ed functions each, over awaits that interleave them;
/// with the layer, and with the plain one of `tracing-opentelemetry`.
/// Guarantees: each span is below its own parent and leaves under its own tenant, none is late, and nothing stays current.
#[test]
fn fifty_requests_on_one_thread_keep_their_spans_apart() {
    let layers: [fn(RequestTracer) -> BoxedLayer; 2] = [
        |tracer| tracing_layer(tracer).boxed(),
        |tracer| OpenTelemetryLayer::new(tracer).boxed(),
    ];
    for layer in layers {
        let traced = Traced::with(layer);
        block_on(LocalSet::new().run_until(async {
            let requests: Vec<_> = (1..=50)
                .map(|n| traced.tracer.run("request", &tenant(n), one(n)))
                .map(tokio::task::spawn_local)
                .collect();
            for request in requests {
                request.await.unwrap();
            }
        }));
        assert!(!active_span().is_active());

        let spans = traced.spans();
        assert_eq!(spans.len(), 50 * 7);
        let of_id: BTreeMap<_, _> = spans
            .iter()
            .map(|(span, _)| (span.span_context.span_id().to_bytes(), span))
            .collect();
        for (span, tenant) in &spans {
            let above = of_id.get(&span.parent_span_id.to_bytes());
            let above_name = above.map(|above| &*above.name);
            let expected = match &*span.name {
                "request" => None,
                "one" => Some("request"),
                "two" | "leaf" => Some("one"),
                "three" => Some("two"),
                other => panic!("{other}"),
            };
            assert_eq!(above_name, expected);
            if let Some(above) = above {
                assert_eq!(above.span_context.trace_id(), span.span_context.trace_id());
                let number = tenant.unwrap().0.to_string();
                let said = attribute(&span.attributes, "tenant").unwrap();
                assert_eq!(said.as_str(), number, "{span:?}");
                let said = span.events.iter().map(|event| &*event.name);
                let expected: &[&str] = match &*span.name {
                    "three" => &["in three"],
                    _ => &[],
                };
                assert_eq!(said.collect::<Vec<_>>(), expected);
                for event in span.events.iter() {
                    let said = attribute(&event.attributes, "tenant").unwrap();
                    assert_eq!(said.as_str(), number, "{span:?}");
                }
            }
        }
    }
}

#[instrument]
async fn outer() {
    active_span().set_attribute("of", "outer");
    in_child("between", async {
        yield_now().await;
        inner().await;
    })
    .await;
}

#[instrument]
async fn inner() {
    yield_now().await;
    active_span().set_attribute("of", "inner");
    in_child("innermost", ready(())).await;
}

/// Scenario: `in_child` below `#[instrument]` below `in_child`, and `active_span` in between.
/// Guarantees: each is below the one around it, and `active_span` is the span of the function.
#[test]
fn spans_of_tracing_and_of_in_child_nest_in_each_other() {
    let traced = Traced::new();
    traced.request(1, async { in_child("around", outer()).await });
    let tree = ["request", "around", "outer", "between", "inner"];
    for (child, parent) in tree[1..].iter().chain(&["innermost"]).zip(tree) {
        traced.assert_is_below(child, parent);
    }
    for name in ["outer", "inner"] {
        let span = traced.span(name);
        assert_eq!(attribute(&span.attributes, "of").unwrap().as_str(), name);
    }
}

/// Scenario: a span that is made in a request, for a task that is carried and runs when the request is over.
/// Guarantees: it, and what begins in it, is the request's, under its tenant, and not late.
#[test]
fn carried_span_of_a_task_belongs_to_its_request() {
    let traced = Traced::new();
    block_on(async {
        let request = traced.tracer.run("request", &tenant(7), async {
            let work = async {
                yield_now().await;
                leaf(7);
            };
            (tokio::spawn(work.instrument(info_span!("task")).carried()),)
        });
        // It has not begun: there is one thread, and this has not waited yet.
        let (task,) = request.await;
        task.await.unwrap();
    });
    traced.assert_is_below("task", "request");
    traced.assert_is_below("leaf", "task");
    assert_eq!(traced.tenant_of("leaf"), Some(Tenant(7)));
    assert_eq!(traced.tenant_of("task"), Some(Tenant(7)));
}

/// Scenario: a span says that it has no parent.
/// Guarantees: it is the root of a trace of its own, under no request's context.
#[test]
fn span_without_a_parent_is_no_part_of_the_request() {
    let traced = Traced::new();
    traced.request(1, async {
        info_span!(parent: None, "alone").in_scope(|| leaf(1));
    });
    assert_eq!(traced.span("alone").parent_span_id, SpanId::INVALID);
    assert_eq!(traced.tenant_of("alone"), None);
    traced.assert_is_below("leaf", "alone");
}

// ===== Ends =====

struct SpanOnDrop(&'static str);

impl Drop for SpanOnDrop {
    fn drop(&mut self) {
        info_span!("of a drop").in_scope(|| info!("{}", self.0));
    }
}

#[instrument]
async fn waits() {
    let _guard = SpanOnDrop("dropped");
    pending::<()>().await;
}

/// Scenario: a function that waits is dropped by a `select!`, and by a timeout.
/// Guarantees: its span ends, below its parent, and what its drop opens is below it.
#[test]
fn span_of_dropped_work_ends() {
    let traced = Traced::new();
    traced.request(1, async {
        tokio::select! {
            biased;
            () = waits() => {}
            () = yield_now() => {}
        }
        info!("after it");
    });
    traced.assert_is_below("waits", "request");
    traced.assert_is_below("of a drop", "waits");
    assert_eq!(events(&traced.span("of a drop")), ["dropped"]);
    assert_eq!(events(&traced.span("request")), ["after it"]);

    let traced = Traced::new();
    traced.request(2, async {
        let timeout = tokio::time::timeout(Duration::from_millis(1), waits());
        assert!(timeout.await.is_err());
    });
    traced.assert_is_below("waits", "request");
    assert_eq!(traced.tenant_of("of a drop"), Some(Tenant(2)));
}

#[instrument(err)]
async fn fails() -> Result<(), io::Error> {
    yield_now().await;
    Err(io::Error::other("no disk"))
}

/// Scenario: a function with `err` fails.
/// Guarantees: its span has failed, with the error's message, and an exception for an event; the request's has not.
#[test]
fn span_of_a_function_that_returns_an_error_has_failed() {
    let traced = Traced::new();
    traced.request(1, async { drop(fails().await) });
    let span = traced.span("fails");
    assert_eq!(span.status, Status::error("no disk"));
    assert_eq!(events(&span), ["exception"]);
    assert_eq!(traced.span("request").status, Status::Unset);
}

#[instrument]
async fn panics() {
    let _guard = SpanOnDrop("unwound");
    yield_now().await;
    panics_too();
}

#[instrument]
fn panics_too() {
    panic!("on purpose");
}

/// Scenario: a panic unwinds through two functions, a drop opens a span meanwhile, and a third function that was polled
/// beside them is dropped. Then the same thread goes on.
/// Guarantees: those that the panic has left have failed, and say so; the others have not.
#[test]
fn spans_that_are_left_by_a_panic_have_failed() {
    let traced = Traced::new();
    let work = async {
        tokio::join!(waits(), panics());
    };
    catch_unwind(AssertUnwindSafe(|| traced.request(1, work))).unwrap_err();
    traced.request(2, async { leaf(2) });

    for name in ["panics", "panics_too"] {
        let span = traced.span(name);
        assert_eq!(span.status, Status::error("panicked"), "{name}");
        let kind = attribute(&span.attributes, "error.type");
        assert_eq!(kind.unwrap().as_str(), "panic", "{name}");
    }
    for (span, _) in traced.spans() {
        if ["waits", "of a drop", "leaf"].contains(&&*span.name) {
            assert_eq!(span.status, Status::Unset, "{}", span.name);
        }
    }
    assert_eq!(traced.spans().len(), 8);
}

// ===== Events =====

/// Scenario: events in a request, in an `#[instrument]`ed function, in neither, with `parent: None`, under suppressed telemetry, of
/// OpenTelemetry itself, and in a request that is not recorded any more.
/// Guarantees: the first is one of the request's span with its fields, its level and its target, which does not make it an
/// error; the second one is the function's; the rest is nobody's.
#[test]
fn event_is_one_of_the_span_that_it_happens_in() {
    let traced = Traced::new();
    info!("nobody's");
    let (left,) = traced.request(3, async {
        error!(
            target: "shop",
            n = -5_i64,
            ratio = 0.5,
            good = true,
            who = "me",
            list = ?[1, 2],
            "the {}",
            "request's"
        );
        three(3).await;
        debug!(nothing = "but fields");
        info!(parent: None, "nobody's");
        warn!(target: "opentelemetry_sdk", "nobody's");
        {
            let _suppressed = Context::enter_telemetry_suppressed_scope();
            info!("nobody's");
        }
        (Context::current(),)
    });
    let _after = left.attach();
    info!("too late");

    let request = traced.span("request");
    assert_eq!(request.status, Status::Unset);
    let [event, other] = &request.events[..] else {
        panic!("{:?}", request.events)
    };
    assert_eq!(event.name, "the request's");
    let expected = [
        KeyValue::new("level", "ERROR"),
        KeyValue::new("target", "shop"),
        KeyValue::new("n", -5),
        KeyValue::new("ratio", 0.5),
        KeyValue::new("good", true),
        KeyValue::new("who", "me"),
        KeyValue::new("list", "[1, 2]"),
    ];
    assert_eq!(event.attributes, expected);
    assert!(other.name.starts_with("event "), "{}", other.name);
    assert_eq!(events(&traced.span("three")), ["in three"]);
}

/// Scenario: an axum handler behind `ServerLayer` logs, calls a function that does, and answers; over real HTTP.
/// Guarantees: the first event is one of the SERVER span, and the function's span is below that, under the request's tenant.
#[test]
fn handler_behind_the_server_layer_needs_nothing_but_tracing() {
    let traced = Traced::new();
    let layer = ServerLayer::new(traced.tracer.clone())
        .with_request_context(|_, cx| cx.with_value(Tenant(9)));
    let handler = || async {
        info!("in the handler");
        three(9).await;
        "done"
    };
    let app = Router::new().route("/orders/{id}", get(handler));
    block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/orders/1", listener.local_addr().unwrap());
        let server = axum::serve(listener, app.layer(layer));
        let client = async { reqwest::get(url).await.unwrap().text().await.unwrap() };
        tokio::select! {
            served = server => served.unwrap(),
            answer = client => assert_eq!(answer, "done"),
        }
    });
    assert_eq!(events(&traced.span("GET /orders/{id}")), ["in the handler"]);
    traced.assert_is_below("three", "GET /orders/{id}");
    assert_eq!(traced.tenant_of("three"), Some(Tenant(9)));
}

/// Scenario: a server runs in a tracing span of its own, such as that of a connection, which is not part of any request. Two
/// requests of it log in their handlers, outside of any tracing span of theirs and inside of one.
/// Guarantees: each event is in the request that it happens in, under that one's tenant; the connection hears of none of them,
/// but of what happens between them.
#[test]
fn event_of_a_request_is_not_one_of_the_connection_around_it() {
    let traced = Traced::new();
    let layer = ServerLayer::new(traced.tracer.clone()).with_request_context(|request, cx| {
        let tenant = request.uri.path()[1..].parse().unwrap();
        cx.with_value(Tenant(tenant))
    });
    let handler = || async {
        info!("in the handler");
        three(9).await;
        yield_now().await;
        info!("later");
    };
    let app = Router::new().route("/{tenant}", get(handler)).layer(layer);
    let connection = async {
        for number in [1, 2] {
            let request = http::Request::get(format!("/{number}"));
            let request = request.body(axum::body::Body::empty()).unwrap();
            let answer = app.clone().oneshot(request).await.unwrap();
            drop(answer);
            info!("between");
        }
    };
    block_on(connection.instrument(info_span!("connection")));
    let mut tenants = Vec::new();
    for (span, tenant) in traced.spans() {
        let expected: &[&str] = match &*span.name {
            "connection" => {
                assert_eq!(tenant, None);
                &["between", "between"]
            }
            "three" => &["in three"],
            "GET /{tenant}" => {
                tenants.push(tenant);
                &["in the handler", "later"]
            }
            other => panic!("{other}"),
        };
        assert_eq!(events(&span), expected, "{}", span.name);
    }
    // Exports run side by side, so either may come first.
    tenants.sort();
    assert_eq!(tenants, [Some(Tenant(1)), Some(Tenant(2))]);
}

/// Scenario: the handler of a request calls a server in the same process, inside of a tracing span, and its trace goes along; that
/// one's handler logs, as another tenant.
/// Guarantees: the event is in the request that it happens in, under that one's tenant, though both are of one trace.
#[test]
fn event_of_a_request_is_not_one_of_the_request_that_called_it() {
    let traced = Traced::new();
    let layer = ServerLayer::new(traced.tracer.clone())
        .with_request_context(|_, cx| cx.with_value(Tenant(2)));
    let called = Router::new()
        .route("/", get(async || info!("called")))
        .layer(layer);
    traced.request(1, async {
        let call = async {
            let mut request = http::Request::new(axum::body::Body::empty());
            opentelemetry_per_request::client::inject(request.headers_mut());
            drop(called.oneshot(request).await.unwrap());
            info!("calls");
        };
        call.instrument(info_span!("call")).await;
    });
    let mut seen = BTreeMap::new();
    for (span, tenant) in traced.spans() {
        let said: Vec<_> = events(&span).into_iter().map(str::to_owned).collect();
        seen.insert(span.name.to_string(), (said, tenant.map(|Tenant(n)| n)));
    }
    let expected = [
        ("GET /", vec!["called"], 2),
        ("call", vec!["calls"], 1),
        ("request", vec![], 1),
    ];
    let expected = expected.map(|(name, said, tenant)| {
        let said: Vec<_> = said.into_iter().map(str::to_owned).collect();
        (name.to_owned(), (said, Some(tenant)))
    });
    assert_eq!(seen, BTreeMap::from(expected));
}

/// Scenario: a consumer attaches the context of the message's sender, of another process, inside of its own tracing span, and logs.
/// Guarantees: the event is its span's: nothing of the sender's is here.
#[test]
fn event_under_a_context_from_elsewhere_stays_with_its_span() {
    let traced = Traced::new();
    traced.request(1, async {
        info_span!("consume").in_scope(|| {
            let sender = remote_parent(some_trace());
            let _attached = Context::new().with_remote_span_context(sender).attach();
            info!("got it");
        });
    });
    assert_eq!(events(&traced.span("consume")), ["got it"]);
}
