//! Spans and log records to OTLP bytes, over growing batches.

#![allow(missing_docs)]

use benches::encode::{Input, LogInput, SIZES};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

fn spans(c: &mut Criterion) {
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

fn logs(c: &mut Criterion) {
    let mut group = c.benchmark_group("encode_logs");
    for size in SIZES {
        let input = LogInput::new(size);
        group.throughput(Throughput::Elements(size as u64));
        group.bench_function(BenchmarkId::new("direct", size), |bencher| {
            bencher.iter(|| input.direct());
        });
        group.bench_function(BenchmarkId::new("proto", size), |bencher| {
            bencher.iter(|| input.proto());
        });
    }
}

criterion_group!(benches, spans, logs);
criterion_main!(benches);
