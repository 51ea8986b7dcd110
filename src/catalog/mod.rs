//! What is stored, for people: listings, flushes by pattern, and the links that indexes have named.
//!
//! The catalogue is never asked on the way to an answer, with two exceptions that fail safe ([`Catalog::has_link`], and
//! [`Catalog::seen_digest`] where changes are refused).
//! Request paths tell it what happened ([`Catalog::record`], [`Catalog::hits`]): that touches memory only, never blocks
//! and never fails. A thread of its own writes what has gathered in batches. An outage of the database costs listings
//! and, after a while, counted events; it never costs an answer.
//!
//! A database is added by one file that implements [`Backend`], like [`sqlite`].

mod answer;
mod backend;
mod change;
mod column;
mod cursor;
mod flush;
mod let_through;
mod postgres;
mod query;
mod queue;
mod record;
mod sqlite;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

pub use answer::{Artifact, FlushAnswer, ListAnswer, rfc3339};
pub use backend::{Backend, CatalogError, Found, Scan, Totals};
pub use change::{Batch, Change, NameHash, ObjectKey, Op};
pub use cursor::{Position, SortValue};
pub use flush::{FlushMode, FlushRequest};
pub use let_through::{LetThrough, MOST_LET_THROUGH};
pub use postgres::Postgres;
pub use query::{Filter, ListQuery, MAX_LIMIT, QueryError, Sort, SortField};
pub use queue::CatalogStatus;
pub use record::{Class, Event, Record, unix_now};

use crate::breaker::Breaker;
use crate::config::Database;
use queue::Shared;

/// How long [`Catalog::close`] waits for the last batch.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);
/// How long [`Catalog::drain`] waits for a database that takes its time.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// How long [`Catalog::add_links`] waits for room among links that are not yet in the database.
const LINK_ROOM_LIMIT: Duration = Duration::from_secs(10);
/// Files whose first sight is asked for in one transaction.
const SEEN_AT_ONCE: usize = 10_000;

/// A page of a listing.
#[derive(Debug, Clone)]
pub struct Page {
    /// May be fewer than the limit, even none, while `next` is set.
    pub records: Vec<Record>,
    /// Opaque; `None` at the end.
    pub next: Option<String>,
    /// On the first page only.
    pub totals: Option<Totals>,
}

/// A page of what a flush matches.
#[derive(Debug, Clone)]
pub struct Matches {
    /// May be empty while `next` is set.
    pub records: Vec<Record>,
    /// What to pass as `after`; `None` at the end.
    pub next: Option<Position>,
}

/// A handle on the catalogue; clones share it. When the last one is dropped, the writer writes what it has and ends.
#[derive(Clone)]
pub struct Catalog {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    backend: Arc<dyn Backend>,
    whole: Mutex<Option<Whole>>,
}

/// When the catalogue listed all that this node stores.
#[derive(Debug, Clone, Copy)]
struct Whole {
    mark: i32,
    /// Changes that had been dropped by then.
    dropped: u64,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Catalog")
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

impl Catalog {
    /// Opens `catalog.db` in `dir`, making both where they are missing, and starts the writer. Takes milliseconds
    /// whatever the size. A damaged file is moved aside and a new one begun; a database that cannot be opened for now
    /// (disk full, locked) is tried again by the writer, and `status` says so until then.
    ///
    /// # Errors
    /// [`CatalogError::Newer`], and [`CatalogError::Unavailable`] when no thread can be started.
    pub fn open(dir: &Path) -> Result<Catalog, CatalogError> {
        Catalog::with_backend(Arc::new(sqlite::Sqlite::open(dir)?))
    }

    /// A catalogue that other nodes share. Never waits for the database, which is connected to on `runtime`, and again
    /// whenever it was away; `status` says how it is. The breaker is for whoever shows how all dependencies are.
    ///
    /// # Errors
    /// [`CatalogError::Unavailable`] when no thread can be started.
    pub fn open_postgres(
        settings: &Database,
        runtime: &tokio::runtime::Handle,
    ) -> Result<(Catalog, Arc<Breaker>), CatalogError> {
        let postgres = Postgres::new(settings, runtime);
        let breaker = postgres.breaker().clone();
        Ok((Catalog::with_backend(postgres)?, breaker))
    }

    /// A catalogue on any database.
    ///
    /// # Errors
    /// [`CatalogError::Unavailable`] when no thread can be started.
    pub fn with_backend(backend: Arc<dyn Backend>) -> Result<Catalog, CatalogError> {
        let shared = Arc::new(Shared::new(backend.healthy_at_start()));
        queue::start_writer(shared.clone(), backend.clone())?;
        Ok(Catalog {
            inner: Arc::new(Inner {
                shared,
                backend,
                whole: Mutex::new(None),
            }),
        })
    }

    /// Takes note of what happened. Touches memory only: no waiting, no failing. Events of one object are merged, in
    /// order, until they are written, so a thousand hits are one row's update. When the queue is full (a database that
    /// has been away for long), first hits and refreshes of further objects are dropped and counted, then the rest.
    pub fn record(&self, event: Event) {
        self.inner.shared.record(event);
    }

    /// [`Event::Hit`], `hits` of them at once and without owned texts.
    pub fn hits(&self, remote: &str, path: &str, form: &str, hits: u64, at: i64) {
        self.inner.shared.hits(remote, path, form, hits, at);
    }

    /// Waits until everything that was recorded before this call is in the database.
    ///
    /// # Errors
    /// A write failed, or some seconds have passed; what was recorded is kept and tried again all the same.
    pub async fn drain(&self) -> Result<(), CatalogError> {
        let written = tokio::time::timeout(DRAIN_LIMIT, self.inner.shared.drain()).await;
        written.unwrap_or(Err(CatalogError::Busy("what was recorded is still being written")))
    }

    /// A page of a listing. What was recorded in the last second may be missing; call [`Catalog::drain`] first where
    /// that matters.
    ///
    /// # Errors
    /// When the database does not answer in time.
    pub async fn list(&self, query: ListQuery) -> Result<Page, CatalogError> {
        let first = query.after.is_none();
        let scan = Scan {
            filter: query.filter.narrowed(),
            sort: query.sort,
            after: query.after.clone(),
            limit: query.limit,
            totals: first,
        };
        let found = self.inner.backend.scan(scan).await?;
        Ok(Page {
            next: found.next.map(|position| query.cursor(&position)),
            records: found.records,
            totals: found.totals.filter(|_| first),
        })
    }

    /// One object by its path; of several forms the first by name.
    ///
    /// # Errors
    /// When the database does not answer in time.
    pub async fn get(&self, remote: &str, path: &str) -> Result<Option<Record>, CatalogError> {
        self.inner.backend.get(remote, path).await
    }

    /// A page of what a flush matches, in the order of paths. Pages stay right while what they named is removed. Call
    /// [`Catalog::drain`] before the first.
    ///
    /// # Errors
    /// When the database does not answer in time.
    pub async fn matching(
        &self,
        filter: &Filter,
        after: Option<Position>,
        limit: usize,
    ) -> Result<Matches, CatalogError> {
        self.page(filter, Sort::default(), after, limit).await
    }

    /// A page of what matches, what was seen first a short while ago before the rest.
    ///
    /// # Errors
    /// When the database does not answer in time.
    pub async fn newest(
        &self,
        filter: &Filter,
        after: Option<Position>,
        limit: usize,
    ) -> Result<Matches, CatalogError> {
        let sort = Sort {
            field: SortField::FirstSeen,
            descending: true,
        };
        self.page(filter, sort, after, limit.min(MAX_LIMIT)).await
    }

    /// How much matches; `None` if counting would take too long. Call [`Catalog::drain`] before.
    ///
    /// # Errors
    /// When the database does not answer in time.
    pub async fn totals(&self, filter: &Filter) -> Result<Option<Totals>, CatalogError> {
        let scan = Scan {
            filter: filter.narrowed(),
            sort: Sort::default(),
            after: None,
            limit: 1,
            totals: true,
        };
        Ok(self.inner.backend.scan(scan).await?.totals)
    }

    async fn page(
        &self,
        filter: &Filter,
        sort: Sort,
        after: Option<Position>,
        limit: usize,
    ) -> Result<Matches, CatalogError> {
        let scan = Scan {
            filter: filter.narrowed(),
            sort,
            after,
            limit: limit.max(1),
            totals: false,
        };
        let found = self.inner.backend.scan(scan).await?;
        Ok(Matches {
            records: found.records,
            next: found.next,
        })
    }

    /// All artifacts that somebody lets through, the latest first; at most [`MOST_LET_THROUGH`].
    ///
    /// # Errors
    /// When the database does not answer in time.
    pub async fn let_through(&self) -> Result<Vec<LetThrough>, CatalogError> {
        self.inner.backend.let_through().await
    }

    /// Keeps that an artifact is let through, in place of what was kept of it before. Durable when this returns.
    ///
    /// # Errors
    /// When the database does not answer in time.
    pub async fn keep_let_through(&self, artifact: LetThrough) -> Result<(), CatalogError> {
        self.inner.backend.keep_let_through(artifact).await
    }

    /// Forgets that artifacts under these paths of `remote` are let through.
    ///
    /// # Errors
    /// When the database does not answer in time.
    pub async fn forget_let_through(&self, remote: &str, paths: Vec<String>) -> Result<(), CatalogError> {
        self.inner.backend.forget_let_through(remote, paths).await
    }

    /// Keeps links to other hosts that an index of `remote` named. [`Catalog::has_link`] sees them at once; they are
    /// durable after the next batch. Waits while too many are unwritten, so a large index is paced by the database.
    ///
    /// # Errors
    /// When there was no room for some of them in time: the index has to be read again to know those.
    pub async fn add_links(&self, remote: &str, urls: impl IntoIterator<Item = String>) -> Result<(), CatalogError> {
        let links = urls.into_iter().map(|url| NameHash::new(&url)).collect();
        self.inner.shared.add_links(remote, links, LINK_ROOM_LIMIT).await
    }

    /// The digest that an immutable object was stored with last, also where it is stored no more. `None`: it never was, or a
    /// moment ago only.
    ///
    /// # Errors
    /// When the database does not answer in time.
    pub async fn seen_digest(&self, remote: &str, path: &str, form: &str) -> Result<Option<String>, CatalogError> {
        self.inner.backend.seen_digest(remote, path, form).await
    }

    /// Whether an index of `remote` ever named exactly this URL.
    ///
    /// # Errors
    /// When it is not among the latest and the database does not answer.
    pub async fn has_link(&self, remote: &str, url: &str) -> Result<bool, CatalogError> {
        let link = NameHash::new(url);
        if self.inner.shared.has_link(remote, link) {
            return Ok(true);
        }
        self.inner.backend.has_link(remote, link).await
    }

    /// When each of `files`, as `index` calls them, was first seen, in Unix seconds: those that never were are seen at `now`.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn first_seen(
        &self,
        remote: &str,
        index: &str,
        files: impl IntoIterator<Item = String>,
        now: u64,
    ) -> Result<HashMap<String, u64>, CatalogError> {
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        let files: Vec<String> = files.into_iter().collect();
        let mut first_seen = HashMap::with_capacity(files.len());
        for part in files.chunks(SEEN_AT_ONCE) {
            let names: Vec<(NameHash, i64)> = part.iter().map(|file| (NameHash::of_file(index, file), now)).collect();
            let seen = self.inner.backend.earliest(remote, &names).await?;
            for (file, (name, _)) in part.iter().zip(names) {
                let at = seen.get(&name).copied().unwrap_or(now);
                first_seen.insert(file.clone(), u64::try_from(at).unwrap_or(0));
            }
        }
        Ok(first_seen)
    }

    /// The date that clients are told of each of `files`, as `index` calls them, in Unix seconds: the earliest that was known
    /// at any time of when upstream changed what is stored under its path, which comes second, and of first sight, which is `now`
    /// for those that never were. Once told, a date never gets later.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn dates(
        &self,
        remote: &str,
        index: &str,
        files: &[(String, Option<String>)],
        now: u64,
    ) -> Result<HashMap<String, u64>, CatalogError> {
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        let mut dates = HashMap::with_capacity(files.len());
        for part in files.chunks(SEEN_AT_ONCE) {
            let paths: Vec<String> = part.iter().filter_map(|(_, path)| path.clone()).collect();
            let modified = self.inner.backend.last_modified(remote, &paths).await?;
            let each = part.iter().map(|(file, path)| {
                let modified = path.as_ref().and_then(|path| modified.get(path));
                let date = modified.map_or(now, |modified| now.min(*modified));
                [
                    (NameHash::of_file(index, file), now),
                    (NameHash::of_date(index, file), date),
                ]
            });
            let names: Vec<[(NameHash, i64); 2]> = each.collect();
            let known = self.inner.backend.earliest(remote, names.as_flattened()).await?;
            for ((file, _), names) in part.iter().zip(names) {
                let each = names.iter().map(|(name, at)| known.get(name).unwrap_or(at));
                let date = each.min().copied().unwrap_or(now);
                dates.insert(file.clone(), u64::try_from(date).unwrap_or(0));
            }
        }
        Ok(dates)
    }

    /// Whether all that this node stores is listed: a flush that is made by what is listed misses nothing then.
    ///
    /// That is known of a catalogue that was told all ([`Catalog::has_been_told_all`]), is the same database still, and dropped
    /// no change since. A shared one never is: what one node evicts is struck though another may have it.
    pub async fn lists_all(&self) -> bool {
        let Some(whole) = *self.inner.whole.lock() else {
            return false;
        };
        self.mark().await.is_ok_and(|mark| mark == whole.mark && mark != 0) && self.dropped() == whole.dropped
    }

    /// All that is stored was listed, but for `dropped` changes of [`Catalog::dropped`], in the database that bears `mark`.
    pub fn has_been_told_all(&self, mark: i32, dropped: u64) {
        *self.inner.whole.lock() = Some(Whole { mark, dropped });
    }

    /// Stored and removed objects that were not listed, or struck, because the queue was full or closed.
    pub fn dropped(&self) -> u64 {
        self.inner.shared.status().dropped_changes
    }

    /// The number that was last kept with what is listed; 0 if none was, as in a catalogue that was begun anew.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn mark(&self) -> Result<i32, CatalogError> {
        self.inner.backend.mark().await
    }

    /// Keeps a number with what is listed. Not in a shared catalogue.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn set_mark(&self, mark: i32) -> Result<(), CatalogError> {
        self.inner.backend.set_mark(mark).await
    }

    /// Whether it lists what other nodes have, too.
    pub fn is_shared(&self) -> bool {
        self.inner.backend.is_shared()
    }

    /// Cheap: for health and metrics.
    pub fn status(&self) -> CatalogStatus {
        self.inner.shared.status()
    }

    /// Writes what is queued and ends the writer, within some seconds. What is recorded afterwards is dropped.
    pub async fn close(&self) {
        self.inner.shared.stop();
        if tokio::time::timeout(CLOSE_LIMIT, self.inner.shared.ended())
            .await
            .is_err()
        {
            tracing::warn!(
                queued = self.status().queued,
                "the catalogue's last batch was not written in time"
            );
        }
    }
}
