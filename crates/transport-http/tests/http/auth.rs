//! Who asks: every algorithm, every refusal, every scope; and nothing but the token decides.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header};
use rcgen::{KeyPair, RsaKeySize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tidegate_core::id::Name;
use tidegate_core::{Clock as _, Scope};
use tidegate_testkit::{Gate, ManualClock, Script, block_on};
use tidegate_transport_http::auth::{JwtAlgorithm, JwtKey, KeyMaterial, StaticToken, TOKEN_MAX_BYTES};
use tidegate_transport_http::{AuthConfig, TokenConfig};

use super::client::{Answer, ask, request};
use super::world::{SELECT, Setup, World};

/// A key of each algorithm, with the `kid` that is its algorithm's name, and one more of each that the server does not know.
struct Keys {
    known: Vec<Key>,
    foreign: Vec<Key>,
}

struct Key {
    alg: JwtAlgorithm,
    signs: EncodingKey,
    material: KeyMaterial,
}

fn keys() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    // Made once: an RSA key takes a while.
    KEYS.get_or_init(|| Keys { known: make_keys(1), foreign: make_keys(2) })
}

fn make_keys(seed: u8) -> Vec<Key> {
    let ed = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let ec = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
    let public = |pair: &KeyPair| KeyMaterial::PublicPem(pair.public_key_pem());
    let pem = |pair: &KeyPair| pair.serialize_pem().into_bytes();
    vec![
        Key { alg: JwtAlgorithm::EdDsa, signs: EncodingKey::from_ed_pem(&pem(&ed)).unwrap(), material: public(&ed) },
        Key { alg: JwtAlgorithm::Es256, signs: EncodingKey::from_ec_pem(&pem(&ec)).unwrap(), material: public(&ec) },
        Key { alg: JwtAlgorithm::Rs256, signs: EncodingKey::from_rsa_pem(&pem(&rsa)).unwrap(), material: public(&rsa) },
        Key {
            alg: JwtAlgorithm::Hs256,
            signs: EncodingKey::from_secret(&[seed; 32]),
            material: KeyMaterial::Secret(vec![seed; 32]),
        },
    ]
}

fn library(alg: JwtAlgorithm) -> Algorithm {
    alg.as_str().parse().unwrap()
}

/// All known keys, audience `tidegate`, no leeway.
fn config() -> TokenConfig {
    TokenConfig {
        audience: Some("tidegate".into()),
        keys: keys()
            .known
            .iter()
            .map(|key| JwtKey {
                kid: key.alg.as_str().into(),
                alg: key.alg,
                material: key.material.clone(),
                tenant: None,
            })
            .collect(),
        ..TokenConfig::default()
    }
}

fn world() -> World {
    Setup { auth: AuthConfig::Token(config()), ..Setup::default() }.start()
}

fn now_s() -> i64 {
    tidegate_core::system::SystemClock::new().timestamp().unix_ms() / 1_000
}

/// Good claims for alice of acme, with the changes: a null takes a claim away.
fn claims(changes: Value) -> Value {
    let mut claims = json!({
        "sub": "alice", "tenant": "acme", "scope": "query openid", "exp": now_s() + 600, "aud": "tidegate",
    });
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    claims
}

fn sign(key: &Key, kid: Option<&str>, claims: &Value) -> String {
    let mut header = Header::new(library(key.alg));
    header.kid = kid.map(str::to_owned);
    jsonwebtoken::encode(&header, claims, &key.signs).unwrap()
}

/// A token of the first known key.
fn token(changes: Value) -> String {
    sign(&keys().known[0], Some("EdDSA"), &claims(changes))
}

fn code(answer: &Answer) -> (u16, String) {
    (answer.status(), if answer.status() == 200 { String::new() } else { answer.code() })
}

fn refused(code: &str) -> (u16, String) {
    (401, code.to_owned())
}

#[test]
fn a_token_of_every_algorithm_is_good_and_a_forged_one_of_none() {
    block_on(async {
        let world = world();
        for (known, foreign) in keys().known.iter().zip(&keys().foreign) {
            let kid = known.alg.as_str();
            let good = sign(known, Some(kid), &claims(json!({})));
            assert_eq!(world.get_as(&good, "/v1/leases").await.status(), 200, "{kid}");
            // The one key of its algorithm is found without a kid, too.
            let nameless = sign(known, None, &claims(json!({})));
            assert_eq!(world.get_as(&nameless, "/v1/leases").await.status(), 200, "{kid}");
            for forged in [
                sign(foreign, Some(kid), &claims(json!({}))),
                sign(foreign, None, &claims(json!({}))),
                sign(known, Some("other"), &claims(json!({}))),
                with_other_claims(&good, &claims(json!({"sub": "mallory"}))),
                good[..good.rfind('.').unwrap() + 1].to_owned(),
            ] {
                assert_eq!(
                    code(&world.get_as(&forged, "/v1/leases").await),
                    refused("token_invalid"),
                    "{kid}: {forged}"
                );
            }
        }
        let codes: Vec<_> = world.audit.records().iter().map(|record| record.event).collect();
        assert_eq!(codes, ["auth.refused"; 20], "every refusal is audited");
    });
}

/// The header and the signature of one token around other claims.
fn with_other_claims(token: &str, claims: &Value) -> String {
    let parts: Vec<&str> = token.split('.').collect();
    format!("{}.{}.{}", parts[0], part(claims), parts[2])
}

/// A part of a token without any signature.
fn part(value: &Value) -> String {
    // The second part of a token signed with any key is the encoding that is wanted.
    let signed = jsonwebtoken::encode(&Header::default(), value, &EncodingKey::from_secret(b"x")).unwrap();
    signed.split('.').nth(1).unwrap().to_owned()
}

#[test]
fn a_key_is_used_for_its_own_algorithm_only() {
    block_on(async {
        let world = world();
        let unsigned = |header: Value| format!("{}.{}.", part(&header), part(&claims(json!({}))));
        for alg in ["none", "None", "NONE", "nOnE"] {
            for kid in ["EdDSA", "HS256"] {
                let token = unsigned(json!({"alg": alg, "typ": "JWT", "kid": kid}));
                assert_eq!(code(&world.get_as(&token, "/v1/leases").await), refused("token_malformed"), "{alg}");
            }
        }
        // The classic: the server's public key taken as a shared secret.
        for (known, kid) in keys().known.iter().zip(["EdDSA", "ES256", "RS256"]) {
            let KeyMaterial::PublicPem(pem) = &known.material else { unreachable!("the first three are public keys") };
            let confused = Key {
                alg: JwtAlgorithm::Hs256,
                signs: EncodingKey::from_secret(pem.as_bytes()),
                material: KeyMaterial::Secret(pem.clone().into_bytes()),
            };
            let token = sign(&confused, Some(kid), &claims(json!({})));
            assert_eq!(code(&world.get_as(&token, "/v1/leases").await), refused("token_invalid"), "{kid}");
        }
        // A header that must be understood and is not.
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some("EdDSA".into());
        header.crit = Some(vec!["exp".into()]);
        let token = jsonwebtoken::encode(&header, &claims(json!({})), &keys().known[0].signs).unwrap();
        assert_eq!(code(&world.get_as(&token, "/v1/leases").await), refused("token_invalid"));
    });
}

#[test]
fn every_claim_that_counts_is_checked() {
    block_on(async {
        let world = world();
        for (changes, answer) in [
            (json!({"exp": now_s() - 60}), refused("token_expired")),
            (json!({"exp": 0}), refused("token_expired")),
            (json!({"exp": -1e300}), refused("token_expired")),
            (json!({"exp": null}), refused("token_invalid")),
            (json!({"exp": "tomorrow"}), refused("token_invalid")),
            (json!({"nbf": now_s() + 60}), refused("token_invalid")),
            (json!({"aud": null}), refused("token_invalid")),
            (json!({"aud": "another"}), refused("token_invalid")),
            (json!({"aud": ["another", "tidegate "]}), refused("token_invalid")),
            (json!({"aud": {"tidegate": true}}), refused("token_invalid")),
            (json!({"aud": "another", "exp": 0}), refused("token_invalid")),
            (json!({"sub": null}), refused("token_invalid")),
            (json!({"sub": ""}), refused("token_invalid")),
            (json!({"sub": "a\nb"}), refused("token_invalid")),
            (json!({"tenant": null}), refused("token_invalid")),
            (json!({"tenant": 7}), refused("token_invalid")),
            (json!({"tenant": "x".repeat(256)}), refused("token_invalid")),
            (json!({"scope": ["query"]}), refused("token_invalid")),
            (json!({"exp": 1e300}), (200, String::new())),
            (json!({"nbf": now_s() - 60}), (200, String::new())),
            (json!({"aud": ["another", "tidegate"]}), (200, String::new())),
        ] {
            assert_eq!(code(&world.get_as(&token(changes.clone()), "/v1/leases").await), answer, "{changes}");
        }
    });
}

#[test]
fn a_token_that_is_missing_or_misshapen_is_told_apart() {
    block_on(async {
        let world = world();
        let long = "x".repeat(TOKEN_MAX_BYTES + 1);
        for (value, expected, challenge) in [
            (None, "token_missing", "Bearer realm=\"tidegate\""),
            (Some("Basic YWxpY2U6c2VjcmV0".to_owned()), "token_malformed", "error=\"invalid_request\""),
            (Some("Bearer".to_owned()), "token_malformed", "error=\"invalid_request\""),
            (Some("Bearer a b".to_owned()), "token_malformed", "error=\"invalid_request\""),
            (Some(format!("Bearer {long}")), "token_malformed", "error=\"invalid_request\""),
            (Some("Bearer abc".to_owned()), "token_malformed", "error=\"invalid_request\""),
            (Some("Bearer a.b.c".to_owned()), "token_malformed", "error=\"invalid_request\""),
            (Some(format!("Bearer {}", token(json!({"exp": 0})))), "token_expired", "error=\"invalid_token\""),
            (Some(format!("Bearer {}", token(json!({"aud": "x"})))), "token_invalid", "error=\"invalid_token\""),
        ] {
            let headers: Vec<(&str, &str)> = value.iter().map(|value| ("authorization", value.as_str())).collect();
            let answer = ask(world.address, "GET", "/v1/version", &headers, b"").await;
            assert_eq!(code(&answer), refused(expected));
            assert!(answer.header("www-authenticate").unwrap().contains(challenge), "{expected}");
        }
        let record = serde_json::to_value(&world.audit.records()[0]).unwrap();
        assert_eq!((&record["event"], &record["code"]), (&json!("auth.refused"), &json!("token_missing")));
        // A token anywhere else is no token.
        let answer = world.get(&format!("/v1/version?access_token={}", token(json!({})))).await;
        assert_eq!(code(&answer), refused("token_missing"));
    });
}

#[test]
fn each_route_wants_its_own_scope() {
    block_on(async {
        let world = world();
        let cursor = format!("/v1/query/{}", "ab".repeat(24));
        let routes = [
            ("POST", "/v1/query", Some(Scope::Query)),
            ("POST", "/v1/query/resume", Some(Scope::Query)),
            ("DELETE", cursor.as_str(), Some(Scope::Query)),
            ("GET", "/v1/leases", Some(Scope::Query)),
            ("GET", "/v1/config", Some(Scope::Admin)),
            ("PATCH", "/v1/config", Some(Scope::Admin)),
            ("GET", "/v1/limits", None),
            ("GET", "/v1/version", None),
        ];
        for (method, path, wanted) in routes {
            assert_eq!(ask(world.address, method, path, &[], b"").await.code(), "token_missing", "{method} {path}");
            for scope in Scope::ALL.map(Some).into_iter().chain([None]) {
                let token = token(json!({"scope": scope.map_or("", Scope::as_str)}));
                let header = format!("Bearer {token}");
                let answer = ask(world.address, method, path, &[("authorization", &header)], b"").await;
                let refused = answer.status() == 403;
                assert_eq!(refused, wanted.is_some() && scope != wanted, "{method} {path} with {scope:?}");
                if let (true, Some(wanted)) = (refused, wanted) {
                    assert_eq!(answer.code(), "scope_missing");
                    assert_eq!(answer.json()["scope"], wanted.as_str());
                    assert!(answer.header("www-authenticate").unwrap().contains("insufficient_scope"));
                }
            }
        }
        for path in ["/healthz", "/readyz", "/metrics"] {
            assert_eq!(world.get(path).await.status(), 200, "{path} is open");
        }
    });
}

#[test]
fn no_header_but_the_token_says_who_asks() {
    block_on(async {
        let world = world();
        let gate = Gate::closed();
        world.source.on(SELECT, Script::numbers(2).hold_at(1, &gate));
        let alice = format!("Bearer {}", token(json!({})));
        let mut stream = world.query(SELECT, &[("authorization", &alice)]).await;
        assert_eq!(stream.head().await.unwrap().status, 200);
        let open: Value = serde_json::from_slice(&stream.chunk().await.unwrap()).unwrap();
        let cursor = open["open"]["cursor"].as_str().unwrap();
        let unknown = "ab".repeat(24);
        let spoofs = [
            ("x-tenant", "acme"),
            ("x-tidegate-tenant", "acme"),
            ("x-principal", "alice"),
            ("x-tidegate-principal", "alice"),
            ("x-subject", "alice"),
            ("x-forwarded-user", "alice"),
            ("x-scope", "admin query"),
        ];
        // Another subject of the tenant, the same subject of another tenant, and both other.
        for who in [json!({"sub": "bob"}), json!({"tenant": "evil"}), json!({"sub": "bob", "tenant": "evil"})] {
            let token = format!("Bearer {}", token(who));
            let headers = [spoofs.as_slice(), &[("authorization", token.as_str())]].concat();
            let leases = ask(world.address, "GET", "/v1/leases", &headers, b"").await;
            assert_eq!(leases.json(), json!({"leases": []}));
            let mut answers = Vec::new();
            for cursor in [cursor, &unknown] {
                let body = json!({"cursor": cursor, "rows": 0, "prefix_hash": "ab".repeat(32)}).to_string();
                for (method, path, body) in [
                    ("POST", "/v1/query/resume".to_owned(), body),
                    ("DELETE", format!("/v1/query/{cursor}"), String::new()),
                ] {
                    let answer = ask(world.address, method, &path, &headers, body.as_bytes()).await;
                    assert_eq!((answer.status(), answer.code().as_str()), (404, "cursor_not_found"));
                    answers.push(answer.body);
                }
            }
            answers.dedup();
            assert_eq!(answers.len(), 1, "a foreign cursor is answered like one that does not exist");
        }
        let headers = [spoofs.as_slice(), &[("authorization", alice.as_str()), ("x-tenant", "evil")]].concat();
        let leases = ask(world.address, "GET", "/v1/leases", &headers, b"").await.json();
        assert_eq!(leases["leases"].as_array().unwrap().len(), 1, "nor does a header take anything away");
        let opened = serde_json::to_value(&world.audit.wait_for("stream.opened").await).unwrap();
        assert_eq!((&opened["tenant"], &opened["subject"]), (&json!("acme"), &json!("alice")));
        gate.open();
    });
}

#[test]
fn without_auth_everybody_is_anonymous_whatever_they_send() {
    block_on(async {
        let world = World::start();
        for headers in [vec![], vec![("authorization", "Bearer nonsense")], vec![("x-tenant", "acme")]] {
            let body = json!({"source": "main", "sql": SELECT}).to_string();
            assert_eq!(ask(world.address, "POST", "/v1/query", &headers, body.as_bytes()).await.status(), 200);
        }
        for record in world.audit.records() {
            assert_eq!((record.tenant.as_deref(), record.subject.as_deref()), (Some("default"), Some("anonymous")));
        }
    });
}

fn static_token(token: &str, subject: &str, scopes: &[Scope]) -> StaticToken {
    StaticToken {
        sha256: Sha256::digest(token).into(),
        subject: Name::new(subject).unwrap(),
        tenant: Name::new("acme").unwrap(),
        scopes: scopes.iter().copied().collect(),
    }
}

#[test]
fn a_static_token_is_known_by_its_hash() {
    block_on(async {
        let tokens =
            vec![static_token("s3cret-1", "alice", &[Scope::Query]), static_token("s3cret-2", "root", &[Scope::Admin])];
        let only = TokenConfig { tokens: tokens.clone(), ..TokenConfig::default() };
        let both = TokenConfig { tokens, ..config() };
        for auth in [only, both] {
            let with_keys = !auth.keys.is_empty();
            let world = Setup { auth: AuthConfig::Token(auth), ..Setup::default() }.start();
            assert_eq!(world.get_as("s3cret-1", "/v1/leases").await.status(), 200);
            assert_eq!(world.get_as("s3cret-2", "/v1/config").await.status(), 200);
            assert_eq!(world.get_as("s3cret-1", "/v1/config").await.code(), "scope_missing");
            let hash: String = Sha256::digest("s3cret-1").iter().map(|byte| format!("{byte:02x}")).collect();
            for bad in ["s3cret-3", "s3cret-", "S3CRET-1", &hash] {
                assert_eq!(code(&world.get_as(bad, "/v1/leases").await), refused("token_invalid"), "{bad}");
            }
            let jwt = token(json!({}));
            let expected = if with_keys { 200 } else { 401 };
            assert_eq!(world.get_as(&jwt, "/v1/leases").await.status(), expected);
        }
    });
}

fn jwks(keys: &[&Key]) -> String {
    let keys = keys.iter().map(|key| {
        let known = match (&key.material, key.alg) {
            (KeyMaterial::Secret(secret), _) => DecodingKey::from_secret(secret),
            (KeyMaterial::PublicPem(pem), JwtAlgorithm::EdDsa) => DecodingKey::from_ed_pem(pem.as_bytes()).unwrap(),
            (KeyMaterial::PublicPem(pem), JwtAlgorithm::Es256) => DecodingKey::from_ec_pem(pem.as_bytes()).unwrap(),
            (KeyMaterial::PublicPem(pem), _) => DecodingKey::from_rsa_pem(pem.as_bytes()).unwrap(),
        };
        let mut jwk = Jwk::from_decoding_key(&known, Some(library(key.alg))).unwrap();
        jwk.common.key_id = Some(key.alg.as_str().into());
        jwk
    });
    serde_json::to_string(&JwkSet { keys: keys.collect() }).unwrap()
}

#[test]
fn a_jwks_file_is_read_again_when_it_changes_and_a_broken_one_changes_nothing() {
    block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let path: PathBuf = folder.path().join("keys.json");
        let known: Vec<&Key> = keys().known.iter().collect();
        let foreign: Vec<&Key> = keys().foreign.iter().collect();
        std::fs::write(&path, jwks(&known)).unwrap();
        let clock = ManualClock::new();
        let auth = TokenConfig { keys: Vec::new(), jwks: Some(path.clone()), ..config() };
        let setup = Setup { auth: AuthConfig::Token(auth), clock: Arc::new(clock.clone()), ..Setup::default() };
        let world = setup.start();
        let good = async |keys: &[Key]| {
            let mut good = Vec::new();
            for key in keys {
                let token = sign(key, Some(key.alg.as_str()), &claims(json!({})));
                good.push(world.get_as(&token, "/v1/version").await.status() == 200);
            }
            good
        };
        assert_eq!(good(&keys().known).await, [true; 4]);
        assert_eq!(good(&keys().foreign).await, [false; 4]);
        for broken in ["", "{\"keys\":[]}", "{\"keys\":[{\"kty\":\"oct\",\"kid\":\"k\",\"k\":\"AA\"}]}", "\u{fffd}"] {
            std::fs::write(&path, broken).unwrap();
            clock.advance(Duration::from_secs(2));
            assert_eq!(good(&keys().known).await, [true; 4], "{broken:?}");
        }
        std::fs::remove_file(&path).unwrap();
        clock.advance(Duration::from_secs(2));
        assert_eq!(good(&keys().known).await, [true; 4]);
        std::fs::write(&path, jwks(&foreign)).unwrap();
        clock.advance(Duration::from_secs(2));
        assert_eq!(good(&keys().foreign).await, [true; 4]);
        assert_eq!(good(&keys().known).await, [false; 4], "a key that was taken out is good for nothing");
    });
}

#[test]
fn a_tokens_time_is_up_at_its_second_and_not_before() {
    block_on(async {
        let clock = ManualClock::new();
        let start = clock.timestamp().unix_ms() / 1_000;
        let auth = TokenConfig { leeway: Duration::from_secs(2), ..config() };
        let setup = Setup { auth: AuthConfig::Token(auth), clock: Arc::new(clock.clone()), ..Setup::default() };
        let world = setup.start();
        let token = token(json!({"exp": start + 10, "nbf": start + 4}));
        for (advance_ms, expected) in [
            (0, refused("token_invalid")),
            (1_999, refused("token_invalid")),
            (1, (200, String::new())),
            (9_999, (200, String::new())),
            (1, refused("token_expired")),
        ] {
            clock.advance(Duration::from_millis(advance_ms));
            assert_eq!(code(&world.get_as(&token, "/v1/version").await), expected);
        }
    });
}

#[test]
fn a_body_of_somebody_unknown_is_not_even_read() {
    block_on(async {
        let world = world();
        let mut connection = super::client::Connection::open(world.address).await;
        let mut head = request("POST", "/v1/query", &[("x", "y")], b"");
        let length = head.windows(17).position(|window| window == b"content-length: 0").unwrap();
        head[length + 16] = b'9';
        connection.send(head).await;
        assert_eq!(connection.answer().await.unwrap().code(), "token_missing");
    });
}
