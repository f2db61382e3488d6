//! The task that has the replication connection: it takes what the server sends into a bounded queue, and tells the server again
//! and again what is durable here, also while nobody takes from the queue. It never says that more is durable than it was told.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Buf, BufMut, Bytes};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::MissedTickBehavior;

use super::lsn::Lsn;
use super::wire::{Connection, Reader, WireError, Writer, refusal};

/// What may wait for the reader of the stream.
pub(crate) const QUEUE_BYTES: usize = 4 * 1024 * 1024;
/// What is handed over at once, roughly.
const LOAD_BYTES: usize = 128 * 1024;
/// A frame is counted with at least this.
const FRAME_BYTES: usize = 64;
/// From 1970 to 2000, PostgreSQL's year zero.
const EPOCH_US: u128 = 946_684_800_000_000;

/// What the server sends.
#[derive(Debug)]
pub(crate) enum Frame {
    /// A message of the plug-in.
    Message(Bytes),
    /// All that committed before this was sent.
    Reached(Lsn),
}

/// Frames in order, and the room that they take in the queue.
type Load = (Vec<Frame>, OwnedSemaphorePermit);

/// The receiving end. Dropped, it ends the connection.
pub(crate) struct Feed {
    loads: mpsc::UnboundedReceiver<Result<Load, WireError>>,
    current: std::vec::IntoIter<Frame>,
    /// Given back when the last frame of the load was taken.
    room: Option<OwnedSemaphorePermit>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Feed {
    /// Begins to drive a connection that streams.
    pub(crate) fn start(connection: Connection, confirmed: watch::Receiver<Lsn>, interval: Duration) -> Self {
        let (sender, loads) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            let Connection { reader, writer, .. } = connection;
            let mut drive = Drive { reader, writer, confirmed, received: Lsn::default(), sender: &sender };
            if let Err(error) = drive.run(interval).await {
                // Nobody to tell is nobody to care.
                let _ = sender.send(Err(error));
            }
        });
        Self { loads, current: Vec::new().into_iter(), room: None, task }
    }

    /// The next frame, where it is at hand.
    pub(crate) fn ready(&mut self) -> Option<Frame> {
        self.current.next()
    }

    /// The next frame. It can be given up at any moment without losing one.
    pub(crate) async fn next(&mut self) -> Result<Frame, WireError> {
        loop {
            if let Some(frame) = self.ready() {
                return Ok(frame);
            }
            self.room = None;
            let (frames, room) = self.loads.recv().await.ok_or(WireError::Closed)??;
            self.current = frames.into_iter();
            self.room = Some(room);
        }
    }
}

impl Feed {
    /// Waits until the connection ends, and takes no frame.
    pub(crate) async fn failed(&mut self) -> WireError {
        // A task that was given up has no more to say than that.
        let _ = (&mut self.task).await;
        while let Ok(load) = self.loads.try_recv() {
            if let Err(error) = load {
                return error;
            }
        }
        WireError::Closed
    }
}

struct Drive<'a> {
    reader: Reader,
    writer: Writer,
    confirmed: watch::Receiver<Lsn>,
    received: Lsn,
    sender: &'a mpsc::UnboundedSender<Result<Load, WireError>>,
}

impl Drive<'_> {
    async fn run(&mut self, interval: Duration) -> Result<(), WireError> {
        let room = Arc::new(Semaphore::new(QUEUE_BYTES));
        let mut tick = tokio::time::interval(interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut load: Vec<Frame> = Vec::new();
        let mut bytes = 0_usize;
        loop {
            let wanted = u32::try_from(bytes.min(QUEUE_BYTES)).unwrap_or(u32::MAX);
            tokio::select! {
                biased;
                sent = self.writer.send(), if !self.writer.outbox.is_empty() => sent?,
                _ = tick.tick() => self.say_status(),
                changed = self.confirmed.changed() => match changed {
                    Ok(()) => self.say_status(),
                    // The source is gone, and with it whoever could confirm.
                    Err(_) => return Ok(()),
                },
                granted = Arc::clone(&room).acquire_many_owned(wanted), if !load.is_empty() => {
                    let Ok(granted) = granted else { return Ok(()) };
                    bytes = 0;
                    if self.sender.send(Ok((std::mem::take(&mut load), granted))).is_err() {
                        return Ok(());
                    }
                }
                message = self.reader.message(), if load.is_empty() => {
                    let mut next = Some(message?);
                    while let Some((tag, body)) = next {
                        bytes += body.len().max(FRAME_BYTES);
                        match self.frame(tag, body) {
                            Ok(frame) => load.extend(frame),
                            Err(error) => {
                                self.last_words(load, &room);
                                return Err(error);
                            }
                        }
                        next = if bytes < LOAD_BYTES { self.reader.buffered()? } else { None };
                    }
                }
            }
        }
    }

    /// Hands over what came before an error.
    fn last_words(&self, load: Vec<Frame>, room: &Arc<Semaphore>) {
        if let Ok(granted) = Arc::clone(room).try_acquire_many_owned(0)
            && !load.is_empty()
        {
            let _ = self.sender.send(Ok((load, granted)));
        }
    }

    fn frame(&mut self, tag: u8, mut body: Bytes) -> Result<Option<Frame>, WireError> {
        match tag {
            b'd' => {}
            b'E' => return Err(WireError::Server(refusal(&body))),
            b'c' => return Err(WireError::Closed),
            b'N' | b'S' => return Ok(None),
            _ => return Err(WireError::Malformed("an unexpected message in the stream")),
        }
        match body.first() {
            Some(b'w') if body.len() >= 25 => {
                body.advance(1);
                self.received = self.received.max(Lsn(body.get_u64()));
                body.advance(16);
                Ok(Some(Frame::Message(body)))
            }
            Some(b'k') if body.len() >= 18 => {
                body.advance(1);
                let end = Lsn(body.get_u64());
                self.received = self.received.max(end);
                body.advance(8);
                if body.get_u8() != 0 {
                    self.say_status();
                }
                Ok(Some(Frame::Reached(end)))
            }
            _ => Err(WireError::Malformed("neither data nor a keep-alive in the stream")),
        }
    }

    /// Puts a status update into the outbox, unless one waits there that could not be sent.
    fn say_status(&mut self) {
        const UPDATE_BYTES: u32 = 4 + 1 + 8 * 4 + 1;
        let confirmed = *self.confirmed.borrow_and_update();
        let out = &mut self.writer.outbox;
        if out.len() > UPDATE_BYTES as usize {
            return;
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_micros());
        out.put_u8(b'd');
        out.put_u32(UPDATE_BYTES);
        out.put_u8(b'r');
        out.put_u64(self.received.max(confirmed).0);
        out.put_u64(confirmed.0);
        out.put_u64(confirmed.0);
        out.put_u64(u64::try_from(now.saturating_sub(EPOCH_US)).unwrap_or(0));
        out.put_u8(0);
    }
}
