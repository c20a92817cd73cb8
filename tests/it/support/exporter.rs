//! An exporter that does what a script says, and records what it saw.

use std::fmt;
use std::future::{Future, poll_fn};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::task::{Poll, Waker};
use std::time::Duration;

use opentelemetry::{Context, Value};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
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
pub(crate) struct Seen {
    pub(crate) spans: Vec<SpanData>,
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

type Script = Box<dyn Fn(&[SpanData]) -> Act + Send + Sync>;
type Hook = Arc<dyn Fn(&[SpanData]) + Send + Sync>;
type Answer = Arc<dyn Fn() -> OTelSdkResult + Send + Sync>;

/// Clones share everything.
#[derive(Clone)]
pub(crate) struct Recorder(Arc<Inner>);

struct Inner {
    script: Script,
    /// Called in the asynchronous part, between the two looks at the context.
    inside: Mutex<Option<Hook>>,
    on_flush: Mutex<Option<Answer>>,
    on_shutdown: Mutex<Option<Answer>>,
    buffers: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    seen: Vec<Seen>,
    entered: usize,
    running: usize,
    max_running: usize,
    calls: Vec<Call>,
    buffered: Vec<SpanData>,
    out: Vec<SpanData>,
    resource: Option<Resource>,
}

impl Recorder {
    /// Takes everything.
    pub(crate) fn new() -> Self {
        Self::scripted(|_| Act::Take)
    }

    /// Does the same with every batch.
    pub(crate) fn always(act: Act) -> Self {
        Self::scripted(move |_| act.clone())
    }

    pub(crate) fn scripted(script: impl Fn(&[SpanData]) -> Act + Send + Sync + 'static) -> Self {
        Self::make(false, Box::new(script))
    }

    /// Keeps what it takes until it is flushed.
    pub(crate) fn buffering() -> Self {
        Self::make(true, Box::new(|_| Act::Take))
    }

    fn make(buffers: bool, script: Script) -> Self {
        Self(Arc::new(Inner {
            script,
            inside: Mutex::default(),
            on_flush: Mutex::default(),
            on_shutdown: Mutex::default(),
            buffers,
            state: Mutex::default(),
        }))
    }

    /// What it does inside the asynchronous part of an export.
    pub(crate) fn set_inside(&self, hook: impl Fn(&[SpanData]) + Send + Sync + 'static) {
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

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    /// The batches it was done with, or that hang, in the order in which they came.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state().seen.clone()
    }

    /// The names of all spans it was given, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .state()
            .seen
            .iter()
            .flat_map(|seen| &seen.spans)
            .map(|span| span.name.to_string())
            .collect();
        names.sort();
        names
    }

    /// All spans it was given, each with the tenant it was given under.
    pub(crate) fn spans(&self) -> Vec<(SpanData, Option<Tenant>)> {
        self.seen()
            .into_iter()
            .flat_map(|seen| {
                let tenant = seen.at_call;
                seen.spans.into_iter().map(move |span| (span, tenant))
            })
            .collect()
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

struct Running(Recorder);

impl Running {
    fn new(recorder: &Recorder) -> Self {
        let mut state = recorder.state();
        state.entered += 1;
        state.running += 1;
        state.max_running = state.max_running.max(state.running);
        drop(state);
        Self(recorder.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.state().running -= 1;
    }
}

impl SpanExporter for Recorder {
    fn export(&self, batch: Vec<SpanData>) -> impl Future<Output = OTelSdkResult> + Send {
        let running = Running::new(self);
        let act = (self.0.script)(&batch);
        let at_call = current_tenant();
        let suppressed = Context::is_current_telemetry_suppressed();
        let recorder = self.clone();
        let index = {
            let mut state = recorder.state();
            state.seen.push(Seen {
                spans: batch.clone(),
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

    fn force_flush(&self) -> OTelSdkResult {
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

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        self.state().calls.push(Call::Shutdown);
        let answer = self.0.on_shutdown.lock().unwrap().clone();
        match answer {
            Some(answer) => answer(),
            None => Ok(()),
        }
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.state().resource = Some(resource.clone());
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recorder")
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
