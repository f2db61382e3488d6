//! Bad input: each has its code, and nothing comes of it.

use serde_json::json;
use tidegate_core::port::{SourceError, StatementRefused};
use tidegate_testkit::{Script, block_on};

use super::client::{Connection, ask, request};
use super::world::{SELECT, Setup, World};

#[test]
fn a_path_that_is_no_route_is_told_so() {
    block_on(async {
        let world = World::start();
        for path in ["/", "/v2/query", "/v1/query/", "/v1/leases/x", "/v1", "/healthz/"] {
            let answer = world.get(path).await;
            assert_eq!((answer.status(), answer.code().as_str()), (404, "not_found"), "{path}");
        }
    });
}

#[test]
fn a_wrong_method_is_told_which_are_right() {
    block_on(async {
        let world = World::start();
        for (method, path, allow) in [
            ("GET", "/v1/query", "POST, OPTIONS"),
            ("DELETE", "/v1/query/resume", "POST, OPTIONS"),
            ("POST", "/v1/query/ab", "DELETE, OPTIONS"),
            ("POST", "/healthz", "GET, HEAD, OPTIONS"),
            ("PUT", "/v1/config", "GET, HEAD, PATCH, OPTIONS"),
            ("BREW", "/v1/limits", "GET, HEAD, OPTIONS"),
        ] {
            let answer = ask(world.address, method, path, &[], b"").await;
            assert_eq!((answer.status(), answer.code().as_str()), (405, "method_not_allowed"), "{method} {path}");
            assert_eq!(answer.header("allow"), Some(allow));
        }
    });
}

#[test]
fn a_body_that_is_not_what_the_route_reads_is_refused_by_name() {
    block_on(async {
        let world = World::start();
        let cases: [(&[u8], &str, serde_json::Value); 19] = [
            (b"", "malformed_json", json!({"line": 1})),
            (b"{", "malformed_json", json!({"line": 1, "column": 1})),
            (b"{\"source\":\"main\",\n \"sql\" 1}", "malformed_json", json!({"line": 2, "column": 8})),
            (b"{\"source\":\"main\",\"sql\":\"select 1\"} x", "malformed_json", json!({"line": 1, "column": 36})),
            (b"{\"source\":\"main\",\"sql\":\"\xff\"}", "malformed_json", json!({"line": 1, "column": 25})),
            (b"{\"source\":\"main\",\"sql\":\"\\ud800\"}", "malformed_json", json!({"line": 1})),
            (b"[]", "invalid_field", json!({"field": "$"})),
            (b"null", "invalid_field", json!({"field": "$"})),
            (b"{}", "missing_field", json!({"field": "source"})),
            (b"{\"source\":\"main\"}", "missing_field", json!({"field": "sql"})),
            (b"{\"source\":1,\"sql\":\"x\"}", "invalid_field", json!({"field": "source"})),
            (b"{\"source\":\"main\",\"sql\":null}", "invalid_field", json!({"field": "sql"})),
            (b"{\"source\":\"main\",\"sql\":\"x\",\"params\":{}}", "invalid_field", json!({"field": "params"})),
            (b"{\"source\":\"main\",\"sql\":\"x\",\"rows\":\"csv\"}", "invalid_field", json!({"field": "rows"})),
            (b"{\"source\":\"main\",\"sql\":\"x\",\"rows\":1}", "invalid_field", json!({"field": "rows"})),
            (b"{\"source\":\"main\",\"sql\":\"x\",\"tenant\":\"a\"}", "unknown_field", json!({"field": "tenant"})),
            (b"{\"source\":\"main\",\"SQL\":\"x\"}", "unknown_field", json!({"field": "SQL"})),
            (b"{\"sql\":\"x\",\"sql\":\"y\",\"source\":\"main\"}", "duplicate_field", json!({"field": "sql"})),
            (b"{\"sql\":\"x\",\"s\\u0071l\":\"y\",\"source\":\"main\"}", "duplicate_field", json!({"field": "sql"})),
        ];
        for (body, code, members) in cases {
            let answer = world.post("/v1/query", body).await;
            let shown = String::from_utf8_lossy(body);
            assert_eq!((answer.status(), answer.code().as_str()), (400, code), "{shown}");
            for (name, value) in members.as_object().unwrap() {
                assert_eq!(&answer.json()[name], value, "{shown}: {name}: {}", answer.json());
            }
        }
        assert_eq!(world.source.counters().opened, 0, "nothing came of any of them");
    });
}

#[test]
fn a_query_parameter_is_refused_by_name() {
    block_on(async {
        let world = World::start();
        for path in ["/v1/limits?verbose=1", "/healthz?verbose", "/v1/version?=&verbose=1"] {
            let answer = world.get(path).await;
            assert_eq!((answer.status(), answer.code().as_str()), (400, "unknown_field"), "{path}");
            assert_eq!(answer.json()["field"], "verbose");
        }
        assert_eq!(world.get("/v1/limits?").await.status(), 200);
    });
}

#[test]
fn a_resume_that_is_not_well_formed_never_means_row_0() {
    block_on(async {
        let world = World::start();
        let (cursor, hash) = ("ab".repeat(24), "cd".repeat(32));
        for (body, status, code) in [
            (json!({}), 400, "malformed_resume"),
            (json!({"cursor": cursor, "rows": 1}), 400, "malformed_resume"),
            (json!({"cursor": cursor, "prefix_hash": hash}), 400, "malformed_resume"),
            (json!({"cursor": cursor, "rows": -1, "prefix_hash": hash}), 400, "malformed_resume"),
            (json!({"cursor": cursor, "rows": 1.5, "prefix_hash": hash}), 400, "malformed_resume"),
            (json!({"cursor": cursor, "rows": "1", "prefix_hash": hash}), 400, "malformed_resume"),
            (json!({"cursor": cursor, "rows": null, "prefix_hash": hash}), 400, "malformed_resume"),
            (json!({"cursor": "ab", "rows": 1, "prefix_hash": hash}), 400, "malformed_resume"),
            (json!({"cursor": cursor, "rows": 1, "prefix_hash": "zz".repeat(32)}), 400, "malformed_resume"),
            (json!({"cursor": cursor, "rows": 1, "prefix_hash": hash, "row": 1}), 400, "unknown_field"),
            (json!({"cursor": cursor, "rows": 1, "prefix_hash": hash}), 404, "cursor_not_found"),
        ] {
            let answer = world.post("/v1/query/resume", body.to_string()).await;
            assert_eq!((answer.status(), answer.code().as_str()), (status, code), "{body}");
        }
        assert_eq!(world.post("/v1/query/resume", "{").await.code(), "malformed_json");
    });
}

#[test]
fn a_body_beyond_the_bound_is_refused_before_it_is_read() {
    block_on(async {
        let world = Setup { settings: vec![("limits.body_max_bytes", 1_024)], ..Setup::default() }.start();
        let mut connection = Connection::open(world.address).await;
        // Only the head is sent: an answer shows that nobody waited for the body.
        let head = "POST /v1/query HTTP/1.1\r\nhost: t\r\ncontent-length: 1025\r\nexpect: 100-continue\r\n\r\n";
        connection.send(head).await;
        let answer = connection.answer().await.unwrap();
        assert_eq!((answer.status(), answer.code().as_str()), (413, "body_too_large"));
        assert_eq!(answer.json()["max_bytes"], 1_024);
        assert_eq!(answer.header("connection"), Some("close"));
        connection.closed().await;
    });
}

#[test]
fn a_body_in_a_transfer_coding_is_refused_rather_than_stored_coded() {
    block_on(async {
        let world = World::start();
        for coding in ["gzip, chunked", "gzip,chunked", "GZIP\r\ntransfer-encoding: chunked"] {
            let mut connection = Connection::open(world.address).await;
            let head = format!("PUT /v1/objects/u/_/k HTTP/1.1\r\nhost: t\r\ntransfer-encoding: {coding}\r\n\r\n");
            connection.send(format!("{head}4\r\nsome\r\n0\r\n\r\n")).await;
            let answer = connection.answer().await.unwrap();
            assert_eq!((answer.status(), answer.code().as_str()), (501, "transfer_encoding_unsupported"), "{coding}");
            assert_eq!(
                (answer.header("connection"), &answer.json()["field"]),
                (Some("close"), &"transfer-encoding".into())
            );
            connection.closed().await;
        }
        assert_eq!(world.get("/v1/objects/u/_/k").await.status(), 404);
        let mut connection = Connection::open(world.address).await;
        let head = "PUT /v1/objects/u/_/k HTTP/1.1\r\nhost: t\r\ntransfer-encoding: Chunked\r\n\r\n";
        connection.send(format!("{head}4\r\nsome\r\n0\r\n\r\n")).await;
        assert_eq!(connection.answer().await.unwrap().status(), 201);
    });
}

#[test]
fn a_client_that_sends_all_before_it_reads_still_learns_why_it_was_refused() {
    block_on(async {
        let world = World::start();
        let mut connection = Connection::open(world.address).await;
        let body = vec![b' '; 8 * 1024 * 1024];
        connection.send(request("POST", "/v1/query", &[], &body)).await;
        let answer = connection.answer().await.expect("the answer is not lost to a reset");
        assert_eq!((answer.status(), answer.code().as_str()), (413, "body_too_large"));
    });
}

#[test]
fn a_body_without_end_is_stopped_and_its_sender_told() {
    block_on(async {
        let world = World::start();
        let connection = Connection::open(world.address).await;
        let mut connection = connection;
        connection.send("POST /v1/query HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n").await;
        let (reader, mut writer) = connection.stream.into_split();
        let sender = tokio::spawn(async move {
            use tokio::io::AsyncWriteExt as _;
            let chunk = [b"10000\r\n".as_slice(), &vec![b' '; 0x10000], b"\r\n"].concat();
            // Sends for as long as anybody takes it.
            while writer.write_all(&chunk).await.is_ok() {}
        });
        let mut told = Vec::new();
        let mut reader = reader;
        let read = async {
            use tokio::io::AsyncReadExt as _;
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut piece).await {
                told.extend_from_slice(&piece[..length]);
                if told.ends_with(b"}\n") {
                    break;
                }
            }
        };
        tidegate_testkit::within("the refusal", read).await;
        let told = String::from_utf8(told).unwrap();
        assert!(told.starts_with("HTTP/1.1 413 ") && told.contains("\"body_too_large\""), "{told}");
        tidegate_testkit::within("the connection to be closed", sender).await.unwrap();
    });
}

#[test]
fn a_body_that_does_not_come_is_waited_for_within_a_bound() {
    block_on(async {
        let world = Setup { settings: vec![("limits.body_timeout_ms", 20)], ..Setup::default() }.start();
        let mut connection = Connection::open(world.address).await;
        connection.send("POST /v1/query HTTP/1.1\r\nhost: t\r\ncontent-length: 10\r\n\r\n{\"sou").await;
        let answer = connection.answer().await.unwrap();
        assert_eq!((answer.status(), answer.code().as_str()), (408, "body_timeout"));
        assert_eq!(answer.json()["timeout_ms"], 20);
        connection.closed().await;
    });
}

#[test]
fn a_head_beyond_the_bound_is_refused() {
    block_on(async {
        let world = World::start();
        let long = "x".repeat(33 * 1024);
        let answer = ask(world.address, "GET", "/v1/version", &[("x-long", &long)], b"").await;
        assert_eq!((answer.status(), answer.code().as_str()), (431, "header_too_large"));
        // Far beyond it the HTTP library refuses before anybody can write a document.
        let longer = "x".repeat(100 * 1024);
        let mut connection = Connection::open(world.address).await;
        connection.send(request("GET", "/v1/version", &[("x-long", &longer)], b"")).await;
        assert_eq!(connection.head().await.unwrap().status, 431);
        let many: Vec<_> = (0..200).map(|_| ("x-many", "1")).collect();
        let mut connection = Connection::open(world.address).await;
        connection.send(request("GET", "/v1/version", &many, b"")).await;
        assert_eq!(connection.head().await.unwrap().status, 431);
    });
}

#[test]
fn bytes_that_are_no_http_end_the_connection_and_nothing_else() {
    block_on(async {
        let world = World::start();
        for bytes in
            [&b"\x16\x03\x01\x02\x00\x01\x00"[..], b"PRI * HTTP/2.0\r\n\r\nXX", b"\0\0\0\0\r\n\r\n", b"GET\r\n\r\n"]
        {
            let mut connection = Connection::open(world.address).await;
            connection.send(bytes).await;
            use tokio::io::AsyncWriteExt as _;
            connection.stream.shutdown().await.unwrap();
            connection.closed().await;
        }
        assert_eq!(world.get("/healthz").await.status(), 200);
    });
}

#[test]
fn what_the_source_refuses_keeps_its_code_and_place() {
    block_on(async {
        let world =
            Setup { settings: vec![("limits.sql_max_bytes", 16), ("limits.parameter_max", 2)], ..Setup::default() }
                .start();
        let refused = || StatementRefused { native_code: "42601".into(), message: "near".into(), position: Some(3) };
        world.source.on("syntax", Script::numbers(1).refuse(move || SourceError::Syntax(refused())));
        world.source.on("write", Script::numbers(1).refuse(move || SourceError::ReadOnly(refused())));
        world.source.on("two", Script::numbers(1).refuse(|| SourceError::MultipleStatements));
        let query = |source: &str, sql: &str, params: usize| {
            json!({"source": source, "sql": sql, "params": vec![1; params]}).to_string()
        };
        for (body, status, code) in [
            (query("main", "syntax", 0), 400, "syntax_error"),
            (query("main", "write", 0), 400, "read_only"),
            (query("main", "two", 0), 400, "multiple_statements"),
            (query("nope", "x", 0), 404, "source_not_found"),
            (query("main", "select 1234567890", 0), 413, "sql_too_large"),
            (query("main", "x", 3), 400, "too_many_parameters"),
        ] {
            let answer = world.post("/v1/query", &body).await;
            assert_eq!((answer.status(), answer.code().as_str()), (status, code), "{body}");
            if body.contains("syntax") {
                assert_eq!(answer.json()["native_code"], "42601");
                assert_eq!(answer.json()["position"], 3);
            }
        }
        let unavailable = || SourceError::Unavailable("host db.internal is down".into());
        world.source.fail_open(Some(std::sync::Arc::new(unavailable)));
        let answer = world.post("/v1/query", query("main", "x", 0)).await;
        assert_eq!((answer.status(), answer.code().as_str()), (503, "source_unavailable"));
        assert!(!String::from_utf8_lossy(&answer.body).contains("db.internal"), "causes are for the log");
    });
}

#[test]
fn capacity_is_refused_with_its_bound_and_when_to_come_back() {
    block_on(async {
        let world = Setup { rows: 1, settings: vec![("stream.max_global", 1)], ..Setup::default() }.start();
        let gate = tidegate_testkit::Gate::closed();
        world.source.on(SELECT, Script::numbers(1).hold_at(0, &gate));
        let mut first = world.query(SELECT, &[]).await;
        assert_eq!(first.head().await.unwrap().status, 200);
        let body = json!({"source": "main", "sql": SELECT}).to_string();
        let answer = world.post("/v1/query", &body).await;
        assert_eq!((answer.status(), answer.code().as_str()), (429, "stream_capacity_exhausted"));
        assert_eq!((&answer.json()["limit"], &answer.json()["current"]), (&json!(1), &json!(1)));
        assert!(answer.header("retry-after").is_some());
        gate.open();
        while !first.chunk().await.unwrap().is_empty() {}
        assert_eq!(world.post("/v1/query", &body).await.status(), 200);
    });
}

#[test]
fn a_path_with_broken_percent_encoding_names_nothing() {
    block_on(async {
        let world = World::start();
        for broken in ["%", "a%", "%2", "%zz", "%2g", "a%%41", "%ff", "%c3", "%c3%28", "%ed%a0%80"] {
            for (method, path) in [
                ("PUT", format!("/v1/streams/{broken}")),
                ("GET", format!("/v1/streams/{broken}")),
                ("GET", format!("/v1/streams/{broken}/records")),
                ("POST", format!("/v1/streams/{broken}/records")),
                ("PUT", format!("/v1/streams/s/groups/{broken}")),
                ("POST", format!("/v1/streams/s/groups/g/members/{broken}/heartbeat")),
                ("POST", format!("/v1/ingest/{broken}")),
                ("PUT", format!("/ds/v1/stream/a/{broken}/b")),
                ("DELETE", format!("/v1/query/{broken}")),
            ] {
                let answer = ask(world.address, method, &path, &[], b"").await;
                assert_eq!((answer.status(), answer.code().as_str()), (400, "invalid_name"), "{method} {path}");
            }
        }
        assert_eq!(world.get("/v1/streams").await.json()["streams"], json!([]), "nothing came of any of them");
        // What is well encoded is one name, however it is written.
        assert_eq!(world.put("/v1/streams/%25zz%2Fa", "{}").await.json()["name"], "%zz/a");
        assert_eq!(world.get("/v1/streams/%25%7a%7A%2fa").await.status(), 200);
    });
}

#[test]
fn a_body_in_a_coding_that_is_not_read_is_refused_and_not_taken_for_what_it_is_not() {
    block_on(async {
        let world = World::start();
        for path in ["/v1/streams/s", "/ds/v1/stream/d"] {
            let answer = ask(world.address, "PUT", path, &[("content-type", "application/octet-stream")], b"").await;
            assert_eq!(answer.status(), 201);
        }
        assert_eq!(world.put("/v1/streams/s/groups/g", "{}").await.status(), 201);
        let routes = [
            ("POST", "/v1/streams/s/records", r#"{"value":1}"#),
            ("POST", "/v1/streams/s/groups/g/poll", "{}"),
            ("PUT", "/v1/streams/s", "{}"),
            ("POST", "/v1/ingest/s", "{\"open\":{}}\n"),
            ("POST", "/ds/v1/stream/d", "some"),
            ("POST", "/v1/query", r#"{"source":"main","sql":"x"}"#),
            ("PATCH", "/v1/config", "{}"),
        ];
        for (method, path, body) in routes {
            for coding in ["gzip", "GZIP", "identity, zstd", "br", "x"] {
                let headers = [("content-encoding", coding), ("content-type", "application/octet-stream")];
                let answer = ask(world.address, method, path, &headers, body.as_bytes()).await;
                let told = (answer.status(), answer.code());
                assert_eq!(told, (415, "content_encoding_unsupported".to_owned()), "{method} {path} {coding}");
                assert_eq!(answer.header("accept-encoding"), Some("identity"));
            }
            for coding in ["identity", "Identity", ""] {
                let headers = [("content-encoding", coding), ("content-type", "application/octet-stream")];
                let answer = ask(world.address, method, path, &headers, body.as_bytes()).await;
                assert!(answer.status() < 300, "{method} {path} {coding}: {answer:?}");
            }
        }
        // Where no body is, nothing is in a coding.
        for (method, path) in [("GET", "/v1/limits"), ("POST", "/v1/streams/s/groups/g/poll"), ("PUT", "/v1/streams/s")]
        {
            assert_eq!(ask(world.address, method, path, &[("content-encoding", "gzip")], b"").await.status(), 200);
        }
    });
}
