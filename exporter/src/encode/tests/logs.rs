//! What of log records has no reference to be compared with, beside the property in [`hostile`](crate::hostile::log_encoding).

use super::*;
use crate::hostile::log_encoding::{Logged, plain_record, same_bytes, with_batch};
use opentelemetry::logs::{AnyValue, LogRecord as _};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Decoded;
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ScopeLogs};
use prost::Message;
use std::collections::HashMap;

fn check(records: &[Logged]) -> Vec<ScopeLogs> {
    let bytes = with_batch(records, |batch| {
        encode_logs_request(&EncodedResource::default(), batch)
    });
    let mut request = ExportLogsServiceRequest::decode(bytes.as_slice()).unwrap();
    request.resource_logs.remove(0).scope_logs
}

fn check_one(change: impl FnOnce(&mut opentelemetry_sdk::logs::SdkLogRecord)) -> LogRecord {
    let mut record = plain_record();
    change(&mut record);
    let scope = scope("lib", None, None, vec![]);
    check(&[(record, scope)]).remove(0).log_records.remove(0)
}

fn check_body(body: AnyValue) -> Option<Decoded> {
    check_one(|record| record.set_body(body))
        .body
        .and_then(|body| body.value)
}

/// So many lists around a number.
fn lists(depth: usize) -> AnyValue {
    (0..depth).fold(AnyValue::Int(7), |inner, _| {
        AnyValue::ListAny(Box::new(vec![inner]))
    })
}

/// So many maps around a number.
fn maps(depth: usize) -> AnyValue {
    (0..depth).fold(AnyValue::Int(7), |inner, _| {
        AnyValue::from_iter([("k", inner)])
    })
}

/// What lies under so many lists or maps.
fn under(value: Option<Decoded>, depth: usize) -> Option<Decoded> {
    (0..depth).fold(value, |value, _| match value {
        Some(Decoded::ArrayValue(mut array)) => array.values.remove(0).value,
        Some(Decoded::KvlistValue(mut list)) => {
            list.values.remove(0).value.and_then(|value| value.value)
        }
        other => panic!("no list or map: {other:?}"),
    })
}

/// Scenario: a record that was given to no logger, with no field set.
/// Guarantees: all fields are left out; an observed time that is missing is no panic.
#[test]
fn record_without_anything_is_an_empty_message() {
    assert_eq!(check_one(|_| {}), LogRecord::default());
}

/// Scenario: no body, and empty ones.
/// Guarantees: they can be told apart.
#[test]
fn empty_body_is_not_a_missing_one() {
    assert_eq!(check_one(|_| {}).body, None);
    let empty = check_body(AnyValue::String("".into()));
    assert_eq!(empty, Some(Decoded::StringValue(String::new())));
    let empty = check_body(AnyValue::Bytes(Box::default()));
    assert_eq!(empty, Some(Decoded::BytesValue(Vec::new())));
    let empty = check_body(AnyValue::ListAny(Box::default()));
    assert!(matches!(empty, Some(Decoded::ArrayValue(list)) if list.values.is_empty()));
    let empty = check_body(AnyValue::Map(Box::default()));
    assert!(matches!(empty, Some(Decoded::KvlistValue(map)) if map.values.is_empty()));
}

/// Scenario: a map of a hundred entries, one of them a map.
/// Guarantees: each entry leaves once, with its value. Their order is any.
#[test]
fn entries_of_a_map_leave_once_in_any_order() {
    let inner = AnyValue::from_iter((0..10).map(|n| (format!("inner-{n}"), n)));
    let mut entries: HashMap<_, _> = (0..100)
        .map(|n| {
            (
                opentelemetry::Key::from(format!("key-{n}")),
                AnyValue::Int(n),
            )
        })
        .collect();
    entries.insert("nested".into(), inner);
    let Some(Decoded::KvlistValue(map)) = check_body(AnyValue::Map(Box::new(entries))) else {
        panic!("no map");
    };
    let mut numbers = Vec::new();
    for entry in map.values {
        match entry.value.unwrap().value {
            Some(Decoded::IntValue(n)) => {
                assert_eq!(entry.key, format!("key-{n}"));
                numbers.push(n);
            }
            Some(Decoded::KvlistValue(inner)) => assert_eq!(inner.values.len(), 10),
            other => panic!("{other:?}"),
        }
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (0..100).collect::<Vec<_>>());
}

/// Scenario: lists and maps in each other, one fewer than the limit, as many, and one more.
/// Guarantees: up to the limit they are lists and maps; what lies deeper is its text.
#[test]
fn what_is_nested_too_deeply_leaves_as_text() {
    let limit = 24;
    for nested in [lists, maps] {
        for depth in [limit - 1, limit] {
            let innermost = under(check_body(nested(depth)), depth);
            assert_eq!(innermost, Some(Decoded::IntValue(7)), "{depth}");
        }
    }
    let text = |value| match under(check_body(value), limit) {
        Some(Decoded::StringValue(text)) => text,
        other => panic!("{other:?}"),
    };
    assert_eq!(text(lists(limit + 2)), "[[7]]");
    assert_eq!(text(maps(limit + 2)), r#"{"k": {"k": 7}}"#);
    let mixed = AnyValue::ListAny(Box::new(vec![
        AnyValue::Double(0.5),
        AnyValue::Boolean(true),
        AnyValue::String("a \"b\"".into()),
        AnyValue::Bytes(Box::new(vec![1, 255])),
        AnyValue::ListAny(Box::default()),
        AnyValue::Map(Box::default()),
        AnyValue::from_iter([("k", AnyValue::Int(-1))]),
    ]));
    let wrapped = (0..limit).fold(mixed, |inner, _| AnyValue::ListAny(Box::new(vec![inner])));
    assert_eq!(
        text(wrapped),
        r#"[0.5, true, "a \"b\"", [1, 255], [], {}, {"k": -1}]"#
    );
}

/// Scenario: an attribute nested as deeply as is followed, in a record of a scope of a resource.
/// Guarantees: prost decodes it, which refuses messages nested more deeply than 100, as do most implementations.
#[test]
fn deepest_value_is_not_too_deep_for_receivers() {
    let record = check_one(|record| record.add_attribute("deep", maps(24)));
    let value = record.attributes[0].value.clone().unwrap().value;
    assert_eq!(under(value, 24), Some(Decoded::IntValue(7)));
}

/// Scenario: a body of 20,000 lists in each other, on a thread with little stack.
/// Guarantees: it leaves, in time that grows with its size and not faster.
#[test]
fn very_deep_value_overflows_no_stack() {
    let mut record = plain_record();
    record.set_body(lists(20_000));
    // To drop it takes a stack frame for each list, which is for whoever has made it.
    let record: &Logged = Box::leak(Box::new((record, scope("lib", None, None, vec![]))));
    let encode = move || {
        let batch = [(&record.0, &record.1)];
        encode_logs_request(&EncodedResource::default(), &LogBatch::new(&batch))
    };
    let thread = std::thread::Builder::new().stack_size(128 * 1024);
    let bytes = thread.spawn(encode).unwrap().join().unwrap();
    assert!(bytes.len() > 2 * (20_000 - 24));
}

/// Scenario: two loggers of one name, records with and without targets.
/// Guarantees: a target stands for the name, and for nothing else of the scope; scopes are in order of appearance, and a
/// version that is missing is as one that is empty.
#[test]
fn target_stands_for_the_name_of_the_scope() {
    let targeted = |target: &'static str| {
        let mut record = plain_record();
        record.set_target(target);
        record
    };
    let attributes = || vec![KeyValue::new("a", 1)];
    let one = scope("lib", Some("1"), Some("https://schema/1"), attributes());
    let plain = scope("lib", None, None, vec![]);
    let empty = scope("lib", Some(""), Some(""), vec![]);
    let scopes = check(&[
        (targeted("app::db"), one.clone()),
        (plain_record(), plain.clone()),
        (plain_record(), one.clone()),
        (targeted("app::db"), one.clone()),
        (targeted("lib"), empty),
        (targeted("app::db"), plain),
    ]);
    let told: Vec<_> = scopes
        .iter()
        .map(|scope| {
            let known = scope.scope.as_ref().unwrap();
            let attributes = known.attributes.len();
            let (name, version) = (known.name.as_str(), known.version.as_str());
            (name, version, attributes, scope.log_records.len())
        })
        .collect();
    let expected = [
        ("app::db", "1", 1, 2),
        ("lib", "", 0, 2),
        ("lib", "1", 1, 1),
        ("app::db", "", 0, 1),
    ];
    assert_eq!(told, expected);
}

/// Scenario: more targets than are scanned one by one, interleaved.
/// Guarantees: grouping is that of the reference.
#[test]
fn many_interleaved_targets_group_as_in_the_reference() {
    let records: Vec<Logged> = (0..200)
        .map(|n| {
            let mut record = plain_record();
            record.set_target(format!("app::{}", n * 7 % 30));
            record.set_observed_timestamp(UNIX_EPOCH + Duration::from_nanos(n));
            (record, scope("lib", None, None, vec![]))
        })
        .collect();
    same_bytes(&Resource::builder_empty().build(), &records);
}

/// Scenario: a batch without records.
/// Guarantees: no request.
#[test]
fn no_records_are_no_request() {
    let requests = with_batch(&[], |batch| {
        logs(&EncodedResource::default(), batch, Encoding::Protobuf, 0)
    });
    assert_eq!((requests.bodies.len(), requests.too_large), (0, 0));
    let requests = spans(&EncodedResource::default(), &[], Encoding::Protobuf, 0);
    assert_eq!((requests.bodies.len(), requests.too_large), (0, 0));
}
