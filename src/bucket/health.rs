//! Whether the service answers, has the bucket, and takes uploads; and whose fault it is when a question brings nothing.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::client::{Failure, within};
use super::{Bucket, FIND_LIMIT};
use crate::breaker::Standing;

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
pub(super) enum Blame {
    Service(Failure),
    /// The service is well; it refuses this alone.
    Question(Failure),
}

impl Bucket {
    /// Looks whether the service answers and has the bucket, which is made where it is missing.
    pub(super) async fn look(&self) -> Result<(), Failure> {
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

    pub(super) async fn probe(&self) -> Result<(), Failure> {
        self.client.reconnect();
        self.look().await
    }

    /// Finds out whose fault a failure is: a refusal may be meant for one object or for all of them.
    pub(super) async fn blame(&self, failure: Failure) -> Blame {
        if failure.is_of_service() {
            return Blame::Service(failure);
        }
        match within(FIND_LIMIT / 2, self.client.ping()).await {
            Ok(()) => Blame::Question(failure),
            // An answer to HEAD says nothing more than its status; this one says why.
            Err(general @ Failure::Refused { .. }) => Blame::Service(general),
            Err(_) => Blame::Service(failure),
        }
    }

    /// Notes whether the bucket takes uploads. `refusal`: why it takes none.
    pub(super) fn note_takes(&self, refusal: Option<&Failure>) {
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
                *self.takes_since.lock() = Some(Instant::now());
                drop(refusing);
                self.queue.hurry();
            }
            (None, None) => {}
        }
    }

    /// How the bucket fares now.
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
}
