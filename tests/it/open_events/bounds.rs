//! Many open events leave together, never too many, and what does not fit is counted and warned about.

use opentelemetry::logs::{LogRecord as _, Logger as _, LoggerProvider as _};
use opentelemetry::trace::{TraceContextExt as _, TraceId};
use opentelemetry::{Context, InstrumentationScope};
use opentelemetry_per_request::DropReason;
use opentelemetry_sdk::logs::{LogProcessor as _, SdkLoggerProvider};

use super::*;
use crate::support::exporter::Scripted;
use crate::support::logs::{self, Line};
use crate::support::{Act, Gate};

const DROPPED: &str = "PerRequestSpanProcessor.OpenEventsDropped";

/// The sizes of the batches that hold something of this tenant, in the order in which they left.
fn sizes(open: &OpenWorld, form: OpenEvents) -> Vec<usize> {
    fn of<T: Clone + Send + Sync + 'static>(recorder: &Scripted<T>) -> Vec<usize> {
        let seen = recorder.seen().into_iter();
        let seen = seen.filter(|seen| seen.at_call == Some(Tenant(1)));
        seen.map(|seen| seen.items.len()).collect()
    }
    match form {
        OpenEvents::Logs => of(&open.logs),
        _ => of(&open.world.exporter),
    }
}

/// Scenario: a hundred spans of a request are old enough while an export of it is under way.
/// Guarantees: they leave in as few batches as may be, none of which has more than `max_batch_size`.
#[test]
fn many_open_events_of_a_request_leave_together_and_never_too_many() {
    for form in FORMS {
        let gate = Gate::default();
        let (open, root) = OpenWorld::held(form, &gate);
        let steps: Vec<_> = (0..100)
            .map(|n| open.world.start(n.to_string(), &root))
            .collect();
        open.wait_for_age();
        gate.open();
        wait_until("all are told of", || open.opened().len() == 101);
        assert_eq!(sizes(&open, form), [1, 64, 36], "{form}");
        steps.iter().for_each(|step| open.world.end(step));
        open.world.end(&root);
        open.world.flush().unwrap();
        assert_eq!(open.ended().len(), 101);
    }
}

/// Scenario: open events are due together with spans that have ended and log records of the application, in small batches.
/// Guarantees: they share batches, none of which is too large, and all arrive.
#[test]
fn open_events_share_batches_with_what_else_leaves() {
    const MAX: usize = 4;
    let open = OpenWorld::built(
        config(OpenEvents::PendingSpans, SOON_OLD).with_max_batch_size(MAX),
        Recorder::new(),
        |builder| builder,
    );
    let root = open.world.start("request", &tenant(1));
    for n in 0..50 {
        let step = open.world.start(n.to_string(), &root);
        open.world.request("short", &step);
        if n % 10 == 0 {
            open.wait_for_age();
        }
        open.world.end(&step);
    }
    open.world.end(&root);
    open.world.flush().unwrap();
    let sizes = sizes(&open, OpenEvents::PendingSpans);
    assert!(sizes.iter().all(|size| *size <= MAX), "{sizes:?}");
    assert_eq!(open.ended().len(), 101);
    assert_eq!(open.account()[2..], [0, 0]);
}

/// The warnings about open events of these traces.
fn warnings(traces: &[TraceId]) -> Vec<Line> {
    let traces: Vec<_> = traces.iter().map(ToString::to_string).collect();
    logs::lines(|line| line.event == DROPPED && traces.iter().any(|t| t == line.field("trace_id")))
}

fn traces(spans: &[Context]) -> Vec<TraceId> {
    let ids = spans.iter().map(|cx| cx.span().span_context().trace_id());
    ids.collect()
}

/// Scenario: an exporter of log records that never answers, and many requests whose spans stay open.
/// Guarantees: half as many open events are pending as log records may be, all others are dropped with one warning, the account
/// adds up, and every span arrives.
#[test]
fn exporter_of_records_that_never_answers_costs_a_constant_number_of_open_events_and_no_span() {
    const SPANS: usize = 300;
    const PENDING: usize = 10;
    logs::listen();
    let gate = Gate::default();
    let open = OpenWorld::with_exporters(
        config(OpenEvents::Logs, SOON_OLD).with_max_pending_logs(2 * PENDING),
        Recorder::new(),
        LogRecorder::always(Act::Hang(gate.clone())),
        |builder| builder,
    );
    let spans: Vec<_> = (0..SPANS)
        .map(|n| open.world.start("request", &tenant(n as u32)))
        .collect();
    wait_until("nothing of them waits", || open.account()[3] == 0);
    let dropped = SPANS - PENDING;
    assert_eq!(open.account(), [PENDING as u64, 0, dropped as u64, 0]);
    let stats = open.world.stats();
    assert_eq!(stats.logs.pending(), PENDING as u64);
    // They were never log records.
    assert_eq!(stats.logs.received, PENDING as u64);
    assert_eq!(stats.logs.dropped.total(), 0);
    let traces = traces(&spans);
    wait_until("it is warned about", || !warnings(&traces).is_empty());

    spans.iter().for_each(|span| open.world.end(span));
    open.world.flush().unwrap();
    assert_eq!(open.ended().len(), SPANS);
    gate.open();
    open.world.provider.shutdown().unwrap();
    drop(open);
    // What was counted since the first one is said in the end.
    wait_until("all are counted in warnings", || {
        let said = warnings(&traces);
        let counts = said.iter().map(|line| line.field("open_events"));
        assert!(said.len() <= 2, "{said:?}");
        assert!(said.iter().all(|line| line.field("reason") == "queue_full"));
        counts.map(|n| n.parse::<usize>().unwrap()).sum::<usize>() == dropped
    });
}

/// Scenario: pending spans, and an exporter of spans that never answers.
/// Guarantees: half as many are pending as spans may be, what is beyond is dropped and counted as open events, and the other half is
/// there for spans that end.
#[test]
fn pending_spans_leave_half_of_the_room_to_spans() {
    const PENDING: u64 = 4;
    let gate = Gate::default();
    let open = OpenWorld::built(
        config(OpenEvents::PendingSpans, SOON_OLD).with_max_pending_spans(2 * PENDING as usize),
        Recorder::always(Act::Hang(gate.clone())),
        |builder| builder,
    );
    let roots = [1, 2, 3].map(|n| open.world.start("request", &tenant(n)));
    open.wait_for_spans_told(3);
    // There is room for a fourth one, and none for a fifth.
    let more = [4, 5].map(|n| open.world.start("request", &tenant(n)));
    wait_until("nothing waits", || open.account()[3] == 0);
    assert_eq!(open.account(), [PENDING, 0, 1, 0]);
    roots.iter().chain(&more).for_each(|cx| open.world.end(cx));
    let stats = open.world.stats();
    assert_eq!(stats.pending(), 2 * PENDING);
    assert_eq!(stats.dropped.by(DropReason::QueueFull), 1);
    gate.open();
    open.world.flush().unwrap_err();
    assert_eq!(open.world.stats().exported, 2 * PENDING);
}

/// Scenario: a request logs so much that full batches of its records are under way all the time, and its root stays open.
/// Guarantees: its open event leaves behind one of them, and does not wait until there is none.
#[test]
fn request_that_is_never_quiet_is_told_of() {
    let gate = Gate::default();
    let config = config(OpenEvents::Logs, SOON_OLD)
        .with_max_batch_size(2)
        .with_max_concurrent_exports(0);
    let hang = gate.clone();
    let open = OpenWorld::with_exporters(
        config,
        Recorder::new(),
        // What tells of spans is taken, and an application's record is under way for ever.
        LogRecorder::by(
            move |logs| match logs.iter().any(|log| state(log) == "open") {
                true => Act::Take,
                false => Act::Hang(hang.clone()),
            },
        ),
        |builder| builder,
    );
    let root = open.world.start("request", &tenant(1));
    open.say_in(&root, "line");
    open.say_in(&root, "line");
    wait_until("a full batch is under way", || {
        open.world.stats().logs.in_flight == 2
    });
    wait_until("it is old enough", || {
        open.say_in(&root, "line");
        open.opened().len() == 1
    });
    gate.open();
    open.world.end(&root);
    open.world.flush().unwrap();
}

impl OpenWorld {
    /// A log record of the application's, in this span.
    fn say_in(&self, cx: &Context, body: &'static str) {
        let logger = SdkLoggerProvider::builder().build().logger("test");
        let mut record = logger.create_log_record();
        record.set_body(body.into());
        let span = cx.span().span_context().clone();
        record.set_trace_context(span.trace_id(), span.span_id(), None);
        self.processor
            .emit(&mut record, &InstrumentationScope::default());
    }

    fn wait_for_spans_told(&self, count: usize) {
        wait_until("so many are told of", || self.opened().len() == count);
    }
}

/// Scenario: more spans are open at once than `max_pending_spans`, in one request and in many, and some end later.
/// Guarantees: what is beyond is counted as dropped and warned about once; where spans have ended there is room for others; all
/// spans are exported.
#[test]
fn spans_beyond_the_bound_are_not_remembered_and_nothing_else_is_lost() {
    const REMEMBERED: usize = 3;
    logs::listen();
    let open = OpenWorld::built(
        config(OpenEvents::Logs, SOON_OLD).with_max_pending_spans(REMEMBERED),
        Recorder::new(),
        |builder| builder,
    );
    let root = open.world.start("root", &tenant(1));
    let steps: Vec<_> = (0..5).map(|_| open.world.start("step", &root)).collect();
    let other = open.world.start("other", &tenant(2));
    assert_eq!(open.account(), [0, 0, 4, 3]);
    wait_until("those that are remembered are told of", || {
        open.opened().len() == REMEMBERED
    });
    let traces = traces(&[root.clone(), other.clone()]);
    wait_until("it is warned about", || warnings(&traces).len() == 1);
    // Of all, those that were not remembered first.
    for step in steps.iter().rev() {
        open.world.end(step);
        open.world.flush().unwrap();
    }
    let again = open.world.start("again", &root);
    wait_until("there is room", || open.opened().len() == REMEMBERED + 1);
    open.world.end(&again);
    open.world.end(&other);
    open.world.end(&root);
    open.world.flush().unwrap();
    assert_eq!(open.ended().len(), 8);
    assert_eq!(open.account(), [4, 0, 4, 0]);
    assert_eq!(warnings(&traces).len(), 1);
}

/// Scenario: open events are to leave as log records, and there is no log processor.
/// Guarantees: that is warned about once, nothing is counted as if it could leave, and spans are exported as ever.
#[test]
fn open_events_without_a_log_processor_are_warned_about_once() {
    const WITHOUT: &str = "PerRequestSpanProcessor.OpenEventsWithoutLogs";
    logs::listen();
    let world = World::new(config(OpenEvents::Logs, Duration::ZERO));
    for n in 0..5 {
        let root = world.start("request", &tenant(n));
        world.request("step", &root);
        world.end(&root);
    }
    world.flush().unwrap();
    let warned = || logs::lines(|line| line.event == WITHOUT).len();
    wait_until("it is warned about", || warned() == 1);
    assert_eq!(world.exporter.names().len(), 10);
    assert_eq!(world.stats().open_events, Default::default());
    world.provider.shutdown().unwrap();
    assert_eq!(warned(), 1);
}

/// Scenario: the exporter of log records fails, panics, or takes too long, whenever open events leave.
/// Guarantees: they are counted as log records that failed, the flush says so, and no span is lost.
#[test]
fn open_events_that_fail_to_export_are_log_records_that_failed() {
    for act in [Act::Fail("no"), Act::Panic, Act::Hang(Gate::default())] {
        let hangs = matches!(act, Act::Hang(_));
        let config = config(OpenEvents::Logs, SOON_OLD);
        let config = match hangs {
            true => config.with_export_timeout(Duration::from_millis(50)),
            false => config,
        };
        let logs = LogRecorder::always(act.clone());
        let open = OpenWorld::with_exporters(config, Recorder::new(), logs, |builder| builder);
        let root = open.world.start("request", &tenant(1));
        wait_until("it has failed", || open.world.stats().logs.failed == 1);
        open.world.end(&root);
        let flush = open.processor.handle().flush();
        let lost = opentelemetry_per_request::FlushError::Lost {
            failed: 1,
            dropped: 0,
        };
        assert_eq!(crate::support::soon(flush), Err(lost), "{act:?}");
        wait_until("the span arrives", || open.ended() == ["request"]);
        assert_eq!(open.account(), [1, 0, 0, 0]);
    }
}
