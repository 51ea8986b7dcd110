//! What people let through, in its table.

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error};

use crate::catalog::column::number;
use crate::catalog::let_through::{LetThrough, MOST_LET_THROUGH};

/// All of it, the latest first.
pub(super) async fn all(client: &Client) -> Result<Vec<LetThrough>, Error> {
    let sql = "SELECT remote, path, reason, who, made_at FROM artifactapi.let_through
               ORDER BY made_at DESC, remote, path LIMIT $1";
    let most = number(MOST_LET_THROUGH as u64);
    let rows = client.query_typed(sql, &[(&most, Type::INT8)]).await?;
    let read = rows.iter().map(|row| {
        Ok(LetThrough {
            remote: row.try_get(0)?,
            path: row.try_get(1)?,
            reason: row.try_get(2)?,
            by: row.try_get(3)?,
            at: row.try_get(4)?,
        })
    });
    read.collect()
}

/// Keeps one, in place of what was there under its remote and path.
pub(super) async fn keep(client: &Client, artifact: &LetThrough) -> Result<(), Error> {
    let sql = "INSERT INTO artifactapi.let_through (remote, path, reason, who, made_at) VALUES ($1, $2, $3, $4, $5)
               ON CONFLICT (remote, path) DO UPDATE
               SET reason = excluded.reason, who = excluded.who, made_at = excluded.made_at";
    let LetThrough {
        remote,
        path,
        reason,
        by,
        at,
    } = artifact;
    client
        .execute_typed(
            sql,
            &[
                (remote, Type::TEXT),
                (path, Type::TEXT),
                (reason, Type::TEXT),
                (by, Type::TEXT),
                (at, Type::INT8),
            ],
        )
        .await?;
    Ok(())
}

/// Forgets some, all or none.
pub(super) async fn forget(client: &Client, remote: &str, paths: &[String]) -> Result<(), Error> {
    let sql = "DELETE FROM artifactapi.let_through WHERE remote = $1 AND path = ANY ($2)";
    client
        .execute_typed(sql, &[(&remote, Type::TEXT), (&paths, Type::TEXT_ARRAY)])
        .await?;
    Ok(())
}
