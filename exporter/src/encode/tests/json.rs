//! JSON beside what prost-reflect makes of the same message, which knows protobuf's mapping to JSON from the messages'
//! descriptors, and reads it back.

use super::*;
use crate::hostile::encoding::property_input;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde_json::Value as Json;
use std::sync::LazyLock;

static MESSAGES: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(opentelemetry_proto::DESCRIPTORS).unwrap());

fn message(signal: Signal) -> MessageDescriptor {
    let name = match signal {
        Signal::Traces => "trace.v1.ExportTraceServiceRequest",
        Signal::Logs => "logs.v1.ExportLogsServiceRequest",
        Signal::Metrics => "metrics.v1.ExportMetricsServiceRequest",
    };
    let name = format!("opentelemetry.proto.collector.{name}");
    MESSAGES.get_message_by_name(&name).unwrap()
}

/// The JSON of a request, which is what the reference makes of it as protobuf, and which the reference reads.
#[track_caller]
fn check(signal: Signal, protobuf: Vec<u8>) -> Json {
    let options = SerializeOptions::new().use_enum_numbers(true);
    let decoded = DynamicMessage::decode(message(signal), protobuf.as_slice()).unwrap();
    let expected = decoded
        .serialize_with_options(serde_json::value::Serializer, &options)
        .unwrap();
    let text = Encoding::Json.request(signal, protobuf);
    let ours: Json = serde_json::from_slice(&text).unwrap();
    let with_base64 = with_ids_in_base64(ours.clone());
    assert_eq!(with_base64, expected);

    let read = DynamicMessage::deserialize(message(signal), with_base64).unwrap();
    let expected = DynamicMessage::deserialize(message(signal), expected).unwrap();
    assert_eq!(read.encode_to_vec(), expected.encode_to_vec());
    ours
}

/// Ids are what OTLP has otherwise than protobuf.
fn with_ids_in_base64(json: Json) -> Json {
    match json {
        Json::Array(values) => values.into_iter().map(with_ids_in_base64).collect(),
        Json::Object(fields) => fields
            .into_iter()
            .map(|(name, value)| match (name.as_str(), value) {
                ("traceId" | "spanId" | "parentSpanId", Json::String(hex)) => {
                    let value = Json::from(base64(&unhex(&hex)));
                    (name, value)
                }
                (_, value) => (name, with_ids_in_base64(value)),
            })
            .collect(),
        other => other,
    }
}

fn unhex(hex: &str) -> Vec<u8> {
    assert!(hex.len() == 32 || hex.len() == 16, "{hex}");
    assert!(
        hex.bytes()
            .all(|digit| b"0123456789abcdef".contains(&digit))
    );
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}

/// That of prost-reflect, by way of a message that is nothing but bytes.
fn base64(bytes: &[u8]) -> String {
    let wrapper = MESSAGES
        .get_message_by_name("opentelemetry.proto.common.v1.AnyValue")
        .unwrap();
    let mut message = DynamicMessage::new(wrapper);
    message.set_field_by_name(
        "bytes_value",
        prost_reflect::Value::Bytes(bytes.to_vec().into()),
    );
    match serde_json::to_value(&message).unwrap()["bytesValue"].take() {
        Json::String(text) => text,
        other => panic!("{other}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Scenario: resources and batches of spans that any bytes make.
    /// Guarantees: the JSON is the reference's, but for ids, and is read as the same message.
    #[test]
    fn json_of_spans_is_that_of_the_reference(data in vec(any::<u8>(), 0..2_000)) {
        let (resource, spans) = property_input(&data);
        check(Signal::Traces, encode_request(&EncodedResource::new(&resource), &spans));
    }
}

#[cfg(feature = "logs")]
proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Scenario: resources and batches of log records that any bytes make.
    /// Guarantees: the JSON is the reference's, but for ids, and is read as the same message.
    #[test]
    fn json_of_log_records_is_that_of_the_reference(data in vec(any::<u8>(), 0..2_000)) {
        use crate::hostile::log_encoding::{property_input, with_batch};
        let (resource, records) = property_input(&data);
        let protobuf = with_batch(&records, |batch| {
            encode_logs_request(&EncodedResource::new(&resource), batch)
        });
        check(Signal::Logs, protobuf);
    }
}

/// Scenario: metrics of every kind.
/// Guarantees: the JSON is the reference's, and is read as the same message.
#[cfg(feature = "metric-export")]
#[test]
fn json_of_metrics_is_that_of_the_reference() {
    use super::metrics::{of_every_kind, recorded};
    let protobuf = recorded(of_every_kind, |metrics| {
        crate::encode::metrics(metrics, Encoding::Protobuf, 1 << 30)
            .bodies
            .remove(0)
            .bytes
    });
    let json = check(Signal::Metrics, protobuf).to_string();
    for part in [
        r#""asDouble":0.75"#,
        r#""asInt":"-9223372036854775808""#,
        r#""asInt":"3""#,
        r#""bucketCounts":["0","#,
        r#""isMonotonic":true"#,
        r#""aggregationTemporality":1"#,
        r#""exponentialHistogram":{"#,
    ] {
        assert!(json.contains(part), "{part} in {json}");
    }
}

/// Scenario: messages of metrics that this SDK does not make: exemplars, bounds that are infinite, empty and negative
/// numbers, defaults that are said.
/// Guarantees: the JSON is the reference's, but for ids.
#[cfg(feature = "metric-export")]
#[test]
fn json_of_exemplars_and_edge_values_is_that_of_the_reference() {
    use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
    use opentelemetry_proto::tonic::metrics::v1 as proto;
    use proto::exponential_histogram_data_point::Buckets;
    use proto::{exemplar, metric::Data, number_data_point};

    let exemplars = vec![
        proto::Exemplar {
            time_unix_nano: u64::MAX,
            span_id: vec![1; 8],
            trace_id: vec![0xfe; 16],
            value: Some(exemplar::Value::AsInt(-1)),
            ..Default::default()
        },
        proto::Exemplar {
            value: Some(exemplar::Value::AsDouble(f64::INFINITY)),
            ..Default::default()
        },
        proto::Exemplar::default(),
    ];
    let buckets = |offset, bucket_counts| {
        Some(Buckets {
            offset,
            bucket_counts,
        })
    };
    let data = [
        Data::Gauge(proto::Gauge {
            data_points: vec![
                proto::NumberDataPoint {
                    exemplars: exemplars.clone(),
                    flags: u32::MAX,
                    value: Some(number_data_point::Value::AsInt(0)),
                    ..Default::default()
                },
                proto::NumberDataPoint::default(),
            ],
        }),
        Data::Histogram(proto::Histogram {
            data_points: vec![proto::HistogramDataPoint {
                count: u64::MAX,
                sum: Some(-0.0),
                bucket_counts: vec![0, u64::MAX],
                explicit_bounds: vec![f64::NEG_INFINITY, 5e-324, f64::MAX],
                exemplars: exemplars.clone(),
                min: Some(f64::NAN),
                max: Some(0.0),
                ..Default::default()
            }],
            aggregation_temporality: 2,
        }),
        Data::ExponentialHistogram(proto::ExponentialHistogram {
            data_points: vec![proto::ExponentialHistogramDataPoint {
                scale: -10,
                zero_count: 1 << 60,
                positive: buckets(i32::MIN, vec![0, 1, 1 << 40]),
                negative: buckets(7, Vec::new()),
                zero_threshold: 1e-7,
                exemplars,
                ..Default::default()
            }],
            aggregation_temporality: 1,
        }),
        Data::Sum(proto::Sum::default()),
    ];
    let metric = |data| proto::Metric {
        data: Some(data),
        ..Default::default()
    };
    let request = ExportMetricsServiceRequest {
        resource_metrics: vec![proto::ResourceMetrics {
            scope_metrics: vec![proto::ScopeMetrics {
                metrics: data.map(metric).into(),
                ..Default::default()
            }],
            ..Default::default()
        }],
    };
    check(Signal::Metrics, request.encode_to_vec());
}

/// Scenario: a span, written out.
/// Guarantees: this text. The specification's rules can be read off it.
#[test]
fn json_of_a_span_is_this_text() {
    let mut span = plain_span("GET \"/\"\u{1}\tü".to_owned());
    span.span_context = SpanContext::new(
        TraceId::from_bytes([0xab; 16]),
        SpanId::from_bytes([0xc; 8]),
        TraceFlags::SAMPLED,
        false,
        TraceState::NONE,
    );
    span.span_kind = SpanKind::Server;
    span.start_time = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    span.attributes = vec![
        KeyValue::new("n", i64::MAX),
        KeyValue::new("d", 1.0),
        KeyValue::new("b", false),
        KeyValue::new("l", Value::Array(Array::from(vec![f64::NAN, 0.25]))),
    ];
    span.dropped_attributes_count = u32::MAX;
    span.status = Status::error("no");
    let text = Encoding::Json.request(
        Signal::Traces,
        encode_request(&EncodedResource::default(), &[span]),
    );
    let expected = concat!(
        r#"{"resourceSpans":[{"resource":{},"scopeSpans":[{"scope":{},"spans":[{"#,
        r#""traceId":"abababababababababababababababab","spanId":"0c0c0c0c0c0c0c0c","#,
        r#""name":"GET \"/\"\u0001\tü","kind":2,"startTimeUnixNano":"1700000000000000000","#,
        r#""attributes":[{"key":"n","value":{"intValue":"9223372036854775807"}},"#,
        r#"{"key":"d","value":{"doubleValue":1.0}},{"key":"b","value":{"boolValue":false}},"#,
        r#"{"key":"l","value":{"arrayValue":{"values":[{"doubleValue":"NaN"},"#,
        r#"{"doubleValue":0.25}]}}}],"droppedAttributesCount":4294967295,"#,
        r#""status":{"message":"no","code":2},"flags":257}]}]}]}"#,
    );
    assert_eq!(String::from_utf8(text).unwrap(), expected);
}

/// Scenario: a record with bytes of every length up to 9 as attributes, nested.
/// Guarantees: they are in base64, as the reference has it.
#[cfg(feature = "logs")]
#[test]
fn bytes_are_in_base64() {
    use crate::hostile::log_encoding::{plain_record, with_batch};
    use opentelemetry::logs::{AnyValue, LogRecord as _};

    let mut record = plain_record();
    for len in 0..10_u8 {
        let bytes: Vec<u8> = (0..len).map(|n| n.wrapping_mul(83) ^ 0xf5).collect();
        let bytes = AnyValue::Bytes(Box::new(bytes));
        let list = AnyValue::ListAny(Box::new(vec![bytes]));
        record.add_attribute("bytes", AnyValue::from_iter([("list", list)]));
    }
    let records = [(record, InstrumentationScope::default())];
    let protobuf = with_batch(&records, |batch| {
        encode_logs_request(&EncodedResource::default(), batch)
    });
    let json = check(Signal::Logs, protobuf).to_string();
    assert!(json.contains(r#"{"bytesValue":"9aZTDLk="}"#), "{json}");
}

/// Scenario: spans and a limit on their JSON: what some of them take, or a byte less.
/// Guarantees: no request is larger; together they hold each span once, in order; missing is exactly what fits into none.
#[test]
fn division_of_json_loses_nothing_and_keeps_the_limit() {
    let resource = EncodedResource::default();
    let batch: Vec<_> = (0..9)
        .map(|n| plain_span("n".repeat(40 * (n % 4) + n)))
        .collect();
    let json = |spans: &[SpanData]| {
        Encoding::Json.request(Signal::Traces, encode_request(&resource, spans))
    };
    let names = |bytes: &[u8]| -> Vec<String> {
        let request: Json = serde_json::from_slice(bytes).unwrap();
        let spans = request["resourceSpans"][0]["scopeSpans"][0]["spans"].clone();
        let names = spans.as_array().unwrap().iter();
        let name = |span: &Json| span["name"].as_str().unwrap_or_default().to_owned();
        names.map(name).collect()
    };
    for taken in 0..=batch.len() {
        for limit in [json(&batch[..taken]).len(), json(&batch[..taken]).len() - 1] {
            let requests = spans(&resource, &batch, Encoding::Json, limit);
            let mut left = Vec::new();
            for body in &requests.bodies {
                assert!(body.bytes.len() <= limit);
                let names = names(&body.bytes);
                assert_eq!(names.len(), body.items);
                left.extend(names);
            }
            let fits = |span: &&SpanData| json(std::slice::from_ref(span)).len() <= limit;
            let expected: Vec<_> = batch.iter().filter(fits).collect();
            assert_eq!(requests.too_large, batch.len() - expected.len());
            let expected: Vec<_> = expected.iter().map(|span| span.name.to_string()).collect();
            assert_eq!(left, expected, "{taken}, {limit}");
        }
    }
}
