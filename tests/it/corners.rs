//! Corners of flush and shutdown, where two things happen at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use opentelemetry::trace::{TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry_per_request::{Config, FlushError, PerRequestSpanProcessor};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};

use crate::support::exporter::Call;
use crate::support::{Act, Gate, Recorder, SOON, World, soon, tenant, wait_until, within};

fn lost(failed: u64) -> Result<(), FlushError> {
    Err(FlushError::Lost { failed, dropped: 0 })
}

/// Scenario: flushes end, but their futures are dropped before anybody polls them.
/// Guarantees: nobody has heard of the loss, so the next flush reports it.
#[test]
fn losses_of_a_flush_that_nobody_read_are_left_for_the_next() {
    let world = World::with_exporter(Config::default(), Recorder::always(Act::Fail("no")));
    let trace = world.request("span", &tenant(1));
    let unread = (
        world.telemetry.flush(),
        world.telemetry.flush_trace(trace),
        world.telemetry.flush(),
    );
    // The third one's answer comes after those of the others.
    let (first, second, third) = unread;
    assert_eq!(soon(third), lost(1));
    drop((first, second));
    assert_eq!(world.flush(), Ok(()), "of everything: the third was read");
    assert_eq!(soon(world.telemetry.flush_trace(trace)), lost(1));
}

/// Scenario: two flushes of one trace have one loss to report. It is read from the first; then there is another loss; then
/// the second is read.
/// Guarantees: a third one reports the other loss.
#[test]
fn concurrent_flushes_of_a_trace_do_not_forget_a_later_loss() {
    let world = World::with_exporter(Config::default(), Recorder::always(Act::Fail("no")));
    let root = world.start("root", &tenant(1));
    let trace = root.span().span_context().trace_id();
    let fail_a_child = |failed| {
        let child = world.start("child", &root);
        world.end(&child);
        wait_until("the failure", || world.stats().failed == failed);
    };
    fail_a_child(1);
    let gates = [Gate::default(), Gate::default()];
    let begun = Arc::new(AtomicUsize::new(0));
    let (script, count) = (gates.clone(), begun.clone());
    world.exporter.set_on_flush(move || {
        if let Some(gate) = script.get(count.fetch_add(1, Ordering::SeqCst)) {
            gate.wait();
        }
        Ok(())
    });
    let first = world.telemetry.flush_trace(trace);
    let second = world.telemetry.flush_trace(trace);
    gates[0].open();
    assert_eq!(soon(first), lost(1));
    wait_until("the second flush", || begun.load(Ordering::SeqCst) == 2);
    fail_a_child(2);
    gates[1].open();
    assert_eq!(soon(second), lost(1));
    assert_eq!(soon(world.telemetry.flush_trace(trace)), lost(1));
}

/// Scenario: a shutdown with much time waits for a batch; another one has little time.
/// Guarantees: the second gives up by itself, and takes nothing from the first.
#[test]
fn second_shutdown_does_not_cut_the_first_one_short() {
    let gate = Gate::default();
    let world = World::with_exporter(
        Config::default().with_max_concurrent_exports(1),
        Recorder::always(Act::Hang(gate.clone())),
    );
    world.request("in flight", &tenant(1));
    wait_until("in flight", || world.exporter.running() == 1);
    world.request("waiting", &tenant(1));
    let first = world.telemetry.shutdown(Duration::from_secs(20));
    let little = Duration::from_millis(50);
    let second = soon(world.telemetry.shutdown(little));
    assert_eq!(second, Err(FlushError::Timeout(little)));
    gate.open();
    assert_eq!(soon(first), Ok(()));
    assert_eq!(world.stats().exported, 2);
}

/// Scenario: a shutdown is under way when another one is asked for.
/// Guarantees: the second is answered when the exporter is shut down, and not before.
#[test]
fn second_shutdown_waits_for_the_first() {
    let gate = Gate::default();
    let world = World::with_exporter(Config::default(), Recorder::always(Act::Hang(gate.clone())));
    world.request("span", &tenant(1));
    wait_until("in flight", || world.exporter.running() == 1);
    drop(world.telemetry.shutdown(SOON));
    let second = world.telemetry.shutdown(SOON);
    assert_eq!(world.exporter.count(Call::Shutdown), 0);
    gate.open();
    assert_eq!(soon(second), Ok(()));
    assert_eq!(world.exporter.count(Call::Shutdown), 1);
}

/// Scenario: the exporter's `force_flush` panics during a shutdown.
/// Guarantees: the shutdown says so, and the exporter's `shutdown` is called all the same.
#[test]
fn exporter_is_shut_down_although_its_force_flush_panics() {
    let world = World::new(Config::default());
    world
        .exporter
        .set_on_flush(|| panic!("force_flush panics, as its test says"));
    let result = soon(world.telemetry.shutdown(SOON));
    assert!(matches!(result, Err(FlushError::Exporter(_))), "{result:?}");
    assert_eq!(world.exporter.count(Call::Shutdown), 1);
}

/// Scenario: an export hangs, and when it is cancelled, its drop blocks.
/// Guarantees: it is accounted for all the same, and the processor can be shut down by its deadline.
#[test]
fn export_whose_drop_blocks_is_accounted_for_at_its_timeout() {
    #[derive(Clone, Debug)]
    struct BlocksWhenDropped(Gate);
    struct Block(Gate);
    impl Drop for Block {
        fn drop(&mut self) {
            self.0.wait();
        }
    }
    impl SpanExporter for BlocksWhenDropped {
        async fn export(&self, _batch: Vec<SpanData>) -> OTelSdkResult {
            let _block = Block(self.0.clone());
            std::future::pending().await
        }
    }
    let gate = Gate::default();
    let processor = PerRequestSpanProcessor::builder(BlocksWhenDropped(gate.clone()))
        .with_config(Config::default().with_export_timeout(Duration::from_millis(50)))
        .build()
        .unwrap();
    let telemetry = processor.handle();
    let provider = SdkTracerProvider::builder()
        .with_span_processor(processor)
        .build();
    provider.tracer("test").in_span("span", |_| {});
    wait_until("the timeout", || telemetry.stats().failed == 1);
    assert_eq!(telemetry.stats().in_flight, 0);
    let shut_down = soon(telemetry.shutdown(SOON));
    gate.open();
    assert_eq!(shut_down, lost(1));
}

/// Scenario: a synchronous flush on a thread that is named like a worker of Tokio's and is none: one that runs a `LocalSet`.
/// Guarantees: nothing panics in the host, and the flush succeeds.
#[test]
fn flush_on_a_thread_that_looks_like_a_worker_does_not_panic() {
    let world = World::new(Config::default());
    world.request("span", &tenant(1));
    let provider = world.provider.clone();
    let flushed = Arc::new(AtomicBool::new(false));
    let noted = flushed.clone();
    within(SOON, "the flush", move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().build().unwrap();
        let handle = runtime.handle().clone();
        let on_a_blocking_thread = runtime.spawn_blocking(move || {
            let local = tokio::task::LocalSet::new();
            handle.block_on(local.run_until(async move { provider.force_flush() }))
        });
        let result = runtime.block_on(on_a_blocking_thread).unwrap();
        noted.store(result.is_ok(), Ordering::SeqCst);
    });
    assert!(flushed.load(Ordering::SeqCst));
}
