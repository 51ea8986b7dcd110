//! What upstream sends is held against what is known of it: by its index, and by what the path had before.
//!
//! The digest of each immutable path outlives what is stored under it (the catalogue keeps it), so that other content of the
//! same path is noticed after a flush and an eviction, too.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use tokio::task::JoinHandle;

use super::decoded::Decoded;
use super::{Fills, Purpose, Wanted};
use crate::cache::{Expected, Object, Parts, Wrong};
use crate::config::Verify;
use crate::formats::Class;

/// How long the catalogue is asked for what a path had before.
const LIMIT: Duration = Duration::from_secs(2);

/// What a path had before, while the catalogue is asked for it.
pub(super) type Before = JoinHandle<Option<[u8; 32]>>;

/// Whether the path of what is wanted always has the same content, by no other name than the path.
fn never_changes(wanted: &Wanted) -> bool {
    wanted.policy.class == Class::Immutable
        && wanted.remote().verify != Verify::Off
        && wanted.asset.digest.is_none()
        && wanted.manifest.is_none()
        && !wanted.asset.is_index()
}

impl Fills {
    /// `wanted`, which upstream is about to be asked for, with what it must turn out to be. The type is spelled out because the
    /// compiler cannot infer it in a circle.
    pub fn verifiable(self: &Arc<Self>, wanted: Wanted) -> Pin<Box<dyn Future<Output = Wanted> + Send + '_>> {
        Box::pin(async move {
            if wanted.remote().verify == Verify::Off || matches!(wanted.purpose, Purpose::Set(_) | Purpose::Pointer) {
                return wanted;
            }
            let mut wanted = self.by_its_index(wanted).await;
            if wanted.remote().refuses_changes && never_changes(&wanted) {
                wanted.before = self.had_before(&wanted).await;
            }
            wanted
        })
    }

    /// Asks what the path had before, where a change is only reported: beside the fetch, so that nobody waits for it.
    pub(super) fn look_back(self: &Arc<Self>, wanted: &Wanted, method: &Method) -> Option<Before> {
        let is_reported = never_changes(wanted) && matches!(wanted.purpose, Purpose::Plain) && wanted.before.is_none();
        (is_reported && method == Method::GET).then(|| {
            let (fills, wanted) = (Arc::clone(self), wanted.clone());
            tokio::spawn(async move { fills.had_before(&wanted).await })
        })
    }

    /// `None` also where the catalogue does not answer: then nothing can be compared.
    async fn had_before(&self, wanted: &Wanted) -> Option<[u8; 32]> {
        let Parts { remote, path, form } = wanted.key.parts();
        let asked = self.catalog.seen_digest(remote, path, form);
        let seen = tokio::time::timeout(LIMIT, asked).await.ok()?.ok()??;
        match Expected::parse(&seen)? {
            Expected::Sha256(digest) => Some(digest),
            _ => None,
        }
    }

    /// What upstream sent is not what it must be: that is counted, and the index that says so is asked about before it is believed
    /// again.
    pub fn note_wrong(self: &Arc<Self>, wanted: &Wanted) {
        self.metrics.wrong_digest(&wanted.remote().name);
        if let Some(index) = wanted.index.clone() {
            let fills = Arc::clone(self);
            tokio::spawn(async move { fills.note_doubt(&index).await });
        }
    }

    /// Compares what was stored with what its index says, and with what the path had `before`, where that is only reported.
    pub(super) fn compare_later(self: &Arc<Self>, wanted: &Wanted, stored: &Arc<Object>, before: Option<Before>) {
        if wanted.reported.is_none() && before.is_none() {
            return;
        }
        let (fills, wanted, stored) = (Arc::clone(self), wanted.clone(), Arc::clone(stored));
        tokio::spawn(async move {
            if let Some(before) = before {
                let before = before.await.ok().flatten();
                fills.compare_with_before(&wanted, &stored, before);
            }
            if let Some(expected) = wanted.reported.clone() {
                fills.compare_with_index(&wanted, &stored, expected).await;
            }
        });
    }

    fn compare_with_before(&self, wanted: &Wanted, stored: &Object, before: Option<[u8; 32]>) {
        let now = stored.finished().map(|finished| finished.sha256);
        if let (Some(before), Some(now)) = (before, now)
            && before != now
        {
            let (before, now) = (Expected::Sha256(before), Expected::Sha256(now));
            let (remote, path) = (&wanted.remote().name, &wanted.asset.path.encoded);
            self.metrics.changed(remote);
            tracing::warn!(%remote, %path, %before, %now, "upstream has other content for a path that never changes; it is served");
        }
    }

    async fn compare_with_index(self: &Arc<Self>, wanted: &Wanted, stored: &Arc<Object>, expected: Expected) {
        let mut verifier = expected.verifier();
        let mut content = Decoded::new(stored).await;
        loop {
            match content.next().await {
                Ok(Some(piece)) => verifier.update(&piece),
                Ok(None) => break,
                // What cannot be read is told elsewhere.
                Err(_) => return,
            }
            tokio::task::yield_now().await;
        }
        if let Err(Wrong { expected, found }) = verifier.end() {
            self.note_wrong(wanted);
            let (remote, path) = (&wanted.remote().name, &wanted.asset.path.encoded);
            tracing::warn!(%remote, %path, %expected, %found, "a file is not what its index says; it is served all the same");
        }
    }
}
