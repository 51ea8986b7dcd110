//! What other nodes tell this one, and what the bucket's uploads ask the fleet.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::runtime::Handle;

use super::{Fills, record};
use crate::bucket::Arbiter;
use crate::cache::{Class, FOR_EVER, Hash, Key, Millis, distrust};
use crate::fleet::{Fleet, Flush, Listener, Word};
use crate::relist;

/// Does here what was done elsewhere. What it does to one object takes some microseconds of disk, on a thread that may block.
pub struct News(pub Weak<Fills>);

impl News {
    /// Does `work` where it may block, to its end: news are heard in their order.
    async fn blocking(&self, work: impl FnOnce(Arc<Fills>) + Send + 'static) {
        let Some(fills) = self.0.upgrade() else { return };
        // The task fails only when the process ends.
        let _ = tokio::task::spawn_blocking(move || work(fills)).await;
    }
}

#[async_trait]
impl Listener for News {
    async fn changed(&self, hash: Hash, key_text: &str, word: Word) {
        let key = Key::from_text(key_text);
        self.blocking(move |fills| {
            fills.forget(|other| *other == *key.text);
            if fills.shared.ledger.is_flushed_word(&key, &word) {
                return;
            }
            if word.class == Class::Mutable {
                fills.outrun(&hash, word.generation);
            }
            fills
                .store
                .adopt(&hash, word.id, (word.class, word.checked_at, word.fresh_until));
        })
        .await;
    }

    async fn removed(&self, hash: Hash, key_text: &str) {
        let key = Key::from_text(key_text);
        self.blocking(move |fills| {
            fills.store.remove_stored(&hash);
            if !fills.catalog.is_shared() {
                relist::strike(&fills.catalog, fills.store, &hash, record::removed(&key));
            }
        })
        .await;
    }

    async fn expired(&self, hash: Hash, _: &str, at: Millis) {
        self.blocking(move |fills| {
            fills.store.expire_stored(&hash, at);
        })
        .await;
    }

    async fn flushed(&self, flush: Flush) {
        // What it asks for is to be understood first, which may mean a pattern.
        self.blocking(move |fills| fills.make_elsewhere(flush, &Handle::current()))
            .await;
    }

    async fn reupload(&self, _: Hash, key_text: &str, id: u64) {
        let Some(fills) = self.0.upgrade() else { return };
        let key = Key::from_text(key_text);
        tokio::spawn(async move {
            let stored = fills.store.stored(&key).await;
            if let (Some(bucket), Some(object)) = (&fills.shared.bucket, stored)
                && object.identity() == Some(id)
            {
                let bucket = Arc::clone(bucket);
                let _ = tokio::task::spawn_blocking(move || bucket.upload_again(&key)).await;
            }
        });
    }

    async fn distrust(&self, at: Millis) {
        tracing::warn!("news of the other nodes were missed: what is mutable is verified before it is served again");
        distrust(at.min(FOR_EVER - 1));
    }
}

/// How long an upload waits for the word on what it uploads, and how often it looks whether that is out.
const WORD_LIMIT: Duration = Duration::from_secs(1);
const WORD_PAUSE: Duration = Duration::from_millis(10);

/// So that a node that was paused overwrites nothing in the bucket.
pub struct ByFleet(pub Arc<Fleet>, pub Weak<Fills>);

#[async_trait]
impl Arbiter for ByFleet {
    async fn is_outdated(&self, key: &Key, id: u64) -> bool {
        // Until then the fleet's word is on the body before this one.
        let until = Instant::now() + WORD_LIMIT;
        while self
            .1
            .upgrade()
            .is_some_and(|fills| fills.shared.said.is_to_come(&key.hash))
            && Instant::now() < until
        {
            tokio::time::sleep(WORD_PAUSE).await;
        }
        let seen = self.0.look(key).await;
        seen.is_ok_and(|seen| seen.word.is_some_and(|word| word.id != id))
    }

    async fn overwrote(&self, key: &Key) {
        if let Ok(seen) = self.0.look(key).await
            && let Some(word) = seen.word
        {
            self.0.reupload(key, word.id);
        }
    }

    async fn uploaded(&self, key: &Key, id: u64) {
        self.0.uploaded(key, id);
    }
}
