//! What the instruments of the service measured, read from the metrics that arrived.

use demo::receiver::ReceivedMetric;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, HistogramDataPoint, NumberDataPoint,
};

use crate::service::SCOPE;

/// The attribute that tells the routes of a service apart.
pub(crate) const ROUTE_ATTRIBUTE: &str = "http.route";

/// What an instrument measured on a route, all requests together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Total {
    /// What a counter counted, or how often a histogram measured.
    pub(crate) count: u64,
    /// Of a histogram.
    pub(crate) sum: f64,
    pub(crate) max: f64,
}

/// The points of a metric, whatever its kind.
pub(crate) fn points(metric: &ReceivedMetric) -> usize {
    match &metric.metric.data {
        Some(Data::Gauge(gauge)) => gauge.data_points.len(),
        Some(Data::Sum(sum)) => sum.data_points.len(),
        Some(Data::Histogram(histogram)) => histogram.data_points.len(),
        Some(Data::ExponentialHistogram(histogram)) => histogram.data_points.len(),
        Some(Data::Summary(summary)) => summary.data_points.len(),
        None => 0,
    }
}

/// What arrived of an instrument of the service. `None` if nothing did.
pub(crate) fn total(metrics: &[ReceivedMetric], instrument: &str, route: &str) -> Option<Total> {
    let of_instrument = |metric: &&ReceivedMetric| {
        (metric.scope.as_str(), metric.metric.name.as_str()) == (SCOPE, instrument)
    };
    let points = metrics.iter().filter(of_instrument).flat_map(|metric| {
        let (temporality, points) = read(metric.metric.data.as_ref(), route);
        points.into_iter().map(move |point| (temporality, point))
    });
    // Each collection either goes on from the one before it, or says all of it once more.
    let add = |sum: Total, (_, next): Point| Total {
        count: sum.count + next.count,
        sum: sum.sum + next.sum,
        max: sum.max.max(next.max),
    };
    let mut newest: Option<Point> = None;
    for (temporality, point) in points {
        newest = Some(match newest {
            Some(sum) if temporality == AggregationTemporality::Delta as i32 => {
                (point.0, add(sum.1, point))
            }
            Some(newer) if newer.0 > point.0 => newer,
            _ => point,
        });
    }
    newest.map(|(_, total)| total)
}

/// When it was collected, and what was measured by then.
type Point = (u64, Total);

fn read(data: Option<&Data>, route: &str) -> (i32, Vec<Point>) {
    match data {
        Some(Data::Sum(sum)) => {
            let points = sum.data_points.iter();
            let points = points.filter(|point| is_of(&point.attributes, route));
            (sum.aggregation_temporality, points.map(number).collect())
        }
        Some(Data::Histogram(histogram)) => {
            let points = histogram.data_points.iter();
            let points = points.filter(|point| is_of(&point.attributes, route));
            let points = points.map(distribution).collect();
            (histogram.aggregation_temporality, points)
        }
        _ => (AggregationTemporality::Unspecified as i32, Vec::new()),
    }
}

fn number(point: &NumberDataPoint) -> Point {
    let count = match point.value {
        Some(number_data_point::Value::AsInt(value)) => value.try_into().unwrap_or_default(),
        Some(number_data_point::Value::AsDouble(value)) => value as u64,
        None => 0,
    };
    let total = Total {
        count,
        ..Total::default()
    };
    (point.time_unix_nano, total)
}

fn distribution(point: &HistogramDataPoint) -> Point {
    let total = Total {
        count: point.count,
        sum: point.sum.unwrap_or_default(),
        max: point.max.unwrap_or_default(),
    };
    (point.time_unix_nano, total)
}

fn is_of(attributes: &[KeyValue], route: &str) -> bool {
    attributes.iter().any(|attribute| {
        let value = attribute.value.as_ref().and_then(|v| v.value.as_ref());
        attribute.key == ROUTE_ATTRIBUTE
            && matches!(value, Some(Value::StringValue(text)) if text == route)
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use opentelemetry_proto::tonic::metrics::v1::{Metric, Sum};

    use super::*;

    /// A counter of the service that says this on a route.
    pub(crate) fn counted(
        instrument: &str,
        route: &str,
        temporality: AggregationTemporality,
        at: u64,
        value: i64,
    ) -> ReceivedMetric {
        let text = opentelemetry::Value::from(route.to_owned());
        let point = NumberDataPoint {
            attributes: vec![KeyValue {
                key: ROUTE_ATTRIBUTE.to_owned(),
                value: Some(text.into()),
                ..KeyValue::default()
            }],
            time_unix_nano: at,
            value: Some(number_data_point::Value::AsInt(value)),
            ..NumberDataPoint::default()
        };
        let sum = Sum {
            data_points: vec![point],
            aggregation_temporality: temporality as i32,
            is_monotonic: true,
        };
        ReceivedMetric {
            metric: Metric {
                name: instrument.to_owned(),
                data: Some(Data::Sum(sum)),
                ..Metric::default()
            },
            scope: SCOPE.to_owned(),
            token: String::new(),
        }
    }

    /// Scenario: a counter is collected three times, under either temporality, and the last two arrive in the wrong order.
    /// Guarantees: deltas are added up; of totals the newest counts. Other instruments and routes do not.
    #[test]
    fn total_is_the_same_under_either_temporality() {
        use AggregationTemporality::{Cumulative, Delta};
        let count = |temporality, values: [i64; 3]| {
            let [first, second, third] = values;
            let metrics = [(1, first), (3, third), (2, second)]
                .map(|(at, value)| counted("a", "/a", temporality, at, value));
            assert_eq!(total(&metrics, "b", "/a"), None);
            assert_eq!(total(&metrics, "a", "/b"), None);
            total(&metrics, "a", "/a").map(|total| total.count)
        };
        assert_eq!(count(Delta, [1, 2, 4]), Some(7));
        assert_eq!(count(Cumulative, [1, 3, 7]), Some(7));
    }
}
