//! A disk that takes nothing: said once, shown, and tried again.

use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::Store;
use crate::cache::key::Hash;

/// Why nothing could be stored.
pub(super) struct Trouble {
    pub(super) last: Instant,
    pub(super) why: String,
    /// Under which the file system was asked to store something and failed: it is tried again there.
    pub(super) probe: Option<Hash>,
}

impl Store {
    /// Storing something under `hash` failed, and not for lack of space.
    pub(in crate::cache) fn note_failure(&self, error: &io::Error, hash: &Hash) {
        self.say_starved(&error.to_string(), Some(*hash));
    }

    pub(super) fn say_starved(&self, why: &str, probe: Option<Hash>) {
        self.unstored.fetch_add(1, Relaxed);
        let mut trouble = self.trouble.lock();
        let quiet = trouble
            .as_ref()
            .is_some_and(|trouble| trouble.last.elapsed() < Duration::from_secs(10));
        if !quiet {
            tracing::error!(
                why,
                "NOTHING CAN BE STORED: answers pass by uncached until it can again"
            );
        }
        *trouble = Some(Trouble {
            last: Instant::now(),
            why: why.to_owned(),
            probe,
        });
    }

    /// Looks whether what failed can be done again.
    pub(super) fn probe(&self) {
        let Some(hash) = self.trouble.lock().as_ref().and_then(|trouble| trouble.probe) else {
            return;
        };
        let probed = self.disk.probe(&hash);
        let mut trouble = self.trouble.lock();
        match (probed, &mut *trouble) {
            (Ok(()), Some(Trouble { probe: Some(_), .. })) => {
                *trouble = None;
                tracing::info!("things can be stored again");
            }
            (Err(error), Some(trouble)) => {
                trouble.last = Instant::now();
                trouble.why = error.to_string();
            }
            _ => {}
        }
    }
}
