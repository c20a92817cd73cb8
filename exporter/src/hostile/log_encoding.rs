//! Log records to bytes, beside what `opentelemetry-proto` and `prost` make of the same records.

use super::Input;
use super::encoding::divided;
#[cfg(feature = "json")]
use super::encoding::is_json;
use crate::encode::{EncodedResource, Record, encode_logs_request};
#[cfg(feature = "json")]
use crate::signal::Signal;
use opentelemetry::InstrumentationScope;
use opentelemetry::logs::{AnyValue, LogRecord as _, Logger as _, LoggerProvider as _, Severity};
use opentelemetry::trace::{SpanId, TraceFlags, TraceId};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::transform::logs::tonic::group_logs_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::{LogBatch, SdkLogRecord, SdkLoggerProvider};
use prost::Message;
use std::time::{Duration, UNIX_EPOCH};

/// A record, and the scope of its logger.
pub(crate) type Logged = (SdkLogRecord, InstrumentationScope);

/// As deep as values are nested here: no deeper than the encoder follows.
const MAX_NESTING: u8 = 8;

/// A resource, a batch and a limit, whatever the bytes make of them.
pub fn property(data: &[u8]) {
    let mut input = Input(data);
    let limit: [u8; 3] = input.bytes();
    let resource = input.resource();
    let records = input.records();
    same_bytes(&resource, &records);
    division(&resource, &records, limit);
    #[cfg(feature = "json")]
    is_json(Signal::Logs, reference(&resource, &records).encode_to_vec());
}

/// What [`property`] is asked of, for other questions.
#[cfg(all(test, feature = "json"))]
pub(crate) fn property_input(data: &[u8]) -> (Resource, Vec<Logged>) {
    let mut input = Input(data);
    (input.resource(), input.records())
}

/// Byte for byte what the reference makes of it, in one allocation of exactly that length.
pub(crate) fn same_bytes(resource: &Resource, records: &[Logged]) {
    let ours = with_batch(records, |batch| {
        encode_logs_request(&EncodedResource::new(resource), batch)
    });
    assert_eq!(ours, reference(resource, records).encode_to_vec());
    assert_eq!(ours.capacity(), ours.len(), "measured is written");
}

/// See [`divided`].
fn division(resource: &Resource, records: &[Logged], limit: [u8; 3]) {
    let items: Vec<_> = records
        .iter()
        .map(|(record, scope)| Record::new((record, scope)))
        .collect();
    let expected = one_by_one(reference(resource, records));
    divided(
        &EncodedResource::new(resource),
        &items,
        limit,
        expected,
        |bytes| {
            let request = ExportLogsServiceRequest::decode(bytes).unwrap();
            assert_eq!(request.encode_to_vec(), bytes);
            one_by_one(request)
        },
    );
}

/// What is done with records as a batch.
pub(crate) fn with_batch<T>(records: &[Logged], work: impl FnOnce(&LogBatch<'_>) -> T) -> T {
    let references: Vec<_> = records
        .iter()
        .map(|(record, scope)| (record, scope))
        .collect();
    work(&LogBatch::new(&references))
}

/// The reference's groups have no order. Each is put where its first record stands in the batch.
fn reference(resource: &Resource, records: &[Logged]) -> ExportLogsServiceRequest {
    // Where a record stands, as a time that it is found by.
    let numbered = (0..).zip(records).map(|(n, (record, scope))| {
        let mut record = record.clone();
        record.set_observed_timestamp(UNIX_EPOCH + Duration::from_nanos(n));
        (record, scope.clone())
    });
    let numbered: Vec<_> = numbered.collect();
    let mut resource_logs = with_batch(&numbered, |batch| {
        group_logs_by_resource_and_scope(batch, &resource.into())
    });
    for resource in &mut resource_logs {
        let scopes = &mut resource.scope_logs;
        scopes.sort_by_key(|scope| scope.log_records[0].observed_time_unix_nano);
        for record in scopes.iter_mut().flat_map(|scope| &mut scope.log_records) {
            let number = usize::try_from(record.observed_time_unix_nano).unwrap();
            *record = (&records[number].0).into();
        }
    }
    ExportLogsServiceRequest { resource_logs }
}

/// Each record as a request of its own. As bytes, because a NaN is not equal to itself.
fn one_by_one(request: ExportLogsServiceRequest) -> Vec<Vec<u8>> {
    let mut requests = Vec::new();
    for mut resource in request.resource_logs {
        for mut scope in std::mem::take(&mut resource.scope_logs) {
            for record in std::mem::take(&mut scope.log_records) {
                scope.log_records = vec![record];
                resource.scope_logs = vec![scope.clone()];
                let alone = ExportLogsServiceRequest {
                    resource_logs: vec![resource.clone()],
                };
                requests.push(alone.encode_to_vec());
            }
        }
    }
    requests
}

/// A record with nothing in it. The SDK makes them only by way of a logger.
pub(crate) fn plain_record() -> SdkLogRecord {
    let provider = SdkLoggerProvider::builder().build();
    provider.logger("").create_log_record()
}

// ===== impl Input =====

/// Everything that a batch of log records can be made of.
impl Input<'_> {
    pub(super) fn records(&mut self) -> Vec<Logged> {
        let plain = plain_record();
        let scopes: Vec<_> = (0..=self.below(12)).map(|_| self.scope()).collect();
        let mut records = Vec::new();
        while !self.is_empty() && records.len() < 64 {
            let scope = &scopes[usize::from(self.byte()) % scopes.len()];
            records.push((self.record(plain.clone()), scope.clone()));
        }
        records
    }

    fn record(&mut self, mut record: SdkLogRecord) -> SdkLogRecord {
        let parts = self.byte();
        // The reference panics without it.
        record.set_observed_timestamp(self.time());
        if parts & 1 != 0 {
            record.set_timestamp(self.time());
        }
        if parts & 2 != 0 {
            record.set_severity_number(self.severity());
        }
        if parts & 4 != 0 {
            record.set_severity_text(self.static_text());
        }
        if parts & 8 != 0 {
            record.set_body(self.any_value(MAX_NESTING));
        }
        if parts & 16 != 0 {
            for _ in 0..self.below(9) {
                record.add_attribute(self.text(), self.any_value(MAX_NESTING));
            }
        }
        if parts & 32 != 0 {
            let (trace, span) = match self.below(4) {
                0 => (TraceId::INVALID, SpanId::INVALID),
                _ => (
                    TraceId::from_bytes(self.bytes()),
                    SpanId::from_bytes(self.bytes()),
                ),
            };
            let flags = match self.below(3) {
                0 => None,
                _ => Some(TraceFlags::new(self.byte())),
            };
            record.set_trace_context(trace, span, flags);
        }
        if parts & 64 != 0 {
            record.set_event_name(self.static_text());
        }
        if parts & 128 != 0 {
            match self.below(2) {
                0 => record.set_target(self.static_text()),
                _ => record.set_target(self.text()),
            }
        }
        record
    }

    fn any_value(&mut self, room: u8) -> AnyValue {
        match self.below(if room == 0 { 5 } else { 8 }) {
            0 => AnyValue::Int(self.int()),
            1 => AnyValue::Double(self.double()),
            2 => AnyValue::Boolean(self.below(2) == 1),
            3 => AnyValue::String(self.string()),
            4 => {
                let len = self.byte();
                AnyValue::Bytes(Box::new(self.piece(len.into()).to_vec()))
            }
            5 | 6 => {
                let values = (0..self.below(4)).map(|_| self.any_value(room - 1));
                AnyValue::ListAny(Box::new(values.collect()))
            }
            // Of several entries, which comes first is decided anew for each map.
            _ => (0..self.below(2))
                .map(|_| (self.text(), self.any_value(room - 1)))
                .collect(),
        }
    }

    fn severity(&mut self) -> Severity {
        match self.below(5) {
            0 => Severity::Trace,
            1 => Severity::Debug3,
            2 => Severity::Info,
            3 => Severity::Warn2,
            _ => Severity::Fatal4,
        }
    }

    fn static_text(&mut self) -> &'static str {
        match self.below(4) {
            0 => "",
            1 => "scope",
            2 => "schlüssel",
            _ => "a text that is longer than what is copied in two halves",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(600))]

        /// Scenario: resources, batches of up to 64 log records and limits that any bytes make.
        /// Guarantees: the bytes are those of the reference, and a divided batch loses nothing and keeps its limit.
        #[test]
        fn whatever_bytes_make_is_encoded_as_by_the_reference(data in vec(any::<u8>(), 0..2_000)) {
            property(&data);
        }
    }
}
