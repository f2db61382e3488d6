//! NATS JetStream by its own client: a stream of file storage for each stream of ours.

use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_nats::jetstream::{self, Context, consumer, stream};
use bytes::Bytes;
use futures::StreamExt as _;

use crate::load::Lane;
use crate::process::Server;
use crate::wire::record;

static BATCHES: AtomicU64 = AtomicU64::new(0);

/// How a batch is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Batch {
    /// Every message on its own, all under way before the first acknowledgement is awaited.
    Pipelined,
    /// One atomic batch (NATS 2.12 and later), as a request to us is one.
    Atomic,
}

/// Connects.
///
/// # Panics
/// When nobody listens.
pub async fn connect(server: &Server) -> Context {
    let client = async_nats::connect(format!("nats://{}", server.address)).await.expect("the server listens");
    jetstream::new(client)
}

/// Creates streams; the stream's name is the subject.
///
/// # Panics
/// When the server refuses.
pub async fn create(context: &Context, streams: &[String]) {
    for name in streams {
        let config = stream::Config {
            name: name.clone(),
            subjects: vec![name.clone()],
            storage: stream::StorageType::File,
            allow_atomic_publish: true,
            ..stream::Config::default()
        };
        context.create_stream(config).await.expect("a new stream");
    }
}

/// One publisher.
#[derive(Debug)]
pub struct NatsLane {
    context: Context,
    streams: Rc<Vec<String>>,
    payload: Bytes,
    batch: usize,
    how: Batch,
    lane: usize,
    lanes: usize,
    before: usize,
}

impl Lane for NatsLane {
    async fn step(&mut self, _turn: usize) {
        let stream = self.streams[(self.lane + self.before * self.lanes) % self.streams.len()].clone();
        self.before += 1;
        match self.how {
            Batch::Pipelined => {
                let mut acknowledgements = Vec::with_capacity(self.batch);
                for _ in 0..self.batch {
                    let publish = self.context.publish(stream.clone(), self.payload.clone());
                    acknowledgements.push(publish.await.expect("published"));
                }
                for acknowledgement in acknowledgements {
                    acknowledgement.await.expect("acknowledged");
                }
            }
            Batch::Atomic => self.atomic(stream).await,
        }
    }
}

impl NatsLane {
    async fn atomic(&self, stream: String) {
        let client = self.context.client();
        let id = BATCHES.fetch_add(1, Ordering::Relaxed).to_string();
        for sequence in 1..=self.batch {
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("Nats-Batch-Id", id.as_str());
            headers.insert("Nats-Batch-Sequence", sequence.to_string());
            if sequence < self.batch {
                let publish = client.publish_with_headers(stream.clone(), headers, self.payload.clone());
                publish.await.expect("published");
            } else {
                headers.insert("Nats-Batch-Commit", "1");
                let request = client.request_with_headers(stream.clone(), headers, self.payload.clone());
                let answer = request.await.expect("acknowledged");
                let text = String::from_utf8_lossy(&answer.payload);
                assert!(text.contains("\"seq\":"), "{text}");
            }
        }
    }
}

/// So many publishers over so many connections.
pub async fn lanes(
    server: &Server,
    streams: &[String],
    batch: usize,
    record_bytes: usize,
    (lanes, connections): (usize, usize),
    how: Batch,
) -> Vec<NatsLane> {
    let streams = Rc::new(streams.to_vec());
    let payload = Bytes::from(record(record_bytes, 0));
    let mut contexts = Vec::new();
    for _ in 0..connections {
        contexts.push(connect(server).await);
    }
    let of = |lane: usize| NatsLane {
        context: contexts[lane % connections].clone(),
        streams: Rc::clone(&streams),
        payload: payload.clone(),
        batch,
        how,
        lane,
        lanes,
        before: 0,
    };
    (0..lanes).map(of).collect()
}

/// The messages of one stream from now on, pushed by the server.
///
/// # Panics
/// When the server refuses.
pub async fn tail(context: &Context, name: &str) -> consumer::push::Ordered {
    let stream = context.get_stream(name).await.expect("the stream is there");
    let config = consumer::push::OrderedConfig {
        deliver_subject: context.client().new_inbox(),
        deliver_policy: consumer::DeliverPolicy::New,
        ..consumer::push::OrderedConfig::default()
    };
    let consumer = stream.create_consumer(config).await.expect("a new consumer");
    consumer.messages().await.expect("messages")
}

/// The next message's bytes.
pub async fn next(messages: &mut consumer::push::Ordered) -> Option<Bytes> {
    Some(messages.next().await?.ok()?.payload.clone())
}
