//! Request bodies that tell whether they were read to their end. On HTTP/1 what nobody reads cannot be told from the next
//! request, so the gate closes such a connection, and says so. It never asks for a byte itself: a client that waits for
//! `100 Continue` is told to go on only by the route that reads.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::extract::Request;
use bytes::Bytes;
use http::Version;
use http_body::{Body as _, Frame, SizeHint};

/// Whether the body of a request was read to its end.
pub(super) struct ReadToEnd(Arc<AtomicBool>);

impl ReadToEnd {
    pub(super) fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Watches a request's body; `None` where there is nothing to watch: no body, or HTTP/2, where each request has a stream of its own.
pub(super) fn watch(request: &mut Request) -> Option<ReadToEnd> {
    if request.version() >= Version::HTTP_2 || request.body().is_end_stream() {
        return None;
    }
    let to_end = Arc::new(AtomicBool::new(false));
    let inner = std::mem::take(request.body_mut());
    *request.body_mut() = Body::new(WatchedBody { inner, failed: false, to_end: Arc::clone(&to_end) });
    Some(ReadToEnd(to_end))
}

struct WatchedBody {
    inner: Body,
    failed: bool,
    to_end: Arc<AtomicBool>,
}

impl http_body::Body for WatchedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let body = self.get_mut();
        let polled = ready!(Pin::new(&mut body.inner).poll_frame(context));
        let ended = match &polled {
            // With a Content-Length the last frame is known to be the last, and nobody needs to ask for another.
            Some(Ok(_)) => body.inner.is_end_stream(),
            Some(Err(_)) => {
                body.failed = true;
                false
            }
            None => !body.failed,
        };
        if ended {
            body.to_end.store(true, Ordering::Release);
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;
    use tidegate_testkit::block_on;

    fn request(body: Body) -> Request {
        Request::new(body)
    }

    fn chunks(chunks: Vec<std::io::Result<&'static str>>) -> Body {
        Body::from_stream(futures::stream::iter(chunks))
    }

    #[test]
    fn a_body_is_read_to_its_end_when_its_last_byte_is_known_to_be_the_last() {
        block_on(async {
            let mut whole = request(Body::from("abc"));
            let to_end = watch(&mut whole).unwrap();
            assert_eq!(
                whole.body().size_hint().exact(),
                Some(3),
                "a length beyond a bound is judged before the first byte"
            );
            assert!(!to_end.get());
            whole.body_mut().frame().await.unwrap().unwrap();
            assert!(to_end.get() && whole.body().is_end_stream());

            // Of a body without a length only asking again tells that it has ended.
            let mut chunked = request(chunks(vec![Ok("a"), Ok("b")]));
            let to_end = watch(&mut chunked).unwrap();
            for _ in 0..2 {
                chunked.body_mut().frame().await.unwrap().unwrap();
                assert!(!to_end.get());
            }
            assert!(chunked.body_mut().frame().await.is_none());
            assert!(to_end.get());
        });
    }

    #[test]
    fn a_body_that_broke_off_was_not_read_to_its_end() {
        block_on(async {
            let mut broken = request(chunks(vec![Ok("a"), Err(std::io::ErrorKind::UnexpectedEof.into())]));
            let to_end = watch(&mut broken).unwrap();
            while broken.body_mut().frame().await.is_some() {}
            assert!(!to_end.get());
        });
    }

    #[test]
    fn where_nothing_can_be_left_nothing_is_watched() {
        assert!(watch(&mut request(Body::empty())).is_none());
        let mut second = request(Body::from("abc"));
        *second.version_mut() = Version::HTTP_2;
        assert!(watch(&mut second).is_none());
    }
}
