//! A batch in one transaction, each kind of change in one statement.
//!
//! Nodes write at once, in any order: hits are added, first and last times are widened, and what describes the content
//! is that of the latest fill. Rows are locked in the order of their keys, so that nodes wait for each other but never
//! in a circle.

use std::sync::Arc;

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error, Transaction};

use crate::catalog::change::{Batch, NameHash, ObjectKey, Op};
use crate::catalog::column::{class_number, number};
use crate::catalog::{Change, Record};
use crate::exact_url::shown_path;

/// Where the rows of a batch come from, and what they are.
type Entry = (ObjectKey, Change);
type Parameters<'a> = [(&'a (dyn ToSql + Sync), Type)];

/// Writes a batch unless it was written. `number` counts the batches of a process, whose name is `writer`: a batch that
/// is given again after its answer was lost is not written twice, and one that a stalled connection brings late not at
/// all.
pub(super) async fn batch(client: &mut Client, writer: i64, number: i64, batch: &Batch) -> Result<(), Error> {
    let mut transaction = client.transaction().await?;
    let first = transaction
        .execute_typed(
            "INSERT INTO artifactapi.writer AS w (id, batch, seen_at) VALUES ($1, $2, now())
             ON CONFLICT (id) DO UPDATE SET batch = excluded.batch, seen_at = excluded.seen_at
             WHERE w.batch < excluded.batch",
            &[(&writer, Type::INT8), (&number, Type::INT8)],
        )
        .await?;
    if first == 0 {
        return transaction.rollback().await;
    }
    if !batch.objects.is_empty() {
        let mut entries: Vec<&Entry> = batch.objects.iter().collect();
        entries.sort_by(|(a, _), (b, _)| (&a.remote, &a.path, &a.form).cmp(&(&b.remote, &b.path, &b.form)));
        objects(&mut transaction, &entries).await?;
    }
    if !batch.links.is_empty() {
        let mut all: Vec<&(Arc<str>, NameHash)> = batch.links.iter().collect();
        all.sort_by(|(a, x), (b, y)| (a, x.0).cmp(&(b, y.0)));
        links(&transaction, &all).await?;
    }
    transaction.commit().await
}

/// Adds up what the triggers have left to be added up, and forgets processes that have written nothing for long.
pub(super) async fn tidy(client: &Client) -> Result<(), Error> {
    client
        .batch_execute(
            "WITH gone AS (DELETE FROM artifactapi.part RETURNING remote, class, objects, bytes)
             INSERT INTO artifactapi.part (remote, class, objects, bytes)
                 SELECT remote, class, sum(objects), sum(bytes) FROM gone GROUP BY remote, class
                 HAVING sum(objects) <> 0 OR sum(bytes) <> 0;
             DELETE FROM artifactapi.writer WHERE seen_at < now() - interval '1 day'",
        )
        .await
}

/// Writes the changes of some objects. One that the schema does not take must not hold up all others: it is found by
/// halving what holds it.
async fn objects(transaction: &mut Transaction<'_>, entries: &[&Entry]) -> Result<(), Error> {
    let mut pending = vec![entries];
    while let Some(entries) = pending.pop() {
        let attempt = transaction.savepoint("attempt").await?;
        match changes(&attempt, entries).await {
            Ok(()) => attempt.commit().await?,
            Err(error) if is_of_the_row(&error) => {
                attempt.rollback().await?;
                match entries {
                    [(key, _)] => {
                        let error = super::describe::describe(&error);
                        tracing::error!(remote = key.remote, path = %shown_path(&key.path), %error, "the catalogue cannot hold this object");
                    }
                    _ => {
                        let (first, second) = entries.split_at(entries.len() / 2);
                        pending.extend([second, first]);
                    }
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A value that does not fit its column, or a text that the database's encoding does not have.
fn is_of_the_row(error: &Error) -> bool {
    error.code().is_some_and(|code| {
        let code = code.code();
        code.starts_with("22") || code.starts_with("23") || code == "54000"
    })
}

async fn changes(transaction: &Transaction<'_>, entries: &[&Entry]) -> Result<(), Error> {
    lock(transaction, entries).await?;
    let mut removed = Vec::new();
    let mut touched = Vec::new();
    let mut put = Vec::new();
    for (key, change) in entries {
        match &change.op {
            Op::Touch => touched.push((key, change)),
            Op::Remove => removed.push(key),
            Op::Put(record) => put.push((&**record, change)),
            Op::Renew(record) => {
                removed.push(key);
                put.push((&**record, change));
            }
        }
    }
    if !removed.is_empty() {
        remove(transaction, &removed).await?;
    }
    if !touched.is_empty() {
        touch(transaction, &touched).await?;
    }
    if !put.is_empty() {
        upsert(transaction, &put).await?;
    }
    Ok(())
}

/// Locks the rows that are there, in the order of their keys.
async fn lock(transaction: &Transaction<'_>, entries: &[&Entry]) -> Result<(), Error> {
    let keys = Keys::new(entries.iter().map(|(key, _)| key));
    transaction
        .execute_typed(
            "SELECT FROM artifactapi.artifact AS a
             JOIN unnest($1, $2, $3) AS k (remote, path, form) USING (remote, path, form)
             ORDER BY a.remote, a.path, a.form FOR UPDATE OF a",
            &keys.parameters(),
        )
        .await?;
    Ok(())
}

async fn remove(transaction: &Transaction<'_>, keys: &[&ObjectKey]) -> Result<(), Error> {
    let keys = Keys::new(keys.iter().copied());
    transaction
        .execute_typed(
            "DELETE FROM artifactapi.artifact AS a USING unnest($1, $2, $3) AS k (remote, path, form)
             WHERE a.remote = k.remote AND a.path = k.path AND a.form = k.form",
            &keys.parameters(),
        )
        .await?;
    Ok(())
}

async fn touch(transaction: &Transaction<'_>, touched: &[(&ObjectKey, &Change)]) -> Result<(), Error> {
    let keys = Keys::new(touched.iter().map(|(key, _)| *key));
    let changes = || touched.iter().map(|(_, change)| change);
    let hits: Vec<i64> = changes().map(|change| number(change.hits)).collect();
    let last_seen: Vec<i64> = changes().map(|change| change.last_seen).collect();
    let refreshed: Vec<bool> = changes().map(|change| change.fresh_until.is_some()).collect();
    let fresh_until: Vec<Option<i64>> = changes().map(|change| change.fresh_until.flatten()).collect();
    let mut parameters = keys.parameters().to_vec();
    parameters.extend::<[(&(dyn ToSql + Sync), Type); 4]>([
        (&hits, Type::INT8_ARRAY),
        (&last_seen, Type::INT8_ARRAY),
        (&refreshed, Type::BOOL_ARRAY),
        (&fresh_until, Type::INT8_ARRAY),
    ]);
    transaction
        .execute_typed(
            "UPDATE artifactapi.artifact AS a SET
                 hits = a.hits + k.hits,
                 last_seen = greatest(a.last_seen, k.last_seen),
                 fresh_until = CASE WHEN k.refreshed THEN k.fresh_until ELSE a.fresh_until END
             FROM unnest($1, $2, $3, $4, $5, $6, $7)
                 AS k (remote, path, form, hits, last_seen, refreshed, fresh_until)
             WHERE a.remote = k.remote AND a.path = k.path AND a.form = k.form",
            &parameters,
        )
        .await?;
    Ok(())
}

/// What describes the content: taken from whichever fill was later.
const DESCRIPTION: [&str; 10] = [
    "class",
    "size",
    "digest",
    "content_type",
    "etag",
    "last_modified",
    "published_at",
    "fresh_until",
    "key",
    "stored_at",
];

async fn upsert(transaction: &Transaction<'_>, put: &[(&Record, &Change)]) -> Result<(), Error> {
    fn texts<'a>(put: &[(&'a Record, &Change)], text: impl Fn(&'a Record) -> &'a str) -> Vec<&'a str> {
        put.iter().map(|(record, _)| text(record)).collect()
    }
    fn numbers<T>(put: &[(&Record, &Change)], number: impl Fn(&Record, &Change) -> T) -> Vec<T> {
        put.iter().map(|(record, change)| number(record, change)).collect()
    }
    let remote = texts(put, |record| &record.remote);
    let path = texts(put, |record| &record.path);
    let form = texts(put, |record| &record.form);
    let class = numbers(put, |record, _| class_number(record.class));
    let size = numbers(put, |record, _| number(record.size));
    let digest = texts(put, |record| &record.digest);
    let content_type = texts(put, |record| &record.content_type);
    let etag: Vec<Option<&str>> = put.iter().map(|(record, _)| record.etag.as_deref()).collect();
    let last_modified: Vec<Option<&str>> = put.iter().map(|(record, _)| record.last_modified.as_deref()).collect();
    let published_at = numbers(put, |record, _| record.published_at);
    let first_seen = numbers(put, |record, _| record.first_seen);
    let last_seen = numbers(put, |record, change| record.last_seen.max(change.last_seen));
    let hits = numbers(put, |record, change| number(record.hits.saturating_add(change.hits)));
    let fresh_until = numbers(put, |record, change| change.fresh_until.unwrap_or(record.fresh_until));
    let key = texts(put, |record| &record.key);
    let latest: String = DESCRIPTION
        .map(|column| {
            format!(
                "{column} = CASE WHEN excluded.stored_at >= a.stored_at THEN excluded.{column} ELSE a.{column} END, "
            )
        })
        .concat();
    // What a process records is stored then and there.
    let sql = format!(
        "INSERT INTO artifactapi.artifact AS a (remote, path, form, class, size, digest, content_type, etag,
             last_modified, published_at, first_seen, last_seen, hits, fresh_until, key, stored_at)
         SELECT remote, path, form, class, size, digest, content_type, etag,
             last_modified, published_at, first_seen, last_seen, hits, fresh_until, key, first_seen
         FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
             AS r (remote, path, form, class, size, digest, content_type, etag, last_modified, published_at,
                 first_seen, last_seen, hits, fresh_until, key)
         ORDER BY remote COLLATE \"C\", path COLLATE \"C\", form COLLATE \"C\"
         ON CONFLICT (remote, path, form) DO UPDATE SET
             {latest}
             first_seen = least(a.first_seen, excluded.first_seen),
             last_seen = greatest(a.last_seen, excluded.last_seen),
             hits = a.hits + excluded.hits"
    );
    let parameters: &Parameters<'_> = &[
        (&remote, Type::TEXT_ARRAY),
        (&path, Type::TEXT_ARRAY),
        (&form, Type::TEXT_ARRAY),
        (&class, Type::INT8_ARRAY),
        (&size, Type::INT8_ARRAY),
        (&digest, Type::TEXT_ARRAY),
        (&content_type, Type::TEXT_ARRAY),
        (&etag, Type::TEXT_ARRAY),
        (&last_modified, Type::TEXT_ARRAY),
        (&published_at, Type::INT8_ARRAY),
        (&first_seen, Type::INT8_ARRAY),
        (&last_seen, Type::INT8_ARRAY),
        (&hits, Type::INT8_ARRAY),
        (&fresh_until, Type::INT8_ARRAY),
        (&key, Type::TEXT_ARRAY),
    ];
    transaction.execute_typed(&sql, parameters).await?;
    Ok(())
}

async fn links(transaction: &Transaction<'_>, links: &[&(Arc<str>, NameHash)]) -> Result<(), Error> {
    let remotes: Vec<&str> = links.iter().map(|(remote, _)| &**remote).collect();
    let hashes: Vec<&[u8]> = links.iter().map(|(_, link)| &link.0[..]).collect();
    transaction
        .execute_typed(
            "INSERT INTO artifactapi.link (remote, hash)
             SELECT remote, hash FROM unnest($1, $2) AS l (remote, hash) ORDER BY remote COLLATE \"C\", hash
             ON CONFLICT DO NOTHING",
            &[(&remotes, Type::TEXT_ARRAY), (&hashes, Type::BYTEA_ARRAY)],
        )
        .await?;
    Ok(())
}

/// The names of objects, as columns.
struct Keys<'a> {
    remotes: Vec<&'a str>,
    paths: Vec<&'a str>,
    forms: Vec<&'a str>,
}

impl<'a> Keys<'a> {
    fn new(keys: impl Iterator<Item = &'a ObjectKey>) -> Keys<'a> {
        let mut columns = Keys {
            remotes: Vec::new(),
            paths: Vec::new(),
            forms: Vec::new(),
        };
        for key in keys {
            columns.remotes.push(&key.remote);
            columns.paths.push(&key.path);
            columns.forms.push(&key.form);
        }
        columns
    }

    fn parameters(&self) -> [(&(dyn ToSql + Sync), Type); 3] {
        [
            (&self.remotes, Type::TEXT_ARRAY),
            (&self.paths, Type::TEXT_ARRAY),
            (&self.forms, Type::TEXT_ARRAY),
        ]
    }
}
