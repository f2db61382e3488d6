//! One statement that reads, with its parameters. What is not exactly that is refused, and nothing is bound by guess.

use rusqlite::types::{ToSqlOutput, Value, ValueRef};
use rusqlite::{Batch, Statement as Prepared, fallible_iterator::FallibleIterator};
use tidegate_core::port::{Parameter, SourceError, StatementRefused};

use crate::error::{at_prepare, refused};
use crate::session::Session;

/// The one statement of a text, which reads.
pub(crate) struct Checked<'s> {
    pub(crate) prepared: Prepared<'s>,
    /// Whether it reads a view, whose own text was not seen.
    pub(crate) reads_view: bool,
}

/// Prepares the one statement in `sql`.
pub(crate) fn prepare<'s>(session: &'s Session, sql: &str) -> Result<Checked<'s>, SourceError> {
    if let Some(at) = sql.find('\0') {
        // SQLite would take the text before it and ignore the rest.
        let position = u32::try_from(sql[..at].chars().count() + 1).ok();
        let message = "the text has a NUL character".into();
        return Err(SourceError::Syntax(StatementRefused { native_code: "SQLITE_ERROR".into(), message, position }));
    }
    session.take_denied();
    session.take_reads_view();
    let mut batch = Batch::new(&session.connection, sql);
    let prepared = match batch.next() {
        Ok(Some(prepared)) => prepared,
        Ok(None) => return Err(SourceError::Empty),
        Err(error) => return Err(denied(session, &error, sql).unwrap_or_else(|| at_prepare(error, sql))),
    };
    let reads_view = session.take_reads_view();
    // Whatever follows and is not space or a comment, even if it does not parse, is another statement.
    if !matches!(batch.next(), Ok(None)) {
        session.take_denied();
        return Err(SourceError::MultipleStatements);
    }
    if !prepared.readonly() || prepared.column_count() == 0 {
        let message = "the statement writes, or gives no columns".into();
        let native_code = "SQLITE_READONLY".into();
        return Err(SourceError::ReadOnly(StatementRefused { native_code, message, position: None }));
    }
    Ok(Checked { prepared, reads_view })
}

/// The refusal of the authorizer, in words that say what was tried.
pub(crate) fn denied(session: &Session, error: &rusqlite::Error, sql: &str) -> Option<SourceError> {
    let what = session.take_denied()?;
    let refused = refused(error, sql);
    Some(SourceError::ReadOnly(StatementRefused { native_code: "SQLITE_AUTH".into(), message: what, ..refused }))
}

/// Binds all parameters. Their number must be the statement's.
pub(crate) fn bind(prepared: &mut Prepared<'_>, parameters: &[Parameter]) -> Result<(), SourceError> {
    let expected = prepared.parameter_count();
    if expected != parameters.len() {
        return Err(SourceError::ParameterCount { expected, given: parameters.len() });
    }
    for (parameter, index) in parameters.iter().zip(1..) {
        let value = value(parameter).map_err(|reason| SourceError::Parameter { index, reason: reason.into() })?;
        prepared
            .raw_bind_parameter(index, value)
            .map_err(|error| SourceError::Parameter { index, reason: error.to_string().into() })?;
    }
    Ok(())
}

fn value(parameter: &Parameter) -> Result<ToSqlOutput<'_>, &'static str> {
    Ok(match parameter {
        Parameter::Null => ToSqlOutput::Owned(Value::Null),
        Parameter::Bool(value) => ToSqlOutput::Owned(Value::Integer(i64::from(*value))),
        Parameter::Integer(value) => ToSqlOutput::Owned(Value::Integer(*value)),
        Parameter::Number(text) => ToSqlOutput::Owned(Value::Real(real(text)?)),
        Parameter::Text(text) | Parameter::Json(text) => ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes())),
    })
}

/// A number that is no `i64`. SQLite has no decimals and no larger integers: an integer is refused rather than rounded; a
/// text with a fraction or an exponent is a double's, as everywhere in JSON.
fn real(text: &str) -> Result<f64, &'static str> {
    if !text.contains(['.', 'e', 'E']) {
        return Err("SQLite's integers have 64 bits and this one does not fit; send it as a string");
    }
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(value),
        Ok(_) => Err("the number is beyond the range of a double"),
        Err(_) => Err("the text is no number"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_bound_as_a_double_or_refused_and_never_rounded_from_an_integer() {
        assert_eq!(real("1.5"), Ok(1.5));
        assert_eq!(real("1e3"), Ok(1000.0));
        assert_eq!(real("-2.5E-1"), Ok(-0.25));
        for bad in ["9223372036854775808", "-9223372036854775809", "1e400", "1.2.3", "e", ""] {
            assert!(real(bad).is_err(), "{bad}");
        }
    }
}
