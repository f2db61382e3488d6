//! Bodies of which something is left unread: the answer says that the connection ends. Where all was read, it goes on.

use tidegate_testkit::block_on;

use super::client::{Connection, request};
use super::world::{Setup, World};

/// A head that promises more than comes with it, so that whoever does not wait for the rest has left it.
fn begun(method: &str, path: &str, framing: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nhost: t\r\n{framing}\r\n")
}

#[test]
fn who_is_refused_before_the_body_was_read_is_told_that_the_connection_ends() {
    block_on(async {
        let world = World::start();
        assert_eq!(world.put("/v1/streams/s", "{}").await.status(), 201);
        let long = "n".repeat(256);
        for (method, path, header, status) in [
            ("POST", format!("/v1/streams/{long}/records"), "", 400),
            ("POST", "/v1/streams/s/records".into(), "producer-id: p\r\n", 400),
            ("PUT", format!("/v1/streams/{long}"), "", 400),
            ("PUT", format!("/v1/streams/s/groups/{long}"), "", 400),
            ("POST", format!("/v1/streams/s/groups/{long}/poll"), "", 400),
            ("POST", format!("/v1/streams/s/groups/{long}/commit"), "", 400),
            ("POST", format!("/v1/streams/s/groups/{long}/members"), "", 400),
            ("POST", "/v1/ingest/unknown".into(), "", 404),
            ("POST", format!("/ds/v1/stream/{long}"), "", 400),
            ("POST", "/ds/v1/stream/s".into(), "producer-id: p\r\n", 400),
            ("PUT", "/ds/v1/stream/s".into(), "stream-ttl: soon\r\n", 400),
            ("POST", "/v1/limits".into(), "", 405),
            ("POST", "/nowhere".into(), "", 404),
            // Nobody reads it, and nothing is wrong.
            ("GET", "/v1/streams/s".into(), "", 200),
            ("DELETE", "/v1/query/ab".into(), "", 404),
        ] {
            for framing in [
                "content-length: 100000\r\n\r\nsome",
                "content-length: 100000\r\nexpect: 100-continue\r\n",
                // All data has come, and not the chunk that says so.
                "transfer-encoding: chunked\r\n\r\n4\r\nsome\r\n",
            ] {
                let mut connection = Connection::open(world.address).await;
                connection.send(begun(method, &path, &format!("{header}{framing}"))).await;
                let answer = connection.answer().await.expect("an answer, although the rest never comes");
                assert_eq!(answer.status(), status, "{method} {path} {framing}");
                assert_eq!(answer.header("connection"), Some("close"), "{method} {path} {framing}");
                connection.closed().await;
            }
        }
    });
}

#[test]
fn who_is_refused_after_the_body_was_read_goes_on_with_the_same_connection() {
    block_on(async {
        let world = Setup { settings: vec![("limits.batch_max_records", 2)], ..Setup::default() }.start();
        assert_eq!(world.put("/v1/streams/s", "{}").await.status(), 201);
        assert_eq!(world.put("/v1/streams/s/groups/g", "{}").await.status(), 201);
        let mut connection = Connection::open(world.address).await;
        for (method, path, body, status) in [
            ("POST", "/v1/streams/s/records", "{\"value\":1}", 200),
            ("POST", "/v1/streams/s/records", "{\"value\":1}\n{\"value\":2}\n{\"value\":3}", 413),
            ("POST", "/v1/streams/s/records", "{", 400),
            ("POST", "/v1/streams/t/records", "{\"value\":1}", 404),
            ("PUT", "/v1/streams/s", "{\"partitions\":2}", 409),
            ("POST", "/v1/streams/s/groups/g/commit", "{\"positions\":{\"0\":9}}", 422),
            ("POST", "/v1/streams/s/groups/g/poll", "{\"limit\":0}", 400),
            ("POST", "/ds/v1/stream/t", "{\"value\":1}", 404),
            ("POST", "/v1/query", "{}", 400),
            ("POST", "/v1/query/resume", "{}", 400),
            ("POST", "/v1/ingest/s", "{}", 400),
            ("POST", "/v1/ingest/s", "{\"open\":{}}\n{\"row\":1}\n", 200),
        ] {
            let chunked = format!(
                "{method} {path} HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
                body.len()
            );
            let sized = request(method, path, &[("content-type", "application/json")], body.as_bytes());
            // An upload is answered before its end is known, unless its length was said.
            let framings = if path.starts_with("/v1/ingest") { vec![sized] } else { vec![sized, chunked.into_bytes()] };
            for bytes in framings {
                connection.send(bytes).await;
                let answer = connection.answer().await.expect("the connection goes on");
                assert_eq!((answer.status(), answer.header("connection")), (status, None), "{method} {path} {body}");
            }
        }
    });
}

#[test]
fn who_waits_to_be_told_to_go_on_is_told_by_the_route_that_reads() {
    block_on(async {
        let world = World::start();
        assert_eq!(world.put("/v1/streams/s", "{}").await.status(), 201);
        let mut connection = Connection::open(world.address).await;
        for _ in 0..2 {
            let framing = "content-length: 11\r\nexpect: 100-continue\r\n";
            connection.send(begun("POST", "/v1/streams/s/records", framing)).await;
            assert_eq!(connection.head().await.expect("to be told to go on").status, 100);
            connection.send("{\"value\":1}").await;
            let answer = connection.answer().await.unwrap();
            assert_eq!((answer.status(), answer.header("connection")), (200, None));
        }
    });
}
