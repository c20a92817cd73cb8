//! What can happen. Every number is taken modulo what there is to choose from at that moment.

use std::ops::RangeInclusive;

use opentelemetry_per_request::{Config, FlushTrigger};
use proptest::prelude::*;

pub(super) const TENANTS: usize = 4;

/// Traces that requests of all tenants may share.
pub(super) const SHARED_TRACES: usize = 3;

/// The circumstances of a case.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) threads: usize,
    pub(super) bounds: Bounds,
    pub(super) max_batch_size: usize,
    pub(super) trigger: FlushTrigger,
    /// Whether the fallback has a token of its own.
    pub(super) fallback_has_token: bool,
}

/// Evictions, refusals and repeated ids: each makes some of what happens uncertain, so they take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bounds {
    /// Nothing is evicted or refused, and span ids are repeated within a trace.
    Wide,
    FewTraces(usize),
    FewSpans(usize),
}

/// Where a local root gets its trace from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin {
    New,
    /// The id generator gives it one of the shared traces.
    Generated(usize),
    /// A client sent one of the shared traces, with a parent that nobody knows.
    Remote(usize),
    /// A client sent the ids of a span that is known here.
    Forged(usize),
}

#[derive(Clone, Debug)]
pub(super) enum Action {
    Root {
        tenant: usize,
        origin: Origin,
        /// Give it the span id of this one.
        copy: Option<usize>,
        /// The tenant whose context is current meanwhile.
        current: Option<usize>,
    },
    Child {
        parent: usize,
        /// Start it among the values of this tenant's context.
        foreign: Option<usize>,
        copy: Option<usize>,
        current: Option<usize>,
    },
    /// A span whose parent is local, of a known trace, and unknown.
    Orphan {
        tenant: usize,
        beside: usize,
    },
    End {
        span: usize,
        /// Under the context of this other span.
        under: Option<usize>,
    },
    /// Drops a span and its context, under that of another one.
    Drop {
        span: usize,
        under: Option<usize>,
    },
    Update {
        tenant: usize,
    },
    FlushTrace {
        of: usize,
    },
    Flush,
}

pub(super) fn setup(threads: RangeInclusive<usize>) -> impl Strategy<Value = Setup> {
    let bounds = prop_oneof![
        3 => Just(Bounds::Wide),
        2 => (1..4usize).prop_map(Bounds::FewTraces),
        1 => (2..8usize).prop_map(Bounds::FewSpans),
    ];
    let trigger = prop_oneof![
        Just(FlushTrigger::NextTick),
        Just(FlushTrigger::LocalRootEnd)
    ];
    let settings = (threads, bounds, 1..6usize, trigger, any::<bool>());
    settings.prop_map(
        |(threads, bounds, max_batch_size, trigger, fallback_has_token)| Setup {
            threads,
            bounds,
            max_batch_size,
            trigger,
            fallback_has_token,
        },
    )
}

pub(super) fn action() -> impl Strategy<Value = Action> {
    let tenant = || 0..TENANTS;
    // Counted from the latest one.
    let span = || prop_oneof![0..6usize, 0..60usize];
    let other = || prop::option::of(span());
    let rarely = || prop::option::weighted(0.15, span());
    let current = || prop::option::of(tenant());
    let origin = prop_oneof![
        1 => Just(Origin::New),
        2 => (0..SHARED_TRACES).prop_map(Origin::Generated),
        3 => (0..SHARED_TRACES).prop_map(Origin::Remote),
        3 => span().prop_map(Origin::Forged),
    ];
    let root = (tenant(), origin, rarely(), current());
    let child = (span(), current(), rarely(), current());
    prop_oneof![
        5 => root.prop_map(|(tenant, origin, copy, current)| Action::Root { tenant, origin, copy, current }),
        8 => child.prop_map(|(parent, foreign, copy, current)| Action::Child { parent, foreign, copy, current }),
        1 => (tenant(), span()).prop_map(|(tenant, beside)| Action::Orphan { tenant, beside }),
        8 => (span(), other()).prop_map(|(span, under)| Action::End { span, under }),
        2 => (span(), other()).prop_map(|(span, under)| Action::Drop { span, under }),
        1 => tenant().prop_map(|tenant| Action::Update { tenant }),
        1 => span().prop_map(|of| Action::FlushTrace { of }),
        1 => Just(Action::Flush),
    ]
}

impl Setup {
    pub(super) fn config(&self) -> Config {
        let config = Config::default()
            .with_max_batch_size(self.max_batch_size)
            .with_flush_trigger(self.trigger);
        match self.bounds {
            Bounds::Wide => config,
            Bounds::FewTraces(max) => config.with_max_traces(max),
            Bounds::FewSpans(max) => config.with_max_spans_per_trace(max),
        }
    }
}
