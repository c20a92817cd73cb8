//! Prints what an open request takes on the heap, beyond its context. Apart from the report, because its allocator counts.

#![forbid(unsafe_code)]
// A command-line program talks to its user.
#![allow(clippy::print_stdout)]

use std::alloc::System;

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn main() {
    println!("{}", benches::memory::entry_bytes(ALLOCATOR));
}
