//! What can happen to a dispatch. Each action is one critical section of the runtimes, whichever thread runs it.

use proptest::prelude::*;

use crate::signal::{Signal, Signals};

/// Which of several, counted from the oldest and taken round.
pub(super) type Pick = usize;

#[derive(Clone, Copy, Debug)]
pub(super) enum Action {
    /// A local root: of a trace that is new, live, evicted or over.
    StartRoot {
        trace: u128,
        id: Id,
    },
    /// Of any span that was ever started, live or not, or of one that nobody saw start.
    StartChild {
        parent: Parent,
        id: Id,
    },
    End {
        open: Pick,
        sampled: bool,
    },
    /// Somebody keeps the request open that a span belongs to: a child that is no span.
    Hold {
        parent: Parent,
    },
    /// What was held is let go, whatever has become of its request.
    Release {
        hold: Pick,
    },
    /// A log record is emitted.
    Emit {
        spot: Spot,
    },
    /// There is a reader of metrics from now on.
    Read,
    /// The driver looks whether it is time to collect metrics.
    Collect,
    /// Metrics are collected: so many data points.
    Collected {
        collection: Pick,
        points: u64,
    },
    /// The driver takes at most so many queues of each signal that are due.
    Tick {
        queues: usize,
    },
    /// In a Worker: the pauses end that requests without exports left are in.
    EndPauses,
    /// An exporter gets the next batch, if a slot is free.
    Export,
    /// The exporter answers. A partial success is an error of the exporter's: nobody can tell which spans it took.
    Answer {
        batch: Pick,
        takes: bool,
    },
    /// Time passes, and the driver looks at the deadlines. An exporter that blocks keeps what is overdue, and its slot;
    /// from any other it is taken back.
    Wait {
        seconds: u64,
        blocks: bool,
    },
    /// Somebody flushes. Nobody hears the answer if its future is dropped first.
    Flush {
        signals: Signals,
        scope: Wanted,
        heard: bool,
    },
    /// The deadline of a flush passes.
    GiveUpFlush {
        flush: Pick,
    },
    /// Of one signal. The others go on.
    Shutdown {
        signal: Signal,
    },
    /// The deadline of the shutdown passes.
    Abandon {
        signal: Signal,
    },
}

/// Where a log record is emitted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Spot {
    /// No span is active.
    Outside,
    /// A remote span is, of that trace.
    Remote(u128),
    /// In any span that was ever started, live or not, or in one that nobody saw start.
    In(Parent),
    /// The same where a sampler has left the span out, which may be recorded nevertheless. Such a record has a context of
    /// its own, natively.
    Unrecorded(Parent),
}

/// The id of a new span.
#[derive(Clone, Copy, Debug)]
pub(super) enum Id {
    New,
    /// That of a live span of the same trace: nobody can tell the two apart.
    Of(Pick),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Parent {
    Of(Pick),
    /// In the trace of that span.
    UnknownBeside(Pick),
}

/// What a flush is to cover.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wanted {
    All,
    Trace(u128),
    /// That of this root.
    Request(Pick),
}

/// Their ids are the numbers up to this one.
pub(super) const TRACES: u128 = 5;

/// All queues that are due.
pub(super) const ALL: usize = 64;

/// In groups, because a choice costs more the more there is to choose from.
pub(super) fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        180 => of_spans().boxed(),
        140 => of_exports().boxed(),
        60 => of_logs().boxed(),
        30 => of_metrics().boxed(),
        25 => of_users().boxed(),
    ]
}

fn of_spans() -> impl Strategy<Value = Action> {
    let start_root = (1..=TRACES, id());
    let start_child = (parent(), id());
    let end = (pick(), prop::bool::weighted(0.9));
    prop_oneof![
        7 => end.prop_map(|(open, sampled)| Action::End { open, sampled }),
        5 => start_child.prop_map(|(parent, id)| Action::StartChild { parent, id }),
        3 => start_root.prop_map(|(trace, id)| Action::StartRoot { trace, id }),
        1 => parent().prop_map(|parent| Action::Hold { parent }),
        1 => pick().prop_map(|hold| Action::Release { hold }),
    ]
}

fn of_logs() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => parent().prop_map(Spot::In),
        2 => parent().prop_map(Spot::Unrecorded),
        1 => Just(Spot::Outside),
        1 => (1..=TRACES).prop_map(Spot::Remote),
    ]
    .prop_map(|spot| Action::Emit { spot })
}

fn of_metrics() -> impl Strategy<Value = Action> {
    let collected = (pick(), 0..4u64);
    prop_oneof![
        3 => Just(Action::Collect),
        2 => collected.prop_map(|(collection, points)| Action::Collected { collection, points }),
        1 => Just(Action::Read),
    ]
}

fn of_exports() -> impl Strategy<Value = Action> {
    let queues = prop::sample::select(&[1, 2, ALL][..]);
    let answer = (pick(), any::<bool>());
    let wait = (1..25u64, any::<bool>());
    prop_oneof![
        9 => Just(Action::Export),
        8 => answer.prop_map(|(batch, takes)| Action::Answer { batch, takes }),
        6 => queues.prop_map(|queues| Action::Tick { queues }),
        3 => wait.prop_map(|(seconds, blocks)| Action::Wait { seconds, blocks }),
        2 => Just(Action::EndPauses),
    ]
}

fn of_users() -> impl Strategy<Value = Action> {
    let flush = (signals(), wanted(), any::<bool>());
    prop_oneof![
        16 => flush.prop_map(|(signals, scope, heard)| Action::Flush { signals, scope, heard }),
        3 => pick().prop_map(|flush| Action::GiveUpFlush { flush }),
        2 => signal().prop_map(|signal| Action::Shutdown { signal }),
        2 => signal().prop_map(|signal| Action::Abandon { signal }),
    ]
}

fn pick() -> impl Strategy<Value = Pick> {
    0..16usize
}

fn signal() -> impl Strategy<Value = Signal> {
    prop::sample::select(&Signal::ALL[..])
}

/// Those of one signal's handle, or of everybody's.
fn signals() -> impl Strategy<Value = Signals> {
    prop_oneof![signal().prop_map(Signals::of), Just(Signals::ALL)]
}

fn id() -> impl Strategy<Value = Id> {
    prop_oneof![15 => Just(Id::New), 1 => (0..16usize).prop_map(Id::Of)]
}

fn parent() -> impl Strategy<Value = Parent> {
    let pick = || 0..32usize;
    prop_oneof![
        19 => pick().prop_map(Parent::Of),
        1 => pick().prop_map(Parent::UnknownBeside),
    ]
}

fn wanted() -> impl Strategy<Value = Wanted> {
    prop_oneof![
        Just(Wanted::All),
        (1..=TRACES).prop_map(Wanted::Trace),
        (0..16usize).prop_map(Wanted::Request),
    ]
}
