//! The one producer of a stream's rows: the tape, and a run of the statement on the pinned snapshot that goes on where the
//! tape ends. It never gives a row twice, skips none, and gives none that differs from what was sent before.

use std::sync::Arc;

use bytes::Bytes;
use tidegate_core::failure::Failure;
use tidegate_core::limit::Settings;
use tidegate_core::port::{QuerySnapshot, SinkError, SourceError, Statement};
use tidegate_core::time::Clock;
use tidegate_frame::chunk::{Chunk, ChunkBounds};
use tidegate_frame::ndjson::RowEncoder;
use tidegate_frame::prefix::{PrefixHash, PrefixHasher};
use tokio::task::JoinHandle;

use crate::pipe::{PipeReader, Piped, pipe};
use crate::tape::{Budget, Located, Tape};

/// How to run the statement again.
pub(crate) struct Recipe {
    pub(crate) snapshot: Arc<dyn QuerySnapshot>,
    pub(crate) statement: Statement,
    pub(crate) encoder: Arc<RowEncoder>,
    pub(crate) settings: Settings,
    pub(crate) clock: Arc<dyn Clock>,
}

/// One run of the statement from its first row.
struct Run {
    reader: PipeReader,
    /// The state after the rows that were taken from it.
    taken: PrefixHasher,
    /// Rows that were taken from the pipe and not yet from the run.
    rest: Option<Chunk>,
    task: JoinHandle<()>,
}

/// The rows of one stream.
pub(crate) struct Feed {
    recipe: Recipe,
    tape: Tape,
    run: Option<Run>,
    end: Option<FeedEnd>,
    closed: bool,
}

/// How the rows ended. It stays: a resume meets the same end again.
#[derive(Debug, Clone)]
pub(crate) enum FeedEnd {
    Complete,
    Failed(Arc<SourceError>),
    /// Running the statement again gave other rows than before.
    Diverged,
}

/// What comes next.
pub(crate) enum Fed {
    /// Rows, and the state after them.
    Rows(Bytes, PrefixHasher),
    End(FeedEnd),
}

/// What came of looking for a prefix.
pub(crate) enum Sought {
    Found {
        hasher: PrefixHasher,
        from_memory: bool,
    },
    Mismatch,
    /// Running the statement again gave fewer rows than were sent before.
    Diverged,
    /// The rows are no longer kept and the snapshot cannot be read again.
    Gone(Arc<SourceError>),
}

impl Feed {
    pub(crate) fn new(recipe: Recipe, budget: Arc<Budget>) -> Self {
        let keep = recipe.settings.stream_keep_bytes();
        Self { recipe, tape: Tape::new(keep, budget), run: None, end: None, closed: false }
    }

    /// Starts the first run, so that rows are under way before they are asked for.
    pub(crate) fn start(&mut self) {
        self.run.get_or_insert_with(|| Run::start(&self.recipe));
    }

    /// Whether every row of the result is kept, so that the snapshot is not needed any more.
    pub(crate) fn is_whole(&self) -> bool {
        matches!(self.end, Some(FeedEnd::Complete)) && self.tape.earliest() == 0
    }

    /// Stops the run and forgets the rows.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.run = None;
        let end = self.tape.tail().clone();
        self.tape.restart(end);
    }

    /// The rows after those that `reader` stands for: out of the tape, at its end out of the run. Cancel-safe.
    pub(crate) async fn next(&mut self, reader: &PrefixHasher) -> Fed {
        if let Some((bytes, after)) = self.tape.read(reader.rows()) {
            return Fed::Rows(bytes, after);
        }
        let at_tail = reader.rows() == self.tape.tail().rows();
        if at_tail && let Some(end) = &self.end {
            return Fed::End(end.clone());
        }
        if self.closed {
            return Fed::End(FeedEnd::Failed(Arc::new(SourceError::SnapshotLost(None))));
        }
        // A resume that went elsewhere and failed may have left the run, and even the tape, at another row: bring them to
        // the reader's own, and prove that it is the same row.
        match self.advance(reader.rows()).await {
            Ok(reached) if reached.digest() == reader.digest() => {
                if !at_tail {
                    self.tape.restart(reached);
                    self.end = None;
                }
            }
            Ok(_) => return Fed::End(self.ended(FeedEnd::Diverged)),
            Err(end) => return Fed::End(self.ended(end)),
        }
        let run = self.run.get_or_insert_with(|| Run::start(&self.recipe));
        match run.next().await {
            Piped::Chunk(chunk) => {
                let bytes = chunk.bytes.clone();
                self.tape.push(chunk);
                run.taken = self.tape.tail().clone();
                Fed::Rows(bytes, self.tape.tail().clone())
            }
            Piped::Complete => Fed::End(self.ended(FeedEnd::Complete)),
            Piped::Failed(error) => Fed::End(self.ended(FeedEnd::Failed(Arc::new(error)))),
        }
    }

    /// Looks for the prefix of `rows` rows with this hash; where the rows are no longer kept, runs the statement again on
    /// the snapshot and hashes them. After `Found`, `next(rows)` goes on there. Cancel-safe; a mismatch loses nothing.
    pub(crate) async fn seek(&mut self, rows: u64, hash: &PrefixHash) -> Sought {
        match self.tape.locate(rows, hash) {
            Located::Here(hasher) => return Sought::Found { hasher, from_memory: true },
            Located::Mismatch => return Sought::Mismatch,
            Located::NotKept => {}
        }
        if self.closed {
            return Sought::Gone(Arc::new(SourceError::SnapshotLost(None)));
        }
        match self.advance(rows).await {
            Ok(reached) if reached.digest() == *hash => {
                self.tape.restart(reached.clone());
                self.end = None;
                Sought::Found { hasher: reached, from_memory: false }
            }
            Ok(_) => {
                self.run = None;
                Sought::Mismatch
            }
            Err(FeedEnd::Failed(error)) => {
                self.run = None;
                Sought::Gone(error)
            }
            // The run ended before `rows`, although that many rows were sent before.
            Err(FeedEnd::Complete | FeedEnd::Diverged) => {
                self.run = None;
                Sought::Diverged
            }
        }
    }

    fn ended(&mut self, end: FeedEnd) -> FeedEnd {
        self.run = None;
        self.end.insert(end).clone()
    }

    /// Brings a run to just before row `row`, starting one if there is none. Cancel-safe: what was taken is remembered.
    async fn advance(&mut self, row: u64) -> Result<PrefixHasher, FeedEnd> {
        // A run that is already beyond `row` cannot go back.
        if self.run.as_ref().is_some_and(|run| run.taken.rows() > row) {
            self.run = None;
        }
        let run = self.run.get_or_insert_with(|| Run::start(&self.recipe));
        while run.taken.rows() < row {
            match run.next().await {
                Piped::Chunk(mut chunk) => {
                    let end = chunk.end_row();
                    if end > row {
                        let at = chunk.split_at_row(row).expect("the row lies in this chunk");
                        let rest = chunk.bytes.split_off(at);
                        let rows = u32::try_from(end - row).expect("a part of a chunk has fewer rows than the chunk");
                        run.rest = Some(Chunk { first_row: row, rows, bytes: rest, cause: chunk.cause });
                    }
                    run.taken.lines(&chunk.bytes);
                }
                Piped::Complete => return Err(FeedEnd::Diverged),
                Piped::Failed(error) => return Err(FeedEnd::Failed(Arc::new(error))),
            }
        }
        Ok(run.taken.clone())
    }
}

impl Run {
    fn start(recipe: &Recipe) -> Self {
        let row_max = usize::try_from(recipe.settings.limits_row_max_bytes()).unwrap_or(usize::MAX);
        let bounds = ChunkBounds::from_settings(&recipe.settings);
        let (sink, end, reader) = pipe(bounds, Arc::clone(&recipe.encoder), row_max, Arc::clone(&recipe.clock));
        let (snapshot, statement) = (Arc::clone(&recipe.snapshot), recipe.statement.clone());
        let task = tokio::spawn(async move {
            let result =
                snapshot.stream(&statement, Box::new(sink)).await.map_err(|error| in_own_bound(error, row_max));
            if let Err(error) = &result {
                tracing::debug!(code = error.code(), %error, "a run ended");
            }
            end.finish(result);
        });
        Self { reader, taken: PrefixHasher::new(), rest: None, task }
    }

    async fn next(&mut self) -> Piped {
        match self.rest.take() {
            Some(chunk) => Piped::Chunk(chunk),
            None => self.reader.next().await,
        }
    }
}

/// A source may stop a row at a wider bound of its own, such as that of the wire to it. What such a row is too large for first
/// is the stream's bound, and that is the one that its reader can read about and change.
fn in_own_bound(error: SourceError, row_max_bytes: usize) -> SourceError {
    match error {
        SourceError::Sink(SinkError::RowTooLarge { row, limit_bytes }) => {
            let own = u64::try_from(row_max_bytes).unwrap_or(u64::MAX);
            SourceError::Sink(SinkError::RowTooLarge { row, limit_bytes: limit_bytes.min(own) })
        }
        other => other,
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.task.abort();
    }
}
