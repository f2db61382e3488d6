//! The audit trail as JSON lines in a file: a bounded queue, and one thread that writes. It never blocks who reports: a
//! full queue or a failing disk answers [`AuditUnavailable`], which the caller counts in `tidegate_audit_dropped_total`.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use tidegate_core::port::{AuditRecord, AuditSink, AuditUnavailable};

/// Records that may wait for the disk.
const QUEUE_RECORDS: usize = 4096;

/// An audit trail that cannot be begun.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditFileError {
    /// The file cannot be opened for appending.
    #[error("the audit file {} cannot be opened for appending", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The writing thread cannot be started.
    #[error("the audit trail's thread cannot be started")]
    Thread(#[source] io::Error),
}

/// The disk took no record.
#[derive(Debug, thiserror::Error)]
#[error("the last write to the audit file failed")]
struct LastWriteFailed;

/// The trail is closed.
#[derive(Debug, thiserror::Error)]
#[error("the audit file is closed")]
struct Closed;

enum Item {
    Line(Vec<u8>),
    /// Everything before this is on its way to the disk; say so.
    Flush(SyncSender<()>),
}

/// An audit trail in a file. Every record is a `tracing` event of target `tidegate::audit` too.
pub struct AuditFile {
    queue: Mutex<Option<SyncSender<Item>>>,
    failing: Arc<AtomicBool>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl AuditFile {
    /// Opens (or makes) the file and starts the writing thread.
    ///
    /// # Errors
    /// [`AuditFileError`]
    pub fn open(path: &Path) -> Result<Self, AuditFileError> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(path)
            .map_err(|source| AuditFileError::Open { path: path.to_owned(), source })?;
        Self::to_writer(file)
    }

    fn to_writer(to: impl Write + Send + 'static) -> Result<Self, AuditFileError> {
        let (sender, receiver) = sync_channel(QUEUE_RECORDS);
        let failing = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&failing);
        let writer = std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || write_all(&receiver, BufWriter::new(to), &flag))
            .map_err(AuditFileError::Thread)?;
        Ok(Self { queue: Mutex::new(Some(sender)), failing, writer: Mutex::new(Some(writer)) })
    }

    /// Waits until what was taken so far was handed to the operating system. Blocks.
    pub fn flush(&self) {
        let queue = self.queue.lock().clone();
        let (done, wait) = sync_channel(1);
        if let Some(queue) = queue
            && queue.send(Item::Flush(done)).is_ok()
        {
            // An error means that the thread ended, which has flushed too.
            let _ = wait.recv();
        }
    }

    /// Writes what is queued and ends the thread. Later records are refused. Blocks; idempotent.
    pub fn close(&self) {
        drop(self.queue.lock().take());
        let writer = self.writer.lock().take();
        if let Some(writer) = writer
            && writer.join().is_err()
        {
            tracing::error!("the audit trail's thread ended with a panic");
        }
    }
}

impl Drop for AuditFile {
    fn drop(&mut self) {
        self.close();
    }
}

/// The writing thread: flushes when there is nothing more to write, so that a line is seen as soon as it can be.
fn write_all(queue: &Receiver<Item>, mut to: BufWriter<impl Write>, failing: &AtomicBool) {
    let mut next = queue.recv().ok();
    while let Some(item) = next {
        let result = match item {
            Item::Line(line) => to.write_all(&line),
            Item::Flush(done) => {
                let result = to.flush();
                // Whoever asked may have gone.
                let _ = done.send(());
                result
            }
        };
        let mut result = result;
        next = match queue.try_recv() {
            Ok(item) => Some(item),
            Err(_) => {
                result = result.and_then(|()| to.flush());
                report(&result, failing);
                queue.recv().ok()
            }
        };
    }
    report(&to.flush(), failing);
}

/// One log line when it begins to fail and one when it is over, not one a record.
fn report(result: &io::Result<()>, failing: &AtomicBool) {
    let failed = result.is_err();
    let before = failing.swap(failed, Ordering::Relaxed);
    match result {
        Err(error) if !before => tracing::error!(%error, "the audit file cannot be written"),
        Ok(()) if before => tracing::info!("the audit file can be written again"),
        _ => {}
    }
}

impl AuditSink for AuditFile {
    fn record(&self, record: &AuditRecord) -> Result<(), AuditUnavailable> {
        let mut line = serde_json::to_vec(record).map_err(AuditUnavailable::new)?;
        if tracing::enabled!(target: "tidegate::audit", tracing::Level::INFO) {
            let shown = String::from_utf8_lossy(&line);
            tracing::info!(target: "tidegate::audit", event = record.event, record = %shown);
        }
        line.push(b'\n');
        let queue = self.queue.lock();
        let Some(sender) = queue.as_ref() else { return Err(AuditUnavailable::new(Closed)) };
        match sender.try_send(Item::Line(line)) {
            // The line is queued all the same: when the disk is back it may still be written.
            Ok(()) if self.failing.load(Ordering::Relaxed) => Err(AuditUnavailable::new(LastWriteFailed)),
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_)) => Err(AuditUnavailable::full()),
            Err(TrySendError::Disconnected(_)) => Err(AuditUnavailable::new(Closed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use tidegate_core::Timestamp;
    use tidegate_core::port::AuditValue;

    use super::*;

    fn record(at: u64) -> AuditRecord {
        AuditRecord {
            at: Timestamp::from_unix_ms(0),
            event: "stream.opened",
            tenant: Some("acme".into()),
            subject: None,
            fields: vec![("lease", AuditValue::Text("ab".into())), ("number", AuditValue::Count(at))],
        }
    }

    #[test]
    fn records_are_lines_of_json_appended_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        std::fs::write(&path, "{\"before\":1}\n").unwrap();
        let audit = AuditFile::open(&path).unwrap();
        audit.record(&record(1)).unwrap();
        audit.flush();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(
            text,
            "{\"before\":1}\n{\"at\":\"1970-01-01T00:00:00.000Z\",\"event\":\"stream.opened\",\"tenant\":\"acme\",\"lease\":\"ab\",\"number\":1}\n"
        );
        for at in 2..1000 {
            audit.record(&record(at)).unwrap();
        }
        audit.close();
        assert!(audit.record(&record(0)).is_err(), "after the close nothing is taken in silence");
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 1000);
    }

    /// A disk that takes nothing until it is told to.
    struct Stuck(std::sync::mpsc::Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_queue_refuses_at_once_instead_of_blocking() {
        let (free, stuck) = std::sync::mpsc::channel();
        let audit = AuditFile::to_writer(Stuck(stuck)).unwrap();
        // The thread holds at most one record and a buffer beyond the queue.
        let refused = (0..100_000).find(|at| audit.record(&record(*at)).is_err());
        assert!(refused.is_some());
        drop(free);
        audit.close();
    }

    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::other("no space"))
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_failing_disk_is_told_to_who_reports() {
        let audit = AuditFile::to_writer(Broken).unwrap();
        let _ = audit.record(&record(1));
        audit.flush();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while audit.record(&record(2)).is_ok() {
            assert!(std::time::Instant::now() < until, "the failure is never told");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_trail_that_cannot_be_opened_is_an_error_at_the_start() {
        assert!(matches!(AuditFile::open(Path::new("/no/such/folder/audit.jsonl")), Err(AuditFileError::Open { .. })));
    }
}
