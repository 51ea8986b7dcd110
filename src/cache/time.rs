//! The time of day as it is stored.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970, the unit of every stored time.
pub type Millis = u64;

/// By how many milliseconds the fleet's clock is ahead of this machine's.
static AHEAD: AtomicI64 = AtomicI64::new(0);

/// Now, as stored: by the fleet's clock, because nodes compare their times with one another's.
pub fn now_ms() -> Millis {
    millis(SystemTime::now()).saturating_add_signed(AHEAD.load(Relaxed))
}

/// From now on [`now_ms`] is so many milliseconds ahead of this machine's clock.
pub fn set_clock(ahead: i64) {
    AHEAD.store(ahead, Relaxed);
}

/// A time of day of this machine, as it is stored.
pub(super) fn millis(time: SystemTime) -> Millis {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}
