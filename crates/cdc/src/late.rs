//! Watermarks and late records: a pure rule. A partition's watermark is the highest event time of its records; a record is
//! late if its event time is **before** the watermark as it was when its request came. Records of one request do not make
//! one another late, and one at the watermark is in time.

use tidegate_core::Timestamp;

/// Whether a record with this event time comes too late.
pub(crate) fn is_late(event_time: Timestamp, watermark: Option<Timestamp>) -> bool {
    watermark.is_some_and(|watermark| event_time < watermark)
}

/// The watermark after records with these event times.
pub(crate) fn advance(watermark: Option<Timestamp>, event_times: impl Iterator<Item = Timestamp>) -> Option<Timestamp> {
    watermark.into_iter().chain(event_times).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(ms: i64) -> Timestamp {
        Timestamp::from_unix_ms(ms)
    }

    #[test]
    fn a_record_at_the_watermark_is_in_time_and_one_before_it_is_late() {
        assert!(!is_late(at(10), None));
        assert!(!is_late(at(10), Some(at(10))));
        assert!(is_late(at(9), Some(at(10))));
        assert!(!is_late(at(11), Some(at(10))));
    }

    #[test]
    fn a_watermark_never_goes_back() {
        assert_eq!(advance(Some(at(10)), [at(3), at(7)].into_iter()), Some(at(10)));
        assert_eq!(advance(Some(at(10)), [at(30), at(7)].into_iter()), Some(at(30)));
        assert_eq!(advance(None, std::iter::empty()), None);
    }
}
