//! How long it takes to turn spans into OTLP bytes: directly, and by way of `opentelemetry-proto` and prost.
//!
//! Both start with finished spans and end with the same bytes. The way through messages takes the spans apart; what they
//! cost to clone before, or to drop after the direct way, is not counted.

use std::hint::black_box;
use std::time::Instant;

use opentelemetry::trace::{Span as _, Tracer as _, TracerProvider as _};
use opentelemetry_otlp_direct::encode::{EncodedResource, encode_request};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use prost::Message as _;

use crate::percentile;
use crate::span_cost::attributes;

/// Batch sizes that are compared.
pub const SIZES: [usize; 4] = [1, 8, 64, 512];

/// Spans and a resource, ready to be encoded either way.
#[derive(Debug)]
pub struct Input {
    spans: Vec<SpanData>,
    encoded: EncodedResource,
    attributes: ResourceAttributesWithSchema,
}

impl Input {
    /// So many spans of 8 attributes each.
    pub fn new(size: usize) -> Self {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder()
            .with_simple_exporter(exporter.clone())
            .build();
        let tracer = provider.tracer("bench");
        for _ in 0..size {
            tracer
                .span_builder("GET /orders/{id}")
                .with_attributes(attributes())
                .start(&tracer)
                .end();
        }
        let resource = Resource::builder().with_service_name("orders").build();
        let input = Self {
            spans: exporter.get_finished_spans().expect("the exporter is open"),
            encoded: EncodedResource::new(&resource),
            attributes: (&resource).into(),
        };
        assert_eq!(input.direct(), input.proto(input.spans.clone()));
        input
    }

    /// The spans, for [`proto`](Self::proto) to consume.
    pub fn spans(&self) -> Vec<SpanData> {
        self.spans.clone()
    }

    /// Ours.
    pub fn direct(&self) -> Vec<u8> {
        encode_request(&self.encoded, &self.spans)
    }

    /// The transform of `opentelemetry-proto`, and prost.
    pub fn proto(&self, spans: Vec<SpanData>) -> Vec<u8> {
        let resource_spans = group_spans_by_resource_and_scope(spans, &self.attributes);
        ExportTraceServiceRequest { resource_spans }.encode_to_vec()
    }
}

/// Median microseconds for a batch of this size: ours, and by way of messages.
pub fn measure(size: usize) -> (f64, f64) {
    let input = Input::new(size);
    let rounds = 41;
    let calls = (4096 / size).max(8);
    let mut direct = Vec::new();
    let mut proto = Vec::new();
    for _ in 0..rounds {
        let start = Instant::now();
        for _ in 0..calls {
            black_box(input.direct());
        }
        direct.push(start.elapsed().as_secs_f64() * 1e6 / calls as f64);

        let batches: Vec<_> = (0..calls).map(|_| input.spans()).collect();
        let start = Instant::now();
        for batch in batches {
            black_box(input.proto(batch));
        }
        proto.push(start.elapsed().as_secs_f64() * 1e6 / calls as f64);
    }
    (percentile(&mut direct, 50), percentile(&mut proto, 50))
}
