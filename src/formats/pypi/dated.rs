//! What indexes say of distribution files. When they were published: `upload-time` of the JSON form (PEP 700), `upload_time_iso_8601` of the older API.
//! The HTML form has no dates, so that where files are held it is made from the JSON, and where dates are filled in JSON is made
//! of it. By which digest they are known: `hashes`, the fragments of links in HTML.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use serde_json::Value;
use serde_json::value::RawValue;

use super::super::hold::{Hold, Named};
use super::super::json::whole::{JsonObject, array, items, json_text, no_json, object, text};
use super::super::release::{FillDates, Release, Releases, Undated, date, seconds, sha256};
use super::super::{IndexError, ViewContext};
use super::{Syntax, is_legacy, is_made_json, link_map, linked, version_of};
use crate::cache::Expected;

/// For clients that want JSON.
pub(super) const JSON: Releases = Releases {
    read: releases,
    without: json_without,
    dated: Some(&FillDates { undated, fill: dated }),
};

/// For clients that want HTML, which is made of what upstream has as JSON. It has no place for dates, but who asks for it sees
/// its files all the same.
pub(super) const HTML: Releases = Releases {
    read: releases,
    without: html_without,
    dated: Some(&FillDates {
        undated,
        fill: dated_json,
    }),
};

/// The older API.
pub(super) const OLDER: Releases = Releases {
    read: releases,
    without: older_without,
    dated: Some(&FillDates {
        undated,
        fill: dated_json,
    }),
};

/// What is read of a file.
struct File<'a> {
    filename: Cow<'a, str>,
    uploaded: Option<Cow<'a, str>>,
    digest: Option<Expected>,
    /// Of its core metadata (PEP 658).
    metadata: Option<Expected>,
}

impl<'a> File<'a> {
    /// `None`: it is no file as the specification has it, and says nothing of any.
    fn read(file: &'a RawValue) -> Option<Self> {
        let file = JsonObject::read(file.get()).ok()?;
        let uploaded = file.text("upload-time").or_else(|| file.text("upload_time_iso_8601"));
        let metadata = file
            .object("core-metadata")
            .or_else(|| file.object("dist-info-metadata"));
        Some(File {
            filename: file.text("filename")?,
            uploaded,
            digest: file.object("hashes").and_then(|hashes| digest(&hashes)),
            metadata: metadata.and_then(|hashes| digest(&hashes)),
        })
    }

    fn published(&self) -> Option<u64> {
        seconds(self.uploaded.as_deref()?)
    }

    fn is_held(&self, hold: &mut Hold) -> bool {
        let version = version(&self.filename);
        let named = Named {
            package: None,
            version: version.as_deref(),
            file: &self.filename,
        };
        hold.is_held(named, self.published())
    }
}

/// One of the digests by their algorithms.
fn digest(hashes: &JsonObject<'_>) -> Option<Expected> {
    let sha256 = hashes.text("sha256").and_then(|hash| sha256(&hash));
    let sha512 = || Expected::new("sha512", &hashes.text("sha512")?.to_ascii_lowercase());
    sha256.or_else(sha512)
}

/// The version that the name of a distribution file tells, spelled as all spellings of it here.
pub(super) fn version(filename: &str) -> Option<String> {
    version_of(filename).map(plain)
}

/// A version as it stands in file names, in lower case.
fn plain(version: &str) -> String {
    version.to_ascii_lowercase().replace('-', "_")
}

fn releases(document: &[u8]) -> Vec<Release> {
    if first(document) == Some(b'<') {
        return linked::releases(document);
    }
    let Ok(index) = json_text(document).map(JsonObject::read) else {
        return Vec::new();
    };
    let index = index.unwrap_or_default();
    let mut files: Vec<&RawValue> = Vec::new();
    for name in ["files", "urls"] {
        files.extend(index.get(name).and_then(items).unwrap_or_default());
    }
    for (_, of_version) in &index.object("releases").unwrap_or_default().0 {
        files.extend(items(of_version).unwrap_or_default());
    }
    let read = files.into_iter().filter_map(File::read);
    let each = read.flat_map(|file| {
        let published = file.published();
        let metadata = file.metadata.map(|digest| Release {
            file: format!("{}.metadata", file.filename),
            published,
            digest: Some(digest),
        });
        let file = Release {
            published,
            digest: file.digest,
            file: file.filename.into_owned(),
        };
        [Some(file), metadata].into_iter().flatten()
    });
    each.collect()
}

/// What a document begins with.
fn first(document: &[u8]) -> Option<u8> {
    document.iter().copied().find(u8::is_ascii_graphic)
}

/// What clients read upstream's answer as.
fn syntax(context: &ViewContext<'_>) -> Syntax {
    Syntax::of(context.content_type, is_legacy(&context.path.decoded))
}

/// The files without a date, in HTML as in JSON.
fn undated(context: &ViewContext<'_>, document: &[u8]) -> Vec<Undated> {
    let mut links = link_map(context);
    if first(document) == Some(b'<') {
        return match linked::Page::read(document) {
            Ok(page) => {
                page.base().into_iter().for_each(|base| links.set_base(base));
                let files = page.files().map(|file| Undated {
                    path: links.path(file.url),
                    file: file.name,
                });
                files.collect()
            }
            Err(_) => Vec::new(),
        };
    }
    let index = json_text(document).ok().and_then(|text| JsonObject::read(text).ok());
    let files = index.unwrap_or_default().get("files").and_then(items);
    let undated = files.into_iter().flatten().filter_map(|file| {
        let read = File::read(file).filter(|read| read.published().is_none())?;
        let url = JsonObject::read(file.get()).ok()?.text("url")?;
        Some(Undated {
            path: links.path(&url),
            file: read.filename.into_owned(),
        })
    });
    undated.collect()
}

fn json_without(context: &ViewContext<'_>, document: &[u8], hold: &mut Hold) -> Result<Vec<u8>, IndexError> {
    match syntax(context) {
        Syntax::Json => Ok(without(document, hold)?.into_bytes()),
        Syntax::Html if is_made_json(context.remote, context.path) => {
            let page = linked::Page::read(document)?.json(context);
            Ok(without(page.as_bytes(), hold)?.into_bytes())
        }
        Syntax::Html => page_without(context, document, hold),
        Syntax::Nothing | Syntax::Refused => Ok(document.to_vec()),
    }
}

/// A page in HTML that nothing dates: where policies go by first sight, some of its files are held all the same. It stays as it
/// is if none is.
fn page_without(context: &ViewContext<'_>, document: &[u8], hold: &mut Hold) -> Result<Vec<u8>, IndexError> {
    if !context.remote.quarantine.goes_by_sight() {
        return Ok(document.to_vec());
    }
    let page = linked::Page::read(document)?.json(context);
    let left = without(page.as_bytes(), hold)?;
    if left == page {
        return Ok(document.to_vec());
    }
    let left = JsonObject::read(&left).map_err(|error| no_json(&error))?;
    Ok(html(&left).into_bytes())
}

fn older_without(context: &ViewContext<'_>, document: &[u8], hold: &mut Hold) -> Result<Vec<u8>, IndexError> {
    match syntax(context) {
        Syntax::Json => Ok(without(document, hold)?.into_bytes()),
        _ => Ok(document.to_vec()),
    }
}

fn without(document: &[u8], hold: &mut Hold) -> Result<String, IndexError> {
    let index = JsonObject::read(json_text(document)?).map_err(|error| no_json(&error))?;
    let mut versions = Versions::default();
    let mut written: Vec<(&str, Cow<'_, str>)> = Vec::new();
    for (name, value) in &index.0 {
        let value = match (&**name, items(value)) {
            ("files" | "urls", Some(files)) => free(files, hold, &mut versions).0.into(),
            ("releases", None) => match JsonObject::read(value.get()) {
                Ok(releases) => of_versions(&releases, hold).into(),
                Err(_) => Cow::Borrowed(value.get()),
            },
            _ => Cow::Borrowed(value.get()),
        };
        written.push((name, value));
    }
    if versions.held.is_empty() {
        return Ok(object(written.iter().map(|(name, value)| (*name, &**value))));
    }
    for (name, value) in &mut written {
        if *name == "versions"
            && let Some(all) = index.get("versions").and_then(items)
        {
            let free = all.into_iter().filter(|version| versions.has(version));
            *value = array(free.map(RawValue::get)).into();
        }
    }
    Ok(object(written.iter().map(|(name, value)| (*name, &**value))))
}

/// The versions whose files were looked at.
#[derive(Default)]
struct Versions {
    free: HashSet<String>,
    held: HashSet<String>,
}

impl Versions {
    /// Whether a version may be had: all of its files are held where it may not.
    fn has(&self, version: &RawValue) -> bool {
        let Some(version) = text(version).map(|version| plain(&version)) else {
            return true;
        };
        !self.held.contains(&version) || self.free.contains(&version)
    }
}

/// Those of `files` that are not held, written again, and how many they are.
fn free(files: Vec<&RawValue>, hold: &mut Hold, versions: &mut Versions) -> (String, usize) {
    let mut free = Vec::new();
    for file in files {
        let read = File::read(file);
        let is_held = read.as_ref().is_some_and(|file| file.is_held(hold));
        if let Some(version) = read.and_then(|file| version(&file.filename)) {
            let of = if is_held {
                &mut versions.held
            } else {
                &mut versions.free
            };
            of.insert(version);
        }
        if !is_held {
            free.push(file.get());
        }
    }
    let count = free.len();
    (array(free), count)
}

/// The older API's files by version; a version goes with the last of its files.
fn of_versions(releases: &JsonObject<'_>, hold: &mut Hold) -> String {
    let mut written = Vec::new();
    for (version, files) in &releases.0 {
        let Some(all) = items(files) else {
            written.push((&**version, files.get().to_owned()));
            continue;
        };
        let before = all.len();
        let (files, count) = free(all, hold, &mut Versions::default());
        if count > 0 || before == 0 {
            written.push((&**version, files));
        }
    }
    object(written.iter().map(|(version, files)| (*version, &**files)))
}

/// An index whose files have these dates where upstream does not date them. HTML becomes JSON for that.
fn dated(context: &ViewContext<'_>, document: &[u8], dates: &HashMap<String, u64>) -> Result<Vec<u8>, IndexError> {
    if !matches!(syntax(context), Syntax::Html) || !is_made_json(context.remote, context.path) {
        return dated_json(context, document, dates);
    }
    match first(document) {
        // What is held was left out of it.
        Some(b'{') => with_dates(document, dates),
        _ => with_dates(linked::Page::read(document)?.json(context).as_bytes(), dates),
    }
}

/// Such an index, if upstream has it as JSON, and it is that still.
fn dated_json(context: &ViewContext<'_>, document: &[u8], dates: &HashMap<String, u64>) -> Result<Vec<u8>, IndexError> {
    match (syntax(context), first(document)) {
        (Syntax::Json, Some(b'{')) => with_dates(document, dates),
        _ => Ok(document.to_vec()),
    }
}

fn with_dates(document: &[u8], dates: &HashMap<String, u64>) -> Result<Vec<u8>, IndexError> {
    let index = JsonObject::read(json_text(document)?).map_err(|error| no_json(&error))?;
    let written: Vec<(&str, Cow<'_, str>)> = index
        .0
        .iter()
        .map(|(name, value)| match (&**name, items(value)) {
            ("files", Some(files)) => {
                let files: Vec<Cow<'_, str>> = files.into_iter().map(|file| with_date(file, dates)).collect();
                (&**name, array(files.iter().map(|file| &**file)).into())
            }
            _ => (&**name, Cow::Borrowed(value.get())),
        })
        .collect();
    Ok(object(written.iter().map(|(name, value)| (*name, &**value))).into_bytes())
}

/// A file as the index has it, with `upload-time`.
fn with_date<'a>(file: &'a RawValue, dates: &HashMap<String, u64>) -> Cow<'a, str> {
    let read = File::read(file).filter(|read| read.published().is_none());
    let known = read.and_then(|read| dates.get(&*read.filename));
    let (Some(known), Ok(members)) = (known, JsonObject::read(file.get())) else {
        return Cow::Borrowed(file.get());
    };
    let date = Value::from(date(*known)).to_string();
    let others = members.0.iter().filter(|(name, _)| name != "upload-time");
    let others = others.map(|(name, value)| (&**name, value.get()));
    object(others.chain([("upload-time", date.as_str())])).into()
}

fn html_without(context: &ViewContext<'_>, document: &[u8], hold: &mut Hold) -> Result<Vec<u8>, IndexError> {
    match syntax(context) {
        Syntax::Json => {}
        Syntax::Html => return page_without(context, document, hold),
        Syntax::Nothing | Syntax::Refused => return Ok(document.to_vec()),
    }
    let json = without(document, hold)?;
    let index = JsonObject::read(&json).map_err(|error| no_json(&error))?;
    Ok(html(&index).into_bytes())
}

/// The HTML form of an index (PEP 503, 592, 629, 658, 708, 714). What is no file or project is passed over.
pub(super) fn html(index: &JsonObject<'_>) -> String {
    let meta = index.object("meta").unwrap_or_default();
    let title = match index.text("name") {
        Some(name) => format!("Links for {}", escaped(&name)),
        None => "Simple index".to_owned(),
    };
    let mut page = "<!DOCTYPE html>\n<html>\n  <head>\n    <meta charset=\"utf-8\">\n".to_owned();
    let mut say = |name: &str, content: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(page, "    <meta name=\"pypi:{name}\" content=\"{}\">", escaped(content));
    };
    say("repository-version", &meta.text("api-version").unwrap_or("1.0".into()));
    for (members, name) in [(&meta, "tracks"), (index, "alternate-locations")] {
        for url in members.get(name).and_then(items).unwrap_or_default() {
            if let Some(url) = text(url) {
                say(name, &url);
            }
        }
    }
    let _ = write!(
        page,
        "    <title>{title}</title>\n  </head>\n  <body>\n    <h1>{title}</h1>\n"
    );
    for project in index.get("projects").and_then(items).unwrap_or_default() {
        let project = JsonObject::read(project.get()).unwrap_or_default();
        if let Some(name) = project.text("name").map(|name| escaped(&name)) {
            let _ = writeln!(page, "    <a href=\"{name}/\">{name}</a><br>");
        }
    }
    for file in index.get("files").and_then(items).unwrap_or_default() {
        let file = JsonObject::read(file.get()).unwrap_or_default();
        if let (Some(name), Some(url)) = (file.text("filename"), file.text("url")) {
            let attributes = attributes(&file);
            let url = escaped(&format!("{url}{}", fragment(&file)));
            let _ = writeln!(page, "    <a href=\"{url}\"{attributes}>{}</a><br>", escaped(&name));
        }
    }
    page.push_str("  </body>\n</html>\n");
    page
}

/// The digest of a file as its link names it.
fn fragment(file: &JsonObject<'_>) -> String {
    let hashes = file.object("hashes").unwrap_or_default();
    let preferred = hashes.text("sha256").map(|hash| ("sha256".into(), hash));
    let first = || {
        hashes
            .0
            .first()
            .and_then(|(name, hash)| Some((name.clone(), text(hash)?)))
    };
    let hash = preferred.or_else(first);
    hash.map_or(String::new(), |(name, hash): (Cow<'_, str>, _)| {
        format!("#{name}={hash}")
    })
}

/// What the link of a file says beside.
fn attributes(file: &JsonObject<'_>) -> String {
    let mut out = String::new();
    let mut say = |name: &str, value: &str| {
        let _ = write!(out, " {name}=\"{}\"", escaped(value));
    };
    if let Some(requires) = file.text("requires-python") {
        say("data-requires-python", &requires);
    }
    match file.get("yanked") {
        Some(yanked) if yanked.get() == "true" => say("data-yanked", ""),
        Some(yanked) => _ = text(yanked).map(|reason| say("data-yanked", &reason)),
        None => {}
    }
    let metadata = file.get("core-metadata").or_else(|| file.get("dist-info-metadata"));
    let metadata = metadata.and_then(|metadata| match JsonObject::read(metadata.get()) {
        Ok(hashes) => Some(format!("sha256={}", hashes.text("sha256")?)),
        Err(_) => (metadata.get() == "true").then(|| "true".to_owned()),
    });
    if let Some(metadata) = metadata {
        say("data-core-metadata", &metadata);
        say("data-dist-info-metadata", &metadata);
    }
    if let Some(signed) = file
        .get("gpg-sig")
        .filter(|signed| ["true", "false"].contains(&signed.get()))
    {
        say("data-gpg-sig", signed.get());
    }
    if let Some(provenance) = file.text("provenance") {
        say("data-provenance", &provenance);
    }
    out
}

/// Text as HTML has it, in and outside of attributes.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            _ => out.push(character),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::testing;

    const DAY: u64 = 24 * 3600;

    fn index(files: &[(&str, u64)]) -> String {
        let files: Vec<String> = files
            .iter()
            .map(|(name, day)| {
                let time: time::OffsetDateTime = (std::time::UNIX_EPOCH + std::time::Duration::from_secs(day * DAY)).into();
                let time = time.format(&time::format_description::well_known::Rfc3339).unwrap();
                format!(
                    r#"{{"filename": "{name}", "url":"https://f/{name}", "hashes": {{"sha256": "ab"}}, "upload-time":"{time}",
                    "requires-python": ">=3.8", "yanked": "it <breaks>", "core-metadata": {{"sha256": "cd"}}}}"#
                )
            })
            .collect();
        format!(
            r#"{{"meta": {{"api-version": "1.1"}}, "name": "six", "versions": ["1.0","1.1", "2.0"], "files": [{}]}}"#,
            files.join(", ")
        )
    }

    const FILES: [(&str, u64); 4] = [
        ("six-1.0.tar.gz", 1),
        ("six-1.1.tar.gz", 98),
        ("six-1.1-py3-none-any.whl", 90),
        ("six-2.0-py3-none-any.whl", 99),
    ];

    #[test]
    fn held_files_and_the_versions_that_have_no_others_are_left_out() {
        let mut hold = testing::hold(3, 100 * DAY);
        let index = index(&FILES);
        let left: serde_json::Value = serde_json::from_str(&without(index.as_bytes(), &mut hold).unwrap()).unwrap();
        let names: Vec<&str> = left["files"]
            .as_array()
            .unwrap()
            .iter()
            .map(|f| f["filename"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["six-1.0.tar.gz", "six-1.1-py3-none-any.whl"]);
        assert_eq!(left["versions"], serde_json::json!(["1.0", "1.1"]));
        assert_eq!(left["name"], "six");
        assert_eq!(hold.changes(), Some(101 * DAY));
        let dated = releases(index.as_bytes());
        assert_eq!(dated.len(), 4);
        assert_eq!(
            (dated[1].file.as_str(), dated[1].published),
            ("six-1.1.tar.gz", Some(98 * DAY))
        );
    }

    #[test]
    fn what_has_no_date_or_is_no_file_stays() {
        let mut hold = testing::hold(3, 100 * DAY);
        let text = r#"{"files":[{"filename":"a-1.tar.gz"},{"filename":"b-1.tar.gz","upload-time":"soon"},7],"x":[1]}"#;
        assert_eq!(without(text.as_bytes(), &mut hold).unwrap(), text);
        assert_eq!(hold.changes(), None);
        assert!(without(b"<html>", &mut hold).is_err());
    }

    #[test]
    fn the_older_api_loses_versions_with_their_last_file() {
        let text = r#"{"releases":{"1.0":[{"filename":"a-1.0.tar.gz","upload_time_iso_8601":"1970-01-02T00:00:00Z"}],"2.0":[{"filename":"a-2.0.tar.gz","upload_time_iso_8601":"1970-04-10T00:00:00Z"}],"3.0":[]},"urls":[{"filename":"a-2.0.tar.gz","upload_time_iso_8601":"1970-04-10T00:00:00Z"}]}"#;
        let mut hold = testing::hold(3, 100 * DAY);
        let left: serde_json::Value = serde_json::from_str(&without(text.as_bytes(), &mut hold).unwrap()).unwrap();
        let versions: Vec<&String> = left["releases"].as_object().unwrap().keys().collect();
        assert_eq!(versions, ["1.0", "3.0"]);
        assert_eq!(left["urls"], serde_json::json!([]));
    }

    #[test]
    fn files_without_a_date_get_that_of_first_sight() {
        let index = r#"{"name":"a","files":[{"filename":"a-1.tar.gz","url":"u","upload-time":null},{"filename":"a-2.tar.gz","upload-time":"2020-01-01T00:00:00Z"},{"filename":"a-3.tar.gz"},7]}"#;
        let first_seen = [("a-1.tar.gz".to_owned(), DAY), ("a-2.tar.gz".to_owned(), 2 * DAY)].into();
        let remote = testing::remote("pypi", "https://r/");
        let context = ViewContext {
            remote: &remote,
            path: &crate::formats::ArtifactPath::default(),
            style: crate::formats::links::Style::Relative,
            document_url: "https://r/simple/a/".parse().unwrap(),
            content_type: "application/json",
            remote_url: "",
        };
        let dated = dated(&context, index.as_bytes(), &first_seen).unwrap();
        assert_eq!(
            String::from_utf8(dated).unwrap(),
            r#"{"name":"a","files":[{"filename":"a-1.tar.gz","url":"u","upload-time":"1970-01-02T00:00:00Z"},{"filename":"a-2.tar.gz","upload-time":"2020-01-01T00:00:00Z"},{"filename":"a-3.tar.gz"},7]}"#
        );
    }

    #[test]
    fn each_file_and_its_metadata_have_digests() {
        let (short, long) = ("ab".repeat(32), "CD".repeat(64));
        let file = |name: &str, hashes: &str, rest: &str| format!(r#"{{"filename":"{name}","hashes":{hashes}{rest}}}"#);
        let both = format!(r#"{{"md5":"x","sha512":"{long}","sha256":"{short}"}}"#);
        let metadata = format!(r#","core-metadata":true,"dist-info-metadata":{{"sha256":"{short}"}}"#);
        let files = [
            file("a-1.whl", &both, &metadata),
            file(
                "b-1.zip",
                &format!(r#"{{"sha512":"{long}"}}"#),
                r#","core-metadata":false"#,
            ),
            file("c-1.zip", r#"{"md5":"x"}"#, ""),
            file("d-1.zip", "null", ""),
        ];
        let index = format!(r#"{{"files":[{}]}}"#, files.join(","));
        let found: Vec<(String, Option<String>)> = releases(index.as_bytes())
            .into_iter()
            .map(|release| (release.file, release.digest.map(|digest| digest.to_string())))
            .collect();
        let (sha256, sha512) = (
            Some(format!("sha256:{short}")),
            Some(format!("sha512:{}", long.to_lowercase())),
        );
        let expected = [
            ("a-1.whl", sha256.clone()),
            ("a-1.whl.metadata", sha256),
            ("b-1.zip", sha512),
            ("c-1.zip", None),
            ("d-1.zip", None),
        ];
        assert_eq!(found, expected.map(|(file, digest)| (file.to_owned(), digest)));
        let page = format!("\u{feff}\n<!DOCTYPE html><a href='e-1.zip#sha256={short}'>e</a>");
        assert_eq!(releases(page.as_bytes())[0].file, "e-1.zip");
    }

    #[test]
    fn both_names_of_a_key_are_no_error() {
        let file = r#"{"filename":"a-1.tar.gz","url":"a","hashes":null,"core-metadata":true,"dist-info-metadata":{"sha256":"x"},"upload-time":"1970-04-10T00:00:00Z","upload_time_iso_8601":"1970-01-01T00:00:00Z"}"#;
        let index = format!(r#"{{"files":[7,{file}],"alternate-locations":["https://other/simple/a/"]}}"#);
        assert_eq!(
            without(index.as_bytes(), &mut testing::hold(3, 100 * DAY)).unwrap(),
            index.replace(&format!(",{file}"), "")
        );
        let page = html(&JsonObject::read(&index).unwrap());
        assert!(page.contains("<a href=\"a\" data-core-metadata=\"true\""), "{page}");
        assert!(page.contains("<meta name=\"pypi:alternate-locations\" content=\"https://other/simple/a/\">"));
    }

    #[test]
    fn the_html_form_says_what_the_json_said() {
        let json = without(index(&FILES[..1]).as_bytes(), &mut testing::hold(3, 100 * DAY)).unwrap();
        let page = html(&JsonObject::read(&json).unwrap());
        assert!(page.contains(
            "<a href=\"https://f/six-1.0.tar.gz#sha256=ab\" data-requires-python=\"&gt;=3.8\" data-yanked=\"it \
             &lt;breaks&gt;\" data-core-metadata=\"sha256=cd\" data-dist-info-metadata=\"sha256=cd\">six-1.0.tar.gz</a>"
        ));
        assert!(page.contains("<meta name=\"pypi:repository-version\" content=\"1.1\">"));
    }
}
