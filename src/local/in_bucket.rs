//! A local file whose bytes are in the bucket, read as they are asked for.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use sha2::{Digest as _, Sha256};

use crate::bucket::{Bucket, Copy, Pieces};
use crate::cache::{Class, Elsewhere, FOR_EVER, Object, now_ms};

/// What the bucket has of a local file.
#[derive(Clone)]
pub(super) struct InBucket {
    bucket: Arc<Bucket>,
    copy: Copy,
}

impl std::fmt::Debug for InBucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InBucket")
            .field("copy", &self.copy)
            .finish_non_exhaustive()
    }
}

/// A body on its way from the bucket.
struct Reading {
    body: InBucket,
    pieces: Pieces,
    at: u64,
    end: u64,
    /// The transfer broke off once, and went on.
    is_taken_up: bool,
    /// Of the bytes so far, where the whole is read.
    proof: Option<Sha256>,
}

impl InBucket {
    /// The file as an object.
    pub(super) fn object(bucket: &Arc<Bucket>, copy: Copy) -> Arc<Object> {
        let (key, head, finished) = (copy.key.clone(), copy.head.clone(), copy.finished);
        let body = InBucket {
            bucket: Arc::clone(bucket),
            copy,
        };
        Object::elsewhere(
            key,
            head,
            finished,
            (Class::Mutable, now_ms(), FOR_EVER),
            Arc::new(body),
        )
    }

    async fn pieces(&self, start: u64, end: u64) -> io::Result<Pieces> {
        self.bucket.read(&self.copy, start, end).await.map_err(io::Error::other)
    }
}

impl Reading {
    /// The next piece. Of a whole body the last one is given out only if all is what was stored.
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if self.at >= self.end {
                return Ok(None);
            }
            let failure = match self.pieces.next().await {
                Some(Ok(piece)) => {
                    self.at += piece.len() as u64;
                    return self.prove(&piece).map(|()| Some(piece));
                }
                Some(Err(error)) => error,
                None => io::ErrorKind::UnexpectedEof.into(),
            };
            if std::mem::replace(&mut self.is_taken_up, true) {
                return Err(failure);
            }
            self.pieces = self.body.pieces(self.at, self.end).await?;
        }
    }

    fn prove(&mut self, piece: &[u8]) -> io::Result<()> {
        let Some(proof) = &mut self.proof else { return Ok(()) };
        proof.update(piece);
        if self.at < self.end {
            return Ok(());
        }
        let digest = self.proof.take().map(Sha256::finalize);
        if digest.is_some_and(|digest| digest.as_slice() == self.body.copy.finished.sha256) {
            return Ok(());
        }
        let key = self.body.copy.key.shown();
        tracing::error!(
            key,
            "AN UPLOADED FILE IS DAMAGED IN THE BUCKET: its body does not match its digest; restore it, or upload it again"
        );
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "its body does not match its digest",
        ))
    }
}

#[async_trait]
impl Elsewhere for InBucket {
    async fn read(&self, start: u64, end: u64) -> io::Result<BoxStream<'static, io::Result<Bytes>>> {
        let whole = self.copy.finished.length;
        let reading = Reading {
            body: self.clone(),
            pieces: self.pieces(start, end).await?,
            at: start,
            end: end.min(whole),
            is_taken_up: false,
            proof: (start == 0 && end >= whole).then(Sha256::new),
        };
        let pieces = stream::try_unfold(reading, |mut reading| async move {
            let piece = reading.next().await?;
            Ok(piece.map(|piece| (piece, reading)))
        });
        Ok(pieces.boxed())
    }
}
