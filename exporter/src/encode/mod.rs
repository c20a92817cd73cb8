//! Spans to OTLP bytes, pure: no clock, no network, no intermediate messages.
//!
//! The bytes are those of an `ExportTraceServiceRequest` as `opentelemetry-proto` and `prost` write it. One pass over
//! the spans measures them, one writes them into a buffer of exactly that length. Since lengths are known before a byte
//! is written, a batch that is too large for one request is divided by bytes without encoding anything twice.
//!
//! [`DirectExporter`](crate::DirectExporter) does all of this by itself. The module is public for those who send OTLP
//! bytes in their own way.

mod attributes;
mod plan;
mod scratch;
mod span;
mod wire;

pub(crate) use plan::Plan;

use opentelemetry_sdk::{Resource, trace::SpanData};
use scratch::Scratch;
use wire::{Out, delimited, put_header, put_optional};

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
