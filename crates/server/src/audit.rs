//! The audit trail as JSON lines in a file: a bounded queue, and one thread that writes. It never blocks who reports: a
//! full queue or a failing disk answers [`AuditUnavailable`], which the caller counts in `tidegate_audit_dropped_total`; a
//! record that was taken and could not be written is counted there by the thread. It never drops one in silence.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tidegate_core::limit::Limit;
use tidegate_core::port::{AuditRecord, AuditSink, AuditUnavailable};
use tidegate_lease::audit::DROPPED_TOTAL;

/// Records that may wait for the disk.
const QUEUE_RECORDS: usize = 4096;
/// Bytes that were taken out of the queue and not yet by the disk.
const PENDING_MAX_BYTES: usize = 64 * 1024;
/// While records are being lost, how often that is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The bounds of the audit trail.
pub const LIMITS: &[Limit] = &[
    Limit {
        name: "audit.queue_max_records",
        value: QUEUE_RECORDS as u64,
        meaning: "Audit records that wait for the disk; beyond it they are lost and counted in tidegate_audit_dropped_total.",
    },
    Limit {
        name: "audit.pending_max_bytes",
        value: PENDING_MAX_BYTES as u64,
        meaning: "Audit records that are kept for a disk that fails; beyond it they are lost and counted likewise.",
    },
];

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
    Line(Line),
    /// Everything before this is on its way to the disk; say so.
    Flush(SyncSender<()>),
}

struct Line {
    bytes: Vec<u8>,
    /// Whoever reported it was told that it may be lost, and has counted it.
    counted: bool,
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
            .spawn(move || write_all(&receiver, Trail::new(to), &flag))
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

/// The writing thread: writes when nothing more is queued, so that a line is seen as soon as it can be.
fn write_all(queue: &Receiver<Item>, mut trail: Trail<impl Write>, failing: &AtomicBool) {
    let mut next = queue.recv().ok();
    while let Some(item) = next {
        match item {
            Item::Line(line) => trail.take(line, failing),
            Item::Flush(done) => {
                trail.flush(failing);
                // Whoever asked may have gone.
                let _ = done.send(());
            }
        }
        next = match queue.try_recv() {
            Ok(item) => Some(item),
            Err(_) => {
                trail.flush(failing);
                queue.recv().ok()
            }
        };
    }
    trail.close(failing);
}

/// What the writing thread holds: lines that the disk has not taken yet, in order. A disk that fails keeps its place, so
/// that a line is written whole or not at all as long as the disk comes back.
struct Trail<W> {
    to: W,
    pending: Vec<u8>,
    /// Of each line in `pending`: its bytes that are still there, and whether it was counted.
    lines: VecDeque<(usize, bool)>,
    /// Lines that were lost since it last was logged, and when that was.
    lost: u64,
    logged: Option<Instant>,
}

impl<W: Write> Trail<W> {
    fn new(to: W) -> Self {
        Self { to, pending: Vec::new(), lines: VecDeque::new(), lost: 0, logged: None }
    }

    fn take(&mut self, line: Line, failing: &AtomicBool) {
        if !self.pending.is_empty() && self.pending.len() + line.bytes.len() > PENDING_MAX_BYTES {
            self.flush(failing);
            if !self.pending.is_empty() {
                self.lose(u64::from(!line.counted), 1);
                return;
            }
        }
        self.lines.push_back((line.bytes.len(), line.counted));
        self.pending.extend_from_slice(&line.bytes);
    }

    fn flush(&mut self, failing: &AtomicBool) {
        let result = self.write();
        report(&result, failing);
    }

    fn write(&mut self) -> io::Result<()> {
        while !self.pending.is_empty() {
            match self.to.write(&self.pending) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.written(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.to.flush()
    }

    fn written(&mut self, mut count: usize) {
        self.pending.drain(..count);
        while let Some((left, _)) = self.lines.front_mut() {
            if *left > count {
                *left -= count;
                return;
            }
            count -= *left;
            self.lines.pop_front();
        }
    }

    fn close(mut self, failing: &AtomicBool) {
        self.flush(failing);
        let uncounted = self.lines.iter().filter(|(_, counted)| !counted).count();
        self.logged = None;
        self.lose(uncounted as u64, self.lines.len() as u64);
    }

    /// `lines` are lost, of which `uncounted` nobody has counted yet.
    fn lose(&mut self, uncounted: u64, lines: u64) {
        metrics::counter!(DROPPED_TOTAL).increment(uncounted);
        self.lost += lines;
        let due = self.logged.is_none_or(|logged| logged.elapsed() >= LOG_INTERVAL);
        if self.lost > 0 && due {
            tracing::error!(lost = self.lost, "audit records are lost: the audit file cannot be written");
            (self.lost, self.logged) = (0, Some(Instant::now()));
        }
    }
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
        let counted = self.failing.load(Ordering::Relaxed);
        match sender.try_send(Item::Line(Line { bytes: line, counted })) {
            // The line is queued all the same: when the disk is back it may still be written.
            Ok(()) if counted => Err(AuditUnavailable::new(LastWriteFailed)),
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

    /// What the thread counts as lost when it is given these lines.
    fn lost(lines: impl IntoIterator<Item = Line>, to: impl Write) -> String {
        let (sender, receiver) = sync_channel(QUEUE_RECORDS);
        for line in lines {
            sender.try_send(Item::Line(line)).unwrap_or_else(|_| panic!("the queue has room"));
        }
        drop(sender);
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || write_all(&receiver, Trail::new(to), &AtomicBool::new(false)));
        recorder.handle().render()
    }

    fn line(number: usize) -> Line {
        Line { bytes: format!("{number:099}\n").into_bytes(), counted: number % 2 == 1 }
    }

    #[test]
    fn every_line_that_is_lost_is_counted_once() {
        let counted = lost((0..4_000).map(line), Broken);
        assert!(counted.contains("tidegate_audit_dropped_total 2000\n"), "{counted}");
    }

    /// A disk that takes a few bytes, fails, and takes some again.
    struct Flaky<'a>(&'a mut Vec<u8>, bool);

    impl Write for Flaky<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(io::Error::other("no space"));
            }
            self.0.extend_from_slice(&bytes[..bytes.len().min(10_010)]);
            Ok(bytes.len().min(10_010))
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_disk_that_comes_back_has_whole_lines_and_what_it_has_not_is_counted() {
        let mut disk = Vec::new();
        let uncounted = |number| Line { counted: false, ..line(number) };
        let counted = lost((0..2_000).map(uncounted), Flaky(&mut disk, false));
        let text = String::from_utf8(disk).unwrap();
        let numbers: Vec<usize> =
            text.lines().filter(|line| line.len() == 99).map(|line| line.parse().unwrap()).collect();
        assert!(numbers.len() > 700 && numbers.is_sorted(), "{}", numbers.len());
        let whole = text.matches('\n').count();
        assert_eq!(numbers.len(), whole, "only the last line may be cut");
        assert!(counted.contains(&format!("tidegate_audit_dropped_total {}\n", 2_000 - whole)), "{whole} {counted}");
    }

    #[test]
    fn a_trail_that_cannot_be_opened_is_an_error_at_the_start() {
        assert!(matches!(AuditFile::open(Path::new("/no/such/folder/audit.jsonl")), Err(AuditFileError::Open { .. })));
    }
}
