//! What a flight does, by what it knows of the other nodes and the bucket, before it asks upstream: pure functions.

#[cfg(test)]
mod model;

use super::node::Life;
use crate::cache::{Freshness, Millis};
use crate::fleet::Word;
use crate::formats::Class;
use crate::policy::Policy;

/// What was fetched within this time may be news.
const LATELY_MS: Millis = 5_000;

/// What a look around has found.
pub(super) struct Look<'a> {
    /// The identity of what is stored here, which is expired.
    pub own: Option<u64>,
    /// Whether Redis answers.
    pub is_seen: bool,
    pub is_filled_elsewhere: bool,
    /// The fleet's word, unless what it is said of was flushed since.
    pub word: Option<&'a Word>,
    /// What the bucket has, by its own times.
    pub copy: Option<(u64, Life)>,
    pub is_forced: bool,
    pub may_lock: bool,
}

/// Whether what others say is fresh, now, by today's policy.
pub(super) fn is_fresh(policy: Policy, life: Life, now: Millis) -> bool {
    let (class, checked_at, fresh_until) = life.parts();
    let left = Freshness::new(class, checked_at, fresh_until);
    left.verify(now);
    left.left(policy.class, policy.ttl, now).is_fresh()
}

/// Whether the word that was heard under the lock is of something that was not seen before it was taken.
pub(super) fn is_news(policy: Policy, own: Option<u64>, word: &Word, now: Millis) -> bool {
    is_fresh(policy, Life::said_by(word), now)
        && own != Some(word.id)
        && now.saturating_sub(word.checked_at) < LATELY_MS
}

impl Known {
    pub(super) fn by(look: &Look<'_>, policy: Policy, now: Millis) -> Known {
        // Of what is mutable the copy's own times count only where the fleet cannot be asked.
        let copy_counts = !(look.is_seen && policy.class == Class::Mutable);
        Known {
            own: look.own,
            is_filled_elsewhere: look.is_filled_elsewhere,
            word: look.word.map(|word| Current {
                identity: word.id,
                is_fresh: is_fresh(policy, Life::said_by(word), now),
            }),
            copy: look.copy.map(|(identity, life)| Current {
                identity,
                is_fresh: copy_counts && is_fresh(policy, life, now),
            }),
            is_forced: look.is_forced,
            may_lock: look.may_lock,
        }
    }
}

/// What is known of a key.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Known {
    /// The identity of what is stored here, which is expired.
    pub own: Option<u64>,
    /// Another node holds the fill lock.
    pub is_filled_elsewhere: bool,
    /// The fleet's word, unless what it is said of was flushed since.
    pub word: Option<Current>,
    /// What the bucket has, as far as its own times can be trusted. Only looked for where nothing is stored here.
    pub copy: Option<Current>,
    /// Upstream is to be asked though something is fresh.
    pub is_forced: bool,
    /// There are fill locks, and upstream may be asked.
    pub may_lock: bool,
}

/// Which content is current, or was.
#[derive(Debug, Clone, Copy)]
pub(super) struct Current {
    pub identity: u64,
    pub is_fresh: bool,
}

/// One thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// What the holder of the lock fills is read from there.
    Join,
    /// What is stored here is what the word calls current.
    Trust,
    /// What the word calls current comes from the bucket ...
    BringNamed,
    /// ... or from the node that said it.
    AskNamed,
    /// The bucket's copy is fresh by its own times.
    Bring,
    /// The bucket's copy is expired, and upstream can be asked about it.
    BringBack,
    /// The content that the word names is newer than what is stored here: upstream is asked about that.
    BringBackNamed,
    /// The lock is taken, and upstream asked under it.
    Lock,
    /// Upstream is asked without a lock.
    Alone,
}

/// What to do, in this order: a step is made if those before it came to nothing. The last one always comes to something.
pub(super) fn plan(known: &Known) -> Vec<Step> {
    if known.is_filled_elsewhere {
        return vec![Step::Join, Step::Alone];
    }
    let is_usable = |said: &Current| said.is_fresh && !known.is_forced;
    let is_own = |said: &Current| known.own == Some(said.identity);
    let mut plan = match (&known.word, &known.copy) {
        (Some(word), _) if is_usable(word) && is_own(word) => vec![Step::Trust],
        (Some(word), _) if is_usable(word) => vec![Step::BringNamed, Step::AskNamed],
        (Some(word), _) if !is_own(word) => vec![Step::BringBackNamed],
        (_, Some(copy)) if is_usable(copy) => vec![Step::Bring],
        (_, Some(_)) => vec![Step::BringBack],
        (_, None) => Vec::new(),
    };
    plan.push(match known.may_lock {
        true => Step::Lock,
        false => Step::Alone,
    });
    plan
}

#[cfg(test)]
mod tests {
    use super::Step::*;
    use super::*;

    fn said(identity: u64, is_fresh: bool) -> Option<Current> {
        Some(Current { identity, is_fresh })
    }

    #[test]
    fn each_case_has_its_steps() {
        let nothing = Known {
            may_lock: true,
            ..Known::default()
        };
        let own = Known {
            own: Some(1),
            ..nothing
        };
        let cases: [(&str, Known, &[Step]); 17] = [
            ("nothing is anywhere", nothing, &[Lock]),
            ("what is here is expired, and nobody knows more", own, &[Lock]),
            (
                "another node fills it",
                Known {
                    is_filled_elsewhere: true,
                    ..nothing
                },
                &[Join, Alone],
            ),
            (
                "another node fills it, and more is known",
                Known {
                    is_filled_elsewhere: true,
                    word: said(1, true),
                    copy: said(1, true),
                    ..own
                },
                &[Join, Alone],
            ),
            (
                "the fleet trusts what is here",
                Known {
                    word: said(1, true),
                    ..own
                },
                &[Trust, Lock],
            ),
            (
                "... but upstream is to be asked",
                Known {
                    word: said(1, true),
                    is_forced: true,
                    ..own
                },
                &[Lock],
            ),
            (
                "the fleet has something newer than what is here",
                Known {
                    word: said(2, true),
                    ..own
                },
                &[BringNamed, AskNamed, Lock],
            ),
            (
                "... but upstream is to be asked: about the newer",
                Known {
                    word: said(2, true),
                    is_forced: true,
                    ..own
                },
                &[BringBackNamed, Lock],
            ),
            (
                "the fleet has it",
                Known {
                    word: said(2, true),
                    copy: said(2, false),
                    ..nothing
                },
                &[BringNamed, AskNamed, Lock],
            ),
            (
                "the fleet had something newer than what is here, which is expired",
                Known {
                    word: said(2, false),
                    ..own
                },
                &[BringBackNamed, Lock],
            ),
            (
                "what is here is what the fleet had",
                Known {
                    word: said(1, false),
                    ..own
                },
                &[Lock],
            ),
            (
                "the fleet had it",
                Known {
                    word: said(2, false),
                    copy: said(2, false),
                    ..nothing
                },
                &[BringBackNamed, Lock],
            ),
            (
                "only the bucket has it",
                Known {
                    copy: said(3, true),
                    ..nothing
                },
                &[Bring, Lock],
            ),
            (
                "... but upstream is to be asked",
                Known {
                    copy: said(3, true),
                    is_forced: true,
                    ..nothing
                },
                &[BringBack, Lock],
            ),
            (
                "only the bucket has it, and it is expired",
                Known {
                    copy: said(3, false),
                    ..nothing
                },
                &[BringBack, Lock],
            ),
            (
                "nobody gives locks, or the remote is offline",
                Known { may_lock: false, ..own },
                &[Alone],
            ),
            (
                "the remote is offline, and the bucket has it",
                Known {
                    copy: said(3, true),
                    may_lock: false,
                    ..nothing
                },
                &[Bring, Alone],
            ),
        ];
        for (case, known, steps) in cases {
            assert_eq!(plan(&known), steps, "{case}");
        }
    }

    proptest::proptest! {
        /// Whatever is known, a flight ends in upstream's hands if all else fails, and once; nothing is served as fresh
        /// that neither the word nor the copy says is.
        #[test]
        fn every_plan_ends_and_trusts_nothing_stale(
            own in proptest::option::of(0..3_u64), is_filled_elsewhere: bool, is_forced: bool, may_lock: bool,
            word in proptest::option::of((0..3_u64, proptest::bool::ANY)),
            copy in proptest::option::of((0..3_u64, proptest::bool::ANY)),
        ) {
            let said = |said: Option<(u64, bool)>| said.map(|(identity, is_fresh)| Current { identity, is_fresh });
            let known = Known { own, is_filled_elsewhere, word: said(word), copy: said(copy), is_forced, may_lock };
            let steps = plan(&known);
            let (last, before) = steps.split_last().unwrap();
            proptest::prop_assert!(matches!(last, Lock | Alone));
            proptest::prop_assert!(before.iter().all(|step| !matches!(step, Lock | Alone)));
            let is_fresh = |said: Option<(u64, bool)>| said.is_some_and(|(_, is_fresh)| is_fresh) && !is_forced;
            for step in before {
                let is_right = match step {
                    Join => is_filled_elsewhere,
                    Trust => is_fresh(word) && own == word.map(|(identity, _)| identity),
                    BringNamed | AskNamed => is_fresh(word) && own != word.map(|(identity, _)| identity),
                    Bring => is_fresh(copy),
                    BringBack => copy.is_some(),
                    BringBackNamed => word.is_some_and(|(identity, _)| own != Some(identity)),
                    Lock | Alone => false,
                };
                proptest::prop_assert!(is_right, "{:?} of {:?}", step, steps);
            }
        }
    }
}
