//! What the bucket holds: found by its key or its name, and read.

use std::io;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use http::{HeaderMap, HeaderValue, header};
use tokio::sync::mpsc;

use super::client::{self, Client, Failure, within};
use super::metadata;
use super::{Bucket, FIND_LIMIT, LIST_LIMIT, name};
use crate::breaker::Away;
use crate::cache::{Described, Hash, Key};

/// A request waits no longer for the first bytes of a body.
const FIRST_BYTE_LIMIT: Duration = Duration::from_secs(2);
/// ... and for the next ones.
const NEXT_BYTES_LIMIT: Duration = Duration::from_secs(5);
/// Pieces of a body that are read ahead of whoever takes them.
const AHEAD: usize = 4;

/// An object in the bucket.
#[derive(Debug, Clone)]
pub struct Copy {
    pub described: Described,
    /// That of S3, by which its body is asked for.
    etag: Option<HeaderValue>,
    object: String,
}

impl Deref for Copy {
    type Target = Described;

    fn deref(&self) -> &Described {
        &self.described
    }
}

impl Copy {
    /// The entity tag that S3 gave it.
    pub fn etag(&self) -> Option<&HeaderValue> {
        self.etag.as_ref()
    }
}

/// The bytes of a body as they come. An error is final.
pub type Pieces = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

impl Bucket {
    /// What the bucket holds under `key`. `None`: nothing, or what cannot be understood or is another key's, or what this
    /// node is about to remove.
    ///
    /// # Errors
    /// The service is away, or did not answer within a second.
    pub async fn find(self: &Arc<Self>, key: &Key) -> Result<Option<Copy>, Away> {
        if !key.is_shared() || self.is_removing(key.hash).await {
            return Ok(None);
        }
        let object = name::of(key);
        let found = self.head(FIND_LIMIT, object).await?;
        Ok(found.filter(|copy| copy.key == *key))
    }

    async fn is_removing(self: &Arc<Self>, hash: Hash) -> bool {
        if self.queue.is_scanned() {
            return self.queue.is_removing(&hash);
        }
        let bucket = Arc::clone(self);
        // The task fails only when the process ends.
        let looking = tokio::task::spawn_blocking(move || bucket.queue.is_removing(&hash));
        looking.await.unwrap_or(true)
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
            let more = within(NEXT_BYTES_LIMIT, client::piece(&mut response));
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
}

/// What is stored under a name. `None`: nothing that was put there by this program.
pub(super) async fn describe(client: &Client, object: &str) -> Result<Option<Copy>, Failure> {
    let Some(headers) = client.head(object).await? else {
        return Ok(None);
    };
    let length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok());
    let described = metadata::decode(&headers);
    let Some(described) = described.filter(|described| length == Some(described.finished.length)) else {
        tracing::debug!(
            object = name::shown(object),
            "an object in the bucket has no metadata of ours"
        );
        return Ok(None);
    };
    // An object that somebody copied to another name is not the one of that name.
    Ok((name::of(&described.key) == object).then(|| Copy {
        described,
        etag: headers.get(header::ETAG).cloned(),
        object: object.to_owned(),
    }))
}
