//! The scene of the query stream: read whole, cut in the middle, a writer at work, taken up at the exact row, and the proof that
//! not a byte differs.

use std::time::Instant;

use rusqlite::{Connection, params};
use sha2::{Digest, Sha256};

use super::narrator::{Narrator, bytes, count, rate, time};
use super::{DemoError, Scene, Stage, data, promise};
use crate::client::{Client, Event, QueryRequest, QueryStream, RowShape, Summary};

const SQL: &str = "select * from city order by id";

/// The scene.
pub(super) struct QueryStreamScene;

/// A client's own SHA-256 over row lines, made without the library that the client and the server share.
#[derive(Default)]
struct Own(Sha256);

impl Own {
    fn row(&mut self, line: &[u8]) {
        self.0.update(line);
    }

    fn hex(self) -> String {
        hex::encode(self.0.finalize())
    }
}

async fn open(client: &Client, sql: &str) -> Result<QueryStream, DemoError> {
    let request =
        QueryRequest { source: "main".to_owned(), sql: sql.to_owned(), params: Vec::new(), rows: RowShape::Object };
    Ok(client.query(&request).await?)
}

/// Reads to the end and gives the summary with the own hash.
async fn drain(mut stream: QueryStream, mut own: Own) -> Result<(Summary, String), DemoError> {
    loop {
        match stream.next().await? {
            Event::Row(line) => own.row(&line),
            Event::Resumed { .. } => {}
            Event::End(summary) => return Ok((summary, own.hex())),
        }
    }
}

/// What commits between the cut and the resume: (changed, deleted, added).
fn write(stage: &Stage) -> Result<(usize, usize, usize), DemoError> {
    let work = || -> rusqlite::Result<_> {
        let mut database = Connection::open(&stage.database)?;
        let transaction = database.transaction()?;
        let changed = transaction.execute("update city set population = population + 1 where country = 'DE'", [])?;
        let deleted = transaction.execute("delete from city where country = 'US' and id % 3 = 0", [])?;
        let mut added = 0;
        for number in 0..1000 {
            added += transaction.execute(
                "insert into city values (?1, ?2, 'AQ', null, 'PPL', -90.0, 0.0, null)",
                params![20_000_000 + number, format!("New Station {number}")],
            )?;
        }
        transaction.commit()?;
        Ok((changed, deleted, added))
    };
    // A short transaction: blocking this one task for it is no harm.
    work().map_err(DemoError::Writer)
}

#[async_trait::async_trait]
impl Scene for QueryStreamScene {
    fn title(&self) -> &'static str {
        "A query stream that outlives its connection"
    }

    async fn play(&mut self, stage: &Stage, narrator: &mut Narrator) -> Result<(), DemoError> {
        let client = &stage.client;
        narrator.say(&format!("The query: {SQL}"))?;
        let begun = Instant::now();
        let (whole, own) = drain(open(client, SQL).await?, Own::default()).await?;
        let took = begun.elapsed();
        promise("the stream has every row", data::ROWS, whole.rows)?;
        promise("the hash of the end line is that of the rows", &whole.prefix_hash, &own)?;
        narrator.say(&format!(
            "Undisturbed: {} rows, {} in {} ({} rows/s). SHA-256 {}",
            count(whole.rows),
            bytes(whole.bytes),
            time(took),
            count(rate(whole.rows, took)),
            short(&own),
        ))?;

        let half = data::ROWS / 2;
        let mut stream = open(client, SQL).await?;
        let snapshot = stream.open_line().snapshot.clone();
        let mut own = Own::default();
        while stream.rows() < half {
            if let Event::Row(line) = stream.next().await? {
                own.row(&line);
            }
        }
        stream.cut();
        narrator.say(&format!(
            "Again, on a new snapshot ({snapshot}); after {} rows the connection is cut.",
            count(stream.rows())
        ))?;

        let (changed, deleted, added) = write(stage)?;
        narrator.say(&format!(
            "Meanwhile a writer commits: {} rows changed, {} deleted, {} added.",
            count(changed as u64),
            count(deleted as u64),
            count(added as u64),
        ))?;

        let begun = Instant::now();
        let resumed = stream.next().await?;
        let first = begun.elapsed();
        promise("the stream is resumed", true, matches!(resumed, Event::Resumed { .. }))?;
        let (rest, own) = drain(stream, own).await?;
        narrator.say(&format!(
            "Resumed at row {} in {}, and read to the end: {} rows. SHA-256 {}",
            count(half),
            time(first),
            count(rest.rows),
            short(&own),
        ))?;
        promise("the resumed stream has every row", whole.rows, rest.rows)?;
        promise(
            "the hash of the resumed stream is that of the undisturbed one",
            &whole.prefix_hash,
            &rest.prefix_hash,
        )?;
        promise("the client's own hash agrees", &whole.prefix_hash, &own)?;
        narrator.say("Not a byte differs: the snapshot was held while nobody was connected.")?;

        let (after, _) = drain(open(client, SQL).await?, Own::default()).await?;
        let expected = data::ROWS + added as u64 - deleted as u64;
        promise("a new stream sees what the writer did", expected, after.rows)?;
        narrator.say(&format!(
            "A stream that opens now sees the writer's work: {} rows, SHA-256 {}",
            count(after.rows),
            short(&after.prefix_hash),
        ))?;
        Ok(())
    }

    fn try_next(&self, stage: &Stage) -> Vec<String> {
        let url = stage.url.as_str().trim_end_matches('/');
        vec![
            format!("curl -sN {url}/v1/query -d '{{\"source\":\"main\",\"sql\":\"{SQL}\"}}' | head -4"),
            "# the first line has the cursor; what you hold of the rows goes into rows and prefix_hash:".to_owned(),
            format!(
                "curl -sN {url}/v1/query/resume -d '{{\"cursor\":\"...\",\"rows\":0,\"prefix_hash\":\"{}\"}}' | head -4",
                hex::encode(Sha256::digest([])),
            ),
            format!(
                "tidegate query --url {url} \"select name, population from city order by population desc limit 10\""
            ),
            format!("tidegate query --url {url} --format csv --output cities.csv \"{SQL}\""),
            format!("curl -s {url}/v1/leases; curl -s {url}/v1/limits; curl -s {url}/metrics"),
        ]
    }
}

fn short(hash: &str) -> String {
    hash.chars().take(16).collect::<String>() + "…"
}
