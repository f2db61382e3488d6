//! A partition followed for ever, over server-sent events. Invariant: `next` is the offset of the record to hand out next, and
//! every record and gap meets it exactly, so nothing is handed out twice and nothing is left out, over any number of
//! connections. What the server leaves out without a gap ends the tail with an error.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use eventsource_stream::{EventStream, EventStreamError};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use reqwest::header::ACCEPT;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::call::{Fault, Patience, accepted};
use super::change::GapInfo;
use super::document::Problem;
use super::error::Interruption;
use super::run::{Item, Run};
use super::{Client, ClientError, LineError};

/// What comes next.
#[derive(Debug)]
#[non_exhaustive]
pub enum TailEvent {
    /// A record or a gap.
    Item(Item),
    /// The connection was lost and the tail goes on at the exact record.
    Resumed {
        /// Which partition.
        partition: u32,
        /// The next offset.
        next: u64,
        /// What had happened.
        why: Interruption,
    },
}

/// A partition that is followed.
pub struct Tail {
    client: Client,
    stream: String,
    run: Run,
    last_id: Option<String>,
    events: Option<Events>,
    patience: Patience,
    lost: Option<Interruption>,
}

/// The events of one connection, with the bytes that came since the last event.
struct Events {
    stream: EventStream<BoxStream<'static, Result<Bytes, Fault>>>,
    held_bytes: Arc<AtomicUsize>,
    opened: Instant,
}

/// A connection that lasted so long was none of a row of failures, whether or not a record came over it.
const STEADY: Duration = Duration::from_secs(1);

/// An event's data: the record or gap by itself, or named as in a line of NDJSON.
#[derive(Deserialize)]
struct Named<'a> {
    #[serde(borrow)]
    record: Option<&'a RawValue>,
    #[serde(borrow)]
    gap: Option<&'a RawValue>,
}

impl Tail {
    /// A tail of one partition from this offset on; nothing is sent yet.
    #[must_use]
    pub fn new(client: Client, stream: impl Into<String>, partition: u32, from: u64) -> Self {
        let patience = Patience::new(&client);
        Self {
            client,
            stream: stream.into(),
            run: Run { partition, next: from },
            last_id: None,
            events: None,
            patience,
            lost: None,
        }
    }

    /// The offset of the record to come next.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.run.next
    }

    /// The next event; waits for it as long as it takes. Safe to drop and call again: no record is lost.
    ///
    /// # Errors
    /// [`ClientError`]: the tail is over.
    pub async fn next(&mut self) -> Result<TailEvent, ClientError> {
        loop {
            let Some(events) = self.events.as_mut() else {
                if let Some(event) = self.connect().await? {
                    return Ok(event);
                }
                continue;
            };
            let event = events.stream.next().await;
            events.held_bytes.store(0, Ordering::Relaxed);
            if event.as_ref().is_some_and(Result::is_ok) || events.opened.elapsed() > STEADY {
                self.patience.renew();
            }
            let fault = match event {
                Some(Ok(event)) => {
                    if !event.id.is_empty() {
                        self.last_id = Some(event.id);
                    }
                    match self.take(&event.event, &event.data) {
                        Ok(Some(item)) => return Ok(TailEvent::Item(item)),
                        Ok(None) => continue,
                        Err(fault) => fault,
                    }
                }
                Some(Err(EventStreamError::Transport(fault))) => fault,
                Some(Err(EventStreamError::Utf8(_) | EventStreamError::Parser(_))) => {
                    Fault::Never(ClientError::Protocol { what: "events that are no server-sent events" })
                }
                None => Fault::Again(Interruption::Ended),
            };
            self.events = None;
            let why = match fault {
                // Nothing to say is no failure of the server's: it is asked again at once.
                Fault::Again(why @ Interruption::Stalled(_)) => why,
                fault => self.patience.wait(fault).await?,
            };
            self.lost.get_or_insert(why);
        }
    }

    /// What an event says; `None` = nothing new.
    fn take(&mut self, kind: &str, data: &str) -> Result<Option<Item>, Fault> {
        match kind {
            "record" => {
                let named = serde_json::from_str::<Named<'_>>(data).ok().and_then(|named| named.record);
                Ok(self.run.record(named.map_or(data, RawValue::get))?)
            }
            "gap" => {
                let named = serde_json::from_str::<Named<'_>>(data).ok().and_then(|named| named.gap);
                let gap: GapInfo =
                    serde_json::from_str(named.map_or(data, RawValue::get)).map_err(ClientError::Answer)?;
                Ok(self.run.gap(gap)?)
            }
            // A problem document, as an answer that is refused has it.
            "error" => {
                let problem: Box<Problem> = serde_json::from_str(data).map_err(ClientError::Answer)?;
                Err(if problem.is_retryable() {
                    Fault::Again(Interruption::Refused(problem))
                } else {
                    Fault::Never(ClientError::Refused(problem))
                })
            }
            // What a later server says beside records is no business of this client.
            _ => Ok(None),
        }
    }

    /// Connects, once; says so where a connection had been lost.
    async fn connect(&mut self) -> Result<Option<TailEvent>, ClientError> {
        let mut url = self.client.at(&["v1", "streams", &self.stream, "records"]);
        url.query_pairs_mut()
            .append_pair("partition", &self.run.partition.to_string())
            .append_pair("from", &self.run.next.to_string());
        let mut request = self.client.authorized(self.client.http.get(url)).header(ACCEPT, "text/event-stream");
        if let Some(id) = &self.last_id {
            request = request.header("Last-Event-ID", id);
        }
        let stall = self.client.options.stall_timeout;
        let opened = match tokio::time::timeout(stall, request.send()).await {
            Ok(Ok(answer)) => match tokio::time::timeout(stall, accepted(answer)).await {
                Ok(accepted) => accepted,
                Err(_) => Err(Fault::Again(Interruption::Stalled(stall))),
            },
            Ok(Err(why)) => Err(Fault::Again(Interruption::Unreachable(why))),
            Err(_) => Err(Fault::Again(Interruption::Stalled(stall))),
        };
        match opened {
            Ok(answer) => {
                self.events = Some(events(answer, stall, self.client.options.line_max_bytes));
                Ok(self.lost.take().map(|why| TailEvent::Resumed {
                    partition: self.run.partition,
                    next: self.run.next,
                    why,
                }))
            }
            Err(fault) => {
                let why = self.patience.wait(fault).await?;
                self.lost.get_or_insert(why);
                Ok(None)
            }
        }
    }
}

/// The events of an answer. A connection on which nothing comes for `stall`, not even a comment, is broken.
fn events(answer: reqwest::Response, stall: Duration, limit_bytes: usize) -> Events {
    let held_bytes = Arc::new(AtomicUsize::new(0));
    let held = Arc::clone(&held_bytes);
    let pieces = stream::unfold(Some(answer), move |answer| {
        let held = Arc::clone(&held);
        async move {
            let mut answer = answer?;
            let piece = match tokio::time::timeout(stall, answer.chunk()).await {
                Ok(Ok(piece)) => Ok(piece?),
                Ok(Err(why)) => Err(Fault::Again(Interruption::Broken(why))),
                Err(_) => Err(Fault::Again(Interruption::Stalled(stall))),
            };
            match piece {
                Ok(piece) if held.fetch_add(piece.len(), Ordering::Relaxed) + piece.len() > limit_bytes => {
                    let error = ClientError::Line(LineError::TooLong { limit_bytes });
                    Some((Err(Fault::Never(error)), None))
                }
                Ok(piece) => Some((Ok(piece), Some(answer))),
                Err(fault) => Some((Err(fault), None)),
            }
        }
    });
    Events { stream: EventStream::new(pieces.boxed()), held_bytes, opened: Instant::now() }
}

#[cfg(test)]
mod tests;
