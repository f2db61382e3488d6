//! The columns of a statement, from what SQLite tells of their origin. Where it tells nothing, the answer is the wide one.

use std::ffi::CStr;

use rusqlite::Statement as Prepared;
use tidegate_core::port::{Column, ColumnType, Description, SourceError, Statement};

use crate::catalogue::is_rowid;
use crate::error::at_prepare;
use crate::session::Session;
use crate::statement::{Checked, bind, prepare};

/// Prepares the statement, binds its parameters (what cannot be bound is refused before a stream is open), and describes its
/// columns.
pub(crate) fn describe(session: &Session, statement: &Statement) -> Result<Description, SourceError> {
    let sql = &*statement.sql;
    let Checked { mut prepared, reads_view } = prepare(session, sql)?;
    bind(&mut prepared, &statement.parameters)?;
    let plain = !reads_view && is_plain(sql);
    let columns = (0..prepared.column_count())
        .map(|index| column(session, &prepared, index, plain))
        .collect::<rusqlite::Result<_>>()
        .map_err(|error| at_prepare(error, sql))?;
    Ok(Description { columns })
}

fn column(session: &Session, prepared: &Prepared<'_>, index: usize, plain: bool) -> rusqlite::Result<Column> {
    let name = prepared.column_name(index)?.into();
    // Absent for an expression; an error for what has no table behind it, such as a table-valued function.
    let Some((_, table, origin, declared, _, not_null, in_primary_key, _)) =
        prepared.column_metadata(index).unwrap_or(None)
    else {
        return Ok(Column { name, kind: ColumnType::Any, nullable: true, native_type: "".into() });
    };
    let declared = declared.map(CStr::to_string_lossy).unwrap_or_default();
    let is_rowid = || is_rowid(session, &table.to_string_lossy(), &origin.to_string_lossy());
    let never_null = plain && (not_null || (in_primary_key && is_rowid()?));
    Ok(Column { name, kind: affinity(&declared), nullable: !never_null, native_type: declared.into() })
}

/// Whether the text certainly has no outer join, aggregate, subquery or set operation, each of which can give NULL for
/// a column that is never NULL. It looks for their words anywhere, in texts and comments too: a word too many costs nothing
/// but `nullable: true`.
fn is_plain(sql: &str) -> bool {
    let lower = sql.to_ascii_lowercase();
    !["(", "join", "union", "except", "intersect"].iter().any(|word| lower.contains(word))
}

/// SQLite's affinity of a declared type (its documentation, "Datatypes In SQLite", 3.1), as a portable type. NUMERIC
/// affinity, and no declared type, hold whatever they were given.
fn affinity(declared: &str) -> ColumnType {
    let upper = declared.to_ascii_uppercase();
    let has = |word: &str| upper.contains(word);
    if has("INT") {
        ColumnType::Integer
    } else if has("CHAR") || has("CLOB") || has("TEXT") {
        ColumnType::Text
    } else if has("BLOB") {
        ColumnType::Blob
    } else if has("REAL") || has("FLOA") || has("DOUB") {
        ColumnType::Real
    } else {
        ColumnType::Any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_declared_type_is_read_by_sqlites_own_rules_in_their_order() {
        for (declared, kind) in [
            ("INTEGER", ColumnType::Integer),
            ("bigint unsigned", ColumnType::Integer),
            ("FLOATING POINT", ColumnType::Integer),
            ("varchar(20)", ColumnType::Text),
            ("Clob", ColumnType::Text),
            ("CHARINT", ColumnType::Integer),
            ("BLOB", ColumnType::Blob),
            ("DOUBLE PRECISION", ColumnType::Real),
            ("float", ColumnType::Real),
            ("DECIMAL(10,5)", ColumnType::Any),
            ("BOOLEAN", ColumnType::Any),
            ("DATETIME", ColumnType::Any),
            ("", ColumnType::Any),
        ] {
            assert_eq!(affinity(declared), kind, "{declared}");
        }
    }
}
