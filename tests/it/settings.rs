//! Settings: the table of variables, the warnings, and what the code may set.

use std::time::Duration;

use opentelemetry_per_request as per_request;
use opentelemetry_per_request::{
    Config, ConfigError, FlushTrigger, OpenEvents, PerRequestSpanProcessor,
};
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Level;

use crate::support::{Recorder, World, logs, tenant};

const TRACES: &str = "A365_PER_REQUEST_MAX_TRACES";
const SPANS: &str = "A365_PER_REQUEST_MAX_SPANS_PER_TRACE";
const EXPORTS: &str = "A365_PER_REQUEST_MAX_CONCURRENT_EXPORTS";
const BATCH: &str = "A365_PER_REQUEST_MAX_BATCH_SIZE";
const PENDING: &str = "A365_PER_REQUEST_MAX_PENDING_SPANS";
const PENDING_LOGS: &str = "A365_PER_REQUEST_MAX_PENDING_LOGS";
const INTERVAL: &str = "A365_PER_REQUEST_METRIC_INTERVAL_MS";
const PERIOD: &str = "OTEL_METRIC_EXPORT_INTERVAL";
const TIMEOUT: &str = "A365_PER_REQUEST_EXPORT_TIMEOUT_MS";
const TRIGGER: &str = "A365_PER_REQUEST_FLUSH_TRIGGER";
const OPEN_EVENTS: &str = "A365_PER_REQUEST_OPEN_EVENTS";
const MIN_AGE: &str = "A365_PER_REQUEST_OPEN_EVENT_MIN_AGE_MS";
const UNFINISHED: &str = "A365_PER_REQUEST_EXPORT_UNFINISHED";
const ENABLED: &str = "ENABLE_A365_OBSERVABILITY_PER_REQUEST_EXPORT";

/// Everything that a configuration says, as text.
fn shown(config: &Config, name: &str) -> String {
    match name {
        TRACES => config.max_traces().to_string(),
        SPANS => config.max_spans_per_trace().to_string(),
        EXPORTS => config.max_concurrent_exports().to_string(),
        BATCH => config.max_batch_size().to_string(),
        PENDING => config.max_pending_spans().to_string(),
        PENDING_LOGS => config.max_pending_logs().to_string(),
        INTERVAL => config.metric_interval().as_millis().to_string(),
        // None is never, and so is 0.
        PERIOD => {
            let period = config.metric_period();
            assert_ne!(period, Some(Duration::ZERO));
            period.unwrap_or_default().as_millis().to_string()
        }
        TIMEOUT => config.export_timeout().as_millis().to_string(),
        TRIGGER => config.flush_trigger().to_string(),
        OPEN_EVENTS => config.open_events().to_string(),
        MIN_AGE => config.open_event_min_age().as_millis().to_string(),
        UNFINISHED => config.export_unfinished().to_string(),
        ENABLED => config.enabled().to_string(),
        other => panic!("no such setting: {other}"),
    }
}

const ALL: [(&str, &str); 14] = [
    (TRACES, "1000"),
    (SPANS, "5000"),
    (EXPORTS, "20"),
    (BATCH, "64"),
    (PENDING, "16384"),
    (PENDING_LOGS, "16384"),
    (INTERVAL, "10000"),
    (PERIOD, "60000"),
    (TIMEOUT, "30000"),
    (TRIGGER, "next_tick"),
    (OPEN_EVENTS, "off"),
    (MIN_AGE, "500"),
    (UNFINISHED, "false"),
    (ENABLED, "true"),
];

/// Scenario: nothing is set anywhere.
/// Guarantees: the names and the defaults are the documented ones, and there is no log line.
#[test]
fn defaults_are_the_documented_ones() {
    let (config, lines) = logs::lines_of(|| Config::from_lookup(|_| None));
    assert_eq!(config, Config::default());
    assert_eq!(lines.len(), 0);
    for (name, default) in ALL {
        assert_eq!(shown(&config, name), default, "{name}");
    }
    assert_eq!(
        [
            per_request::MAX_TRACES,
            per_request::MAX_SPANS_PER_TRACE,
            per_request::MAX_CONCURRENT_EXPORTS,
            per_request::MAX_BATCH_SIZE,
            per_request::MAX_PENDING_SPANS,
            per_request::MAX_PENDING_LOGS,
            per_request::METRIC_INTERVAL_MS,
            per_request::METRIC_PERIOD_MS,
            per_request::EXPORT_TIMEOUT_MS,
            per_request::FLUSH_TRIGGER,
            per_request::OPEN_EVENTS,
            per_request::OPEN_EVENT_MIN_AGE_MS,
            per_request::EXPORT_UNFINISHED,
            per_request::ENABLED,
        ],
        ALL.map(|(name, _)| name)
    );
    assert_eq!(per_request::DEFAULT_MAX_TRACES, 1000);
    assert_eq!(per_request::DEFAULT_MAX_SPANS_PER_TRACE, 5000);
    assert_eq!(per_request::DEFAULT_MAX_CONCURRENT_EXPORTS, 20);
    assert_eq!(per_request::DEFAULT_MAX_BATCH_SIZE, 64);
    assert_eq!(per_request::DEFAULT_MAX_PENDING_SPANS, 16_384);
    assert_eq!(per_request::DEFAULT_MAX_PENDING_LOGS, 16_384);
    assert_eq!(
        per_request::DEFAULT_METRIC_INTERVAL,
        Duration::from_secs(10)
    );
    assert_eq!(per_request::DEFAULT_METRIC_PERIOD, Duration::from_secs(60));
    assert_eq!(per_request::DEFAULT_EXPORT_TIMEOUT, Duration::from_secs(30));
    assert_eq!(
        per_request::DEFAULT_OPEN_EVENT_MIN_AGE,
        Duration::from_millis(500)
    );
}

/// Scenario: each variable with values that are good, odd and bad, one at a time.
/// Guarantees: the setting is as listed, all others keep their defaults, and each value that cannot be used gives exactly
/// one warning, which names the variable, the value and what is used instead.
#[test]
fn each_variable_is_read_as_documented() {
    const MAX: &str = "18446744073709551615";
    const BEYOND: &str = "99999999999999999999999";
    /// The value is used, as this.
    const fn ok(value: &'static str) -> Option<&'static str> {
        Some(value)
    }
    /// The value is warned about.
    const BAD: Option<&str> = None;
    let positive = [
        ("7", ok("7")),
        (" 7\t", ok("7")),
        ("", ok("")),
        ("  ", ok("")),
        ("0", BAD),
        ("-1", BAD),
        ("seven", BAD),
        ("7.5", BAD),
        ("7x", BAD),
        ("1e3", BAD),
        (MAX, ok(MAX)),
        (BEYOND, ok(MAX)),
    ];
    let limit = positive.map(|(value, used)| match value {
        "0" | "-1" => (value, ok("0")),
        _ => (value, used),
    });
    let trigger = [
        ("next_tick", ok("next_tick")),
        ("local_root_end", ok("local_root_end")),
        (" Local_Root_End ", ok("local_root_end")),
        ("", ok("")),
        ("sometimes", BAD),
        ("local-root-end", BAD),
        ("0", BAD),
    ];
    let form = [
        ("off", ok("off")),
        ("logs", ok("logs")),
        (" LOGS\n", ok("logs")),
        ("Pending_Spans", ok("pending_spans")),
        ("", ok("")),
        ("  ", ok("")),
        ("on", BAD),
        ("true", BAD),
        ("0", BAD),
        ("log", BAD),
        ("pending-spans", BAD),
        ("logs,pending_spans", BAD),
    ];
    let boolean = [
        ("true", ok("true")),
        ("TRUE", ok("true")),
        ("1", ok("true")),
        ("yes", ok("true")),
        ("On", ok("true")),
        ("false", ok("false")),
        ("False", ok("false")),
        ("0", ok("false")),
        ("NO", ok("false")),
        (" off ", ok("false")),
        ("", ok("")),
        ("maybe", BAD),
        ("2", BAD),
        ("-1", BAD),
        ("t", BAD),
    ];
    for (name, default) in ALL {
        let cases: &[(&str, Option<&str>)] = match name {
            SPANS | EXPORTS | INTERVAL | PERIOD | MIN_AGE => &limit,
            TRIGGER => &trigger,
            OPEN_EVENTS => &form,
            ENABLED | UNFINISHED => &boolean,
            _ => &positive,
        };
        for (value, used) in cases {
            let (config, lines) = logs::lines_of(|| {
                Config::from_lookup(|asked| (asked == name).then(|| (*value).to_owned()))
            });
            let expected = match used {
                None | Some("") => default,
                Some(used) => used,
            };
            assert_eq!(shown(&config, name), expected, "{name}={value:?}");
            for (other, default) in ALL.iter().filter(|(other, _)| *other != name) {
                assert_eq!(shown(&config, other), *default, "{other} beside {name}");
            }
            let warnings: Vec<_> = lines
                .iter()
                .filter(|line| line.level <= Level::WARN)
                .collect();
            assert_eq!(
                warnings.len(),
                usize::from(used.is_none()),
                "{name}={value:?}: {lines:?}"
            );
            for warning in warnings {
                assert_eq!(warning.target, logs::TARGET);
                assert_eq!(warning.field("variable"), name);
                assert_eq!(warning.field("value"), value.trim());
                assert_eq!(warning.field("used"), default);
            }
        }
    }
}

/// Scenario: two variables of Agent365's processor that mean nothing here, good and bad values.
/// Guarantees: they change nothing, warn of nothing, and are mentioned once each in a debug line.
#[test]
fn variables_without_effect_are_accepted() {
    let names = [
        "A365_PER_REQUEST_FLUSH_GRACE_MS",
        "A365_PER_REQUEST_MAX_TRACE_AGE_MS",
    ];
    for value in ["250", "nonsense"] {
        let (config, lines) = logs::lines_of(|| {
            Config::from_lookup(|asked| names.contains(&asked).then(|| value.to_owned()))
        });
        assert_eq!(config, Config::default());
        assert_eq!(lines.len(), 2, "{lines:?}");
        for (line, name) in lines.iter().zip(names) {
            assert_eq!(line.level, Level::DEBUG);
            assert_eq!(line.field("variable"), name);
        }
    }
}

/// Scenario: values in code after values from a lookup.
/// Guarantees: code wins, value by value.
#[test]
fn code_overrides_the_environment() {
    let config = Config::from_lookup(|name| match name {
        TRIGGER => Some("local_root_end".to_owned()),
        OPEN_EVENTS => Some("pending_spans".to_owned()),
        UNFINISHED => Some("yes".to_owned()),
        ENABLED => Some("off".to_owned()),
        _ => Some("3".to_owned()),
    });
    assert_eq!((config.max_traces(), config.max_batch_size()), (3, 3));
    assert_eq!(config.export_timeout(), Duration::from_millis(3));
    let config = config
        .with_max_traces(11)
        .with_max_spans_per_trace(12)
        .with_max_concurrent_exports(13)
        .with_max_pending_spans(15)
        .with_max_pending_logs(17)
        .with_metric_interval(Duration::from_millis(18))
        .with_metric_period(Duration::from_millis(19))
        .with_export_timeout(Duration::from_millis(16))
        .with_flush_trigger(FlushTrigger::NextTick)
        .with_open_events(OpenEvents::Logs)
        .with_open_event_min_age(Duration::from_millis(20))
        .with_export_unfinished(false)
        .with_enabled(true);
    for (name, value) in [
        (TRACES, "11"),
        (SPANS, "12"),
        (EXPORTS, "13"),
        (BATCH, "3"),
        (PENDING, "15"),
        (PENDING_LOGS, "17"),
        (INTERVAL, "18"),
        (PERIOD, "19"),
        (TIMEOUT, "16"),
        (TRIGGER, "next_tick"),
        (OPEN_EVENTS, "logs"),
        (MIN_AGE, "20"),
        (UNFINISHED, "false"),
        (ENABLED, "true"),
    ] {
        assert_eq!(shown(&config, name), value, "{name}");
    }
    for never in [None, Some(Duration::ZERO)] {
        assert_eq!(
            config.clone().with_metric_period(never).metric_period(),
            None
        );
    }
    assert_eq!(config.clone().with_max_batch_size(14).max_batch_size(), 14);
}

/// Scenario: values in code that make no sense, and zeros that mean no limit.
/// Guarantees: `build` refuses the first, one error for each rule, which names the setting; and takes the others.
#[test]
fn build_refuses_settings_that_make_no_sense() {
    type Check = fn(&ConfigError) -> bool;
    let zero = Config::default;
    let cases: [(Config, Check, &str); 5] = [
        (
            zero().with_max_traces(0),
            |e| matches!(e, ConfigError::MaxTracesIsZero),
            "max_traces",
        ),
        (
            zero().with_max_batch_size(0),
            |e| matches!(e, ConfigError::MaxBatchSizeIsZero),
            "max_batch_size",
        ),
        (
            zero().with_max_pending_spans(0),
            |e| matches!(e, ConfigError::MaxPendingSpansIsZero),
            "max_pending_spans",
        ),
        (
            zero().with_max_pending_logs(0),
            |e| matches!(e, ConfigError::MaxPendingLogsIsZero),
            "max_pending_logs",
        ),
        (
            zero().with_export_timeout(Duration::ZERO),
            |e| matches!(e, ConfigError::ExportTimeoutIsZero),
            "export_timeout",
        ),
    ];
    for (config, is_it, name) in cases {
        let error = PerRequestSpanProcessor::builder(Recorder::new())
            .with_config(config)
            .build()
            .unwrap_err();
        assert!(is_it(&error), "{error:?}");
        assert!(error.to_string().contains(name), "{error}");
    }
    for config in [
        zero().with_max_spans_per_trace(0),
        zero().with_max_concurrent_exports(0),
        zero().with_metric_interval(Duration::ZERO),
        zero().with_metric_period(Duration::ZERO),
        zero().with_open_event_min_age(Duration::ZERO),
    ] {
        PerRequestSpanProcessor::builder(Recorder::new())
            .with_config(config)
            .build()
            .unwrap();
    }
}

/// Scenario: the processor is switched off, by code or by the variable.
/// Guarantees: everything works and does nothing: the exporter is never called, no number changes, nothing of a context
/// is kept.
#[test]
fn disabled_processor_does_nothing() {
    for config in [
        Config::default().with_enabled(false),
        Config::from_lookup(|name| (name == ENABLED).then(|| "no".to_owned())),
    ] {
        let world = World::with_exporter(config, Recorder::new());
        let (witness, alive) = crate::support::Witness::new();
        let root = world.start("root", &tenant(1).with_value(witness));
        let child = world.start("child", &root);
        world.end(&child);
        world.end(&root);
        drop((root, child));
        assert!(!alive.is_alive());
        assert_eq!(world.flush(), Ok(()));
        world.provider.force_flush().unwrap();
        world.provider.shutdown().unwrap();
        assert_eq!(world.exporter.entered(), 0);
        assert_eq!(world.exporter.calls(), []);
        assert_eq!(world.stats(), Default::default());
    }
}

/// Scenario: settings that were never looked at: the builder is given none.
/// Guarantees: it builds from the environment of the process, which in tests sets nothing.
#[test]
fn builder_without_a_config_reads_the_environment() {
    let exporter = Recorder::new();
    let processor = PerRequestSpanProcessor::builder(exporter.clone())
        .build()
        .unwrap();
    let telemetry = processor.handle();
    let provider = SdkTracerProvider::builder()
        .with_span_processor(processor)
        .build();
    let tracer = opentelemetry::trace::TracerProvider::tracer(&provider, "test");
    opentelemetry::trace::Tracer::in_span(&tracer, "span", |_| {});
    provider.force_flush().unwrap();
    assert_eq!(telemetry.stats().exported, 1);
}
