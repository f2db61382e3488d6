//! Promises about what a statement may be and how it is refused. Nothing about how it runs.

use tidegate_core::port::{ColumnType, Parameter, SourceError};

use super::{ALL, QuerySourceWorld, all, fresh, items, open, refusal, rows, statement, statement_with};
use crate::cell::OwnedCell;
use crate::wait::within;

/// A statement that writes is refused as such, and nothing is written, not even in the snapshot's own view.
pub async fn a_statement_that_writes_is_refused_and_nothing_is_written<W: QuerySourceWorld>() {
    let world = fresh!(W, 5);
    let snapshot = open(&*world.source()).await;
    for sql in W::WRITES {
        let error = refusal(&*snapshot, &statement(sql)).await;
        assert!(matches!(error, SourceError::ReadOnly(_)), "{sql}: {error}");
    }
    assert_eq!(all(&*snapshot).await, items(5));
    assert_eq!(all(&*open(&*world.source()).await).await, items(5));
}

/// More than one statement is refused; one with a semicolon, space and comments after it is one.
pub async fn several_statements_are_refused<W: QuerySourceWorld>() {
    let world = fresh!(W, 3);
    let snapshot = open(&*world.source()).await;
    for sql in ["select 1; select 2", "select id from item; -- and\n delete from item", "select 1;;select 2"] {
        let error = refusal(&*snapshot, &statement(sql)).await;
        assert!(matches!(error, SourceError::MultipleStatements), "{sql}: {error}");
    }
    for tail in [";", " ; \n\t", "; -- the end", "; /* the\nend */ -- of it\n", "-- ; select 2", " /* ; select 2 */"] {
        let given = rows(&*snapshot, &statement(&format!("{ALL}{tail}"))).await;
        assert_eq!(given.unwrap_or_else(|error| panic!("{tail:?}: {error}")), items(3));
    }
    let given = rows(&*snapshot, &statement("select ';', 1")).await.expect("a semicolon in a string is text");
    assert_eq!(given.len(), 1);
}

/// Space and comments are no statement.
pub async fn a_text_without_a_statement_is_refused<W: QuerySourceWorld>() {
    let world = fresh!(W, 1);
    let snapshot = open(&*world.source()).await;
    for sql in ["", " ", "\n\t ", "-- nothing", "/* nothing */", ";", " ; ", "-- a\n/* b */ ; "] {
        let error = refusal(&*snapshot, &statement(sql)).await;
        assert!(matches!(error, SourceError::Empty), "{sql:?}: {error}");
    }
}

/// What does not parse is `Syntax`, with the database's words.
pub async fn a_syntax_error_is_told_from_a_refusal<W: QuerySourceWorld>() {
    let world = fresh!(W, 1);
    let snapshot = open(&*world.source()).await;
    for sql in ["selec id from item", "select id from from item", "select (1", "select 'a"] {
        match refusal(&*snapshot, &statement(sql)).await {
            SourceError::Syntax(refused) => assert!(!refused.message.is_empty() && !refused.native_code.is_empty()),
            error => panic!("{sql}: {error}"),
        }
    }
}

/// What parses and names what is not there is `Statement`.
pub async fn an_unknown_table_is_refused<W: QuerySourceWorld>() {
    let world = fresh!(W, 1);
    let snapshot = open(&*world.source()).await;
    for sql in
        ["select id from no_such_table", "select no_such_column from item", "select no_such_function(id) from item"]
    {
        let error = refusal(&*snapshot, &statement(sql)).await;
        assert!(matches!(error, SourceError::Statement(_)), "{sql}: {error}");
    }
}

/// Too few and too many parameters are refused with both numbers.
pub async fn the_number_of_parameters_is_checked<W: QuerySourceWorld>() {
    let world = fresh!(W, 5);
    let snapshot = open(&*world.source()).await;
    let sql = format!("select id from item where id = {} or id = {}", W::parameter(1), W::parameter(2));
    for given in [1, 3] {
        let statement = statement_with(&sql, vec![Parameter::Integer(1); given]);
        // A description needs no values, so a source may leave the check to the run.
        match rows(&*snapshot, &statement).await {
            Err(SourceError::ParameterCount { expected: 2, given: counted }) => assert_eq!(counted, given),
            outcome => panic!("{given} parameters for 2: {outcome:?}"),
        }
    }
}

/// A parameter is data, whatever stands in it; NULL is NULL.
pub async fn parameters_are_bound_as_data<W: QuerySourceWorld>() {
    let world = fresh!(W, 5);
    world.write("insert into item (id, name, n) values (6, '''; drop table item; --', null)").await;
    let snapshot = open(&*world.source()).await;
    let by_id = format!("select id from item where id = {}", W::parameter(1));
    let by_name = format!("select id from item where name = {}", W::parameter(1));
    let cases = [
        (&by_id, Parameter::Integer(4), vec![vec![OwnedCell::Integer(4)]]),
        (&by_name, Parameter::Text("item 2".into()), vec![vec![OwnedCell::Integer(2)]]),
        (&by_name, Parameter::Text("'; drop table item; --".into()), vec![vec![OwnedCell::Integer(6)]]),
        (&by_id, Parameter::Null, vec![]),
    ];
    for (sql, parameter, expected) in cases {
        let given = rows(&*snapshot, &statement_with(sql, vec![parameter.clone()])).await;
        assert_eq!(given.unwrap_or_else(|error| panic!("{parameter:?}: {error}")), expected, "{parameter:?}");
    }
}

/// Names and types of the columns, without a run.
pub async fn describe_gives_the_columns_without_running<W: QuerySourceWorld>() {
    let world = fresh!(W, 5);
    let snapshot = open(&*world.source()).await;
    let description = within("a description", snapshot.describe(&statement(ALL))).await.expect("it is a statement");
    let columns: Vec<_> = description.columns.iter().map(|column| (&*column.name, column.kind)).collect();
    assert_eq!(columns, [("id", ColumnType::Integer), ("name", ColumnType::Text), ("n", ColumnType::Integer)]);
    assert!(description.columns.iter().all(|column| !column.native_type.is_empty()));
    assert!(description.columns[2].nullable, "n may be NULL");
    let endless = within("a description", snapshot.describe(&statement(W::ENDLESS))).await.expect("it is a statement");
    assert_eq!(endless.columns.len(), 1);
}

/// Two columns of one name are two columns.
pub async fn a_column_name_given_twice_gives_two_cells<W: QuerySourceWorld>() {
    let world = fresh!(W, 1);
    let snapshot = open(&*world.source()).await;
    let twice = statement("select id as x, name as x from item");
    let description = within("a description", snapshot.describe(&twice)).await.expect("it is a statement");
    assert_eq!(description.columns.iter().map(|column| &*column.name).collect::<Vec<_>>(), ["x", "x"]);
    let given = rows(&*snapshot, &twice).await.expect("no error");
    assert_eq!(given, [[OwnedCell::Integer(1), OwnedCell::text("item 1")]]);
}

/// After a refusal of any kind the snapshot is the same, pinned and usable.
pub async fn a_refused_statement_leaves_the_snapshot_usable<W: QuerySourceWorld>() {
    let world = fresh!(W, 8);
    let snapshot = open(&*world.source()).await;
    world.write("delete from item where id = 1").await;
    for sql in ["selec", "select 1; select 2", "", "select x from item", "delete from item"] {
        refusal(&*snapshot, &statement(sql)).await;
        assert_eq!(all(&*snapshot).await, items(8), "after {sql:?}");
    }
}
