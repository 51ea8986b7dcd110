//! What another node has or fills is asked for, and waited for as long as that node lives.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;

use super::node::{Body, Question, Reply};
use super::take::{SILENCE, Source, publish};
use super::{Fills, How, Landing, Outcome, Wanted};
use crate::cache::{Finished, Key, Object, Origin};
use crate::fleet::Node;

/// A body that does not move for so long may come from a node that is dead or stopped: whether it still holds the lock tells.
const STALL: Duration = Duration::from_secs(2);

/// What became of asking another node.
pub(super) enum Joined {
    /// Whoever waited has an answer.
    Done,
    /// That node knows nothing of it (any more): the fleet may know more by now.
    Ended,
    /// What it has cannot be passed on, or cannot be stored here: nothing is gained by waiting for it.
    Alone,
    /// That node cannot be asked.
    NoWay,
}

impl Fills {
    pub(super) fn is_me(&self, node: &Node) -> bool {
        self.shared.fleet.as_ref().is_some_and(|fleet| fleet.me() == node)
    }

    /// Whether what `holder` fills can be had later, though it cannot be read from there.
    pub(super) fn may_wait(&self, holder: &Node) -> bool {
        let in_bucket = self
            .shared
            .bucket
            .as_ref()
            .is_some_and(|bucket| bucket.breaker().is_closed());
        in_bucket || self.can_ask(holder)
    }

    pub(super) fn can_ask(&self, node: &Node) -> bool {
        self.shared.peers.is_some() && node.url.is_some()
    }

    /// Asks `node` for what it fills, or has.
    pub(super) async fn join_node(
        self: &Arc<Self>,
        wanted: &Wanted,
        landing: &mut Option<Landing<'_>>,
        node: &Node,
        previous: Option<&Arc<Object>>,
    ) -> Joined {
        if self.is_me(node) || !self.can_ask(node) {
            return Joined::NoWay;
        }
        let have = previous.and_then(|stored| stored.identity());
        let (reply, body) = match self.ask(&wanted.key, node, 0, have).boxed().await {
            Ok(answered) => answered,
            Err(error) => {
                tracing::debug!(node = ?node.url, %error, key = %wanted.key.shown(), "another node cannot be asked");
                return Joined::NoWay;
            }
        };
        match reply {
            Reply::Object {
                head,
                life,
                finished,
                fetched,
            } => {
                // That node has not heard of the flush yet.
                let flushed = self.shared.ledger.flushed(&wanted.key, head.stored_at, life.checked_at);
                if flushed.is_some() {
                    return Joined::Ended;
                }
                let how = if fetched { How::Fetched } else { How::Restored };
                let source = Source {
                    head: *head,
                    life,
                    finished: finished.map(|(length, sha256)| Finished { length, sha256 }),
                    origin: Origin::Node,
                    node: Some(node.clone()),
                };
                match self
                    .take_in(wanted, landing, (source, body), how, previous)
                    .boxed()
                    .await
                {
                    true => Joined::Done,
                    false => Joined::Alone,
                }
            }
            Reply::Same(life) => match previous {
                Some(stored) => {
                    self.trust(wanted, stored, life).await;
                    publish(landing, Outcome::Object(Arc::clone(stored), How::Found));
                    Joined::Done
                }
                None => Joined::Ended,
            },
            Reply::Nothing => Joined::Ended,
            // One attempt in vain is enough for those who have something to serve.
            Reply::Unreachable if previous.is_some() => {
                if let Some(previous) = previous {
                    publish(landing, self.stale(wanted, previous, None).await);
                }
                Joined::Done
            }
            Reply::Unreachable | Reply::Yours => Joined::Alone,
            // It is not the one that is known by this URL.
            Reply::Node { .. } => Joined::NoWay,
            answer @ Reply::Answer { .. } => match answer.into_answer() {
                Some(answer) => {
                    // What is gone, the node that asked upstream has told the bucket and the others.
                    let (outcome, _) = self.after_answer(wanted, previous, answer).await;
                    publish(landing, outcome);
                    Joined::Done
                }
                None => Joined::Alone,
            },
        }
    }

    /// Asks `node`, and goes on waiting as long as it lives.
    pub(super) async fn ask(&self, key: &Key, node: &Node, from: u64, have: Option<u64>) -> io::Result<(Reply, Body)> {
        let (Some(peers), Some(url)) = (&self.shared.peers, &node.url) else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let question = Question {
            key: key.clone(),
            from,
            have,
        };
        self.while_it_lives(key, node, peers.ask(url, &question)).await?
    }

    /// Waits for `work`, which depends on `node`, until it has been silent for a while and does not hold the lock of `key`
    /// any more.
    pub(super) async fn while_it_lives<T>(
        &self,
        key: &Key,
        node: &Node,
        work: impl Future<Output = T>,
    ) -> io::Result<T> {
        tokio::pin!(work);
        let until = Instant::now() + SILENCE;
        loop {
            if let Ok(done) = tokio::time::timeout(STALL, &mut work).await {
                return Ok(done);
            }
            let holds = match &self.shared.fleet {
                Some(fleet) => fleet
                    .look(key)
                    .await
                    .map_or(true, |seen| seen.holder.as_ref() == Some(node)),
                None => false,
            };
            if !holds || Instant::now() > until {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the other node is silent"));
            }
        }
    }
}
