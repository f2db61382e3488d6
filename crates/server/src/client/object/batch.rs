//! Many small objects in one request and its one answer: written, read, looked at or removed. Each part is answered by itself; what was
//! not answered is asked for again, for none of it does harm when it is done twice.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use memchr::memmem::Finder;
use percent_encoding::utf8_percent_encode;
use reqwest::RequestBuilder;
use reqwest::header::CONTENT_TYPE;
use sha2::{Digest as _, Sha256};

use super::super::call::{Answer, Fault, Patience, SEGMENT, accepted};
use super::super::document::Problem;
use super::super::error::Interruption;
use super::super::{Client, ClientError, LineError};
use super::CollectionName;
use super::body::content_digest;

/// The most parts of a batch.
pub const BATCH_MAX_COUNT: usize = 1_000;
/// How long the server may take for a batch, beyond what it may take for one answer.
const BATCH_TIME: Duration = Duration::from_secs(300);

/// A small object that is written; at most 1 MiB.
#[derive(Debug, Clone)]
pub struct Insert {
    /// Its key.
    pub key: String,
    /// Its media type.
    pub content_type: String,
    /// Its bytes.
    pub body: Bytes,
}

/// A small object that was read.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// Which write of it.
    pub etag: String,
    /// Its bytes, all of them.
    pub body: Bytes,
}

/// A part of the answer.
struct Reply<'a> {
    head: Vec<(String, &'a str)>,
    body: &'a [u8],
}

impl Reply<'_> {
    fn field(&self, name: &str) -> Option<&str> {
        self.head.iter().find(|(found, _)| found == name).map(|(_, value)| *value)
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.field(name)?.parse().ok()
    }

    fn problem(&self, status: u16) -> Problem {
        let mut problem: Problem = serde_json::from_slice(self.body).unwrap_or_else(|_| Problem {
            status,
            code: String::new(),
            title: "no reason given".to_owned(),
            detail: String::new(),
            retry: String::new(),
            retry_after_ms: None,
            members: serde_json::Map::new(),
        });
        problem.status = status;
        problem
    }
}

/// What became of each part, in their order.
pub type Outcomes<T> = Vec<Result<T, Box<Problem>>>;

impl Client {
    /// Writes objects, at most [`BATCH_MAX_COUNT`]; gives their entity tags, or why one was refused.
    ///
    /// # Errors
    /// [`ClientError`]: the batch as a whole was refused or not answered. Some of it may be written.
    pub async fn insert_batch(
        &self,
        collection: &CollectionName,
        inserts: &[Insert],
    ) -> Result<Outcomes<String>, ClientError> {
        let write = |out: &mut BytesMut, at: usize| {
            let Insert { key, content_type, body } = &inserts[at];
            let digest = content_digest(&Sha256::digest(body).into());
            let key = utf8_percent_encode(key, SEGMENT);
            let head = format!(
                "x-tidegate-op: insert\r\nx-tidegate-key: {key}\r\ncontent-type: {content_type}\r\ncontent-digest: {digest}\r\n\r\n"
            );
            out.put_slice(head.as_bytes());
            out.put_slice(body);
        };
        let read = |reply: &Reply<'_>| reply.field("etag").map(str::to_owned);
        self.batch(collection, inserts.len(), write, read).await
    }

    /// Looks at objects, at most [`BATCH_MAX_COUNT`]; gives their lengths and entity tags, or why there is none.
    ///
    /// # Errors
    /// As for [`insert_batch`](Self::insert_batch).
    pub async fn head_batch(
        &self,
        collection: &CollectionName,
        keys: &[String],
    ) -> Result<Outcomes<(u64, String)>, ClientError> {
        let read = |reply: &Reply<'_>| Some((reply.number("x-tidegate-length")?, reply.field("etag")?.to_owned()));
        self.batch(collection, keys.len(), keyed("head", keys), read).await
    }

    /// Reads objects, at most [`BATCH_MAX_COUNT`]; gives them, or why there is none. All of them are in memory together: an answer
    /// beyond [`ClientOptions::line_max_bytes`](super::super::ClientOptions::line_max_bytes) is refused.
    ///
    /// # Errors
    /// As for [`insert_batch`](Self::insert_batch).
    pub async fn get_batch(
        &self,
        collection: &CollectionName,
        keys: &[String],
    ) -> Result<Outcomes<Fetched>, ClientError> {
        let read = |reply: &Reply<'_>| {
            let etag = reply.field("etag")?.to_owned();
            // Never fewer bytes than were announced.
            let whole = reply.number::<usize>("content-length")? == reply.body.len();
            whole.then(|| Fetched { etag, body: Bytes::copy_from_slice(reply.body) })
        };
        self.batch(collection, keys.len(), keyed("get", keys), read).await
    }

    /// Removes objects, at most [`BATCH_MAX_COUNT`]. One that is not there is removed.
    ///
    /// # Errors
    /// As for [`insert_batch`](Self::insert_batch): some of them may be gone.
    pub async fn remove_batch(
        &self,
        collection: &CollectionName,
        keys: &[String],
    ) -> Result<Outcomes<()>, ClientError> {
        self.batch(collection, keys.len(), keyed("delete", keys), |_| Some(())).await
    }

    async fn batch<T>(
        &self,
        collection: &CollectionName,
        count: usize,
        write: impl Fn(&mut BytesMut, usize),
        read: impl Fn(&Reply<'_>) -> Option<T>,
    ) -> Result<Outcomes<T>, ClientError> {
        let mut outcomes: Vec<Option<Result<T, Box<Problem>>>> = (0..count).map(|_| None).collect();
        let mut patience = Patience::new(self);
        loop {
            let open: Vec<usize> = (0..count).filter(|at| outcomes[*at].is_none()).collect();
            if open.is_empty() {
                return Ok(outcomes.into_iter().flatten().collect());
            }
            match self.batch_once(collection, &open, &write).await {
                Ok(answer) => {
                    if let Some(fault) = take(&answer, &open, &mut outcomes, &read)? {
                        if open.iter().any(|at| outcomes[*at].is_some()) {
                            patience.renew();
                        }
                        patience.wait(fault).await?;
                    }
                }
                Err(fault) => drop(patience.wait(fault).await?),
            }
        }
    }

    async fn batch_once(
        &self,
        collection: &CollectionName,
        open: &[usize],
        write: &impl Fn(&mut BytesMut, usize),
    ) -> Result<Answer, Fault> {
        let mut parts = Vec::with_capacity(open.len());
        let mut hash = Sha256::new();
        for at in open {
            let mut part = BytesMut::new();
            write(&mut part, *at);
            hash.update(&part);
            parts.push(part);
        }
        // Made of the parts' own hash: none of them can hold it.
        let boundary = hex::encode(&hash.finalize()[..24]);
        let mut body = BytesMut::new();
        for part in parts {
            body.put_slice(format!("--{boundary}\r\n").as_bytes());
            body.put_slice(&part);
            body.put_slice(b"\r\n");
        }
        body.put_slice(format!("--{boundary}--\r\n").as_bytes());
        let name = |text| utf8_percent_encode(text, SEGMENT);
        let path = format!("v1/objects:batch/{}/{}", name(&collection.usecase), name(&collection.scopes));
        let request = self
            .authorized(self.http.post(self.endpoint(&path)))
            .header(CONTENT_TYPE, format!("multipart/mixed; boundary={boundary}"))
            .body(body.freeze());
        let time = self.options.stall_timeout.saturating_add(BATCH_TIME);
        match tokio::time::timeout(time, self.parts(request)).await {
            Ok(answered) => answered,
            Err(_) => Err(Fault::Again(Interruption::Stalled(time))),
        }
    }

    /// Sends a request and reads its answer, or as much of it as comes: what is whole of it counts.
    async fn parts(&self, request: RequestBuilder) -> Result<Answer, Fault> {
        let sent = request.send().await.map_err(|why| Fault::Again(Interruption::Unreachable(why)))?;
        let mut answer = accepted(sent).await?;
        let (status, headers) = (answer.status().as_u16(), std::mem::take(answer.headers_mut()));
        let limit_bytes = self.options.line_max_bytes;
        let mut body = BytesMut::new();
        loop {
            match answer.chunk().await {
                Ok(Some(piece)) if body.len() + piece.len() > limit_bytes => {
                    return Err(Fault::Never(ClientError::Line(LineError::TooLong { limit_bytes })));
                }
                Ok(Some(piece)) => body.extend_from_slice(&piece),
                Ok(None) => break,
                Err(why) if body.is_empty() => return Err(Fault::Again(Interruption::Broken(why))),
                // The delimiters say what is missing.
                Err(_) => break,
            }
        }
        Ok(Answer { status, headers, body: body.freeze() })
    }
}

/// Writes parts that are an operation and a key.
fn keyed<'a>(operation: &'a str, keys: &'a [String]) -> impl Fn(&mut BytesMut, usize) + 'a {
    move |out, at| {
        let key = utf8_percent_encode(&keys[at], SEGMENT);
        out.put_slice(format!("x-tidegate-op: {operation}\r\nx-tidegate-key: {key}\r\n\r\n").as_bytes());
    }
}

/// Takes the outcomes out of an answer. Gives what to wait for, where something is to be asked again.
fn take<T>(
    answer: &Answer,
    open: &[usize],
    outcomes: &mut [Option<Result<T, Box<Problem>>>],
    read: impl Fn(&Reply<'_>) -> Option<T>,
) -> Result<Option<Fault>, ClientError> {
    let mut again = None;
    let content_type = answer.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let replies = replies(&answer.body, content_type).ok_or(ClientError::Protocol { what: "no multipart answer" })?;
    for reply in replies {
        let status = reply.number::<u16>("x-tidegate-status").unwrap_or(500);
        let at = reply.number::<usize>("x-tidegate-index").and_then(|index| open.get(index).copied());
        let outcome = if (200..300).contains(&status) {
            Ok(read(&reply).ok_or(ClientError::Protocol { what: "a part of an answer that does not say enough" })?)
        } else {
            Err(Box::new(reply.problem(status)))
        };
        match (at, outcome) {
            // It can succeed later.
            (_, Err(problem)) if problem.is_retryable() => {
                again = Some(Fault::Again(Interruption::Refused(problem)));
            }
            (Some(at), outcome) => outcomes[at] = Some(outcome),
            // About the request as a whole.
            (None, Err(problem)) => return Err(ClientError::Refused(problem)),
            (None, Ok(_)) => return Err(ClientError::Protocol { what: "a part of an answer without its number" }),
        }
    }
    if again.is_none() && open.iter().any(|at| outcomes[*at].is_none()) {
        again = Some(Fault::Again(Interruption::Ended));
    }
    Ok(again)
}

/// The parts of a multipart body that are whole: after each comes a delimiter. `None` = it is no multipart body.
fn replies<'a>(body: &'a [u8], content_type: &str) -> Option<Vec<Reply<'a>>> {
    let (kind, parameters) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/mixed") {
        return None;
    }
    let boundary = parameters.split(';').find_map(|parameter| parameter.trim().strip_prefix("boundary="))?;
    let delimiter = format!("\r\n--{}", boundary.trim_matches('"'));
    let finder = Finder::new(delimiter.as_bytes());
    let mut replies = Vec::new();
    // The first delimiter needs no line break before it.
    let mut rest = match (body.strip_prefix(&delimiter.as_bytes()[2..]), finder.find(body)) {
        (Some(rest), _) => rest,
        (None, Some(at)) => &body[at + delimiter.len()..],
        (None, None) => return Some(replies),
    };
    while !rest.starts_with(b"--")
        && let Some(end) = finder.find(rest)
    {
        let part = rest[..end].strip_prefix(b"\r\n")?;
        rest = &rest[end + delimiter.len()..];
        let blank = memchr::memmem::find(part, b"\r\n\r\n")?;
        let head = std::str::from_utf8(&part[..blank]).ok()?;
        let fields = head.split("\r\n").map(|line| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_ascii_lowercase(), value.trim()))
        });
        replies.push(Reply { head: fields.collect::<Option<_>>()?, body: &part[blank + 4..] });
    }
    Some(replies)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPE: &str = "multipart/mixed; boundary=b";

    fn answer(body: &str) -> Answer {
        let mut headers = reqwest::header::HeaderMap::new();
        headers.insert(CONTENT_TYPE, TYPE.parse().unwrap());
        Answer { status: 200, headers, body: Bytes::copy_from_slice(body.as_bytes()) }
    }

    fn etag(reply: &Reply<'_>) -> Option<String> {
        reply.field("etag").map(str::to_owned)
    }

    #[test]
    fn each_part_has_its_outcome_and_what_has_none_is_asked_for_again() {
        let body = "--b\r\nX-Tidegate-Index: 1\r\nx-tidegate-status: 201\r\netag: \"e\"\r\n\r\n\r\n\
                    --b\r\nx-tidegate-index: 0\r\nx-tidegate-status: 413\r\n\r\n{\"code\":\"object_too_large\",\"retry\":\"never\"}\r\n\
                    --b\r\nx-tidegate-index: 2\r\nx-tidegate-status: 503\r\n\r\n{\"code\":\"storage_full\",\"retry\":\"after\"}\r\n\
                    --b--\r\n";
        let mut outcomes: Vec<Option<Result<String, Box<Problem>>>> = (0..5).map(|_| None).collect();
        let fault = take(&answer(body), &[4, 2, 0], &mut outcomes, etag).unwrap();
        assert!(matches!(fault, Some(Fault::Again(Interruption::Refused(_)))));
        assert_eq!(outcomes[2].as_ref().unwrap().as_ref().unwrap(), "\"e\"");
        assert_eq!(outcomes[4].as_ref().unwrap().as_ref().unwrap_err().code, "object_too_large");
        assert!(outcomes[0].is_none());
        // What is wrong with the request as a whole ends it.
        let body =
            "--b\r\nx-tidegate-status: 400\r\n\r\n{\"code\":\"malformed_multipart\",\"retry\":\"never\"}\r\n--b--";
        assert!(matches!(take(&answer(body), &[0], &mut outcomes, etag), Err(ClientError::Refused(_))));
    }

    #[test]
    fn of_an_answer_that_breaks_off_the_whole_parts_count_and_no_other() {
        let whole = "--b\r\nx-tidegate-index: 0\r\nx-tidegate-status: 200\r\netag: \"a\"\r\n\r\nabc\r\n\
                     --b\r\nx-tidegate-index: 1\r\nx-tidegate-status: 200\r\netag: \"b\"\r\n\r\n\r\n--b--\r\n";
        let (first, second) = (whole.find("\r\n--b\r\n").unwrap() + 5, whole.len() - 4);
        for end in 0..=whole.len() {
            let mut outcomes: Vec<Option<Result<String, Box<Problem>>>> = vec![None, None];
            let again = take(&answer(&whole[..end]), &[0, 1], &mut outcomes, etag).unwrap();
            let told = outcomes.iter().filter(|outcome| outcome.is_some()).count();
            assert_eq!(told, usize::from(end >= first) + usize::from(end >= second), "{end}");
            assert_eq!(again.is_some(), told < 2, "{end}");
        }
        assert_eq!(replies(whole.as_bytes(), TYPE).unwrap()[0].body, b"abc");
        assert_eq!(replies(b"--b--", TYPE).map(|replies| replies.len()), Some(0));
        assert!(replies(whole.as_bytes(), "text/plain; boundary=b").is_none());
    }
}
