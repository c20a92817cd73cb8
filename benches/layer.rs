//! A request through a server with a layer, paced bursts: see `benches::layer`.

#![allow(missing_docs)]

use std::time::Duration;

use benches::layer::{self, App, Layer, measure};
use benches::span_cost::{Kind, REQUESTS};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn bench(c: &mut Criterion) {
    layer::check();
    for app in App::ALL {
        let mut group = c.benchmark_group(format!("layer/{}", app.name()));
        group.throughput(Throughput::Elements(1)).sample_size(10);
        for layer in Layer::ALL {
            group.bench_function(layer.name(), |bencher| {
                bencher.iter_custom(|requests| {
                    let bursts = (requests as usize).div_ceil(REQUESTS).clamp(20, 400);
                    let nanos = measure(app, layer, Kind::PerRequest, bursts);
                    Duration::from_nanos((nanos * requests as f64) as u64)
                });
            });
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
