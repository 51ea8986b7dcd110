//! What has to be in the bucket, or gone from it, before somebody is answered: it does not go through the queue.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue, header};

use super::client::{Failure, within};
use super::health::Blame;
use super::queue::LARGE;
use super::upload::{COMPLETE, SHORT, body, moving, part_length};
use super::{Bucket, metadata, name};
use crate::breaker::Away;
use crate::cache::{Key, Stored};

/// For a removal.
const REMOVE_LIMIT: Duration = Duration::from_secs(10);

/// What an upload may take the place of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Whatever is there.
    Any,
    /// Nothing.
    Empty,
    /// The object with this entity tag of S3.
    Of(HeaderValue),
}

/// Why an object was not put.
#[derive(Debug, thiserror::Error)]
pub enum NotPut {
    #[error("what is in the bucket is not what the upload may replace")]
    Taken,
    #[error("its path and header are too long for S3")]
    Unfit,
    #[error("{0}")]
    Away(String),
}

impl Place {
    fn condition(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        match self {
            Place::Any => {}
            Place::Empty => _ = headers.insert(header::IF_NONE_MATCH, HeaderValue::from_static("*")),
            Place::Of(etag) => _ = headers.insert(header::IF_MATCH, etag.clone()),
        }
        headers
    }
}

/// Whether the service says that something else is there than was expected.
fn is_taken(failure: &Failure, place: &Place) -> bool {
    match failure {
        Failure::Refused { status: 412, .. } => true,
        // Another upload of this name is under way.
        Failure::Refused { status: 409, code, .. } => code == "ConditionalRequestConflict",
        Failure::Refused { status: 404, code, .. } => matches!(place, Place::Of(_)) && code == "NoSuchKey",
        _ => false,
    }
}

impl Bucket {
    /// Puts an object, whole or not at all; when this returns, the bucket has it.
    ///
    /// # Errors
    /// The bucket has something else under its name than may be replaced, does not take it, or does not answer. (In the last
    /// case it may have it all the same.)
    pub async fn put_now(self: &Arc<Self>, stored: Stored, place: Place) -> Result<(), NotPut> {
        if !self.breaker.is_closed() {
            self.breaker.skip();
            return Err(NotPut::Away(
                "S3 does not answer and is not asked until it does".to_owned(),
            ));
        }
        let mut about = metadata::encode(&stored.described).ok_or(NotPut::Unfit)?;
        let content_type = stored.head.content_type().trim();
        if !content_type.is_empty() && content_type.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            about.push(("content-type".to_owned(), content_type.to_owned()));
        }
        let (bucket, stored, asked) = (Arc::clone(self), Arc::new(stored), place.clone());
        // Where the connections live; it goes on if whoever waits has left.
        let putting = self.runtime.spawn(async move {
            let object = name::of(&stored.key);
            match stored.finished.length > LARGE {
                true => bucket.put_parts(&stored, &object, &about, &asked).await,
                false => {
                    let (body, moved) = body(&stored, 0, stored.finished.length);
                    let condition = asked.condition();
                    let length = stored.finished.length;
                    let put = bucket.client.put_if(&object, &about, condition, length, body);
                    moving(&moved, put).await
                }
            }
        });
        let failure = match putting.await {
            Ok(Ok(())) => {
                *self.took.lock() = Some(Instant::now());
                self.note_takes(None);
                return Ok(());
            }
            Ok(Err(failure)) if is_taken(&failure, &place) => return Err(NotPut::Taken),
            Ok(Err(failure)) => failure,
            Err(_) => return Err(NotPut::Away("the process is stopping".to_owned())),
        };
        let failure = match self.blame(failure).await {
            Blame::Service(failure @ Failure::Refused { .. }) | Blame::Question(failure) => failure,
            Blame::Service(failure) => {
                self.breaker.fail(failure.to_string());
                failure
            }
        };
        Err(NotPut::Away(format!("S3 did not take it: {failure}")))
    }

    async fn put_parts(
        self: &Arc<Self>,
        stored: &Arc<Stored>,
        object: &str,
        about: &[(String, String)],
        place: &Place,
    ) -> Result<(), Failure> {
        let upload = within(SHORT, self.client.begin(object, about)).await?;
        let made = self.send_parts(stored, object, &upload, place).await;
        if made.is_err() {
            // What a service that is away keeps of it is given up by the janitor.
            let _ = within(SHORT, self.client.abort(object, &upload)).await;
        }
        made
    }

    async fn send_parts(
        self: &Arc<Self>,
        stored: &Arc<Stored>,
        object: &str,
        upload: &str,
        place: &Place,
    ) -> Result<(), Failure> {
        let length = stored.finished.length;
        let part = part_length(length);
        let mut etags = Vec::new();
        for (number, from) in (1_u16..).zip((0..length).step_by(usize::try_from(part).unwrap_or(usize::MAX))) {
            let part = part.min(length - from);
            let (body, moved) = body(stored, from, part);
            etags.push(moving(&moved, self.client.part(object, upload, number, part, body)).await?);
        }
        within(
            COMPLETE,
            self.client.complete_if(object, upload, &etags, place.condition()),
        )
        .await
    }

    /// Removes the object of `key`; when this returns, the bucket has none.
    ///
    /// # Errors
    /// The service is away, or refuses.
    pub async fn remove_now(self: &Arc<Self>, key: &Key) -> Result<(), Away> {
        let (bucket, object) = (Arc::clone(self), name::of(key));
        self.ask(REMOVE_LIMIT, async move { bucket.client.delete(&object).await })
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_services_say_of_conditions() {
        let refused = |status, code: &str| Failure::Refused {
            status,
            code: code.to_owned(),
            message: String::new(),
        };
        let of = Place::Of(HeaderValue::from_static("\"x\""));
        assert!(is_taken(&refused(412, "PreconditionFailed"), &Place::Empty));
        assert!(is_taken(&refused(409, "ConditionalRequestConflict"), &Place::Empty));
        assert!(is_taken(&refused(404, "NoSuchKey"), &of));
        assert!(!is_taken(&refused(404, "NoSuchKey"), &Place::Empty));
        assert!(!is_taken(&refused(404, "NoSuchBucket"), &of));
        assert!(!is_taken(&refused(503, "SlowDown"), &of));
        assert_eq!(Place::Any.condition().len(), 0);
        assert_eq!(of.condition()[header::IF_MATCH], "\"x\"");
    }
}
