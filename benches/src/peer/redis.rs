//! Redis streams by the `redis` crate: one connection a lane, a batch is one pipeline.

use std::rc::Rc;

use redis::aio::MultiplexedConnection;
use redis::streams::{StreamReadOptions, StreamReadReply};
use redis::{AsyncCommands as _, AsyncConnectionConfig, Client};

use crate::load::Lane;
use crate::process::Server;
use crate::wire::record;

/// How long one read of a tail blocks at most, in milliseconds.
const BLOCK_MS: usize = 5_000;

/// One publisher.
pub struct RedisLane {
    connection: MultiplexedConnection,
    pipelines: Rc<Vec<redis::Pipeline>>,
    lane: usize,
    lanes: usize,
    before: usize,
}

impl Lane for RedisLane {
    async fn step(&mut self, _turn: usize) {
        let index = (self.lane + self.before * self.lanes) % self.pipelines.len();
        self.before += 1;
        self.pipelines[index].exec_async(&mut self.connection).await.expect("appended");
    }
}

/// Connects; the client waits as long as the server needs.
///
/// # Panics
/// When nobody listens.
pub async fn connect(server: &Server) -> MultiplexedConnection {
    let client = Client::open(format!("redis://{}/", server.address)).expect("an address");
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    client.get_multiplexed_async_connection_with_config(&config).await.expect("the server listens")
}

/// So many connections that append `batch` entries a round trip to the streams in turn.
pub async fn lanes(
    server: &Server,
    streams: &[String],
    batch: usize,
    record_bytes: usize,
    lanes: usize,
) -> Vec<RedisLane> {
    let payload = record(record_bytes, 0);
    let pipeline = |stream: &String| {
        let mut pipeline = redis::Pipeline::with_capacity(batch);
        for _ in 0..batch {
            pipeline.xadd(stream, "*", &[("d", payload.as_slice())]).ignore();
        }
        pipeline
    };
    let pipelines = Rc::new(streams.iter().map(pipeline).collect::<Vec<_>>());
    let mut all = Vec::new();
    for lane in 0..lanes {
        let connection = connect(server).await;
        all.push(RedisLane { connection, pipelines: Rc::clone(&pipelines), lane, lanes, before: 0 });
    }
    all
}

/// Appends one entry.
///
/// # Panics
/// When the server refuses.
pub async fn append(connection: &mut MultiplexedConnection, stream: &str, payload: &[u8]) {
    let _: String = connection.xadd(stream, "*", &[("d", payload)]).await.expect("appended");
}

/// The entries behind `after` (`$` at first), once there are any; `after` moves on.
///
/// # Panics
/// When the connection breaks.
pub async fn next(connection: &mut MultiplexedConnection, stream: &str, after: &mut String) -> Vec<Vec<u8>> {
    let options = StreamReadOptions::default().block(BLOCK_MS).count(1_000);
    let reply: Option<StreamReadReply> =
        connection.xread_options(&[stream], &[after.as_str()], &options).await.expect("entries");
    let mut payloads = Vec::new();
    for key in reply.into_iter().flat_map(|reply| reply.keys) {
        for entry in key.ids {
            *after = entry.id.clone();
            payloads.extend(entry.get::<Vec<u8>>("d"));
        }
    }
    payloads
}
