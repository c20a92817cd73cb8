//! What can happen to a dispatch. Each action is one critical section of the runtimes, whichever thread runs it.

use proptest::prelude::*;

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
    /// The driver takes at most so many queues that are due.
    Tick {
        queues: usize,
    },
    /// In a Worker: the pauses end that requests without exports left are in.
    EndPauses,
    /// The exporter gets the next batch, if a slot is free.
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
        scope: Wanted,
        heard: bool,
    },
    /// The deadline of a flush passes.
    GiveUpFlush {
        flush: Pick,
    },
    Shutdown,
    /// The deadline of the shutdown passes.
    Abandon,
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

pub(super) fn action() -> impl Strategy<Value = Action> {
    let trace = || 1..=TRACES;
    let pick = || 0..16usize;
    prop_oneof![
        30 => (trace(), id()).prop_map(|(trace, id)| Action::StartRoot { trace, id }),
        50 => (parent(), id()).prop_map(|(parent, id)| Action::StartChild { parent, id }),
        70 => (pick(), prop::bool::weighted(0.9))
            .prop_map(|(open, sampled)| Action::End { open, sampled }),
        15 => parent().prop_map(|parent| Action::Hold { parent }),
        15 => pick().prop_map(|hold| Action::Release { hold }),
        30 => prop_oneof![Just(1), Just(2), Just(ALL)].prop_map(|queues| Action::Tick { queues }),
        8 => Just(Action::EndPauses),
        35 => Just(Action::Export),
        30 => (pick(), any::<bool>()).prop_map(|(batch, takes)| Action::Answer { batch, takes }),
        15 => (1..25u64, any::<bool>())
            .prop_map(|(seconds, blocks)| Action::Wait { seconds, blocks }),
        15 => (wanted(), any::<bool>()).prop_map(|(scope, heard)| Action::Flush { scope, heard }),
        3 => pick().prop_map(|flush| Action::GiveUpFlush { flush }),
        1 => Just(Action::Shutdown),
        1 => Just(Action::Abandon),
    ]
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
