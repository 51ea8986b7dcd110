//! What bucket, node and upstream have in common: they are asked for what is wanted, send it from any byte on, and somebody
//! else is asked for the rest when one of them stops.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::How;
use super::answer::Answer;
use super::node::Life;
use super::transfer::Transfer;
use crate::cache::{Finished, Head, Object, Origin};

/// Somebody who may have what is wanted.
///
/// The first fetch from upstream is none: Pingora asks, decides whether what is stored is still right, and writes what comes
/// into the object itself, in its place ([`super::upstream`]). As pieces it would be copied once more for each cold file.
/// What upstream sends beside that place, for the rest of a body that was cut, is one.
#[async_trait]
pub(super) trait Source: Send + Sync {
    /// What a body that comes from it counts as.
    fn origin(&self) -> Origin;

    /// Asks for what is wanted, from the byte `from` on, unless it is the content `have`.
    ///
    /// # Errors
    /// The source cannot be asked.
    async fn ask(&self, from: u64, have: Option<u64>) -> io::Result<Found>;

    /// The rest of a body that was cut, if it has the very same.
    async fn rest(&self, begun: &Begun<'_>) -> Option<Transfer> {
        match self.ask(begun.written, None).await {
            Ok(Found::Offer(offer)) if begun.is_of(&offer) => Some(offer.transfer),
            _ => None,
        }
    }

    /// What it sent is not what it said that it is.
    async fn is_wrong(&self) {}
}

/// What a source says of what it was asked for.
pub(super) enum Found {
    /// The body comes.
    Offer(Box<Offer>),
    /// What was said to be there already is current.
    Same(Life),
    /// Upstream's own answer, which is not stored.
    Answer(Answer),
    /// Upstream was not reached.
    Unreachable,
    /// There is something that cannot be passed on.
    Unshared,
    /// There is nothing (any more).
    Nothing,
}

/// What a source has, whole or growing.
pub(super) struct Offer {
    pub head: Head,
    pub life: Life,
    /// Where it is complete.
    pub finished: Option<Finished>,
    pub how: How,
    pub transfer: Transfer,
}

impl Offer {
    /// The whole length, where it is known.
    pub(super) fn length(&self) -> Option<u64> {
        self.finished
            .map(|finished| finished.length)
            .or(self.head.content_length)
    }
}

/// A body that was cut, as far as it is here.
pub(super) struct Begun<'a> {
    pub growing: &'a Arc<Object>,
    /// What the whole must turn out to be, where that was said at its beginning.
    pub finished: Option<Finished>,
    pub written: u64,
    /// Written, and not shown yet.
    pub held: Bytes,
}

impl Begun<'_> {
    /// Whether `offer` is the same body: by its digest, or because one fill brought both.
    fn is_of(&self, offer: &Offer) -> bool {
        match (self.finished, offer.finished) {
            (Some(a), Some(b)) => a == b,
            _ => is_same_fill(&offer.head, &self.growing.head),
        }
    }
}

/// Two nodes read what one fetched: then all that came before the body is the same, to the millisecond.
fn is_same_fill(a: &Head, b: &Head) -> bool {
    a.url == b.url && a.stored_at == b.stored_at && a.headers == b.headers
}
