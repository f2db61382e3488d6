//! What the Durable Streams protocol's streams promise beside the wire: ends that hold, forks that share, lives that end.

use std::time::Duration;

use bytes::Bytes;
use tidegate_cdc::durable::{DurableAppend, DurableCreated, DurableError, DurableSpec, ForkSpec};
use tidegate_cdc::{ProducerStamp, PublishError, ReadFrom, Selection, StreamError, StreamService};
use tidegate_core::Failure as _;
use tidegate_core::port::{MetaRange, MetaStore as _};
use tidegate_core::position::Offset;
use tidegate_core::principal::Principal;
use tidegate_testkit::block_on;

use super::world::{BOUNDS, World, message, name, principal, spec};

const TEXT: &str = "text/plain";
const JSON: &str = "application/json";

fn of(content_type: &str, body: &'static str) -> DurableSpec {
    DurableSpec { content_type: Some(content_type.into()), body: Bytes::from_static(body.as_bytes()), ..spec_default() }
}

fn spec_default() -> DurableSpec {
    DurableSpec::default()
}

fn fork(source: &str, offset: Option<u64>, sub_offset: u64) -> DurableSpec {
    let fork = ForkSpec { source: name(source), offset: offset.map(Offset), sub_offset };
    DurableSpec { fork: Some(fork), ..spec_default() }
}

fn text(body: &'static str) -> DurableAppend {
    DurableAppend { content_type: Some(TEXT.into()), body: Bytes::from_static(body.as_bytes()), ..Default::default() }
}

fn close() -> DurableAppend {
    DurableAppend { close: true, ..Default::default() }
}

async fn create(world: &World, stream: &str, spec: DurableSpec) -> DurableCreated {
    world.streams.create_durable(&world.ann, &name(stream), &spec).await.unwrap()
}

async fn append(world: &World, stream: &str, append: DurableAppend) -> Result<Offset, DurableError> {
    world.streams.append_durable(&world.ann, &name(stream), append).await.map(|appended| appended.next)
}

/// Everything that a reader gets, in one text.
async fn content(streams: &StreamService, ann: &Principal, stream: &str) -> Result<String, DurableError> {
    let stream = streams.durable(ann, &name(stream), false).await?;
    let (mut at, mut whole) = (Offset::ZERO, Vec::new());
    let tail = stream.tail().await?;
    while at < tail {
        let (items, next) = stream.read(at, BOUNDS).await?;
        for item in items {
            if let tidegate_cdc::Item::Record(record) = item {
                whole.extend_from_slice(record.raw().unwrap_or(&record.value()));
            }
        }
        at = next;
    }
    Ok(String::from_utf8(whole).unwrap())
}

async fn text_of(world: &World, stream: &str) -> String {
    content(&world.streams, &world.ann, stream).await.unwrap()
}

async fn code_of(world: &World, stream: &str) -> &'static str {
    world.streams.durable(&world.ann, &name(stream), false).await.err().map_or("there", |error| error.code())
}

async fn entries(world: &World) -> usize {
    let range = MetaRange { prefix: Bytes::new(), from: Bytes::new(), limit: 1_000 };
    world.store.scan(range).await.unwrap().len()
}

#[test]
fn nothing_comes_after_what_closed_a_stream_through_whatever_door() {
    block_on(async {
        let world = World::new();
        create(&world, "s", of(JSON, "[1]")).await;
        let last = DurableAppend { content_type: Some(JSON.into()), body: "[2,3]".into(), close: true, ..close() };
        assert_eq!(append(&world, "s", last).await.unwrap(), Offset(3));
        // A second service over the same store has not heard of it.
        for streams in [&world.streams, &world.restarted()] {
            let request = tidegate_cdc::PublishRequest { records: vec![message(4)], producer: None };
            let refused = streams.publish(&world.ann, &name("s"), request).await.unwrap_err();
            assert!(matches!(refused, PublishError::Closed { tail: Offset(3) }), "{refused}");
        }
        assert_eq!(world.values("s", Selection::All).await, ["1", "2", "3"]);
        // To close it again is nothing new.
        assert_eq!(append(&world, "s", close()).await.unwrap(), Offset(3));
    });
}

#[test]
fn a_handle_that_knows_the_stream_as_open_cannot_append_after_another_closed_it() {
    block_on(async {
        let world = World::new();
        let other = world.restarted();
        create(&world, "s", of(TEXT, "a")).await;
        other.append_durable(&world.ann, &name("s"), text("b")).await.unwrap();
        append(&world, "s", close()).await.unwrap();
        let refused = other.append_durable(&world.ann, &name("s"), text("c")).await.unwrap_err();
        assert_eq!(refused.code(), "stream_closed");
        assert_eq!(text_of(&world, "s").await, "ab");
    });
}

#[test]
fn a_repetition_of_the_last_append_is_answered_like_the_first_though_the_stream_is_closed() {
    block_on(async {
        let world = World::new();
        create(&world, "s", of(TEXT, "")).await;
        let stamp = |seq| Some(ProducerStamp { id: "p".into(), epoch: 0, seq });
        let last = || DurableAppend { close: true, producer: stamp(0), ..text("end") };
        assert_eq!(append(&world, "s", last()).await.unwrap(), Offset(1));
        let again = world.restarted().append_durable(&world.ann, &name("s"), last()).await.unwrap();
        assert!(again.duplicate && again.closed);
        let next = DurableAppend { producer: stamp(1), ..text("more") };
        assert_eq!(append(&world, "s", next).await.unwrap_err().code(), "stream_closed");
        assert_eq!(text_of(&world, "s").await, "end");
    });
}

#[test]
fn the_writers_sequence_goes_up_byte_by_byte_and_survives_a_restart() {
    block_on(async {
        let world = World::new();
        create(&world, "s", of(TEXT, "")).await;
        let with = |seq: &str| DurableAppend { writer_seq: Some(seq.into()), ..text("x") };
        append(&world, "s", with("09")).await.unwrap();
        append(&world, "s", with("10")).await.unwrap();
        let restarted = world.restarted();
        for low in ["10", "1", "09", ""] {
            let refused = restarted.append_durable(&world.ann, &name("s"), with(low)).await.unwrap_err();
            assert_eq!(refused.code(), "sequence_regression", "{low:?}");
        }
        restarted.append_durable(&world.ann, &name("s"), with("a")).await.unwrap();
        assert_eq!(append(&world, "s", with("B")).await.unwrap_err().code(), "sequence_regression");
        append(&world, "s", text("without")).await.unwrap();
        assert_eq!(text_of(&world, "s").await, "xxxwithout");
    });
}

#[test]
fn a_fork_has_what_its_source_had_there_and_neither_sees_what_the_other_gets_later() {
    block_on(async {
        let world = World::new();
        create(&world, "a", of(TEXT, "one ")).await;
        append(&world, "a", text("two ")).await.unwrap();
        create(&world, "b", fork("a", Some(1), 0)).await;
        create(&world, "c", DurableSpec { body: "C".into(), ..fork("a", Some(1), 2) }).await;
        create(&world, "d", fork("c", None, 0)).await;
        append(&world, "a", text("three")).await.unwrap();
        append(&world, "b", text("B")).await.unwrap();
        append(&world, "d", text("D")).await.unwrap();
        for (stream, expected) in [("a", "one two three"), ("b", "one B"), ("c", "one twC"), ("d", "one twCD")] {
            assert_eq!(text_of(&world, stream).await, expected, "{stream}");
            // And through the other door, over the whole chain.
            let lines = world.lines(stream, Selection::All, ReadFrom::Earliest).await;
            assert_eq!(lines.len(), if stream == "d" { 4 } else { if stream == "b" { 2 } else { 3 } }, "{lines:?}");
        }
        let described = world.streams.describe(&world.ann, &name("d")).await.unwrap();
        assert_eq!(described.partitions[0].earliest, Offset::ZERO);
    });
}

#[test]
fn a_json_fork_takes_whole_records_of_one_append() {
    block_on(async {
        let world = World::new();
        create(&world, "a", of(JSON, "[1,2,3]")).await;
        append(&world, "a", DurableAppend { content_type: Some(JSON.into()), body: "4".into(), ..Default::default() })
            .await
            .unwrap();
        create(&world, "b", fork("a", Some(0), 2)).await;
        create(&world, "c", fork("a", Some(1), 2)).await;
        assert_eq!((text_of(&world, "b").await, text_of(&world, "c").await), ("12".into(), "123".into()));
        let beyond = world.streams.create_durable(&world.ann, &name("d"), &fork("a", Some(1), 3)).await.unwrap_err();
        assert!(matches!(beyond, DurableError::ForkSubOffset { asked: 3, available: 2 }), "{beyond}");
        assert_eq!(code_of(&world, "d").await, "stream_not_found");
    });
}

#[test]
fn a_source_that_is_deleted_stays_for_its_forks_and_goes_with_the_last() {
    block_on(async {
        let world = World::new();
        let before = entries(&world).await;
        create(&world, "a", of(TEXT, "A")).await;
        create(&world, "b", fork("a", None, 0)).await;
        create(&world, "c", fork("b", None, 0)).await;
        for stream in ["a", "b"] {
            world.streams.delete(&world.ann, &name(stream)).await.unwrap();
            assert_eq!(code_of(&world, stream).await, "stream_gone");
            let again = world.streams.delete(&world.ann, &name(stream)).await.unwrap_err();
            assert!(matches!(again, StreamError::Gone { .. }));
        }
        let taken = world.streams.create_durable(&world.ann, &name("a"), &of(TEXT, "")).await.unwrap_err();
        assert_eq!(taken.code(), "stream_exists");
        let source = world.streams.create_durable(&world.ann, &name("d"), &fork("a", None, 0)).await.unwrap_err();
        assert!(matches!(source, DurableError::SourceGone { .. }));
        assert_eq!(text_of(&world, "c").await, "A");
        // Another service, which never saw the forks being made.
        world.restarted().delete(&world.ann, &name("c")).await.unwrap();
        assert_eq!(entries(&world).await, before);
        for stream in ["a", "b", "c"] {
            world.streams.create_durable(&world.ann, &name(stream), &of(TEXT, "new")).await.unwrap();
        }
    });
}

#[test]
fn a_fork_that_was_refused_holds_nothing() {
    block_on(async {
        let world = World::new();
        create(&world, "a", of(TEXT, "A")).await;
        let asked = DurableSpec { content_type: Some(JSON.into()), ..fork("a", None, 0) };
        let refused = world.streams.create_durable(&world.ann, &name("b"), &asked).await.unwrap_err();
        assert_eq!(refused.code(), "content_type_mismatch");
        world.streams.delete(&world.ann, &name("a")).await.unwrap();
        assert_eq!(code_of(&world, "a").await, "stream_not_found");
    });
}

#[test]
fn a_stream_is_gone_when_it_was_not_used_for_its_time_and_a_restart_never_shortens_it() {
    block_on(async {
        let world = World::new();
        let mortal = |body| DurableSpec { ttl_s: Some(100), ..of(TEXT, body) };
        create(&world, "s", mortal("a")).await;
        world.clock.advance(Duration::from_secs(90));
        append(&world, "s", text("b")).await.unwrap();
        world.clock.advance(Duration::from_secs(90));
        // To look at it is no use of it.
        assert_eq!(code_of(&world, "s").await, "there");
        assert!(world.streams.durable(&world.ann, &name("s"), true).await.is_ok());
        tokio::task::yield_now().await;
        world.clock.advance(Duration::from_secs(99));
        let restarted = world.restarted();
        assert_eq!(content(&restarted, &world.ann, "s").await.unwrap(), "ab");
        world.clock.advance(Duration::from_secs(2));
        assert_eq!(code_of(&world, "s").await, "stream_not_found");
        // The name is free at once, and nothing of the old one is in the new one.
        assert!(create(&world, "s", mortal("new")).await.new);
        assert_eq!(text_of(&world, "s").await, "new");
    });
}

#[test]
fn a_stream_with_an_end_in_time_is_gone_then_however_much_it_is_used() {
    block_on(async {
        let world = World::new();
        let end = tidegate_core::Timestamp::from_unix_ms(world.clock_time().unix_ms() + 1_000);
        create(&world, "s", DurableSpec { expires_at: Some(end), ..of(TEXT, "a") }).await;
        create(&world, "f", DurableSpec { ttl_s: Some(10_000), ..fork("s", None, 0) }).await;
        world.clock.advance(Duration::from_millis(999));
        append(&world, "s", text("b")).await.unwrap();
        world.clock.advance(Duration::from_millis(1));
        assert_eq!(append(&world, "s", text("c")).await.unwrap_err().code(), "stream_gone");
        // The fork lives by its own time, and has what it shares.
        assert_eq!(text_of(&world, "f").await, "a");
    });
}

#[test]
fn a_sweep_removes_what_has_expired_though_nobody_asks_for_it() {
    block_on(async {
        let world = World::new();
        let before = entries(&world).await;
        for number in 0..5 {
            create(&world, &format!("s{number}"), DurableSpec { ttl_s: Some(10), ..of(TEXT, "x") }).await;
        }
        create(&world, "stays", of(TEXT, "x")).await;
        world.clock.advance(Duration::from_secs(30));
        let (mut from, mut calls) = (None, 0);
        loop {
            from = world.streams.sweep(from, 2).await.unwrap();
            calls += 1;
            if from.is_none() {
                break;
            }
        }
        assert!(calls >= 3, "{calls}");
        assert_eq!(entries(&world).await, before + 1);
        assert_eq!(text_of(&world, "stays").await, "x");
    });
}

#[test]
fn one_stream_has_two_doors() {
    block_on(async {
        let world = World::new();
        world.create("changes", spec(1)).await;
        world.publish("changes", vec![message(1), message(r#"{"a":2}"#)]).await;
        assert_eq!(text_of(&world, "changes").await, r#"1{"a":2}"#);
        let json = DurableAppend { content_type: Some(JSON.into()), body: "[3]".into(), ..Default::default() };
        append(&world, "changes", json).await.unwrap();
        assert_eq!(world.values("changes", Selection::All).await, ["1", r#"{"a":2}"#, "3"]);
        world.create("wide", spec(2)).await;
        assert_eq!(code_of(&world, "wide").await, "stream_partitioned");

        create(&world, "bytes/of text", of(TEXT, "grüße")).await;
        assert_eq!(world.values("bytes/of text", Selection::All).await, ["\"grüße\""]);
        create(&world, "bytes", DurableSpec { body: Bytes::from_static(b"\xff\0"), ..spec_default() }).await;
        assert_eq!(world.values("bytes", Selection::All).await, [r#"{"base64":"/wA="}"#]);
        let refused = world.try_publish("bytes", vec![message(1)], None).await.unwrap_err();
        assert_eq!(refused.code(), "content_type_mismatch");
        // Another tenant sees none of it.
        let foreign = world.streams.durable(&principal("other", "eve"), &name("bytes"), false).await.unwrap_err();
        assert_eq!(foreign.code(), "stream_not_found");
    });
}

#[test]
fn the_same_creation_again_is_the_same_and_another_is_refused() {
    block_on(async {
        let world = World::new();
        let asked = || DurableSpec { ttl_s: Some(60), ..of("text/plain; charset=utf-8", "first") };
        assert!(create(&world, "s", asked()).await.new);
        let again = create(&world, "s", DurableSpec { content_type: Some("TEXT/PLAIN".into()), ..asked() }).await;
        assert_eq!((again.new, again.next), (false, Offset(1)));
        for other in [
            DurableSpec { ttl_s: Some(61), ..asked() },
            DurableSpec { content_type: None, ..asked() },
            DurableSpec { closed: true, ..asked() },
            fork("s", None, 0),
        ] {
            let refused = world.streams.create_durable(&world.ann, &name("s"), &other).await.unwrap_err();
            assert_eq!(refused.code(), "stream_exists", "{other:?}");
        }
        assert_eq!(text_of(&world, "s").await, "first");
    });
}

#[test]
fn what_cannot_be_appended_changes_nothing() {
    block_on(async {
        let world = World::new();
        world.settings.patch(&[("limits.record_max_bytes", 1_024)]).unwrap();
        create(&world, "s", of(JSON, "[]")).await;
        let with = |content_type: Option<&str>, body: String| DurableAppend {
            content_type: content_type.map(Into::into),
            body: body.into(),
            ..Default::default()
        };
        for (append_this, code) in [
            (with(Some(JSON), String::new()), "empty_body"),
            (with(Some(JSON), "[]".into()), "empty_batch"),
            (with(Some(JSON), "{".into()), "malformed_json"),
            (with(None, "1".into()), "content_type_missing"),
            (with(Some(TEXT), "1".into()), "content_type_mismatch"),
            (with(Some(JSON), format!("\"{}\"", "x".repeat(2_000))), "record_too_large"),
            (with(Some(JSON), format!("[{}1]", "1,".repeat(10_000))), "batch_too_large"),
        ] {
            assert_eq!(append(&world, "s", append_this).await.unwrap_err().code(), code);
        }
        assert_eq!(text_of(&world, "s").await, "");
    });
}
