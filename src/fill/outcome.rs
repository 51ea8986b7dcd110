//! What a flight brings, by what upstream said, or did not say.

use std::sync::Arc;

use super::{Answer, Fills, Wanted, record};
use crate::cache::{Key, Millis, Object, Stage, freshness_until, now_ms};
use crate::policy::Policy;
use crate::status::is_absent;
use crate::upstream::{Failure, shown as without_query};

/// How an object came to be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum How {
    /// Its bytes come from upstream for this request.
    Fetched,
    /// Another flight had brought it a moment before, or another node says that what is stored is right.
    Found,
    /// The bucket, or another node, had it.
    Restored,
    /// Upstream said by this status (304, or 200 to a HEAD) that what is stored is still right.
    Revalidated(u16),
    /// Upstream is unreachable, or answered one of the statuses that count as that.
    Stale(Option<u16>),
}

/// What a flight brought.
#[derive(Debug, Clone)]
pub enum Outcome {
    Object(Arc<Object>, How),
    /// Upstream's own small answer, or one of ours: shared by all who waited.
    Answer(Arc<Answer>),
    /// Not stored: ask upstream for yourself.
    Direct,
}

impl Fills {
    pub(super) async fn not_modified(
        self: &Arc<Self>,
        wanted: &Wanted,
        previous: Option<Arc<Object>>,
        began: Millis,
    ) -> Outcome {
        let Some(previous) = previous else {
            return Outcome::Answer(Arc::new(Answer::failure(&Failure {
                status: 502,
                reason: "upstream answered 304 and nothing is stored".to_owned(),
                unreachable: false,
            })));
        };
        self.refresh(wanted, &previous, began).await;
        Outcome::Object(previous, How::Revalidated(304))
    }

    /// Upstream, which was asked from `began` on, says that `object` is still right. What was flushed meanwhile stays expired:
    /// the flush is later than the question.
    pub(super) async fn refresh(self: &Arc<Self>, wanted: &Wanted, object: &Arc<Object>, began: Millis) {
        let class = wanted.policy.class;
        let until = match self
            .shared
            .ledger
            .flushed(&wanted.key, object.head.stored_at, began.saturating_sub(1))
        {
            Some(_) => began,
            None => freshness_until(class, now_ms(), wanted.policy.ttl),
        };
        self.store.refresh(object, class, began, until).await;
        self.note_refreshed(object);
    }

    /// Upstream's own answer that is not stored, whichever node got it: passed on, unless a stored copy goes before it. One
    /// that says that there is no such thing is remembered, and takes what is stored with it: the key of that, if so.
    pub(super) async fn after_answer(
        self: &Arc<Self>,
        wanted: &Wanted,
        previous: Option<&Arc<Object>>,
        answer: Answer,
    ) -> (Outcome, Option<Key>) {
        let status = answer.status;
        if let Some(previous) = previous
            && wanted.asset.remote.serve_stale_on.contains(&status)
        {
            return (self.stale(wanted, previous, Some(status)).await, None);
        }
        let answer = Arc::new(answer);
        let mut removed = None;
        if is_absent(answer.status) {
            // What others name too is theirs as well.
            let shared = wanted.asked.hash != wanted.key.hash && wanted.replaces().is_none();
            if let Some(previous) = previous.filter(|_| !shared) {
                self.store.remove(previous.key.hash).await;
                removed = Some(previous.key.clone());
            }
            self.negative
                .remember(&wanted.asked, Arc::clone(&answer), wanted.asset.remote.ttl.negative);
        }
        (Outcome::Answer(answer), removed)
    }

    pub(super) async fn after_failure(
        self: &Arc<Self>,
        wanted: &Wanted,
        previous: Option<Arc<Object>>,
        failure: Failure,
    ) -> Outcome {
        self.metrics.upstream_failed(&wanted.asset.remote.name, failure.kind());
        tracing::warn!(remote = %wanted.asset.remote.name, url = %without_query(&wanted.url), reason = %failure.reason, stored = previous.is_some(), "upstream failed");
        match self.unless_gone(previous) {
            Some(previous) if failure.unreachable => self.stale(wanted, &previous, None).await,
            _ => Outcome::Answer(Arc::new(Answer::failure(&failure))),
        }
    }

    /// What was stored when a flight began, unless it was flushed since, body and all.
    pub(super) fn unless_gone(&self, previous: Option<Arc<Object>>) -> Option<Arc<Object>> {
        previous.filter(|stored| !self.shared.ledger.is_flushed(&stored.key, stored.head.stored_at))
    }

    /// The stored copy, trusted for another TTL so that upstream is not asked again until then.
    pub(super) async fn stale(
        self: &Arc<Self>,
        wanted: &Wanted,
        previous: &Arc<Object>,
        status: Option<u16>,
    ) -> Outcome {
        self.trust_again(wanted.policy, previous).await;
        Outcome::Object(Arc::clone(previous), How::Stale(status))
    }

    async fn trust_again(&self, policy: Policy, previous: &Arc<Object>) {
        let until = freshness_until(policy.class, now_ms(), policy.ttl);
        let checked_at = previous.fresh.checked_at();
        self.store.refresh(previous, policy.class, checked_at, until).await;
        // Not told to other nodes: they may have something newer, or reach upstream.
        self.catalog.record(record::refreshed(previous));
    }

    /// The copy that `broken` was to take the place of, if it broke off and has left one: upstream may as well not have
    /// answered at all, as long as nothing of its answer has gone out.
    pub async fn copy_before(&self, broken: &Object, policy: Policy) -> Option<Arc<Object>> {
        if broken.progress().state != Stage::Failed {
            return None;
        }
        let previous = self.store.stored(&broken.key).await?;
        if !previous.fresh.left(policy.class, policy.ttl, now_ms()).is_fresh() {
            self.trust_again(policy, &previous).await;
        }
        Some(previous)
    }
}

/// Nothing is known of what is wanted, and another try may bring it.
pub(super) fn busy(why: &str) -> Outcome {
    Outcome::Answer(Arc::new(Answer::failure(&Failure {
        status: 503,
        reason: format!("{why}; try again"),
        unreachable: false,
    })))
}

/// What is asked for is nowhere, and upstream is not to be asked.
pub fn offline() -> Failure {
    Failure {
        status: 504,
        reason: "this remote is offline and the path is not stored; remove `offline: true` to fetch it".to_owned(),
        unreachable: false,
    }
}
