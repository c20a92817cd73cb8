//! Exporters that do what a script says, and record what they saw: one for each signal.

use std::fmt;
use std::future::{Future, poll_fn};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::task::{Poll, Waker};
use std::time::Duration;

use opentelemetry::logs::AnyValue;
use opentelemetry::trace::{SpanId, TraceId};
use opentelemetry::{Context, InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::logs::{LogBatch, LogExporter, SdkLogRecord};
use opentelemetry_sdk::metrics::Temporality;
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData, ResourceMetrics};
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

use super::{Tenant, current_tenant};

/// What the exporter does with one batch.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Takes it, after a poll that was pending.
    Take,
    Fail(&'static str),
    Panic,
    /// Is pending until the gate opens, and then takes it.
    Hang(Gate),
    /// Blocks the calling thread at the first poll until the gate opens, and then takes it.
    Block(Gate),
    /// As `Block`, but at the second poll.
    YieldAndBlock(Gate),
    /// Is pending until the gate opens, and then fails.
    HangAndFail(Gate),
}

/// What the exporter saw of one batch.
#[derive(Clone, Debug)]
pub(crate) struct Seen<T> {
    pub(crate) items: Vec<T>,
    /// The tenant when `export` was called, before its future was polled.
    pub(crate) at_call: Option<Tenant>,
    /// The tenant after a poll that was pending.
    pub(crate) after_await: Option<Tenant>,
    /// Whether telemetry was suppressed, at both places.
    pub(crate) suppressed: bool,
}

/// A call other than `export`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    ForceFlush,
    Shutdown,
}

type Script<T> = Box<dyn Fn(&[T]) -> Act + Send + Sync>;
type Hook<T> = Arc<dyn Fn(&[T]) + Send + Sync>;
type Answer = Arc<dyn Fn() -> OTelSdkResult + Send + Sync>;

/// Of spans.
pub(crate) type Recorder = Scripted<SpanData>;
pub(crate) type LogRecorder = Scripted<Logged>;
pub(crate) type MetricRecorder = Scripted<Point>;

/// A log record, as an exporter gets it.
#[derive(Clone, Debug)]
pub(crate) struct Logged {
    pub(crate) record: SdkLogRecord,
    pub(crate) scope: InstrumentationScope,
}

/// A data point. Its value is that of a sum or gauge, or how many there are in a histogram.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Point {
    pub(crate) name: String,
    pub(crate) attributes: Vec<KeyValue>,
    pub(crate) value: f64,
    pub(crate) temporality: Option<Temporality>,
}

/// Clones share everything.
pub(crate) struct Scripted<T>(Arc<Inner<T>>);

impl<T> Clone for Scripted<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Inner<T> {
    script: Script<T>,
    /// Called in the asynchronous part, between the two looks at the context.
    inside: Mutex<Option<Hook<T>>>,
    on_flush: Mutex<Option<Answer>>,
    on_shutdown: Mutex<Option<Answer>>,
    buffers: bool,
    /// Of one of metrics.
    temporality: Mutex<Temporality>,
    state: Mutex<State<T>>,
}

struct State<T> {
    seen: Vec<Seen<T>>,
    entered: usize,
    running: usize,
    max_running: usize,
    calls: Vec<Call>,
    buffered: Vec<T>,
    out: Vec<T>,
    resource: Option<Resource>,
}

impl<T> Default for State<T> {
    fn default() -> Self {
        Self {
            seen: Vec::new(),
            entered: 0,
            running: 0,
            max_running: 0,
            calls: Vec::new(),
            buffered: Vec::new(),
            out: Vec::new(),
            resource: None,
        }
    }
}

impl<T: Clone + Send + Sync + 'static> Scripted<T> {
    /// Takes everything.
    pub(crate) fn new() -> Self {
        Self::by(|_| Act::Take)
    }

    /// Does the same with every batch.
    pub(crate) fn always(act: Act) -> Self {
        Self::by(move |_| act.clone())
    }

    /// Does with each batch what `script` says.
    pub(crate) fn by(script: impl Fn(&[T]) -> Act + Send + Sync + 'static) -> Self {
        Self::make(false, Box::new(script))
    }

    /// Keeps what it takes until it is flushed.
    pub(crate) fn buffering() -> Self {
        Self::make(true, Box::new(|_| Act::Take))
    }

    fn make(buffers: bool, script: Script<T>) -> Self {
        Self(Arc::new(Inner {
            script,
            inside: Mutex::default(),
            on_flush: Mutex::default(),
            on_shutdown: Mutex::default(),
            buffers,
            temporality: Mutex::default(),
            state: Mutex::default(),
        }))
    }

    /// What it does inside the asynchronous part of an export.
    pub(crate) fn set_inside(&self, hook: impl Fn(&[T]) + Send + Sync + 'static) {
        *self.0.inside.lock().unwrap() = Some(Arc::new(hook));
    }

    /// What its `force_flush` answers.
    pub(crate) fn set_on_flush(&self, call: impl Fn() -> OTelSdkResult + Send + Sync + 'static) {
        *self.0.on_flush.lock().unwrap() = Some(Arc::new(call));
    }

    /// What its `shutdown_with_timeout` answers.
    pub(crate) fn set_on_shutdown(&self, call: impl Fn() -> OTelSdkResult + Send + Sync + 'static) {
        *self.0.on_shutdown.lock().unwrap() = Some(Arc::new(call));
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.0.state.lock().unwrap()
    }

    /// The batches it was done with, or that hang, in the order in which they came.
    pub(crate) fn seen(&self) -> Vec<Seen<T>> {
        self.state().seen.clone()
    }

    /// Everything it was given, each with the tenant it was given under.
    pub(crate) fn items(&self) -> Vec<(T, Option<Tenant>)> {
        let seen = self.seen().into_iter();
        seen.flat_map(|seen| {
            let tenant = seen.at_call;
            seen.items.into_iter().map(move |item| (item, tenant))
        })
        .collect()
    }

    /// Whether anybody has it beside the one who asks: who did has let go of it.
    pub(crate) fn is_held_elsewhere(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    pub(crate) fn count(&self, call: Call) -> usize {
        self.calls().iter().filter(|made| **made == call).count()
    }

    /// How many times `export` was called.
    pub(crate) fn entered(&self) -> usize {
        self.state().entered
    }

    pub(crate) fn running(&self) -> usize {
        self.state().running
    }

    /// The most exports that were ever under way at once.
    pub(crate) fn max_running(&self) -> usize {
        self.state().max_running
    }

    /// What a buffering exporter has let go.
    pub(crate) fn out(&self) -> usize {
        self.state().out.len()
    }

    pub(crate) fn resource(&self) -> Option<Resource> {
        self.state().resource.clone()
    }
}

impl Recorder {
    /// The names of all spans it was given, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .state()
            .seen
            .iter()
            .flat_map(|seen| &seen.items)
            .map(|span| span.name.to_string())
            .collect();
        names.sort();
        names
    }

    /// All spans it was given, each with the tenant it was given under.
    pub(crate) fn spans(&self) -> Vec<(SpanData, Option<Tenant>)> {
        self.items()
    }

    /// The only span of that name.
    pub(crate) fn span(&self, name: &str) -> (SpanData, Option<Tenant>) {
        let mut found: Vec<_> = self
            .spans()
            .into_iter()
            .filter(|(span, _)| span.name == name)
            .collect();
        assert_eq!(found.len(), 1, "spans of the name {name}: {found:?}");
        found.remove(0)
    }
}

impl LogRecorder {
    /// The bodies of all records it was given, sorted.
    pub(crate) fn bodies(&self) -> Vec<String> {
        let mut bodies: Vec<_> = self.items().iter().map(|(log, _)| log.body()).collect();
        bodies.sort();
        bodies
    }

    /// The only record with this body.
    pub(crate) fn log(&self, body: &str) -> (Logged, Option<Tenant>) {
        let mut found = self.items();
        found.retain(|(log, _)| log.body() == body);
        assert_eq!(found.len(), 1, "records that say {body}: {found:?}");
        found.remove(0)
    }
}

impl Logged {
    pub(crate) fn body(&self) -> String {
        match self.record.body() {
            Some(AnyValue::String(text)) => text.to_string(),
            other => format!("{other:?}"),
        }
    }

    /// The trace and the span that it names.
    pub(crate) fn ids(&self) -> Option<(TraceId, SpanId)> {
        let context = self.record.trace_context()?;
        Some((context.trace_id, context.span_id))
    }

    pub(crate) fn attribute(&self, key: &str) -> Option<String> {
        let mut attributes = self.record.attributes_iter();
        let (_, value) = attributes.find(|(name, _)| name.as_str() == key)?;
        match value {
            AnyValue::String(text) => Some(text.to_string()),
            other => Some(format!("{other:?}")),
        }
    }

    /// The value of `per_request.late`.
    pub(crate) fn late_mark(&self) -> Option<String> {
        self.attribute("per_request.late")
    }
}

impl MetricRecorder {
    pub(crate) fn set_temporality(&self, temporality: Temporality) {
        *self.0.temporality.lock().unwrap() = temporality;
    }

    /// The sum of all points of this name, in all that it took and did not fail.
    pub(crate) fn sum_taken(&self, name: &str) -> f64 {
        let state = self.state();
        let named = state.out.iter().filter(|point| point.name == name);
        named.map(|point| point.value).sum()
    }
}

/// The value of `per_request.late`.
pub(crate) fn late_mark(span: &SpanData) -> Option<String> {
    span.attributes
        .iter()
        .find(|attribute| attribute.key.as_str() == "per_request.late")
        .map(|attribute| match &attribute.value {
            Value::String(value) => value.to_string(),
            other => panic!("not a string: {other:?}"),
        })
}

struct Running<T: Clone + Send + Sync + 'static>(Scripted<T>);

impl<T: Clone + Send + Sync + 'static> Running<T> {
    fn new(recorder: &Scripted<T>) -> Self {
        let mut state = recorder.state();
        state.entered += 1;
        state.running += 1;
        state.max_running = state.max_running.max(state.running);
        drop(state);
        Self(recorder.clone())
    }
}

impl<T: Clone + Send + Sync + 'static> Drop for Running<T> {
    fn drop(&mut self) {
        self.0.state().running -= 1;
    }
}

impl<T: Clone + Send + Sync + 'static> Scripted<T> {
    fn take(&self, batch: Vec<T>) -> impl Future<Output = OTelSdkResult> + Send + use<T> {
        let running = Running::new(self);
        let act = (self.0.script)(&batch);
        let at_call = current_tenant();
        let suppressed = Context::is_current_telemetry_suppressed();
        let recorder = self.clone();
        let index = {
            let mut state = recorder.state();
            state.seen.push(Seen {
                items: batch.clone(),
                at_call,
                after_await: None,
                suppressed: false,
            });
            state.seen.len() - 1
        };
        async move {
            let _running = running;
            if !matches!(act, Act::Block(_)) {
                yield_once().await;
            }
            {
                let seen = &mut recorder.state().seen[index];
                seen.after_await = current_tenant();
                seen.suppressed = suppressed && Context::is_current_telemetry_suppressed();
            }
            let hook = recorder.0.inside.lock().unwrap().clone();
            if let Some(hook) = hook {
                hook(&batch);
            }
            match act {
                Act::Take => {}
                Act::Fail(message) => {
                    return Err(OTelSdkError::InternalFailure(message.to_owned()));
                }
                Act::Panic => panic!("the exporter panics, as its script says"),
                Act::Hang(gate) => gate.opened().await,
                Act::Block(gate) | Act::YieldAndBlock(gate) => gate.wait(),
                Act::HangAndFail(gate) => {
                    gate.opened().await;
                    return Err(OTelSdkError::InternalFailure("released to fail".to_owned()));
                }
            }
            let mut state = recorder.state();
            match recorder.0.buffers {
                true => state.buffered.extend(batch),
                false => state.out.extend(batch),
            }
            Ok(())
        }
    }

    fn flushed(&self) -> OTelSdkResult {
        {
            let mut state = self.state();
            state.calls.push(Call::ForceFlush);
            let buffered = std::mem::take(&mut state.buffered);
            state.out.extend(buffered);
        }
        let answer = self.0.on_flush.lock().unwrap().clone();
        match answer {
            Some(answer) => answer(),
            None => Ok(()),
        }
    }

    fn shut_down(&self) -> OTelSdkResult {
        self.state().calls.push(Call::Shutdown);
        let answer = self.0.on_shutdown.lock().unwrap().clone();
        match answer {
            Some(answer) => answer(),
            None => Ok(()),
        }
    }
}

impl SpanExporter for Recorder {
    fn export(&self, batch: Vec<SpanData>) -> impl Future<Output = OTelSdkResult> + Send {
        self.take(batch)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.flushed()
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        self.shut_down()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.state().resource = Some(resource.clone());
    }
}

impl LogExporter for LogRecorder {
    fn export(&self, batch: LogBatch<'_>) -> impl Future<Output = OTelSdkResult> + Send {
        let logged = |(record, scope): (&SdkLogRecord, &InstrumentationScope)| Logged {
            record: record.clone(),
            scope: scope.clone(),
        };
        self.take(batch.iter().map(logged).collect())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        self.shut_down()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.state().resource = Some(resource.clone());
    }
}

impl PushMetricExporter for MetricRecorder {
    fn export(&self, metrics: &ResourceMetrics) -> impl Future<Output = OTelSdkResult> + Send {
        self.state().resource = Some(metrics.resource().clone());
        self.take(points(metrics))
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.flushed()
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        self.shut_down()
    }

    fn temporality(&self) -> Temporality {
        *self.0.temporality.lock().unwrap()
    }
}

fn points(metrics: &ResourceMetrics) -> Vec<Point> {
    let scopes = metrics.scope_metrics();
    let metrics = scopes.flat_map(|scope| scope.metrics());
    let of_metric = |metric: &opentelemetry_sdk::metrics::data::Metric| {
        let named = |attributes: Vec<KeyValue>, value, temporality| Point {
            name: metric.name().to_owned(),
            attributes,
            value,
            temporality,
        };
        match metric.data() {
            AggregatedMetrics::U64(MetricData::Sum(sum)) => {
                let points = sum.data_points().map(|point| {
                    let attributes = point.attributes().cloned().collect();
                    named(attributes, point.value() as f64, Some(sum.temporality()))
                });
                points.collect::<Vec<_>>()
            }
            AggregatedMetrics::F64(MetricData::Gauge(gauge)) => {
                let points = gauge.data_points().map(|point| {
                    let attributes = point.attributes().cloned().collect();
                    named(attributes, point.value(), None)
                });
                points.collect()
            }
            AggregatedMetrics::F64(MetricData::Histogram(histogram)) => {
                let points = histogram.data_points().map(|point| {
                    let attributes = point.attributes().cloned().collect();
                    let temporality = Some(histogram.temporality());
                    named(attributes, point.count() as f64, temporality)
                });
                points.collect()
            }
            AggregatedMetrics::I64(MetricData::Sum(sum)) => {
                let points = sum.data_points().map(|point| {
                    let attributes = point.attributes().cloned().collect();
                    named(attributes, point.value() as f64, Some(sum.temporality()))
                });
                points.collect()
            }
            other => panic!("{}: {other:?}", metric.name()),
        }
    };
    metrics.flat_map(of_metric).collect()
}

impl<T> fmt::Debug for Scripted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scripted")
    }
}

/// Is pending once.
async fn yield_once() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Opens once, for everybody. Clones are the same gate.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<GateInner>);

#[derive(Default)]
struct GateInner {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    open: bool,
    wakers: Vec<Waker>,
}

impl Gate {
    pub(crate) fn open(&self) {
        let wakers = {
            let mut state = self.0.state.lock().unwrap();
            state.open = true;
            std::mem::take(&mut state.wakers)
        };
        self.0.changed.notify_all();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Blocks this thread.
    pub(crate) fn wait(&self) {
        let state = self.0.state.lock().unwrap();
        drop(self.0.changed.wait_while(state, |state| !state.open));
    }

    pub(crate) async fn opened(&self) {
        poll_fn(|cx| {
            let mut state = self.0.state.lock().unwrap();
            if state.open {
                return Poll::Ready(());
            }
            state.wakers.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gate")
    }
}
