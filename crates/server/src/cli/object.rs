//! `tidegate object`: objects at a server. Lists and removes; writing, reading and whole folders are beside it.

use clap::{Args, Subcommand};

use super::command::{CommandError, client, run as run_command, say};
use super::{ClientArgs, Exit, report};
use crate::client::object::{BATCH_MAX_COUNT, CollectionName, ObjectInfo, check_key};
use crate::client::{Client, ClientError, printable};

mod batch;
mod folder;
mod get;
mod journal;
mod progress;
mod put;
mod resume;

pub use batch::{BatchCommand, DownArgs, TransferArgs, UpArgs};
pub use get::GetArgs;
pub use put::PutArgs;

/// What can be done with objects. A collection is USECASE/SCOPES, such as photos/_ or photos/org=17;project=42.
#[derive(Debug, Subcommand)]
#[non_exhaustive]
pub enum ObjectCommand {
    /// Write an object from a file or from stdin.
    ///
    /// A file that has a key goes on after an interruption: the same command sends what is missing. What comes from stdin or a pipe is sent in
    /// one request and once: when that breaks off, nothing is stored and it must be given again. Without a key nothing is sent again either
    /// while it is unknown whether it arrived.
    Put(PutArgs),
    /// Read an object. Goes on by itself where the connection dropped.
    Get(GetArgs),
    /// Remove objects, many in one request. One that is not there is no failure.
    Rm(RemoveArgs),
    /// List a collection.
    Ls(ListArgs),
    /// Many objects at once: a folder up, a list down. A second run does what is left.
    Batch {
        /// Which way.
        #[command(subcommand)]
        command: BatchCommand,
    },
}

/// `tidegate object rm`.
#[derive(Debug, Clone, Args)]
pub struct RemoveArgs {
    /// The collection.
    pub collection: CollectionName,
    /// The keys.
    #[arg(required = true, value_name = "KEY", value_parser = key)]
    pub keys: Vec<String>,
    /// How often a request is sent again when no answer comes.
    #[arg(long, default_value_t = 10, value_name = "TIMES")]
    pub retries: usize,
}

/// `tidegate object ls`.
#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    /// The collection.
    pub collection: CollectionName,
    /// Only keys that begin with this.
    #[arg(long, default_value = "", value_name = "TEXT", allow_hyphen_values = true)]
    pub prefix: String,
    /// How often a request is sent again when no answer comes.
    #[arg(long, default_value_t = 10, value_name = "TIMES")]
    pub retries: usize,
}

fn key(text: &str) -> Result<String, String> {
    check_key(text).map(|()| text.to_owned())
}

/// Runs the command.
pub(super) fn run(args: &ClientArgs, command: &ObjectCommand) -> Exit {
    run_command(args.json, async {
        match command {
            ObjectCommand::Put(put) => put::run(args, put).await,
            ObjectCommand::Get(get) => get::run(args, get).await,
            ObjectCommand::Rm(remove) => self::remove(&client(args, remove.retries)?, remove, args.json).await,
            ObjectCommand::Ls(list) => self::list(&client(args, list.retries)?, list, args.json).await,
            ObjectCommand::Batch { command } => batch::run(args, command).await,
        }
    })
}

/// One by its own request, many in batches. What fails holds up nothing and is told by name.
async fn remove(client: &Client, args: &RemoveArgs, json: bool) -> Result<(), CommandError> {
    let removed = |key: &str| {
        if json {
            say(&serde_json::json!({ "removed": key }).to_string())
        } else {
            say(&format!("removed {}", printable(key)))
        }
    };
    if let [key] = args.keys.as_slice() {
        client.remove_object(&args.collection, key).await?;
        return removed(key);
    }
    let mut failed = 0;
    for keys in args.keys.chunks(BATCH_MAX_COUNT) {
        for (key, outcome) in keys.iter().zip(client.remove_batch(&args.collection, keys).await?) {
            match outcome {
                Ok(()) => removed(key)?,
                Err(problem) => {
                    failed += 1;
                    let error = ClientError::Refused(problem);
                    let (code, message) = (error.code(), report::words(&error));
                    if json {
                        say(&serde_json::json!({ "failed": key, "code": code, "message": message }).to_string())?;
                    } else {
                        eprintln!("failed: {}: {}", printable(key), message.replace('\n', " "));
                    }
                }
            }
        }
    }
    match failed {
        0 => Ok(()),
        failed => Err(CommandError::Items { failed, items: args.keys.len() as u64 }),
    }
}

/// Prints page by page: a listing of any length takes the memory of one page.
async fn list(client: &Client, args: &ListArgs, json: bool) -> Result<(), CommandError> {
    let mut pages = Pages::new(client, &args.collection, &args.prefix);
    let mut head = !json;
    while let Some(objects) = pages.next().await? {
        let mut text = String::new();
        if std::mem::take(&mut head) {
            text.push_str(&line("bytes", "tier", "created", "key"));
        }
        for object in &objects {
            if json {
                text.push_str(&serde_json::to_string(object).expect("strings and numbers are JSON"));
                text.push('\n');
            } else {
                text.push_str(&line(&object.length.to_string(), &object.tier, &object.created, &object.key));
            }
        }
        if !text.is_empty() {
            say(&text)?;
        }
    }
    Ok(())
}

/// The key stands last and whole, however long it is; nothing in it commands the terminal or breaks the line.
fn line(length: &str, tier: &str, created: &str, key: &str) -> String {
    let key: String = key.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    format!("{length:>15}  {tier:<4}  {created:<24}  {key}\n")
}

/// The pages of a listing.
struct Pages<'a> {
    client: &'a Client,
    collection: &'a CollectionName,
    prefix: &'a str,
    after: Option<String>,
    ended: bool,
}

impl<'a> Pages<'a> {
    fn new(client: &'a Client, collection: &'a CollectionName, prefix: &'a str) -> Self {
        Self { client, collection, prefix, after: None, ended: false }
    }

    async fn next(&mut self) -> Result<Option<Vec<ObjectInfo>>, CommandError> {
        if self.ended {
            return Ok(None);
        }
        let page = self.client.objects(self.collection, self.prefix, self.after.as_deref()).await?;
        self.ended = page.next.is_none();
        self.after = page.next;
        Ok(Some(page.objects))
    }
}
