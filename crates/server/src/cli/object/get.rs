//! `tidegate object get`: an object to stdout or into a file. A file gets its name when it is whole; what an interruption leaves is gone on
//! with, of the same write of the object and no other.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::super::ClientArgs;
use super::super::command::{CommandError, Interrupt, client, say};
use super::key;
use super::progress::Progress;
use super::resume::{self, DownloadNote, Place, beside};
use crate::client::object::{CollectionName, Meter, ObjectReader};
use crate::client::{Client, ClientError, printable};

/// How often an object that is replaced under its reader is begun anew.
const REPLACED_MAX: usize = 5;

/// `tidegate object get`.
#[derive(Debug, Clone, Args)]
pub struct GetArgs {
    /// The collection.
    pub collection: CollectionName,
    /// The key.
    #[arg(value_parser = key)]
    pub key: String,
    /// Write to this file (through FILE.partial, renamed when it is whole) [default: stdout].
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Only these bytes: 0-99, 100-, -50.
    #[arg(long, value_name = "FIRST-LAST", value_parser = range, allow_hyphen_values = true)]
    pub range: Option<String>,
    /// How often a broken connection is taken up again without a byte in between.
    #[arg(long, default_value_t = 10, value_name = "TIMES")]
    pub retries: usize,
    /// Show no progress.
    #[arg(long, short)]
    pub quiet: bool,
}

fn range(text: &str) -> Result<String, String> {
    let wrong = || "it must be FIRST-LAST, FIRST- or -COUNT, in bytes from 0".to_owned();
    let (first, last) = text.split_once('-').ok_or_else(wrong)?;
    let number = |text: &str| -> Result<Option<u64>, String> {
        if text.is_empty() {
            return Ok(None);
        }
        if !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        text.parse().map(Some).map_err(|_| wrong())
    };
    match (number(first)?, number(last)?) {
        (None, None) => Err(wrong()),
        (Some(first), Some(last)) if first > last => Err(wrong()),
        _ => Ok(text.to_owned()),
    }
}

/// Runs the command.
pub(super) async fn run(common: &ClientArgs, args: &GetArgs) -> Result<(), CommandError> {
    let mut interrupt = Interrupt::listen()?;
    let client = client(common, args.retries)?;
    let getting = async {
        match &args.output {
            None => to_stdout(&client, args, common.json).await,
            Some(path) => {
                let progress = Progress::bytes(!args.quiet && !common.json, "received", Some(0));
                let place = Place {
                    url: client.base().to_string(),
                    collection: args.collection.clone(),
                    key: args.key.clone(),
                };
                let got = match &args.range {
                    None if path.metadata().map_or(true, |metadata| metadata.is_file()) => {
                        let partial = beside(path, ".partial");
                        fetch(&client, &place, path, &partial, &progress).await
                    }
                    range => straight(&client, args, range.as_deref(), path, &progress).await,
                };
                progress.finish();
                let (bytes, etag) = got?;
                // Into a pipe or a device, perhaps this very output: the bytes stand for themselves.
                if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
                    return Ok(());
                }
                if common.json {
                    return say(&serde_json::json!({ "key": args.key, "bytes": bytes, "etag": etag }).to_string());
                }
                say(&format!("{bytes} bytes to {} (etag {})", path.display(), printable(&etag)))
            }
        }
    };
    tokio::select! {
        got = getting => got,
        () = interrupt.heard() => Err(CommandError::Interrupted),
    }
}

async fn to_stdout(client: &Client, args: &GetArgs, json: bool) -> Result<(), CommandError> {
    let mut reader = client.read_object(&args.collection, &args.key, args.range.as_deref()).await?;
    let shown = !args.quiet && !json && !io::stdout().is_terminal();
    let progress = Progress::bytes(shown, "received", Some(reader.left()));
    let copied = copy(&mut reader, &mut io::stdout(), &progress.meter()).await;
    progress.finish();
    copied.map(drop)
}

/// Into a file without a way back: a range, or what cannot be renamed over.
async fn straight(
    client: &Client,
    args: &GetArgs,
    range: Option<&str>,
    path: &Path,
    progress: &Progress,
) -> Result<(u64, String), CommandError> {
    let mut reader = client.read_object(&args.collection, &args.key, range).await?;
    progress.total(reader.left());
    let regular = path.metadata().map_or(true, |metadata| metadata.is_file());
    let target = if regular { beside(path, ".partial") } else { path.to_owned() };
    let opened = if regular { File::create(&target) } else { File::options().write(true).open(&target) };
    let mut file = opened.map_err(|source| CommandError::Write { path: target.clone(), source })?;
    let bytes = copy(&mut reader, &mut file, &progress.meter()).await?;
    if regular {
        std::fs::rename(&target, path).map_err(|source| CommandError::Write { path: path.to_owned(), source })?;
    }
    Ok((bytes, reader.etag().to_owned()))
}

/// An object into a file that has its name when it is whole. What is in `partial` already is gone on with, where a note says that it is of
/// the write that is there now. Gives the object's length and entity tag.
pub(super) async fn fetch(
    client: &Client,
    place: &Place,
    path: &Path,
    partial: &Path,
    progress: &Progress,
) -> Result<(u64, String), CommandError> {
    let note_path = beside(partial, ".note");
    let write = |path: &Path| {
        let path = path.to_owned();
        move |source| CommandError::Write { path, source }
    };
    for _ in 0..REPLACED_MAX {
        let (mut reader, mut file, mut at) = match go_on(client, place, partial, &note_path).await? {
            Some((reader, file, at)) => (reader, file, at),
            None => {
                let reader = client.read_object(&place.collection, &place.key, None).await?;
                let file = File::create(partial).map_err(write(partial))?;
                let note =
                    DownloadNote { place: place.clone(), etag: reader.etag().to_owned(), length: reader.length() };
                // After the file is empty, before anything is in it: a note never stands beside bytes of another write.
                resume::write(&note_path, &note).map_err(write(&note_path))?;
                (reader, file, 0)
            }
        };
        progress.total(reader.length());
        progress.at(at);
        match copy(&mut reader, &mut file, &progress.meter()).await {
            Ok(copied) => {
                at += copied;
                file.sync_all().map_err(write(partial))?;
                drop(file);
                std::fs::rename(partial, path).map_err(write(path))?;
                let _ = std::fs::remove_file(&note_path);
                return Ok((at, reader.etag().to_owned()));
            }
            // It was replaced: what is there now is begun anew.
            Err(error) if error.status() == Some(412) => {
                let _ = std::fs::remove_file(&note_path);
            }
            Err(error) => return Err(error),
        }
    }
    Err(CommandError::Precondition(format!("it was replaced {REPLACED_MAX} times while it was read")))
}

async fn go_on(
    client: &Client,
    place: &Place,
    partial: &Path,
    note_path: &Path,
) -> Result<Option<(ObjectReader, File, u64)>, CommandError> {
    let Some(note) = resume::read::<DownloadNote>(note_path).filter(|note| note.place == *place) else {
        return Ok(None);
    };
    let Ok(metadata) = std::fs::metadata(partial) else { return Ok(None) };
    let at = metadata.len();
    if at == 0 || at >= note.length {
        return Ok(None);
    }
    match client.read_object_from(&place.collection, &place.key, at, &note.etag).await {
        Ok(reader) if reader.length() == note.length => {
            let file = File::options().append(true).open(partial);
            let file = file.map_err(|source| CommandError::Write { path: partial.to_owned(), source })?;
            Ok(Some((reader, file, at)))
        }
        // What was begun is not there any more.
        Ok(_) => Ok(None),
        Err(ClientError::Refused(problem)) if matches!(problem.status, 412 | 416) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn copy(reader: &mut ObjectReader, to: &mut (dyn Write + Send), meter: &Meter) -> Result<u64, CommandError> {
    let mut bytes = 0;
    while let Some(piece) = reader.next().await? {
        to.write_all(&piece)?;
        bytes += piece.len() as u64;
        meter(i64::try_from(piece.len()).unwrap_or(i64::MAX));
    }
    to.flush()?;
    Ok(bytes)
}
