//! A Worker in a process of its own, and a receiver for what it sends.

// What no test reads is still shown when one fails.
#![allow(dead_code)]

mod receiver;
mod workerd;

pub(crate) use receiver::{
    Attributes, Behaviour, Log, Point, Receiver, Span, SpanKind, SpanStatus,
};
pub(crate) use workerd::{Build, PATIENCE, Settings, Worker};

/// What leaves without a token of a request leaves under this one.
pub(crate) const SERVICE_TOKEN: &str = "token-of-the-service";

/// The settings of a Worker with the test routes that exports to `receiver`.
pub(crate) fn scenarios(receiver: &Receiver) -> Settings {
    exporting(Build::Scenarios, &receiver.endpoint())
}

pub(crate) fn exporting(build: Build, endpoint: &str) -> Settings {
    let headers = format!("authorization=Bearer%20{SERVICE_TOKEN}");
    Settings::new(build)
        .binding("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        .binding("OTEL_EXPORTER_OTLP_HEADERS", headers)
}

/// A receiver, and a Worker with the test routes that exports to it.
pub(crate) async fn start() -> (Receiver, Worker) {
    start_with(|settings| settings).await
}

/// The same with more settings.
pub(crate) async fn start_with(set: impl FnOnce(Settings) -> Settings) -> (Receiver, Worker) {
    let receiver = Receiver::start();
    let worker = Worker::start(set(scenarios(&receiver))).await;
    worker.keep_secret(SERVICE_TOKEN);
    (receiver, worker)
}

/// The only span of this name.
pub(crate) fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let mut found = spans.iter().filter(|span| span.name == name);
    let span = found.next();
    let span = span.unwrap_or_else(|| panic!("no `{name}` in {spans:?}"));
    assert!(found.next().is_none(), "two `{name}` in {spans:?}");
    span
}
