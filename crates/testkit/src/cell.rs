//! Cells that own what they hold, for comparison in tests. Never used on a product path: it allocates a cell.

use tidegate_core::port::Cell;

/// A [`Cell`] with its own bytes. Equality of reals is equality of their bits, so NaN equals itself and 0.0 is not -0.0.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the variants are those of `Cell`")]
pub enum OwnedCell {
    Null,
    Bool(bool),
    Integer(i64),
    Real(f64),
    Number(Box<str>),
    Text(Box<str>),
    InvalidText(Box<[u8]>),
    Blob(Box<[u8]>),
    Json(Box<str>),
}

/// One row.
pub type OwnedRow = Vec<OwnedCell>;

impl OwnedCell {
    /// A text.
    #[must_use]
    pub fn text(text: &str) -> Self {
        Self::Text(text.into())
    }

    /// The cell as a source would give it.
    #[must_use]
    pub fn borrow(&self) -> Cell<'_> {
        match self {
            Self::Null => Cell::Null,
            Self::Bool(value) => Cell::Bool(*value),
            Self::Integer(value) => Cell::Integer(*value),
            Self::Real(value) => Cell::Real(*value),
            Self::Number(text) => Cell::Number(text),
            Self::Text(text) => Cell::Text(text),
            Self::InvalidText(bytes) => Cell::InvalidText(bytes),
            Self::Blob(bytes) => Cell::Blob(bytes),
            Self::Json(text) => Cell::Json(text),
        }
    }

    /// How many bytes its content has; 8 for a number.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        match self {
            Self::Null => 0,
            Self::Bool(_) => 1,
            Self::Integer(_) | Self::Real(_) => 8,
            Self::Number(text) | Self::Text(text) | Self::Json(text) => text.len(),
            Self::InvalidText(bytes) | Self::Blob(bytes) => bytes.len(),
        }
    }
}

impl From<Cell<'_>> for OwnedCell {
    fn from(cell: Cell<'_>) -> Self {
        match cell {
            Cell::Null => Self::Null,
            Cell::Bool(value) => Self::Bool(value),
            Cell::Integer(value) => Self::Integer(value),
            Cell::Real(value) => Self::Real(value),
            Cell::Number(text) => Self::Number(text.into()),
            Cell::Text(text) => Self::Text(text.into()),
            Cell::InvalidText(bytes) => Self::InvalidText(bytes.into()),
            Cell::Blob(bytes) => Self::Blob(bytes.into()),
            Cell::Json(text) => Self::Json(text.into()),
        }
    }
}

impl PartialEq for OwnedCell {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Real(a), Self::Real(b)) => a.to_bits() == b.to_bits(),
            (a, b) => a.borrow() == b.borrow(),
        }
    }
}

impl Eq for OwnedCell {}
