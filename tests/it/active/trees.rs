//! Whatever tree of children runs, and wherever it is cut off, exactly that tree arrives.
//!
//! Each case is a few requests on one thread, which take turns as the dice fall. A span has work before and after its
//! children, which run in turn or at once, and some are dropped after so many polls. A panic may be among it, which the span
//! around it catches.
//!
//! The oracle is a log that each piece of work writes with its own place in the tree, which it knows from the program and
//! from no context: that it started, that it came to its end, or that it was about to panic. Against that:
//!
//! - each span that started arrives once, under its request's tenant, in its request's trace, and below the span whose work
//!   started it; no other span arrives;
//! - it says that it was cancelled exactly if its work did not come to its end, and that it panicked exactly if it did;
//! - spans of one request end from the inside: no parent before its child;
//! - the active span is the own one whenever work runs, and nothing is active between the polls;
//! - none is late, the account adds up, and no context is left.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context as TaskContext, Poll};

use futures_util::future::join_all;
use opentelemetry_per_request::{active_span, in_child, in_child_sync};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use super::{End, Service, poll_once, yield_now};
use crate::support::{Alive, Tenant, Witness, tenant};

/// About two seconds, unless `PROPTEST_CASES` says otherwise.
const CASES: u32 = 2_000;

/// The work of one span.
#[derive(Clone, Debug)]
struct Node {
    /// How often it lets others go first, before its children and after them.
    yields: (u8, u8),
    children: Vec<Node>,
    /// Whether its children run at once.
    at_once: bool,
    /// After how many polls it is dropped, if it is not done by then.
    dropped_after: Option<u8>,
    end: Last,
}

/// What a span's work does last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Last {
    Returns,
    Sync,
    Panics,
}

fn node() -> impl Strategy<Value = Node> {
    let leaf = Just(Vec::new()).boxed();
    let of = |children: BoxedStrategy<Vec<Node>>| {
        let end =
            prop_oneof![6 => Just(Last::Returns), 2 => Just(Last::Sync), 1 => Just(Last::Panics)];
        let dropped = prop_oneof![2 => Just(None), 1 => (0..6u8).prop_map(Some)];
        ((0..3u8, 0..3u8), children, any::<bool>(), dropped, end).prop_map(
            |(yields, children, at_once, dropped_after, end)| Node {
                yields,
                children,
                at_once,
                dropped_after,
                end,
            },
        )
    };
    of(leaf).prop_recursive(4, 20, 3, move |inner| {
        of(prop::collection::vec(inner, 0..4).boxed())
    })
}

/// What became of each span, by its place: the number of its request, and then those of children.
type Log = Rc<RefCell<BTreeMap<String, End>>>;

/// Drops its work after so many polls.
struct DroppedAfter<'a> {
    work: Option<Work<'a>>,
    polls: u8,
}

type Work<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

impl Future for DroppedAfter<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<()> {
        let Some(left) = self.polls.checked_sub(1) else {
            self.work = None;
            return Poll::Ready(());
        };
        self.polls = left;
        let work = self.work.as_mut().expect("it is done");
        // What panics here is over: the span around it goes on.
        match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(task))) {
            Ok(result) => result,
            Err(_) => Poll::Ready(()),
        }
    }
}

fn run<'a>(node: &'a Node, place: String, log: &'a Log) -> Work<'a> {
    let work: Work<'a> = Box::pin(in_child(place.clone(), body(node, place.clone(), log)));
    // It has started, and what nobody finishes is cancelled.
    log.borrow_mut().insert(place, End::Cancelled);
    Box::pin(DroppedAfter {
        work: Some(work),
        polls: node.dropped_after.unwrap_or(u8::MAX),
    })
}

async fn body(node: &Node, place: String, log: &Log) {
    let own = active_span().span_id();
    let here = || assert_eq!(active_span().span_id(), own, "in {place}");
    for _ in 0..node.yields.0 {
        yield_now().await;
        here();
    }
    let children = node.children.iter().enumerate();
    let children = children.map(|(n, child)| run(child, format!("{place}.{n}"), log));
    match node.at_once {
        true => drop(join_all(children).await),
        false => {
            for child in children {
                child.await;
                here();
            }
        }
    }
    for _ in 0..node.yields.1 {
        yield_now().await;
        here();
    }
    let end = match node.end {
        Last::Panics => End::panicked(),
        Last::Returns | Last::Sync => End::Done,
    };
    if node.end == Last::Sync {
        let sync = format!("{place}.s");
        log.borrow_mut().insert(sync.clone(), End::Done);
        in_child_sync(sync, || assert_ne!(active_span().span_id(), own));
    }
    log.borrow_mut().insert(place.clone(), end);
    if node.end == Last::Panics {
        // No panic hook has to hear of each.
        unwinds();
    }
}

fn unwinds() {
    std::panic::resume_unwind(Box::new("of the tree"));
}

fn parent_of(place: &str) -> Option<&str> {
    place.rsplit_once('.').map(|(parent, _)| parent)
}

fn check(trees: &[Node], turns: &[usize]) -> Result<(), TestCaseError> {
    let service = Service::in_order();
    let log = Log::default();
    let mut contexts: Vec<Alive> = Vec::new();
    let requests = trees.iter().zip(1..).map(|(tree, number)| {
        let (witness, alive) = Witness::new();
        contexts.push(alive);
        let cx = tenant(number).with_value(witness);
        let name = number.to_string();
        log.borrow_mut().insert(name.clone(), End::Cancelled);
        let body = body(tree, name.clone(), &log);
        let work = service.tracer.run(name, &cx, body);
        Some(Box::pin(work))
    });
    let mut requests: Vec<_> = requests.collect();
    for turn in turns {
        let at = turn % requests.len();
        let Some(mut request) = requests[at].take() else {
            continue;
        };
        match catch_unwind(AssertUnwindSafe(|| poll_once(&mut request))) {
            Ok(Poll::Pending) => requests[at] = Some(request),
            // Also what has panicked is over.
            Ok(Poll::Ready(())) | Err(_) => drop(request),
        }
        prop_assert!(!active_span().is_active());
    }
    // What had not turns enough is dropped.
    drop(requests);
    let arrived = service.arrived();
    let log = log.borrow();
    let names: Vec<String> = {
        let mut names: Vec<_> = arrived.order().iter().map(|n| (*n).to_owned()).collect();
        names.sort();
        names
    };
    let mut started: Vec<String> = log.keys().cloned().collect();
    started.sort();
    prop_assert_eq!(names, started);
    for (at, (span, tenant)) in arrived.0.iter().enumerate() {
        let name = span.name.as_ref();
        prop_assert_eq!(&End::of(span), &log[name], "the end of {}", name);
        let number: u32 = name.split('.').next().unwrap().parse().unwrap();
        prop_assert_eq!(*tenant, Some(Tenant(number)));
        let parent = parent_of(name).map(|parent| arrived.span(parent));
        let id = parent.map_or("0".repeat(16), |p| p.span_context.span_id().to_string());
        prop_assert_eq!(
            span.parent_span_id.to_string(),
            id,
            "the parent of {}",
            name
        );
        if let Some(parent) = parent {
            let (own, trace) = (span.span_context.trace_id(), parent.span_context.trace_id());
            prop_assert_eq!(own, trace);
            let before = arrived.order()[..at].contains(&parent.name.as_ref());
            prop_assert!(!before, "{} ends before {}", parent.name, name);
        }
    }
    prop_assert!(contexts.iter().all(|alive| !alive.is_alive()));
    Ok(())
}

fn config() -> ProptestConfig {
    let regressions = concat!(env!("CARGO_MANIFEST_DIR"), "/it/active/trees.regressions");
    let cases = std::env::var("PROPTEST_CASES").ok();
    ProptestConfig {
        cases: cases.and_then(|cases| cases.parse().ok()).unwrap_or(CASES),
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(regressions))),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    /// Scenario: one to three requests take turns, with random trees of children that are done, dropped, or panic.
    /// Guarantees: what the head of this file says.
    #[test]
    fn exactly_the_tree_that_ran_arrives(
        trees in prop::collection::vec(node(), 1..4),
        turns in prop::collection::vec(0..3usize, 0..60),
    ) {
        check(&trees, &turns)?;
    }
}
