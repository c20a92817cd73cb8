//! The values of log records, which are lists and maps of values as well: `AnyValue`, `ArrayValue`, `KeyValueList`.

use super::attributes::{
    ARRAY, ARRAY_VALUE, BOOL_LEN, DOUBLE_LEN, STRING, begin, int_len, put_bool, put_double, put_int,
};
use super::scratch::{Replay, Scratch};
use super::wire::{Out, delimited, field_len, optional_len, put_bytes, put_header};
use opentelemetry::Key;
use opentelemetry::logs::AnyValue;
use std::fmt::Write;

const MAP: u8 = delimited(6);
const BYTES: u8 = delimited(7);
const MAP_VALUE: u8 = delimited(1);

/// How many lists and maps may lie in each other; what lies deeper goes out as text.
///
/// Receivers refuse a whole request for messages that are nested too deeply: in most languages at 100. A map takes three
/// of them, and the record around it five.
pub(super) const MAX_NESTING: usize = 24;

/// Where a value is written.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    tag: u8,
    /// That of the `KeyValue` around it, if there is one.
    key: Option<&'a Key>,
}

/// The length of an `AnyValue` message.
pub(super) fn measure(value: &AnyValue, scratch: &mut Scratch) -> usize {
    measure_nested(value, MAX_NESTING, scratch)
}

/// The length of a `KeyValue` message.
#[inline]
pub(super) fn measure_entry(key: &Key, value: &AnyValue, scratch: &mut Scratch) -> usize {
    measure_nested_entry(key, value, MAX_NESTING, scratch)
}

/// Writes an `AnyValue` or `KeyValue` message as a field.
#[inline]
pub(super) fn write(out: &mut Out, place: Place<'_>, value: &AnyValue, replay: &mut Replay<'_>) {
    write_nested(out, place, value, MAX_NESTING, replay);
}

fn measure_nested_entry(key: &Key, value: &AnyValue, room: usize, scratch: &mut Scratch) -> usize {
    optional_len(key.as_str().len()) + field_len(measure_nested(value, room, scratch))
}

/// With `room` for so many lists and maps in each other.
#[inline]
fn measure_nested(value: &AnyValue, room: usize, scratch: &mut Scratch) -> usize {
    match value {
        AnyValue::String(text) => field_len(text.as_str().len()),
        AnyValue::Boolean(_) => BOOL_LEN,
        AnyValue::Int(value) => int_len(*value),
        AnyValue::Double(_) => DOUBLE_LEN,
        AnyValue::Bytes(bytes) => field_len(bytes.len()),
        AnyValue::ListAny(values) if room > 0 => field_len(scratch.length(|scratch| {
            let lens = values
                .iter()
                .map(|value| measure_nested(value, room - 1, scratch));
            lens.map(field_len).sum()
        })),
        AnyValue::Map(entries) if room > 0 => field_len(scratch.length(|scratch| {
            let lens = entries
                .iter()
                .map(|(key, value)| measure_nested_entry(key, value, room - 1, scratch));
            lens.map(field_len).sum()
        })),
        // Nested too deeply, or of a kind that this version does not know.
        other => field_len(scratch.text(render(other))),
    }
}

#[inline]
fn write_nested(
    out: &mut Out,
    place: Place<'_>,
    value: &AnyValue,
    room: usize,
    replay: &mut Replay<'_>,
) {
    match value {
        AnyValue::String(text) => write_text(out, place, text.as_str()),
        AnyValue::Boolean(value) => {
            place.begin(out, BOOL_LEN);
            put_bool(out, *value);
        }
        AnyValue::Int(value) => {
            place.begin(out, int_len(*value));
            put_int(out, *value);
        }
        AnyValue::Double(value) => {
            place.begin(out, DOUBLE_LEN);
            put_double(out, *value);
        }
        AnyValue::Bytes(bytes) => {
            place.begin(out, field_len(bytes.len()));
            put_bytes(out, BYTES, bytes);
        }
        AnyValue::ListAny(values) if room > 0 => {
            begin_nested(out, place, ARRAY, replay);
            for value in values.iter() {
                write_nested(out, Place::field(ARRAY_VALUE), value, room - 1, replay);
            }
        }
        // A map is read twice, unchanged, and so in the same order.
        AnyValue::Map(entries) if room > 0 => {
            begin_nested(out, place, MAP, replay);
            for (key, value) in entries.iter() {
                write_nested(out, Place::entry(MAP_VALUE, key), value, room - 1, replay);
            }
        }
        _ => write_text(out, place, replay.text()),
    }
}

fn begin_nested(out: &mut Out, place: Place<'_>, tag: u8, replay: &mut Replay<'_>) {
    let len = replay.length();
    place.begin(out, field_len(len));
    put_header(out, tag, len);
}

#[inline]
fn write_text(out: &mut Out, place: Place<'_>, text: &str) {
    place.begin(out, field_len(text.len()));
    put_bytes(out, STRING, text.as_bytes());
}

/// A value as text, for a reader. It calls itself for nothing, so no nesting is too deep for the stack.
fn render(value: &AnyValue) -> String {
    enum Part<'a> {
        Value(&'a AnyValue),
        Key(&'a Key),
        Text(&'static str),
    }
    let mut text = String::new();
    // The last is next.
    let mut parts = vec![Part::Value(value)];
    while let Some(part) = parts.pop() {
        // Writing to memory does not fail.
        let _ = match part {
            Part::Text(part) => text.write_str(part),
            Part::Key(key) => write!(text, "{:?}: ", key.as_str()),
            Part::Value(AnyValue::ListAny(values)) => {
                parts.push(Part::Text("]"));
                for (n, value) in values.iter().enumerate().rev() {
                    parts.push(Part::Value(value));
                    parts.push(Part::Text(if n == 0 { "" } else { ", " }));
                }
                text.write_str("[")
            }
            Part::Value(AnyValue::Map(entries)) => {
                parts.push(Part::Text("}"));
                for (n, (key, value)) in entries.iter().enumerate() {
                    parts.push(Part::Text(if n == 0 { "" } else { ", " }));
                    parts.push(Part::Value(value));
                    parts.push(Part::Key(key));
                }
                text.write_str("{")
            }
            Part::Value(AnyValue::Int(value)) => write!(text, "{value}"),
            Part::Value(AnyValue::Double(value)) => write!(text, "{value}"),
            Part::Value(AnyValue::Boolean(value)) => write!(text, "{value}"),
            Part::Value(AnyValue::String(value)) => write!(text, "{:?}", value.as_str()),
            Part::Value(AnyValue::Bytes(bytes)) => write!(text, "{bytes:?}"),
            Part::Value(other) => write!(text, "{other:?}"),
        };
    }
    text
}

// ===== impl Place =====

impl<'a> Place<'a> {
    /// An `AnyValue` as a field.
    pub(super) fn field(tag: u8) -> Self {
        Self { tag, key: None }
    }

    /// A `KeyValue` as a field.
    pub(super) fn entry(tag: u8, key: &'a Key) -> Self {
        Self {
            tag,
            key: Some(key),
        }
    }

    /// Everything up to the inside of the `AnyValue`.
    #[inline(always)]
    fn begin(self, out: &mut Out, value_len: usize) {
        match self.key {
            Some(key) => begin(out, self.tag, key.as_str().as_bytes(), value_len),
            None => put_header(out, self.tag, value_len),
        }
    }
}
