//! What the rows of a table look like, and how they become JSON: by the same rules as the rows of a query. It never looks at the
//! database, and never invents a value that was not sent.

use std::sync::Arc;

use super::coverage::Order;
use super::pgoutput::Value;
use crate::shape::Shape;
use crate::value::{Reason, push_json, push_string};

/// A column, as the catalogue or the replication stream describes it.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    pub(crate) name: Box<str>,
    /// Whether it belongs to the key of the stream's records.
    pub(crate) key: bool,
    pub(crate) type_oid: u32,
    pub(crate) modifier: i32,
    /// As `format_type` prints it; empty where the type is gone.
    pub(crate) native_type: Box<str>,
    pub(crate) shape: Shape,
}

/// A table.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) oid: u32,
    /// `schema.table`.
    pub(crate) name: Box<str>,
    pub(crate) columns: Vec<Column>,
    /// The places of the key's columns; empty = no key.
    pub(crate) key: Vec<usize>,
    pub(crate) order: Vec<Order>,
    /// Changes when a column does.
    pub(crate) version: u64,
    /// The names as members of a JSON object: `"name":`.
    members: Vec<Box<str>>,
    headers: Arc<str>,
    copy_headers: Arc<str>,
}

/// The JSON of a row.
pub(crate) struct Row {
    pub(crate) json: Arc<str>,
    /// Columns that were not sent because they did not change.
    pub(crate) unchanged: Vec<usize>,
}

impl Table {
    pub(crate) fn new(oid: u32, name: Box<str>, columns: Vec<Column>) -> Self {
        let key: Vec<usize> = (0..columns.len()).filter(|at| columns[*at].key).collect();
        let order = key.iter().map(|at| order(columns[*at].type_oid)).collect();
        let version = version(&name, &columns);
        let member = |column: &Column| {
            let mut member = String::new();
            push_string(&mut member, &column.name);
            member.push(':');
            member.into_boxed_str()
        };
        let members = columns.iter().map(member).collect();
        let headers = format!("{{\"schema\":\"{version:016x}\"}}").into();
        let copy_headers = format!("{{\"schema\":\"{version:016x}\",\"snapshot\":true}}").into();
        Self { oid, name, columns, key, order, version, members, headers, copy_headers }
    }

    /// The headers of a plain change.
    pub(crate) fn headers(&self) -> Arc<str> {
        Arc::clone(&self.headers)
    }

    /// The headers of a row of the first copy.
    pub(crate) fn copy_headers(&self) -> Arc<str> {
        Arc::clone(&self.copy_headers)
    }

    /// The headers of a change that did not send some columns, or whose row had another key before.
    pub(crate) fn headers_with(&self, unchanged: &[usize], moved_from: Option<&str>) -> Arc<str> {
        if unchanged.is_empty() && moved_from.is_none() {
            return self.headers();
        }
        let mut headers = String::from(&self.headers[..self.headers.len() - 1]);
        if !unchanged.is_empty() {
            headers.push_str(",\"unchanged_toast\":[");
            for (place, at) in unchanged.iter().enumerate() {
                if place > 0 {
                    headers.push(',');
                }
                push_string(&mut headers, &self.columns[*at].name);
            }
            headers.push(']');
        }
        if let Some(key) = moved_from {
            headers.push_str(",\"moved_from\":");
            headers.push_str(key);
        }
        headers.push('}');
        headers.into()
    }

    /// A row as a JSON object. A column that was not sent is taken from `before` where that has it, else left out.
    pub(crate) fn row(&self, values: &[Value<'_>], before: Option<&[Value<'_>]>) -> Result<Row, Unreadable> {
        self.fits(values)?;
        let mut unchanged = Vec::new();
        let json = self.object(0..self.columns.len(), |at| match (values[at], before.map(|before| before[at])) {
            (Value::Unchanged, Some(value)) if value != Value::Unchanged => Some(value),
            (Value::Unchanged, _) => {
                unchanged.push(at);
                None
            }
            (value, _) => Some(value),
        })?;
        Ok(Row { json, unchanged })
    }

    /// The key as a JSON object, in the order of the table's columns.
    pub(crate) fn key(&self, values: &[&str]) -> Result<Option<Arc<str>>, Unreadable> {
        if self.key.is_empty() {
            return Ok(None);
        }
        let mut values = values.iter();
        self.object(self.key.iter().copied(), |_| values.next().map(|text| Value::Text(text))).map(Some)
    }

    /// The texts of the key's columns; those that were not sent are taken from `before`.
    pub(crate) fn key_texts<'a>(
        &self,
        values: &[Value<'a>],
        before: Option<&[Value<'a>]>,
    ) -> Result<Vec<&'a str>, Unreadable> {
        self.fits(values)?;
        let text = |at: &usize| match (values[*at], before.map(|before| before[*at])) {
            (Value::Text(text), _) | (Value::Unchanged, Some(Value::Text(text))) => Ok(text),
            _ => Err(self.unreadable(*at, "a column of the key has no value")),
        };
        self.key.iter().map(text).collect()
    }

    /// Whether there is a value for every column.
    pub(crate) fn fits(&self, values: &[Value<'_>]) -> Result<(), Unreadable> {
        if values.len() == self.columns.len() {
            return Ok(());
        }
        Err(self.unreadable(values.len(), "a row has another number of columns than its table"))
    }

    /// What the table looks like, as the value of a message.
    pub(crate) fn description(&self) -> Arc<str> {
        let mut json = format!("{{\"schema\":{{\"version\":\"{:016x}\",\"columns\":[", self.version);
        for (at, column) in self.columns.iter().enumerate() {
            json.push_str(if at > 0 { ",{\"name\":" } else { "{\"name\":" });
            push_string(&mut json, &column.name);
            json.push_str(",\"type\":");
            push_string(&mut json, &column.native_type);
            json.push_str(if column.key { ",\"key\":true}" } else { ",\"key\":false}" });
        }
        json.push_str("]}}");
        json.into()
    }

    fn object<'a>(
        &self,
        places: impl Iterator<Item = usize>,
        mut value: impl FnMut(usize) -> Option<Value<'a>>,
    ) -> Result<Arc<str>, Unreadable> {
        let mut json = String::with_capacity(16 * self.columns.len());
        json.push('{');
        for at in places {
            let Some(value) = value(at) else { continue };
            if json.len() > 1 {
                json.push(',');
            }
            json.push_str(&self.members[at]);
            match value {
                Value::Text(text) => {
                    push_json(&mut json, &self.columns[at].shape, text).map_err(|reason| self.unreadable(at, reason))?
                }
                Value::Null | Value::Unchanged => json.push_str("null"),
            }
        }
        json.push('}');
        Ok(json.into())
    }

    fn unreadable(&self, at: usize, reason: Reason) -> Unreadable {
        let column = self.columns.get(at).map_or_else(|| at.to_string().into(), |column| column.name.clone());
        Unreadable { table: self.name.clone(), column, reason }
    }
}

/// A value that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("table {table}, column {column}: {reason}")]
pub(crate) struct Unreadable {
    table: Box<str>,
    column: Box<str>,
    reason: Reason,
}

fn order(type_oid: u32) -> Order {
    // int8, int2, int4, oid
    if matches!(type_oid, 20 | 21 | 23 | 26) { Order::Integer } else { Order::Bytes }
}

/// FNV-1a: the same in every version of this program, as it is stored.
fn version(name: &str, columns: &[Column]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut write = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    write(name.as_bytes());
    for column in columns {
        write(&[0, u8::from(column.key)]);
        write(column.name.as_bytes());
        write(&[0]);
        write(&column.type_oid.to_be_bytes());
        write(&column.modifier.to_be_bytes());
    }
    hash
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn table(key: bool) -> Table {
        let column = |name: &str, key, type_oid, shape| Column {
            name: name.into(),
            key,
            type_oid,
            modifier: -1,
            native_type: "t".into(),
            shape,
        };
        let columns = vec![
            column("id", key, 20, Shape::Integer),
            column("na\"me", false, 25, Shape::Text),
            column("ok", false, 16, Shape::Boolean),
        ];
        Table::new(7, "public.item".into(), columns)
    }

    #[test]
    fn a_row_is_an_object_and_what_was_not_sent_is_left_out_and_named() {
        let table = table(true);
        let row = table.row(&[Value::Text("1"), Value::Unchanged, Value::Null], None).unwrap();
        assert_eq!(&*row.json, r#"{"id":1,"ok":null}"#);
        let version = format!("{:016x}", table.version);
        assert_eq!(
            &*table.headers_with(&row.unchanged, Some(r#"{"id":2}"#)),
            format!(r#"{{"schema":"{version}","unchanged_toast":["na\"me"],"moved_from":{{"id":2}}}}"#)
        );
        let before = [Value::Text("1"), Value::Text("x"), Value::Text("t")];
        let row = table.row(&[Value::Text("1"), Value::Unchanged, Value::Null], Some(&before)).unwrap();
        assert_eq!((&*row.json, row.unchanged.len()), (r#"{"id":1,"na\"me":"x","ok":null}"#, 0));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let table = table(true);
        assert!(table.row(&[Value::Null], None).is_err());
        assert!(table.row(&[Value::Text("x"), Value::Null, Value::Null], None).is_err());
        assert!(table.key_texts(&[Value::Null, Value::Null, Value::Null], None).is_err());
    }
}
