//! The headers of an idempotent producer: all three or none. It never guesses the one that is missing.

use http::{HeaderMap, StatusCode};
use tidegate_cdc::ProducerStamp;
use tidegate_cdc::producer::PRODUCER_NUMBER_MAX;

use crate::parameter::digits;
use crate::problem::Problem;

/// What a producer says about its append; `None` where it says nothing.
pub(in crate::route) fn stamp(headers: &HeaderMap) -> Result<Option<ProducerStamp>, Problem> {
    let [id, epoch, seq] = ["producer-id", "producer-epoch", "producer-seq"];
    if ![id, epoch, seq].iter().any(|name| headers.contains_key(*name)) {
        return Ok(None);
    }
    Ok(Some(ProducerStamp {
        id: text(headers, id)?.into(),
        epoch: number(headers, epoch)?,
        seq: number(headers, seq)?,
    }))
}

fn text<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<&'a str, Problem> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().ok_or_else(|| malformed(name, "is missing: a producer sends all three headers"))?;
    if values.next().is_some() {
        return Err(malformed(name, "is given twice"));
    }
    std::str::from_utf8(value.as_bytes()).map_err(|_| malformed(name, "is not UTF-8"))
}

fn number(headers: &HeaderMap, name: &'static str) -> Result<u64, Problem> {
    digits(text(headers, name)?).filter(|number| *number <= PRODUCER_NUMBER_MAX).ok_or_else(|| {
        malformed(name, "must be an integer from 0 to 9007199254740991").with("max", PRODUCER_NUMBER_MAX)
    })
}

fn malformed(name: &'static str, what: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "malformed_producer", format!("{name} {what}")).with("field", name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(given: &[(&'static str, &str)]) -> Result<Option<ProducerStamp>, &'static str> {
        let mut headers = HeaderMap::new();
        for (name, value) in given {
            headers.append(*name, value.parse().unwrap());
        }
        stamp(&headers).map_err(|problem| problem.code())
    }

    #[test]
    fn a_producer_says_all_of_it_or_nothing() {
        assert_eq!(read(&[]), Ok(None));
        let whole = [("producer-id", "p"), ("producer-epoch", "0"), ("producer-seq", "9007199254740991")];
        let expected = ProducerStamp { id: "p".into(), epoch: 0, seq: PRODUCER_NUMBER_MAX };
        assert_eq!(read(&whole), Ok(Some(expected)));
        for missing in 0..3 {
            let mut half = whole.to_vec();
            half.remove(missing);
            assert_eq!(read(&half), Err("malformed_producer"));
            assert_eq!(read(&whole[missing..=missing]), Err("malformed_producer"));
        }
        for bad in ["", "-1", "+1", "1.0", "9007199254740992", "18446744073709551616", "x", "1, 2"] {
            for place in [1, 2] {
                let mut wrong = whole;
                wrong[place].1 = bad;
                assert_eq!(read(&wrong), Err("malformed_producer"), "{bad}");
            }
        }
        assert_eq!(read(&[whole[0], whole[1], whole[2], ("producer-seq", "2")]), Err("malformed_producer"));
    }
}
