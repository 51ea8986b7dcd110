//! Upstream as a source: asked once more for the whole of a body that was cut, beside its place.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Buf as _, Bytes};
use futures_util::{StreamExt as _, stream};
use http::Method;

use super::answer::Answer;
use super::node::Life;
use super::source::{Begun, Found, Offer, Source};
use super::transfer::Transfer;
use super::{Fills, How, Outcome, Wanted};
use crate::bucket::Pieces;
use crate::cache::{Aside, Head, Origin, Reader};

/// What upstream has now.
pub(super) struct FromUpstream {
    fills: Arc<Fills>,
    /// In a place of its own, and asked for without a condition.
    wanted: Wanted,
}

impl FromUpstream {
    pub(super) fn new(fills: &Arc<Fills>, wanted: &Wanted) -> FromUpstream {
        let mut wanted = wanted.aside(Aside::Rest);
        wanted.policy.conditional = false;
        FromUpstream {
            fills: Arc::clone(fills),
            wanted,
        }
    }
}

#[async_trait]
impl Source for FromUpstream {
    fn origin(&self) -> Origin {
        Origin::Upstream
    }

    /// Upstream's validators name no content, so that `have` does not spare the body.
    async fn ask(&self, from: u64, _have: Option<u64>) -> io::Result<Found> {
        let wanted = self.fills.verifiable(self.wanted.clone()).await;
        let outcome = self.fills.obtain_aside(wanted, Method::GET).await;
        let object = match outcome {
            Outcome::Object(object, How::Fetched) => object,
            Outcome::Answer(answer) if answer.unreachable => return Ok(Found::Unreachable),
            Outcome::Answer(answer) => return Ok(Found::Answer(Answer::clone(&answer))),
            Outcome::Object(..) | Outcome::Direct => return Ok(Found::Nothing),
        };
        let (store, hash) = (self.fills.store, object.key.hash);
        let reader = Reader::range(Arc::clone(&object), from, u64::MAX);
        let pieces = stream::unfold(Some(reader), move |reader| async move {
            let mut reader = reader?;
            match reader.next().await {
                Ok(Some(piece)) => Some((Ok(piece), Some(reader))),
                Ok(None) => {
                    store.remove(hash).await;
                    None
                }
                Err(error) => Some((Err(io::Error::other(error)), None)),
            }
        });
        Ok(Found::Offer(Box::new(Offer {
            head: object.head.clone(),
            life: Life::of(&object),
            finished: object.finished(),
            how: How::Fetched,
            transfer: Transfer::new(pieces.boxed(), None).patiently(),
        })))
    }

    /// Upstream may have another body by now: what came before has to be the same.
    async fn rest(&self, begun: &Begun<'_>) -> Option<Transfer> {
        let Ok(Found::Offer(offer)) = self.ask(0, None).await else {
            return None;
        };
        let has_other_length = offer
            .length()
            .is_some_and(|length| begun.growing.length().is_some_and(|whole| whole != length));
        if has_other_length || !is_same_version(&offer.head, &begun.growing.head) {
            return None;
        }
        let mut pieces = offer.transfer.pieces;
        let first = behind_the_same(begun, &mut pieces).await?;
        let rest = stream::iter((!first.is_empty()).then_some(Ok(first))).chain(pieces);
        Some(Transfer::new(rest.boxed(), None))
    }
}

/// Compares what comes with what is there, and leaves in `pieces` what comes after that; the part of it that was read already.
async fn behind_the_same(begun: &Begun<'_>, pieces: &mut Pieces) -> Option<Bytes> {
    // Of a body with a known digest the last piece is neither shown nor held: the digest will tell.
    let shown = begun.growing.progress().visible.min(begun.written);
    let mut held = begun.held.clone();
    let known = shown + held.len() as u64;
    let mut old = Reader::range(Arc::clone(begun.growing), 0, shown);
    let (mut left, mut right) = (Bytes::new(), Bytes::new());
    let mut at = 0;
    while at < begun.written {
        if left.is_empty() {
            left = match at < shown {
                true => old.next().await.ok()??,
                false => std::mem::take(&mut held),
            };
        }
        if right.is_empty() {
            right = pieces.next().await?.ok()?;
        }
        let is_known = at < known;
        let length = match is_known {
            true => left.len().min(right.len()),
            false => right.len().min(usize::try_from(begun.written - at).ok()?),
        };
        if is_known && left.split_to(length) != right[..length] {
            tracing::warn!(key = %begun.growing.key.shown(), "upstream has another body by now: a transfer cannot go on");
            return None;
        }
        right.advance(length);
        at += length as u64;
    }
    Some(right)
}

/// Upstream says the same of both bodies.
fn is_same_version(a: &Head, b: &Head) -> bool {
    (a.etag(), a.last_modified(), a.content_encoding()) == (b.etag(), b.last_modified(), b.content_encoding())
}
