//! Three signals, one exporter: what each has of its own, and what they share.

use crate::support::{
    Collector, Received, Reply, builder, check_account_of, context_with, export, export_items,
    export_items_under, exported_signals, exporter, item_names, spans,
};
use futures_executor::block_on;
use opentelemetry_otlp_direct::FailureReason::{
    AlreadyShutdown, CircuitOpen, Rejected, Status, TooLarge, Unauthorized,
};
use opentelemetry_otlp_direct::{
    CheckError, DirectExporter, DirectExporterBuilder, Encoding, ExportToken, Signal,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::SpanExporter;
use std::time::Duration;

/// Those that are compiled in.
fn encodings() -> impl Iterator<Item = Encoding> {
    let json = cfg!(feature = "json").then_some(Encoding::Json);
    [Encoding::Protobuf].into_iter().chain(json)
}

/// As the SDK would do it by the trait of the signal.
fn shut_down(signal: Signal, exporter: &DirectExporter) -> OTelSdkResult {
    match signal {
        #[cfg(feature = "logs")]
        Signal::Logs => opentelemetry_sdk::logs::LogExporter::shutdown(exporter),
        #[cfg(feature = "metric-export")]
        Signal::Metrics => {
            opentelemetry_sdk::metrics::exporter::PushMetricExporter::shutdown(exporter)
        }
        _ => SpanExporter::shutdown(exporter),
    }
}

/// Scenario: items of each signal are exported, in each encoding.
/// Guarantees: each is one POST to the path of its signal, which says what it is encoded in, and holds the items. Each
/// signal has its own account.
#[test]
fn each_signal_is_posted_to_its_own_path() {
    for encoding in encodings() {
        let collector = Collector::start();
        let exporter = builder(&collector.endpoint())
            .with_encoding(encoding)
            .build()
            .unwrap();
        for (count, signal) in (2..).zip(exported_signals()) {
            export_items(signal, &exporter, count).unwrap();
            let request = collector.received().pop().unwrap();
            assert_eq!(request.path, format!("/v1/{signal}"));
            let content_type = request.header("content-type");
            assert_eq!(content_type, Some(encoding.content_type()));
            assert_eq!(request.item_names(), item_names(signal, count));
            check_account_of(signal, &exporter, count as u64, &[]);
            let handle = exporter.handle();
            assert_eq!(handle.stats_of(signal), exporter.stats_of(signal));
        }
        assert_eq!(collector.received().len(), exported_signals().count());
    }
}

/// Scenario: batches of each signal without items.
/// Guarantees: success, and nothing is sent.
#[test]
fn empty_batch_of_any_signal_sends_nothing() {
    let collector = Collector::start();
    let exporter = exporter(&collector);
    for signal in exported_signals() {
        export_items(signal, &exporter, 0).unwrap();
    }
    assert_eq!(collector.received().len(), 0);
}

/// Scenario: each setting of one signal in code, and those of another in the environment, beside general ones of both.
/// Guarantees: each signal is sent as its own settings say, and as the general ones where it has none.
#[test]
fn each_signal_is_sent_as_its_own_settings_say() {
    let collector = Collector::start();
    let endpoint = collector.endpoint();
    let exporter = DirectExporter::builder()
        .with_env_lookup(move |variable| {
            Some(match variable {
                "OTEL_EXPORTER_OTLP_ENDPOINT" => format!("{endpoint}/base"),
                "OTEL_EXPORTER_OTLP_HEADERS" => "x-from=general".to_owned(),
                "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT" => format!("{endpoint}/env/v1/logs"),
                "OTEL_EXPORTER_OTLP_LOGS_HEADERS" => "x-from=logs".to_owned(),
                _ => return None,
            })
        })
        .with_signal(Signal::Metrics, |metrics| {
            metrics
                .with_endpoint(format!("{}/code/v1/metrics", collector.endpoint()))
                .with_header("x-from", "metrics")
        })
        .build()
        .unwrap();
    let expected = [
        (Signal::Traces, "/base/v1/traces", "general"),
        (Signal::Logs, "/env/v1/logs", "logs"),
        (Signal::Metrics, "/code/v1/metrics", "metrics"),
    ];
    for (signal, path, from) in expected {
        block_on(exporter.check_signal(signal)).unwrap();
        let request = collector.received().pop().unwrap();
        assert_eq!(request.path, path);
        assert_eq!(request.header("x-from"), Some(from));
    }
}

/// Scenario: the endpoint of each signal in code, by its own method.
/// Guarantees: it is used as it is, and for that signal only.
#[test]
fn endpoint_of_each_signal_has_its_own_method() {
    let collector = Collector::start();
    let endpoint = collector.endpoint();
    let exporter = builder("http://elsewhere.invalid")
        .with_traces_endpoint(format!("{endpoint}/t"))
        .with_logs_endpoint(format!("{endpoint}/l"))
        .with_metrics_endpoint(format!("{endpoint}/m"))
        .build()
        .unwrap();
    for signal in Signal::ALL {
        block_on(exporter.check_signal(*signal)).unwrap();
    }
    let received = collector.received();
    let paths: Vec<_> = received.iter().map(|request| &request.path).collect();
    assert_eq!(paths, ["/t", "/l", "/m"]);
}

/// Scenario: a timeout for one signal, on a collector that never answers.
/// Guarantees: an export of that signal ends with it, whatever the timeout of the others.
#[test]
fn timeout_of_a_signal_is_its_own() {
    let moment = Duration::from_millis(50);
    for signal in exported_signals() {
        let collector = Collector::answering(|_, _| Reply::Hang);
        let exporter = builder(&collector.endpoint())
            .with_timeout(Duration::from_secs(20))
            .with_signal(signal, |signal| signal.with_timeout(moment))
            .build()
            .unwrap();
        let error = export_items(signal, &exporter, 1).unwrap_err();
        let is_its_own = matches!(error, OTelSdkError::Timeout(after) if after == moment);
        assert!(is_its_own, "{error:?}");
    }
}

/// Scenario: gzip for one signal only.
/// Guarantees: its bodies are compressed, those of the others are not.
#[cfg(feature = "gzip")]
#[test]
fn compression_of_a_signal_is_its_own() {
    use opentelemetry_otlp_direct::Compression;

    for compressed in exported_signals() {
        let collector = Collector::start();
        let exporter = builder(&collector.endpoint())
            .with_signal(compressed, |signal| {
                signal.with_compression(Compression::Gzip)
            })
            .build()
            .unwrap();
        for signal in exported_signals() {
            export_items(signal, &exporter, 50).unwrap();
        }
        for request in collector.received() {
            let is_compressed = request.header("content-encoding") == Some("gzip");
            assert_eq!(is_compressed, request.signal() == compressed);
        }
    }
}

/// Scenario: JSON for one signal only, by its variable.
/// Guarantees: its requests are JSON, and those of the others protobuf.
#[cfg(feature = "json")]
#[test]
fn encoding_of_a_signal_is_its_own() {
    for as_json in exported_signals() {
        let collector = Collector::start();
        let own = as_json.as_str().to_uppercase();
        let own = format!("OTEL_EXPORTER_OTLP_{own}_PROTOCOL");
        let exporter = builder(&collector.endpoint())
            .with_env_lookup(move |variable| (variable == own).then(|| "http/json".to_owned()))
            .build()
            .unwrap();
        for signal in exported_signals() {
            export_items(signal, &exporter, 2).unwrap();
        }
        for request in collector.received() {
            let is_json = request.header("content-type") == Some("application/json");
            assert_eq!(is_json, request.signal() == as_json);
            assert_eq!(request.item_names(), item_names(request.signal(), 2));
        }
    }
}

/// Scenario: one of three items is rejected, of each signal, in each encoding.
/// Guarantees: it is counted, and said in the words of the signal; the request is not sent again.
#[test]
fn partial_success_of_any_signal_is_counted_in_either_encoding() {
    let names = [
        (Signal::Traces, "rejectedSpans", "1 of 3 spans"),
        (Signal::Logs, "rejectedLogRecords", "1 of 3 log records"),
        (Signal::Metrics, "rejectedDataPoints", "1 of 3 data points"),
    ];
    for encoding in encodings() {
        for signal in exported_signals() {
            let (_, name, said) = names.into_iter().find(|(s, ..)| *s == signal).unwrap();
            let json = format!(r#"{{"partialSuccess":{{"{name}":"1","errorMessage":"no"}}}}"#);
            let reply = match encoding {
                Encoding::Json => Reply::status(200).with_body(json),
                _ => Reply::partial(1, "no"),
            };
            let collector = Collector::scripted([reply]);
            let exporter = builder(&collector.endpoint())
                .with_encoding(encoding)
                .build()
                .unwrap();
            let error = export_items(signal, &exporter, 3).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
            assert_eq!(collector.received().len(), 1);
            check_account_of(signal, &exporter, 2, &[(Rejected, 1)]);
        }
    }
}

/// Scenario: a collector that answers in the other encoding, and says so.
/// Guarantees: its answer is read as what it says it is.
#[cfg(feature = "json")]
#[test]
fn answer_in_the_other_encoding_is_understood() {
    let json = r#"{"partialSuccess":{"rejectedSpans":1}}"#;
    let replies = [
        (
            Encoding::Protobuf,
            Reply::status(200)
                .with_header("content-type", "application/json; charset=utf-8")
                .with_body(json),
        ),
        (
            Encoding::Json,
            Reply::partial(1, "").with_header("content-type", "application/x-protobuf"),
        ),
    ];
    for (encoding, reply) in replies {
        let collector = Collector::scripted([reply]);
        let exporter = builder(&collector.endpoint())
            .with_encoding(encoding)
            .build()
            .unwrap();
        export(&exporter, spans(2)).unwrap_err();
        check_account_of(Signal::Traces, &exporter, 1, &[(Rejected, 1)]);
    }
}

/// Scenario: each signal is shut down through one of two clones, while exports of all of them go on through the other.
/// Guarantees: from then on its exports fail and are counted, also on the other clone; those of the other signals go on;
/// a second shutdown says that it is one.
#[test]
fn shutdown_is_of_one_signal() {
    for ended in exported_signals() {
        let collector = Collector::start();
        let exporter = exporter(&collector);
        let clone = exporter.clone();
        shut_down(ended, &clone).unwrap();
        let again = shut_down(ended, &exporter);
        assert!(matches!(again, Err(OTelSdkError::AlreadyShutdown)));
        for signal in exported_signals() {
            let result = export_items(signal, &exporter, 2);
            if signal == ended {
                assert!(matches!(result, Err(OTelSdkError::AlreadyShutdown)));
                check_account_of(signal, &exporter, 0, &[(AlreadyShutdown, 2)]);
            } else {
                result.unwrap();
                check_account_of(signal, &exporter, 2, &[]);
            }
        }
    }
}

/// Scenario: a token that the collector refuses for one signal only.
/// Guarantees: that signal leaves it alone for a while, and the others send it.
#[test]
fn refused_token_is_left_alone_by_its_signal_only() {
    for refused in exported_signals() {
        let path = format!("/v1/{refused}");
        let collector = Collector::answering(move |request: &Received, _| {
            Reply::status(if request.path == path { 401 } else { 200 })
        });
        let exporter = exporter(&collector);
        let token = ExportToken::new("t").unwrap();
        for _ in 0..2 {
            for signal in exported_signals() {
                let cx = context_with(&token);
                let result = export_items_under(cx, signal, &exporter, 1);
                assert_eq!(result.is_err(), signal == refused);
            }
        }
        let all = collector.authorizations();
        assert!(all.iter().all(|sent| sent.as_deref() == Some("Bearer t")));
        check_account_of(
            refused,
            &exporter,
            0,
            &[(Unauthorized, 1), (CircuitOpen, 1)],
        );
        for signal in exported_signals().filter(|signal| *signal != refused) {
            check_account_of(signal, &exporter, 2, &[]);
        }
    }
}

/// Scenario: a collector that is not ready at first, then refuses for good.
/// Guarantees: every signal is sent again with the same bytes, and what is refused is counted for its signal.
#[test]
fn each_signal_is_sent_again_and_counted_by_the_same_rules() {
    for signal in exported_signals() {
        let replies = [Reply::status(503), Reply::status(200), Reply::status(400)];
        let collector = Collector::scripted(replies);
        let exporter = exporter(&collector);
        export_items(signal, &exporter, 2).unwrap();
        export_items(signal, &exporter, 3).unwrap_err();
        let received = collector.received();
        assert_eq!(received.len(), 3);
        assert_eq!(received[0].body, received[1].body);
        check_account_of(signal, &exporter, 2, &[(Status, 3)]);
        assert_eq!(exporter.stats_of(signal).retries(), 1);
        for other in exported_signals().filter(|other| *other != signal) {
            check_account_of(other, &exporter, 0, &[]);
        }
    }
}

/// Scenario: a batch larger than a request may be, and one of which nothing fits.
/// Guarantees: several requests with every item once; what does not fit is counted and said in the words of its signal.
#[test]
fn large_batch_of_any_signal_is_split() {
    const LIMIT: usize = 700;
    for encoding in encodings() {
        for signal in exported_signals() {
            let collector = Collector::start();
            let with_limit = |bytes| {
                let builder: DirectExporterBuilder = builder(&collector.endpoint());
                let builder = builder.with_encoding(encoding);
                builder.with_max_request_bytes(bytes).build().unwrap()
            };
            let exporter = with_limit(LIMIT);
            export_items(signal, &exporter, 100).unwrap();
            let received = collector.received();
            assert!(received.len() > 2, "{signal}: {}", received.len());
            assert!(received.iter().all(|request| request.body.len() <= LIMIT));
            let names: Vec<_> = received.iter().flat_map(Received::item_names).collect();
            assert_eq!(names, item_names(signal, 100));
            check_account_of(signal, &exporter, 100, &[]);

            let exporter = with_limit(1);
            let error = export_items(signal, &exporter, 2).unwrap_err().to_string();
            let said = match signal {
                Signal::Logs => "2 of 2 log records are each larger",
                Signal::Metrics => "2 of 2 data points are each larger",
                _ => "2 of 2 spans are each larger",
            };
            assert!(error.contains(said), "{error}");
            assert_eq!(collector.received().len(), received.len());
            check_account_of(signal, &exporter, 0, &[(TooLarge, 2)]);
        }
    }
}

/// Scenario: two clones with resources of their own, as two providers set them.
/// Guarantees: each sends its own, and both are counted in one account.
#[test]
fn clones_have_their_own_resource_and_one_account() {
    let collector = Collector::start();
    let first = exporter(&collector);
    let exporters = ["a", "b"].map(|name| {
        let mut exporter = first.clone();
        let resource = Resource::builder_empty().with_service_name(name).build();
        SpanExporter::set_resource(&mut exporter, &resource);
        exporter
    });
    for exporter in &exporters {
        export(exporter, spans(1)).unwrap();
    }
    let received = collector.received();
    let sent = received.iter().map(|request| {
        let message = request.message();
        let resource = message.resource_spans[0].resource.clone().unwrap();
        format!("{:?}", resource.attributes[0].value)
    });
    for (name, sent) in ["a", "b"].into_iter().zip(sent) {
        assert!(sent.contains(&format!("{name:?}")), "{name}: {sent}");
    }
    check_account_of(Signal::Traces, &first, 2, &[]);
}

/// Scenario: each signal is checked, in each encoding, on a collector that takes it and on one that does not know its path.
/// Guarantees: an empty message to the endpoint of that signal, which is not counted; the error says which signal it is.
#[test]
fn check_asks_the_endpoint_of_its_signal() {
    for encoding in encodings() {
        for signal in Signal::ALL {
            let collector = Collector::scripted([Reply::status(200), Reply::status(404)]);
            let exporter = builder(&collector.endpoint())
                .with_encoding(encoding)
                .build()
                .unwrap();
            block_on(exporter.check_signal(*signal)).unwrap();
            let error = block_on(exporter.handle().check_signal(*signal)).unwrap_err();
            let is_of_path = matches!(error, CheckError::Path { signal: of, .. } if of == *signal);
            assert!(is_of_path, "{error:?}");
            assert!(
                error
                    .to_string()
                    .contains(&format!("OTLP {signal} receiver"))
            );
            let empty: &[u8] = match encoding {
                Encoding::Json => b"{}",
                _ => b"",
            };
            for request in collector.received() {
                assert_eq!(request.path, format!("/v1/{signal}"));
                assert_eq!(request.body, empty);
            }
            assert_eq!(exporter.stats_of(*signal).attempts(), 0);
        }
    }
}

/// Scenario: preferences of temporality in the environment, in code, in both and in none.
/// Guarantees: code wins, and without any it is cumulative.
#[cfg(feature = "metric-export")]
#[test]
fn temporality_is_what_code_or_else_the_environment_prefers() {
    use opentelemetry_sdk::metrics::Temporality::{self, Cumulative, Delta, LowMemory};
    use opentelemetry_sdk::metrics::exporter::PushMetricExporter;

    let cases: [(&'static str, Option<Temporality>, Temporality); 5] = [
        ("", None, Cumulative),
        ("delta", None, Delta),
        ("LowMemory", None, LowMemory),
        ("delta", Some(Cumulative), Cumulative),
        ("backwards", None, Cumulative),
    ];
    for (variable, in_code, expected) in cases {
        let mut builder = builder("http://h").with_env_lookup(move |name| {
            let name = name.strip_prefix("OTEL_EXPORTER_OTLP_METRICS_")?;
            (name == "TEMPORALITY_PREFERENCE").then(|| variable.to_owned())
        });
        if let Some(in_code) = in_code {
            builder = builder.with_temporality(in_code);
        }
        let temporality = builder.build().unwrap().temporality();
        assert_eq!(temporality, expected, "{variable} {in_code:?}");
    }
}

/// Scenario: the same failure of each signal, twice.
/// Guarantees: one warning for each signal, which names it and what it counts.
#[cfg(feature = "internal-logs")]
#[test]
fn warning_names_its_signal() {
    use crate::support::Logs;

    let logs = Logs::capture(tracing::Level::WARN);
    let collector = Collector::answering(|_, _| Reply::status(400));
    let exporter = exporter(&collector);
    for _ in 0..2 {
        for signal in exported_signals() {
            export_items(signal, &exporter, 4).unwrap_err();
        }
    }
    let warnings = logs.warnings();
    assert_eq!(warnings.len(), exported_signals().count(), "{warnings:#?}");
    for (signal, warning) in exported_signals().zip(warnings) {
        let endpoint = format!("{}/v1/{signal}", collector.endpoint());
        for part in [&format!("signal=\"{signal}\""), "items=4", &endpoint] {
            assert!(warning.contains(part), "{part}: {warning}");
        }
    }
}
