//! Facts about relations and functions, as far as the server's catalogue proves them. What is not certain is left out:
//! a missing key only makes a query not resumable, a false one would make rows wrong.

use std::collections::HashMap;

use tidegate_core::port::{Catalogue, CatalogueQuery, RelationFacts, SourceError, UniqueKey, Volatility};
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use crate::session::Session;

/// The names are looked up by the search path where no schema is given. `to_regclass` takes an identifier's text, so names
/// are quoted.
const RELATIONS: &str = "\
select q.place, c.relkind in ('r', 'p'),
  coalesce((select pg_catalog.array_agg(a.attname::pg_catalog.text order by a.attnum) from pg_catalog.pg_attribute a
    where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped), '{}')
from rows from (pg_catalog.unnest($1::pg_catalog.text[]), pg_catalog.unnest($2::pg_catalog.text[]))
  with ordinality q(schema, name, place)
join pg_catalog.pg_class c on c.oid = pg_catalog.to_regclass(
  coalesce(pg_catalog.quote_ident(q.schema) || '.', '') || pg_catalog.quote_ident(q.name))
order by q.place";

/// A unique index is a key where it is valid, immediate, whole, on plain NOT NULL columns, and sees two values as equal
/// exactly where ORDER BY does: the type's default operator class, and no collation that sees different texts as equal.
/// A parent of an inheritance tree has no keys: its indexes say nothing about its children.
const KEYS: &str = "\
select q.place, pg_catalog.array_agg(a.attname::pg_catalog.text order by k.place)
from rows from (pg_catalog.unnest($1::pg_catalog.text[]), pg_catalog.unnest($2::pg_catalog.text[]))
  with ordinality q(schema, name, place)
join pg_catalog.pg_class c on c.oid = pg_catalog.to_regclass(
  coalesce(pg_catalog.quote_ident(q.schema) || '.', '') || pg_catalog.quote_ident(q.name))
join pg_catalog.pg_index i on i.indrelid = c.oid
join pg_catalog.pg_class x on x.oid = i.indexrelid
join pg_catalog.pg_am m on m.oid = x.relam and m.amname = 'btree'
cross join lateral rows from (pg_catalog.unnest(i.indkey::pg_catalog.int2[]), pg_catalog.unnest(i.indclass::pg_catalog.oid[]),
  pg_catalog.unnest(i.indcollation::pg_catalog.oid[])) with ordinality k(attribute, class, coll, place)
left join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum = k.attribute and a.attnum > 0
left join pg_catalog.pg_opclass o on o.oid = k.class
left join pg_catalog.pg_collation ik on ik.oid = k.coll
left join pg_catalog.pg_collation ck on ck.oid = a.attcollation
where k.place <= i.indnkeyatts and c.relkind in ('r', 'p') and (c.relkind = 'p' or not c.relhassubclass)
  and i.indisunique and i.indisvalid and i.indisready and i.indimmediate and i.indpred is null and i.indexprs is null
group by q.place, i.indexrelid, i.indisprimary
having pg_catalog.bool_and(coalesce(a.attnotnull, false) and coalesce(o.opcdefault, false)
  and coalesce(ik.collisdeterministic, true) and coalesce(ck.collisdeterministic, true)
  and not exists (select from pg_catalog.pg_constraint n
    where n.conrelid = a.attrelid and n.contype = 'n' and not n.convalidated and a.attnum = any (n.conkey)))
order by q.place, i.indisprimary desc, i.indexrelid";

/// The worst volatility among all functions of a name, in every schema: a statement may name any. STABLE promises the same
/// answer within one statement only; that is the same answer within a snapshot unless the function looks at the clock, at
/// statistics or at the catalogue's caches, as some built-in ones do.
const FUNCTIONS: &str = "\
select p.proname::pg_catalog.text, pg_catalog.max(case
  when p.provolatile = 'v' then 2
  when p.provolatile = 'i' then 0
  when n.nspname = 'pg_catalog' and (p.proname ~ '^(pg_|has_|to_reg|row_security|currtid|inet_(client|server))'
    or p.proname in ('statement_timestamp', 'format_type', 'col_description', 'obj_description', 'shobj_description')) then 2
  else 1 end)
from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
where p.proname = any ($1::pg_catalog.text[]::pg_catalog.name[])
group by p.proname";

/// Looks up what `query` asks for. The cost: three statements in one round trip.
pub(crate) async fn look_up(session: &mut Session, query: &CatalogueQuery) -> Result<Catalogue, SourceError> {
    session.restore().await?;
    let mut catalogue = Catalogue::default();
    let schemas: Vec<Option<&str>> = query.relations.iter().map(|name| name.schema.as_deref()).collect();
    let names: Vec<&str> = query.relations.iter().map(|name| &*name.name).collect();
    let functions: Vec<&str> = query.functions.iter().map(|name| &**name).collect();
    let (relation_rows, key_rows, function_rows) = session
        .ask_catalogue(async |client| {
            let relations: [(&(dyn ToSql + Sync), Type); 2] =
                [(&schemas, Type::TEXT_ARRAY), (&names, Type::TEXT_ARRAY)];
            let functions: [(&(dyn ToSql + Sync), Type); 1] = [(&functions, Type::TEXT_ARRAY)];
            futures::try_join!(
                client.query_typed(RELATIONS, &relations),
                client.query_typed(KEYS, &relations),
                client.query_typed(FUNCTIONS, &functions)
            )
        })
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
