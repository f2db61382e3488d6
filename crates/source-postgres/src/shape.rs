//! What a type of PostgreSQL is for us: how its text is read, and what the column's type is called. It knows built-in types
//! by OID; domains, arrays, enums and extension types by what the catalogue says. It reads no values.

use std::collections::HashMap;

use tidegate_core::port::ColumnType;

/// How the text of a value is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Shape {
    Boolean,
    Integer,
    Float,
    /// The text as it is, in a JSON string.
    Text,
    Bytea,
    Json,
    Timestamp,
    Timestamptz,
    /// Elements, and the character between them.
    Array(Box<Shape>, u8),
}

/// The facts about one type, as the catalogue gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TypeFacts {
    /// `d` is a domain, `e` an enum.
    pub(crate) typtype: u8,
    /// The domain's base, else 0.
    pub(crate) base: u32,
    /// The element type of a true array (one that prints as `{...}`), else 0.
    pub(crate) element: u32,
    /// Stands between values of this type in an array.
    pub(crate) delimiter: u8,
    /// `S` is the category of strings.
    pub(crate) category: u8,
}

/// Domains over domains and arrays of arrays of domains end somewhere; this is where we stop following them.
const DEPTH_MAX: usize = 16;

/// The shape of the type `oid` and the portable name of its columns.
pub(crate) fn shape_of(oid: u32, types: &HashMap<u32, TypeFacts>) -> (Shape, ColumnType) {
    follow(oid, types, 0)
}

fn follow(oid: u32, types: &HashMap<u32, TypeFacts>, depth: usize) -> (Shape, ColumnType) {
    if let Some(known) = built_in(oid) {
        return known;
    }
    let Some(facts) = types.get(&oid).filter(|_| depth < DEPTH_MAX) else {
        return (Shape::Text, ColumnType::Other);
    };
    if facts.typtype == b'd' {
        return follow(facts.base, types, depth + 1);
    }
    if facts.element != 0 {
        let (element, _) = follow(facts.element, types, depth + 1);
        let delimiter = types.get(&facts.element).map_or(b',', |element| element.delimiter);
        return (Shape::Array(Box::new(element), delimiter), ColumnType::Array);
    }
    if facts.typtype == b'e' || facts.category == b'S' {
        return (Shape::Text, ColumnType::Text);
    }
    (Shape::Text, ColumnType::Other)
}

fn built_in(oid: u32) -> Option<(Shape, ColumnType)> {
    Some(match oid {
        16 => (Shape::Boolean, ColumnType::Boolean),
        // int8, int2, int4, oid
        20 | 21 | 23 | 26 => (Shape::Integer, ColumnType::Integer),
        700 | 701 => (Shape::Float, ColumnType::Real),
        1700 => (Shape::Text, ColumnType::Numeric),
        17 => (Shape::Bytea, ColumnType::Blob),
        114 | 3802 => (Shape::Json, ColumnType::Json),
        2950 => (Shape::Text, ColumnType::Uuid),
        1082 => (Shape::Text, ColumnType::Date),
        // time, timetz
        1083 | 1266 => (Shape::Text, ColumnType::Time),
        1114 => (Shape::Timestamp, ColumnType::Timestamp),
        1184 => (Shape::Timestamptz, ColumnType::Timestamptz),
        1186 => (Shape::Text, ColumnType::Interval),
        // "char", name, text, unknown, bpchar, varchar
        18 | 19 | 25 | 705 | 1042 | 1043 => (Shape::Text, ColumnType::Text),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(typtype: u8, base: u32, element: u32, delimiter: u8, category: u8) -> TypeFacts {
        TypeFacts { typtype, base, element, delimiter, category }
    }

    #[test]
    fn domains_are_read_as_their_base_and_arrays_as_their_elements() {
        let types = HashMap::from([
            (90_001, facts(b'd', 1700, 0, b',', b'N')),
            (90_002, facts(b'b', 0, 90_001, b',', b'A')),
            (90_003, facts(b'b', 0, 0, b':', b'U')),
            (90_004, facts(b'b', 0, 90_003, b',', b'A')),
            (90_005, facts(b'd', 90_002, 0, b',', b'A')),
        ]);
        assert_eq!(shape_of(90_001, &types), (Shape::Text, ColumnType::Numeric));
        assert_eq!(shape_of(90_005, &types), (Shape::Array(Box::new(Shape::Text), b','), ColumnType::Array));
        assert_eq!(shape_of(90_004, &types), (Shape::Array(Box::new(Shape::Text), b':'), ColumnType::Array));
        assert_eq!(shape_of(12_345, &types), (Shape::Text, ColumnType::Other));
    }

    #[test]
    fn a_type_that_refers_to_itself_ends() {
        let types = HashMap::from([(90_001, facts(b'd', 90_001, 0, b',', b'N'))]);
        assert_eq!(shape_of(90_001, &types), (Shape::Text, ColumnType::Other));
    }
}
