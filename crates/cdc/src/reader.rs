//! A reader of a stream: where it is, what comes next, and the wait for more. Dropping it gives its slot back; it changes nothing.

use std::sync::Arc;

use tidegate_core::port::ReadBounds;
use tidegate_core::position::{Offset, Partition};
use tidegate_lease::capacity::Slot;
use tokio::sync::watch;

use crate::error::{ReadError, StreamError};
use crate::feed::{Feed, Segment, Selection};
use crate::handle::StreamHandle;
use crate::merge::read_merged;

/// A reader of one partition or of all merged.
pub struct StreamReader {
    handle: Arc<StreamHandle>,
    selection: Selection,
    positions: Vec<Offset>,
    changed: Option<watch::Receiver<u64>>,
    feed: Option<Arc<Feed>>,
    /// It has looked and then waited: from there on it is told of what comes.
    told: bool,
    _slot: Option<Slot>,
}

impl StreamReader {
    pub(crate) fn new(
        handle: Arc<StreamHandle>,
        selection: Selection,
        positions: Vec<Offset>,
        changed: Option<watch::Receiver<u64>>,
        slot: Option<Slot>,
    ) -> Self {
        let feed = changed.is_some().then(|| handle.feeds.get(selection));
        Self { handle, selection, positions, changed, feed, told: false, _slot: slot }
    }

    /// Where it is: the offset that it reads next, of each selected partition.
    pub fn positions(&self) -> impl Iterator<Item = (Partition, Offset)> + '_ {
        self.selection.partitions(self.handle.partitions()).zip(self.positions.iter().copied())
    }

    /// What comes next, within `bounds` or what others share (256 KiB); `None` where nothing is there now. Once a
    /// reader has waited, what comes is there when [`changed`](Self::changed) says so. Dropping the future loses nothing.
    pub async fn next(&mut self, bounds: ReadBounds) -> Result<Option<Arc<Segment>>, ReadError> {
        if self.handle.is_removed() {
            return Err(self.handle.not_found().into());
        }
        if self.handle.is_hidden() {
            return Err(StreamError::Gone { name: self.handle.id.stream.clone() }.into());
        }
        // Seen from here on: what comes during the read wakes the wait after it.
        if let Some(changed) = &mut self.changed {
            changed.mark_unchanged();
        }
        let segment = match &self.feed {
            Some(feed) => feed.next(&self.handle, self.selection, &self.positions, bounds, self.told).await?,
            None => read_merged(&self.handle, self.selection, &self.positions, bounds).await?.map(Arc::new),
        };
        if let Some(segment) = &segment {
            self.positions.clone_from(&segment.end);
        }
        Ok(segment)
    }

    /// Waits until there may be more, or until the stream is removed (which the next read says). For ever where the reader was
    /// not opened to follow.
    pub async fn changed(&mut self) {
        self.told = true;
        match &mut self.changed {
            Some(changed) => {
                // The sender lives in the handle, which this holds.
                let _ = changed.changed().await;
            }
            None => std::future::pending().await,
        }
    }
}

impl Drop for StreamReader {
    fn drop(&mut self) {
        let followed = self.feed.take().is_some();
        self.changed = None;
        if followed {
            self.handle.feeds.sweep();
        }
    }
}

impl std::fmt::Debug for StreamReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamReader")
            .field("stream", &self.handle.id)
            .field("selection", &self.selection)
            .field("positions", &self.positions)
            .finish_non_exhaustive()
    }
}
