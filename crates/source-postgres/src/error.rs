//! What the driver and the server report, as [`SourceError`]. The kind is told from SQLSTATE and from the server's routine
//! name, never from the words of a message: those are in the server's language.

use tidegate_core::port::{Cause, SourceError, StatementRefused};
use tokio_postgres::Error;
use tokio_postgres::error::{DbError, ErrorPosition};

/// How many characters stand before the user's statement in what was sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Prefix(pub(crate) u32);

impl Prefix {
    /// The user's statement was sent as it is.
    pub(crate) const NONE: Self = Self(0);
}

/// The failure of a statement on an open snapshot.
pub(crate) fn statement_failed(error: Error, prefix: Prefix) -> SourceError {
    match error.as_db_error() {
        None => SourceError::SnapshotLost(Some(error.into())),
        Some(reported) if ends_the_session(reported) => SourceError::SnapshotLost(Some(error.into())),
        Some(reported) => refused(reported, prefix),
    }
}

/// The session, or the snapshot that it holds, is over: connection failures, a server that goes away, a terminated backend,
/// a time limit on the transaction, a standby that had to cancel it.
fn ends_the_session(reported: &DbError) -> bool {
    let code = reported.code().code();
    reported.severity() == "FATAL"
        || reported.severity() == "PANIC"
        || code.starts_with("08")
        || matches!(code, "57P01" | "57P02" | "57P03" | "57P04" | "57P05" | "25P03" | "25P04" | "40001" | "72000")
}

fn refused(reported: &DbError, prefix: Prefix) -> SourceError {
    let words = words(reported, prefix);
    match reported.code().code() {
        "42601" if is_second_statement(reported) => SourceError::MultipleStatements,
        "42601" => SourceError::Syntax(words),
        "25006" => SourceError::ReadOnly(words),
        // A data-modifying WITH, refused while a cursor is declared.
        "0A000" if reported.routine() == Some("transformDeclareCursorStmt") => SourceError::ReadOnly(words),
        _ => SourceError::Statement(words),
    }
}

/// The only syntax error that comes from the extended protocol itself.
fn is_second_statement(reported: &DbError) -> bool {
    reported.routine() == Some("exec_parse_message") && reported.position().is_none()
}

/// The server's own words, with the position in the user's statement.
pub(crate) fn words(reported: &DbError, prefix: Prefix) -> StatementRefused {
    let position = match reported.position() {
        Some(ErrorPosition::Original(position)) => position.checked_sub(prefix.0).filter(|position| *position > 0),
        // It lies in a query that the server ran by itself, inside a function.
        Some(ErrorPosition::Internal { .. }) | None => None,
    };
    let mut message = String::from(reported.message());
    for more in [reported.detail(), reported.hint()].into_iter().flatten() {
        message.push_str("; ");
        message.push_str(more);
    }
    StatementRefused { native_code: reported.code().code().into(), message: message.into(), position }
}

/// The number of the parameter whose text the server's input function did not take, from 1.
///
/// The server says it in the error's context (`unnamed portal parameter $2 = '...'`, in its language).
pub(crate) fn refused_parameter(reported: &DbError, count: usize) -> Option<usize> {
    if !matches!(reported.code().code().get(..2), Some("22" | "23")) || reported.position().is_some() {
        return None;
    }
    let (_, after) = reported.where_()?.lines().next_back()?.split_once('$')?;
    let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
    after[..digits].parse().ok().filter(|index| (1..=count).contains(index))
}

/// A statement that the server would run and a cursor cannot.
pub(crate) fn not_a_query() -> SourceError {
    SourceError::ReadOnly(StatementRefused {
        native_code: "25006".into(),
        message: "only SELECT, VALUES, TABLE and WITH ... SELECT can be streamed".into(),
        position: None,
    })
}

/// The database could not be reached, or did not let us in.
pub(crate) fn unavailable(cause: impl Into<Cause>) -> SourceError {
    SourceError::Unavailable(cause.into())
}
