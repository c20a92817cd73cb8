//! The processor over `DirectExporter`, held to the same table.
//!
//! For each row, a request of two spans under a token of its own: a flush, or a shutdown, is over within the bounds of one
//! export, and says what was lost, if anything was; the numbers of the processor and of the exporter are those of the row,
//! and add up at every moment (R12); the context of the request is gone (R9); no secret is in an error or in any line. After
//! a flush the collector is well, and the next request arrives under its own token; what was lost is not said twice.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use futures_executor::block_on;
use opentelemetry::trace::{TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry_otlp_direct::ExporterHandle;
use opentelemetry_per_request::{
    Config, FlushError, FlushTrigger, Handle, PerRequestSpanProcessor, Stats,
};
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};

use crate::client::Client;
use crate::run::{SECRET, context, each, item_names, last, timed, wait_until};
use crate::server::Server;
use crate::table::{ITEMS, Row, SLACK, table};

/// More than any row takes, so that the exporter's own limits are those that count.
const PATIENT: Duration = Duration::from_secs(100);

/// Scenario: each row; the request is flushed, the collector gets well, and there is another request.
/// Guarantees: see the module.
#[test]
fn flush_tells_the_truth_of_every_fault_and_the_next_request_arrives() {
    each(table(), |row| World::of(row).check_flush(row));
}

/// Scenario: each row; the provider is shut down while the request is on its way.
/// Guarantees: see the module; a second shutdown is over at once.
#[test]
fn shutdown_tells_the_truth_of_every_fault() {
    each(table(), |row| World::of(row).check_shutdown(row));
}

/// A service with one collector.
struct World {
    server: Server,
    provider: SdkTracerProvider,
    processor: Handle,
    exporter: ExporterHandle,
}

/// In the context of a request, to see when that is gone.
struct Witness(#[expect(dead_code, reason = "it is there to be counted")] Arc<()>);

/// Asks all the time whether the account adds up, until it is dropped.
struct Auditor(Arc<AtomicBool>, Option<thread::JoinHandle<()>>);

// ===== impl World =====

impl World {
    fn of(row: &Row) -> Self {
        let server = Server::start(&row.faults, row.is_of_https());
        let client = match row.is_of_https() {
            true => Client::Reqwest,
            false => Client::Default,
        };
        let exporter = client.exporter(row, &server);
        let handle = exporter.handle();
        // The spans of a request leave together, as one export.
        let config = Config::default()
            .with_flush_trigger(FlushTrigger::LocalRootEnd)
            .with_export_timeout(PATIENT);
        let processor = PerRequestSpanProcessor::builder(exporter)
            .with_config(config)
            .build()
            .unwrap();
        Self {
            server,
            processor: processor.handle(),
            exporter: handle,
            provider: SdkTracerProvider::builder()
                .with_sampler(Sampler::AlwaysOn)
                .with_span_processor(processor)
                .build(),
        }
    }

    fn check_flush(&self, row: &Row) {
        let _auditor = Auditor::of(&self.processor);
        let names = item_names(row);
        let context = self.request(1, &names);
        let (result, took) = timed(|| block_on(self.processor.flush()));
        self.check_end(row, result, took, context);

        self.server.heal();
        // Under the first token nothing is sent for a while.
        let number = if row.opens_a_circuit() { 2 } else { 1 };
        let before = self.processor.stats();
        let context = self.request(number, &names);
        block_on(self.processor.flush()).unwrap();
        wait_until("the context is gone", || context.strong_count() == 0);
        let request = last(&self.server);
        assert_eq!(request.names, names);
        let authorization = format!("Bearer {SECRET}-{number}");
        assert_eq!(request.authorization, Some(authorization));
        let after = self.processor.stats();
        assert_eq!(after.exported, before.exported + ITEMS);
        assert_eq!((after.failed, after.pending()), (before.failed, 0));
        self.provider.shutdown().unwrap();
    }

    fn check_shutdown(&self, row: &Row) {
        let _auditor = Auditor::of(&self.processor);
        let context = self.request(1, &item_names(row));
        let (result, took) = timed(|| block_on(self.processor.shutdown(PATIENT)));
        self.check_end(row, result, took, context);
        let (_, took) = timed(|| self.provider.shutdown());
        assert!(took < SLACK, "{took:?}");
    }

    /// Two spans under the token of this number. Returns what sees whether the context is alive.
    fn request(&self, number: u32, names: &[String]) -> Weak<()> {
        let content = Arc::new(());
        let alive = Arc::downgrade(&content);
        let cx = context(number).with_value(Witness(content));
        let tracer = self.provider.tracer("faults");
        let [child, root] = names else { unreachable!() };
        let root = cx.with_span(tracer.start_with_context(root.clone(), &cx));
        let child = root.with_span(tracer.start_with_context(child.clone(), &root));
        child.span().end();
        root.span().end();
        alive
    }

    /// What holds after the first request.
    fn check_end(
        &self,
        row: &Row,
        result: Result<(), FlushError>,
        took: Duration,
        context: Weak<()>,
    ) {
        row.check_time(took);
        row.check_account(&self.exporter.stats());
        row.check_server(&self.server);
        row.check_logs(&self.server.endpoint());
        wait_until("the context is gone", || context.strong_count() == 0);

        // The processor knows batches only: one that lost a span is lost.
        let failed = row.reason().map_or(0, |_| ITEMS);
        let expected = match failed {
            0 => Ok(()),
            failed => Err(FlushError::Lost { failed, dropped: 0 }),
        };
        assert_eq!(result, expected);
        let nothing = Stats::default();
        let stats = self.processor.stats();
        assert_eq!((stats.ended, stats.exports), (ITEMS, 1), "{stats:?}");
        assert_eq!(
            (stats.exported, stats.failed),
            (ITEMS - failed, failed),
            "{stats:?}"
        );
        assert_eq!(
            (stats.dropped, stats.late, stats.pending(), stats.traces),
            (nothing.dropped, nothing.late, 0, 0),
            "{stats:?}"
        );
    }
}

// ===== impl Auditor =====

impl Auditor {
    fn of(processor: &Handle) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let (processor, until) = (processor.clone(), Arc::clone(&done));
        let audit = thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                let stats = processor.stats();
                assert!(stats.is_balanced(), "{stats:?}");
                thread::sleep(Duration::from_micros(200));
            }
        });
        Self(done, Some(audit))
    }
}

impl Drop for Auditor {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        let audit = self.1.take().map(thread::JoinHandle::join);
        if !thread::panicking() {
            audit.unwrap().unwrap();
        }
    }
}
