//! Spans to bytes, beside what `opentelemetry-proto` and `prost` make of the same spans.

use super::Input;
#[cfg(feature = "json")]
use crate::encode::Encoding;
use crate::encode::{EncodedResource, Item, Plan, encode_request};
#[cfg(feature = "json")]
use crate::signal::Signal;
use opentelemetry::trace::{
    Event, Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{Array, InstrumentationScope, KeyValue, StringValue, Value};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use prost::Message;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A resource, a batch and a limit, whatever the bytes make of them.
pub fn property(data: &[u8]) {
    let mut input = Input(data);
    let limit: [u8; 3] = input.bytes();
    let (resource, spans) = input.resource_and_spans();
    same_bytes(&resource, &spans);
    division(&resource, &spans, limit);
    #[cfg(feature = "json")]
    is_json(Signal::Traces, reference(&resource, &spans).encode_to_vec());
}

/// A request as JSON can be read. What it says is compared elsewhere.
#[cfg(feature = "json")]
pub(super) fn is_json(signal: Signal, protobuf: Vec<u8>) {
    let json = Encoding::Json.request(signal, protobuf);
    let read: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert!(read.is_object());
}

/// What [`property`] is asked of, for other questions.
#[cfg(all(test, feature = "json"))]
pub(crate) fn property_input(data: &[u8]) -> (Resource, Vec<SpanData>) {
    Input(data).resource_and_spans()
}

/// Byte for byte what the reference makes of it, in one allocation of exactly that length.
pub(crate) fn same_bytes(resource: &Resource, spans: &[SpanData]) {
    let ours = encode_request(&EncodedResource::new(resource), spans);
    assert_eq!(ours, reference(resource, spans).encode_to_vec());
    assert_eq!(ours.capacity(), ours.len(), "measured is written");
}

/// See [`divided`].
pub(crate) fn division(resource: &Resource, spans: &[SpanData], limit: [u8; 3]) {
    let items: Vec<_> = spans.iter().collect();
    let expected = one_by_one(reference(resource, spans));
    divided(
        &EncodedResource::new(resource),
        &items,
        limit,
        expected,
        |bytes| {
            let request = ExportTraceServiceRequest::decode(bytes).unwrap();
            assert_eq!(request.encode_to_vec(), bytes);
            one_by_one(request)
        },
    );
}

/// Divided at a limit, no request of a batch is larger than that; together they hold each item once, in the order of the
/// reference, under the same scope and resource; missing is exactly what fits into no request, and no request ends before
/// it must.
///
/// The limit is what a part of the batch takes, from an item and for a number of them, or up to three bytes less or more.
/// `expected` is each item as a request of its own, which is also what `one_by_one` makes of a request.
pub(super) fn divided<'a, I: Item<'a>>(
    resource: &'a EncodedResource,
    items: &[I],
    [from, count, off]: [u8; 3],
    mut expected: Vec<Vec<u8>>,
    one_by_one: impl Fn(&[u8]) -> Vec<Vec<u8>>,
) {
    let plan = |items: &[I]| Plan::new(resource, items.to_vec());
    let len = |items: &[I]| plan(items).encode(0..items.len()).len();
    let from = usize::from(from) % (items.len() + 1);
    let count = usize::from(count) % (items.len() - from + 1);
    let limit = (len(&items[from..from + count]) + usize::from(off % 7)).saturating_sub(3);
    let mut plan = plan(items);
    let divided = plan.divide(limit);

    let mut left = Vec::new();
    for range in &divided.requests {
        let bytes = plan.encode(range.clone());
        assert!(bytes.len() <= limit, "{} of {limit}", bytes.len());
        if range.end < plan.everything().end {
            let longer = plan.encode(range.start..range.end + 1);
            assert!(longer.len() > limit, "it could have held one item more");
        }
        left.extend(one_by_one(&bytes));
    }
    // Where all of it fits, nothing is asked of an item by itself.
    if len(items) > limit {
        expected.retain(|alone| alone.len() <= limit);
    }
    assert_eq!(left, expected);
    assert_eq!(divided.too_large, items.len() - expected.len());
}

fn reference(resource: &Resource, spans: &[SpanData]) -> ExportTraceServiceRequest {
    ExportTraceServiceRequest {
        resource_spans: group_spans_by_resource_and_scope(spans.to_vec(), &resource.into()),
    }
}

/// Each span as a request of its own. As bytes, because a NaN is not equal to itself.
fn one_by_one(request: ExportTraceServiceRequest) -> Vec<Vec<u8>> {
    let mut requests = Vec::new();
    for mut resource in request.resource_spans {
        for mut scope in std::mem::take(&mut resource.scope_spans) {
            for span in std::mem::take(&mut scope.spans) {
                scope.spans = vec![span];
                resource.scope_spans = vec![scope.clone()];
                let alone = ExportTraceServiceRequest {
                    resource_spans: vec![resource.clone()],
                };
                requests.push(alone.encode_to_vec());
            }
        }
    }
    requests
}

/// A span with nothing but a name.
pub(crate) fn plain_span(name: String) -> SpanData {
    SpanData {
        span_context: SpanContext::empty_context(),
        parent_span_id: SpanId::INVALID,
        parent_span_is_remote: false,
        span_kind: SpanKind::Internal,
        name: name.into(),
        start_time: UNIX_EPOCH,
        end_time: UNIX_EPOCH,
        attributes: Vec::new(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: InstrumentationScope::default(),
    }
}

// ===== impl Input =====

/// Everything that a batch of spans can be made of.
impl Input<'_> {
    fn resource_and_spans(&mut self) -> (Resource, Vec<SpanData>) {
        let resource = self.resource();
        let scopes: Vec<_> = (0..=self.below(12)).map(|_| self.scope()).collect();
        let mut spans = Vec::new();
        while !self.is_empty() && spans.len() < 64 {
            let scope = &scopes[usize::from(self.byte()) % scopes.len()];
            spans.push(self.span(scope.clone()));
        }
        (resource, spans)
    }

    pub(super) fn resource(&mut self) -> Resource {
        let attributes = self.attributes();
        match self.below(3) {
            0 => Resource::builder_empty()
                .with_attributes(attributes)
                .build(),
            _ => Resource::builder_empty()
                .with_schema_url(attributes, self.text())
                .build(),
        }
    }

    pub(super) fn scope(&mut self) -> InstrumentationScope {
        let mut scope = InstrumentationScope::builder(self.text());
        let parts = self.byte();
        if parts & 1 != 0 {
            scope = scope.with_version(self.text());
        }
        if parts & 2 != 0 {
            scope = scope.with_schema_url(self.text());
        }
        if parts & 4 != 0 {
            scope = scope.with_attributes(self.attributes());
        }
        scope.build()
    }

    pub(super) fn span(&mut self, instrumentation_scope: InstrumentationScope) -> SpanData {
        let parts = self.byte();
        let mut span = plain_span(self.text());
        span.instrumentation_scope = instrumentation_scope;
        span.span_context = self.span_context();
        if parts & 1 != 0 {
            span.parent_span_id = SpanId::from_bytes(self.bytes());
            span.parent_span_is_remote = self.below(2) == 1;
        }
        if parts & 2 != 0 {
            (span.start_time, span.end_time) = (self.time(), self.time());
        }
        if parts & 4 != 0 {
            span.attributes = self.attributes();
            span.dropped_attributes_count = self.count();
        }
        if parts & 8 != 0 {
            span.events = SpanEvents::default();
            span.events.events = (0..self.below(4)).map(|_| self.event()).collect();
            span.events.dropped_count = self.count();
        }
        if parts & 16 != 0 {
            span.links = SpanLinks::default();
            span.links.links = (0..self.below(4)).map(|_| self.link()).collect();
            span.links.dropped_count = self.count();
        }
        if parts & 32 != 0 {
            span.status = match self.below(2) {
                0 => Status::Ok,
                _ => Status::error(self.text()),
            };
        }
        if parts & 64 != 0 {
            span.span_kind = match self.below(4) {
                0 => SpanKind::Server,
                1 => SpanKind::Client,
                2 => SpanKind::Producer,
                _ => SpanKind::Consumer,
            };
        }
        span
    }

    fn event(&mut self) -> Event {
        let (name, time) = (self.text(), self.time());
        Event::new(name, time, self.attributes(), self.count())
    }

    fn link(&mut self) -> Link {
        let context = self.span_context();
        Link::new(context, self.attributes(), self.count())
    }

    fn span_context(&mut self) -> SpanContext {
        let parts = self.byte();
        let (mut trace, mut span, mut state) =
            (TraceId::INVALID, SpanId::INVALID, TraceState::NONE);
        if parts & 1 != 0 {
            trace = TraceId::from_bytes(self.bytes());
            span = SpanId::from_bytes(self.bytes());
        }
        if parts & 2 != 0 {
            state = self.text().parse().unwrap_or_default();
        }
        let flags = TraceFlags::new(parts >> 3);
        SpanContext::new(trace, span, flags, parts & 4 != 0, state)
    }

    pub(super) fn attributes(&mut self) -> Vec<KeyValue> {
        (0..self.below(5))
            .map(|_| {
                let key = match self.below(4) {
                    // Often the same.
                    0 => "key".to_owned(),
                    _ => self.text(),
                };
                KeyValue::new(key, self.value())
            })
            .collect()
    }

    pub(super) fn value(&mut self) -> Value {
        let kind = self.below(10);
        let many = |input: &mut Self| (0..input.below(40)).map(|_| ());
        match kind {
            0 => Value::Bool(self.below(2) == 1),
            1 => Value::I64(self.int()),
            2 => Value::F64(self.double()),
            3 => Value::String(self.string()),
            4 => Value::Array(
                many(self)
                    .map(|()| self.below(2) == 1)
                    .collect::<Vec<_>>()
                    .into(),
            ),
            5 => Value::Array(many(self).map(|()| self.int()).collect::<Vec<_>>().into()),
            6 => Value::Array(
                many(self)
                    .map(|()| self.double())
                    .collect::<Vec<_>>()
                    .into(),
            ),
            7 => Value::Array(Array::String(many(self).map(|()| self.string()).collect())),
            8 => Value::String("static".into()),
            _ => Value::String(Arc::<str>::from(self.text()).into()),
        }
    }

    pub(super) fn string(&mut self) -> StringValue {
        self.text().into()
    }

    pub(super) fn int(&mut self) -> i64 {
        match self.below(5) {
            0 => i64::MIN,
            1 => i64::MAX,
            2 => i64::from(self.byte()) - 128,
            // One bit alone, and all below it: where a varint takes a byte more.
            3 => ((1_u64 << self.below(64)) - u64::from(self.below(2))) as i64,
            _ => i64::from_le_bytes(self.bytes()),
        }
    }

    pub(super) fn double(&mut self) -> f64 {
        match self.below(6) {
            0 => f64::NAN,
            1 => f64::INFINITY,
            2 => f64::NEG_INFINITY,
            3 => -0.0,
            4 => f64::MIN_POSITIVE / 2.0,
            _ => f64::from_le_bytes(self.bytes()),
        }
    }

    pub(super) fn count(&mut self) -> u32 {
        match self.below(4) {
            0 => 0,
            1 => u32::MAX,
            2 => self.byte().into(),
            _ => u32::from_le_bytes(self.bytes()),
        }
    }

    pub(super) fn time(&mut self) -> SystemTime {
        let seconds = u64::from(u32::from_le_bytes(self.bytes()));
        match self.below(5) {
            0 => UNIX_EPOCH,
            1 => UNIX_EPOCH - Duration::from_secs(seconds),
            2 => UNIX_EPOCH + Duration::from_nanos(seconds),
            // Past the year 2554, nanoseconds no longer fit 64 bits.
            3 => UNIX_EPOCH + Duration::new(seconds << 12, self.byte().into()),
            _ => UNIX_EPOCH + Duration::new(seconds, self.byte().into()),
        }
    }

    pub(super) fn text(&mut self) -> String {
        let len = self.byte();
        match len {
            0..32 => String::from_utf8_lossy(self.piece(len.into())).into_owned(),
            32 => "\0".to_owned(),
            33 => "schlüssel 🔑".to_owned(),
            // Around the lengths from which a length takes one byte more.
            34..48 => "x".repeat(usize::from(len) - 34 + 121),
            48 => "x".repeat((1 << 14) - 8 + usize::from(self.below(16))),
            _ => "scope"
                .get(..usize::from(len % 6))
                .unwrap_or_default()
                .to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Scenario: resources, batches of up to 64 spans and limits that any bytes make.
        /// Guarantees: the bytes are those of the reference, and a divided batch loses nothing and keeps its limit.
        #[test]
        fn whatever_bytes_make_is_encoded_as_by_the_reference(data in vec(any::<u8>(), 0..2_000)) {
            property(&data);
        }
    }
}
