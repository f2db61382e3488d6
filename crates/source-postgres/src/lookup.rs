//! What we ask the server's catalogue, prepared on each connection and run once where there is time, so that the server
//! has read its own catalogue before a user waits for it. It asks about names and types, never about rows.

use tokio_postgres::types::{Oid, ToSql};
use tokio_postgres::{Client, Error, Row, Statement};

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
/// inheritance tree proves nothing for its children, nobody checks a foreign partition, a constraint may be NOT VALID.
const COLUMNS: &str = "\
select pg_catalog.format_type(c.type, c.modifier), coalesce(
  (select a.attnotnull and k.relkind in ('r', 'p') and (k.relkind = 'p' or not k.relhassubclass)
    and not (k.relkind = 'p' and exists (select from pg_catalog.pg_partition_tree(k.oid) part
      join pg_catalog.pg_class f on f.oid = part.relid where f.relkind = 'f'))
    and not exists (
      select from pg_catalog.pg_constraint n
      where n.conrelid = a.attrelid and n.contype = 'n' and not n.convalidated and a.attnum = any (n.conkey))
   from pg_catalog.pg_attribute a join pg_catalog.pg_class k on k.oid = a.attrelid
   where a.attrelid = c.relation and a.attnum = c.attribute), false)
from rows from (pg_catalog.unnest($1::pg_catalog.oid[]), pg_catalog.unnest($2::pg_catalog.int4[]),
  pg_catalog.unnest($3::pg_catalog.oid[]), pg_catalog.unnest($4::pg_catalog.int2[]))
  with ordinality c(type, modifier, relation, attribute, place)
order by c.place";

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

/// The questions, prepared on one connection.
pub(crate) struct Lookups {
    types: Statement,
    columns: Statement,
    relations: Statement,
    keys: Statement,
    functions: Statement,
}

impl Lookups {
    /// Prepares all of them in one round trip.
    pub(crate) async fn prepare(client: &Client) -> Result<Self, Error> {
        let (types, columns, relations, keys, functions) = futures::try_join!(
            client.prepare(TYPES),
            client.prepare(COLUMNS),
            client.prepare(RELATIONS),
            client.prepare(KEYS),
            client.prepare(FUNCTIONS)
        )?;
        Ok(Self { types, columns, relations, keys, functions })
    }

    /// Asks each once, about what every server has.
    pub(crate) async fn warm(&self, client: &Client) -> Result<(), Error> {
        const INT4: Oid = 23;
        const INT4_ARRAY: Oid = 1007;
        const PG_CLASS: Oid = 1259;
        self.columns(client, &[INT4, INT4_ARRAY], &[-1, -1], &[PG_CLASS, 0], &[1, 0]).await?;
        self.relations(client, &[None], &["pg_class"], &["now"]).await.map(drop)
    }

    /// Facts about types, and about the columns of a result; one round trip.
    pub(crate) async fn columns(
        &self,
        client: &Client,
        types: &[Oid],
        modifiers: &[i32],
        relations: &[Oid],
        attributes: &[i16],
    ) -> Result<(Vec<Row>, Vec<Row>), Error> {
        let of_columns: [&(dyn ToSql + Sync); 4] = [&types, &modifiers, &relations, &attributes];
        let of_types: [&(dyn ToSql + Sync); 1] = [&types];
        futures::try_join!(client.query(&self.types, &of_types), client.query(&self.columns, &of_columns))
    }

    /// Relations, their keys, and functions; one round trip.
    pub(crate) async fn relations(
        &self,
        client: &Client,
        schemas: &[Option<&str>],
        names: &[&str],
        functions: &[&str],
    ) -> Result<(Vec<Row>, Vec<Row>, Vec<Row>), Error> {
        let of_relations: [&(dyn ToSql + Sync); 2] = [&schemas, &names];
        let of_functions: [&(dyn ToSql + Sync); 1] = [&functions];
        futures::try_join!(
            client.query(&self.relations, &of_relations),
            client.query(&self.keys, &of_relations),
            client.query(&self.functions, &of_functions)
        )
    }
}
