//! `tidegate object put`: a file or a pipe becomes an object. A large file goes in parts, several at a time; after an interruption the
//! same command sends the parts that are missing.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tidegate_batch::Expiry;
use tidegate_batch::service::PART_MAX_COUNT;

use super::super::ClientArgs;
use super::super::command::{CommandError, Interrupt, bytes, client, say};
use super::progress::Progress;
use super::resume::{self, Place, UploadNote, Uploading, modified_ns};
use crate::client::object::{
    CollectionName, Meter, ObjectWritten, PartInfo, Piece, PutSpec, UploadRef, WriteCondition, check_key,
};
use crate::client::{Client, ClientError, printable};

/// Parts that are on their way at one time.
const PARTS_AT_ONCE: usize = 4;

/// `tidegate object put`.
#[derive(Debug, Clone, Args)]
#[command(override_usage = "tidegate object put [OPTIONS] <COLLECTION> [KEY] <FILE|->")]
pub struct PutArgs {
    /// The collection.
    pub collection: CollectionName,
    /// The key, and the file or `-` for stdin. Without a key the server makes one.
    #[arg(required = true, num_args = 1..=2, value_name = "[KEY] FILE|-")]
    pub what: Vec<OsString>,
    /// The media type [default: by the file's name].
    #[arg(long, value_name = "TYPE")]
    pub content_type: Option<String>,
    /// The coding that the bytes are in, such as gzip; nothing is coded or decoded here.
    #[arg(long, value_name = "CODING")]
    pub content_encoding: Option<String>,
    /// How long it lives: never, ttl:30s (after it was written), tti:1h (after it was last used).
    #[arg(long, value_name = "EXPIRY", value_parser = expiry)]
    pub expires: Option<String>,
    /// A pair of your own. May be given again.
    #[arg(long = "meta", value_name = "NAME=VALUE", value_parser = pair)]
    pub meta: Vec<(String, String)>,
    /// Only where nothing is there.
    #[arg(long, conflicts_with = "if_match")]
    pub if_absent: bool,
    /// Only where this write of it is there.
    #[arg(long, value_name = "ETAG")]
    pub if_match: Option<String>,
    /// A larger file goes in parts of this size (larger ones where there would be more than 1,000).
    #[arg(long, default_value = "64MiB", value_name = "BYTES", value_parser = part_size)]
    pub part_size: u64,
    /// How often a request is sent again when no answer comes.
    #[arg(long, default_value_t = 10, value_name = "TIMES")]
    pub retries: usize,
    /// Show no progress.
    #[arg(long, short)]
    pub quiet: bool,
}

fn expiry(text: &str) -> Result<String, String> {
    Expiry::parse(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if reqwest::header::HeaderName::try_from(name).is_ok() => {
            Ok((name.to_owned(), value.to_owned()))
        }
        _ => Err("it must be NAME=VALUE, the name of letters, digits and dashes".to_owned()),
    }
}

fn part_size(text: &str) -> Result<u64, String> {
    bytes(text).and_then(|size| if size >= 64 * 1024 { Ok(size) } else { Err("a part has at least 64KiB".to_owned()) })
}

/// The media type of a file, by the end of its name.
pub(super) fn content_type(path: &Path) -> &'static str {
    let extension = path.extension().map(|end| end.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    match extension.as_str() {
        "avif" => "image/avif",
        "css" => "text/css",
        "csv" => "text/csv",
        "gif" => "image/gif",
        "gz" => "application/gzip",
        "htm" | "html" => "text/html",
        "jpeg" | "jpg" => "image/jpeg",
        "js" | "mjs" => "text/javascript",
        "json" => "application/json",
        "log" | "txt" => "text/plain",
        "md" => "text/markdown",
        "mp3" => "audio/mpeg",
        "mp4" => "video/mp4",
        "ndjson" => "application/x-ndjson",
        "parquet" => "application/vnd.apache.parquet",
        "pdf" => "application/pdf",
        "png" => "image/png",
        "svg" => "image/svg+xml",
        "tar" => "application/x-tar",
        "toml" => "application/toml",
        "wasm" => "application/wasm",
        "webp" => "image/webp",
        "xml" => "application/xml",
        "yaml" | "yml" => "application/yaml",
        "zip" => "application/zip",
        "zst" => "application/zstd",
        _ => "application/octet-stream",
    }
}

impl PutArgs {
    fn target(&self) -> Result<(Option<&str>, PathBuf), CommandError> {
        let (key, file) = match self.what.as_slice() {
            [file] => (None, file),
            [key, file] => {
                let key = key.to_str().ok_or_else(|| CommandError::Argument("the key is no UTF-8".to_owned()))?;
                check_key(key).map_err(CommandError::Argument)?;
                (Some(key), file)
            }
            _ => return Err(CommandError::Usage("it is COLLECTION [KEY] FILE")),
        };
        Ok((key, file.into()))
    }

    fn spec(&self, file: &Path) -> PutSpec {
        let content_type = self.content_type.clone().unwrap_or_else(|| content_type(file).to_owned());
        let condition = match &self.if_match {
            _ if self.if_absent => WriteCondition::Absent,
            Some(etag) => WriteCondition::Is(etag.clone()),
            None => WriteCondition::Always,
        };
        PutSpec {
            content_type: Some(content_type),
            content_encoding: self.content_encoding.clone(),
            expires: self.expires.clone(),
            meta: self.meta.clone(),
            condition,
        }
    }
}

/// Runs the command.
pub(super) async fn run(common: &ClientArgs, args: &PutArgs) -> Result<(), CommandError> {
    let mut interrupt = Interrupt::listen()?;
    let client = client(common, args.retries)?;
    let (key, file) = args.target()?;
    let spec = args.spec(&file);
    let putting = async {
        if file.as_os_str() == "-" {
            let progress = Progress::bytes(!args.quiet && !common.json, "sent", None);
            let meter = progress.meter();
            let written = client.put_object_from(&args.collection, key, tokio::io::stdin(), &spec, &meter).await;
            progress.finish();
            return written.map_err(CommandError::once);
        }
        let read = |source| CommandError::Input { path: file.clone(), source };
        let metadata = std::fs::metadata(&file).map_err(read)?;
        if metadata.is_dir() {
            return Err(CommandError::Usage("it is a folder; `tidegate object batch up` takes folders"));
        }
        let length = metadata.is_file().then_some(metadata.len());
        let progress = Progress::bytes(!args.quiet && !common.json, "sent", length);
        let meter = progress.meter();
        let written = match (length, key) {
            // A pipe, say.
            (None, _) => {
                let reader = tokio::fs::File::open(&file).await.map_err(read)?;
                client.put_object_from(&args.collection, key, reader, &spec, &meter).await.map_err(CommandError::once)
            }
            (Some(length), Some(key)) if length > args.part_size => {
                let upload = Upload { client: &client, collection: &args.collection, key, file: &file, spec: &spec };
                upload.run(length, modified_ns(&metadata), args.part_size, &meter, &progress).await
            }
            (Some(length), _) => {
                let piece = Piece { path: file.clone(), from: 0, length };
                let written = client.put_object(&args.collection, key, &piece, &spec, &meter).await;
                written.map_err(|error| if key.is_none() { CommandError::once(error) } else { error.into() })
            }
        };
        progress.finish();
        written
    };
    let written = tokio::select! {
        written = putting => written?,
        () = interrupt.heard() => return Err(CommandError::Interrupted),
    };
    tell(&args.collection, &written, common.json)
}

fn tell(collection: &CollectionName, written: &ObjectWritten, json: bool) -> Result<(), CommandError> {
    let ObjectWritten { created, info } = written;
    if json {
        let mut document = serde_json::to_value(info).expect("strings and numbers are JSON");
        document["replaced"] = (!created).into();
        return say(&document.to_string());
    }
    let verb = if *created { "created" } else { "replaced" };
    say(&format!(
        "{verb} {collection}/{} ({} bytes, {}, etag {})",
        printable(&info.key),
        info.length,
        printable(&info.tier),
        printable(&info.etag)
    ))
}

/// A large file on its way, in parts.
pub(super) struct Upload<'a> {
    pub(super) client: &'a Client,
    pub(super) collection: &'a CollectionName,
    pub(super) key: &'a str,
    pub(super) file: &'a Path,
    pub(super) spec: &'a PutSpec,
}

impl Upload<'_> {
    pub(super) async fn run(
        &self,
        length: u64,
        modified_ns: u64,
        part_size: u64,
        meter: &Meter,
        progress: &Progress,
    ) -> Result<ObjectWritten, CommandError> {
        let Self { client, collection, key, file, spec } = *self;
        if spec.condition == WriteCondition::Absent && client.object_head(collection, key).await?.is_some() {
            return Err(CommandError::Precondition("an object is there already; nothing was sent".to_owned()));
        }
        let part_bytes = part_size.max(length.div_ceil(u64::from(PART_MAX_COUNT)));
        let place = Place { url: client.base().to_string(), collection: collection.clone(), key: key.to_owned() };
        let described =
            format!("{:?} {:?} {:?} {:?}", spec.content_type, spec.content_encoding, spec.expires, spec.meta);
        let note_path = UploadNote::path(file, &place);
        let uploading = Uploading { place, length, modified_ns, part_bytes, described };

        let mut there = Vec::new();
        let mut id = None;
        if let Some(note) = UploadNote::read(&note_path, &uploading) {
            let upload = UploadRef { collection, key, id: &note.upload };
            if let Some(parts) = client.upload_parts(upload).await? {
                there = parts;
                id = Some(note.upload);
            }
        }
        let id = match id {
            Some(id) => id,
            None => {
                let id = client.begin_upload(collection, key, spec).await?;
                // Without the note the upload goes on, only not after an interruption.
                if let Err(error) = resume::write(&note_path, &UploadNote { uploading, upload: id.clone() }) {
                    progress.note(&format!(
                        "{} cannot be written ({error}): an interruption would start anew",
                        note_path.display()
                    ));
                }
                id
            }
        };
        let upload = UploadRef { collection, key, id: &id };
        let count = u32::try_from(length.div_ceil(part_bytes)).unwrap_or(u32::MAX);
        let piece = |number: u32| {
            let from = u64::from(number - 1) * part_bytes;
            Piece { path: file.to_owned(), from, length: part_bytes.min(length - from) }
        };
        there.retain(|part| (1..=count).contains(&part.part) && part.length == piece(part.part).length);
        if !there.is_empty() {
            let bytes: u64 = there.iter().map(|part| part.length).sum();
            meter(i64::try_from(bytes).unwrap_or(i64::MAX));
            progress.note(&format!("going on: {} of {count} parts are there", there.len()));
        }
        let missing: Vec<u32> = (1..=count).filter(|number| !there.iter().any(|part| part.part == *number)).collect();
        let sent: Vec<PartInfo> = stream::iter(missing)
            .map(|number| async move { client.put_part(upload, number, &piece(number), meter).await })
            .buffer_unordered(PARTS_AT_ONCE)
            .try_collect()
            .await?;
        there.extend(sent);
        there.sort_unstable_by_key(|part| part.part);
        self.unchanged(length, modified_ns)?;
        let completed = client.complete_upload(upload, &there, spec).await;
        // Done, or refused for good: there is nothing to go on with.
        if let Ok(_) | Err(ClientError::Refused(_)) = &completed {
            let _ = std::fs::remove_file(&note_path);
        }
        if let Err(ClientError::Refused(_)) = &completed {
            // What stays is cleared away by the server in time.
            let _ = client.abort_upload(upload).await;
        }
        Ok(completed?)
    }

    /// A file that is written to while it is sent becomes no object.
    fn unchanged(&self, length: u64, modified: u64) -> Result<(), CommandError> {
        let refuse = |source| CommandError::Input { path: self.file.to_owned(), source };
        let metadata = std::fs::metadata(self.file).map_err(refuse)?;
        if (metadata.len(), modified_ns(&metadata)) == (length, modified) {
            Ok(())
        } else {
            Err(refuse(io::Error::other("the file was changed while it was sent; nothing was stored")))
        }
    }
}
