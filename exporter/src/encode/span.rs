//! One `Span` message with its events, links and status.

use super::attributes;
use super::plan::Item;
use super::scope::Scope;
use super::scratch::{Replay, Scratch};
use super::wire::{
    Out, delimited, field_len, fixed32, fixed64, optional_count_len, optional_len, put_header,
    put_optional, put_optional_count, put_optional_fixed64, time_len, unix_nanos, varint,
};
use crate::signal::Signal;
use opentelemetry::trace::{
    Event, Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceState,
};
use opentelemetry_sdk::trace::SpanData;

const TRACE_ID: u8 = delimited(1);
const SPAN_ID: u8 = delimited(2);
const TRACE_STATE: u8 = delimited(3);

/// The tags of `Span`.
mod tag {
    use super::{delimited, fixed64, varint};

    pub(super) const PARENT_SPAN_ID: u8 = delimited(4);
    pub(super) const NAME: u8 = delimited(5);
    pub(super) const KIND: u8 = varint(6);
    pub(super) const START_TIME: u8 = fixed64(7);
    pub(super) const END_TIME: u8 = fixed64(8);
    pub(super) const ATTRIBUTES: u8 = delimited(9);
    pub(super) const DROPPED_ATTRIBUTES: u8 = varint(10);
    pub(super) const EVENTS: u8 = delimited(11);
    pub(super) const DROPPED_EVENTS: u8 = varint(12);
    pub(super) const LINKS: u8 = delimited(13);
    pub(super) const DROPPED_LINKS: u8 = varint(14);
    pub(super) const STATUS: u8 = delimited(15);
    /// Field 16 is the first whose tag takes two bytes.
    pub(super) const FLAGS: [u8; 2] = [0x85, 0x01];
}

/// The tags of `Span.Event`.
mod event_tag {
    use super::{delimited, fixed64, varint};

    pub(super) const TIME: u8 = fixed64(1);
    pub(super) const NAME: u8 = delimited(2);
    pub(super) const ATTRIBUTES: u8 = delimited(3);
    pub(super) const DROPPED_ATTRIBUTES: u8 = varint(4);
}

/// The tags of `Span.Link`, as far as they differ from those of `Span`.
mod link_tag {
    use super::{delimited, fixed32, varint};

    pub(super) const ATTRIBUTES: u8 = delimited(4);
    pub(super) const DROPPED_ATTRIBUTES: u8 = varint(5);
    pub(super) const FLAGS: u8 = fixed32(6);
}

const STATUS_MESSAGE: u8 = delimited(2);
const STATUS_CODE: u8 = varint(3);

/// `SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK`: we always know whether the parent is remote.
const REMOTE_IS_KNOWN: u32 = 0x100;
/// `SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK`.
const IS_REMOTE: u32 = 0x200;

/// A trace id and a span id, each with tag and length: their fixed place at the start of a span or link.
const IDS_LEN: usize = 28;
const PARENT_LEN: usize = 10;
const KIND_LEN: usize = 2;
const FLAGS_LEN: usize = 6;
const LINK_FLAGS_LEN: usize = 5;

impl<'a> Item<'a> for &'a SpanData {
    const SIGNAL: Signal = Signal::Traces;

    #[inline]
    fn scope(self) -> Scope<'a> {
        Scope::new(&self.instrumentation_scope)
    }

    fn measure(self, scratch: &mut Scratch) -> usize {
        measure(self, scratch)
    }

    fn write(self, out: &mut Out, replay: &mut Replay<'_>) {
        write(out, self, replay);
    }
}

/// The length of a `Span` message.
fn measure(span: &SpanData, scratch: &mut Scratch) -> usize {
    let mut len = IDS_LEN + KIND_LEN + FLAGS_LEN;
    len += measure_trace_state(span.span_context.trace_state(), scratch);
    if span.parent_span_id != SpanId::INVALID {
        len += PARENT_LEN;
    }
    len += optional_len(span.name.len());
    len += time_len(unix_nanos(span.start_time));
    len += time_len(unix_nanos(span.end_time));
    len += attributes::measure(&span.attributes, scratch);
    len += optional_count_len(span.dropped_attributes_count);
    for event in span.events.iter() {
        len += field_len(scratch.length(|scratch| measure_event(event, scratch)));
    }
    len += optional_count_len(span.events.dropped_count);
    for link in span.links.iter() {
        len += field_len(scratch.length(|scratch| measure_link(link, scratch)));
    }
    len += optional_count_len(span.links.dropped_count);
    len + field_len(status_len(&span.status))
}

/// Writes a `Span` message, fields in the order of their tags.
fn write(out: &mut Out, span: &SpanData, replay: &mut Replay<'_>) {
    put_ids(out, &span.span_context);
    put_trace_state(out, span.span_context.trace_state(), replay);
    if span.parent_span_id != SpanId::INVALID {
        put_parent(out, span.parent_span_id);
    }
    put_optional(out, tag::NAME, span.name.as_bytes());
    out.array([tag::KIND, kind(&span.span_kind)]);
    put_optional_fixed64(out, tag::START_TIME, unix_nanos(span.start_time));
    put_optional_fixed64(out, tag::END_TIME, unix_nanos(span.end_time));
    attributes::write(out, tag::ATTRIBUTES, &span.attributes, replay);
    put_optional_count(out, tag::DROPPED_ATTRIBUTES, span.dropped_attributes_count);
    for event in span.events.iter() {
        put_header(out, tag::EVENTS, replay.length());
        write_event(out, event, replay);
    }
    put_optional_count(out, tag::DROPPED_EVENTS, span.events.dropped_count);
    for link in span.links.iter() {
        put_header(out, tag::LINKS, replay.length());
        write_link(out, link, replay);
    }
    put_optional_count(out, tag::DROPPED_LINKS, span.links.dropped_count);
    put_status(out, &span.status);
    let flags = flags(span.span_context.trace_flags(), span.parent_span_is_remote);
    out.array(tag::FLAGS);
    out.array(flags.to_le_bytes());
}

fn measure_event(event: &Event, scratch: &mut Scratch) -> usize {
    time_len(unix_nanos(event.timestamp))
        + optional_len(event.name.len())
        + attributes::measure(&event.attributes, scratch)
        + optional_count_len(event.dropped_attributes_count)
}

fn write_event(out: &mut Out, event: &Event, replay: &mut Replay<'_>) {
    put_optional_fixed64(out, event_tag::TIME, unix_nanos(event.timestamp));
    put_optional(out, event_tag::NAME, event.name.as_bytes());
    attributes::write(out, event_tag::ATTRIBUTES, &event.attributes, replay);
    let dropped = event.dropped_attributes_count;
    put_optional_count(out, event_tag::DROPPED_ATTRIBUTES, dropped);
}

fn measure_link(link: &Link, scratch: &mut Scratch) -> usize {
    IDS_LEN
        + LINK_FLAGS_LEN
        + measure_trace_state(link.span_context.trace_state(), scratch)
        + attributes::measure(&link.attributes, scratch)
        + optional_count_len(link.dropped_attributes_count)
}

fn write_link(out: &mut Out, link: &Link, replay: &mut Replay<'_>) {
    put_ids(out, &link.span_context);
    put_trace_state(out, link.span_context.trace_state(), replay);
    attributes::write(out, link_tag::ATTRIBUTES, &link.attributes, replay);
    let dropped = link.dropped_attributes_count;
    put_optional_count(out, link_tag::DROPPED_ATTRIBUTES, dropped);
    let context = &link.span_context;
    out.array([link_tag::FLAGS]);
    out.array(flags(context.trace_flags(), context.is_remote()).to_le_bytes());
}

/// Ids are written even when they are all zeros: sixteen and eight bytes are not an empty field.
#[inline]
fn put_ids(out: &mut Out, context: &SpanContext) {
    let mut ids = [0; IDS_LEN];
    ids[..2].copy_from_slice(&[TRACE_ID, 16]);
    ids[2..18].copy_from_slice(&context.trace_id().to_bytes());
    ids[18..20].copy_from_slice(&[SPAN_ID, 8]);
    ids[20..].copy_from_slice(&context.span_id().to_bytes());
    out.array(ids);
}

#[inline]
fn put_parent(out: &mut Out, parent: SpanId) {
    let mut field = [0; PARENT_LEN];
    field[..2].copy_from_slice(&[tag::PARENT_SPAN_ID, 8]);
    field[2..].copy_from_slice(&parent.to_bytes());
    out.array(field);
}

/// A trace state can only be read as a new string, so it is rendered once and kept.
#[inline]
fn measure_trace_state(state: &TraceState, scratch: &mut Scratch) -> usize {
    if *state == TraceState::NONE {
        return 0;
    }
    optional_len(scratch.text(state.header()))
}

#[inline]
fn put_trace_state(out: &mut Out, state: &TraceState, replay: &mut Replay<'_>) {
    if *state != TraceState::NONE {
        put_optional(out, TRACE_STATE, replay.text().as_bytes());
    }
}

fn status_len(status: &Status) -> usize {
    match status {
        Status::Unset => 0,
        Status::Ok => 2,
        Status::Error { description } => optional_len(description.len()) + 2,
    }
}

/// A status is always present, even an empty one.
fn put_status(out: &mut Out, status: &Status) {
    put_header(out, tag::STATUS, status_len(status));
    match status {
        Status::Unset => {}
        Status::Ok => out.array([STATUS_CODE, 1]),
        Status::Error { description } => {
            put_optional(out, STATUS_MESSAGE, description.as_bytes());
            out.array([STATUS_CODE, 2]);
        }
    }
}

fn flags(trace_flags: TraceFlags, remote: bool) -> u32 {
    let remote = if remote { IS_REMOTE } else { 0 };
    u32::from(trace_flags.to_u8()) | REMOTE_IS_KNOWN | remote
}

fn kind(kind: &SpanKind) -> u8 {
    match kind {
        SpanKind::Internal => 1,
        SpanKind::Server => 2,
        SpanKind::Client => 3,
        SpanKind::Producer => 4,
        SpanKind::Consumer => 5,
    }
}
