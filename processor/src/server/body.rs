//! The body of a response: the span of its request ends with it.

use std::fmt::Display;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};

use ::http::{HeaderMap, Response, header};
use bytes::Buf as _;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::service::{cancel_rpc, record_rpc_status};
use crate::active::{ChildSpan, drop_within, within};
use crate::grpc;

/// The span of a request while its response's body is on its way.
#[derive(Debug)]
pub(super) struct Sending {
    span: ChildSpan,
    /// Bytes that were taken from the body.
    sent: u64,
    /// How many it has, if that is known. A server that has them all need not ask for the end.
    length: Option<u64>,
    /// Whether the status of gRPC is in the trailers.
    trailers: bool,
    /// Whether the span says already what has failed: of two the SDK would keep both.
    failed: bool,
}

impl Sending {
    pub(super) fn new<B: Body>(span: ChildSpan, response: &Response<B>, trailers: bool) -> Self {
        let declared = response.headers().get(header::CONTENT_LENGTH);
        let declared = declared.and_then(|length| length.to_str().ok()?.parse().ok());
        Self {
            span,
            sent: 0,
            length: declared.or_else(|| response.body().size_hint().exact()),
            trailers,
            failed: response.status().is_server_error()
                || grpc::status(response.headers()).is_some_and(grpc::is_server_error),
        }
    }

    fn is_complete(&self) -> bool {
        !self.trailers && self.length.is_some_and(|length| self.sent >= length)
    }

    fn read_trailers(&mut self, trailers: &HeaderMap) {
        if self.trailers {
            if let Some(status) = grpc::status(trailers) {
                record_rpc_status(&self.span, status);
                self.trailers = false;
            }
        }
    }

    /// Its body was dropped.
    fn cut_off(mut self) {
        if self.is_complete() {
            return self.span.end();
        }
        if self.length.is_some() && !self.failed && !self.trailers {
            // It was to be longer. A stream that nobody knows the length of may well have been all that the client wanted.
            self.span.fail_with("cancelled", "");
        }
        let sent = i64::try_from(self.sent).unwrap_or(i64::MAX);
        self.span.set_attribute("http.response.body.size", sent);
        cancel_rpc(&self.span, self.trailers);
        self.span.cancel();
    }
}

pin_project! {
    /// The body of a response, with the span of its request.
    #[derive(Debug)]
    pub struct ServerBody<B> {
        // None when it was dropped, before the span ends.
        #[pin]
        body: Option<B>,
        sending: Option<Sending>,
    }

    impl<B> PinnedDrop for ServerBody<B> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            if let Some(sending) = this.sending.take() {
                drop_within(&sending.span, || this.body.set(None));
                sending.cut_off();
            }
        }
    }
}

impl<B> ServerBody<B> {
    pub(super) fn new(body: B, sending: Option<Sending>) -> Self {
        let body = Some(body);
        Self { body, sending }
    }

    pub(super) fn untraced(body: B) -> Self {
        Self::new(body, None)
    }
}

impl<B> Body for ServerBody<B>
where
    B: Body,
    B::Error: Display,
{
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        task: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut this = self.project();
        let Some(mut body) = this.body.as_mut().as_pin_mut() else {
            return Poll::Ready(None);
        };
        let Some(sending) = this.sending.as_mut() else {
            return body.poll_frame(task);
        };
        let frame = within(&sending.span, || body.as_mut().poll_frame(task));
        let ended = match &frame {
            Poll::Pending => false,
            Poll::Ready(None) => true,
            Poll::Ready(Some(Err(error))) => {
                if !sending.failed {
                    sending.span.fail(error);
                }
                true
            }
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    sending.sent += data.remaining() as u64;
                } else if let Some(trailers) = frame.trailers_ref() {
                    sending.read_trailers(trailers);
                }
                // A server that is told so does not ask again, and there is nothing to ask for after trailers.
                frame.is_trailers() || body.is_end_stream()
            }
        };
        if ended {
            within(&sending.span, || this.body.set(None));
            this.sending.take();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(B::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Some(body) => body.size_hint(),
            None => SizeHint::with_exact(0),
        }
    }
}
