//! The workers: each takes a job, makes the bucket what this node holds, and takes the next.

use std::fs::File;
use std::future::Future;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::Body;

use super::arbiter::Arbiter;
use super::client::{Failure, within};
use super::find::describe;
use super::health::Blame;
use super::marker::{Plan, Progress};
use super::metadata;
use super::queue::{Again, LARGE, Taken};
use super::{Bucket, name};
use crate::cache::{Millis, Stored, is_before};

/// A connection on which nothing moves for so long is given up.
const STALLED: Duration = Duration::from_secs(30);
/// For questions without a body.
pub(super) const SHORT: Duration = Duration::from_secs(10);
/// A service may put together thousands of parts before it answers.
pub(super) const COMPLETE: Duration = Duration::from_secs(300);
/// What the fleet says comes from Redis, which has a breaker of its own.
const ARBITER_LIMIT: Duration = Duration::from_secs(5);
/// Of the file, read and handed over at once.
const PIECE: u64 = 256 << 10;
/// Parts of an upload, unless there would be too many: S3 takes ten thousand.
const PART: u64 = 16 << 20;
const MOST_PARTS: u64 = 9_000;
/// Whoever took an upload within this time takes uploads.
const LATELY: Duration = Duration::from_secs(10);
/// Between two looks at a service that is away.
const AWAY_PAUSE: Duration = Duration::from_millis(200);

/// Why a job could not be done now.
enum Trouble {
    /// The service or its answer.
    S3(Failure),
    /// This machine.
    Local(io::Error),
    /// The object was replaced or flushed while it was being uploaded.
    Superseded,
    /// The fleet knows another body, and may yet hear of this one.
    Unsettled,
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Trouble::S3(failure)
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Trouble::Local(error)
    }
}

/// Works for ever. `large`: takes what is uploaded in parts, too.
pub(super) async fn work(bucket: Arc<Bucket>, arbiter: Arc<dyn Arbiter>, large: bool) {
    loop {
        while !bucket.breaker.is_closed() {
            tokio::time::sleep(AWAY_PAUSE).await;
        }
        let taken = bucket.queue.take(large).await;
        let again = if bucket.breaker.is_closed() {
            let began = Instant::now();
            let done = bucket.job(&taken, &*arbiter).await;
            bucket.judge(&taken, began, done).await
        } else {
            Some(Again::Soon)
        };
        let (bucket, given) = (Arc::clone(&bucket), taken);
        let _ = tokio::task::spawn_blocking(move || bucket.queue.give_back(&given, again)).await;
    }
}

impl Bucket {
    async fn job(self: &Arc<Self>, taken: &Taken, arbiter: &dyn Arbiter) -> Result<(), Trouble> {
        if taken.remove {
            let bucket = Arc::clone(self);
            let hash = taken.hash;
            match blocking(move || bucket.queue.to_remove(&hash)).await {
                Ok((object, before)) => {
                    if !self.is_newer(&object, before).await? {
                        within(SHORT, self.client.delete(&object)).await?;
                        self.counters.removed.fetch_add(1, Relaxed);
                    }
                }
                // The marker could not be made, or is damaged: what it named is not known any more.
                Err(error) => tracing::warn!(%error, "an object that was flushed may still be in the bucket"),
            }
            let (bucket, taken) = (Arc::clone(self), *taken);
            blocking(move || {
                bucket.queue.removed(&taken);
                Ok(())
            })
            .await?;
        }
        if taken.upload {
            self.upload(taken, arbiter).await?;
        } else {
            self.give_up_parts(taken, None).await?;
        }
        let (bucket, taken) = (Arc::clone(self), *taken);
        blocking(move || {
            bucket.queue.uploaded(&taken);
            Ok(())
        })
        .await?;
        Ok(())
    }

    /// Whether what the bucket has was fetched at `before` or later.
    async fn is_newer(&self, object: &str, before: Option<Millis>) -> Result<bool, Failure> {
        let Some(before) = before else { return Ok(false) };
        let copy = within(SHORT, describe(&self.client, object)).await?;
        Ok(copy.is_some_and(|copy| !is_before(copy.head.stored_at, before)))
    }

    /// Counts and tells what went wrong with a job that `began` then; when it comes again.
    async fn judge(&self, taken: &Taken, began: Instant, done: Result<(), Trouble>) -> Option<Again> {
        let failure = match done {
            Ok(()) | Err(Trouble::Superseded) => return None,
            Err(Trouble::Unsettled) => return Some(Again::Soon),
            Err(Trouble::Local(error)) => {
                tracing::warn!(%error, hash = %hex::encode(taken.hash), "an upload failed on this machine");
                self.counters.failed.fetch_add(1, Relaxed);
                return Some(Again::Backoff);
            }
            Err(Trouble::S3(failure)) => failure,
        };
        self.counters.failed.fetch_add(1, Relaxed);
        match self.blame(failure).await {
            // S3 answers, only not well. Whether it is away is found out by the requests that clients wait for.
            Blame::Service(failure @ Failure::Refused { status: 500.., .. }) => {
                tracing::debug!(%failure, "an upload failed");
                if taken.upload && self.refuses_all(&failure).await {
                    self.note_takes(Some(&failure));
                }
                Some(Again::Backoff)
            }
            Blame::Service(failure) => {
                self.breaker.fail(failure.to_string());
                Some(Again::Soon)
            }
            Blame::Question(failure) if taken.upload && self.refuses_all(&failure).await => {
                self.note_takes(Some(&failure));
                Some(Again::Backoff)
            }
            Blame::Question(failure) => {
                // A removal that is refused says nothing of uploads.
                if taken.upload {
                    self.note_takes(None);
                    // It was refused like all others, and they are taken now.
                    if self.takes_since.lock().is_some_and(|since| began <= since) {
                        return Some(Again::Backoff);
                    }
                }
                let store = self.store;
                let hash = taken.hash;
                let stored = tokio::task::spawn_blocking(move || store.open_stored(&hash))
                    .await
                    .ok()
                    .flatten();
                let key = stored.map_or_else(|| hex::encode(hash), |stored| stored.key.shown());
                tracing::warn!(
                    %key, %failure,
                    "S3 refuses this object alone: it stays here and is tried again every few minutes; see which policy \
                     of the bucket forbids it, or flush it"
                );
                Some(Again::Rarely)
            }
        }
    }

    /// Whether no object can be uploaded, rather than this one: the service says that it has no room, or does not take a
    /// few bytes either.
    async fn refuses_all(&self, failure: &Failure) -> bool {
        let took_lately = self.took.lock().is_some_and(|at| at.elapsed() < LATELY);
        if failure.is_full() || took_lately {
            return failure.is_full();
        }
        let bytes = "whether uploads are taken";
        let put = self.client.put(name::PROBE, &[], bytes.len() as u64, bytes.into());
        if within(SHORT, put).await.is_err() {
            return true;
        }
        *self.took.lock() = Some(Instant::now());
        // One that stays is in nobody's way.
        let _ = within(SHORT, self.client.delete(name::PROBE)).await;
        false
    }

    async fn upload(self: &Arc<Self>, taken: &Taken, arbiter: &dyn Arbiter) -> Result<(), Trouble> {
        let (store, hash) = (self.store, taken.hash);
        let open = move || match store.open_stored(&hash) {
            None if !store.is_missing(&hash) => Err(io::Error::other("the object cannot be read now")),
            stored => Ok(stored),
        };
        let stored = blocking(open).await?;
        let Some(stored) = stored.filter(|stored| stored.key.is_shared() && !stored.backed_up) else {
            // Gone, or done before a crash.
            return self.give_up_parts(taken, None).await;
        };
        let stored = Arc::new(stored);
        let Some(mut about) = metadata::encode(&stored.described) else {
            tracing::warn!(key = %stored.key.shown(), "this object's name and headers are too long for S3: it stays on this node only");
            self.counters.unfit.fetch_add(1, Relaxed);
            return self.give_up_parts(taken, None).await;
        };
        let content_type = stored.head.content_type().trim();
        if !content_type.is_empty() && content_type.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            about.push(("content-type".to_owned(), content_type.to_owned()));
        }
        let said = self.is_outdated(&stored, arbiter).await;
        if self.queue.is_outdated(taken, said) {
            self.counters.outdated.fetch_add(1, Relaxed);
            return self.give_up_parts(taken, None).await;
        }
        if said {
            return Err(Trouble::Unsettled);
        }
        let reading = Arc::clone(&stored);
        if !blocking(move || store.is_intact(&reading, |_| {})).await? {
            return self.give_up_parts(taken, None).await;
        }
        let object = name::of(&stored.key);
        let length = stored.finished.length;
        if length > LARGE {
            self.upload_parts(taken, &stored, &object, &about).await?;
        } else {
            self.give_up_parts(taken, None).await?;
            let (body, moved) = body(&stored, 0, length);
            moving(&moved, self.client.put(&object, &about, length, body)).await?;
        }
        *self.took.lock() = Some(Instant::now());
        self.note_takes(None);
        self.counters.uploaded.fetch_add(1, Relaxed);
        self.counters.uploaded_bytes.fetch_add(length, Relaxed);
        if self.is_outdated(&stored, arbiter).await {
            // It was paused, and has put an old body over a newer one.
            self.counters.outdated.fetch_add(1, Relaxed);
            let _ = tokio::time::timeout(ARBITER_LIMIT, arbiter.overwrote(&stored.key)).await;
        } else if self.queue.is_current(taken) {
            let (store, id) = (self.store, stored.id);
            blocking(move || {
                store.mark_backed_up(&hash, id, true);
                Ok(())
            })
            .await?;
            let _ = tokio::time::timeout(ARBITER_LIMIT, arbiter.uploaded(&stored.key, stored.identity())).await;
        }
        Ok(())
    }

    async fn is_outdated(&self, stored: &Stored, arbiter: &dyn Arbiter) -> bool {
        let asked = tokio::time::timeout(ARBITER_LIMIT, arbiter.is_outdated(&stored.key, stored.identity()));
        asked.await.unwrap_or(false)
    }

    async fn upload_parts(
        self: &Arc<Self>,
        taken: &Taken,
        stored: &Arc<Stored>,
        object: &str,
        about: &[(String, String)],
    ) -> Result<(), Trouble> {
        let length = stored.finished.length;
        let plan = Plan {
            id: stored.id,
            object: object.to_owned(),
            part: part_length(length),
        };
        let marker = self.queue.marker(&taken.hash);
        self.give_up_parts(taken, Some(&plan)).await?;
        let path = marker.clone();
        let (upload, mut parts) = match blocking(move || Progress::read(&path)).await? {
            Some(Progress {
                upload: Some(upload),
                parts,
                ..
            }) => (upload, parts),
            _ => {
                let (bucket, path, line) = (Arc::clone(self), marker.clone(), Progress::begin(&plan)?);
                blocking(move || bucket.queue.write_whole(&path, &line)).await?;
                let upload = within(SHORT, self.client.begin(object, about)).await?;
                self.note(taken, "upload", &upload).await?;
                (upload, Vec::new())
            }
        };
        let count = length.div_ceil(plan.part);
        while (parts.len() as u64) < count {
            if !self.queue.is_current(taken) {
                return Err(Trouble::Superseded);
            }
            let from = parts.len() as u64 * plan.part;
            let part_length = plan.part.min(length - from);
            let number = u16::try_from(parts.len() + 1).map_err(io::Error::other)?;
            let (body, moved) = body(stored, from, part_length);
            let sent = moving(&moved, self.client.part(object, &upload, number, part_length, body)).await;
            match sent {
                Ok(etag) => {
                    self.note(taken, "part", &format!("{number} {etag}")).await?;
                    parts.push(etag);
                }
                Err(failure) => return Err(self.forget_missing(taken, failure).await),
            }
        }
        match within(COMPLETE, self.client.complete(object, &upload, &parts)).await {
            Ok(()) => Ok(()),
            Err(failure) if failure.is_missing_upload() && self.has(object, stored.id).await => Ok(()),
            Err(failure @ Failure::Refused { status: 400, .. }) => {
                // These parts make no object: it begins anew the next time.
                self.give_up_parts(taken, None).await?;
                Err(failure.into())
            }
            Err(failure) => Err(self.forget_missing(taken, failure).await),
        }
    }

    /// Whether the bucket has this very body: the answer to the last question before a crash may have been lost.
    async fn has(&self, object: &str, id: u64) -> bool {
        let headers = within(SHORT, self.client.head(object)).await;
        let headers = headers.ok().flatten();
        headers
            .and_then(|headers| metadata::decode(&headers))
            .is_some_and(|described| described.id == id)
    }

    /// An upload that the service does not know any more is begun anew the next time.
    async fn forget_missing(self: &Arc<Self>, taken: &Taken, failure: Failure) -> Trouble {
        if failure.is_missing_upload() && !failure.is_missing_bucket() {
            let (bucket, path) = (Arc::clone(self), self.queue.marker(&taken.hash));
            if let Err(error) = blocking(move || bucket.queue.write_whole(&path, "")).await {
                return Trouble::Local(error);
            }
        }
        Trouble::S3(failure)
    }

    async fn note(&self, taken: &Taken, what: &'static str, value: &str) -> io::Result<()> {
        let (path, value) = (self.queue.marker(&taken.hash), value.to_owned());
        blocking(move || Progress::append(&path, what, &value)).await
    }

    /// Gives up what the marker says was begun, unless it is this plan and can go on.
    async fn give_up_parts(self: &Arc<Self>, taken: &Taken, but: Option<&Plan>) -> Result<(), Trouble> {
        let marker = self.queue.marker(&taken.hash);
        let path = marker.clone();
        let Some(progress) = blocking(move || Progress::read(&path)).await? else {
            return Ok(());
        };
        let object = &progress.plan.object;
        match &progress.upload {
            Some(_) if but == Some(&progress.plan) => return Ok(()),
            Some(upload) => within(SHORT, self.client.abort(object, upload)).await?,
            // The answer with its id was lost.
            None => match within(SHORT, self.client.unfinished(object)).await {
                Ok(unfinished) => {
                    for begun in unfinished.iter().filter(|begun| begun.object == *object) {
                        within(SHORT, self.client.abort(object, &begun.upload)).await?;
                    }
                }
                Err(failure @ Failure::Unreachable(_)) => return Err(failure.into()),
                // Some services cannot list them.
                Err(failure) => tracing::debug!(%failure, "unfinished uploads are not listed"),
            },
        }
        let bucket = Arc::clone(self);
        Ok(blocking(move || bucket.queue.write_whole(&marker, "")).await?)
    }
}

/// When something last moved, in milliseconds since it began.
pub(super) struct Moved {
    began: Instant,
    at: AtomicU64,
}

impl Moved {
    fn touch(&self) {
        let since = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.at.store(since, Relaxed);
    }

    fn rest(&self) -> Duration {
        let moved = Duration::from_millis(self.at.load(Relaxed));
        STALLED.saturating_sub(self.began.elapsed().saturating_sub(moved))
    }
}

/// How long the parts of an object of `length` bytes are.
pub(super) fn part_length(length: u64) -> u64 {
    PART.max(length.div_ceil(MOST_PARTS).next_multiple_of(1 << 20))
}

/// The bytes `from..from + length` of a body, read as the connection takes them.
pub(super) fn body(stored: &Arc<Stored>, from: u64, length: u64) -> (Body, Arc<Moved>) {
    let moved = Arc::new(Moved {
        began: Instant::now(),
        at: AtomicU64::new(0),
    });
    let feed = (Arc::clone(stored), Arc::clone(&moved), from, from + length);
    let pieces = futures_util::stream::try_unfold(feed, |(stored, moved, at, end)| async move {
        moved.touch();
        if at == end {
            return Ok::<_, io::Error>(None);
        }
        let reading = Arc::clone(&stored);
        let piece = blocking(move || read(&reading.file, reading.offset + at, (end - at).min(PIECE))).await?;
        let next = at + piece.len() as u64;
        Ok(Some((piece, (stored, moved, next, end))))
    });
    (Body::wrap_stream(pieces), moved)
}

fn read(file: &File, at: u64, length: u64) -> io::Result<Bytes> {
    let mut piece = vec![0; length as usize];
    file.read_exact_at(&mut piece, at)?;
    Ok(piece.into())
}

/// Waits for an answer for as long as something moves.
pub(super) async fn moving<T>(moved: &Moved, asked: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::pin!(asked);
    loop {
        let rest = moved.rest();
        if rest.is_zero() {
            return Err(Failure::Unreachable(format!("an upload did not move for {STALLED:?}")));
        }
        if let Ok(answer) = tokio::time::timeout(rest, &mut asked).await {
            return answer;
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(io::Error::other("the work was given up")))
}
