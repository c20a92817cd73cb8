//! A new trace in a full registry, over growing registries. The cost of the span itself is part of it.

#![allow(missing_docs)]

use std::time::Instant;

use benches::registry::{Full, SIZES};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("eviction");
    group.throughput(Throughput::Elements(1)).sample_size(10);
    for size in SIZES {
        let mut full = Full::new(size);
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter_custom(|traces| {
                // The evicted spans stay open, so that their ends are not measured: a sample must not make too many.
                let started = (traces as usize).min(1_000);
                let begin = Instant::now();
                full.start(started);
                begin.elapsed().mul_f64(traces as f64 / started as f64)
            });
        });
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
