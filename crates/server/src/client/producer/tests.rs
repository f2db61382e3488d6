//! Promises of the producer: nothing twice, nothing in silence.

use tidegate_core::system::OsEntropy;

use super::super::scripted::{Reply, World};
use super::*;
use crate::cli::Exit;

async fn publish(world: &World, batches: &[&str]) -> Vec<Result<Acknowledged, ClientError>> {
    let mut producer = Producer::new(world.client.clone(), "a/b%: 💧", &OsEntropy).unwrap();
    let mut done = Vec::new();
    for batch in batches {
        done.push(producer.publish(&Bytes::from((*batch).to_owned()), batch.lines().count() as u64).await);
    }
    done
}

fn appended(base: u64, count: u64) -> Reply {
    let range = serde_json::json!({ "partition": 0, "base": base, "next": base + count });
    Reply::json(200, &serde_json::json!({ "count": count, "appended": [range] }))
}

#[tokio::test]
async fn a_batch_whose_answer_is_lost_is_sent_again_under_the_same_sequence() {
    let answers = [
        appended(0, 2),
        Reply::Drop,
        Reply::Cut("{".to_owned()),
        Reply::problem(503, "draining", "after"),
        Reply::Whole(204, String::new()),
        appended(3, 1),
    ];
    let world = World::in_turn(answers).await;
    let done = publish(&world, &["{\"value\":1}\n{\"value\":2}\n", "{\"value\":3}\n", "{\"value\":4}\n"]).await;
    let done: Vec<(u64, u64, bool)> = done
        .into_iter()
        .map(|done| done.map(|done| (done.count, done.attempts, done.ranges.is_some())).unwrap())
        .collect();
    assert_eq!(done, [(2, 1, true), (1, 4, false), (1, 1, true)]);
    let asked = world.asked();
    let sequences: Vec<&str> = asked.iter().map(|asked| asked.header("producer-seq").unwrap()).collect();
    assert_eq!(sequences, ["0", "1", "1", "1", "1", "2"]);
    for asked in &asked {
        assert!(asked.is("POST /v1/streams/a%2Fb%25%3A%20%F0%9F%92%A7/records"), "{}", asked.line);
        assert_eq!(asked.header("producer-id"), world.asked()[0].header("producer-id"));
        assert_eq!(asked.header("producer-id").unwrap().len(), 32);
        assert_eq!(asked.header("producer-epoch"), Some("0"));
        assert_eq!(asked.header("content-type"), Some("application/x-ndjson"));
    }
    assert!(asked[1..5].iter().all(|asked| asked.body == "{\"value\":3}\n"));
}

#[tokio::test]
async fn a_refusal_for_good_is_not_tried_again_and_takes_no_sequence() {
    let world = World::in_turn([Reply::problem(413, "record_too_large", "never"), appended(0, 1)]).await;
    let done = publish(&world, &["{\"value\":1}\n", "{\"value\":2}\n"]).await;
    let error = done[0].as_ref().unwrap_err();
    assert_eq!((error.code(), error.exit()), (Some("record_too_large"), Exit::Failed));
    assert!(done[1].is_ok());
    let sequences: Vec<String> =
        world.asked().iter().map(|asked| asked.header("producer-seq").unwrap().to_owned()).collect();
    assert_eq!(sequences, ["0", "0"]);
}

#[tokio::test]
async fn attempts_are_bounded_and_the_last_reason_is_told() {
    let world = World::in_turn(vec![Reply::problem(429, "tail_capacity_exhausted", "after"); 20]).await;
    let error = publish(&world, &["{\"value\":1}\n"]).await.remove(0).unwrap_err();
    assert!(matches!(error, ClientError::NotAnswered { attempts: 5, .. }), "{error:?}");
    assert_eq!((error.exit(), world.asked().len()), (Exit::Refused, 5));
    let gone = World::in_turn([]).await;
    let error = publish(&gone, &["{\"value\":1}\n"]).await.remove(0).unwrap_err();
    assert_eq!((error.exit(), gone.asked().len()), (Exit::Failed, 5));
}
