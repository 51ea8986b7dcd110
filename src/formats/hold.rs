//! What a policy holds back of an ecosystem's releases, and for how long: pure functions of the policy, the dates and the clock.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::Asset;
use super::release::date;
use crate::config::{Clock, MissingDate, Quarantine, Remote};

/// Seconds of a day.
const DAY: u64 = 24 * 3600;

/// What a release is called: what policies that name packages look at.
#[derive(Debug, Clone, Copy, Default)]
pub struct Named<'a> {
    /// In the ecosystem's normal spelling; `None`: no package has such a file.
    pub package: Option<&'a str>,
    /// Its version, where that can be told.
    pub version: Option<&'a str>,
    /// What its index calls its file.
    pub file: &'a str,
}

/// Why something is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// The release is younger than so many days.
    Young(u32),
    /// This proxy saw it first less than so many days ago.
    NewHere(u32),
    /// The release was published after this moment, in Unix seconds.
    Frozen(u64),
    /// Nothing says when it was published.
    Undated,
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Why::Young(days) => write!(f, "published less than {days} days ago"),
            Why::NewHere(days) => write!(f, "first seen here less than {days} days ago"),
            Why::Frozen(since) => write!(f, "published after the freeze of {}", date(*since)),
            Why::Undated => write!(f, "nothing says when it was published"),
        }
    }
}

/// Why something is not held that the policy is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Free {
    /// Neither a period nor a freeze covers it.
    Uncovered,
    /// The release is old enough.
    OldEnough,
    /// Nothing dates it, which is allowed.
    UndatedAllowed,
    /// The configuration exempts it, for this reason.
    Exempt(String),
    /// Somebody let it through.
    LetThrough,
}

/// What the policy says of a release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The release is served.
    Free(Free),
    /// The release is not served until then; `None`: until the configuration changes, or its date is known.
    Held {
        /// In Unix seconds.
        until: Option<u64>,
        /// Why.
        why: Why,
    },
}

impl Verdict {
    /// Whether the release is held.
    pub fn is_held(&self) -> bool {
        matches!(self, Verdict::Held { .. })
    }
}

/// When a release was published, by its index or upstream, and when it was first seen here; in Unix seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dates {
    /// `None`: neither says.
    pub published: Option<u64>,
    /// `None`: never before, or nobody keeps that.
    pub first_seen: Option<u64>,
}

/// What lets some releases through that a policy would hold, and what is known of when they were first seen. By what the
/// index calls their files.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Let through by somebody.
    pub let_through: Arc<HashSet<String>>,
    /// First sight, in Unix seconds.
    pub first_seen: Arc<HashMap<String, u64>>,
}

/// A policy at a moment, and what it means for a document.
#[derive(Debug, Clone)]
pub struct Hold {
    remote: Arc<Remote>,
    /// The package that the document is about, if it is about one.
    package: Option<String>,
    known: Known,
    /// In Unix seconds, as all times here.
    now: u64,
    changes: Option<u64>,
    reasons: BTreeSet<String>,
}

impl Hold {
    /// What the policy says at `now`, in Unix seconds, of what `index` names.
    pub fn new(index: &Asset, known: Known, now: u64) -> Self {
        Hold {
            remote: Arc::clone(&index.remote),
            package: index.package.clone(),
            known,
            now,
            changes: None,
            reasons: BTreeSet::new(),
        }
    }

    fn policy(&self) -> &Quarantine {
        &self.remote.quarantine
    }

    /// A name of a document about one package needs not say which.
    fn whole<'n>(&'n self, named: Named<'n>) -> Named<'n> {
        Named {
            package: named.package.or(self.package.as_deref()),
            ..named
        }
    }

    /// What the policy says of a release, and when it will say something else by itself.
    pub fn judge(&self, named: Named<'_>, published: Option<u64>) -> (Verdict, Option<u64>) {
        if self.known.let_through.contains(named.file) {
            return (Verdict::Free(Free::LetThrough), None);
        }
        let first_seen = self.known.first_seen.get(named.file).copied();
        let dates = Dates { published, first_seen };
        judge(self.policy(), self.whole(named), dates, self.now)
    }

    /// Whether a release that an index dates so is held now; what is held is remembered. What it does not date it names:
    /// the file may have a date of its own.
    pub fn is_held(&mut self, named: Named<'_>, published: Option<u64>) -> bool {
        let (verdict, changes) = self.judge(named, published);
        let (is_held, reason) = match &verdict {
            Verdict::Held { why: Why::Undated, .. } => return false,
            Verdict::Held { why, .. } => (true, Some(why.to_string())),
            Verdict::Free(_) => (false, None),
        };
        self.reasons.extend(reason);
        self.changes = [self.changes, changes].into_iter().flatten().min();
        is_held
    }

    /// When something that was published then came, or comes, to be served.
    pub fn ends(&self, named: Named<'_>, published: u64) -> u64 {
        let days = self.policy().days_of(self.whole(named).package);
        published.saturating_add(u64::from(days) * DAY)
    }

    /// When the document is another one: the first of those that are held is due, or an exemption ends.
    pub fn changes(&self) -> Option<u64> {
        self.changes
    }

    /// For a person: why releases are not there.
    pub fn reason(&self) -> String {
        let reasons: Vec<&str> = self.reasons.iter().map(String::as_str).collect();
        format!("{}; held back by quarantine", reasons.join(", or "))
    }
}

/// What `policy` says of a release at `now`, and when it will say something else by itself.
pub fn judge(policy: &Quarantine, named: Named<'_>, dates: Dates, now: u64) -> (Verdict, Option<u64>) {
    let verdict = without_exemptions(policy, named, dates, now);
    let Verdict::Held { until, .. } = verdict else {
        return (verdict, None);
    };
    let exempt = policy.exemptions.iter().find(|exemption| {
        let is_package = named.package.is_some_and(|package| exemption.package.is_match(package));
        let is_version = |version| exemption.versions.iter().any(|exempt| exempt == version);
        is_package && now < exemption.until && (exemption.versions.is_empty() || named.version.is_some_and(is_version))
    });
    match exempt {
        Some(exemption) => {
            let reason = Free::Exempt(exemption.reason.clone());
            (Verdict::Free(reason), Some(exemption.until))
        }
        None => (verdict, until),
    }
}

fn without_exemptions(policy: &Quarantine, named: Named<'_>, dates: Dates, now: u64) -> Verdict {
    let days = policy.days_of(named.package);
    if days == 0 && policy.freeze.is_none() {
        return Verdict::Free(Free::Uncovered);
    }
    // What was never seen is seen now.
    let seen = dates.first_seen.unwrap_or(now);
    let Some(published) = dates.published.or((policy.clock != Clock::Published).then_some(seen)) else {
        return match policy.missing_date {
            MissingDate::Allow => Verdict::Free(Free::UndatedAllowed),
            MissingDate::Deny => Verdict::Held {
                until: None,
                why: Why::Undated,
            },
        };
    };
    if let Some(freeze) = policy.freeze.filter(|freeze| published > *freeze) {
        return Verdict::Held {
            until: None,
            why: Why::Frozen(freeze),
        };
    }
    let (since, why) = match policy.clock {
        Clock::Published => (published, Why::Young(days)),
        Clock::FirstSeen => (seen, Why::NewHere(days)),
        Clock::Both if seen > published => (seen, Why::NewHere(days)),
        Clock::Both => (published, Why::Young(days)),
    };
    let ends = since.saturating_add(u64::from(days) * DAY);
    match now < ends {
        true => Verdict::Held { until: Some(ends), why },
        false => Verdict::Free(Free::OldEnough),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing;
    use super::*;
    use crate::config::{Exemption, PackagePattern};

    const FILE: Named<'static> = Named {
        package: Some("six"),
        version: Some("1.0"),
        file: "six-1.0.tar.gz",
    };

    fn policy(days: u32) -> Quarantine {
        Quarantine {
            days: Some(days),
            ..Quarantine::default()
        }
    }

    fn published(day: u64) -> Dates {
        Dates {
            published: Some(day * DAY),
            first_seen: None,
        }
    }

    #[test]
    fn what_is_held_is_due_at_the_end_of_its_days() {
        let mut hold = testing::hold(3, 10 * DAY);
        assert!(!hold.is_held(FILE, Some(7 * DAY)));
        assert_eq!(hold.changes(), None);
        assert!(hold.is_held(FILE, Some(9 * DAY)));
        assert!(hold.is_held(FILE, Some(8 * DAY)));
        assert!(hold.is_held(FILE, Some(20 * DAY)));
        assert_eq!(hold.changes(), Some(11 * DAY));
        assert!(testing::hold(u32::MAX, 0).is_held(FILE, Some(u64::MAX)));
        assert!(!testing::hold(3, 10 * DAY).is_held(FILE, None));
    }

    /// Until when the file is held at `now`; `Err`: it is not.
    fn held(policy: &Quarantine, dates: Dates, now: u64) -> Result<(Option<u64>, Why), Free> {
        match judge(policy, FILE, dates, now).0 {
            Verdict::Held { until, why } => Ok((until, why)),
            Verdict::Free(free) => Err(free),
        }
    }

    fn pattern(text: &str) -> PackagePattern {
        PackagePattern::new(text, str::to_owned).unwrap()
    }

    #[test]
    fn packages_have_periods_of_their_own() {
        let mut policy = policy(3);
        policy.overrides = vec![(pattern("si*"), 0), (pattern("*"), 7)];
        assert_eq!(held(&policy, published(9), 10 * DAY), Err(Free::Uncovered));
        policy.overrides.remove(0);
        assert_eq!(
            held(&policy, published(9), 10 * DAY),
            Ok((Some(16 * DAY), Why::Young(7)))
        );
        policy.overrides[0].0 = pattern("other");
        assert_eq!(
            held(&policy, published(9), 10 * DAY),
            Ok((Some(12 * DAY), Why::Young(3)))
        );
    }

    #[test]
    fn an_exemption_lets_a_version_through_until_it_ends() {
        let mut policy = policy(3);
        policy.freeze = Some(DAY);
        policy.exemptions = vec![Exemption {
            package: pattern("six"),
            versions: vec!["1.0".to_owned()],
            until: 20 * DAY,
            reason: "looked at".to_owned(),
        }];
        let at = |now| judge(&policy, FILE, published(9), now);
        assert_eq!(
            at(10 * DAY),
            (Verdict::Free(Free::Exempt("looked at".to_owned())), Some(20 * DAY))
        );
        assert!(at(20 * DAY).0.is_held());
        let other = Named {
            version: Some("1.1"),
            ..FILE
        };
        assert!(judge(&policy, other, published(9), 10 * DAY).0.is_held());
        let unknown = Named { version: None, ..FILE };
        assert!(judge(&policy, unknown, published(9), 10 * DAY).0.is_held());
        policy.exemptions[0].versions.clear();
        assert!(!judge(&policy, unknown, published(9), 10 * DAY).0.is_held());
    }

    #[test]
    fn a_freeze_holds_what_came_after_it() {
        let policy = Quarantine {
            freeze: Some(5 * DAY),
            ..Quarantine::default()
        };
        let frozen = Ok((None, Why::Frozen(5 * DAY)));
        assert_eq!(held(&policy, published(6), 1000 * DAY), frozen);
        assert_eq!(held(&policy, published(5), 6 * DAY), Err(Free::OldEnough));
        assert_eq!(held(&policy, Dates::default(), 6 * DAY), Err(Free::UndatedAllowed));
        let deny = Quarantine {
            missing_date: MissingDate::Deny,
            ..policy
        };
        assert_eq!(held(&deny, Dates::default(), 6 * DAY), Ok((None, Why::Undated)));
    }

    #[test]
    fn what_somebody_let_through_is_not_held() {
        let mut hold = testing::hold(3, 10 * DAY);
        hold.known.let_through = Arc::new([FILE.file.to_owned()].into());
        assert!(!hold.is_held(FILE, Some(9 * DAY)));
        let other = Named { file: "other", ..FILE };
        assert!(hold.is_held(other, Some(9 * DAY)));
        assert_eq!(hold.reason(), "published less than 3 days ago; held back by quarantine");
    }

    proptest! {
        #[test]
        fn each_clock_waits_for_its_own_date(
            published in proptest::option::of(0_u64..1000), first_seen in proptest::option::of(0_u64..1000),
            days in 1_u32..100, now in 0_u64..1200
        ) {
            let dates = Dates { published, first_seen };
            let seconds = u64::from(days) * DAY;
            let seen = first_seen.unwrap_or(now);
            for (clock, since) in [
                (Clock::Published, published),
                (Clock::FirstSeen, Some(seen)),
                (Clock::Both, Some(published.map_or(seen, |published| published.max(seen)))),
            ] {
                let policy = Quarantine { clock, ..policy(days) };
                let (verdict, changes) = judge(&policy, FILE, dates, now);
                let until = since.map(|since| since + seconds).filter(|until| now < *until);
                prop_assert_eq!(verdict.is_held(), until.is_some());
                prop_assert_eq!(changes, until);
                // Once it is due it stays so.
                if let Some(until) = until.filter(|_| first_seen.is_some()) {
                    prop_assert!(judge(&policy, FILE, dates, until - 1).0.is_held());
                    prop_assert!(!judge(&policy, FILE, dates, until).0.is_held());
                }
            }
        }
    }
}
