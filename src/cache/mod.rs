//! Objects: what is stored, complete or growing, and the tiers that hold it.
//!
//! Everything that is served is an [`Object`] and every client is a [`Reader`] of one; readers cannot tell a complete
//! object from a growing one. The [`Store`] finds objects by [`Key`] in memory, among those that grow, and on disk;
//! [`Writer`] makes one grow. [`storage`] offers the same to Pingora's cache state machine.

mod clock;
mod disk;
mod evict;
mod freshness;
mod key;
mod memory;
mod overflow;
mod reader;
mod scrub;
pub mod storage;
mod store;
mod sweep;
mod usage;
mod writer;

use std::io;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use crate::headers;

pub use disk::in_folder;
pub use evict::parse_hash;
pub use freshness::{
    Class, FOR_EVER, Freshness, Left, code as class_code, decode as class_of, distrust, until as freshness_until,
};
pub use key::{Aside, Bound, Key, Parts};
pub use overflow::bound as bound_overflow;
pub use reader::{ReadError, Reader};
pub use scrub::{Verified, verify};
pub use store::{Backup, Observer, Store, StoreStats, Stored, Walked};
pub use sweep::{Sweep, Swept};
pub use writer::{Expected, Finish, NoSpace, Verifier, Writer};

/// Milliseconds since 1970, the unit of every stored time.
pub type Millis = u64;

/// By how many milliseconds the fleet's clock is ahead of this machine's.
static AHEAD: AtomicI64 = AtomicI64::new(0);

/// Now, as stored: by the fleet's clock, because nodes compare their times with one another's.
pub fn now_ms() -> Millis {
    millis(SystemTime::now()).saturating_add_signed(AHEAD.load(Relaxed))
}

/// From now on [`now_ms`] is so many milliseconds ahead of this machine's clock.
pub fn set_clock(ahead: i64) {
    AHEAD.store(ahead, Relaxed);
}

/// Whether something that is dated `moment` was before `at`. What is dated later than now has its date from a clock that was
/// wrong: it counts as before, because it may have been.
pub fn is_before(moment: Millis, at: Millis) -> bool {
    moment < at || freshness::is_ahead(moment, now_ms())
}

fn millis(time: SystemTime) -> Millis {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

/// The hash that names an object in every tier.
pub type Hash = [u8; 16];

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(DIGITS[usize::from(byte >> 4)] as char);
        text.push(DIGITS[usize::from(byte & 15)] as char);
    }
    text
}

/// What is known of an object before its body: upstream's header, cleaned, and where it came from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Head {
    /// Where the body came from, after redirects: relative links are resolved against this.
    pub url: String,
    /// Upstream's headers without hop-by-hop, caching and private ones.
    #[serde(with = "headers_as_pairs")]
    pub headers: HeaderMap,
    /// The length that upstream announced.
    pub content_length: Option<u64>,
    /// When the body was fetched.
    pub stored_at: Millis,
    /// Upstream marked no end of the body but that of the connection (RFC 9112 section 6.3), which a cut looks like.
    #[serde(default)]
    pub unframed: bool,
    /// Upstream answers ranges of it.
    #[serde(default)]
    pub ranges: bool,
    /// The object is a name: it has no body, and stands for content that is stored under its digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stands_for: Option<Referent>,
}

/// The content that a name stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Referent {
    /// `sha256:…` or `sha512:…`.
    pub digest: String,
    /// In bytes.
    pub size: u64,
}

impl Head {
    fn text(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
    pub fn content_type(&self) -> &str {
        self.text(header::CONTENT_TYPE).unwrap_or("")
    }
    /// Only `gzip` and its like; `identity` is none, nor is what is no registered coding.
    pub fn content_encoding(&self) -> Option<&str> {
        headers::known_coding(&self.headers)
    }
    pub fn etag(&self) -> Option<&str> {
        self.text(header::ETAG)
    }
    pub fn last_modified(&self) -> Option<&str> {
        self.text(header::LAST_MODIFIED)
    }
}

mod headers_as_pairs {
    use super::*;
    use serde::{Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(headers: &HeaderMap, serializer: S) -> Result<S::Ok, S::Error> {
        // Latin-1: header values are octets (RFC 9110 section 5.5), not always UTF-8.
        serializer.collect_seq(headers.iter().map(|(name, value)| {
            (
                name.as_str(),
                value.as_bytes().iter().map(|b| char::from(*b)).collect::<String>(),
            )
        }))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<HeaderMap, D::Error> {
        let pairs = Vec::<(String, String)>::deserialize(deserializer)?;
        let mut headers = HeaderMap::with_capacity(pairs.len());
        for (name, value) in pairs {
            let octets: Vec<u8> = value
                .chars()
                .map(|c| u8::try_from(u32::from(c)).unwrap_or(b'?'))
                .collect();
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).map_err(D::Error::custom)?,
                HeaderValue::from_bytes(&octets).map_err(D::Error::custom)?,
            );
        }
        Ok(headers)
    }
}

/// What only the end of a body tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finished {
    pub length: u64,
    pub sha256: [u8; 32],
}

/// Names content by its digest: see [`Object::identity`].
pub fn identity(finished: &Finished, stands_for: Option<&Referent>) -> u64 {
    let digest: [u8; 32] = match stands_for {
        Some(referent) => Sha256::digest(referent.digest.as_bytes()).into(),
        None => finished.sha256,
    };
    let mut word = [0; 8];
    word.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(word)
}

/// How far a growing object has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Growing,
    Complete,
    /// Ended short, or with a wrong digest: readers must fail, never end cleanly.
    Failed,
}

/// Progress of a fill, watched by readers.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Bytes that may be read.
    pub visible: u64,
    pub state: State,
}

/// Where the bytes are.
#[derive(Debug)]
pub enum Body {
    /// With the file in memory that the bytes are mapped from, where they are worth one: see [`memory::body`].
    Memory(bytes::Bytes, Option<std::fs::File>),
    /// The body starts at `offset` of the file.
    File { file: std::fs::File, offset: u64 },
    /// On no tier of this node: it is read where it is, and only what is asked for.
    Elsewhere(Arc<dyn Elsewhere>),
}

/// A complete body that another keeps.
#[async_trait]
pub trait Elsewhere: std::fmt::Debug + Send + Sync {
    /// The bytes `start..end`.
    ///
    /// # Errors
    /// Whoever keeps it is away, or has another body by now.
    async fn read(&self, start: u64, end: u64) -> std::io::Result<BoxStream<'static, std::io::Result<Bytes>>>;
}

/// Where the bytes of an object came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// From the remote, or made here of what did.
    Upstream,
    /// From another node while it fetched it: it is that node's to put into the bucket.
    Node,
    /// From the bucket.
    Bucket,
}

/// What every response with an object's body begins with.
#[derive(Debug)]
pub struct Prepared {
    /// What the remote wanted kept of upstream's fields when this was built.
    pub headers_keep: Vec<HeaderName>,
    pub header: pingora_http::ResponseHeader,
    /// Its fields as they go over HTTP/1.1, a line each.
    pub lines: Vec<u8>,
}

/// One stored body with its header: complete, or growing while upstream sends it.
#[derive(Debug)]
pub struct Object {
    pub key: Key,
    /// Names this body for good: a re-fetch that brings other bytes gets another id, one with the same bytes does not.
    pub id: u64,
    pub head: Head,
    /// Shared by all copies of the same body.
    pub fresh: Arc<Freshness>,
    pub body: Body,
    origin: Origin,
    /// What another node began was ended by this one.
    taken_over: std::sync::atomic::AtomicBool,
    /// What could not be written to disk, from some offset on.
    overflow: OnceLock<overflow::Overflow>,
    finished: OnceLock<Finished>,
    /// Present while (and after) it grew in this process.
    growth: Option<watch::Sender<Progress>>,
    /// What the client's side builds from the head, once for each configuration.
    pub prepared: OnceLock<ArcSwap<Prepared>>,
    /// Uses since the last sweep of the housekeeper.
    uses: Arc<std::sync::atomic::AtomicU64>,
    /// Flushed while it grew: it may be read to its end and is not kept.
    doomed: std::sync::atomic::AtomicBool,
    /// The store that holds its file.
    store: Option<&'static Store>,
    /// The body was read by this process, and compared with its digest.
    proven: std::sync::atomic::AtomicBool,
}

impl Object {
    /// Whether nobody needs to compare it with its digest. Of what grows there is none yet.
    fn is_proven(&self) -> bool {
        self.proven.load(std::sync::atomic::Ordering::Relaxed) || !self.is_complete()
    }

    fn is_proven_now(&self) {
        self.proven.store(true, std::sync::atomic::Ordering::Relaxed);
        if let Some(store) = self.store {
            store.proven.insert(self.id, ());
        }
    }

    /// The body is not what was stored: whoever asks next has it fetched again.
    fn lose(self: &Arc<Self>, why: &str) {
        if let Some(store) = self.store {
            store.lose(self, why);
        }
    }

    /// Reading the body failed. A damaged one is lost; after any other failure whoever asks next opens the file anew.
    fn cannot_be_read(self: &Arc<Self>, why: &io::Error) {
        match self.store {
            Some(store) if disk::is_damage(why) || !self.is_complete() => store.lose(self, &why.to_string()),
            Some(store) => store.put_aside(self, why),
            None => {}
        }
    }

    /// Length and digest, once complete.
    pub fn finished(&self) -> Option<Finished> {
        self.finished.get().copied()
    }

    pub fn is_complete(&self) -> bool {
        self.finished.get().is_some()
    }

    /// The whole length, as soon as it is known.
    pub fn length(&self) -> Option<u64> {
        self.finished().map(|f| f.length).or(self.head.content_length)
    }

    /// How far the body has come.
    pub fn progress(&self) -> Progress {
        match (self.finished(), &self.growth) {
            (Some(finished), _) => Progress {
                visible: finished.length,
                state: State::Complete,
            },
            (None, Some(growth)) => *growth.borrow(),
            (None, None) => Progress {
                visible: 0,
                state: State::Failed,
            },
        }
    }

    /// Whether all of the body is here, though it may not be stored yet. (A body without a length is not known to be whole
    /// before it is.)
    pub fn has_arrived(&self) -> bool {
        let progress = self.progress();
        match progress.state {
            State::Complete => true,
            State::Growing => self.head.content_length == Some(progress.visible),
            State::Failed => false,
        }
    }

    /// Waits until the body is complete (`true`) or has failed (`false`).
    pub async fn settled(&self) -> bool {
        if self.is_complete() {
            return true;
        }
        let Some(growth) = &self.growth else { return false };
        let mut watch = growth.subscribe();
        let settled = watch.wait_for(|progress| progress.state != State::Growing).await;
        settled.is_ok_and(|progress| progress.state == State::Complete)
    }

    /// Waits until something can be read, or nothing more will come.
    pub async fn begun(&self) -> Progress {
        if let (false, Some(growth)) = (self.is_complete(), &self.growth) {
            let mut watch = growth.subscribe();
            // An error means that the writer is gone: what `progress` then says is final.
            let _ = watch
                .wait_for(|progress| progress.visible > 0 || progress.state != State::Growing)
                .await;
        }
        self.progress()
    }

    /// Whether it will be stored, as far as can be told now.
    pub fn is_kept(&self) -> bool {
        !self.doomed.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Where the bytes came from, or the last of them.
    pub fn origin(&self) -> Origin {
        match self.taken_over.load(std::sync::atomic::Ordering::Relaxed) {
            true => Origin::Upstream,
            false => self.origin,
        }
    }

    /// It may be read to its end and is not kept: it was flushed.
    pub fn doom(&self) {
        self.doomed.store(true, std::sync::atomic::Ordering::SeqCst);
    }

    /// This node went on where another one stopped.
    pub fn take_over(&self) {
        self.taken_over.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// Names the content for all nodes: equal bytes (of a name: what it stands for) have the same, wherever they were
    /// fetched. `None` while it grows.
    pub fn identity(&self) -> Option<u64> {
        let finished = self.finished()?;
        Some(identity(&finished, self.head.stands_for.as_ref()))
    }

    /// A complete object whose body stays where it is.
    pub fn elsewhere(
        key: Key,
        head: Head,
        finished: Finished,
        (class, checked_at, fresh_until): (Class, Millis, Millis),
        body: Arc<dyn Elsewhere>,
    ) -> Arc<Object> {
        // Of this content under this key, wherever it is found again: views are kept by it.
        let mut word = [0; 8];
        word.copy_from_slice(&key.hash[..8]);
        let id = identity(&finished, head.stands_for.as_ref()) ^ u64::from_be_bytes(word);
        Arc::new(Object {
            key,
            id,
            head,
            fresh: Arc::new(Freshness::new(class, checked_at, fresh_until)),
            body: Body::Elsewhere(body),
            origin: Origin::Bucket,
            taken_over: std::sync::atomic::AtomicBool::new(false),
            overflow: OnceLock::new(),
            finished: finished.into(),
            growth: None,
            prepared: OnceLock::new(),
            uses: Arc::default(),
            doomed: std::sync::atomic::AtomicBool::new(false),
            store: None,
            proven: std::sync::atomic::AtomicBool::new(true),
        })
    }

    /// The strong validator that clients see: upstream's own, else the body's digest once it is known.
    pub fn etag(&self) -> Option<String> {
        match self.head.etag() {
            Some(etag) => Some(etag.to_owned()),
            None => self.finished().map(|finished| format!("\"{}\"", hex(&finished.sha256))),
        }
    }
}
