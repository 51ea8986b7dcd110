//! What the catalogue was not told, because it was away, because the process ended suddenly, or because it is a new one, it is
//! told later: what was stored since is listed again, and what is stored no more is struck.

use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;

use crate::cache::{Hash, Store, Stored, parse_hash};
use crate::catalog::{Catalog, CatalogError, Event, Filter, Record};
use crate::listing::{entry, is_local};

/// How often it is noted that the catalogue knows everything.
const NOTED_EVERY: Duration = Duration::from_secs(30);
/// Between two tries to tell it what it missed.
const PAUSE: Duration = Duration::from_millis(500);
/// An object may be this much older than the word of it.
const MARGIN: Duration = Duration::from_secs(60);
/// Entries between two waits for the catalogue to have written them.
const BATCH: usize = 1000;
/// Between two batches of entries whose files are looked for: nobody waits for this.
const STRIKE_PAUSE: Duration = Duration::from_millis(50);

/// What is known of what the catalogue knows.
///
/// A file is as old as the last moment when the catalogue had been told everything since the one before; after an orderly end
/// there is none. Another has the catalogue's mark if it lists all that is stored: one that is begun anew has no mark.
#[derive(Debug, Clone)]
pub struct Told {
    file: PathBuf,
    whole: PathBuf,
    /// Dropped changes that were made up for; `UNTOLD` until all was told.
    dropped: Arc<AtomicU64>,
}

/// More than will ever be dropped.
const UNTOLD: u64 = u64::MAX;

impl Told {
    pub fn new(data_dir: &Path) -> Self {
        Told {
            file: data_dir.join("catalogue-told"),
            whole: data_dir.join("catalogue-whole"),
            dropped: Arc::new(AtomicU64::new(UNTOLD)),
        }
    }

    /// Tells the catalogue what it missed before this start, and what it drops while it runs, and notes what it knows, for
    /// ever. `is_alone`: it lists what this node's disk holds, and nothing else.
    pub async fn keep(self, catalog: Catalog, store: &'static Store, is_alone: bool) {
        let left = fs::metadata(&self.file).and_then(|meta| meta.modified());
        let mut since = left.ok();
        if since.is_none()
            && let Err(error) = self.note(SystemTime::now())
        {
            tracing::debug!(%error, "what the catalogue knows is not noted");
        }
        if catalog.is_shared() {
            // Meanwhile the node's own is told nothing.
            let _ = fs::remove_file(&self.whole);
        }
        let mut is_first = true;
        loop {
            let dropped = catalog.dropped();
            let mark = loop {
                match self.tell(&catalog, store, since).await {
                    Ok(mark) => break mark,
                    Err(CatalogError::Closed) => return,
                    Err(_) => tokio::time::sleep(PAUSE).await,
                }
                // Nothing is looked at in vain while it is away.
                while let Err(error) = catalog.drain().await {
                    if matches!(error, CatalogError::Closed) {
                        return;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            };
            if let Some(mark) = mark {
                catalog.has_been_told_all(mark, dropped);
            }
            self.dropped.store(dropped, Relaxed);
            if is_alone && is_first {
                tokio::spawn(strike_missing(catalog.clone(), store));
            }
            is_first = false;
            since = Some(self.note_while_whole(&catalog, mark, dropped, since).await);
        }
    }

    /// Lists what was stored `since`, or all where the catalogue is not known to list it. The catalogue's mark, if it is its
    /// own node's and lists everything now.
    ///
    /// # Errors
    /// The catalogue is away.
    async fn tell(
        &self,
        catalog: &Catalog,
        store: &'static Store,
        since: Option<SystemTime>,
    ) -> Result<Option<i32>, CatalogError> {
        let noted = fs::read_to_string(&self.whole).ok().and_then(|mark| mark.parse().ok());
        let is_whole = match noted {
            Some(mark) => catalog.mark().await? == mark,
            None => catalog.is_shared(),
        };
        let mut saw_all = true;
        if let Some(since) = if is_whole { since } else { Some(SystemTime::UNIX_EPOCH) } {
            let (count, all) = list_since(catalog, store, since.checked_sub(MARGIN).unwrap_or(since)).await?;
            saw_all = all;
            tracing::info!(count, "what was stored and may not be listed was listed again");
        }
        if catalog.is_shared() {
            return Ok(None);
        }
        if !saw_all {
            let _ = fs::remove_file(&self.whole);
            return Ok(None);
        }
        if let Some(mark) = noted.filter(|_| is_whole) {
            return Ok(Some(mark));
        }
        let mark = i32::try_from(RandomState::new().hash_one(SystemTime::now()) >> 34)
            .unwrap_or(1)
            .max(1);
        catalog.set_mark(mark).await?;
        let written = fs::write(&self.whole, mark.to_string());
        // All is listed once more after the next start.
        Ok(written.is_ok().then_some(mark))
    }

    /// Notes now and then that the catalogue knows everything, until it does not: when it last did.
    async fn note_while_whole(
        &self,
        catalog: &Catalog,
        mark: Option<i32>,
        dropped: u64,
        since: Option<SystemTime>,
    ) -> SystemTime {
        let mut last = since.unwrap_or(SystemTime::UNIX_EPOCH);
        loop {
            let now = SystemTime::now();
            if catalog.drain().await.is_ok() {
                let bears = match mark {
                    Some(mark) => catalog.mark().await.map_or(true, |found| found == mark),
                    None => true,
                };
                if catalog.dropped() != dropped || !bears {
                    return last;
                }
                last = now;
                if let Err(error) = self.note(now) {
                    tracing::debug!(%error, "what the catalogue knows is not noted");
                }
            }
            tokio::time::sleep(NOTED_EVERY).await;
        }
    }

    fn note(&self, now: SystemTime) -> io::Result<()> {
        File::create(&self.file)?.set_modified(now)
    }

    /// The process ends in order, and the catalogue has been told all.
    pub fn finish(&self, catalog: &Catalog) {
        if self.dropped.load(Relaxed) == catalog.dropped() {
            // One that is left over makes only work.
            let _ = fs::remove_file(&self.file);
        }
    }
}

/// How much that was, and whether all could be read.
///
/// # Errors
/// The catalogue is away.
async fn list_since(
    catalog: &Catalog,
    store: &'static Store,
    since: SystemTime,
) -> Result<(usize, bool), CatalogError> {
    let (sender, mut stored) = mpsc::channel(BATCH);
    let walking = tokio::task::spawn_blocking(move || {
        store.each_stored(since, |stored| {
            !stored.key.is_shared() || sender.blocking_send(event(&stored)).is_ok()
        })
    });
    let mut count = 0;
    while let Some(event) = stored.recv().await {
        catalog.record(event);
        count += 1;
        if count % BATCH == 0 {
            catalog.drain().await?;
        }
    }
    catalog.drain().await?;
    Ok((count, walking.await.unwrap_or(false)))
}

/// Strikes what the catalogue lists and is not stored: evicted, or found damaged, before it could be told.
async fn strike_missing(catalog: Catalog, store: &'static Store) {
    let (filter, mut after, mut count) = (Filter::default(), None, 0);
    loop {
        let page = match catalog.matching(&filter, after.clone(), BATCH).await {
            Ok(page) => page,
            Err(CatalogError::Closed) => return,
            Err(_) => {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let striking = catalog.clone();
        let struck = tokio::task::spawn_blocking(move || {
            let is_missing = |record: &Record| strike_if_missing(&striking, store, record);
            page.records.iter().filter(|record| is_missing(record)).count()
        });
        count += struck.await.unwrap_or(0);
        after = page.next;
        if after.is_none() {
            break;
        }
        tokio::time::sleep(STRIKE_PAUSE).await;
    }
    if count > 0 {
        tracing::info!(count, "what is stored no more was struck from the catalogue");
    }
}

fn strike_if_missing(catalog: &Catalog, store: &Store, record: &Record) -> bool {
    let Some(hash) = parse_hash(&record.key).filter(|_| !is_local(record)) else {
        return false;
    };
    // A disk that does not answer is no reason to list nothing.
    if !store.is_missing(&hash) {
        return false;
    }
    let (remote, path, form) = (record.remote.clone(), record.path.clone(), record.form.clone());
    strike(catalog, store, &hash, Event::Removed { remote, path, form });
    true
}

/// Records that what was under `hash` is `removed`. Blocks.
pub fn strike(catalog: &Catalog, store: &Store, hash: &Hash, removed: Event) {
    catalog.record(removed);
    // Stored again in the same moment, its entry may be what was struck.
    if let Some(stored) = store.open_stored(hash).filter(|stored| stored.key.is_shared()) {
        catalog.record(event(&stored));
    }
}

fn event(stored: &Stored) -> Event {
    let seen = i64::try_from(stored.checked_at / 1000).unwrap_or(0);
    let entry = entry(
        &stored.key,
        &stored.head,
        &stored.finished,
        stored.class,
        stored.fresh_until,
        seen,
    );
    Event::Stored {
        object: Box::new(entry),
    }
}
