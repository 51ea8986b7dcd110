//! A verdict in words: which rule it comes from, and why.

use serde_json::{Value, json};

use crate::catalog::rfc3339;
use crate::config::{Mode, Quarantine};
use crate::formats::Asset;
use crate::formats::hold::{Free, Verdict, Why};

/// What the policy says of an artifact, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Judged {
    /// `served`, `held`, or `observed`: it would be held, and is served.
    pub(super) verdict: &'static str,
    pub(super) rule: &'static str,
    pub(super) reason: String,
    /// In Unix seconds.
    pub(super) until: Option<u64>,
}

impl Judged {
    /// Served, whatever the policy says of others.
    pub(super) fn served(rule: &'static str, reason: impl Into<String>) -> Self {
        Judged {
            verdict: "served",
            rule,
            reason: reason.into(),
            until: None,
        }
    }

    pub(super) fn new(asset: &Asset, verdict: &Verdict) -> Self {
        let policy = &asset.remote.quarantine;
        let days = policy.days_of(asset.package.as_deref());
        let of_period = match pattern(policy, asset) {
            Some(_) => "override",
            None => "days",
        };
        let (until, why) = match verdict {
            Verdict::Held { until, why } => (*until, why),
            Verdict::Free(free) => {
                return match free {
                    Free::Uncovered if policy.days.is_some() => {
                        Judged::served(of_period, "releases of this package are not held back")
                    }
                    Free::Uncovered => Judged::served("off", "this remote holds nothing back"),
                    Free::OldEnough if days == 0 => {
                        Judged::served("freeze", "it was published before the freeze, and no period covers it")
                    }
                    Free::OldEnough => Judged::served(of_period, format!("its {days} days are over")),
                    Free::UndatedAllowed => {
                        Judged::served("missing_date", "nothing says when it was published, which is allowed")
                    }
                    Free::Exempt(reason) => Judged::served("exemption", reason),
                    Free::LetThrough => Judged::served("released", "somebody let it through"),
                };
            }
        };
        let rule = match why {
            Why::Young(_) => of_period,
            Why::NewHere(_) => "first_seen",
            Why::Frozen(_) => "freeze",
            Why::Undated => "missing_date",
        };
        Judged {
            verdict: match policy.mode {
                Mode::Enforce => "held",
                Mode::Observe => "observed",
            },
            rule,
            reason: why.to_string(),
            until,
        }
    }

    /// Whether the artifact is held, or would be.
    pub(super) fn is_held(&self) -> bool {
        self.verdict != "served"
    }
}

/// The pattern in `quarantine_overrides` whose period is that of the package.
pub(super) fn pattern<'a>(policy: &'a Quarantine, asset: &Asset) -> Option<&'a str> {
    let package = asset.package.as_deref()?;
    let found = policy.overrides.iter().find(|(pattern, _)| pattern.is_match(package));
    found
        .filter(|_| policy.days.is_some())
        .map(|(pattern, _)| pattern.as_str())
}

/// Unix seconds for people; `null` for none.
pub(super) fn date(seconds: Option<u64>) -> Value {
    match seconds {
        Some(seconds) => json!(rfc3339(i64::try_from(seconds).unwrap_or(i64::MAX))),
        None => Value::Null,
    }
}
