//! A connection that can only read, with its snapshot pinned. It is never handed out without the pin and the guards.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rusqlite::config::DbConfig;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::limits::Limit;
use rusqlite::{Connection, OpenFlags};
use tidegate_core::port::SourceError;
use tokio::sync::OwnedSemaphorePermit;

use crate::config::SqliteConfig;
use crate::error::{PathRefused, at_open};
use crate::stop::Stop;

/// How many steps of SQLite's machine pass between two looks at the stop flag: some microseconds.
const STEPS_BETWEEN_STOP_CHECKS: i32 = 1_000;

/// What a statement tried that it may not, in words; written by the authorizer, taken by whoever prepared the statement.
type Denied = Arc<Mutex<Option<Box<str>>>>;

/// A pinned connection and its place among the source's snapshots.
pub(crate) struct Session {
    pub(crate) connection: Connection,
    pub(crate) max_value_bytes: u64,
    denied: Denied,
    reads_view: Arc<AtomicBool>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Session {
    /// Opens and pins. Blocks: up to the busy time-out, and for SQLite to read the schema.
    pub(crate) fn open(config: &SqliteConfig, place: Option<OwnedSemaphorePermit>) -> Result<Self, SourceError> {
        check_path(&config.path)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(&config.path, flags).map_err(at_open)?;
        pin(&connection, config).map_err(at_open)?;
        let denied = Denied::default();
        let reads_view = Arc::new(AtomicBool::new(false));
        guard(&mut connection, Arc::clone(&denied), Arc::clone(&reads_view)).map_err(at_open)?;
        // Last: with a low bound SQLite could not read a long schema.
        let bound = i32::try_from(config.max_value_bytes.get()).unwrap_or(i32::MAX);
        connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, bound).map_err(at_open)?;
        let max_value_bytes = connection.limit(Limit::SQLITE_LIMIT_LENGTH).map_err(at_open)?;
        let max_value_bytes = u64::try_from(max_value_bytes).unwrap_or(u64::MAX);
        Ok(Self { connection, max_value_bytes, denied, reads_view, _place: place })
    }

    /// Whether SQLite ended the transaction by itself, as it does after an I/O error: whatever is read next would come
    /// from another snapshot.
    pub(crate) fn is_lost(&self) -> bool {
        self.connection.is_autocommit()
    }

    /// Binds SQLite's machine to this run's stop flag.
    pub(crate) fn obey(&mut self, stop: &Arc<Stop>) -> rusqlite::Result<()> {
        let stop = Arc::clone(stop);
        self.connection.progress_handler(STEPS_BETWEEN_STOP_CHECKS, Some(move || stop.is_set()))
    }

    /// What was denied since the last call.
    pub(crate) fn take_denied(&self) -> Option<Box<str>> {
        self.denied.lock().take()
    }

    /// Whether a view was read by a statement that was prepared since the last call.
    pub(crate) fn take_reads_view(&self) -> bool {
        self.reads_view.swap(false, Ordering::Relaxed)
    }
}

fn check_path(path: &Path) -> Result<(), SourceError> {
    let refused = match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => return Ok(()),
        Ok(_) => PathRefused::NotAFile { path: path.to_owned() },
        Err(source) => PathRefused::NotThere { path: path.to_owned(), source },
    };
    Err(SourceError::Unavailable(Box::new(refused)))
}

fn pin(connection: &Connection, config: &SqliteConfig) -> rusqlite::Result<()> {
    connection.busy_timeout(config.busy_timeout)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false)?;
    connection.execute_batch("PRAGMA query_only = ON; PRAGMA cell_size_check = ON; BEGIN")?;
    // `BEGIN` takes no snapshot; the first read does. Virtual tables are those without a page of their own.
    let mut names = connection.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND rootpage = 0")?;
    let names: Vec<String> = names.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    for name in names {
        // Connects its module now, before the authorizer is there: some (R-tree) prepare their writes when they are
        // connected, though they never run them for a read. A module that is missing is told to whoever reads the table.
        let _ = connection.prepare(&format!("SELECT 1 FROM \"{}\"", name.replace('"', "\"\"")));
    }
    connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0)?;
    connection.set_limit(Limit::SQLITE_LIMIT_WORKER_THREADS, 0)?;
    Ok(())
}

fn guard(connection: &mut Connection, denied: Denied, reads_view: Arc<AtomicBool>) -> rusqlite::Result<()> {
    connection.authorizer(Some(move |context: AuthContext<'_>| {
        if context.accessor.is_some() {
            reads_view.store(true, Ordering::Relaxed);
        }
        if is_read(context.action) {
            Authorization::Allow
        } else {
            *denied.lock() = Some(describe(context.action));
            Authorization::Deny
        }
    }))
}

/// Pragmas that only tell about the schema, with an argument or without.
const SCHEMA_PRAGMAS: [&str; 11] = [
    "table_info",
    "table_xinfo",
    "table_list",
    "index_list",
    "index_info",
    "index_xinfo",
    "foreign_key_list",
    "function_list",
    "collation_list",
    "module_list",
    "pragma_list",
];

/// Pragmas that tell something when they are given no value, and change it when they are. Full-text and R-tree tables ask
/// for `data_version` and `page_size` themselves.
const VALUE_PRAGMAS: [&str; 9] = [
    "application_id",
    "compile_options",
    "data_version",
    "encoding",
    "freelist_count",
    "page_count",
    "page_size",
    "schema_version",
    "user_version",
];

fn is_read(action: AuthAction<'_>) -> bool {
    match action {
        AuthAction::Select | AuthAction::Read { .. } | AuthAction::Recursive => true,
        AuthAction::Function { function_name } => !function_name.eq_ignore_ascii_case("load_extension"),
        AuthAction::Pragma { pragma_name, pragma_value } => {
            let is = |known: &&str| known.eq_ignore_ascii_case(pragma_name);
            SCHEMA_PRAGMAS.iter().any(is) || (pragma_value.is_none() && VALUE_PRAGMAS.iter().any(is))
        }
        // Everything else, and whatever a later SQLite adds, is refused.
        _ => false,
    }
}

fn describe(action: AuthAction<'_>) -> Box<str> {
    match action {
        AuthAction::Insert { table_name } => format!("INSERT into {table_name} is not allowed"),
        AuthAction::Update { table_name, column_name } => {
            format!("UPDATE of {table_name}.{column_name} is not allowed")
        }
        AuthAction::Delete { table_name } => format!("DELETE from {table_name} is not allowed"),
        AuthAction::Attach { .. } => "ATTACH is not allowed".to_owned(),
        AuthAction::Detach { .. } => "DETACH is not allowed".to_owned(),
        AuthAction::Pragma { pragma_name, .. } => format!("PRAGMA {pragma_name} is not allowed, or not with a value"),
        AuthAction::Function { function_name } => format!("the function {function_name} is not allowed"),
        AuthAction::Transaction { .. } | AuthAction::Savepoint { .. } => {
            "transaction control is not allowed: the snapshot is the transaction".to_owned()
        }
        // The variant's name says it: CreateTable, DropIndex, ...
        other => {
            let text = format!("{other:?}");
            let name = text.split([' ', '{']).next().unwrap_or("this");
            format!("{name} is not allowed")
        }
    }
    .into()
}
