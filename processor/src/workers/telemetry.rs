//! Telemetry for a Worker: set up once for each instance, and then around every event.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::sync::OnceLock;

use opentelemetry::Context;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracerProvider, TracerProviderBuilder};
use worker::Env;

use super::env::resource;
use super::root::OpenRoots;
use super::{IncomingRequest, WaitUntil, console, rescue};
use crate::active::{Carried, RequestTracer};
use crate::handle::Handle;
use crate::processor::PerRequestSpanProcessor;
#[cfg(feature = "tower")]
use crate::server::ServerLayer;

type RequestContext = Box<dyn Fn(&dyn IncomingRequest, Context) -> Context + Send + Sync>;
type Provider = Box<dyn FnOnce(TracerProviderBuilder) -> TracerProviderBuilder>;

/// The telemetry of a Worker, for a `static`: set up at the first event of each instance, and put around every one.
///
/// ```ignore
/// static TELEMETRY: Telemetry = Telemetry::new(|env| {
///     let exporter = DirectExporter::builder().with_worker_env(env).build()?;
///     let processor = PerRequestSpanProcessor::builder(exporter)
///         .with_config(Config::from_worker_env(env))
///         .build()?;
///     Ok(SetUp::new(processor))
/// });
///
/// #[event(fetch)]
/// async fn fetch(request: Request, env: Env, ctx: Context) -> Result<Response> {
///     TELEMETRY.instrument_fetch(request, env, ctx, handle).await
/// }
/// ```
///
/// If the set-up fails, one line on the console says why, and everything else does nothing: events are handled as if there
/// were no telemetry. That is also what happens where no endpoint is configured.
pub struct Telemetry {
    set_up: fn(&Env) -> Result<SetUp, Box<dyn Error>>,
    /// None inside if the set-up failed.
    running: OnceLock<Option<Running>>,
}

/// What a Worker's telemetry consists of.
#[must_use = "it does nothing until the closure of `Telemetry::new` returns it"]
pub struct SetUp {
    what: What,
    request_context: Option<RequestContext>,
    panic_rescue: bool,
}

/// What is exported.
enum What {
    Spans(PerRequestSpanProcessor, Option<Provider>),
    Signals(crate::Telemetry),
}

/// Telemetry that was set up.
pub(super) struct Running {
    signals: crate::Telemetry,
    tracer: RequestTracer,
    propagator: TraceContextPropagator,
    request_context: Option<RequestContext>,
    /// There if a panic hook needs them.
    open_roots: Option<OpenRoots>,
}

// ===== impl Telemetry =====

impl Telemetry {
    /// Telemetry that `set_up` sets up when the first event of an instance comes: not before, because there is no
    /// randomness, and so there are no span ids, outside of an event.
    pub const fn new(set_up: fn(&Env) -> Result<SetUp, Box<dyn Error>>) -> Self {
        Self {
            set_up,
            running: OnceLock::new(),
        }
    }

    /// The processor's handle, to flush or to read numbers. `None` if the set-up failed.
    ///
    /// # Panics
    ///
    /// If the set-up itself calls it, or anything else of this telemetry.
    pub fn handle(&self, env: &Env) -> Option<Handle> {
        self.running(env).map(Running::handle)
    }

    /// The providers of all signals, and one flush of them. `None` if the set-up failed.
    ///
    /// What was set up from a processor alone has providers of loggers and meters that export nothing.
    ///
    /// # Panics
    ///
    /// If the set-up itself calls it, or anything else of this telemetry.
    pub fn signals(&self, env: &Env) -> Option<&crate::Telemetry> {
        self.running(env).map(|running| &running.signals)
    }

    /// Runs `work` after the event is answered, under the context that is current here, as part of the current request.
    ///
    /// A span that starts after its request is over is late, because nothing proves any more whose it is. `work` keeps the
    /// request open, so its spans leave under the request's own context, as they end. `ctx.wait_until` itself forgets the
    /// context: a span that starts there is the root of a trace of its own. This is the same as
    /// `ctx.wait_until(work.carried())`, with the trait [`Carry`](crate::Carry).
    ///
    /// If the request is over already, or its trace is full, nothing is kept open.
    pub fn wait_until(&self, ctx: &impl WaitUntil, work: impl Future<Output = ()> + 'static) {
        let handle = self.running.get().and_then(Option::as_ref);
        let handle = handle.map(Running::handle);
        ctx.wait_until(Carried::by(work, handle.as_ref()));
    }

    /// A layer for a tower service that handles `fetch` events, such as an axum `Router`: the crate `worker` has them
    /// as `http::Request` with its feature `http`. It is for use in the place of
    /// [`instrument_fetch`](Self::instrument_fetch), which ends its span before the body of the response is on its way.
    ///
    /// Spans start under what [`SetUp::with_request_context`] makes of the request. If the set-up failed, nothing is
    /// traced. The panic hook of [`SetUp::with_panic_rescue`] sends what is queued, and does not end the spans of this
    /// layer.
    ///
    /// ```ignore
    /// #[event(fetch)]
    /// async fn fetch(request: HttpRequest, env: Env, _ctx: Context) -> Result<http::Response<Body>> {
    ///     let mut routes = routes().layer(TELEMETRY.server_layer(&env));
    ///     Ok(routes.call(request).await?)
    /// }
    /// ```
    #[cfg(feature = "tower")]
    pub fn server_layer(&'static self, env: &Env) -> ServerLayer {
        match self.running(env) {
            Some(running) => ServerLayer::new(running.tracer.clone())
                .with_request_context(|request, cx| running.request_context(request, cx)),
            None => ServerLayer::new(RequestTracer::global()).with_filter(|_| false),
        }
    }

    pub(super) fn running(&self, env: &Env) -> Option<&Running> {
        self.running.get_or_init(|| self.start(env)).as_ref()
    }

    fn start(&self, env: &Env) -> Option<Running> {
        match (self.set_up)(env) {
            Ok(set_up) => Some(set_up.start(env)),
            Err(error) => {
                console::warn(&format!("telemetry is off: {error}"));
                None
            }
        }
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let signals = self.running.get().map(|r| r.as_ref().map(|r| &r.signals));
        f.debug_struct("Telemetry")
            .field("running", &signals)
            .finish()
    }
}

// ===== impl SetUp =====

impl SetUp {
    /// Telemetry that consists of this processor, with a resource from the bindings `OTEL_SERVICE_NAME` and
    /// `OTEL_RESOURCE_ATTRIBUTES`. Every trace is sampled, unless the caller's `traceparent` says that it is not. Its
    /// tracer provider becomes the global one.
    pub fn new(processor: PerRequestSpanProcessor) -> Self {
        Self::of(What::Spans(processor, None))
    }

    fn of(what: What) -> Self {
        Self {
            what,
            request_context: None,
            panic_rescue: false,
        }
    }

    /// What else the tracer provider is to have: a sampler, limits, more of a resource. Without effect on what was made of a
    /// [`Telemetry`](crate::Telemetry), whose builder takes that.
    pub fn with_provider(
        mut self,
        more: impl FnOnce(TracerProviderBuilder) -> TracerProviderBuilder + 'static,
    ) -> Self {
        if let What::Spans(_, provider) = &mut self.what {
            *provider = Some(Box::new(more));
        }
        self
    }

    /// What the spans of a request are exported under: its credentials, for one. `context` is called with each request of a
    /// `fetch` event, before its root span starts, and with the context that continues the caller's trace.
    ///
    /// ```ignore
    /// .with_request_context(|request, cx| match request.header("x-telemetry-token") {
    ///     Some(token) => ExportToken::new(&token).map_or(cx.clone(), |token| token.attach_to(&cx)),
    ///     None => cx,
    /// })
    /// ```
    pub fn with_request_context(
        mut self,
        context: impl Fn(&dyn IncomingRequest, Context) -> Context + Send + Sync + 'static,
    ) -> Self {
        self.request_context = Some(Box::new(context));
        self
    }

    /// Installs a panic hook that puts what is queued on the wire before the instance dies, with an error span for the
    /// root of the request that panicked, and for those of the 32 latest others that are open. Off by default.
    ///
    /// A panic in one request takes the whole instance with it, and all requests in it. Spans below a root that had not
    /// ended are lost; so is what was in flight, if the runtime ends those connections, and what waited to be sent again.
    /// The panic's message is on the span of the request that panicked, in its own words. Nothing can be sent if the panic
    /// comes from inside of `get_active_span`, or from code that runs while a span is changed.
    ///
    /// A Worker that is built to unwind survives its panics. There is nothing to rescue then, and no hook.
    pub fn with_panic_rescue(mut self) -> Self {
        self.panic_rescue = true;
        self
    }

    fn start(self, env: &Env) -> Running {
        let signals = match self.what {
            What::Signals(signals) => signals,
            What::Spans(processor, more) => {
                let builder = SdkTracerProvider::builder().with_resource(resource(env));
                let builder = match more {
                    Some(more) => more(builder),
                    None => builder,
                };
                let handle = processor.handle();
                let provider = builder.with_span_processor(processor).build();
                crate::Telemetry::of_spans(handle, provider)
            }
        };
        let open_roots = match signals.handle().shared() {
            Some(shared) if self.panic_rescue => rescue::install(shared),
            _ => None,
        };
        signals.set_global();
        let tracer = RequestTracer::from(&signals);
        Running {
            signals,
            tracer,
            propagator: TraceContextPropagator::new(),
            request_context: self.request_context,
            open_roots,
        }
    }
}

/// All three signals, with the resource that they were built with: see
/// [`TelemetryBuilder::with_worker_env`](crate::TelemetryBuilder::with_worker_env). The tracer and meter providers become the
/// global ones.
impl From<crate::Telemetry> for SetUp {
    fn from(signals: crate::Telemetry) -> Self {
        Self::of(What::Signals(signals))
    }
}

impl fmt::Debug for SetUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what: &dyn fmt::Debug = match &self.what {
            What::Spans(processor, _) => processor,
            What::Signals(signals) => signals,
        };
        f.debug_struct("SetUp")
            .field("what", what)
            .field("panic_rescue", &self.panic_rescue)
            .finish_non_exhaustive()
    }
}

// ===== impl Running =====

impl Running {
    pub(super) fn handle(&self) -> Handle {
        self.signals.handle()
    }

    pub(super) fn tracer(&self) -> &RequestTracer {
        &self.tracer
    }

    /// A context that continues the trace that is named by the fields that `read` reads.
    pub(super) fn extract(&self, read: impl Fn(&str) -> Option<String>) -> Context {
        let field = |name: &str| Some((name.to_owned(), read(name)?));
        let carrier: HashMap<_, _> = self.propagator.fields().filter_map(field).collect();
        // Never the current context: it may be another request's.
        self.propagator
            .extract_with_context(&Context::new(), &carrier)
    }

    pub(super) fn open_roots(&self) -> Option<&OpenRoots> {
        self.open_roots.as_ref()
    }

    /// What the root span of a request starts under.
    pub(super) fn parent_of(&self, request: &impl IncomingRequest) -> Context {
        let cx = self.extract(|name| request.header(name));
        self.request_context(request, cx)
    }

    fn request_context(&self, request: &impl IncomingRequest, cx: Context) -> Context {
        match &self.request_context {
            Some(context) => context(request, cx),
            None => cx,
        }
    }
}
