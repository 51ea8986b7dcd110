//! Documents that change together: a manifest (`repomd.xml`) and the files of fixed names that it names with their
//! checksums. A client must never get a new manifest with an older file, nor the reverse.
//!
//! So a file of a fixed name is stored under its manifest's word for it (its checksum, or the manifest's own digest where
//! there is none), and a new manifest takes the old one's place only when those of its files that clients use here were
//! fetched and verified. The others that clients read with it are fetched as soon as it is shown: later upstream may have
//! moved on, and what this manifest names would be had from nowhere.

use std::pin::Pin;
use std::sync::Arc;

use http::Method;
use indexmap::IndexMap;
use quick_cache::sync::Cache;
use url::Url;

use super::node::Life;
use super::{Fills, How, Landing, Outcome, Wanted, record};
use crate::cache::{Aside, Bound, Expected, Finish, Key, Object, Origin, Reader, Store, freshness_until, now_ms};
use crate::config::Remote;
use crate::formats::asset::ManifestReader;
use crate::formats::{self, ArtifactPath, Asset, Binding, Fact, IndexReader, Location, Member};
use crate::upstream::Failure;

/// Manifests are some kilobytes; a longer one is served and not read.
const MAX_MANIFEST: u64 = 8 << 20;
/// After a set that does not fit together (upstream is changing it), upstream is asked again this soon.
const RETRY_MS: u64 = 10_000;
/// Files that are fetched ahead for one manifest; repositories have about ten.
const MAX_AHEAD: usize = 32;

/// How a file of a fixed name stands to its manifest.
pub struct Standing {
    pub manifest: Arc<Object>,
    /// Of the file, by the manifest's word for it.
    pub key: Key,
    pub expected: Option<Expected>,
}

impl Standing {
    /// The file as it is wanted, which upstream has at `url`.
    pub fn wanted(&self, asset: Arc<Asset>, url: Url) -> Wanted {
        Wanted {
            // What belongs to the manifest by its name alone is judged by more than its own age.
            force: self.expected.is_none(),
            manifest: self.expected.as_ref().map(|_| self.manifest.key.clone()),
            ..Wanted::member(asset, url, self.key.clone(), self.expected.clone())
        }
    }
}

/// What the manifests that were read lately say.
pub struct Manifests {
    /// By path, in the manifest's order.
    read: Cache<u64, Arc<IndexMap<String, Member>>>,
}

impl Default for Manifests {
    fn default() -> Self {
        Manifests { read: Cache::new(256) }
    }
}

impl Manifests {
    async fn members(
        &self,
        manifest: &Arc<Object>,
        reader: ManifestReader,
        path: &str,
    ) -> Arc<IndexMap<String, Member>> {
        if let Some(members) = self.read.get(&manifest.id) {
            return members;
        }
        // What could not be read says nothing, now; it is not remembered as an empty manifest.
        let Some(members) = read(manifest, reader(path)).await.map(Arc::new) else {
            return Arc::default();
        };
        self.read.insert(manifest.id, Arc::clone(&members));
        members
    }
}

fn is_too_long(manifest: &Object) -> bool {
    manifest.length().is_none_or(|length| length > MAX_MANIFEST)
}

/// The files of fixed names that a manifest names, by path. `None`: it cannot be read, or is too long to be one.
async fn read(manifest: &Arc<Object>, mut index: Box<dyn IndexReader>) -> Option<IndexMap<String, Member>> {
    if is_too_long(manifest) {
        return None;
    }
    let mut members = IndexMap::new();
    let mut keep = |facts: Vec<Fact>| {
        members.extend(facts.into_iter().filter_map(|fact| match fact {
            Fact::Member(member) => Some((member.path.clone(), member)),
            Fact::Link(_) => None,
        }));
    };
    let mut reader = Reader::new(Arc::clone(manifest));
    let mut out = Vec::new();
    while let Some(piece) = reader.next().await.ok()? {
        index.write(&piece, &mut out).ok()?;
        // Clients get it as it is.
        out.clear();
        keep(index.take_facts());
        tokio::task::yield_now().await;
    }
    index.end(&mut out).ok()?;
    keep(index.take_facts());
    Some(members)
}

/// The key under which a file of this encoded path is stored by `manifest`'s word for it, and its digest.
fn bound(manifest: &Object, encoded: &str, member: Option<&Member>) -> (Key, Option<Expected>) {
    let remote = manifest.key.parts().remote;
    let expected = member.and_then(|member| Expected::new(&member.checksum_type, &member.checksum));
    let key = match (member, &expected) {
        (Some(member), Some(_)) => Key::bound(remote, encoded, Bound::To(&member.checksum)),
        _ => {
            let digest = manifest.finished().map(|finished| hex::encode(finished.sha256));
            Key::bound(remote, encoded, Bound::With(&digest.unwrap_or_default()))
        }
    };
    (key, expected)
}

impl Fills {
    /// How `path` stands to `manifest` as it is stored now. `None`: no manifest is stored, or it
    /// does not name the file, so that nothing can be said.
    pub async fn standing(&self, manifest: &Asset, path: &ArtifactPath) -> Option<Standing> {
        let Binding::Manifest(reader) = manifest.binding else {
            return None;
        };
        let manifest_path = &manifest.path.decoded;
        let manifest = self.store.stored(&manifest.key()).await?;
        let members = self.manifests.members(&manifest, reader, manifest_path).await;
        let member = members.get(&path.decoded);
        // A signature is named nowhere, and belongs to the manifest by its name alone.
        let by_name = path
            .decoded
            .strip_prefix(manifest_path.as_str())
            .is_some_and(|rest| rest.starts_with('.'));
        if member.is_none() && !by_name {
            return None;
        }
        let (key, expected) = bound(&manifest, &path.encoded, member);
        Some(Standing {
            manifest,
            key,
            expected,
        })
    }

    /// A flight for a manifest: fetched aside, its files verified, then put in the place of the one before.
    pub(super) async fn fly_set(
        self: &Arc<Self>,
        wanted: &Wanted,
        reader: ManifestReader,
        previous: Option<Arc<Object>>,
        landing: Landing<'_>,
    ) {
        let (outcome, _) = self.obtain_for_set(wanted.aside(Aside::Arriving)).await;
        match outcome {
            Outcome::Object(arrived, How::Fetched) => {
                self.admit_set(wanted, reader, previous, arrived, None, landing).await;
            }
            other => landing.publish(other),
        }
    }

    /// Puts a manifest that arrived aside in its place once its files are here; `life` is how long another node says that
    /// it may be trusted, if it came from there.
    pub(super) async fn admit_set(
        self: &Arc<Self>,
        wanted: &Wanted,
        reader: ManifestReader,
        previous: Option<Arc<Object>>,
        arrived: Arc<Object>,
        life: Option<Life>,
        landing: Landing<'_>,
    ) {
        let aside = arrived.key.hash;
        let how = if life.is_some() { How::Restored } else { How::Fetched };
        if !arrived.settled().await {
            let incomplete = Failure::broken_off();
            return landing.publish(self.after_failure(wanted, previous, incomplete).await);
        }
        // It is no manifest that is too long to be one: served as it is.
        if is_too_long(&arrived) {
            return landing.publish(Outcome::Object(arrived, How::Fetched));
        }
        if let Some(previous) = previous
            .as_ref()
            .filter(|previous| previous.identity() == arrived.identity())
        {
            match life {
                None => self.refresh(wanted, previous, arrived.head.stored_at).await,
                Some(life) => {
                    let (class, checked_at, fresh_until) = life.parts();
                    self.store.refresh(previous, class, checked_at, fresh_until).await;
                    self.catalog.record(record::refreshed(previous));
                }
            }
            self.store.remove(aside).await;
            return landing.publish(Outcome::Object(Arc::clone(previous), how));
        }
        if let Some(previous) = &previous
            && let Err(path) = self.fetch_used_members(wanted, reader, previous, &arrived).await
        {
            tracing::warn!(
                remote = %wanted.remote().name, manifest = %wanted.asset.path.decoded, file = %path,
                "a new manifest and its files do not fit together yet: the set before it stays"
            );
            let now = now_ms();
            let until = freshness_until(wanted.policy.class, now, wanted.policy.ttl).min(now + RETRY_MS);
            self.store
                .refresh(previous, wanted.policy.class, previous.fresh.checked_at(), until)
                .await;
            self.store.remove(aside).await;
            return landing.publish(Outcome::Object(Arc::clone(previous), How::Stale(None)));
        }
        if !arrived.is_kept() && previous.is_none() {
            return landing.publish(Outcome::Object(arrived, how));
        }
        let switched = switch(self.store, wanted, &arrived, life).await;
        self.store.remove(aside).await;
        match switched {
            Some(object) => {
                match (life, record::stored(&object, wanted.policy.class)) {
                    (None, _) => {
                        self.note_stored(&object, wanted.policy.class);
                        self.fetch_ahead(wanted, reader, &object);
                    }
                    (Some(_), Some(event)) => self.note_listed(&object, event),
                    (Some(_), None) => {}
                }
                landing.publish(Outcome::Object(object, how));
            }
            None => landing.publish(Outcome::Object(arrived, How::Fetched)),
        }
    }

    /// A flight within a flight. The type is spelled out because the compiler cannot infer it in a circle.
    fn obtain_for_set(self: &Arc<Self>, wanted: Wanted) -> Pin<Box<dyn Future<Output = (Outcome, bool)> + Send + '_>> {
        Box::pin(self.obtain(wanted, Method::GET))
    }

    /// Fetches what clients read with a manifest that is new here, while upstream still has what it names. Nobody waits.
    fn fetch_ahead(self: &Arc<Self>, wanted: &Wanted, reader: ManifestReader, manifest: &Arc<Object>) {
        let (fills, manifest, asset) = (Arc::clone(self), Arc::clone(manifest), Arc::clone(&wanted.asset));
        tokio::spawn(async move {
            let path = &asset.path.decoded;
            let members = fills.manifests.members(&manifest, reader, path).await;
            let ahead = members.values().filter(|member| member.is_read_with_it);
            let ahead = ahead.filter_map(|member| wanted_member(&asset.remote, &manifest, member));
            let is_of_set =
                |file: &Wanted| matches!(&file.asset.binding, Binding::Member(manifests) if manifests.contains(path));
            for mut file in ahead.filter(is_of_set).take(MAX_AHEAD) {
                // One that turns out otherwise makes the manifest due.
                file.manifest = file.expected.is_some().then(|| manifest.key.clone());
                if fills.store.stored(&file.key).await.is_none()
                    && let (Outcome::Object(object, _), _) = fills.obtain_for_set(file).await
                {
                    object.settled().await;
                }
            }
        });
    }

    /// Fetches those files of the new manifest whose old copies are stored here. The path of one that did not fit.
    async fn fetch_used_members(
        self: &Arc<Self>,
        wanted: &Wanted,
        reader: ManifestReader,
        previous: &Arc<Object>,
        arrived: &Arc<Object>,
    ) -> Result<(), String> {
        let manifest = &wanted.asset.path.decoded;
        let old = self.manifests.members(previous, reader, manifest).await;
        let new = self.manifests.members(arrived, reader, manifest).await;
        for (path, member) in new.iter() {
            let Some(old_member) = old.get(path) else { continue };
            let Some(wanted) = wanted_member(wanted.remote(), arrived, member) else {
                continue;
            };
            let (old_key, _) = bound(previous, wanted.key.parts().path, Some(old_member));
            if wanted.key == old_key || self.store.stored(&old_key).await.is_none() {
                continue;
            }
            let fetched = match self.obtain_for_set(wanted).await {
                (Outcome::Object(object, _), _) => object.settled().await,
                _ => false,
            };
            if !fetched {
                return Err(path.clone());
            }
        }
        Ok(())
    }
}

/// The flight of a file, as `manifest` knows it.
fn wanted_member(remote: &Arc<Remote>, manifest: &Object, member: &Member) -> Option<Wanted> {
    let path = formats::path::of_decoded(&member.path).ok()?;
    let asset = Arc::new(formats::asset(remote, path, None)?);
    let Location::Upstream(url) = &asset.location else {
        return None;
    };
    let (key, expected) = bound(manifest, &asset.path.encoded, Some(member));
    Some(Wanted::member(Arc::clone(&asset), url.clone(), key, expected))
}

/// Stores what arrived aside in its own place.
async fn switch(
    store: &'static Store,
    wanted: &Wanted,
    arrived: &Arc<Object>,
    life: Option<Life>,
) -> Option<Arc<Object>> {
    let mut head = arrived.head.clone();
    head.content_length = arrived.length();
    let now = now_ms();
    let until = freshness_until(wanted.policy.class, now, wanted.policy.ttl);
    let (freshness, origin) = match life {
        None => ((wanted.policy.class, now, until), Origin::Upstream),
        Some(life) => (life.parts(), arrived.origin()),
    };
    let mut writer = store
        .restore(wanted.key.clone(), head, (freshness, origin), None, None)
        .await
        .ok()?;
    let mut reader = Reader::new(Arc::clone(arrived));
    while let Some(piece) = reader.next().await.ok()? {
        writer.write(piece).await.ok()?;
    }
    match writer.finish().await {
        Finish::Admitted(object) => Some(object),
        _ => None,
    }
}
