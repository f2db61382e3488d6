//! Checkpoints of stream processors, as JSON: the jobs of a store, and the checkpoints of one. The command line shows a store that it
//! opens itself by the same functions. It writes nothing, and gives no byte of a state.

use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::{Map, Value, json};
use tidegate_checkpoint::{Checkpoints, Generation, Job, Listed, Next, Positions, Rejected, StoreError};
use tidegate_core::id::Name;
use tidegate_core::{ErrorKind, Failure, Retry};

/// Jobs or checkpoints on one page.
pub const PAGE_MAX: u64 = 100;
/// On a page where nothing else is asked for.
pub const PAGE_DEFAULT: u64 = 20;
/// A page ends early when it has so many bytes; one checkpoint alone may have more.
pub const PAGE_MAX_BYTES: usize = 4 * 1_024 * 1_024;
/// Jobs whose logs are read at one time.
const IN_FLIGHT: usize = 4;

/// Why nothing was listed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointListError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nothing was ever written for this job.
    #[error("there is no job {job:?}")]
    JobNotFound {
        /// Which.
        job: Name,
    },
}

impl Failure for CheckpointListError {
    fn code(&self) -> &'static str {
        match self {
            Self::Store(error) => error.code(),
            Self::JobNotFound { .. } => "job_not_found",
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(error) => error.kind(),
            Self::JobNotFound { .. } => ErrorKind::NotFound,
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Store(error) => error.retry(),
            Self::JobNotFound { .. } => Retry::Never,
        }
    }
}

/// The jobs after `after`, by name, each with its newest checkpoint: `{"jobs":[{"job","newest","corrupt"}],"next"}`. At most `limit`
/// (1 to [`PAGE_MAX`]), fewer beyond [`PAGE_MAX_BYTES`]. Cost: one listing of all jobs, and the logs of those on the page.
///
/// # Errors
/// The store's.
pub async fn jobs(checkpoints: &Checkpoints, after: Option<&Name>, limit: u64) -> Result<Value, CheckpointListError> {
    let names = checkpoints.jobs().await?;
    let mut names = names.into_iter().filter(|name| after.is_none_or(|after| name > after));
    let wanted: Vec<Name> = names.by_ref().take(bounded(limit)).collect();
    let mut more = names.next().is_some();
    let mut found = futures::stream::iter(wanted)
        .map(|name| async move {
            let page = checkpoints.job(&name).list(None, 1).await?;
            let document = json!({
                "job": name,
                "newest": page.checkpoints.first().map(shown),
                "corrupt": page.rejected.len(),
            });
            Ok::<_, StoreError>((name, document))
        })
        .buffered(IN_FLIGHT);
    let (mut listed, mut last, mut bytes) = (Vec::new(), None, 0);
    while let Some((name, document)) = found.try_next().await? {
        bytes += length(&document);
        if bytes > PAGE_MAX_BYTES && last.is_some() {
            more = true;
            break;
        }
        listed.push(document);
        last = Some(name);
    }
    Ok(json!({"jobs": listed, "next": last.filter(|_| more)}))
}

/// The checkpoints of a job below `before`, newest first, damaged ones in their place: `{"job","checkpoints":[...],"next"}`, where `next`
/// is the `before` of the next page. At most `limit` (1 to [`PAGE_MAX`]), fewer beyond [`PAGE_MAX_BYTES`]. Cost: reads the job's log.
///
/// # Errors
/// The store's, or that there is no such job.
pub async fn checkpoints(job: &Job, before: Option<Generation>, limit: u64) -> Result<Value, CheckpointListError> {
    let limit = bounded(limit);
    let page = job.list(before, limit).await?;
    let below = |rejected: &&Rejected| before.is_none_or(|before| rejected.generation < before);
    let mut found: Vec<(Generation, Value)> =
        page.checkpoints.iter().map(|listed| (listed.checkpoint.id.generation, shown(listed))).collect();
    found.extend(page.rejected.iter().filter(below).map(|rejected| (rejected.generation, damaged(job, rejected))));
    if found.is_empty() && !job.exists().await? {
        return Err(CheckpointListError::JobNotFound { job: job.name().clone() });
    }
    found.sort_by_key(|(generation, _)| std::cmp::Reverse(*generation));
    let mut more = page.before.is_some() || found.len() > limit;
    let (mut listed, mut last, mut bytes) = (Vec::new(), None, 0);
    for (generation, document) in found.into_iter().take(limit) {
        bytes += length(&document);
        if bytes > PAGE_MAX_BYTES && last.is_some() {
            more = true;
            break;
        }
        listed.push(document);
        last = Some(generation);
    }
    Ok(json!({"job": job.name(), "checkpoints": listed, "next": last.filter(|_| more)}))
}

fn bounded(limit: u64) -> usize {
    usize::try_from(limit.clamp(1, PAGE_MAX)).expect("it is at most PAGE_MAX")
}

fn length(document: &Value) -> usize {
    serde_json::to_vec(document).map_or(0, |bytes| bytes.len())
}

fn shown(listed: &Listed) -> Value {
    let checkpoint = &listed.checkpoint;
    let manifest = &checkpoint.manifest;
    let states: Map<String, Value> =
        manifest.states.iter().map(|(name, state)| (name.to_string(), state.length().into())).collect();
    let parents: Vec<Value> = manifest
        .parents
        .iter()
        .map(|parent| {
            json!({
                "generation": parent.generation,
                "epoch": parent.epoch.get(),
                "created": parent.created,
                "savepoint": parent.savepoint,
            })
        })
        .collect();
    json!({
        "generation": checkpoint.id.generation,
        "epoch": checkpoint.id.epoch.get(),
        "state": if listed.committed { "committed" } else { "complete" },
        "created": checkpoint.id.created,
        "watermark": manifest.watermark,
        "positions": positions(&manifest.positions),
        "size_bytes": manifest.state_bytes().saturating_add(checkpoint.manifest_bytes),
        "states": states,
        "sinks": manifest.pending.keys().collect::<Vec<_>>(),
        "parents": parents,
        "savepoint": manifest.savepoint,
    })
}

/// The next to read: an offset is a number, a position of a data system outside a text.
fn positions(positions: &Positions) -> Map<String, Value> {
    positions
        .iter()
        .map(|(source, partitions)| {
            let partitions: Map<String, Value> = partitions
                .iter()
                .map(|(partition, next)| {
                    let next = match next {
                        Next::Offset(offset) => Value::from(offset.0),
                        Next::Source(position) => Value::from(&*position.0),
                    };
                    (partition.0.to_string(), next)
                })
                .collect();
            (source.to_string(), partitions.into())
        })
        .collect()
}

fn damaged(job: &Job, rejected: &Rejected) -> Value {
    let damage = &rejected.damage;
    tracing::debug!(job = %job.name(), object = %damage.object, "a damaged checkpoint was listed");
    json!({
        "generation": rejected.generation,
        "state": "corrupt",
        "sinks_committed": rejected.committed,
        "object": damage.object,
        "code": damage.code(),
        "detail": damage.kind.to_string(),
    })
}
