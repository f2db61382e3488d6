//! Checks a statement without running it: the server parses it, gives its columns and its parameters' types, and declares a
//! cursor for it. No row is computed. The cursor stays open at its first row for a run that follows.

use std::collections::HashMap;
use std::sync::Arc;

use tidegate_core::port::{Column, Description, SourceError, Statement, StatementRefused};
use tokio_postgres::types::{Oid, ToSql, Type};
use tokio_postgres::{Client, Error, Row};

use crate::error::{Prefix, not_a_query, refused_parameter};
use crate::lookup::Lookups;
use crate::parameter::{TextParameter, encode};
use crate::session::Session;
use crate::shape::{Shape, TypeFacts, shape_of};

/// What stands before a statement when its cursor is declared.
const DECLARE: &str = "DECLARE tidegate_rows NO SCROLL CURSOR FOR ";
pub(crate) const DECLARE_PREFIX: Prefix = Prefix(DECLARE.len() as u32);
/// Moves the savepoint behind the declaration, so that the locks that it took on its tables are kept to the end of the
/// snapshot: else a TRUNCATE between two runs would show, which PostgreSQL does not hide from older snapshots.
const KEEP: &str = "RELEASE SAVEPOINT tidegate; SAVEPOINT tidegate";

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

/// Makes `session.prepared` this statement, with its cursor open at the first row. Costs two round trips the first time, one
/// after a run, none where the statement was described last.
pub(crate) async fn prepare(session: &mut Session, statement: &Statement) -> Result<(), SourceError> {
    session.restore().await?;
    if session.prepared.as_ref().is_some_and(|prepared| prepared.statement != *statement) {
        session.forget();
        session.restore().await?;
    }
    let mut prepared = match session.prepared.take() {
        Some(prepared) if prepared.cursor_is_fresh => prepared,
        Some(prepared) => {
            let parameters = encode(&statement.parameters, &prepared.types)?;
            let typed = typed(&parameters, &prepared.types);
            let declared = session
                .ask(Prefix::NONE, async |client| Ok(declare(client, &prepared.declaration, &typed).await))
                .await?;
            check_declared(session, declared, typed.len())?;
            prepared
        }
        None => inspect(session, statement).await?,
    };
    session.kept();
    prepared.cursor_is_fresh = true;
    session.prepared = Some(prepared);
    Ok(())
}

/// Parses a statement, learns its columns and declares its cursor.
async fn inspect(session: &mut Session, statement: &Statement) -> Result<Prepared, SourceError> {
    let sql = &*statement.sql;
    if is_blank(sql) {
        return Err(SourceError::Empty);
    }
    if let Some(at) = sql.find('\0') {
        return Err(SourceError::Syntax(StatementRefused {
            native_code: "42601".into(),
            message: "a statement cannot hold U+0000".into(),
            position: u32::try_from(sql[..at].chars().count() + 1).ok(),
        }));
    }
    let declaration = format!("{DECLARE}{sql}").into_boxed_str();
    // Without parameters the cursor can be declared before the answer to the parse is there.
    let (parsed, declared) = session
        .ask(Prefix::NONE, async |client| {
            if statement.parameters.is_empty() {
                let (parsed, declared) = futures::join!(client.prepare(sql), declare(client, &declaration, &[]));
                Ok((parsed?, Some(declared)))
            } else {
                Ok((client.prepare(sql).await?, None))
            }
        })
        .await?;
    if parsed.columns().is_empty() {
        return Err(without_columns(session, &declaration).await);
    }
    let parameters = encode(&statement.parameters, parsed.params())?;
    let typed = typed(&parameters, parsed.params());
    let origins = Origins::of(&parsed);
    let (type_rows, column_rows) = match declared {
        Some(declared) => {
            check_declared(session, declared, 0)?;
            session.ask_catalogue(async |client, lookups| origins.look_up(client, lookups).await).await?
        }
        None => {
            let (declared, looked_up) = session
                .ask_catalogue(async |client, lookups| {
                    Ok(futures::join!(declare(client, &declaration, &typed), origins.look_up(client, lookups)))
                })
                .await?;
            check_declared(session, declared, typed.len())?;
            session.ask_catalogue(async |_, _| looked_up).await?
        }
    };
    let (columns, shapes) = columns(&parsed, &type_rows, &column_rows, may_add_nulls(sql))?;
    Ok(Prepared {
        statement: statement.clone(),
        columns,
        shapes: shapes.into(),
        types: parsed.params().to_vec(),
        declaration,
        cursor_is_fresh: false,
    })
}

type Typed<'a> = (&'a (dyn ToSql + Sync), Type);

fn typed<'a>(parameters: &'a [TextParameter], types: &[Type]) -> Vec<Typed<'a>> {
    parameters.iter().zip(types).map(|(parameter, ty)| (parameter as &(dyn ToSql + Sync), ty.clone())).collect()
}

/// Opens a cursor and keeps its locks. Both requests are sent before the first is answered; where the first fails, the second
/// does nothing.
async fn declare(client: &Client, declaration: &str, typed: &[Typed<'_>]) -> Result<(), Error> {
    let (declared, kept) = futures::join!(client.execute_typed(declaration, typed), client.batch_execute(KEEP));
    declared.and(kept)
}

fn check_declared(session: &Session, declared: Result<(), Error>, parameters: usize) -> Result<(), SourceError> {
    let Err(error) = declared else { return Ok(()) };
    if let Some(reported) = error.as_db_error()
        && let Some(index) = refused_parameter(reported, parameters)
    {
        return Err(SourceError::Parameter { index, reason: reported.message().into() });
    }
    Err(match session.failure(error, DECLARE_PREFIX) {
        // The server has parsed the statement by itself, so what it cannot read after DECLARE is not a query.
        SourceError::Syntax(_) => not_a_query(),
        refused => refused,
    })
}

/// Why a statement has no columns: it is no query, or a query without columns. Only the latter can have a cursor.
async fn without_columns(session: &mut Session, declaration: &str) -> SourceError {
    if let Err(lost) = session.restore().await {
        return lost;
    }
    match session.ask(DECLARE_PREFIX, async |client| client.prepare(declaration).await.map(drop)).await {
        Err(lost @ SourceError::SnapshotLost(_)) => lost,
        Err(_) => not_a_query(),
        Ok(()) => SourceError::Statement(StatementRefused {
            native_code: "42601".into(),
            message: "the statement gives rows without columns".into(),
            position: None,
        }),
    }
}

/// Where the columns of a result come from.
struct Origins {
    types: Vec<Oid>,
    modifiers: Vec<i32>,
    relations: Vec<Oid>,
    attributes: Vec<i16>,
}

impl Origins {
    fn of(parsed: &tokio_postgres::Statement) -> Self {
        let columns = || parsed.columns().iter();
        Self {
            types: columns().map(|column| column.type_().oid()).collect(),
            modifiers: columns().map(tokio_postgres::Column::type_modifier).collect(),
            relations: columns().map(|column| column.table_oid().unwrap_or(0)).collect(),
            attributes: columns().map(|column| column.column_id().unwrap_or(0)).collect(),
        }
    }

    async fn look_up(&self, client: &Client, lookups: &Lookups) -> Result<(Vec<Row>, Vec<Row>), Error> {
        lookups.columns(client, &self.types, &self.modifiers, &self.relations, &self.attributes).await
    }
}

fn columns(
    parsed: &tokio_postgres::Statement,
    type_rows: &[Row],
    column_rows: &[Row],
    may_add_nulls: bool,
) -> Result<(Vec<Column>, Vec<Shape>), SourceError> {
    let unread = |error: Error| SourceError::Internal(Some(error.into()));
    let facts = facts(type_rows).map_err(unread)?;
    if column_rows.len() != parsed.columns().len() {
        return Err(SourceError::Internal(None));
    }
    let mut columns = Vec::with_capacity(column_rows.len());
    let mut shapes = Vec::with_capacity(column_rows.len());
    for (column, row) in parsed.columns().iter().zip(column_rows) {
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
    Ok((columns, shapes))
}

/// The catalogue's facts about types, by OID.
pub(crate) fn facts(type_rows: &[Row]) -> Result<HashMap<Oid, TypeFacts>, Error> {
    let mut facts = HashMap::with_capacity(type_rows.len());
    for row in type_rows {
        let character = |index: usize| row.try_get::<_, i8>(index).map(i8::cast_unsigned);
        let known = TypeFacts {
            typtype: character(1)?,
            base: row.try_get(2)?,
            element: row.try_get(3)?,
            delimiter: character(4)?,
            category: character(5)?,
        };
        facts.insert(row.try_get::<_, Oid>(0)?, known);
    }
    Ok(facts)
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
