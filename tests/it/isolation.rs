//! Whatever tenants, clients and threads do, no batch mixes tenants, and none leaves under a token that is not its own.
//!
//! A random sequence of [`Action`]s runs on one to four threads over the real processor and `DirectExporter`, with real
//! HTTP to a receiver that sees the token of each request. Each span carries a number, and the test knows whose it is: a
//! local root belongs to the tenant in whose context it starts, every other span to the request of its parent, whatever
//! else is in the context that it starts in (R1). The product never sees whose it is, but for the token.
//!
//! What arrives in one request is one of two:
//!
//! - Spans of one request of one tenant, unmarked, under a value that its token has had.
//! - Spans that are marked `per_request.late`, under the fallback's token, or none if it has none (R8). These may be several
//!   tenants' spans: the fallback is nobody's.
//!
//! A span *may* be late only where its assignment cannot be proven, which is in these cases ([`Proof::Maybe`]):
//!
//! - Its entry may have been evicted, because the case has more traces than `max_traces` (R7).
//! - Its request may have been over when it started: the last open spans of it were ending on other threads.
//! - Its span id, or that of another span of its request, was given again to a span of another request of the same trace, so
//!   neither request can be told from the other.
//! - Its parent may be late for one of these reasons.
//!
//! It *must* be late if its request was over when it started, if its parent was late, or if nobody knows its parent
//! ([`Proof::No`]). All others must not be ([`Proof::Yes`]).
//!
//! One thing is out of reach, and out of the search: a span id that is given again while a *late* span that has it is open,
//! or one that was refused (R10). Nothing is kept of such a span, so whoever has its id then is taken for it. It takes two equal random numbers of 64 bits
//! among the open spans of one trace, or an id generator that repeats itself.
//!
//! More cases than in a run of all tests: `PROPTEST_CASES=3000 cargo test -p integration-tests --test it isolation`. What
//! once failed is in `isolation.regressions`, and runs first.

mod actions;
mod receiver;
mod world;

use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use actions::{Action, Setup, action, setup};
use world::World;

/// Of each of the two tests: about ten seconds together, on two busy cores.
const CASES: u32 = 250;

fn config() -> ProptestConfig {
    let regressions = concat!(env!("CARGO_MANIFEST_DIR"), "/it/isolation.regressions");
    let cases = std::env::var("PROPTEST_CASES").ok();
    ProptestConfig {
        cases: cases.and_then(|cases| cases.parse().ok()).unwrap_or(CASES),
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(regressions))),
        ..ProptestConfig::default()
    }
}

fn check(setup: &Setup, actions: &[Action]) -> Result<(), TestCaseError> {
    let world = World::new(setup);
    world.run(actions);
    world.finish().map_err(TestCaseError::fail)
}

proptest! {
    #![proptest_config(config())]

    /// Scenario: many tenants; shared, forged and repeated ids; remote parents that name another tenant's live span; spans
    /// that start in mixed contexts and end under foreign ones, late, or by being dropped; evictions, limits, flushes and
    /// refreshed tokens. On one thread, so that what fails can be made small.
    /// Guarantees: what the head of this file says of each request, each span arrives once, and nothing remains.
    #[test]
    fn no_batch_mixes_tenants_or_leaves_under_a_token_that_is_not_its_own(
        setup in setup(1..=1),
        actions in prop::collection::vec(action(), 1..120),
    ) {
        check(&setup, &actions)?;
    }

    /// Scenario: the same, on several threads at once.
    /// Guarantees: the same.
    #[test]
    fn threads_do_not_mix_tenants_either(
        setup in setup(2..=4),
        actions in prop::collection::vec(action(), 1..120),
    ) {
        check(&setup, &actions)?;
    }
}
