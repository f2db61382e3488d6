//! The handle: opening, closing, asking the writer, reading beside it. It never blocks an async caller's thread.

use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use tidegate_core::port::LogError;
use tidegate_core::time::Timestamp;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::command::{Answer, Command, Job, Message};
use crate::config::{EmbeddedConfig, QUEUE_MAX_BYTES, QUEUE_MAX_COMMANDS};
use crate::directory::Directory;
use crate::error::{Absent, OpenError, ReadError, WriteError};
use crate::maintain::{Maintained, Maintenance, Timer};
use crate::metric;
use crate::shared::{Health, Shared};
use crate::writer::Writer;

/// The log and the metadata store of one machine, in one folder, on one fjall database.
///
/// Cheap to clone. Its async methods need a tokio runtime, of either kind. The store closes when the last handle is dropped, or by [`close`](Self::close).
#[derive(Clone)]
pub struct EmbeddedStore {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) shared: Arc<Shared>,
    pub(crate) queue: Queue,
    maintenance: Arc<Mutex<Maintenance>>,
    threads: Mutex<Option<Threads>>,
}

struct Threads {
    writer: JoinHandle<()>,
    timer: Option<Timer>,
}

/// The way to the writer.
#[derive(Debug, Clone)]
pub(crate) struct Queue {
    messages: mpsc::Sender<Message>,
    bytes: Arc<Semaphore>,
}

/// The queue's bytes are counted in pieces of this many.
const PERMIT_BYTES: u64 = 1024;

impl Queue {
    fn permits(bytes: u64) -> u32 {
        u32::try_from(bytes.min(QUEUE_MAX_BYTES) / PERMIT_BYTES + 1).unwrap_or(u32::MAX)
    }

    /// Asks, and waits for the answer. A caller that goes away before it was queued has changed nothing.
    pub(crate) async fn ask(&self, command: Command, bytes: u64) -> Result<Answer, WriteError> {
        let closed = || WriteError::NotMade(Box::new(Absent::Closed));
        let permit = Arc::clone(&self.bytes).acquire_many_owned(Self::permits(bytes)).await.map_err(|_| closed())?;
        let (answer, answered) = oneshot::channel();
        let job = Job { command, bytes, answer, permit: Some(permit) };
        self.messages.send(Message::Job(job)).await.map_err(|_| closed())?;
        // The writer answers everything that it took, unless it came to a bad end.
        answered.await.unwrap_or_else(|_| Err(WriteError::Unknown(Box::new(Absent::Closed))))
    }

    /// The same for a thread that may wait.
    pub(crate) fn ask_blocking(&self, command: Command, bytes: u64) -> Result<Answer, WriteError> {
        let (answer, answered) = oneshot::channel();
        let job = Job { command, bytes, answer, permit: None };
        send_blocking(&self.messages, Message::Job(job)).map_err(|()| WriteError::NotMade(Box::new(Absent::Closed)))?;
        futures::executor::block_on(answered).unwrap_or_else(|_| Err(WriteError::Unknown(Box::new(Absent::Closed))))
    }

    /// Has the writer look whether the disk is back.
    pub(crate) fn nudge(&self) {
        let _ = self.messages.try_send(Message::Nudge);
    }
}

/// Waits on whatever thread it is called, also one that drives futures: what it waits for is done by other threads.
fn send_blocking(messages: &mpsc::Sender<Message>, message: Message) -> Result<(), ()> {
    futures::executor::block_on(messages.send(message)).map_err(|_| ())
}

impl EmbeddedStore {
    /// Opens the store in its folder, and makes it if there is none. Blocks; its time depends on what was not yet written
    /// to tables (at most about 200 MiB of journal), not on the size of the data or the number of streams.
    pub fn open(config: EmbeddedConfig) -> Result<Self, OpenError> {
        metric::describe();
        let directory = Directory::open(&config.path, config.cache_bytes)?;
        let engine = Arc::new(directory.open_engine(config.cache_bytes)?);
        let view = engine.view();
        let path = config.path.clone();
        let counters = view.counters().map_err(|error| match error {
            ReadError::Damaged(_) => {
                OpenError::Corrupt { path: path.clone(), at: None, what: "the counters are damaged" }
            }
            error => OpenError::Database { path: path.clone(), source: error.into_cause() },
        })?;
        let interval = config.maintenance_interval;
        let shared = Arc::new(Shared::new(config, Arc::new(view)));
        let (messages, waiting) = mpsc::channel(QUEUE_MAX_COMMANDS);
        let permits = usize::try_from(QUEUE_MAX_BYTES / PERMIT_BYTES + 1).unwrap_or(Semaphore::MAX_PERMITS);
        let queue = Queue { messages, bytes: Arc::new(Semaphore::new(permits)) };
        let writer = Writer::new(Arc::clone(&shared), directory, engine, counters, waiting);
        let io = |source| OpenError::Io { path: path.clone(), source };
        let writer = std::thread::Builder::new()
            .name("tidegate-store-writer".into())
            .spawn(move || writer.run())
            .map_err(&io)?;
        let maintenance = Arc::new(Mutex::new(Maintenance::new(Arc::clone(&shared), queue.clone())));
        let threads = Mutex::new(Some(Threads { writer, timer: None }));
        let inner = Arc::new(Inner { shared, queue, maintenance, threads });
        if !interval.is_zero() {
            let timer = Timer::start(interval, Arc::clone(&inner.maintenance)).map_err(io)?;
            if let Some(threads) = &mut *inner.threads.lock() {
                threads.timer = Some(timer);
            }
        }
        Ok(Self { inner })
    }

    /// One step of everything that is due at `now`: retention by age, removing what is gone, compaction. Blocks, for at most
    /// a few hundred chunks a partition. What retention forgets is on stable storage when it returns; what compaction and
    /// removal do is handed to the operating system, in order.
    pub fn maintain(&self, now: Timestamp) -> Result<Maintained, LogError> {
        self.inner.maintenance.lock().step(now).map_err(LogError::from)
    }

    /// Whether it writes.
    #[must_use]
    pub fn health(&self) -> Health {
        *self.inner.shared.health.borrow()
    }

    /// Takes no more changes, writes those that wait, and gives the folder back. Blocks. Watches end; whoever asks later
    /// gets `Unavailable`. Closing twice is not an error.
    pub fn close(&self) {
        self.inner.close();
    }

    /// Reads on a thread that may block, so many at a time as the configuration says.
    pub(crate) async fn read_blocking<T, E>(
        &self,
        read: impl FnOnce(&Shared) -> Result<T, E> + Send + 'static,
    ) -> Result<T, ReadError>
    where
        T: Send + 'static,
        E: Into<ReadError> + Send + 'static,
    {
        let shared = Arc::clone(&self.inner.shared);
        let permit = Arc::clone(&shared.reads).acquire_owned().await.map_err(|_| Absent::Closed)?;
        let done = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            read(&shared).map_err(Into::into)
        });
        match done.await {
            Ok(read) => read,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(Absent::Closed.into()),
        }
    }
}

impl Inner {
    fn close(&self) {
        let Some(Threads { writer, timer }) = self.threads.lock().take() else { return };
        if let Some(timer) = timer {
            timer.stop();
        }
        self.maintenance.lock().stop();
        let _ = send_blocking(&self.queue.messages, Message::Close);
        let _ = writer.join();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

impl std::fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedStore")
            .field("config", &self.inner.shared.config)
            .field("health", &self.health())
            .finish_non_exhaustive()
    }
}
