//! What people let through, in its table.

use rusqlite::{Connection, params};

use crate::catalog::column::number;
use crate::catalog::let_through::{LetThrough, MOST_LET_THROUGH};

/// All of it, the latest first.
pub(super) fn all(connection: &mut Connection) -> rusqlite::Result<Vec<LetThrough>> {
    let sql = "SELECT remote, path, reason, who, made_at FROM let_through ORDER BY made_at DESC, remote, path LIMIT ?1";
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map([number(MOST_LET_THROUGH as u64)], |row| {
        Ok(LetThrough {
            remote: row.get(0)?,
            path: row.get(1)?,
            reason: row.get(2)?,
            by: row.get(3)?,
            at: row.get(4)?,
        })
    })?;
    rows.collect()
}

/// Keeps one, in place of what was there under its remote and path.
pub(super) fn keep(connection: &mut Connection, artifact: &LetThrough) -> rusqlite::Result<()> {
    connection.execute(
        "INSERT INTO let_through (remote, path, reason, who, made_at) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (remote, path) DO UPDATE SET reason = excluded.reason, who = excluded.who, made_at = excluded.made_at",
        params![
            artifact.remote,
            artifact.path,
            artifact.reason,
            artifact.by,
            artifact.at
        ],
    )?;
    Ok(())
}

/// Forgets some, all or none.
pub(super) fn forget(connection: &mut Connection, remote: &str, paths: &[String]) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    for path in paths {
        transaction.execute(
            "DELETE FROM let_through WHERE remote = ?1 AND path = ?2",
            params![remote, path],
        )?;
    }
    transaction.commit()
}
