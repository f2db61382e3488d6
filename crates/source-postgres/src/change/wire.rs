//! A replication connection: log in, ask by simple queries, then the stream in both directions. The driver has no replication
//! mode; its own protocol crate writes the messages and does SCRAM. It reads no message beyond a bound into memory, never
//! retries, and knows nothing of what the messages mean.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio_postgres::Config;
use tokio_postgres::config::ChannelBinding;
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::socket::{self, Duplex};

const READ_BYTES: usize = 64 * 1024;
/// Messages while logging in and answers to our own queries are small.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// Why a replication connection failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("the connection failed")]
    Io(#[source] io::Error),
    #[error("no server could be connected to")]
    Connect(#[source] tidegate_core::port::Cause),
    #[error("the server closed the connection")]
    Closed,
    #[error("the server sent what is not PostgreSQL's protocol: {0}")]
    Malformed(&'static str),
    #[error("the server sent a message of {bytes} bytes")]
    TooLarge { bytes: usize },
    #[error("the server wants {0}, which is not supported here")]
    Unsupported(&'static str),
    #[error("{0}")]
    Server(Refusal),
}

impl From<io::Error> for WireError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// An error as the server reports it.
#[derive(Debug, Clone, Default, thiserror::Error)]
#[error("{message} (SQLSTATE {code})")]
pub(crate) struct Refusal {
    pub(crate) code: Box<str>,
    pub(crate) message: Box<str>,
}

/// The rows of a simple query, as text.
pub(crate) type Rows = Vec<Vec<Option<Box<str>>>>;

/// A connection in replication mode.
pub(crate) struct Connection {
    pub(crate) reader: Reader,
    pub(crate) writer: Writer,
    /// The process that serves it.
    pub(crate) pid: i32,
}

/// The half that receives. Reading can be given up at any moment without losing a byte.
pub(crate) struct Reader {
    stream: ReadHalf<Box<dyn Duplex>>,
    inbox: BytesMut,
    message_bytes_max: usize,
}

/// The half that sends. Sending can be given up at any moment, and goes on with the next call.
pub(crate) struct Writer {
    stream: WriteHalf<Box<dyn Duplex>>,
    pub(crate) outbox: BytesMut,
}

impl Reader {
    /// The next message: its kind and its body.
    pub(crate) async fn message(&mut self) -> Result<(u8, Bytes), WireError> {
        loop {
            if let Some(message) = self.buffered()? {
                return Ok(message);
            }
            // In steps: a length is only a claim.
            self.inbox.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.inbox).await? == 0 {
                return Err(WireError::Closed);
            }
        }
    }

    /// The next message, where it was received whole.
    pub(crate) fn buffered(&mut self) -> Result<Option<(u8, Bytes)>, WireError> {
        let Some(&[tag, ref length @ ..]) = self.inbox.first_chunk::<5>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if length < 4 {
            return Err(WireError::Malformed("a message is shorter than its length"));
        }
        if length > self.message_bytes_max {
            return Err(WireError::TooLarge { bytes: length });
        }
        if self.inbox.len() <= length {
            return Ok(None);
        }
        let mut message = self.inbox.split_to(length + 1).freeze();
        message.advance(5);
        Ok(Some((tag, message)))
    }
}

impl Writer {
    /// Sends what lies in the outbox.
    pub(crate) async fn send(&mut self) -> Result<(), WireError> {
        while !self.outbox.is_empty() {
            if self.stream.write_buf(&mut self.outbox).await? == 0 {
                return Err(WireError::Closed);
            }
        }
        Ok(self.stream.flush().await?)
    }
}

impl Connection {
    /// Connects to the first of the servers that answers, and logs in. Not bounded in time: the caller is.
    pub(crate) async fn open(
        config: &Config,
        tls: &MakeRustlsConnect,
        settings: &[(&str, &str)],
    ) -> Result<Self, WireError> {
        let mut last = WireError::Connect("the connection string names no host".into());
        for address in socket::addresses(config) {
            match socket::bare(&address, config, tls).await {
                Ok(stream) => {
                    let (reader, writer) = tokio::io::split(stream);
                    let reader = Reader { stream: reader, inbox: BytesMut::new(), message_bytes_max: ANSWER_BYTES_MAX };
                    let writer = Writer { stream: writer, outbox: BytesMut::new() };
                    let mut connection = Self { reader, writer, pid: 0 };
                    connection.log_in(config, settings).await?;
                    return Ok(connection);
                }
                Err(error) => last = WireError::Connect(error),
            }
        }
        Err(last)
    }

    async fn log_in(&mut self, config: &Config, settings: &[(&str, &str)]) -> Result<(), WireError> {
        if config.get_channel_binding() == ChannelBinding::Require {
            return Err(WireError::Unsupported("channel binding"));
        }
        let user = config.get_user().unwrap_or("postgres");
        let mut parameters = vec![("user", user), ("replication", "database"), ("client_encoding", "UTF8")];
        parameters.extend(config.get_dbname().map(|name| ("database", name)));
        parameters.extend(config.get_application_name().map(|name| ("application_name", name)));
        parameters.extend(config.get_options().map(|options| ("options", options)));
        parameters.extend_from_slice(settings);
        frontend::startup_message(parameters, &mut self.writer.outbox)?;
        self.writer.send().await?;
        let mut scram = None;
        loop {
            match self.reader.message().await? {
                (b'R', body) => self.authenticate(body, user, config.get_password(), &mut scram).await?,
                (b'K', mut body) if body.len() >= 4 => self.pid = body.get_i32(),
                (b'E', body) => return Err(WireError::Server(refusal(&body))),
                (b'S' | b'N' | b'K', _) => {}
                (b'Z', _) => return Ok(()),
                _ => return Err(WireError::Malformed("an unexpected message while logging in")),
            }
        }
    }

    async fn authenticate(
        &mut self,
        mut body: Bytes,
        user: &str,
        password: Option<&[u8]>,
        scram: &mut Option<sasl::ScramSha256>,
    ) -> Result<(), WireError> {
        if body.len() < 4 {
            return Err(WireError::Malformed("an authentication request without a kind"));
        }
        let password = || password.ok_or(WireError::Unsupported("a password, and the URL has none"));
        let out = &mut self.writer.outbox;
        match body.get_u32() {
            0 => return Ok(()),
            3 => frontend::password_message(password()?, out)?,
            5 => {
                let salt = *body.first_chunk().ok_or(WireError::Malformed("a salt of less than four bytes"))?;
                frontend::password_message(md5_hash(user.as_bytes(), password()?, salt).as_bytes(), out)?;
            }
            10 => {
                if !body.split(|byte| *byte == 0).any(|mechanism| mechanism == sasl::SCRAM_SHA_256.as_bytes()) {
                    return Err(WireError::Unsupported("a SASL mechanism other than SCRAM-SHA-256"));
                }
                let begun = sasl::ScramSha256::new(password()?, sasl::ChannelBinding::unsupported());
                frontend::sasl_initial_response(sasl::SCRAM_SHA_256, begun.message(), out)?;
                *scram = Some(begun);
            }
            11 => {
                let scram = scram.as_mut().ok_or(WireError::Malformed("SCRAM goes on before it began"))?;
                scram.update(&body)?;
                frontend::sasl_response(scram.message(), out)?;
            }
            12 => {
                let scram = scram.as_mut().ok_or(WireError::Malformed("SCRAM ends before it began"))?;
                return Ok(scram.finish(&body)?);
            }
            _ => return Err(WireError::Unsupported("another kind of authentication than a password or SCRAM-SHA-256")),
        }
        self.writer.send().await
    }

    /// Runs a statement or a replication command to its end.
    pub(crate) async fn ask(&mut self, statement: &str) -> Result<Rows, WireError> {
        frontend::query(statement, &mut self.writer.outbox)?;
        self.writer.send().await?;
        let (mut rows, mut refused) = (Vec::new(), None);
        loop {
            match self.reader.message().await? {
                (b'D', body) => rows.push(row(&body).ok_or(WireError::Malformed("a row that cannot be read"))?),
                (b'E', body) => refused = Some(refusal(&body)),
                (b'Z', _) => return refused.map_or(Ok(rows), |refused| Err(WireError::Server(refused))),
                _ => {}
            }
        }
    }

    /// Begins the stream. From then on messages up to `message_bytes_max` are taken.
    pub(crate) async fn stream(&mut self, command: &str, message_bytes_max: usize) -> Result<(), WireError> {
        frontend::query(command, &mut self.writer.outbox)?;
        self.writer.send().await?;
        loop {
            match self.reader.message().await? {
                (b'W', _) => {
                    self.reader.message_bytes_max = message_bytes_max;
                    return Ok(());
                }
                (b'E', body) => return Err(WireError::Server(refusal(&body))),
                (b'N' | b'S', _) => {}
                _ => return Err(WireError::Malformed("the server did not begin to stream")),
            }
        }
    }
}

/// The cells of a `DataRow`.
fn row(body: &[u8]) -> Option<Vec<Option<Box<str>>>> {
    let (count, mut rest) = body.split_first_chunk()?;
    let mut cells = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, after) = rest.split_first_chunk()?;
        rest = after;
        let length = i32::from_be_bytes(*length);
        if length < 0 {
            cells.push(None);
            continue;
        }
        let (cell, after) = rest.split_at_checked(usize::try_from(length).ok()?)?;
        rest = after;
        cells.push(Some(str::from_utf8(cell).ok()?.into()));
    }
    Some(cells)
}

/// The fields of an `ErrorResponse` that we use. Its words are in the server's language and perhaps not UTF-8.
pub(crate) fn refusal(body: &[u8]) -> Refusal {
    let mut refusal = Refusal::default();
    let mut words = String::new();
    for field in body.split(|byte| *byte == 0) {
        let Some((kind, text)) = field.split_first() else { continue };
        let text = String::from_utf8_lossy(text);
        match kind {
            b'C' => refusal.code = text.into(),
            b'M' => words.insert_str(0, &text),
            b'D' | b'H' => {
                words.push_str("; ");
                words.push_str(&text);
            }
            _ => {}
        }
    }
    refusal.message = words.into();
    refusal
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_answer_of_a_server_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = (row(&bytes), refusal(&bytes));
        }
    }

    #[test]
    fn a_refusal_has_the_servers_code_and_words() {
        let refusal = refusal(b"SERROR\0VERROR\0C55006\0Mslot is active\0Dfor 7\0\0");
        assert_eq!((&*refusal.code, &*refusal.message), ("55006", "slot is active; for 7"));
    }
}
