//! A configuration as the flat JSON map that `GET /v1/config` shows. It never shows a secret: a token's hash, a key and
//! the password in a URL are `***`.

use serde_json::{Map, Value};
use tidegate_core::Scope;
use tidegate_core::limit::Settings;
use tidegate_transport_http::auth::KeyMaterial;
use tidegate_transport_http::object_limit::{KILL, RATE, shown_kill, shown_rate};

use super::{Cold, Config, JournalMode, S3, Source};

const REDACTED: &str = "***";

impl Config {
    /// The values in force, by dotted key. `settings` are those of now, which may have been changed at run time.
    #[must_use]
    pub fn effective(&self, settings: &Settings) -> Map<String, Value> {
        let mut map: Map<String, Value> = self.entries().into_iter().collect();
        for setting in Settings::ALL {
            map.insert(setting.key.into(), settings.get(setting.key).unwrap_or(setting.default).into());
        }
        map.insert(KILL.into(), shown_kill(self.object_rules.kill()));
        map.insert(RATE.into(), shown_rate(self.object_rules.rate()));
        map
    }

    /// The values that do not change while the server runs, by dotted key.
    #[must_use]
    pub fn entries(&self) -> Vec<(String, Value)> {
        let mut entries = Vec::new();
        let mut put = |key: String, value: Value| entries.push((key, value));

        put("data_dir".into(), self.data_dir.display().to_string().into());
        put("durability".into(), self.durability.as_str().into());
        put("audit.path".into(), self.audit_path.display().to_string().into());
        match &self.objects.cold {
            Cold::Directory(path) => put("objects.cold".into(), path.display().to_string().into()),
            Cold::S3(s3) => s3_entries(s3, "objects.cold", "objects.s3", &mut put),
        }
        match &self.checkpoints {
            Cold::Directory(path) => put("checkpoints.store".into(), path.display().to_string().into()),
            Cold::S3(s3) => s3_entries(s3, "checkpoints.store", "checkpoints.s3", &mut put),
        }
        put("objects.hot_max_bytes".into(), self.objects.hot_max_bytes.into());
        put("listen.http".into(), self.listen.http.to_string().into());
        if let Some(tls) = &self.listen.tls {
            put("listen.tls.cert".into(), tls.cert.display().to_string().into());
            put("listen.tls.key".into(), tls.key.display().to_string().into());
            if let Some(ca) = &tls.client_ca {
                put("listen.tls.client_ca".into(), ca.display().to_string().into());
            }
        }
        for (name, source) in &self.sources {
            let key = |leaf: &str| format!("sources.{name}.{leaf}");
            match source {
                Source::Sqlite { path, journal_mode } => {
                    put(key("kind"), "sqlite".into());
                    put(key("path"), path.display().to_string().into());
                    let mode = match journal_mode {
                        JournalMode::Wal => "wal",
                        JournalMode::Keep => "keep",
                    };
                    put(key("journal_mode"), mode.into());
                }
                Source::Postgres { url, publication, slot, max_connections, ca } => {
                    put(key("kind"), "postgres".into());
                    put(key("url"), redact_url(url.reveal()).into());
                    for (leaf, value) in [("publication", publication), ("slot", slot)] {
                        if let Some(value) = value {
                            put(key(leaf), value.as_str().into());
                        }
                    }
                    if let Some(most) = max_connections {
                        put(key("max_connections"), (*most).into());
                    }
                    if let Some(ca) = ca {
                        put(key("ca"), ca.display().to_string().into());
                    }
                }
            }
        }
        if let Some(auth) = &self.auth {
            if let Some(audience) = &auth.audience {
                put("auth.audience".into(), audience.as_str().into());
            }
            if let Some(path) = &auth.jwks {
                put("auth.jwks".into(), path.display().to_string().into());
            }
            for (at, token) in auth.tokens.iter().enumerate() {
                let key = |leaf: &str| format!("auth.tokens[{at}].{leaf}");
                put(key("sha256"), REDACTED.into());
                put(key("subject"), token.subject.as_str().into());
                put(key("tenant"), token.tenant.as_str().into());
                let scopes =
                    Scope::ALL.iter().filter(|scope| token.scopes.contains(**scope)).map(|scope| scope.as_str());
                put(key("scopes"), scopes.map(Value::from).collect());
            }
            for (at, jwt) in auth.keys.iter().enumerate() {
                let key = |leaf: &str| format!("auth.keys[{at}].{leaf}");
                put(key("kid"), jwt.kid.as_str().into());
                let leaf = match jwt.material {
                    KeyMaterial::Secret(_) => "secret",
                    KeyMaterial::PublicPem(_) => "public_key",
                };
                put(key("alg"), jwt.alg.as_str().into());
                put(key(leaf), REDACTED.into());
                if let Some(tenant) = &jwt.tenant {
                    put(key("tenant"), tenant.as_str().into());
                }
            }
        }
        entries
    }
}

fn s3_entries(s3: &S3, place: &str, section: &str, put: &mut impl FnMut(String, Value)) {
    let slash = if s3.prefix.is_empty() { "" } else { "/" };
    put(place.into(), format!("s3://{}{slash}{}", s3.bucket, s3.prefix).into());
    let mut put = |leaf: &str, value: Value| put(format!("{section}.{leaf}"), value);
    for (leaf, value) in [("endpoint", &s3.endpoint), ("region", &s3.region)] {
        if let Some(value) = value {
            put(leaf, value.as_str().into());
        }
    }
    if let Some(addressing) = s3.addressing {
        put("addressing", addressing.as_str().into());
    }
    if let Some(credentials) = &s3.credentials {
        put("access_key_id", credentials.access_key_id.as_str().into());
        put("secret_access_key", REDACTED.into());
        if credentials.session_token.is_some() {
            put("session_token", REDACTED.into());
        }
    }
    if let Some(ca) = &s3.ca {
        put("ca", ca.display().to_string().into());
    }
    for (leaf, time) in [
        ("connect_timeout_ms", s3.connect_timeout),
        ("read_timeout_ms", s3.read_timeout),
        ("retry_timeout_ms", s3.retry_timeout),
        ("start_timeout_ms", s3.start_timeout),
    ] {
        put(leaf, u64::try_from(time.as_millis()).unwrap_or(u64::MAX).into());
    }
    put("retry_max", s3.retry_max.into());
}

/// A database's URL with its password replaced. It prefers to hide too much: everything between the first colon of the
/// user part and the last `@` goes, and every query parameter that is not known to be harmless.
#[must_use]
pub(super) fn redact_url(url: &str) -> String {
    const HARMLESS: [&str; 6] =
        ["application_name", "connect_timeout", "host", "port", "sslmode", "target_session_attrs"];
    let Some((scheme, rest)) = url.split_once("://") else { return REDACTED.to_owned() };
    let (place, query) = match rest.rsplit_once('?') {
        // A question mark before the last at sign belongs to a password.
        Some((place, query)) if !query.contains('@') => (place, Some(query)),
        _ => (rest, None),
    };
    let place = match place.rsplit_once('@') {
        Some((user, host)) => match user.split_once(':') {
            Some((user, _)) => format!("{user}:{REDACTED}@{host}"),
            None => format!("{user}@{host}"),
        },
        None => place.to_owned(),
    };
    let query = query.map(|query| {
        let pairs = query.split('&').map(|pair| match pair.split_once('=') {
            Some((key, _)) if !HARMLESS.contains(&key) => format!("{key}={REDACTED}"),
            _ => pair.to_owned(),
        });
        format!("?{}", pairs.collect::<Vec<_>>().join("&"))
    });
    format!("{scheme}://{place}{}", query.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::redact_url;

    #[test]
    fn a_password_never_leaves_in_a_url() {
        for (url, shown) in [
            ("postgres://u:p@h/d", "postgres://u:***@h/d"),
            ("postgres://u@h:5432/d", "postgres://u@h:5432/d"),
            ("postgres://u:p@ss/w?rd@h/d", "postgres://u:***@h/d"),
            ("postgresql://u:p@h1:1,h2:2/d?sslmode=require", "postgresql://u:***@h1:1,h2:2/d?sslmode=require"),
            ("postgres://h/d?user=u&password=p", "postgres://h/d?user=***&password=***"),
            ("not a url", "***"),
        ] {
            assert_eq!(redact_url(url), shown, "{url}");
        }
    }
}
