//! Which form of a stream's records a client wants: lines, or server-sent events. It never takes `*/*` for events.

use http::{HeaderMap, HeaderValue, header};

/// The media type of lines.
pub(in crate::route) const NDJSON: HeaderValue = HeaderValue::from_static("application/x-ndjson");
/// The media type of events.
pub(super) const EVENT_STREAM: HeaderValue = HeaderValue::from_static("text/event-stream");

/// A form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Lines,
    Events,
}

/// Events where they are named and nothing that lines would satisfy is liked better; lines otherwise, whatever else is asked for:
/// a client that can read neither is told by the content type.
pub(super) fn wanted(headers: &HeaderMap) -> Wanted {
    let mut events = 0;
    // The most specific range that covers NDJSON says how it is liked.
    let mut lines = (0, 0);
    for value in headers.get_all(header::ACCEPT) {
        for entry in value.to_str().unwrap_or_default().split(',') {
            let mut parts = entry.split(';');
            let range = parts.next().unwrap_or_default().trim();
            let weight = parts.find_map(weight).unwrap_or(1_000);
            if range.eq_ignore_ascii_case("text/event-stream") {
                events = events.max(weight);
                continue;
            }
            let specific = match range {
                "*/*" => 1,
                _ if range.eq_ignore_ascii_case("application/*") => 2,
                _ if range.eq_ignore_ascii_case("application/x-ndjson") => 3,
                _ => continue,
            };
            lines = lines.max((specific, weight));
        }
    }
    if events > 0 && events >= lines.1 { Wanted::Events } else { Wanted::Lines }
}

/// The `q` of an entry in thousandths; `None` for other parameters and for what cannot be read.
fn weight(parameter: &str) -> Option<u16> {
    let (name, value) = parameter.split_once('=')?;
    if !name.trim().eq_ignore_ascii_case("q") {
        return None;
    }
    crate::encoding::thousandths(value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_sent_to_who_names_them_and_likes_nothing_better() {
        for (accept, form) in [
            ("", Wanted::Lines),
            ("*/*", Wanted::Lines),
            ("text/*", Wanted::Lines),
            ("text/html", Wanted::Lines),
            ("application/x-ndjson", Wanted::Lines),
            ("text/event-stream", Wanted::Events),
            ("Text/Event-Stream; charset=utf-8", Wanted::Events),
            ("text/event-stream, */*", Wanted::Events),
            ("text/event-stream, */*;q=0.1", Wanted::Events),
            ("text/event-stream;q=0.5, */*", Wanted::Lines),
            ("text/event-stream;q=0", Wanted::Lines),
            ("text/event-stream;q=0.9, application/x-ndjson;q=0.1, */*", Wanted::Events),
            ("text/event-stream;q=0.9, application/x-ndjson", Wanted::Lines),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            assert_eq!(wanted(&headers), form, "{accept}");
        }
        assert_eq!(wanted(&HeaderMap::new()), Wanted::Lines);
    }
}
