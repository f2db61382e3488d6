//! Promises of a member, kept against a group that is a few lines of the protocol: what it is delivered and does not commit
//! comes again, generations fence, and a member that is gone joins anew.

use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tidegate_testkit::within;

use super::super::scripted::{Asked, Reply, World};
use super::*;

/// The group as its server has it: one member that the tests look at, in one or two partitions.
#[derive(Debug)]
struct Fake {
    generation: u64,
    members: u64,
    partitions: Vec<u32>,
    ends: Positions,
    delivered: Positions,
    committed: Positions,
    heartbeats: u64,
    left: u64,
    /// Answers that are given in place of the group's.
    instead: Vec<(&'static str, Reply)>,
}

impl Fake {
    fn answer(&mut self, asked: &Asked) -> Reply {
        let path = asked.line.split_once("/groups/g").unwrap().1.to_owned();
        let what = path.rsplit('/').next().unwrap();
        if let Some(at) = self.instead.iter().position(|(path, _)| *path == what) {
            let reply = self.instead.remove(at).1;
            // What is lost has happened.
            if matches!(reply, Reply::Drop | Reply::Cut(_)) {
                self.group(asked, what);
            }
            return reply;
        }
        self.group(asked, what)
    }

    fn group(&mut self, asked: &Asked, what: &str) -> Reply {
        if asked.line.starts_with("DELETE") {
            self.left += 1;
            self.bump();
            return Reply::Whole(204, String::new());
        }
        let body = asked.json();
        let generation = self.generation;
        match what {
            "members" => {
                assert_eq!(body, json!({ "client": "one" }));
                self.members += 1;
                self.bump();
                let (member, generation) = (format!("m{}", self.members), self.generation);
                Reply::json(
                    201,
                    &json!({ "member": member, "generation": generation, "partitions": self.partitions, "session_ms": 150 }),
                )
            }
            "heartbeat" if !asked.line.contains(&format!("/m{}/", self.members)) => {
                Reply::problem(404, "unknown_member", "never")
            }
            "heartbeat" => {
                self.heartbeats += 1;
                Reply::json(200, &json!({ "generation": generation, "partitions": self.partitions }))
            }
            _ if body["member"] != format!("m{}", self.members) => Reply::problem(404, "unknown_member", "never"),
            _ if body["generation"] != generation => Reply::problem(409, "fenced", "never"),
            "poll" => self.poll(&body),
            "commit" => self.commit(&body),
            other => panic!("{other}"),
        }
    }

    fn poll(&mut self, body: &Value) -> Reply {
        let mut records = Vec::new();
        for partition in &self.partitions {
            let from = self.delivered[partition];
            let end = self.ends[partition].min(from + body["limit"].as_u64().unwrap());
            for offset in from..end {
                records.push(json!({ "partition": partition, "offset": offset, "op": "insert", "value": offset }));
            }
            self.delivered.insert(*partition, end);
        }
        let held: Positions = self.partitions.iter().map(|partition| (*partition, self.delivered[partition])).collect();
        let delivered = json!(held);
        Reply::json(
            200,
            &json!({ "records": records, "gaps": [], "delivered": delivered, "generation": self.generation }),
        )
    }

    fn commit(&mut self, body: &Value) -> Reply {
        let positions: Positions = serde_json::from_value(body["positions"].clone()).unwrap();
        for (partition, next) in &positions {
            if !self.partitions.contains(partition) {
                return Reply::problem(409, "fenced", "never");
            }
            if *next < self.committed[partition] {
                return Reply::problem(422, "offset_regression", "never");
            }
        }
        self.committed.extend(positions);
        Reply::json(200, &json!({ "committed": self.committed }))
    }

    /// A new generation: each partition begins at its committed position.
    fn bump(&mut self) {
        self.generation += 1;
        self.delivered = self.committed.clone();
    }
}

async fn world(instead: Vec<(&'static str, Reply)>) -> (World, Arc<Mutex<Fake>>) {
    let zero = Positions::from([(0, 0), (1, 0)]);
    let fake = Arc::new(Mutex::new(Fake {
        generation: 0,
        members: 0,
        partitions: vec![0, 1],
        ends: Positions::from([(0, 10), (1, 10)]),
        delivered: zero.clone(),
        committed: zero,
        heartbeats: 0,
        left: 0,
        instead,
    }));
    let script = Arc::clone(&fake);
    (World::new(move |asked| script.lock().answer(asked)).await, fake)
}

/// Polls and commits until everything is committed; gives the offsets by partition as they came, and the notices.
async fn consume(member: &mut Member, fake: &Mutex<Fake>) -> (Vec<(u32, u64)>, Vec<String>) {
    let (mut records, mut notices) = (Vec::new(), Vec::new());
    let is_done = |fake: &Mutex<Fake>| {
        let fake = fake.lock();
        fake.committed == fake.ends
    };
    while !is_done(fake) {
        match member.poll(3, 1 << 20).await.unwrap() {
            Notice::Batch(batch) => {
                for record in &batch.records {
                    let record = super::super::change::record_of(record.get()).unwrap();
                    records.push((record.partition, record.offset));
                }
                member.commit(&batch.delivered).await.unwrap();
            }
            Notice::Changed { generation, partitions } => notices.push(format!("changed {generation} {partitions:?}")),
            Notice::Rejoined { generation, partitions, .. } => {
                notices.push(format!("rejoined {generation} {partitions:?}"))
            }
        }
    }
    (records, notices)
}

fn everything() -> Vec<(u32, u64)> {
    let mut all: Vec<(u32, u64)> = (0..10).flat_map(|offset| [(0, offset), (1, offset)]).collect();
    all.sort_unstable();
    all
}

#[tokio::test]
async fn a_member_reads_everything_once_commits_it_and_leaves() {
    let (world, fake) = world(vec![]).await;
    let mut member = Member::join(world.client.clone(), "s", "g", "one").await.unwrap();
    let (mut records, notices) = consume(&mut member, &fake).await;
    records.sort_unstable();
    assert_eq!((records, notices), (everything(), vec![]));
    member.leave().await.unwrap();
    assert_eq!(fake.lock().left, 1);
}

#[tokio::test]
async fn an_answer_that_is_lost_loses_no_record() {
    for lost in [Reply::Drop, Reply::Cut("{\"records\":[".to_owned())] {
        let (world, fake) = world(vec![("poll", lost)]).await;
        let mut member = Member::join(world.client.clone(), "s", "g", "one").await.unwrap();
        let (mut records, notices) = consume(&mut member, &fake).await;
        records.sort_unstable();
        assert_eq!(records, everything());
        assert_eq!(
            notices,
            ["rejoined 3 [0, 1]"],
            "it left and joined, so that it is delivered from what it committed"
        );
    }
}

#[tokio::test]
async fn a_commit_is_asked_for_until_it_is_answered() {
    let instead = vec![("commit", Reply::Drop), ("commit", Reply::problem(503, "draining", "after"))];
    let (world, fake) = world(instead).await;
    let mut member = Member::join(world.client.clone(), "s", "g", "one").await.unwrap();
    let (mut records, notices) = consume(&mut member, &fake).await;
    records.sort_unstable();
    assert_eq!((records, notices), (everything(), vec![]));
}

#[tokio::test]
async fn a_new_generation_is_followed_and_lost_partitions_are_not_committed() {
    let (world, fake) = world(vec![]).await;
    let mut member = Member::join(world.client.clone(), "s", "g", "one").await.unwrap();
    let Notice::Batch(batch) = member.poll(3, 1 << 20).await.unwrap() else { panic!() };
    {
        let mut fake = fake.lock();
        fake.partitions = vec![1];
        fake.bump();
    }
    let committed = member.commit(&batch.delivered).await.unwrap();
    assert_eq!(committed, Committed { positions: Positions::from([(1, 3)]), refused: Positions::from([(0, 3)]) });
    assert_eq!(fake.lock().committed, Positions::from([(0, 0), (1, 3)]));
    let notice = member.poll(3, 1 << 20).await.unwrap();
    assert!(matches!(&notice, Notice::Changed { generation: 2, partitions } if *partitions == [1]), "{notice:?}");
}

#[tokio::test]
async fn a_position_that_another_member_went_beyond_is_no_failure() {
    let (world, fake) = world(vec![]).await;
    let mut member = Member::join(world.client.clone(), "s", "g", "one").await.unwrap();
    fake.lock().committed = Positions::from([(0, 9), (1, 9)]);
    let committed = member.commit(&Positions::from([(0, 3), (1, 3)])).await.unwrap();
    assert_eq!(committed, Committed { positions: Positions::new(), refused: Positions::from([(0, 3), (1, 3)]) });
}

#[tokio::test]
async fn the_heart_beats_between_polls_and_a_member_that_is_gone_joins_anew() {
    let (world, fake) = world(vec![]).await;
    let mut member = Member::join(world.client.clone(), "s", "g", "one").await.unwrap();
    within("three heartbeats", async {
        while fake.lock().heartbeats < 3 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // The group forgets the member, as after its session.
    fake.lock().members += 1;
    let (mut records, notices) = consume(&mut member, &fake).await;
    records.sort_unstable();
    assert_eq!((records, notices.len()), (everything(), 1));
    assert!(notices[0].starts_with("rejoined"), "{notices:?}");
}

#[tokio::test]
async fn a_group_that_stops_at_a_gap_or_is_gone_ends_the_poll() {
    for (status, code) in [(410, "gap"), (404, "group_not_found")] {
        let (world, _) = world(vec![("poll", Reply::problem(status, code, "never"))]).await;
        let mut member = Member::join(world.client.clone(), "s", "g", "one").await.unwrap();
        let error = member.poll(3, 1 << 20).await.unwrap_err();
        assert_eq!((error.code(), error.exit()), (Some(code), crate::cli::Exit::NotFound));
    }
}

#[tokio::test]
async fn a_group_that_fences_for_ever_is_given_up() {
    let (world, _) = world(vec![("poll", Reply::problem(409, "fenced", "never")); 50]).await;
    let mut member = Member::join(world.client.clone(), "s", "g", "one").await.unwrap();
    let error = member.poll(3, 1 << 20).await.unwrap_err();
    assert!(matches!(error, ClientError::NotAnswered { .. }), "{error:?}");
}

#[tokio::test]
async fn a_shared_reader_acknowledges_by_the_servers_own_ids() {
    let batch = json!({ "records": [{ "partition": 0, "offset": 0, "op": "insert", "value": 1, "delivery": { "id": [1, "x"], "count": 1 } }] });
    let answers = [Reply::Drop, Reply::json(200, &batch), Reply::Drop, Reply::json(200, &json!({}))];
    let world = World::in_turn(answers).await;
    let mut reader = SharedReader::new(world.client.clone(), "s", "g");
    let batch = reader.poll(9, 100, Duration::from_millis(50)).await.unwrap();
    let record = super::super::change::record_of(batch.records[0].get()).unwrap();
    reader.acknowledge(&[record.delivery.unwrap().id.to_owned()]).await.unwrap();
    let asked = world.asked();
    assert_eq!(asked[0].json(), json!({ "limit": 9, "max_bytes": 100, "wait_ms": 50 }));
    assert_eq!(asked[3].json(), json!({ "ack": [[1, "x"]] }));
}
