//! The scene of the objects: small ones beside the log, a large one in a file of its own; one is replaced while somebody reads it, and the
//! reader gets one whole write of it, never a mixture and never a 404.

use std::sync::Arc;
use std::time::Instant;

use sha2::{Digest, Sha256};

use super::narrator::{Narrator, bytes, count, rate, time};
use super::{DemoError, Scene, Stage, promise};
use crate::client::ClientError;
use crate::client::object::{CollectionName, Meter, ObjectReader, PutSpec};

const SMALL: u64 = 200;
const LARGE_BYTES: usize = 48 * 1024 * 1024;
const LARGE: &str = "maps/world.bin";

/// The scene.
pub(super) struct ObjectScene;

fn collection() -> CollectionName {
    CollectionName { usecase: "atlas".to_owned(), scopes: "org=17;project=42".to_owned() }
}

/// Bytes that differ from write to write.
fn map(edition: u8) -> Vec<u8> {
    (0..LARGE_BYTES).map(|at| (at.wrapping_mul(31) >> 7) as u8 ^ edition).collect()
}

async fn drain(mut reader: ObjectReader, mut hash: Sha256) -> Result<String, ClientError> {
    while let Some(piece) = reader.next().await? {
        hash.update(&piece);
    }
    Ok(hex::encode(hash.finalize()))
}

#[async_trait::async_trait]
impl Scene for ObjectScene {
    fn title(&self) -> &'static str {
        "Objects in two tiers, replaced under their readers"
    }

    async fn play(&mut self, stage: &Stage, narrator: &mut Narrator) -> Result<(), DemoError> {
        let (client, collection) = (&stage.client, collection());
        let silent: Meter = Arc::new(|_| {});
        let spec = PutSpec { content_type: Some("text/plain".to_owned()), ..PutSpec::default() };

        let begun = Instant::now();
        let mut tiers = [0_u64; 2];
        for number in 0..SMALL {
            let body = std::io::Cursor::new(format!("a note on place {number}\n").into_bytes());
            let key = format!("notes/{number:03}");
            let written = client.put_object_from(&collection, Some(&key), body, &spec, &silent).await?;
            tiers[usize::from(written.info.tier != "hot")] += 1;
        }
        let took = begun.elapsed();
        promise("small objects lie in the hot tier", SMALL, tiers[0])?;
        narrator.say(&format!(
            "{} small objects of {collection} are written, one request each, durable when answered: {} ({}/s). They lie hot, beside the log.",
            count(SMALL),
            time(took),
            count(rate(SMALL, took)),
        ))?;

        let (first, second) = (map(1), map(2));
        let hashes = [&first, &second].map(|map| hex::encode(Sha256::digest(map)));
        let begun = Instant::now();
        let large = PutSpec::default();
        let put = |body: Vec<u8>| {
            client.put_object_from(&collection, Some(LARGE), std::io::Cursor::new(body), &large, &silent)
        };
        let written = put(first).await?;
        promise("a large object lies in the cold tier", "cold", &written.info.tier)?;
        narrator.say(&format!(
            "{LARGE} has {}: written in {}, into a file of its own; it lies {}. SHA-256 {}",
            bytes(written.info.length),
            time(begun.elapsed()),
            written.info.tier,
            short(&hashes[0]),
        ))?;

        let mut reader = client.read_object(&collection, LARGE, None).await?;
        let mut own = Sha256::new();
        if let Some(piece) = reader.next().await? {
            own.update(&piece);
        }
        let left = reader.left();
        let replaced = put(second).await?;
        promise("the object was replaced", false, replaced.created)?;
        let read = drain(reader, own).await?;
        promise("the reader got the write that it began with, whole", &hashes[0], &read)?;
        narrator.say(&format!(
            "A reader begins; with {} still to come, somebody replaces the object. The reader gets the first write to its end: SHA-256 {}",
            bytes(left),
            short(&read),
        ))?;
        let now = drain(client.read_object(&collection, LARGE, None).await?, Sha256::new()).await?;
        promise("who reads now gets the second write", &hashes[1], &now)?;
        narrator.say(&format!(
            "Who reads now gets the second: SHA-256 {}. The first one's file is cleared away when nobody can be reading it any more.",
            short(&now)
        ))?;

        let page = client.objects(&collection, "", None).await?;
        promise("every object is listed once", SMALL + 1, page.objects.len())?;
        Ok(())
    }

    fn try_next(&self, stage: &Stage) -> Vec<String> {
        let (url, collection) = (stage.url.as_str().trim_end_matches('/'), collection());
        vec![
            format!("tidegate object ls --url {url} '{collection}' --prefix maps/"),
            format!("tidegate object get --url {url} '{collection}' notes/007"),
            format!("tidegate object batch down --url {url} '{collection}' --prefix notes/ --to notes"),
        ]
    }
}

fn short(hash: &str) -> String {
    hash.chars().take(16).collect::<String>() + "…"
}
