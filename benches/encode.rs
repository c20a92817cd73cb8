//! Spans to OTLP bytes, over growing batches.

#![allow(missing_docs)]

use benches::encode::{Input, SIZES};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("encode");
    for size in SIZES {
        let input = Input::new(size);
        group.throughput(Throughput::Elements(size as u64));
        group.bench_function(BenchmarkId::new("direct", size), |bencher| {
            bencher.iter(|| input.direct());
        });
        group.bench_function(BenchmarkId::new("proto", size), |bencher| {
            let spans = || input.spans();
            bencher.iter_batched(spans, |spans| input.proto(spans), BatchSize::SmallInput);
        });
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
