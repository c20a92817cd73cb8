//! What can happen to spans that are to be told of while they are open. Each action is one critical section of a runtime.

use proptest::prelude::*;

use crate::signal::Signal;

/// Which of several, counted from the oldest and taken round.
pub(super) type Pick = usize;

#[derive(Clone, Copy, Debug)]
pub(super) enum Action {
    /// A local root: of a trace that is new, live, evicted or over. One that is live has another one, from a remote parent.
    StartRoot {
        trace: u128,
        start: Start,
    },
    /// Of any span that was ever started, or in its trace of one that nobody saw start.
    StartChild {
        parent: Pick,
        is_known: bool,
        start: Start,
    },
    SetAttribute {
        span: Pick,
    },
    /// Of any span that was ever started. Those who rename by the way of the SDK tell nobody.
    Rename {
        span: Pick,
        is_news: bool,
        is_told: bool,
    },
    /// Of a span that nobody saw start.
    RenameUnknown {
        trace: u128,
    },
    End {
        open: Pick,
    },
    /// A log record is emitted in a span, whether it has ended or not.
    Emit {
        span: Pick,
    },
    /// Log records are exported from now on.
    JoinLogs,
    Pass {
        millis: u64,
    },
    /// The driver, or in a Worker each task whose time has come, looks whether spans are old enough.
    Look,
    /// In a Worker: each task looks whether it is still wanted.
    LookWhetherWanted,
    /// In a Worker: whether there is an event that a new task could belong to.
    KeepAlive(bool),
    /// The driver goes to sleep, if it may.
    Sleep,
    Tick {
        queues: usize,
    },
    EndPauses,
    Export,
    Answer {
        batch: Pick,
        takes: bool,
    },
    Flush {
        trace: Option<u128>,
    },
    Close {
        signal: Signal,
        by_panic: bool,
    },
    /// A thread that tells the observer gets on: an event begins, or is over.
    Tell {
        thread: Pick,
    },
}

/// What a span starts with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start {
    /// Not an id of its own, but that of some live span of its trace.
    pub(super) id_of: Option<Pick>,
    pub(super) is_sampled: bool,
    pub(super) attributes: usize,
}

/// Their ids are the numbers up to this one.
pub(super) const TRACES: u128 = 4;

/// All queues that are due.
pub(super) const ALL: usize = 64;

pub(super) fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        100 => of_spans().boxed(),
        60 => of_time().boxed(),
        50 => of_exports().boxed(),
        40 => pick().prop_map(|thread| Action::Tell { thread }).boxed(),
        4 => of_users().boxed(),
    ]
}

fn of_spans() -> impl Strategy<Value = Action> {
    let root = ((1..=TRACES), start());
    let child = (pick(), prop::bool::weighted(0.9), start());
    let rename = (pick(), prop::bool::weighted(0.8), prop::bool::weighted(0.8));
    prop_oneof![
        5 => root.prop_map(|(trace, start)| Action::StartRoot { trace, start }),
        8 => child.prop_map(|(parent, is_known, start)| Action::StartChild {
            parent,
            is_known,
            start,
        }),
        8 => pick().prop_map(|open| Action::End { open }),
        4 => rename.prop_map(|(span, is_news, is_told)| Action::Rename {
            span,
            is_news,
            is_told,
        }),
        1 => (1..=TRACES).prop_map(|trace| Action::RenameUnknown { trace }),
        2 => pick().prop_map(|span| Action::SetAttribute { span }),
        2 => pick().prop_map(|span| Action::Emit { span }),
    ]
}

fn start() -> impl Strategy<Value = Start> {
    let id_of = prop_oneof![15 => Just(None), 1 => pick().prop_map(Some)];
    let attributes = prop_oneof![9 => 0..3usize, 1 => Just(40)];
    (id_of, prop::bool::weighted(0.9), attributes).prop_map(|(id_of, is_sampled, attributes)| {
        Start {
            id_of,
            is_sampled,
            attributes,
        }
    })
}

fn of_time() -> impl Strategy<Value = Action> {
    let millis = prop_oneof![6 => 0..40u64, 1 => Just(300)];
    prop_oneof![
        4 => millis.prop_map(|millis| Action::Pass { millis }),
        4 => Just(Action::Look),
        1 => Just(Action::LookWhetherWanted),
        1 => prop::bool::weighted(0.8).prop_map(Action::KeepAlive),
        3 => Just(Action::Sleep),
    ]
}

fn of_exports() -> impl Strategy<Value = Action> {
    let queues = prop::sample::select(&[1, ALL][..]);
    let answer = (pick(), any::<bool>());
    prop_oneof![
        4 => queues.prop_map(|queues| Action::Tick { queues }),
        4 => Just(Action::Export),
        3 => answer.prop_map(|(batch, takes)| Action::Answer { batch, takes }),
        1 => Just(Action::EndPauses),
        1 => prop::option::of(1..=TRACES).prop_map(|trace| Action::Flush { trace }),
    ]
}

fn of_users() -> impl Strategy<Value = Action> {
    let signal = prop::sample::select(&Signal::QUEUED[..]);
    let close = (signal, any::<bool>());
    prop_oneof![
        2 => Just(Action::JoinLogs),
        1 => close.prop_map(|(signal, by_panic)| Action::Close { signal, by_panic }),
    ]
}

fn pick() -> impl Strategy<Value = Pick> {
    0..32usize
}
