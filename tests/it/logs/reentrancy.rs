//! Records are emitted in odd places: inside a borrow of the current context, from a drop, from other processors, inside an
//! export.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use opentelemetry::logs::LoggerProvider as _;
use opentelemetry::trace::{Span as _, TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, InstrumentationScope};
use opentelemetry_per_request::{Config, DropReason, PerRequestSpanProcessor};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{LogProcessor, SdkLogRecord, SdkLogger, SdkLoggerProvider};
use opentelemetry_sdk::trace::{
    Sampler, SdkTracer, SdkTracerProvider, Span, SpanData, SpanProcessor,
};

use super::{LogWorld, say};
use crate::support::{
    Act, FALLBACK, Gate, LogRecorder, Recorder, SOON, Tenant, World, balanced, held_back, soon,
    tenant, wait_until, within,
};

/// A deadlock shows as a hang.
const LIMIT: Duration = Duration::from_secs(20);

/// Scenario: records are emitted inside `get_active_span` and `Context::map_current`: ones that join a request, that fill a
/// queue, that are outside, late, in an unrecorded span, and beyond the bound; and after the shutdown.
/// Guarantees: nothing panics or deadlocks, and all of them are accounted for.
#[test]
fn records_may_be_emitted_inside_a_borrow_of_the_current_context() {
    within(LIMIT, "emitting inside a borrow", || {
        for config in [Config::default(), held_back()] {
            let logs = LogWorld::new(
                config
                    .with_max_traces(2)
                    .with_max_batch_size(2)
                    .with_max_pending_logs(50),
            );
            let unsampled = SdkTracerProvider::builder()
                .with_sampler(Sampler::AlwaysOff)
                .build();
            let unsampled = tenant(5).with_span(unsampled.tracer("test").start("unsampled"));
            let old = logs.world.start("old", &tenant(1));
            let root = logs.world.start("root", &tenant(2));
            let _another = logs.world.start("another", &tenant(3));
            let work = || (0..20).for_each(|_| logs.say("inside"));
            let everywhere = || {
                for cx in [&root, &old, &unsampled, &Context::new()] {
                    let _attached = cx.clone().attach();
                    opentelemetry::trace::get_active_span(|_| work());
                    Context::map_current(|_| work());
                }
            };
            everywhere();
            let _ = logs.flush();
            let stats = logs.stats();
            assert_eq!(
                (stats.logs.received, stats.logs.pending()),
                (160, 0),
                "{stats:?}"
            );
            soon(logs.telemetry.shutdown(SOON)).unwrap_or_default();
            everywhere();
            let dropped = logs.stats().logs.dropped;
            assert_eq!(dropped.by(DropReason::AlreadyShutdown), 160);
        }
    });
}

/// A value of a context that emits a record when it is dropped, and asks the processor for its numbers.
struct Emits(Arc<LogWorld>);

impl Drop for Emits {
    fn drop(&mut self) {
        self.0.say("from a drop");
        drop(self.0.telemetry.flush());
    }
}

/// Scenario: the last owner of a context that emits a record on drop is the processor, which drops it after an export, a failed
/// one, a panic, a timeout, an eviction, a full queue of records, in an unrecorded span, and a shutdown that runs out of time.
/// Guarantees: none of these deadlocks, and what was emitted on a thread of the host's is accounted for.
#[test]
fn records_may_be_emitted_in_the_drop_of_a_context_that_the_processor_drops() {
    let gate = Gate::default();
    let hang = || LogRecorder::always(Act::Hang(gate.clone()));
    let quick = Duration::from_millis(50);
    let config = Config::default;
    let cases: Vec<(&str, Config, LogRecorder, bool)> = vec![
        ("exported", config(), LogRecorder::new(), false),
        (
            "failed",
            config(),
            LogRecorder::always(Act::Fail("no")),
            false,
        ),
        ("panicked", config(), LogRecorder::always(Act::Panic), false),
        (
            "timed out",
            config().with_export_timeout(quick),
            hang(),
            false,
        ),
        (
            "evicted",
            config().with_max_traces(1),
            LogRecorder::new(),
            false,
        ),
        (
            "queue full",
            config().with_max_pending_logs(1),
            LogRecorder::new(),
            false,
        ),
        (
            "abandoned",
            config()
                .with_max_concurrent_exports(1)
                .with_export_timeout(quick * 20),
            hang(),
            true,
        ),
    ];
    for (case, config, exporter, shutdown) in cases {
        within(LIMIT, case, move || {
            let sampler = Sampler::AlwaysOn;
            let spans = Recorder::new();
            let logs = LogWorld::built(config, spans, exporter, sampler, |builder| builder);
            let logs = Arc::new(logs);
            let unsampled = SdkTracerProvider::builder()
                .with_sampler(Sampler::AlwaysOff)
                .build();
            let unsampled = unsampled.tracer("test");
            for n in 0..20 {
                let cx = tenant(1).with_value(Emits(logs.clone()));
                let cx = match n % 4 {
                    0 => cx.with_span(unsampled.start("unsampled")),
                    _ => logs.world.start("span", &cx),
                };
                logs.say_in(&cx, "said");
                // What goes with its request is dropped here if nothing of it is queued.
                cx.span().end();
            }
            if shutdown {
                let _ = soon(logs.telemetry.shutdown(quick));
            }
            wait_until(&format!("all is done: {case}"), || {
                balanced(&logs.telemetry).logs.pending() == 0
            });
            assert!(logs.stats().logs.received >= 20, "{case}");
        });
    }
    gate.open();
}

/// Another span processor, which logs what it sees.
#[derive(Debug, Default)]
struct Talkative(Arc<OnceLock<SdkLogger>>);

impl SpanProcessor for Talkative {
    fn on_start(&self, _span: &mut Span, _cx: &Context) {
        self.say("a span starts");
    }

    fn on_end(&self, _span: SpanData) {
        self.say("a span ends");
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

impl Talkative {
    fn say(&self, body: &str) {
        if let Some(logger) = self.0.get() {
            say(logger, body);
        }
    }
}

/// Scenario: other span processors, before and after ours, emit records in `on_start` and `on_end`.
/// Guarantees: no deadlock, and each record is that of the span that is current there.
#[test]
fn records_may_be_emitted_by_other_span_processors() {
    within(LIMIT, "emitting in a span processor", || {
        let exporter = LogRecorder::new();
        let spans = PerRequestSpanProcessor::builder(Recorder::new())
            .with_fallback_context(Context::new().with_value(FALLBACK))
            .build()
            .unwrap();
        let logs = spans.log_processor(exporter.clone()).unwrap();
        let telemetry = logs.handle();
        let provider = SdkLoggerProvider::builder()
            .with_log_processor(logs)
            .build();
        let logger = Arc::<OnceLock<_>>::default();
        logger.set(provider.logger("test")).unwrap();
        let tracers = SdkTracerProvider::builder()
            .with_span_processor(Talkative(logger.clone()))
            .with_span_processor(spans)
            .with_span_processor(Talkative(logger))
            .build();
        let tracer = tracers.tracer("test");
        let root = tenant(1).with_span(tracer.start_with_context("root", &tenant(1)));
        {
            let _attached = root.clone().attach();
            tracer.start("child").end();
        }
        root.span().end();
        soon(telemetry.flush()).unwrap();
        let tenants: Vec<_> = exporter
            .items()
            .into_iter()
            .map(|(_, tenant)| tenant)
            .collect();
        let of = |tenant| tenants.iter().filter(|seen| **seen == Some(tenant)).count();
        // The child's, while the root was current; and the root's, while nothing was.
        assert_eq!((of(Tenant(1)), of(FALLBACK), tenants.len()), (4, 4, 8));
        assert_eq!(balanced(&telemetry).logs.late.total(), 0);
    });
}

/// Another log processor, which ends a span for each record, and adds to it.
#[derive(Debug)]
struct Ends(Arc<Mutex<Vec<Context>>>);

impl LogProcessor for Ends {
    fn emit(&self, record: &mut SdkLogRecord, _scope: &InstrumentationScope) {
        use opentelemetry::logs::LogRecord as _;
        record.add_attribute("seen", true);
        let ended = self.0.lock().unwrap().pop();
        if let Some(cx) = ended {
            cx.span().end();
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }
}

/// Scenario: log processors before and after ours end spans of the request while a record of it is emitted, the last one too.
/// Guarantees: no deadlock; what the one before has added is exported; the record is the request's as long as that is live where
/// ours sees it.
#[test]
fn spans_may_end_in_other_log_processors() {
    within(LIMIT, "ending spans in a log processor", || {
        let exporter = LogRecorder::new();
        let (world, logs) = World::joined(
            held_back(),
            Recorder::new(),
            |builder| builder,
            |spans| spans.log_processor(exporter.clone()).unwrap(),
        );
        let telemetry = logs.handle();
        let root = world.start("root", &tenant(1));
        let child = world.start("child", &root);
        let open = Arc::new(Mutex::new(vec![root.clone(), child]));
        let provider = SdkLoggerProvider::builder()
            .with_log_processor(Ends(open.clone()))
            .with_log_processor(logs)
            .with_log_processor(Ends(open))
            .build();
        {
            let _attached = root.attach();
            let logger = provider.logger("test");
            say(&logger, "in the request");
            say(&logger, "when it is over");
        }
        soon(telemetry.flush()).unwrap();
        let (log, seen) = exporter.log("in the request");
        assert_eq!(seen, Some(Tenant(1)));
        assert!(log.attribute("seen").is_some());
        assert_eq!(exporter.log("when it is over").1, Some(FALLBACK));
        assert_eq!(balanced(&telemetry).ended, 2);
    });
}

/// Scenario: inside the exporters of both signals records are emitted, on their thread and on another one; flushes are begun and
/// dropped; numbers are read; `force_flush` is called.
/// Guarantees: no deadlock; what is emitted on their own thread is none, what comes from elsewhere is exported in turn; waiting
/// there fails at once, with an error that says so.
#[test]
fn exporters_may_use_everything() {
    within(LIMIT, "emitting inside an export", || {
        let logs = LogWorld::new(Config::default());
        let (logger, telemetry) = (logs.logger.clone(), logs.telemetry.clone());
        let inside = move |elsewhere: &'static str| {
            say(&logger, "inside");
            balanced(&telemetry);
            drop(telemetry.clone().flush());
            let logger = logger.clone();
            std::thread::spawn(move || say(&logger, elsewhere))
                .join()
                .unwrap();
        };
        let inside = Arc::new(inside);
        let also = inside.clone();
        let provider = logs.provider.clone();
        let (answered, answers) = std::sync::mpsc::channel();
        logs.exporter.set_inside(move |batch| {
            if batch[0].body() == "first" {
                inside("beside a record");
                answered.send(provider.force_flush()).unwrap();
            }
        });
        logs.world
            .exporter
            .set_inside(move |_| also("beside a span"));
        logs.say("first");
        logs.wait_for_logs(&["first", "beside a record"]);
        logs.world.request("span", &tenant(1));
        logs.wait_for_logs(&["first", "beside a record", "beside a span"]);
        let answer = answers.recv_timeout(SOON).unwrap().unwrap_err().to_string();
        assert!(answer.contains("inside an export"), "{answer}");
        logs.exporter.set_inside(|_| {});
        logs.world.exporter.set_inside(|_| {});
    });
}

/// Scenario: what is kept of a context is a projection that logs, in a recorded request and in an unrecorded span.
/// Guarantees: it ends, and both what it logs and what was logged there arrive.
#[test]
fn projection_may_log() {
    within(LIMIT, "logging in a projection", || {
        let logger = Arc::<OnceLock<SdkLogger>>::default();
        let from = logger.clone();
        let logs = LogWorld::built(
            Config::default(),
            Recorder::new(),
            LogRecorder::new(),
            Sampler::AlwaysOn,
            move |builder| {
                builder.with_context_projection(move |cx| {
                    if let Some(logger) = from.get() {
                        say(logger, "projecting");
                    }
                    cx.clone()
                })
            },
        );
        logger.set(logs.logger.clone()).unwrap();
        logs.world.request("root", &tenant(1));
        let unsampled = SdkTracerProvider::builder()
            .with_sampler(Sampler::AlwaysOff)
            .build();
        let unsampled = tenant(2).with_span(unsampled.tracer("test").start("unsampled"));
        logs.say_in(&unsampled, "said");
        logs.wait_for_logs(&["projecting", "projecting", "said"]);
        logs.assert_left("said", Some(Tenant(2)), None);
        for (log, tenant) in logs.exporter.items() {
            assert!(log.body() == "said" || tenant == Some(FALLBACK), "{log:?}");
        }
    });
}

/// Scenario: what is kept of a context is a projection that starts a root span.
/// Guarantees: it ends: that span is exported under the fallback context, and the request under what was kept.
#[test]
fn projection_may_start_a_span() {
    within(LIMIT, "starting a span in a projection", || {
        let tracer = Arc::<OnceLock<SdkTracer>>::default();
        let from = tracer.clone();
        let world = World::built(Config::default(), Recorder::new(), move |builder| {
            builder.with_context_projection(move |cx| {
                if let Some(tracer) = from.get() {
                    drop(tracer.start_with_context("projecting", &Context::new()));
                }
                cx.clone()
            })
        });
        tracer.set(world.tracer.clone()).unwrap();
        world.request("root", &tenant(1));
        world.wait_for_spans(&["projecting", "root"]);
        assert_eq!(world.exporter.span("projecting").1, Some(FALLBACK));
        assert_eq!(world.exporter.span("root").1, Some(Tenant(1)));
    });
}

/// Scenario: a record is emitted while its thread is torn down, from a thread's local storage.
/// Guarantees: nothing panics there that the SDK does not, and it is accounted for if it gets to us.
#[test]
fn record_may_be_emitted_while_its_thread_is_torn_down() {
    struct Last(SdkLogger);
    impl Drop for Last {
        fn drop(&mut self) {
            let _ = crate::support::caught(|| say(&self.0, "left"));
        }
    }
    thread_local! {
        static LEFT: std::cell::RefCell<Option<Last>> = const { std::cell::RefCell::new(None) };
    }
    let logs = LogWorld::new(Config::default());
    let logger = logs.logger.clone();
    std::thread::spawn(move || LEFT.set(Some(Last(logger))))
        .join()
        .unwrap();
    logs.flush().unwrap();
    assert_eq!(logs.exporter.bodies(), ["left"]);
}
