//! `tidegate object batch up`: a folder becomes objects. Small files go many in a request, large ones by themselves; what is there already is
//! not sent.

use std::fs;
use std::io;

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, stream};
use tidegate_batch::operation::INSERT_MAX_BYTES;

use super::super::super::ClientArgs;
use super::super::super::command::{CommandError, client};
use super::super::folder::{Found, JOURNAL, Walk};
use super::super::journal::Journal;
use super::super::progress::{Progress, silent};
use super::super::put::{Upload, content_type};
use super::super::resume::modified_ns;
use super::{Outcome, Tally, UpArgs, at_once, journal, shown};
use crate::client::object::{BATCH_MAX_COUNT, Insert, Piece, PutSpec, check_key};
use crate::client::{Client, ClientError};

/// What is told of each object of a piece of work.
type Told = Vec<(String, Result<Outcome, CommandError>)>;

/// Work that is under way.
enum Work {
    /// Small files in one request.
    Group(Result<Told, CommandError>),
    /// A file by itself.
    Single(Told),
}

pub(super) async fn run(common: &ClientArgs, args: &UpArgs) -> Result<(), CommandError> {
    if !args.folder.is_dir() {
        let source = io::Error::new(io::ErrorKind::NotADirectory, "it is no folder");
        return Err(CommandError::Input { path: args.folder.clone(), source });
    }
    let client = client(common, args.transfer.retries)?;
    let journal = journal(&client, "up", &args.collection, &args.folder)?;
    let tally = Tally::new(common.json, Progress::items(shown(common, &args.transfer), "up", None));
    let sender = Sender { client: &client, args, journal: &journal, progress: &tally.progress };
    let mut walk = Walk::new(&args.folder).fuse();
    let mut under_way = stream::FuturesUnordered::new();
    let (mut groups, mut singles, mut more) = (0, 0, true);
    let mut group = Group::default();
    loop {
        while more && groups < GROUPS_AT_ONCE && singles < at_once(&args.transfer) {
            match walk.next() {
                None => more = false,
                Some(Err((path, why))) => {
                    let name = path.display().to_string();
                    tally.tell(&name, Err(CommandError::Input { path, source: io::Error::other(why) }))?;
                    continue;
                }
                Some(Ok(found)) => {
                    let length = fs::metadata(&found.path).map_or(0, |metadata| metadata.len());
                    if length > INSERT_MAX_BYTES as u64 {
                        singles += 1;
                        under_way.push(async move { Work::Single(vec![sender.single(found).await]) }.boxed());
                        continue;
                    }
                    group.bytes += length;
                    group.files.push(found);
                }
            }
            if group.is_full() || (!more && !group.files.is_empty()) {
                groups += 1;
                let files = std::mem::take(&mut group).files;
                under_way.push(async move { Work::Group(sender.group(files).await) }.boxed());
            }
        }
        let told = match under_way.next().await {
            None if !more => break,
            None => continue,
            Some(Work::Single(told)) => {
                singles -= 1;
                told
            }
            Some(Work::Group(told)) => {
                groups -= 1;
                // The server takes nothing, or nobody answers: so it would be with what is left.
                told.inspect_err(|_| tally.progress.finish())?
            }
        };
        for (key, result) in told {
            tally.tell(&key, result)?;
        }
    }
    tally.end("up")
}

/// Requests with many small files that are on their way at one time.
const GROUPS_AT_ONCE: usize = 2;
/// About so many bytes go in one request; they are in memory.
const GROUP_BYTES: u64 = 8 * 1024 * 1024;

/// Small files that go together.
#[derive(Default)]
struct Group {
    files: Vec<Found>,
    bytes: u64,
}

impl Group {
    fn is_full(&self) -> bool {
        self.files.len() >= BATCH_MAX_COUNT || self.bytes >= GROUP_BYTES
    }
}

/// What sending needs.
#[derive(Clone, Copy)]
struct Sender<'a> {
    client: &'a Client,
    args: &'a UpArgs,
    journal: &'a Journal,
    progress: &'a Progress,
}

/// A small file, read.
struct Small {
    found: Found,
    modified: u64,
    body: Bytes,
}

impl Small {
    /// The time of its change is read before its bytes: a change in between is one that the journal does not know.
    fn read(found: Found) -> Result<Self, (String, CommandError)> {
        let read = || {
            let modified = modified_ns(&fs::metadata(&found.path)?);
            Ok((modified, fs::read(&found.path)?))
        };
        match read() {
            Ok((modified, body)) => Ok(Self { found, modified, body: body.into() }),
            Err(source) => Err((found.key, CommandError::Input { path: found.path, source })),
        }
    }
}

impl Sender<'_> {
    async fn single(self, found: Found) -> (String, Result<Outcome, CommandError>) {
        let sent = send(self.client, self.args, self.journal, &found, self.progress).await;
        (found.key, sent)
    }

    /// Sends small files together.
    async fn group(self, files: Vec<Found>) -> Result<Told, CommandError> {
        let (mut told, left) = self.there_already(files).await?;
        let read = tokio::task::spawn_blocking(move || left.into_iter().map(Small::read).collect::<Vec<_>>()).await;
        let mut small = Vec::new();
        for read in read.map_err(|error| CommandError::Output(io::Error::other(error)))? {
            match read {
                Ok(file) => small.push(file),
                Err((key, error)) => told.push((key, Err(error))),
            }
        }
        let insert = |file: &Small| Insert {
            key: file.found.key.clone(),
            content_type: content_type(&file.found.path).to_owned(),
            body: file.body.clone(),
        };
        let inserts: Vec<Insert> = small.iter().map(insert).collect();
        let outcomes = self.client.insert_batch(&self.args.collection, &inserts).await?;
        for (file, outcome) in small.into_iter().zip(outcomes) {
            let Small { found, modified, body } = file;
            let result = match outcome {
                Ok(etag) => self.note(&found.key, body.len() as u64, modified, &etag).map(|()| Outcome::Done),
                Err(problem) => Err(ClientError::Refused(problem).into()),
            };
            told.push((found.key, result));
        }
        Ok(told)
    }

    /// Those that need not be sent: the journal says which write of the object a file became, and the server still has that one.
    async fn there_already(self, files: Vec<Found>) -> Result<(Told, Vec<Found>), CommandError> {
        let known = |found: &Found| {
            let metadata = fs::metadata(&found.path).ok()?;
            let entry = self.journal.get(&found.key)?;
            let same = (entry.length, entry.modified_ns) == (metadata.len(), modified_ns(&metadata));
            same.then(|| (entry.length, entry.etag.clone()))
        };
        let (mut noted, mut left) = (Vec::new(), Vec::new());
        for found in files {
            match known(&found) {
                Some(entry) => noted.push((found, entry)),
                None => left.push(found),
            }
        }
        let mut told = Vec::new();
        if !noted.is_empty() {
            let keys: Vec<String> = noted.iter().map(|(found, _)| found.key.clone()).collect();
            let heads = self.client.head_batch(&self.args.collection, &keys).await?;
            for ((found, entry), head) in noted.into_iter().zip(heads) {
                if head.is_ok_and(|head| head == entry) {
                    told.push((found.key, Ok(Outcome::Skipped)));
                } else {
                    left.push(found);
                }
            }
        }
        Ok((told, left))
    }

    fn note(self, key: &str, length: u64, modified: u64, etag: &str) -> Result<(), CommandError> {
        let noted = self.journal.note(key, length, modified, etag);
        noted.map_err(|source| CommandError::Write { path: JOURNAL.into(), source })
    }
}

/// Sends a file, unless it is there already: the journal says which write of the object it became, and the server still has that one.
async fn send(
    client: &Client,
    args: &UpArgs,
    journal: &Journal,
    found: &Found,
    progress: &Progress,
) -> Result<Outcome, CommandError> {
    let Found { key, path } = found;
    check_key(key).map_err(CommandError::Argument)?;
    let read = |source| CommandError::Input { path: path.clone(), source };
    let metadata = fs::metadata(path).map_err(read)?;
    let (length, modified) = (metadata.len(), modified_ns(&metadata));
    let noted = journal.get(key).filter(|entry| (entry.length, entry.modified_ns) == (length, modified));
    if let Some(entry) = noted
        && client.object_head(&args.collection, key).await?.is_some_and(|there| there == (length, entry.etag.clone()))
    {
        return Ok(Outcome::Skipped);
    }
    let spec = PutSpec { content_type: Some(content_type(path).to_owned()), ..PutSpec::default() };
    let written = if length > args.part_size {
        let upload = Upload { client, collection: &args.collection, key, file: path, spec: &spec };
        upload.run(length, modified, args.part_size, &silent(), progress).await?
    } else {
        let piece = Piece { path: path.clone(), from: 0, length };
        client.put_object(&args.collection, Some(key), &piece, &spec, &silent()).await?
    };
    journal
        .note(key, length, modified, &written.info.etag)
        .map_err(|source| CommandError::Write { path: JOURNAL.into(), source })?;
    Ok(Outcome::Done)
}
