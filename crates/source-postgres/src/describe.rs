//! Checks a statement without running it: the server parses it, gives its columns and its parameters' types, and declares a
//! cursor for it. No row is computed. The cursor stays open at its first row for a run that follows.

use std::collections::HashMap;
use std::sync::Arc;

use tidegate_core::port::{Column, Description, SourceError, Statement, StatementRefused};
use tokio_postgres::types::{ToSql, Type};

use crate::error::{Prefix, not_a_query, refused_parameter};
use crate::parameter::{TextParameter, encode};
use crate::session::Session;
use crate::shape::{Shape, TypeFacts, shape_of};

/// What stands before a statement when its cursor is declared.
const DECLARE: &str = "DECLARE tidegate_rows NO SCROLL CURSOR FOR ";
pub(crate) const DECLARE_PREFIX: Prefix = Prefix(DECLARE.len() as u32);
/// Moves the savepoint behind the declaration, so that the locks that it took on its tables are kept to the end of the
/// snapshot: else a TRUNCATE between two runs would show, which PostgreSQL does not hide from older snapshots.
const KEEP: &str = "RELEASE SAVEPOINT tidegate; SAVEPOINT tidegate";

/// The types that lie below the given ones: what domains are made of, and what arrays hold.
const TYPES: &str = "\
with recursive t(oid) as (
  select pg_catalog.unnest($1::pg_catalog.oid[])
  union
  select below.oid from t join pg_catalog.pg_type p on p.oid = t.oid
  cross join lateral (select case when p.typtype = 'd' then p.typbasetype
    when p.typoutput = 'pg_catalog.array_out'::pg_catalog.regproc then p.typelem end) below(oid)
  where below.oid <> 0
)
select p.oid, p.typtype, p.typbasetype,
  case when p.typtype <> 'd' and p.typoutput = 'pg_catalog.array_out'::pg_catalog.regproc then p.typelem else 0 end,
  p.typdelim, p.typcategory
from t join pg_catalog.pg_type p on p.oid = t.oid";

/// The type's name and whether the column it comes from is NOT NULL, in the order of the columns. A parent in an
/// inheritance tree proves nothing for its children; a constraint may be NOT VALID.
const COLUMNS: &str = "\
select pg_catalog.format_type(c.type, c.modifier), coalesce(
  (select a.attnotnull and k.relkind in ('r', 'p') and (k.relkind = 'p' or not k.relhassubclass) and not exists (
      select from pg_catalog.pg_constraint n
      where n.conrelid = a.attrelid and n.contype = 'n' and not n.convalidated and a.attnum = any (n.conkey))
   from pg_catalog.pg_attribute a join pg_catalog.pg_class k on k.oid = a.attrelid
   where a.attrelid = c.relation and a.attnum = c.attribute), false)
from rows from (pg_catalog.unnest($1::pg_catalog.oid[]), pg_catalog.unnest($2::pg_catalog.int4[]),
  pg_catalog.unnest($3::pg_catalog.oid[]), pg_catalog.unnest($4::pg_catalog.int2[]))
  with ordinality c(type, modifier, relation, attribute, place)
order by c.place";

/// A statement that was described.
pub(crate) struct Prepared {
    pub(crate) statement: Statement,
    pub(crate) columns: Vec<Column>,
    pub(crate) shapes: Arc<[Shape]>,
    types: Vec<Type>,
    declaration: Box<str>,
    /// Its cursor is open and nothing was fetched from it.
    pub(crate) cursor_is_fresh: bool,
}

impl Prepared {
    pub(crate) fn description(&self) -> Description {
        Description { columns: self.columns.clone() }
    }
}

/// Makes `session.prepared` this statement, with its cursor open at the first row.
pub(crate) async fn prepare(session: &mut Session, statement: &Statement) -> Result<(), SourceError> {
    session.restore().await?;
    if let Some(prepared) = session.prepared.take_if(|prepared| prepared.statement == *statement) {
        if prepared.cursor_is_fresh {
            session.prepared = Some(prepared);
            return Ok(());
        }
        return declare(session, prepared).await;
    }
    session.forget();
    session.restore().await?;
    if is_blank(&statement.sql) {
        return Err(SourceError::Empty);
    }
    let prepared = inspect(session, statement).await?;
    declare(session, prepared).await
}

async fn inspect(session: &mut Session, statement: &Statement) -> Result<Prepared, SourceError> {
    let sql = &*statement.sql;
    if let Some(at) = sql.find('\0') {
        return Err(SourceError::Syntax(StatementRefused {
            native_code: "42601".into(),
            message: "a statement cannot hold U+0000".into(),
            position: u32::try_from(sql[..at].chars().count() + 1).ok(),
        }));
    }
    let parsed = session.ask(Prefix::NONE, async |client| client.prepare(sql).await).await?;
    let declaration = format!("{DECLARE}{sql}").into_boxed_str();
    if parsed.columns().is_empty() {
        // Either it is no query, or a query without columns: only the latter can have a cursor.
        let declared = session.ask(DECLARE_PREFIX, async |client| client.prepare(&declaration).await.map(drop)).await;
        return Err(match declared {
            Err(lost @ SourceError::SnapshotLost(_)) => lost,
            Err(_) => not_a_query(),
            Ok(()) => SourceError::Statement(StatementRefused {
                native_code: "42601".into(),
                message: "the statement gives rows without columns".into(),
                position: None,
            }),
        });
    }
    // Refused here, before the server is asked for more.
    drop(encode(&statement.parameters, parsed.params())?);

    let types: Vec<u32> = parsed.columns().iter().map(|column| column.type_().oid()).collect();
    let modifiers: Vec<i32> = parsed.columns().iter().map(tokio_postgres::Column::type_modifier).collect();
    let relations: Vec<u32> = parsed.columns().iter().map(|column| column.table_oid().unwrap_or(0)).collect();
    let attributes: Vec<i16> = parsed.columns().iter().map(|column| column.column_id().unwrap_or(0)).collect();
    let (type_rows, column_rows) = session
        .ask_catalogue(async |client| {
            let column_parameters: [(&(dyn ToSql + Sync), Type); 4] = [
                (&types, Type::OID_ARRAY),
                (&modifiers, Type::INT4_ARRAY),
                (&relations, Type::OID_ARRAY),
                (&attributes, Type::INT2_ARRAY),
            ];
            let type_parameters: [(&(dyn ToSql + Sync), Type); 1] = [(&types, Type::OID_ARRAY)];
            futures::try_join!(
                client.query_typed(TYPES, &type_parameters),
                client.query_typed(COLUMNS, &column_parameters)
            )
        })
        .await?;
    let unread = |error: tokio_postgres::Error| SourceError::Internal(Some(error.into()));
    let mut facts = HashMap::with_capacity(type_rows.len());
    for row in &type_rows {
        let character = |index: usize| row.try_get::<_, i8>(index).map(i8::cast_unsigned).map_err(unread);
        let known = TypeFacts {
            typtype: character(1)?,
            base: row.try_get(2).map_err(unread)?,
            element: row.try_get(3).map_err(unread)?,
            delimiter: character(4)?,
            category: character(5)?,
        };
        facts.insert(row.try_get::<_, u32>(0).map_err(unread)?, known);
    }
    if column_rows.len() != types.len() {
        return Err(SourceError::Internal(None));
    }
    let may_add_nulls = may_add_nulls(sql);
    let mut columns = Vec::with_capacity(types.len());
    let mut shapes = Vec::with_capacity(types.len());
    for (column, row) in parsed.columns().iter().zip(&column_rows) {
        let (shape, kind) = shape_of(column.type_().oid(), &facts);
        let not_null: bool = row.try_get(1).map_err(unread)?;
        columns.push(Column {
            name: column.name().into(),
            kind,
            nullable: !not_null || may_add_nulls,
            native_type: row.try_get::<_, Option<String>>(0).map_err(unread)?.unwrap_or_default().into(),
        });
        shapes.push(shape);
    }
    Ok(Prepared {
        statement: statement.clone(),
        columns,
        shapes: shapes.into(),
        types: parsed.params().to_vec(),
        declaration,
        cursor_is_fresh: false,
    })
}

/// Opens the cursor of a statement and keeps its locks.
async fn declare(session: &mut Session, mut prepared: Prepared) -> Result<(), SourceError> {
    let parameters = encode(&prepared.statement.parameters, &prepared.types)?;
    let typed: Vec<(&(dyn ToSql + Sync), Type)> = parameters
        .iter()
        .zip(&prepared.types)
        .map(|(parameter, ty): (&TextParameter, _)| (parameter as &(dyn ToSql + Sync), ty.clone()))
        .collect();
    let mut refused = None;
    let count = typed.len();
    let declared = session
        .ask(DECLARE_PREFIX, async |client| {
            // Both are sent before the first is answered; where the first fails, the second does nothing.
            let (declared, kept) =
                futures::join!(client.execute_typed(&prepared.declaration, &typed), client.batch_execute(KEEP));
            if let Err(error) = &declared
                && let Some(reported) = error.as_db_error()
                && let Some(index) = refused_parameter(reported, count)
            {
                refused = Some(SourceError::Parameter { index, reason: reported.message().into() });
            }
            declared.and(kept)
        })
        .await;
    match (declared, refused) {
        (Ok(()), _) => {
            session.kept();
            prepared.cursor_is_fresh = true;
            session.prepared = Some(prepared);
            Ok(())
        }
        (Err(_), Some(refused)) => Err(refused),
        // The server has parsed the statement before, so what it cannot read now is not a query.
        (Err(SourceError::Syntax(_)), None) => Err(not_a_query()),
        (Err(error), None) => Err(error),
    }
}

/// Whether the text holds a word that can make a NOT NULL column NULL: an outer join, grouping sets. Looked for
/// everywhere, in comments and names too: a false alarm only makes a column nullable.
fn may_add_nulls(sql: &str) -> bool {
    let lower = sql.to_ascii_lowercase();
    ["left", "right", "full", "rollup", "cube", "grouping"].iter().any(|word| lower.contains(word))
}

/// Whether there is nothing but white space, comments and semicolons.
fn is_blank(sql: &str) -> bool {
    let mut rest = sql.trim_start_matches(is_between);
    loop {
        if rest.is_empty() {
            return true;
        } else if let Some(comment) = rest.strip_prefix("--") {
            let Some(end) = comment.find(['\n', '\r']) else { return true };
            rest = &comment[end..];
        } else if let Some(comment) = rest.strip_prefix("/*") {
            let Some(end) = end_of_comment(comment) else { return false };
            rest = &comment[end..];
        } else {
            return false;
        }
        rest = rest.trim_start_matches(is_between);
    }
}

fn is_between(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c' | ';')
}

/// PostgreSQL's comments nest.
fn end_of_comment(comment: &str) -> Option<usize> {
    let bytes = comment.as_bytes();
    let (mut depth, mut at) = (1_usize, 0);
    while at + 1 < bytes.len() {
        match &bytes[at..at + 2] {
            b"*/" => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return Some(at);
                }
            }
            b"/*" => {
                depth += 1;
                at += 2;
            }
            _ => at += 1,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_white_space_comments_and_semicolons_are_no_statement() {
        for sql in ["", " \n", ";", "-- x", "-- x\n ; ", "/* a /* b */ c */;", "/**/"] {
            assert!(is_blank(sql), "{sql:?}");
        }
        for sql in ["select 1", "-- x\nselect 1", "/* a */ x", "/* open", "- -", "/* a /* b */"] {
            assert!(!is_blank(sql), "{sql:?}");
        }
    }
}
