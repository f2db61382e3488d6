//! Every rule against a hand-made history that breaks it, and against a sound one that it must let pass.

use super::check;
use crate::crash::history::*;
use crate::crash::value;

const KEPT: u16 = 2;
const MS: Micros = 1000;

/// A history written by hand: streams `a` and `b` of two partitions, `kept` with retention by 2 records; an ordered group on `a`,
/// a shared one on `b`.
#[derive(Clone)]
struct Book {
    history: History,
}

impl Book {
    fn new() -> Self {
        let stream = |name: &str, keep_records| StreamFact { name: name.to_owned(), partitions: 1, keep_records };
        let group =
            |name: &str, stream, shared| GroupFact { name: name.to_owned(), stream, shared, ack_timeout_us: 100 * MS };
        let history = History {
            streams: vec![stream("a", None), stream("b", None), stream("kept", Some(2))],
            groups: vec![group("ordered", 0, false), group("shared", 1, true)],
            entries: Vec::new(),
        };
        Self { history }
    }

    fn at(&mut self, start: Micros, end: Micros, event: Event) -> &mut Self {
        self.history.entries.push(Entry { client: 1, start, end, event });
        self
    }

    fn append(&mut self, times: (Micros, Micros), stream: u16, ids: &[u64], outcome: Outcome<Vec<Range>>) -> &mut Self {
        self.append_as(times, stream, None, ids, outcome)
    }

    fn append_as(
        &mut self,
        (start, end): (Micros, Micros),
        stream: u16,
        sequence: Option<Sequence>,
        ids: &[u64],
        outcome: Outcome<Vec<Range>>,
    ) -> &mut Self {
        let records = ids.iter().map(|&id| Sent { id, partition: Some(0), key: None }).collect();
        self.at(start, end, Event::Append(Append { stream, sequence, records, outcome }))
    }

    fn read(&mut self, (start, end): (Micros, Micros), stream: u16, from: u64, ids: &[u64]) -> &mut Self {
        let next = Some(from + ids.len() as u64);
        self.at(start, end, Event::Read(Read { place: place(stream), from, seen: seen(from, ids), gaps: vec![], next }))
    }

    /// Ends the history with what each stream holds, and judges it.
    fn rules(&self, a: &[u64], b: &[u64], kept: &[u64]) -> Vec<&'static str> {
        let first = 5_u64.saturating_sub(kept.len() as u64);
        let gap = Gap { from: 0, to: first, reason: "retention".to_owned() };
        let gaps = if kept.is_empty() { vec![] } else { vec![gap] };
        let next = if kept.is_empty() { 0 } else { 5 };
        let mut reads = vec![(0, seen(0, a), vec![], a.len() as u64), (1, seen(0, b), vec![], b.len() as u64)];
        reads.push((KEPT, seen(first, kept), gaps, next));
        self.judged(reads)
    }

    fn judged(&self, reads: Vec<(u16, Vec<Seen>, Vec<Gap>, u64)>) -> Vec<&'static str> {
        let mut book = self.clone();
        for (stream, seen, gaps, next) in reads {
            let read = Read { place: place(stream), from: 0, seen, gaps, next: Some(next) };
            book.at(1_000_000, 1_000_001, Event::Final { read, via: NATIVE });
        }
        let mut rules: Vec<_> = check(&book.history).into_iter().map(|violation| violation.rule).collect();
        rules.sort_unstable();
        rules.dedup();
        rules
    }

    /// As `rules`, of a history about nothing but stream `a`, whose group got everything.
    fn a(&self, ids: &[u64]) -> Vec<&'static str> {
        let mut book = self.clone();
        book.polled((900_000, 900_001), "last", 1000, 0, ids);
        book.rules(ids, &[], &[])
    }

    fn held(&mut self, times: (Micros, Micros), member: &str, generation: u64) -> &mut Self {
        let member = member.to_owned();
        self.at(times.0, times.1, Event::Held { group: 0, member, generation, partitions: vec![0] })
    }

    fn polled(&mut self, times: (Micros, Micros), member: &str, generation: u64, from: u64, ids: &[u64]) -> &mut Self {
        let seen = seen(from, ids).into_iter().map(|seen| (0, seen)).collect();
        self.at(times.0, times.1, Event::Polled { group: 0, member: member.to_owned(), generation, seen })
    }

    fn commit(
        &mut self,
        times: (Micros, Micros),
        member: &str,
        generation: u64,
        position: u64,
        outcome: Outcome<()>,
    ) -> &mut Self {
        let member = member.to_owned();
        let positions = vec![(0, position)];
        self.at(times.0, times.1, Event::Commit { group: 0, member, generation, positions, outcome })
    }

    fn positions(&mut self, times: (Micros, Micros), position: u64) -> &mut Self {
        self.at(times.0, times.1, Event::Positions { group: 0, committed: vec![(0, position)] })
    }

    fn delivered(&mut self, times: (Micros, Micros), delivery: &str, offset: u64, id: u64) -> &mut Self {
        let seen = Seen { offset, id: Some(id) };
        let deliveries = vec![Delivery { delivery: delivery.to_owned(), partition: 0, seen }];
        self.at(times.0, times.1, Event::Delivered { group: 1, deliveries })
    }

    fn ack(&mut self, times: (Micros, Micros), delivery: &str, ok: bool) -> &mut Self {
        let deliveries = vec![delivery.to_owned()];
        let outcome = if ok { Outcome::Ok(deliveries.clone()) } else { Outcome::Unknown };
        self.at(times.0, times.1, Event::Ack { group: 1, deliveries, outcome })
    }

    fn nack(&mut self, times: (Micros, Micros), delivery: &str) -> &mut Self {
        self.at(times.0, times.1, Event::Nack { group: 1, deliveries: vec![delivery.to_owned()] })
    }

    fn killed(&mut self, when: Micros) -> &mut Self {
        self.at(when, when, Event::Process(Process::Killed))
    }
}

fn place(stream: u16) -> Place {
    Place { stream, partition: 0 }
}

fn seen(from: u64, ids: &[u64]) -> Vec<Seen> {
    (from..).zip(ids).map(|(offset, &id)| Seen { offset, id: Some(id) }).collect()
}

fn ok(base: u64, next: u64) -> Outcome<Vec<Range>> {
    Outcome::Ok(vec![Range { partition: 0, base, next }])
}

fn refused<T>() -> Outcome<T> {
    Outcome::Refused { status: 503, code: "draining".to_owned() }
}

fn sequence(epoch: u64, seq: u64) -> Option<Sequence> {
    Some(Sequence { producer: 7, epoch, seq, zombie: false })
}

#[test]
fn a_sound_history_breaks_no_rule() {
    let mut book = Book::new();
    book.append((0, 10), 0, &[1, 2], ok(0, 2))
        .append((20, 30), 0, &[3], Outcome::Unknown)
        .append((20, 30), 0, &[4], Outcome::Unknown)
        .append((20, 30), 0, &[5], refused())
        .append_as((30, 40), 0, sequence(0, 0), &[6], Outcome::Unknown)
        .append_as((50, 60), 0, sequence(0, 0), &[6], Outcome::Ok(vec![]))
        .append_as((70, 80), 0, sequence(1, 0), &[7], ok(4, 5))
        .read((90, 95), 0, 0, &[1, 2, 3])
        .held((100, 110), "m1", 1)
        .polled((120, 130), "m1", 1, 0, &[1, 2])
        .commit((140, 150), "m1", 1, 2, Outcome::Ok(()))
        .commit((160, 165), "m1", 1, 3, Outcome::Unknown)
        .killed(170)
        .held((200, 210), "m2", 2)
        .polled((220, 230), "m2", 2, 2, &[3, 6, 7])
        .positions((240, 250), 3)
        .append((300, 310), 1, &[11, 12], ok(0, 2))
        .delivered((320, 330), "d1", 0, 11)
        .ack((340, 350), "d1", true)
        .delivered((320, 330), "d2", 1, 12)
        .nack((360, 370), "d2")
        .delivered((380, 390), "d3", 1, 12)
        .ack((400, 410), "d3", false)
        .append((500, 510), KEPT, &[21, 22, 23, 24, 25], ok(0, 5));
    assert_eq!(book.rules(&[1, 2, 3, 6, 7], &[11, 12], &[24, 25]), Vec::<&str>::new());
}

#[test]
fn acknowledged_records_are_there_once_at_their_offsets_in_their_order() {
    let mut book = Book::new();
    book.append((0, 10), 0, &[1, 2], ok(0, 2));
    assert_eq!(book.a(&[1, 2]), Vec::<&str>::new());
    assert_eq!(book.a(&[1]), ["acknowledged_lost"]);
    assert_eq!(book.a(&[]), ["acknowledged_lost", "stale_read"]);
    assert_eq!(book.a(&[1, 2, 1]), ["duplicate"]);
    assert_eq!(book.a(&[2, 1]), ["append_torn", "wrong_order_in_append"]);
    assert!(book.a(&[9, 1, 2]).contains(&"wrong_offset"));
    assert!(book.a(&[9, 1, 2]).contains(&"foreign_record"));
    book.append((20, 30), 0, &[3, 4], ok(2, 3));
    assert_eq!(book.a(&[1, 2, 3, 4]), ["wrong_count"]);
}

#[test]
fn an_append_of_unknown_outcome_is_there_wholly_or_not_and_a_refused_one_is_not() {
    let mut book = Book::new();
    book.append((0, 10), 0, &[1, 2], Outcome::Unknown);
    assert_eq!(book.a(&[1, 2]), Vec::<&str>::new());
    assert_eq!(book.a(&[]), Vec::<&str>::new());
    assert_eq!(book.a(&[1]), ["not_atomic"]);
    let mut book = Book::new();
    book.append((0, 10), 0, &[1, 2], refused());
    assert_eq!(book.a(&[1, 2]), ["refused_but_there"]);
}

#[test]
fn changed_bytes_and_holes_in_the_log_are_seen() {
    let book = Book::new();
    let broken = vec![Seen { offset: 0, id: None }];
    let none = |stream| (stream, vec![], vec![], 0);
    assert!(book.judged(vec![(0, broken, vec![], 1), none(1), none(2)]).contains(&"bytes_changed"));
    let mut sent = Book::new();
    sent.append((0, 10), 0, &[1, 2], Outcome::Unknown);
    let holed = vec![Seen { offset: 0, id: Some(1) }, Seen { offset: 2, id: Some(2) }];
    assert!(sent.judged(vec![(0, holed, vec![], 3), none(1), none(2)]).contains(&"offsets_not_dense"));
    assert_eq!(book.judged(vec![none(0), none(1)]), ["no_final_read"]);
    assert_eq!(value::id(&value::text(7)), Some(7));
}

#[test]
fn records_lie_in_the_partition_that_was_named_and_keys_stay_in_one() {
    let mut book = Book::new();
    book.history.streams[0].partitions = 2;
    let records = vec![Sent { id: 1, partition: Some(1), key: None }];
    book.at(0, 10, Event::Append(Append { stream: 0, sequence: None, records, outcome: Outcome::Unknown }));
    let keyed = |id| vec![Sent { id, partition: None, key: Some(4) }];
    book.at(0, 10, Event::Append(Append { stream: 0, sequence: None, records: keyed(2), outcome: Outcome::Unknown }));
    book.at(0, 10, Event::Append(Append { stream: 0, sequence: None, records: keyed(3), outcome: Outcome::Unknown }));
    let second =
        Read { place: Place { stream: 0, partition: 1 }, from: 0, seen: seen(0, &[3]), gaps: vec![], next: None };
    book.at(1, 2, Event::Final { read: second, via: NATIVE });
    assert!(book.a(&[2]).contains(&"key_in_two_partitions"));
    let Event::Append(first) = &mut book.history.entries[0].event else { unreachable!() };
    first.outcome = ok(0, 1);
    assert!(book.a(&[1]).contains(&"wrong_partition"));
}

#[test]
fn what_was_sent_after_an_acknowledgement_lies_behind_it() {
    let mut book = Book::new();
    book.append((0, 10), 0, &[1], ok(1, 2)).append((20, 30), 0, &[2], Outcome::Unknown);
    assert_eq!(book.a(&[2, 1]), ["order_of_time"]);
}

#[test]
fn idempotent_producers_keep_their_order_without_holes_and_old_epochs_bring_nothing_in() {
    let mut book = Book::new();
    book.append_as((0, 10), 0, sequence(0, 0), &[1], Outcome::Unknown)
        .append_as((0, 10), 0, sequence(0, 1), &[2], Outcome::Unknown)
        .append_as((0, 10), 0, sequence(1, 0), &[3], Outcome::Unknown);
    assert_eq!(book.a(&[1, 2, 3]), Vec::<&str>::new());
    assert_eq!(book.a(&[2, 1, 3]), ["order_of_producer"]);
    assert_eq!(book.a(&[1, 3, 2]), ["order_of_producer"]);
    assert_eq!(book.a(&[2, 3]), ["hole_in_sequence"]);
    assert_eq!(book.a(&[1, 1, 2]), ["duplicate"]);
    book.append_as((20, 30), 0, sequence(1, 0), &[3], ok(2, 3));
    let zombie = Some(Sequence { producer: 7, epoch: 0, seq: 2, zombie: true });
    book.append_as((40, 50), 0, zombie, &[4], Outcome::Unknown);
    assert_eq!(book.a(&[1, 2, 3]), Vec::<&str>::new());
    assert_eq!(book.a(&[1, 2, 3, 4]), ["order_of_producer", "zombie_appended"]);
    book.append_as((60, 70), 0, zombie, &[4], Outcome::Ok(vec![]));
    assert_eq!(book.a(&[1, 2, 3]), ["old_epoch_accepted"]);
}

#[test]
fn readers_see_nothing_that_changes_vanishes_or_jumps() {
    let mut sent = Book::new();
    sent.append((0, 10), 0, &[1, 2, 3], Outcome::Unknown);
    let with = |from, ids: &[u64]| {
        let mut book = sent.clone();
        book.read((20, 30), 0, from, ids).a(&[1, 2, 3])
    };
    assert_eq!(with(1, &[2, 3]), Vec::<&str>::new());
    assert!(with(0, &[2]).contains(&"record_changed"));
    assert_eq!(with(3, &[9]), ["phantom"]);
    let mut holed = sent.clone();
    let seen = vec![Seen { offset: 1, id: Some(2) }];
    holed.at(20, 30, Event::Read(Read { place: place(0), from: 0, seen, gaps: vec![], next: Some(2) }));
    assert_eq!(holed.a(&[1, 2, 3]), ["hole_in_read"]);
}

#[test]
fn no_answer_is_older_than_what_was_known_before() {
    let mut book = Book::new();
    book.append((0, 10), 0, &[1, 2, 3], ok(0, 3));
    assert_eq!(book.clone().read((5, 20), 0, 1, &[]).a(&[1, 2, 3]), Vec::<&str>::new());
    assert_eq!(book.clone().read((15, 20), 0, 1, &[]).a(&[1, 2, 3]), ["stale_read"]);
    book.at(30, 40, Event::OutOfRange { place: place(0), from: 3 });
    assert_eq!(book.a(&[1, 2, 3]), ["tail_went_back"]);
}

#[test]
fn gaps_stand_only_where_retention_is_and_with_exact_bounds() {
    let read = |stream, from, gap: (u64, u64), ids: &[u64], reason: &str| {
        let mut book = Book::new();
        book.append((0, 10), KEPT, &[21, 22, 23, 24, 25], ok(0, 5)).append((0, 10), 0, &[1, 2, 3], ok(0, 3));
        let gaps = vec![Gap { from: gap.0, to: gap.1, reason: reason.to_owned() }];
        let next = Some(gap.1 + ids.len() as u64);
        book.at(20, 30, Event::Read(Read { place: place(stream), from, seen: seen(gap.1, ids), gaps, next }));
        book.polled((900, 901), "last", 9, 0, &[1, 2, 3]);
        book.rules(&[1, 2, 3], &[], &[24, 25])
    };
    assert_eq!(read(KEPT, 1, (1, 3), &[24], "retention"), Vec::<&str>::new());
    assert_eq!(read(KEPT, 1, (0, 3), &[24], "retention"), ["gap_not_exact"]);
    assert_eq!(read(KEPT, 1, (1, 4), &[25], "retention"), ["gap_too_large"]);
    assert_eq!(read(KEPT, 1, (1, 3), &[24], "compaction"), ["gap_without_cause"]);
    assert_eq!(read(0, 0, (0, 1), &[2], "retention"), ["gap_without_cause"]);
}

#[test]
fn commits_are_never_lost_back_or_invented() {
    let mut book = Book::new();
    book.append((0, 1), 0, &[1, 2, 3], ok(0, 3)).commit((10, 20), "m", 1, 2, Outcome::Ok(()));
    assert_eq!(book.clone().positions((15, 30), 0).a(&[1, 2, 3]), Vec::<&str>::new());
    assert_eq!(book.clone().positions((25, 30), 0).a(&[1, 2, 3]), ["commit_lost"]);
    assert_eq!(book.clone().positions((25, 30), 3).a(&[1, 2, 3]), ["commit_invented"]);
    assert_eq!(book.clone().commit((25, 30), "m", 1, 1, Outcome::Ok(())).a(&[1, 2, 3]), ["commit_went_back"]);
    let mut seen = Book::new();
    seen.append((0, 1), 0, &[1, 2, 3], ok(0, 3)).commit((10, 20), "m", 1, 2, Outcome::Unknown);
    assert_eq!(seen.positions((25, 30), 2).positions((35, 40), 0).a(&[1, 2, 3]), ["commit_lost"]);
}

#[test]
fn a_partition_has_one_holder_and_a_fenced_member_commits_nothing() {
    let mut book = Book::new();
    book.held((0, 10), "m1", 1).held((100, 110), "m1", 1);
    assert_eq!(book.clone().held((120, 130), "m2", 2).held((140, 150), "m2", 2).a(&[]), Vec::<&str>::new());
    assert_eq!(
        book.clone().held((40, 50), "m2", 2).held((60, 70), "m2", 2).a(&[]),
        ["generation_went_back", "two_holders"]
    );
    let mut fenced = Book::new();
    fenced.held((0, 10), "m1", 1).held((20, 30), "m2", 2);
    assert_eq!(fenced.clone().commit((25, 40), "m1", 1, 0, Outcome::Ok(())).a(&[]), Vec::<&str>::new());
    assert_eq!(fenced.clone().commit((35, 40), "m1", 1, 0, Outcome::Ok(())).a(&[]), ["fenced_commit_accepted"]);
    assert_eq!(fenced.clone().commit((35, 40), "m1", 1, 0, refused()).a(&[]), Vec::<&str>::new());
    assert_eq!(fenced.held((40, 50), "m3", 1).a(&[]), ["generation_went_back"]);
}

#[test]
fn every_record_reaches_a_member() {
    let mut book = Book::new();
    book.append((0, 10), 0, &[1, 2, 3], ok(0, 3)).polled((20, 30), "m", 1, 1, &[2, 3]);
    assert_eq!(book.rules(&[1, 2, 3], &[], &[]), ["not_delivered"]);
}

#[test]
fn shared_records_come_until_acknowledged_never_after_and_to_one_at_a_time() {
    let mut book = Book::new();
    book.append((0, 1), 1, &[11], ok(0, 1));
    assert_eq!(book.rules(&[], &[11], &[]), ["shared_lost"], "never handed out");
    book.delivered((10, 20), "d1", 0, 11);
    assert_eq!(book.rules(&[], &[11], &[]), ["shared_lost"], "never acknowledged");
    let mut twice = book.clone();
    twice.delivered((30, 40), "d2", 0, 11).ack((50, 60), "d2", true);
    assert_eq!(twice.rules(&[], &[11], &[]), ["leased_twice"]);
    twice.killed(25);
    assert_eq!(twice.rules(&[], &[11], &[]), Vec::<&str>::new(), "a restart may give it again");
    let mut back = book.clone();
    back.delivered((5, 45), "d2", 0, 11).nack((30, 31), "d1").ack((50, 60), "d2", true);
    assert_eq!(back.rules(&[], &[11], &[]), Vec::<&str>::new(), "the request that began first was served last");
    let mut late = book.clone();
    late.delivered((10 + 100 * MS, 20 + 100 * MS), "d2", 0, 11).ack((200 * MS, 200 * MS), "d2", true);
    assert_eq!(late.rules(&[], &[11], &[]), Vec::<&str>::new());
    late.delivered((300 * MS, 301 * MS), "d3", 0, 11);
    assert_eq!(late.rules(&[], &[11], &[]), ["delivered_after_ack"]);
}

#[test]
fn dead_letters_are_accounted_for_once() {
    let dead = |ids: &[Option<u64>], acknowledged: bool| {
        let mut book = Book::new();
        book.append((0, 1), 1, &[11], ok(0, 1)).delivered((10, 20), "d1", 0, 11);
        if acknowledged {
            book.ack((30, 40), "d1", true);
        }
        book.at(50, 60, Event::DeadLetters { group: 1, ids: ids.to_vec() });
        book.rules(&[], &[11], &[])
    };
    assert_eq!(dead(&[Some(11)], false), Vec::<&str>::new());
    assert_eq!(dead(&[Some(11), Some(11)], false), ["dead_letter_twice"]);
    assert_eq!(dead(&[Some(11)], true), ["acknowledged_and_dead"]);
    assert!(dead(&[None], true).contains(&"dead_letter_changed"));
}

#[test]
fn two_protocols_show_the_same_and_odd_answers_are_told() {
    let mut book = Book::new();
    book.append((0, 10), 0, &[1, 2], ok(0, 2));
    let other = Read { place: place(0), from: 0, seen: seen(0, &[1]), gaps: vec![], next: None };
    book.at(20, 30, Event::Final { read: other, via: "/ds" });
    assert_eq!(book.a(&[1, 2]), ["protocols_disagree"]);
    let what = "exit code 1".to_owned();
    assert_eq!(Book::new().at(0, 1, Event::Unexpected { operation: "SIGTERM", what }).a(&[]), ["unexpected_answer"]);
}
