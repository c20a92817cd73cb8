//! The way out of one signal: a batch becomes requests, their answers become one result.

use crate::config::Compression;
use crate::delivery::{Body, Budget, Delivery, MAX_RESPONSE_BYTES};
use crate::encode::{Encoded, Encoding, Requests};
use crate::error::{CheckError, ExportError, describe, to_sdk};
use crate::log::{log_failure, log_warning};
use crate::response;
use crate::signal::Signal;
use crate::stats::{ExporterStats, FailureReason};
use crate::telemetry::{InFlight, Telemetry, Topic};
use crate::{check, clock, compress};
use http::{Response, header};
use opentelemetry::trace::FutureExt as _;
use opentelemetry::{Context, otel_debug};
use opentelemetry_http::Bytes;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use std::sync::atomic::{AtomicBool, Ordering};

/// All that the exporter and its clones have for one signal.
#[derive(Debug)]
pub(crate) struct Pipeline {
    signal: Signal,
    /// `None` in a Worker in which no endpoint is set for this signal.
    delivery: Option<Delivery>,
    telemetry: Telemetry,
    format: Format,
    /// Set once, read by each export. Relaxed: nothing else is published by it.
    is_shut_down: AtomicBool,
}

/// What requests look like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format {
    pub(crate) encoding: Encoding,
    pub(crate) compression: Compression,
    pub(crate) max_request_bytes: usize,
}

/// A request that is ready to be sent, and how many items it holds.
struct Prepared {
    body: Body,
    items: usize,
}

/// One call of `export`, and what has become of its items so far.
struct Export<'a> {
    pipeline: &'a Pipeline,
    delivery: &'a Delivery,
    in_flight: InFlight<'a>,
    /// How many items there were.
    of: usize,
    errors: Vec<ExportError>,
}

// ===== impl Pipeline =====

impl Pipeline {
    pub(crate) fn new(
        signal: Signal,
        delivery: Option<Delivery>,
        telemetry: Telemetry,
        format: Format,
    ) -> Self {
        Self {
            signal,
            delivery,
            telemetry,
            format,
            is_shut_down: AtomicBool::new(false),
        }
    }

    pub(crate) fn stats(&self) -> ExporterStats {
        self.telemetry.snapshot()
    }

    pub(crate) async fn check(&self) -> Result<(), CheckError> {
        match &self.delivery {
            Some(delivery) => check::check(self.signal, delivery, self.format.encoding).await,
            None => Err(CheckError::NoEndpoint {
                signal: self.signal,
            }),
        }
    }

    pub(crate) fn shutdown(&self) -> OTelSdkResult {
        if self.is_shut_down.swap(true, Ordering::Relaxed) {
            return Err(OTelSdkError::AlreadyShutdown);
        }
        Ok(())
    }

    /// Exports a batch of so many items, which `encode` turns into requests of at most so many bytes.
    ///
    /// All of it runs with telemetry suppressed: a warning about an export of logs must not become one more log to export.
    pub(crate) async fn export(
        &self,
        items: usize,
        encode: impl FnOnce(Encoding, usize) -> Requests,
    ) -> OTelSdkResult {
        // The context of the first poll: this is the request's, whatever is current when an await returns.
        let cx = Context::current();
        let suppressed = cx.with_telemetry_suppressed();
        self.export_under(&cx, items, encode)
            .with_context(suppressed)
            .await
    }

    async fn export_under(
        &self,
        cx: &Context,
        items: usize,
        encode: impl FnOnce(Encoding, usize) -> Requests,
    ) -> OTelSdkResult {
        let in_flight = self.telemetry.begin(items);
        if self.is_shut_down.load(Ordering::Relaxed) {
            return self.refuse(in_flight, items, ExportError::AlreadyShutdown);
        }
        if items == 0 {
            return Ok(());
        }
        let Some(delivery) = &self.delivery else {
            return self.refuse(in_flight, items, ExportError::NoEndpoint(self.signal));
        };
        let export = Export {
            pipeline: self,
            delivery,
            in_flight,
            of: items,
            errors: Vec::new(),
        };
        export.run(cx, encode).await
    }

    /// Fails all of an export that cannot even begin.
    fn refuse(
        &self,
        mut in_flight: InFlight<'_>,
        items: usize,
        error: ExportError,
    ) -> OTelSdkResult {
        self.fail(&mut in_flight, items, &error);
        to_sdk(&[error])
    }

    /// Counts items as failed, and says so at a limited rate.
    fn fail(&self, in_flight: &mut InFlight<'_>, items: usize, error: &ExportError) {
        let reason = error.reason();
        in_flight.settle(items, Err(reason));
        // The refusal that opened the circuit has been said.
        if reason == FailureReason::CircuitOpen {
            return;
        }
        let Some(suppressed) = self.telemetry.admit_warning(Topic::Failure(reason)) else {
            return;
        };
        log_failure!(
            name: "DirectExporter.ExportFailed",
            signal = self.signal.as_str(),
            reason = reason.as_str(),
            error = describe(error).as_str(),
            status = error.status().map_or(0, |status| status.as_u16()),
            items = items,
            endpoint = self.endpoint().as_str(),
            suppressed = suppressed
        );
    }

    /// As it may be shown.
    fn endpoint(&self) -> String {
        let delivery = self.delivery.as_ref();
        delivery.map_or_else(String::new, |delivery| delivery.endpoint().to_string())
    }

    fn warn_undecodable(&self, response: &Response<Bytes>) {
        if let Some(suppressed) = self.telemetry.admit_warning(Topic::UndecodableResponse) {
            log_warning!(
                name: "DirectExporter.UndecodableResponse",
                message = "success with a body that is no OTLP response: is the endpoint a collector?",
                signal = self.signal.as_str(),
                status = response.status().as_u16(),
                endpoint = self.endpoint().as_str(),
                suppressed = suppressed
            );
        }
    }

    fn warn_message(&self, response: &Response<Bytes>) {
        if let Some(suppressed) = self.telemetry.admit_warning(Topic::CollectorMessage) {
            log_warning!(
                name: "DirectExporter.CollectorWarning",
                message = "collector took everything and sent a message, shown at debug level",
                signal = self.signal.as_str(),
                status = response.status().as_u16(),
                endpoint = self.endpoint().as_str(),
                suppressed = suppressed
            );
        }
    }
}

// ===== impl Export =====

impl Export<'_> {
    async fn run(
        mut self,
        cx: &Context,
        encode: impl FnOnce(Encoding, usize) -> Requests,
    ) -> OTelSdkResult {
        let requests = self.prepare(encode);
        let mut budget = self.delivery.budget();
        for request in requests {
            self.deliver(cx, request, &mut budget).await;
        }
        to_sdk(&self.errors)
    }

    /// Encodes the batch; its items are not needed after that. What is too large fails here.
    fn prepare(&mut self, encode: impl FnOnce(Encoding, usize) -> Requests) -> Vec<Prepared> {
        let Format {
            encoding,
            compression,
            max_request_bytes,
        } = self.pipeline.format;
        let requests = encode(encoding, max_request_bytes);
        let encoded: usize = requests.bodies.iter().map(|request| request.items).sum();
        debug_assert_eq!(
            encoded + requests.too_large,
            self.of,
            "all are accounted for"
        );
        if requests.too_large > 0 {
            let error = ExportError::TooLarge {
                signal: self.pipeline.signal,
                count: requests.too_large,
                of: self.of,
                max_bytes: max_request_bytes,
            };
            self.fail(requests.too_large, error);
        }
        let prepare = |request: Encoded| Prepared {
            items: request.items,
            body: compress::body(request.bytes, compression),
        };
        requests.bodies.into_iter().map(prepare).collect()
    }

    async fn deliver(&mut self, cx: &Context, request: Prepared, budget: &mut Budget) {
        let telemetry = &self.pipeline.telemetry;
        let started = clock::monotonic();
        let on_attempt = |number| telemetry.attempt(number);
        let result = self
            .delivery
            .deliver(cx, &request.body, budget, on_attempt)
            .await;
        let status = match &result {
            Ok(response) => Some(response.status()),
            Err(error) => error.status(),
        };
        let failure = match result {
            Ok(response) => self.accept(&response, request.items),
            Err(error) => Some((request.items, error)),
        };
        let took = clock::monotonic().saturating_sub(started);
        let reason = failure.as_ref().map(|(_, error)| error.reason());
        telemetry.operation(took, status, reason);
        if let Some((items, error)) = failure {
            self.fail(items, error);
        }
    }

    /// Counts what the collector took. What it did not take is returned.
    fn accept(&mut self, response: &Response<Bytes>, of: usize) -> Option<(usize, ExportError)> {
        let rejected = self.rejected(response).min(of);
        self.in_flight.settle(of - rejected, Ok(()));
        let error = ExportError::Rejected {
            signal: self.pipeline.signal,
            rejected,
            of,
        };
        (rejected > 0).then_some((rejected, error))
    }

    /// How many items the collector says that it did not take, which may be more than it got.
    fn rejected(&self, response: &Response<Bytes>) -> usize {
        let body = response.body();
        let decoded = match body.len() {
            0..=MAX_RESPONSE_BYTES => {
                let encoding = encoding_of(response).unwrap_or(self.pipeline.format.encoding);
                response::partial_success(encoding, body).ok()
            }
            _ => None,
        };
        let Some(partial) = decoded else {
            self.delivery.log_body(response);
            self.pipeline.warn_undecodable(response);
            return 0;
        };
        if !partial.message.is_empty() {
            otel_debug!(
                name: "DirectExporter.CollectorMessage",
                rejected = partial.rejected,
                message = self.delivery.shown(response, partial.message.as_bytes()).as_ref()
            );
        }
        if partial.rejected == 0 && !partial.message.is_empty() {
            self.pipeline.warn_message(response);
        }
        partial.rejected
    }

    fn fail(&mut self, items: usize, error: ExportError) {
        self.pipeline.fail(&mut self.in_flight, items, &error);
        self.errors.push(error);
    }
}

/// What a response says that it is. It should be what its request was, but what is there is what is to be read.
fn encoding_of(response: &Response<Bytes>) -> Option<Encoding> {
    let content_type = response.headers().get(header::CONTENT_TYPE)?;
    let content_type = content_type.to_str().ok()?;
    let (kind, _) = content_type.split_once(';').unwrap_or((content_type, ""));
    [Encoding::Protobuf, Encoding::Json]
        .into_iter()
        .find(|encoding| kind.trim().eq_ignore_ascii_case(encoding.content_type()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Component;
    use futures_util::FutureExt as _;

    /// Scenario: an export, an empty one, and a check, of a signal without an endpoint, as there can be in a Worker.
    /// Guarantees: the export fails, is counted by its reason, and encodes nothing; an empty one has nothing to send; the
    /// check says why.
    #[test]
    fn export_without_an_endpoint_fails_and_is_counted() {
        let component = Component::next(
            #[cfg(feature = "metrics")]
            None,
        );
        let telemetry = Telemetry::new(Signal::Logs, None, &component);
        let format = Format {
            encoding: Encoding::Protobuf,
            compression: Compression::None,
            max_request_bytes: 1,
        };
        let pipeline = Pipeline::new(Signal::Logs, None, telemetry, format);
        let empty = pipeline.export(0, |_, _| unreachable!()).now_or_never();
        empty.unwrap().unwrap();
        let result = pipeline.export(3, |_, _| unreachable!()).now_or_never();
        let error = result.unwrap().unwrap_err().to_string();
        assert!(error.contains("no endpoint is set for logs"), "{error}");
        let stats = pipeline.stats();
        assert_eq!(stats.failed(FailureReason::NoEndpoint), 3);
        assert_eq!((stats.failed_in_total(), stats.in_flight()), (3, 0));
        let checked = pipeline.check().now_or_never().unwrap();
        assert!(matches!(
            checked,
            Err(CheckError::NoEndpoint {
                signal: Signal::Logs
            })
        ));
    }

    /// Scenario: content types of responses, well known, with parameters, in capitals, and others.
    /// Guarantees: the two encodings are known by theirs, and nothing is made of others.
    #[test]
    fn response_is_read_as_what_it_says_it_is() {
        let cases = [
            ("application/json", Some(Encoding::Json)),
            ("Application/JSON; charset=utf-8", Some(Encoding::Json)),
            ("application/x-protobuf", Some(Encoding::Protobuf)),
            ("text/html", None),
            ("", None),
        ];
        for (content_type, expected) in cases {
            let response = Response::builder().header(header::CONTENT_TYPE, content_type);
            let response = response.body(Bytes::new()).unwrap();
            assert_eq!(encoding_of(&response), expected, "{content_type}");
        }
        assert_eq!(encoding_of(&Response::new(Bytes::new())), None);
    }
}
