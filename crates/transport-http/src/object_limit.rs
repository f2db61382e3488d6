//! The rules for objects as text: `limits.object.kill` and `limits.object.rate`, read from JSON and shown in it, the same for a request
//! and for the configuration. It reads one rule at a time and puts none in force.

use http::StatusCode;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use tidegate_batch::Scopes;
use tidegate_batch::policy::{
    Access, BYTES_MAX, BYTES_MIN, Each, KillRule, REQUESTS_MAX, RULE_MAX_COUNT, Rate, RateRule, Selector,
};
use tidegate_core::id::Name;

use crate::gate::json_problem;
use crate::json::{JsonError, Object, invalid, unsigned_of};
use crate::problem::Problem;

/// The key of the kill switches.
pub const KILL: &str = "limits.object.kill";
/// The key of the rate limits.
pub const RATE: &str = "limits.object.rate";

const KILL_FIELDS: [&str; 4] = ["tenant", "usecase", "scopes", "operations"];
const RATE_FIELDS: [&str; 8] =
    ["tenant", "usecase", "scopes", "requests_per_second", "burst", "bytes_per_second", "burst_bytes", "each"];

/// A rule that is being read. `null` is the same as nothing.
struct Fields<'a> {
    object: Object<'a>,
    path: &'a str,
}

impl<'a> Fields<'a> {
    fn of(json: &'a str, path: &'a str, known: &[&str]) -> Result<Self, Problem> {
        let named = |field: &str| format!("{path}.{field}").into();
        let object = Object::parse(json.as_bytes(), known).map_err(|error| {
            json_problem(&match error {
                JsonError::UnknownField { field, known } => JsonError::UnknownField { field: named(&field), known },
                JsonError::DuplicateField { field } => JsonError::DuplicateField { field: named(&field) },
                JsonError::InvalidField { found, .. } => {
                    JsonError::InvalidField { path: path.into(), expected: "an object".into(), found }
                }
                other => other,
            })
        })?;
        Ok(Self { object, path })
    }

    fn path(&self, field: &str) -> String {
        format!("{}.{field}", self.path)
    }

    fn text(&self, field: &str) -> Result<Option<(String, String)>, Problem> {
        let Some(raw) = self.object.given(field) else { return Ok(None) };
        let path = self.path(field);
        let text = self.object.text_of(raw, &path).map_err(|error| json_problem(&error))?;
        Ok(Some((text, path)))
    }

    fn parsed<T, E: std::fmt::Display>(
        &self,
        field: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, Problem> {
        let Some((text, path)) = self.text(field)? else { return Ok(None) };
        parse(&text).map(Some).map_err(|error| refuse(&path, &error.to_string()))
    }

    fn number(&self, field: &str, min: u64, max: u64) -> Result<Option<u64>, Problem> {
        let Some(raw) = self.object.given(field) else { return Ok(None) };
        let path = self.path(field);
        match unsigned_of(raw, &path, min, max) {
            Ok(number) if (min..=max).contains(&number) => Ok(Some(number)),
            Err(error) if raw.get().parse::<i128>().is_err() => Err(json_problem(&error)),
            _ => Err(out_of_range(&path, &format!("an integer from {min} to {max}"), min, max)),
        }
    }

    fn selector(&self) -> Result<Selector, Problem> {
        Ok(Selector {
            tenant: self.parsed("tenant", |text| Name::new(text))?,
            usecase: self.parsed("usecase", |text| Name::new(text))?,
            scopes: self.parsed("scopes", Scopes::parse)?,
        })
    }
}

/// Reads one kill switch. `path` is where it stands, for what is wrong with it.
///
/// # Errors
/// 400 `unknown_field`, `duplicate_field`, `invalid_field`, each with the `field`.
pub fn kill_rule(json: &str, path: &str) -> Result<KillRule, Problem> {
    let fields = Fields::of(json, path, &KILL_FIELDS)?;
    let of = fields.selector()?;
    let mut operations = Vec::new();
    if let Some(raw) = fields.object.given("operations") {
        let path = fields.path("operations");
        let items = fields.object.items_of(raw, &path).map_err(|error| json_problem(&error))?;
        if items.is_empty() {
            return Err(refuse(&path, "names at least one; without the field it is all of them"));
        }
        for (at, raw) in items.into_iter().enumerate() {
            let path = format!("{path}[{at}]");
            let text = fields.object.text_of(raw, &path).map_err(|error| json_problem(&error))?;
            let access =
                Access::parse(&text).ok_or_else(|| refuse(&path, "must be \"read\", \"write\" or \"delete\""))?;
            if operations.contains(&access) {
                return Err(refuse(&path, "stands there twice"));
            }
            operations.push(access);
        }
        operations.sort_unstable();
    }
    Ok(KillRule { of, operations })
}

/// Reads one rate limit. `path` is where it stands, for what is wrong with it.
///
/// # Errors
/// 400 `unknown_field`, `duplicate_field`, `invalid_field`, `out_of_range`, each with the `field`.
pub fn rate_rule(json: &str, path: &str) -> Result<RateRule, Problem> {
    let fields = Fields::of(json, path, &RATE_FIELDS)?;
    let of = fields.selector()?;
    let rate = |each: &str, all: &str, min: u64, max: u64| {
        let burst = fields.number(all, 1, max)?;
        match fields.number(each, min, max)? {
            // What comes in a second may come at once.
            Some(per_second) => Ok(Some(Rate { per_second, burst: burst.unwrap_or(per_second) })),
            None if burst.is_some() => Err(refuse(&fields.path(all), &format!("is of no use without {each}"))),
            None => Ok(None),
        }
    };
    let requests = rate("requests_per_second", "burst", 1, REQUESTS_MAX)?;
    let bytes = rate("bytes_per_second", "burst_bytes", BYTES_MIN, BYTES_MAX)?;
    let words = "must be \"tenant\", \"usecase\", \"scopes\" or null";
    let each = fields.parsed("each", |text| Each::parse(text).ok_or(words))?;
    if requests.is_none() && bytes.is_none() {
        return Err(refuse(path, "needs requests_per_second or bytes_per_second"));
    }
    Ok(RateRule { of, requests, bytes, each })
}

/// Reads the rules of an array, one by one.
pub(crate) fn rules<T>(
    raw: &RawValue,
    key: &str,
    rule: impl Fn(&str, &str) -> Result<T, Problem>,
) -> Result<Vec<T>, Problem> {
    if !raw.get().starts_with('[') {
        return Err(json_problem(&invalid(key, "an array of rules", raw)));
    }
    let items: Vec<&RawValue> = serde_json::from_str(raw.get()).map_err(|_| refuse(key, "is no array"))?;
    check_count(key, items.len())?;
    items.into_iter().enumerate().map(|(at, raw)| rule(raw.get(), &format!("{key}[{at}]"))).collect()
}

/// Whether there may be so many rules.
///
/// # Errors
/// 400 `invalid_field` with `max`.
pub fn check_count(key: &str, count: usize) -> Result<(), Problem> {
    if count <= RULE_MAX_COUNT {
        return Ok(());
    }
    Err(refuse(key, &format!("has {count} rules, there may be {RULE_MAX_COUNT}")).with("max", RULE_MAX_COUNT))
}

fn refuse(path: &str, why: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "invalid_field", format!("{path}: {why}")).with("field", path)
}

pub(crate) fn out_of_range(key: &str, expected: &str, min: u64, max: u64) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "out_of_range", format!("{key} must be {expected}"))
        .with("field", key)
        .with("min", min)
        .with("max", max)
}

fn selected(of: &Selector) -> Map<String, Value> {
    let given = [
        ("tenant", of.tenant.as_ref().map(Name::as_str)),
        ("usecase", of.usecase.as_ref().map(Name::as_str)),
        ("scopes", of.scopes.as_ref().map(Scopes::as_str)),
    ];
    given.into_iter().filter_map(|(field, text)| Some((field.to_owned(), text?.into()))).collect()
}

/// Kill switches as they are read.
#[must_use]
pub fn shown_kill(rules: &[KillRule]) -> Value {
    let shown = rules.iter().map(|rule| {
        let mut fields = selected(&rule.of);
        if !rule.operations.is_empty() {
            let names: Vec<&str> = rule.operations.iter().map(|access| access.as_str()).collect();
            fields.insert("operations".to_owned(), json!(names));
        }
        Value::Object(fields)
    });
    shown.collect()
}

/// Rate limits as they are read, each with its burst.
#[must_use]
pub fn shown_rate(rules: &[RateRule]) -> Value {
    let shown = rules.iter().map(|rule| {
        let mut fields = selected(&rule.of);
        for (each, all, rate) in
            [("requests_per_second", "burst", rule.requests), ("bytes_per_second", "burst_bytes", rule.bytes)]
        {
            if let Some(rate) = rate {
                fields.insert(each.to_owned(), rate.per_second.into());
                fields.insert(all.to_owned(), rate.burst.into());
            }
        }
        if let Some(each) = rule.each {
            fields.insert("each".to_owned(), each.as_str().into());
        }
        Value::Object(fields)
    });
    shown.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong<T: std::fmt::Debug>(read: Result<T, Problem>) -> (&'static str, String) {
        let problem = read.expect_err("it is wrong");
        (problem.code(), problem.members()["field"].as_str().unwrap_or_default().to_owned())
    }

    #[test]
    fn a_rule_is_shown_as_it_is_read() {
        for json in [r#"{}"#, r#"{"operations":["read","delete"],"scopes":"org=17","tenant":"a/b","usecase":"u"}"#] {
            let rule = kill_rule(json, "k").unwrap();
            assert_eq!(shown_kill(&[rule]), serde_json::from_str::<Value>(&format!("[{json}]")).unwrap());
        }
        for json in [
            r#"{"requests_per_second":5,"burst":9,"each":"scopes"}"#,
            r#"{"bytes_per_second":65536,"burst_bytes":1,"usecase":"u"}"#,
        ] {
            let rule = rate_rule(json, "r").unwrap();
            assert_eq!(shown_rate(&[rule]), serde_json::from_str::<Value>(&format!("[{json}]")).unwrap());
        }
        let short = rate_rule(r#"{"requests_per_second":5,"each":null,"tenant":null}"#, "r").unwrap();
        assert_eq!(shown_rate(&[short]), json!([{"requests_per_second": 5, "burst": 5}]));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (json, code, field) in [
            ("1", "invalid_field", "k[0]"),
            (r#"{"use_case":"u"}"#, "unknown_field", "k[0].use_case"),
            (r#"{"usecase":"u","usecase":"v"}"#, "duplicate_field", "k[0].usecase"),
            (r#"{"usecase":""}"#, "invalid_field", "k[0].usecase"),
            (r#"{"usecase":7}"#, "invalid_field", "k[0].usecase"),
            (r#"{"scopes":"org"}"#, "invalid_field", "k[0].scopes"),
            (r#"{"operations":"read"}"#, "invalid_field", "k[0].operations"),
            (r#"{"operations":[]}"#, "invalid_field", "k[0].operations"),
            (r#"{"operations":["read","Write"]}"#, "invalid_field", "k[0].operations[1]"),
            (r#"{"operations":["read","read"]}"#, "invalid_field", "k[0].operations[1]"),
        ] {
            assert_eq!(wrong(kill_rule(json, "k[0]")), (code, field.to_owned()), "{json}");
        }
        for (json, code, field) in [
            ("{}", "invalid_field", "r[3]"),
            (r#"{"requests_per_second":0}"#, "out_of_range", "r[3].requests_per_second"),
            (r#"{"requests_per_second":-1}"#, "out_of_range", "r[3].requests_per_second"),
            (r#"{"requests_per_second":1.5}"#, "invalid_field", "r[3].requests_per_second"),
            (r#"{"requests_per_second":"1"}"#, "invalid_field", "r[3].requests_per_second"),
            (r#"{"requests_per_second":1,"burst":0}"#, "out_of_range", "r[3].burst"),
            (r#"{"bytes_per_second":1}"#, "out_of_range", "r[3].bytes_per_second"),
            (r#"{"bytes_per_second":65536,"burst":1}"#, "invalid_field", "r[3].burst"),
            (r#"{"requests_per_second":1,"each":"key"}"#, "invalid_field", "r[3].each"),
            (r#"{"requests_per_second":1,"operations":["read"]}"#, "unknown_field", "r[3].operations"),
        ] {
            assert_eq!(wrong(rate_rule(json, "r[3]")), (code, field.to_owned()), "{json}");
        }
    }
}
