//! The service: a span starts when it is called, and ends here if the response has no body to wait for.

use std::fmt::Display;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};

use ::http::request::Parts;
use ::http::{Method, Request, Response, StatusCode};
use http_body::Body;
use opentelemetry::Context;
use opentelemetry::trace::{SpanBuilder, SpanKind};
use opentelemetry_http::HeaderExtractor;
use pin_project_lite::pin_project;
use tower_service::Service;

use super::body::{Sending, ServerBody};
use super::describe::{self, Opening};
use super::{Served, Settings};
use crate::active::{ActiveSpan, ChildSpan, drop_within, poll_once, within};
use crate::grpc;
use crate::http::span_name;

/// A service that answers each request in a span: see [the module](super).
#[derive(Clone, Debug)]
pub struct Server<S> {
    inner: S,
    settings: Arc<Settings>,
}

/// The span of a request until its response's head is there.
#[derive(Debug)]
struct Answering {
    span: ChildSpan,
    settings: Arc<Settings>,
    grpc: bool,
    asked: Asked,
    /// That of gRPC, as the client has it.
    method: Option<String>,
}

/// What decides, with the status, whether a response has a body, whatever its headers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    ForHead,
    ForTunnel,
    Otherwise,
}

impl<S> Server<S> {
    pub(super) fn new(inner: S, settings: Arc<Settings>) -> Self {
        Self { inner, settings }
    }
}

impl<S, B, R> Service<Request<B>> for Server<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Error: Display,
    R: Body,
{
    type Response = Response<ServerBody<R>>;
    type Error = S::Error;
    type Future = ServerFuture<S::Future>;

    fn poll_ready(&mut self, task: &mut TaskContext<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(task)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        let answering = self.open(&mut parts);
        let request = Request::from_parts(parts, body);
        // What a service does before its future is first polled is part of the request, too.
        let inner = match &answering {
            Some(answering) => answering.within(|| self.inner.call(request)),
            None => self.inner.call(request),
        };
        ServerFuture {
            inner: Some(inner),
            answering,
        }
    }
}

impl<S> Server<S> {
    /// Starts the span of a request, if it is to have one.
    fn open(&self, request: &mut Parts) -> Option<Answering> {
        let settings = &self.settings;
        if let Some(served) = request.extensions.get::<Served>() {
            if !served.has_route {
                let has_route = add_route(&served.span, request, settings);
                let span = served.span.clone();
                request.extensions.insert(Served { span, has_route });
            }
            return None;
        }
        let asked = Asked::by(&request.method);
        let filter = settings.filter.as_ref();
        if filter.is_some_and(|filter| !filter(request)) {
            let span = ChildSpan::outside();
            // For an inner layer, which is to have none either.
            request.extensions.insert(Served {
                span: span.clone(),
                has_route: true,
            });
            return Some(Answering {
                span,
                settings: settings.clone(),
                grpc: false,
                asked,
                method: None,
            });
        }
        // Never the current context: it may be another request's.
        let headers = HeaderExtractor(&request.headers);
        let parent = settings
            .propagator
            .extract_with_context(&Context::new(), &headers);
        let parent = match &settings.context {
            Some(hook) => hook(request, parent),
            None => parent,
        };
        let opening = Opening::of(request, settings);
        let has_route = opening.has_route;
        let method = opening.grpc.then(|| opening.name.to_string());
        let builder = SpanBuilder::from_name(opening.name)
            .with_kind(SpanKind::Server)
            .with_attributes(opening.attributes);
        let span = settings.tracer.start(builder, &parent);
        request.extensions.insert(Served {
            span: span.clone(),
            has_route,
        });
        Some(Answering {
            span,
            settings: settings.clone(),
            grpc: opening.grpc,
            asked,
            method,
        })
    }
}

/// An outer layer did not know the route yet. Whether this one does.
fn add_route(span: &ActiveSpan, request: &Parts, settings: &Settings) -> bool {
    if grpc::is_grpc(&request.headers) {
        return false;
    }
    let Some(route) = describe::route(request, settings) else {
        return false;
    };
    let method = span_name(request.method.as_str());
    span.update_name(describe::name_of(method, &route));
    span.set_attribute("http.route", route);
    true
}

// ===== impl Asked =====

impl Asked {
    fn by(method: &Method) -> Self {
        match *method {
            Method::HEAD => Self::ForHead,
            Method::CONNECT => Self::ForTunnel,
            _ => Self::Otherwise,
        }
    }

    fn is_bodiless(self, status: StatusCode) -> bool {
        match self {
            Self::ForHead => true,
            // One that is refused has a body that says why.
            Self::ForTunnel if status.is_success() => true,
            _ => {
                status.is_informational()
                    || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
            }
        }
    }
}

// ===== impl Answering =====

impl Answering {
    /// The head of the response is there. Returns what is to be done until its body is.
    fn answered<R: Body>(self, response: &Response<R>) -> Option<Sending> {
        let status = response.status();
        let trailers = match self.grpc {
            true => self.record_rpc(response),
            false => {
                self.record_http(response);
                false
            }
        };
        let is_over = self.settings.end_at_head || self.asked.is_bodiless(status);
        if is_over || response.body().is_end_stream() {
            self.span.end();
            return None;
        }
        Some(Sending::new(self.span, response, trailers))
    }

    fn record_http<R>(&self, response: &Response<R>) {
        let status = response.status();
        let code = i64::from(status.as_u16());
        self.span.set_attribute("http.response.status_code", code);
        if status.is_server_error() {
            self.span.fail_with(status.as_u16().to_string(), "");
        }
        let wanted = &self.settings.response_headers;
        if !wanted.is_empty() {
            let mut attributes = Vec::with_capacity(wanted.len());
            describe::push_headers(response.headers(), wanted, &mut attributes);
            self.span.set_attributes(attributes);
        }
    }

    /// Whether the status is still to come, in the trailers.
    fn record_rpc<R>(&self, response: &Response<R>) -> bool {
        let headers = response.headers();
        let status = grpc::status(headers);
        let by_rpc = response.status() == StatusCode::OK && grpc::is_grpc(headers);
        if status.is_none() && !by_rpc {
            // Whoever answered knows nothing of gRPC.
            self.record_unknown_method();
            self.record_http(response);
            return false;
        }
        match status {
            Some("UNIMPLEMENTED") => self.record_unknown_method(),
            _ => self.record_method(),
        }
        let mut attributes = Vec::new();
        describe::push_headers(headers, &self.settings.response_headers, &mut attributes);
        self.span.set_attributes(attributes);
        if let Some(status) = status {
            record_rpc_status(&self.span, status);
        }
        status.is_none()
    }

    /// The method is one of the server's, as far as anybody can tell.
    fn record_method(&self) {
        if let Some(method) = &self.method {
            self.span.set_attribute("rpc.method", method.clone());
        }
    }

    /// The method is one that the client made up.
    fn record_unknown_method(&self) {
        if let Some(method) = &self.method {
            self.span.update_name("grpc");
            self.span.set_attribute("rpc.method", "_OTHER");
            self.span
                .set_attribute("rpc.method_original", method.clone());
        }
    }

    /// Runs the service in the span. If it panics, that is all there will be of an answer.
    fn within<T>(&self, work: impl FnOnce() -> T) -> T {
        within(&self.span, || {
            let panicking = Panicking(self);
            let result = work();
            std::mem::forget(panicking);
            result
        })
    }
}

struct Panicking<'a>(&'a Answering);

impl Drop for Panicking<'_> {
    fn drop(&mut self) {
        self.0.record_method();
    }
}

pub(super) fn record_rpc_status(span: &ActiveSpan, status: &'static str) {
    span.set_attribute("rpc.status_code", status);
    if grpc::is_server_error(status) {
        span.fail_with(status, "");
    }
}

/// Nobody waits for the status any more.
pub(super) fn cancel_rpc(span: &ActiveSpan, waits: bool) {
    if waits {
        record_rpc_status(span, "CANCELLED");
    }
}

// ===== impl ServerFuture =====

pin_project! {
    /// The future of a [`Server`]. Polled again after it is done, it stays pending.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct ServerFuture<F> {
        // None when it is done. It is dropped before the span ends.
        #[pin]
        inner: Option<F>,
        answering: Option<Answering>,
    }

    impl<F> PinnedDrop for ServerFuture<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            if let Some(mut answering) = this.answering.take() {
                drop_within(&answering.span, || this.inner.set(None));
                answering.record_method();
                cancel_rpc(&answering.span, answering.grpc);
                if !answering.grpc {
                    answering.span.fail_with("cancelled", "");
                }
                answering.span.cancel();
            }
        }
    }
}

impl<F, R, E> Future for ServerFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: Body,
    E: Display,
{
    type Output = Result<Response<ServerBody<R>>, E>;

    fn poll(self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let result = ready!(match this.answering.as_ref() {
            Some(answering) => answering.within(|| poll_once(this.inner.as_mut(), task)),
            None => poll_once(this.inner.as_mut(), task),
        });
        let Some(answering) = this.answering.take() else {
            return Poll::Ready(result.map(|response| response.map(ServerBody::untraced)));
        };
        Poll::Ready(match result {
            Ok(response) => {
                let sending = answering.answered(&response);
                Ok(response.map(|body| ServerBody::new(body, sending)))
            }
            Err(error) => {
                answering.record_method();
                answering.span.fail(&error);
                answering.span.end();
                Err(error)
            }
        })
    }
}
