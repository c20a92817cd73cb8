//! One `LogRecord` message.

use super::any_value::{self, Place};
use super::plan::Item;
use super::scope::Scope;
use super::scratch::{Replay, Scratch};
use super::wire::{
    Out, delimited, field_len, fixed32, fixed64, optional_len, put_optional, put_optional_fixed64,
    time_len, unix_nanos, varint,
};
use crate::signal::Signal;
use opentelemetry::InstrumentationScope;
use opentelemetry_sdk::logs::{SdkLogRecord, TraceContext};
use std::time::SystemTime;

const TIME: u8 = fixed64(1);
const SEVERITY_NUMBER: u8 = varint(2);
const SEVERITY_TEXT: u8 = delimited(3);
const BODY: u8 = delimited(5);
const ATTRIBUTES: u8 = delimited(6);
const FLAGS: u8 = fixed32(8);
const TRACE_ID: u8 = delimited(9);
const SPAN_ID: u8 = delimited(10);
const OBSERVED_TIME: u8 = fixed64(11);
const EVENT_NAME: u8 = delimited(12);

const SEVERITY_LEN: usize = 2;
const FLAGS_LEN: usize = 5;
/// A trace id and a span id, each with tag and length.
const IDS_LEN: usize = 28;

/// A log record of a batch, and the scope of its logger.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record<'a> {
    record: &'a SdkLogRecord,
    scope: &'a InstrumentationScope,
}

// ===== impl Record =====

impl<'a> Record<'a> {
    pub(crate) fn new((record, scope): (&'a SdkLogRecord, &'a InstrumentationScope)) -> Self {
        Self { record, scope }
    }
}

impl<'a> Item<'a> for Record<'a> {
    const SIGNAL: Signal = Signal::Logs;

    fn scope(self) -> Scope<'a> {
        Scope::of_record(self.scope, self.record.target().map(AsRef::as_ref))
    }

    fn measure(self, scratch: &mut Scratch) -> usize {
        let record = self.record;
        let mut len = time_len(nanos(record.timestamp()));
        if record.severity_number().is_some() {
            len += SEVERITY_LEN;
        }
        len += optional_len(record.severity_text().unwrap_or_default().len());
        if let Some(body) = record.body() {
            len += field_len(any_value::measure(body, scratch));
        }
        for (key, value) in record.attributes_iter() {
            len += field_len(any_value::measure_entry(key, value, scratch));
        }
        if let Some(context) = record.trace_context() {
            len += if flags(context) == 0 { 0 } else { FLAGS_LEN } + IDS_LEN;
        }
        len += time_len(nanos(record.observed_timestamp()));
        len + optional_len(record.event_name().unwrap_or_default().len())
    }

    /// Fields in the order of their tags.
    fn write(self, out: &mut Out, replay: &mut Replay<'_>) {
        let record = self.record;
        put_optional_fixed64(out, TIME, nanos(record.timestamp()));
        if let Some(severity) = record.severity_number() {
            out.array([SEVERITY_NUMBER, severity as u8]);
        }
        let severity_text = record.severity_text().unwrap_or_default();
        put_optional(out, SEVERITY_TEXT, severity_text.as_bytes());
        if let Some(body) = record.body() {
            any_value::write(out, Place::field(BODY), body, replay);
        }
        for (key, value) in record.attributes_iter() {
            any_value::write(out, Place::entry(ATTRIBUTES, key), value, replay);
        }
        if let Some(context) = record.trace_context() {
            put_context(out, context);
        }
        put_optional_fixed64(out, OBSERVED_TIME, nanos(record.observed_timestamp()));
        let event_name = record.event_name().unwrap_or_default();
        put_optional(out, EVENT_NAME, event_name.as_bytes());
    }
}

/// A time that is not known is 0, as OTLP has it.
#[inline]
fn nanos(time: Option<SystemTime>) -> u64 {
    time.map_or(0, unix_nanos)
}

#[inline]
fn flags(context: &TraceContext) -> u32 {
    context.trace_flags.unwrap_or_default().to_u8().into()
}

/// Ids are written even when they are all zeros, as a span's.
#[inline]
fn put_context(out: &mut Out, context: &TraceContext) {
    let flags = flags(context);
    if flags != 0 {
        out.array([FLAGS]);
        out.array(flags.to_le_bytes());
    }
    let mut ids = [0; IDS_LEN];
    ids[..2].copy_from_slice(&[TRACE_ID, 16]);
    ids[2..18].copy_from_slice(&context.trace_id.to_bytes());
    ids[18..20].copy_from_slice(&[SPAN_ID, 8]);
    ids[20..].copy_from_slice(&context.span_id.to_bytes());
    out.array(ids);
}
