//! A new trace in a full registry, over growing registries. The cost of the span itself is part of it.

#![allow(missing_docs)]

use benches::registry::{Full, SIZES};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("eviction");
    group.throughput(Throughput::Elements(1)).sample_size(10);
    for size in SIZES {
        let mut full = Full::new(size);
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter_batched(|| (), |()| full.start(1), BatchSize::SmallInput);
        });
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
