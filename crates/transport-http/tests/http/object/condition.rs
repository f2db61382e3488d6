//! Ranges and conditions, as RFC 9110 has them.

use tidegate_testkit::block_on;

use super::super::client::{Answer, Connection, ask, request};
use super::super::world::World;
use super::refused;

const PATH: &str = "/v1/objects/files/_/c";

async fn with(world: &World, method: &str, headers: &[(&str, &str)]) -> Answer {
    let body: &[u8] = if method == "PUT" { b"0123456789" } else { b"" };
    ask(world.address, method, PATH, headers, body).await
}

#[test]
fn one_range_is_answered_and_what_cannot_be_is_told() {
    block_on(async {
        let world = World::start();
        with(&world, "PUT", &[]).await;
        for (range, content_range, body) in [
            ("bytes=0-3", "bytes 0-3/10", "0123"),
            ("bytes=7-", "bytes 7-9/10", "789"),
            ("bytes=-2", "bytes 8-9/10", "89"),
            ("bytes=-99", "bytes 0-9/10", "0123456789"),
            ("bytes=9-99999999999999999999", "bytes 9-9/10", "9"),
        ] {
            let got = with(&world, "GET", &[("range", range)]).await;
            assert_eq!((got.status(), got.header("content-range")), (206, Some(content_range)), "{range}");
            assert_eq!(got.body, body.as_bytes());
        }
        for whole in ["bytes=0-1,4-5", "lines=1-2", "bytes=5-2", "bytes", "bytes=x-"] {
            let got = with(&world, "GET", &[("range", whole)]).await;
            assert_eq!((got.status(), got.body.len(), got.header("content-range")), (200, 10, None), "{whole}");
        }
        for beyond in ["bytes=10-", "bytes=-0", "bytes=99-100", "bytes=99999999999999999999-"] {
            let got = with(&world, "GET", &[("range", beyond)]).await;
            assert_eq!(refused(&got), (416, "range_not_satisfiable".into()), "{beyond}");
            assert_eq!(got.header("content-range"), Some("bytes */10"));
        }
        let head = with(&world, "HEAD", &[("range", "bytes=0-3")]).await;
        assert_eq!((head.status(), head.header("content-length")), (200, Some("10")), "a range is for GET");
        world.put("/v1/objects/files/_/empty", "").await;
        let empty = ask(world.address, "GET", "/v1/objects/files/_/empty", &[("range", "bytes=0-")], b"").await;
        assert_eq!(refused(&empty), (416, "range_not_satisfiable".into()));
        assert_eq!(world.get("/v1/objects/files/_/empty").await.status(), 200);
    });
}

#[test]
fn a_range_of_another_version_is_answered_with_the_whole() {
    block_on(async {
        let world = World::start();
        let tag = with(&world, "PUT", &[]).await.header("etag").unwrap().to_owned();
        let modified = world.get(PATH).await.header("last-modified").unwrap().to_owned();
        let status = async |if_range: &str, range: &str| {
            with(&world, "GET", &[("if-range", if_range), ("range", range)]).await.status()
        };
        assert_eq!(status(&tag, "bytes=0-3").await, 206);
        assert_eq!(status(&tag, "bytes=10-").await, 416);
        for other in [format!("W/{tag}"), "\"other\"".into(), modified, "nonsense".into()] {
            assert_eq!(status(&other, "bytes=0-3").await, 200, "{other}");
            assert_eq!(status(&other, "bytes=10-").await, 200, "{other}");
        }
    });
}

#[test]
fn conditions_on_the_version_hold_for_every_method() {
    block_on(async {
        let world = World::start();
        let absent = [("if-none-match", "*")];
        let first = with(&world, "PUT", &absent).await;
        assert_eq!(first.status(), 201);
        let again = with(&world, "PUT", &absent).await;
        assert_eq!(
            (refused(&again), again.header("etag")),
            ((412, "precondition_failed".into()), first.header("etag"))
        );
        let old = first.header("etag").unwrap().to_owned();
        let new = with(&world, "PUT", &[("if-match", &old)]).await.header("etag").unwrap().to_owned();
        let (weak, list) = (format!("W/{new}"), format!("\"x\", {new}"));
        for (header, value, get, put) in [
            ("if-match", old.as_str(), 412, 412),
            ("if-match", weak.as_str(), 412, 412),
            ("if-match", "\"x\"", 412, 412),
            ("if-match", "bare", 400, 400),
            ("if-none-match", new.as_str(), 304, 412),
            ("if-none-match", weak.as_str(), 304, 412),
            ("if-none-match", list.as_str(), 304, 412),
            ("if-none-match", "*", 304, 412),
            ("if-match", "*", 200, 0),
            ("if-match", list.as_str(), 200, 0),
            ("if-none-match", old.as_str(), 200, 0),
        ] {
            for method in ["GET", "HEAD"] {
                assert_eq!(with(&world, method, &[(header, value)]).await.status(), get, "{method} {header}: {value}");
            }
            if put != 0 {
                for method in ["PUT", "DELETE"] {
                    assert_eq!(
                        with(&world, method, &[(header, value)]).await.status(),
                        put,
                        "{method} {header}: {value}"
                    );
                }
            }
        }
        // Judged before the body is asked for: a client that waits to be told to go on sends nothing in vain.
        let mut connection = Connection::open(world.address).await;
        let headers = [("if-none-match", "*"), ("expect", "100-continue")];
        let head = request("PUT", PATH, &headers, &[0; 100]);
        connection.send(&head[..head.len() - 100]).await;
        assert_eq!(refused(&connection.answer().await.unwrap()), (412, "precondition_failed".into()));
        let not_modified = with(&world, "GET", &[("if-none-match", &new)]).await;
        assert_eq!((not_modified.header("etag"), not_modified.body.len()), (Some(new.as_str()), 0));
        assert_eq!(with(&world, "DELETE", &[("if-match", &new)]).await.status(), 204);
        assert_eq!(with(&world, "DELETE", &[("if-match", "*")]).await.status(), 412, "nothing is there");
        assert_eq!(with(&world, "PUT", &[("if-match", "*")]).await.status(), 412);
    });
}

#[test]
fn conditions_on_the_time_hold_where_there_is_none_on_the_version() {
    block_on(async {
        let world = World::start();
        let never = "Thu, 01 Jan 1970 00:00:00 GMT";
        let far = "Fri, 01 Jan 2100 00:00:00 GMT";
        assert_eq!(
            with(&world, "PUT", &[("if-unmodified-since", never)]).await.status(),
            412,
            "its writer has seen what is gone since"
        );
        assert_eq!(with(&world, "PUT", &[]).await.status(), 201);
        let got = with(&world, "GET", &[]).await;
        let (tag, time) = (got.header("etag").unwrap(), got.header("last-modified").unwrap());
        for (headers, expected) in [
            (vec![("if-modified-since", time)], 304),
            (vec![("if-modified-since", far)], 304),
            (vec![("if-modified-since", never)], 200),
            (vec![("if-modified-since", "yesterday")], 200),
            (vec![("if-modified-since", far), ("if-none-match", "\"x\"")], 200),
            (vec![("if-modified-since", far), ("range", "bytes=99-")], 304),
            (vec![("if-unmodified-since", never), ("range", "bytes=99-")], 412),
            (vec![("if-unmodified-since", time)], 200),
            (vec![("if-unmodified-since", never)], 412),
            (vec![("if-unmodified-since", never), ("if-none-match", tag)], 412),
            (vec![("if-unmodified-since", never), ("if-match", tag)], 200),
        ] {
            let answer = with(&world, "GET", &headers).await;
            assert_eq!(answer.status(), expected, "{headers:?}");
        }
        assert_eq!(with(&world, "DELETE", &[("if-unmodified-since", never)]).await.status(), 412);
        assert_eq!(with(&world, "PUT", &[("if-unmodified-since", never)]).await.status(), 412);
        assert_eq!(with(&world, "PUT", &[("if-unmodified-since", far)]).await.status(), 200);
        assert_eq!(with(&world, "DELETE", &[("if-unmodified-since", far)]).await.status(), 204);
    });
}
