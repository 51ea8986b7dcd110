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
    /// Objects of which the disk refused it, and objects and folders that cannot be read now.
    pub refused: u64,
}

impl Store {
    /// Calls `visit` with all that was stored or used since, in no order, as long as it says so. Blocks, for as long as a
    /// walk takes. `false`: something cannot be read now.
    pub fn each_stored(&self, since: SystemTime, mut visit: impl FnMut(Stored) -> bool) -> bool {
        let mut saw_all = true;
        let walked = evict::each_hash_while(self.disk.root(), |hash| {
            let modified = fs::metadata(self.disk.path(&hash)).and_then(|meta| meta.modified());
            if modified.is_ok_and(|modified| modified < since) {
                return true;
            }
            let stored = self.open_stored(&hash);
            saw_all &= stored.is_some() || self.is_missing(&hash);
            stored.is_none_or(&mut visit)
        });
        saw_all &= walked.is_ok();
        say_unlisted(walked);
        saw_all
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
                match self.load(&hash) {
                    Some((_, record)) if matches(&record.key_text) => match act(self, hash, &record) {
                        Ok(freed) => {
                            found.count += 1;
                            found.bytes += freed;
                        }
                        Err(_) => found.refused += 1,
                    },
                    None if !self.is_missing(&hash) => found.refused += 1,
                    _ => {}
                }
                true
            });
            found.refused += u64::from(walked.is_err());
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
