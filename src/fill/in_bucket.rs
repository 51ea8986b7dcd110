//! What only the bucket has: found, read from there without a copy here, and brought here.

use std::io;
use std::sync::Arc;

use futures_util::{FutureExt as _, StreamExt as _};
use http::Method;

use super::node::{Body, Incoming, Life};
use super::take::{SILENCE, Source};
use super::turn::is_fresh;
use super::{Fills, How, Landing, Outcome, Wanted, record};
use crate::bucket::Copy;
use crate::cache::{Elsewhere, Expected, Finish, Object, Origin, Reader, now_ms};
use crate::fleet::Record;
use crate::formats::Class;

/// An expired copy up to this is brought out of the bucket before upstream is asked about it; a longer one costs more than
/// the question saves.
const MAX_BROUGHT_BACK: u64 = 64 << 20;

/// Reads what the bucket has, a part at a time; what S3 does not finish comes from wherever else it is, in the end from
/// upstream.
#[derive(Clone)]
struct InBucket {
    fills: Arc<Fills>,
    wanted: Wanted,
    copy: Copy,
}

impl std::fmt::Debug for InBucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InBucket")
            .field("copy", &self.copy)
            .finish_non_exhaustive()
    }
}

#[async_trait::async_trait]
impl Elsewhere for InBucket {
    async fn read(&self, start: u64, end: u64) -> io::Result<Incoming> {
        let begun = match &self.fills.shared.bucket {
            Some(bucket) => bucket.read(&self.copy, start, end).await.map_err(io::Error::other),
            None => Err(io::ErrorKind::Unsupported.into()),
        };
        let begun = begun.unwrap_or_else(|error| futures_util::stream::iter([Err(error)]).boxed());
        let reading = (self.clone(), begun, start, false);
        let pieces =
            futures_util::stream::try_unfold(reading, move |(body, mut pieces, at, mut taken_up)| async move {
                loop {
                    let failure = match pieces.next().await {
                        Some(Ok(piece)) => {
                            let at = at + piece.len() as u64;
                            return Ok(Some((piece, (body, pieces, at, taken_up))));
                        }
                        None if at >= end => return Ok(None),
                        None => io::ErrorKind::UnexpectedEof.into(),
                        Some(Err(error)) => error,
                    };
                    if std::mem::replace(&mut taken_up, true) {
                        return Err(failure);
                    }
                    pieces = body.rest(at, end, failure).await?;
                }
            });
        Ok(pieces.boxed())
    }
}

impl InBucket {
    async fn rest(&self, at: u64, end: u64, failure: io::Error) -> io::Result<Incoming> {
        let (fills, key) = (&self.fills, &self.wanted.key);
        fills.metrics.shared("taken_up");
        tracing::info!(key = %key.shown(), %failure, at, "a part of a body is taken up elsewhere");
        let Outcome::Object(again, _) = fills.obtain_aside(self.wanted.clone(), Method::GET).await else {
            return Err(failure);
        };
        if !self.is_body_of(&again) {
            tracing::warn!(key = %key.shown(), "upstream has another body by now: a transfer cannot go on");
            return Err(failure);
        }
        let pieces = futures_util::stream::try_unfold(Reader::range(again, at, end), |mut reader| async move {
            let piece = reader.next().await.map_err(io::Error::other)?;
            Ok::<_, io::Error>(piece.map(|piece| (piece, reader)))
        });
        Ok(pieces.boxed())
    }

    /// Whether the body of `object`, which may still grow, is the one that the bucket has.
    fn is_body_of(&self, object: &Object) -> bool {
        if let Some(identity) = object.identity() {
            return identity == self.copy.identity();
        }
        let (etag, old) = (object.head.etag(), self.copy.head.etag());
        let is_strong = etag.is_some_and(|etag| !etag.starts_with("W/"));
        object.length() == Some(self.copy.finished.length)
            && etag == old
            && (is_strong || self.wanted.policy.class == Class::Immutable)
    }
}

impl Fills {
    /// What only the bucket has, as an object whose body stays there: for a HEAD or a part of it, which need no copy of the
    /// whole here. `None` also where it is not fresh.
    pub async fn elsewhere(self: &Arc<Self>, wanted: &Wanted) -> Option<Arc<Object>> {
        if !wanted.key.is_shared() || wanted.is_set() || wanted.force {
            return None;
        }
        let (copy, record) = tokio::join!(self.find(wanted), self.word(wanted));
        let copy = copy?;
        let life = self.life_of(wanted, &copy, record.as_ref())?;
        is_fresh(wanted, life).then(|| {
            let (head, finished) = (copy.head.clone(), copy.finished);
            let body = InBucket {
                fills: Arc::clone(self),
                wanted: wanted.clone(),
                copy,
            };
            Object::elsewhere(wanted.key.clone(), head, finished, life.parts(), Arc::new(body))
        })
    }

    /// How long a copy may be trusted. Of what is mutable only the fleet can tell, as long as it answers; `None`: it calls
    /// another body current, or none.
    pub(super) fn life_of(&self, wanted: &Wanted, copy: &Copy, record: Result<&Option<Record>, &()>) -> Option<Life> {
        let own = Life {
            immutable: copy.class == Class::Immutable,
            checked_at: copy.checked_at,
            fresh_until: copy.fresh_until,
        };
        match record {
            Ok(Some(record)) if record.id == copy.identity() => {
                (!self.shared.ledger.is_flushed_word(&wanted.key, record)).then(|| Life::said_by(record))
            }
            Ok(_) if wanted.policy.class == Class::Mutable => None,
            Ok(_) | Err(_) => Some(own),
        }
    }

    /// What the bucket holds that may be used for `wanted`.
    pub(super) async fn find(&self, wanted: &Wanted) -> Option<Copy> {
        let bucket = self.shared.bucket.as_ref()?;
        let mut copy = bucket.find(&wanted.key).await.ok()??;
        match self
            .shared
            .ledger
            .flushed(&wanted.key, copy.head.stored_at, copy.checked_at)
        {
            None => {}
            Some(true) => copy.described.fresh_until = copy.fresh_until.min(copy.checked_at),
            Some(false) => {
                bucket.remove(&wanted.key).await;
                return None;
            }
        }
        match &wanted.expected {
            Some(Expected::Sha256(expected)) if *expected != copy.finished.sha256 => None,
            _ => Some(copy),
        }
    }

    /// Brings a fresh copy out of the bucket.
    pub(super) async fn bring(
        self: &Arc<Self>,
        wanted: &Wanted,
        landing: &mut Option<Landing<'_>>,
        copy: Copy,
        life: Life,
        previous: Option<&Arc<Object>>,
    ) -> bool {
        let Some(source) = self.open_copy(copy, life).await else {
            return false;
        };
        self.take_in(wanted, landing, source, How::Restored, previous)
            .boxed()
            .await
    }

    pub(super) async fn open_copy(&self, copy: Copy, life: Life) -> Option<(Source, Body)> {
        let bucket = self.shared.bucket.as_ref()?;
        let body = match copy.finished.length {
            0 => futures_util::stream::empty().boxed(),
            length => bucket.read(&copy, 0, length).await.ok()?,
        };
        let source = Source {
            head: copy.described.head,
            life,
            finished: Some(copy.described.finished),
            origin: Origin::Bucket,
            node: None,
        };
        let whole = source.finished;
        Some((source, Body::new(body, whole)))
    }

    /// Brings an expired copy out of the bucket, whole, out of sight: for upstream to say whether it is still right.
    pub(super) async fn bring_back(self: &Arc<Self>, wanted: &Wanted, copy: Copy) -> Option<Arc<Object>> {
        if copy.finished.length > MAX_BROUGHT_BACK {
            return None;
        }
        let life = Life {
            immutable: copy.class == Class::Immutable,
            checked_at: copy.checked_at,
            fresh_until: copy.fresh_until.min(now_ms()),
        };
        let (source, mut body) = self.open_copy(copy, life).await?;
        let particulars = (life.parts(), Origin::Bucket);
        let expected = source.finished.map(|finished| Expected::Sha256(finished.sha256));
        let hidden = self
            .store
            .restore_hidden(wanted.key.clone(), source.head, particulars, expected);
        let mut writer = hidden.await.ok()?;
        while let Ok(Some(piece)) = tokio::time::timeout(SILENCE, body.pieces.next()).await {
            writer.write(piece.ok()?).await.ok()?;
        }
        let Finish::Admitted(object) = writer.finish().await else {
            return None;
        };
        // A flush does not see what is hidden.
        if self.shared.ledger.is_flushed(&object.key, object.head.stored_at) {
            self.store.remove(object.key.hash).await;
            return None;
        }
        if let Some(event) = record::stored(&object, object.fresh.class()) {
            self.note_listed(&object, event);
        }
        Some(object)
    }
}
