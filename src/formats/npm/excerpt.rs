//! What a registry tells of one version or of the tags of a package, where versions are held: the packument has all of it, and
//! its dates.

use super::super::excerpt::{Excerpt, Found};
use super::super::json::whole::{JsonObject, json_text};
use super::dated::{dist, tarball};

/// The document of a version or tag of the package `name`.
pub(super) fn of_version(name: &str, version: &str) -> Excerpt {
    Excerpt {
        whole: name.to_owned(),
        wanted: version.to_owned(),
        find: version_in,
    }
}

/// The tags of the package `name`.
pub(super) fn of_tags(name: &str) -> Excerpt {
    Excerpt {
        whole: name.to_owned(),
        wanted: String::new(),
        find: tags_in,
    }
}

fn read(packument: &[u8]) -> JsonObject<'_> {
    let read = json_text(packument).ok().and_then(|text| JsonObject::read(text).ok());
    read.unwrap_or_default()
}

fn version_in(packument: &[u8], wanted: &str) -> Found {
    let packument = read(packument);
    let versions = packument.object("versions").unwrap_or_default();
    let tagged = || packument.object("dist-tags")?.text(wanted);
    let described = versions.get(wanted).or_else(|| versions.get(&tagged()?));
    if let Some(described) = described {
        return Found::Document(described.get().to_owned());
    }
    let restricted = packument.object("policyRestrictions");
    let restricted = restricted.and_then(|restricted| restricted.object("versions")?.get(wanted));
    match restricted.and_then(|version| tarball(&dist(version)?)) {
        Some(file) => Found::Restricted { file },
        None => Found::Nothing,
    }
}

fn tags_in(packument: &[u8], _wanted: &str) -> Found {
    let tags = read(packument).get("dist-tags");
    tags.map_or(Found::Nothing, |tags| Found::Document(tags.get().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKUMENT: &str = r#"{"dist-tags": {"latest": "1.0.0", "gone": "9.9.9"},
        "versions": {"1.0.0": {"version":"1.0.0", "x": 1.50}, "latest-ish": {}},
        "policyRestrictions": {"versions": {"2.0.0": {"dist": {"tarball": "https://r/p/-/p-2.0.0.tgz?x"}}, "3.0.0": {}}}}"#;

    #[test]
    fn versions_and_tags_are_found_as_they_are_written() {
        let find = |wanted: &str| version_in(PACKUMENT.as_bytes(), wanted);
        let first = Found::Document(r#"{"version":"1.0.0", "x": 1.50}"#.to_owned());
        assert_eq!((find("1.0.0"), find("latest")), (first.clone(), first));
        let file = "p-2.0.0.tgz".to_owned();
        assert_eq!(find("2.0.0"), Found::Restricted { file });
        for nothing in ["3.0.0", "gone", "9.9.9", "", "1.0"] {
            assert_eq!(find(nothing), Found::Nothing, "{nothing}");
        }
        let tags = tags_in(PACKUMENT.as_bytes(), "");
        assert_eq!(
            tags,
            Found::Document(r#"{"latest": "1.0.0", "gone": "9.9.9"}"#.to_owned())
        );
    }

    #[test]
    fn what_is_no_packument_has_nothing() {
        for text in [
            "",
            "[]",
            "{}",
            "{\"versions\":1,\"dist-tags\":[]",
            "\u{feff}{\"versions\":{}}",
        ] {
            assert_eq!(version_in(text.as_bytes(), "latest"), Found::Nothing, "{text}");
        }
        assert_eq!(tags_in(b"\xff", ""), Found::Nothing);
    }
}
