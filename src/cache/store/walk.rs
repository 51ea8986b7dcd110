//! Walking over all that is stored.

use std::time::SystemTime;
use std::{fs, io};

use super::Store;
use super::stored::Stored;
use crate::cache::disk::Record;
use crate::cache::evict;
use crate::cache::key::Hash;

/// What a walk over all that is stored has done.
#[derive(Debug, Clone, Copy, Default)]
pub struct Walked {
    /// Objects removed, or expired.
    pub count: u64,
    /// Bytes that this freed.
    pub bytes: u64,
    /// Objects of which the disk refused it.
    pub refused: u64,
}

impl Store {
    /// Calls `visit` with all that was stored or used since, in no order, as long as it says so. Blocks, for as long as a
    /// walk takes.
    pub fn each_stored(&self, since: SystemTime, mut visit: impl FnMut(Stored) -> bool) {
        let walked = evict::each_hash_while(self.disk.root(), |hash| {
            let modified = fs::metadata(self.disk.path(&hash)).and_then(|meta| meta.modified());
            let is_old = modified.is_ok_and(|modified| modified < since);
            is_old || self.open_stored(&hash).is_none_or(&mut visit)
        });
        say_unlisted(walked);
    }

    /// Calls `visit` with the hash of all that is stored, without opening any of it, as long as it says so. Blocks, for as
    /// long as a walk takes.
    pub fn each_hash(&self, visit: impl FnMut(Hash) -> bool) {
        say_unlisted(evict::each_hash_while(self.disk.root(), visit));
    }

    /// Some of what is stored, of which `wanted` is true, by chance. Blocks.
    pub fn sample(&self, wanted: impl Fn(&Stored) -> bool) -> Option<Stored> {
        let candidates = evict::victims(self.disk.root(), self.random() as u16, |_| false);
        let mut stored = candidates
            .iter()
            .filter_map(|candidate| self.open_stored(&candidate.hash));
        stored.find(wanted)
    }

    pub(super) async fn walk(
        &'static self,
        matches: impl Fn(&str) -> bool + Send + 'static,
        act: impl Fn(&Store, Hash, &Record) -> io::Result<u64> + Send + 'static,
    ) -> Walked {
        tokio::task::spawn_blocking(move || {
            let mut found = Walked::default();
            let walked = evict::each_hash_while(self.disk.root(), |hash| {
                if let Some((_, record)) = self.load(&hash)
                    && matches(&record.key_text)
                {
                    match act(self, hash, &record) {
                        Ok(freed) => {
                            found.count += 1;
                            found.bytes += freed;
                        }
                        Err(_) => found.refused += 1,
                    }
                }
                true
            });
            say_unlisted(walked);
            found
        })
        .await
        .unwrap_or_default()
    }
}

/// A walk over the folders was not a walk over all of them.
pub(super) fn say_unlisted(walked: io::Result<()>) {
    if let Err(error) = walked {
        tracing::warn!(%error, "what lies there is neither counted, nor evicted, nor flushed by a walk");
    }
}
