//! `on_start` and `on_end`, paced bursts: see `benches::span_cost` for why they are not measured flat out.

#![allow(missing_docs)]

use std::time::Duration;

use benches::span_cost::{Kind, REQUESTS, SPANS, measure};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("span_cost/caller");
    group.throughput(Throughput::Elements(1)).sample_size(10);
    for kind in [Kind::Noop, Kind::Simple, Kind::Batch, Kind::PerRequest] {
        group.bench_function(kind.name(), |bencher| {
            bencher.iter_custom(|spans| {
                let bursts = (spans as usize).div_ceil(REQUESTS * SPANS).clamp(20, 400);
                Duration::from_nanos((measure(kind, 1, bursts).caller * spans as f64) as u64)
            });
        });
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
