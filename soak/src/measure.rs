//! What is looked at: bytes on the heap, resident memory, threads, and how steeply a line rises.

use std::alloc::System;
use std::fs;

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Bytes on the heap of this process that are allocated and not freed.
pub(crate) fn live_bytes() -> i64 {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated as i64 - stats.bytes_deallocated as i64
}

/// Bytes of this process that are in memory. 0 where the system does not say.
pub(crate) fn resident_bytes() -> i64 {
    const PAGE: i64 = 4096;
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    pages.map_or(0, |pages: i64| pages * PAGE)
}

/// Threads of this process that belong to the processor. 0 where the system does not say.
pub(crate) fn processor_threads() -> usize {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else {
        return 0;
    };
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    // The system keeps 15 characters of a name.
    names
        .filter(|name| name.starts_with("otel-per-reques"))
        .count()
}

/// The line through points, by least squares. It keeps sums and no points, so it takes no memory of its own.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Line {
    points: f64,
    x: f64,
    y: f64,
    xx: f64,
    xy: f64,
}

impl Line {
    pub(crate) fn add(&mut self, x: f64, y: f64) {
        self.points += 1.0;
        self.x += x;
        self.y += y;
        self.xx += x * x;
        self.xy += x * y;
    }

    /// How much `y` grows with `x`. 0 for fewer than two points.
    pub(crate) fn slope(&self) -> f64 {
        let spread = self.points * self.xx - self.x * self.x;
        match spread > 0.0 {
            true => (self.points * self.xy - self.x * self.y) / spread,
            false => 0.0,
        }
    }
}

impl FromIterator<(f64, f64)> for Line {
    fn from_iter<I: IntoIterator<Item = (f64, f64)>>(points: I) -> Self {
        let mut line = Self::default();
        points.into_iter().for_each(|(x, y)| line.add(x, y));
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: points on a line, points around a level, and too few points.
    /// Guarantees: the slope is that of the line, and none where there is none.
    #[test]
    fn slope_is_that_of_the_line_through_the_points() {
        let slope = |points: &[(f64, f64)]| points.iter().copied().collect::<Line>().slope();
        let line = [(0.0, 5.0), (1.0, 7.0), (4.0, 13.0)];
        assert!((slope(&line) - 2.0).abs() < 1e-9);
        let level = [(0.0, 1.0), (1.0, 3.0), (2.0, 3.0), (3.0, 1.0)];
        assert!(slope(&level).abs() < 1e-9);
        assert_eq!(slope(&[(1.0, 1.0)]), 0.0);
        assert_eq!(slope(&[]), 0.0);
    }
}
