//! What a flight is asked to bring.

use std::sync::Arc;

use http::{HeaderMap, header};
use url::Url;

use crate::cache::{Aside, Expected, Key};
use crate::config::Remote;
use crate::formats::asset::ManifestReader;
use crate::formats::{Asset, Binding, Location};
use crate::headers;
use crate::policy::{self, Policy};

/// What is wanted from upstream.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub asset: Arc<Asset>,
    pub key: Key,
    pub url: Url,
    pub policy: Policy,
    /// What the content must turn out to be.
    pub expected: Option<Expected>,
    /// What its index says that it is, where another content is only reported.
    pub reported: Option<Expected>,
    /// The SHA-256 that it had before, where it must still have that.
    pub before: Option<[u8; 32]>,
    pub purpose: Purpose,
    /// Ask upstream even if what is stored is fresh.
    pub force: bool,
    /// The manifest that said what to expect: what turns out otherwise makes it due.
    pub manifest: Option<Key>,
    /// The index that said so of a file that has no other digest: content that turns out otherwise makes it due.
    pub index: Option<Key>,
    /// The name it is asked for by, where several share what is stored: what upstream refuses, it refuses by this name.
    pub asked: Key,
}

/// What a flight is to bring.
#[derive(Debug, Clone)]
pub enum Purpose {
    /// A document or file, in its place.
    Plain,
    /// A manifest: its files are seen to before it is shown.
    Set(ManifestReader),
    /// Where a name leads that stands for content with a digest.
    Pointer,
    /// Something that is nobody's yet, and will take the place of what is stored under this key: that is revalidated in its
    /// stead.
    Aside(Key),
}

impl Wanted {
    /// What `asset` is, which upstream has at `url`.
    pub fn new(asset: Arc<Asset>, url: Url, policy: Policy) -> Self {
        let key = asset.key();
        Wanted {
            asked: asset.name_key().unwrap_or_else(|| key.clone()),
            key,
            url,
            policy,
            expected: asset.digest.clone(),
            reported: None,
            before: None,
            purpose: match asset.binding {
                Binding::Manifest(reader) => Purpose::Set(reader),
                Binding::Pointer(_) => Purpose::Pointer,
                Binding::Alone | Binding::Member(_) => Purpose::Plain,
            },
            force: false,
            manifest: None,
            index: None,
            asset,
        }
    }

    /// What `asset` is, where the remote itself has it. `None`: another host has it, or nobody.
    pub fn of(asset: Arc<Asset>, policy: Policy) -> Option<Self> {
        match &asset.location {
            Location::Upstream(url) => {
                let url = url.clone();
                Some(Wanted::new(asset, url, policy))
            }
            _ => None,
        }
    }

    /// A file of a fixed name, which is stored under `key` by its manifest's word for it.
    pub fn member(asset: Arc<Asset>, url: Url, key: Key, expected: Option<Expected>) -> Self {
        Wanted {
            asked: key.clone(),
            key,
            expected,
            purpose: Purpose::Plain,
            ..Wanted::new(asset, url, policy::of_set_member())
        }
    }

    /// What is wanted, fetched beside its place.
    pub fn aside(&self, why: Aside) -> Self {
        Wanted {
            key: self.key.aside(why),
            purpose: Purpose::Aside(self.key.clone()),
            ..self.clone()
        }
    }

    pub fn remote(&self) -> &Arc<Remote> {
        &self.asset.remote
    }

    /// What will take the place of what is stored under this key, once it was looked at.
    pub fn replaces(&self) -> Option<&Key> {
        match &self.purpose {
            Purpose::Aside(key) => Some(key),
            _ => None,
        }
    }

    /// Whether it is a manifest, to be shown with its files.
    pub fn is_set(&self) -> bool {
        matches!(self.purpose, Purpose::Set(_))
    }

    /// Whether it is where a name leads that is wanted.
    pub fn is_pointer(&self) -> bool {
        matches!(self.purpose, Purpose::Pointer)
    }

    /// Headers to store, whatever upstream says of them; `ETag` only where upstream gives none.
    pub fn says(&self) -> HeaderMap {
        let mut says = HeaderMap::new();
        // What is fetched as it comes is not known to be that content.
        if let (Some(digest), Some(_)) = (&self.asset.digest, &self.expected) {
            let text = digest.to_string();
            if let Some(field) = &self.asset.digest_field {
                says.insert(field.clone(), headers::value(&text));
            }
            says.insert(header::ETAG, headers::value(&format!("\"{text}\"")));
        }
        says
    }
}
