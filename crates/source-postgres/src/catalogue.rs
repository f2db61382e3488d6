//! Facts about relations and functions, as far as the server's catalogue proves them. What is not certain is left out:
//! a missing key only makes a query not resumable, a false one would make rows wrong.

use std::collections::HashMap;

use tidegate_core::port::{Catalogue, CatalogueQuery, RelationFacts, SourceError, UniqueKey, Volatility};
use tokio_postgres::Row;

use crate::session::Session;

/// Looks up what `query` asks for. The cost: three statements in one round trip.
pub(crate) async fn look_up(session: &mut Session, query: &CatalogueQuery) -> Result<Catalogue, SourceError> {
    session.restore().await?;
    let mut catalogue = Catalogue::default();
    let schemas: Vec<Option<&str>> = query.relations.iter().map(|name| name.schema.as_deref()).collect();
    let names: Vec<&str> = query.relations.iter().map(|name| &*name.name).collect();
    let functions: Vec<&str> = query.functions.iter().map(|name| &**name).collect();
    let (relation_rows, key_rows, function_rows) = session
        .ask_catalogue(async |client, lookups| lookups.relations(client, &schemas, &names, &functions).await)
        .await?;
    session.kept();

    let mut keys: HashMap<i64, Vec<UniqueKey>> = HashMap::new();
    for row in &key_rows {
        keys.entry(get(row, 0)?).or_default().push(UniqueKey { columns: boxed(get(row, 1)?) });
    }
    for row in &relation_rows {
        let place: i64 = get(row, 0)?;
        let name = usize::try_from(place - 1).ok().and_then(|index| query.relations.get(index));
        let facts = RelationFacts {
            is_table: get(row, 1)?,
            columns: boxed(get(row, 2)?),
            unique_keys: keys.remove(&place).unwrap_or_default(),
        };
        catalogue.relations.push((name.ok_or(SourceError::Internal(None))?.clone(), facts));
    }
    for row in &function_rows {
        let volatility = match get::<i32>(row, 1)? {
            0 => Volatility::Immutable,
            1 => Volatility::Stable,
            _ => Volatility::Volatile,
        };
        catalogue.functions.push((get::<String>(row, 0)?.into(), volatility));
    }
    Ok(catalogue)
}

fn get<'a, T: tokio_postgres::types::FromSql<'a>>(row: &'a Row, index: usize) -> Result<T, SourceError> {
    row.try_get(index).map_err(|error| SourceError::Internal(Some(error.into())))
}

fn boxed(names: Vec<String>) -> Vec<Box<str>> {
    names.into_iter().map(Into::into).collect()
}
