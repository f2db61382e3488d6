//! `tidegate object batch down`: keys become files of a folder. A key that would name a file elsewhere is refused; what is here already, whole
//! and as it is at the server, is not fetched.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use futures::{StreamExt as _, stream};
use tokio::sync::mpsc;

use super::super::super::ClientArgs;
use super::super::super::command::{CommandError, client};
use super::super::Pages;
use super::super::folder::{PARTIAL, make_way, path_of};
use super::super::get::fetch;
use super::super::journal::Journal;
use super::super::progress::Progress;
use super::super::resume::{Place, modified_ns};
use super::{DownArgs, Outcome, Tally, at_once, journal, shown};
use crate::client::Client;

/// Keys that wait to be fetched, at most.
const KEYS_WAITING: usize = 1_024;

type Keys = mpsc::Receiver<Result<String, CommandError>>;

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
                            for object in objects {
                                if sender.send(Ok(object.key)).await.is_err() {
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
fn lines(mut list: impl BufRead, path: &Path, sender: &mpsc::Sender<Result<String, CommandError>>) {
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
                Ok(key.to_owned())
            }
            Err(source) => Err(CommandError::Input { path: PathBuf::from(path), source }),
        };
        let ended = told.is_err();
        if sender.blocking_send(told).is_err() || ended {
            return;
        }
    }
}

pub(super) async fn run(common: &ClientArgs, args: &DownArgs) -> Result<(), CommandError> {
    let client = client(common, args.transfer.retries)?;
    let mut keys = keys(&client, args)?;
    let partial = args.to.join(PARTIAL);
    fs::create_dir_all(&partial).map_err(|source| CommandError::Write { path: partial.clone(), source })?;
    let journal = journal(&client, "down", &args.collection, &args.to)?;
    let tally = Tally::new(common.json, Progress::items(shown(common, &args.transfer), "down", None));
    let at_once = at_once(&args.transfer);
    let mut under_way = stream::FuturesUnordered::new();
    let mut more = true;
    let fetch = |key: String| async {
        let got = receive(&client, args, &journal, &partial, &key).await;
        (key, got)
    };
    loop {
        tokio::select! {
            key = keys.recv(), if more && under_way.len() < at_once => match key {
                Some(key) => under_way.push(fetch(key?)),
                None => more = false,
            },
            Some((key, result)) = under_way.next(), if !under_way.is_empty() => tally.tell(&key, result)?,
            else => break,
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
