//! A request for an artifact, as far as it is understood.

use std::ops::Deref;
use std::sync::Arc;

use url::Url;

use super::resolve::Resolved;
use crate::cache::{Key, Left, Object};
use crate::fill::Wanted;
use crate::fill::set::Standing;

/// A request that is being answered.
pub(super) struct Request {
    pub(super) resolved: Arc<Resolved>,
    /// The document's key, or that of a set's file.
    pub(super) key: Key,
    /// The remote's root as this client knows it; empty where no link needs it.
    pub(super) remote_url: String,
    pub(super) head: bool,
    /// Set for a file of a fixed name whose manifest is stored: what that says of it.
    pub(super) standing: Option<Standing>,
    /// Set where the content is served that a name stands for: what the name is known by.
    pub(super) pointer: Option<Arc<Object>>,
}

impl Deref for Request {
    type Target = Resolved;

    fn deref(&self) -> &Resolved {
        &self.resolved
    }
}

impl Request {
    /// What is to be had from `url` for it.
    pub(super) fn wanted(&self, url: Url) -> Wanted {
        match &self.standing {
            None => Wanted {
                key: self.key.clone(),
                ..Wanted::new(Arc::clone(&self.asset), url, self.policy)
            },
            Some(standing) => standing.wanted(Arc::clone(&self.asset), url),
        }
    }

    /// A request for what has neither views nor a manifest.
    pub(super) fn plain(resolved: Arc<Resolved>, head: bool) -> Request {
        Request {
            key: resolved.key.clone(),
            resolved,
            remote_url: String::new(),
            head,
            standing: None,
            pointer: None,
        }
    }

    /// This request, answered by the content of `key`, to which `pointer` leads.
    pub(super) fn for_content(&self, key: Key, pointer: Arc<Object>) -> Request {
        Request {
            key,
            pointer: Some(pointer),
            ..Request::plain(Arc::clone(&self.resolved), self.head)
        }
    }

    /// The name that it is asked for by: what upstream refused by another one does not matter.
    pub(super) fn asked(&self) -> Key {
        self.asset.name_key().unwrap_or_else(|| self.key.clone())
    }

    /// What is left of an object's freshness. A file of a set is trusted as long as its manifest names it, and a client
    /// should ask again when the manifest is due.
    pub(super) fn left(&self, object: &Object, now: u64) -> Left {
        let object = self.pointer.as_deref().unwrap_or(object);
        match &self.standing {
            None => object.fresh.left(self.policy.class, self.policy.ttl, now),
            Some(standing)
                if standing.expected.is_none() && object.fresh.checked_at() < standing.manifest.fresh.checked_at() =>
            {
                Left::Expired(std::time::Duration::ZERO)
            }
            Some(standing) => match standing.manifest.fresh.left(self.policy.class, self.policy.ttl, now) {
                Left::Expired(_) => Left::For(std::time::Duration::from_secs(1)),
                left => left,
            },
        }
    }
}
