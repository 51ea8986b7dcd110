//! What the bucket has lost of what this node holds: it was deleted and made again, or somebody removed something from it.
//!
//! That an object is in the bucket is noted on this node's disk, and is true for the life of one bucket only. So now and then
//! one of those objects, by chance, is looked for; when it is missing, and once a day, all are: by a listing of the bucket and
//! a walk over the disk, without a question for each object.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::client::{Failure, within};
use super::{Bucket, LIST_LIMIT, RETRY_PAUSE, name};
use crate::breaker::Away;
use crate::cache::{Key, Stored, now_ms};

/// How often one object is looked for.
const SAMPLED_EVERY: Duration = Duration::from_secs(20);
const ALL_EVERY: Duration = Duration::from_secs(24 * 3600);
/// After what one object tells all are looked for no more often than this: somebody may keep removing them.
const AGAIN_AFTER: Duration = Duration::from_secs(600);
/// Between two pages of the listing.
const PAGE_PAUSE: Duration = Duration::from_millis(50);
/// What waits to be uploaded is not evicted, so that only so much is given to the queue at once.
const MAX_WAITING: u64 = 64;
const WAITING_PAUSE: Duration = Duration::from_millis(100);
/// What was stored so lately may be on its way from another node.
const LATELY_MS: u64 = 3_600_000;

/// Looks for ever.
pub(super) async fn keep(bucket: Arc<Bucket>) {
    // Not on all nodes at once.
    let spread = RandomState::new().hash_one(0) % 3600;
    let mut due = Instant::now() + Duration::from_secs(3600 + spread);
    let mut last: Option<Instant> = None;
    let mut pause = Duration::ZERO;
    loop {
        let is_new = tokio::time::timeout(pause, bucket.is_new.notified()).await.is_ok();
        pause = SAMPLED_EVERY;
        if !bucket.breaker.is_closed() {
            if is_new {
                bucket.is_new.notify_one();
                tokio::time::sleep(WAITING_PAUSE).await;
            }
            continue;
        }
        let may_again = last.is_none_or(|last| last.elapsed() > AGAIN_AFTER);
        if !is_new && Instant::now() < due && !(may_again && bucket.lacks_one().await) {
            continue;
        }
        match bucket.reconcile().await {
            Ok(()) => {
                due = Instant::now() + ALL_EVERY;
                last = Some(Instant::now());
            }
            Err(error) => {
                tracing::info!(%error, "it could not be found out what the bucket lacks; it is tried again");
                due = Instant::now();
                pause = RETRY_PAUSE;
            }
        }
    }
}

impl Bucket {
    /// Whether something is missing that it is known to have had.
    async fn lacks_one(self: &Arc<Self>) -> bool {
        let bucket = Arc::clone(self);
        let is_there = move |stored: &Stored| stored.backed_up && bucket.may_miss(&stored.key);
        let store = self.store;
        let sampled = tokio::task::spawn_blocking(move || store.sample(is_there)).await;
        let Ok(Some(stored)) = sampled else { return false };
        let object = name::of(&stored.key);
        match within(LIST_LIMIT, self.client.head(&object)).await {
            // The object may have been flushed meanwhile.
            Ok(None) => {
                let hash = stored.key.hash;
                let now = tokio::task::spawn_blocking(move || store.open_stored(&hash)).await;
                now.ok()
                    .flatten()
                    .is_some_and(|now| now.id == stored.id && now.backed_up)
            }
            Err(failure) if failure.is_missing_bucket() => {
                self.breaker.fail(failure.to_string());
                false
            }
            Ok(Some(_)) | Err(Failure::Refused { .. } | Failure::Unreachable(_) | Failure::Nonsense(_)) => false,
        }
    }

    /// Whether the object of `key` should be in the bucket: neither its upload nor its removal waits.
    fn may_miss(&self, key: &Key) -> bool {
        key.is_shared() && !self.queue.is_waiting(&key.hash) && !self.queue.is_removing(&key.hash)
    }

    /// Uploads again what is stored here and missing there.
    async fn reconcile(self: &Arc<Self>) -> Result<(), Away> {
        let mut there = HashSet::new();
        let mut next = None;
        loop {
            let page = self.list(next).await?;
            there.extend(page.objects.iter().filter_map(|listed| name::half_in(&listed.object)));
            next = page.next;
            if next.is_none() {
                break;
            }
            tokio::time::sleep(PAGE_PAUSE).await;
        }
        let (missing, mut found) = mpsc::channel(1);
        let bucket = Arc::clone(self);
        let walking = tokio::task::spawn_blocking(move || {
            bucket.store.each_hash(|hash| {
                if there.contains(&name::half(&hash)) {
                    return true;
                }
                let stored = bucket.store.open_stored(&hash);
                let is_old = |stored: &Stored| stored.head.stored_at.saturating_add(LATELY_MS) < now_ms();
                let stored =
                    stored.filter(|stored| bucket.may_miss(&stored.key) && (stored.backed_up || is_old(stored)));
                stored.is_none_or(|stored| missing.blocking_send(stored.described.key).is_ok())
            });
        });
        let mut count = 0_u64;
        while let Some(key) = found.recv().await {
            while self.queue.waiting().uploads >= MAX_WAITING {
                tokio::time::sleep(WAITING_PAUSE).await;
            }
            // An upload since the listing may have brought the object there.
            if self.find(&key).await?.is_none() && self.may_miss(&key) {
                self.upload_again(&key);
                count += 1;
                self.counters.missing.fetch_add(1, Relaxed);
            }
        }
        walking
            .await
            .map_err(|error| Away::Failed("s3", io::Error::other(error).to_string()))?;
        if count > 0 {
            tracing::warn!(
                objects = count,
                "the bucket had lost objects that are stored here: they are uploaded again"
            );
        }
        Ok(())
    }
}
