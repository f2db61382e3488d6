//! Promises of the tail, kept against a server that cuts at every byte, repeats, skips and falls silent.

use std::fmt::Write as _;

use super::super::scripted::{Asked, Reply, World};
use super::*;

/// Where a reader that asks like this goes on, as the protocol says: after its last event, else where it says.
fn position(asked: &Asked) -> u64 {
    let from = asked.line.rsplit_once("from=").unwrap().1.parse().unwrap();
    match asked.header("last-event-id") {
        Some(id) => {
            let last: u64 = id.strip_prefix("1:").unwrap().parse().unwrap();
            assert!(from > last, "the place and the last event agree: {from}, {id}");
            last + 1
        }
        None => from,
    }
}

const RECORDS: u64 = 12;

/// Records 5 to 11, behind a gap from 2 to 5, in a stream of events.
fn events_from(position: u64) -> String {
    let mut text = ": hello\n\n".to_owned();
    if position < 5 {
        writeln!(text, "event: gap\nid: 1:4\ndata: {{\"partition\":1,\"from\":2,\"to\":5,\"reason\":\"retention\"}}\n")
            .unwrap();
    }
    for offset in position.max(5)..RECORDS {
        writeln!(text, "event: record\nid: 1:{offset}\ndata: {{\"partition\":1,\"offset\":{offset},\"op\":\"insert\",\"value\":\"ö{offset}\"}}\n")
            .unwrap();
        if offset % 3 == 0 {
            writeln!(text, "event: later\ndata: of a later server\n").unwrap();
        }
    }
    text
}

/// What a tail gives until it has the last record: offsets, gaps, resumes.
async fn read(world: &World, from: u64) -> Result<(Vec<u64>, Vec<(u64, u64)>, usize), ClientError> {
    let mut tail = Tail::new(world.client.clone(), "s/t", 1, from);
    let (mut offsets, mut gaps, mut resumes) = (Vec::new(), Vec::new(), 0);
    while tail.position() < RECORDS {
        match tail.next().await? {
            TailEvent::Item(Item::Record { offset, json, .. }) => {
                assert!(json.contains(&format!("\"ö{offset}\"")), "{json}");
                offsets.push(offset);
            }
            TailEvent::Item(Item::Gap(gap)) => gaps.push((gap.from, gap.to)),
            TailEvent::Resumed { next, partition, .. } => {
                assert_eq!((next, partition), (tail.position(), 1));
                resumes += 1;
            }
        }
    }
    Ok((offsets, gaps, resumes))
}

#[tokio::test]
async fn a_cut_anywhere_repeats_no_record_and_leaves_none_out() {
    let whole = events_from(2);
    for cut in (0..whole.len()).step_by(3).filter(|cut| whole.is_char_boundary(*cut)) {
        let mut first = true;
        let world = World::new(move |asked| {
            let text = events_from(position(asked));
            match std::mem::take(&mut first) {
                true if cut % 2 == 0 => Reply::Cut(text[..cut].to_owned()),
                true => Reply::Ended(text[..cut].to_owned()),
                false => Reply::Open(text),
            }
        })
        .await;
        let (offsets, gaps, resumes) = read(&world, 2).await.unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
        assert_eq!(offsets, (5..RECORDS).collect::<Vec<_>>(), "cut at {cut}");
        assert_eq!((gaps, resumes <= 1), (vec![(2, 5)], true), "cut at {cut}");
    }
}

#[tokio::test]
async fn a_tail_asks_for_its_partition_and_speaks_of_its_last_event() {
    let mut answers = 0;
    let world = World::new(move |asked| {
        answers += 1;
        if answers == 1 {
            Reply::Cut(events_from(position(asked))[..300].to_owned())
        } else {
            Reply::Open(events_from(position(asked)))
        }
    })
    .await;
    read(&world, 2).await.unwrap();
    let asked = world.asked();
    assert!(asked[0].is("GET /v1/streams/s%2Ft/records?partition=1&from=2"), "{}", asked[0].line);
    assert_eq!((asked[0].header("accept"), asked[0].header("last-event-id")), (Some("text/event-stream"), None));
    assert!(asked[1].header("last-event-id").is_some());
}

#[tokio::test]
async fn a_server_that_repeats_after_a_break_is_not_believed_twice() {
    // One that ignores the last event and the place, and begins anew each time.
    let mut cuts = [200, 400, 600].into_iter();
    let world = World::new(move |_| match cuts.next() {
        Some(cut) => Reply::Cut(events_from(2)[..cut].to_owned()),
        None => Reply::Open(events_from(2)),
    })
    .await;
    let (offsets, gaps, resumes) = read(&world, 2).await.unwrap();
    assert_eq!((offsets, gaps, resumes), ((5..RECORDS).collect(), vec![(2, 5)], 3));
}

#[tokio::test]
async fn a_record_that_is_left_out_in_silence_ends_the_tail() {
    let world = World::new(|_| Reply::Open(events_from(7))).await;
    let error = read(&world, 6).await.unwrap_err();
    assert!(matches!(error, ClientError::Skipped { partition: 1, expected: 6, found: 7 }), "{error}");
}

#[tokio::test]
async fn a_server_that_falls_silent_is_asked_again_at_the_same_record() {
    let mut first = true;
    let world = World::new(move |asked| {
        let text = events_from(position(asked));
        if std::mem::take(&mut first) { Reply::Open(text[..400].to_owned()) } else { Reply::Open(text) }
    })
    .await
    .impatient();
    let (offsets, _, resumes) = read(&world, 5).await.unwrap();
    assert_eq!(offsets, (5..RECORDS).collect::<Vec<_>>());
    assert!(resumes >= 1);
}

#[tokio::test]
async fn a_stream_that_is_not_there_ends_the_tail_and_one_that_is_away_is_waited_for() {
    let world = World::in_turn([Reply::problem(404, "stream_not_found", "never")]).await;
    let error = read(&world, 0).await.unwrap_err();
    assert_eq!((error.code(), error.exit()), (Some("stream_not_found"), crate::cli::Exit::NotFound));
    let world = World::in_turn(vec![Reply::Ended(": nothing\n\n".to_owned()); 30]).await;
    let error = read(&world, 0).await.unwrap_err();
    assert!(matches!(error, ClientError::NotAnswered { attempts: 5, .. }), "{error:?}");
    let away = [Reply::Drop, Reply::problem(503, "draining", "after"), Reply::Drop, Reply::Open(events_from(5))];
    let (offsets, _, _) = read(&World::in_turn(away).await, 5).await.unwrap();
    assert_eq!(offsets.len(), 7);
}

#[tokio::test]
async fn an_error_event_ends_the_tail_or_is_resumed_as_it_says() {
    let error = |retry: &str| {
        format!("event: error\ndata: {{\"code\":\"draining\",\"message\":\"bye\",\"retry\":\"{retry}\"}}\n\n")
    };
    let world = World::in_turn([Reply::Ended(error("after")), Reply::Open(events_from(5))]).await;
    assert_eq!(read(&world, 5).await.unwrap().2, 1);
    let world = World::in_turn([Reply::Ended(error("never"))]).await;
    assert_eq!(read(&world, 5).await.unwrap_err().code(), Some("draining"));
    let gone = "event: error\ndata: {\"status\":404,\"code\":\"stream_not_found\",\"retry\":\"never\"}\n\n".to_owned();
    let world = World::in_turn([Reply::Ended(gone)]).await;
    assert_eq!(read(&world, 5).await.unwrap_err().exit(), crate::cli::Exit::NotFound);
}

#[tokio::test]
async fn events_without_end_are_refused_in_bounded_memory() {
    for text in
        ["data: ".to_owned() + &"x".repeat(9000), "data: x\n".repeat(2000), "event: record\ndata: [\n\n".to_owned()]
    {
        let error = read(&World::in_turn([Reply::Open(text)]).await, 0).await.unwrap_err();
        assert!(matches!(error, ClientError::Line(_) | ClientError::Answer(_)), "{error:?}");
    }
}
