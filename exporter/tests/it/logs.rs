//! Every failure is said once, and no credential ever is.

use crate::support::{
    Collector, Logs, Reply, builder, context_with, export, export_items, export_items_under,
    export_under, exported_signals, exporter, nowhere, span, spans,
};
use opentelemetry_otlp_direct::{DirectExporter, ExportToken};
use opentelemetry_sdk::trace::SpanExporter;
use tracing::Level;

/// Scenario: the same failure again and again.
/// Guarantees: one warning, with reason, status and endpoint.
#[test]
fn repeated_failure_is_one_warning_with_reason_and_status() {
    let logs = Logs::capture(Level::WARN);
    let collector = Collector::answering(|_, _| Reply::status(400));
    let exporter = exporter(&collector);
    for _ in 0..5 {
        export(&exporter, spans(2)).unwrap_err();
    }
    let [warning] = &logs.warnings()[..] else {
        panic!("{:?}", logs.warnings());
    };
    for part in [
        "ExportFailed",
        "400",
        "status",
        "items=2",
        &collector.endpoint(),
    ] {
        assert!(warning.contains(part), "{part}: {warning}");
    }
}

/// Scenario: one failure of each kind.
/// Guarantees: each reason is named in a warning of its own.
#[test]
fn each_reason_has_its_warning() {
    let logs = Logs::capture(Level::WARN);
    let collector = Collector::scripted([
        Reply::status(401),
        Reply::status(429).with_header("retry-after", "9999"),
        Reply::partial(1, ""),
        Reply::status(200).with_body("<html>"),
        Reply::partial(0, "slow down"),
    ]);
    let exporter = builder(&collector.endpoint())
        .with_max_request_bytes(500)
        .build()
        .unwrap();
    let token = ExportToken::new("t").unwrap();
    export_under(context_with(&token), &exporter, spans(1)).unwrap_err();
    export_under(context_with(&token), &exporter, spans(1)).unwrap_err();
    for _ in 0..4 {
        let _ = export(&exporter, spans(1));
    }
    export(&exporter, vec![span("x".repeat(500))]).unwrap_err();
    exporter.shutdown().unwrap();
    export(&exporter, spans(1)).unwrap_err();

    let warnings = logs.warnings();
    let expected = [
        "unauthorized",
        "throttled",
        "rejected",
        "UndecodableResponse",
        "CollectorWarning",
        "too_large",
        "already_shutdown",
    ];
    assert_eq!(warnings.len(), expected.len(), "{warnings:#?}");
    for (warning, part) in warnings.iter().zip(expected) {
        assert!(warning.contains(part), "{part}: {warning}");
    }
}

/// Scenario: settings in the environment that cannot be used, some of them secret.
/// Guarantees: the exporter is built; one warning each names variable, value and what is used instead; secrets stay out.
#[test]
fn unusable_environment_warns_and_is_ignored() {
    let logs = Logs::capture(Level::WARN);
    let built = DirectExporter::builder()
        .with_env_lookup(|variable| {
            let value = match variable {
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" => "http://user:s3cret@host?key=s3cret",
                "OTEL_EXPORTER_OTLP_HEADERS" => "authorization=s3cret%0A,s3cret",
                "OTEL_EXPORTER_OTLP_TIMEOUT" => "soon",
                "OTEL_EXPORTER_OTLP_PROTOCOL" => "grpc",
                "OTEL_EXPORTER_OTLP_CERTIFICATE" => "/ca.pem",
                _ => return None,
            };
            Some(value.to_owned())
        })
        .build();
    built.unwrap();
    let text = logs.text();
    assert_eq!(logs.warnings().len(), 6, "{text}");
    for part in [
        "OTEL_EXPORTER_OTLP_TIMEOUT",
        "\"soon\"",
        "\"grpc\"",
        "entry 1 (authorization)",
        "entry 2",
        "OTEL_EXPORTER_OTLP_CERTIFICATE",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("s3cret"), "{text}");
}

/// Scenario: credentials in a token, a header, a URL's query, and a response that repeats them; failures of every kind, of
/// each signal.
/// Guarantees: no warning, error or `Debug` shows any of them; response bodies are shown at debug level only.
#[test]
fn no_credential_reaches_a_warning_an_error_or_debug() {
    let logs = Logs::capture(Level::WARN);
    let token = ExportToken::new("s3cret").unwrap();
    let body = "your token s3cret is bad";
    let replies = [
        Reply::status(400).with_body(body),
        Reply::status(401).with_body(body),
        Reply::partial(1, body),
        Reply::partial(0, body),
        Reply::status(200).with_body(body),
    ];
    let collector = Collector::answering(move |_, number| replies[number % 5].clone());
    let mut shown = String::new();
    for (endpoint, signal) in [collector.endpoint(), nowhere()]
        .iter()
        .flat_map(|endpoint| exported_signals().map(move |signal| (endpoint, signal)))
    {
        let exporter = builder(&format!("{endpoint}?key=s3cret"))
            .with_header("x-api-key", "s3cret")
            .with_header("authorization", "s3cret")
            .build()
            .unwrap();
        for _ in 0..6 {
            for cx in [context_with(&token), opentelemetry::Context::new()] {
                shown += &format!("{:?}", export_items_under(cx, signal, &exporter, 1));
            }
        }
        let error = futures_executor::block_on(exporter.check_signal(signal));
        shown += &format!("{error:?} {exporter:?} {:?}", exporter.handle());
    }
    shown += &logs.text();
    assert!(shown.contains("ExportFailed"), "{shown}");
    assert!(!shown.contains("s3cret"), "{shown}");
}

/// Scenario: a response with a body, logged at debug level.
/// Guarantees: there, and only there, the body is shown.
#[test]
fn response_body_is_shown_at_debug_level() {
    let logs = Logs::capture(Level::DEBUG);
    let collector = Collector::scripted([Reply::status(400).with_body("no such tenant")]);
    export(&exporter(&collector), spans(1)).unwrap_err();
    assert!(logs.text().contains("no such tenant"), "{}", logs.text());
}

/// Scenario: responses at debug level that repeat the token, a configured key, or a part of one.
/// Guarantees: there is a line, what would show a credential is withheld, and nothing else is.
#[test]
fn response_that_repeats_a_credential_is_withheld_at_debug_level() {
    let logs = Logs::capture(Level::DEBUG);
    let token = ExportToken::new("token-s3cret").unwrap();
    let collector = Collector::scripted([
        Reply::status(400).with_body("your token token-s3cret is bad"),
        Reply::status(400).with_body("no key ends in en-s3cret"),
        Reply::status(400).with_body("your key is key-s3cret"),
        Reply::status(400).with_body("tenant 1 is over its quota"),
        Reply::partial(1, "sent by Bearer token-s3cret"),
        Reply::status(200).with_body("token-s3cret, how nice"),
    ]);
    let exporter = builder(&collector.endpoint())
        .with_header("x-api-key", "key-s3cret")
        .with_header("x-tenant", "1")
        .build()
        .unwrap();
    for _ in 0..6 {
        let _ = export_under(context_with(&token), &exporter, spans(1));
    }
    let text = logs.text();
    assert_eq!(text.matches("withheld").count(), 5, "{text}");
    assert!(text.contains("tenant 1 is over its quota"), "{text}");
    assert!(!text.contains("s3cret"), "{text}");
}

/// Scenario: exports of each signal fail, in a program that exports its `tracing` events as logs; the warnings about them
/// are such events.
/// Guarantees: they are said with telemetry suppressed, by which that program knows them: a warning about an export of logs
/// is never one more log to export.
#[test]
fn warning_is_said_with_telemetry_suppressed() {
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

    struct Asks(std::sync::mpsc::Sender<bool>);

    impl<S: tracing::Subscriber> Layer<S> for Asks {
        fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
            if *event.metadata().level() == Level::WARN {
                let suppressed = opentelemetry::Context::is_current_telemetry_suppressed();
                self.0.send(suppressed).unwrap();
            }
        }
    }

    let (asks, answers) = std::sync::mpsc::channel();
    let subscriber = tracing_subscriber::registry().with(Asks(asks));
    let _guard = tracing::subscriber::set_default(subscriber);
    let collector = Collector::answering(|_, _| Reply::status(400));
    let exporter = builder(&collector.endpoint())
        .with_max_request_bytes(500)
        .build()
        .unwrap();
    for signal in exported_signals() {
        assert!(!opentelemetry::Context::is_current_telemetry_suppressed());
        export_items(signal, &exporter, 1).unwrap_err();
    }
    export(&exporter, vec![span("x".repeat(500))]).unwrap_err();
    let answers: Vec<_> = answers.try_iter().collect();
    assert_eq!(answers, vec![true; exported_signals().count() + 1]);
}
