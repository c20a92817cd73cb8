//! Metrics: what is left out, what is divided, and what the transform of `opentelemetry-proto` would lose.

use super::*;
use opentelemetry::metrics::{Meter, MeterProvider};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::{
    Aggregation, Instrument, InstrumentKind, PeriodicReader, SdkMeterProvider, Stream, Temporality,
};
use prost::Message;
use std::future::{Future, ready};

/// Larger than any request here.
const NO_LIMIT: usize = 1 << 30;

/// What is done with metrics, for they can only be borrowed from the SDK.
struct Look<F>(F);

impl<F: Fn(&ResourceMetrics) + Send + Sync + 'static> PushMetricExporter for Look<F> {
    fn export(&self, metrics: &ResourceMetrics) -> impl Future<Output = OTelSdkResult> + Send {
        (self.0)(metrics);
        ready(Ok(()))
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }

    fn temporality(&self) -> Temporality {
        Temporality::Delta
    }
}

/// What `look` makes of what was recorded. Histograms whose name says so are exponential.
pub(super) fn recorded<T: Send + 'static>(
    record: impl FnOnce(&SdkMeterProvider),
    look: impl Fn(&ResourceMetrics) -> T + Send + Sync + 'static,
) -> T {
    let (tell, told) = std::sync::mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    let reader = PeriodicReader::builder(Look(move |metrics: &ResourceMetrics| {
        tell.lock().unwrap().send(look(metrics)).unwrap();
    }))
    .with_interval(Duration::from_secs(3_600));
    let provider = SdkMeterProvider::builder()
        .with_reader(reader.build())
        .with_resource(
            Resource::builder_empty()
                .with_service_name("shop")
                .with_schema_url([], "https://schema/r")
                .build(),
        )
        .with_view(|instrument: &Instrument| {
            let exponential = instrument.kind() == InstrumentKind::Histogram
                && instrument.name().contains("exponential");
            let aggregation = Aggregation::Base2ExponentialHistogram {
                max_size: 160,
                max_scale: 20,
                record_min_max: true,
            };
            let stream = Stream::builder().with_aggregation(aggregation);
            exponential.then(|| stream.build().unwrap())
        })
        .build();
    record(&provider);
    provider.force_flush().unwrap();
    told.recv().unwrap()
}

/// Every kind of metric, in two scopes.
pub(super) fn of_every_kind(provider: &SdkMeterProvider) {
    let meter = provider.meter("lib");
    let attributes = [
        KeyValue::new("text", "schlüssel \"🔑\"\n"),
        KeyValue::new("int", i64::MIN),
        KeyValue::new("double", 0.1),
        KeyValue::new("bool", true),
        KeyValue::new("list", Value::Array(Array::from(vec![1_i64, 2]))),
    ];
    let counter = meter
        .u64_counter("counter")
        .with_unit("{order}")
        .with_description("orders");
    let counter = counter.build();
    counter.add(3, &attributes);
    counter.add(4, &[]);
    meter.i64_up_down_counter("open").build().add(-5, &[]);
    meter.f64_gauge("load").build().record(0.75, &[]);
    let histogram = meter.f64_histogram("took").build();
    for value in [0.5, 7.0, 20_000.0] {
        histogram.record(value, &attributes);
    }
    let scope = scope("other", Some("1"), Some("https://schema/1"), vec![]);
    let meter = provider.meter_with_scope(scope);
    let exponential = meter.f64_histogram("exponential").build();
    for value in [-3.0, 0.0, 1.0, 1e300, 2.5] {
        exponential.record(value, &[]);
    }
    meter.i64_gauge("least").build().record(i64::MIN, &[]);
}

fn encode(recorded: &ResourceMetrics, max_bytes: usize) -> Requests {
    metrics(recorded, Encoding::Protobuf, max_bytes)
}

fn decode(requests: &Requests) -> Vec<ExportMetricsServiceRequest> {
    let bodies = requests.bodies.iter();
    bodies
        .map(|body| ExportMetricsServiceRequest::decode(body.bytes.as_slice()).unwrap())
        .collect()
}

/// Each data point as a request of its own.
fn one_by_one(requests: Vec<ExportMetricsServiceRequest>) -> Vec<Vec<u8>> {
    let mut alone = Vec::new();
    for mut resource in requests.into_iter().flat_map(|r| r.resource_metrics) {
        for mut scope in std::mem::take(&mut resource.scope_metrics) {
            for mut metric in std::mem::take(&mut scope.metrics) {
                let points = points(metric.data.take().unwrap());
                for data in points {
                    metric.data = Some(data);
                    scope.metrics = vec![metric.clone()];
                    resource.scope_metrics = vec![scope.clone()];
                    let request = ExportMetricsServiceRequest {
                        resource_metrics: vec![resource.clone()],
                    };
                    alone.push(request.encode_to_vec());
                }
            }
        }
    }
    alone
}

fn points(data: Data) -> Vec<Data> {
    macro_rules! each {
        ($kind:path, $data:expr) => {{
            let mut data = $data;
            let points = std::mem::take(&mut data.data_points);
            let one = |point| {
                let mut data = data.clone();
                data.data_points = vec![point];
                $kind(data)
            };
            points.into_iter().map(one).collect()
        }};
    }
    match data {
        Data::Gauge(data) => each!(Data::Gauge, data),
        Data::Sum(data) => each!(Data::Sum, data),
        Data::Histogram(data) => each!(Data::Histogram, data),
        Data::ExponentialHistogram(data) => each!(Data::ExponentialHistogram, data),
        Data::Summary(data) => each!(Data::Summary, data),
    }
}

fn sums(requests: &Requests) -> Vec<Number> {
    let request = decode(requests).remove(0);
    let metric = &request.resource_metrics[0].scope_metrics[0].metrics[0];
    let points = match metric.data.as_ref().unwrap() {
        Data::Sum(sum) => &sum.data_points,
        Data::Gauge(gauge) => &gauge.data_points,
        other => panic!("{other:?}"),
    };
    points.iter().map(|point| point.value.unwrap()).collect()
}

/// Scenario: every kind of metric, without a limit.
/// Guarantees: one request, the bytes of which are those of the reference; items are data points.
#[test]
fn small_metrics_are_one_request_of_the_reference() {
    let (ours, reference) = recorded(of_every_kind, |metrics| {
        let reference = ExportMetricsServiceRequest::from(metrics).encode_to_vec();
        let ours = encode(metrics, reference.len());
        (ours, reference)
    });
    assert_eq!((ours.bodies.len(), ours.too_large), (1, 0));
    assert_eq!(ours.bodies[0].bytes, reference);
    assert_eq!(ours.bodies[0].items, 7);
}

/// Scenario: instruments that recorded nothing, also beside one that did.
/// Guarantees: without a data point there is no request, and no metric without one is in any.
#[test]
fn metrics_without_data_points_are_no_request() {
    let nothing = encode(&ResourceMetrics::default(), 0);
    assert_eq!((nothing.bodies.len(), nothing.too_large), (0, 0));
    let observed = |meter: &Meter| {
        let silent = meter.u64_observable_gauge("silent");
        silent.with_callback(|_| {}).build();
    };
    let requests = recorded(
        move |provider| {
            observed(&provider.meter("quiet"));
            let meter = provider.meter("lib");
            observed(&meter);
            meter.u64_counter("counter").build().add(1, &[]);
        },
        |metrics| encode(metrics, NO_LIMIT),
    );
    assert_eq!(requests.bodies[0].items, 1);
    let request = decode(&requests).remove(0);
    let scopes = &request.resource_metrics[0].scope_metrics;
    assert_eq!((scopes.len(), scopes[0].metrics.len()), (1, 1));
}

/// Scenario: a counter and a gauge of unsigned numbers, at and above the largest signed one.
/// Guarantees: what fits is exact, what does not is as near as a double is; it is not 0.
#[test]
fn unsigned_numbers_that_are_too_large_leave_as_doubles() {
    let largest = u64::try_from(i64::MAX).unwrap();
    for (value, expected) in [
        (largest, Number::AsInt(i64::MAX)),
        (largest + 1, Number::AsDouble((largest + 1) as f64)),
        (u64::MAX, Number::AsDouble(u64::MAX as f64)),
    ] {
        let look = |metrics: &_| encode(metrics, NO_LIMIT);
        let counter = move |provider: &SdkMeterProvider| {
            let meter = provider.meter("lib");
            meter.u64_counter("counter").build().add(value, &[]);
        };
        assert_eq!(sums(&recorded(counter, look)), [expected]);
        let gauge = move |provider: &SdkMeterProvider| {
            let meter = provider.meter("lib");
            meter.u64_gauge("gauge").build().record(value, &[]);
        };
        assert_eq!(sums(&recorded(gauge, look)), [expected]);
    }
}

/// Scenario: many points of several metrics, one of them large by itself, at limits from none to all.
/// Guarantees: no request is larger than the limit; together they hold each data point once, in order, under the same
/// metric, scope and resource; missing is exactly what fits into no request.
#[test]
fn division_loses_nothing_and_keeps_the_limit() {
    let record = |provider: &SdkMeterProvider| {
        of_every_kind(provider);
        let counter = provider.meter("lib").u64_counter("many").build();
        for n in 0..40 {
            counter.add(n, &[KeyValue::new("n", n.to_string())]);
        }
        counter.add(1, &[KeyValue::new("large", "x".repeat(3_000))]);
    };
    recorded(record, |metrics| {
        let whole = encode(metrics, NO_LIMIT);
        let points = one_by_one(decode(&whole));
        let smallest = points.iter().map(Vec::len).min().unwrap();
        for limit in (0..9_000).step_by(97).chain([smallest - 1, smallest]) {
            let divided = encode(metrics, limit);
            for body in &divided.bodies {
                assert!(body.bytes.len() <= limit && body.items > 0, "{limit}");
            }
            let mut expected = points.clone();
            if whole.bodies[0].bytes.len() > limit {
                expected.retain(|point| point.len() <= limit);
            }
            let items: usize = divided.bodies.iter().map(|body| body.items).sum();
            assert_eq!(items, expected.len(), "{limit}");
            assert_eq!(one_by_one(decode(&divided)), expected, "{limit}");
            assert_eq!(divided.too_large, points.len() - expected.len(), "{limit}");
        }
    });
}
