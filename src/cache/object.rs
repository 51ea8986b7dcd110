//! Objects: what every client reads, complete or growing.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use http::HeaderName;
use tokio::sync::watch;

use super::freshness::{Class, Freshness};
use super::head::{Finished, Head, identity};
use super::key::Key;
use super::overflow::Overflow;
use super::time::Millis;

/// How far a growing object has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
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
    pub state: Stage,
}

/// Where the bytes are.
#[derive(Debug)]
pub enum Body {
    /// With the file in memory that the bytes are mapped from, where they are worth one: see [`super::memory::body`].
    Memory(Bytes, Option<File>),
    /// The body starts at `offset` of the file.
    File { file: File, offset: u64 },
    /// On no tier of this node: it is read where it is, and only what is asked for.
    Elsewhere(Arc<dyn Elsewhere>),
}

/// A complete body that another keeps.
#[deny(missing_docs)]
#[async_trait]
pub trait Elsewhere: std::fmt::Debug + Send + Sync {
    /// The bytes `start..end`.
    ///
    /// # Errors
    /// Whoever keeps it is away, or has another body by now.
    async fn read(&self, start: u64, end: u64) -> io::Result<BoxStream<'static, io::Result<Bytes>>>;
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

/// Holds bodies of objects, and is told what their readers find out.
pub(super) trait Keeper: std::fmt::Debug + Send + Sync {
    /// The body `id` is what was stored.
    fn is_proven(&self, id: u64);
    /// The body is not what was stored: whoever asks next has it fetched again.
    fn lose(&'static self, object: &Arc<Object>, why: &str);
    /// Reading the body failed. A damaged one is lost; after any other failure whoever asks next opens the file anew.
    fn cannot_be_read(&'static self, object: &Arc<Object>, why: &io::Error);
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
    taken_over: AtomicBool,
    /// What could not be written to disk, from some offset on.
    pub(super) overflow: OnceLock<Overflow>,
    pub(super) finished: OnceLock<Finished>,
    /// Present while (and after) it grew in this process.
    pub(super) growth: Option<watch::Sender<Progress>>,
    /// What the client's side builds from the head, once for each configuration.
    pub prepared: OnceLock<ArcSwap<Prepared>>,
    /// Uses since the last sweep of the housekeeper.
    pub(super) uses: Arc<AtomicU64>,
    /// Flushed while it grew: it may be read to its end and is not kept.
    pub(super) doomed: AtomicBool,
    /// Who holds the body.
    keeper: Option<&'static dyn Keeper>,
    /// The body was read by this process, and compared with its digest.
    proven: AtomicBool,
}

impl Object {
    /// Content whose body has not come to its end, and is in no store.
    pub(super) fn new(key: Key, id: u64, head: Head, fresh: Arc<Freshness>, body: Body, origin: Origin) -> Object {
        Object {
            key,
            id,
            head,
            fresh,
            body,
            origin,
            taken_over: AtomicBool::new(false),
            overflow: OnceLock::new(),
            finished: OnceLock::new(),
            growth: None,
            prepared: OnceLock::new(),
            uses: Arc::default(),
            doomed: AtomicBool::new(false),
            keeper: None,
            proven: AtomicBool::new(false),
        }
    }

    /// The object whose body is just beginning to come. What does not fit on disk goes into `overflow`.
    pub(super) fn growing(mut self, overflow: Overflow) -> Object {
        let (growth, _) = watch::channel(Progress {
            visible: 0,
            state: Stage::Growing,
        });
        self.growth = Some(growth);
        self.overflow = overflow.into();
        self
    }

    /// The object with all of its body, which `is_proven` if this process has compared it with its digest.
    pub(super) fn complete(mut self, finished: Finished, is_proven: bool) -> Object {
        self.finished = finished.into();
        self.proven = AtomicBool::new(is_proven);
        self
    }

    /// The object as `keeper` holds its body.
    pub(super) fn kept_by(mut self, keeper: &'static dyn Keeper) -> Object {
        self.keeper = Some(keeper);
        self
    }

    /// Whether nobody needs to compare it with its digest. Of what grows there is none yet.
    pub(super) fn is_proven(&self) -> bool {
        self.proven.load(Relaxed) || !self.is_complete()
    }

    /// The body was read, and is what was stored.
    pub(super) fn is_proven_now(&self) {
        self.proven.store(true, Relaxed);
        if let Some(keeper) = self.keeper {
            keeper.is_proven(self.id);
        }
    }

    /// The body is not what was stored: whoever asks next has it fetched again.
    pub(super) fn lose(self: &Arc<Self>, why: &str) {
        if let Some(keeper) = self.keeper {
            keeper.lose(self, why);
        }
    }

    /// Reading the body failed.
    pub(super) fn cannot_be_read(self: &Arc<Self>, why: &io::Error) {
        if let Some(keeper) = self.keeper {
            keeper.cannot_be_read(self, why);
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
                state: Stage::Complete,
            },
            (None, Some(growth)) => *growth.borrow(),
            (None, None) => Progress {
                visible: 0,
                state: Stage::Failed,
            },
        }
    }

    /// Whether all of the body is here, though it may not be stored yet. (A body without a length is not known to be whole
    /// before it is.)
    pub fn has_arrived(&self) -> bool {
        let progress = self.progress();
        match progress.state {
            Stage::Complete => true,
            Stage::Growing => self.head.content_length == Some(progress.visible),
            Stage::Failed => false,
        }
    }

    /// Waits until the body is complete (`true`) or has failed (`false`).
    pub async fn settled(&self) -> bool {
        if self.is_complete() {
            return true;
        }
        let Some(growth) = &self.growth else { return false };
        let mut watch = growth.subscribe();
        let settled = watch.wait_for(|progress| progress.state != Stage::Growing).await;
        settled.is_ok_and(|progress| progress.state == Stage::Complete)
    }

    /// Waits until something can be read, or nothing more will come.
    pub async fn begun(&self) -> Progress {
        if let (false, Some(growth)) = (self.is_complete(), &self.growth) {
            let mut watch = growth.subscribe();
            // An error means that the writer is gone: what `progress` then says is final.
            let _ = watch
                .wait_for(|progress| progress.visible > 0 || progress.state != Stage::Growing)
                .await;
        }
        self.progress()
    }

    /// Whether the object will be stored, as far as can be told now.
    pub fn is_kept(&self) -> bool {
        !self.doomed.load(Relaxed)
    }

    /// Where the bytes came from, or the last of them.
    pub fn origin(&self) -> Origin {
        match self.taken_over.load(Relaxed) {
            true => Origin::Upstream,
            false => self.origin,
        }
    }

    /// The object was flushed: it may be read to its end, and is not kept.
    pub fn doom(&self) {
        self.doomed.store(true, SeqCst);
    }

    /// This node went on where another one stopped.
    pub fn take_over(&self) {
        self.taken_over.store(true, Relaxed);
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
        let fresh = Arc::new(Freshness::new(class, checked_at, fresh_until));
        let object = Object::new(key, id, head, fresh, Body::Elsewhere(body), Origin::Bucket);
        Arc::new(object.complete(finished, true))
    }

    /// The strong validator that clients see: upstream's own, else the body's digest once it is known.
    pub fn etag(&self) -> Option<String> {
        match self.head.etag() {
            Some(etag) => Some(etag.to_owned()),
            None => self
                .finished()
                .map(|finished| format!("\"{}\"", hex::encode(finished.sha256))),
        }
    }
}
