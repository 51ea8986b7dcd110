//! The files that a simple index names, in either of its forms, as this proxy rewrote it.

use serde_json::value::RawValue;
use url::Url;

use super::super::super::html::{Tokenizer, Value};
use super::super::super::json::whole::{JsonObject, items, json_text};
use super::super::super::links::decode_once;
use super::super::unescape;

/// A file that an index names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct File {
    pub name: String,
    /// Below the remote, with its query.
    pub path: String,
    /// PEP 658.
    pub has_metadata: bool,
    /// PEP 592.
    pub is_yanked: bool,
}

/// Reads the index under `index`, a path below the remote.
///
/// # Errors
/// The document is no index.
pub(super) fn read(index: &str, page: &[u8]) -> Result<Vec<File>, String> {
    let base = Url::parse("http://here.invalid/").and_then(|root| root.join(index));
    let base = base.map_err(|error| error.to_string())?;
    match page.iter().find(|byte| byte.is_ascii_graphic()) {
        Some(b'<') => linked(&base, page),
        _ => listed(&base, page),
    }
}

/// Where a link leads, if that is below the remote.
fn below(base: &Url, link: &str) -> Option<String> {
    let url = base.join(link).ok().filter(|url| url.origin() == base.origin())?;
    let path = url[url::Position::BeforePath..url::Position::AfterQuery].trim_start_matches('/');
    (!path.is_empty()).then(|| path.to_owned())
}

fn listed(base: &Url, page: &[u8]) -> Result<Vec<File>, String> {
    let text = json_text(page).map_err(|error| error.to_string())?;
    let page =
        JsonObject::read(text).map_err(|error| format!("the index is neither HTML nor a JSON object: {error}"))?;
    let files = page.get("files").and_then(items).ok_or("the index has no `files`")?;
    Ok(files.into_iter().filter_map(|file| one(base, file)).collect())
}

fn one(base: &Url, file: &RawValue) -> Option<File> {
    let file = JsonObject::read(file.get()).ok()?;
    let says = |name: &str| {
        file.get(name)
            .is_some_and(|value| !matches!(value.get(), "false" | "null"))
    };
    Some(File {
        name: file.text("filename")?.into_owned(),
        path: below(base, &file.text("url")?)?,
        has_metadata: says("core-metadata") || says("dist-info-metadata"),
        is_yanked: says("yanked"),
    })
}

fn linked(base: &Url, page: &[u8]) -> Result<Vec<File>, String> {
    let (mut tokenizer, mut unused, mut files) = (Tokenizer::new(), Vec::new(), Vec::new());
    // Up to its end there is at most one tag in a piece.
    for piece in page.split_inclusive(|byte| *byte == b'>') {
        unused.clear();
        let (mut href, mut has_metadata, mut is_yanked) = (None, false, false);
        let read = tokenizer.write(piece, &mut unused, &mut |element: &[u8], name: &[u8], value: &[u8]| {
            let is = |wanted: &str| name.eq_ignore_ascii_case(wanted.as_bytes());
            if element.eq_ignore_ascii_case(b"a") {
                if is("href") {
                    href = Some(unescape(&String::from_utf8_lossy(value)));
                }
                let says = value.trim_ascii() != b"false";
                has_metadata |= says && (is("data-core-metadata") || is("data-dist-info-metadata"));
                is_yanked |= is("data-yanked");
            }
            Value::Kept
        });
        read.map_err(|error| error.to_string())?;
        let Some(path) = href.and_then(|href| below(base, href.trim())) else {
            continue;
        };
        let file = path
            .split('?')
            .next()
            .and_then(|path| path.rsplit('/').next())
            .unwrap_or_default();
        if !file.is_empty() {
            files.push(File {
                name: decode_once(file),
                path: path.clone(),
                has_metadata,
                is_yanked,
            });
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_forms_say_the_same() {
        let html = "<!DOCTYPE html><html><body><h1>Links for a</h1>\n\
            <a data-yanked=\"broken\" href=\"../../packages/a-1.0.tar.gz#sha256=00\">a-1.0.tar.gz</a><br/>\n\
            <a href=\"../../-/host/f.test/a%2B1-2.0-py3-none-any.whl?x=1&amp;y=2#sha256=00\" data-requires-python=\"&gt;=3\" \
            data-core-metadata=\"sha256=00\">a</a><a href=\"b-1.zip\" data-core-metadata=\"false\">b</a>\
            <a href=\"https://elsewhere.test/c-1.zip\">c</a><a name=\"top\">x</a></body></html>";
        let json = r#"{"files": [
            {"filename": "a-1.0.tar.gz", "url": "../../packages/a-1.0.tar.gz#sha256=00", "yanked": "broken", "core-metadata": false},
            {"filename": "a+1-2.0-py3-none-any.whl", "url": "../../-/host/f.test/a%2B1-2.0-py3-none-any.whl?x=1&y=2", "yanked": false,
             "core-metadata": {"sha256": "00"}},
            {"filename": "b-1.zip", "url": "b-1.zip"},
            {"filename": "c-1.zip", "url": "https://elsewhere.test/c-1.zip"}, {"filename": 1}, 2]}"#;
        let files = read("simple/a/", html.as_bytes()).unwrap();
        assert_eq!(files, read("simple/a/", json.as_bytes()).unwrap());
        let shown: Vec<(&str, bool, bool)> = files
            .iter()
            .map(|file| (file.path.as_str(), file.has_metadata, file.is_yanked))
            .collect();
        assert_eq!(
            shown,
            [
                ("packages/a-1.0.tar.gz", false, true),
                ("-/host/f.test/a%2B1-2.0-py3-none-any.whl?x=1&y=2", true, false),
                ("simple/a/b-1.zip", false, false),
            ]
        );
        assert_eq!(files[1].name, "a+1-2.0-py3-none-any.whl");
        for bad in ["", "[]", "{}", "{\"files\": 1}"] {
            assert!(read("simple/a/", bad.as_bytes()).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(page in "[<>a-z =\"'#&;/{}:\\[\\],-]{0,200}") {
            let _ = read("simple/a/", page.as_bytes());
        }
    }
}
