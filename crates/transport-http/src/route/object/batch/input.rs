//! The operations of a batch as its executor is given them. Gets wait for a place to lay their bytes; nothing else waits for them.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::Stream;
use futures::stream::BoxStream;
use tidegate_batch::Operation;
use tokio::sync::Semaphore;
use tokio_util::sync::PollSemaphore;

use super::part::Tag;
use crate::problem::Problem;

/// An operation, or why a part is none.
pub(super) type Item = (Tag, Result<Operation, Problem>);

/// What was read and is not begun. It ends when the last get has been sent, so that the batch holds its window for as long as its blocks
/// are in memory.
pub(super) struct Input {
    /// `None` = the body has ended.
    parts: Option<BoxStream<'static, Item>>,
    /// Gets without a place; at most as many as there are parts, and a key each.
    gets: VecDeque<Item>,
    places: PollSemaphore,
    window: u32,
}

impl Input {
    pub(super) fn new(parts: BoxStream<'static, Item>, window: u32) -> Self {
        let places = Arc::new(Semaphore::new(usize::try_from(window).unwrap_or(usize::MAX)));
        Self { parts: Some(parts), gets: VecDeque::new(), places: PollSemaphore::new(places), window }
    }
}

impl Stream for Input {
    type Item = Item;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Item>> {
        let input = self.get_mut();
        loop {
            if !input.gets.is_empty()
                && let Poll::Ready(Some(place)) = input.places.poll_acquire(context)
                && let Some((mut tag, get)) = input.gets.pop_front()
            {
                tag.place = Some(place);
                return Poll::Ready(Some((tag, get)));
            }
            let Some(parts) = &mut input.parts else {
                if input.gets.is_empty() {
                    ready!(input.places.poll_acquire_many(context, input.window));
                    return Poll::Ready(None);
                }
                return Poll::Pending;
            };
            match ready!(parts.as_mut().poll_next(context)) {
                Some(item @ (_, Ok(Operation::Get { .. }))) => input.gets.push_back(item),
                Some(item) => return Poll::Ready(Some(item)),
                None => input.parts = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use futures::{FutureExt as _, StreamExt as _};
    use tidegate_batch::ObjectKey;

    use super::*;

    fn item(index: usize, operation: fn(ObjectKey) -> Operation) -> Item {
        let tag = Tag { index, kind: None, key: None, place: None };
        (tag, Ok(operation(ObjectKey::new("k").unwrap())))
    }

    #[test]
    fn at_most_a_window_of_gets_is_begun_until_their_bytes_were_taken_and_nothing_else_waits() {
        let get = |index| item(index, |key| Operation::Get { key });
        let delete = |index| item(index, |key| Operation::Delete { key });
        let parts = stream::iter([get(0), get(1), get(2), delete(3), get(4), delete(5)]).boxed();
        let mut input = Input::new(parts, 2);
        let mut next = || input.next().now_or_never().map(|item| item.map(|(tag, _)| tag));
        let mut given: Vec<_> = std::iter::from_fn(|| next().flatten()).collect();
        let indices: Vec<_> = given.iter().map(|tag| tag.index).collect();
        assert_eq!(indices, [0, 1, 3, 5]);
        given.remove(0);
        let third = next().flatten().unwrap();
        assert_eq!(third.index, 2);
        assert!(next().is_none(), "it waits for a place");
        drop(given);
        let fourth = next().flatten().unwrap();
        assert_eq!(fourth.index, 4);
        drop(third);
        assert!(next().is_none(), "the batch goes on while bytes are in memory");
        drop(fourth);
        assert!(next().is_some_and(|end| end.is_none()));
    }
}
