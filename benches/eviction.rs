//! A new trace in a full registry, over growing registries. The cost of the span itself is part of it.

#![allow(missing_docs)]

use benches::registry::{Full, ROUND, SIZES};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("eviction");
    group.throughput(Throughput::Elements(1)).sample_size(10);
    for size in SIZES {
        let mut full = Full::new(size);
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter_custom(|traces| {
                let rounds = (0..traces).step_by(ROUND);
                rounds
                    .map(|done| full.start((traces - done) as usize))
                    .sum()
            });
        });
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
