//! Waiting synchronously, and calls into an exporter that blocks its thread: where one could get in another's way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::trace::TraceContextExt as _;
use opentelemetry_otlp::{WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_per_request::{Config, FlushError, PerRequestSpanProcessor};
use opentelemetry_sdk::trace::SdkTracerProvider;

use crate::support::collector::Collector;
use crate::support::logs;
use crate::support::{
    Act, Gate, Recorder, SOON, World, balanced, caught, held_back, some_trace, soon, tenant,
    wait_until, within,
};

/// Scenario: an export blocks its thread, and right after it began another trace, of which there is nothing, is flushed.
/// Guarantees: that flush is answered soon, at whatever moment it comes.
#[test]
fn flush_is_answered_while_an_export_has_just_blocked_its_thread() {
    for round in 0..30 {
        let gate = Gate::default();
        let world = World::with_exporter(
            Config::default(),
            Recorder::always(Act::Block(gate.clone())),
        );
        world.request("blocks", &tenant(1));
        while world.exporter.entered() == 0 {
            std::hint::spin_loop();
        }
        let flush = world.telemetry.flush_trace(some_trace());
        let answer = caught(|| soon(flush));
        gate.open();
        assert_eq!(answer, Some(Ok(())), "round {round}");
        balanced(&world.telemetry);
    }
}

/// Scenario: one request's export is pending, another's blocks its thread, and then the first could go on.
/// Guarantees: it does, while the other still blocks.
#[test]
fn pending_export_goes_on_while_another_one_blocks_its_thread() {
    let (pending, blocking) = (Gate::default(), Gate::default());
    let (hang, block) = (pending.clone(), blocking.clone());
    let world = World::with_exporter(
        Config::default(),
        Recorder::by(move |spans| match spans[0].name.as_ref() {
            "pending" => Act::Hang(hang.clone()),
            _ => Act::YieldAndBlock(block.clone()),
        }),
    );
    let trace = world.request("pending", &tenant(1));
    wait_until("the pending export", || world.exporter.running() == 1);
    world.request("blocking", &tenant(2));
    wait_until("the blocking export", || world.exporter.running() == 2);
    let flush = world.telemetry.flush_trace(trace);
    pending.open();
    let answer = caught(|| soon(flush));
    blocking.open();
    assert_eq!(
        answer,
        Some(Ok(())),
        "the pending export was held up by the blocking one"
    );
}

/// Scenario: an exporter has been quick so far. Then ten requests leave at once, and the export of one of them blocks.
/// Guarantees: the nine others are exported and accounted for while it blocks: they wait neither behind it nor with it.
#[test]
fn quick_exporter_that_blocks_once_holds_up_no_other_request() {
    for round in 0..5 {
        let gate = Gate::default();
        let block = gate.clone();
        let world = World::with_exporter(
            held_back(),
            Recorder::by(move |spans| match spans[0].name.as_ref() {
                "blocks" => Act::Block(block.clone()),
                _ => Act::Take,
            }),
        );
        for _ in 0..20 {
            world.request("quick", &tenant(1));
            world.flush().unwrap();
        }
        let roots: Vec<_> = (0..10).map(|_| world.start("root", &tenant(1))).collect();
        for (n, root) in roots.iter().enumerate() {
            let child = world.start(if n == 4 { "blocks" } else { "fine" }, root);
            world.end(&child);
        }
        // All ten queues become batches at once.
        let flush = world.telemetry.flush();
        wait_until("the export that blocks", || {
            world.exporter.names().contains(&"blocks".to_owned())
        });
        let others = caught(|| {
            wait_until("the nine others", || world.stats().exported == 29);
        });
        let stats = world.stats();
        gate.open();
        assert!(
            others.is_some(),
            "round {round}: held up behind the one that blocks: {stats:?}"
        );
        assert_eq!(soon(flush), Ok(()));
    }
}

/// Scenario: an exporter's `force_flush` waits, on its thread, for the exports under way; one of another trace is.
/// Guarantees: that export goes on, so that the wait can end.
#[test]
fn export_goes_on_while_the_exporters_force_flush_waits_for_it() {
    let (pending, flushing) = (Gate::default(), Arc::new(AtomicBool::new(false)));
    let hang = pending.clone();
    let world = World::with_exporter(
        Config::default(),
        Recorder::by(move |_| Act::Hang(hang.clone())),
    );
    let (exporter, begun) = (world.exporter.clone(), flushing.clone());
    let given_up = Arc::new(AtomicBool::new(false));
    let stop = given_up.clone();
    world.exporter.set_on_flush(move || {
        begun.store(true, Ordering::SeqCst);
        while exporter.running() > 0 && !stop.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        Ok(())
    });
    world.request("pending", &tenant(1));
    wait_until("the export", || world.exporter.running() == 1);
    let flush = world.telemetry.flush_trace(some_trace());
    wait_until("the exporter's flush", || flushing.load(Ordering::SeqCst));
    pending.open();
    let answer = caught(|| soon(flush));
    given_up.store(true, Ordering::SeqCst);
    assert_eq!(
        answer,
        Some(Ok(())),
        "the export was held up by the exporter's own flush"
    );
}

/// Scenario: an exporter's `force_flush` never returns; several flushes run into their deadlines; then a request ends.
/// Guarantees: it is exported: calls that are not exports take no place of those that are.
#[test]
fn exporter_whose_force_flush_never_returns_does_not_stop_exports() {
    let gate = Gate::default();
    let world = World::new(Config::default().with_max_concurrent_exports(1));
    let block = gate.clone();
    world.exporter.set_on_flush(move || {
        block.wait();
        Ok(())
    });
    for _ in 0..5 {
        let timeout = Duration::from_millis(50);
        let result = soon(world.telemetry.flush_with_timeout(timeout));
        assert_eq!(result, Err(FlushError::Timeout(timeout)));
    }
    world.request("span", &tenant(1));
    let exported = caught(|| {
        wait_until("the export", || world.stats().exported == 1);
    });
    gate.open();
    assert!(exported.is_some(), "no export while force_flush hangs");
}

/// Scenario: inside an export, the exporter flushes and shuts down the provider it exports for, synchronously.
/// Guarantees: the calls fail at once, saying that they come from inside an export; the export itself is not disturbed.
#[test]
fn flush_from_inside_an_export_fails_fast() {
    let world = World::new(Config::default());
    let provider = world.provider.clone();
    let errors = Arc::new(std::sync::Mutex::new(Vec::new()));
    let noted = errors.clone();
    world.exporter.set_inside(move |_| {
        noted
            .lock()
            .unwrap()
            .push(provider.force_flush().unwrap_err().to_string());
    });
    world.request("span", &tenant(1));
    wait_until("the export", || world.stats().exported == 1);
    let errors = errors.lock().unwrap().clone();
    assert!(
        errors.len() == 1 && errors[0].contains("inside an export"),
        "{errors:?}"
    );
    // The hook owns the provider: let go of it.
    world.exporter.set_inside(|_| {});
}

/// What one slow export does to a synchronous wait of a caller in a runtime.
fn shut_down_with_a_slow_collector(
    what: &str,
    runtime: tokio::runtime::Runtime,
    inside_a_task: bool,
    with_own_runtime: bool,
) {
    let collector = Collector::slow_http(Duration::from_millis(1800));
    let url = collector.traces_url();
    let make = move || {
        opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(reqwest::Client::new())
            .with_endpoint(url)
            .build()
            .map_err(std::io::Error::other)
    };
    let work = move || {
        let builder = match with_own_runtime {
            true => PerRequestSpanProcessor::builder_with(make).unwrap(),
            false => PerRequestSpanProcessor::builder(make().unwrap()),
        };
        let processor = builder.with_config(Config::default()).build().unwrap();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .build();
        let tracer = opentelemetry::trace::TracerProvider::tracer(&provider, "slow");
        opentelemetry::trace::Tracer::in_span(&tracer, "span", |_| {});
        provider.shutdown()
    };
    let result = within(SOON, what, move || match inside_a_task {
        true => runtime.block_on(async { tokio::spawn(async move { work() }).await.unwrap() }),
        false => runtime.block_on(async { work() }),
    });
    assert!(result.is_ok(), "{what}: {result:?}");
    assert_eq!(collector.names(), ["span"], "{what}");
}

/// Scenario: a task of a runtime with several threads shuts the provider down; the collector takes 1.8 s to answer.
/// Guarantees: that runtime is not blocked, so the shutdown waits, and succeeds.
#[test]
fn slow_collector_is_waited_for_in_a_runtime_with_several_threads() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .unwrap();
    shut_down_with_a_slow_collector("multi_thread(4), inside a task", runtime, true, false);
}

/// Scenario: the same from the only thread of a runtime, with an exporter that was made by `builder_with`.
/// Guarantees: the exporter needs nothing of the caller's runtime, so the shutdown waits, and succeeds.
#[test]
fn slow_collector_is_waited_for_where_the_exporter_needs_no_runtime_of_the_callers() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    shut_down_with_a_slow_collector("current_thread, builder_with", runtime, false, true);
}

/// Scenario: a call that gave up because it blocked the only thread of its runtime, and then the export fails.
/// Guarantees: the loss is reported by the next flush.
#[test]
fn losses_are_not_forgotten_by_a_force_flush_that_gave_up() {
    let gate = Gate::default();
    let world = World::with_exporter(
        Config::default(),
        Recorder::always(Act::HangAndFail(gate.clone())),
    );
    world.request("span", &tenant(1));
    let provider = world.provider.clone();
    let error = within(SOON, "force_flush", move || {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(async { provider.force_flush().unwrap_err().to_string() })
    });
    assert!(error.contains("flush().await"), "{error}");
    gate.open();
    wait_until("the failure", || world.stats().failed == 1);
    assert_eq!(
        world.flush(),
        Err(FlushError::Lost {
            failed: 1,
            dropped: 0
        })
    );
}

/// Scenario: a log subscriber of the user's blocks the thread that writes a warning, and the exporter does not answer.
/// Guarantees: a synchronous shutdown still returns by its deadline.
#[test]
fn deadline_is_honoured_while_a_log_subscriber_blocks() {
    logs::listen();
    let (gate, logging) = (Gate::default(), Gate::default());
    let world = World::with_exporter(
        Config::default().with_max_traces(1),
        Recorder::always(Act::Hang(gate.clone())),
    );
    let old = world.start("old", &tenant(1));
    let _new = world.start("new", &tenant(2));
    let (blocked, block) = (Arc::new(AtomicBool::new(false)), logging.clone());
    let begun = blocked.clone();
    logs::inside_next_line(old.span().span_context().trace_id(), move || {
        begun.store(true, Ordering::SeqCst);
        block.wait();
    });
    world.end(&old);
    wait_until("the line", || blocked.load(Ordering::SeqCst));
    let provider = world.provider.clone();
    let result = caught(|| {
        within(SOON, "shutdown", move || {
            provider.shutdown_with_timeout(Duration::from_millis(200))
        })
    });
    logging.open();
    gate.open();
    assert!(result.expect("returns by its deadline").is_err());
}
