//! What somebody else has is made to grow here, while it comes, and everybody reads it meanwhile.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};

use super::node::{Body, Life};
use super::{Fills, How, Landing, Outcome, Purpose, Wanted, record};
use crate::cache::{Aside, Expected, Finish, Finished, Head, Key, NoSpace, Object, Origin, Writer};
use crate::fleet::Node;

/// A source that says nothing for so long is given up, whatever the lock says.
pub(super) const SILENCE: Duration = Duration::from_secs(60);
/// How often one body may be taken up elsewhere.
const MAX_HAND_OVERS: usize = 8;

/// What somebody else has, whole or growing.
pub(super) struct Source {
    pub head: Head,
    pub life: Life,
    /// Where it is complete.
    pub finished: Option<Finished>,
    pub origin: Origin,
    /// Who sends it, if it is a node.
    pub node: Option<Node>,
}

impl Fills {
    /// Makes the body of `source` grow here and lets everybody read it meanwhile. `false`: nothing came of it, and nobody
    /// has been answered.
    pub(super) async fn take_in(
        self: &Arc<Self>,
        wanted: &Wanted,
        landing: &mut Option<Landing<'_>>,
        (source, body): (Source, Body),
        how: How,
        previous: Option<&Arc<Object>>,
    ) -> bool {
        if wanted.is_set() {
            return self
                .take_in_set(wanted, landing, (source, body), previous)
                .boxed()
                .await;
        }
        let Ok(writer) = self.writer_for(wanted, &wanted.key, &source, previous).await else {
            return false;
        };
        let growing = Arc::clone(writer.object());
        if !self.passes_flushes(&growing) {
            return false;
        }
        self.metrics.shared(match source.origin {
            Origin::Bucket => "bucket",
            Origin::Node | Origin::Upstream => "node",
        });
        publish(landing, Outcome::Object(growing, how));
        let kept = self.copy_in(wanted, writer, source, body).boxed().await;
        if let Some(object) = kept {
            self.verify(wanted, &object).await;
        }
        true
    }

    /// A manifest is shown only when the files that it names here are verified.
    pub(super) async fn take_in_set(
        self: &Arc<Self>,
        wanted: &Wanted,
        landing: &mut Option<Landing<'_>>,
        (source, body): (Source, Body),
        previous: Option<&Arc<Object>>,
    ) -> bool {
        let Purpose::Set(reader) = wanted.purpose else {
            return false;
        };
        let aside = wanted.key.aside(Aside::Arriving);
        let life = source.life;
        let Ok(writer) = self.writer_for(wanted, &aside, &source, None).await else {
            return false;
        };
        let arrived = Arc::clone(writer.object());
        if self
            .shared
            .ledger
            .flushed(&wanted.key, arrived.head.stored_at, life.checked_at)
            .is_some()
        {
            return false;
        }
        let whole = self.copy_in(wanted, writer, source, body).boxed().await;
        if whole.is_none() && !arrived.is_complete() {
            return false;
        }
        if let Some(landing) = landing.take() {
            self.admit_set(wanted, reader, previous.cloned(), arrived, Some(life), landing)
                .await;
        }
        if let Some(shown) = self.store.stored(&wanted.key).await {
            self.verify(wanted, &shown).await;
        }
        true
    }

    /// Holds what begins to grow against the flushes that are known by now: whoever flushes from now on sees it grow.
    pub(super) fn passes_flushes(&self, growing: &Arc<Object>) -> bool {
        let fresh = &growing.fresh;
        match self
            .shared
            .ledger
            .flushed(&growing.key, growing.head.stored_at, fresh.checked_at())
        {
            None => true,
            Some(true) => {
                fresh.expire(fresh.checked_at());
                true
            }
            Some(false) => {
                growing.doom();
                false
            }
        }
    }

    pub(super) async fn writer_for(
        &self,
        wanted: &Wanted,
        key: &Key,
        source: &Source,
        previous: Option<&Arc<Object>>,
    ) -> Result<Writer, NoSpace> {
        let expected = match (&wanted.expected, source.finished) {
            (Some(expected), _) => Some(expected.clone()),
            (None, Some(finished)) => Some(Expected::Sha256(finished.sha256)),
            (None, None) => None,
        };
        let mut head = source.head.clone();
        if let Some(finished) = source.finished {
            head.content_length = Some(finished.length);
        }
        let particulars = (source.life.parts(), source.origin);
        self.store
            .restore(key.clone(), head, particulars, previous.cloned(), expected)
            .await
    }

    /// Writes what comes; what is cut is taken up elsewhere. What is kept, if it was kept.
    pub(super) async fn copy_in(
        self: &Arc<Self>,
        wanted: &Wanted,
        mut writer: Writer,
        source: Source,
        mut body: Body,
    ) -> Option<Arc<Object>> {
        let growing = Arc::clone(writer.object());
        if source.finished.is_none() {
            writer.hold_back();
        }
        let mut written = 0_u64;
        let whole = source
            .finished
            .map(|finished| finished.length)
            .or(growing.head.content_length);
        let (mut node, mut from_upstream, mut hand_overs, mut reached) = (source.node, false, 0, None);
        // A lease of one's own is held to the end.
        let mut held = None;
        loop {
            let next = body.pieces.next();
            let piece = match &node {
                Some(node) => self.while_it_lives(&wanted.key, node, next).await,
                None => tokio::time::timeout(SILENCE, next).await.map_err(io::Error::from),
            };
            let failure = match piece {
                Ok(Some(Ok(piece))) => {
                    written += piece.len() as u64;
                    if let Err(error) = writer.write(piece).await {
                        tracing::warn!(key = %growing.key.shown(), %error, "what another node or the bucket has cannot be stored");
                        return None;
                    }
                    continue;
                }
                Ok(None) if whole.is_none_or(|whole| whole == written) => break,
                Ok(None) => io::ErrorKind::UnexpectedEof.into(),
                Ok(Some(Err(error))) | Err(error) => error,
            };
            self.metrics.shared("taken_up");
            tracing::info!(key = %growing.key.shown(), %failure, written, "a body is taken up elsewhere");
            hand_overs += 1;
            if hand_overs > MAX_HAND_OVERS || from_upstream {
                return None;
            }
            // Whoever stopped at this very byte before will stop again.
            let is_stuck = reached.replace(written) == Some(written);
            let rest = self
                .rest_of(wanted, &growing, (source.finished, written, is_stuck), writer.held())
                .boxed()
                .await?;
            body = rest.body;
            (node, from_upstream, held) = (rest.node, rest.from_upstream, rest.held.or(held));
        }
        if from_upstream {
            growing.take_over();
        }
        if let Some(whole) = body.whole.get() {
            writer.expect(Expected::Sha256(whole.sha256));
        }
        let finish = writer.finish().await;
        drop(held);
        match finish {
            Finish::Admitted(object) => {
                // What arrives aside is nobody's yet.
                match record::stored(&object, object.fresh.class()).filter(|_| object.key.is_shared()) {
                    Some(_) if from_upstream => self.note_stored(&object, wanted.policy.class),
                    Some(event) => self.note_listed(&object, event),
                    None => {}
                }
                Some(object)
            }
            Finish::Same(object) => {
                self.catalog.record(record::refreshed(&object));
                Some(object)
            }
            Finish::Dropped => None,
            Finish::Failed(reason) | Finish::Wrong(reason) => {
                self.metrics.fill_failed();
                tracing::warn!(key = %growing.key.shown(), %reason, "what another node or the bucket has is of no use");
                if source.origin == Origin::Bucket
                    && let Some(bucket) = &self.shared.bucket
                {
                    bucket.remove(&wanted.key).await;
                }
                None
            }
        }
    }
}

/// Tells whoever waits, once.
pub(super) fn publish(landing: &mut Option<Landing<'_>>, outcome: Outcome) {
    if let Some(landing) = landing.take() {
        landing.publish(outcome);
    }
}
