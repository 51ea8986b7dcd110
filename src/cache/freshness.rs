//! Freshness apart from content: how long an object may be trusted. A refresh changes these three numbers and no body.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::time::{Millis, now_ms};

/// How long a stored answer may be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Immutable,
    Mutable,
}

/// `fresh_until` of what never expires.
pub const FOR_EVER: Millis = u64::MAX;

/// How far a stored time may lie ahead: the clocks of several nodes differ a little, and one that is put right jumps.
pub(super) const AHEAD: Millis = 5_000;

/// Whether a stored time lies ahead of `now`, so that the clock that it was taken from was wrong, or is.
pub(super) fn is_ahead(at: Millis, now: Millis) -> bool {
    at > now.saturating_add(AHEAD)
}

/// Whether something that is dated `moment` was before `at`. What is dated later than now has its date from a clock that was
/// wrong: it counts as before, because it may have been.
pub fn is_before(moment: Millis, at: Millis) -> bool {
    was_before(moment, at, now_ms())
}

/// [`is_before`], as seen at `now`.
pub fn was_before(moment: Millis, at: Millis, now: Millis) -> bool {
    moment < at || is_ahead(moment, now)
}

/// What another node's word does to what is stored here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adoption {
    /// What is stored is the current content, for as long as the word says.
    Trusted,
    /// What is stored is current, and more is known here already.
    Known,
    /// Another content is current.
    Expired,
}

/// What becomes of content that was `stored` (identity, last checked), when it is `said` which one is current and when that
/// was checked.
pub fn adoption(stored: (u64, Millis), said: (u64, Millis)) -> Adoption {
    if stored.0 != said.0 {
        Adoption::Expired
    } else if said.1 >= stored.1 {
        Adoption::Trusted
    } else {
        Adoption::Known
    }
}

/// What is mutable and was verified before this may have changed without this node being told.
static DISTRUSTED_BEFORE: AtomicU64 = AtomicU64::new(0);

/// News of the other nodes were missed: nothing mutable that was verified before `at` is fresh any more, until it is
/// verified again.
pub fn distrust(at: Millis) {
    DISTRUSTED_BEFORE.fetch_max(at, Relaxed);
}

/// The moment of the last [`distrust`]. One that lies ahead becomes `now`: else nothing would be fresh until then.
fn distrusted_before(now: Millis) -> Millis {
    let at = DISTRUSTED_BEFORE.load(Relaxed);
    if !is_ahead(at, now) {
        return at;
    }
    let _ = DISTRUSTED_BEFORE.compare_exchange(at, now, Relaxed, Relaxed);
    now
}

/// When an object was last known to be upstream's current one, and until when that is trusted.
#[derive(Debug)]
pub struct Freshness {
    checked_at: AtomicU64,
    fresh_until: AtomicU64,
    class: AtomicU8,
    /// When upstream or the other nodes last agreed with it.
    verified_at: AtomicU64,
}

/// What is left of an object's freshness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    ForEver,
    For(Duration),
    /// Expired since.
    Expired(Duration),
}

impl Left {
    /// The shorter of the two.
    #[must_use]
    pub fn at_most(self, other: Left) -> Left {
        match (self, other) {
            (Left::ForEver, left) | (left, Left::ForEver) => left,
            (Left::For(one), Left::For(other)) => Left::For(one.min(other)),
            (expired @ Left::Expired(_), _) | (_, expired) => expired,
        }
    }

    pub fn is_fresh(self) -> bool {
        !matches!(self, Left::Expired(_))
    }
}

/// The moment at which a lifetime that starts at `checked_at` ends. Zero means for ever to what is immutable and
/// expired at once to what is mutable.
pub fn until(class: Class, checked_at: Millis, ttl: Duration) -> Millis {
    match class {
        Class::Immutable if ttl.is_zero() => FOR_EVER,
        _ => checked_at.saturating_add(u64::try_from(ttl.as_millis()).unwrap_or(FOR_EVER)),
    }
}

impl Freshness {
    pub fn new(class: Class, checked_at: Millis, fresh_until: Millis) -> Self {
        Freshness {
            checked_at: AtomicU64::new(checked_at),
            fresh_until: AtomicU64::new(fresh_until),
            class: AtomicU8::new(code(class)),
            verified_at: AtomicU64::new(checked_at),
        }
    }

    /// What is left, for a path that has `class` and `ttl` by today's configuration: another class than at the last
    /// refresh counts at once, another TTL from the next refresh on. No more than the TTL is left of anything, and nothing
    /// of what was checked at a time that lies ahead.
    pub fn left(&self, class: Class, ttl: Duration, now: Millis) -> Left {
        self.left_since(distrusted_before(now), (class, ttl), now)
    }

    /// [`Freshness::left`], where nothing mutable is trusted that was verified before `distrusted`.
    pub(crate) fn left_since(&self, distrusted: Millis, (class, ttl): (Class, Duration), now: Millis) -> Left {
        let fresh_until = if self.class.load(Relaxed) == code(class) {
            self.fresh_until.load(Relaxed)
        } else {
            until(class, self.checked_at.load(Relaxed), ttl)
        };
        let is_distrusted = class == Class::Mutable && self.verified_at.load(Relaxed) < distrusted;
        let left = Duration::from_millis(fresh_until.saturating_sub(now));
        if is_distrusted {
            Left::Expired(Duration::from_millis(now.saturating_sub(fresh_until)))
        } else if fresh_until == FOR_EVER {
            Left::ForEver
        } else if is_ahead(self.checked_at.load(Relaxed), now) || is_ahead(self.verified_at.load(Relaxed), now) {
            Left::Expired(Duration::ZERO)
        } else if fresh_until > now {
            // Zero is for ever to what is immutable.
            Left::For(match class {
                Class::Immutable if ttl.is_zero() => left,
                _ => left.min(ttl),
            })
        } else {
            Left::Expired(Duration::from_millis(now - fresh_until))
        }
    }

    pub fn set(&self, class: Class, checked_at: Millis, fresh_until: Millis) {
        self.checked_at.store(checked_at, Relaxed);
        self.fresh_until.store(fresh_until, Relaxed);
        self.class.store(code(class), Relaxed);
        self.verify(now_ms());
    }

    /// Upstream or the other nodes agreed with it at `at`.
    pub fn verify(&self, at: Millis) {
        let later = |before| (at > before || is_ahead(before, at)).then_some(at);
        let _ = self.verified_at.fetch_update(Relaxed, Relaxed, later);
    }

    /// Makes it expired now, whatever it was: the body stays for revalidation.
    pub fn expire(&self, now: Millis) {
        self.fresh_until.store(now.min(self.fresh_until.load(Relaxed)), Relaxed);
    }

    pub fn checked_at(&self) -> Millis {
        self.checked_at.load(Relaxed)
    }

    pub fn fresh_until(&self) -> Millis {
        self.fresh_until.load(Relaxed)
    }

    pub fn class(&self) -> Class {
        decode(self.class.load(Relaxed))
    }
}

/// The byte that stands for a class on disk.
pub fn code(class: Class) -> u8 {
    match class {
        Class::Immutable => 1,
        Class::Mutable => 2,
    }
}

/// The reverse of [`code`]; what is unknown is the class that expires.
pub fn decode(code: u8) -> Class {
    if code == 1 { Class::Immutable } else { Class::Mutable }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_class_holds_at_once_and_a_changed_ttl_from_the_next_refresh() {
        let fresh = Freshness::new(Class::Immutable, 1_000, FOR_EVER);
        assert_eq!(
            fresh.left(Class::Immutable, Duration::from_secs(5), 9_000),
            Left::ForEver
        );
        assert_eq!(
            fresh.left(Class::Mutable, Duration::from_secs(5), 9_000),
            Left::Expired(Duration::from_secs(3))
        );
        fresh.set(
            Class::Mutable,
            9_000,
            until(Class::Mutable, 9_000, Duration::from_secs(5)),
        );
        fresh.verify(9_000);
        assert_eq!(
            fresh.left(Class::Mutable, Duration::from_secs(60), 10_000),
            Left::For(Duration::from_secs(4))
        );
    }

    #[test]
    fn what_a_clock_that_was_ahead_wrote_is_expired_and_no_more_than_the_ttl_is_left() {
        const YEAR: Millis = 365 * 24 * 3_600_000;
        let (now, ttl) = (1_700_000_000_000, Duration::from_secs(60));
        for class in [Class::Mutable, Class::Immutable] {
            let fetched = |at: Millis| Freshness::new(class, at, until(class, at, ttl));
            assert_eq!(
                fetched(now + YEAR).left(class, ttl, now),
                Left::Expired(Duration::ZERO),
                "{class:?}"
            );
            // Clocks of several nodes differ, and more than the TTL is left of nothing.
            assert_eq!(fetched(now + 1_000).left(class, ttl, now), Left::For(ttl));
            assert_eq!(fetched(now).left(class, ttl, now), Left::For(ttl));
            assert_eq!(
                fetched(now).left(class, Duration::from_secs(5), now),
                Left::For(Duration::from_secs(5))
            );
            // Another check, by a clock that is right, makes it fresh again.
            let fresh = fetched(now + YEAR);
            fresh.set(class, now, until(class, now, ttl));
            fresh.verify(now);
            assert_eq!(fresh.left(class, ttl, now), Left::For(ttl));
            // A stale copy that such a clock trusted again, without a check.
            fresh.set(class, now, until(class, now + YEAR, ttl));
            fresh.verify(now + YEAR);
            assert_eq!(fresh.left(class, ttl, now), Left::Expired(Duration::ZERO), "{class:?}");
        }
        let for_ever = Freshness::new(Class::Immutable, now + YEAR, FOR_EVER);
        assert_eq!(for_ever.left(Class::Immutable, Duration::ZERO, now), Left::ForEver);
        let fresh = Freshness::new(Class::Immutable, now, now + 9_000);
        assert_eq!(
            fresh.left(Class::Immutable, Duration::ZERO, now),
            Left::For(Duration::from_secs(9))
        );
    }

    #[test]
    fn what_was_verified_by_a_clock_that_was_ahead_can_be_distrusted() {
        let fresh = Freshness::new(Class::Mutable, 1_000, 2_000);
        fresh.verify(1_000_000_000);
        fresh.verify(5_000);
        assert_eq!(fresh.verified_at.load(Relaxed), 5_000);
        fresh.verify(4_000);
        assert_eq!(fresh.verified_at.load(Relaxed), 5_000);
    }

    #[test]
    fn zero_is_for_ever_or_at_once() {
        assert_eq!(until(Class::Immutable, 7, Duration::ZERO), FOR_EVER);
        assert_eq!(until(Class::Mutable, 7, Duration::ZERO), 7);
    }
}
