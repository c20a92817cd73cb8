//! How long it takes to turn spans and log records into OTLP bytes: directly, and by way of `opentelemetry-proto` and prost.
//!
//! Both start with what the SDK hands to an exporter and end with the same bytes. The way through messages takes spans
//! apart; what they cost to clone before, or to drop after the direct way, is not counted. Log records are borrowed by
//! both.

use std::hint::black_box;
use std::time::Instant;

use opentelemetry::InstrumentationScope;
use opentelemetry::logs::{AnyValue, LogRecord as _, Logger as _, LoggerProvider as _, Severity};
use opentelemetry::trace::{
    Span as _, SpanId, TraceFlags, TraceId, Tracer as _, TracerProvider as _,
};
use opentelemetry_otlp_direct::encode::{EncodedResource, encode_logs_request, encode_request};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::logs::tonic::group_logs_by_resource_and_scope;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::{LogBatch, SdkLogRecord, SdkLoggerProvider};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use prost::Message as _;

use crate::percentile;
use crate::span_cost::attributes;

/// Batch sizes that are compared.
pub const SIZES: [usize; 4] = [1, 8, 64, 512];

const ROUNDS: usize = 41;

/// Spans and a resource, ready to be encoded either way.
#[derive(Debug)]
pub struct Input {
    spans: Vec<SpanData>,
    resource: EncodedBothWays,
}

/// Log records and a resource, ready to be encoded either way.
#[derive(Debug)]
pub struct LogInput {
    records: Vec<SdkLogRecord>,
    scope: InstrumentationScope,
    resource: EncodedBothWays,
}

#[derive(Debug)]
struct EncodedBothWays {
    direct: EncodedResource,
    proto: ResourceAttributesWithSchema,
}

/// Median microseconds for so many spans: ours, and by way of messages.
pub fn measure(size: usize) -> (f64, f64) {
    let input = Input::new(size);
    compare(
        size,
        || input.spans(),
        || input.direct(),
        |spans| input.proto(spans),
    )
}

/// The same for log records.
pub fn measure_logs(size: usize) -> (f64, f64) {
    let input = LogInput::new(size);
    compare(size, || (), || input.direct(), |()| input.proto())
}

/// Takes turns. What `prepare` makes for the second is not counted.
fn compare<T>(
    size: usize,
    prepare: impl Fn() -> T,
    direct: impl Fn() -> Vec<u8>,
    proto: impl Fn(T) -> Vec<u8>,
) -> (f64, f64) {
    let calls = (4096 / size).max(8);
    let per_call = |start: Instant| start.elapsed().as_secs_f64() * 1e6 / calls as f64;
    let (mut directs, mut protos) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for _ in 0..calls {
            black_box(direct());
        }
        directs.push(per_call(start));

        let prepared: Vec<_> = (0..calls).map(|_| prepare()).collect();
        let start = Instant::now();
        for input in prepared {
            black_box(proto(input));
        }
        protos.push(per_call(start));
    }
    (percentile(&mut directs, 50), percentile(&mut protos, 50))
}

// ===== impl Input =====

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
        let input = Self {
            spans: exporter.get_finished_spans().expect("the exporter is open"),
            resource: EncodedBothWays::new(),
        };
        assert_eq!(input.direct(), input.proto(input.spans()));
        input
    }

    /// The spans, for [`proto`](Self::proto) to consume.
    pub fn spans(&self) -> Vec<SpanData> {
        self.spans.clone()
    }

    /// Ours.
    pub fn direct(&self) -> Vec<u8> {
        encode_request(&self.resource.direct, &self.spans)
    }

    /// The transform of `opentelemetry-proto`, and prost.
    pub fn proto(&self, spans: Vec<SpanData>) -> Vec<u8> {
        let resource_spans = group_spans_by_resource_and_scope(spans, &self.resource.proto);
        ExportTraceServiceRequest { resource_spans }.encode_to_vec()
    }
}

// ===== impl LogInput =====

impl LogInput {
    /// So many log records of 6 attributes each, in a trace, as an appender makes them: with a target and a text for a
    /// body.
    pub fn new(size: usize) -> Self {
        let logger = SdkLoggerProvider::builder().build().logger("bench");
        let mut record = logger.create_log_record();
        let now = opentelemetry::time::now();
        record.set_timestamp(now);
        record.set_observed_timestamp(now);
        record.set_severity_number(Severity::Info);
        record.set_severity_text("INFO");
        record.set_target("orders::checkout");
        record.set_event_name("event src/checkout.rs:120");
        record.set_body(AnyValue::from("order accepted, payment is on its way"));
        record.set_trace_context(
            TraceId::from_bytes([7; 16]),
            SpanId::from_bytes([9; 8]),
            Some(TraceFlags::SAMPLED),
        );
        record.add_attributes([
            (
                "order.id",
                AnyValue::from("b1946ac92492d2347c6235b4d2611184"),
            ),
            ("order.items", AnyValue::from(3)),
            ("order.total", AnyValue::from(129.5)),
            ("customer.is_new", AnyValue::from(false)),
            ("payment.method", AnyValue::from("card")),
            ("code.namespace", AnyValue::from("orders::checkout")),
        ]);
        let input = Self {
            records: vec![record; size],
            scope: InstrumentationScope::builder("bench").build(),
            resource: EncodedBothWays::new(),
        };
        assert_eq!(input.direct(), input.proto());
        input
    }

    /// Ours.
    pub fn direct(&self) -> Vec<u8> {
        self.with_batch(|batch| encode_logs_request(&self.resource.direct, batch))
    }

    /// The transform of `opentelemetry-proto`, and prost.
    pub fn proto(&self) -> Vec<u8> {
        self.with_batch(|batch| {
            let resource_logs = group_logs_by_resource_and_scope(batch, &self.resource.proto);
            ExportLogsServiceRequest { resource_logs }.encode_to_vec()
        })
    }

    fn with_batch(&self, encode: impl FnOnce(&LogBatch<'_>) -> Vec<u8>) -> Vec<u8> {
        let batch: Vec<_> = self
            .records
            .iter()
            .map(|record| (record, &self.scope))
            .collect();
        encode(&LogBatch::new(&batch))
    }
}

// ===== impl EncodedBothWays =====

impl EncodedBothWays {
    fn new() -> Self {
        let resource = Resource::builder().with_service_name("orders").build();
        Self {
            direct: EncodedResource::new(&resource),
            proto: (&resource).into(),
        }
    }
}
