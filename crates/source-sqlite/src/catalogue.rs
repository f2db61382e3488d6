//! Facts about relations and functions as one snapshot sees them. A key that might not hold is left out.

use rusqlite::OptionalExtension;
use tidegate_core::port::{Catalogue, CatalogueQuery, RelationFacts, RelationName, SourceError, UniqueKey, Volatility};

use crate::error::at_run;
use crate::session::Session;

/// Looks everything up. What is not found is absent.
pub(crate) fn catalogue(session: &Session, query: &CatalogueQuery) -> Result<Catalogue, SourceError> {
    let look_up = || -> rusqlite::Result<Catalogue> {
        let mut found = Catalogue::default();
        for name in &query.relations {
            if let Some(facts) = relation(session, name)? {
                found.relations.push((name.clone(), facts));
            }
        }
        for name in &query.functions {
            if let Some(volatility) = function(session, name)? {
                found.functions.push((name.clone(), volatility));
            }
        }
        Ok(found)
    };
    look_up().map_err(|error| at_run(error, "", 0, session.max_value_bytes))
}

/// A column as `table_xinfo` tells it.
struct ColumnFacts {
    name: Box<str>,
    declared: Box<str>,
    not_null: bool,
    /// Its place in the primary key from 1; 0 = not in it.
    primary_key: u32,
}

fn relation(session: &Session, name: &RelationName) -> rusqlite::Result<Option<RelationFacts>> {
    // A snapshot has no other schema with anything in it: nothing can be attached, nothing temporary created.
    if name.schema.as_ref().is_some_and(|schema| !schema.eq_ignore_ascii_case("main")) {
        return Ok(None);
    }
    let sql = "SELECT name, type, wr FROM pragma_table_list WHERE schema = 'main' AND name = ?1 COLLATE NOCASE";
    let found: Option<(String, String, bool)> = session
        .connection
        .query_row(sql, [&name.name], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    let Some((table, kind, without_rowid)) = found else { return Ok(None) };
    let columns = columns(session, &table)?;
    let is_table = kind == "table" || kind == "shadow";
    let unique_keys = if is_table { unique_keys(session, &table, without_rowid, &columns)? } else { Vec::new() };
    let columns = columns.into_iter().map(|column| column.name).collect();
    Ok(Some(RelationFacts { is_table, columns, unique_keys }))
}

fn columns(session: &Session, table: &str) -> rusqlite::Result<Vec<ColumnFacts>> {
    // 1 = a hidden column of a virtual table; generated columns (2, 3) are columns like others.
    let sql = "SELECT name, type, \"notnull\", pk FROM pragma_table_xinfo(?1, 'main') WHERE hidden <> 1 ORDER BY cid";
    let mut prepared = session.connection.prepare(sql)?;
    let columns = prepared.query_map([table], |row| {
        Ok(ColumnFacts {
            name: row.get::<_, String>(0)?.into(),
            declared: row.get::<_, Option<String>>(1)?.unwrap_or_default().into(),
            not_null: row.get(2)?,
            primary_key: row.get(3)?,
        })
    })?;
    columns.collect()
}

/// Whether what SQLite tells as a column's origin is the rowid, which is never NULL: its alias, or `rowid` where no column
/// has taken that name.
pub(crate) fn is_rowid(session: &Session, table: &str, origin: &str) -> rusqlite::Result<bool> {
    let columns = columns(session, table)?;
    match columns.iter().find(|column| column.name.eq_ignore_ascii_case(origin)) {
        Some(column) => Ok(alias(session, table, &columns)?.is_some_and(|alias| alias == column.name)),
        None => Ok(origin.eq_ignore_ascii_case("rowid")),
    }
}

/// The column that is the rowid itself, if the table has one: alone in the primary key, declared exactly INTEGER, and
/// without an index of its own (which `INTEGER PRIMARY KEY DESC` has, for historical reasons).
fn alias(session: &Session, table: &str, columns: &[ColumnFacts]) -> rusqlite::Result<Option<Box<str>>> {
    let mut key = columns.iter().filter(|column| column.primary_key > 0);
    let (Some(column), None) = (key.next(), key.next()) else { return Ok(None) };
    if !column.declared.eq_ignore_ascii_case("INTEGER") {
        return Ok(None);
    }
    let sql = "SELECT count(*) FROM pragma_index_list(?1, 'main') WHERE origin = 'pk'";
    let indexed: i64 = session.connection.query_row(sql, [table], |row| row.get(0))?;
    Ok((indexed == 0).then(|| column.name.clone()))
}

fn unique_keys(
    session: &Session,
    table: &str,
    without_rowid: bool,
    columns: &[ColumnFacts],
) -> rusqlite::Result<Vec<UniqueKey>> {
    let mut keys = Vec::new();
    if let Some(alias) = alias(session, table, columns)? {
        keys.push(UniqueKey { columns: vec![alias] });
    }
    // The primary key's index before the others, then in the order of their creation.
    let sql = "SELECT name FROM pragma_index_list(?1, 'main') WHERE \"unique\" = 1 AND partial = 0 \
               ORDER BY origin <> 'pk', seq DESC";
    let mut prepared = session.connection.prepare(sql)?;
    let indexes: Vec<String> = prepared.query_map([table], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    for index in indexes {
        if let Some(key) = key_of(session, table, &index, columns)? {
            keys.push(key);
        }
    }
    if !without_rowid {
        for name in ["rowid", "_rowid_", "oid"] {
            if !columns.iter().any(|column| column.name.eq_ignore_ascii_case(name)) {
                keys.push(UniqueKey { columns: vec![name.into()] });
            }
        }
    }
    Ok(keys)
}

/// The key that a unique index guards, unless one of its columns may be NULL, is an expression, or is compared under
/// ORDER BY by a collation that sees different values as equal. The index's own collation does not matter: unique under a
/// coarser equality is unique under the exact one.
fn key_of(session: &Session, table: &str, index: &str, columns: &[ColumnFacts]) -> rusqlite::Result<Option<UniqueKey>> {
    let sql = "SELECT cid, name FROM pragma_index_xinfo(?1, 'main') WHERE key = 1 ORDER BY seqno";
    let mut prepared = session.connection.prepare(sql)?;
    let parts = prepared.query_map([index], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Option<String>>(1)?)))?;
    let mut key = Vec::new();
    for part in parts {
        let (column, name) = part?;
        // -1 is the rowid and -2 an expression.
        let (true, Some(name)) = (column >= 0, name) else { return Ok(None) };
        let (_, collation, not_null, _, _) = session.connection.column_metadata(Some("main"), table, &*name)?;
        let exact = collation.is_some_and(|collation| collation.to_bytes().eq_ignore_ascii_case(b"BINARY"));
        let known = columns.iter().any(|column| *column.name == *name && column.not_null);
        // `table_xinfo` and the column's own metadata must agree; in a WITHOUT ROWID table both tell the key as NOT NULL.
        if !(exact && (not_null || known)) {
            return Ok(None);
        }
        key.push(name.into());
    }
    Ok((!key.is_empty()).then_some(UniqueKey { columns: key }))
}

/// SQLite's flag for a function whose result follows from its arguments (`SQLITE_DETERMINISTIC`).
const DETERMINISTIC: i64 = 0x800;

/// Functions that read a clock, randomness or the connection, whatever their flags say.
const VOLATILE: [&str; 17] = [
    "changes",
    "current_date",
    "current_time",
    "current_timestamp",
    "date",
    "datetime",
    "julianday",
    "last_insert_rowid",
    "load_extension",
    "random",
    "randomblob",
    "sqlite_offset",
    "strftime",
    "time",
    "timediff",
    "total_changes",
    "unixepoch",
];

fn function(session: &Session, name: &str) -> rusqlite::Result<Option<Volatility>> {
    let sql = "SELECT type, builtin, flags FROM pragma_function_list WHERE name = ?1 COLLATE NOCASE";
    let mut prepared = session.connection.prepare(sql)?;
    let overloads = prepared
        .query_map([name], |row| Ok((row.get::<_, String>(0)?, row.get::<_, bool>(1)?, row.get::<_, i64>(2)?)))?;
    let mut worst = None;
    for overload in overloads {
        let (kind, builtin, flags) = overload?;
        let volatility = if VOLATILE.iter().any(|known| known.eq_ignore_ascii_case(name)) {
            Volatility::Volatile
        } else if flags & DETERMINISTIC != 0 {
            Volatility::Immutable
        } else if builtin && kind != "s" {
            // An aggregate or window function follows from its rows, and their order from the snapshot and the plan.
            Volatility::Stable
        } else {
            Volatility::Volatile
        };
        worst = worst.max(Some(volatility));
    }
    Ok(worst)
}
