//! The measurements behind `cargo xtask bench`: ours beside the obvious alternative, in one run.

#![forbid(unsafe_code)]

pub mod span_cost;
