//! What the server and the connection report, as [`ChangeSourceError`]. Told apart by SQLSTATE, never by words.

use tidegate_core::port::{Cause, ChangeSourceError};
use tokio_postgres::Error;

use super::lsn::Lsn;
use super::wire::WireError;

/// A person must mend it.
pub(crate) fn setup(code: &'static str, problem: impl Into<Box<str>>) -> ChangeSourceError {
    ChangeSourceError::Setup { problem: problem.into(), code }
}

pub(crate) fn unavailable(cause: impl Into<Cause>) -> ChangeSourceError {
    ChangeSourceError::Unavailable(cause.into())
}

pub(crate) fn unreadable(cause: impl Into<Cause>) -> ChangeSourceError {
    ChangeSourceError::Unreadable(cause.into())
}

/// Records after `from` are lost.
pub(crate) fn lost(from: Lsn, reason: impl Into<Box<str>>) -> ChangeSourceError {
    ChangeSourceError::Lost { from: from.position(), reason: reason.into() }
}

/// A failure of the driver.
pub(crate) fn driver(error: Error) -> ChangeSourceError {
    let Some(reported) = error.as_db_error() else { return unavailable(error) };
    let (code, words) = (reported.code().code().to_owned(), reported.message().to_owned());
    refused(&code, &words, error)
}

/// A failure of a replication connection.
pub(crate) fn wire(error: WireError) -> ChangeSourceError {
    match error {
        WireError::Server(reported) => {
            let (code, words) = (reported.code.clone(), reported.message.clone());
            refused(&code, &words, reported)
        }
        WireError::Unsupported(what) => setup(
            "authentication_unsupported",
            format!(
                "the server wants {what} for the replication connection: set up a password (SCRAM-SHA-256) or trust"
            ),
        ),
        WireError::TooLarge { bytes } => setup(
            "change_too_large",
            format!("a change of {bytes} bytes is more than the source's max_row_bytes allows: raise it"),
        ),
        WireError::Malformed(_) => unreadable(error),
        WireError::Io(_) | WireError::Connect(_) | WireError::Closed => unavailable(error),
    }
}

fn refused(code: &str, words: &str, cause: impl Into<Cause>) -> ChangeSourceError {
    let mend = |stable, advice: &str| setup(stable, format!("{words} ({advice})"));
    match (code, code.get(..2).unwrap_or_default()) {
        ("42501", _) => mend(
            "permission_denied",
            "the role needs REPLICATION, SELECT on the published tables, and to make a publication CREATE on the database and \
             the ownership of its tables",
        ),
        (_, "28") => mend("login_refused", "see the user and the password of the URL, and pg_hba.conf"),
        ("3D000", _) => mend("database_missing", "see the URL"),
        ("42704", _) => {
            mend("publication_missing", "make the publication before the slot: the slot reads it as of each change")
        }
        ("42P01" | "42703" | "3F000", _) => mend(
            "table_altered",
            "a table was dropped or altered while it was copied; it goes on by itself where the publication no longer has it",
        ),
        ("55006", _) => ChangeSourceError::InUse { holder: words.into() },
        ("53400", _) => {
            mend("replication_slots_exhausted", "raise max_replication_slots, or drop a slot that nobody needs")
        }
        (_, "08" | "40" | "53" | "55" | "57" | "58" | "XX") => unavailable(cause),
        _ => mend("server_refused", "SQLSTATE of the server, and nothing that is known here"),
    }
}
