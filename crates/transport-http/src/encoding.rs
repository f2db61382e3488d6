//! Compression of query streams, when the client asks for it. Every piece that goes in comes out at once: the encoder is
//! flushed after each, so that a row is never held back.
//!
//! tower-http's compression layer is not used for that very reason: it hands a block on only when the encoder's own
//! buffer is full or the stream ends, so the first row of a slow query would wait for the last.

use std::io::{self, Write};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};

/// How a body is encoded on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentCoding {
    /// As it is.
    Identity,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl ContentCoding {
    /// What the client asks for: the named coding with the highest `q`, zstd before gzip before identity where they are
    /// equal. A `*` alone asks for nothing in particular, so it gets identity. An entry that cannot be read counts as absent.
    #[must_use]
    pub fn negotiate(headers: &HeaderMap) -> Self {
        let mut best = (0_u16, Self::Identity);
        let mut identity = None;
        for value in headers.get_all(header::ACCEPT_ENCODING) {
            for entry in value.to_str().unwrap_or_default().split(',') {
                let mut parts = entry.split(';');
                let name = parts.next().unwrap_or_default().trim();
                let Some(weight) = weight(parts) else { continue };
                let coding = if name.eq_ignore_ascii_case("zstd") {
                    Self::Zstd
                } else if name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip") {
                    Self::Gzip
                } else {
                    if name.eq_ignore_ascii_case("identity") {
                        identity = Some(weight);
                    }
                    continue;
                };
                if weight > best.0 || (weight == best.0 && weight > 0 && coding == Self::Zstd) {
                    best = (weight, coding);
                }
            }
        }
        match identity {
            Some(weight) if weight > best.0 => Self::Identity,
            _ => best.1,
        }
    }

    /// The value of `Content-Encoding`; `None` for identity.
    #[must_use]
    pub fn header(self) -> Option<HeaderValue> {
        match self {
            Self::Identity => None,
            Self::Gzip => Some(HeaderValue::from_static("gzip")),
            Self::Zstd => Some(HeaderValue::from_static("zstd")),
        }
    }
}

/// The `q` of an entry in thousandths; 1000 if there is none, `None` if it is malformed.
fn weight<'a>(mut parameters: impl Iterator<Item = &'a str>) -> Option<u16> {
    let Some(parameter) = parameters.next() else { return Some(1_000) };
    let (name, value) = parameter.split_once('=')?;
    if !name.trim().eq_ignore_ascii_case("q") || parameters.next().is_some() {
        return None;
    }
    thousandths(value.trim())
}

/// A weight as HTTP writes it (`0.5`), in thousandths.
pub(crate) fn thousandths(weight: &str) -> Option<u16> {
    let (whole, fraction) = weight.split_once('.').unwrap_or((weight, ""));
    if fraction.len() > 3 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let thousandths: u16 = format!("{fraction:0<3}").parse().ok()?;
    match whole {
        "0" => Some(thousandths),
        "1" if thousandths == 0 => Some(1_000),
        _ => None,
    }
}

/// A streaming encoder. It holds one window: at most 32 KiB for gzip and 512 KiB for zstd, beside what it is given.
pub(crate) enum Encoder {
    Gzip(flate2::write::GzEncoder<Vec<u8>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
}

/// The levels are the fastest ones: rows are made at the speed of a disk or a network, and shrink well at any level.
const GZIP_LEVEL: u32 = 1;
const ZSTD_LEVEL: i32 = 1;
/// 2^19 = 512 KiB, the level's own default, said aloud so that memory does not change with a library's taste.
const ZSTD_WINDOW_LOG: u32 = 19;

impl Encoder {
    /// An encoder; `None` for identity.
    pub(crate) fn new(coding: ContentCoding) -> io::Result<Option<Self>> {
        Ok(match coding {
            ContentCoding::Identity => None,
            ContentCoding::Gzip => {
                Some(Self::Gzip(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(GZIP_LEVEL))))
            }
            ContentCoding::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
                encoder.window_log(ZSTD_WINDOW_LOG)?;
                Some(Self::Zstd(encoder))
            }
        })
    }

    /// Encodes a piece and gives everything that a decoder needs to see all of it.
    pub(crate) fn encode(&mut self, piece: &[u8]) -> io::Result<Bytes> {
        let out = match self {
            Self::Gzip(encoder) => {
                encoder.write_all(piece)?;
                encoder.flush()?;
                encoder.get_mut()
            }
            Self::Zstd(encoder) => {
                encoder.write_all(piece)?;
                encoder.flush()?;
                encoder.get_mut()
            }
        };
        Ok(Bytes::from(std::mem::take(out)))
    }

    /// Gives the coding's own end.
    pub(crate) fn finish(self) -> io::Result<Bytes> {
        match self {
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
        }
        .map(Bytes::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn negotiate(value: &str) -> ContentCoding {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_ENCODING, value.parse().unwrap());
        ContentCoding::negotiate(&headers)
    }

    #[test]
    fn compression_is_used_only_when_it_is_asked_for() {
        assert_eq!(ContentCoding::negotiate(&HeaderMap::new()), ContentCoding::Identity);
        for value in ["", "*", "identity", "br", "zstd;q=0", "gzip;q=0.000", "zstd;q=2", "zstd;q=x", "zstd;v=1", ",,;"]
        {
            assert_eq!(negotiate(value), ContentCoding::Identity, "{value:?}");
        }
    }

    #[test]
    fn the_clients_own_order_wins() {
        for (value, coding) in [
            ("gzip", ContentCoding::Gzip),
            ("X-GZIP", ContentCoding::Gzip),
            ("gzip, deflate, br, zstd", ContentCoding::Zstd),
            ("zstd;q=0.5, gzip", ContentCoding::Gzip),
            ("zstd ; q=0, gzip;q=0.001", ContentCoding::Gzip),
            ("identity, gzip;q=0.9", ContentCoding::Identity),
            ("identity;q=0.5, gzip;q=0.9", ContentCoding::Gzip),
            ("identity, gzip", ContentCoding::Gzip),
        ] {
            assert_eq!(negotiate(value), coding, "{value:?}");
        }
    }

    #[test]
    fn every_piece_can_be_read_as_soon_as_it_is_encoded() {
        let pieces: [&[u8]; 3] = [b"{\"open\":{}}\n", b"{\"row\":{\"id\":1}}\n", b"{\"end\":{}}\n"];
        for coding in [ContentCoding::Gzip, ContentCoding::Zstd] {
            let mut encoder = Encoder::new(coding).unwrap().unwrap();
            let (mut sent, mut expected) = (Vec::new(), Vec::new());
            for piece in pieces {
                sent.extend_from_slice(&encoder.encode(piece).unwrap());
                expected.extend_from_slice(piece);
                let mut read = vec![0; expected.len()];
                match coding {
                    ContentCoding::Gzip => flate2::read::GzDecoder::new(&sent[..]).read_exact(&mut read).unwrap(),
                    _ => zstd::stream::read::Decoder::new(&sent[..]).unwrap().read_exact(&mut read).unwrap(),
                }
                assert_eq!(read, expected);
            }
            sent.extend_from_slice(&encoder.finish().unwrap());
            let mut whole = Vec::new();
            match coding {
                ContentCoding::Gzip => flate2::read::GzDecoder::new(&sent[..]).read_to_end(&mut whole).unwrap(),
                _ => zstd::stream::read::Decoder::new(&sent[..]).unwrap().read_to_end(&mut whole).unwrap(),
            };
            assert_eq!(whole, expected);
        }
    }
}
