//! Another node as a source: it is asked for what it has or fills, and waited for as long as it lives.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::{FutureExt as _, StreamExt as _};

use super::node::{Question, Reply};
use super::source::{Found, Offer, Source};
use super::transfer::{SILENCE, Transfer};
use super::{Fills, How};
use crate::cache::{Finished, Key, Origin};
use crate::fleet::Node;

/// A body that does not move for so long may come from a node that is dead or stopped: whether it still holds the lock tells.
const STALL: Duration = Duration::from_secs(2);

/// A node that may have what is stored, or filled, under a key.
pub(super) struct FromNode {
    fills: Arc<Fills>,
    key: Key,
    node: Node,
}

impl FromNode {
    pub(super) fn new(fills: &Arc<Fills>, key: &Key, node: &Node) -> FromNode {
        FromNode {
            fills: Arc::clone(fills),
            key: key.clone(),
            node: node.clone(),
        }
    }

    async fn put(&self, from: u64, have: Option<u64>) -> io::Result<(Reply, Transfer)> {
        let (Some(peers), Some(url)) = (&self.fills.shared.peers, &self.node.url) else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        if self.fills.is_me(&self.node) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let question = Question {
            key: self.key.clone(),
            from,
            have,
        };
        self.fills
            .while_it_lives(&self.key, &self.node, peers.ask(url, &question))
            .await?
    }

    /// What it sends, for as long as it lives.
    fn watched(&self, transfer: Transfer) -> Transfer {
        let (fills, key, node) = (Arc::clone(&self.fills), self.key.clone(), self.node.clone());
        transfer.waited_for(move |mut pieces| {
            let (fills, key, node) = (Arc::clone(&fills), key.clone(), node.clone());
            async move {
                let piece = fills.while_it_lives(&key, &node, pieces.next()).await?;
                Ok((piece, pieces))
            }
        })
    }
}

#[async_trait]
impl Source for FromNode {
    fn origin(&self) -> Origin {
        Origin::Node
    }

    async fn ask(&self, from: u64, have: Option<u64>) -> io::Result<Found> {
        let (reply, transfer) = self.put(from, have).boxed().await.inspect_err(|error| {
            tracing::debug!(node = ?self.node.url, %error, key = %self.key.shown(), "another node cannot be asked");
        })?;
        Ok(match reply {
            Reply::Object {
                head,
                life,
                finished,
                fetched,
            } => Found::Offer(Box::new(Offer {
                head: *head,
                life,
                finished: finished.map(|(length, sha256)| Finished { length, sha256 }),
                how: if fetched { How::Fetched } else { How::Restored },
                transfer: self.watched(transfer),
            })),
            Reply::Same(life) => Found::Same(life),
            Reply::Nothing => Found::Nothing,
            Reply::Unreachable => Found::Unreachable,
            Reply::Yours => Found::Unshared,
            // It is not the one that is known by this URL.
            Reply::Node { .. } => return Err(io::ErrorKind::NotFound.into()),
            answer @ Reply::Answer { .. } => answer.into_answer().map_or(Found::Unshared, Found::Answer),
        })
    }
}

impl Fills {
    pub(super) fn is_me(&self, node: &Node) -> bool {
        self.shared.fleet.as_ref().is_some_and(|fleet| fleet.me() == node)
    }

    /// Whether what `holder` fills can be had later, though it cannot be read from there.
    pub(super) fn may_wait(&self, holder: &Node) -> bool {
        self.shared.has_bucket() || self.can_ask(holder)
    }

    pub(super) fn can_ask(&self, node: &Node) -> bool {
        self.shared.peers.is_some() && node.url.is_some()
    }

    /// Waits for `work`, which depends on `node`, until it has been silent for a while and does not hold the lock of `key`
    /// any more.
    async fn while_it_lives<T>(&self, key: &Key, node: &Node, work: impl Future<Output = T>) -> io::Result<T> {
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
