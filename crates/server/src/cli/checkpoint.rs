//! `tidegate checkpoint`: checkpoints of stream processors, at a server or in a store that is opened here. It removes what it is told to
//! and nothing else, and never a job's last complete checkpoint.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tidegate_checkpoint::{Checkpoints, Damage, Generation, Job, ReadError, Removed, StoreError};
use tidegate_core::id::Name;
use tidegate_core::{ErrorKind, Failure};
use tidegate_transport_http::checkpoint::{self as listing, CheckpointListError, PAGE_MAX};

use super::command::{CommandError, client, name, run as run_command, say, say_json};
use super::stream::read;
use super::{ClientArgs, Exit};
use crate::client::printable;
use crate::config::{Cold, Flags, Inputs, directory_of, load, process_env};
use crate::output::grid;
use crate::serve::CheckpointStoreError;
use crate::serve::checkpoint::{open, place};

mod error;
mod show;

pub(super) use error::Failed;

/// What can be done with checkpoints.
#[derive(Debug, Subcommand)]
#[non_exhaustive]
pub enum CheckpointCommand {
    /// List the jobs with their newest checkpoints, or the checkpoints of one job.
    Ls {
        /// The job.
        #[arg(value_parser = name)]
        job: Option<String>,
        /// Where.
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Show a checkpoint: its positions, states, parents.
    Show {
        /// The job.
        #[arg(value_parser = name)]
        job: String,
        /// Which of its checkpoints [default: the newest].
        generation: Option<u64>,
        /// Where.
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Read every byte of checkpoints and name what is damaged: of all jobs, of one, or one checkpoint. On a store.
    Verify {
        /// The job.
        #[arg(value_parser = name)]
        job: Option<String>,
        /// Which of its checkpoints.
        #[arg(requires = "job")]
        generation: Option<u64>,
        /// Where.
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Remove a checkpoint: a savepoint, or a damaged one; never the last complete one. On a store.
    Rm {
        /// The job.
        #[arg(value_parser = name)]
        job: String,
        /// Which of its checkpoints.
        generation: u64,
        /// Where.
        #[command(flatten)]
        store: StoreArgs,
    },
}

/// A store that is opened here, in place of a server.
#[derive(Debug, Clone, Args)]
#[group(multiple = false)]
pub struct StoreArgs {
    /// Open this store instead of asking a server: file:///DIRECTORY.
    #[arg(long, value_name = "URL")]
    pub store: Option<String>,
    /// Open the store of this configuration (checkpoints.store) instead of asking a server.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

impl StoreArgs {
    /// The store, if one is named.
    fn opened(&self) -> Result<Option<Checkpoints>, CommandError> {
        let store = match (&self.store, &self.config) {
            (Some(url), _) => {
                let Some(path) = directory_of(url) else {
                    let bucket = "say --config FILE, whose [checkpoints] names the bucket and who asks";
                    return Err(CommandError::Argument(if url.starts_with("s3://") {
                        format!("--store takes directories; for a bucket {bucket}")
                    } else {
                        format!("--store must be file:// and the absolute path of a directory, not {url:?}")
                    }));
                };
                Cold::Directory(path)
            }
            (None, Some(file)) => {
                let inputs = Inputs { file: Some(file.as_path()), env: process_env(), flags: Flags::default() };
                load(&inputs).map_err(Failed::Config)?.config.checkpoints
            }
            (None, None) => return Ok(None),
        };
        let opened = open(&store).map_err(|source| Failed::Open { place: place(&store), source: Box::new(source) })?;
        Ok(Some(opened))
    }

    fn must_be_open(&self) -> Result<Checkpoints, CommandError> {
        self.opened()?.ok_or(CommandError::Usage(
            "verify and rm work on a store itself: say --store file:///DIRECTORY or --config FILE",
        ))
    }
}

/// Runs the command.
pub(super) fn run(args: &ClientArgs, command: &CheckpointCommand) -> Exit {
    run_command(args.json, async {
        match command {
            CheckpointCommand::Ls { job: None, store } => list_jobs(args, store).await,
            CheckpointCommand::Ls { job: Some(job), store } => list(args, store, job).await,
            CheckpointCommand::Show { job, generation, store } => show_one(args, store, job, *generation).await,
            CheckpointCommand::Verify { job, generation, store } => {
                verify(args.json, &store.must_be_open()?, job.as_deref(), generation.map(Generation)).await
            }
            CheckpointCommand::Rm { job, generation, store } => {
                remove(args.json, &job_of(&store.must_be_open()?, job), Generation(*generation)).await
            }
        }
    })
}

/// The server's answer to a request, or the store's own.
enum Place {
    Server(Box<crate::client::Client>),
    Store(Checkpoints),
}

impl Place {
    fn of(args: &ClientArgs, store: &StoreArgs) -> Result<Self, CommandError> {
        Ok(match store.opened()? {
            Some(checkpoints) => Self::Store(checkpoints),
            None => Self::Server(Box::new(client(args, 1)?)),
        })
    }

    async fn jobs(&self, after: Option<&str>) -> Result<Value, CommandError> {
        match self {
            Self::Server(client) => Ok(read(&client.checkpoint_jobs(after, PAGE_MAX).await?)?),
            Self::Store(store) => {
                let after = after.map(name_of);
                Ok(listing::jobs(store, after.as_ref(), PAGE_MAX).await.map_err(Failed::List)?)
            }
        }
    }

    async fn checkpoints(&self, job: &str, before: Option<u64>, limit: u64) -> Result<Value, CommandError> {
        match self {
            Self::Server(client) => Ok(read(&client.checkpoints(job, before, limit).await?)?),
            Self::Store(store) => {
                let job = job_of(store, job);
                Ok(listing::checkpoints(&job, before.map(Generation), limit).await.map_err(Failed::List)?)
            }
        }
    }
}

fn name_of(text: &str) -> Name {
    Name::new(text).expect("the command line took it as a name")
}

fn job_of(checkpoints: &Checkpoints, job: &str) -> Job {
    checkpoints.job(&name_of(job))
}

/// Prints a document as one line of JSON.
fn say_document(document: &Value) -> Result<(), CommandError> {
    say_json(document.to_string().as_bytes())
}

/// The items of a page, moved out of it.
fn items(page: &mut Value, key: &str) -> Vec<Value> {
    match page[key].take() {
        Value::Array(items) => items,
        _ => Vec::new(),
    }
}

async fn list_jobs(args: &ClientArgs, store: &StoreArgs) -> Result<(), CommandError> {
    let place = Place::of(args, store)?;
    let (mut jobs, mut after) = (Vec::new(), None::<String>);
    loop {
        let mut page = place.jobs(after.as_deref()).await?;
        jobs.append(&mut items(&mut page, "jobs"));
        match page["next"].as_str() {
            Some(next) if after.as_deref() != Some(next) => after = Some(next.to_owned()),
            _ => break,
        }
    }
    if args.json { say_document(&json!({"jobs": jobs})) } else { say(&show::jobs(&jobs)) }
}

async fn list(args: &ClientArgs, store: &StoreArgs, job: &str) -> Result<(), CommandError> {
    let place = Place::of(args, store)?;
    let (mut checkpoints, mut before) = (Vec::new(), None);
    loop {
        let mut page = place.checkpoints(job, before, PAGE_MAX).await?;
        checkpoints.append(&mut items(&mut page, "checkpoints"));
        match page["next"].as_u64() {
            Some(next) if before != Some(next) => before = Some(next),
            _ => break,
        }
    }
    if args.json {
        return say_document(&json!({"job": job, "checkpoints": checkpoints}));
    }
    say(&show::checkpoints(&checkpoints))
}

async fn show_one(
    args: &ClientArgs,
    store: &StoreArgs,
    job: &str,
    generation: Option<u64>,
) -> Result<(), CommandError> {
    let place = Place::of(args, store)?;
    // The newest one that is not above it.
    let before = generation.and_then(|generation| generation.checked_add(1));
    let mut page = place.checkpoints(job, before, 1).await?;
    let found = items(&mut page, "checkpoints").into_iter().next();
    let found = found.filter(|found| generation.is_none_or(|wanted| found["generation"].as_u64() == Some(wanted)));
    let Some(found) = found else {
        return Err(Failed::NoCheckpoint { job: job.to_owned(), generation }.into());
    };
    if args.json { say_document(&found) } else { say(&show::checkpoint(job, &found)) }
}

/// Reads every byte, and says of each checkpoint what is damaged.
async fn verify(
    json: bool,
    store: &Checkpoints,
    job: Option<&str>,
    generation: Option<Generation>,
) -> Result<(), CommandError> {
    let (mut documents, mut damaged) = (Vec::new(), 0);
    let jobs = match job {
        Some(job) => vec![name_of(job)],
        None => {
            for folder in store.nameless().await.map_err(Failed::Store)? {
                damaged += 1;
                if !json {
                    say(&show::nameless(&folder))?;
                }
                let damages =
                    json!([{"object": folder, "code": "checkpoint_job_unreadable", "detail": show::NAMELESS}]);
                documents.push(json!({"job": null, "generation": null, "ok": false, "damages": damages}));
            }
            store.jobs().await.map_err(Failed::Store)?
        }
    };
    for job in &jobs {
        let job = store.job(job);
        for generation in generations(&job, generation).await? {
            let damages = match job.verify(generation).await {
                Ok(damages) => damages,
                // Retention took it since it was listed.
                Err(ReadError::NotFound { .. }) if documents.len() + jobs.len() > 1 => continue,
                Err(error) => return Err(Failed::Read(error).into()),
            };
            damaged += u64::from(!damages.is_empty());
            if !json {
                say(&show::verified(job.name().as_str(), generation, &damages))?;
            }
            documents.push(json!({
                "job": job.name(),
                "generation": generation,
                "ok": damages.is_empty(),
                "damages": damages.iter().map(document).collect::<Vec<_>>(),
            }));
        }
    }
    let of = documents.len() as u64;
    if json {
        say_document(&json!({"verified": documents, "corrupt": damaged}))?;
    } else if of == 0 {
        say("there is no checkpoint")?;
    }
    if damaged > 0 { Err(Failed::Damaged { damaged, of }.into()) } else { Ok(()) }
}

/// Which checkpoints of a job are verified: those that are listed, damaged ones too.
async fn generations(job: &Job, only: Option<Generation>) -> Result<Vec<Generation>, CommandError> {
    if let Some(only) = only {
        return Ok(vec![only]);
    }
    let (mut found, mut before) = (Vec::new(), None);
    loop {
        let page = job.list(before, tidegate_checkpoint::job::PAGE_MAX).await.map_err(Failed::Store)?;
        found.extend(page.checkpoints.iter().map(|listed| listed.checkpoint.id.generation));
        if before.is_none() {
            found.extend(page.rejected.iter().map(|rejected| rejected.generation));
        }
        before = page.before;
        if before.is_none() {
            break;
        }
    }
    if found.is_empty() && !job.exists().await.map_err(Failed::Store)? {
        return Err(Failed::List(CheckpointListError::JobNotFound { job: job.name().clone() }).into());
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}

fn document(damage: &Damage) -> Value {
    json!({"object": damage.object, "code": damage.code(), "detail": damage.kind.to_string()})
}

async fn remove(json: bool, job: &Job, generation: Generation) -> Result<(), CommandError> {
    match job.remove(generation).await.map_err(Failed::Read)? {
        Removed::Gone if json => say_document(&json!({"job": job.name(), "removed": generation})),
        Removed::Gone => Ok(()),
        Removed::Kept => Err(Failed::Kept { job: job.name().clone(), generation }.into()),
    }
}
