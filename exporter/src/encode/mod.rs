//! Telemetry to OTLP bytes, pure: no clock, no network.
//!
//! Spans and log records take no detour over messages, and the bytes are those of an `ExportTraceServiceRequest` or an
//! `ExportLogsServiceRequest` as `opentelemetry-proto` and `prost` write it. One pass measures them, one writes them into
//! a buffer of exactly that length. Since lengths are known before a byte is written, a batch that is too large for one
//! request is divided by bytes without encoding anything twice. Metrics take the detour. JSON is made of the protobuf.
//!
//! [`DirectExporter`](crate::DirectExporter) does all of this by itself. The module is public for those who send OTLP
//! bytes in their own way.

#[cfg(feature = "logs")]
mod any_value;
mod attributes;
#[cfg(feature = "json")]
mod json;
#[cfg(feature = "metric-export")]
mod metrics;
mod plan;
#[cfg(feature = "logs")]
mod record;
mod scope;
mod scratch;
mod span;
mod wire;

#[cfg(any(test, fuzzing))]
pub(crate) use plan::Item;
pub(crate) use plan::Plan;
#[cfg(feature = "logs")]
pub(crate) use record::Record;

use crate::signal::Signal;
#[cfg(feature = "logs")]
use opentelemetry_sdk::logs::LogBatch;
#[cfg(feature = "metric-export")]
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::{Resource, trace::SpanData};
use scratch::Scratch;
use wire::{Out, delimited, put_header, put_optional};

/// How request bodies are encoded. In environment variables: `http/protobuf`, `http/json`, in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Encoding {
    /// Binary protobuf, which every OTLP receiver over HTTP takes.
    #[default]
    Protobuf,
    /// OTLP's mapping to JSON, for receivers that take only that: ids in hexadecimal, 64-bit integers as strings, enums as
    /// integers. About three times as long before compression. Needs the feature `json`.
    Json,
}

/// Requests that together hold a batch, none of them larger than allowed.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    pub(crate) bodies: Vec<Encoded>,
    /// Items that are larger than a request may be, each by itself.
    pub(crate) too_large: usize,
}

/// A request, and how many spans, log records or data points it holds. Never none.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub(crate) bytes: Vec<u8>,
    pub(crate) items: usize,
}

/// A [`Resource`] as OTLP bytes, encoded once and written into each request.
///
/// The default is a resource without attributes and schema URL.
///
/// ```
/// use opentelemetry_otlp_direct::encode::{EncodedResource, encode_request};
/// use opentelemetry_sdk::Resource;
///
/// let resource = Resource::builder_empty().with_service_name("shop").build();
/// let body = encode_request(&EncodedResource::new(&resource), &[]);
/// assert!(body.windows(4).any(|bytes| bytes == b"shop"));
/// ```
#[derive(Clone, Debug)]
pub struct EncodedResource {
    /// Field 1 of `ResourceSpans`, with tag and length.
    head: Vec<u8>,
    /// Field 3 of `ResourceSpans`, with tag and length; empty without a schema URL.
    tail: Vec<u8>,
}

/// Encodes one OTLP `ExportTraceServiceRequest` with all of `spans`.
///
/// Spans are grouped by instrumentation scope, in the order in which the scopes first appear. Without spans, the request
/// holds the resource alone. There is no limit on the length; a request larger than 64 MiB is refused by most receivers.
///
/// ```
/// use opentelemetry::trace::{Span, Tracer, TracerProvider};
/// use opentelemetry_otlp_direct::encode::{EncodedResource, encode_request};
/// use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};
///
/// let spans = InMemorySpanExporter::default();
/// let provider = SdkTracerProvider::builder().with_simple_exporter(spans.clone()).build();
/// provider.tracer("shop").start("checkout").end();
///
/// let body = encode_request(&EncodedResource::default(), &spans.get_finished_spans()?);
/// assert!(body.windows(8).any(|bytes| bytes == b"checkout"));
/// # Ok::<(), opentelemetry_sdk::error::OTelSdkError>(())
/// ```
pub fn encode_request(resource: &EncodedResource, spans: &[SpanData]) -> Vec<u8> {
    let plan = Plan::new(resource, spans);
    plan.encode(plan.everything())
}

/// Encodes one OTLP `ExportLogsServiceRequest` with all records of `batch`.
///
/// Records are grouped by instrumentation scope, in the order in which the scopes first appear; a record's target stands
/// for the name of its scope. A time that is not known is 0, a record without a trace context has no ids. Values may be
/// lists and maps in each other, 24 of them; what lies deeper goes out as text, because receivers refuse a whole request
/// for one that is nested more deeply. Without records, the request holds the resource alone. There is no limit on the
/// length.
///
/// ```
/// use opentelemetry::InstrumentationScope;
/// use opentelemetry::logs::{LogRecord, Logger, LoggerProvider};
/// use opentelemetry_otlp_direct::encode::{EncodedResource, encode_logs_request};
/// use opentelemetry_sdk::logs::{LogBatch, SdkLoggerProvider};
///
/// let mut record = SdkLoggerProvider::builder().build().logger("shop").create_log_record();
/// record.set_body("checkout".into());
///
/// let scope = InstrumentationScope::builder("shop").build();
/// let body = encode_logs_request(&EncodedResource::default(), &LogBatch::new(&[(&record, &scope)]));
/// assert!(body.windows(8).any(|bytes| bytes == b"checkout"));
/// ```
#[cfg(feature = "logs")]
pub fn encode_logs_request(resource: &EncodedResource, batch: &LogBatch<'_>) -> Vec<u8> {
    let plan = Plan::new(resource, batch.iter().map(Record::new));
    plan.encode(plan.everything())
}

/// Encodes spans, each at most once. None of them are no request.
pub(crate) fn spans(
    resource: &EncodedResource,
    batch: &[SpanData],
    encoding: Encoding,
    max_bytes: usize,
) -> Requests {
    Plan::new(resource, batch).requests(encoding, max_bytes)
}

/// Encodes log records, as [`spans`] does spans.
#[cfg(feature = "logs")]
pub(crate) fn logs(
    resource: &EncodedResource,
    batch: &LogBatch<'_>,
    encoding: Encoding,
    max_bytes: usize,
) -> Requests {
    Plan::new(resource, batch.iter().map(Record::new)).requests(encoding, max_bytes)
}

/// Encodes metrics, with the resource that they bring. Without data points there is no request.
#[cfg(feature = "metric-export")]
pub(crate) fn metrics(metrics: &ResourceMetrics, encoding: Encoding, max_bytes: usize) -> Requests {
    metrics::requests(metrics, encoding, max_bytes)
}

// ===== impl Encoding =====

impl Encoding {
    /// The `Content-Type` of a request.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Protobuf => "application/x-protobuf",
            Self::Json => "application/json",
        }
    }

    /// A request for the signal, made of its protobuf.
    ///
    /// `build` refuses [`Json`](Self::Json) without the feature.
    pub(crate) fn request(self, signal: Signal, protobuf: Vec<u8>) -> Vec<u8> {
        match self {
            #[cfg(feature = "json")]
            Self::Json => json::from_protobuf(json::request(signal), &protobuf),
            _ => {
                let _ = signal;
                protobuf
            }
        }
    }
}

// ===== impl EncodedResource =====

impl EncodedResource {
    const RESOURCE: u8 = delimited(1);
    const SCHEMA_URL: u8 = delimited(3);
    const ATTRIBUTES: u8 = delimited(1);

    /// Encodes `resource`.
    pub fn new(resource: &Resource) -> Self {
        let mut scratch = Scratch::default();
        let len = resource
            .iter()
            .map(|(key, value)| wire::field_len(attributes::measure_one(key, value, &mut scratch)))
            .sum();

        let mut head = Out::with_len(wire::field_len(len));
        let mut replay = scratch.replay(scratch::Mark::default());
        put_header(&mut head, Self::RESOURCE, len);
        for (key, value) in resource {
            attributes::write_one(&mut head, Self::ATTRIBUTES, key, value, &mut replay);
        }

        let schema_url = resource.schema_url().unwrap_or_default();
        let mut tail = Out::with_len(wire::optional_len(schema_url.len()));
        put_optional(&mut tail, Self::SCHEMA_URL, schema_url.as_bytes());
        Self {
            head: head.into_bytes(),
            tail: tail.into_bytes(),
        }
    }
}

impl Default for EncodedResource {
    fn default() -> Self {
        Self::new(&Resource::builder_empty().build())
    }
}

#[cfg(test)]
mod tests;
