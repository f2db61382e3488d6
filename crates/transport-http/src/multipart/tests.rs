//! What the reader and the writer promise, also to bodies that nobody in his right mind would send.

use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;
use tidegate_testkit::SeededEntropy;

use super::*;

/// A part as it was read: its fields, or why there are none; its bytes; whether its end was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    head: Result<Vec<(String, Vec<u8>)>, HeadError>,
    bytes: Vec<u8>,
    whole: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    parts: Vec<Part>,
    ended: bool,
    refused: bool,
}

fn read<'a>(boundary: &str, pieces: impl IntoIterator<Item = &'a [u8]>) -> Told {
    let mut reader = Reader::new(boundary);
    let mut told = Told { parts: Vec::new(), ended: false, refused: false };
    for piece in pieces {
        reader.push(piece);
        loop {
            match reader.next() {
                Err(NotMultipart) => {
                    told.refused = true;
                    return told;
                }
                Ok(None) => break,
                Ok(Some(Event::Part(head))) => {
                    assert!(told.parts.last().is_none_or(|last| last.whole), "a part ends before the next begins");
                    let pair = |(name, value): (&HeaderName, &HeaderValue)| {
                        (name.as_str().to_owned(), value.as_bytes().to_vec())
                    };
                    let head = head.fields().map(|head: HeaderMap| head.iter().map(pair).collect());
                    told.parts.push(Part { head, bytes: Vec::new(), whole: false });
                }
                Ok(Some(Event::Data(data))) => {
                    assert!(!data.is_empty());
                    told.parts.last_mut().unwrap().bytes.extend_from_slice(&data);
                }
                Ok(Some(Event::PartEnd)) => told.parts.last_mut().unwrap().whole = true,
                Ok(Some(Event::End)) => told.ended = true,
            }
        }
    }
    told
}

fn whole(boundary: &str, body: &[u8]) -> Told {
    let told = read(boundary, [body]);
    assert_eq!(told, read(boundary, body.chunks(1)), "it does not matter how the bytes come");
    told
}

fn part(head: &[(&str, &str)], bytes: &str) -> Part {
    let head = head.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect();
    Part { head: Ok(head), bytes: bytes.as_bytes().to_vec(), whole: true }
}

#[test]
fn parts_are_read_with_all_that_the_grammar_allows() {
    let body = b"a preamble\r\n--b \t\r\nA: 1\r\nb:2\r\n\r\none\r\n--b\r\n\r\n\r\n--b\r\n\r\ntwo\r\n\r\n--b\r\nC: 3\r\n--b\r\n--b\r\nD: 4\r\n\r\n--b--epilogue";
    let told = whole("b", body);
    let wanted = [
        part(&[("a", "1"), ("b", "2")], "one"),
        part(&[], ""),
        part(&[], "two\r\n"),
        part(&[("c", "3")], ""),
        part(&[], ""),
        part(&[("d", "4")], ""),
    ];
    assert_eq!(told, Told { parts: wanted.to_vec(), ended: true, refused: false });
}

#[test]
fn what_only_looks_like_a_delimiter_is_data() {
    let inner = "x\r\n--bc\r\n--b-x\r\n--b x\r\n\r--b\n--b\r\r\n-\r\n--";
    let body = format!("--b\r\n\r\n{inner}\r\n--b--");
    assert_eq!(whole("b", body.as_bytes()).parts, [part(&[], inner)]);
}

#[test]
fn a_head_that_cannot_be_read_costs_its_part_alone() {
    let long = format!("a: {}", "x".repeat(HEAD_MAX_BYTES));
    let many = "a: b\r\n".repeat(HEAD_MAX_COUNT + 1);
    for (bad, error) in [
        ("no colon", HeadError::Malformed),
        ("bad name: x", HeadError::Malformed),
        ("a: \u{1}", HeadError::Malformed),
        (long.as_str(), HeadError::TooLarge),
        (many.trim_end(), HeadError::TooLarge),
    ] {
        let body = format!("--b\r\n{bad}\r\n\r\nlost\r\n--b\r\nA: 1\r\n\r\nkept\r\n--b--\r\n");
        let told = read("b", [body.as_bytes()]);
        let piecewise = read("b", body.as_bytes().chunks(7));
        for told in [told, piecewise] {
            assert_eq!(told.parts.len(), 2);
            assert_eq!(told.parts[0].head, Err(error), "{bad:.20}");
            assert_eq!(told.parts[1], part(&[("a", "1")], "kept"));
            assert!(told.ended);
        }
    }
}

#[test]
fn a_body_that_is_cut_says_which_part_was_not_whole() {
    let body = b"--b\r\nA: 1\r\n\r\none\r\n--b\r\nA: 2\r\n\r\ntwo\r\n--b--";
    for length in 0..body.len() {
        let told = whole("b", &body[..length]);
        assert!(!told.ended && !told.refused, "{length}");
        for (at, got) in told.parts.iter().enumerate() {
            let full = ["one", "two"][at];
            assert!(full.as_bytes().starts_with(&got.bytes), "{length}: {told:?}");
            assert!(!got.whole || got.bytes == full.as_bytes(), "{length}: {told:?}");
        }
    }
}

#[test]
fn a_body_that_never_begins_is_refused_before_it_fills_memory() {
    let told = read("b", std::iter::repeat_n(&b"\r\n--c\r\n"[..], 20_000));
    assert!(told.refused);
}

#[test]
fn a_boundary_is_read_from_the_content_type() {
    for (text, wanted) in [
        ("multipart/mixed; boundary=abc", "abc"),
        ("Multipart/Form-Data;charset=utf-8 ; Boundary=\"a b,c\"", "a b,c"),
        ("multipart/mixed; boundary=\"a\\:b\"; x=y", "a:b"),
    ] {
        assert_eq!(boundary_of(text).as_deref(), Ok(wanted), "{text}");
    }
    for text in ["application/json", "multipart/related; boundary=a", "", "multipart/mixedx; boundary=a"] {
        assert_eq!(boundary_of(text), Err(BoundaryError::Type), "{text}");
    }
    for text in [
        "multipart/mixed",
        "multipart/mixed; boundary=",
        "multipart/mixed; boundary=\"",
        "multipart/mixed; boundary=\"a \"",
        "multipart/mixed; boundary=a; boundary=b",
        "multipart/mixed; boundary=\"a\"b",
        "multipart/mixed; boundary=é",
        "multipart/mixed; boundary=a@b",
        "multipart/mixed; charset",
    ] {
        assert_eq!(boundary_of(text), Err(BoundaryError::Boundary), "{text}");
    }
    assert!(boundary_of(&format!("multipart/mixed; boundary={}", "x".repeat(70))).is_ok());
    assert!(boundary_of(&format!("multipart/mixed; boundary={}", "x".repeat(71))).is_err());
}

/// Cuts a body at these places.
fn cut<'a>(body: &'a [u8], at: &[usize]) -> Vec<&'a [u8]> {
    let mut places: Vec<usize> = at.iter().map(|at| at % (body.len() + 1)).collect();
    places.extend([0, body.len()]);
    places.sort_unstable();
    places.windows(2).map(|pair| &body[pair[0]..pair[1]]).collect()
}

/// Bytes of which delimiters are made, so that near misses are frequent.
fn nasty(max: usize) -> impl Strategy<Value = Vec<u8>> {
    let piece = prop::sample::select(vec![
        &b"\r\n--b\r\n"[..],
        b"\r\n--b--",
        b"--b",
        b"\r\n",
        b"\r",
        b"\n",
        b"-",
        b" ",
        b"b",
        b":",
        b"x",
        b"\0",
        b"\xff",
    ]);
    prop::collection::vec(piece, 0..max).prop_map(|pieces| pieces.concat())
}

#[test]
fn a_head_of_just_two_plain_fields_is_read_without_a_map_and_any_other_with_one() {
    let read = |text: &str| {
        let mut reader = Reader::new("b");
        reader.push(format!("--b\r\n{text}\r\n\r\n\r\n--b--").as_bytes());
        match reader.next().unwrap().unwrap() {
            Event::Part(head) => head.just(["one", "two"]).map(|values| values.map(str::to_owned)),
            other => panic!("{other:?}"),
        }
    };
    let both = || Some(["1".to_owned(), "2/%20".to_owned()]);
    assert_eq!(read("one: 1\r\ntwo: 2/%20"), both());
    assert_eq!(read("TWO:2/%20 \t\r\nOne: \t1"), both());
    for other in [
        "one: 1",
        "one: 1\r\none: 2",
        "one: 1\r\ntwo: ",
        "one: 1\r\ntwo: 2\r\nthree: 3",
        "one: 1\r\n two: 2",
        "one : 1\r\ntwo: 2",
        "one: 1\r\ntwo: a b",
        "one: 1\r\ntwo: \u{e9}",
        "one: 1\r\ntwo: 2\n3",
    ] {
        assert_eq!(read(other), None, "{other}");
    }
}

#[test]
fn a_value_that_would_begin_another_field_is_left_out() {
    let writer = Writer::new(&SeededEntropy::new(1)).unwrap();
    let mut head = BytesMut::new();
    for value in ["a\r\nb: c", "a\nb", "a\0", "\u{7f}"] {
        writer.field(&mut head, "x", value.as_bytes());
    }
    assert!(head.is_empty());
    writer.field(&mut head, "x", "a\tb \u{e9}".as_bytes());
    assert_eq!(head, "x: a\tb \u{e9}\r\n");
}

proptest! {
    #[test]
    fn what_was_written_is_read_however_it_is_cut(
        seed in any::<u64>(),
        parts in prop::collection::vec((prop::collection::vec(("[a-z]{1,8}", "[!-~]{0,8}"), 0..4), nasty(40)), 0..6),
        at in prop::collection::vec(any::<usize>(), 0..12),
    ) {
        let writer = Writer::new(&SeededEntropy::new(seed)).unwrap();
        let boundary = boundary_of(writer.content_type().to_str().unwrap()).unwrap();
        let (mut body, mut wanted) = (BytesMut::new(), Vec::new());
        for (fields, bytes) in &parts {
            let mut head = HeaderMap::new();
            for (name, value) in fields {
                head.append(HeaderName::try_from(name.as_str()).unwrap(), HeaderValue::try_from(value.as_str()).unwrap());
            }
            writer.begin_part(&mut body);
            for (name, value) in &head {
                writer.field(&mut body, name.as_str(), value.as_bytes());
            }
            writer.end_head(&mut body);
            body.extend_from_slice(bytes);
            writer.end_part(&mut body);
            let head = head.iter().map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec())).collect();
            wanted.push(Part { head: Ok(head), bytes: bytes.clone(), whole: true });
        }
        writer.end(&mut body);
        let told = read(&boundary, cut(&body, &at));
        prop_assert_eq!(told, Told { parts: wanted, ended: true, refused: false });
    }

    #[test]
    fn whatever_comes_it_is_read_the_same_however_it_is_cut(body in nasty(60), at in prop::collection::vec(any::<usize>(), 0..12)) {
        let told = read("b", [body.as_slice()]);
        prop_assert_eq!(&told, &read("b", cut(&body, &at)));
        prop_assert_eq!(&told, &read("b", body.chunks(1)));
    }
}
