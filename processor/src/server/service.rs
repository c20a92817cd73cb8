//! The service: a span starts when it is called, and ends here if the response has no body to wait for.

use std::fmt::Display;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};

use ::http::request::Parts;
use ::http::{Method, Request, Response, StatusCode};
use http_body::Body;
use opentelemetry::trace::{SpanBuilder, SpanKind};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::HeaderExtractor;
use pin_project_lite::pin_project;
use tower_service::Service;

use super::body::{Sending, ServerBody};
use super::describe::{self, Opening};
use super::{Served, Settings};
use crate::active::{ActiveSpan, ChildSpan, drop_within, within};
use crate::grpc;
use crate::http::known_method;

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
    /// The response to these has no body, whatever its headers say.
    bodiless: bool,
    /// That of gRPC, to be taken back if there is none.
    name: Option<String>,
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
            Some(answering) => within(&answering.span, || self.inner.call(request)),
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
        if let Some(Served(span)) = request.extensions.get() {
            add_route(span, request, settings);
            return None;
        }
        if settings
            .filter
            .as_ref()
            .is_some_and(|filter| !filter(request))
        {
            return None;
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
        let name = opening.grpc.then(|| opening.name.to_string());
        let builder = SpanBuilder::from_name(opening.name)
            .with_kind(SpanKind::Server)
            .with_attributes(opening.attributes);
        let span = settings.tracer.start(builder, &parent);
        request.extensions.insert(Served(span.clone()));
        Some(Answering {
            span,
            settings: settings.clone(),
            grpc: opening.grpc,
            bodiless: matches!(request.method, Method::HEAD | Method::CONNECT),
            name,
        })
    }
}

/// An outer layer did not know the route yet.
fn add_route(span: &ActiveSpan, request: &Parts, settings: &Settings) {
    let Some(route) = describe::route(request, settings) else {
        return;
    };
    if grpc::is_grpc(&request.headers) {
        return;
    }
    let method = known_method(request.method.as_str()).unwrap_or("HTTP");
    span.update_name(describe::name_of(method, &route));
    span.set_attribute("http.route", route);
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
        let bodiless = self.bodiless
            || status.is_informational()
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        if self.settings.end_at_head || bodiless || response.body().is_end_stream() {
            self.span.end();
            return None;
        }
        Some(Sending::new(self.span, response, trailers))
    }

    fn record_http<R>(&self, response: &Response<R>) {
        let status = response.status();
        let mut attributes = vec![KeyValue::new(
            "http.response.status_code",
            i64::from(status.as_u16()),
        )];
        if status.is_server_error() {
            self.span.fail_with(status.as_u16().to_string(), "");
        }
        let wanted = &self.settings.response_headers;
        describe::push_headers(response.headers(), wanted, &mut attributes);
        self.span.set_attributes(attributes);
    }

    /// Whether the status is still to come, in the trailers.
    fn record_rpc<R>(&self, response: &Response<R>) -> bool {
        let Some(status) = grpc::status(response.headers()) else {
            if response.status() != StatusCode::OK {
                let status = response.status().as_u16().to_string();
                self.span.fail_with(status, "");
            }
            return true;
        };
        record_rpc_status(&self.span, status);
        if let ("UNIMPLEMENTED", Some(name)) = (status, &self.name) {
            self.span.update_name("grpc");
            self.span.set_attribute("rpc.method", "_OTHER");
            self.span.set_attribute("rpc.method_original", name.clone());
        }
        false
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
                cancel_rpc(&answering.span, answering.grpc);
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
        let Some(inner) = this.inner.as_mut().as_pin_mut() else {
            return Poll::Pending;
        };
        let Some(answering) = this.answering.as_ref() else {
            let result = ready!(inner.poll(task));
            this.inner.set(None);
            return Poll::Ready(result.map(|response| response.map(ServerBody::untraced)));
        };
        let result = ready!(within(&answering.span, || inner.poll(task)));
        within(&answering.span, || this.inner.set(None));
        let Some(answering) = this.answering.take() else {
            return Poll::Pending;
        };
        Poll::Ready(match result {
            Ok(response) => {
                let sending = answering.answered(&response);
                Ok(response.map(|body| ServerBody::new(body, sending)))
            }
            Err(error) => {
                answering.span.fail(&error);
                answering.span.end();
                Err(error)
            }
        })
    }
}
