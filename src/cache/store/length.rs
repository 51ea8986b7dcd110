//! What is known of the length of a body before it has come.

use std::time::{Duration, Instant};

use super::Store;
use crate::cache::key::Hash;

/// Lengths remembered of bodies that came without one ...
pub(super) const MAX_LENGTHS: usize = 4096;
/// ... for so long: upstream may have another body by then.
const LENGTH_LIMIT: Duration = Duration::from_secs(3600);
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

impl Store {
    pub(super) fn length_of(&self, hash: &Hash) -> Option<Length> {
        let (at, length) = self.lengths.get(hash)?;
        let limit = match length {
            Length::Passing => PASSING_LIMIT,
            _ => LENGTH_LIMIT,
        };
        (at.elapsed() < limit).then_some(length)
    }

    /// What is about to be stored under `hash`, and comes without a length, is about so long: room may be made for as much.
    pub fn expect_length(&self, hash: &Hash, length: u64) {
        self.lengths.insert(*hash, (Instant::now(), Length::About(length)));
    }
}
