//! What is asked for shortly before its TTL passes is fetched anew behind the answer, where the remote says `refresh: background`:
//! of what is asked for often nobody waits for upstream, and nobody gets what is older than its TTL.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use parking_lot::Mutex;

use super::{Fills, Wanted};
use crate::cache::{Class, Hash, Left};
use crate::config::Remote;
use crate::policy::Policy;

/// The last part of a TTL in which asking means a refresh: this share of it ...
const LAST_PART: u32 = 5;
/// ... and at most this.
const LONGEST: Duration = Duration::from_secs(60);
/// Refreshes that are remembered, so that one that failed is not tried again at once.
const REMEMBERED: usize = 4096;

/// When what was refreshed ahead last.
#[derive(Debug, Default)]
pub(super) struct Ahead(Mutex<HashMap<Hash, Instant>>);

/// Whether something with so much time left is to be fetched anew when it is asked for.
pub fn is_due_soon(remote: &Remote, policy: Policy, left: Left) -> bool {
    remote.refresh_ahead
        && policy.class == Class::Mutable
        && matches!(left, Left::For(left) if left <= last_part(policy.ttl))
}

fn last_part(ttl: Duration) -> Duration {
    (ttl / LAST_PART).min(LONGEST)
}

impl Ahead {
    /// Whether it is the turn of `hash` at `now`: not twice within `pause`.
    fn begin(&self, hash: Hash, now: Instant, pause: Duration) -> bool {
        let mut begun = self.0.lock();
        if begun.get(&hash).is_some_and(|begun| now < *begun + pause) {
            return false;
        }
        if begun.len() >= REMEMBERED {
            begun.retain(|_, begun| now < *begun + pause);
            if begun.len() >= REMEMBERED {
                return false;
            }
        }
        begun.insert(hash, now);
        true
    }
}

impl Fills {
    /// Has upstream asked for `wanted`, which is stored and fresh, behind the answer.
    pub fn refresh_ahead(self: &Arc<Self>, mut wanted: Wanted) {
        // Half of the time that is left at most: one that fails may be tried once more before the TTL passes.
        let pause = last_part(wanted.policy.ttl) / 2;
        if !self.ahead.begin(wanted.key.hash, Instant::now(), pause) {
            return;
        }
        wanted.force = true;
        let fills = Arc::clone(self);
        tokio::spawn(async move { fills.obtain(wanted, Method::GET).await });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_refresh_at_a_time_is_begun_and_a_bounded_number_is_remembered() {
        let (ahead, now, pause) = (Ahead::default(), Instant::now(), Duration::from_secs(10));
        let hash = |n: u64| {
            let mut hash = Hash::default();
            hash[..8].copy_from_slice(&n.to_le_bytes());
            hash
        };
        assert!(ahead.begin(hash(0), now, pause));
        assert!(!ahead.begin(hash(0), now + pause / 2, pause));
        assert!(ahead.begin(hash(0), now + pause, pause));
        for n in 1..2 * REMEMBERED as u64 {
            ahead.begin(hash(n), now + pause, pause);
        }
        assert_eq!(ahead.0.lock().len(), REMEMBERED);
        assert!(ahead.begin(hash(u64::MAX), now + 3 * pause, pause));
        assert_eq!(ahead.0.lock().len(), 1);
    }
}
