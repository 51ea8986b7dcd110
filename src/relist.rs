//! What the catalogue was not told before the process ended, because it was away or because the end was sudden, it is told
//! after the next start: what was stored since is listed again. What was removed meanwhile stays listed.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;

use crate::cache::{Store, Stored};
use crate::catalog::{Catalog, CatalogError, Event};
use crate::listing::entry;

/// How often it is noted that the catalogue knows everything.
const NOTED_EVERY: Duration = Duration::from_secs(30);
/// Between two tries to tell it what it missed.
const PAUSE: Duration = Duration::from_millis(500);
/// An object may be this much older than the word of it.
const MARGIN: Duration = Duration::from_secs(60);
/// Entries between two waits for the catalogue to have written them.
const BATCH: usize = 1000;

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

    /// Tells the catalogue what it missed before this start, then notes what it knows, for ever.
    pub async fn keep(self, catalog: Catalog, store: &'static Store) {
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
