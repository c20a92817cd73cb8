//! OTLP/JSON, made of OTLP as protobuf: the same message, said the other way.
//!
//! So there is one place that decides what a request says, and this one knows how JSON says it. The tables are OTLP's
//! messages, as far as an exporter writes them. The rules are those of protobuf's mapping to JSON, with the exceptions
//! that OTLP makes: ids are hexadecimal, enums are integers. What protobuf leaves out as a default is left out.

use crate::signal::Signal;
use std::io::Write;

/// A message's fields.
#[derive(Debug)]
pub(super) struct Message(&'static [Field]);

#[derive(Debug)]
struct Field {
    number: u64,
    name: &'static str,
    kind: Kind,
    repeated: bool,
}

/// What a field holds, which is how JSON writes it.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// `bytes` that are a trace id or a span id: hexadecimal.
    Id,
    /// Other `bytes`: base64.
    Bytes,
    Text,
    Bool,
    /// 32 bits, or an enum: a number.
    Small,
    /// `sint32`: a number.
    Zigzag,
    /// 64 bits: a decimal string, since a number in JSON is a double for many.
    Signed,
    Unsigned,
    /// 64 bits that are packed as varints: strings, too.
    Counts,
    /// A number, or what is none as its name.
    Double,
    Message(&'static Message),
}

/// A field's value as it lies in protobuf.
#[derive(Clone, Copy, Debug)]
enum Wire<'a> {
    Varint(u64),
    Fixed32(u32),
    Fixed64(u64),
    Delimited(&'a [u8]),
}

/// What is left to read.
struct Input<'a>(&'a [u8]);

/// The signal's request message.
pub(super) fn request(signal: Signal) -> &'static Message {
    match signal {
        Signal::Traces => &TRACES,
        Signal::Logs => &LOGS,
        Signal::Metrics => &METRICS,
    }
}

/// The JSON of a message that `protobuf` holds.
pub(super) fn from_protobuf(message: &'static Message, protobuf: &[u8]) -> Vec<u8> {
    // It takes about three times as much.
    let mut out = Vec::with_capacity(protobuf.len() * 3);
    put_message(&mut out, message, protobuf);
    out
}

fn put_message(out: &mut Vec<u8>, message: &Message, protobuf: &[u8]) {
    let mut input = Input(protobuf);
    let mut is_first = true;
    // The repeated field whose values are being listed. They lie together.
    let mut listed = None;
    out.push(b'{');
    while let Some((number, value)) = input.field() {
        let Some(field) = message.0.iter().find(|field| field.number == number) else {
            debug_assert!(false, "{number} is no field of {message:?}");
            continue;
        };
        if listed == Some(number) {
            out.push(b',');
        } else {
            if listed.take().is_some() {
                out.push(b']');
            }
            if !is_first {
                out.push(b',');
            }
            put_name(out, field.name);
            if field.repeated {
                out.push(b'[');
                listed = Some(number);
            }
        }
        is_first = false;
        put_field(out, field.kind, value);
    }
    if listed.is_some() {
        out.push(b']');
    }
    out.push(b'}');
}

/// One value, or those of a packed field.
fn put_field(out: &mut Vec<u8>, kind: Kind, value: Wire<'_>) {
    let packed = match (kind, value) {
        (Kind::Unsigned | Kind::Counts | Kind::Double, Wire::Delimited(packed)) => packed,
        _ => return put_value(out, kind, value),
    };
    let mut input = Input(packed);
    let mut is_first = true;
    while let Some(value) = input.packed(kind) {
        if !is_first {
            out.push(b',');
        }
        is_first = false;
        put_value(out, kind, value);
    }
}

fn put_value(out: &mut Vec<u8>, kind: Kind, value: Wire<'_>) {
    match (kind, value) {
        (Kind::Message(message), Wire::Delimited(bytes)) => put_message(out, message, bytes),
        (Kind::Text, Wire::Delimited(text)) => put_text(out, text),
        (Kind::Id, Wire::Delimited(id)) => put_hex(out, id),
        (Kind::Bytes, Wire::Delimited(bytes)) => put_base64(out, bytes),
        (Kind::Bool, Wire::Varint(value)) => put(out, format_args!("{}", value != 0)),
        // None of them is negative.
        (Kind::Small, Wire::Varint(value)) => put(out, format_args!("{value}")),
        (Kind::Small, Wire::Fixed32(value)) => put(out, format_args!("{value}")),
        (Kind::Zigzag, Wire::Varint(value)) => put(out, format_args!("{}", unzigzag(value))),
        (Kind::Signed, Wire::Varint(value) | Wire::Fixed64(value)) => {
            put(out, format_args!("\"{}\"", value as i64));
        }
        (Kind::Unsigned | Kind::Counts, Wire::Varint(value) | Wire::Fixed64(value)) => {
            put(out, format_args!("\"{value}\""));
        }
        (Kind::Double, Wire::Fixed64(bits)) => put_double(out, f64::from_bits(bits)),
        // A field that is null is one that is not set.
        (kind, value) => {
            debug_assert!(false, "{value:?} is no {kind:?}");
            out.extend_from_slice(b"null");
        }
    }
}

/// A name needs no escaping.
fn put_name(out: &mut Vec<u8>, name: &str) {
    out.push(b'"');
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing to memory does not fail.
    let _ = out.write_fmt(text);
}

fn put_double(out: &mut Vec<u8>, value: f64) {
    if value.is_nan() {
        out.extend_from_slice(b"\"NaN\"");
    } else if value.is_infinite() {
        let name: &[u8] = if value > 0.0 {
            b"\"Infinity\""
        } else {
            b"\"-Infinity\""
        };
        out.extend_from_slice(name);
    } else {
        // With an exponent where that is shorter, and with as many digits as tell it from any other.
        put(out, format_args!("{value:?}"));
    }
}

/// UTF-8 stays as it is.
fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| is_escaped(*byte)) {
        out.extend_from_slice(&rest[..at]);
        match rest[at] {
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            byte @ (b'"' | b'\\') => out.extend_from_slice(&[b'\\', byte]),
            byte => put(out, format_args!("\\u{byte:04x}")),
        }
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

fn is_escaped(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

fn put_hex(out: &mut Vec<u8>, id: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.push(b'"');
    for byte in id {
        out.push(DIGITS[usize::from(byte >> 4)]);
        out.push(DIGITS[usize::from(byte & 15)]);
    }
    out.push(b'"');
}

/// With padding, in the alphabet of RFC 4648, section 4.
fn put_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    out.push(b'"');
    for three in bytes.chunks(3) {
        let byte = |n: usize| usize::from(three.get(n).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let said = digit <= three.len();
            let place = bits >> (18 - 6 * digit) & 63;
            out.push(if said { DIGITS[place] } else { b'=' });
        }
    }
    out.push(b'"');
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

// ===== impl Input =====

/// Reads what this crate has written: what cannot be read is the end.
impl<'a> Input<'a> {
    fn field(&mut self) -> Option<(u64, Wire<'a>)> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => self.fixed64()?,
            2 => {
                let len = usize::try_from(self.varint()?).ok()?;
                Wire::Delimited(self.take(len)?)
            }
            5 => Wire::Fixed32(u32::from_le_bytes(self.array()?)),
            _ => return None,
        };
        Some((tag >> 3, value))
    }

    /// The next of a packed field's values.
    fn packed(&mut self, kind: Kind) -> Option<Wire<'a>> {
        match kind {
            Kind::Counts => Some(Wire::Varint(self.varint()?)),
            _ => self.fixed64(),
        }
    }

    fn fixed64(&mut self) -> Option<Wire<'a>> {
        Some(Wire::Fixed64(u64::from_le_bytes(self.array()?)))
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }
}

// ===== OTLP's messages =====

const fn one(number: u64, name: &'static str, kind: Kind) -> Field {
    Field {
        number,
        name,
        kind,
        repeated: false,
    }
}

const fn many(number: u64, name: &'static str, kind: Kind) -> Field {
    Field {
        number,
        name,
        kind,
        repeated: true,
    }
}

const fn of(message: &'static Message) -> Kind {
    Kind::Message(message)
}

static TRACES: Message = Message(&[many(1, "resourceSpans", of(&RESOURCE_SPANS))]);

static LOGS: Message = Message(&[many(1, "resourceLogs", of(&RESOURCE_LOGS))]);

static METRICS: Message = Message(&[many(1, "resourceMetrics", of(&RESOURCE_METRICS))]);

static RESOURCE: Message = Message(&[many(1, "attributes", of(&KEY_VALUE))]);

static SCOPE: Message = Message(&[
    one(1, "name", Kind::Text),
    one(2, "version", Kind::Text),
    many(3, "attributes", of(&KEY_VALUE)),
]);

static KEY_VALUE: Message = Message(&[one(1, "key", Kind::Text), one(2, "value", of(&ANY_VALUE))]);

static ANY_VALUE: Message = Message(&[
    one(1, "stringValue", Kind::Text),
    one(2, "boolValue", Kind::Bool),
    one(3, "intValue", Kind::Signed),
    one(4, "doubleValue", Kind::Double),
    one(5, "arrayValue", of(&ARRAY_VALUE)),
    one(6, "kvlistValue", of(&KEY_VALUE_LIST)),
    one(7, "bytesValue", Kind::Bytes),
]);

static ARRAY_VALUE: Message = Message(&[many(1, "values", of(&ANY_VALUE))]);

static KEY_VALUE_LIST: Message = Message(&[many(1, "values", of(&KEY_VALUE))]);

static RESOURCE_SPANS: Message = Message(&[
    one(1, "resource", of(&RESOURCE)),
    many(2, "scopeSpans", of(&SCOPE_SPANS)),
    one(3, "schemaUrl", Kind::Text),
]);

static SCOPE_SPANS: Message = Message(&[
    one(1, "scope", of(&SCOPE)),
    many(2, "spans", of(&SPAN)),
    one(3, "schemaUrl", Kind::Text),
]);

static SPAN: Message = Message(&[
    one(1, "traceId", Kind::Id),
    one(2, "spanId", Kind::Id),
    one(3, "traceState", Kind::Text),
    one(4, "parentSpanId", Kind::Id),
    one(5, "name", Kind::Text),
    one(6, "kind", Kind::Small),
    one(7, "startTimeUnixNano", Kind::Unsigned),
    one(8, "endTimeUnixNano", Kind::Unsigned),
    many(9, "attributes", of(&KEY_VALUE)),
    one(10, "droppedAttributesCount", Kind::Small),
    many(11, "events", of(&EVENT)),
    one(12, "droppedEventsCount", Kind::Small),
    many(13, "links", of(&LINK)),
    one(14, "droppedLinksCount", Kind::Small),
    one(15, "status", of(&STATUS)),
    one(16, "flags", Kind::Small),
]);

static EVENT: Message = Message(&[
    one(1, "timeUnixNano", Kind::Unsigned),
    one(2, "name", Kind::Text),
    many(3, "attributes", of(&KEY_VALUE)),
    one(4, "droppedAttributesCount", Kind::Small),
]);

static LINK: Message = Message(&[
    one(1, "traceId", Kind::Id),
    one(2, "spanId", Kind::Id),
    one(3, "traceState", Kind::Text),
    many(4, "attributes", of(&KEY_VALUE)),
    one(5, "droppedAttributesCount", Kind::Small),
    one(6, "flags", Kind::Small),
]);

static STATUS: Message = Message(&[one(2, "message", Kind::Text), one(3, "code", Kind::Small)]);

static RESOURCE_LOGS: Message = Message(&[
    one(1, "resource", of(&RESOURCE)),
    many(2, "scopeLogs", of(&SCOPE_LOGS)),
    one(3, "schemaUrl", Kind::Text),
]);

static SCOPE_LOGS: Message = Message(&[
    one(1, "scope", of(&SCOPE)),
    many(2, "logRecords", of(&LOG_RECORD)),
    one(3, "schemaUrl", Kind::Text),
]);

static LOG_RECORD: Message = Message(&[
    one(1, "timeUnixNano", Kind::Unsigned),
    one(2, "severityNumber", Kind::Small),
    one(3, "severityText", Kind::Text),
    one(5, "body", of(&ANY_VALUE)),
    many(6, "attributes", of(&KEY_VALUE)),
    one(8, "flags", Kind::Small),
    one(9, "traceId", Kind::Id),
    one(10, "spanId", Kind::Id),
    one(11, "observedTimeUnixNano", Kind::Unsigned),
    one(12, "eventName", Kind::Text),
]);

static RESOURCE_METRICS: Message = Message(&[
    one(1, "resource", of(&RESOURCE)),
    many(2, "scopeMetrics", of(&SCOPE_METRICS)),
    one(3, "schemaUrl", Kind::Text),
]);

static SCOPE_METRICS: Message = Message(&[
    one(1, "scope", of(&SCOPE)),
    many(2, "metrics", of(&METRIC)),
    one(3, "schemaUrl", Kind::Text),
]);

static METRIC: Message = Message(&[
    one(1, "name", Kind::Text),
    one(2, "description", Kind::Text),
    one(3, "unit", Kind::Text),
    one(5, "gauge", of(&GAUGE)),
    one(7, "sum", of(&SUM)),
    one(9, "histogram", of(&HISTOGRAM)),
    one(10, "exponentialHistogram", of(&EXPONENTIAL_HISTOGRAM)),
]);

static GAUGE: Message = Message(&[many(1, "dataPoints", of(&NUMBER_POINT))]);

static SUM: Message = Message(&[
    many(1, "dataPoints", of(&NUMBER_POINT)),
    one(2, "aggregationTemporality", Kind::Small),
    one(3, "isMonotonic", Kind::Bool),
]);

static HISTOGRAM: Message = Message(&[
    many(1, "dataPoints", of(&HISTOGRAM_POINT)),
    one(2, "aggregationTemporality", Kind::Small),
]);

static EXPONENTIAL_HISTOGRAM: Message = Message(&[
    many(1, "dataPoints", of(&EXPONENTIAL_HISTOGRAM_POINT)),
    one(2, "aggregationTemporality", Kind::Small),
]);

static NUMBER_POINT: Message = Message(&[
    one(2, "startTimeUnixNano", Kind::Unsigned),
    one(3, "timeUnixNano", Kind::Unsigned),
    one(4, "asDouble", Kind::Double),
    many(5, "exemplars", of(&EXEMPLAR)),
    one(6, "asInt", Kind::Signed),
    many(7, "attributes", of(&KEY_VALUE)),
    one(8, "flags", Kind::Small),
]);

static HISTOGRAM_POINT: Message = Message(&[
    one(2, "startTimeUnixNano", Kind::Unsigned),
    one(3, "timeUnixNano", Kind::Unsigned),
    one(4, "count", Kind::Unsigned),
    one(5, "sum", Kind::Double),
    many(6, "bucketCounts", Kind::Unsigned),
    many(7, "explicitBounds", Kind::Double),
    many(8, "exemplars", of(&EXEMPLAR)),
    many(9, "attributes", of(&KEY_VALUE)),
    one(10, "flags", Kind::Small),
    one(11, "min", Kind::Double),
    one(12, "max", Kind::Double),
]);

static EXPONENTIAL_HISTOGRAM_POINT: Message = Message(&[
    many(1, "attributes", of(&KEY_VALUE)),
    one(2, "startTimeUnixNano", Kind::Unsigned),
    one(3, "timeUnixNano", Kind::Unsigned),
    one(4, "count", Kind::Unsigned),
    one(5, "sum", Kind::Double),
    one(6, "scale", Kind::Zigzag),
    one(7, "zeroCount", Kind::Unsigned),
    one(8, "positive", of(&BUCKETS)),
    one(9, "negative", of(&BUCKETS)),
    one(10, "flags", Kind::Small),
    many(11, "exemplars", of(&EXEMPLAR)),
    one(12, "min", Kind::Double),
    one(13, "max", Kind::Double),
    one(14, "zeroThreshold", Kind::Double),
]);

static BUCKETS: Message = Message(&[
    one(1, "offset", Kind::Zigzag),
    many(2, "bucketCounts", Kind::Counts),
]);

static EXEMPLAR: Message = Message(&[
    one(2, "timeUnixNano", Kind::Unsigned),
    one(3, "asDouble", Kind::Double),
    one(4, "spanId", Kind::Id),
    one(5, "traceId", Kind::Id),
    one(6, "asInt", Kind::Signed),
    many(7, "filteredAttributes", of(&KEY_VALUE)),
]);
