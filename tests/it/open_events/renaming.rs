//! A span that gets another name while it is open.

use std::future::pending;

use axum::Router;
use axum::routing::get;
use opentelemetry::Context;
use opentelemetry::trace::TraceContextExt as _;
use opentelemetry_per_request::{Telemetry, active_span};
use tower::Layer as _;

use super::observing::{Watch, watched};
use super::*;
use crate::server::site::Serving;
use crate::support::MetricRecorder;

fn rename(cx: &Context, name: &'static str) {
    let _active = cx.clone().attach();
    active_span().update_name(name);
}

fn words<'a>(events: &'a [(&'static str, Option<String>)]) -> Vec<(&'static str, Option<&'a str>)> {
    events
        .iter()
        .map(|(word, name)| (*word, name.as_deref()))
        .collect()
}

/// Scenario: a span is renamed through our handle, through OpenTelemetry's, through both, to the name it has, and after it has ended.
/// Guarantees: the first is told at once; any other is in the close; no name is told twice.
#[test]
fn each_name_is_told_once_at_once_or_by_the_close() {
    let (world, watch) = watched(Config::default());
    let ours = world.start("before", &tenant(1));
    rename(&ours, "ours");
    assert_eq!(
        words(&watch.of(&ours)),
        [("open", Some("before")), ("rename", Some("ours"))]
    );
    rename(&ours, "ours");
    rename(&ours, "again");
    world.end(&ours);
    rename(&ours, "too late");
    assert_eq!(
        words(&watch.of(&ours))[2..],
        [("rename", Some("again")), ("close", None)]
    );

    let theirs = world.start("before", &tenant(1));
    theirs.span().update_name("theirs");
    world.end(&theirs);
    assert_eq!(
        words(&watch.of(&theirs)),
        [("open", Some("before")), ("close", Some("theirs"))]
    );

    let both = world.start("before", &tenant(1));
    rename(&both, "ours");
    both.span().update_name("theirs");
    world.end(&both);
    assert_eq!(
        words(&watch.of(&both))[1..],
        [("rename", Some("ours")), ("close", Some("theirs"))]
    );

    let back = world.start("before", &tenant(1));
    back.span().update_name("in between");
    back.span().update_name("before");
    world.end(&back);
    assert_eq!(words(&watch.of(&back))[1..], [("close", None)]);
    watch.check();
}

/// Scenario: a span that is too young to be told of is renamed; and one after it was told of.
/// Guarantees: the first is told of with the new name, and nothing else; of the second the rename is told, as pending spans not at all.
#[test]
fn collector_is_told_of_a_rename_only_if_it_knows_the_old_name() {
    for form in FORMS {
        let open = OpenWorld::new(form, SOON_OLD);
        let root = open.world.start("before", &tenant(1));
        wait_until("it is told of", || open.opened().len() == 1);
        rename(&root, "after");
        let step = open.world.start("step", &root);
        rename(&step, "renamed step");
        wait_until("both are told of", || open.opened().len() == 2);
        open.world.flush().unwrap();
        soon_flush(&open);
        assert_eq!(open.opened()[1].0, "renamed step");
        let told = open.told();
        let renames: Vec<_> = told.iter().filter(|(state, _)| state == "rename").collect();
        let renamed = match form {
            OpenEvents::Logs => {
                assert_eq!(renames, [&("rename".to_owned(), "after".to_owned())]);
                1
            }
            _ => 0,
        };
        assert_eq!(open.world.stats().open_events.renamed, renamed, "{form}");
        open.world.end(&step);
        open.world.end(&root);
        open.world.flush().unwrap();
        assert_eq!(open.ended(), ["after", "renamed step"]);
    }
}

fn soon_flush(open: &OpenWorld) {
    crate::support::soon(open.processor.handle().flush()).unwrap();
}

/// Scenario: a server's layer around a router, which does not know the route, and one inside of it, which does; the handler hangs.
/// Guarantees: the name with the route is told at once, to the observer and to the collector, while the handler hangs.
#[test]
fn route_that_is_found_inside_of_the_router_is_told_at_once() {
    let watch = Watch::default();
    let (observer, logs, spans) = (watch.clone(), LogRecorder::new(), Recorder::new());
    let telemetry = Telemetry::builder()
        .with_span_exporter(spans.clone())
        .with_log_exporter(logs.clone())
        .with_metric_exporter(MetricRecorder::new())
        .with_config(config(OpenEvents::Logs, SOON_OLD))
        .with_processor(|builder| builder.with_span_observer(observer))
        .build()
        .unwrap();
    let routes = Router::new()
        .route("/orders/{id}", get(pending::<String>))
        .layer(telemetry.server_layer());
    let serving = Serving::hyper(telemetry.server_layer().layer(routes));
    let mut wire = serving.connect();
    wire.get("/orders/4711");
    wait_until("it is told of", || !logs.items().is_empty());
    let (log, _) = logs.log("GET /orders/{id}");
    assert_eq!(state(&log), "open");
    let events: Vec<_> = watch.events();
    assert_eq!(events.len(), 2, "{events:?}");
    assert_eq!(spans.names().len(), 0);
    wire.hang_up();
    wait_until("it has ended", || spans.names() == ["GET /orders/{id}"]);
    watch.check();
    assert_eq!(watch.events().len(), 3);
}
