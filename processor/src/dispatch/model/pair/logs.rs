//! Log records: where they are emitted, and how they are told apart.

use opentelemetry::logs::{AnyValue, LogRecord as _};

use super::super::action;
use super::super::reference::Spot;
use super::*;
use crate::dispatch::Emitted;
use crate::signal::LogData;

pub(super) fn serial_of(log: &LogData) -> Serial {
    match log.record.body() {
        Some(AnyValue::Int(serial)) => *serial as Serial,
        other => panic!("records have their serial for a body: {other:?}"),
    }
}

/// What the record is marked with as late.
pub(super) fn mark_of(log: &LogData) -> Option<String> {
    let mut attributes = log.record.attributes_iter();
    let mark = attributes.find(|(key, _)| key.as_str() == LATE_ATTRIBUTE);
    mark.map(|(_, word)| match word {
        AnyValue::String(word) => word.to_string(),
        other => panic!("a mark is a word: {other:?}"),
    })
}

impl Pair {
    pub(super) fn emit(&mut self, spot: action::Spot) -> Check {
        let (named, spot) = match spot {
            action::Spot::Outside => (None, Spot::Outside),
            action::Spot::Remote(trace) => (Some((trace, u64::MAX)), Spot::Outside),
            action::Spot::In(span) => (Some(self.active(span)), Spot::In),
            action::Spot::Unrecorded(span) if self.platform == Platform::Native => {
                (Some(self.active(span)), Spot::Unrecorded)
            }
            // In a Worker it would cost a subrequest of its own.
            action::Spot::Unrecorded(span) => (Some(self.active(span)), Spot::In),
        };
        let (serial, taken) = self.reference.emit(named, spot);
        self.tell(format!(
            "record {serial} is emitted: {spot:?}, of trace and span {named:?}"
        ));
        let of = match (spot, named) {
            (Spot::Outside, _) | (_, None) => Emitted::Outside,
            (_, Some((trace, span))) => Emitted::Within {
                trace: TraceId::from(trace),
                span: SpanId::from(span),
                unrecorded: (spot == Spot::Unrecorded).then(|| self.context(serial)),
            },
        };
        let mut log = Some(self.record(serial, named));
        self.dispatch.emit(&mut log, of);
        prop_assert_eq!(log.is_none(), taken, "whether record {} is taken", serial);
        Ok(())
    }

    /// The span that is active, and its trace.
    fn active(&self, span: Parent) -> (u128, u64) {
        self.parent(span).unwrap_or((1, u64::MAX))
    }

    fn record(&self, serial: Serial, named: Option<(u128, u64)>) -> LogData {
        let mut record = self.blank.clone();
        record.set_body(AnyValue::Int(serial as i64));
        if let Some((trace, span)) = named {
            record.set_trace_context(TraceId::from(trace), SpanId::from(span), None);
        }
        LogData {
            record,
            scope: Default::default(),
        }
    }
}
