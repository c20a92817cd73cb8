//! A sampler that lets requests be known whose spans are not exported.

use opentelemetry::trace::{Link, SpanKind, TraceId};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{SamplingDecision, SamplingResult, ShouldSample};

/// Records the spans that another sampler leaves out, without exporting them.
///
/// The SDK shows a processor only what is recorded. A request whose trace is not sampled is not known then, and log records
/// that are emitted in it cannot join it. Under this sampler they do: they share its context, its queue, its end. What a
/// [`PerRequestSpanProcessor`](crate::PerRequestSpanProcessor) exports of spans, and what is said to services that are called,
/// is the same. Other processors see what is recorded, too, and the SDK's batch processor exports that.
///
/// The price is that a span that is not sampled costs what one costs that is, but for its export. A
/// [`Telemetry`](crate::Telemetry) with a log exporter puts it around its sampler by itself.
///
/// ```
/// use opentelemetry_per_request::RecordUnsampled;
/// use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
///
/// let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(0.2)));
/// let provider = SdkTracerProvider::builder().with_sampler(RecordUnsampled::new(sampler));
/// # drop(provider);
/// ```
#[derive(Clone, Debug)]
pub struct RecordUnsampled {
    sampler: Box<dyn ShouldSample>,
}

impl RecordUnsampled {
    /// The decisions are those of `sampler`, except that nothing is left unrecorded.
    pub fn new(sampler: impl Into<Box<dyn ShouldSample>>) -> Self {
        let sampler = sampler.into();
        Self { sampler }
    }
}

impl ShouldSample for RecordUnsampled {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace_id: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let sampler = &self.sampler;
        let mut result = sampler.should_sample(parent, trace_id, name, kind, attributes, links);
        if result.decision == SamplingDecision::Drop {
            result.decision = SamplingDecision::RecordOnly;
        }
        result
    }
}
