//! The bodies of a group's routes, read strictly: no field is guessed, none is ignored.

use std::collections::BTreeMap;

use http::StatusCode;
use serde_json::value::RawValue;
use tidegate_cdc::group::{
    ACK_TIMEOUT_MS_MIN, DELIVERIES_MAX, Extend, GroupMode, GroupSpec, GroupStart, MemberStamp, Nack, OnGap,
    PollRequest, SESSION_MS_MIN, SPAN_MS_MAX, SeekTo, Settle,
};
use tidegate_core::Timestamp;
use tidegate_core::id::Name;
use tidegate_core::limit::Settings;

use crate::gate::json_problem;
use crate::json::{JsonError, Object, invalid, unsigned, unsigned_of};
use crate::parameter::{bounded, digits};
use crate::problem::Problem;

/// The most bytes of what a member calls itself.
pub(crate) const CLIENT_MAX_BYTES: usize = 255;
/// Records of a poll, unless told otherwise.
const LIMIT_DEFAULT: u64 = 1_000;
/// Bytes of a poll, unless told otherwise.
const MAX_BYTES_DEFAULT: u64 = 1024 * 1024;

/// An empty body says as much as `{}`.
fn object<'a>(body: &'a [u8], known: &[&str]) -> Result<Object<'a>, JsonError> {
    let body = if body.trim_ascii().is_empty() { b"{}" } else { body };
    Object::parse(body, known)
}

pub(super) fn spec(body: &[u8]) -> Result<GroupSpec, Problem> {
    let known = ["mode", "start", "session_ms", "ack_timeout_ms", "max_deliveries", "dead_letter", "on_gap"];
    let object = object(body, &known).map_err(|error| json_problem(&error))?;
    let mut spec = read_spec(&object).map_err(|error| json_problem(&error))?;
    if let Some(raw) = object.given("dead_letter") {
        let name = object.text_of(raw, "dead_letter").map_err(|error| json_problem(&error))?;
        let invalid = |error| {
            Problem::new(StatusCode::BAD_REQUEST, "invalid_name", format!("dead_letter: {error}"))
                .with("field", "dead_letter")
                .with("max_bytes", Name::MAX_BYTES)
        };
        spec.dead_letter = Some(Name::new(name).map_err(invalid)?);
    }
    Ok(spec)
}

fn read_spec(object: &Object<'_>) -> Result<GroupSpec, JsonError> {
    let mut spec = GroupSpec::default();
    if let Some(raw) = object.optional("mode") {
        spec.mode = match object.text_of(raw, "mode")?.as_str() {
            "ordered" => GroupMode::Ordered,
            "shared" => GroupMode::Shared,
            _ => return Err(invalid("mode", r#""ordered" or "shared""#, raw)),
        };
    }
    if let Some(raw) = object.optional("start") {
        spec.start = match object.text_of(raw, "start")?.as_str() {
            "earliest" => GroupStart::Earliest,
            "latest" => GroupStart::Latest,
            _ => return Err(invalid("start", r#""earliest" or "latest""#, raw)),
        };
    }
    if let Some(raw) = object.optional("on_gap") {
        spec.on_gap = match object.text_of(raw, "on_gap")?.as_str() {
            "report" => OnGap::Report,
            "stop" => OnGap::Stop,
            _ => return Err(invalid("on_gap", r#""report" or "stop""#, raw)),
        };
    }
    for (field, slot, min) in [
        ("session_ms", &mut spec.session_ms, SESSION_MS_MIN),
        ("ack_timeout_ms", &mut spec.ack_timeout_ms, ACK_TIMEOUT_MS_MIN),
    ] {
        if let Some(raw) = object.optional(field) {
            *slot = unsigned_of(raw, field, min, SPAN_MS_MAX)?;
        }
    }
    if let Some(raw) = object.optional("max_deliveries") {
        let given = unsigned_of(raw, "max_deliveries", 1, u64::from(DELIVERIES_MAX))?;
        // What does not fit is beyond the bound, which the service names.
        spec.max_deliveries = u32::try_from(given).unwrap_or(u32::MAX);
    }
    Ok(spec)
}

/// What a member calls itself; nothing, unless told otherwise.
pub(super) fn client(body: &[u8]) -> Result<String, Problem> {
    let read = || {
        let object = object(body, &["client"])?;
        object.given("client").map_or(Ok(String::new()), |raw| object.text_of(raw, "client"))
    };
    let client: String = read().map_err(|error| json_problem(&error))?;
    if client.len() > CLIENT_MAX_BYTES {
        let detail = format!("client has {} bytes, at most {CLIENT_MAX_BYTES} are taken", client.len());
        return Err(Problem::new(StatusCode::BAD_REQUEST, "invalid_field", detail)
            .with("field", "client")
            .with("max_bytes", CLIENT_MAX_BYTES));
    }
    Ok(client)
}

pub(super) fn generation(body: &[u8]) -> Result<u64, JsonError> {
    let object = object(body, &["generation"])?;
    unsigned(object.required("generation")?, "generation")
}

/// Member and generation: both or neither.
fn member(object: &Object<'_>) -> Result<Option<MemberStamp>, JsonError> {
    match (object.given("member"), object.given("generation")) {
        (None, None) => Ok(None),
        (None, Some(_)) => Err(JsonError::MissingField { field: "member" }),
        (Some(_), None) => Err(JsonError::MissingField { field: "generation" }),
        (Some(member), Some(generation)) => Ok(Some(MemberStamp {
            member: object.text_of(member, "member")?.into(),
            generation: unsigned(generation, "generation")?,
        })),
    }
}

pub(super) fn poll(body: &[u8], settings: &Settings) -> Result<PollRequest, Problem> {
    let known = ["member", "generation", "limit", "max_bytes", "wait_ms"];
    let object = object(body, &known).map_err(|error| json_problem(&error))?;
    let integer = |field: &str, default: u64, min: u64, max: u64| match object.given(field) {
        None => Ok(default.min(max)),
        Some(raw) => match digits(raw.get()) {
            Some(value) if (min..=max).contains(&value) => Ok(value),
            _ => Err(bounded(field, raw.get(), min, max)),
        },
    };
    let limit = integer("limit", LIMIT_DEFAULT, 1, settings.limits_read_max_records())?;
    Ok(PollRequest {
        member: member(&object).map_err(|error| json_problem(&error))?,
        limit: u32::try_from(limit).unwrap_or(u32::MAX),
        max_bytes: integer("max_bytes", MAX_BYTES_DEFAULT, 1, settings.limits_read_max_bytes())?,
        wait_ms: integer("wait_ms", 0, 0, settings.limits_wait_max_ms())?,
    })
}

/// What a commit says: who, and the next offsets.
pub(super) fn commit(body: &[u8]) -> Result<(Option<MemberStamp>, BTreeMap<u32, u64>), JsonError> {
    let object = object(body, &["member", "generation", "positions"])?;
    Ok((member(&object)?, positions(&object, object.required("positions")?)?))
}

/// Offsets by partition. A partition has one name: its number without a leading zero.
fn positions<'a>(object: &Object<'a>, raw: &'a RawValue) -> Result<BTreeMap<u32, u64>, JsonError> {
    let mut positions = BTreeMap::new();
    for (name, offset) in object.entries_of(raw, "positions")? {
        let shown: String = name.chars().take(40).collect();
        let path = format!("positions.{shown}");
        let number = digits(&name).filter(|_| name == "0" || !name.starts_with('0'));
        let Some(partition) = number.and_then(|number| u32::try_from(number).ok()) else {
            return Err(JsonError::InvalidField {
                path: path.into(),
                expected: "named by a partition, 0 to 4294967295 without leading zeros".into(),
                found: "another name",
            });
        };
        if positions.insert(partition, unsigned(offset, &path)?).is_some() {
            return Err(JsonError::DuplicateField { field: path.into() });
        }
    }
    Ok(positions)
}

pub(super) fn seek(body: &[u8]) -> Result<SeekTo, JsonError> {
    let object = object(body, &["positions", "to"])?;
    let to = match (object.optional("positions"), object.optional("to")) {
        (None, None) => return Err(JsonError::MissingField { field: "to" }),
        (Some(_), Some(raw)) => return Err(invalid("to", "left out where positions are given", raw)),
        (Some(raw), None) => return Ok(SeekTo::Positions(positions(&object, raw)?)),
        (None, Some(raw)) => raw,
    };
    Ok(match object.text_of(to, "to")?.as_str() {
        "earliest" => SeekTo::Earliest,
        "latest" => SeekTo::Latest,
        time => SeekTo::Time(
            Timestamp::parse(time).map_err(|_| invalid("to", r#""earliest", "latest" or an RFC 3339 time"#, to))?,
        ),
    })
}

pub(super) fn settle(body: &[u8]) -> Result<Settle, JsonError> {
    let object = object(body, &["member", "generation", "ack", "nack", "extend"])?;
    let mut settle = Settle { member: member(&object)?, ..Settle::default() };
    if let Some(raw) = object.optional("ack") {
        for (place, id) in object.items_of(raw, "ack")?.into_iter().enumerate() {
            settle.ack.push(object.text_of(id, &format!("ack[{place}]"))?.into());
        }
    }
    if let Some(raw) = object.optional("nack") {
        for (place, item) in object.items_of(raw, "nack")?.into_iter().enumerate() {
            let path = format!("nack[{place}]");
            let item = object.child(item, &path, &["id", "delay_ms"])?;
            let delay_ms = item
                .given("delay_ms")
                .map_or(Ok(0), |raw| unsigned_of(raw, &format!("{path}.delay_ms"), 0, SPAN_MS_MAX))?;
            settle.nack.push(Nack { id: id_of(&item, &path)?, delay_ms });
        }
    }
    if let Some(raw) = object.optional("extend") {
        for (place, item) in object.items_of(raw, "extend")?.into_iter().enumerate() {
            let path = format!("extend[{place}]");
            let item = object.child(item, &path, &["id", "ms"])?;
            let ms = unsigned_of(item.required("ms")?, &format!("{path}.ms"), 1, SPAN_MS_MAX)?;
            settle.extend.push(Extend { id: id_of(&item, &path)?, ms });
        }
    }
    Ok(settle)
}

fn id_of(item: &Object<'_>, path: &str) -> Result<Box<str>, JsonError> {
    Ok(item.text_of(item.required("id")?, &format!("{path}.id"))?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_core::Failure as _;

    #[test]
    fn a_spec_says_what_it_says_and_the_rest_is_usual() {
        assert_eq!(spec(b"").unwrap(), GroupSpec::default());
        let whole = spec(
            br#"{"mode":"shared","start":"latest","session_ms":1,"ack_timeout_ms":2,"max_deliveries":3,"dead_letter":"d/l","on_gap":"stop"}"#,
        )
        .unwrap();
        let expected = GroupSpec {
            mode: GroupMode::Shared,
            start: GroupStart::Latest,
            session_ms: 1,
            ack_timeout_ms: 2,
            max_deliveries: 3,
            dead_letter: Some(Name::new("d/l").unwrap()),
            on_gap: OnGap::Stop,
        };
        assert_eq!(whole, expected);
        assert_eq!(spec(br#"{"dead_letter":null}"#).unwrap(), GroupSpec::default());
        assert_eq!(spec(br#"{"max_deliveries":4294967297}"#).unwrap().max_deliveries, u32::MAX);
        for (body, code) in [
            (r#"{"mode":"queue"}"#, "invalid_field"),
            (r#"{"mode":null}"#, "invalid_field"),
            (r#"{"session_ms":-1}"#, "invalid_field"),
            (r#"{"session_ms":"1"}"#, "invalid_field"),
            (r#"{"dead_letter":""}"#, "invalid_name"),
            (r#"{"dead_letter":7}"#, "invalid_field"),
            (r#"{"session":1}"#, "unknown_field"),
        ] {
            assert_eq!(spec(body.as_bytes()).unwrap_err().code(), code, "{body}");
        }
    }

    #[test]
    fn what_is_no_integer_is_told_the_bounds_that_hold() {
        let of_spec = |body: &str| spec(body.as_bytes()).unwrap_err().detail().to_owned();
        let of_settle = |body: &str| settle(body.as_bytes()).unwrap_err().to_string();
        for (told, bounds) in [
            (of_spec(r#"{"session_ms":-1}"#), "an integer from 100 to 86400000, it is a negative number"),
            (of_spec(r#"{"ack_timeout_ms":null}"#), "an integer from 10 to 86400000, it is null"),
            (of_spec(r#"{"max_deliveries":"3"}"#), "an integer from 1 to 1000, it is a string"),
            (of_settle(r#"{"nack":[{"id":"b","delay_ms":-1}]}"#), "from 0 to 86400000, it is a negative number"),
            (of_settle(r#"{"extend":[{"id":"b","ms":true}]}"#), "from 1 to 86400000, it is a boolean"),
        ] {
            assert!(told.ends_with(bounds), "{told}");
        }
    }

    #[test]
    fn positions_are_numbers_by_partition() {
        let read = |body: &str| commit(body.as_bytes()).map(|(_, positions)| positions).map_err(|error| error.code());
        assert_eq!(read(r#"{"positions":{"0":105,"12":18446744073709551615}}"#), Ok([(0, 105), (12, u64::MAX)].into()));
        assert_eq!(read(r#"{"positions":{}}"#), Ok(BTreeMap::new()));
        for (body, code) in [
            ("", "missing_field"),
            (r#"{"positions":[1]}"#, "invalid_field"),
            (r#"{"positions":null}"#, "invalid_field"),
            (r#"{"positions":{"x":1}}"#, "invalid_field"),
            (r#"{"positions":{"-1":1}}"#, "invalid_field"),
            (r#"{"positions":{"4294967296":1}}"#, "invalid_field"),
            (r#"{"positions":{"0":-1}}"#, "invalid_field"),
            (r#"{"positions":{"0":"1"}}"#, "invalid_field"),
            (r#"{"positions":{"0":1.5}}"#, "invalid_field"),
            (r#"{"positions":{"0":1,"0":2}}"#, "duplicate_field"),
            (r#"{"positions":{"0":1,"\u0030":2}}"#, "duplicate_field"),
            (r#"{"positions":{"00":1}}"#, "invalid_field"),
            (r#"{"positions":{"01":1}}"#, "invalid_field"),
            (r#"{"positions":{"+1":1}}"#, "invalid_field"),
            (r#"{"positions":{" 1":1}}"#, "invalid_field"),
            (r#"{"positions":{"1 ":1}}"#, "invalid_field"),
            (r#"{"positions":{"1.0":1}}"#, "invalid_field"),
            (r#"{"positions":{"":1}}"#, "invalid_field"),
            (r#"{"positions":{"\u0661":1}}"#, "invalid_field"),
            (r#"{"member":"m","positions":{}}"#, "missing_field"),
            (r#"{"generation":1,"positions":{}}"#, "missing_field"),
            (r#"{"member":1,"generation":1,"positions":{}}"#, "invalid_field"),
        ] {
            assert_eq!(read(body), Err(code), "{body}");
        }
    }

    #[test]
    fn a_partition_has_one_name_and_another_is_refused_with_it() {
        for body in [r#"{"positions":{"0":1,"01":2}}"#, r#"{"positions":{"01":2,"1":2}}"#] {
            match commit(body.as_bytes()) {
                Err(JsonError::InvalidField { path, .. }) => assert_eq!(&*path, "positions.01"),
                other => panic!("{body}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_seek_goes_to_one_place() {
        let read = |body: &str| seek(body.as_bytes()).map_err(|error| error.code());
        assert_eq!(read(r#"{"to":"earliest"}"#), Ok(SeekTo::Earliest));
        assert_eq!(read(r#"{"to":"latest"}"#), Ok(SeekTo::Latest));
        assert!(matches!(read(r#"{"to":"2026-11-21T10:00:00Z"}"#), Ok(SeekTo::Time(_))));
        assert_eq!(read(r#"{"positions":{"3":1}}"#), Ok(SeekTo::Positions([(3, 1)].into())));
        for (body, code) in [
            ("{}", "missing_field"),
            (r#"{"to":"yesterday"}"#, "invalid_field"),
            (r#"{"to":17}"#, "invalid_field"),
            (r#"{"to":"latest","positions":{}}"#, "invalid_field"),
        ] {
            assert_eq!(read(body), Err(code), "{body}");
        }
    }

    #[test]
    fn what_becomes_of_deliveries_is_said_one_by_one() {
        let settled =
            settle(br#"{"ack":["a"],"nack":[{"id":"b","delay_ms":5},{"id":"c"}],"extend":[{"id":"d","ms":9}]}"#);
        let expected = Settle {
            member: None,
            ack: vec!["a".into()],
            nack: vec![Nack { id: "b".into(), delay_ms: 5 }, Nack { id: "c".into(), delay_ms: 0 }],
            extend: vec![Extend { id: "d".into(), ms: 9 }],
        };
        assert_eq!(settled, Ok(expected));
        for (body, code) in [
            (r#"{"ack":"a"}"#, "invalid_field"),
            (r#"{"ack":[1]}"#, "invalid_field"),
            (r#"{"nack":["b"]}"#, "invalid_field"),
            (r#"{"nack":[{"delay_ms":1}]}"#, "missing_field"),
            (r#"{"nack":[{"id":"b","delay":1}]}"#, "unknown_field"),
            (r#"{"extend":[{"id":"d"}]}"#, "missing_field"),
            (r#"{"extend":[{"id":"d","ms":-1}]}"#, "invalid_field"),
            (r#"{"acks":[]}"#, "unknown_field"),
        ] {
            assert_eq!(settle(body.as_bytes()).unwrap_err().code(), code, "{body}");
        }
    }

    #[test]
    fn a_poll_keeps_to_its_bounds() {
        let settings = Settings::default();
        let read = |body: &str| poll(body.as_bytes(), &settings).map_err(|problem| problem.code());
        let usual = PollRequest { member: None, limit: 1_000, max_bytes: 1_048_576, wait_ms: 0 };
        assert_eq!(read(""), Ok(usual.clone()));
        let member = MemberStamp { member: "m".into(), generation: 3 };
        assert_eq!(
            read(r#"{"member":"m","generation":3,"limit":10000}"#),
            Ok(PollRequest { member: Some(member), limit: 10_000, ..usual })
        );
        for bad in [
            r#"{"limit":0}"#,
            r#"{"limit":10001}"#,
            r#"{"limit":-1}"#,
            r#"{"limit":"1"}"#,
            r#"{"limit":18446744073709551616}"#,
            r#"{"max_bytes":0}"#,
            r#"{"wait_ms":60001}"#,
        ] {
            assert_eq!(read(bad), Err("invalid_field"), "{bad}");
        }
        assert_eq!(read(r#"{"member":"m"}"#), Err("missing_field"));
    }
}
