//! Many requests at once on one thread.

use std::pin::Pin;

use futures_util::future::join_all;
use futures_util::task::LocalSpawnExt as _;
use opentelemetry_per_request::{Config, active_span, in_child, in_child_sync};

use super::{Arrived, Service, yield_now};
use crate::support::{Alive, Tenant, Witness, World, current_tenant, tenant};

const REQUESTS: u32 = 1_000;
const DEPTH: usize = 3;

/// Numbers that look random, the same in each run.
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn of(seed: u64) -> Self {
        let mut dice = Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        dice.below(1);
        dice
    }

    fn below(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }
}

type Work<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Lets others go first, some times, and sees to it that nothing has changed then.
async fn wander(dice: &mut Dice, number: u32) {
    let before = active_span().span_context();
    for _ in 0..dice.below(4) {
        yield_now().await;
        assert_eq!(current_tenant(), Some(Tenant(number)));
        assert_eq!(active_span().span_context(), before);
    }
}

/// The work of the span that has this name: children in turn, at once, and not asynchronous. Theirs are longer names.
fn level<'a>(name: String, number: u32, mut dice: Dice) -> Work<'a> {
    Box::pin(async move {
        if name.matches('.').count() == DEPTH {
            return wander(&mut dice, number).await;
        }
        wander(&mut dice, number).await;
        let siblings = (0..dice.below(3)).map(|n| {
            let name = format!("{name}.{n}");
            let dice = Dice::of(dice.0 + n);
            in_child(name.clone(), level(name, number, dice))
        });
        join_all(siblings.collect::<Vec<_>>()).await;
        wander(&mut dice, number).await;
        let name = format!("{name}.last");
        in_child(name.clone(), level(name.clone(), number, Dice::of(dice.0))).await;
        in_child_sync(format!("{name}.sync"), || {});
    })
}

/// Each span is below its own parent, in the trace and under the tenant of its request.
fn check(service: &Service, contexts: &[Alive]) {
    let arrived = service.arrived();
    let mut ids = std::collections::HashMap::new();
    for (span, _) in &arrived.0 {
        assert!(
            ids.insert(span.name.to_string(), &span.span_context)
                .is_none()
        );
    }
    for (span, tenant) in &arrived.0 {
        let number = span.name.split('.').next().unwrap();
        assert_eq!(tenant.unwrap().0.to_string(), number);
        let root = ids[number];
        assert_eq!(
            span.span_context.trace_id(),
            root.trace_id(),
            "{}",
            span.name
        );
        // What is not asynchronous starts after the last one, in the span around it.
        let name = span.name.trim_end_matches(".last.sync");
        let parent = match name == span.name {
            true => name.rsplit_once('.').map(|(parent, _)| parent),
            false => Some(name),
        };
        let parent = parent.map_or("0000000000000000".into(), |p| ids[p].span_id().to_string());
        assert_eq!(span.parent_span_id.to_string(), parent, "{}", span.name);
    }
    distinct(&arrived);
    let left = contexts.iter().filter(|alive| alive.is_alive()).count();
    assert_eq!(left, 0, "contexts left");
    assert_eq!(service.world.stats().evicted_traces, 0);
}

fn distinct(arrived: &Arrived) {
    let traces = arrived
        .0
        .iter()
        .map(|(span, _)| span.span_context.trace_id());
    let traces: std::collections::HashSet<_> = traces.collect();
    assert_eq!(traces.len(), REQUESTS as usize);
    assert!(
        arrived.0.len() > 5 * REQUESTS as usize,
        "{}",
        arrived.0.len()
    );
}

fn requests(service: &Service) -> (Vec<Work<'static>>, Vec<Alive>) {
    (1..=REQUESTS)
        .map(|number| {
            let (witness, alive) = Witness::new();
            let cx = tenant(number).with_value(witness);
            let work = level(number.to_string(), number, Dice::of(u64::from(number)));
            let request: Work = Box::pin(service.tracer.run(number.to_string(), &cx, work));
            (request, alive)
        })
        .unzip()
}

fn service() -> Service {
    Service::of(World::new(
        Config::default().with_max_pending_spans(100_000),
    ))
}

/// Scenario: a thousand requests, all open at once, on one thread of tokio. Each has several levels of children, siblings
/// at once, and lets others go first now and then; each has a tenant of its own.
/// Guarantees: each span is below its own parent, in its own trace, under its own tenant; none is late, the account adds
/// up, and no context is left.
#[test]
fn thousand_requests_take_turns_on_a_thread_of_tokio() {
    let service = service();
    let (requests, contexts) = requests(&service);
    super::block_on(async {
        let local = tokio::task::LocalSet::new();
        for request in requests {
            local.spawn_local(request);
        }
        local.await;
    });
    check(&service, &contexts);
}

/// Scenario: the same, in a pool that belongs to no runtime.
/// Guarantees: the same.
#[test]
fn thousand_requests_take_turns_in_a_local_pool() {
    let service = service();
    let (requests, contexts) = requests(&service);
    let mut pool = futures_executor::LocalPool::new();
    for request in requests {
        pool.spawner().spawn_local(request).unwrap();
    }
    pool.run();
    check(&service, &contexts);
}
