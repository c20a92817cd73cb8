//! The processor over `DirectExporter`, held to the same table.
//!
//! For each row, a request of two spans, or of two log records, under a token of its own, or two points of a metric under the
//! service's: a flush, or a shutdown, is over within the bounds of one export, and says what was lost, if anything was; the
//! numbers of the processor and of the exporter are those of the row, and add up at every moment (R12); the context of the
//! request is gone (R9); no secret is in an error or in any line. After a flush the collector is well, and the next request
//! arrives under its own token; what was lost is not said twice.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use futures_executor::block_on;
use opentelemetry::logs::{LogRecord as _, Logger as _, LoggerProvider as _};
use opentelemetry::metrics::{Gauge, MeterProvider as _};
use opentelemetry::trace::{TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp_direct::{DirectExporter, ExportToken, ExporterHandle, Signal};
use opentelemetry_per_request::{
    Config, FlushError, FlushTrigger, Handle, PerRequestSpanProcessor, SignalStats,
};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, SpanData, SpanExporter};

use crate::client::Client;
use crate::run::{SECRET, context, each, item_names, last, timed, token, wait_until};
use crate::server::Server;
use crate::table::{Ends, ITEMS, Row, SLACK, table};

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

/// Scenario: as for spans, for log records and for metrics: each row of http, but those of gigabytes and of waits.
/// Guarantees: the same, in the words of the signal.
#[test]
fn flush_tells_the_truth_of_every_signal_and_the_next_arrives() {
    let rows = rows_of_others();
    each(rows, |row| World::of(row).check_flush(row));
}

/// Scenario: the same with a shutdown.
/// Guarantees: the same.
#[test]
fn shutdown_tells_the_truth_of_every_signal() {
    let rows = rows_of_others();
    each(rows, |row| World::of(row).check_shutdown(row));
}

/// The rows for the signals that are not spans. How a client meets TLS and gigabytes, and what the exporter waits for, is
/// shown with those.
fn rows_of_others() -> Vec<Row> {
    let mut rows = table();
    let waits = |row: &Row| matches!(row.ends, Ends::After(_));
    rows.retain(|row| Client::Default.can(row) && !row.is_large() && !waits(row));
    let of = |signal| rows.iter().map(move |row| row.clone().of(signal));
    of(Signal::Logs).chain(of(Signal::Metrics)).collect()
}

/// A service with one collector.
struct World {
    server: Server,
    signal: Signal,
    /// Of the signal.
    handle: Handle,
    exporter: ExporterHandle,
    tracers: SdkTracerProvider,
    loggers: SdkLoggerProvider,
    meters: SdkMeterProvider,
    /// Cumulative, so that each flush has all of its points.
    gauge: Gauge<u64>,
    /// Of the fallback context, which metrics leave under.
    service: ExportToken,
}

/// Where spans go when others are looked at.
#[derive(Debug)]
struct Nowhere;

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
        match row.signal {
            Signal::Traces => Self::start(row, server, handle, exporter, None),
            _ => Self::start(row, server, handle, Nowhere, Some(exporter)),
        }
    }

    fn start(
        row: &Row,
        server: Server,
        exporter: ExporterHandle,
        of_spans: impl SpanExporter + 'static,
        of_others: Option<DirectExporter>,
    ) -> Self {
        // What a request has leaves together, as one export, and metrics when they are flushed.
        let config = Config::default()
            .with_flush_trigger(FlushTrigger::LocalRootEnd)
            .with_metric_period(None)
            .with_export_timeout(PATIENT);
        let service = token(1);
        let spans = PerRequestSpanProcessor::builder(of_spans)
            .with_config(config)
            .with_fallback_context(service.attach_to(&Context::new()))
            .build()
            .unwrap();
        let mut handle = spans.handle();
        let mut loggers = SdkLoggerProvider::builder();
        let mut meters = SdkMeterProvider::builder();
        match (row.signal, of_others) {
            (Signal::Logs, Some(exporter)) => {
                let logs = spans.log_processor(exporter).unwrap();
                handle = logs.handle();
                loggers = loggers.with_log_processor(logs);
            }
            (_, Some(exporter)) => {
                let reader = spans.metric_reader(exporter).unwrap();
                handle = reader.handle();
                meters = meters.with_reader(reader);
            }
            (_, None) => {}
        }
        let meters = meters.build();
        Self {
            server,
            signal: row.signal,
            handle,
            exporter,
            tracers: SdkTracerProvider::builder()
                .with_sampler(Sampler::AlwaysOn)
                .with_span_processor(spans)
                .build(),
            loggers: loggers.build(),
            gauge: meters.meter("faults").u64_gauge("gauge").build(),
            meters,
            service,
        }
    }

    fn check_flush(&self, row: &Row) {
        let _auditor = Auditor::of(&self.handle);
        let names = item_names(row);
        let context = self.request(1, &names);
        let (result, took) = timed(|| block_on(self.handle.flush()));
        self.check_end(row, result, took, context);

        self.server.heal();
        // Under the first token nothing is sent for a while.
        let number = if row.opens_a_circuit() { 2 } else { 1 };
        let before = self.stats();
        let context = self.request(number, &names);
        block_on(self.handle.flush()).unwrap();
        wait_until("the context is gone", || context.strong_count() == 0);
        let request = last(&self.server);
        assert_eq!(request.names, names);
        let authorization = format!("Bearer {SECRET}-{number}");
        assert_eq!(request.authorization, Some(authorization));
        let after = self.stats();
        assert_eq!(after.exported, before.exported + ITEMS);
        assert_eq!((after.failed, after.pending()), (before.failed, 0));
        self.shut_down().unwrap();
    }

    fn check_shutdown(&self, row: &Row) {
        let _auditor = Auditor::of(&self.handle);
        let context = self.request(1, &item_names(row));
        let (result, took) = timed(|| block_on(self.handle.shutdown(PATIENT)));
        self.check_end(row, result, took, context);
        let (_, took) = timed(|| self.shut_down());
        assert!(took < SLACK, "{took:?}");
    }

    /// By the provider of the signal.
    fn shut_down(&self) -> OTelSdkResult {
        match self.signal {
            Signal::Logs => self.loggers.shutdown(),
            Signal::Metrics => self.meters.shutdown(),
            _ => self.tracers.shutdown(),
        }
    }

    /// Two items of these names under the token of this number. Returns what sees whether the context is alive.
    fn request(&self, number: u32, names: &[String]) -> Weak<()> {
        let content = Arc::new(());
        let alive = Arc::downgrade(&content);
        let cx = context(number).with_value(Witness(content));
        let [first, second] = names else {
            unreachable!()
        };
        // No request: the end of one would be a time to collect.
        if self.signal == Signal::Metrics {
            self.service.update(format!("{SECRET}-{number}")).unwrap();
            for name in names {
                let name = KeyValue::new("name", name.clone());
                self.gauge.record(1, &[name]);
            }
            return alive;
        }
        let tracer = self.tracers.tracer("faults");
        let root = cx.with_span(tracer.start_with_context(second.clone(), &cx));
        if self.signal == Signal::Logs {
            names.iter().for_each(|name| self.log(&root, name));
        } else {
            let child = root.with_span(tracer.start_with_context(first.clone(), &root));
            child.span().end();
        }
        root.span().end();
        alive
    }

    fn log(&self, cx: &Context, body: &str) {
        let _current = cx.clone().attach();
        let logger = self.loggers.logger("faults");
        let mut record = logger.create_log_record();
        record.set_body(body.to_owned().into());
        logger.emit(record);
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
        row.check_account(&self.exporter.stats_of(row.signal));
        row.check_server(&self.server);
        row.check_logs(&self.server.endpoint());
        wait_until("the context is gone", || context.strong_count() == 0);

        // The processor knows batches only: one that lost an item is lost.
        let failed = row.reason().map_or(0, |_| ITEMS);
        let expected = match failed {
            0 => Ok(()),
            failed => Err(FlushError::Lost { failed, dropped: 0 }),
        };
        assert_eq!(result, expected);
        let nothing = SignalStats::default();
        let stats = self.stats();
        assert_eq!((stats.received, stats.exports), (ITEMS, 1), "{stats:?}");
        assert_eq!(
            (stats.exported, stats.failed),
            (ITEMS - failed, failed),
            "{stats:?}"
        );
        assert_eq!(
            (stats.dropped, stats.late, stats.pending()),
            (nothing.dropped, nothing.late, 0),
            "{stats:?}"
        );
        assert_eq!(self.handle.stats().traces, 0);
    }

    /// The numbers of the signal.
    fn stats(&self) -> SignalStats {
        let stats = self.handle.stats();
        match self.signal {
            Signal::Logs => stats.logs,
            Signal::Metrics => stats.metrics,
            _ => {
                let mut spans = SignalStats::default();
                spans.received = stats.ended;
                spans.exported = stats.exported;
                spans.failed = stats.failed;
                spans.dropped = stats.dropped;
                spans.queued = stats.queued;
                spans.waiting = stats.waiting;
                spans.in_flight = stats.in_flight;
                spans.late = stats.late;
                spans.exports = stats.exports;
                spans
            }
        }
    }
}

// ===== impl Nowhere =====

impl SpanExporter for Nowhere {
    async fn export(&self, _batch: Vec<SpanData>) -> OTelSdkResult {
        Ok(())
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
