//! When versions were published: `time` of the full packument. The abbreviated one has none, so that where versions are held
//! all clients get the full one. Both name the digest of a tarball: `dist.integrity`.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use semver::Version;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::super::hold::{Hold, Named};
use super::super::json::whole::{JsonObject, json_text, no_json, object, text};
use super::super::links::{LinkMap, decode_once};
use super::super::release::{FillDates, Release, Releases, Undated, date, seconds};
use super::super::{IndexError, ViewContext};
use super::integrity;

/// Packuments.
pub(super) const PACKUMENT: Releases = Releases {
    read: releases,
    without,
    dated: Some(&FillDates { undated, fill: dated }),
};

/// What stands in `time` beside the versions.
const NO_VERSIONS: [&str; 3] = ["created", "modified", "unpublished"];

/// When each version was published.
fn times<'a>(packument: &JsonObject<'a>) -> HashMap<Cow<'a, str>, u64> {
    let time = packument.object("time").unwrap_or_default();
    let dated = time
        .0
        .into_iter()
        .filter(|(version, _)| !NO_VERSIONS.contains(&&**version));
    dated
        .filter_map(|(version, time)| Some((version, seconds(&text(time)?)?)))
        .collect()
}

fn named<'a>(version: &'a str, file: &'a str) -> Named<'a> {
    Named {
        package: None,
        version: Some(version),
        file,
    }
}

pub(super) fn dist(version: &RawValue) -> Option<JsonObject<'_>> {
    JsonObject::read(version.get()).ok()?.object("dist")
}

/// What the tarball of a version is called, by its URL.
pub(super) fn tarball(dist: &JsonObject<'_>) -> Option<String> {
    let url = dist.text("tarball")?;
    let path = url.split(['?', '#']).next()?;
    Some(decode_once(path.rsplit('/').next()?))
}

fn releases(document: &[u8]) -> Vec<Release> {
    let packument = json_text(document).ok().and_then(|text| JsonObject::read(text).ok());
    let packument = packument.unwrap_or_default();
    let times = times(&packument);
    let versions = packument.object("versions").unwrap_or_default();
    let dated = versions.0.iter().filter_map(|(version, described)| {
        let dist = dist(described)?;
        Some(Release {
            published: times.get(version).copied(),
            digest: dist.text("integrity").and_then(|text| integrity::strongest(&text)),
            file: tarball(&dist)?,
        })
    });
    dated.collect()
}

/// The tarballs of versions that the registry does not date.
fn undated(context: &ViewContext<'_>, document: &[u8]) -> Vec<Undated> {
    let packument = json_text(document).ok().and_then(|text| JsonObject::read(text).ok());
    let packument = packument.unwrap_or_default();
    let (times, links) = (times(&packument), LinkMap::new(context));
    let versions = packument.object("versions").unwrap_or_default();
    let undated = versions.0.iter().filter(|(version, _)| !times.contains_key(version));
    let files = undated.filter_map(|(_, described)| {
        let dist = dist(described)?;
        Some(Undated {
            file: tarball(&dist)?,
            path: links.path(&dist.text("tarball")?),
        })
    });
    files.collect()
}

/// A packument in which versions have these dates, by their tarballs, that the registry does not date.
fn dated(_context: &ViewContext<'_>, document: &[u8], dates: &HashMap<String, u64>) -> Result<Vec<u8>, IndexError> {
    let packument = JsonObject::read(json_text(document)?).map_err(|error| no_json(&error))?;
    let known = times(&packument);
    let versions = packument.object("versions").unwrap_or_default();
    let undated = versions.0.iter().filter(|(version, _)| !known.contains_key(version));
    let undated: Vec<(&str, u64)> = undated
        .filter_map(|(version, described)| Some((&**version, *dates.get(&tarball(&dist(described)?)?)?)))
        .collect();
    let Some(latest) = undated.iter().map(|(_, seen)| *seen).max() else {
        return Ok(document.to_vec());
    };
    let said = packument.object("time").unwrap_or_default();
    let mut time: Vec<(&str, String)> = said
        .0
        .iter()
        .filter(|(name, _)| !undated.iter().any(|(version, _)| version == name))
        .map(|(name, value)| (&**name, value.get().to_owned()))
        .collect();
    let quoted = |seconds| Value::from(date(seconds)).to_string();
    time.extend(undated.iter().map(|(version, seen)| (*version, quoted(*seen))));
    if said.get("modified").is_none() {
        time.push(("modified", quoted(latest)));
    }
    let time = object(time.iter().map(|(name, value)| (*name, value.as_str())));
    let others = packument.0.iter().filter(|(name, _)| name != "time");
    let others = others.map(|(name, value)| (&**name, value.get()));
    Ok(object(others.chain([("time", time.as_str())])).into_bytes())
}

fn without(_context: &ViewContext<'_>, document: &[u8], hold: &mut Hold) -> Result<Vec<u8>, IndexError> {
    let packument = JsonObject::read(json_text(document)?).map_err(|error| no_json(&error))?;
    let Some(versions) = packument.object("versions") else {
        return Ok(document.to_vec());
    };
    let times = times(&packument);
    let files: HashMap<&str, String> = versions
        .0
        .iter()
        .filter_map(|(version, described)| Some((&**version, tarball(&dist(described)?)?)))
        .collect();
    let is_held = |version: &str, hold: &mut Hold| {
        let file = files.get(version).map_or("", String::as_str);
        hold.is_held(named(version, file), times.get(version).copied())
    };
    let (mut free, mut held) = (Vec::new(), Vec::new());
    for (version, described) in &versions.0 {
        let to = if is_held(version, hold) { &mut held } else { &mut free };
        to.push((&**version, described.get()));
    }
    // What is published may be named before it has a version, and after it was unpublished.
    let hidden: HashSet<&str> = times
        .keys()
        .map(|version| &**version)
        .filter(|version| is_held(version, &mut hold.clone()))
        .collect();
    let names: Vec<&str> = free.iter().map(|(version, _)| *version).collect();
    let mut written: Vec<(&str, Cow<'_, str>)> = Vec::new();
    for (name, value) in &packument.0 {
        let value = match &**name {
            "versions" => object(free.iter().copied()).into(),
            "time" => free_times(value, &hidden, &times, hold).into(),
            "dist-tags" if !hidden.is_empty() => free_tags(value, &hidden, &names).into(),
            _ => Cow::Borrowed(value.get()),
        };
        written.push((name, value));
    }
    if !held.is_empty() {
        restrict(&mut written, &packument, &held, hold);
    }
    let written = object(written.iter().map(|(name, value)| (*name, &**value)));
    Ok(written.into_bytes())
}

/// Names what is held where npm looks for what a policy forbids, and prints why.
fn restrict<'p>(
    written: &mut Vec<(&'p str, Cow<'p, str>)>,
    packument: &JsonObject<'p>,
    held: &[(&str, &str)],
    hold: &Hold,
) {
    const RESTRICTIONS: &str = "policyRestrictions";
    let known = packument.object(RESTRICTIONS).unwrap_or_default();
    let known_versions = known.object("versions").unwrap_or_default();
    let mut versions: Vec<(&str, &str)> = known_versions
        .0
        .iter()
        .map(|(name, value)| (&**name, value.get()))
        .collect();
    versions.extend_from_slice(held);
    let versions = object(versions);
    let message = match known.text("message") {
        Some(message) => format!("{message}\n{}", hold.reason()),
        None => hold.reason(),
    };
    let message = Value::from(message).to_string();
    let restrictions = object([("message", message.as_str()), ("versions", versions.as_str())]);
    written.retain(|(name, _)| *name != RESTRICTIONS);
    written.push((RESTRICTIONS, restrictions.into()));
}

/// `time` without what is hidden. `modified` is when the last of the others came to be seen.
fn free_times(value: &RawValue, hidden: &HashSet<&str>, times: &HashMap<Cow<'_, str>, u64>, hold: &Hold) -> String {
    let Ok(time) = JsonObject::read(value.get()) else {
        return value.get().to_owned();
    };
    let seen = times.iter().filter(|(version, _)| !hidden.contains(&***version));
    let seen = seen.map(|(_, published)| hold.ends(Named::default(), *published)).max();
    let said = time.text("modified").and_then(|time| seconds(&time));
    let modified = match (hidden.is_empty(), seen, said) {
        // Upstream's own last change may be that which is hidden.
        (false, Some(seen), _) => Some(seen),
        (true, Some(seen), Some(said)) if seen > said => Some(seen),
        _ => None,
    };
    let modified = modified.map(|seconds| Value::from(date(seconds)).to_string());
    let members = time.0.iter().filter(|(name, _)| !hidden.contains(&**name));
    object(members.map(|(name, value)| match (&**name, &modified) {
        ("modified", Some(modified)) => ("modified", modified.as_str()),
        (name, _) => (name, value.get()),
    }))
}

/// `dist-tags`, those that name something hidden moved to the newest that may be had.
fn free_tags(value: &RawValue, hidden: &HashSet<&str>, free: &[&str]) -> String {
    let Ok(tags) = JsonObject::read(value.get()) else {
        return value.get().to_owned();
    };
    let mut written = Vec::new();
    for (tag, value) in &tags.0 {
        match text(value) {
            Some(version) if hidden.contains(&*version) => {
                if let Some(fallback) = fallback(&version, free) {
                    written.push((&**tag, json!(fallback).to_string()));
                }
            }
            _ => written.push((&**tag, value.get().to_owned())),
        }
    }
    object(written.iter().map(|(tag, version)| (*tag, version.as_str())))
}

/// The newest of `free` before `version`: of its major version if there is one, and a pre-release only for a pre-release.
fn fallback<'f>(version: &str, free: &[&'f str]) -> Option<&'f str> {
    let held = Version::parse(version).ok()?;
    let read = free
        .iter()
        .filter_map(|version| Some((Version::parse(version).ok()?, *version)));
    let is_candidate = |version: &Version| *version < held && (version.pre.is_empty() || !held.pre.is_empty());
    let candidates = read.filter(|(version, _)| is_candidate(version));
    let best = candidates.max_by(|(one, _), (other, _)| {
        let is_of_line = |version: &Version| version.major == held.major;
        (is_of_line(one), one).cmp(&(is_of_line(other), other))
    });
    best.map(|(_, version)| version)
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;
    use time::format_description::well_known::Rfc3339;

    use super::*;
    use crate::formats::ArtifactPath;
    use crate::formats::links::Style;
    use crate::formats::testing;
    use proptest::prelude::*;

    const DAY: u64 = 24 * 3600;

    #[test]
    fn tarballs_have_digests_in_both_forms() {
        let integrity =
            "sha512-z4PhNX7vuL3xVChQ1m2AB9Yg5AULVxXcg/SpIdNs6c5H0NE8XYXysP+DGNKHfuwvY7kxvUdBeoGlODJ6+SfaPg==";
        let versions = json!({
            "1.0.0": {"dist": {"tarball": "https://r/p/-/p-1.0.0.tgz?x", "integrity": integrity}},
            "1.1.0": {"dist": {"tarball": "https://r/p/-/p-1.1.0.tgz", "shasum": "da39a3ee5e6b4b0d3255bfef95601890afd80709"}},
            "1.2.0": {},
        });
        for packument in [
            json!({"versions": versions, "modified": "x"}),
            json!({"versions": versions, "time": {"1.0.0": "1970-01-02T00:00:00Z"}}),
        ] {
            let found = releases(packument.to_string().as_bytes());
            let names: Vec<&str> = found.iter().map(|release| release.file.as_str()).collect();
            assert_eq!(names, ["p-1.0.0.tgz", "p-1.1.0.tgz"]);
            assert!(found[0].digest.as_ref().unwrap().is_of(b""));
            assert_eq!(found[1].digest, None);
        }
    }

    /// The packument with these versions and tags, less what is held on day 100 for three days.
    fn left(versions: &[(&str, u64)], tags: &[(&str, &str)]) -> (Value, Hold) {
        let day = |day: u64| {
            let time = OffsetDateTime::from_unix_timestamp(i64::try_from(day * DAY).unwrap()).unwrap();
            time.format(&Rfc3339).unwrap()
        };
        let newest = versions.iter().map(|(_, day)| *day).max().unwrap_or(0);
        let described = versions.iter().map(|(version, _)| {
            let dist = json!({"tarball": format!("https://r/p/-/p-{version}.tgz")});
            ((*version).to_owned(), json!({"version": version, "dist": dist}))
        });
        let mut times: serde_json::Map<String, Value> = versions
            .iter()
            .map(|(version, at)| ((*version).to_owned(), json!(day(*at))))
            .collect();
        times.insert("modified".to_owned(), json!(day(newest)));
        times.insert("created".to_owned(), json!(day(0)));
        let tags: serde_json::Map<String, Value> = tags
            .iter()
            .map(|(tag, version)| ((*tag).to_owned(), json!(version)))
            .collect();
        let packument = json!({
            "name": "p", "dist-tags": tags, "time": times,
            "versions": described.collect::<serde_json::Map<String, Value>>(),
        });
        let remote = testing::remote("npm", "https://r/");
        let path = ArtifactPath::default();
        let context = ViewContext {
            remote: &remote,
            path: &path,
            style: Style::Absolute,
            document_url: "https://r/p".parse().unwrap(),
            content_type: "application/json",
            remote_url: "https://here",
        };
        let mut hold = testing::hold(3, 100 * DAY);
        let document = packument.to_string();
        let names: HashSet<String> = releases(document.as_bytes())
            .into_iter()
            .map(|release| release.file)
            .collect();
        assert_eq!(names.len(), versions.len());
        let left = without(&context, document.as_bytes(), &mut hold).unwrap();
        (serde_json::from_slice(&left).unwrap(), hold)
    }

    #[test]
    fn held_versions_are_restricted_and_tags_fall_back() {
        let versions = [
            ("1.0.0", 1),
            ("1.1.0", 2),
            ("2.0.0-rc.1", 3),
            ("2.0.0-rc.2", 99),
            ("1.2.0", 99),
            ("3.0.0", 98),
        ];
        let tags = [
            ("latest", "1.2.0"),
            ("next", "2.0.0-rc.2"),
            ("three", "3.0.0"),
            ("old", "1.0.0"),
        ];
        let (left, hold) = left(&versions, &tags);
        let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&left["versions"]), ["1.0.0", "1.1.0", "2.0.0-rc.1"]);
        assert_eq!(
            left["dist-tags"],
            json!({"latest": "1.1.0", "next": "2.0.0-rc.1", "three": "1.1.0", "old": "1.0.0"})
        );
        assert_eq!(
            names(&left["policyRestrictions"]["versions"]),
            ["1.2.0", "2.0.0-rc.2", "3.0.0"]
        );
        assert!(
            left["policyRestrictions"]["message"]
                .as_str()
                .unwrap()
                .contains("less than 3 days")
        );
        assert_eq!(
            names(&left["time"]),
            ["1.0.0", "1.1.0", "2.0.0-rc.1", "created", "modified"]
        );
        // The last that came to be seen did so on day 6.
        assert_eq!(left["time"]["modified"], "1970-01-07T00:00:00Z");
        assert_eq!(hold.changes(), Some(101 * DAY));
    }

    #[test]
    fn versions_without_a_date_get_that_of_first_sight() {
        let version = |number: &str| json!({"dist": {"tarball": format!("https://r/p/-/p-{number}.tgz")}});
        let packument = json!({
            "name": "p", "versions": {"1.0.0": version("1.0.0"), "1.1.0": version("1.1.0")},
            "time": {"1.0.0": "2020-01-01T00:00:00Z"},
        });
        let first_seen = [("p-1.0.0.tgz".to_owned(), 0), ("p-1.1.0.tgz".to_owned(), DAY)].into();
        let remote = testing::remote("npm", "https://r/");
        let context = ViewContext {
            remote: &remote,
            path: &ArtifactPath::default(),
            style: Style::Absolute,
            document_url: "https://r/p".parse().unwrap(),
            content_type: "application/json",
            remote_url: "https://here",
        };
        let filled = |document: &Value| dated(&context, document.to_string().as_bytes(), &first_seen).unwrap();
        let read: Value = serde_json::from_slice(&filled(&packument)).unwrap();
        let time = json!({
            "1.0.0": "2020-01-01T00:00:00Z", "1.1.0": "1970-01-02T00:00:00Z", "modified": "1970-01-02T00:00:00Z",
        });
        assert_eq!(read["time"], time);
        assert_eq!(read["versions"], packument["versions"]);
        // What is dated already stays byte for byte.
        assert_eq!(filled(&read), read.to_string().as_bytes());
    }

    #[test]
    fn a_tag_that_nothing_is_left_for_goes() {
        let (all, _) = left(&[("1.0.0", 99)], &[("latest", "1.0.0")]);
        assert_eq!(all["dist-tags"], json!({}));
        assert_eq!(all["versions"], json!({}));
        let (stable, _) = left(&[("1.0.0-rc.1", 1), ("1.0.0", 99)], &[("latest", "1.0.0")]);
        assert_eq!(stable["dist-tags"], json!({}));
    }

    proptest! {
        #[test]
        fn no_tag_names_what_is_not_there(
            versions in proptest::collection::btree_map("[0-3]\\.[0-3]\\.[0-3](-rc\\.[0-3])?", 90_u64..110, 1..12),
            tagged in any::<proptest::sample::Index>()
        ) {
            let versions: Vec<(&str, u64)> = versions.iter().map(|(version, day)| (version.as_str(), *day)).collect();
            let (latest, day) = versions[tagged.index(versions.len())];
            let (left, hold) = left(&versions, &[("latest", latest)]);
            let there = left["versions"].as_object().unwrap();
            for (version, day) in &versions {
                prop_assert_eq!(there.contains_key(*version), day + 3 <= 100);
            }
            if let Some(now) = left["dist-tags"].get("latest") {
                let now = now.as_str().unwrap();
                prop_assert!(there.contains_key(now));
                if day + 3 <= 100 {
                    prop_assert_eq!(now, latest);
                }
                let (now, latest) = (Version::parse(now).unwrap(), Version::parse(latest).unwrap());
                prop_assert!(now <= latest && (now.pre.is_empty() || !latest.pre.is_empty()));
            }
            let due = versions.iter().map(|(_, day)| day + 3).filter(|due| *due > 100).min();
            prop_assert_eq!(hold.changes(), due.map(|due| due * DAY));
        }
    }
}
