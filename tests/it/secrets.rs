//! A token is nowhere to be seen: not in `Debug`, errors, logs, panics, backtraces or metrics.
//!
//! [`scene`] runs in a process of its own, where it does everything that shows something: all kinds of failures under tokens
//! that the collector has seen and repeats in its answers, panics of clients and exporters with a request in hand, every
//! public type in `Debug`, every error in both forms, all log lines of all crates at `TRACE`, and all metrics. The test
//! reads what that process wrote, and looks for the secrets in every form that such a text could give them.

mod faults;

use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

/// In every secret, at its start and at its end, so that a part of one is found as well.
const MARK: &str = "kQ7vZxJ2wRty";

/// A secret that tells where it comes from.
fn secret(place: &str) -> String {
    format!("{MARK}.{place}.{MARK}")
}

/// What the output must have, or it shows less than it should.
const LANDMARKS: &[&str] = &[
    // Log lines of both crates.
    "opentelemetry-per-request: ",
    "opentelemetry-otlp-direct: ",
    "DirectExporter.ExportFailed",
    "DirectExporter.ResponseBody",
    "DirectExporter.CollectorMessage",
    "DirectExporter.UndecodableResponse",
    "DirectExporter.CollectorWarning",
    "DirectExporter.SettingIgnored",
    "signal=\"logs\"",
    "signal=\"metrics\"",
    "PerRequestSpanProcessor.ExportFailed",
    "PerRequestSpanProcessor.LateSpans",
    "PerRequestSpanProcessor.SpansDropped",
    "PerRequestSpanProcessor.ProjectionPanicked",
    // What a reader of `Debug` sees in the place of a credential.
    "ExportToken(redacted)",
    "Sensitive",
    // Errors.
    "send credentials as a header",
    "(withheld: it repeats a credential)",
    "invalid value for header",
    "cannot carry",
    "401 Unauthorized",
    "307 Temporary Redirect",
    "more than is left of",
    "got no response",
    "no response within",
    "rejected 1 of 1 spans",
    "rejected 1 of 1 log records",
    "rejected 1 of 1 data points",
    "cannot be reached",
    "credentials are not accepted",
    // Panics.
    "the client panics with",
    "the exporter panics in",
    "the projection panics at",
    "stack backtrace:",
    // Metrics.
    "otel.sdk.processor.span.processed",
    "otel.sdk.exporter.span.exported",
    "otel.sdk.exporter.log.exported",
    "otel.sdk.exporter.metric_data_point.exported",
    "http.response.status_code",
    "the scene has been played",
];

/// Scenario: everything that shows something, with tokens, in a process of its own.
/// Guarantees: none of them is in what it wrote, in any form.
#[test]
fn tokens_are_nowhere_to_be_seen() {
    let shown = output_of("secrets::scene");
    for landmark in LANDMARKS {
        assert!(shown.contains(landmark), "no {landmark:?} in:\n{shown}");
    }
    let found = leaks(&shown);
    assert!(
        found.is_empty(),
        "secrets in the output:\n{}",
        found.join("\n")
    );
}

/// Scenario: a secret as it is, in capitals, cut, as bytes, in hex and in base64 at each offset.
/// Guarantees: the scan finds each of them, and nothing where there is nothing.
#[test]
fn scan_finds_a_secret_in_every_form() {
    let whole = secret("here");
    let bytes = whole.as_bytes();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut forms = vec![
        whole.clone(),
        whole.to_uppercase(),
        whole[..MARK.len() + 2].to_owned(),
        format!("{bytes:?}"),
        format!("{:?}", bytes::Bytes::from(whole.clone())),
        hex,
    ];
    for before in ["", "B", "Be", "Bearer "] {
        forms.push(STANDARD_NO_PAD.encode(format!("{before}{whole}")));
    }
    for form in forms {
        let line = format!("something: {form}, and more");
        assert_eq!(leaks(&line), [line.as_str()], "{form}");
    }
    assert!(leaks("ExportToken(redacted)").is_empty());
}

/// The lines with something of a secret in it.
fn leaks(shown: &str) -> Vec<&str> {
    let needles = needles();
    let leaks = |line: &&str| {
        let line = line.to_lowercase();
        needles.iter().any(|needle| line.contains(needle))
    };
    shown.lines().filter(leaks).collect()
}

/// The forms in which the mark can appear, in lower case.
fn needles() -> Vec<String> {
    let bytes = MARK.as_bytes();
    let decimal: Vec<_> = bytes.iter().map(u8::to_string).collect();
    let mut needles = vec![
        MARK.to_owned(),
        decimal.join(", "),
        bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
    ];
    // Of the mark behind no, one or two other bytes, the characters that do not depend on what is around it.
    for offset in 0..3 {
        let encoded = STANDARD_NO_PAD.encode([&[0; 2][..offset], bytes].concat());
        let own = (offset * 8).div_ceil(6)..(offset + bytes.len()) * 8 / 6;
        needles.push(encoded[own].to_owned());
    }
    needles.iter().map(|needle| needle.to_lowercase()).collect()
}

/// All that a test writes when it runs by itself, to both streams.
fn output_of(test: &str) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--ignored", "--nocapture"])
        .env("RUST_BACKTRACE", "1")
        .output()
        .unwrap();
    let shown = [output.stdout, output.stderr].concat();
    let shown = String::from_utf8_lossy(&shown).into_owned();
    assert!(output.status.success(), "{test} failed:\n{shown}");
    shown
}

#[test]
#[ignore = "it shows things, for `tokens_are_nowhere_to_be_seen`, which runs it in a process of its own"]
fn scene() {
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(std::io::stdout)
        .init();
    faults::play();
    println!("the scene has been played");
}
