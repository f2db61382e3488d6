//! Reads a statement and judges whether its result can be resumed: whether its rows have one possible order on a
//! pinned snapshot. The judgement is made on the parsed statement and on the catalogue's unique keys, never on text.
//! It never refuses a statement: what the parser does not know is left to the database and is not resumable.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use sqlparser::ast::{Expr, Function, ObjectName, Query, SetExpr, Statement as Ast, TableFactor, Visit, Visitor};
use sqlparser::dialect::{Dialect as ParserDialect, PostgreSqlDialect, SQLiteDialect};
use sqlparser::keywords::Keyword;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::{Token, Tokenizer};
use tidegate_core::port::{Catalogue, CatalogueQuery, Dialect, RelationName, Volatility};

mod order;
#[cfg(test)]
mod tests;

/// Why a result cannot be resumed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotResumable {
    /// The parser does not know the statement.
    #[error("not_a_plain_query: only a SELECT that the server can read is resumable")]
    NotAPlainQuery,
    /// WITH.
    #[error("common_table_expression: a result that reads from WITH has no unique key; select from tables")]
    CommonTableExpression,
    /// UNION, INTERSECT, EXCEPT, VALUES.
    #[error("set_operation: UNION, INTERSECT, EXCEPT and VALUES have no unique key")]
    SetOperation,
    /// A window function.
    #[error("window_function: the result of a window function can depend on ties")]
    WindowFunction,
    /// An aggregate whose value depends on the order of its input.
    #[error("order_sensitive_aggregate: {function}() depends on the order in which it reads rows")]
    OrderSensitiveAggregate {
        /// Which.
        function: Box<str>,
    },
    /// A function that can answer differently the next time.
    #[error("volatile_function: {function}() can give another value when the query is run again")]
    VolatileFunction {
        /// Which.
        function: Box<str>,
    },
    /// A function that is not in the catalogue.
    #[error("unknown_function: it is not known whether {function}() gives the same value when the query is run again")]
    UnknownFunction {
        /// Which.
        function: Box<str>,
    },
    /// Something in FROM that is no table.
    #[error("not_a_table: {relation} is not a table of the database, so no unique key of it is known")]
    NotATable {
        /// What.
        relation: Box<str>,
    },
    /// A subquery or a function in FROM.
    #[error("derived_table: a subquery or a function in FROM has no unique key; select from tables")]
    DerivedTable,
    /// A join whose rows are not pairs of rows.
    #[error("join: this kind of join has no unique key")]
    Join,
    /// TABLESAMPLE.
    #[error("sample: a sample can have other rows when the query is run again")]
    Sample,
    /// LIMIT or DISTINCT ON in a subquery, or DISTINCT ON.
    #[error("limit_in_subquery: which rows LIMIT or DISTINCT ON picks in a subquery can depend on ties")]
    LimitInSubquery,
    /// DISTINCT ON, GROUP BY ALL, ROLLUP and the like.
    #[error("unsupported_clause: {clause} is not judged; order by a unique key without it")]
    UnsupportedClause {
        /// Which.
        clause: &'static str,
    },
    /// There is no ORDER BY.
    #[error("no_order: add ORDER BY with every column of a unique key of each table")]
    NoOrder,
    /// ORDER BY does not fix the order.
    #[error("order_not_unique: ORDER BY must name every column of a unique key of {relation}{hint}")]
    OrderNotUnique {
        /// Of which relation.
        relation: Box<str>,
        /// For example ` (such as id)`.
        hint: Box<str>,
    },
    /// GROUP BY or DISTINCT has an expression that ORDER BY does not name.
    #[error("order_not_unique: ORDER BY must name every expression of {clause}")]
    OrderMissesGroup {
        /// GROUP BY or DISTINCT.
        clause: &'static str,
    },
}

/// A statement that the parser read as one query.
#[derive(Debug)]
pub(crate) struct ReadQuery {
    query: Box<Query>,
    dialect: Dialect,
    relations: BTreeSet<RelationName>,
    functions: BTreeSet<Box<str>>,
    obstacle: Option<NotResumable>,
}

/// Operators and keywords that a statement may have to be judged. The parser reads a chain of them in a loop and builds a tree as
/// deep as the chain; walking and dropping that takes stack in proportion. SQLite's own bound of depth is 1,000 too.
const LINKS_MAX: usize = 1_000;

/// Whether the token can make the tree deeper. What only makes it wider cannot, nor can brackets: the parser bounds those.
fn may_deepen(token: &Token) -> bool {
    match token {
        Token::Word(word) => !matches!(word.keyword, Keyword::NoKeyword | Keyword::AS | Keyword::NULL | Keyword::NAME),
        Token::Whitespace(_)
        | Token::Comma
        | Token::Period
        | Token::LParen
        | Token::RParen
        | Token::SemiColon
        | Token::EOF
        | Token::Number(..)
        | Token::Placeholder(_)
        | Token::SingleQuotedString(_) => false,
        _ => true,
    }
}

/// The statement as a query, or `None` where the parser does not know it. Cost: linear in the text; nesting is bounded by
/// the parser.
pub(crate) fn read(sql: &str, dialect: Dialect) -> Option<ReadQuery> {
    let sqlite = SQLiteDialect {};
    let postgres = PostgreSqlDialect {};
    let dialect_of_parser: &dyn ParserDialect = match dialect {
        Dialect::Sqlite => &sqlite,
        Dialect::Postgres => &postgres,
        _ => return None,
    };
    let tokens = Tokenizer::new(dialect_of_parser, sql).tokenize().ok()?;
    if tokens.iter().filter(|token| may_deepen(token)).count() > LINKS_MAX {
        return None;
    }
    let mut statements = Parser::new(dialect_of_parser).with_tokens(tokens).parse_statements().ok()?;
    let (Some(Ast::Query(query)), true) = (statements.pop(), statements.is_empty()) else { return None };
    let mut survey = Survey { dialect, relations: BTreeSet::new(), functions: BTreeSet::new(), depth: 0 };
    let obstacle = match query.visit(&mut survey) {
        ControlFlow::Break(reason) => Some(reason),
        ControlFlow::Continue(()) => None,
    };
    Some(ReadQuery { query, dialect, relations: survey.relations, functions: survey.functions, obstacle })
}

impl ReadQuery {
    /// What must be known of the database to judge.
    pub(crate) fn asks(&self) -> CatalogueQuery {
        CatalogueQuery {
            relations: self.relations.iter().cloned().collect(),
            functions: self.functions.iter().filter(|name| self.known(name).is_none()).cloned().collect(),
        }
    }

    /// Whether the rows have one possible order, by these facts.
    pub(crate) fn judge(&self, catalogue: &Catalogue) -> Result<(), NotResumable> {
        if let Some(obstacle) = &self.obstacle {
            return Err(obstacle.clone());
        }
        for function in &self.functions {
            let volatility = self.known(function).or_else(|| {
                catalogue.functions.iter().find(|(name, _)| name == function).map(|(_, volatility)| *volatility)
            });
            match volatility {
                Some(Volatility::Immutable | Volatility::Stable) => {}
                Some(Volatility::Volatile) => {
                    return Err(NotResumable::VolatileFunction { function: function.clone() });
                }
                None => return Err(NotResumable::UnknownFunction { function: function.clone() }),
            }
        }
        for relation in &self.relations {
            let known = catalogue.relations.iter().find(|(name, _)| name == relation);
            if !known.is_some_and(|(_, facts)| facts.is_table) {
                return Err(NotResumable::NotATable { relation: relation.name.clone() });
            }
        }
        order::judge(&self.query, self.dialect, catalogue)
    }

    /// What is known of a function that stands in the grammar and not in the catalogue.
    fn known(&self, function: &str) -> Option<Volatility> {
        const TIME: [&str; 5] = ["current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"];
        const GRAMMAR: [&str; 7] = ["coalesce", "nullif", "greatest", "least", "grouping", "exists", "cast"];
        const SESSION: [&str; 6] =
            ["current_user", "session_user", "user", "current_role", "current_catalog", "current_schema"];
        match self.dialect {
            // In a PostgreSQL transaction the time stands still; SQLite reads the clock at every run.
            Dialect::Postgres if TIME.contains(&function) || SESSION.contains(&function) => Some(Volatility::Stable),
            Dialect::Postgres if GRAMMAR.contains(&function) => Some(Volatility::Immutable),
            Dialect::Sqlite if TIME.contains(&function) => Some(Volatility::Volatile),
            _ => None,
        }
    }
}

/// Walks the whole statement once: collects relations and functions, and stops at what rules a resume out.
struct Survey {
    dialect: Dialect,
    relations: BTreeSet<RelationName>,
    functions: BTreeSet<Box<str>>,
    depth: usize,
}

impl Visitor for Survey {
    type Break = NotResumable;

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<NotResumable> {
        self.depth += 1;
        if query.with.is_some() {
            return ControlFlow::Break(NotResumable::CommonTableExpression);
        }
        if self.depth > 1 && (query.limit_clause.is_some() || query.fetch.is_some()) {
            return ControlFlow::Break(NotResumable::LimitInSubquery);
        }
        if !query.pipe_operators.is_empty() || query.for_clause.is_some() {
            return ControlFlow::Break(NotResumable::NotAPlainQuery);
        }
        if self.depth == 1 && !matches!(*query.body, SetExpr::Select(_)) {
            return ControlFlow::Break(NotResumable::SetOperation);
        }
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<NotResumable> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<NotResumable> {
        match relation_name(relation, self.dialect) {
            Some(name) => {
                self.relations.insert(name);
                ControlFlow::Continue(())
            }
            None => ControlFlow::Break(NotResumable::NotATable { relation: relation.to_string().into() }),
        }
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<NotResumable> {
        match factor {
            TableFactor::Table { args: None, sample: None, version: None, with_ordinality: false, .. } => {
                ControlFlow::Continue(())
            }
            TableFactor::Table { sample: Some(_), .. } => ControlFlow::Break(NotResumable::Sample),
            TableFactor::NestedJoin { alias: None, .. } => ControlFlow::Continue(()),
            _ => ControlFlow::Break(NotResumable::DerivedTable),
        }
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<NotResumable> {
        match expr {
            Expr::Function(function) => self.function(function),
            Expr::Identifier(name) if name.quote_style.is_none() && self.dialect == Dialect::Sqlite => {
                let name = name.value.to_lowercase();
                if matches!(name.as_str(), "current_date" | "current_time" | "current_timestamp") {
                    return ControlFlow::Break(NotResumable::VolatileFunction { function: name.into() });
                }
                ControlFlow::Continue(())
            }
            _ => ControlFlow::Continue(()),
        }
    }
}

impl Survey {
    fn function(&mut self, function: &Function) -> ControlFlow<NotResumable> {
        const ORDER_SENSITIVE: [&str; 12] = [
            "array_agg",
            "group_concat",
            "json_agg",
            "json_group_array",
            "json_group_object",
            "json_object_agg",
            "jsonb_agg",
            "jsonb_group_array",
            "jsonb_group_object",
            "jsonb_object_agg",
            "string_agg",
            "xmlagg",
        ];
        if function.over.is_some() {
            return ControlFlow::Break(NotResumable::WindowFunction);
        }
        let Some(name) = function.name.0.last().and_then(|part| part.as_ident()) else {
            return ControlFlow::Break(NotResumable::UnknownFunction { function: function.name.to_string().into() });
        };
        let name: Box<str> = name.value.to_lowercase().into();
        if ORDER_SENSITIVE.contains(&&*name) {
            return ControlFlow::Break(NotResumable::OrderSensitiveAggregate { function: name });
        }
        self.functions.insert(name);
        ControlFlow::Continue(())
    }
}

/// An identifier by the dialect's rule of case.
fn folded(ident: &sqlparser::ast::Ident, dialect: Dialect) -> Box<str> {
    if dialect == Dialect::Sqlite || ident.quote_style.is_none() {
        ident.value.to_lowercase().into()
    } else {
        ident.value.as_str().into()
    }
}

fn relation_name(name: &ObjectName, dialect: Dialect) -> Option<RelationName> {
    let parts: Vec<Box<str>> =
        name.0.iter().map(|part| part.as_ident().map(|ident| folded(ident, dialect))).collect::<Option<_>>()?;
    match parts.as_slice() {
        [name] => Some(RelationName { schema: None, name: name.clone() }),
        [schema, name] => Some(RelationName { schema: Some(schema.clone()), name: name.clone() }),
        _ => None,
    }
}
