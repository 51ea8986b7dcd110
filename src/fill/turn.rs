//! A flight asks the other nodes and the bucket before it asks upstream.
//!
//! What the fleet's word (in Redis) calls current is brought from where it is: from this node's own tiers, the bucket, or the
//! node that has it. What another node fills just now is read from that node while it grows. Only who holds the fill lock
//! goes to upstream. In which order that is tried says [`plan`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;

use super::decision::{Known, Look, Step, is_news, plan};
use super::from_bucket::{FromBucket, own_life};
use super::from_node::FromNode;
use super::node::Life;
use super::said::Held;
use super::take::{Obtained, publish};
use super::{Fills, How, Landing, Outcome, Wanted, record};
use crate::bucket::Copy;
use crate::cache::{Millis, Object, now_ms};
use crate::fleet::{Fleet, Take, Word};
use crate::formats::Class;

/// Between two looks at what another node does.
pub(super) const PAUSE: Duration = Duration::from_millis(100);

/// How often a node that fills something may say that it has nothing to give before this one goes on without it.
const MAX_REFUSALS: u32 = 5;

/// How often a flight that has the lock goes back because others were faster.
const MAX_NEWS: usize = 3;

/// An object that was fetched so lately may still be on its way into the bucket.
const UPLOAD_MS: Millis = 60_000;

/// The right to go to upstream.
pub(super) struct Turn {
    /// What is stored, or what the bucket had that is expired.
    pub previous: Option<Arc<Object>>,
    /// Held until the end of the flight; `None` where nobody gives one.
    pub lease: Option<Held>,
}

impl Fills {
    /// The fleet's word: `Err(())` where nobody can be asked.
    pub(super) async fn word(&self, wanted: &Wanted) -> Result<Option<Word>, ()> {
        let fleet = self.shared.fleet.as_ref().ok_or(())?;
        fleet.look(&wanted.key).await.map(|seen| seen.word).map_err(|_| ())
    }

    /// Makes the steps of [`plan`]. `None`: whoever waited has been answered.
    pub(super) async fn share(
        self: &Arc<Self>,
        wanted: &Wanted,
        landing: &mut Option<Landing<'_>>,
        mut previous: Option<Arc<Object>>,
    ) -> Option<Turn> {
        let key = &wanted.key;
        if self.shared.is_alone() || !key.is_shared() {
            return Some(Turn { previous, lease: None });
        }
        // As long as one waits for upstream's own first byte.
        let patience = Instant::now() + wanted.remote().timeouts.first_byte;
        let fleet = self.shared.fleet.as_ref();
        let (mut news, mut refused) = (0, 0);
        'looking: loop {
            // It may have been flushed while others were waited for.
            previous = self.unless_gone(previous);
            let find = async {
                match previous {
                    None => self.find(wanted).await,
                    Some(_) => None,
                }
            };
            let look = async {
                match fleet {
                    Some(fleet) => fleet.look(key).await.ok(),
                    None => None,
                }
            };
            let (mut copy, seen) = tokio::join!(find, look);
            let is_seen = seen.is_some();
            let (word, holder) = seen.map_or((None, None), |seen| (seen.word, seen.holder));
            let holder = holder.filter(|node| !self.is_me(node));
            let word = word.filter(|word| !self.shared.ledger.is_flushed_word(key, word));
            let look = Look {
                own: previous.as_ref().and_then(|stored| stored.identity()),
                is_seen,
                is_filled_elsewhere: holder.is_some(),
                word: word.as_ref(),
                copy: copy.as_ref().map(|copy| (copy.identity(), own_life(copy))),
                is_forced: wanted.force,
                may_lock: fleet.is_some() && !wanted.remote().offline,
            };
            let known = Known::by(&look, wanted.policy, now_ms());
            for step in plan(&known) {
                match (step, &holder, &word) {
                    (Step::Join, Some(holder), _) => {
                        let source = FromNode::new(self, key, holder);
                        match self.ask_source(&source, wanted, landing, previous.as_ref()).await {
                            Obtained::Done => return None,
                            // Its fill may have ended just now.
                            Obtained::Ended if refused < MAX_REFUSALS => {
                                refused += 1;
                                tokio::time::sleep(PAUSE).await;
                                continue 'looking;
                            }
                            Obtained::NoWay if Instant::now() < patience && self.may_wait(holder) => {
                                tokio::time::sleep(PAUSE).await;
                                continue 'looking;
                            }
                            Obtained::Ended | Obtained::NoWay | Obtained::Alone => {}
                        }
                    }
                    (Step::Trust, _, Some(word)) => {
                        if let Some(stored) = &previous {
                            self.trust(wanted, stored, Life::said_by(word)).await;
                            publish(landing, Outcome::Object(Arc::clone(stored), How::Found));
                            return None;
                        }
                    }
                    (Step::BringNamed, _, Some(word)) => {
                        if let Some(copy) = self.named(wanted, &mut copy, word).await {
                            let source = FromBucket::new(self, copy, Life::said_by(word));
                            if let Obtained::Done = self.ask_source(&source, wanted, landing, previous.as_ref()).await {
                                return None;
                            }
                        }
                    }
                    (Step::AskNamed, _, Some(word)) => {
                        let source = FromNode::new(self, key, &word.node);
                        match self.ask_source(&source, wanted, landing, previous.as_ref()).await {
                            Obtained::Done => return None,
                            // It is on its way into the bucket.
                            Obtained::NoWay if Instant::now() < patience && self.will_be_in_bucket(word) => {
                                tokio::time::sleep(PAUSE).await;
                                continue 'looking;
                            }
                            _ => {}
                        }
                    }
                    (Step::BringBackNamed, _, Some(word)) => {
                        if let Some(copy) = self.named(wanted, &mut copy, word).await {
                            previous = self.bring_back(wanted, copy).boxed().await.or(previous);
                        }
                    }
                    (Step::Bring, ..) => {
                        if let Some(copy) = copy.take() {
                            let source = FromBucket::by_its_own_times(self, copy);
                            if let Obtained::Done = self.ask_source(&source, wanted, landing, None).await {
                                return None;
                            }
                        }
                    }
                    (Step::BringBack, ..) => {
                        if let Some(copy) = copy.take() {
                            previous = self.bring_back(wanted, copy).boxed().await;
                        }
                    }
                    (Step::Lock, ..) => {
                        let Some(fleet) = fleet else { break };
                        match fleet.take(key).await {
                            Ok(Take::Mine(lease)) => {
                                if news < MAX_NEWS && self.has_news(wanted, fleet, previous.as_ref()).await {
                                    // Somebody was faster between the look and now.
                                    news += 1;
                                    continue 'looking;
                                }
                                let lease = Some(self.hold(key, lease));
                                return Some(Turn { previous, lease });
                            }
                            Ok(Take::Theirs(node)) if !self.is_me(&node) && Instant::now() < patience => {
                                tokio::time::sleep(PAUSE / 10).await;
                                continue 'looking;
                            }
                            Ok(Take::Theirs(_)) | Err(_) => {}
                        }
                    }
                    // What a step needs is known where it is planned.
                    _ => {}
                }
            }
            return Some(Turn { previous, lease: None });
        }
    }

    /// The bucket's copy of what the word names: the one that was found, or looked for now.
    async fn named(&self, wanted: &Wanted, found: &mut Option<Copy>, word: &Word) -> Option<Copy> {
        let copy = match found.take() {
            Some(copy) => Some(copy),
            None => self.find(wanted).await,
        };
        copy.filter(|copy| copy.identity() == word.id)
    }

    /// What is stored is fresh for as long as others say.
    pub(super) async fn trust(self: &Arc<Self>, wanted: &Wanted, stored: &Arc<Object>, life: Life) {
        let (class, checked_at, fresh_until) = life.parts();
        self.store.refresh(stored, class, checked_at, fresh_until).await;
        self.catalog.record(record::refreshed(stored));
        self.verify_later(wanted, stored);
    }

    /// Whether a fresh body that cannot be read from its node is about to be in the bucket.
    pub(super) fn will_be_in_bucket(&self, word: &Word) -> bool {
        let is_young = now_ms().saturating_sub(word.checked_at) < UPLOAD_MS;
        self.shared.has_bucket() && is_young && !word.in_bucket && !self.can_ask(&word.node) && !self.is_me(&word.node)
    }

    /// Whether the fleet has a fresh body that this flight did not see.
    pub(super) async fn has_news(&self, wanted: &Wanted, fleet: &Fleet, previous: Option<&Arc<Object>>) -> bool {
        let Ok(seen) = fleet.look(&wanted.key).await else {
            return false;
        };
        let own = previous.and_then(|stored| stored.identity());
        let is_news = |word: Word| is_news(wanted.policy, own, &word, now_ms());
        !wanted.force && seen.word.is_some_and(is_news)
    }

    /// [`Fills::verify`], behind the answer.
    pub(super) fn verify_later(self: &Arc<Self>, wanted: &Wanted, object: &Arc<Object>) {
        let (fills, wanted, object) = (Arc::clone(self), wanted.clone(), Arc::clone(object));
        tokio::spawn(async move { fills.verify(&wanted, &object).await });
    }

    /// What others said of an object was acted on, and they may have said something newer meanwhile.
    pub(super) async fn verify(&self, wanted: &Wanted, object: &Arc<Object>) {
        if wanted.policy.class == Class::Immutable {
            return;
        }
        let word = self.word(wanted).await.ok().flatten();
        if let Some(word) = word.filter(|word| !self.shared.ledger.is_flushed_word(&wanted.key, word)) {
            let hash = object.key.hash;
            let store = self.store;
            let parts = Life::said_by(&word).parts();
            let _ = tokio::task::spawn_blocking(move || store.adopt(&hash, word.id, parts)).await;
        }
    }
}
