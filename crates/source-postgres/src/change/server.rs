//! What is asked of the server beside the stream: how it is set up, the slot, the publication, the tables. It changes nothing but
//! a publication that is missing and may be made.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use postgres_protocol::escape::escape_identifier;
use tidegate_core::port::ChangeSourceError;
use tokio_postgres::types::{FromSql, Oid, ToSql};
use tokio_postgres::{Config, Row};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::config::{ChangeConfig, split};
use super::lsn::Lsn;
use super::pgoutput::Relation;
use super::refusal::{driver, setup, unavailable, unreadable, wire};
use super::table::{Column, Table};
use super::wire::Connection;
use crate::config::PostgresConfig;
use crate::guard::RowBound;
use crate::session::{Link, settings};
use crate::shape::shape_of;
use crate::{describe, socket};

/// How to reach the server, and what to read.
pub(crate) struct Server {
    pub(crate) postgres: PostgresConfig,
    pub(crate) change: ChangeConfig,
    pub(crate) driver: Config,
    pub(crate) tls: MakeRustlsConnect,
}

/// A replication slot.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    plugin: Option<String>,
    database: Option<String>,
    pub(crate) active_pid: Option<i32>,
    pub(crate) confirmed: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved`, `lost`.
    wal_status: Option<String>,
    here: bool,
}

/// A published table.
#[derive(Debug, Clone)]
pub(crate) struct Published {
    pub(crate) oid: Oid,
    pub(crate) schema: String,
    pub(crate) name: String,
    /// Changes with TRUNCATE and with an ALTER TABLE that rewrites the table.
    pub(crate) files: String,
    columns: Option<Vec<String>>,
    pub(crate) filter: Option<String>,
    has_identity: bool,
    is_partitioned: bool,
}

impl Published {
    /// What stands behind FROM.
    pub(crate) fn from(&self) -> String {
        let only = if self.is_partitioned { "" } else { "ONLY " };
        format!("{only}{}", self.quoted())
    }

    pub(crate) fn quoted(&self) -> String {
        format!("{}.{}", escape_identifier(&self.schema), escape_identifier(&self.name))
    }
}

/// The tables, and what changes with their rows being replaced.
pub(crate) fn files(tables: &[Published]) -> BTreeMap<Oid, (&str, &str, &str)> {
    tables.iter().map(|of| (of.oid, (&*of.schema, &*of.name, &*of.files))).collect()
}

/// How the server is set up.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    version: i32,
    pub(crate) sender_timeout_ms: i64,
    /// Behind everything that was committed.
    pub(crate) log_end: Lsn,
}

const FACTS: &str = "\
select pg_catalog.current_setting('server_version_num')::pg_catalog.int4, pg_catalog.current_setting('wal_level'),
  pg_catalog.pg_is_in_recovery(),
  (select setting::pg_catalog.int8 from pg_catalog.pg_settings where name = 'wal_sender_timeout'),
  case when not pg_catalog.pg_is_in_recovery() then pg_catalog.pg_current_wal_insert_lsn()::pg_catalog.text end";

const SLOT: &str = "\
select plugin::pg_catalog.text, database::pg_catalog.text, active_pid, confirmed_flush_lsn::pg_catalog.text, wal_status,
  database = pg_catalog.current_database()
from pg_catalog.pg_replication_slots where slot_name = $1";

const PUBLICATION: &str = "select pubupdate or pubdelete from pg_catalog.pg_publication where pubname = $1";

/// The files of a partitioned table are those of its parts. `pg_partition_tree` and `pg_relation_size` would wait for locks.
const PUBLISHED: &str = "\
select c.oid, n.nspname::pg_catalog.text, c.relname::pg_catalog.text,
  case when c.relkind = 'p' then (
    with recursive part(oid) as (
      select c.oid union all select i.inhrelid from pg_catalog.pg_inherits i join part on i.inhparent = part.oid)
    select pg_catalog.string_agg(pg_catalog.pg_relation_filenode(part.oid)::pg_catalog.text, ',' order by part.oid)
    from part)
  else pg_catalog.pg_relation_filenode(c.oid)::pg_catalog.text end, $COLUMNS,
  c.relreplident = 'f' or exists (select from pg_catalog.pg_index i where i.indrelid = c.oid
    and case c.relreplident when 'd' then i.indisprimary and i.indimmediate when 'i' then i.indisreplident else false end),
  c.relkind = 'p'
from pg_catalog.pg_publication_tables p
join pg_catalog.pg_namespace n on n.nspname = p.schemaname
join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = p.tablename
where p.pubname = $1 order by 2, 3";

/// The key is the replica identity where that is one, else the primary key. Generated columns are not published.
const COLUMNS: &str = "\
select a.attname::pg_catalog.text, a.atttypid, a.atttypmod, exists (
    select from pg_catalog.pg_index i
    where i.indrelid = c.oid and case c.relreplident when 'i' then i.indisreplident else i.indisprimary end
      and a.attnum = any ((i.indkey::pg_catalog.int2[])[0:i.indnkeyatts - 1])),
  a.attcollation in (950, 951) or (a.attcollation = 100 and
    (select d.datcollate in ('C', 'POSIX') from pg_catalog.pg_database d where d.datname = pg_catalog.current_database()))
from pg_catalog.pg_attribute a join pg_catalog.pg_class c on c.oid = a.attrelid
where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
  and ($2::pg_catalog.text[] is null or a.attname::pg_catalog.text = any ($2::pg_catalog.text[]))
order by a.attnum";

impl Server {
    /// A connection for questions.
    pub(crate) async fn link(&self) -> Result<Link, ChangeSourceError> {
        let work = async {
            // A row of the copy is one message of another kind: it is measured when it is there.
            let bound = RowBound::new(usize::MAX);
            let connected = socket::connect(&self.driver, &self.tls, &bound).await.map_err(unconnected)?;
            let settings = format!("{}; SET row_security = off", settings(self.postgres.lock_timeout));
            Link::begin(connected, &settings, self.tls.clone(), bound).await.map_err(driver)
        };
        self.in_time(work).await
    }

    /// A connection in replication mode. Its session prints values as [`Self::link`]'s does.
    pub(crate) async fn replication(&self) -> Result<Connection, ChangeSourceError> {
        const SETTINGS: &[(&str, &str)] = &[
            ("TimeZone", "UTC"),
            ("DateStyle", "ISO, YMD"),
            ("IntervalStyle", "iso_8601"),
            ("extra_float_digits", "1"),
            ("bytea_output", "hex"),
            ("xmloption", "content"),
            ("statement_timeout", "0"),
            ("idle_in_transaction_session_timeout", "0"),
        ];
        self.in_time(async { Connection::open(&self.driver, &self.tls, SETTINGS).await.map_err(wire) }).await
    }

    /// Bounds what should take no time.
    pub(crate) async fn in_time<T>(
        &self,
        work: impl Future<Output = Result<T, ChangeSourceError>>,
    ) -> Result<T, ChangeSourceError> {
        tokio::time::timeout(self.postgres.connect_timeout, work).await.unwrap_or_else(|late| Err(unavailable(late)))
    }

    /// Refuses a server that has no changes to give.
    pub(crate) async fn facts(&self, link: &Link) -> Result<Facts, ChangeSourceError> {
        let row = link.client.query_one(FACTS, &[]).await.map_err(driver)?;
        if get::<bool>(&row, 2)? {
            return Err(setup("server_is_standby", "changes are read from the primary server, and this is a standby"));
        }
        let level: String = get(&row, 1)?;
        if level != "logical" {
            let problem = format!(
                "wal_level is {level}: set wal_level = logical (ALTER SYSTEM SET wal_level = 'logical') and restart PostgreSQL"
            );
            return Err(setup("wal_level_not_logical", problem));
        }
        let log_end = get::<Option<String>>(&row, 4)?.as_deref().and_then(Lsn::parse);
        Ok(Facts {
            version: get(&row, 0)?,
            sender_timeout_ms: get(&row, 3)?,
            log_end: log_end.ok_or_else(|| unreadable("the server's position cannot be read"))?,
        })
    }

    /// The slot; `None` = there is none.
    pub(crate) async fn slot(&self, link: &Link) -> Result<Option<Slot>, ChangeSourceError> {
        let row = link.client.query_opt(SLOT, &[&&*self.change.slot]).await.map_err(driver)?;
        let Some(row) = row else { return Ok(None) };
        let slot = Slot {
            plugin: get(&row, 0)?,
            database: get(&row, 1)?,
            active_pid: get(&row, 2)?,
            confirmed: get::<Option<String>>(&row, 3)?.as_deref().and_then(Lsn::parse),
            wal_status: get(&row, 4)?,
            here: get::<Option<bool>>(&row, 5)?.unwrap_or(false),
        };
        let name = &self.change.slot;
        if slot.plugin.as_deref() != Some("pgoutput") {
            let plugin = slot.plugin.as_deref().unwrap_or("none: it is a physical slot");
            let problem =
                format!("slot {name} has the plug-in {plugin}: name another slot, or drop it and let one be made");
            return Err(setup("slot_wrong_plugin", problem));
        }
        if !slot.here {
            let database = slot.database.as_deref().unwrap_or_default();
            let problem = format!("slot {name} belongs to the database {database}: name another slot");
            return Err(setup("slot_of_another_database", problem));
        }
        Ok(Some(slot))
    }

    /// Makes sure that the publication is there, and that every table of it can be published.
    pub(crate) async fn publication(&self, link: &Link, facts: &Facts) -> Result<Vec<Published>, ChangeSourceError> {
        let name = &*self.change.publication;
        let found = link.client.query_opt(PUBLICATION, &[&name]).await.map_err(driver)?;
        let found = match found {
            Some(row) => row,
            None if self.change.create => {
                self.create_publication(link).await?;
                link.client.query_one(PUBLICATION, &[&name]).await.map_err(driver)?
            }
            None => {
                let problem =
                    format!("publication {name} is missing: CREATE PUBLICATION {} ...", escape_identifier(name));
                return Err(setup("publication_missing", problem));
            }
        };
        let tables = self.published(link, facts).await?;
        let keyless = tables.iter().filter(|table| !table.has_identity).map(Published::quoted).collect::<Vec<_>>();
        if self.change.require_keys && get(&found, 0)? && !keyless.is_empty() {
            return Err(keyless_tables(&keyless));
        }
        Ok(tables)
    }

    async fn create_publication(&self, link: &Link) -> Result<(), ChangeSourceError> {
        if self.change.require_keys && self.change.tables.is_empty() {
            // Before it is made: once it is there, the owner of a table without a key cannot update it any more.
            const KEYLESS: &str = "\
select pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname)
from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p') and c.relpersistence = 'p' and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
  and c.relreplident <> 'f' and not exists (select from pg_catalog.pg_index i where i.indrelid = c.oid
    and case c.relreplident when 'd' then i.indisprimary and i.indimmediate when 'i' then i.indisreplident else false end)
order by 1";
            self.refuse_keyless(link, KEYLESS, &[]).await?;
        } else if self.change.require_keys {
            const KEYLESS: &str = "\
select t.name from pg_catalog.unnest($1::pg_catalog.text[]) t(name)
join pg_catalog.pg_class c on c.oid = pg_catalog.to_regclass(t.name)
where c.relreplident <> 'f' and not exists (select from pg_catalog.pg_index i where i.indrelid = c.oid
    and case c.relreplident when 'd' then i.indisprimary and i.indimmediate when 'i' then i.indisreplident else false end)
order by 1";
            self.refuse_keyless(link, KEYLESS, &[&self.quoted_tables()]).await?;
        }
        let tables = match self.change.tables.is_empty() {
            true => "ALL TABLES".to_owned(),
            false => format!("TABLE {}", self.quoted_tables().join(", ")),
        };
        let statement = format!(
            "BEGIN READ WRITE; CREATE PUBLICATION {} FOR {tables}; COMMIT",
            escape_identifier(&self.change.publication)
        );
        link.client.batch_execute(&statement).await.map_err(driver)
    }

    async fn refuse_keyless(
        &self,
        link: &Link,
        query: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<(), ChangeSourceError> {
        let rows = link.client.query(query, parameters).await.map_err(driver)?;
        let keyless = rows.iter().map(|row| get(row, 0)).collect::<Result<Vec<String>, _>>()?;
        if keyless.is_empty() { Ok(()) } else { Err(keyless_tables(&keyless)) }
    }

    fn quoted_tables(&self) -> Vec<String> {
        let quote =
            |(schema, table): (&str, &str)| format!("{}.{}", escape_identifier(schema), escape_identifier(table));
        self.change.tables.iter().filter_map(|table| split(table)).map(quote).collect()
    }

    /// The published tables.
    pub(crate) async fn published(&self, link: &Link, facts: &Facts) -> Result<Vec<Published>, ChangeSourceError> {
        let columns = match facts.version >= 150_000 {
            true => "p.attnames::pg_catalog.text[], p.rowfilter",
            false => "null::pg_catalog.text[], null::pg_catalog.text",
        };
        let query = PUBLISHED.replace("$COLUMNS", columns);
        let rows = link.client.query(&query, &[&&*self.change.publication]).await.map_err(driver)?;
        let published = |row: &Row| {
            Ok(Published {
                oid: get(row, 0)?,
                schema: get(row, 1)?,
                name: get(row, 2)?,
                files: get::<Option<String>>(row, 3)?.unwrap_or_default(),
                columns: get(row, 4)?,
                filter: get(row, 5)?,
                has_identity: get::<Option<bool>>(row, 6)?.unwrap_or(false),
                is_partitioned: get(row, 7)?,
            })
        };
        rows.iter().map(published).collect()
    }

    /// A published table as the catalogue describes it, and whether an index can give it in the order of the copy.
    pub(crate) async fn table(&self, link: &Link, of: &Published) -> Result<(Table, bool), ChangeSourceError> {
        let rows = link.client.query(COLUMNS, &[&of.oid, &of.columns]).await.map_err(driver)?;
        let (mut columns, mut ordered) = (Vec::new(), true);
        for row in &rows {
            let (key, bytewise): (bool, bool) = (get(row, 3)?, get::<Option<bool>>(row, 4)?.unwrap_or(false));
            let column = Raw { name: get(row, 0)?, key, type_oid: get(row, 1)?, modifier: get(row, 2)? };
            // int8, int2, int4, oid, uuid; text and varchar
            ordered &= !key
                || matches!(column.type_oid, 20 | 21 | 23 | 26 | 2950)
                || (matches!(column.type_oid, 25 | 1043) && bytewise);
            columns.push(column);
        }
        let columns = self.columns(link, columns).await?;
        Ok((Table::new(of.oid, format!("{}.{}", of.schema, of.name).into(), columns), ordered))
    }

    /// A table as the stream describes it. The stream does not say which columns are the primary key where the replica identity
    /// is the whole row or nothing.
    pub(crate) async fn describe(&self, link: &Link, of: &Relation<'_>) -> Result<Arc<Table>, ChangeSourceError> {
        let mut keys: HashMap<String, bool> = HashMap::new();
        if matches!(of.identity, b'f' | b'n') {
            let none: Option<Vec<String>> = None;
            for row in link.client.query(COLUMNS, &[&of.oid, &none]).await.map_err(driver)? {
                keys.insert(get(&row, 0)?, get(&row, 3)?);
            }
        }
        let raw = |column: &super::pgoutput::RelationColumn<'_>| Raw {
            name: column.name.to_owned(),
            key: match of.identity {
                b'f' | b'n' => keys.get(column.name).copied().unwrap_or(false),
                _ => column.key,
            },
            type_oid: column.type_oid,
            modifier: column.modifier,
        };
        let columns = self.columns(link, of.columns.iter().map(raw).collect()).await?;
        let schema = if of.schema.is_empty() { "pg_catalog" } else { of.schema };
        Ok(Arc::new(Table::new(of.oid, format!("{schema}.{}", of.name).into(), columns)))
    }

    async fn columns(&self, link: &Link, raw: Vec<Raw>) -> Result<Vec<Column>, ChangeSourceError> {
        let types: Vec<Oid> = raw.iter().map(|column| column.type_oid).collect();
        let modifiers: Vec<i32> = raw.iter().map(|column| column.modifier).collect();
        let (none, no_attributes) = (vec![0; raw.len()], vec![0; raw.len()]);
        let (type_rows, native) =
            link.lookups.columns(&link.client, &types, &modifiers, &none, &no_attributes).await.map_err(driver)?;
        let facts = describe::facts(&type_rows).map_err(driver)?;
        let column = |(raw, native): (Raw, &Row)| {
            Ok(Column {
                name: raw.name.into(),
                key: raw.key,
                type_oid: raw.type_oid,
                modifier: raw.modifier,
                native_type: get::<Option<String>>(native, 0)?.unwrap_or_default().into(),
                shape: shape_of(raw.type_oid, &facts).0,
            })
        };
        raw.into_iter().zip(&native).map(column).collect()
    }

    /// The command that begins the stream.
    pub(crate) fn start_command(&self, from: Lsn) -> String {
        // The option is a list of identifiers, in a literal.
        let publication = escape_identifier(&self.change.publication).replace('\'', "''");
        let slot = escape_identifier(&self.change.slot);
        format!("START_REPLICATION SLOT {slot} LOGICAL {from} (proto_version '1', publication_names '{publication}')")
    }
}

struct Raw {
    name: String,
    key: bool,
    type_oid: Oid,
    modifier: i32,
}

impl Slot {
    /// Why the slot can give nothing any more.
    pub(crate) fn invalidated(&self) -> Option<&'static str> {
        match (self.wal_status.as_deref(), self.confirmed) {
            (Some("lost"), _) => {
                Some("the slot was invalidated: the server removed log that it needs (max_slot_wal_keep_size)")
            }
            (_, None) => Some("the slot was never finished"),
            _ => None,
        }
    }
}

fn keyless_tables(names: &[String]) -> ChangeSourceError {
    let (shown, more) = names.split_at(names.len().min(5));
    let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
    let problem = format!(
        "no replica identity: {}{more}. PostgreSQL refuses UPDATE and DELETE on such a table once it is published: add a primary \
         key, or ALTER TABLE ... REPLICA IDENTITY FULL, or leave it out of the publication",
        shown.join(", ")
    );
    setup("table_without_key", problem)
}

fn unconnected(cause: tidegate_core::port::Cause) -> ChangeSourceError {
    match cause.downcast::<tokio_postgres::Error>() {
        Ok(error) => driver(*error),
        Err(other) => unavailable(other),
    }
}

/// A cell of an answer to a question of our own.
pub(crate) fn get<'a, T: FromSql<'a>>(row: &'a Row, index: usize) -> Result<T, ChangeSourceError> {
    row.try_get(index).map_err(unreadable)
}
