//! `quarantine_…` and `freeze` of a remote: what is held back, for how long, and what is let through all the same.

use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

use super::pattern::PackagePattern;
use super::problem::Fault;
use super::section::Section;
use super::values::{choice, shown};

/// The longest time that anything is held.
const MAX_DAYS: u32 = 36_500;
/// The keys of a remote that are read here.
pub(super) const KEYS: [&str; 8] = [
    "quarantine_new",
    "quarantine_days",
    "quarantine_overrides",
    "quarantine_exemptions",
    "quarantine_missing_date",
    "quarantine_clock",
    "quarantine_mode",
    "freeze",
];

/// What a remote holds back.
#[derive(Debug, Clone, Default)]
pub struct Quarantine {
    /// `Some(days)` with `quarantine_new: true`.
    pub days: Option<u32>,
    /// Other periods, by package; the first that fits counts.
    pub overrides: Vec<(PackagePattern, u32)>,
    /// What is let through all the same.
    pub exemptions: Vec<Exemption>,
    /// What nothing dates.
    pub missing_date: MissingDate,
    /// What a period is counted from.
    pub clock: Clock,
    /// What is done with what is held.
    pub mode: Mode,
    /// What was published after this is held, in Unix seconds.
    pub freeze: Option<u64>,
    /// A number that another policy does not have: documents that are made by one are not taken for those of another, also
    /// after a restart.
    pub fingerprint: u64,
}

/// Whether artifacts that nothing dates are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MissingDate {
    /// They are.
    #[default]
    Allow,
    /// They are not.
    Deny,
}

/// What a period is counted from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Clock {
    /// The date that the index or upstream tells.
    #[default]
    Published,
    /// The moment at which this proxy first saw it.
    FirstSeen,
    /// The later of both.
    Both,
}

/// Whether what should be held is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Nothing that is held is served.
    #[default]
    Enforce,
    /// What is held is served, counted and logged.
    Observe,
}

/// A package, or some of its versions, that no period holds back for a while.
#[derive(Debug, Clone)]
pub struct Exemption {
    /// Which packages.
    pub package: PackagePattern,
    /// Which of their versions; empty: all.
    pub versions: Vec<String>,
    /// When the exemption ends, in Unix seconds.
    pub until: u64,
    /// Why, for who reads of it later.
    pub reason: String,
}

impl Quarantine {
    /// Whether anything may be held.
    pub fn is_on(&self) -> bool {
        self.days.is_some() || self.freeze.is_some()
    }

    /// Whether indexes leave out what is held.
    pub fn is_enforced(&self) -> bool {
        self.is_on() && self.mode == Mode::Enforce
    }

    /// Whether this policy asks when something was first seen here.
    pub fn goes_by_sight(&self) -> bool {
        self.is_on() && self.clock != Clock::Published
    }

    /// For how many days packages of this name are held.
    pub fn days_of(&self, name: Option<&str>) -> u32 {
        let Some(days) = self.days else { return 0 };
        let fits = |(pattern, _): &&(PackagePattern, u32)| name.is_some_and(|name| pattern.is_match(name));
        self.overrides.iter().find(fits).map_or(days, |(_, days)| *days)
    }
}

/// Reads the keys of one remote. `freeze` is that of all remotes.
pub(super) fn read(section: &Section<'_>, freeze: Option<u64>, normal: fn(&str) -> String) -> Quarantine {
    let missing = [("allow", MissingDate::Allow), ("deny", MissingDate::Deny)];
    let clocks = [
        ("published", Clock::Published),
        ("first_seen", Clock::FirstSeen),
        ("both", Clock::Both),
    ];
    let modes = [("enforce", Mode::Enforce), ("observe", Mode::Observe)];
    let mut quarantine = Quarantine {
        days: days(section),
        overrides: overrides(section, normal),
        exemptions: exemptions(section, normal),
        missing_date: section
            .parse("quarantine_missing_date", |text| choice(text, &missing))
            .unwrap_or_default(),
        clock: section
            .parse("quarantine_clock", |text| choice(text, &clocks))
            .unwrap_or_default(),
        mode: section
            .parse("quarantine_mode", |text| choice(text, &modes))
            .unwrap_or_default(),
        freeze: section.parse("freeze", moment).or(freeze),
        fingerprint: 0,
    };
    let digest = Sha256::digest(format!("{quarantine:?}"));
    quarantine.fingerprint = digest
        .iter()
        .take(8)
        .fold(0, |number, byte| number << 8 | u64::from(*byte));
    if quarantine.is_on() || section.boolean("quarantine_new") == Some(true) {
        return quarantine;
    }
    for key in KEYS.into_iter().skip(3) {
        if let Some(found) = section.entry(key).filter(|_| key != "freeze") {
            let fault = Fault::new(format!("`{key}` has no effect: nothing is held back"));
            section.cx.warn(
                found.at,
                fault.hint("add `quarantine_new: true` and `quarantine_days: 3`, or remove it"),
            );
        }
    }
    quarantine
}

fn days(section: &Section<'_>) -> Option<u32> {
    let (new, days) = (section.entry("quarantine_new"), section.entry("quarantine_days"));
    let on = section.boolean("quarantine_new").unwrap_or(false);
    let count = section.integer("quarantine_days", 0..=MAX_DAYS);
    let has_overrides = section.entry("quarantine_overrides").is_some();
    match (new, days) {
        // A bad number has been complained about; one of 0 means something where packages have their own.
        (Some(new), days) if on && (days.is_none() || count == Some(0)) && !has_overrides => {
            let fault = Fault::new("`quarantine_new` without `quarantine_days`");
            section.cx.error(
                new.at,
                fault.hint("add `quarantine_days: 3`, or another number of days"),
            );
        }
        (_, Some(days)) if !on && count.is_some_and(|n| n > 0) => {
            let fault = Fault::new("`quarantine_days` holds nothing back while `quarantine_new` is not true");
            section.cx.warn(days.at, fault.hint("add `quarantine_new: true`"));
        }
        _ => {}
    }
    on.then(|| count.unwrap_or(0))
}

fn overrides(section: &Section<'_>, normal: fn(&str) -> String) -> Vec<(PackagePattern, u32)> {
    const KEY: &str = "quarantine_overrides";
    let mut overrides = Vec::new();
    for entry in section.free(KEY).unwrap_or_default() {
        let Some(text) = section.free_text(KEY, entry) else {
            continue;
        };
        let days = text.value.parse().ok().filter(|days| *days <= MAX_DAYS);
        match (PackagePattern::new(&entry.key, normal).map_err(Fault::new), days) {
            (Err(fault), _) => section
                .cx
                .error(entry.at, fault.about(format_args!("`{KEY}` {}", shown(&entry.key)))),
            (_, None) => {
                let fault = Fault::new(format!(
                    "`{KEY}.{}` must be a whole number from 0 to {MAX_DAYS}",
                    entry.key
                ));
                section.cx.error(text.at, fault.hint("write days, such as 7"));
            }
            (Ok(pattern), Some(days)) => overrides.push((pattern, days)),
        }
    }
    overrides
}

fn exemptions(section: &Section<'_>, normal: fn(&str) -> String) -> Vec<Exemption> {
    const KEYS: [&str; 4] = ["package", "versions", "until", "reason"];
    let mut exemptions = Vec::new();
    for item in section.items("quarantine_exemptions").unwrap_or_default() {
        let entry = Section::open(section.cx, item, "quarantine_exemptions.", &KEYS, &[]);
        let missing = KEYS
            .into_iter()
            .filter(|key| *key != "versions" && entry.entry(key).is_none());
        let missing: Vec<&str> = missing.collect();
        if !missing.is_empty() {
            let fault = Fault::new(format!("an exemption without `{}`", missing.join("`, `")));
            let hint =
                "write {package: NAME, versions: [1.2.3], until: 2030-01-31, reason: \"who allowed it, and why\"}";
            section.cx.error(item.at, fault.hint(hint));
        }
        let versions = entry.list("versions", |text| Ok(text.to_owned())).unwrap_or_default();
        let package = entry.parse("package", |text| PackagePattern::new(text, normal).map_err(Fault::new));
        if let (Some(package), Some(until)) = (package, entry.parse("until", moment)) {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            if until <= now.as_secs() {
                let fault = Fault::new(format!("the exemption of `{}` has ended", package.as_str()));
                section
                    .cx
                    .warn(item.at, fault.hint("remove it, or set another `until`"));
            }
            exemptions.push(Exemption {
                package,
                versions: versions.into_iter().map(|(_, version)| version).collect(),
                until,
                reason: entry.text("reason").map(|text| text.value).unwrap_or_default(),
            });
        }
    }
    exemptions
}

/// A date, or a date and time (RFC 3339), in Unix seconds; a date alone is its beginning in UTC.
pub(super) fn moment(text: &str) -> Result<u64, Fault> {
    let date = || {
        let date = time::Date::parse(text, &format_description!("[year]-[month]-[day]")).ok()?;
        Some(date.midnight().assume_utc())
    };
    let moment = OffsetDateTime::parse(text, &Rfc3339).ok().or_else(date);
    moment
        .and_then(|moment| u64::try_from(moment.unix_timestamp()).ok())
        .ok_or_else(|| Fault::new("is no date").hint("write 2026-11-01, or 2026-11-01T08:00:00Z"))
}
