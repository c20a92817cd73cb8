//! The SDK's trait: a batch becomes requests, their answers become one result.

use crate::config::{Compression, DirectExporterBuilder};
use crate::delivery::{Body, Budget, Delivery, MAX_RESPONSE_BYTES};
use crate::encode::{self, Encoded, EncodedResource, Encoding};
use crate::error::{CheckError, ExportError, describe, to_sdk};
use crate::log::{log_failure, log_warning};
use crate::stats::{ExporterStats, FailureReason};
use crate::telemetry::{InFlight, Telemetry, Topic};
use crate::{check, clock, compress};
use http::{Response, StatusCode};
use opentelemetry::{Context, otel_debug};
use opentelemetry_http::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use prost::Message;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// An OTLP/HTTP span exporter without a buffer: when [`export`](SpanExporter::export) returns, the spans have been
/// answered for, or the error says what happened.
///
/// - A batch becomes one request, or several when it is larger than the limit. An empty batch sends nothing.
/// - The credential is the [`ExportToken`](crate::ExportToken) of the context in which the export is first polled, read
///   anew for each attempt, or else the configured `authorization` header.
/// - Exports may run concurrently, on any thread, under any executor and under none.
/// - `Ok` means that the collector took every span. It does not mean that it stored them.
/// - An error may come after part of a batch was taken; [`stats`](DirectExporter::stats) counts both parts. Dropping the
///   future of an export stops it and counts its spans as `cancelled`.
/// - Each failure is counted by reason and said in a warning, at most one per reason in ten seconds.
/// - After `shutdown`, `export` fails with [`OTelSdkError::AlreadyShutdown`]. Exports already on their way finish. A second
///   `shutdown` changes nothing and says `AlreadyShutdown`, as that of `opentelemetry-otlp` does. `force_flush` has
///   nothing to do.
///
/// ```
/// use opentelemetry_otlp_direct::{Compression, DirectExporter};
/// use opentelemetry_sdk::trace::SdkTracerProvider;
///
/// # #[cfg(feature = "reqwest")]
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let exporter = DirectExporter::builder()
///     .with_endpoint("http://collector:4318")
///     .with_header("x-team", "checkout")
///     .with_compression(Compression::None)
///     .build()?;
/// let handle = exporter.handle();
/// let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).build();
/// // … later
/// assert_eq!(handle.stats().failed_in_total(), 0);
/// # provider.shutdown()?;
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "reqwest"))]
/// # fn main() {}
/// ```
#[derive(Debug)]
pub struct DirectExporter {
    shared: Arc<Shared>,
    resource: EncodedResource,
}

/// What can be asked of a [`DirectExporter`] after it has moved into a span processor. Clones are cheap and refer to the
/// same exporter; they stay usable after its shutdown.
#[derive(Clone, Debug)]
pub struct ExporterHandle {
    shared: Arc<Shared>,
}

/// What the exporter and its handles share.
#[derive(Debug)]
pub(crate) struct Shared {
    delivery: Delivery,
    telemetry: Telemetry,
    compression: Compression,
    max_request_bytes: usize,
    /// Set once, read by each export. Relaxed: nothing else is published by it.
    is_shut_down: AtomicBool,
}

/// A request that is ready to be sent, and how many spans it holds.
struct Prepared {
    body: Body,
    spans: usize,
}

// ===== impl DirectExporter =====

impl DirectExporter {
    /// Default of [`DirectExporterBuilder::with_timeout`].
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
    /// Default of [`DirectExporterBuilder::with_max_request_bytes`].
    pub const DEFAULT_MAX_REQUEST_BYTES: usize = 64 * 1024 * 1024;
    /// Default of [`DirectExporterBuilder::with_circuit_cooldown`].
    pub const DEFAULT_CIRCUIT_COOLDOWN: Duration = Duration::from_secs(30);

    /// Settings with their defaults; everything is optional.
    pub fn builder() -> DirectExporterBuilder {
        DirectExporterBuilder::new()
    }

    pub(crate) fn new(shared: Shared) -> Self {
        Self {
            shared: Arc::new(shared),
            resource: EncodedResource::default(),
        }
    }

    /// A handle, to be taken before the exporter moves into a span processor.
    pub fn handle(&self) -> ExporterHandle {
        ExporterHandle {
            shared: Arc::clone(&self.shared),
        }
    }

    /// What happened so far, see [`ExporterStats`].
    pub fn stats(&self) -> ExporterStats {
        self.shared.telemetry.snapshot()
    }

    /// See [`ExporterHandle::check`].
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn check(&self) -> Result<(), CheckError> {
        check::check(&self.shared.delivery).await
    }
}

impl SpanExporter for DirectExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.shared.export(&self.resource, batch).await
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        if self.shared.is_shut_down.swap(true, Ordering::Relaxed) {
            return Err(OTelSdkError::AlreadyShutdown);
        }
        Ok(())
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.resource = EncodedResource::new(resource);
    }
}

// ===== impl ExporterHandle =====

impl ExporterHandle {
    /// What happened so far, see [`ExporterStats`].
    pub fn stats(&self) -> ExporterStats {
        self.shared.telemetry.snapshot()
    }

    /// Finds out whether endpoint, path and credentials work, by sending one request without spans.
    ///
    /// It is sent once, within the exporter's timeout, under the [`ExportToken`](crate::ExportToken) of the current
    /// context if there is one. It neither counts in [`stats`](ExporterHandle::stats) nor opens or asks a circuit.
    /// Success promises that the collector takes requests under these credentials, not that it stores what they hold.
    /// Never blocks; dropping the future stops it.
    ///
    /// # Errors
    ///
    /// A [`CheckError`] that says which of the three does not work.
    ///
    /// ```no_run
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// use opentelemetry_otlp_direct::{CheckError, DirectExporter};
    ///
    /// let exporter = DirectExporter::builder().build()?;
    /// match exporter.check().await {
    ///     Err(CheckError::Credentials { status, .. }) => eprintln!("wrong token: {status}"),
    ///     other => other?,
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn check(&self) -> Result<(), CheckError> {
        check::check(&self.shared.delivery).await
    }
}

// ===== impl Shared =====

impl Shared {
    pub(crate) fn new(
        delivery: Delivery,
        telemetry: Telemetry,
        compression: Compression,
        max_request_bytes: usize,
    ) -> Self {
        Self {
            delivery,
            telemetry,
            compression,
            max_request_bytes,
            is_shut_down: AtomicBool::new(false),
        }
    }

    async fn export(&self, resource: &EncodedResource, batch: Vec<SpanData>) -> OTelSdkResult {
        // The context of the first poll: this is the request's, whatever is current when an await returns.
        let cx = Context::current();
        let mut in_flight = self.telemetry.begin(batch.len());
        if self.is_shut_down.load(Ordering::Relaxed) {
            let error = ExportError::AlreadyShutdown;
            self.fail(&mut in_flight, batch.len(), &error);
            return to_sdk(&[error]);
        }
        if batch.is_empty() {
            return Ok(());
        }
        let mut errors = Vec::new();
        let requests = self.prepare(resource, batch, &mut in_flight, &mut errors);
        let mut budget = self.delivery.budget();
        for request in requests {
            let result = self
                .deliver(&cx, request, &mut budget, &mut in_flight)
                .await;
            errors.extend(result.err());
        }
        to_sdk(&errors)
    }

    /// Encodes the batch; its spans are not needed after that. What is too large fails here.
    fn prepare(
        &self,
        resource: &EncodedResource,
        batch: Vec<SpanData>,
        in_flight: &mut InFlight<'_>,
        errors: &mut Vec<ExportError>,
    ) -> Vec<Prepared> {
        let requests = encode::spans(
            resource,
            &batch,
            Encoding::default(),
            self.max_request_bytes,
        );
        if requests.too_large > 0 {
            let error = ExportError::TooLarge {
                spans: requests.too_large,
                of: batch.len(),
                max_bytes: self.max_request_bytes,
            };
            self.fail(in_flight, requests.too_large, &error);
            errors.push(error);
        }
        let prepare = |request: Encoded| Prepared {
            spans: request.items,
            body: compress::body(request.bytes, self.compression),
        };
        requests.bodies.into_iter().map(prepare).collect()
    }

    async fn deliver(
        &self,
        cx: &Context,
        request: Prepared,
        budget: &mut Budget,
        in_flight: &mut InFlight<'_>,
    ) -> Result<(), ExportError> {
        let started = clock::monotonic();
        let on_attempt = |number| self.telemetry.attempt(number);
        let result = self
            .delivery
            .deliver(cx, &request.body, budget, on_attempt)
            .await;
        let status = match &result {
            Ok(response) => Some(response.status()),
            Err(error) => error.status(),
        };
        let result = result.and_then(|response| {
            let rejected = self.rejected(&response, request.spans);
            in_flight.settle(request.spans - rejected, Ok(()));
            match rejected {
                0 => Ok(()),
                rejected => Err(ExportError::Rejected {
                    rejected,
                    of: request.spans,
                }),
            }
        });
        let took = clock::monotonic().saturating_sub(started);
        let reason = result.as_ref().err().map(ExportError::reason);
        self.telemetry.operation(took, status, reason);
        if let Err(error) = &result {
            let failed = match error {
                ExportError::Rejected { rejected, .. } => *rejected,
                _ => request.spans,
            };
            self.fail(in_flight, failed, error);
        }
        result
    }

    /// How many of `spans` the collector says that it did not take. A collector's odd numbers are cut to what it got.
    fn rejected(&self, response: &Response<Bytes>, spans: usize) -> usize {
        let body = response.body();
        let decoded = match body.len() {
            0..=MAX_RESPONSE_BYTES => ExportTraceServiceResponse::decode(body.clone()).ok(),
            _ => None,
        };
        let Some(decoded) = decoded else {
            self.warn_undecodable(response);
            return 0;
        };
        let Some(partial) = decoded.partial_success else {
            return 0;
        };
        let rejected = usize::try_from(partial.rejected_spans).unwrap_or(0);
        let rejected = rejected.min(spans);
        if !partial.error_message.is_empty() {
            otel_debug!(
                name: "DirectExporter.CollectorMessage",
                rejected = rejected,
                message = self.delivery.shown(response, partial.error_message.as_bytes()).as_ref()
            );
        }
        if rejected == 0 && !partial.error_message.is_empty() {
            self.warn_message(response.status());
        }
        rejected
    }

    /// Counts spans as failed, and says so at a limited rate.
    fn fail(&self, in_flight: &mut InFlight<'_>, spans: usize, error: &ExportError) {
        let reason = error.reason();
        in_flight.settle(spans, Err(reason));
        // The refusal that opened the circuit has been said.
        if reason == FailureReason::CircuitOpen {
            return;
        }
        let Some(suppressed) = self.telemetry.admit_warning(Topic::Failure(reason)) else {
            return;
        };
        log_failure!(
            name: "DirectExporter.ExportFailed",
            reason = reason.as_str(),
            error = describe(error).as_str(),
            status = error.status().map_or(0, |status| status.as_u16()),
            spans = spans,
            endpoint = self.delivery.endpoint().to_string().as_str(),
            suppressed = suppressed
        );
    }

    fn warn_undecodable(&self, response: &Response<Bytes>) {
        self.delivery.log_body(response);
        if let Some(suppressed) = self.telemetry.admit_warning(Topic::UndecodableResponse) {
            log_warning!(
                name: "DirectExporter.UndecodableResponse",
                message = "success with a body that is no OTLP response: is the endpoint a collector?",
                status = response.status().as_u16(),
                endpoint = self.delivery.endpoint().to_string().as_str(),
                suppressed = suppressed
            );
        }
    }

    fn warn_message(&self, status: StatusCode) {
        if let Some(suppressed) = self.telemetry.admit_warning(Topic::CollectorMessage) {
            log_warning!(
                name: "DirectExporter.CollectorWarning",
                message = "collector took all spans and sent a message, shown at debug level",
                status = status.as_u16(),
                endpoint = self.delivery.endpoint().to_string().as_str(),
                suppressed = suppressed
            );
        }
    }
}
