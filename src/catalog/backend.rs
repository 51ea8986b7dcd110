//! What a database must be able to do to hold the catalogue.

use std::collections::HashMap;

use async_trait::async_trait;

use super::change::{Batch, NameHash};
use super::cursor::Position;
use super::let_through::LetThrough;
use super::query::{Filter, Sort};
use super::record::Record;

/// Why the catalogue could not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CatalogError {
    /// The file was written by a later version. It is left as it is.
    #[error(
        "{file} has schema version {found}, this program knows up to {known}: run the newer version, or move the file \
         away to start a new catalogue"
    )]
    Newer { file: String, found: i64, known: i64 },
    /// The database does not answer, for now: it is tried again by itself.
    #[error("the catalogue is not available: {0}")]
    Unavailable(String),
    /// Too much is being asked of it at once.
    #[error("the catalogue is busy: {0}")]
    Busy(&'static str),
    /// [`super::Catalog::close`] was called.
    #[error("the catalogue is closed")]
    Closed,
}

/// One question to a database: the objects that match `filter`, in the order of `sort`, after a position.
#[derive(Debug, Clone)]
pub struct Scan {
    pub filter: Filter,
    pub sort: Sort,
    pub after: Option<Position>,
    pub limit: usize,
    /// Count everything that matches, too.
    pub totals: bool,
}

/// The answer to a [`Scan`].
#[derive(Debug, Default)]
pub struct Found {
    /// Fewer than the limit, even none, does not mean the end: a scan examines a bounded number of rows.
    pub records: Vec<Record>,
    /// Where to go on; `None` at the end.
    pub next: Option<Position>,
    /// `None` if not asked for, or if counting would have taken too long.
    pub totals: Option<Totals>,
}

/// How much matches a filter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    pub objects: u64,
    pub bytes: u64,
}

/// A database that holds the catalogue. Methods are asynchronous so that a networked one fits. `apply` is only ever
/// called by the writer's own thread, one call at a time, and may block it; the others are called from any runtime and
/// must not block.
///
/// The schema's order of texts is that of their bytes (in PostgreSQL: `COLLATE "C"`): positions are compared so.
#[deny(missing_docs)]
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Writes a batch, all or nothing. It may be given the same batch again after an error, also after one where the
    /// batch was in fact written (then hits count twice, nothing worse).
    async fn apply(&self, batch: &Batch) -> Result<(), CatalogError>;
    /// A page, in bounded time.
    async fn scan(&self, scan: Scan) -> Result<Found, CatalogError>;
    /// One object; of several forms the first by name.
    async fn get(&self, remote: &str, path: &str) -> Result<Option<Record>, CatalogError>;
    /// The digest that an immutable object was stored with last, also where it is stored no more. `None`: it never was.
    async fn seen_digest(&self, remote: &str, path: &str, form: &str) -> Result<Option<String>, CatalogError>;
    /// Whether a link was ever added.
    async fn has_link(&self, remote: &str, link: NameHash) -> Result<bool, CatalogError>;
    /// The earliest moment that was ever given for each of these names of `remote`, in Unix seconds, that which is given now
    /// included, and that is durable before it is answered.
    async fn earliest(&self, remote: &str, names: &[(NameHash, i64)]) -> Result<HashMap<NameHash, i64>, CatalogError>;
    /// When upstream changed what is stored under each of these paths, by its `Last-Modified`, in Unix seconds, where that is
    /// known.
    async fn last_modified(&self, remote: &str, paths: &[String]) -> Result<HashMap<String, i64>, CatalogError>;
    /// Whether the database answered when it was opened. If not, the writer begins with an empty batch: a database that
    /// is connected to only there says no here.
    fn healthy_at_start(&self) -> bool;
    /// Whether other nodes write to it too.
    fn is_shared(&self) -> bool {
        false
    }
    /// The number that [`Backend::set_mark`] was given last; 0 for a database that was begun anew since, and for a shared one.
    async fn mark(&self) -> Result<i32, CatalogError> {
        Ok(0)
    }
    /// Keeps a number with what is listed.
    async fn set_mark(&self, _: i32) -> Result<(), CatalogError> {
        Ok(())
    }
    /// What is let through, the latest first; at most [`super::MOST_LET_THROUGH`].
    async fn let_through(&self) -> Result<Vec<LetThrough>, CatalogError>;
    /// Keeps what is let through, in place of what was kept under its remote and path.
    async fn keep_let_through(&self, artifact: LetThrough) -> Result<(), CatalogError>;
    /// Forgets what is let through under these paths of a remote.
    async fn forget_let_through(&self, remote: &str, paths: Vec<String>) -> Result<(), CatalogError>;
    /// Called after the last batch.
    async fn close(&self);
}
