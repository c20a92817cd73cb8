//! A request that is evicted: what was not told of its open spans leaves with it, under its own context.

use opentelemetry::trace::TraceContextExt as _;
use opentelemetry_per_request::LateReason;

use super::*;
use crate::support::exporter::late_mark;
use crate::support::{FALLBACK, some_trace};

/// Scenario: a request has one span that was told of, and two that are too young, when another trace takes its place.
/// Guarantees: the young ones are told of at once, under the request's own context, and the other one not again; they end late,
/// under the fallback context, as ever.
#[test]
fn what_was_not_told_of_an_evicted_request_leaves_under_its_own_context() {
    for form in FORMS {
        let open = OpenWorld::built(
            config(form, SOON_OLD).with_max_traces(2),
            Recorder::new(),
            |builder| builder,
        );
        let root = open.world.start("request", &tenant(1));
        wait_until("the root is told of", || open.opened().len() == 1);
        let steps = ["first", "second"].map(|name| open.world.start(name, &root));
        // The least recently used one goes.
        let others = [2, 3].map(|n| open.world.start("other", &tenant(n)));
        wait_until("all are told of", || {
            let opened = open.opened();
            opened
                .iter()
                .filter(|(_, of)| *of == Some(Tenant(1)))
                .count()
                == 3
        });
        assert_eq!(open.world.stats().evicted_traces, 1);
        for cx in [&steps[0], &steps[1], &root] {
            open.world.end(cx);
        }
        drop(others);
        open.world.flush().unwrap();
        let of_request = |name: &str| {
            let mut opened = open.opened();
            opened.retain(|(opened, _)| opened == name);
            opened
        };
        for name in ["request", "first", "second"] {
            let once = [(name.to_owned(), Some(Tenant(1)))];
            assert_eq!(of_request(name), once, "{form}");
            let spans = open.world.exporter.spans().into_iter();
            let mut real = spans.filter(|(span, _)| span.name == name && !is_pending(span));
            let (span, seen) = real.next().unwrap();
            assert_eq!(seen, Some(FALLBACK), "{form}");
            assert_eq!(late_mark(&span).as_deref(), Some("trace_evicted"));
            assert!(real.next().is_none());
        }
        assert_eq!(open.world.stats().late.by(LateReason::TraceEvicted), 3);
        let [_, _, dropped, pending] = open.account();
        assert_eq!((dropped, pending), (0, 0));
    }
}

/// Scenario: a request with very many spans that are too young is evicted.
/// Guarantees: all of them are told of, in batches that are not too large.
#[test]
fn evicted_request_with_many_open_spans_leaves_in_batches() {
    for form in FORMS {
        let open = OpenWorld::built(
            config(form, NEVER_OLD).with_max_traces(1),
            Recorder::new(),
            |builder| builder,
        );
        let root = open.world.start("request", &tenant(1));
        let steps: Vec<_> = (0..200).map(|_| open.world.start("step", &root)).collect();
        let other = open.world.start("other", &tenant(2));
        wait_until("all are told of", || open.opened().len() == 201);
        let sizes: Vec<_> = match form {
            OpenEvents::Logs => open.logs.seen().iter().map(|s| s.items.len()).collect(),
            _ => {
                let seen = open.world.exporter.seen();
                seen.iter().map(|seen| seen.items.len()).collect()
            }
        };
        assert!(sizes.iter().all(|size| *size <= 64), "{form}: {sizes:?}");
        for cx in steps.iter().chain([&root, &other]) {
            open.world.end(cx);
        }
        open.world.flush().unwrap();
        assert_eq!(open.account(), [201, 1, 0, 0], "{form}");
        assert_eq!(open.ended().len(), 202);
    }
}

/// Scenario: a request is evicted whose queue holds spans that have ended and waits for an export, and whose trace id another
/// live request has.
/// Guarantees: everything of each leaves under its own context.
#[test]
fn requests_of_one_trace_that_are_evicted_together_keep_their_contexts() {
    for form in FORMS {
        let open = OpenWorld::built(
            config(form, NEVER_OLD)
                .with_max_traces(1)
                .with_flush_trigger(opentelemetry_per_request::FlushTrigger::LocalRootEnd),
            Recorder::new(),
            |builder| builder,
        );
        let trace = some_trace();
        let roots = [1, 2].map(|n| open.world.continued(&format!("root {n}"), n, trace));
        for (n, root) in roots.iter().enumerate() {
            open.world.request(format!("step {}", n + 1), root);
        }
        let other = open.world.start("other", &tenant(3));
        wait_until("both are told of", || open.opened().len() == 2);
        wait_until("what had ended has left", || open.ended().len() == 2);
        for (name, seen) in open.opened() {
            let number = name.strip_prefix("root ").unwrap().parse().unwrap();
            assert_eq!(seen, Some(Tenant(number)), "{form}");
        }
        for n in [1, 2] {
            let (_, seen) = open.world.exporter.span(&format!("step {n}"));
            assert_eq!(seen, Some(Tenant(n)), "{form}");
        }
        let ids: Vec<_> = roots
            .iter()
            .map(|cx| cx.span().span_context().span_id())
            .collect();
        assert_ne!(ids[0], ids[1]);
        drop((roots, other));
    }
}
