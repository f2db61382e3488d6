//! Objects whose fields are few and known, read without an allocation: the lines of records, millions of them. As strict as the
//! bodies of requests.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{JsonError, invalid, malformed};

/// The fields of the object that `text` is, in the order of `known`.
pub(crate) fn fields<'a, const N: usize>(
    text: &'a str,
    known: &'static [&'static str; N],
) -> Result<[Option<&'a RawValue>; N], JsonError> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let mut reader = Reader { known, found: [None; N], refused: None };
    let read = deserializer.deserialize_map(&mut reader).and_then(|()| deserializer.end());
    match (reader.refused, read) {
        (Some(refused), _) => Err(refused),
        (None, Ok(())) => Ok(reader.found),
        (None, Err(error)) => match serde_json::from_str::<&RawValue>(text) {
            Ok(whole) if !whole.get().starts_with('{') => Err(invalid("$", "a JSON object", whole)),
            _ => Err(malformed(&error, (1, 0))),
        },
    }
}

struct Reader<'a, const N: usize> {
    known: &'static [&'static str; N],
    found: [Option<&'a RawValue>; N],
    refused: Option<JsonError>,
}

impl<'a, const N: usize> Visitor<'a> for &mut Reader<'a, N> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<(), M::Error> {
        while let Some(field) = map.next_key_seed(FieldName(self.known))? {
            let refused = match field {
                Err(field) => JsonError::UnknownField { field, known: self.known.join(", ").into() },
                Ok(place) if self.found[place].is_some() => {
                    JsonError::DuplicateField { field: self.known[place].into() }
                }
                Ok(place) => {
                    self.found[place] = Some(map.next_value()?);
                    continue;
                }
            };
            self.refused = Some(refused);
            return Err(de::Error::custom("refused"));
        }
        Ok(())
    }
}

/// Reads a name: its place among the known ones, or the name.
struct FieldName(&'static [&'static str]);

impl<'de> DeserializeSeed<'de> for FieldName {
    type Value = Result<usize, Box<str>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl Visitor<'_> for FieldName {
    type Value = Result<usize, Box<str>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field's name")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Self::Value, E> {
        let place = self.0.iter().position(|known| *known == name);
        Ok(place.ok_or_else(|| name.chars().take(100).collect::<String>().into()))
    }
}
