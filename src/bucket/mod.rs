//! The object tier in S3: what every node of a fleet, and a later life of this one, can read.
//!
//! Nothing here is on the way to an answer but [`Bucket::find`] and [`Bucket::read`], which give up within seconds and ask
//! nothing while the service is away ([`crate::breaker`]). What is stored is uploaded behind the answer from a durable
//! queue ([`queue`]), so an outage delays uploads and loses none.
//!
//! An object is its body as it is, under a name that a person can read ([`name`]), with metadata from which all that is
//! known of it is rebuilt ([`metadata`]). Neither locks nor compare-and-swap are asked of the service: what is named by its
//! content is the same whoever puts it, and of the rest the fleet says which is current ([`Arbiter`]).

mod arbiter;
mod ask;
mod client;
mod direct;
mod find;
mod health;
mod janitor;
mod marker;
mod metadata;
mod name;
mod queue;
mod reconcile;
pub mod reindex;
mod start;
mod upload;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Notify;

pub use arbiter::{Arbiter, Undisputed};
pub use client::{Client, Failure, Listed, Page, Unfinished, told};
pub use direct::{NotPut, Place};
pub use find::{Copy, Pieces};
pub use health::BucketStatus;
pub use name::PREFIX;
use queue::Queue;

use crate::breaker::{Away, Breaker};
use crate::cache::{Backup, Hash, Key, Millis, Store};
use crate::config;

/// A request waits no longer to hear whether the bucket has something.
const FIND_LIMIT: Duration = Duration::from_secs(1);
/// A page of a listing, of which nobody's download waits.
const LIST_LIMIT: Duration = Duration::from_secs(10);
/// Between two tries where something that is not urgent failed.
const RETRY_PAUSE: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Counters {
    uploaded: AtomicU64,
    uploaded_bytes: AtomicU64,
    failed: AtomicU64,
    removed: AtomicU64,
    unfit: AtomicU64,
    outdated: AtomicU64,
    missing: AtomicU64,
}

/// The bucket that this node shares.
pub struct Bucket {
    client: Client,
    queue: Queue,
    breaker: Arc<Breaker>,
    store: &'static Store,
    runtime: Handle,
    counters: Counters,
    trouble: Mutex<Option<String>>,
    /// Why it takes no uploads though it answers, and since when.
    refusing: Mutex<Option<(String, Instant)>>,
    /// When it was last found to take uploads again.
    takes_since: Mutex<Option<Instant>>,
    /// When it last took one.
    took: Mutex<Option<Instant>>,
    /// Told when the bucket was found to be missing or new, so that it lacks what this node holds.
    is_new: Notify,
}

impl std::fmt::Debug for Bucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bucket")
            .field("name", &self.client.bucket_name())
            .finish_non_exhaustive()
    }
}

impl Bucket {
    /// Touches no network. From now on what `store` admits waits to be uploaded; [`Bucket::start`] begins with it.
    /// Connections live on `runtime`.
    ///
    /// # Errors
    /// The settings make no URL.
    pub fn new(
        settings: &config::S3,
        data_dir: &Path,
        store: &'static Store,
        runtime: Handle,
    ) -> io::Result<Arc<Bucket>> {
        let bucket = Arc::new(Bucket {
            client: Client::new(settings)?,
            queue: Queue::open(data_dir, store.is_synced()),
            breaker: Breaker::new("s3"),
            store,
            runtime,
            counters: Counters::default(),
            trouble: Mutex::new(None),
            refusing: Mutex::new(None),
            takes_since: Mutex::new(None),
            took: Mutex::new(None),
            is_new: Notify::new(),
        });
        store.back_up(Arc::clone(&bucket) as Arc<dyn Backup>);
        Ok(bucket)
    }

    /// Called `s3` in `/health` and `/metrics`.
    pub fn breaker(&self) -> &Arc<Breaker> {
        &self.breaker
    }

    /// Removes the object of `key` from the bucket: from now on [`Bucket::find`] finds none here, and S3 is asked until it
    /// has done so. An upload that waits is given up.
    pub async fn remove(self: &Arc<Self>, key: &Key) {
        let (bucket, key) = (Arc::clone(self), key.clone());
        let removing = tokio::task::spawn_blocking(move || bucket.remove_by(&key, &name::of(&key)));
        // The task fails only when the process ends.
        let _ = removing.await;
    }

    /// [`Bucket::remove`], unless what the bucket has by then was fetched at `before` or later: a flush takes a while, and
    /// other nodes fetch meanwhile. Blocks: writes a small file.
    pub fn remove_older(&self, key: &Key, before: Millis) {
        self.remove_by(key, &queue::order(&name::of(key), before));
    }

    fn remove_by(&self, key: &Key, order: &str) {
        if !key.is_shared() {
            return;
        }
        if let Err(error) = self.queue.remove(&key.hash, order) {
            tracing::warn!(
                key = %key.shown(), %error,
                "that this object is to be removed from S3 could not be written down: if S3 does not answer before \
                 the process ends, it stays there"
            );
        }
    }

    /// Uploads what is stored here under `key` once more, whatever the bucket is known to have.
    pub fn upload_again(self: &Arc<Self>, key: &Key) {
        if !key.is_shared() {
            return;
        }
        let (bucket, hash) = (Arc::clone(self), key.hash);
        self.runtime.spawn_blocking(move || {
            let Some(stored) = bucket.store.open_stored(&hash) else {
                return;
            };
            bucket.store.mark_backed_up(&hash, stored.id, false);
            if let Err(error) = bucket.queue.admitting(&hash) {
                tracing::warn!(%error, "an upload is lost if the process ends before it is done");
            }
            bucket.queue.admitted(&hash, bucket.store.size_of(&hash));
        });
    }

    /// A page of up to a thousand names under the prefix, in their order; `next` from the page before.
    ///
    /// # Errors
    /// The service is away.
    pub async fn list(self: &Arc<Self>, next: Option<String>) -> Result<Page, Away> {
        let bucket = Arc::clone(self);
        self.ask(
            LIST_LIMIT,
            async move { bucket.client.list(1000, next.as_deref()).await },
        )
        .await
    }

    /// Waits until nothing waits to be uploaded or removed; `false` after `limit`.
    pub async fn drained(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.queue.drained()).await.is_ok()
    }
}

impl Backup for Bucket {
    fn admitting(&self, hash: &Hash) -> io::Result<()> {
        self.queue.admitting(hash)
    }

    fn admitted(&self, hash: &Hash, bytes: u64) {
        self.queue.admitted(hash, bytes);
    }

    fn removed(&self, hash: &Hash) {
        self.queue.cancel(hash);
    }

    fn is_waiting(&self, hash: &Hash) -> bool {
        self.queue.is_waiting(hash)
    }

    fn unless_waiting(&self, hash: &Hash, act: &mut dyn FnMut()) {
        self.queue.unless_waiting(hash, act);
    }

    fn waiting_bytes(&self) -> u64 {
        self.queue.waiting_bytes()
    }
}
