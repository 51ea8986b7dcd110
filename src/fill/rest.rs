//! A body that was cut is taken up where it stopped: from the bucket or a node that has the very same, or from upstream, which
//! is asked once more for the whole.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{FutureExt as _, StreamExt as _};
use http::Method;

use super::node::{Body, Incoming, Reply};
use super::said::Held;
use super::take::SILENCE;
use super::turn::PAUSE;
use super::{Fills, How, Outcome, Wanted};
use crate::cache::{Aside, Finished, Head, Object, Reader, identity};
use crate::fleet::{Node, Take};

/// A body that was cut is taken up elsewhere; this is how long it may take to find who has the rest.
const HAND_OVER: Duration = Duration::from_secs(15);

/// What comes after a cut.
pub(super) struct Rest {
    pub body: Body,
    pub node: Option<Node>,
    pub from_upstream: bool,
    pub held: Option<Held>,
}

impl Rest {
    fn of(body: Body, node: Option<Node>) -> Rest {
        Rest {
            body,
            node,
            from_upstream: false,
            held: None,
        }
    }
}

impl Fills {
    /// The rest of a body of which `written` bytes are there: from the bucket or a node that has the very same, or, with the
    /// fill lock, from upstream.
    pub(super) async fn rest_of(
        self: &Arc<Self>,
        wanted: &Wanted,
        growing: &Arc<Object>,
        (finished, written, is_stuck): (Option<Finished>, u64, bool),
        held: bytes::Bytes,
    ) -> Option<Rest> {
        let until = Instant::now() + HAND_OVER;
        let mut lease_held = None;
        while Instant::now() < until && !is_stuck {
            let copy = self.find(wanted).await;
            let same = copy.filter(|copy| match finished {
                Some(finished) => copy.identity() == identity(&finished, growing.head.stands_for.as_ref()),
                None => is_same_fill(&copy.head, &growing.head),
            });
            if let (Some(copy), Some(bucket)) = (same, &self.shared.bucket)
                && let Ok(body) = bucket.read(&copy, written, copy.finished.length).await
            {
                return Some(Rest::of(Body::new(body, Some(copy.finished)), None));
            }
            let Some(fleet) = &self.shared.fleet else { break };
            let Ok(seen) = fleet.look(&wanted.key).await else { break };
            let nodes = seen.holder.into_iter().chain(seen.record.map(|record| record.node));
            for node in nodes.filter(|node| !self.is_me(node)) {
                if let Ok((Reply::Object { head, .. }, body)) =
                    self.ask(&wanted.key, &node, written, None).boxed().await
                    && is_same_fill(&head, &growing.head)
                {
                    return Some(Rest::of(body, Some(node)));
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
        let body = self.rest_from_upstream(wanted, growing, written, held).boxed().await?;
        Some(Rest {
            body: Body::new(body, None),
            node: None,
            from_upstream: true,
            held: lease_held,
        })
    }

    /// Fetches the whole again, aside, and hands on what comes after `written`; what came before, of which `held` was not
    /// shown yet, has to be the same.
    pub(super) async fn rest_from_upstream(
        self: &Arc<Self>,
        wanted: &Wanted,
        growing: &Arc<Object>,
        written: u64,
        mut held: bytes::Bytes,
    ) -> Option<Incoming> {
        let mut aside = wanted.aside(Aside::Rest);
        aside.policy.conditional = false;
        let hash = aside.key.hash;
        let Outcome::Object(again, How::Fetched) = self.obtain_aside(aside, Method::GET).await else {
            return None;
        };
        let has_other_length = again
            .length()
            .is_some_and(|length| growing.length().is_some_and(|whole| whole != length));
        if has_other_length || !is_same_version(&again.head, &growing.head) {
            return None;
        }
        // Of a body with a known digest the last piece is neither shown nor held: the digest will tell.
        let shown = growing.progress().visible.min(written);
        let known = shown + held.len() as u64;
        let mut old = Reader::range(Arc::clone(growing), 0, shown);
        let mut new = Reader::range(Arc::clone(&again), 0, known);
        let (mut left, mut right) = (bytes::Bytes::new(), bytes::Bytes::new());
        let mut compared = 0;
        while compared < known {
            if left.is_empty() {
                left = match compared < shown {
                    true => old.next().await.ok()??,
                    false => std::mem::take(&mut held),
                };
            }
            if right.is_empty() {
                right = tokio::time::timeout(SILENCE, new.next()).await.ok()?.ok()??;
            }
            let length = left.len().min(right.len());
            if left.split_to(length) != right.split_to(length) {
                tracing::warn!(key = %wanted.key.shown(), "upstream has another body by now: a transfer cannot go on");
                return None;
            }
            compared += length as u64;
        }
        let store = self.store;
        let rest = futures_util::stream::unfold(
            Some(Reader::range(again, written, u64::MAX)),
            move |reader| async move {
                let mut reader = reader?;
                match reader.next().await {
                    Ok(Some(piece)) => Some((Ok(piece), Some(reader))),
                    Ok(None) => {
                        store.remove(hash).await;
                        None
                    }
                    Err(error) => Some((Err(io::Error::other(error)), None)),
                }
            },
        );
        Some(rest.boxed())
    }
}

/// Upstream says the same of both bodies.
fn is_same_version(a: &Head, b: &Head) -> bool {
    (a.etag(), a.last_modified(), a.content_encoding()) == (b.etag(), b.last_modified(), b.content_encoding())
}

/// Two nodes read what one fetched: then all that came before the body is the same, to the millisecond.
fn is_same_fill(a: &Head, b: &Head) -> bool {
    a.url == b.url && a.stored_at == b.stored_at && a.headers == b.headers
}
