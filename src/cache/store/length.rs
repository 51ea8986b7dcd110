//! What is known of the length of a body before it has come.

use std::time::{Duration, Instant};

use quick_cache::sync::Cache;

use crate::cache::key::Hash;

/// Bodies that came without a length, and are remembered ...
const REMEMBERED: usize = 4096;
/// ... for so long: upstream may have another body by then.
const LIMIT: Duration = Duration::from_secs(3600);
/// What passes through is not tried again for so long.
const PASSING_LIMIT: Duration = Duration::from_secs(60);

/// What is known of the length of a body before it has come.
#[derive(Debug, Clone, Copy)]
pub(super) enum Length {
    /// Upstream says it.
    Said(u64),
    Unknown,
    /// Longer than what can be held: the body passes through just now.
    Passing,
    /// So long it was, or may become.
    About(u64),
}

/// Lengths of bodies that came without one.
pub(in crate::cache) struct Lengths(Cache<Hash, (Instant, Length)>);

impl Default for Lengths {
    fn default() -> Self {
        Lengths(Cache::new(REMEMBERED))
    }
}

impl Lengths {
    pub(super) fn of(&self, hash: &Hash) -> Option<Length> {
        let (at, length) = self.0.get(hash)?;
        let limit = match length {
            Length::Passing => PASSING_LIMIT,
            _ => LIMIT,
        };
        (at.elapsed() < limit).then_some(length)
    }

    /// What is about to be stored under `hash`, and comes without a length, is about so long.
    pub(in crate::cache) fn expect(&self, hash: &Hash, length: u64) {
        self.0.insert(*hash, (Instant::now(), Length::About(length)));
    }

    /// What comes under `hash` just now passes through.
    pub(super) fn passes(&self, hash: &Hash) {
        self.0.insert(*hash, (Instant::now(), Length::Passing));
    }
}
