//! The catalogue in PostgreSQL, which several nodes share.
//!
//! One connection writes, one answers short questions, a few answer listings. They are made, watched and made again by
//! a task of their own (`connect`); without them every question is answered at once with an error, and what is to be
//! written waits in the queue.

mod connect;
mod describe;
mod let_through;
mod scan;
mod schema;
#[cfg(test)]
mod tests;
mod tls;
mod write;

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error};

use super::change::{Batch, NameHash};
use super::let_through::LetThrough;
use super::{Backend, CatalogError, Found, Record, Scan};
use crate::breaker::Breaker;
use crate::config::Database;
use connect::{LOOKUP_LIMIT, Server};
use describe::describe;

/// How long a batch may take, on a slow disk that has nothing of it in memory. A server that hangs is found sooner, by
/// its being asked every second.
const WRITE_LIMIT: Duration = Duration::from_secs(60);
/// ... and for one that a document waits for, behind a batch.
const SIGHT_LIMIT: Duration = Duration::from_secs(10);
/// How long the first batch waits for the first connection.
const START_LIMIT: Duration = Duration::from_secs(3);
/// How long a change that somebody waits for waits for a batch that is being written, and how long it may take.
const CHANGE_WAIT: Duration = Duration::from_secs(10);
const CHANGE_LIMIT: Duration = Duration::from_secs(5);
/// Times that a batch is given again at once because another node's was in its way.
const COLLISIONS: usize = 3;
/// Batches between two times that the tables are tidied.
const TIDY: i64 = 64;

/// See the module.
pub struct Postgres {
    server: Arc<Server>,
    keeper: AbortHandle,
    /// Names this process among those that write.
    writer: i64,
    /// Batches that were written.
    written: AtomicI64,
}

impl Postgres {
    /// Starts to connect, on `runtime`, and returns at once.
    pub fn new(settings: &Database, runtime: &Handle) -> Arc<Postgres> {
        let server = Arc::new(Server::new(settings.clone()));
        let keeper = runtime.spawn(server.clone().keep_connected()).abort_handle();
        let name = RandomState::new().hash_one((std::process::id(), std::time::SystemTime::now()));
        Arc::new(Postgres {
            server,
            keeper,
            writer: name.cast_signed(),
            written: AtomicI64::new(0),
        })
    }

    /// Open while the database does not answer.
    pub fn breaker(&self) -> &Arc<Breaker> {
        &self.server.breaker
    }
}

impl Postgres {
    /// Changes something at once, between two batches.
    async fn change(&self, change: impl AsyncFnOnce(&Client) -> Result<(), Error>) -> Result<(), CatalogError> {
        let session = self.server.session()?;
        let client = tokio::time::timeout(CHANGE_WAIT, session.writer.lock()).await;
        let client = client.map_err(|_| CatalogError::Busy("a batch is being written"))?;
        let answer = self.server.ask(&session, CHANGE_LIMIT, change(&client)).await?;
        answer.map_err(|error| refused(&error))
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// An error that the server answered with, for whoever asked.
fn refused(error: &Error) -> CatalogError {
    if error.code() == Some(&SqlState::QUERY_CANCELED) {
        return CatalogError::Busy("this takes the database too long");
    }
    CatalogError::Unavailable(describe(error))
}

#[async_trait]
impl Backend for Postgres {
    async fn apply(&self, batch: &Batch) -> Result<(), CatalogError> {
        self.server.tried(START_LIMIT).await;
        let number = self.written.load(Ordering::Relaxed) + 1;
        let mut collisions = 0;
        loop {
            let session = self.server.session()?;
            let written = async {
                let mut client = session.writer.lock().await;
                write::batch(&mut client, self.writer, number, batch).await
            };
            match self.server.ask(&session, WRITE_LIMIT, written).await? {
                Ok(()) => {}
                Err(error) if collisions < COLLISIONS && is_a_collision(&error) => {
                    collisions += 1;
                    continue;
                }
                Err(error) => return Err(refused(&error)),
            }
            self.written.store(number, Ordering::Relaxed);
            if number % TIDY == 1 {
                let tidied = async { write::tidy(&*session.writer.lock().await).await };
                if let Ok(Err(error)) = self.server.ask(&session, WRITE_LIMIT, tidied).await {
                    tracing::debug!(error = describe(&error), "the catalogue's tables were not tidied");
                }
            }
            return Ok(());
        }
    }

    async fn scan(&self, question: Scan) -> Result<Found, CatalogError> {
        let session = self.server.session()?;
        let mut client = session.scan().await?;
        let found = scan::run(&mut client, &question);
        let answer = self.server.ask(&session, scan::LIMIT, found).await?;
        answer.map_err(|error| refused(&error))
    }

    async fn get(&self, remote: &str, path: &str) -> Result<Option<Record>, CatalogError> {
        let session = self.server.session()?;
        let sql = format!(
            "SELECT {} FROM artifactapi.artifact WHERE remote = $1 AND path = $2 ORDER BY form LIMIT 1",
            scan::COLUMNS
        );
        let found = async {
            let row = session
                .lookup
                .query_typed_opt(&sql, &[(&remote, Type::TEXT), (&path, Type::TEXT)])
                .await?;
            row.map(|row| scan::read_record(&row, 0)).transpose()
        };
        let answer = self.server.ask(&session, LOOKUP_LIMIT, found).await?;
        answer.map_err(|error| refused(&error))
    }

    async fn seen_digest(&self, remote: &str, path: &str, form: &str) -> Result<Option<String>, CatalogError> {
        let session = self.server.session()?;
        let sql = "SELECT digest FROM artifactapi.seen WHERE remote = $1 AND path = $2 AND form = $3";
        let parameters = [remote, path, form];
        let parameters = parameters
            .each_ref()
            .map(|text| (text as &(dyn ToSql + Sync), Type::TEXT));
        let found = async {
            Ok(session
                .lookup
                .query_typed_opt(sql, &parameters)
                .await?
                .map(|row| row.get(0)))
        };
        let answer = self.server.ask(&session, LOOKUP_LIMIT, found).await?;
        answer.map_err(|error| refused(&error))
    }

    async fn has_link(&self, remote: &str, link: NameHash) -> Result<bool, CatalogError> {
        let session = self.server.session()?;
        let hash = &link.0[..];
        let sql = "SELECT 1 FROM artifactapi.link WHERE remote = $1 AND hash = $2";
        let parameters = [(&remote as &(dyn ToSql + Sync), Type::TEXT), (&hash, Type::BYTEA)];
        let found = async { Ok(session.lookup.query_typed_opt(sql, &parameters).await?.is_some()) };
        let answer = self.server.ask(&session, LOOKUP_LIMIT, found).await?;
        answer.map_err(|error| refused(&error))
    }

    async fn last_modified(&self, remote: &str, paths: &[String]) -> Result<HashMap<String, i64>, CatalogError> {
        let session = self.server.session()?;
        let sql = "SELECT path, max(published_at) FROM artifactapi.artifact
                   WHERE remote = $1 AND path = ANY($2) AND published_at IS NOT NULL GROUP BY path";
        let parameters = [(&remote as &(dyn ToSql + Sync), Type::TEXT), (&paths, Type::TEXT_ARRAY)];
        let found = async { session.lookup.query_typed(sql, &parameters).await };
        let rows = self
            .server
            .ask(&session, LOOKUP_LIMIT, found)
            .await?
            .map_err(|error| refused(&error))?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    async fn earliest(&self, remote: &str, names: &[(NameHash, i64)]) -> Result<HashMap<NameHash, i64>, CatalogError> {
        let session = self.server.session()?;
        let mut names = names.to_vec();
        // Nodes that write at once lock the rows in one order; the earlier of two of one name comes first.
        names.sort_unstable_by_key(|(name, at)| (name.0, *at));
        names.dedup_by_key(|(name, _)| *name);
        let hashes: Vec<&[u8]> = names.iter().map(|(name, _)| &name.0[..]).collect();
        let moments: Vec<i64> = names.iter().map(|(_, at)| *at).collect();
        // The earlier of two that see it at once counts, whichever comes first.
        let sql = "INSERT INTO artifactapi.first_seen AS seen (remote, hash, at)
                       SELECT $1, hash, at FROM unnest($2, $3) WITH ORDINALITY AS name (hash, at, place) ORDER BY place
                   ON CONFLICT (remote, hash) DO UPDATE SET at = least(seen.at, excluded.at) RETURNING hash, at";
        let parameters = [
            (&remote as &(dyn ToSql + Sync), Type::TEXT),
            (&hashes, Type::BYTEA_ARRAY),
            (&moments, Type::INT8_ARRAY),
        ];
        let seen = async { session.writer.lock().await.query_typed(sql, &parameters).await };
        let rows = self
            .server
            .ask(&session, SIGHT_LIMIT, seen)
            .await?
            .map_err(|error| refused(&error))?;
        let read = rows.iter().filter_map(|row| {
            let hash: &[u8] = row.get(0);
            Some((NameHash(hash.try_into().ok()?), row.get(1)))
        });
        Ok(read.collect())
    }

    async fn let_through(&self) -> Result<Vec<LetThrough>, CatalogError> {
        let session = self.server.session()?;
        let found = let_through::all(&session.lookup);
        let answer = self.server.ask(&session, LOOKUP_LIMIT, found).await?;
        answer.map_err(|error| refused(&error))
    }

    async fn keep_let_through(&self, artifact: LetThrough) -> Result<(), CatalogError> {
        self.change(async |client| let_through::keep(client, &artifact).await)
            .await
    }

    async fn forget_let_through(&self, remote: &str, paths: Vec<String>) -> Result<(), CatalogError> {
        self.change(async |client| let_through::forget(client, remote, &paths).await)
            .await
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn healthy_at_start(&self) -> bool {
        false
    }

    async fn close(&self) {
        self.keeper.abort();
    }
}

/// Another node's batch was in the way, in one of the ways that cannot be ruled out: nothing was written.
fn is_a_collision(error: &Error) -> bool {
    matches!(
        error.code(),
        Some(&SqlState::T_R_DEADLOCK_DETECTED | &SqlState::T_R_SERIALIZATION_FAILURE)
    )
}
