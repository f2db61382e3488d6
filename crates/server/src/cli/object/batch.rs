//! `tidegate object batch`: a folder up, a list of keys down, many at a time. One that fails holds up none and is told with its reason; a
//! second run does what is left.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use clap::{Args, Subcommand};
use futures::{FutureExt as _, StreamExt as _, stream};
use tidegate_batch::operation::INSERT_MAX_BYTES;

use super::super::command::{CommandError, Interrupt, bytes, client, say};
use super::super::{ClientArgs, report};
use super::Pages;
use super::folder::{Found, PARTIAL, Walk, make_way, path_of};
use super::get::fetch;
use super::journal::Journal;
use super::progress::{Progress, silent};
use super::put::{Upload, content_type};
use super::resume::{Place, modified_ns};
use crate::client::object::{BATCH_MAX_COUNT, CollectionName, Insert, Piece, PutSpec, check_key};
use crate::client::{Client, ClientError, printable};

/// Which way.
#[derive(Debug, Subcommand)]
#[non_exhaustive]
pub enum BatchCommand {
    /// Every file of a folder and of the folders in it; the key is the path in the folder, with `/`.
    Up(UpArgs),
    /// Objects into a folder: those of a list, or all whose keys have a prefix.
    Down(DownArgs),
}

/// What both ways share.
#[derive(Debug, Clone, Args)]
pub struct TransferArgs {
    /// How many objects are on their way at one time.
    #[arg(long, default_value_t = 16, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=256))]
    pub at_once: u64,
    /// How often a request is sent again when no answer comes.
    #[arg(long, default_value_t = 10, value_name = "TIMES")]
    pub retries: usize,
    /// Show no progress.
    #[arg(long, short)]
    pub quiet: bool,
}

/// `tidegate object batch up`.
#[derive(Debug, Clone, Args)]
pub struct UpArgs {
    /// The collection.
    pub collection: CollectionName,
    /// The folder. What is done is noted in FOLDER/.tidegate-batch.
    pub folder: PathBuf,
    /// A larger file goes in parts of this size.
    #[arg(long, default_value = "64MiB", value_name = "BYTES", value_parser = bytes)]
    pub part_size: u64,
    /// How.
    #[command(flatten)]
    pub transfer: TransferArgs,
}

/// `tidegate object batch down`.
#[derive(Debug, Clone, Args)]
pub struct DownArgs {
    /// The collection.
    pub collection: CollectionName,
    /// A file of keys, one a line; `-` = stdin.
    #[arg(required_unless_present = "prefix", conflicts_with = "prefix")]
    pub list: Option<PathBuf>,
    /// All objects whose keys begin with this, in place of a list.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prefix: Option<String>,
    /// Into this folder. What is done is noted in FOLDER/.tidegate-batch.
    #[arg(long, value_name = "FOLDER")]
    pub to: PathBuf,
    /// How.
    #[command(flatten)]
    pub transfer: TransferArgs,
}

/// What became of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    Skipped,
}

/// Counts what became of objects, and tells it as it comes.
struct Tally {
    json: bool,
    progress: Progress,
    done: AtomicU64,
    skipped: AtomicU64,
    failed: AtomicU64,
}

impl Tally {
    fn new(json: bool, progress: Progress) -> Self {
        let [done, skipped, failed] = std::array::from_fn(|_| AtomicU64::new(0));
        Self { json, progress, done, skipped, failed }
    }

    fn tell(&self, key: &str, result: Result<Outcome, CommandError>) -> Result<(), CommandError> {
        self.progress.add(1);
        let (word, failure) = match result {
            Ok(Outcome::Done) => {
                self.done.fetch_add(1, Ordering::Relaxed);
                ("done", None)
            }
            Ok(Outcome::Skipped) => {
                self.skipped.fetch_add(1, Ordering::Relaxed);
                ("skipped", None)
            }
            Err(error) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                ("failed", Some((report::words(&error), error.code().map(str::to_owned))))
            }
        };
        if self.json {
            let line = match failure {
                None => serde_json::json!({ "key": key, "status": word }),
                Some((message, code)) => {
                    serde_json::json!({ "key": key, "status": word, "code": code, "message": message })
                }
            };
            writeln!(io::stdout(), "{line}")?;
        } else if let Some((message, _)) = failure {
            self.progress.note(&format!("failed: {}: {}", printable(key), message.replace('\n', " ")));
        }
        Ok(())
    }

    /// The last line, and how it ends.
    fn end(&self, way: &str) -> Result<(), CommandError> {
        self.progress.finish();
        let count = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let (done, skipped, failed) = (count(&self.done), count(&self.skipped), count(&self.failed));
        if self.json {
            say(&serde_json::json!({ "end": { "done": done, "skipped": skipped, "failed": failed } }).to_string())?;
        } else {
            say(&format!("{done} {way}, {skipped} there already, {failed} failed"))?;
        }
        match failed {
            0 => Ok(()),
            failed => Err(CommandError::Items { failed, items: done + skipped + failed }),
        }
    }
}

/// Runs the command.
pub(super) async fn run(common: &ClientArgs, command: &BatchCommand) -> Result<(), CommandError> {
    let mut interrupt = Interrupt::listen()?;
    let running = async {
        match command {
            BatchCommand::Up(args) => up(common, args).await,
            BatchCommand::Down(args) => down(common, args).await,
        }
    };
    tokio::select! {
        ran = running => ran,
        () = interrupt.heard() => {
            eprintln!("interrupted; the same command does what is left");
            Err(CommandError::Interrupted)
        }
    }
}

fn journal(client: &Client, way: &str, collection: &CollectionName, folder: &Path) -> Result<Journal, CommandError> {
    let at = format!("{way} {} {collection}", client.base());
    Journal::open(folder, at)
        .map_err(|source| CommandError::Write { path: folder.join(super::folder::JOURNAL), source })
}

fn shown(common: &ClientArgs, args: &TransferArgs) -> bool {
    !args.quiet && !common.json
}

fn at_once(args: &TransferArgs) -> usize {
    usize::try_from(args.at_once).unwrap_or(usize::MAX)
}

/// What is told of each object of a piece of work.
type Told = Vec<(String, Result<Outcome, CommandError>)>;

/// Work that is under way.
enum Work {
    /// Small files in one request.
    Group(Result<Told, CommandError>),
    /// A file by itself.
    Single(Told),
}

async fn up(common: &ClientArgs, args: &UpArgs) -> Result<(), CommandError> {
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
        noted.map_err(|source| CommandError::Write { path: super::folder::JOURNAL.into(), source })
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
        .map_err(|source| CommandError::Write { path: super::folder::JOURNAL.into(), source })?;
    Ok(Outcome::Done)
}

/// Where keys come from.
enum Keys<'a> {
    Lines(Box<dyn BufRead + Send>, PathBuf),
    Pages(Pages<'a>, VecDeque<String>),
}

impl Keys<'_> {
    async fn next(&mut self) -> Result<Option<String>, CommandError> {
        match self {
            Self::Lines(lines, path) => {
                let mut line = String::new();
                loop {
                    line.clear();
                    // A list is read as fast as it is worked off; the wait for a terminal or a pipe leaves another thread to the transfers.
                    let read = tokio::task::block_in_place(|| lines.read_line(&mut line));
                    if read.map_err(|source| CommandError::Input { path: path.clone(), source })? == 0 {
                        return Ok(None);
                    }
                    let key = line.strip_suffix('\n').unwrap_or(&line);
                    let key = key.strip_suffix('\r').unwrap_or(key);
                    if !key.is_empty() {
                        return Ok(Some(key.to_owned()));
                    }
                }
            }
            Self::Pages(pages, ready) => loop {
                if let Some(key) = ready.pop_front() {
                    return Ok(Some(key));
                }
                match pages.next().await? {
                    None => return Ok(None),
                    Some(objects) => ready.extend(objects.into_iter().map(|object| object.key)),
                }
            },
        }
    }
}

async fn down(common: &ClientArgs, args: &DownArgs) -> Result<(), CommandError> {
    let client = client(common, args.transfer.retries)?;
    let mut keys = match (&args.list, &args.prefix) {
        (_, Some(prefix)) => Keys::Pages(Pages::new(&client, &args.collection, prefix), VecDeque::new()),
        (Some(list), None) if list.as_os_str() == "-" => {
            Keys::Lines(Box::new(io::BufReader::new(io::stdin())), list.clone())
        }
        (Some(list), None) => {
            let file = fs::File::open(list).map_err(|source| CommandError::Input { path: list.clone(), source })?;
            Keys::Lines(Box::new(io::BufReader::new(file)), list.clone())
        }
        (None, None) => return Err(CommandError::Usage("it takes a LIST or --prefix")),
    };
    let partial = args.to.join(PARTIAL);
    fs::create_dir_all(&partial).map_err(|source| CommandError::Write { path: partial.clone(), source })?;
    let journal = journal(&client, "down", &args.collection, &args.to)?;
    let tally = Tally::new(common.json, Progress::items(shown(common, &args.transfer), "down", None));
    {
        let (client, journal, partial) = (&client, &journal, &partial);
        let mut under_way = stream::FuturesUnordered::new();
        let mut more = true;
        while more || !under_way.is_empty() {
            if more && under_way.len() < at_once(&args.transfer) {
                match keys.next().await? {
                    Some(key) => under_way.push(async move {
                        let got = receive(client, args, journal, partial, &key).await;
                        (key, got)
                    }),
                    None => more = false,
                }
                continue;
            }
            if let Some((key, result)) = under_way.next().await {
                tally.tell(&key, result)?;
            }
        }
    }
    // What stays in it belongs to what failed, and is gone on with.
    let _ = fs::remove_dir(&partial);
    tally.end("down")
}

/// Fetches an object, unless it is here already, whole and as it is at the server.
async fn receive(
    client: &Client,
    args: &DownArgs,
    journal: &Journal,
    partial: &Path,
    key: &str,
) -> Result<Outcome, CommandError> {
    let path = path_of(&args.to, key).map_err(CommandError::Key)?;
    if let (Some(entry), Ok(metadata)) = (journal.get(key), fs::symlink_metadata(&path))
        && metadata.is_file()
        && (entry.length, entry.modified_ns) == (metadata.len(), modified_ns(&metadata))
    {
        let there = client.object_head(&args.collection, key).await?;
        if there.is_some_and(|there| there == (entry.length, entry.etag.clone())) {
            return Ok(Outcome::Skipped);
        }
    }
    let write = |source| CommandError::Write { path: path.clone(), source };
    make_way(&args.to, &path).map_err(write)?;
    let place = Place { url: client.base().to_string(), collection: args.collection.clone(), key: key.to_owned() };
    let aside = partial.join(place.short());
    let (length, etag) = fetch(client, &place, &path, &aside, &Progress::bytes(false, "", None)).await?;
    let metadata = fs::metadata(&path).map_err(write)?;
    journal.note(key, length, modified_ns(&metadata), &etag).map_err(write)?;
    Ok(Outcome::Done)
}
