//! A producer that never repeats a record in its stream: each batch carries the producer's id and a sequence, so a batch whose
//! answer was lost is sent again and taken once. One batch at a time; the order of batches is the order of the stream.

use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use tidegate_core::port::{Entropy, EntropyUnavailable};

use super::call::Patience;
use super::change::{Appended, AppendedRange};
use super::{Client, ClientError};

/// A producer of one stream.
pub struct Producer {
    client: Client,
    stream: String,
    id: String,
    sequence: u64,
    patience: Patience,
}

/// What the server acknowledged.
#[derive(Debug, Clone)]
pub struct Acknowledged {
    /// How many records are there.
    pub count: u64,
    /// How many came too late and were left out, as the stream says.
    pub late: u64,
    /// Where they lie; `None` where the server had them already and did not say where.
    pub ranges: Option<Vec<AppendedRange>>,
    /// How often the batch was sent.
    pub attempts: u64,
}

impl Producer {
    /// A producer with a new random id, in epoch 0.
    ///
    /// # Errors
    /// The system gives no randomness: an id that can be guessed could meet another's.
    pub fn new(client: Client, stream: impl Into<String>, entropy: &dyn Entropy) -> Result<Self, EntropyUnavailable> {
        let mut bytes = [0; 16];
        entropy.fill(&mut bytes)?;
        let patience = Patience::new(&client);
        Ok(Self { client, stream: stream.into(), id: hex::encode(bytes), sequence: 0, patience })
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Publishes a batch of records, one JSON document a line, all or nothing; durable when this returns.
    ///
    /// # Errors
    /// [`ClientError`]. Refused for good: nothing was appended. [`ClientError::NotAnswered`]: it may have been, or not.
    pub async fn publish(&mut self, batch: &Bytes, count: u64) -> Result<Acknowledged, ClientError> {
        let mut attempts = 0;
        loop {
            let request = self
                .client
                .to(Method::POST, &["v1", "streams", &self.stream, "records"])
                .header(CONTENT_TYPE, "application/x-ndjson")
                .header("Producer-Id", &self.id)
                .header("Producer-Epoch", "0")
                .header("Producer-Seq", self.sequence.to_string())
                .body(batch.clone());
            attempts += 1;
            match self.client.ask(request, Duration::ZERO).await {
                Ok(answer) => {
                    self.patience.renew();
                    self.sequence += 1;
                    // A repeated batch may be answered without its places.
                    if answer.body.is_empty() {
                        return Ok(Acknowledged { count, late: 0, ranges: None, attempts });
                    }
                    let appended: Appended = answer.json()?;
                    let late = appended.late.len() as u64;
                    if appended.count.saturating_add(late) != count {
                        return Err(ClientError::Protocol { what: "another count than was sent" });
                    }
                    return Ok(Acknowledged { count: appended.count, late, ranges: Some(appended.appended), attempts });
                }
                Err(fault) => {
                    self.patience.wait(fault).await?;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
