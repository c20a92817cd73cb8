//! A SERVER span around each request that a tower service answers: axum, hyper, tonic; natively and in Workers.
//!
//! ```
//! # use opentelemetry_sdk::trace::InMemorySpanExporter;
//! use opentelemetry::trace::TracerProvider as _;
//! use opentelemetry_per_request::server::ServerLayer;
//! use opentelemetry_per_request::{PerRequestSpanProcessor, RequestTracer};
//! use opentelemetry_sdk::trace::SdkTracerProvider;
//!
//! # let exporter = InMemorySpanExporter::default();
//! let processor = PerRequestSpanProcessor::builder(exporter).build()?;
//! let telemetry = processor.handle();
//! let provider = SdkTracerProvider::builder().with_span_processor(processor).build();
//!
//! let tracer = RequestTracer::new(provider.tracer("shop")).with_handle(telemetry);
//! let layer = ServerLayer::new(tracer).with_filter(|request| request.uri.path() != "/health");
//! # #[cfg(feature = "axum")] {
//! # use axum::Router;
//! # let (routes, _handler) = (Router::<()>::new(), ());
//! let app: Router = routes.layer(layer);
//! # let _ = app; }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What the span says
//!
//! It follows the semantic conventions for HTTP, 1.45: the name is the method and the route, such as `GET
//! /orders/{id}`; the route is that of axum, with the feature `axum` and if the layer is given to a `Router` (outside
//! of it no route is known yet), or what [`with_route`](ServerLayer::with_route) finds. Of a query only the names are
//! kept, because the values may be secrets. A status from 500 on is an error, with the status as `error.type`; one from
//! 400 on is not, it is the client's.
//!
//! A request over HTTP/1 does not say by which scheme it came; it is `http` unless
//! [`with_attributes`](ServerLayer::with_attributes) says otherwise.
//!
//! A request of gRPC (by its content type) follows the conventions for RPC instead: the name is the method,
//! `rpc.status_code` is a name such as `NOT_FOUND`, from the trailers. A method that the server does not know is
//! `_OTHER`, so that clients cannot make up names of spans: one that it answers with `UNIMPLEMENTED` and no body, or
//! with something that is not gRPC at all, whose status is then that of HTTP. So `rpc.method` is on the span from the
//! answer on, and not from the start. Of a call that is refused or left before it gets there nobody can tell whether
//! its method exists: refuse outside of this layer whom you do not know.
//!
//! An error of the service or of the body is an error of the span, in its own words; that of a body only if its status
//! is none already.
//!
//! # When it ends
//!
//! With the response's *body*, and while the body is polled the span is active. So a stream of an hour is a span of an
//! hour, whose children leave as they end, and which itself leaves at its end. When the server drops the body before
//! its end, because it has noticed that the client is gone, the span ends at once and has the attribute
//! [`per_request.cancelled`](crate::CANCELLED_ATTRIBUTE), and `http.response.body.size` with the bytes that had been
//! taken from it. The same attribute, without a status code, is on the span of a request that was dropped before its
//! head. As the conventions ask, an answer that was not sent fully is an error, with `error.type` `cancelled`: one
//! without a head, or short of the length that was known of it. A stream whose length nobody knows is none: it may be
//! all that the client wanted, as streams of events nearly always end that way.
//!
//! A layer that replaces whole responses, by an error page or a 304, drops them unread: put it inside of this one.
//!
//! [`with_end_at_head`](ServerLayer::with_end_at_head) ends the span before the body. A response that has no body, and one that
//! changes protocols, ends it there anyway.

mod body;
mod describe;
mod service;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use ::http::HeaderName;
use ::http::request::Parts;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tower_layer::Layer;

use crate::active::{ActiveSpan, RequestTracer};

pub use body::ServerBody;
pub use service::{Server, ServerFuture};

/// Puts a [`Server`] around a service. Cheap to clone.
///
/// A request that has passed one of them already gets no second span; the inner layer only adds the route, if it knows
/// one and the outer one did not. So one layer may be around everything, and another one where routes are known.
#[derive(Clone)]
pub struct ServerLayer {
    settings: Arc<Settings>,
}

#[derive(Clone)]
struct Settings {
    tracer: RequestTracer,
    propagator: Arc<dyn TextMapPropagator + Send + Sync>,
    context: Option<Arc<ContextHook>>,
    filter: Option<Arc<FilterHook>>,
    route: Option<Arc<RouteHook>>,
    attributes: Option<Arc<AttributesHook>>,
    request_headers: Vec<(HeaderName, String)>,
    response_headers: Vec<(HeaderName, String)>,
    end_at_head: bool,
}

type ContextHook = dyn Fn(&Parts, Context) -> Context + Send + Sync;
type FilterHook = dyn Fn(&Parts) -> bool + Send + Sync;
type RouteHook = dyn Fn(&Parts) -> Option<Cow<'static, str>> + Send + Sync;
type AttributesHook = dyn Fn(&Parts, &mut Vec<KeyValue>) + Send + Sync;

/// In the extensions of a request that has its span.
#[derive(Clone)]
struct Served {
    span: ActiveSpan,
    /// An attribute that is set twice is there twice.
    has_route: bool,
}

impl ServerLayer {
    /// A layer whose spans are started by `tracer`. Every request is traced, unless the caller's `traceparent` says
    /// that it is not sampled and the provider's sampler follows it, as the default one does.
    pub fn new(tracer: impl Into<RequestTracer>) -> Self {
        let tracer = tracer.into();
        Self {
            settings: Arc::new(Settings {
                tracer,
                propagator: Arc::new(TraceContextPropagator::new()),
                context: None,
                filter: None,
                route: None,
                attributes: None,
                request_headers: Vec::new(),
                response_headers: Vec::new(),
                end_at_head: false,
            }),
        }
    }

    /// What the spans of a request are exported under: its credentials, for one. `context` is called with each request,
    /// before its span starts, and with the context that continues the caller's trace.
    ///
    /// What is known only later, such as a token that is refreshed, can be updated through what was attached here.
    ///
    /// ```
    /// # use opentelemetry_per_request::{RequestTracer, server::ServerLayer};
    /// #[derive(Clone)]
    /// struct Tenant(String);
    ///
    /// // `ExportToken::attach_to` of `opentelemetry-otlp-direct` is used in the same way.
    /// ServerLayer::new(RequestTracer::global()).with_request_context(|request, cx| {
    ///     match request.extensions.get::<Tenant>() {
    ///         Some(tenant) => cx.with_value(tenant.clone()),
    ///         None => cx,
    ///     }
    /// });
    /// ```
    #[must_use]
    pub fn with_request_context(
        self,
        context: impl Fn(&Parts, Context) -> Context + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| settings.context = Some(Arc::new(context)))
    }

    /// Requests that `filter` is false for get no span, and what runs in them has no active one: health checks, for one.
    #[must_use]
    pub fn with_filter(self, filter: impl Fn(&Parts) -> bool + Send + Sync + 'static) -> Self {
        self.with(|settings| settings.filter = Some(Arc::new(filter)))
    }

    /// What the route of a request is, where it is not axum that knows it. It must be one of a few: `/orders/{id}`, not
    /// the path.
    #[must_use]
    pub fn with_route(
        self,
        route: impl Fn(&Parts) -> Option<Cow<'static, str>> + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| settings.route = Some(Arc::new(route)))
    }

    /// Changes the attributes that a span starts with, before a sampler sees them: to add some, or to take some away.
    ///
    /// ```
    /// # use opentelemetry_per_request::{RequestTracer, server::ServerLayer};
    /// use opentelemetry::KeyValue;
    ///
    /// ServerLayer::new(RequestTracer::global()).with_attributes(|request, attributes| {
    ///     attributes.retain(|attribute| attribute.key.as_str() != "user_agent.original");
    ///     if let Some(peer) = request.extensions.get::<std::net::SocketAddr>() {
    ///         attributes.push(KeyValue::new("network.peer.address", peer.ip().to_string()));
    ///     }
    /// });
    /// ```
    #[must_use]
    pub fn with_attributes(
        self,
        attributes: impl Fn(&Parts, &mut Vec<KeyValue>) + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| settings.attributes = Some(Arc::new(attributes)))
    }

    /// Keeps the values of these request headers as `http.request.header.<name>`. None by default; a header that is marked
    /// as sensitive never.
    #[must_use]
    pub fn with_request_headers(self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        self.with(|settings| settings.request_headers = describe::keys("request", names))
    }

    /// Keeps the values of these response headers as `http.response.header.<name>`. None by default; a header that is
    /// marked as sensitive never.
    #[must_use]
    pub fn with_response_headers(self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        self.with(|settings| settings.response_headers = describe::keys("response", names))
    }

    /// Ends the span when the response's head is there, and not with its body. A body is then polled without an active
    /// span.
    #[must_use]
    pub fn with_end_at_head(self) -> Self {
        self.with(|settings| settings.end_at_head = true)
    }

    /// What reads the caller's trace from the headers. W3C Trace Context by default.
    #[must_use]
    pub fn with_propagator(
        self,
        propagator: impl TextMapPropagator + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| settings.propagator = Arc::new(propagator))
    }

    fn with(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(Arc::make_mut(&mut self.settings));
        self
    }
}

impl<S> Layer<S> for ServerLayer {
    type Service = Server<S>;

    fn layer(&self, inner: S) -> Server<S> {
        Server::new(inner, self.settings.clone())
    }
}

impl fmt::Debug for ServerLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.settings.fmt(f)
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerLayer")
            .field("tracer", &self.tracer)
            .field("end_at_head", &self.end_at_head)
            .finish_non_exhaustive()
    }
}
