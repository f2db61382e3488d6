//! Reads a multipart body piece by piece. It fails on nothing within a part: a head that cannot be read is told as such, and the next
//! part is looked for.

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use memchr::memmem::Finder;

/// The head of a part.
pub(crate) const HEAD_MAX_BYTES: usize = 24 * 1024;
/// Header fields of a part.
pub(crate) const HEAD_MAX_COUNT: usize = 100;
/// What may stand before the first part.
const PREAMBLE_MAX_BYTES: usize = 64 * 1024;
/// Blanks that may follow a delimiter in its line.
const PADDING_MAX_BYTES: usize = 256;
/// RFC 2046, section 5.1.1.
const BOUNDARY_MAX_BYTES: usize = 70;
/// What ends a head.
const BLANK: &[u8] = b"\r\n\r\n";

/// What is wrong with a `Content-Type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BoundaryError {
    /// It is neither `multipart/mixed` nor `multipart/form-data`.
    Type,
    /// It has no boundary, or one that is not 1 to 70 characters of those that RFC 2046 allows.
    Boundary,
}

/// The boundary that a `Content-Type` names.
pub(crate) fn boundary_of(content_type: &str) -> Result<String, BoundaryError> {
    let (media_type, mut rest) = content_type.split_once(';').unwrap_or((content_type, ""));
    let media_type = media_type.trim_ascii();
    if !["multipart/mixed", "multipart/form-data"].iter().any(|known| media_type.eq_ignore_ascii_case(known)) {
        return Err(BoundaryError::Type);
    }
    let mut boundary = None;
    while !rest.trim_ascii().is_empty() {
        let (name, after) = rest.split_once('=').ok_or(BoundaryError::Boundary)?;
        let (value, after) = value_of(after).ok_or(BoundaryError::Boundary)?;
        if name.trim_ascii().eq_ignore_ascii_case("boundary") && boundary.replace(value).is_some() {
            return Err(BoundaryError::Boundary);
        }
        rest = after;
    }
    let boundary = boundary.ok_or(BoundaryError::Boundary)?;
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"'()+_,-./:=? ".contains(&byte);
    if (1..=BOUNDARY_MAX_BYTES).contains(&boundary.len()) && boundary.bytes().all(legal) && !boundary.ends_with(' ') {
        Ok(boundary)
    } else {
        Err(BoundaryError::Boundary)
    }
}

/// The value of a parameter, and what follows its semicolon.
fn value_of(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = text.split_once(';').unwrap_or((text, ""));
        return Some((value.trim_ascii().to_owned(), rest));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    loop {
        match characters.next()? {
            (_, '\\') => value.push(characters.next()?.1),
            (at, '"') => {
                let rest = quoted[at + 1..].trim_ascii_start();
                return if rest.is_empty() { Some((value, rest)) } else { Some((value, rest.strip_prefix(';')?)) };
            }
            (_, character) => value.push(character),
        }
    }
}

/// What comes next in a body.
#[derive(Debug)]
pub(crate) enum Event {
    /// A part begins. With a head that cannot be read its bytes follow nevertheless.
    Part(PartHead),
    /// Bytes of the part that began last.
    Data(Bytes),
    /// The part is whole.
    PartEnd,
    /// The last delimiter was read; what follows means nothing.
    End,
}

/// The head of a part as it came; read when it is asked for.
#[derive(Debug)]
pub(crate) struct PartHead(Result<BytesMut, HeadError>);

impl PartHead {
    /// Its fields.
    pub(crate) fn fields(&self) -> Result<HeaderMap, HeadError> {
        self.0.as_ref().map_err(|error| *error).and_then(|text| fields(text))
    }

    /// The values of these two fields, where each is there once, nothing else is, and both are plain text without blanks. `None` says
    /// nothing: look at the [fields](Self::fields). What most parts look like costs no map this way.
    pub(crate) fn just(&self, names: [&str; 2]) -> Option<[&str; 2]> {
        let text = std::str::from_utf8(self.0.as_ref().ok()?).ok()?;
        let (one, other) = text.split_once("\r\n")?;
        let place = |line: &str| {
            let (name, _) = line.split_once(':')?;
            let which = names.iter().position(|wanted| wanted.eq_ignore_ascii_case(name))?;
            Some((which, name.len() + 1))
        };
        let ((first, from), (second, after)) = (place(one)?, place(other)?);
        if first == second {
            return None;
        }
        let values = [one.get(from..)?.trim_matches([' ', '\t']), other.get(after..)?.trim_matches([' ', '\t'])];
        if !values.iter().all(|value| !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_graphic())) {
            return None;
        }
        Some(if first == 0 { values } else { [values[1], values[0]] })
    }
}

/// Why the head of a part is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeadError {
    /// It has more than [`HEAD_MAX_BYTES`] bytes or [`HEAD_MAX_COUNT`] fields.
    TooLarge,
    /// It is not made of header fields.
    Malformed,
}

/// The body does not begin as a multipart body with this boundary does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotMultipart;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The buffer begins before the first delimiter.
    Preamble,
    /// The buffer begins with the CRLF that ends a delimiter's line.
    Head,
    /// The buffer begins with the CRLF that ends a head, or with a delimiter.
    BodyStart,
    /// The buffer begins with bytes of a part, or with a delimiter.
    Body,
    /// The last delimiter was read.
    Last,
    End,
}

/// Reads a body: bytes go in by [`push`](Self::push), events come out by [`next`](Self::next).
pub(crate) struct Reader {
    delimiter: Finder<'static>,
    buffer: BytesMut,
    /// Up to where a head was looked at without finding its end.
    searched: usize,
    state: State,
    /// Bytes before the first part that were dropped.
    dropped: usize,
}

/// What stands where a delimiter was looked for.
enum Found {
    /// From here on bytes that may become one; none before.
    Nowhere(usize),
    /// One begins here; the rest of its line ends there.
    Delimiter { at: usize, end: usize, last: bool },
}

impl Reader {
    pub(crate) fn new(boundary: &str) -> Self {
        let delimiter = Finder::new(format!("\r\n--{boundary}").as_bytes()).into_owned();
        // The first delimiter needs no line break before it.
        Self { delimiter, buffer: BytesMut::from(&b"\r\n"[..]), searched: 0, state: State::Preamble, dropped: 0 }
    }

    /// One that takes in nothing more.
    pub(crate) fn ended() -> Self {
        Self { state: State::End, ..Self::new("") }
    }

    /// Takes in what has come.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if self.state != State::End {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// Whether the last part is whole and nothing of the next has come.
    pub(crate) fn is_between(&self) -> bool {
        // The line break that ends the delimiter's line.
        self.state == State::Head && self.buffer.len() <= 2
    }

    /// The next event; `None` = more bytes are needed for it.
    pub(crate) fn next(&mut self) -> Result<Option<Event>, NotMultipart> {
        match self.state {
            State::End => Ok(None),
            State::Last => {
                self.state = State::End;
                self.buffer = BytesMut::new();
                Ok(Some(Event::End))
            }
            State::Preamble => self.preamble(),
            State::Head => Ok(self.head()),
            State::BodyStart | State::Body => Ok(self.body()),
        }
    }

    fn preamble(&mut self) -> Result<Option<Event>, NotMultipart> {
        match self.find(0) {
            Found::Delimiter { end, last, .. } => {
                self.buffer.advance(end);
                self.state = if last { State::Last } else { State::Head };
                self.next()
            }
            Found::Nowhere(from) => {
                self.dropped += from;
                self.buffer.advance(from);
                if self.dropped > PREAMBLE_MAX_BYTES { Err(NotMultipart) } else { Ok(None) }
            }
        }
    }

    fn head(&mut self) -> Option<Event> {
        let from = self.searched.saturating_sub(BLANK.len());
        let blank = memchr::memmem::find(&self.buffer[from..], BLANK).map(|at| from + at);
        let end = match (blank, self.find(self.searched)) {
            (Some(blank), Found::Delimiter { at, .. }) => at.min(blank + 2),
            // Beyond that place something may become a delimiter, which does not matter any more.
            (Some(blank), Found::Nowhere(open)) if blank < open => blank + 2,
            // A part may end with its head, without the blank line.
            (None, Found::Delimiter { at, .. }) => at,
            (_, Found::Nowhere(_)) if self.buffer.len() > HEAD_MAX_BYTES + PADDING_MAX_BYTES => {
                self.searched = 0;
                self.state = State::Body;
                return Some(Event::Part(PartHead(Err(HeadError::TooLarge))));
            }
            (_, Found::Nowhere(open)) => {
                self.searched = open;
                return None;
            }
        };
        let mut head = self.buffer.split_to(end);
        self.searched = 0;
        self.state = State::BodyStart;
        if head.starts_with(b"\r\n") {
            head.advance(2);
        }
        if head.ends_with(b"\r\n") {
            head.truncate(head.len() - 2);
        }
        Some(Event::Part(PartHead(Ok(head))))
    }

    fn body(&mut self) -> Option<Event> {
        if self.state == State::BodyStart {
            match self.find(0) {
                // A part without bytes; or what may be one.
                Found::Delimiter { at: 0, .. } => {}
                Found::Nowhere(0) => return None,
                _ => self.buffer.advance(2),
            }
            self.state = State::Body;
        }
        match self.find(0) {
            Found::Delimiter { at: 0, end, last } => {
                self.buffer.advance(end);
                self.state = if last { State::Last } else { State::Head };
                Some(Event::PartEnd)
            }
            Found::Nowhere(0) => None,
            Found::Delimiter { at: until, .. } | Found::Nowhere(until) => {
                Some(Event::Data(self.buffer.split_to(until).freeze()))
            }
        }
    }

    /// Looks for a delimiter that begins at `from` or later.
    fn find(&self, mut from: usize) -> Found {
        let delimiter = self.delimiter.needle();
        while let Some(at) = self.delimiter.find(&self.buffer[from..]) {
            let at = from + at;
            match self.line(at + delimiter.len()) {
                Line::Ends { end, last } => return Found::Delimiter { at, end, last },
                Line::Open => return Found::Nowhere(at),
                // Another boundary begins like this one.
                Line::Other => from = at + 1,
            }
        }
        let tail = from.max((self.buffer.len() + 1).saturating_sub(delimiter.len()));
        let open = memchr::memchr_iter(b'\r', &self.buffer[tail..])
            .map(|at| tail + at)
            .find(|at| delimiter.starts_with(&self.buffer[*at..]));
        Found::Nowhere(open.unwrap_or(self.buffer.len()))
    }

    /// What follows a delimiter in its line.
    fn line(&self, from: usize) -> Line {
        let rest = &self.buffer[from..];
        if let Some(first) = rest.first()
            && *first == b'-'
        {
            return match rest.get(1) {
                Some(b'-') => Line::Ends { end: from + 2, last: true },
                Some(_) => Line::Other,
                None => Line::Open,
            };
        }
        let padding = rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        match &rest[padding..] {
            _ if padding > PADDING_MAX_BYTES => Line::Other,
            [] | [b'\r'] => Line::Open,
            [b'\r', b'\n', ..] => Line::Ends { end: from + padding, last: false },
            _ => Line::Other,
        }
    }
}

/// The rest of a delimiter's line.
enum Line {
    Ends {
        end: usize,
        last: bool,
    },
    /// More bytes are needed to tell.
    Open,
    /// The line is no delimiter's.
    Other,
}

/// Reads header fields, between which line breaks stand.
fn fields(text: &[u8]) -> Result<HeaderMap, HeadError> {
    if text.len() > HEAD_MAX_BYTES {
        return Err(HeadError::TooLarge);
    }
    let whole = [text, if text.is_empty() { b"\r\n" } else { b"\r\n\r\n".as_slice() }].concat();
    let mut room = [httparse::EMPTY_HEADER; HEAD_MAX_COUNT];
    let read = match httparse::parse_headers(&whole, &mut room) {
        Ok(httparse::Status::Complete((_, read))) => read,
        Ok(httparse::Status::Partial) => return Err(HeadError::Malformed),
        Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooLarge),
        Err(_) => return Err(HeadError::Malformed),
    };
    let mut headers = HeaderMap::with_capacity(read.len());
    for field in read {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| HeadError::Malformed)?;
        headers.append(name, HeaderValue::from_bytes(field.value).map_err(|_| HeadError::Malformed)?);
    }
    Ok(headers)
}
