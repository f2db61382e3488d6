//! A result's schema as 32 hex digits. It never looks at rows.

use sha2::{Digest as _, Sha256};
use tidegate_core::port::{Column, ColumnType};

/// What the hash begins with, so that it can never be taken for a hash of anything else; a change of the encoding
/// below changes the number.
const DOMAIN: &[u8] = b"tidegate schema 1\n";

/// The first 16 bytes of SHA-256, in hex, over the columns: two lists have the same fingerprint only if every name, type,
/// nullability and native type is the same, in the same order.
///
/// Hashed is the domain text, the number of columns, and for each column its name, type and native type, each text
/// with its length before it (u64, little-endian), and 0 or 1 for nullable. So no two lists have the same encoding.
#[must_use]
pub fn schema_fingerprint(columns: &[Column]) -> String {
    let mut hash = Sha256::new();
    hash.update(DOMAIN);
    hash.update((columns.len() as u64).to_le_bytes());
    let text = |text: &str, hash: &mut Sha256| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    };
    for column in columns {
        text(&column.name, &mut hash);
        text(type_name(column.kind), &mut hash);
        hash.update([u8::from(column.nullable)]);
        text(&column.native_type, &mut hash);
    }
    hex::encode(&hash.finalize()[..16])
}

/// The type's name on the wire. A match without `_`: a new type cannot share another's fingerprint by accident.
const fn type_name(kind: ColumnType) -> &'static str {
    match kind {
        ColumnType::Boolean => "boolean",
        ColumnType::Integer => "integer",
        ColumnType::Real => "real",
        ColumnType::Numeric => "numeric",
        ColumnType::Text => "text",
        ColumnType::Blob => "blob",
        ColumnType::Json => "json",
        ColumnType::Array => "array",
        ColumnType::Date => "date",
        ColumnType::Time => "time",
        ColumnType::Timestamp => "timestamp",
        ColumnType::Timestamptz => "timestamptz",
        ColumnType::Interval => "interval",
        ColumnType::Uuid => "uuid",
        ColumnType::Any => "any",
        ColumnType::Other => "other",
    }
}
