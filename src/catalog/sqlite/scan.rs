//! A page of a listing out of SQLite, in bounded time.
//!
//! Every order has an index within each remote and class; a page merges one walk for each of those that the filter
//! leaves. What the walks cannot skip is filtered row by row, up to a number of rows: then the page ends early, with a
//! position from which the next one goes on.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use rusqlite::types::Value;
use rusqlite::{Connection, Row, Rows, Statement, params, params_from_iter};

use crate::catalog::backend::{Found, Scan, Totals};
use crate::catalog::column::{class_number, number};
use crate::catalog::cursor::{Position, SortValue};
use crate::catalog::query::{Filter, Sort, SortField};
use crate::catalog::record::{Class, Record};

/// The columns of a record, in the order in which [`read_record`] expects them. The row number comes last.
pub(super) const COLUMNS: &str = "remote, path, form, class, size, digest, content_type, etag, last_modified, \
    published_at, first_seen, last_seen, hits, fresh_until, key, id";
/// Rows that one page examines.
pub(super) const SCAN_ROWS: usize = 15_000;
/// How long matching rows are counted.
const COUNT_LIMIT: Duration = Duration::from_secs(2);

/// The rows of one remote and class.
struct Part {
    remote: String,
    class: i64,
    totals: Totals,
}

/// Answers a question from one state of the database.
pub(super) fn run(connection: &mut Connection, scan: &Scan) -> rusqlite::Result<Found> {
    let transaction = connection.transaction()?;
    let parts = parts(&transaction, &scan.filter)?;
    let mut found = page(&transaction, &parts, scan)?;
    if scan.totals {
        found.totals = totals(&transaction, &parts, &scan.filter)?;
    }
    Ok(found)
}

fn parts(connection: &Connection, filter: &Filter) -> rusqlite::Result<Vec<Part>> {
    let mut statement = connection.prepare_cached(
        "SELECT remote, class, objects, bytes FROM part
         WHERE objects > 0 AND (?1 IS NULL OR remote = ?1) AND (?2 IS NULL OR class = ?2)",
    )?;
    let parts = statement.query_map(params![filter.remote, filter.class.map(class_number)], |row| {
        let unsigned = |column: usize| Ok::<_, rusqlite::Error>(u64::try_from(row.get::<_, i64>(column)?).unwrap_or(0));
        Ok(Part {
            remote: row.get(0)?,
            class: row.get(1)?,
            totals: Totals {
                objects: unsigned(2)?,
                bytes: unsigned(3)?,
            },
        })
    })?;
    let is_meant = |part: &rusqlite::Result<Part>| part.as_ref().map_or(true, |part| filter.is_among(&part.remote));
    parts.filter(is_meant).collect()
}

/// A walk's next row.
struct Head {
    at: Position,
    /// `None` if the filter does not want it.
    record: Option<Record>,
    walk: usize,
    descending: bool,
}

impl Ord for Head {
    /// A heap gives the greatest first, so what is to come first is the greatest.
    fn cmp(&self, other: &Self) -> Ordering {
        let order = self.at.cmp(&other.at);
        if self.descending { order } else { order.reverse() }
    }
}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Head {}

fn page(connection: &Connection, parts: &[Part], scan: &Scan) -> rusqlite::Result<Found> {
    let gather = scan.sort.field != SortField::Path
        && scan.filter.prefix.is_some()
        && is_short(connection, parts, &scan.filter)?;
    let mut statements: Vec<Statement<'_>> = Vec::new();
    let mut values = Vec::new();
    for part in parts {
        for from in begin(scan.after.as_ref()) {
            let (sql, bound) = walk(part, scan, gather, from);
            statements.push(connection.prepare(&sql)?);
            values.push(bound);
        }
    }
    let mut walks: Vec<Rows<'_>> = Vec::with_capacity(statements.len());
    for (statement, bound) in statements.iter_mut().zip(values) {
        walks.push(statement.query(params_from_iter(bound))?);
    }
    let mut heads = BinaryHeap::with_capacity(walks.len());
    for (number, walk) in walks.iter_mut().enumerate() {
        heads.extend(head(walk, number, scan)?);
    }

    let mut found = Found::default();
    // Everything up to here has been examined.
    let mut examined_to = None;
    let mut examined = 0;
    while let Some(next) = heads.pop() {
        // With a full page, goes on to the next row that matches: so `next` is set only if there is one, as far as
        // the bound allows to know.
        if examined == SCAN_ROWS || (found.records.len() == scan.limit && next.record.is_some()) {
            found.next = examined_to;
            break;
        }
        examined += 1;
        found.records.extend(next.record);
        examined_to = Some(next.at);
        heads.extend(head(&mut walks[next.walk], next.walk, scan)?);
    }
    Ok(found)
}

/// Whether so few rows have the prefix that they can be sorted for every page.
fn is_short(connection: &Connection, parts: &[Part], filter: &Filter) -> rusqlite::Result<bool> {
    let mut left = number(SCAN_ROWS as u64);
    for part in parts {
        let (mut clause, mut values) = start(part);
        prefix_range(filter, &mut clause, &mut values);
        values.push(left.into());
        let sql = format!("SELECT count(*) FROM (SELECT 1 FROM artifact INDEXED BY artifact_path {clause} LIMIT ?)");
        left -= connection
            .prepare_cached(&sql)?
            .query_row(params_from_iter(values), |row| row.get::<_, i64>(0))?;
        if left <= 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

fn start(part: &Part) -> (String, Vec<Value>) {
    (
        "WHERE remote = ? AND class = ?".to_owned(),
        vec![part.remote.clone().into(), part.class.into()],
    )
}

fn prefix_range(filter: &Filter, clause: &mut String, values: &mut Vec<Value>) {
    let (low, high) = range(filter, SortField::Path);
    add(clause, values, "path >= ?", low);
    add(clause, values, "path < ?", high);
}

fn add(clause: &mut String, values: &mut Vec<Value>, condition: &str, value: Option<Value>) {
    if let Some(value) = value {
        clause.push_str(" AND ");
        clause.push_str(condition);
        values.push(value);
    }
}

/// What the filter says of a column: at least, and less than.
fn range(filter: &Filter, field: SortField) -> (Option<Value>, Option<Value>) {
    match field {
        SortField::Path => (
            filter.prefix.clone().map(Value::from),
            filter.prefix_end().map(Value::from),
        ),
        SortField::Size => (filter.min_size.map(|size| number(size).into()), None),
        SortField::LastSeen => (None, filter.seen_before.map(Value::from)),
        SortField::Hits | SortField::FirstSeen => (None, None),
    }
}

/// Where a walk begins.
#[derive(Clone, Copy)]
enum Entry<'a> {
    /// At the end of the index that comes first.
    End,
    /// Behind this row, among those that are equal in the sorted column: a million may never have been hit.
    Row(&'a Position),
    /// Behind all that are equal to it.
    Value(&'a Position),
}

/// The walks that a page begins with. SQLite would enter its index at a value, not at a row among equals, so those are
/// a walk of their own.
fn begin(after: Option<&Position>) -> Vec<Entry<'_>> {
    after.map_or_else(
        || vec![Entry::End],
        |position| vec![Entry::Row(position), Entry::Value(position)],
    )
}

/// The statement that walks a part in the order asked for.
fn walk(part: &Part, scan: &Scan, gather: bool, from: Entry<'_>) -> (String, Vec<Value>) {
    let Sort { field, descending } = scan.sort;
    let column = field.name();
    let (mut clause, mut values) = start(part);
    let (low, high) = range(&scan.filter, field);
    let (first, last) = if descending { (high, low) } else { (low, high) };
    let (past, at_first, until, direction) = if descending {
        ("<", "<", ">=", "DESC")
    } else {
        (">", ">=", "<", "ASC")
    };
    match from {
        Entry::Row(position) => {
            add(
                &mut clause,
                &mut values,
                &format!("{column} = ?"),
                Some(sql_value(&position.value)),
            );
            add(
                &mut clause,
                &mut values,
                &format!("id {past} ?"),
                Some(position.row.into()),
            );
        }
        // Instead of the filter's bound on this side, not besides it: the index is to be entered here.
        Entry::Value(position) => {
            add(
                &mut clause,
                &mut values,
                &format!("{column} {past} ?"),
                Some(sql_value(&position.value)),
            );
            add(&mut clause, &mut values, &format!("{column} {until} ?"), last);
        }
        Entry::End => {
            add(&mut clause, &mut values, &format!("{column} {at_first} ?"), first);
            add(&mut clause, &mut values, &format!("{column} {until} ?"), last);
        }
    }
    let index = if gather {
        prefix_range(&scan.filter, &mut clause, &mut values);
        SortField::Path.name()
    } else {
        column
    };
    let sql = format!(
        "SELECT {COLUMNS} FROM artifact INDEXED BY artifact_{index} {clause}
         ORDER BY {column} {direction}, id {direction}"
    );
    (sql, values)
}

fn sql_value(value: &SortValue) -> Value {
    match value {
        SortValue::Number(number) => (*number).into(),
        SortValue::Text(text) => text.clone().into(),
    }
}

fn head(walk: &mut Rows<'_>, number: usize, scan: &Scan) -> rusqlite::Result<Option<Head>> {
    let Some(row) = walk.next()? else { return Ok(None) };
    let value = match scan.sort.field {
        SortField::Path => SortValue::Text(row.get(1)?),
        SortField::Size => SortValue::Number(row.get(4)?),
        SortField::FirstSeen => SortValue::Number(row.get(10)?),
        SortField::LastSeen => SortValue::Number(row.get(11)?),
        SortField::Hits => SortValue::Number(row.get(12)?),
    };
    let record = if wanted(row, &scan.filter)? {
        Some(read_record(row)?)
    } else {
        None
    };
    let at = Position {
        value,
        row: row.get(15)?,
    };
    Ok(Some(Head {
        at,
        record,
        walk: number,
        descending: scan.sort.descending,
    }))
}

/// Looks at what the filter may refuse, without copying a row that it does. Remote and class are the walk's.
fn wanted(row: &Row<'_>, filter: &Filter) -> rusqlite::Result<bool> {
    let size = u64::try_from(row.get::<_, i64>(4)?).unwrap_or(0);
    Ok(filter.numbers_match(size, row.get(11)?) && filter.path_matches(row.get_ref(1)?.as_str()?))
}

/// Counts what matches: from the totals that are kept where nothing but remote and class is asked for, else row by row
/// for as long as may be.
fn totals(connection: &Connection, parts: &[Part], filter: &Filter) -> rusqlite::Result<Option<Totals>> {
    let mut sum = Totals::default();
    if !filter.looks_at_rows() {
        for part in parts {
            sum.objects += part.totals.objects;
            sum.bytes = sum.bytes.saturating_add(part.totals.bytes);
        }
        return Ok(Some(sum));
    }
    let deadline = Instant::now() + COUNT_LIMIT;
    let by_path = filter.prefix.is_some() || (filter.min_size.is_none() && filter.seen_before.is_none());
    let by = match () {
        () if by_path => SortField::Path,
        () if filter.min_size.is_some() => SortField::Size,
        () => SortField::LastSeen,
    };
    let (low, high) = range(filter, by);
    let mut size_of = connection.prepare_cached("SELECT size, last_seen FROM artifact WHERE id = ?1")?;
    for part in parts {
        let (mut clause, mut values) = start(part);
        add(&mut clause, &mut values, &format!("{} >= ?", by.name()), low.clone());
        add(&mut clause, &mut values, &format!("{} < ?", by.name()), high.clone());
        // By path: the index alone tells which rows are wanted, so only those are fetched.
        let columns = if by_path {
            "path, id"
        } else {
            "path, id, size, last_seen"
        };
        let sql = format!(
            "SELECT {columns} FROM artifact INDEXED BY artifact_{} {clause}",
            by.name()
        );
        let mut statement = connection.prepare_cached(&sql)?;
        let mut rows = statement.query(params_from_iter(values))?;
        let mut seen = 0_u32;
        while let Some(row) = rows.next()? {
            seen = seen.wrapping_add(1);
            if seen.is_multiple_of(1_024) && Instant::now() > deadline {
                return Ok(None);
            }
            if !filter.path_matches(row.get_ref(0)?.as_str()?) {
                continue;
            }
            let (size, last_seen): (i64, i64) = if by_path {
                size_of.query_row([row.get::<_, i64>(1)?], |row| Ok((row.get(0)?, row.get(1)?)))?
            } else {
                (row.get(2)?, row.get(3)?)
            };
            let size = u64::try_from(size).unwrap_or(0);
            if filter.numbers_match(size, last_seen) {
                sum.objects += 1;
                sum.bytes = sum.bytes.saturating_add(size);
            }
        }
    }
    Ok(Some(sum))
}

/// A row of [`COLUMNS`].
pub(super) fn read_record(row: &Row<'_>) -> rusqlite::Result<Record> {
    let unsigned = |column: usize| Ok::<u64, rusqlite::Error>(u64::try_from(row.get::<_, i64>(column)?).unwrap_or(0));
    Ok(Record {
        remote: row.get(0)?,
        path: row.get(1)?,
        form: row.get(2)?,
        class: if row.get::<_, i64>(3)? == class_number(Class::Immutable) {
            Class::Immutable
        } else {
            Class::Mutable
        },
        size: unsigned(4)?,
        digest: row.get(5)?,
        content_type: row.get(6)?,
        etag: row.get(7)?,
        last_modified: row.get(8)?,
        published_at: row.get(9)?,
        first_seen: row.get(10)?,
        last_seen: row.get(11)?,
        hits: unsigned(12)?,
        fresh_until: row.get(13)?,
        key: row.get(14)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::sqlite::schema::open_writer;

    #[test]
    fn every_order_walks_its_index_from_where_it_is_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let connection = open_writer(&dir.path().join("catalog.db")).expect("a new file");
        let part = Part {
            remote: "r".into(),
            class: class_number(Class::Mutable),
            totals: Totals::default(),
        };
        let filter = Filter {
            prefix: Some("a".into()),
            min_size: Some(1),
            seen_before: Some(1),
            ..Filter::default()
        };
        for field in SortField::ALL {
            for descending in [false, true] {
                let value = match field {
                    SortField::Path => SortValue::Text("b".into()),
                    _ => SortValue::Number(1),
                };
                let position = Position { value, row: 1 };
                let name = field.name();
                for (from, entered) in [
                    (Entry::End, "(remote=? AND class=?".to_owned()),
                    (
                        Entry::Row(&position),
                        format!("(remote=? AND class=? AND {name}=? AND rowid"),
                    ),
                    (Entry::Value(&position), format!("(remote=? AND class=? AND {name}")),
                ] {
                    let sort = Sort { field, descending };
                    let scan = Scan {
                        filter: filter.clone(),
                        sort,
                        after: None,
                        limit: 1,
                        totals: false,
                    };
                    let (sql, values) = walk(&part, &scan, false, from);
                    let mut statement = connection
                        .prepare(&format!("EXPLAIN QUERY PLAN {sql}"))
                        .expect("good SQL");
                    let plan: Vec<String> = statement
                        .query_map(params_from_iter(values), |row| row.get(3))
                        .and_then(Iterator::collect)
                        .expect("a plan");
                    let plan = plan.join("; ");
                    assert!(!plan.contains("TEMP B-TREE"), "{sql}: {plan}");
                    assert!(plan.contains(&entered), "{sql}: {plan}");
                }
            }
        }
    }
}
