//! Cells of a row that came as a JSON array.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::OutputError;

const HEAD: &[u8] = b"{\"row\":";

/// The JSON value of the row in a row line.
pub(super) fn row(line: &[u8]) -> Option<&[u8]> {
    line.strip_prefix(HEAD)?.strip_suffix(b"}")
}

/// The cells of a row line: the text of each, `None` for NULL. Numbers keep all their digits.
pub(super) fn cells(line: &[u8], row_number: u64, columns: usize) -> Result<Vec<Option<Cow<'_, str>>>, OutputError> {
    let refuse = |source| OutputError::Row { row: row_number, columns, source };
    let json = row(line).ok_or_else(|| refuse(None))?;
    let raw: Vec<&RawValue> = serde_json::from_slice(json).map_err(|why| refuse(Some(why)))?;
    if raw.len() != columns {
        return Err(refuse(None));
    }
    raw.into_iter()
        .map(|value| match value.get() {
            "null" => Ok(None),
            text if text.starts_with('"') => {
                let text: String = serde_json::from_str(text).map_err(|why| refuse(Some(why)))?;
                Ok(Some(Cow::Owned(text)))
            }
            text => Ok(Some(Cow::Borrowed(text))),
        })
        .collect()
}
