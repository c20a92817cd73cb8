//! What is told of a span is told when it is old enough, once, and not if it has ended by then.

use std::time::Duration;

use opentelemetry_per_request::{Config, FlushTrigger};

use super::*;
use crate::support::Gate;

/// Scenario: a request whose spans end right before they are old enough, while its root and spans of others grow older.
/// Guarantees: they are never told of, those that are open are, and the account says so.
#[test]
fn span_that_ends_before_it_is_old_enough_is_elided() {
    for form in FORMS {
        let open = OpenWorld::new(form, SOON_OLD);
        let root = open.world.start("request", &tenant(1));
        let short = open.world.start("short", &root);
        open.world.end(&short);
        let long = open.world.start("long", &root);
        open.wait_for_age();
        let mut opened = open.opened();
        opened.sort();
        let expected = ["long", "request"].map(|name| (name.to_owned(), Some(Tenant(1))));
        assert_eq!(opened, expected, "{form}");
        open.world.end(&long);
        open.world.end(&root);
        open.world.flush().unwrap();
        assert_eq!(open.ended(), ["long", "request", "short"]);
        // And the marker.
        assert_eq!(open.account(), [3, 1, 0, 0]);
    }
}

/// Scenario: spans are old enough while an export of their request is under way, so that nothing of it leaves. Some end then.
/// Guarantees: those are elided, the others are told of when the export is over.
#[test]
fn span_that_ends_while_its_queue_is_held_is_elided() {
    for form in FORMS {
        let gate = Gate::default();
        let (open, root) = OpenWorld::held(form, &gate);
        let early = open.world.start("ends early", &root);
        let late = open.world.start("ends late", &root);
        open.wait_for_age();
        assert_eq!(open.opened().len(), 1, "{form}: R13 holds");
        open.world.end(&early);
        gate.open();
        wait_until("the other one is told of", || open.opened().len() == 2);
        assert_eq!(open.opened()[1], ("ends late".to_owned(), Some(Tenant(1))));
        open.world.end(&late);
        open.world.end(&root);
        open.world.flush().unwrap();
        assert_eq!(open.opened().len(), 2, "{form}");
        assert_eq!(open.ended(), ["ends early", "ends late", "request"]);
        assert_eq!(open.account(), [3, 1, 0, 0]);
    }
}

/// Scenario: spans of one request that open one after the other stay open for long, with both triggers; queues leave in
/// between, and flushes.
/// Guarantees: each is told of once, under its own request's context, and exported once when it ends.
#[test]
fn span_is_told_of_once() {
    for form in FORMS {
        for trigger in [FlushTrigger::NextTick, FlushTrigger::LocalRootEnd] {
            let config = config(form, SOON_OLD).with_flush_trigger(trigger);
            let open = OpenWorld::built(config, Recorder::new(), |builder| builder);
            let root = open.world.start("0", &tenant(1));
            let mut all = vec![root.clone()];
            for n in 1..5 {
                all.push(open.world.start(n.to_string(), &root));
                open.world.request("meanwhile", &root);
                open.wait_for_age();
                open.world.flush().unwrap();
            }
            open.wait_for_age();
            let opened = open.opened();
            let expected: Vec<_> = (0..5).map(|n| (n.to_string(), Some(Tenant(1)))).collect();
            assert_eq!(opened, expected, "{form}, {trigger}");
            all.iter().rev().for_each(|cx| open.world.end(cx));
            open.world.flush().unwrap();
            assert_eq!(open.opened(), expected, "{form}, {trigger}");
            let mut ended = open.ended();
            ended.retain(|name| name != "meanwhile");
            assert_eq!(ended, ["0", "1", "2", "3", "4"]);
            assert_eq!(open.account(), [10, 4, 0, 0]);
        }
    }
}

/// Scenario: a minimum age of nothing.
/// Guarantees: what is open when the driver next looks is told of, and nothing of it is lost.
#[test]
fn minimum_age_of_zero_tells_of_whatever_is_open() {
    for form in FORMS {
        let open = OpenWorld::new(form, Duration::ZERO);
        let root = open.world.start("request", &tenant(1));
        wait_until("the root is told of", || open.opened().len() == 1);
        let child = open.world.start("step", &root);
        wait_until("the child is told of", || open.opened().len() == 2);
        for _ in 0..100 {
            open.world.request("short", &root);
        }
        open.world.end(&child);
        open.world.end(&root);
        open.world.flush().unwrap();
        let [sent, elided, dropped, pending] = open.account();
        assert_eq!((sent + elided, dropped, pending), (102, 0, 0), "{form}");
        assert_eq!(open.ended().len(), 102);
    }
}

/// Scenario: minimum ages for which time does not last, from code and from a lookup.
/// Guarantees: nothing is told, nothing else changes, and the shutdown finds what is open.
#[test]
fn minimum_age_beyond_all_time_tells_of_nothing() {
    let lookup = |name: &str| match name {
        "A365_PER_REQUEST_OPEN_EVENTS" => Some("logs".to_owned()),
        "A365_PER_REQUEST_OPEN_EVENT_MIN_AGE_MS" => Some("99999999999999999999999".to_owned()),
        _ => None,
    };
    for config in [
        config(OpenEvents::Logs, Duration::MAX),
        config(OpenEvents::PendingSpans, Duration::MAX),
        config(OpenEvents::Logs, Duration::from_secs(u64::MAX / 1000)),
        Config::from_lookup(lookup),
    ] {
        let open = OpenWorld::built(config, Recorder::new(), |builder| builder);
        let root = open.world.start("request", &tenant(1));
        for _ in 0..3 {
            open.world.request("step", &root);
            open.world.flush().unwrap();
        }
        assert_eq!(open.opened(), []);
        assert_eq!(open.account(), [0, 3, 0, 1]);
        open.world.provider.shutdown().unwrap();
        assert_eq!(open.account(), [0, 4, 0, 0]);
        assert_eq!(open.world.stats().open_events.unfinished, 1);
        drop(root);
    }
}

/// Scenario: a span with a backdated start.
/// Guarantees: its age is counted from when the processor saw it start, so what it says of itself makes nothing leave early.
#[test]
fn age_is_counted_from_the_call_of_on_start() {
    use opentelemetry::trace::{SpanBuilder, TraceContextExt as _, Tracer as _};
    let open = OpenWorld::new(OpenEvents::Logs, NEVER_OLD);
    let long_ago = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    let builder = SpanBuilder::from_name("request").with_start_time(long_ago);
    let span = open.world.tracer.build_with_context(builder, &tenant(1));
    let cx = tenant(1).with_span(span);
    open.world.request("step", &cx);
    open.world.flush().unwrap();
    assert_eq!(open.opened(), []);
    open.world.end(&cx);
}
