//! How fast a body comes, and whether that is too slow.

use std::time::Duration;

use crate::config::Timeouts;

/// How a body comes, on the clock that counts what upstream is waited for.
#[derive(Debug)]
pub(super) struct Pace {
    began: Duration,
    /// When the rate was looked at last, and the bytes since then.
    looked: Duration,
    bytes: u64,
}

impl Pace {
    /// Of a body that begins to come `now`.
    pub(super) fn new(now: Duration) -> Self {
        Pace {
            began: now,
            looked: now,
            bytes: 0,
        }
    }

    /// Nothing is read for so long, and nothing is upstream's fault meanwhile.
    pub(super) fn rests(&mut self, pause: Duration) {
        self.began += pause;
        self.looked += pause;
    }

    /// So many further bytes have come by `now`. Why the body is to be ended, if it drips: it comes at less than the least
    /// rate, or takes longer than any may.
    pub(super) fn drips(&mut self, bytes: usize, now: Duration, limits: &Timeouts) -> Option<String> {
        self.bytes += bytes as u64;
        if now.saturating_sub(self.began) >= limits.whole {
            return Some(format!(
                "did not end within {} s (transfer_timeout)",
                limits.whole.as_secs_f32()
            ));
        }
        let window = now.saturating_sub(self.looked);
        if window < limits.rate_window {
            return None;
        }
        let rate = self.bytes as f64 / window.as_secs_f64();
        (self.looked, self.bytes) = (now, 0);
        (rate < limits.least_rate as f64)
            .then(|| format!("came at {rate:.0} bytes a second (least_rate is {})", limits.least_rate))
    }
}
