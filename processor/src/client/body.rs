//! The body of a response: the status of gRPC is behind it.

use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::message::Rest;
use crate::active::error_type;

pin_project! {
    /// The body of a response, with the span of its call if that is one of gRPC.
    #[derive(Debug)]
    pub struct ClientBody<B> {
        #[pin]
        body: B,
        rest: Rest,
    }

    impl<B> PinnedDrop for ClientBody<B> {
        fn drop(this: Pin<&mut Self>) {
            this.project().rest.cut_off();
        }
    }
}

impl<B: Body> ClientBody<B> {
    pub(super) fn new(body: B, mut rest: Rest) -> Self {
        if body.is_end_stream() {
            rest.ended(None);
        }
        Self { body, rest }
    }
}

impl<B: Body> Body for ClientBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        task: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut this = self.project();
        let frame = this.body.as_mut().poll_frame(task);
        match &frame {
            Poll::Pending => {}
            Poll::Ready(None) => this.rest.ended(None),
            Poll::Ready(Some(Err(_))) => this.rest.failed(error_type::<B::Error>()),
            Poll::Ready(Some(Ok(frame))) => match frame.trailers_ref() {
                Some(trailers) => this.rest.ended(Some(trailers)),
                // Who is told so need not ask again.
                None if this.body.is_end_stream() => this.rest.ended(None),
                None => {}
            },
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
