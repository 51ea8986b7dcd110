//! The bucket as a source: what it holds is found, judged, and brought here.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::StreamExt as _;

use super::node::Life;
use super::source::{Found, Offer, Source};
use super::transfer::Transfer;
use super::{Fills, How, Wanted, record};
use crate::bucket::Copy;
use crate::cache::{Expected, Finish, Object, Origin, now_ms};
use crate::fleet::Word;
use crate::formats::Class;

/// An expired copy up to this is brought out of the bucket before upstream is asked about it; a longer one costs more than
/// the question saves.
const MAX_BROUGHT_BACK: u64 = 64 << 20;

/// A copy that was found in the bucket, and how long it may be trusted.
pub(super) struct FromBucket {
    fills: Arc<Fills>,
    copy: Copy,
    life: Life,
}

impl FromBucket {
    pub(super) fn new(fills: &Arc<Fills>, copy: Copy, life: Life) -> FromBucket {
        FromBucket {
            fills: Arc::clone(fills),
            copy,
            life,
        }
    }

    pub(super) fn by_its_own_times(fills: &Arc<Fills>, copy: Copy) -> FromBucket {
        let life = own_life(&copy);
        FromBucket::new(fills, copy, life)
    }
}

#[async_trait]
impl Source for FromBucket {
    fn origin(&self) -> Origin {
        Origin::Bucket
    }

    async fn ask(&self, from: u64, have: Option<u64>) -> io::Result<Found> {
        let Some(bucket) = &self.fills.shared.bucket else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        if have == Some(self.copy.identity()) {
            return Ok(Found::Same(self.life));
        }
        let finished = self.copy.finished;
        let pieces = bucket.read(&self.copy, from, finished.length).await;
        Ok(Found::Offer(Box::new(Offer {
            head: self.copy.head.clone(),
            life: self.life,
            finished: Some(finished),
            how: How::Restored,
            transfer: Transfer::new(pieces.map_err(io::Error::other)?, Some(finished)).patiently(),
        })))
    }

    async fn is_wrong(&self) {
        if let Some(bucket) = &self.fills.shared.bucket {
            bucket.remove(&self.copy.key).await;
        }
    }
}

/// By the copy's own times.
pub(super) fn own_life(copy: &Copy) -> Life {
    Life {
        immutable: copy.class == Class::Immutable,
        checked_at: copy.checked_at,
        fresh_until: copy.fresh_until,
    }
}

impl Fills {
    /// How long a copy may be trusted. Of what is mutable only the fleet can tell, as long as it answers; `None`: it calls
    /// another body current, or none.
    pub(super) fn life_of(&self, wanted: &Wanted, copy: &Copy, word: Result<&Option<Word>, &()>) -> Option<Life> {
        match word {
            Ok(Some(word)) if word.id == copy.identity() => {
                (!self.shared.ledger.is_flushed_word(&wanted.key, word)).then(|| Life::said_by(word))
            }
            Ok(_) if wanted.policy.class == Class::Mutable => None,
            Ok(_) | Err(_) => Some(own_life(copy)),
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

    /// Brings an expired copy out of the bucket, whole, out of sight: for upstream to say whether it is still right.
    pub(super) async fn bring_back(self: &Arc<Self>, wanted: &Wanted, copy: Copy) -> Option<Arc<Object>> {
        if copy.finished.length > MAX_BROUGHT_BACK {
            return None;
        }
        let mut life = own_life(&copy);
        life.fresh_until = life.fresh_until.min(now_ms());
        let Ok(Found::Offer(mut offer)) = FromBucket::new(self, copy, life).ask(0, None).await else {
            return None;
        };
        let particulars = (life.parts(), Origin::Bucket);
        let expected = offer.finished.map(|finished| Expected::Sha256(finished.sha256));
        let hidden = self
            .store
            .restore_hidden(wanted.key.clone(), offer.head, particulars, expected);
        let mut writer = hidden.await.ok()?;
        while let Some(piece) = offer.transfer.pieces.next().await {
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
