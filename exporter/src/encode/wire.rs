//! The protobuf wire format, as far as OTLP needs it: lengths, tags, and the three ways a field is written.
//!
//! `prost::encoding` has the same primitives for any tag and any buffer. These are for one-byte tags (field numbers up
//! to 15) and a buffer that never grows, which is what makes them quick. The one field beyond that passes both of its
//! tag bytes itself.

use prost::encoding::encoded_len_varint;
use std::time::{SystemTime, UNIX_EPOCH};

/// A buffer of exactly the measured length, filled from the front.
///
/// Invariant: both passes agree, so `at` ends at the buffer's length. Were they ever not to, what does not fit would be
/// left out: a bad request is better than a panic in somebody's service.
#[derive(Debug)]
pub(crate) struct Out {
    bytes: Vec<u8>,
    at: usize,
}

/// The tag byte of a length-delimited field.
pub(super) const fn delimited(field: u8) -> u8 {
    (field << 3) | 2
}

/// The tag byte of a varint field.
pub(super) const fn varint(field: u8) -> u8 {
    field << 3
}

/// The tag byte of a `fixed64` or `double` field.
pub(super) const fn fixed64(field: u8) -> u8 {
    (field << 3) | 1
}

/// The tag byte of a `fixed32` field.
pub(super) const fn fixed32(field: u8) -> u8 {
    (field << 3) | 5
}

/// What a length-delimited field with `len` bytes inside takes, tag and length included.
#[inline(always)]
pub(super) fn field_len(len: usize) -> usize {
    1 + encoded_len_varint(len as u64) + len
}

/// [`field_len`] of a proto3 field that is left out when it is empty.
#[inline(always)]
pub(super) fn optional_len(len: usize) -> usize {
    if len == 0 { 0 } else { field_len(len) }
}

/// What a `uint32` field takes; nothing when it is zero.
#[inline(always)]
pub(super) fn optional_count_len(count: u32) -> usize {
    if count == 0 {
        0
    } else {
        1 + encoded_len_varint(u64::from(count))
    }
}

/// Begins a length-delimited field: its tag and length.
#[inline(always)]
pub(super) fn put_header(out: &mut Out, tag: u8, len: usize) {
    if len < 0x80 {
        out.array([tag, len as u8]);
    } else {
        out.array([tag]);
        out.varint(len as u64);
    }
}

/// Writes a length-delimited field, also when it is empty.
#[inline(always)]
pub(super) fn put_bytes(out: &mut Out, tag: u8, bytes: &[u8]) {
    put_header(out, tag, bytes.len());
    out.slice(bytes);
}

/// Writes a proto3 `string` or `bytes` field, which is left out when it is empty.
#[inline(always)]
pub(super) fn put_optional(out: &mut Out, tag: u8, bytes: &[u8]) {
    if !bytes.is_empty() {
        put_bytes(out, tag, bytes);
    }
}

/// Writes a proto3 `uint32` field, which is left out when it is zero.
#[inline(always)]
pub(super) fn put_optional_count(out: &mut Out, tag: u8, count: u32) {
    if count != 0 {
        out.array([tag]);
        out.varint(u64::from(count));
    }
}

/// Writes a proto3 `fixed64` field, which is left out when it is zero.
#[inline(always)]
pub(super) fn put_optional_fixed64(out: &mut Out, tag: u8, value: u64) {
    if value != 0 {
        put_fixed64(out, tag, value.to_le_bytes());
    }
}

/// Writes eight bytes behind their tag.
#[inline(always)]
pub(super) fn put_fixed64(out: &mut Out, tag: u8, value: [u8; 8]) {
    let mut field = [tag; 9];
    field[1..].copy_from_slice(&value);
    out.array(field);
}

/// Nanoseconds since 1970; times before are 0, and what does not fit wraps around, as in `opentelemetry-proto`.
#[inline]
pub(super) fn unix_nanos(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| {
        since
            .as_secs()
            .wrapping_mul(1_000_000_000)
            .wrapping_add(u64::from(since.subsec_nanos()))
    })
}

/// The length of a time field: [`unix_nanos`] is left out when it is zero.
#[inline(always)]
pub(super) fn time_len(nanos: u64) -> usize {
    if nanos == 0 { 0 } else { 9 }
}

// ===== impl Out =====

impl Out {
    pub(super) fn with_len(len: usize) -> Self {
        Self {
            bytes: vec![0; len],
            at: 0,
        }
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        debug_assert_eq!(self.at, self.bytes.len(), "measured is written");
        self.bytes
    }

    #[inline(always)]
    pub(super) fn array<const N: usize>(&mut self, bytes: [u8; N]) {
        if let Some(room) = self
            .bytes
            .get_mut(self.at..)
            .and_then(<[u8]>::first_chunk_mut)
        {
            *room = bytes;
        }
        self.at += N;
    }

    /// Most keys and values are shorter than a call of `memcpy` is worth. Two copies of a fixed size that overlap are
    /// a few moves instead.
    #[inline(always)]
    pub(super) fn slice(&mut self, bytes: &[u8]) {
        let len = bytes.len();
        if let Some(room) = self.bytes.get_mut(self.at..self.at + len) {
            match len {
                0..4 => room
                    .iter_mut()
                    .zip(bytes)
                    .for_each(|(to, from)| *to = *from),
                4..8 => copy_ends::<4>(room, bytes),
                8..16 => copy_ends::<8>(room, bytes),
                16..=32 => copy_ends::<16>(room, bytes),
                _ => room.copy_from_slice(bytes),
            }
        }
        self.at += len;
    }

    #[inline(always)]
    pub(super) fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.array([value as u8 | 0x80]);
            value >>= 7;
        }
        self.array([value as u8]);
    }
}

/// Copies between slices of the same length, from `N` to `2 * N`.
#[inline(always)]
fn copy_ends<const N: usize>(to: &mut [u8], from: &[u8]) {
    if let (Some(to), Some(from)) = (to.first_chunk_mut::<N>(), from.first_chunk::<N>()) {
        *to = *from;
    }
    if let (Some(to), Some(from)) = (to.last_chunk_mut::<N>(), from.last_chunk::<N>()) {
        *to = *from;
    }
}
