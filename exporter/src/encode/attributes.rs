//! Attributes: `KeyValue`, `AnyValue`, `ArrayValue`.

use super::scratch::{Replay, Scratch};
use super::wire::{
    Out, delimited, field_len, fixed64, optional_len, put_bytes, put_fixed64, put_header,
    put_optional, varint,
};
use opentelemetry::{Array, Key, KeyValue, Value};
use prost::encoding::encoded_len_varint;

const KEY: u8 = delimited(1);
const VALUE: u8 = delimited(2);
pub(super) const STRING: u8 = delimited(1);
const BOOL: u8 = varint(2);
const INT: u8 = varint(3);
const DOUBLE: u8 = fixed64(4);
pub(super) const ARRAY: u8 = delimited(5);
pub(super) const ARRAY_VALUE: u8 = delimited(1);

pub(super) const BOOL_LEN: usize = 2;
pub(super) const DOUBLE_LEN: usize = 9;

/// The length of `attributes` as a repeated field with a one-byte tag.
pub(super) fn measure<'a>(
    attributes: impl IntoIterator<Item = &'a KeyValue>,
    scratch: &mut Scratch,
) -> usize {
    attributes
        .into_iter()
        .map(|attribute| field_len(measure_one(&attribute.key, &attribute.value, scratch)))
        .sum()
}

/// The length of one `KeyValue` message.
pub(super) fn measure_one(key: &Key, value: &Value, scratch: &mut Scratch) -> usize {
    optional_len(key.as_str().len()) + field_len(measure_value(value, scratch))
}

/// Writes `attributes` as a repeated field.
pub(super) fn write<'a>(
    out: &mut Out,
    tag: u8,
    attributes: impl IntoIterator<Item = &'a KeyValue>,
    replay: &mut Replay<'_>,
) {
    for attribute in attributes {
        write_one(out, tag, &attribute.key, &attribute.value, replay);
    }
}

/// Writes one `KeyValue` message as a field.
#[inline]
pub(super) fn write_one(out: &mut Out, tag: u8, key: &Key, value: &Value, replay: &mut Replay<'_>) {
    let key = key.as_str().as_bytes();
    match value {
        Value::String(text) => {
            let text = text.as_str().as_bytes();
            begin(out, tag, key, field_len(text.len()));
            put_bytes(out, STRING, text);
        }
        Value::Bool(value) => {
            begin(out, tag, key, BOOL_LEN);
            put_bool(out, *value);
        }
        Value::I64(value) => {
            begin(out, tag, key, int_len(*value));
            put_int(out, *value);
        }
        Value::F64(value) => {
            begin(out, tag, key, DOUBLE_LEN);
            put_double(out, *value);
        }
        Value::Array(array) => write_array(out, tag, key, array, replay),
        _ => write_rendered(out, tag, key, replay),
    }
}

/// Everything of a `KeyValue` up to the inside of its `AnyValue`.
#[inline(always)]
pub(super) fn begin(out: &mut Out, tag: u8, key: &[u8], value_len: usize) {
    put_header(out, tag, optional_len(key.len()) + field_len(value_len));
    put_optional(out, KEY, key);
    put_header(out, VALUE, value_len);
}

#[inline]
fn measure_value(value: &Value, scratch: &mut Scratch) -> usize {
    match value {
        Value::String(text) => field_len(text.as_str().len()),
        Value::Bool(_) => BOOL_LEN,
        Value::I64(value) => int_len(*value),
        Value::F64(_) => DOUBLE_LEN,
        Value::Array(array) => field_len(measure_array(array, scratch)),
        // A kind of value this version does not know goes out as its rendering.
        other => field_len(scratch.text(other.to_string())),
    }
}

fn measure_array(array: &Array, scratch: &mut Scratch) -> usize {
    scratch.length(|scratch| match array {
        Array::Bool(values) => values.len() * field_len(BOOL_LEN),
        Array::I64(values) => values.iter().map(|&value| field_len(int_len(value))).sum(),
        Array::F64(values) => values.len() * field_len(DOUBLE_LEN),
        Array::String(values) => values
            .iter()
            .map(|text| field_len(field_len(text.as_str().len())))
            .sum(),
        other => field_len(field_len(scratch.text(other.to_string()))),
    })
}

fn write_array(out: &mut Out, tag: u8, key: &[u8], array: &Array, replay: &mut Replay<'_>) {
    let len = replay.length();
    begin(out, tag, key, field_len(len));
    put_header(out, ARRAY, len);
    match array {
        Array::Bool(values) => values.iter().for_each(|&value| {
            put_header(out, ARRAY_VALUE, BOOL_LEN);
            put_bool(out, value);
        }),
        Array::I64(values) => values.iter().for_each(|&value| {
            put_header(out, ARRAY_VALUE, int_len(value));
            put_int(out, value);
        }),
        Array::F64(values) => values.iter().for_each(|&value| {
            put_header(out, ARRAY_VALUE, DOUBLE_LEN);
            put_double(out, value);
        }),
        Array::String(values) => values
            .iter()
            .for_each(|text| put_array_text(out, text.as_str())),
        _ => put_array_text(out, replay.text()),
    }
}

fn put_array_text(out: &mut Out, text: &str) {
    put_header(out, ARRAY_VALUE, field_len(text.len()));
    put_bytes(out, STRING, text.as_bytes());
}

fn write_rendered(out: &mut Out, tag: u8, key: &[u8], replay: &mut Replay<'_>) {
    begin(out, tag, key, field_len(replay.text_len()));
    put_bytes(out, STRING, replay.text().as_bytes());
}

/// An `int64` is written as a two's-complement varint: a negative one takes ten bytes.
#[inline(always)]
pub(super) fn int_len(value: i64) -> usize {
    1 + encoded_len_varint(value as u64)
}

#[inline(always)]
pub(super) fn put_bool(out: &mut Out, value: bool) {
    out.array([BOOL, u8::from(value)]);
}

#[inline(always)]
pub(super) fn put_int(out: &mut Out, value: i64) {
    out.array([INT]);
    out.varint(value as u64);
}

#[inline(always)]
pub(super) fn put_double(out: &mut Out, value: f64) {
    put_fixed64(out, DOUBLE, value.to_le_bytes());
}
