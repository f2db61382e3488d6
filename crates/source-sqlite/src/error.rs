//! SQLite's errors as the port's. It never drops SQLite's own words.

use std::borrow::Cow;

use rusqlite::Error as Sqlite;
use rusqlite::ffi::{self, ErrorCode};
use tidegate_core::port::{SinkError, SourceError, StatementRefused};

/// A cause with what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{advice}")]
struct Explained {
    advice: Cow<'static, str>,
    source: Sqlite,
}

/// A path that cannot be a database.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PathRefused {
    /// Nothing is there, or it cannot be looked at.
    #[error("cannot look at {path:?}; a source's file must exist, it is never created")]
    NotThere {
        /// Which.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Something else is there.
    #[error("{path:?} is not a file")]
    NotAFile {
        /// Which.
        path: std::path::PathBuf,
    },
}

/// What an operation does with an error of SQLite that is not about the statement.
fn explained(error: Sqlite, advice: &'static str) -> Box<Explained> {
    Box::new(Explained { advice: advice.into(), source: error })
}

/// While a connection is opened and its snapshot pinned.
pub(crate) fn at_open(error: Sqlite) -> SourceError {
    let (code, extended) = codes(&error);
    match code {
        ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt => SourceError::Corrupt(Box::new(error)),
        ErrorCode::ReadOnly => SourceError::Unavailable(explained(
            error,
            "the file must be recovered first and this server only reads it: open it once with a program that writes",
        )),
        ErrorCode::CannotOpen if extended == ffi::SQLITE_CANTOPEN => SourceError::Unavailable(explained(
            error,
            "the file cannot be opened; in WAL mode its folder must allow this server to write, because readers share the -shm file",
        )),
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => {
            SourceError::Unavailable(explained(error, "a writer holds the database"))
        }
        ErrorCode::OutOfMemory | ErrorCode::ApiMisuse | ErrorCode::InternalMalfunction => {
            SourceError::Internal(Some(Box::new(error)))
        }
        _ => SourceError::Unavailable(Box::new(error)),
    }
}

/// While a statement is prepared. `sql` is the whole text, of which SQLite may have been given only the end.
pub(crate) fn at_prepare(error: Sqlite, sql: &str) -> SourceError {
    match codes(&error).0 {
        ErrorCode::Unknown | ErrorCode::TooBig | ErrorCode::ApiMisuse | ErrorCode::TypeMismatch => {
            let refused = refused(&error, sql);
            if is_syntax(&refused.message) { SourceError::Syntax(refused) } else { SourceError::Statement(refused) }
        }
        _ => at_run(error, sql, 0, 0),
    }
}

/// While a statement runs and has pushed `row` rows.
pub(crate) fn at_run(error: Sqlite, sql: &str, row: u64, max_value_bytes: u64) -> SourceError {
    match codes(&error).0 {
        ErrorCode::TooBig => SourceError::Sink(SinkError::RowTooLarge { row, limit_bytes: max_value_bytes }),
        ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt => SourceError::Corrupt(Box::new(error)),
        ErrorCode::AuthorizationForStatementDenied | ErrorCode::ReadOnly => SourceError::ReadOnly(refused(&error, sql)),
        ErrorCode::OutOfMemory | ErrorCode::ApiMisuse | ErrorCode::InternalMalfunction => {
            SourceError::Internal(Some(Box::new(error)))
        }
        ErrorCode::DiskFull => SourceError::Unavailable(explained(
            error,
            "SQLite's temporary files do not fit on their disk; sort or group less, or set SQLITE_TMPDIR",
        )),
        ErrorCode::SystemIoFailure
        | ErrorCode::CannotOpen
        | ErrorCode::PermissionDenied
        | ErrorCode::DatabaseBusy
        | ErrorCode::DatabaseLocked
        | ErrorCode::FileLockingProtocolFailed => SourceError::Unavailable(Box::new(error)),
        _ => SourceError::Statement(refused(&error, sql)),
    }
}

/// The refusal in SQLite's own words.
pub(crate) fn refused(error: &Sqlite, sql: &str) -> StatementRefused {
    let message = match error {
        Sqlite::SqliteFailure(_, Some(message)) => message.as_str().into(),
        Sqlite::SqlInputError { msg, .. } => msg.as_str().into(),
        other => other.to_string().into(),
    };
    StatementRefused { native_code: code_name(codes(error).1), message, position: position(error, sql) }
}

/// Where in the whole text, in characters from 1.
fn position(error: &Sqlite, sql: &str) -> Option<u32> {
    let Sqlite::SqlInputError { sql: given, offset, .. } = error else { return None };
    let skipped = sql.len().checked_sub(given.len())?;
    let before = sql.get(..skipped.checked_add(usize::try_from(*offset).ok()?)?)?;
    u32::try_from(before.chars().count() + 1).ok()
}

/// SQLite has one code for "does not parse" and "no such table"; its parser has these words and no others (`parse.y`,
/// `tokenize.c`).
fn is_syntax(message: &str) -> bool {
    message.ends_with(": syntax error")
        || message.starts_with("incomplete input")
        || message.starts_with("unrecognized token:")
        || message.starts_with("parser stack overflow")
}

fn codes(error: &Sqlite) -> (ErrorCode, i32) {
    match error {
        Sqlite::SqliteFailure(error, _) | Sqlite::SqlInputError { error, .. } => (error.code, error.extended_code),
        _ => (ErrorCode::Unknown, ffi::SQLITE_ERROR),
    }
}

/// The name of an extended result code; an unknown one keeps its number beside the primary code's name.
pub(crate) fn code_name(code: i32) -> Box<str> {
    let primary = match code & 0xff {
        ffi::SQLITE_ERROR => "SQLITE_ERROR",
        ffi::SQLITE_INTERNAL => "SQLITE_INTERNAL",
        ffi::SQLITE_PERM => "SQLITE_PERM",
        ffi::SQLITE_ABORT => "SQLITE_ABORT",
        ffi::SQLITE_BUSY => "SQLITE_BUSY",
        ffi::SQLITE_LOCKED => "SQLITE_LOCKED",
        ffi::SQLITE_NOMEM => "SQLITE_NOMEM",
        ffi::SQLITE_READONLY => "SQLITE_READONLY",
        ffi::SQLITE_INTERRUPT => "SQLITE_INTERRUPT",
        ffi::SQLITE_IOERR => "SQLITE_IOERR",
        ffi::SQLITE_CORRUPT => "SQLITE_CORRUPT",
        ffi::SQLITE_NOTFOUND => "SQLITE_NOTFOUND",
        ffi::SQLITE_FULL => "SQLITE_FULL",
        ffi::SQLITE_CANTOPEN => "SQLITE_CANTOPEN",
        ffi::SQLITE_PROTOCOL => "SQLITE_PROTOCOL",
        ffi::SQLITE_SCHEMA => "SQLITE_SCHEMA",
        ffi::SQLITE_TOOBIG => "SQLITE_TOOBIG",
        ffi::SQLITE_CONSTRAINT => "SQLITE_CONSTRAINT",
        ffi::SQLITE_MISMATCH => "SQLITE_MISMATCH",
        ffi::SQLITE_MISUSE => "SQLITE_MISUSE",
        ffi::SQLITE_NOLFS => "SQLITE_NOLFS",
        ffi::SQLITE_AUTH => "SQLITE_AUTH",
        ffi::SQLITE_RANGE => "SQLITE_RANGE",
        ffi::SQLITE_NOTADB => "SQLITE_NOTADB",
        _ => "SQLITE_UNKNOWN",
    };
    match code {
        ffi::SQLITE_ERROR_MISSING_COLLSEQ => "SQLITE_ERROR_MISSING_COLLSEQ".into(),
        ffi::SQLITE_ERROR_RETRY => "SQLITE_ERROR_RETRY".into(),
        ffi::SQLITE_ERROR_SNAPSHOT => "SQLITE_ERROR_SNAPSHOT".into(),
        code if code < 0x100 => primary.into(),
        code => format!("{primary} ({code})").into(),
    }
}
