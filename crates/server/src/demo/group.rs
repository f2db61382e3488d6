//! The scene of the consumer group: two members as processes of their own share the work, one is killed with SIGKILL in the
//! middle of it, the other takes its partitions over, and every record is accounted for.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use rusqlite::Connection;
use serde::Deserialize;
use tidegate_core::system::OsEntropy;

use super::narrator::{Narrator, count, rate, time};
use super::{DemoError, Scene, Stage, promise};
use crate::client::change::{GroupInfo, GroupSpec, StreamSpec};
use crate::client::{ClientError, Producer};

const STREAM: &str = "places/changes";
const GROUP: &str = "workers";
const PARTITIONS: u32 = 4;
/// A member that is silent for so long is gone.
const SESSION_MS: u64 = 1_500;
/// Above the session: what the group and the other member need to notice and to read, on a busy machine too.
const TAKE_OVER_MARGIN: Duration = Duration::from_secs(5);
const RECORDS: u32 = 12_000;
const BATCH: usize = 200;
/// Between two batches: the work is to last longer than a session.
const PACE: Duration = Duration::from_millis(50);
/// Between two looks at the group.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The scene.
pub(super) struct GroupScene;

/// A record that a member printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Printed {
    partition: u32,
    offset: u64,
    id: u64,
    at: Instant,
}

/// A member: `tidegate group consume` in a process of its own. It ends with this.
struct MemberProcess {
    child: Child,
    printed: Arc<Mutex<Vec<Printed>>>,
    reader: Option<std::thread::JoinHandle<()>>,
}

#[derive(Deserialize)]
struct Line {
    record: LineRecord,
}

#[derive(Deserialize)]
struct LineRecord {
    partition: u32,
    offset: u64,
    value: Place,
}

#[derive(Deserialize)]
struct Place {
    id: u64,
}

impl MemberProcess {
    fn start(stage: &Stage, name: &str) -> Result<Self, DemoError> {
        let binary = std::env::current_exe().map_err(DemoError::Member)?;
        let mut child = Command::new(binary)
            .args(["group", "consume", STREAM, GROUP, "--client", name, "--batch-records", "100", "--json"])
            .args(["--url", stage.url.as_str()])
            .env_remove("TIDEGATE_TOKEN")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(DemoError::Member)?;
        let printed: Arc<Mutex<Vec<Printed>>> = Arc::default();
        let (seen, stdout) = (Arc::clone(&printed), child.stdout.take());
        let reader = std::thread::spawn(move || {
            let Some(stdout) = stdout else { return };
            // A line that was cut by the kill is no record, and neither is one that is none.
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Ok(Line { record }) = serde_json::from_str(&line) {
                    let LineRecord { partition, offset, value } = record;
                    seen.lock().push(Printed { partition, offset, id: value.id, at: Instant::now() });
                }
            }
        });
        Ok(Self { child, printed, reader: Some(reader) })
    }

    /// SIGKILL: it says nothing to anybody any more. Gives what it had printed.
    fn kill(&mut self) -> Result<Vec<Printed>, DemoError> {
        self.child.kill().map_err(DemoError::Member)?;
        self.child.wait().map_err(DemoError::Member)?;
        if let Some(reader) = self.reader.take() {
            promise("the member's output can be read", true, reader.join().is_ok())?;
        }
        Ok(self.printed.lock().clone())
    }
}

impl Drop for MemberProcess {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The changes to publish: a line of NDJSON each.
fn changes(stage: &Stage) -> Result<Vec<String>, DemoError> {
    let work = || -> rusqlite::Result<_> {
        let database = Connection::open(&stage.database)?;
        let mut select = database.prepare(
            "select json_object('key', id, 'op', 'update', 'value', json_object('id', id, 'name', name, 'population', population))
             from city order by population desc, id limit ?1",
        )?;
        let rows = select.query_map([RECORDS], |row| row.get::<_, String>(0))?;
        rows.collect()
    };
    // A short read: blocking this one task for it is no harm.
    work().map_err(DemoError::Writer)
}

/// What was acknowledged: the offsets by partition, from the first to the one after the last.
type Acknowledged = BTreeMap<u32, (u64, u64)>;

/// Publishes all changes at a steady pace.
async fn publish(mut producer: Producer, changes: Vec<String>) -> Result<Acknowledged, ClientError> {
    let mut acknowledged = Acknowledged::new();
    let mut pace = tokio::time::interval(PACE);
    for batch in changes.chunks(BATCH) {
        pace.tick().await;
        let body = Bytes::from(batch.join("\n") + "\n");
        let done = producer.publish(&body, batch.len() as u64).await?;
        for range in done.ranges.into_iter().flatten() {
            acknowledged.entry(range.partition).or_insert((range.base, range.base)).1 = range.next;
        }
    }
    Ok(acknowledged)
}

async fn group(stage: &Stage) -> Result<GroupInfo, DemoError> {
    let body = stage.client.group(STREAM, GROUP).await?;
    Ok(serde_json::from_slice(&body).map_err(ClientError::Answer)?)
}

/// Waits until something is so of the group, or of what was printed; what is promised to become so and does not ends the demo.
async fn until(
    stage: &Stage,
    what: &'static str,
    is_so: impl Fn(&GroupInfo) -> bool + Send,
) -> Result<GroupInfo, DemoError> {
    let begun = Instant::now();
    loop {
        let group = group(stage).await?;
        if is_so(&group) {
            return Ok(group);
        }
        promise(what, true, begun.elapsed() < PATIENCE)?;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Whether a member printed each partition in order, each record once.
fn in_order(printed: &[Printed]) -> bool {
    let mut last = BTreeMap::new();
    printed.iter().all(|record| last.insert(record.partition, record.offset).is_none_or(|last| last < record.offset))
}

#[async_trait::async_trait]
impl Scene for GroupScene {
    fn title(&self) -> &'static str {
        "Two members share a group; one is killed; nothing is lost"
    }

    async fn play(&mut self, stage: &Stage, narrator: &mut Narrator) -> Result<(), DemoError> {
        let client = &stage.client;
        let spec = StreamSpec { partitions: Some(PARTITIONS), ..StreamSpec::default() };
        client.create_stream(STREAM, &spec).await?;
        let spec = GroupSpec { mode: Some("ordered"), session_ms: Some(SESSION_MS), ..GroupSpec::default() };
        client.create_group(STREAM, GROUP, &spec).await?;
        narrator.say(&format!(
            "The stream {STREAM} has {PARTITIONS} partitions, the group {GROUP} a session of {SESSION_MS} ms. Two members:"
        ))?;
        narrator.lines(&[
            format!("tidegate group consume {STREAM} {GROUP} --client one"),
            format!("tidegate group consume {STREAM} {GROUP} --client two"),
        ])?;
        let mut one = MemberProcess::start(stage, "one")?;
        let mut two = MemberProcess::start(stage, "two")?;
        until(stage, "both members hold partitions", |group| {
            group.members.len() == 2 && group.members.iter().all(|member| !member.partitions.is_empty())
        })
        .await?;

        let changes = changes(stage)?;
        let published = changes.len() as u64;
        let producer = Producer::new(client.clone(), STREAM, &OsEntropy).map_err(DemoError::Entropy)?;
        let begun = Instant::now();
        let publisher = tokio::spawn(publish(producer, changes));
        let held = {
            let (one, two) = (Arc::clone(&one.printed), Arc::clone(&two.printed));
            let work = move |_: &GroupInfo| one.lock().len().min(two.lock().len()) as u64 >= published / 10;
            until(stage, "both members work", work).await?
        };
        let lost: BTreeSet<u32> = held
            .members
            .iter()
            .filter(|member| member.client == "one")
            .flat_map(|member| member.partitions.clone())
            .collect();
        let killed = Instant::now();
        let by_one = one.kill()?;
        narrator.say(&format!(
            "While {} changes of places are being published, one, which holds the partitions {}, is killed with SIGKILL. It printed {} records.",
            count(published),
            lost.iter().map(u32::to_string).collect::<Vec<_>>().join(" and "),
            count(by_one.len() as u64),
        ))?;

        let acknowledged = match publisher.await {
            Ok(acknowledged) => acknowledged?,
            Err(_) => {
                return Err(DemoError::Broken {
                    promise: "the publisher lives",
                    expected: "true".into(),
                    found: "false".into(),
                });
            }
        };
        let took = begun.elapsed();
        until(stage, "all records are committed", |group| group.lag() == 0).await?;
        let caught_up = killed.elapsed();
        let by_two = two.kill()?;

        let first = by_two.iter().find(|record| lost.contains(&record.partition));
        let taken = first.map(|record| record.at.saturating_duration_since(killed));
        let bound = Duration::from_millis(SESSION_MS) + TAKE_OVER_MARGIN;
        promise("two takes the partitions over", true, taken.is_some_and(|taken| taken <= bound))?;
        narrator.say(&format!(
            "Two printed the first record of those partitions {} later, and had caught up with all {} after {}.",
            time(taken.unwrap_or_default()),
            count(published),
            time(caught_up),
        ))?;
        account(&acknowledged, published, &by_one, &by_two)?;
        let repeated = (by_one.len() + by_two.len()) as u64 - published;
        narrator.say(&format!(
            "Published {} ({} a second, each batch durable when answered), printed by one {} and by two {}: none is missing.",
            count(published),
            count(rate(published, took)),
            count(by_one.len() as u64),
            count(by_two.len() as u64),
        ))?;
        narrator.say(&match repeated {
            0 => "None came twice: one had committed all that it had printed.".to_owned(),
            _ => format!(
                "{} came twice: one had printed them and was killed before it committed them. At least once, in order.",
                count(repeated)
            ),
        })?;
        Ok(())
    }

    fn try_next(&self, stage: &Stage) -> Vec<String> {
        let url = stage.url.as_str().trim_end_matches('/');
        vec![
            format!("tidegate group show --url {url} {STREAM} {GROUP}"),
            format!("tidegate stream tail --url {url} {STREAM} --from earliest -n 5"),
            format!("tidegate group consume --url {url} {STREAM} {GROUP} --client me    # and in another terminal:"),
            format!("tidegate stream publish --url {url} {STREAM} '{{\"id\":1,\"name\":\"Nowhere\"}}' --key 1"),
            format!("tidegate top --url {url}"),
        ]
    }
}

/// Every record that was acknowledged was printed, and nothing else was; each member printed each partition in order.
fn account(
    acknowledged: &Acknowledged,
    published: u64,
    by_one: &[Printed],
    by_two: &[Printed],
) -> Result<(), DemoError> {
    let expected: BTreeSet<(u32, u64)> = acknowledged
        .iter()
        .flat_map(|(partition, (base, next))| (*base..*next).map(|offset| (*partition, offset)))
        .collect();
    let all = || by_one.iter().chain(by_two);
    let found: BTreeSet<(u32, u64)> = all().map(|record| (record.partition, record.offset)).collect();
    let ids: BTreeSet<u64> = all().map(|record| record.id).collect();
    promise("every change was acknowledged", published, expected.len())?;
    promise("records that are missing", 0, expected.difference(&found).count())?;
    promise("records that nobody published", 0, found.difference(&expected).count())?;
    promise("every change was printed", published, ids.len())?;
    promise("one printed each partition in order", true, in_order(by_one))?;
    promise("two printed each partition in order", true, in_order(by_two))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(records: &[(u32, u64)]) -> Vec<Printed> {
        let at = Instant::now();
        let id = |partition: u32, offset: u64| u64::from(partition) * 100 + offset;
        records
            .iter()
            .map(|(partition, offset)| Printed {
                partition: *partition,
                offset: *offset,
                id: id(*partition, *offset),
                at,
            })
            .collect()
    }

    #[test]
    fn a_record_that_is_missing_repeated_out_of_order_or_invented_breaks_a_promise() {
        let acknowledged = Acknowledged::from([(0, (5, 8)), (1, (0, 1))]);
        let one = printed(&[(0, 5), (0, 6)]);
        let right = printed(&[(0, 6), (1, 0), (0, 7)]);
        account(&acknowledged, 4, &one, &right).unwrap();
        for wrong in
            [&[(0, 6), (1, 0)][..], &[(0, 7), (0, 6), (1, 0)], &[(0, 7), (1, 0), (1, 1)], &[(0, 7), (0, 7), (1, 0)]]
        {
            let broken = account(&acknowledged, 4, &one, &printed(wrong)).unwrap_err();
            assert!(matches!(broken, DemoError::Broken { .. }), "{broken}");
        }
    }
}
