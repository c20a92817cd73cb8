//! One case: it does what the actions say, and knows whose each span is and whether it may be late.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex, MutexGuard};
use std::thread;

use futures_executor::block_on;
use opentelemetry::trace::{
    SpanId, TraceContextExt as _, TraceId, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp_direct::{DirectExporter, ExportToken};
use opentelemetry_per_request::{Handle, PerRequestSpanProcessor};
use opentelemetry_sdk::trace::{
    IdGenerator, RandomIdGenerator, Sampler, SdkTracer, SdkTracerProvider,
};

use super::actions::{Action, Bounds, Origin, SHARED_TRACES, Setup, TENANTS};
use super::receiver::{self, Arrived, NUMBER};
use crate::support::{SOON, parent, some_trace, within};

const FALLBACK: &str = "Bearer fallback";

pub(super) struct World {
    case: u64,
    provider: SdkTracerProvider,
    telemetry: Handle,
    tracer: SdkTracer,
    tenants: Vec<Tenant>,
    shared_traces: Vec<TraceId>,
    setup: Setup,
    /// Spans start one after the other, so that what is known of one is known when the next one starts.
    known: Mutex<Known>,
}

/// A customer, with a token that may be refreshed: all values that it has had are its own.
struct Tenant {
    token: ExportToken,
    cx: Context,
    updates: AtomicUsize,
}

#[derive(Default)]
struct Known {
    spans: Vec<Span>,
    requests: usize,
}

/// A span as the test sees it. Its place in the list is its number.
struct Span {
    tenant: usize,
    request: usize,
    trace: TraceId,
    id: SpanId,
    /// None once it was dropped.
    cx: Option<Context>,
    /// Whether somebody has set out to end it, and whether that is done.
    ending: bool,
    ended: bool,
    proof: Proof,
    /// Whether another span has the same ids.
    repeated: bool,
}

/// Whether a span is known to be of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    Yes,
    Maybe,
    No,
}

/// Where a span is to start.
struct Start {
    cx: Context,
    current: Option<usize>,
    /// A trace id for a root that has no parent.
    trace: Option<TraceId>,
    id: Option<SpanId>,
}

// ===== ids on demand =====

thread_local! {
    static NEXT_TRACE: Cell<Option<TraceId>> = const { Cell::new(None) };
    static NEXT_SPAN: Cell<Option<SpanId>> = const { Cell::new(None) };
}

/// Random ids, unless this thread has asked for others.
#[derive(Debug, Default)]
struct Chosen(RandomIdGenerator);

impl IdGenerator for Chosen {
    fn new_trace_id(&self) -> TraceId {
        NEXT_TRACE.take().unwrap_or_else(|| self.0.new_trace_id())
    }

    fn new_span_id(&self) -> SpanId {
        NEXT_SPAN.take().unwrap_or_else(|| self.0.new_span_id())
    }
}

// ===== impl World =====

impl World {
    pub(super) fn new(setup: &Setup) -> Self {
        static CASES: AtomicU64 = AtomicU64::new(0);
        let case = CASES.fetch_add(1, Ordering::Relaxed);
        let exporter = DirectExporter::builder()
            .with_env_lookup(|_| None)
            .with_endpoint(receiver::endpoint(case))
            .build()
            .unwrap();
        let fallback = match setup.fallback_has_token {
            true => ExportToken::new("fallback")
                .unwrap()
                .attach_to(&Context::new()),
            false => Context::new(),
        };
        let processor = PerRequestSpanProcessor::builder(exporter)
            .with_config(setup.config())
            .with_fallback_context(fallback)
            .build()
            .unwrap();
        let telemetry = processor.handle();
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::AlwaysOn)
            .with_id_generator(Chosen::default())
            .with_span_processor(processor)
            .build();
        Self {
            case,
            tracer: provider.tracer("isolation"),
            provider,
            telemetry,
            tenants: (0..TENANTS).map(Tenant::new).collect(),
            shared_traces: (0..SHARED_TRACES).map(|_| some_trace()).collect(),
            setup: setup.clone(),
            known: Mutex::default(),
        }
    }

    /// Each thread does its share of the actions, in their order.
    pub(super) fn run(&self, actions: &[Action]) {
        let threads = self.setup.threads;
        let together = Barrier::new(threads);
        thread::scope(|scope| {
            for turn in 0..threads {
                let (together, mine) = (&together, actions.iter().skip(turn).step_by(threads));
                scope.spawn(move || {
                    together.wait();
                    mine.for_each(|action| self.act(action));
                });
            }
        });
    }

    fn act(&self, action: &Action) {
        match *action {
            Action::Root {
                tenant,
                origin,
                copy,
                current,
            } => self.start_root(tenant, origin, copy, current),
            Action::Child {
                parent,
                foreign,
                copy,
                current,
            } => self.start_child(parent, foreign, copy, current),
            Action::Orphan { tenant, beside } => self.start_orphan(tenant, beside),
            Action::End { span, under } => self.end(span, under, false),
            Action::Drop { span, under } => self.end(span, under, true),
            Action::Update { tenant } => self.tenants[tenant].update(tenant),
            Action::FlushTrace { of } => self.flush_trace(of),
            Action::Flush => self.flush(),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap()
    }

    // ----- spans start -----

    fn start_root(
        &self,
        tenant: usize,
        origin: Origin,
        copy: Option<usize>,
        current: Option<usize>,
    ) {
        let mut known = self.known();
        let cx = &self.tenants[tenant].cx;
        let from_client = |trace, span| cx.with_remote_span_context(parent(trace, span, true));
        let (cx, trace) = match origin {
            Origin::New => (cx.clone(), some_trace()),
            Origin::Generated(shared) => (cx.clone(), self.shared_traces[shared]),
            Origin::Remote(shared) => {
                let trace = self.shared_traces[shared];
                (from_client(trace, SpanId::from(0xfeed)), trace)
            }
            Origin::Forged(span) => match known.pick(span, |_| true) {
                Some(victim) => {
                    let Span { trace, id, .. } = known.spans[victim];
                    (from_client(trace, id), trace)
                }
                None => (cx.clone(), some_trace()),
            },
        };
        let request = known.requests;
        known.requests += 1;
        let id = copy.and_then(|span| self.copied(&mut known, span, trace, request));
        let proof = match id {
            Some((_, true)) => Proof::Maybe,
            _ => self.as_far_as_bounds_allow(Proof::Yes),
        };
        let start = Start {
            cx,
            current,
            trace: Some(trace),
            id: id.map(|(id, _)| id),
        };
        self.start(&mut known, start, (tenant, request), proof);
    }

    fn start_child(
        &self,
        parent: usize,
        foreign: Option<usize>,
        copy: Option<usize>,
        current: Option<usize>,
    ) {
        let mut known = self.known();
        // Of two spans with the same ids, the second one may be the owner of them.
        let Some(parent) = known.pick(parent, |span| span.cx.is_some() && !span.repeated) else {
            return;
        };
        let Span {
            tenant,
            request,
            trace,
            ..
        } = known.spans[parent];
        let Some(cx) = known.spans[parent].cx.clone() else {
            return;
        };
        let cx = match foreign {
            None => cx,
            Some(foreign) => self.tenants[foreign].token.attach_to(&cx),
        };
        let proof = self.as_far_as_bounds_allow(known.proof_of_child(parent));
        let id = copy.and_then(|span| self.copied(&mut known, span, trace, request));
        let proof = match (id, proof) {
            (Some((_, true)), Proof::Yes) => Proof::Maybe,
            _ => proof,
        };
        let start = Start {
            cx,
            current,
            trace: None,
            id: id.map(|(id, _)| id),
        };
        self.start(&mut known, start, (tenant, request), proof);
    }

    fn start_orphan(&self, tenant: usize, beside: usize) {
        let mut known = self.known();
        let Some(beside) = known.pick(beside, |_| true) else {
            return;
        };
        let unknown = parent(known.spans[beside].trace, SpanId::from(0xdead), false);
        let start = Start {
            cx: self.tenants[tenant].cx.with_remote_span_context(unknown),
            current: None,
            trace: None,
            id: None,
        };
        let request = known.requests;
        known.requests += 1;
        self.start(&mut known, start, (tenant, request), Proof::No);
    }

    fn start(&self, known: &mut Known, start: Start, owner: (usize, usize), proof: Proof) {
        let (tenant, request) = owner;
        let _current = start
            .current
            .map(|tenant| self.tenants[tenant].cx.clone().attach());
        NEXT_TRACE.set(start.trace);
        NEXT_SPAN.set(start.id);
        let number = KeyValue::new(NUMBER, known.spans.len() as i64);
        let span = self
            .tracer
            .span_builder("span")
            .with_attributes([number])
            .start_with_context(&self.tracer, &start.cx);
        NEXT_TRACE.set(None);
        let cx = start.cx.with_span(span);
        let ids = cx.span().span_context().clone();
        known.spans.push(Span {
            tenant,
            request,
            trace: ids.trace_id(),
            id: ids.span_id(),
            cx: Some(cx),
            ending: false,
            ended: false,
            proof,
            repeated: start.id.is_some(),
        });
    }

    /// The id of another span, for one of this trace and request. And whether that makes its assignment uncertain.
    fn copied(
        &self,
        known: &mut Known,
        span: usize,
        trace: TraceId,
        request: usize,
    ) -> Option<(SpanId, bool)> {
        let original = known.pick(span, |_| true)?;
        let Span {
            id, request: its, ..
        } = known.spans[original];
        let elsewhere = known.spans[original].trace != trace;
        let unused = !known
            .spans
            .iter()
            .any(|span| (span.trace, span.id) == (trace, id));
        if elsewhere {
            // Ids of different traces have nothing to do with each other.
            return unused.then_some((id, false));
        }
        let original = &mut known.spans[original];
        // See the head of `isolation.rs`: a late one must not be repeated.
        if self.setup.bounds != Bounds::Wide || original.repeated || original.proof != Proof::Yes {
            return None;
        }
        original.repeated = true;
        if its != request {
            known.make_uncertain(its);
        }
        Some((id, its != request))
    }

    fn as_far_as_bounds_allow(&self, proof: Proof) -> Proof {
        match (proof, self.setup.bounds) {
            (Proof::Yes, Bounds::FewTraces(_) | Bounds::FewSpans(_)) => Proof::Maybe,
            (proof, _) => proof,
        }
    }

    // ----- and end -----

    fn end(&self, span: usize, under: Option<usize>, by_drop: bool) {
        let (span, cx, under) = {
            let mut known = self.known();
            let Some(span) = known.pick(span, |span| !span.ending) else {
                return;
            };
            let under = under.and_then(|other| known.pick(other, |other| other.cx.is_some()));
            let under = under.and_then(|other| known.spans[other].cx.clone());
            let ending = &mut known.spans[span];
            ending.ending = true;
            let cx = match by_drop {
                true => ending.cx.take(),
                false => ending.cx.clone(),
            };
            (span, cx, under)
        };
        let _under = under.map(Context::attach);
        match (cx, by_drop) {
            (Some(cx), false) => {
                cx.span().end();
                self.known().spans[span].ended = true;
            }
            // It ends when the last clone of it goes, and another thread may have one.
            (cx, _) => drop(cx),
        }
    }

    fn flush(&self) {
        let flush = self.telemetry.flush();
        // What was refused is an error of it, and in the account.
        let _ = within(SOON, "a flush", || block_on(flush));
    }

    fn flush_trace(&self, of: usize) {
        let trace = {
            let known = self.known();
            let Some(span) = known.pick(of, |_| true) else {
                return;
            };
            known.spans[span].trace
        };
        let flush = self.telemetry.flush_trace(trace);
        let _ = within(SOON, "a flush of a trace", || block_on(flush));
    }

    /// Ends what is open, and says what is wrong with what arrived.
    pub(super) fn finish(self) -> Result<(), String> {
        let mut spans = self.known.into_inner().unwrap().spans;
        for span in &mut spans {
            span.cx.take().inspect(|cx| cx.span().end());
        }
        let flush = self.telemetry.flush();
        let flushed = within(SOON, "the last flush", || block_on(flush));
        let stats = self.telemetry.stats();
        let _ = self.provider.shutdown();
        let arrived = receiver::take(self.case);
        let count: usize = arrived.iter().map(|request| request.spans.len()).sum();
        let refused = matches!(self.setup.bounds, Bounds::FewSpans(_));
        let ended = spans.len() as u64;
        let complete = stats.is_balanced()
            && (stats.ended, stats.traces, stats.pending(), stats.failed) == (ended, 0, 0, 0)
            && stats.exported == count as u64
            && (refused || (stats.exported == ended && flushed.is_ok()));
        if !complete {
            return Err(format!(
                "{count} of {ended} arrived, {flushed:?}: {stats:?}"
            ));
        }
        let mut seen = BTreeMap::<usize, usize>::new();
        for request in &arrived {
            check(
                request,
                &spans,
                &self.tenants,
                self.setup.fallback_has_token,
            )
            .map_err(|wrong| format!("{wrong}: {request:?}"))?;
            for span in &request.spans {
                *seen.entry(span.number).or_default() += 1;
            }
        }
        match seen.into_iter().find(|(_, times)| *times != 1) {
            Some((span, times)) => Err(format!("span {span} arrived {times} times")),
            None => Ok(()),
        }
    }
}

/// What is wrong with what arrived in one request. See the head of `isolation.rs`.
fn check(
    request: &Arrived,
    spans: &[Span],
    tenants: &[Tenant],
    fallback_has_token: bool,
) -> Result<(), &'static str> {
    let of = |number: usize| spans.get(number).ok_or("a span that was never made");
    let late = request
        .spans
        .iter()
        .filter(|span| span.late.is_some())
        .count();
    if late == request.spans.len() {
        if request.token.as_deref() != fallback_has_token.then_some(FALLBACK) {
            return Err("late spans under a token that is not the fallback's");
        }
        for span in &request.spans {
            if of(span.number)?.proof == Proof::Yes {
                return Err("late, and its request was live");
            }
        }
        return Ok(());
    }
    if late > 0 {
        return Err("late spans among others");
    }
    let first = of(request.spans[0].number)?;
    for span in &request.spans {
        let span = of(span.number)?;
        if (span.tenant, span.request) != (first.tenant, first.request) {
            return Err("a batch of more than one request");
        }
        if span.proof == Proof::No {
            return Err("not late, and its request was over");
        }
    }
    let token = request.token.as_deref().ok_or("no token")?;
    match tenants[first.tenant].has_had(first.tenant, token) {
        true => Ok(()),
        false => Err("under a token that is not its own"),
    }
}

// ===== impl Tenant =====

impl Tenant {
    fn new(number: usize) -> Self {
        let token = ExportToken::new(token(number, 0)).unwrap();
        let cx = token.attach_to(&Context::new());
        Self {
            token,
            cx,
            updates: AtomicUsize::new(0),
        }
    }

    fn update(&self, number: usize) {
        let update = self.updates.fetch_add(1, Ordering::Relaxed) + 1;
        self.token.update(token(number, update)).unwrap();
    }

    fn has_had(&self, number: usize, header: &str) -> bool {
        let updates = self.updates.load(Ordering::Relaxed);
        (0..=updates).any(|update| header == format!("Bearer {}", token(number, update)))
    }
}

fn token(tenant: usize, update: usize) -> String {
    format!("tenant-{tenant}-{update}")
}

// ===== impl Known =====

impl Known {
    /// One of the spans for which this holds, counted from the latest.
    fn pick(&self, number: usize, wanted: impl Fn(&Span) -> bool) -> Option<usize> {
        let wanted: Vec<_> = (0..self.spans.len())
            .rev()
            .filter(|at| wanted(&self.spans[*at]))
            .collect();
        (!wanted.is_empty()).then(|| wanted[number % wanted.len()])
    }

    fn proof_of_child(&self, parent: usize) -> Proof {
        let parent = &self.spans[parent];
        let of_request = || {
            let same = |span: &&Span| span.request == parent.request && span.proof != Proof::No;
            self.spans.iter().filter(same)
        };
        let is_over = of_request().all(|span| span.ended);
        let is_live = of_request().any(|span| !span.ending && span.proof == Proof::Yes);
        match parent.proof {
            Proof::No => Proof::No,
            _ if is_over => Proof::No,
            Proof::Yes if is_live => Proof::Yes,
            _ => Proof::Maybe,
        }
    }

    /// A request that shares an id with another one may not be told from it any more.
    fn make_uncertain(&mut self, request: usize) {
        let unsure = |span: &&mut Span| span.request == request && span.proof == Proof::Yes;
        for span in self.spans.iter_mut().filter(unsure) {
            if !span.ended {
                span.proof = Proof::Maybe;
            }
        }
    }
}
