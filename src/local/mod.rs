//! Local repositories: what clients upload, and nobody else has.
//!
//! - **Where the bytes live.** Without a bucket: one file for each upload below `local/` in the data folder
//!   ([`crate::cache::Kept`]), whose head says what it is. With a bucket: the object of that key in the bucket. That place alone
//!   says what there is; the catalogue (table `artifact`) only lists it, and is put right after a start.
//! - **Whole or not at all.** A body is received into a file without a name, digested as it comes. It gets its name in one
//!   step (a rename; in S3 one PUT, or the completion of one upload in parts), after all that was promised of it was found
//!   true. It is answered when that is durable: file and folders synchronised, or the bucket's 200.
//! - **Two at once.** Conditions and `overwrite` are judged twice: before the body is asked for, and in the moment of the name,
//!   under a lock on that name. Between nodes the bucket judges (`If-None-Match`, `If-Match` on the PUT); of two uploads
//!   without conditions the one that ends last stays, whole.
//! - **A DELETE** removes the file durably, or the object from the bucket, before it is answered; other nodes ask the bucket
//!   at each request, so they see it at once.
//! - **Eviction, flushes, sweeps, the recount and `disk_bytes`** know the cache's own folders only. A local file takes no part
//!   of `disk_bytes`; `quota` bounds each remote, and what `disk_min_free` keeps is kept from uploads too, for which the cache
//!   gives way. The key has a form of its own, which no flush covers, whatever became of the remote.
//! - **Damage.** `artifactapi verify`, the scrubber and readers say it, `/health` shows it, the client gets an error; the file
//!   stays, for there is no upstream. With a bucket, what is read is the bucket's.
//! - **A restart** reads nothing before it serves; behind that all that is kept is listed again, and what is not is struck.
//!   `artifactapi reindex` lists what is in the bucket.
//! - **A bucket that is configured later** gets what lies on this disk behind the start; until then that is served from here.

mod checksums;
pub mod folder;
mod in_bucket;
mod names;
mod quota;

pub use checksums::{Checksum, Malformed, checksums};
pub use names::Name;
pub use quota::Promise;

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, header};

use crate::breaker::Away;
use crate::bucket::{Bucket, NotPut, Place};
use crate::cache::{Class, Digester, FOR_EVER, Head, Incoming, Kept, Key, Object, Stored, now_ms};
use crate::catalog::{Catalog, CatalogError, Event, Filter};
use crate::listing::{entry, is_local};
use in_bucket::InBucket;
use names::Names;
use quota::Accounts;

/// Entries between two waits for the catalogue to have written them.
const BATCH: usize = 1000;
/// An answer waits no longer for the catalogue to list what has changed.
const TOLD_LIMIT: Duration = Duration::from_millis(500);
/// Between two pages of what is listed, of which nobody waits for the end.
const STRIKE_PAUSE: Duration = Duration::from_millis(50);
/// Between two tries where something does not answer, and between two looks at whether the catalogue dropped something.
const PAUSE: Duration = Duration::from_secs(5);

/// Why nothing could be done.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("the stored file is damaged, and there is no other copy of it: {0}; upload it again")]
    Damaged(String),
    #[error("{0}")]
    Disk(io::Error),
    #[error("the path is too long to be stored in the bucket: choose a shorter one")]
    Unfit,
    /// Something else is there by now than what was to be replaced.
    #[error("another upload was quicker; try again")]
    Taken,
    /// For now.
    #[error("{0}; try again")]
    Away(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => Failure::Damaged(error.to_string()),
            _ => Failure::Disk(error),
        }
    }
}

impl From<NotPut> for Failure {
    fn from(error: NotPut) -> Self {
        match error {
            NotPut::Taken => Failure::Taken,
            NotPut::Unfit => Failure::Unfit,
            NotPut::Away(why) => Failure::Away(why),
        }
    }
}

/// What is stored in local repositories.
pub struct Locals {
    kept: &'static Kept,
    bucket: Option<Arc<Bucket>>,
    catalog: Catalog,
    names: Names,
    accounts: Arc<Accounts>,
}

/// What is under a name.
#[derive(Debug)]
pub struct Current {
    pub object: Arc<Object>,
    /// Where it is in the bucket: what only an upload that replaces this very file may take.
    place: Option<Place>,
}

/// What is under a name, seen from an upload that is to take its place.
#[derive(Debug, Clone, Copy)]
pub enum Replaces<'a> {
    /// Whatever is there when it comes.
    Any,
    /// This and nothing else.
    Only(Option<&'a Current>),
}

impl Locals {
    /// Those of `kept`, or with a bucket those in there, listed in `catalog`.
    pub fn new(kept: &'static Kept, bucket: Option<Arc<Bucket>>, catalog: Catalog) -> Arc<Locals> {
        Arc::new(Locals {
            kept,
            bucket,
            catalog,
            names: Names::default(),
            accounts: Arc::default(),
        })
    }

    /// The file of `key`. `None`: there is none.
    ///
    /// # Errors
    /// The file is damaged, or what holds it does not answer.
    pub async fn find(&self, key: &Key) -> Result<Option<Current>, Failure> {
        let mut away = None;
        if let Some(bucket) = &self.bucket {
            match bucket.find(key).await {
                Ok(Some(copy)) => {
                    let place = copy.etag().map_or(Place::Any, |etag| Place::Of(etag.clone()));
                    let object = InBucket::object(bucket, copy);
                    return Ok(Some(Current {
                        object,
                        place: Some(place),
                    }));
                }
                Ok(None) => {}
                Err(error) => away = Some(Failure::Away(error.to_string())),
            }
        }
        // With a bucket: what has not been moved there yet.
        match (self.kept.find(key).await?, away) {
            (Some(object), _) => Ok(Some(Current { object, place: None })),
            (None, Some(away)) => Err(away),
            (None, None) => Ok(None),
        }
    }

    /// Begins to receive a file, of `length` bytes if that is known.
    ///
    /// # Errors
    /// There is no room, or the disk fails.
    pub async fn receive(
        &self,
        key: Key,
        content_type: HeaderValue,
        length: Option<u64>,
        digester: Digester,
    ) -> io::Result<Incoming> {
        let head = head(content_type);
        self.kept.receive(key, head, length, digester).await
    }

    /// Waits for the right to change what is under `key`.
    pub async fn name(&self, key: Key) -> Name<'_> {
        self.names.take(key).await
    }

    /// Gives what was received its name, durably. With a bucket other nodes may have been quicker.
    ///
    /// # Errors
    /// What holds it fails or does not answer, or has something else there than what it `replaces`.
    pub async fn keep(&self, name: &Name<'_>, incoming: Incoming, replaces: Replaces<'_>) -> Result<(), Failure> {
        let stored = incoming.stored()?;
        let event = listed(&stored);
        match &self.bucket {
            None => incoming.keep().await.map_err(Failure::Disk)?,
            Some(bucket) => {
                let place = match replaces {
                    Replaces::Any => Place::Any,
                    Replaces::Only(found) => found.and_then(|found| found.place.clone()).unwrap_or(Place::Empty),
                };
                bucket.put_now(stored, place).await?;
                // What this node had before there was a bucket.
                self.remove_kept(name.key()).await?;
            }
        }
        self.tell(event).await;
        Ok(())
    }

    /// Removes what is under a name, durably; whether there was something.
    ///
    /// # Errors
    /// What holds it fails or does not answer.
    pub async fn remove(&self, name: &Name<'_>) -> Result<bool, Failure> {
        let key = name.key();
        let mut was_there = false;
        if let Some(bucket) = &self.bucket {
            let away = |error: Away| Failure::Away(error.to_string());
            was_there = bucket.find(key).await.map_err(away)?.is_some();
            if was_there {
                bucket.remove_now(key).await.map_err(away)?;
            }
        }
        was_there |= self.remove_kept(key).await?;
        self.tell(struck(key)).await;
        Ok(was_there)
    }

    /// Has the catalogue know of a change before that is answered, unless it takes too long: it is no part of what is promised.
    async fn tell(&self, event: Event) {
        self.catalog.record(event);
        // What it is told later is told all the same.
        let _ = tokio::time::timeout(TOLD_LIMIT, self.catalog.drain()).await;
    }

    async fn remove_kept(&self, key: &Key) -> Result<bool, Failure> {
        let (kept, hash) = (self.kept, key.hash);
        let removed = tokio::task::spawn_blocking(move || kept.remove(&hash)).await;
        let removed = removed.unwrap_or_else(|_| Err(io::Error::other("it was given up")));
        removed.map_err(Failure::Disk)
    }

    /// What is wrong with what is stored, for people.
    pub fn trouble(&self) -> Option<String> {
        self.kept.trouble()
    }

    /// Lists all that is kept in the catalogue, and strikes what is not: after a start, and when the catalogue dropped
    /// something. With a bucket, moves it there. For ever.
    pub async fn keep_listed(self: Arc<Self>) {
        if let Some(bucket) = &self.bucket {
            while !self.move_to(bucket).await {
                tokio::time::sleep(PAUSE).await;
            }
            return;
        }
        loop {
            let dropped = self.catalog.dropped();
            match self.list_again().await {
                Ok(()) => {}
                Err(CatalogError::Closed) => return,
                Err(_) => {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            }
            while self.catalog.dropped() == dropped {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Moves what was kept here before there was a bucket; `false`: some of it is still here.
    async fn move_to(&self, bucket: &Arc<Bucket>) -> bool {
        let (sender, mut found) = tokio::sync::mpsc::channel(1);
        let kept = self.kept;
        let walking = tokio::task::spawn_blocking(move || kept.each(|stored| sender.blocking_send(stored).is_ok()));
        let mut all = true;
        while let Some(stored) = found.recv().await {
            let name = self.name(stored.key.clone()).await;
            if kept.is_missing(&stored.key.hash) {
                continue;
            }
            let (key, event) = (stored.key.clone(), listed(&stored));
            let moved = match bucket.put_now(stored, Place::Empty).await {
                Ok(()) => {
                    self.catalog.record(event);
                    self.remove_kept(name.key()).await.is_ok()
                }
                // Uploaded to another node since: that is the newer one.
                Err(NotPut::Taken) => self.remove_kept(name.key()).await.is_ok(),
                Err(error) => {
                    tracing::warn!(key = %key.shown(), %error, "a local file is not in the bucket yet: it is served from this node, and tried again");
                    false
                }
            };
            all &= moved;
        }
        all && walking.await.unwrap_or(false)
    }

    async fn list_again(&self) -> Result<(), CatalogError> {
        let (sender, mut found) = tokio::sync::mpsc::channel(BATCH);
        let kept = self.kept;
        let walking =
            tokio::task::spawn_blocking(move || kept.each(|stored| sender.blocking_send(listed(&stored)).is_ok()));
        let mut count = 0;
        while let Some(event) = found.recv().await {
            self.catalog.record(event);
            count += 1;
            if count % BATCH == 0 {
                self.catalog.drain().await?;
            }
        }
        self.catalog.drain().await?;
        let saw_all = walking.await.unwrap_or(false);
        if saw_all && !self.catalog.is_shared() {
            self.strike_missing().await?;
        }
        Ok(())
    }

    async fn strike_missing(&self) -> Result<(), CatalogError> {
        let mut after = None;
        loop {
            let page = self.catalog.matching(&Filter::default(), after, BATCH).await?;
            let kept = self.kept;
            let local = page.records.into_iter().filter(is_local);
            let keys: Vec<Key> = local
                .map(|record| Key::of_local(&record.remote, &record.path))
                .collect();
            let missing = tokio::task::spawn_blocking(move || {
                let missing = keys.into_iter().filter(|key| kept.is_missing(&key.hash));
                missing.collect::<Vec<_>>()
            });
            for key in missing.await.unwrap_or_default() {
                let _name = self.name(key.clone()).await;
                if self.kept.is_missing(&key.hash) {
                    self.catalog.record(struck(&key));
                }
            }
            after = page.next;
            if after.is_none() {
                return Ok(());
            }
            tokio::time::sleep(STRIKE_PAUSE).await;
        }
    }
}

/// The header of a file that is uploaded now.
fn head(content_type: HeaderValue) -> Head {
    let mut headers = HeaderMap::with_capacity(2);
    headers.insert(header::CONTENT_TYPE, content_type);
    let now = httpdate::fmt_http_date(SystemTime::now());
    headers.insert(header::LAST_MODIFIED, crate::headers::value(&now));
    Head {
        url: String::new(),
        headers,
        content_length: None,
        stored_at: now_ms(),
        unframed: false,
        ranges: true,
        stands_for: None,
    }
}

/// A file as the catalogue lists it.
fn listed(stored: &Stored) -> Event {
    let seen = i64::try_from(stored.head.stored_at / 1000).unwrap_or(0);
    let object = entry(
        &stored.key,
        &stored.head,
        &stored.finished,
        Class::Mutable,
        FOR_EVER,
        seen,
    );
    Event::Stored {
        object: Box::new(object),
    }
}

fn struck(key: &Key) -> Event {
    let parts = key.parts();
    Event::Removed {
        remote: parts.remote.to_owned(),
        path: parts.path.to_owned(),
        form: parts.form.to_owned(),
    }
}
