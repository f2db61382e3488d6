//! `tidegate object batch down`: keys become files of a folder. Small objects come many in an answer, large ones by themselves. A key that would
//! name a file elsewhere is refused; what is here already, whole and as it is at the server, is not fetched.

use std::collections::{HashSet, VecDeque};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};

use futures::{FutureExt as _, StreamExt as _, stream};
use tidegate_batch::operation::INSERT_MAX_BYTES;
use tokio::sync::mpsc;

use super::super::super::ClientArgs;
use super::super::super::command::{CommandError, client};
use super::super::Pages;
use super::super::folder::{JOURNAL, PARTIAL, make_way, path_of};
use super::super::get::fetch;
use super::super::journal::Journal;
use super::super::progress::Progress;
use super::super::resume::{Place, modified_ns};
use super::{DownArgs, Outcome, Tally, at_once, journal, shown};
use crate::client::object::{BATCH_MAX_COUNT, Fetched, ObjectInfo};
use crate::client::{Client, ClientError, LineError};

/// Keys that wait to be fetched, at most.
const KEYS_WAITING: usize = 1_024;

type Keys = mpsc::Receiver<Result<Wanted, CommandError>>;

/// An object that is asked for.
struct Wanted {
    key: String,
    /// Its length and entity tag at the server, where they are known.
    there: Option<(u64, String)>,
}

impl Wanted {
    fn length(&self) -> u64 {
        self.there.as_ref().map_or(0, |(length, _)| *length)
    }
}

/// The keys, as they come: no transfer waits for whoever writes the list.
fn keys(client: &Client, args: &DownArgs) -> Result<Keys, CommandError> {
    let (sender, keys) = mpsc::channel(KEYS_WAITING);
    match (&args.list, &args.prefix) {
        (_, Some(prefix)) => {
            let (client, collection, prefix) = (client.clone(), args.collection.clone(), prefix.clone());
            tokio::spawn(async move {
                let mut pages = Pages::new(&client, &collection, &prefix);
                loop {
                    match pages.next().await {
                        Ok(Some(objects)) => {
                            for ObjectInfo { key, length, etag, .. } in objects {
                                let wanted = Wanted { key, there: Some((length, etag)) };
                                if sender.send(Ok(wanted)).await.is_err() {
                                    return;
                                }
                            }
                        }
                        Ok(None) => return,
                        Err(error) => {
                            // Who would hear of it may have gone.
                            let _ = sender.send(Err(error)).await;
                            return;
                        }
                    }
                }
            });
        }
        (Some(list), None) if list.as_os_str() == "-" => {
            let list = list.clone();
            std::thread::spawn(move || lines(io::stdin().lock(), &list, &sender));
        }
        (Some(list), None) => {
            let file = fs::File::open(list).map_err(|source| CommandError::Input { path: list.clone(), source })?;
            let list = list.clone();
            std::thread::spawn(move || lines(BufReader::new(file), &list, &sender));
        }
        (None, None) => return Err(CommandError::Usage("it takes a LIST or --prefix")),
    }
    Ok(keys)
}

/// The lines of a list, until it ends or nobody wants more. Blocks.
fn lines(mut list: impl BufRead, path: &Path, sender: &mpsc::Sender<Result<Wanted, CommandError>>) {
    let mut line = String::new();
    loop {
        line.clear();
        let told = match list.read_line(&mut line) {
            Ok(0) => return,
            Ok(_) => {
                let key = line.strip_suffix('\n').unwrap_or(&line);
                let key = key.strip_suffix('\r').unwrap_or(key);
                if key.is_empty() {
                    continue;
                }
                Ok(Wanted { key: key.to_owned(), there: None })
            }
            Err(source) => Err(CommandError::Input { path: PathBuf::from(path), source }),
        };
        let ended = told.is_err();
        if sender.blocking_send(told).is_err() || ended {
            return;
        }
    }
}

/// Requests with many small objects that are on their way at one time.
const GROUPS_AT_ONCE: usize = 2;
/// About so many bytes come in one answer; they are in memory.
const GROUP_BYTES: u64 = 8 * 1024 * 1024;
/// An object of more bytes is fetched by itself.
const SMALL_MAX_BYTES: u64 = INSERT_MAX_BYTES as u64;

/// What is told of each object of a piece of work.
type Told = Vec<(String, Result<Outcome, CommandError>)>;

/// Work that is done.
enum Work {
    /// Keys that were looked at: those that are to be fetched.
    Look(Result<(Told, Vec<Wanted>), CommandError>),
    /// Small objects in one answer; those of the second list must be fetched by themselves.
    Group(Result<(Told, Vec<Wanted>), CommandError>),
    /// An object by itself.
    Single(String, Result<Outcome, CommandError>),
}

/// What waits, by how it is fetched. At most a request's worth of each kind.
#[derive(Default)]
struct Waiting {
    unknown: Vec<String>,
    small: VecDeque<Wanted>,
    large: VecDeque<Wanted>,
}

impl Waiting {
    fn has_room(&self) -> bool {
        self.unknown.is_empty() && self.small.len() + self.large.len() < BATCH_MAX_COUNT
    }

    fn fetch(&mut self, wanted: Wanted) {
        let small = wanted.length() <= SMALL_MAX_BYTES;
        if small { self.small.push_back(wanted) } else { self.large.push_back(wanted) }
    }

    /// As many small ones as go together.
    fn group(&mut self) -> Vec<Wanted> {
        let (mut group, mut bytes) = (Vec::new(), 0);
        while group.len() < BATCH_MAX_COUNT
            && bytes < GROUP_BYTES
            && let Some(wanted) = self.small.pop_front()
        {
            bytes += wanted.length();
            group.push(wanted);
        }
        group
    }
}

pub(super) async fn run(common: &ClientArgs, args: &DownArgs) -> Result<(), CommandError> {
    let client = client(common, args.transfer.retries)?;
    let mut keys = keys(&client, args)?;
    let partial = args.to.join(PARTIAL);
    fs::create_dir_all(&partial).map_err(|source| CommandError::Write { path: partial.clone(), source })?;
    let journal = journal(&client, "down", &args.collection, &args.to)?;
    let tally = Tally::new(common.json, Progress::items(shown(common, &args.transfer), "down", None));
    let receiver = Receiver { client: &client, args, journal: &journal, partial: &partial };
    let mut under_way = stream::FuturesUnordered::new();
    let (mut looks, mut groups, mut singles, mut more) = (0, 0, 0, true);
    let (mut pulled, mut waiting, mut open) = (Vec::new(), Waiting::default(), HashSet::new());
    loop {
        if looks == 0 && !waiting.unknown.is_empty() {
            looks += 1;
            let keys = std::mem::take(&mut waiting.unknown);
            under_way.push(async move { Work::Look(receiver.look(keys).await) }.boxed());
        }
        while groups < GROUPS_AT_ONCE && !waiting.small.is_empty() {
            groups += 1;
            let group = waiting.group();
            under_way.push(async move { Work::Group(receiver.group(group).await) }.boxed());
        }
        while singles < at_once(&args.transfer)
            && let Some(wanted) = waiting.large.pop_front()
        {
            singles += 1;
            under_way.push(async move { receiver.single(wanted.key).await }.boxed());
        }
        let told = tokio::select! {
            count = keys.recv_many(&mut pulled, BATCH_MAX_COUNT), if more && waiting.has_room() => {
                more = count > 0;
                let mut told = Vec::new();
                for wanted in pulled.drain(..) {
                    let wanted = wanted.inspect_err(|_| tally.progress.finish())?;
                    if !open.insert(wanted.key.clone()) {
                        // It is on its way: two would write one file.
                        told.push((wanted.key, Ok(Outcome::Skipped)));
                    } else if let Err(why) = path_of(&args.to, &wanted.key) {
                        told.push((wanted.key, Err(CommandError::Key(why))));
                    } else if wanted.there.is_none() {
                        waiting.unknown.push(wanted.key);
                    } else if receiver.is_here(&wanted) {
                        told.push((wanted.key, Ok(Outcome::Skipped)));
                    } else {
                        waiting.fetch(wanted);
                    }
                }
                told
            }
            Some(work) = under_way.next(), if !under_way.is_empty() => match work {
                Work::Single(key, result) => {
                    singles -= 1;
                    vec![(key, result)]
                }
                Work::Look(looked) => {
                    looks -= 1;
                    // Nobody answers, or all is refused: so it would be with what is left.
                    let (told, wanted) = looked.inspect_err(|_| tally.progress.finish())?;
                    wanted.into_iter().for_each(|wanted| waiting.fetch(wanted));
                    told
                }
                Work::Group(fetched) => {
                    groups -= 1;
                    let (told, alone) = fetched.inspect_err(|_| tally.progress.finish())?;
                    waiting.large.extend(alone);
                    told
                }
            },
            else => break,
        };
        for (key, result) in told {
            open.remove(&key);
            tally.tell(&key, result)?;
        }
    }
    // What stays in it belongs to what failed, and is gone on with.
    let _ = fs::remove_dir(&partial);
    tally.end("down")
}

/// What fetching needs.
#[derive(Clone, Copy)]
struct Receiver<'a> {
    client: &'a Client,
    args: &'a DownArgs,
    journal: &'a Journal,
    partial: &'a Path,
}

impl Receiver<'_> {
    /// Whether an object is here already, whole and as it is at the server.
    fn is_here(self, wanted: &Wanted) -> bool {
        let (Some(entry), Ok(path)) = (self.journal.get(&wanted.key), path_of(&self.args.to, &wanted.key)) else {
            return false;
        };
        fs::symlink_metadata(path).is_ok_and(|metadata| {
            metadata.is_file() && (entry.length, entry.modified_ns) == (metadata.len(), modified_ns(&metadata))
        }) && wanted.there.as_ref().is_some_and(|(length, etag)| (*length, etag) == (entry.length, &entry.etag))
    }

    /// Looks at objects of which only the keys are known.
    async fn look(self, keys: Vec<String>) -> Result<(Told, Vec<Wanted>), CommandError> {
        let (mut told, mut left) = (Vec::new(), Vec::new());
        let heads = self.client.head_batch(&self.args.collection, &keys).await?;
        for (key, head) in keys.into_iter().zip(heads) {
            match head {
                Ok(there) => {
                    let wanted = Wanted { key, there: Some(there) };
                    if self.is_here(&wanted) {
                        told.push((wanted.key, Ok(Outcome::Skipped)));
                    } else {
                        left.push(wanted);
                    }
                }
                Err(problem) => told.push((key, Err(ClientError::Refused(problem).into()))),
            }
        }
        Ok((told, left))
    }

    /// Fetches small objects together. Where they grew beyond what an answer may have, each is left to be fetched by itself.
    async fn group(self, group: Vec<Wanted>) -> Result<(Told, Vec<Wanted>), CommandError> {
        let keys: Vec<String> = group.iter().map(|wanted| wanted.key.clone()).collect();
        let fetched = match self.client.get_batch(&self.args.collection, &keys).await {
            Err(ClientError::Line(LineError::TooLong { .. })) => return Ok((Vec::new(), group)),
            fetched => fetched?,
        };
        let mut told = Vec::new();
        let mut written = Vec::new();
        for (key, fetched) in keys.into_iter().zip(fetched) {
            match fetched {
                Ok(fetched) => written.push((key, fetched)),
                Err(problem) => told.push((key, Err(ClientError::Refused(problem).into()))),
            }
        }
        // No other group has its first key: it is under way here.
        let aside = written.first().map(|(key, _)| self.partial.join(self.place(key).short())).unwrap_or_default();
        let to = self.args.to.clone();
        let writing = tokio::task::spawn_blocking(move || {
            let each = written.into_iter().map(|(key, Fetched { etag, body })| {
                let modified = write_small(&to, &aside, &key, &body);
                (key, body.len() as u64, etag, modified)
            });
            each.collect::<Vec<_>>()
        });
        for (key, length, etag, modified) in
            writing.await.map_err(|error| CommandError::Output(io::Error::other(error)))?
        {
            let result = modified.and_then(|modified| self.note(&key, length, modified, &etag));
            told.push((key, result.map(|()| Outcome::Done)));
        }
        Ok((told, Vec::new()))
    }

    fn place(self, key: &str) -> Place {
        let (url, collection) = (self.client.base().to_string(), self.args.collection.clone());
        Place { url, collection, key: key.to_owned() }
    }

    async fn single(self, key: String) -> Work {
        let got = self.fetch(&key).await;
        Work::Single(key, got)
    }

    /// Fetches an object by itself.
    async fn fetch(self, key: &str) -> Result<Outcome, CommandError> {
        let path = path_of(&self.args.to, key).map_err(CommandError::Key)?;
        let write = |source| CommandError::Write { path: path.clone(), source };
        make_way(&self.args.to, &path).map_err(write)?;
        let place = self.place(key);
        let aside = self.partial.join(place.short());
        let (length, etag) = fetch(self.client, &place, &path, &aside, &Progress::bytes(false, "", None)).await?;
        let metadata = fs::metadata(&path).map_err(write)?;
        self.note(key, length, modified_ns(&metadata), &etag)?;
        Ok(Outcome::Done)
    }

    fn note(self, key: &str, length: u64, modified: u64, etag: &str) -> Result<(), CommandError> {
        let noted = self.journal.note(key, length, modified, etag);
        noted.map_err(|source| CommandError::Write { path: self.args.to.join(JOURNAL), source })
    }
}

/// Writes a small file aside and gives it its name when it is whole and durable; says when it was changed. Blocks.
fn write_small(to: &Path, aside: &Path, key: &str, body: &[u8]) -> Result<u64, CommandError> {
    let path = path_of(to, key).map_err(CommandError::Key)?;
    let write = || {
        make_way(to, &path)?;
        let mut file = File::create(aside)?;
        file.write_all(body)?;
        file.sync_all()?;
        drop(file);
        fs::rename(aside, &path)?;
        fs::metadata(&path)
    };
    match write() {
        Ok(metadata) => Ok(modified_ns(&metadata)),
        Err(source) => Err(CommandError::Write { path: path.clone(), source }),
    }
}
