//! How much upstream is asked for one remote, at most: what comes faster waits for its turn.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::failure::Failure;
use crate::config::Remote;

/// What is saved up while nothing is asked: so much time's worth.
const BURST: Duration = Duration::from_secs(1);
/// A cap that has delayed nothing for so long is not told of any more.
const RECENT: Duration = Duration::from_secs(60);
/// Nobody waits longer for the turn of a question.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What remotes with a cap have used of it.
#[derive(Debug, Default)]
pub(super) struct Caps {
    remotes: Mutex<HashMap<String, Used>>,
}

#[derive(Debug, Default)]
struct Used {
    requests: Rate,
    bytes: Rate,
    /// When something had to wait for each of them last.
    delayed: BTreeMap<&'static str, Instant>,
}

impl Used {
    /// Something has to wait because of `cap`, and nothing had to for some time.
    fn note(&mut self, remote: &Remote, cap: &'static str) {
        let before = self.delayed.insert(cap, Instant::now());
        if before.is_none_or(|before| before.elapsed() >= RECENT) {
            tracing::info!(remote = %remote.name, cap, "upstream is asked more slowly than clients want: the remote's cap is reached");
        }
    }
}

/// A rate, kept by the moment at which all that was let through will have been earned (a leaky bucket, or GCRA).
#[derive(Debug, Default, Clone, Copy)]
struct Rate {
    earned: Option<Instant>,
}

impl Rate {
    /// Lets through what takes `cost` to earn: how long it has to wait, counted from `now`.
    fn take(&mut self, now: Instant, cost: Duration) -> Duration {
        let earned = self.earned.map_or(now, |earned| earned.max(now)) + cost;
        self.earned = Some(earned);
        earned.saturating_duration_since(now + BURST)
    }
}

impl Caps {
    /// How long a question for `remote` has to wait.
    ///
    /// # Errors
    /// So many wait already that its turn would come too late.
    pub(super) fn question(&self, remote: &Remote) -> Result<Duration, Failure> {
        let Some(rate) = remote.caps.requests_per_second else {
            return Ok(Duration::ZERO);
        };
        let mut remotes = self.remotes.lock();
        let used = remotes.entry(remote.name.clone()).or_default();
        let before = used.requests;
        let wait = used.requests.take(Instant::now(), Duration::from_secs(1) / rate.get());
        if !wait.is_zero() {
            used.note(remote, "requests");
        }
        if wait <= LONGEST_WAIT {
            return Ok(wait);
        }
        used.requests = before;
        Err(Failure {
            status: 503,
            reason: format!(
                "more is asked of upstream than the remote may ask for ({rate} requests a second); try again, or raise \
                 upstream.requests_per_second"
            ),
            unreachable: false,
        })
    }

    /// How long the next piece of a body has to wait, after one of `length` bytes for `remote`.
    pub(super) fn piece(&self, remote: &Remote, length: usize) -> Duration {
        let Some(rate) = remote.caps.bytes_per_second.filter(|_| length > 0) else {
            return Duration::ZERO;
        };
        let cost = Duration::from_secs_f64(length as f64 / rate.get() as f64);
        let mut remotes = self.remotes.lock();
        let used = remotes.entry(remote.name.clone()).or_default();
        let wait = used.bytes.take(Instant::now(), cost);
        if !wait.is_zero() {
            used.note(remote, "bytes");
        }
        wait
    }

    /// Remotes for which something had to wait within the last minute, and because of which caps.
    pub(super) fn reached(&self) -> BTreeMap<String, Vec<&'static str>> {
        let remotes = self.remotes.lock();
        let reached = remotes.iter().filter_map(|(remote, used)| {
            let recent = used.delayed.iter().filter(|(_, at)| at.elapsed() < RECENT);
            let caps: Vec<&'static str> = recent.map(|(cap, _)| *cap).collect();
            (!caps.is_empty()).then(|| (remote.clone(), caps))
        });
        reached.collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever comes when, no more is let through than the rate and what was saved up.
        #[test]
        fn no_more_passes_than_the_rate_and_a_burst(
            steps in prop::collection::vec((0u64..3000, 1u64..500), 1..60)
        ) {
            let start = Instant::now();
            let (mut rate, mut now) = (Rate::default(), start);
            let mut passed: Vec<(Instant, Duration)> = Vec::new();
            for (pause, cost) in steps {
                now += Duration::from_millis(pause);
                let cost = Duration::from_millis(cost);
                passed.push((now + rate.take(now, cost), cost));
            }
            for (first, (begin, _)) in passed.iter().enumerate() {
                for last in first..passed.len() {
                    let sum: Duration = passed[first..=last].iter().map(|(_, cost)| *cost).sum();
                    let longest = passed[first..=last].iter().map(|(_, cost)| *cost).max().unwrap_or_default();
                    let time = passed[last].0.saturating_duration_since(*begin);
                    prop_assert!(sum <= time + BURST + longest, "{sum:?} within {time:?}");
                }
            }
        }

        #[test]
        fn what_keeps_to_the_rate_never_waits(costs in prop::collection::vec(1u64..900, 1..60)) {
            let (mut rate, mut now) = (Rate::default(), Instant::now());
            for cost in costs {
                let cost = Duration::from_millis(cost);
                prop_assert_eq!(rate.take(now, cost), Duration::ZERO);
                now += cost;
            }
        }
    }
}
