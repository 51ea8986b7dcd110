//! What a source has is made to grow here, while it comes, and everybody reads it meanwhile.

use std::io;
use std::sync::Arc;

use futures_util::{FutureExt as _, StreamExt as _};

use super::node::Life;
use super::source::{Begun, Found, Offer, Source};
use super::{Fills, How, Landing, Outcome, Purpose, Wanted, record};
use crate::cache::{Aside, Expected, Finish, Head, Key, NoSpace, Object, Origin, Writer};

/// How often one body may be taken up elsewhere.
const MAX_HAND_OVERS: usize = 8;

/// What became of asking a source.
pub(super) enum Obtained {
    /// Whoever waited has an answer.
    Done,
    /// The source knows nothing of it (any more): the fleet may know more by now.
    Ended,
    /// What it has cannot be passed on, or cannot be stored here: nothing is gained by waiting for it.
    Alone,
    /// The source cannot be asked.
    NoWay,
}

impl Fills {
    /// Asks `source` for what is wanted, and answers those who wait with what it says.
    pub(super) async fn ask_source(
        self: &Arc<Self>,
        source: &dyn Source,
        wanted: &Wanted,
        landing: &mut Option<Landing<'_>>,
        previous: Option<&Arc<Object>>,
    ) -> Obtained {
        let have = previous.and_then(|stored| stored.identity());
        let Ok(found) = source.ask(0, have).await else {
            return Obtained::NoWay;
        };
        // Whoever says so has not heard of the flush yet.
        let is_flushed = |head: &Head, life: &Life| {
            let ledger = &self.shared.ledger;
            ledger.flushed(&wanted.key, head.stored_at, life.checked_at).is_some()
        };
        match (found, previous) {
            (Found::Offer(offer), _) if is_flushed(&offer.head, &offer.life) => Obtained::Ended,
            (Found::Same(life), Some(stored)) if is_flushed(&stored.head, &life) => Obtained::Ended,
            (Found::Offer(offer), _) => match self.take_in(wanted, landing, (source, *offer), previous).boxed().await {
                true => Obtained::Done,
                false => Obtained::Alone,
            },
            (Found::Same(life), Some(stored)) => {
                self.trust(wanted, stored, life).await;
                publish(landing, Outcome::Object(Arc::clone(stored), How::Found));
                Obtained::Done
            }
            (Found::Same(_), None) | (Found::Nothing, _) => Obtained::Ended,
            // One attempt in vain is enough for those who have something to serve.
            (Found::Unreachable, Some(stored)) => {
                publish(landing, self.stale(wanted, stored, None).await);
                Obtained::Done
            }
            (Found::Unreachable, None) | (Found::Unshared, _) => Obtained::Alone,
            (Found::Answer(answer), _) => {
                // What is gone, whoever asked upstream has told the bucket and the others.
                let (outcome, _) = self.after_answer(wanted, previous, answer).await;
                publish(landing, outcome);
                Obtained::Done
            }
        }
    }

    /// Makes the body that `source` offers grow here and lets everybody read it meanwhile. `false`: nothing came of it, and
    /// nobody has been answered.
    async fn take_in(
        self: &Arc<Self>,
        wanted: &Wanted,
        landing: &mut Option<Landing<'_>>,
        (source, offer): (&dyn Source, Offer),
        previous: Option<&Arc<Object>>,
    ) -> bool {
        if wanted.is_set() {
            return self
                .take_in_set(wanted, landing, (source, offer), previous)
                .boxed()
                .await;
        }
        let writer = self.writer_for(wanted, &wanted.key, (source, &offer), previous);
        let Ok(writer) = writer.await else {
            return false;
        };
        let growing = Arc::clone(writer.object());
        if !self.passes_flushes(&growing) {
            return false;
        }
        self.metrics.shared(match source.origin() {
            Origin::Bucket => "bucket",
            Origin::Node | Origin::Upstream => "node",
        });
        publish(landing, Outcome::Object(growing, offer.how.clone()));
        let kept = self.copy_in(wanted, writer, (source, offer)).boxed().await;
        if let Some(object) = kept {
            self.verify(wanted, &object).await;
        }
        true
    }

    /// A manifest is shown only when the files that it names here are verified.
    async fn take_in_set(
        self: &Arc<Self>,
        wanted: &Wanted,
        landing: &mut Option<Landing<'_>>,
        (source, offer): (&dyn Source, Offer),
        previous: Option<&Arc<Object>>,
    ) -> bool {
        let Purpose::Set(reader) = wanted.purpose else {
            return false;
        };
        let aside = wanted.key.aside(Aside::Arriving);
        let life = offer.life;
        let Ok(writer) = self.writer_for(wanted, &aside, (source, &offer), None).await else {
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
        let whole = self.copy_in(wanted, writer, (source, offer)).boxed().await;
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
    fn passes_flushes(&self, growing: &Arc<Object>) -> bool {
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

    /// Begins the object of `key` that `offer` is to fill.
    fn writer_for(
        &self,
        wanted: &Wanted,
        key: &Key,
        (source, offer): (&dyn Source, &Offer),
        previous: Option<&Arc<Object>>,
    ) -> impl Future<Output = Result<Writer, NoSpace>> + use<> {
        let expected = match (&wanted.expected, offer.finished) {
            (Some(expected), _) => Some(expected.clone()),
            (None, Some(finished)) => Some(Expected::Sha256(finished.sha256)),
            (None, None) => None,
        };
        let mut head = offer.head.clone();
        if let Some(finished) = offer.finished {
            head.content_length = Some(finished.length);
        }
        let particulars = (offer.life.parts(), source.origin());
        self.store
            .restore(key.clone(), head, particulars, previous.cloned(), expected)
    }

    /// Writes what comes; what is cut is taken up elsewhere. What is kept, if it was kept.
    async fn copy_in(
        self: &Arc<Self>,
        wanted: &Wanted,
        mut writer: Writer,
        (source, offer): (&dyn Source, Offer),
    ) -> Option<Arc<Object>> {
        let growing = Arc::clone(writer.object());
        let finished = offer.finished;
        if finished.is_none() {
            writer.hold_back();
        }
        let (length, mut transfer, mut origin) = (offer.length(), offer.transfer, source.origin());
        let (mut written, mut hand_overs, mut reached) = (0_u64, 0, None);
        // A lease of one's own is held to the end.
        let mut held = None;
        loop {
            let failure = match transfer.pieces.next().await {
                Some(Ok(piece)) => {
                    written += piece.len() as u64;
                    if let Err(error) = writer.write(piece).await {
                        tracing::warn!(key = %growing.key.shown(), %error, "what another node or the bucket has cannot be stored");
                        return None;
                    }
                    continue;
                }
                None if length.is_none_or(|length| length == written) => break,
                None => io::ErrorKind::UnexpectedEof.into(),
                Some(Err(error)) => error,
            };
            self.metrics.shared("taken_up");
            tracing::info!(key = %growing.key.shown(), %failure, written, "a body is taken up elsewhere");
            hand_overs += 1;
            if hand_overs > MAX_HAND_OVERS || origin == Origin::Upstream {
                return None;
            }
            // Whoever stopped at this very byte before will stop again.
            let is_stuck = reached.replace(written) == Some(written);
            let begun = Begun {
                growing: &growing,
                finished,
                written,
                held: writer.held(),
            };
            let rest = self.rest_of(wanted, &begun, is_stuck).boxed().await?;
            (transfer, origin, held) = (rest.transfer, rest.origin, rest.held.or(held));
        }
        let is_taken_over = origin == Origin::Upstream;
        if is_taken_over {
            growing.take_over();
        }
        if let Some(whole) = transfer.whole.get() {
            writer.expect(whole.sha256);
        }
        let finish = writer.finish().await;
        drop(held);
        match finish {
            Finish::Admitted(object) => {
                // What arrives aside is nobody's yet.
                match record::stored(&object, object.fresh.class()).filter(|_| object.key.is_shared()) {
                    Some(_) if is_taken_over => self.note_stored(&object, wanted.policy.class),
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
            Finish::Failed(reason) | Finish::Wrong(reason) | Finish::Changed(reason) => {
                self.metrics.fill_failed(&wanted.remote().name);
                tracing::warn!(key = %growing.key.shown(), %reason, "what another node or the bucket has is of no use");
                source.is_wrong().await;
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
