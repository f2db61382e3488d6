//! Connections: bounded in number and in time, and let go of in good order.

use std::time::Duration;

use serde_json::json;
use tidegate_testkit::{Gate, Script, block_on, within};
use tokio::io::AsyncWriteExt as _;

use super::client::{Connection, ask, request};
use super::world::{SELECT, Setup, World};

#[test]
fn a_head_that_never_ends_and_a_connection_that_says_nothing_are_closed() {
    block_on(async {
        let world = Setup { settings: vec![("limits.header_timeout_ms", 100)], ..Setup::default() }.start();
        // Nothing at all; a part of the HTTP/2 preface; the whole of it and no more; a part of a head.
        for bytes in [&b""[..], b"PRI * HT", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET /healthz HTTP/1.1\r\nx-slow: "]
        {
            let mut connection = Connection::open(world.address).await;
            connection.send(bytes).await;
            connection.closed().await;
        }
        let mut connection = Connection::open(world.address).await;
        connection.send("GET /healthz HTTP/1.1\r\n").await;
        let drip = async {
            // One byte at a time never stops by itself: only the server can end it.
            while connection.stream.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        within("the server to lose its patience", drip).await;
    });
}

#[test]
fn an_idle_connection_is_closed_but_never_one_that_serves() {
    block_on(async {
        let world = Setup { settings: vec![("limits.header_timeout_ms", 50)], ..Setup::default() }.start();
        let gate = Gate::closed();
        world.source.on(SELECT, Script::numbers(2).hold_at(1, &gate));
        let mut serving = world.query(SELECT, &[]).await;
        serving.head().await.unwrap();
        let mut idle = Connection::open(world.address).await;
        idle.send(request("GET", "/healthz", &[], b"")).await;
        assert_eq!(idle.answer().await.unwrap().status(), 200);
        idle.closed().await;
        // The stream was silent for at least as long as the idle connection, and lives.
        gate.open();
        while !serving.chunk().await.expect("the stream ends well").is_empty() {}
    });
}

#[test]
fn beyond_the_bound_of_connections_new_ones_wait() {
    block_on(async {
        let world = Setup { settings: vec![("limits.connection_max", 2)], ..Setup::default() }.start();
        let mut first = Connection::open(world.address).await;
        let mut second = Connection::open(world.address).await;
        for connection in [&mut first, &mut second] {
            connection.send(request("GET", "/healthz", &[], b"")).await;
            assert_eq!(connection.answer().await.unwrap().status(), 200);
        }
        let mut third = Connection::open(world.address).await;
        third.send(request("GET", "/healthz", &[], b"")).await;
        let mut answer = Box::pin(third.answer());
        // The two others are served meanwhile, several times over.
        for _ in 0..20 {
            first.send(request("GET", "/healthz", &[], b"")).await;
            assert_eq!(first.answer().await.unwrap().status(), 200);
            assert!(futures::poll!(&mut answer).is_pending(), "the third waits");
        }
        drop(second);
        assert_eq!(answer.await.unwrap().status(), 200);
    });
}

#[test]
fn http_2_is_spoken_without_tls_to_who_begins_with_it() {
    block_on(async {
        let world = World::start();
        super::tls::install_provider();
        let client = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
        let url = format!("http://{}/v1/query", world.address);
        let body = json!({"source": "main", "sql": SELECT}).to_string();
        let answer = client.post(&url).body(body).send().await.unwrap();
        assert_eq!(answer.version(), reqwest::Version::HTTP_2);
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.text().await.unwrap().lines().count(), 5);
        let refused = client.post(&url).body("{").send().await.unwrap();
        assert_eq!(refused.status(), 400);
    });
}

#[test]
fn draining_refuses_new_work_and_lets_running_streams_end() {
    block_on(async {
        let mut world = World::start();
        let gate = Gate::closed();
        world.source.on(SELECT, Script::numbers(2).hold_at(1, &gate));
        let mut running = world.query(SELECT, &[]).await;
        running.head().await.unwrap();
        let mut kept = Connection::open(world.address).await;
        kept.send(request("GET", "/readyz", &[], b"")).await;
        assert_eq!(kept.answer().await.unwrap().status(), 200);
        world.stop();
        tidegate_testkit::wait::until("the drain to begin", async || world.get("/readyz").await.status() == 503).await;
        assert_eq!(world.get("/readyz").await.code(), "draining");
        assert_eq!(world.get("/healthz").await.status(), 200);
        let body = json!({"source": "main", "sql": "other"}).to_string();
        for path in ["/v1/query", "/v1/query/resume"] {
            let refused = world.post(path, &body).await;
            assert_eq!((refused.status(), refused.code().as_str()), (503, "draining"), "{path}");
        }
        // On a connection that is already there, too; and it is told not to stay.
        kept.send(request("POST", "/v1/query", &[], body.as_bytes())).await;
        let refused = kept.answer().await.unwrap();
        assert_eq!((refused.status(), refused.code().as_str()), (503, "draining"));
        assert_eq!(refused.header("connection"), Some("close"));
        gate.open();
        let mut text = Vec::new();
        loop {
            let chunk = running.chunk().await.expect("the stream ends well");
            if chunk.is_empty() {
                break;
            }
            text.extend_from_slice(&chunk);
        }
        assert!(String::from_utf8(text).unwrap().ends_with("\"status\":\"complete\"}}\n"));
        let address = world.address;
        world.gone().await;
        assert!(tokio::net::TcpStream::connect(address).await.is_err(), "nobody listens any more");
    });
}

#[test]
fn a_stream_that_outlives_the_drain_gets_its_end_line() {
    block_on(async {
        let mut world = Setup { settings: vec![("limits.drain_ms", 50)], ..Setup::default() }.start();
        let gate = Gate::closed();
        world.source.on(SELECT, Script::numbers(2).hold_at(1, &gate));
        let mut running = world.query(SELECT, &[("accept-encoding", "identity")]).await;
        running.head().await.unwrap();
        world.stop();
        let mut text = Vec::new();
        loop {
            let chunk = running.chunk().await.expect("its end line and its last chunk");
            if chunk.is_empty() {
                break;
            }
            text.extend_from_slice(&chunk);
        }
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("\"draining\"") && text.lines().last().unwrap().starts_with("{\"end\""), "{text}");
        world.gone().await;
    });
}

#[test]
fn an_idle_server_goes_at_once() {
    block_on(async {
        let mut world = World::start();
        let mut idle = Connection::open(world.address).await;
        idle.send(request("GET", "/healthz", &[], b"")).await;
        idle.answer().await.unwrap();
        let mut silent = Connection::open(world.address).await;
        assert_eq!(ask(world.address, "GET", "/healthz", &[], b"").await.status(), 200);
        world.stop();
        idle.closed().await;
        silent.closed().await;
        world.gone().await;
    });
}
