//! Metrics to request bodies, by way of `opentelemetry-proto`: there are few of them, and each is sent once a minute or so.
//!
//! Items are data points. What is too large for a request is halved until it fits: first between metrics, and a metric
//! that is too large by itself between its data points.

use super::{Encoded, Encoding, Requests};
use crate::signal::Signal;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::metrics::v1::{
    ExponentialHistogram, Gauge, Histogram, Metric, NumberDataPoint,
    ResourceMetrics as ResourceMessage, ScopeMetrics, Sum, Summary, metric::Data,
    number_data_point::Value,
};
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData, ResourceMetrics};
use prost::encoding::message;

/// The field of a request.
const RESOURCE_METRICS: u32 = 1;

/// The metrics as requests of at most `max_bytes` each.
pub(super) fn requests(
    metrics: &ResourceMetrics,
    encoding: Encoding,
    max_bytes: usize,
) -> Requests {
    let mut requests = Requests::default();
    // The last is next. Invariant: each holds a data point.
    let mut waiting: Vec<_> = with_points(metrics).into_iter().collect();
    while let Some(mut resource) = waiting.pop() {
        let items = points(&resource);
        if let Some(bytes) = encode(&resource, encoding, max_bytes) {
            requests.bodies.push(Encoded { bytes, items });
        } else if let Some(tail) = split_off_half(&mut resource) {
            waiting.extend([tail, resource]);
        } else {
            requests.too_large += items;
        }
    }
    requests
}

/// The metrics that have a data point, if one does.
fn with_points(metrics: &ResourceMetrics) -> Option<ResourceMessage> {
    let mut request = ExportMetricsServiceRequest::from(metrics);
    let mut resource = request.resource_metrics.pop()?;
    keep_large_sums(metrics, &mut resource);
    for scope in &mut resource.scope_metrics {
        scope.metrics.retain(|metric| metric_points(metric) > 0);
    }
    resource
        .scope_metrics
        .retain(|scope| !scope.metrics.is_empty());
    Some(resource).filter(|resource| !resource.scope_metrics.is_empty())
}

/// OTLP has no unsigned numbers, and the transform makes a 0 of one that is too large to be signed: a counter would fall.
/// A double says it to 53 bits.
fn keep_large_sums(metrics: &ResourceMetrics, resource: &mut ResourceMessage) {
    let ours = metrics.scope_metrics().flat_map(|scope| scope.metrics());
    let theirs = resource.scope_metrics.iter_mut();
    let theirs = theirs.flat_map(|scope| &mut scope.metrics);
    for (ours, theirs) in ours.zip(theirs) {
        match (ours.data(), &mut theirs.data) {
            (AggregatedMetrics::U64(MetricData::Sum(sum)), Some(Data::Sum(message))) => {
                let values = sum.data_points().map(|point| point.value());
                keep_large(values, &mut message.data_points);
            }
            (AggregatedMetrics::U64(MetricData::Gauge(gauge)), Some(Data::Gauge(message))) => {
                let values = gauge.data_points().map(|point| point.value());
                keep_large(values, &mut message.data_points);
            }
            _ => {}
        }
    }
}

fn keep_large(values: impl Iterator<Item = u64>, points: &mut [NumberDataPoint]) {
    for (value, point) in values.zip(points) {
        if i64::try_from(value).is_err() {
            point.value = Some(Value::AsDouble(value as f64));
        }
    }
}

/// One request, if it is small enough. The resource is all that there is in one.
fn encode(resource: &ResourceMessage, encoding: Encoding, max_bytes: usize) -> Option<Vec<u8>> {
    let len = message::encoded_len(RESOURCE_METRICS, resource);
    // No encoding is shorter than protobuf.
    if len > max_bytes {
        return None;
    }
    let mut protobuf = Vec::with_capacity(len);
    message::encode(RESOURCE_METRICS, resource, &mut protobuf);
    Some(encoding.request(Signal::Metrics, protobuf)).filter(|bytes| bytes.len() <= max_bytes)
}

fn points(resource: &ResourceMessage) -> usize {
    let metrics = resource.scope_metrics.iter();
    metrics
        .flat_map(|scope| &scope.metrics)
        .map(metric_points)
        .sum()
}

fn metric_points(metric: &Metric) -> usize {
    match &metric.data {
        Some(Data::Gauge(data)) => data.data_points.len(),
        Some(Data::Sum(data)) => data.data_points.len(),
        Some(Data::Histogram(data)) => data.data_points.len(),
        Some(Data::ExponentialHistogram(data)) => data.data_points.len(),
        Some(Data::Summary(data)) => data.data_points.len(),
        None => 0,
    }
}

/// Takes half of the metrics out, or half of the data points of a single one. Nothing when there is a single data point.
fn split_off_half(resource: &mut ResourceMessage) -> Option<ResourceMessage> {
    let metrics: usize = resource
        .scope_metrics
        .iter()
        .map(|scope| scope.metrics.len())
        .sum();
    match metrics {
        0 => None,
        1 => split_off_points(resource),
        _ => Some(split_off_metrics(resource, metrics / 2)),
    }
}

/// Takes all metrics out but so many.
fn split_off_metrics(resource: &mut ResourceMessage, mut keep: usize) -> ResourceMessage {
    let scopes = std::mem::take(&mut resource.scope_metrics);
    let mut tail = resource.clone();
    for mut scope in scopes {
        let metrics = scope.metrics.split_off(keep.min(scope.metrics.len()));
        keep -= scope.metrics.len();
        if !metrics.is_empty() {
            tail.scope_metrics.push(ScopeMetrics {
                scope: scope.scope.clone(),
                metrics,
                schema_url: scope.schema_url.clone(),
            });
        }
        if !scope.metrics.is_empty() {
            resource.scope_metrics.push(scope);
        }
    }
    tail
}

/// Takes half of the data points of the first metric out.
fn split_off_points(resource: &mut ResourceMessage) -> Option<ResourceMessage> {
    let scope = resource.scope_metrics.first_mut()?;
    let metric = scope.metrics.first_mut()?;
    let data = match metric.data.as_mut()? {
        Data::Gauge(data) => Data::Gauge(Gauge {
            data_points: half(&mut data.data_points)?,
        }),
        Data::Sum(data) => Data::Sum(Sum {
            data_points: half(&mut data.data_points)?,
            ..*data
        }),
        Data::Histogram(data) => Data::Histogram(Histogram {
            data_points: half(&mut data.data_points)?,
            ..*data
        }),
        Data::ExponentialHistogram(data) => Data::ExponentialHistogram(ExponentialHistogram {
            data_points: half(&mut data.data_points)?,
            ..*data
        }),
        Data::Summary(data) => Data::Summary(Summary {
            data_points: half(&mut data.data_points)?,
        }),
    };
    let metric = Metric {
        name: metric.name.clone(),
        description: metric.description.clone(),
        unit: metric.unit.clone(),
        metadata: metric.metadata.clone(),
        data: Some(data),
    };
    let scope = ScopeMetrics {
        scope: scope.scope.clone(),
        metrics: vec![metric],
        schema_url: scope.schema_url.clone(),
    };
    Some(ResourceMessage {
        resource: resource.resource.clone(),
        scope_metrics: vec![scope],
        schema_url: resource.schema_url.clone(),
    })
}

fn half<T>(points: &mut Vec<T>) -> Option<Vec<T>> {
    (points.len() > 1).then(|| points.split_off(points.len() / 2))
}
