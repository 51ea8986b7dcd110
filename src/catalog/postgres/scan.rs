//! A page of a listing out of PostgreSQL, in bounded time.
//!
//! Every order, in SQLite too, has an index within each remote and class; a page merges one walk for each of those that
//! the filter leaves. What the walks cannot skip is filtered here, row by row, up to a number of rows: then the page
//! ends early, with a position from which the next one goes on.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error, IsolationLevel, Row, Transaction};

use crate::catalog::column::{class_number, number};
use crate::catalog::cursor::{Position, SortValue};
use crate::catalog::query::{Filter, Sort, SortField};
use crate::catalog::{Class, Found, Record, Scan, Totals};

/// Rows that one page examines, and that may be sorted for every page where a prefix leaves no more.
const SCAN_ROWS: usize = 3_000;
/// Rows that the first look of a page takes, where not every row is wanted.
const FIRST_ROWS: usize = 1_000;
/// Rows that are looked at here to be counted: they travel.
const COUNT_ROWS: usize = 30_000;
/// No further question is asked for a page that has taken this long. With the server's own limit for each it ends
/// within [`LIMIT`].
const BUDGET: Duration = Duration::from_secs(1);
/// A page takes longer only if the server does not answer at all.
pub(super) const LIMIT: Duration = Duration::from_secs(2);

/// The columns of a record, in the order in which [`read_record`] expects them.
pub(super) const COLUMNS: &str = "remote, path, form, class, size, digest, content_type, etag, last_modified, \
    published_at, first_seen, last_seen, hits, fresh_until, key";
/// What a filter looks at: no more than the index holds, if that will do.
fn narrow(filter: &Filter) -> String {
    let size = filter.min_size.map_or("0::bigint AS size", |_| "size");
    let last_seen = filter.seen_before.map_or("0::bigint AS last_seen", |_| "last_seen");
    format!("path, {size}, {last_seen}")
}

/// The rows of one remote and class.
struct Part {
    remote: String,
    class: i16,
    totals: Totals,
}

/// Answers a question from one state of the database.
pub(super) async fn run(client: &mut Client, scan: &Scan) -> Result<Found, Error> {
    let began = Instant::now();
    let transaction = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .await?;
    let parts = parts(&transaction, &scan.filter).await?;
    let mut found = Found::default();
    if !parts.is_empty() {
        found = page(&transaction, &parts, scan, began).await?;
    }
    if scan.totals {
        found.totals = totals(&transaction, &parts, &scan.filter, began).await?;
    }
    transaction.rollback().await?;
    Ok(found)
}

async fn parts(transaction: &Transaction<'_>, filter: &Filter) -> Result<Vec<Part>, Error> {
    let class = filter.class.map(class_number);
    let rows = transaction
        .query_typed(
            "SELECT remote, class, least(sum(objects), 9223372036854775807)::bigint,
                 least(greatest(sum(bytes), 0), 9223372036854775807)::bigint
             FROM artifactapi.part WHERE ($1 IS NULL OR remote = $1) AND ($2 IS NULL OR class = $2)
             GROUP BY remote, class HAVING sum(objects) > 0",
            &[(&filter.remote, Type::TEXT), (&class, Type::INT8)],
        )
        .await?;
    let part = |row: Row| {
        Ok(Part {
            remote: row.try_get(0)?,
            class: row.try_get(1)?,
            totals: Totals {
                objects: unsigned(row.try_get(2)?),
                bytes: unsigned(row.try_get(3)?),
            },
        })
    };
    let is_meant = |part: &Result<Part, Error>| part.as_ref().map_or(true, |part| filter.is_among(&part.remote));
    rows.into_iter().map(part).filter(is_meant).collect()
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// A statement as it is put together.
#[derive(Default)]
struct Query {
    sql: String,
    values: Vec<(Value, Type)>,
}

type Value = Box<dyn ToSql + Send + Sync>;

impl Query {
    /// The value's place in the statement.
    fn bind(&mut self, value: &SortValue) -> String {
        let (value, kind): (Value, Type) = match value {
            SortValue::Number(number) => (Box::new(*number), Type::INT8),
            SortValue::Text(text) => (Box::new(text.clone()), Type::TEXT),
        };
        self.values.push((value, kind));
        format!("${}", self.values.len())
    }

    /// The rows of `columns` in every part for which `conditions` hold, of each part in an order and up to a number.
    fn union(&mut self, parts: &[Part], columns: &str, conditions: &str, order: &str) {
        for (index, part) in parts.iter().enumerate() {
            let remote = self.bind(&SortValue::Text(part.remote.clone()));
            let union = if index == 0 { "" } else { " UNION ALL " };
            let class = part.class;
            let _ = write!(
                self.sql,
                "{union}(SELECT {columns} FROM artifactapi.artifact WHERE remote = {remote} AND class = {class}{conditions}{order})"
            );
        }
    }

    async fn rows(&self, transaction: &Transaction<'_>) -> Result<Vec<Row>, Error> {
        let values: Vec<(&(dyn ToSql + Sync), Type)> = self
            .values
            .iter()
            .map(|(value, kind)| (&**value as &(dyn ToSql + Sync), kind.clone()))
            .collect();
        transaction.query_typed(&self.sql, &values).await
    }
}

/// What the filter says of a column: at least, and less than.
fn range(filter: &Filter, field: SortField) -> (Option<SortValue>, Option<SortValue>) {
    match field {
        SortField::Path => (
            filter.prefix.clone().map(SortValue::Text),
            filter.prefix_end().map(SortValue::Text),
        ),
        SortField::Size => (filter.min_size.map(|size| SortValue::Number(number(size))), None),
        SortField::LastSeen => (None, filter.seen_before.map(SortValue::Number)),
        SortField::Hits | SortField::FirstSeen => (None, None),
    }
}

fn within(query: &mut Query, filter: &Filter, field: SortField) -> String {
    let (low, high) = range(filter, field);
    let mut conditions = String::new();
    for (operator, bound) in [(">=", low), ("<", high)] {
        if let Some(bound) = bound {
            let place = query.bind(&bound);
            let _ = write!(conditions, " AND {} {operator} {place}", field.name());
        }
    }
    conditions
}

/// How the rows of a page are found.
struct Walk<'a> {
    parts: &'a [Part],
    scan: &'a Scan,
    /// The prefix leaves so few rows that they are sorted for every page.
    gather: bool,
}

impl Walk<'_> {
    /// Whether the statement leaves rows that the filter does not want.
    fn needs_filter(&self) -> bool {
        let Filter {
            prefix,
            glob,
            pattern,
            min_size,
            seen_before,
            ..
        } = &self.scan.filter;
        let field = self.scan.sort.field;
        let by_statement = |of: SortField| self.gather || field == of;
        glob.is_some()
            || pattern.is_some()
            || (prefix.is_some() && !by_statement(SortField::Path))
            || (min_size.is_some() && !by_statement(SortField::Size))
            || (seen_before.is_some() && !by_statement(SortField::LastSeen))
    }

    /// `limit` rows of `columns` in the order asked for, behind the sorted column and the row number.
    fn query(&self, columns: &str, after: Option<&Position>, limit: usize) -> Query {
        let Sort { field, descending } = self.scan.sort;
        let (past, direction) = if descending { ("<", "DESC") } else { (">", "ASC") };
        let mut query = Query::default();
        let place = after.map(|position| (query.bind(&position.value), position.row));
        let columns = format!("{} AS at, id, {columns}", field.name());
        let order = format!(" ORDER BY at {direction}, id {direction} LIMIT {limit}");
        if self.gather {
            let mut conditions = String::new();
            for field in [SortField::Path, SortField::Size, SortField::LastSeen] {
                conditions += &within(&mut query, &self.scan.filter, field);
            }
            query.sql = "WITH gathered AS MATERIALIZED (".to_owned();
            query.union(self.parts, &columns, &conditions, "");
            query.sql += ") SELECT * FROM gathered";
            if let Some((value, row)) = place {
                let _ = write!(query.sql, " WHERE (at, id) {past} ({value}, {row}::bigint)");
            }
        } else {
            let mut conditions = within(&mut query, &self.scan.filter, field);
            if let Some((value, row)) = place {
                let _ = write!(
                    conditions,
                    " AND ({}, id) {past} ({value}, {row}::bigint)",
                    field.name()
                );
            }
            // Said for each as well, or each would be read to its end and sorted before they are merged.
            query.union(self.parts, &columns, &conditions, &order);
        }
        // One part is in order as it is, and SQL does not allow to say so twice.
        if self.gather || self.parts.len() > 1 {
            query.sql += &order;
        }
        query
    }

    fn position(&self, row: &Row) -> Result<Position, Error> {
        Ok(Position {
            value: match self.scan.sort.field {
                SortField::Path => SortValue::Text(row.try_get(0)?),
                _ => SortValue::Number(row.try_get(0)?),
            },
            row: row.try_get(1)?,
        })
    }
}

async fn page(transaction: &Transaction<'_>, parts: &[Part], scan: &Scan, began: Instant) -> Result<Found, Error> {
    let gather = scan.sort.field != SortField::Path
        && scan.filter.prefix.is_some()
        && is_short(transaction, parts, &scan.filter).await?;
    let walk = Walk { parts, scan, gather };
    let mut found = Found::default();
    if !walk.needs_filter() {
        let query = walk.query(COLUMNS, scan.after.as_ref(), scan.limit + 1);
        let mut rows = query.rows(transaction).await?;
        if rows.len() > scan.limit {
            rows.truncate(scan.limit);
            found.next = rows.last().map(|row| walk.position(row)).transpose()?;
        }
        found.records = rows.iter().map(|row| read_record(row, 2)).collect::<Result<_, _>>()?;
        return Ok(found);
    }

    // Everything up to here has been examined.
    let mut examined_to = scan.after.clone();
    let mut examined = 0;
    let columns = narrow(&scan.filter);
    let mut wanted = Vec::new();
    'page: loop {
        let step = if examined == 0 {
            FIRST_ROWS.max(scan.limit + 1)
        } else {
            SCAN_ROWS - examined
        };
        let rows = walk
            .query(&columns, examined_to.as_ref(), step)
            .rows(transaction)
            .await?;
        let is_end = rows.len() < step;
        let (rows, matching) = filtered(rows, scan.filter.clone(), 2).await?;
        for (row, matches) in rows.iter().zip(matching) {
            // With a full page, goes on to the next row that matches: so `next` is set only if there is one, as far as
            // the bound allows to know.
            if matches && wanted.len() == scan.limit {
                found.next = examined_to;
                break 'page;
            }
            if matches {
                wanted.push(row.try_get::<_, i64>(1)?);
            }
            examined += 1;
            examined_to = Some(walk.position(row)?);
        }
        if is_end {
            break;
        }
        if examined >= SCAN_ROWS || began.elapsed() > BUDGET {
            found.next = examined_to;
            break;
        }
    }
    found.records = records(transaction, &wanted).await?;
    Ok(found)
}

/// Whether so few rows have the prefix that they can be sorted for every page.
async fn is_short(transaction: &Transaction<'_>, parts: &[Part], filter: &Filter) -> Result<bool, Error> {
    let mut query = Query::default();
    let conditions = within(&mut query, filter, SortField::Path);
    query.sql = "SELECT count(*) FROM (".to_owned();
    query.union(parts, "1", &conditions, "");
    let _ = write!(query.sql, " LIMIT {SCAN_ROWS}) AS few");
    let rows = query.rows(transaction).await?;
    let count: i64 = rows.first().map_or(Ok(0), |row| row.try_get(0))?;
    Ok(unsigned(count) < SCAN_ROWS as u64)
}

/// Holds rows of path, size and last time seen, which begin at column `first`, against a filter. Patterns can take a while, and the
/// threads that ask have others to serve.
async fn filtered(rows: Vec<Row>, filter: Filter, first: usize) -> Result<(Vec<Row>, Vec<bool>), Error> {
    let held = tokio::task::spawn_blocking(move || {
        let matches = |row: &Row| {
            Ok(
                filter.numbers_match(unsigned(row.try_get(first + 1)?), row.try_get(first + 2)?)
                    && filter.path_matches(row.try_get(first)?),
            )
        };
        let matching = rows.iter().map(matches).collect::<Result<Vec<bool>, Error>>();
        matching.map(|matching| (rows, matching))
    });
    match held.await {
        Ok(held) => held,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// The records of some rows, in the order of their numbers as given.
async fn records(transaction: &Transaction<'_>, ids: &[i64]) -> Result<Vec<Record>, Error> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!("SELECT id, {COLUMNS} FROM artifactapi.artifact WHERE id = ANY ($1)");
    let rows = transaction.query_typed(&sql, &[(&ids, Type::INT8_ARRAY)]).await?;
    let mut records = rows
        .iter()
        .map(|row| Ok((row.try_get(0)?, read_record(row, 1)?)))
        .collect::<Result<HashMap<i64, Record>, Error>>()?;
    Ok(ids.iter().filter_map(|id| records.remove(id)).collect())
}

/// Counts what matches: from the totals that are kept where nothing but remote and class is asked for, else row by row
/// for as long as may be.
async fn totals(
    transaction: &Transaction<'_>,
    parts: &[Part],
    filter: &Filter,
    began: Instant,
) -> Result<Option<Totals>, Error> {
    let all = parts.iter().fold(Totals::default(), |sum, part| Totals {
        objects: sum.objects + part.totals.objects,
        bytes: sum.bytes.saturating_add(part.totals.bytes),
    });
    if parts.is_empty() || !filter.looks_at_rows() {
        return Ok(Some(all));
    }
    if began.elapsed() > BUDGET {
        return Ok(None);
    }
    let counted = if filter.glob.is_some() || filter.pattern.is_some() {
        count_here(transaction, parts, filter, all).await
    } else {
        count_there(transaction, filter).await
    };
    match counted {
        Err(error) if error.code() == Some(&SqlState::QUERY_CANCELED) => Ok(None),
        other => other,
    }
}

async fn count_here(
    transaction: &Transaction<'_>,
    parts: &[Part],
    filter: &Filter,
    all: Totals,
) -> Result<Option<Totals>, Error> {
    if filter.prefix.is_none() && all.objects > COUNT_ROWS as u64 {
        return Ok(None);
    }
    let mut query = Query::default();
    let conditions = within(&mut query, filter, SortField::Path);
    let last_seen = filter.seen_before.map_or("0::bigint", |_| "last_seen");
    query.union(parts, &format!("path, size, {last_seen}"), &conditions, "");
    let _ = write!(query.sql, " LIMIT {}", COUNT_ROWS + 1);
    let rows = query.rows(transaction).await?;
    if rows.len() > COUNT_ROWS {
        return Ok(None);
    }
    let (rows, matching) = filtered(rows, filter.clone(), 0).await?;
    let mut sum = Totals::default();
    for (row, _) in rows.iter().zip(matching).filter(|(_, matches)| *matches) {
        sum.objects += 1;
        sum.bytes = sum.bytes.saturating_add(unsigned(row.try_get(1)?));
    }
    Ok(Some(sum))
}

async fn count_there(transaction: &Transaction<'_>, filter: &Filter) -> Result<Option<Totals>, Error> {
    // No order is asked for: the whole table may be read.
    transaction
        .batch_execute("SET LOCAL enable_seqscan = on; SET LOCAL enable_bitmapscan = on")
        .await?;
    let mut query = Query::default();
    let mut conditions = String::new();
    for field in [SortField::Path, SortField::Size, SortField::LastSeen] {
        conditions += &within(&mut query, filter, field);
    }
    if let Some(remote) = &filter.remote {
        let place = query.bind(&SortValue::Text(remote.clone()));
        let _ = write!(conditions, " AND remote = {place}");
    }
    if let Some(among) = &filter.among {
        let places = among.iter().map(|name| query.bind(&SortValue::Text(name.clone())));
        let places = places.collect::<Vec<_>>().join(", ");
        // An empty list is no SQL; then there are no parts, and nothing is counted.
        if !places.is_empty() {
            let _ = write!(conditions, " AND remote IN ({places})");
        }
    }
    if let Some(class) = filter.class {
        let _ = write!(conditions, " AND class = {}", class_number(class));
    }
    query.sql = format!(
        "SELECT count(*), least(coalesce(sum(size), 0), 9223372036854775807)::bigint
         FROM artifactapi.artifact WHERE true{conditions}"
    );
    let rows = query.rows(transaction).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    Ok(Some(Totals {
        objects: unsigned(row.try_get(0)?),
        bytes: unsigned(row.try_get(1)?),
    }))
}

/// A row of [`COLUMNS`], the first of which is `first`.
pub(super) fn read_record(row: &Row, first: usize) -> Result<Record, Error> {
    Ok(Record {
        remote: row.try_get(first)?,
        path: row.try_get(first + 1)?,
        form: row.try_get(first + 2)?,
        class: if i64::from(row.try_get::<_, i16>(first + 3)?) == class_number(Class::Immutable) {
            Class::Immutable
        } else {
            Class::Mutable
        },
        size: unsigned(row.try_get(first + 4)?),
        digest: row.try_get(first + 5)?,
        content_type: row.try_get(first + 6)?,
        etag: row.try_get(first + 7)?,
        last_modified: row.try_get(first + 8)?,
        published_at: row.try_get(first + 9)?,
        first_seen: row.try_get(first + 10)?,
        last_seen: row.try_get(first + 11)?,
        hits: unsigned(row.try_get(first + 12)?),
        fresh_until: row.try_get(first + 13)?,
        key: row.try_get(first + 14)?,
    })
}
