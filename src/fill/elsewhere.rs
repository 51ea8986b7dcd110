//! Objects whose body stays in the bucket: for a HEAD or a part, which need no copy of the whole here.

use std::io;
use std::sync::Arc;

use futures_util::StreamExt as _;
use http::Method;

use super::decision::is_fresh;
use super::{Fills, Outcome, Wanted};
use crate::bucket::{Copy, Pieces};
use crate::cache::{Elsewhere, Object, Reader, now_ms};
use crate::formats::Class;

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
    async fn read(&self, start: u64, end: u64) -> io::Result<Pieces> {
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
    async fn rest(&self, at: u64, end: u64, failure: io::Error) -> io::Result<Pieces> {
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
        let (copy, word) = tokio::join!(self.find(wanted), self.word(wanted));
        let copy = copy?;
        let life = self.life_of(wanted, &copy, word.as_ref())?;
        is_fresh(wanted.policy, life, now_ms()).then(|| {
            let (head, finished) = (copy.head.clone(), copy.finished);
            let body = InBucket {
                fills: Arc::clone(self),
                wanted: wanted.clone(),
                copy,
            };
            Object::elsewhere(wanted.key.clone(), head, finished, life.parts(), Arc::new(body))
        })
    }
}
