//! What the catalogue was not told before the process ended, because it was away or because the end was sudden, it is told
//! after the next start: what was stored since is listed again, and what is stored no more is struck.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;

use crate::cache::{Store, Stored, parse_hash};
use crate::catalog::{Catalog, CatalogError, Event, Filter, Record};
use crate::listing::entry;

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

/// A file as old as the last moment when the catalogue had been told everything. After an orderly end there is none.
#[derive(Debug, Clone)]
pub struct Told {
    file: PathBuf,
    is_all: Arc<AtomicBool>,
}

impl Told {
    pub fn new(data_dir: &Path) -> Self {
        Told {
            file: data_dir.join("catalogue-told"),
            is_all: Arc::default(),
        }
    }

    /// Tells the catalogue what it missed before this start, then notes what it knows, for ever. `is_alone`: it lists what
    /// this node's disk holds, and nothing else.
    pub async fn keep(self, catalog: Catalog, store: &'static Store, is_alone: bool) {
        let left = fs::metadata(&self.file).and_then(|meta| meta.modified());
        if let Ok(until) = left {
            let since = until.checked_sub(MARGIN).unwrap_or(SystemTime::UNIX_EPOCH);
            let count = loop {
                match list_since(&catalog, store, since).await {
                    Ok(count) => break count,
                    Err(_) => tokio::time::sleep(PAUSE).await,
                }
            };
            tracing::info!(count, "what was stored before the process ended was listed again");
        }
        self.is_all.store(true, Relaxed);
        if is_alone {
            tokio::spawn(strike_missing(catalog.clone(), store));
        }
        loop {
            let now = SystemTime::now();
            if catalog.drain().await.is_ok()
                && let Err(error) = self.note(now)
            {
                tracing::debug!(%error, "what the catalogue knows is not noted");
            }
            tokio::time::sleep(NOTED_EVERY).await;
        }
    }

    fn note(&self, now: SystemTime) -> io::Result<()> {
        File::create(&self.file)?.set_modified(now)
    }

    /// The process ends in order, and the catalogue has been told all.
    pub fn finish(&self) {
        if self.is_all.load(Relaxed) {
            // One that is left over makes only work.
            let _ = fs::remove_file(&self.file);
        }
    }
}

/// How much that was.
///
/// # Errors
/// The catalogue is away.
async fn list_since(catalog: &Catalog, store: &'static Store, since: SystemTime) -> Result<usize, CatalogError> {
    catalog.drain().await?;
    let (sender, mut stored) = mpsc::channel(BATCH);
    tokio::task::spawn_blocking(move || {
        store.each_stored(since, |stored| {
            !stored.key.is_shared() || sender.blocking_send(event(&stored)).is_ok()
        });
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
    Ok(count)
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
    let Some(hash) = parse_hash(&record.key) else {
        return false;
    };
    // A disk that does not answer is no reason to list nothing.
    if !store.is_missing(&hash) {
        return false;
    }
    catalog.record(Event::Removed {
        remote: record.remote.clone(),
        path: record.path.clone(),
        form: record.form.clone(),
    });
    // Stored again in the same moment, its entry may be what was struck.
    if let Some(stored) = store.open_stored(&hash) {
        catalog.record(event(&stored));
    }
    true
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
