//! What this node shares with others: the bucket, the fleet, and the nodes themselves. Each may be missing or away; a flight
//! then goes on with what is left, in the end by itself.

use std::sync::Arc;

use super::ledger::{Ledger, ReadFlush};
use super::node::Peers;
use super::said::Said;
use super::unfinished::Unfinished;
use crate::bucket::Bucket;
use crate::fleet::Fleet;

/// Each part is there if it is configured.
pub struct Shared {
    pub bucket: Option<Arc<Bucket>>,
    pub fleet: Option<Arc<Fleet>>,
    pub peers: Option<Peers>,
    pub ledger: Ledger,
    pub(super) said: Said,
}

impl Shared {
    pub fn new(
        bucket: Option<Arc<Bucket>>,
        fleet: Option<Arc<Fleet>>,
        peers: Option<Peers>,
        read_flush: ReadFlush,
        unfinished: Option<Unfinished>,
    ) -> Self {
        Shared {
            ledger: Ledger::new(fleet.clone(), read_flush, unfinished),
            said: Said::default(),
            bucket,
            fleet,
            peers,
        }
    }

    /// Shares with nobody.
    pub fn alone() -> Self {
        Shared::new(None, None, None, Box::new(|_| None), None)
    }

    /// Whether there is a bucket, and it can be asked.
    pub(super) fn has_bucket(&self) -> bool {
        self.bucket.as_ref().is_some_and(|bucket| bucket.breaker().is_closed())
    }

    /// Whether there is nothing but this node's own disk.
    pub fn is_alone(&self) -> bool {
        self.bucket.is_none() && self.fleet.is_none()
    }
}
