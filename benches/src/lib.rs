//! Shared parts of the benchmarks: the rows that they encode, the servers that they start, the load that they put on them and
//! the report. What is measured and judged stands in the benchmarks themselves.
#![allow(clippy::disallowed_methods, reason = "benchmarks read the clock")]

pub mod http;
pub mod load;
pub mod memory;
#[cfg(feature = "peers")]
pub mod peer;
pub mod process;
pub mod report;
pub mod wire;

use bytes::BytesMut;
use serde::Serialize;
use tidegate_core::port::{Cell, CellWriter, Column, ColumnType};
use tidegate_frame::ndjson::{RowEncoder, RowShape};

/// A row of a shop's order table: about 170 bytes as a line.
#[derive(Debug, Clone, Serialize)]
pub struct Order {
    /// A dense key.
    pub id: i64,
    /// A foreign key.
    pub customer_id: i64,
    /// A name, nothing to escape.
    pub customer: String,
    /// A short text, nothing to escape.
    pub status: String,
    /// A double.
    pub total: f64,
    /// Whether it was paid.
    pub paid: bool,
    /// NULL in two of three rows.
    pub coupon: Option<String>,
    /// A sentence; in one of eight rows with a quotation mark and a line break.
    pub note: String,
}

/// `count` rows, the same in every run.
#[must_use]
pub fn orders(count: usize) -> Vec<Order> {
    (0..count)
        .map(|i| Order {
            id: i64::try_from(i).expect("a benchmark has few rows"),
            customer_id: i64::try_from(i * 7_919 % 100_000).expect("below 100,000"),
            customer: format!("Customer number {}", i * 31 % 997),
            status: ["new", "paid", "shipped", "returned"][i % 4].to_owned(),
            total: (i * 1_337 % 1_000_000) as f64 / 100.0,
            paid: i % 3 == 0,
            coupon: (i % 3 == 0).then(|| format!("SPRING{}", i % 50)),
            note: if i % 8 == 0 {
                "leave it with the \"neighbour\"\nor in the garage".to_owned()
            } else {
                "leave it at the door, the bell is broken".to_owned()
            },
        })
        .collect()
}

impl Order {
    /// Writes the row's cells, as a source does.
    pub fn write(&self, row: &mut dyn CellWriter) {
        row.cell(Cell::Integer(self.id));
        row.cell(Cell::Integer(self.customer_id));
        row.cell(Cell::Text(&self.customer));
        row.cell(Cell::Text(&self.status));
        row.cell(Cell::Real(self.total));
        row.cell(Cell::Bool(self.paid));
        row.cell(self.coupon.as_deref().map_or(Cell::Null, Cell::Text));
        row.cell(Cell::Text(&self.note));
    }
}

/// The columns of [`Order`].
#[must_use]
pub fn columns() -> Vec<Column> {
    [
        ("id", ColumnType::Integer),
        ("customer_id", ColumnType::Integer),
        ("customer", ColumnType::Text),
        ("status", ColumnType::Text),
        ("total", ColumnType::Real),
        ("paid", ColumnType::Boolean),
        ("coupon", ColumnType::Text),
        ("note", ColumnType::Text),
    ]
    .map(|(name, kind)| Column { name: name.into(), kind, nullable: true, native_type: "".into() })
    .to_vec()
}

/// The encoder for [`Order`].
#[must_use]
pub fn encoder() -> RowEncoder {
    RowEncoder::new(&columns(), RowShape::Object).expect("no name comes twice")
}

/// Every row as a line.
#[must_use]
pub fn lines(orders: &[Order]) -> BytesMut {
    let encoder = encoder();
    let mut lines = BytesMut::new();
    for order in orders {
        encoder
            .encode(&mut lines, usize::MAX, &mut |row| {
                order.write(row);
                Ok(())
            })
            .expect("one cell a column, and no bound");
    }
    lines
}
