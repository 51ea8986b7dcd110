//! The object tier in S3: what every node of a fleet, and a later life of this one, can read.
//!
//! Nothing here is on the way to an answer but [`Bucket::find`] and [`Bucket::read`], which give up within seconds and ask
//! nothing while the service is away ([`crate::breaker`]). What is stored is uploaded behind the answer from a durable
//! queue ([`queue`]), so an outage delays uploads and loses none.
//!
//! An object is its body as it is, under a name that a person can read ([`name`]), with metadata from which all that is
//! known of it is rebuilt ([`metadata`]). Neither locks nor compare-and-swap are asked of the service: what is named by its
//! content is the same whoever puts it, and of the rest the fleet says which is current ([`Fence`]).

mod client;
mod marker;
mod metadata;
mod name;
mod queue;
mod reconcile;
pub mod reindex;
mod upload;

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;
use http::{HeaderMap, HeaderValue, header};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

pub use client::{Client, Failure, Listed, Page, Unfinished, told};
use metadata::Described;
pub use name::PREFIX;
use queue::Queue;

use crate::breaker::{Away, Breaker, Standing};
use crate::cache::{Backup, Class, Finished, Hash, Head, Key, Millis, Store};
use crate::catalog::{rfc3339, unix_now};
use crate::config;

/// A request waits no longer to hear whether the bucket has something.
const FIND_LIMIT: Duration = Duration::from_secs(1);
/// ... until the first bytes of a body.
const FIRST_BYTE_LIMIT: Duration = Duration::from_secs(2);
/// ... and for the next ones.
const NEXT_BYTES_LIMIT: Duration = Duration::from_secs(5);
/// A page of a listing, of which nobody's download waits.
const LIST_LIMIT: Duration = Duration::from_secs(10);
/// Pieces of a body that are read ahead of whoever takes them.
const AHEAD: usize = 4;
/// Objects that are uploaded at once.
const WORKERS: usize = 4;
/// Uploads in parts that nobody has ended for so long have no one who will.
const ABANDONED: i64 = 7 * 24 * 3600;
const JANITOR_PAUSE: Duration = Duration::from_secs(24 * 3600);
/// Between two tries where something that is not urgent failed.
const RETRY_PAUSE: Duration = Duration::from_secs(60);

/// An object in the bucket: all that is known of it but its body.
#[derive(Debug, Clone)]
pub struct Copy {
    pub key: Key,
    pub head: Head,
    pub finished: Finished,
    pub id: u64,
    pub class: Class,
    pub checked_at: Millis,
    pub fresh_until: Millis,
    /// That of S3, by which its body is asked for.
    etag: Option<HeaderValue>,
    object: String,
}

impl Copy {
    /// As [`crate::cache::Object::identity`].
    pub fn identity(&self) -> u64 {
        crate::cache::identity(&self.finished, self.head.stands_for.as_ref())
    }
}

/// The bytes of a body as they come. An error is final.
pub type Pieces = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// What the fleet knows, so that a node that was paused overwrites nothing.
#[async_trait]
pub trait Fence: Send + Sync {
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
pub struct Unfenced;

#[async_trait]
impl Fence for Unfenced {
    async fn is_outdated(&self, _: &Key, _: u64) -> bool {
        false
    }
    async fn overwrote(&self, _: &Key) {}
    async fn uploaded(&self, _: &Key, _: u64) {}
}

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

/// How the bucket fares, for `/health` and `/metrics`.
#[derive(Debug, Clone)]
pub struct BucketStatus {
    pub standing: Standing,
    /// What the service said last when it was looked for in vain, with what can be done about it.
    pub trouble: Option<String>,
    /// Why it takes no uploads though it answers, and since when.
    pub refusing: Option<(String, Duration)>,
    pub uploads_waiting: u64,
    /// What they take of the disk here.
    pub bytes_waiting: u64,
    /// How long the oldest of them has waited.
    pub oldest_waiting: Option<Duration>,
    pub removals_waiting: u64,
    /// Since the process started, as are all that follow.
    pub uploaded: u64,
    pub uploaded_bytes: u64,
    /// Tries that failed; each is made again.
    pub failed: u64,
    pub removed: u64,
    /// Objects whose name and headers are too long for S3.
    pub unfit: u64,
    /// Uploads that were left, or undone, because another node had a newer body.
    pub outdated: u64,
    /// Objects that the bucket had lost, and gets again.
    pub missing: u64,
}

/// Whose fault it is that a question brought nothing.
enum Blame {
    Service(Failure),
    /// The service is well; it refuses this alone.
    Question(Failure),
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
            took: Mutex::new(None),
            is_new: Notify::new(),
        });
        store.back_up(Arc::clone(&bucket) as Arc<dyn Backup>);
        Ok(bucket)
    }

    /// Begins to work: sees to it that there is a bucket, looks for a service that is away, uploads and removes what
    /// waits, also from before.
    pub fn start(self: &Arc<Self>, fence: Arc<dyn Fence>) {
        let bucket = Arc::clone(self);
        self.runtime.spawn(async move {
            let scanning = Arc::clone(&bucket);
            let scan = move || scanning.queue.scan(|hash| scanning.store.size_of(hash));
            let _ = tokio::task::spawn_blocking(scan).await;
        });
        let bucket = Arc::clone(self);
        self.runtime.spawn(async move {
            if let Err(failure) = upload::within(LIST_LIMIT, bucket.look()).await {
                bucket.breaker.fail(failure.to_string());
            }
            // Only now: they need the bucket.
            for worker in 0..WORKERS {
                tokio::spawn(upload::work(Arc::clone(&bucket), Arc::clone(&fence), worker > 0));
            }
            bucket.breaker.keep_probing(|| bucket.probe()).await;
        });
        let bucket = Arc::clone(self);
        self.runtime.spawn(async move { bucket.clean().await });
        self.runtime.spawn(reconcile::keep(Arc::clone(self)));
    }

    /// Called `s3` in `/health` and `/metrics`.
    pub fn breaker(&self) -> &Arc<Breaker> {
        &self.breaker
    }

    /// Looks whether the service answers and has the bucket, which is made where it is missing.
    async fn look(&self) -> Result<(), Failure> {
        let found = match self.client.ping().await {
            Err(failure) if failure.is_missing_bucket() => match self.client.create_bucket().await {
                Ok(()) => {
                    tracing::info!(bucket = self.client.bucket_name(), "the bucket was created");
                    self.is_new.notify_one();
                    self.client.ping().await
                }
                Err(Failure::Refused { status, code, message }) => Err(Failure::Refused {
                    status,
                    code,
                    message: format!(
                        "{message} (the bucket {} does not exist, and may not be created: create it, or allow it)",
                        self.client.bucket_name()
                    ),
                }),
                Err(failure) => Err(failure),
            },
            other => other,
        };
        let trouble = found.as_ref().err().map(ToString::to_string);
        let mut known = self.trouble.lock();
        if let Some(said) = trouble.as_ref().filter(|_| *known != trouble) {
            tracing::warn!(bucket = self.client.bucket_name(), %said, "S3 cannot be used");
        }
        *known = trouble;
        found
    }

    async fn probe(&self) -> Result<(), Failure> {
        self.client.reconnect();
        self.look().await
    }

    /// Gives up, once a day, the unfinished uploads of nodes that are gone for good.
    async fn clean(&self) {
        loop {
            let pause = match self.clean_once().await {
                Ok(()) => JANITOR_PAUSE,
                Err(failure) => {
                    tracing::debug!(%failure, "unfinished uploads are not looked for");
                    RETRY_PAUSE
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn clean_once(&self) -> Result<(), Failure> {
        if !self.breaker.is_closed() {
            return Err(Failure::Unreachable("it is away".to_owned()));
        }
        let unfinished = match upload::within(LIST_LIMIT, self.client.unfinished(PREFIX)).await {
            // Some services cannot list them.
            Err(Failure::Refused { .. }) => return Ok(()),
            other => other?,
        };
        let abandoned = rfc3339(unix_now() - ABANDONED);
        for upload in unfinished {
            // Both are RFC 3339 in UTC, so their texts are in the order of time.
            if !upload.initiated.is_empty() && upload.initiated < abandoned {
                tracing::info!(object = %upload.object, "an upload that was never finished is removed");
                upload::within(LIST_LIMIT, self.client.abort(&upload.object, &upload.upload)).await?;
            }
        }
        Ok(())
    }

    /// Finds out whose fault a failure is: a refusal may be meant for one object or for all of them.
    async fn blame(&self, failure: Failure) -> Blame {
        if failure.is_of_service() {
            return Blame::Service(failure);
        }
        match upload::within(FIND_LIMIT / 2, self.client.ping()).await {
            Ok(()) => Blame::Question(failure),
            // An answer to HEAD says nothing more than its status; this one says why.
            Err(general @ Failure::Refused { .. }) => Blame::Service(general),
            Err(_) => Blame::Service(failure),
        }
    }

    /// Notes whether the bucket takes uploads. `refusal`: why it takes none.
    fn note_takes(&self, refusal: Option<&Failure>) {
        let mut refusing = self.refusing.lock();
        match (&mut *refusing, refusal) {
            (None, Some(failure)) => {
                let waiting = self.queue.waiting();
                tracing::warn!(
                    bucket = self.client.bucket_name(), %failure, uploads = waiting.uploads, bytes = waiting.bytes,
                    "S3 takes no uploads: what is to be uploaded waits on this node's disk, where it is not evicted; make \
                     room in the bucket, raise its quota, or allow PutObject"
                );
                *refusing = Some((failure.to_string(), Instant::now()));
            }
            (Some((why, _)), Some(failure)) => *why = failure.to_string(),
            (Some(_), None) => {
                tracing::info!(bucket = self.client.bucket_name(), "S3 takes uploads again");
                *refusing = None;
                drop(refusing);
                self.queue.hurry();
            }
            (None, None) => {}
        }
    }

    /// Asks, on the runtime of the connections, unless the service is away. A failure that is the service's opens the
    /// breaker.
    async fn ask<T: Send + 'static>(
        self: &Arc<Self>,
        limit: Duration,
        asked: impl Future<Output = Result<T, Failure>> + Send + 'static,
    ) -> Result<T, Away> {
        let bucket = Arc::clone(self);
        let answer = Task(self.runtime.spawn(async move {
            let call = async {
                match asked.await {
                    Ok(answer) => Ok(Ok(answer)),
                    Err(failure) => match bucket.blame(failure).await {
                        Blame::Service(failure) => Err(failure),
                        Blame::Question(failure) => Ok(Err(failure)),
                    },
                }
            };
            bucket.breaker.call(limit, call).await
        }));
        let failed = |why: String| Away::Failed(self.breaker.name(), why);
        match answer.await {
            Some(answer) => answer?.map_err(|failure| failed(failure.to_string())),
            None => Err(failed("the process is stopping".to_owned())),
        }
    }

    /// What the bucket holds under `key`. `None`: nothing, or what cannot be understood or is another key's, or what this
    /// node is about to remove.
    ///
    /// # Errors
    /// The service is away, or did not answer within a second.
    pub async fn find(self: &Arc<Self>, key: &Key) -> Result<Option<Copy>, Away> {
        if !key.is_shared() || self.queue.is_removing(&key.hash) {
            return Ok(None);
        }
        let object = name::of(key);
        let found = self.head(FIND_LIMIT, object).await?;
        Ok(found.filter(|copy| copy.key == *key))
    }

    /// What the bucket holds under a name from [`Bucket::list`].
    ///
    /// # Errors
    /// The service is away.
    pub async fn describe(self: &Arc<Self>, object: &str) -> Result<Option<Copy>, Away> {
        self.head(LIST_LIMIT, object.to_owned()).await
    }

    async fn head(self: &Arc<Self>, limit: Duration, object: String) -> Result<Option<Copy>, Away> {
        let bucket = Arc::clone(self);
        self.ask(limit, async move { describe(&bucket.client, &object).await })
            .await
    }

    /// The bytes `start..end` of a body. They are of the very body that was found: when it was replaced meanwhile, this
    /// fails, or the stream does.
    ///
    /// # Errors
    /// The service is away, did not send anything within two seconds, or has another body by now.
    pub async fn read(self: &Arc<Self>, copy: &Copy, start: u64, end: u64) -> Result<Pieces, Away> {
        let end = end.min(copy.finished.length);
        if start >= end {
            return Ok(Box::pin(futures_util::stream::empty()));
        }
        let mut headers = HeaderMap::new();
        if let Some(etag) = &copy.etag {
            headers.insert(header::IF_MATCH, etag.clone());
        }
        if (start, end) != (0, copy.finished.length) {
            let range = HeaderValue::try_from(format!("bytes={start}-{}", end - 1));
            headers.insert(
                header::RANGE,
                range.map_err(|error| Away::Failed("s3", error.to_string()))?,
            );
        }
        let (bucket, object) = (Arc::clone(self), copy.object.clone());
        let asked = async move {
            let mut response = bucket.client.get(&object, headers).await?;
            if !client::starts_at(&response, start) {
                return Err(Failure::Nonsense("it sent another range than was asked for".to_owned()));
            }
            let first = client::piece(&mut response).await?;
            Ok((response, first))
        };
        let (response, first) = self.ask(FIRST_BYTE_LIMIT, asked).await?;
        let (pieces, taken) = mpsc::channel(AHEAD);
        self.runtime
            .spawn(Arc::clone(self).pass(response, first, end - start, pieces));
        Ok(Box::pin(futures_util::stream::unfold(taken, |mut taken| async {
            taken.recv().await.map(|piece| (piece, taken))
        })))
    }

    /// Hands over a body of `length` bytes as it comes, and says when it ends too early.
    async fn pass(
        self: Arc<Self>,
        mut response: reqwest::Response,
        mut next: Option<Bytes>,
        length: u64,
        pieces: mpsc::Sender<io::Result<Bytes>>,
    ) {
        let mut left = length;
        let failure = loop {
            let Some(mut piece) = next else {
                break format!("the body from S3 ended {left} bytes too early");
            };
            piece.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            left -= piece.len() as u64;
            if !piece.is_empty() && pieces.send(Ok(piece)).await.is_err() {
                return;
            }
            if left == 0 {
                return;
            }
            let more = upload::within(NEXT_BYTES_LIMIT, client::piece(&mut response));
            next = tokio::select! {
                () = pieces.closed() => return,
                more = more => match more {
                    Ok(next) => next,
                    Err(failure) => break failure.to_string(),
                },
            };
        };
        self.breaker.fail(failure.clone());
        let _ = pieces.send(Err(io::Error::other(failure))).await;
    }

    /// Removes the object of `key` from the bucket: from now on [`Bucket::find`] finds none here, and S3 is asked until it
    /// has done so. An upload that waits is given up. Writes a small file.
    pub fn remove(&self, key: &Key) {
        self.remove_by(key, &name::of(key));
    }

    /// [`Bucket::remove`], unless what the bucket has by then was fetched at `before` or later: a flush takes a while, and
    /// other nodes fetch meanwhile.
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

    pub fn status(&self) -> BucketStatus {
        let waiting = self.queue.waiting();
        let standing = self.breaker.standing();
        let count = |counter: &AtomicU64| counter.load(Relaxed);
        // Where nothing waits any more, nothing will find out whether it still holds.
        let refusing = self.refusing.lock().clone().filter(|_| waiting.uploads > 0);
        BucketStatus {
            refusing: refusing.map(|(why, since)| (why, since.elapsed())),
            trouble: self.trouble.lock().clone().filter(|_| !standing.healthy),
            standing,
            uploads_waiting: waiting.uploads,
            bytes_waiting: waiting.bytes,
            oldest_waiting: waiting.oldest,
            removals_waiting: waiting.removals,
            uploaded: count(&self.counters.uploaded),
            uploaded_bytes: count(&self.counters.uploaded_bytes),
            failed: count(&self.counters.failed),
            removed: count(&self.counters.removed),
            unfit: count(&self.counters.unfit),
            outdated: count(&self.counters.outdated),
            missing: count(&self.counters.missing),
        }
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

/// What is stored under a name. `None`: nothing that was put there by this program.
async fn describe(client: &Client, object: &str) -> Result<Option<Copy>, Failure> {
    let Some(headers) = client.head(object).await? else {
        return Ok(None);
    };
    let length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok());
    let described = metadata::decode(&headers);
    let Some(described) = described.filter(|described| length == Some(described.finished.length)) else {
        tracing::debug!(object, "an object in the bucket has no metadata of ours");
        return Ok(None);
    };
    let Described {
        key,
        head,
        finished,
        id,
        class,
        checked_at,
        fresh_until,
    } = described;
    // An object that somebody copied to another name is not the one of that name.
    Ok((name::of(&key) == object).then(|| Copy {
        key,
        head,
        finished,
        id,
        class,
        checked_at,
        fresh_until,
        etag: headers.get(header::ETAG).cloned(),
        object: object.to_owned(),
    }))
}

/// A task on another runtime that ends with whoever waits for it.
struct Task<T>(JoinHandle<T>);

impl<T> Future for Task<T> {
    type Output = Option<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Option<T>> {
        Pin::new(&mut self.0).poll(cx).map(Result::ok)
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
