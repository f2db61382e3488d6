//! The part of an object that a reader asks for (RFC 9110, section 14). What it does not understand it passes over, as the standard
//! asks: the answer is then the whole object.

use http::{HeaderMap, header};
use tidegate_batch::Version;
use tidegate_batch::service::ByteRange;

use super::condition::{entity_tag, version};

/// The one range that is asked for; several are answered with the whole.
pub(super) fn asked_range(headers: &HeaderMap) -> Option<ByteRange> {
    let mut values = headers.get_all(header::RANGE).iter();
    let text = values.next()?.to_str().ok()?;
    if values.next().is_some() {
        return None;
    }
    let (unit, set) = text.split_once('=')?;
    if !unit.trim_ascii().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let mut ranges = set.split(',').map(str::trim_ascii).filter(|range| !range.is_empty());
    let (first, last) = ranges.next()?.split_once('-')?;
    if ranges.next().is_some() {
        return None;
    }
    match (first, last) {
        ("", last) => number(last).map(ByteRange::Last),
        (first, "") => number(first).map(ByteRange::From),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(ByteRange::FromTo(first, last))
        }
    }
}

/// A place beyond 2^64 - 1 is beyond every object's end.
fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

/// What the reader holds a part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IfRange {
    Version(Version),
    /// A weak tag, a foreign one, or a time: two writes in one second share a time, so none proves that the parts fit.
    Nothing,
}

impl IfRange {
    pub(super) fn read(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(header::IF_RANGE)?;
        let tag = value.to_str().ok().and_then(|text| entity_tag(text.trim_ascii()));
        let strong = tag.filter(|(tag, rest)| !tag.weak && rest.is_empty());
        Some(strong.and_then(|(tag, _)| version(tag.opaque)).map_or(Self::Nothing, Self::Version))
    }

    pub(super) fn is(self, current: Version) -> bool {
        self == Self::Version(current)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn one_range_of_bytes_is_read_and_anything_else_asks_for_the_whole() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, HeaderValue::from_str(text).unwrap());
            asked_range(&headers)
        };
        assert_eq!(read("bytes=0-4"), Some(ByteRange::FromTo(0, 4)));
        assert_eq!(read("Bytes=3-"), Some(ByteRange::From(3)));
        assert_eq!(read("bytes=-7"), Some(ByteRange::Last(7)));
        assert_eq!(read("bytes=5-99999999999999999999999"), Some(ByteRange::FromTo(5, u64::MAX)));
        for whole in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=4-2",
            "bytes=0-1,3-4",
            "lines=0-1",
            "bytes=+1-2",
            "bytes=1-2-3",
        ] {
            assert_eq!(read(whole), None, "{whole}");
        }
    }
}
