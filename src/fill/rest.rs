//! A body that was cut is taken up where it stopped: from the bucket or a node that has the very same, or from upstream, which
//! is asked once more for the whole.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::from_bucket::FromBucket;
use super::from_node::FromNode;
use super::from_upstream::FromUpstream;
use super::said::Held;
use super::source::{Begun, Source};
use super::transfer::Transfer;
use super::turn::PAUSE;
use super::{Fills, Wanted};
use crate::cache::Origin;
use crate::fleet::Take;

/// A body that was cut is taken up elsewhere; this is how long it may take to find who has the rest.
const HAND_OVER: Duration = Duration::from_secs(15);

/// What comes after a cut.
pub(super) struct Rest {
    pub transfer: Transfer,
    pub origin: Origin,
    /// The fill lock, where upstream is asked under it.
    pub held: Option<Held>,
}

impl Rest {
    async fn of(source: &dyn Source, begun: &Begun<'_>, held: Option<Held>) -> Option<Rest> {
        let transfer = source.rest(begun).await?;
        Some(Rest {
            transfer,
            origin: source.origin(),
            held,
        })
    }
}

impl Fills {
    /// The rest of what `begun` is the beginning of: from the bucket or a node that has the very same, or, with the fill lock,
    /// from upstream. At once from upstream if the others are `stuck`.
    pub(super) async fn rest_of(self: &Arc<Self>, wanted: &Wanted, begun: &Begun<'_>, stuck: bool) -> Option<Rest> {
        let until = Instant::now() + HAND_OVER;
        let mut lease_held = None;
        while Instant::now() < until && !stuck {
            if let Some(copy) = self.find(wanted).await {
                let source = FromBucket::by_its_own_times(self, copy);
                if let Some(rest) = Rest::of(&source, begun, None).await {
                    return Some(rest);
                }
            }
            let Some(fleet) = &self.shared.fleet else { break };
            let Ok(seen) = fleet.look(&wanted.key).await else { break };
            let nodes = seen.holder.into_iter().chain(seen.word.map(|word| word.node));
            for node in nodes {
                let source = FromNode::new(self, &wanted.key, &node);
                if let Some(rest) = Rest::of(&source, begun, None).await {
                    return Some(rest);
                }
            }
            match fleet.take(&wanted.key).await {
                Ok(Take::Mine(lease)) => {
                    lease_held = Some(self.hold(&wanted.key, lease));
                    break;
                }
                Ok(Take::Theirs(node)) if !self.is_me(&node) => tokio::time::sleep(PAUSE).await,
                Ok(Take::Theirs(_)) | Err(_) => break,
            }
        }
        Rest::of(&FromUpstream::new(self, wanted), begun, lease_held).await
    }
}
