//! What a bucket that several nodes share asks of their fleet.

use async_trait::async_trait;

use crate::cache::Key;

/// What the fleet knows, so that a node that was paused overwrites nothing.
#[deny(missing_docs)]
#[async_trait]
pub trait Arbiter: Send + Sync {
    /// Whether the fleet knows other content than that of `identity` ([`crate::cache::identity`]) as the current one of
    /// `key`: then it is not uploaded (any more). Only if it keeps saying so for some seconds: a body may be on its way to
    /// the bucket before the fleet has been told of it.
    async fn is_outdated(&self, key: &Key, identity: u64) -> bool;
    /// An upload turned out to be outdated when it had ended: whoever has the current body must upload it again.
    async fn overwrote(&self, key: &Key);
    /// The object is in the bucket.
    async fn uploaded(&self, key: &Key, identity: u64);
}

/// For a node that shares its bucket with nobody.
pub struct Undisputed;

#[async_trait]
impl Arbiter for Undisputed {
    async fn is_outdated(&self, _: &Key, _: u64) -> bool {
        false
    }
    async fn overwrote(&self, _: &Key) {}
    async fn uploaded(&self, _: &Key, _: u64) {}
}
