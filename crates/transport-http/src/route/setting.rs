//! The effective configuration, the settings that can be changed at run time, and the bounds. A change is all or nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use axum::extract::{Extension, Request, State};
use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json};
use tidegate_batch::policy::{KillRule, RateRule, Rules};
use tidegate_core::Principal;
use tidegate_core::limit::{SettingError, Settings};
use tidegate_lease::audit::AuditEvent;
use tidegate_lease::frozen::{SettingChange, SettingsCell};

use super::json;
use crate::body::read_whole;
use crate::gate::{App, json_problem};
use crate::json::{Object, invalid};
use crate::object_limit::{KILL, RATE, kill_rule, out_of_range, rate_rule, rules, shown_kill, shown_rate};
use crate::problem::Problem;
use crate::service::LIMITS;

pub(super) async fn show(State(app): State<Arc<App>>) -> Response {
    json(&effective(&app))
}

pub(super) async fn limits(State(app): State<Arc<App>>) -> Response {
    let now = app.services.query.settings().freeze();
    let settings: Vec<Value> = Settings::ALL
        .iter()
        .map(|setting| {
            json!({
                "key": setting.key,
                "value": now.get(setting.key),
                "default": setting.default,
                "min": setting.min,
                "max": setting.max,
                "meaning": setting.meaning,
            })
        })
        .collect();
    let built_in: Vec<_> = app.services.limits.iter().chain(LIMITS).collect();
    json(&json!({"settings": settings, "built_in": built_in}))
}

pub(super) async fn change(
    State(app): State<Arc<App>>,
    Extension(principal): Extension<Principal>,
    request: Request,
) -> Result<Response, Problem> {
    let cell = app.services.query.settings();
    let body = read_whole(request.into_body(), &cell.freeze(), app.services.clock.as_ref()).await?;
    let fixed = app.services.config.entries();
    let changes = changes(&body, &fixed)?;
    let (changed, rules_changed) = put_in_force(&app, cell, changes)?;
    for change in changed {
        tracing::info!(key = change.key, from = change.from, to = change.to, "a setting was changed");
        app.services.auditor.emit(
            Some(&principal.owner),
            AuditEvent::ConfigChanged { key: change.key, from: change.from, to: change.to },
        );
    }
    for change in rules_changed {
        tracing::info!(key = change.key, from = change.from, to = change.to, "rules for objects were changed");
        app.services.auditor.emit(
            Some(&principal.owner),
            AuditEvent::RulesChanged {
                key: change.key,
                from: change.from,
                to: change.to,
                before: change.before,
                rules: change.rules,
            },
        );
    }
    Ok(json(&effective(&app)))
}

/// Rules that are others than before.
struct RulesChange {
    key: &'static str,
    /// How many there were.
    from: u64,
    /// How many there are.
    to: u64,
    /// What they were, as `GET /v1/config` shows them.
    before: Box<str>,
    /// What they are.
    rules: Box<str>,
}

impl RulesChange {
    fn of(key: &'static str, (from, before): (usize, Value), (to, rules): (usize, Value)) -> Self {
        let text = |rules: &Value| rules.to_string().into_boxed_str();
        Self { key, from: from as u64, to: to as u64, before: text(&before), rules: text(&rules) }
    }
}

/// One step, after everything that can be refused has been looked at.
fn put_in_force(
    app: &App,
    cell: &SettingsCell,
    changes: Changes,
) -> Result<(Vec<SettingChange>, Vec<RulesChange>), Problem> {
    let policy = &app.services.object_policy;
    // It guards nothing that a panic could leave half done.
    let _one_at_a_time = app.changing.lock().unwrap_or_else(PoisonError::into_inner);
    let before = policy.rules();
    let kill = changes.kill.unwrap_or_else(|| before.kill().to_vec());
    let rate = changes.rate.unwrap_or_else(|| before.rate().to_vec());
    let rules = Rules::new(kill, rate)
        .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, "invalid_field", error.to_string()))?;
    let changed = cell.patch(&changes.settings).map_err(|error| setting_problem(&error))?;
    let mut rules_changed = Vec::new();
    let (old, new) = (before.kill(), rules.kill());
    if old != new {
        rules_changed.push(RulesChange::of(KILL, (old.len(), shown_kill(old)), (new.len(), shown_kill(new))));
    }
    let (old, new) = (before.rate(), rules.rate());
    if old != new {
        rules_changed.push(RulesChange::of(RATE, (old.len(), shown_rate(old)), (new.len(), shown_rate(new))));
    }
    if !rules_changed.is_empty() {
        policy.replace(rules, app.services.clock.now());
    }
    Ok((changed, rules_changed))
}

/// Every key that there is, with its value of now.
fn effective(app: &App) -> BTreeMap<String, Value> {
    let settings = app.services.query.settings().freeze();
    let mut entries: BTreeMap<String, Value> = app.services.config.entries().into_iter().collect();
    for setting in Settings::ALL {
        entries.insert(setting.key.to_owned(), settings.get(setting.key).into());
    }
    let rules = app.services.object_policy.rules();
    entries.insert(KILL.to_owned(), shown_kill(rules.kill()));
    entries.insert(RATE.to_owned(), shown_rate(rules.rate()));
    entries
}

/// What a request wants to change.
#[derive(Debug, Default, PartialEq, Eq)]
struct Changes {
    settings: Vec<(&'static str, u64)>,
    kill: Option<Vec<KillRule>>,
    rate: Option<Vec<RateRule>>,
}

/// Reads what a request wants to change. Nothing is changed yet.
fn changes(body: &[u8], fixed: &[(String, Value)]) -> Result<Changes, Problem> {
    let settings = Settings::ALL.iter().map(|setting| setting.key).chain([KILL, RATE]);
    let known: Vec<&str> = settings.chain(fixed.iter().map(|(key, _)| key.as_str())).collect();
    let object = Object::parse(body, &known).map_err(|error| json_problem(&error))?;
    let mut changes = Changes::default();
    for (key, raw) in object.fields() {
        match key {
            KILL => {
                changes.kill = Some(rules(raw, KILL, kill_rule)?);
                continue;
            }
            RATE => {
                changes.rate = Some(rules(raw, RATE, rate_rule)?);
                continue;
            }
            _ => {}
        }
        let Some(setting) = Settings::ALL.iter().find(|setting| setting.key == key) else {
            return Err(Problem::new(
                StatusCode::BAD_REQUEST,
                "not_changeable_at_run_time",
                format!("{key} is read at the start only; change the configuration and restart"),
            )
            .with("field", key));
        };
        let expected = || format!("an integer from {} to {}", setting.min, setting.max);
        let value = match raw.get().parse::<i128>() {
            Ok(value) => {
                u64::try_from(value).map_err(|_| out_of_range(setting.key, &expected(), setting.min, setting.max))?
            }
            Err(_) => return Err(json_problem(&invalid(key, &expected(), raw))),
        };
        changes.settings.push((setting.key, value));
    }
    Ok(changes)
}

fn setting_problem(error: &SettingError) -> Problem {
    match error {
        SettingError::OutOfRange { key, min, max, .. } => {
            out_of_range(key, &format!("an integer from {min} to {max}"), *min, *max)
        }
        SettingError::Unknown { key } => {
            Problem::new(StatusCode::BAD_REQUEST, "unknown_field", error.to_string()).with("field", key.to_string())
        }
        _ => Problem::new(StatusCode::BAD_REQUEST, "invalid_field", error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_changed_is_told_from_what_does_not_exist() {
        let fixed = [("listen.http".to_owned(), Value::Null)];
        let code = |body: &str| changes(body.as_bytes(), &fixed).map_err(|problem| problem.code());
        assert_eq!(
            code(r#"{"stream.max_global":3}"#),
            Ok(Changes { settings: vec![("stream.max_global", 3)], ..Changes::default() })
        );
        assert_eq!(code("{}"), Ok(Changes::default()));
        assert_eq!(code(r#"{"listen.http":"x"}"#), Err("not_changeable_at_run_time"));
        assert_eq!(code(r#"{"stream.nonsense":1}"#), Err("unknown_field"));
        assert_eq!(code(r#"{"stream.max_global":-1}"#), Err("out_of_range"));
        assert_eq!(code(r#"{"stream.max_global":18446744073709551616}"#), Err("out_of_range"));
        assert_eq!(code(r#"{"stream.max_global":1.0}"#), Err("invalid_field"));
        assert_eq!(code(r#"{"stream.max_global":"1"}"#), Err("invalid_field"));
    }
}
