//! What is done for the bucket in the background.

use std::sync::Arc;

use super::arbiter::Arbiter;
use super::client::within;
use super::{Bucket, LIST_LIMIT, reconcile, upload};

/// Objects that are uploaded at once.
const WORKERS: usize = 4;

impl Bucket {
    /// Begins to work: sees to it that there is a bucket, looks for a service that is away, uploads and removes what
    /// waits, also from before.
    pub fn start(self: &Arc<Self>, arbiter: Arc<dyn Arbiter>) {
        let bucket = Arc::clone(self);
        self.runtime.spawn(async move {
            let scanning = Arc::clone(&bucket);
            let scan = move || scanning.queue.scan(|hash| scanning.store.size_of(hash));
            let _ = tokio::task::spawn_blocking(scan).await;
        });
        let bucket = Arc::clone(self);
        self.runtime.spawn(async move {
            if let Err(failure) = within(LIST_LIMIT, bucket.look()).await {
                bucket.breaker.fail(failure.to_string());
            }
            // Only now: they need the bucket.
            for worker in 0..WORKERS {
                tokio::spawn(upload::work(Arc::clone(&bucket), Arc::clone(&arbiter), worker > 0));
            }
            bucket.breaker.keep_probing(|| bucket.probe()).await;
        });
        let bucket = Arc::clone(self);
        self.runtime.spawn(async move { bucket.clean().await });
        self.runtime.spawn(reconcile::keep(Arc::clone(self)));
    }
}
