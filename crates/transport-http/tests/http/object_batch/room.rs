//! The room for operations: what one tenant's batches hold of it, and what holds none.

use sha2::{Digest as _, Sha256};
use tidegate_core::Scope;
use tidegate_core::id::Name;
use tidegate_testkit::block_on;
use tidegate_testkit::wait::until;
use tidegate_transport_http::auth::StaticToken;
use tidegate_transport_http::{AuthConfig, TokenConfig};

use super::super::client::{Connection, ask};
use super::super::world::{Setup, World};
use super::{MIXED, PATH, body, chunk, chunked_head, find, insert, op};

#[test]
fn batches_of_one_tenant_that_are_not_sent_to_their_end_keep_no_other_tenant_out() {
    block_on(async {
        let token = |name: &str| StaticToken {
            sha256: Sha256::digest(name.as_bytes()).into(),
            subject: Name::new(name).unwrap(),
            tenant: Name::new(name).unwrap(),
            scopes: [Scope::ObjectRead, Scope::ObjectWrite].into_iter().collect(),
        };
        let auth =
            AuthConfig::Token(TokenConfig { tokens: vec![token("slow"), token("other")], ..TokenConfig::default() });
        let world = Setup { auth, ..Setup::default() }.start();
        let mut held = Vec::new();
        loop {
            let mut connection = Connection::open(world.address).await;
            connection.send(chunked_head().replace("host: t", "host: t\r\nauthorization: Bearer slow")).await;
            connection.send(chunk(&[insert("held", "x"), b"--edge\r\n".to_vec()].concat())).await;
            let status = connection.head().await.unwrap().status;
            if status == 429 {
                break;
            }
            assert_eq!(status, 200);
            held.push(connection);
            assert!(held.len() < 500, "each holds a part of the room");
        }
        let parts_of_other = body([insert("a", "x"), op("head", "a")]);
        let bearer = [MIXED, ("authorization", "Bearer other")];
        assert_eq!(ask(world.address, "POST", PATH, &bearer, &parts_of_other).await.status(), 200);
    });
}

#[test]
fn what_is_left_of_a_body_that_is_wrong_is_read_without_room_for_operations() {
    block_on(async {
        let world = World::start();
        let mut held = Vec::new();
        for _ in 0..60 {
            let mut connection = Connection::open(world.address).await;
            connection.send(chunked_head()).await;
            connection.send(chunk(&vec![b'x'; 100_000])).await;
            assert_eq!(connection.head().await.unwrap().status, 200);
            held.push(connection);
        }
        until("all of the room to be free", async || {
            ask(world.address, "POST", PATH, &[MIXED], &body([op("head", "k")])).await.status() == 200
        })
        .await;
        // The sender goes on, and is told at the end.
        let mut connection = held.pop().unwrap();
        connection.send(chunk(&vec![b'x'; 100_000])).await;
        connection.send(b"0\r\n\r\n".to_vec()).await;
        let mut told = Vec::new();
        while let Some(bytes) = connection.chunk().await.filter(|bytes| !bytes.is_empty()) {
            told.extend(bytes);
        }
        assert!(find(&told, b"malformed_multipart").is_some());
    });
}
