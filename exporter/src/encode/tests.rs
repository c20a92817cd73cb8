//! Properties of the encoder, over generated resources and batches:
//!
//! - the bytes are those that `opentelemetry-proto` and `prost` produce for the same input;
//! - the measured length is the written length;
//! - a divided batch holds each span once, in order, in requests that keep the limit and could not take one span more.

use super::*;
use crate::hostile::encoding::{division, plain_span, same_bytes};
use opentelemetry::trace::{
    Event, Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{Array, InstrumentationScope, KeyValue, StringValue, Value};
use opentelemetry_sdk::trace::{SpanEvents, SpanLinks};
use proptest::collection::vec;
use proptest::prelude::*;
use std::borrow::Cow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

#[cfg(feature = "json")]
mod json;
#[cfg(feature = "logs")]
mod logs;
#[cfg(feature = "metric-export")]
mod metrics;

// ===== generated input =====

fn text() -> BoxedStrategy<String> {
    prop_oneof![
        40 => "[a-z.]{0,12}",
        20 => any::<String>(),
        10 => Just(String::new()),
        5 => Just("\0".to_owned()),
        10 => (120_usize..140).prop_map(|len| "x".repeat(len)),
        1 => (16_380_usize..16_390).prop_map(|len| "x".repeat(len)),
    ]
    .boxed()
}

fn int() -> BoxedStrategy<i64> {
    prop_oneof![any::<i64>(), -200_i64..200, Just(i64::MIN), Just(i64::MAX)].boxed()
}

fn double() -> BoxedStrategy<f64> {
    prop_oneof![
        any::<f64>(),
        Just(0.0),
        Just(-0.0),
        Just(f64::NAN),
        Just(f64::INFINITY),
        Just(f64::NEG_INFINITY)
    ]
    .boxed()
}

fn value() -> BoxedStrategy<Value> {
    prop_oneof![
        any::<bool>().prop_map(Value::from),
        int().prop_map(Value::from),
        double().prop_map(Value::from),
        text().prop_map(Value::from),
        vec(any::<bool>(), 0..4).prop_map(|values| Value::Array(Array::from(values))),
        vec(int(), 0..20).prop_map(|values| Value::Array(Array::from(values))),
        vec(double(), 0..20).prop_map(|values| Value::Array(Array::from(values))),
        vec(text().prop_map(StringValue::from), 0..4)
            .prop_map(|values| Value::Array(Array::from(values))),
    ]
    .boxed()
}

fn attributes() -> BoxedStrategy<Vec<KeyValue>> {
    // Keys that are the same are kept, each with its value.
    let key = prop_oneof![3 => text(), 1 => Just("key".to_owned())];
    let attribute = (key, value()).prop_map(|(key, value)| KeyValue::new(key, value));
    vec(attribute, 0..5).boxed()
}

fn time() -> BoxedStrategy<SystemTime> {
    prop_oneof![
        Just(UNIX_EPOCH),
        any::<u32>().prop_map(|s| UNIX_EPOCH - Duration::from_secs(s.into())),
        any::<u64>().prop_map(|ns| UNIX_EPOCH + Duration::from_nanos(ns)),
        // Past the year 2554, nanoseconds no longer fit 64 bits.
        (1_u64 << 33..1 << 40, 0_u32..1_000_000_000)
            .prop_map(|(s, ns)| UNIX_EPOCH + Duration::new(s, ns)),
    ]
    .boxed()
}

fn trace_state() -> BoxedStrategy<TraceState> {
    let entries = vec(("[a-z]{1,8}", "[a-z0-9]{0,40}"), 0..4);
    prop_oneof![
        3 => Just(TraceState::NONE),
        1 => entries.prop_map(|entries| TraceState::from_key_value(entries).unwrap_or_default()),
    ]
    .boxed()
}

fn span_context() -> BoxedStrategy<SpanContext> {
    let ids = (
        prop_oneof![any::<[u8; 16]>(), Just([0; 16])],
        prop_oneof![any::<[u8; 8]>(), Just([0; 8])],
    );
    (ids, any::<u8>(), any::<bool>(), trace_state())
        .prop_map(|((trace, span), flags, remote, state)| {
            SpanContext::new(
                TraceId::from_bytes(trace),
                SpanId::from_bytes(span),
                TraceFlags::new(flags),
                remote,
                state,
            )
        })
        .boxed()
}

fn count() -> BoxedStrategy<u32> {
    prop_oneof![Just(0), any::<u32>(), Just(u32::MAX)].boxed()
}

fn events() -> BoxedStrategy<SpanEvents> {
    let event = (text(), time(), attributes(), count())
        .prop_map(|(name, time, attributes, dropped)| Event::new(name, time, attributes, dropped));
    (vec(event, 0..3), count())
        .prop_map(|(events, dropped_count)| {
            let mut all = SpanEvents::default();
            (all.events, all.dropped_count) = (events, dropped_count);
            all
        })
        .boxed()
}

fn links() -> BoxedStrategy<SpanLinks> {
    let link = (span_context(), attributes(), count())
        .prop_map(|(context, attributes, dropped)| Link::new(context, attributes, dropped));
    (vec(link, 0..3), count())
        .prop_map(|(links, dropped_count)| {
            let mut all = SpanLinks::default();
            (all.links, all.dropped_count) = (links, dropped_count);
            all
        })
        .boxed()
}

fn status() -> BoxedStrategy<Status> {
    prop_oneof![
        Just(Status::Unset),
        Just(Status::Ok),
        text().prop_map(Status::error)
    ]
    .boxed()
}

fn kind() -> BoxedStrategy<SpanKind> {
    prop_oneof![
        Just(SpanKind::Internal),
        Just(SpanKind::Server),
        Just(SpanKind::Client),
        Just(SpanKind::Producer),
        Just(SpanKind::Consumer),
    ]
    .boxed()
}

fn scope(
    name: impl Into<Cow<'static, str>>,
    version: Option<&'static str>,
    schema_url: Option<&'static str>,
    attributes: Vec<KeyValue>,
) -> InstrumentationScope {
    let mut builder = InstrumentationScope::builder(name).with_attributes(attributes);
    if let Some(version) = version {
        builder = builder.with_version(version);
    }
    if let Some(schema_url) = schema_url {
        builder = builder.with_schema_url(schema_url);
    }
    builder.build()
}

/// A few scopes that are equal, nearly equal, or differ even from themselves; many share the address of their name.
fn scopes() -> Vec<InstrumentationScope> {
    let one = KeyValue::new("a", 1);
    let two = KeyValue::new("b", "2");
    let array = KeyValue::new("c", Value::Array(Array::from(vec![1_i64, 2, 3])));
    let mut scopes = vec![
        scope("", None, None, vec![]),
        scope("lib", None, None, vec![]),
        scope("lib", None, None, vec![]),
        scope("lib", Some("1"), None, vec![]),
        scope("lib", Some(""), Some(""), vec![]),
        scope("lib", Some("1"), Some("https://schema/1"), vec![]),
        scope(
            "lib",
            None,
            None,
            vec![one.clone(), two.clone(), array.clone()],
        ),
        scope("lib", None, None, vec![array, two, one]),
        scope("lib", None, None, vec![KeyValue::new("nan", f64::NAN)]),
    ];
    scopes.extend((0..6).map(|n| scope(format!("lib-{n}"), None, None, vec![])));
    scopes
}

prop_compose! {
    fn span()(
        (span_context, parent, remote, kind) in (
            span_context(),
            prop_oneof![Just([0_u8; 8]), any::<[u8; 8]>()],
            any::<bool>(),
            kind(),
        ),
        (name, start_time, end_time, status) in (text(), time(), time(), status()),
        (attributes, dropped, events, links) in (attributes(), count(), events(), links()),
        scope in 0..scopes().len(),
    ) -> SpanData {
        SpanData {
            span_context,
            parent_span_id: SpanId::from_bytes(parent),
            parent_span_is_remote: remote,
            span_kind: kind,
            name: name.into(),
            start_time,
            end_time,
            attributes,
            dropped_attributes_count: dropped,
            events,
            links,
            status,
            instrumentation_scope: scopes()[scope].clone(),
        }
    }
}

fn resource() -> BoxedStrategy<Resource> {
    (
        attributes(),
        prop_oneof![Just(""), Just("https://schema/r")],
    )
        .prop_map(|(attributes, schema_url)| {
            Resource::builder_empty()
                .with_schema_url(attributes, schema_url)
                .build()
        })
        .boxed()
}

// ===== properties =====

proptest! {
    #![proptest_config(ProptestConfig::with_cases(800))]

    /// Scenario: any resource, any batch of up to three spans.
    /// Guarantees: byte for byte the reference's encoding, in one allocation of exactly that length.
    #[test]
    fn bytes_are_those_of_the_reference(resource in resource(), spans in vec(span(), 0..4)) {
        same_bytes(&resource, &spans);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Scenario: batches with more scopes than are scanned one by one, interleaved.
    /// Guarantees: grouping is that of the reference.
    #[test]
    fn many_interleaved_scopes_group_as_in_the_reference(
        base in span(),
        order in vec(0..40_usize, 0..120),
    ) {
        let spans: Vec<_> = order
            .iter()
            .map(|n| {
                let mut span = base.clone();
                span.instrumentation_scope = scope(format!("lib-{n}"), None, None, vec![]);
                span
            })
            .collect();
        same_bytes(&Resource::builder_empty().build(), &spans);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Scenario: a batch divided at what any part of it takes, from none of its spans to all, give or take three bytes.
    /// Guarantees: each span leaves once, in order, or is counted as too large; no request exceeds the limit; none is cut
    /// earlier than it must be.
    #[test]
    fn division_loses_nothing_and_keeps_the_limit(
        resource in resource(),
        spans in vec(span(), 1..12),
        limit in any::<[u8; 3]>(),
    ) {
        division(&resource, &spans, limit);
    }
}

/// Scenario: four equal spans, and a limit at, below and above what two of them take.
/// Guarantees: a request may be exactly as large as the limit, and not a byte larger.
#[test]
fn request_may_be_exactly_as_large_as_the_limit() {
    let resource = EncodedResource::default();
    let spans = vec![plain_span("n".repeat(200)); 4];
    let two = encode_request(&resource, &spans[..2]).len();
    for (limit, sizes) in [
        (two - 1, vec![1, 1, 1, 1]),
        (two, vec![2, 2]),
        (two + 1, vec![2, 2]),
    ] {
        let mut plan = Plan::new(&resource, &spans);
        let requests = plan.divide(limit).requests;
        let len = |request: &std::ops::Range<usize>| request.len();
        assert_eq!(
            requests.iter().map(len).collect::<Vec<_>>(),
            sizes,
            "{limit}"
        );
    }
    let mut plan = Plan::new(&resource, &spans);
    let whole = encode_request(&resource, &spans).len();
    assert_eq!(plan.divide(whole).requests.len(), 1);
}

/// Scenario: a name of a megabyte, so that lengths take three bytes at every level.
/// Guarantees: the bytes are those of the reference.
#[test]
fn huge_text_keeps_every_length_right() {
    let mut span = plain_span("n".repeat(1 << 20));
    span.attributes = vec![KeyValue::new("k".repeat(1 << 17), "v".repeat(1 << 21))];
    span.status = Status::error("e".repeat(1 << 14));
    same_bytes(&Resource::builder().build(), &[span]);
}
