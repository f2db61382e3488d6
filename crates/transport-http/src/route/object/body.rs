//! Bytes on their way: a request's body as the library reads it, an object as an HTTP body. Neither is ever whole in memory, and an
//! object that breaks off breaks the connection.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{Stream as _, StreamExt as _};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use tidegate_batch::Collection;
use tidegate_batch::error::PutError;
use tidegate_batch::service::ObjectBytes;
use tidegate_core::Moment;
use tidegate_core::port::Cause;

use super::admission::Admission;
use super::problem::put_problem;
use crate::body::{BodyError, PIECE_BYTES};
use crate::gate::App;
use crate::problem::Problem;

/// How fast the bytes of objects must come, on the average of a whole body and beyond twice `limits.body_timeout_ms`.
pub(crate) const MIN_BYTES_A_SECOND: u64 = 16 * 1_024;

/// What is given to a body to come: each piece within `limits.body_timeout_ms` of the last, and all of them at a rate, so that nobody holds
/// what others wait for with a byte now and then. Only the time counts in which somebody waits for the body, not that in which it waits. What
/// came fast earns no more than twice `limits.body_timeout_ms` ahead: nobody trickles for hours after a first gibibyte.
pub(super) struct Pace {
    limit_ms: u64,
    /// What the bytes that came have earned, and what was waited for them.
    earned: Duration,
    waited: Duration,
    began: Moment,
    /// What is waited for now counts.
    counts: bool,
}

impl Pace {
    pub(super) fn new(limit_ms: u64) -> Self {
        Self {
            limit_ms,
            earned: Duration::from_millis(limit_ms.saturating_mul(2)),
            waited: Duration::ZERO,
            began: Moment::ORIGIN,
            counts: true,
        }
    }

    /// Somebody begins to wait now; gives for how long.
    pub(super) fn begin(&mut self, now: Moment) -> Moment {
        (self.began, self.counts) = (now, true);
        now.after(Duration::from_millis(self.limit_ms).min(self.earned.saturating_sub(self.waited)))
    }

    /// The same where the sender need not send anything yet: silence has its bound, and the time does not count.
    pub(super) fn begin_between(&mut self, now: Moment) -> Moment {
        (self.began, self.counts) = (now, false);
        now.after(Duration::from_millis(self.limit_ms))
    }

    /// A piece has come.
    pub(super) fn came(&mut self, now: Moment, bytes: usize) {
        if self.counts {
            self.waited += now.saturating_since(self.began);
        }
        self.began = now;
        let more = Duration::from_nanos((bytes as u64).saturating_mul(1_000_000_000 / MIN_BYTES_A_SECOND));
        let most = self.waited.saturating_add(Duration::from_millis(self.limit_ms.saturating_mul(2)));
        self.earned = self.earned.saturating_add(more).min(most);
    }

    /// None has come in time.
    pub(super) fn over(&self) -> BodyError {
        // Which of both was shorter.
        if self.counts && self.earned.saturating_sub(self.waited) < Duration::from_millis(self.limit_ms) {
            BodyError::TooSlow { min_bytes_a_second: MIN_BYTES_A_SECOND }
        } else {
            BodyError::Timeout { limit_ms: self.limit_ms }
        }
    }
}

/// A request's body in pieces, each of which must come [in time](Pace). A length beyond the bound is refused
/// before its first byte is asked for.
///
/// Its bytes wait where they are limited, for which its sender is given all the time that it takes.
pub(super) fn incoming(
    app: &App,
    collection: &Collection,
    body: Body,
) -> Result<BoxStream<'static, Result<Bytes, Cause>>, Problem> {
    let limit_bytes = app.services.objects.spec().object_max_bytes;
    if body.size_hint().lower() > limit_bytes {
        return Err(put_problem(PutError::TooLarge { limit_bytes }));
    }
    let shape = Admission::of(app, collection).shape_admitted(body.size_hint().exact());
    let clock = Arc::clone(&app.services.clock);
    let limit_ms = app.services.streams.settings().freeze().limits_body_timeout_ms();
    let pieces = stream::try_unfold((body, shape, Pace::new(limit_ms)), move |(mut body, mut shape, mut pace)| {
        let clock = Arc::clone(&clock);
        async move {
            let deadline = pace.begin(clock.now());
            loop {
                let frame = tokio::select! {
                    // First, so that a piece that is there already costs no timer.
                    biased;
                    frame = body.frame() => frame,
                    () = clock.sleep_until(deadline) => return Err(Cause::from(pace.over())),
                };
                match frame.map(|frame| frame.map(Frame::into_data)) {
                    None => return Ok(None),
                    Some(Err(_)) => return Err(Cause::from(BodyError::Incomplete)),
                    Some(Ok(Ok(data))) => {
                        pace.came(clock.now(), data.len());
                        if let Some(shape) = &mut shape {
                            shape.pass(data.len()).await;
                        }
                        return Ok(Some((data, (body, shape, pace))));
                    }
                    // Trailers.
                    Some(Ok(Err(_))) => {}
                }
            }
        }
    });
    Ok(pieces.boxed())
}

/// The object's bytes ended before its end: the connection must break, so that nobody takes the part for the whole.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the object's bytes broke off")]
struct BrokenOff;

/// An object's bytes in pieces, no more and no fewer than were told. What breaks off, or is longer, is an error.
pub(super) struct Pieces {
    /// `None` = nothing follows `rest`.
    bytes: Option<ObjectBytes>,
    rest: Bytes,
    /// What is still to be given, `rest` with it.
    left: u64,
}

impl Pieces {
    /// `first` is what is there already, `left` how many bytes there are with it.
    pub(super) fn new(first: Bytes, bytes: Option<ObjectBytes>, left: u64) -> Self {
        if first.len() as u64 > left {
            // Never a part of what is longer than it says: the first look finds that it broke off.
            return Self { bytes: None, rest: Bytes::new(), left: left.max(1) };
        }
        Self { bytes, rest: first, left }
    }

    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// The next piece; `None` once all were given.
    pub(super) fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, axum::BoxError>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        while self.rest.is_empty() {
            let next = match &mut self.bytes {
                Some(bytes) => ready!(Pin::new(bytes).poll_next(context)),
                None => None,
            };
            match next {
                Some(Ok(bytes)) if bytes.len() as u64 <= self.left => self.rest = bytes,
                Some(Err(error)) => {
                    tracing::warn!(%error, "an object broke off while it was being read");
                    return Poll::Ready(Some(Err(error.into())));
                }
                Some(Ok(_)) | None => {
                    tracing::error!(left = self.left, "an object is not as long as it says");
                    return Poll::Ready(Some(Err(BrokenOff.into())));
                }
            }
        }
        let piece = self.rest.split_to(PIECE_BYTES.min(self.rest.len()));
        self.left -= piece.len() as u64;
        Poll::Ready(Some(Ok(piece)))
    }
}

/// An object, or a part of it, as an answer's body. Its length is told; the next piece is asked for when the client has taken the last.
pub(super) struct ObjectBody(Pieces);

impl ObjectBody {
    pub(super) fn new(bytes: ObjectBytes, length: u64) -> Self {
        Self(Pieces::new(Bytes::new(), Some(bytes), length))
    }
}

impl http_body::Body for ObjectBody {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::BoxError>>> {
        let piece = ready!(self.get_mut().0.poll_piece(context));
        Poll::Ready(piece.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.0.left() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.left())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_body_that_trickles_is_given_up_and_a_slow_large_one_is_not() {
        let mut pace = Pace::new(30_000);
        let mut now = Moment::ORIGIN;
        // A byte every second.
        let trickled = loop {
            let deadline = pace.begin(now);
            now = now.after(SECOND);
            if deadline < now {
                break now;
            }
            pace.came(now, 1);
        };
        assert!(trickled.saturating_since(Moment::ORIGIN) <= 62 * SECOND);
        assert_eq!(pace.over(), BodyError::TooSlow { min_bytes_a_second: MIN_BYTES_A_SECOND });
        // A piece of 256 KiB every ten seconds, for a day.
        let mut pace = Pace::new(30_000);
        for _ in 0..8_640 {
            assert!(pace.begin(now) > now.after(10 * SECOND));
            now = now.after(10 * SECOND);
            pace.came(now, 256 * 1_024);
        }
    }

    #[test]
    fn what_came_fast_earns_no_hours_of_trickling() {
        let mut pace = Pace::new(30_000);
        let mut now = Moment::ORIGIN;
        pace.begin(now);
        pace.came(now, 1 << 30);
        for _ in 0..60 {
            assert!(pace.begin(now) >= now.after(SECOND));
            now = now.after(SECOND);
            pace.came(now, 1);
        }
        assert!(pace.begin(now) < now.after(SECOND));
        assert_eq!(pace.over(), BodyError::TooSlow { min_bytes_a_second: MIN_BYTES_A_SECOND });
    }

    #[test]
    fn time_between_two_parts_does_not_count_and_has_a_bound_each_time() {
        let mut pace = Pace::new(30_000);
        let mut now = Moment::ORIGIN;
        for _ in 0..1_000 {
            assert_eq!(pace.begin_between(now), now.after(30 * SECOND));
            now = now.after(20 * SECOND);
            pace.came(now, 100);
        }
        assert_eq!(pace.begin(now), now.after(30 * SECOND));
        pace.begin_between(now);
        assert_eq!(pace.over(), BodyError::Timeout { limit_ms: 30_000 });
    }

    #[test]
    fn time_in_which_the_body_waits_for_us_does_not_count_and_silence_is_another_error() {
        let mut pace = Pace::new(30_000);
        let mut now = Moment::ORIGIN;
        for _ in 0..100 {
            assert!(pace.begin(now) > now);
            pace.came(now, 1);
            now = now.after(3_600 * SECOND);
        }
        pace.begin(now);
        assert_eq!(pace.over(), BodyError::Timeout { limit_ms: 30_000 });
    }
}
