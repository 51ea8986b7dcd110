//! When versions were published, and their checksums: `pubtime` and `cksum` of a crate's file in the index. A version that is held is yanked there: cargo then
//! takes an older one by itself, and a lock file that names it still resolves, so that the download can say why it fails.

use std::borrow::Cow;

use super::super::hold::{Hold, Named};
use super::super::json::whole::{JsonObject, json_text, object};
use super::super::release::{Release, Releases, seconds, sha256};
use super::super::{IndexError, ViewContext};
use super::normal_name;

/// A crate's file in the index.
pub(super) const INDEX: Releases = Releases {
    read: releases,
    without,
    dated: None,
};

/// What the file of a version is called here.
pub(super) fn name(krate: &str, version: &str) -> String {
    format!("{}@{version}", krate.to_ascii_lowercase())
}

fn published(line: &JsonObject<'_>) -> Option<u64> {
    seconds(&line.text("pubtime")?)
}

fn releases(document: &[u8]) -> Vec<Release> {
    let lines = json_text(document).unwrap_or_default().lines();
    let read = lines.filter_map(|line| JsonObject::read(line).ok());
    read.filter_map(|line| {
        Some(Release {
            file: name(&line.text("name")?, &line.text("vers")?),
            published: published(&line),
            digest: line.text("cksum").and_then(|checksum| sha256(&checksum)),
        })
    })
    .collect()
}

fn is_held(line: &JsonObject<'_>, hold: &mut Hold) -> bool {
    let krate = line.text("name").unwrap_or_default();
    let version = line.text("vers").unwrap_or_default();
    let named = Named {
        package: Some(&normal_name(&krate)),
        version: Some(&version),
        file: &name(&krate, &version),
    };
    hold.is_held(named, published(line))
}

fn without(_context: &ViewContext<'_>, document: &[u8], hold: &mut Hold) -> Result<Vec<u8>, IndexError> {
    let mut out = String::with_capacity(document.len() + 64);
    for line in json_text(document)?.split_inclusive('\n') {
        let read = JsonObject::read(line).ok();
        let held = read.filter(|line| is_held(line, hold));
        let Some(held) = held else {
            out.push_str(line);
            continue;
        };
        let others = held.0.iter().filter(|(name, _)| name != "yanked");
        let members = others
            .map(|(name, value)| (&**name, value.get()))
            .chain([("yanked", "true")]);
        out.push_str(&object(members));
        out.push('\n');
    }
    Ok(out.into_bytes())
}

/// The version whose file lies under a decoded path: `{crate}/{version}/download`, or what ends in `{crate}-{version}.crate`.
pub(super) fn of_path(path: &str) -> Option<(Cow<'_, str>, &str)> {
    if let [.., krate, version, "download"] = path.split('/').collect::<Vec<_>>()[..] {
        return Some((krate.into(), version));
    }
    let file = path.rsplit('/').next()?.strip_suffix(".crate")?;
    // A version begins with a digit, and a name may hold hyphens before digits: the first is the one that a version follows.
    let hyphens = file.match_indices('-').map(|(at, _)| at);
    let at = hyphens
        .filter(|at| semver::Version::parse(&file[at + 1..]).is_ok())
        .min()?;
    Some((file[..at].into(), &file[at + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::testing;

    #[test]
    fn paths_tell_the_version() {
        let cases = [
            ("crates/serde/1.0.0/download", Some(("serde", "1.0.0"))),
            ("files/serde-json-1.0.0-rc.1.crate", Some(("serde-json", "1.0.0-rc.1"))),
            ("files/a-2-1.0.0.crate", Some(("a-2", "1.0.0"))),
            ("files/a.crate", None),
            ("config.json", None),
        ];
        for (path, expected) in cases {
            let found = of_path(path);
            assert_eq!(
                found.as_ref().map(|(krate, version)| (&**krate, *version)),
                expected,
                "{path}"
            );
        }
    }

    #[test]
    fn checksums_are_digests() {
        let hex = "ab".repeat(32);
        let text = format!(
            "{{\"name\":\"A\",\"vers\":\"1.0.0\",\"cksum\":\"{hex}\"}}\n{{\"name\":\"A\",\"vers\":\"1.1.0\",\"cksum\":\"x\"}}\n"
        );
        let found = releases(text.as_bytes());
        assert_eq!(
            (found.len(), &found[0].digest, &found[1].digest),
            (2, &sha256(&hex), &None)
        );
    }

    #[test]
    fn what_is_held_is_yanked() {
        const DAY: u64 = 24 * 3600;
        let text = "{\"name\":\"A\",\"vers\":\"1.0.0\",\"yanked\":false,\"pubtime\":\"1970-01-02T00:00:00Z\"}\n\
                    {\"name\":\"A\",\"vers\":\"1.1.0\",\"yanked\":false,\"pubtime\":\"1970-04-10T00:00:00Z\"}\n\
                    {\"name\":\"A\",\"vers\":\"1.2.0\",\"yanked\":false}\nno json";
        let remote = crate::formats::testing::remote("cargo", "https://r/");
        let context = ViewContext {
            remote: &remote,
            path: &crate::formats::ArtifactPath::default(),
            style: crate::formats::links::Style::Relative,
            document_url: "https://r/a".parse().unwrap(),
            content_type: "",
            remote_url: "",
        };
        let mut hold = testing::hold(3, 100 * DAY);
        let left = without(&context, text.as_bytes(), &mut hold).unwrap();
        let expected = text.replace(
            "\"vers\":\"1.1.0\",\"yanked\":false,\"pubtime\":\"1970-04-10T00:00:00Z\"",
            "\"vers\":\"1.1.0\",\"pubtime\":\"1970-04-10T00:00:00Z\",\"yanked\":true",
        );
        assert_eq!(String::from_utf8(left).unwrap(), expected);
        assert_eq!(hold.changes(), Some(102 * DAY));
        let names: Vec<String> = releases(text.as_bytes())
            .into_iter()
            .map(|release| release.file)
            .collect();
        assert_eq!(names, ["a@1.0.0", "a@1.1.0", "a@1.2.0"]);
    }
}
