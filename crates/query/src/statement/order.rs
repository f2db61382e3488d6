//! Whether ORDER BY leaves one order: it names every column of a unique key of each table, or every expression of
//! GROUP BY or DISTINCT, or there is only one row. A pure function of the statement and the catalogue.

use sqlparser::ast::{
    Distinct, Expr, GroupByExpr, JoinOperator, OrderByExpr, OrderByKind, Query, Select, SelectItem, SetExpr,
    TableFactor, Value,
};
use tidegate_core::port::{Catalogue, Dialect, RelationFacts};

use super::{NotResumable, folded, relation_name};

/// A table in FROM under the name by which columns refer to it.
struct Relation<'a> {
    name: Box<str>,
    facts: &'a RelationFacts,
}

/// A plain column: whose, and which.
#[derive(PartialEq, Eq)]
struct ColumnOf {
    relation: usize,
    column: Box<str>,
}

pub(super) fn judge(query: &Query, dialect: Dialect, catalogue: &Catalogue) -> Result<(), NotResumable> {
    let SetExpr::Select(select) = &*query.body else { return Err(NotResumable::SetOperation) };
    let grouping: &[Expr] = match &select.group_by {
        GroupByExpr::Expressions(list, modifiers) if modifiers.is_empty() => list,
        _ => return Err(NotResumable::UnsupportedClause { clause: "GROUP BY with modifiers" }),
    };
    let relations = relations(select, dialect, catalogue)?;
    if grouping.is_empty() && one_row(select) {
        return Ok(());
    }
    let order: &[OrderByExpr] = match &query.order_by {
        None => return Err(NotResumable::NoOrder),
        Some(order) => match &order.kind {
            OrderByKind::Expressions(list) => list,
            OrderByKind::All(_) => return Err(NotResumable::UnsupportedClause { clause: "ORDER BY ALL" }),
        },
    };
    let order: Vec<&Expr> = order.iter().map(|item| resolve(&item.expr, select, dialect)).collect();
    let named = |expr: &Expr| order.iter().any(|ordered| same(ordered, expr, dialect));
    match &select.distinct {
        Some(Distinct::On(_)) => return Err(NotResumable::UnsupportedClause { clause: "DISTINCT ON" }),
        Some(Distinct::Distinct) => {
            let all = select.projection.iter().all(|item| match item {
                SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => named(expr),
                _ => false,
            });
            return if all { Ok(()) } else { Err(NotResumable::OrderMissesGroup { clause: "SELECT DISTINCT" }) };
        }
        Some(Distinct::All) | None => {}
    }
    if !grouping.is_empty() {
        let all = grouping.iter().all(|expr| named(resolve_group(expr, select, &relations, dialect)));
        return if all { Ok(()) } else { Err(NotResumable::OrderMissesGroup { clause: "GROUP BY" }) };
    }
    if relations.is_empty() {
        return Err(NotResumable::NoOrder);
    }
    let columns: Vec<ColumnOf> = order.iter().filter_map(|expr| column(expr, &relations, dialect)).collect();
    for (index, relation) in relations.iter().enumerate() {
        let ordered = |name: &str| {
            let name = if dialect == Dialect::Sqlite { name.to_lowercase().into() } else { name.into() };
            columns.contains(&ColumnOf { relation: index, column: name })
        };
        if !relation.facts.unique_keys.iter().any(|key| key.columns.iter().all(|name| ordered(name))) {
            let hint = match relation.facts.unique_keys.first() {
                Some(key) => format!(" (such as {})", key.columns.join(", ")),
                None => ", which has none that is free of NULL".into(),
            };
            return Err(NotResumable::OrderNotUnique { relation: relation.name.clone(), hint: hint.into() });
        }
    }
    Ok(())
}

fn relations<'a>(
    select: &Select,
    dialect: Dialect,
    catalogue: &'a Catalogue,
) -> Result<Vec<Relation<'a>>, NotResumable> {
    if !select.lateral_views.is_empty() || !select.connect_by.is_empty() || select.into.is_some() {
        return Err(NotResumable::NotAPlainQuery);
    }
    let mut found = Vec::new();
    let mut pending: Vec<_> = select.from.iter().collect();
    while let Some(table) = pending.pop() {
        let mut factors = vec![&table.relation];
        for join in &table.joins {
            match &join.join_operator {
                JoinOperator::Join(_)
                | JoinOperator::Inner(_)
                | JoinOperator::Left(_)
                | JoinOperator::LeftOuter(_)
                | JoinOperator::Right(_)
                | JoinOperator::RightOuter(_)
                | JoinOperator::FullOuter(_)
                | JoinOperator::CrossJoin(_) => factors.push(&join.relation),
                _ => return Err(NotResumable::Join),
            }
        }
        for factor in factors {
            match factor {
                TableFactor::Table { name, alias, args: None, .. } => {
                    let relation = relation_name(name, dialect).ok_or_else(|| not_a_table(&name.to_string()))?;
                    let facts = catalogue.relations.iter().find(|(known, _)| *known == relation);
                    let (_, facts) = facts.ok_or_else(|| not_a_table(&relation.name))?;
                    // A list of column aliases renames what ORDER BY can see: not worth following.
                    let name = match alias {
                        Some(alias) if alias.columns.is_empty() => folded(&alias.name, dialect),
                        Some(_) => return Err(NotResumable::DerivedTable),
                        None => relation.name,
                    };
                    found.push(Relation { name, facts });
                }
                TableFactor::NestedJoin { table_with_joins, alias: None } => pending.push(table_with_joins),
                _ => return Err(NotResumable::DerivedTable),
            }
        }
    }
    Ok(found)
}

fn not_a_table(name: &str) -> NotResumable {
    NotResumable::NotATable { relation: name.into() }
}

/// Whether there can be at most one row: every output is an aggregate, or a value without FROM and without a function
/// (a function without FROM may return a set).
fn one_row(select: &Select) -> bool {
    let outputs = || {
        select.projection.iter().map(|item| match item {
            SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => Some(expr),
            _ => None,
        })
    };
    outputs().all(|expr| expr.is_some_and(is_aggregate))
        || (select.from.is_empty() && outputs().all(|expr| expr.is_some_and(is_value)))
}

fn is_aggregate(expr: &Expr) -> bool {
    const AGGREGATES: [&str; 6] = ["avg", "count", "max", "min", "sum", "total"];
    match expr {
        Expr::Nested(inner) | Expr::Cast { expr: inner, .. } => is_aggregate(inner),
        Expr::Function(function) => {
            let name = function.name.0.last().and_then(|part| part.as_ident()).map(|ident| ident.value.to_lowercase());
            let one_argument = match &function.args {
                // min(a, b) is a scalar function in SQLite.
                sqlparser::ast::FunctionArguments::List(list) => list.args.len() == 1,
                _ => false,
            };
            one_argument && name.is_some_and(|name| AGGREGATES.contains(&name.as_str()))
        }
        _ => false,
    }
}

fn is_value(expr: &Expr) -> bool {
    match expr {
        Expr::Nested(inner) | Expr::Cast { expr: inner, .. } | Expr::UnaryOp { expr: inner, .. } => is_value(inner),
        Expr::BinaryOp { left, right, .. } => is_value(left) && is_value(right),
        Expr::Value(_) => true,
        _ => false,
    }
}

/// What a GROUP BY item stands for: a number for the output, a name for a column of a table before it stands for an output's
/// alias. In ORDER BY it is the other way round.
fn resolve_group<'a>(expr: &'a Expr, select: &'a Select, relations: &[Relation<'_>], dialect: Dialect) -> &'a Expr {
    match expr {
        Expr::Identifier(name) => {
            let name = folded(name, dialect);
            let is_column = relations.iter().any(|relation| has(relation, &name, dialect));
            if is_column { expr } else { resolve(expr, select, dialect) }
        }
        _ => resolve(expr, select, dialect),
    }
}

/// What an ORDER BY item stands for: an output's number or alias stands for the output.
fn resolve<'a>(expr: &'a Expr, select: &'a Select, dialect: Dialect) -> &'a Expr {
    match expr {
        Expr::Value(value) => {
            let Value::Number(number, _) = &value.value else { return expr };
            let before = |position: &usize| {
                // A wildcard stands for several outputs: what comes after it has no known number.
                select.projection.iter().take(*position).all(|item| output(item).is_some())
            };
            let position = number.parse::<usize>().ok().filter(|position| *position > 0).filter(before);
            position.and_then(|position| select.projection.get(position - 1)).and_then(output).unwrap_or(expr)
        }
        Expr::Identifier(name) => {
            let name = folded(name, dialect);
            let aliased = select.projection.iter().find_map(|item| match item {
                SelectItem::ExprWithAlias { expr, alias } if folded(alias, dialect) == name => Some(expr),
                _ => None,
            });
            aliased.unwrap_or(expr)
        }
        _ => expr,
    }
}

fn output(item: &SelectItem) -> Option<&Expr> {
    match item {
        SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => Some(expr),
        _ => None,
    }
}

/// Whether two expressions are the same text, apart from the case of bare names and a table's name before a column.
fn same(a: &Expr, b: &Expr, dialect: Dialect) -> bool {
    let last = |expr: &Expr| match expr {
        Expr::Identifier(name) => Some((None, folded(name, dialect))),
        Expr::CompoundIdentifier(parts) => {
            let name = parts.last().map(|name| folded(name, dialect))?;
            let table = parts.len().checked_sub(2).and_then(|at| parts.get(at)).map(|table| folded(table, dialect));
            Some((table, name))
        }
        _ => None,
    };
    match (last(a), last(b)) {
        (Some((table_a, name_a)), Some((table_b, name_b))) => {
            name_a == name_b && (table_a == table_b || table_a.is_none() || table_b.is_none())
        }
        (None, None) => a == b,
        _ => false,
    }
}

/// The plain column that an expression is, if it is one and it is clear whose.
fn column(expr: &Expr, relations: &[Relation<'_>], dialect: Dialect) -> Option<ColumnOf> {
    let (table, column) = match expr {
        Expr::Nested(inner) => return self::column(inner, relations, dialect),
        Expr::Identifier(name) => (None, folded(name, dialect)),
        Expr::CompoundIdentifier(parts) => match parts.as_slice() {
            [.., table, name] => (Some(folded(table, dialect)), folded(name, dialect)),
            _ => return None,
        },
        _ => return None,
    };
    let mut owners = relations.iter().enumerate().filter(|(_, relation)| match &table {
        Some(table) => relation.name == *table,
        None => has(relation, &column, dialect),
    });
    match (owners.next(), owners.next()) {
        (Some((relation, _)), None) => Some(ColumnOf { relation, column }),
        // Two relations have it: the database knows which is meant, this judge does not guess.
        _ => None,
    }
}

/// Whether a relation has a column of this name (folded by the dialect's rule).
fn has(relation: &Relation<'_>, column: &str, dialect: Dialect) -> bool {
    let named = |name: &str| {
        if dialect == Dialect::Sqlite { name.eq_ignore_ascii_case(column) } else { name == column }
    };
    relation.facts.columns.iter().any(|name| named(name))
        || relation.facts.unique_keys.iter().any(|key| key.columns.iter().any(|name| named(name)))
}
