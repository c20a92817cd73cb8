//! What depends on the global meter provider. It can only be set for a whole process, so this is one, with one test.
#![allow(
    clippy::unwrap_used,
    reason = "a test that panics has failed, which is what it is for"
)]
#![cfg(all(feature = "metric-export", feature = "metrics"))]

use async_trait::async_trait;
use http::{Request, Response};
use opentelemetry::global;
use opentelemetry_http::{Bytes, HttpClient, HttpError};
use opentelemetry_otlp_direct::{DirectExporter, Signal};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use prost::Message as _;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

const EXPORTED: &str = "otel.sdk.exporter.metric_data_point.exported";
const IN_FLIGHT: &str = "otel.sdk.exporter.metric_data_point.inflight";
const DURATION: &str = "otel.sdk.exporter.operation.duration";

/// Takes everything, and keeps the values of sums by their names.
#[derive(Clone, Debug, Default)]
struct Collector(Arc<Mutex<Vec<BTreeMap<String, i64>>>>);

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let message = ExportMetricsServiceRequest::decode(request.into_body())?;
        let resources = message.resource_metrics.into_iter();
        let scopes = resources.flat_map(|resource| resource.scope_metrics);
        let metrics = scopes.flat_map(|scope| scope.metrics);
        let value = |data| match data {
            Some(Data::Sum(sum)) => match sum.data_points[0].value {
                Some(Value::AsInt(value)) => value,
                other => panic!("{other:?}"),
            },
            _ => 0,
        };
        let values = metrics.map(|metric| (metric.name, value(metric.data)));
        self.0.lock().unwrap().push(values.collect());
        Ok(Response::new(Bytes::new()))
    }
}

/// Three exports of metrics under the global provider, whose own metrics are recorded with it.
fn export_thrice(collector: Collector) -> DirectExporter {
    let exporter = DirectExporter::builder()
        .with_env_lookup(|_| None)
        .with_http_client(collector)
        .build()
        .unwrap();
    let provider = SdkMeterProvider::builder()
        .with_reader(PeriodicReader::builder(exporter.clone()).build())
        .build();
    global::set_meter_provider(provider.clone());
    global::meter("app")
        .u64_counter("app.sold")
        .build()
        .add(7, &[]);
    provider.force_flush().unwrap();
    provider.force_flush().unwrap();
    provider.shutdown().unwrap();
    exporter
}

/// Scenario: the exporter records its own metrics with the provider whose metrics it exports, which is the global one.
/// Guarantees: nothing waits for itself and nothing goes round in circles: each flush is one request, and what it did is
/// in the next one, with the numbers of `stats_of`.
#[test]
fn own_metrics_go_out_with_the_next_export() {
    let collector = Collector::default();
    let (done, outcome) = mpsc::channel();
    let taken = collector.clone();
    thread::spawn(move || done.send(export_thrice(taken)));
    let exporter = outcome.recv_timeout(Duration::from_secs(60)).unwrap();

    let requests = collector.0.lock().unwrap().clone();
    let [first, second, third] = &requests[..] else {
        panic!("three requests: {requests:#?}");
    };
    assert_eq!(*first, BTreeMap::from([("app.sold".to_owned(), 7)]));
    for request in [second, third] {
        assert_eq!(request["app.sold"], 7);
        assert_eq!(request[IN_FLIGHT], 0, "at rest when it was collected");
        assert!(request.contains_key(DURATION));
    }
    assert_eq!(second[EXPORTED], 1);
    // Its own three, and the application's.
    assert_eq!(third[EXPORTED], 1 + 4);
    let stats = exporter.stats_of(Signal::Metrics);
    assert_eq!((stats.exported(), stats.attempts()), (1 + 4 + 4, 3));
}
