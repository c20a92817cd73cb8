//! The service, and the future of a call: the span ends here, unless that of gRPC waits for its status.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll, ready};

use ::http::StatusCode;
use pin_project_lite::pin_project;
use tower_service::Service;

use super::describe::{record_rpc_status, record_status};
use super::layer::ClientLayer;
use super::message::{IncomingResponse, OutgoingRequest, Rest};
use crate::active::{self, ChildSpan, drop_within, poll_once, within};
use crate::grpc;

/// A service that sends each request in a span: see [the module](super).
///
/// It is ready when the inner one is, and calls the one that was ready.
#[derive(Clone, Debug)]
pub struct Client<S> {
    inner: S,
    layer: ClientLayer,
}

/// The span of a call until its response's head is there.
#[derive(Debug)]
pub(super) struct Calling {
    pub(super) span: ChildSpan,
    pub(super) grpc: bool,
}

impl<S> Client<S> {
    pub(super) fn new(inner: S, layer: ClientLayer) -> Self {
        Self { inner, layer }
    }
}

impl<S, Q, R> Service<Q> for Client<S>
where
    S: Service<Q, Response = R>,
    S::Error: 'static,
    Q: OutgoingRequest,
    R: IncomingResponse,
{
    type Response = R::Traced;
    type Error = S::Error;
    type Future = ClientFuture<S::Future>;

    fn poll_ready(&mut self, task: &mut TaskContext<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(task)
    }

    fn call(&mut self, request: Q) -> Self::Future {
        let inner = &mut self.inner;
        self.layer.send(request, |request| inner.call(request))
    }
}

// ===== impl Calling =====

impl Calling {
    /// The head of the response is there. Returns what is to be done until its body has ended.
    fn answered(self, response: &impl IncomingResponse) -> Rest {
        let status = response.status();
        if !self.grpc {
            record_status(&self.span, status.as_u16());
        } else if let Some(status) = grpc::status(response.headers()) {
            record_rpc_status(&self.span, status);
        } else if status != StatusCode::OK {
            // Whoever answered does not speak gRPC.
            self.span.fail_with(status.as_u16().to_string(), "");
        } else {
            return Rest::of(self.span);
        }
        Rest::nothing()
    }
}

// ===== impl ClientFuture =====

pin_project! {
    /// The future of a [`Client`], and of [`send`](super::send). Polled again after it is done, it stays pending.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct ClientFuture<F> {
        // None when it is done. It is dropped before the span ends.
        #[pin]
        inner: Option<F>,
        calling: Option<Calling>,
    }

    impl<F> PinnedDrop for ClientFuture<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            if let Some(mut calling) = this.calling.take() {
                drop_within(&calling.span, || this.inner.set(None));
                if calling.grpc {
                    calling.span.set_attribute("rpc.status_code", "CANCELLED");
                }
                calling.span.cancel();
            }
        }
    }
}

impl<F> ClientFuture<F> {
    pub(super) fn new(inner: F, calling: Option<Calling>) -> Self {
        let inner = Some(inner);
        Self { inner, calling }
    }
}

impl<F, R, E> Future for ClientFuture<F>
where
    F: Future<Output = Result<R, E>>,
    R: IncomingResponse,
    E: 'static,
{
    type Output = Result<R::Traced, E>;

    fn poll(self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let result = ready!(match this.calling.as_ref() {
            Some(calling) => within(&calling.span, || poll_once(this.inner.as_mut(), task)),
            None => poll_once(this.inner.as_mut(), task),
        });
        let calling = this.calling.take();
        Poll::Ready(match result {
            Ok(response) => {
                let rest = calling.map_or_else(Rest::nothing, |call| call.answered(&response));
                Ok(response.traced(rest))
            }
            Err(error) => {
                if let Some(calling) = calling {
                    calling.span.fail_with(error_type(&error), "");
                }
                Err(error)
            }
        })
    }
}

/// What kind of error it is. Not its message: clients put the URL into that, with its query.
fn error_type<E: 'static>(error: &E) -> &'static str {
    #[cfg(all(feature = "reqwest", not(target_family = "wasm")))]
    if let Some(error) = (error as &dyn std::any::Any).downcast_ref::<reqwest::Error>() {
        if error.is_timeout() {
            return "timeout";
        }
        if error.is_connect() {
            return "connect";
        }
    }
    let _ = error;
    active::error_type::<E>()
}
