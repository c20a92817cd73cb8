//! The runtime in Cloudflare Workers: one thread, and no I/O outside of a request.
//!
//! Nothing runs by itself here. Whatever is due leaves at once, in the I/O context of the event that made it due: a span
//! that ended, an export that is done, a flush. Each export is a task of its own, kept alive by `waitUntil`. So a request's
//! spans leave inside that request, and no request waits for another one or is woken by it (R13).
//!
//! When the runtime cancels a request, its tasks are never polled again and never dropped. So an export in flight is only
//! believed in until its lease expires.

use std::borrow::Cow;
use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::task::{Context as TaskContext, Waker};
use std::time::Duration;

use futures_util::future::{Either, select};
use opentelemetry::Context;
use opentelemetry::trace::{SpanId, TraceId};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanData;
use worker::send::SendFuture;

use crate::clock::Instant;
use crate::config::Config;
#[cfg(feature = "logs")]
use crate::dispatch::Emitted;
#[cfg(feature = "metric-reader")]
use crate::dispatch::collections::Pace;
use crate::dispatch::{Batch, Dispatch, Flush, Losses, Outcome, Scope};
use crate::error::{ConfigError, Deadlock, FlushError};
use crate::export::{AnyExporter, Retired};
use crate::notices::{Example, Kind, Notice};
use crate::observer::SpanObserver;
use crate::open_spans::OpenSpan;
#[cfg(feature = "metric-reader")]
use crate::reader::{Collector, TOO_MANY};
use crate::request::{QueueId, RequestId};
use crate::runtime::{Observer, drop_quietly};
#[cfg(feature = "logs")]
use crate::signal::{Item as _, LogData};
use crate::signal::{PerSignal, Signal, Signals};
use crate::stats::Stats;
use crate::sync::{Arc, Mutex, MutexGuard};
use crate::workers::{KeepAlive, sleep};

/// How much longer an export is believed in than it may take. An export that is still polled ends by itself before.
const LEASE_GRACE: Duration = Duration::from_secs(1);

/// How soon a flush looks whether it is done. Each look waits twice as long as the one before.
const FIRST_LOOK: Duration = Duration::from_millis(4);
const LAST_LOOK: Duration = Duration::from_millis(128);

/// How often a pause looks whether its request still needs it.
const PAUSE_PART: Duration = Duration::from_secs(1);

/// How often somebody who is to look at open spans checks whether that is still wanted.
const LOOK_PART: Duration = Duration::from_millis(100);

/// How long an event is kept alive for metrics, at most: the runtime ends it 30 seconds after its response.
#[cfg(feature = "metric-reader")]
const LONGEST_WAIT: Duration = Duration::from_secs(25);

/// How many batches of others a request sends when it starts: those of a trace that it evicts, or what was left behind by
/// requests that the runtime has cancelled. Each costs it a subrequest.
const OTHERS: usize = 4;

/// The shortest time that an exporter's `shutdown` is given.
const LEAST_SHUTDOWN: Duration = Duration::from_millis(100);

/// What the processors and their handles share.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Shared with exports under way. Only `set_resource` changes one, before the first span.
    exporters: Mutex<PerSignal<Arc<dyn AnyExporter>>>,
    #[cfg(feature = "metric-reader")]
    collector: Mutex<Option<Arc<Collector>>>,
    observer: Option<Observer>,
    export_timeout: Duration,
}

/// What an event sends of what waits.
#[derive(Clone, Copy, Debug)]
struct Reach {
    /// Everything of this trace.
    own: Option<TraceId>,
    /// Metrics that were collected here.
    metrics: bool,
    /// So many batches of others.
    others: usize,
}

impl Reach {
    const NONE: Self = Self {
        own: None,
        metrics: false,
        others: 0,
    };

    const ALL: Self = Self {
        others: usize::MAX,
        ..Self::NONE
    };

    fn own(trace: TraceId) -> Self {
        let own = Some(trace);
        Self { own, ..Self::NONE }
    }
}

#[derive(Debug)]
struct State {
    dispatch: Dispatch,
    /// Batches whose task was spawned and not yet polled.
    starting: HashMap<u64, Batch>,
    /// When the requests are to go on that pause. A timer of their own event does it, if that lives as long.
    pauses: Vec<(QueueId, Instant)>,
    /// Until when a timer is believed in that waits for the time to collect metrics.
    #[cfg(feature = "metric-reader")]
    timer: Option<Instant>,
    /// Set when this instance is about to die: no task is polled any more.
    dying: bool,
    /// No lease expires before.
    next_expiry: Option<Instant>,
    /// What became of each exporter's `shutdown`, once it was called. Nothing is pending of a signal that nobody exports.
    shut_down: PerSignal<Option<Result<(), FlushError>>>,
    /// What is exported.
    signals: PerSignal<bool>,
}

/// There is no runtime to own: the isolate has one.
#[derive(Debug)]
pub(crate) struct OwnRuntime;

impl OwnRuntime {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    pub(crate) fn enter<T>(&self, f: impl FnOnce() -> T) -> T {
        f()
    }
}

impl Shared {
    pub(crate) fn start(
        config: &Config,
        fallback: Context,
        mark_late: bool,
        exporter: Arc<dyn AnyExporter>,
        _runtime: OwnRuntime,
        _independent: bool,
        observer: Option<Arc<dyn SpanObserver>>,
    ) -> Result<Arc<Self>, ConfigError> {
        let mut dispatch = Dispatch::for_workers(config, fallback, mark_late);
        if observer.is_some() {
            dispatch.observe_spans();
        }
        Ok(Arc::new(Self {
            state: Mutex::new(State {
                dispatch,
                starting: HashMap::new(),
                pauses: Vec::new(),
                #[cfg(feature = "metric-reader")]
                timer: None,
                dying: false,
                next_expiry: None,
                shut_down: PerSignal::default(),
                signals: PerSignal::new(|signal| signal == Signal::Spans),
            }),
            exporters: Mutex::new(PerSignal::new(|signal| match signal {
                Signal::Spans => exporter.clone(),
                Signal::Logs | Signal::Metrics => Arc::new(Retired),
            })),
            #[cfg(feature = "metric-reader")]
            collector: Mutex::new(None),
            observer: observer.map(Observer),
            export_timeout: config.export_timeout(),
        }))
    }

    /// Another signal is exported from now on, by this exporter. False if one is already.
    #[cfg(any(feature = "logs", feature = "metric-reader"))]
    pub(crate) fn join(&self, signal: Signal, exporter: Arc<dyn AnyExporter>) -> bool {
        let mut state = self.state.lock();
        let joins = !std::mem::replace(&mut state.signals[signal], true);
        if joins {
            state.dispatch.join(signal);
            self.exporters.lock()[signal] = exporter;
        }
        joins
    }

    /// Metrics come from this collector, as often as it says.
    #[cfg(feature = "metric-reader")]
    pub(crate) fn collect_from(&self, collector: Arc<Collector>, pace: Pace) {
        *self.collector.lock() = Some(collector);
        self.state.lock().dispatch.set_pace(pace);
    }

    // ----- spans start and end -----

    pub(crate) fn start_root(
        self: &Arc<Self>,
        id: RequestId,
        context: Context,
        open: Option<Box<OpenSpan>>,
    ) {
        let reach = Reach {
            others: OTHERS,
            ..Reach::own(id.trace)
        };
        self.event(reach, |state| {
            state.expire_leases(self.export_timeout);
            state.dispatch.start_root(id, context);
            if let Some(open) = open {
                state.dispatch.open(open);
            }
        });
    }

    pub(crate) fn start_child(
        self: &Arc<Self>,
        trace: TraceId,
        parent: SpanId,
        span: SpanId,
        open: Option<Box<OpenSpan>>,
    ) {
        self.event(Reach::own(trace), |state| {
            state.dispatch.start_child(trace, parent, span);
            if let Some(open) = open {
                state.dispatch.open(open);
            }
        });
    }

    pub(crate) fn end(self: &Arc<Self>, span: SpanData) {
        let trace = span.span_context.trace_id();
        let mut span = Some(span);
        let open = self.event(Reach::own(trace), |state| state.dispatch.end(&mut span));
        drop((span, open));
    }

    /// A span has got another name.
    pub(crate) fn rename(self: &Arc<Self>, trace: TraceId, span: SpanId, name: Cow<'static, str>) {
        self.event(Reach::own(trace), |state| {
            state.dispatch.rename(trace, span, name);
        });
    }

    #[cfg(feature = "logs")]
    pub(crate) fn emit(self: &Arc<Self>, log: LogData, of: Emitted) {
        let trace = log.trace();
        let mut log = Some(log);
        self.event(Reach::own(trace), |state| state.dispatch.emit(&mut log, of));
        drop(log);
    }

    /// Keeps a request open with a child that is no span.
    pub(crate) fn hold(self: &Arc<Self>, trace: TraceId, parent: SpanId, id: SpanId) {
        self.event(Reach::own(trace), |state| {
            state.dispatch.hold(trace, parent, id)
        });
    }

    /// Lets go of a child that is no span.
    pub(crate) fn release(self: &Arc<Self>, trace: TraceId, id: SpanId) {
        self.event(Reach::own(trace), |state| state.dispatch.release(trace, id));
    }

    /// Makes everything of a request leave that it has queued.
    pub(crate) fn send(self: &Arc<Self>, id: RequestId) {
        self.event(Reach::own(id.trace), |state| state.dispatch.send(id));
    }

    /// Notes something that the user should hear.
    pub(crate) fn note(self: &Arc<Self>, kind: Kind, count: u64, example: Example) {
        self.event(Reach::NONE, |state| {
            state.dispatch.notices.note(kind, count, example);
        });
    }

    /// Does something under the lock, and then, in this I/O context, what has become due and is in reach.
    fn event<T>(self: &Arc<Self>, reach: Reach, act: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock();
        let result = act(&mut state);
        self.follow_up(reach, state);
        result
    }

    /// What follows from whatever was done under the lock. Apart, so that there is one copy of it in the code of a Worker.
    #[inline(never)]
    fn follow_up(self: &Arc<Self>, reach: Reach, mut state: MutexGuard<'_, State>) {
        state.end_pauses();
        state.dispatch.tick(usize::MAX);
        if state.dying {
            return;
        }
        let garbage = state.dispatch.take_garbage();
        let paced = state.take_paced();
        let leaving = state.dispatch.has_ready_batch();
        // A timer that died with its event is noticed when a request starts, so that nothing else asks for the time.
        #[cfg(feature = "metric-reader")]
        let collecting =
            state.dispatch.wants_metrics() && (state.timer.is_none() || reach.others > 0);
        let over: Vec<Signal> = state.closing().collect();
        let looks = state.dispatch.take_looks();
        let observer = self.observer.as_ref();
        let told = observer.map(|observer| observer.take_told(&mut state.dispatch));
        let notices = state.take_notices();
        drop(state);

        drop_quietly(garbage);
        notices.iter().for_each(Notice::say);
        for (id, pause) in paced {
            self.pause(id, pause);
        }
        #[cfg(feature = "metric-reader")]
        if collecting {
            self.plan_collection();
        }
        if leaving {
            self.send_waiting(reach);
        }
        for signal in over {
            self.shut_down_if_drained(signal, self.export_timeout);
        }
        for id in looks {
            self.look_later(id);
        }
        if let (Some(observer), Some(told)) = (observer, told) {
            // What is noted meanwhile is said when something happens next.
            observer.tell(told, |act| act(&mut self.state.lock().dispatch));
        }
    }

    /// Looks whether spans of a request have been open for so long that the collector is to be told: first when the request
    /// waits for something, because only then a timer of no time fires.
    fn look_later(self: &Arc<Self>, id: RequestId) {
        let Some(alive) = KeepAlive::new() else {
            self.state.lock().dispatch.give_up_look(id);
            return;
        };
        let shared = self.clone();
        alive.spawn(async move {
            let mut wait = shared.state.lock().dispatch.first_look(id);
            loop {
                sleep(wait.min(LOOK_PART)).await;
                wait = wait.saturating_sub(LOOK_PART);
                if !shared.state.lock().dispatch.wants_look(id) {
                    // A request that is over should not keep its event open.
                    break shared.state.lock().dispatch.give_up_look(id);
                }
                if !wait.is_zero() {
                    continue;
                }
                let now = Instant::now();
                let reach = Reach::own(id.trace);
                let next = shared.event(reach, |state| state.dispatch.look_at_request(id, now));
                let Some(left) = next.and_then(|next| next.checked_duration_since(now)) else {
                    break;
                };
                wait = left;
            }
        });
    }

    // ----- metrics -----

    /// Has metrics collected if it is time for that, or as soon as it is: by a task, because it runs callbacks of the user's,
    /// and this may be the end of a span (R3). If its event does not live to do it, a later one does.
    #[cfg(feature = "metric-reader")]
    fn plan_collection(self: &Arc<Self>) {
        let now = Instant::now();
        let wait = {
            let mut state = self.state.lock();
            match state.dispatch.wait_to_collect(now) {
                // The event would not live to see it.
                Some(wait) if wait > LONGEST_WAIT => return,
                Some(wait) if state.timer.is_none_or(|until| until <= now) => {
                    state.timer = now.checked_add(wait + LEASE_GRACE);
                    wait
                }
                _ => return,
            }
        };
        let Some(alive) = KeepAlive::new() else {
            self.state.lock().timer = None;
            return;
        };
        let shared = self.clone();
        alive.spawn(async move {
            let mut left = wait;
            // A flush may have collected meanwhile, and then nothing should keep the event open.
            while !left.is_zero() && shared.state.lock().dispatch.wants_metrics() {
                let part = left.min(PAUSE_PART);
                sleep(part).await;
                left -= part;
            }
            shared.collect_if_due();
        });
    }

    #[cfg(feature = "metric-reader")]
    fn collect_if_due(self: &Arc<Self>) {
        let due = {
            let mut state = self.state.lock();
            state.timer = None;
            state.dispatch.collect_if_due(Instant::now())
        };
        if let Some(id) = due {
            // What goes wrong is noted.
            let _ = self.collect(id);
        }
        let reach = Reach {
            metrics: true,
            ..Reach::NONE
        };
        self.event(reach, |_| {});
    }

    #[cfg(feature = "metric-reader")]
    fn collect(&self, id: u64) -> Result<(), FlushError> {
        let collector = self.collector.lock().clone();
        let collected = collector.map_or(Ok(None), |collector| collector.collect());
        let failure = collected.as_ref().err().cloned();
        let mut state = self.state.lock();
        let found = collected.unwrap_or_default();
        state.dispatch.end_collection(id, found);
        match failure {
            None => Ok(()),
            Some(error) => {
                let example = Example::Error(error.clone());
                state.dispatch.notices.note(Kind::CollectFailed, 1, example);
                Err(FlushError::Collect(error))
            }
        }
    }

    /// Collects metrics for a flush or a shutdown.
    #[cfg(feature = "metric-reader")]
    fn collect_now(&self) -> Result<(), FlushError> {
        let id = {
            let mut state = self.state.lock();
            let closed = state.dispatch.is_closed(Signal::Metrics);
            if closed || !state.signals[Signal::Metrics] {
                return Ok(());
            }
            if !state.dispatch.may_collect() {
                return Err(FlushError::Collect(TOO_MANY.to_owned()));
            }
            state.dispatch.begin_collection(Instant::now())
        };
        self.collect(id)
    }

    #[cfg(not(feature = "metric-reader"))]
    fn collect_now(&self) -> Result<(), FlushError> {
        Ok(())
    }

    /// Sends a request's queue later, in this I/O context. If that ends before, the next event after the pause does it.
    fn pause(self: &Arc<Self>, id: QueueId, pause: Duration) {
        let Some(alive) = KeepAlive::new() else {
            return;
        };
        let shared = self.clone();
        alive.spawn(async move {
            let mut left = pause;
            // A request that is over meanwhile should not keep its event open.
            while !left.is_zero() && shared.state.lock().dispatch.is_paced(id) {
                let part = left.min(PAUSE_PART);
                sleep(part).await;
                left -= part;
            }
            shared.event(Reach::own(id.request.trace), |state| state.end_pause(id));
        });
    }

    // ----- exports -----

    /// Starts an export for each batch in reach that waits. Outside of a request there is no I/O: they go on waiting.
    fn send_waiting(self: &Arc<Self>, mut reach: Reach) {
        while self.state.lock().dispatch.has_ready_batch() {
            let alive = KeepAlive::new();
            let mut state = self.state.lock();
            let Some(alive) = alive else {
                let notices = &mut state.dispatch.notices;
                notices.note(Kind::OutsideRequest, 1, Example::None);
                return;
            };
            let Some(batch) = state.next_batch(&mut reach, self.lease()) else {
                return;
            };
            let id = batch.id;
            state.starting.insert(id, batch);
            drop(state);
            alive.spawn(self.clone().export(id));
        }
    }

    /// Until when an export that starts now is believed in.
    fn lease(&self) -> Option<Instant> {
        let lease = self.export_timeout.saturating_add(LEASE_GRACE);
        Instant::now().checked_add(lease)
    }

    async fn export(self: Arc<Self>, id: u64) {
        let Some(batch) = self.state.lock().starting.remove(&id) else {
            return;
        };
        let (signal, items) = (batch.items.signal(), batch.items.len() as u64);
        let reach = Reach {
            own: batch.items.traces().first().copied(),
            ..Reach::NONE
        };
        let error = {
            let export = batch.export_with(self.exporter(signal));
            match select(export, pin!(sleep(self.export_timeout))).await {
                Either::Left((Ok(()), _)) => None,
                Either::Left((Err(error), _)) => Some((Outcome::Failed, error.to_string())),
                Either::Right(_) => Some((Outcome::TimedOut, timed_out(self.export_timeout))),
            }
        };
        // An exporter that holds something back has nobody else here who would ask for it.
        let _ = self.exporter(signal).any_force_flush();
        self.event(reach, |state| {
            // Unless its lease has expired, and it is accounted for.
            if state.dispatch.in_flight(id).is_some() {
                match error {
                    None => state.dispatch.complete(id, Outcome::Exported),
                    Some((outcome, error)) => state.fail(id, signal, items, outcome, error),
                }
            }
        });
    }

    fn exporter(&self, signal: Signal) -> Arc<dyn AnyExporter> {
        self.exporters.lock()[signal].clone()
    }

    // ----- flush and shutdown -----

    /// Sends all that is queued in this scope, and ends when that is done, or at the deadline.
    pub(crate) fn flush(
        self: &Arc<Self>,
        signals: Signals,
        scope: Scope,
        timeout: Duration,
    ) -> impl Future<Output = Result<(), FlushError>> + Send + use<> {
        let flush = self.open_flush(signals, scope);
        let shared = self.clone();
        SendFuture::new(async move {
            let (flush, collected) = flush?;
            let result = |state: &mut State| state.result_of(&flush, shared.export_timeout);
            match shared.look(timeout, Reach::NONE, result).await {
                Some(result) => shared.flush_exporters(signals, result.and(collected)),
                None => Err(FlushError::Timeout(timeout)),
            }
        })
    }

    /// Begins a flush, with what came of collecting metrics for it.
    fn open_flush(
        self: &Arc<Self>,
        signals: Signals,
        scope: Scope,
    ) -> Result<(Flush, Result<(), FlushError>), FlushError> {
        let reach = match scope {
            Scope::All => Reach::ALL,
            Scope::Trace(trace) | Scope::Request(RequestId { trace, .. }) => Reach::own(trace),
        };
        let collected = match scope == Scope::All && signals.contains(Signal::Metrics) {
            true => self.collect_now(),
            false => Ok(()),
        };
        self.event(reach, |state| {
            let mut covered = signals.iter().filter(|s| state.signals[*s]).peekable();
            let some = covered.peek().is_some();
            match some && covered.all(|signal| state.dispatch.is_closed(signal)) {
                true => Err(FlushError::AlreadyShutdown),
                false => Ok((state.dispatch.open_flush(signals, scope), collected)),
            }
        })
    }

    /// Looks, ever more rarely, for what `find` finds, until the deadline. Nobody tells it: what it waits for may be another
    /// request's, and a task that another request wakes runs in the I/O context of that one.
    async fn look<T>(
        self: &Arc<Self>,
        timeout: Duration,
        reach: Reach,
        find: impl Fn(&mut State) -> Option<T>,
    ) -> Option<T> {
        let mut next = FIRST_LOOK;
        let mut waited = Duration::ZERO;
        loop {
            let found = self.event(reach, &find);
            if found.is_some() || waited >= timeout {
                return found;
            }
            let pause = next.min(timeout - waited);
            sleep(pause).await;
            waited += pause;
            next = (next * 2).min(LAST_LOOK);
        }
    }

    fn flush_exporters(
        &self,
        signals: Signals,
        result: Result<(), FlushError>,
    ) -> Result<(), FlushError> {
        signals.iter().fold(result, |result, signal| {
            let flushed = self.exporter(signal).any_force_flush();
            result.and(flushed.map_err(|error| FlushError::Exporter(error.to_string())))
        })
    }

    /// Sends all that is queued. There is no way to wait for it here.
    pub(crate) fn flush_blocking(
        self: &Arc<Self>,
        signals: Signals,
        _timeout: Duration,
    ) -> Result<(), FlushError> {
        let (flush, collected) = self.open_flush(signals, Scope::All)?;
        let result = |state: &mut State| state.result_of(&flush, self.export_timeout);
        match self.event(Reach::NONE, result) {
            Some(result) => self.flush_exporters(signals, result.and(collected)),
            None => Err(FlushError::WouldDeadlock(Deadlock::NoThreads)),
        }
    }

    /// Takes no more of this signal, sends all that is queued, and shuts its exporter down when that is done.
    pub(crate) fn shutdown(
        self: &Arc<Self>,
        signal: Signal,
        timeout: Duration,
    ) -> impl Future<Output = Result<(), FlushError>> + Send + use<> {
        let (flush, collected) = self.begin_shutdown(signal);
        let shared = self.clone();
        SendFuture::new(async move {
            let ended = shared.end_shutdown(signal, &flush, timeout).await;
            ended.and(collected)
        })
    }

    pub(crate) fn shutdown_blocking(
        self: &Arc<Self>,
        signal: Signal,
        timeout: Duration,
    ) -> Result<(), FlushError> {
        let (flush, collected) = self.begin_shutdown(signal);
        self.shut_down_if_drained(signal, timeout);
        self.shutdown_result(signal, &flush)
            .unwrap_or(Err(FlushError::WouldDeadlock(Deadlock::NoThreads)))
            .and(collected)
    }

    fn begin_shutdown(self: &Arc<Self>, signal: Signal) -> (Flush, Result<(), FlushError>) {
        let collected = match signal {
            Signal::Metrics => self.collect_now(),
            Signal::Spans | Signal::Logs => Ok(()),
        };
        let flush = self.event(Reach::ALL, |state| {
            if !state.dispatch.is_closed(signal) {
                state.dispatch.close(signal);
            }
            state.dispatch.open_flush(Signals::of(signal), Scope::All)
        });
        (flush, collected)
    }

    async fn end_shutdown(
        self: &Arc<Self>,
        signal: Signal,
        flush: &Flush,
        timeout: Duration,
    ) -> Result<(), FlushError> {
        let drained = |state: &mut State| {
            state.expire_leases(self.export_timeout);
            state.dispatch.is_drained(signal).then_some(())
        };
        if self.look(timeout, Reach::ALL, drained).await.is_none() {
            self.event(Reach::NONE, |state| state.dispatch.abandon(signal));
        }
        self.shut_down_if_drained(signal, timeout);
        self.shutdown_result(signal, flush)
            .unwrap_or(Err(FlushError::Timeout(timeout)))
    }

    fn shut_down_if_drained(&self, signal: Signal, timeout: Duration) {
        {
            let mut state = self.state.lock();
            if state.shut_down[signal].is_some() || !state.dispatch.is_drained(signal) {
                return;
            }
            // Once only, whatever comes of it.
            state.shut_down[signal] = Some(Ok(()));
        }
        let exporter = std::mem::replace(&mut self.exporters.lock()[signal], Arc::new(Retired));
        let flushed = exporter.any_force_flush();
        let result = flushed
            .and(exporter.any_shutdown(timeout.max(LEAST_SHUTDOWN)))
            .map_err(|error| FlushError::Exporter(error.to_string()));
        self.state.lock().shut_down[signal] = Some(result);
        drop_quietly(exporter);
    }

    fn shutdown_result(&self, signal: Signal, flush: &Flush) -> Option<Result<(), FlushError>> {
        let mut state = self.state.lock();
        let exporter = state.shut_down[signal].clone()?;
        let lost = state.result_of(flush, self.export_timeout)?;
        Some(lost.and(exporter))
    }

    /// The deadline of a flush for which none was given.
    pub(crate) fn default_timeout(&self) -> Duration {
        self.export_timeout
    }

    pub(crate) fn set_resource(&self, signal: Signal, resource: &Resource) {
        if let Some(exporter) = Arc::get_mut(&mut self.exporters.lock()[signal]) {
            exporter.any_set_resource(resource);
        }
    }

    // ----- the end of the instance -----

    /// Puts everything on the wire that is not there yet, from a panic hook: nothing in this instance is polled again.
    /// Spans that end in `last_words` are among it.
    ///
    /// Each export is polled once, which is enough for an exporter that calls `fetch` in its first poll.
    ///
    /// Of spans that are open, and remembered, it is told of at most so many requests, those of the trace that panicked first.
    pub(crate) fn rescue(
        &self,
        own: Option<TraceId>,
        max_requests: usize,
        last_words: impl FnOnce(),
    ) {
        match self.state.try_lock() {
            // A second panic, or one in a place that was believed not to panic.
            None => return,
            Some(state) if state.dying => return,
            Some(mut state) => state.dying = true,
        }
        last_words();
        let mut state = self.state.lock();
        state.dispatch.will_die(own, max_requests);
        // Metrics stay where they are: to collect them runs code of the user's.
        Signal::ALL
            .into_iter()
            .for_each(|signal| state.dispatch.close(signal));
        let mut batches: Vec<Batch> = state.starting.drain().map(|(_, batch)| batch).collect();
        while let Some(batch) = state.dispatch.next_batch(None) {
            batches.push(batch);
        }
        // Dropping what else there is could run code of the user's.
        std::mem::forget(state.dispatch.take_garbage());
        drop(state);
        for batch in batches {
            let exporter = self.exporter(batch.items.signal());
            let mut export = batch.export_with(exporter);
            let mut cx = TaskContext::from_waker(Waker::noop());
            let _ = export.as_mut().poll(&mut cx);
            // Dropping it would take it back.
            std::mem::forget(export);
        }
    }

    // ----- questions -----

    /// Whether it wants to know of spans that start.
    pub(crate) fn remembers_open_spans(&self) -> bool {
        self.state.lock().dispatch.remembers_open_spans()
    }

    /// Whether there is an exporter of this signal.
    #[cfg(all(feature = "metrics", feature = "metric-reader"))]
    pub(crate) fn exports(&self, signal: Signal) -> bool {
        self.state.lock().signals[signal]
    }

    pub(crate) fn is_closed(&self, signal: Signal) -> bool {
        self.state.lock().dispatch.is_closed(signal)
    }

    /// Whether a span of this request is open, as far as anybody knows.
    pub(crate) fn is_live(&self, id: RequestId) -> bool {
        self.state.lock().dispatch.is_live(id)
    }

    pub(crate) fn stats(&self) -> Stats {
        self.state.lock().dispatch.stats()
    }

    #[cfg(feature = "metrics")]
    pub(crate) fn max_pending(&self, signal: Signal) -> u64 {
        self.state.lock().dispatch.max_pending(signal)
    }
}

// ===== impl State =====

impl State {
    /// The next batch that is in reach.
    fn next_batch(&mut self, reach: &mut Reach, lease: Option<Instant>) -> Option<Batch> {
        let own = reach.own;
        let own = own.and_then(|trace| self.dispatch.next_batch_of(trace, lease));
        let own = match own {
            None if reach.metrics => self.dispatch.next_metrics(lease),
            own => own,
        };
        let batch = match own {
            Some(batch) => batch,
            None if reach.others > 0 => {
                reach.others -= 1;
                self.dispatch.next_batch(lease)?
            }
            None => return None,
        };
        self.next_expiry = self.next_expiry.or(lease);
        Some(batch)
    }

    /// What is closed, and its exporter not yet shut down.
    fn closing(&self) -> impl Iterator<Item = Signal> + '_ {
        let closed = |signal: &Signal| self.dispatch.is_closed(*signal);
        let closed = Signal::ALL.into_iter().filter(closed);
        closed.filter(|signal| self.shut_down[*signal].is_none())
    }

    /// Queues that begin to pause. One that pauses already, and waited for its root in between, goes on with the pause that it has.
    fn take_paced(&mut self) -> Vec<(QueueId, Duration)> {
        let mut begin = Vec::new();
        for (id, pause) in self.dispatch.take_paced() {
            if self.pauses.iter().any(|(paused, _)| *paused == id) {
                continue;
            }
            if let Some(until) = Instant::now().checked_add(pause + LEASE_GRACE) {
                self.pauses.push((id, until));
            }
            begin.push((id, pause));
        }
        begin
    }

    fn end_pause(&mut self, id: QueueId) {
        self.pauses.retain(|(paused, _)| *paused != id);
        self.dispatch.end_pause(id);
    }

    /// Ends the pauses whose events did not live to do it.
    fn end_pauses(&mut self) {
        if self.pauses.is_empty() {
            return;
        }
        let now = Instant::now();
        let over = |(_, until): &(QueueId, Instant)| *until <= now;
        let ended: Vec<_> = self.pauses.iter().copied().filter(over).collect();
        for (id, _) in ended {
            self.end_pause(id);
        }
    }

    /// Accounts for exports that should have ended by now: the runtime cancelled their request.
    fn expire_leases(&mut self, export_timeout: Duration) {
        let Some(next) = self.next_expiry else {
            return;
        };
        let now = Instant::now();
        if next > now {
            return;
        }
        for overdue in self.dispatch.overdue(now) {
            if let Some(batch) = self.starting.remove(&overdue.id) {
                self.dispatch.discard(batch);
            }
            let error = timed_out(export_timeout);
            let (id, signal, items) = (overdue.id, overdue.signal, overdue.items);
            self.fail(id, signal, items, Outcome::TimedOut, error);
        }
        self.next_expiry = self.dispatch.next_expiry();
    }

    fn fail(&mut self, id: u64, signal: Signal, items: u64, outcome: Outcome, error: String) {
        let example = Example::Error(error);
        let notices = &mut self.dispatch.notices;
        notices.note(Kind::ExportFailed(signal), items, example);
        self.dispatch.complete(id, outcome);
    }

    /// What a flush has come to, if it is done. Whoever asks tells somebody.
    fn result_of(
        &mut self,
        flush: &Flush,
        export_timeout: Duration,
    ) -> Option<Result<(), FlushError>> {
        self.expire_leases(export_timeout);
        let report = self.dispatch.done(flush)?;
        self.dispatch.mark_reported(&report);
        let Losses { failed, dropped } = report.losses;
        Some(match failed + dropped {
            0 => Ok(()),
            _ => Err(FlushError::Lost { failed, dropped }),
        })
    }

    fn take_notices(&mut self) -> Vec<Notice> {
        let notices = &mut self.dispatch.notices;
        match notices.has_news() || notices.next_due().is_some() {
            true => notices.take(Instant::now(), false),
            false => Vec::new(),
        }
    }
}

fn timed_out(timeout: Duration) -> String {
    format!("timed out after {timeout:?}")
}
