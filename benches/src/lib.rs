//! The measurements behind `cargo xtask bench`: ours beside the obvious alternative, in one run.
//!
//! Each module answers one question, and checks that what it measured was done right. No number is compared with another
//! one here: that is for the reader, who knows the machine.

#![forbid(unsafe_code)]
// A measurement that could not be made is a failed run.
#![allow(clippy::expect_used)]

pub mod delivery;
pub mod encode;
pub mod memory;
pub mod registry;
pub mod span_cost;
pub mod wire;

/// The value below which so many of a hundred lie. Sorts.
pub fn percentile(values: &mut [f64], percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() - 1) * percent / 100]
}
