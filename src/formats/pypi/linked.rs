//! The HTML form of an index (PEP 503): its files, the digests in the fragments of their links, and the JSON that says as much.

use std::borrow::Cow;

use serde_json::{Map, Value as Json, json};

use super::super::html::{Change, Tokenizer, Value};
use super::super::links::decode_once;
use super::super::release::{Release, sha256};
use super::super::{IndexError, ViewContext};
use super::{extension, project_of, unescape, version_of};
use crate::cache::Expected;

/// Bytes that are read in one go: what the tokenizer writes of them is dropped.
const PIECE: usize = 64 << 10;

/// Elements that say something: links, what they are relative to, and what the page says of itself.
const ELEMENTS: [&str; 3] = ["a", "base", "meta"];
/// What stands before the names of what a page says of itself (PEP 629, 708, 792).
const META: &str = "pypi:";
/// Algorithms of digests that links name, by the names that Python knows them by.
const ALGORITHMS: [&str; 12] = [
    "sha256", "sha512", "sha384", "sha224", "sha1", "md5", "blake2b", "blake2s", "sha3_224", "sha3_256", "sha3_384",
    "sha3_512",
];

/// All files that the document links to. Empty where it cannot be read to its end: clients do not get it, either.
pub(super) fn releases(document: &[u8]) -> Vec<Release> {
    let (mut tokenizer, mut unused, mut found) = (Tokenizer::new(), Vec::new(), Vec::new());
    for piece in document.chunks(PIECE) {
        unused.clear();
        let read = tokenizer.write(piece, &mut unused, &mut |element: &[u8], name: &[u8], value: &[u8]| {
            if element.eq_ignore_ascii_case(b"a") && name.eq_ignore_ascii_case(b"href") {
                found.extend(release(&unescape(&String::from_utf8_lossy(value))));
            }
            Value::Kept
        });
        if read.is_err() {
            return Vec::new();
        }
    }
    found
}

/// What a link says of the file that it leads to. A folder or the document itself is none.
fn release(href: &str) -> Option<Release> {
    let (url, fragment) = split(href);
    let file = file_name(url)?;
    (!file.is_empty()).then(|| Release {
        file,
        published: None,
        digest: digest(fragment),
    })
}

/// A link without its fragment, and that.
fn split(href: &str) -> (&str, &str) {
    href.trim().split_once('#').unwrap_or((href.trim(), ""))
}

/// What the file is called that a link without a fragment leads to.
fn file_name(url: &str) -> Option<String> {
    Some(decode_once(url.split('?').next()?.rsplit('/').next()?))
}

/// An element of a page: its name, and what its attributes say, references resolved; names are in lower case.
struct Element {
    name: &'static str,
    attributes: Vec<(String, String)>,
}

impl Element {
    fn get(&self, name: &str) -> Option<&str> {
        let found = self.attributes.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// What a page says.
#[derive(Default)]
pub(super) struct Page(Vec<Element>);

impl Change for Page {
    fn begin(&mut self, element: &[u8]) {
        let known = ELEMENTS
            .iter()
            .find(|known| known.as_bytes().eq_ignore_ascii_case(element));
        self.0.extend(known.map(|name| Element {
            name,
            attributes: Vec::new(),
        }));
    }

    fn attribute(&mut self, element: &[u8], name: &[u8], value: &[u8]) -> Value {
        if let Some(last) = self.0.last_mut()
            && last.name.as_bytes().eq_ignore_ascii_case(element)
        {
            let text = |bytes| String::from_utf8_lossy(bytes);
            let name = text(name).to_ascii_lowercase();
            last.attributes.push((name, unescape(&text(value))));
        }
        Value::Kept
    }
}

/// A distribution file that a page links to.
pub(super) struct Linked<'p> {
    /// What the index calls it.
    pub name: String,
    /// What is written, without its fragment.
    pub url: &'p str,
    fragment: &'p str,
    link: &'p Element,
}

impl Page {
    /// Reads a page.
    ///
    /// # Errors
    /// A tag in it is too long.
    pub(super) fn read(document: &[u8]) -> Result<Self, IndexError> {
        let (mut tokenizer, mut unused, mut page) = (Tokenizer::new(), Vec::new(), Page::default());
        for piece in document.chunks(PIECE) {
            unused.clear();
            tokenizer.write(piece, &mut unused, &mut page)?;
        }
        Ok(page)
    }

    /// What its links are relative to, where that is not the page itself.
    pub(super) fn base(&self) -> Option<&str> {
        let mut bases = self.0.iter().filter(|element| element.name == "base");
        bases.find_map(|base| base.get("href"))
    }

    /// The distribution files that it links to.
    pub(super) fn files(&self) -> impl Iterator<Item = Linked<'_>> {
        let links = self.0.iter().filter(|element| element.name == "a");
        links.filter_map(|link| {
            let (url, fragment) = split(link.get("href")?);
            let name = file_name(url).filter(|name| extension(name).is_some())?;
            Some(Linked {
                name,
                url,
                fragment,
                link,
            })
        })
    }

    /// What the page says of itself under a name.
    fn says(&self, name: &str) -> impl Iterator<Item = &str> {
        let named = move |element: &&Element| {
            let said = element.get("name").and_then(|said| said.strip_prefix(META));
            element.name == "meta" && said == Some(name)
        };
        self.0.iter().filter(named).filter_map(|meta| meta.get("content"))
    }

    /// The JSON form (PEP 691, with `versions` of PEP 700). Pages tell no sizes, without which it is none of version 1.1.
    pub(super) fn json(&self, context: &ViewContext<'_>) -> String {
        let base = self.base().and_then(|base| context.document_url.join(base).ok());
        let base = base.filter(|base| matches!(base.scheme(), "http" | "https"));
        let (mut files, mut versions) = (Vec::new(), Vec::new());
        for file in self.files() {
            let url = match &base {
                Some(base) => base
                    .join(file.url)
                    .map_or(Cow::Borrowed(file.url), |url| url.to_string().into()),
                None => Cow::Borrowed(file.url),
            };
            files.push(file.json(&url));
            versions.extend(version_of(&file.name).map(str::to_owned));
        }
        let mut unique = std::collections::HashSet::new();
        versions.retain(|version| unique.insert(version.clone()));
        let said = self.says("repository-version").next();
        // Of a later one nobody knows what it means: clients refuse it.
        let later = said.filter(|version| version.split('.').next() != Some("1"));
        let mut meta = json!({"api-version": later.unwrap_or("1.0")});
        let mut page = json!({"name": project_of(context.path), "files": files, "versions": versions});
        let all = |name: &str| self.says(name).collect::<Vec<_>>();
        if let tracks @ [_, ..] = &*all("tracks") {
            meta["tracks"] = json!(tracks);
        }
        if let locations @ [_, ..] = &*all("alternate-locations") {
            page["alternate-locations"] = json!(locations);
        }
        if let Some(status) = self.says("project-status").next() {
            page["project-status"] = json!({"status": status});
            if let Some(reason) = self.says("project-status-reason").next() {
                page["project-status"]["reason"] = json!(reason);
            }
        }
        page["meta"] = meta;
        page.to_string()
    }
}

impl Linked<'_> {
    fn json(&self, url: &str) -> Json {
        let mut file = Map::new();
        let mut say = |name: &str, value: Option<Json>| {
            if let Some(value) = value {
                file.insert(name.to_owned(), value);
            }
        };
        let text = |name: &str| self.link.get(name).filter(|text| !text.is_empty());
        say("filename", Some(json!(self.name)));
        say("url", Some(json!(url)));
        say("hashes", Some(Json::Object(hashes(self.fragment.split('&')))));
        say("requires-python", text("data-requires-python").map(|text| json!(text)));
        let yanked = self.link.get("data-yanked");
        say(
            "yanked",
            yanked.map(|reason| if reason.is_empty() { json!(true) } else { json!(reason) }),
        );
        for name in ["core-metadata", "dist-info-metadata"] {
            say(name, text(&format!("data-{name}")).and_then(metadata));
        }
        let signed = text("data-gpg-sig").and_then(|text| text.parse().ok());
        say("gpg-sig", signed.map(Json::Bool));
        say("provenance", text("data-provenance").map(|text| json!(text)));
        Json::Object(file)
    }
}

/// `algorithm=hash`, each in lower case.
fn hashes<'t>(parts: impl Iterator<Item = &'t str>) -> Map<String, Json> {
    let named = parts.filter_map(|part| part.split_once('='));
    let known = named.filter(|(algorithm, hash)| {
        ALGORITHMS.contains(algorithm) && !hash.is_empty() && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
    });
    known
        .map(|(algorithm, hash)| (algorithm.to_owned(), json!(hash.to_ascii_lowercase())))
        .collect()
}

/// What a link says of the core metadata beside its file: that it is there, or by which digest it is known (PEP 658, 714).
fn metadata(text: &str) -> Option<Json> {
    let hashes = hashes([text].into_iter());
    match hashes.is_empty() {
        true => text.parse().ok().map(Json::Bool),
        false => Some(Json::Object(hashes)),
    }
}

/// The digest in a fragment, which may say more.
fn digest(fragment: &str) -> Option<Expected> {
    let named = |algorithm: &str| {
        let parts = fragment.split('&').filter_map(|part| part.split_once('='));
        let mut hashes = parts.filter(|(name, _)| *name == algorithm).map(|(_, hash)| hash);
        hashes.next()
    };
    let sha512 = || Expected::new("sha512", &named("sha512")?.to_ascii_lowercase());
    named("sha256").and_then(sha256).or_else(sha512)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::dated;
    use super::*;
    use crate::formats::json::whole::JsonObject;
    use crate::formats::links::Style;
    use crate::formats::{path, testing};

    #[test]
    fn links_name_files_and_their_digests() {
        let hex = "ab".repeat(32);
        let long = "cd".repeat(64);
        let page = format!(
            "<!DOCTYPE html><html><body><h1>Links</h1>\n<a data-yanked=\"\" href=\"../a/six-1.0.tar.gz#sha256={}\">six</a>\n\
             <A HREF='https://f/six%2B1.whl?x=/y.whl#egg=six&amp;sha256={hex}'>six</A><a href=six-3.zip#sha512={long}>3</a>\
             <a href=\"six-4.zip#md5={hex}\">4</a><a href=\"old/\">old</a><a href=\"#top\">top</a><a name=\"x\">x</a>\
             <link href=\"style.css\"><!-- <a href=\"no.zip\"></a> --></body></html>",
            hex.to_uppercase()
        );
        let found: Vec<(String, Option<String>)> = releases(page.as_bytes())
            .into_iter()
            .map(|release| (release.file, release.digest.map(|digest| digest.to_string())))
            .collect();
        let sha256 = Some(format!("sha256:{hex}"));
        assert_eq!(
            found,
            [
                ("six-1.0.tar.gz".to_owned(), sha256.clone()),
                ("six+1.whl".to_owned(), sha256),
                ("six-3.zip".to_owned(), Some(format!("sha512:{long}"))),
                ("six-4.zip".to_owned(), None),
            ]
        );
    }

    fn json_of(page: &str) -> Json {
        let remote = Arc::new(testing::remote("pypi", "https://r/"));
        let path = path::parse(b"simple/Demo.App/", None).unwrap();
        let context = ViewContext {
            remote: &remote,
            path: &path,
            style: Style::Relative,
            document_url: "https://r/simple/demo-app/".parse().unwrap(),
            content_type: "text/html",
            remote_url: "",
        };
        serde_json::from_str(&Page::read(page.as_bytes()).unwrap().json(&context)).unwrap()
    }

    #[test]
    fn a_page_says_in_json_what_it_said() {
        let page = json_of(
            "<html><head><meta name=\"pypi:repository-version\" content=\"1.3\"><META NAME='pypi:tracks' CONTENT='https://a/'>\
             <meta name=\"pypi:project-status\" content=\"archived\"><meta name=\"pypi:alternate-locations\" content=\"https://b/\">\
             </head><body><a href=\"?C=N;O=D\">Name</a><a href=\"../\">up</a><a href=\"d-1.whl.asc\">asc</a><a>none</a>\
             <A HREF=\"../f/d-1.0-py3-none-any.whl#SHA256=x&amp;sha256=ABCD&egg=d\" data-requires-python=\"&gt;=3.7\" data-yanked \
             data-core-metadata=\"sha256=EF\" data-dist-info-metadata=true data-gpg-sig=\"false\" data-provenance=\"https://p/\">x</A>\
             <a href='https://o/d-1.0.tar.gz?x=1#md5=01' data-yanked='it &quot;breaks&quot;'>y</a><a href=d-2.zip>z</a>",
        );
        let expected = json!({
            "meta": {"api-version": "1.0", "tracks": ["https://a/"]}, "name": "demo-app", "versions": ["1.0", "2"],
            "project-status": {"status": "archived"}, "alternate-locations": ["https://b/"],
            "files": [
                {
                    "filename": "d-1.0-py3-none-any.whl", "url": "../f/d-1.0-py3-none-any.whl", "hashes": {"sha256": "abcd"},
                    "requires-python": ">=3.7", "yanked": true, "core-metadata": {"sha256": "ef"}, "dist-info-metadata": true,
                    "gpg-sig": false, "provenance": "https://p/",
                },
                {
                    "filename": "d-1.0.tar.gz", "url": "https://o/d-1.0.tar.gz?x=1", "hashes": {"md5": "01"},
                    "yanked": "it \"breaks\"",
                },
                {"filename": "d-2.zip", "url": "d-2.zip", "hashes": {}},
            ],
        });
        assert_eq!(page, expected);
    }

    #[test]
    fn links_are_relative_to_what_the_page_says_and_a_later_version_stays_one() {
        let page = json_of(
            "<meta name='pypi:repository-version' content='2.0'><base href='/f/'><base href='/g/'><a href='d-1.zip#x'>d</a>",
        );
        assert_eq!(page["files"][0]["url"], "https://r/f/d-1.zip");
        assert_eq!(page["meta"]["api-version"], "2.0");
    }

    proptest! {
        #[test]
        fn html_made_of_json_says_that_json(
            files in prop::collection::vec(
                ("[a-z]{1,8}-[0-9]\\.[0-9]\\.(zip|tar\\.gz)", "[0-9a-f]{8}", prop::option::of("[ -~]{1,20}"), any::<bool>()), 0..20
            )
        ) {
            let files: Vec<Json> = files.into_iter().map(|(name, hash, text, flag)| {
                let mut file = json!({"filename": name, "url": format!("../f/{name}"), "hashes": {"sha256": hash}});
                if let Some(text) = text {
                    file["requires-python"] = json!(text);
                    file["yanked"] = if flag { json!(true) } else { json!(text) };
                }
                if flag {
                    file["core-metadata"] = json!({"sha256": hash});
                    file["dist-info-metadata"] = json!({"sha256": hash});
                }
                file
            }).collect();
            let index = json!({"meta": {"api-version": "1.0"}, "name": "demo-app", "files": files}).to_string();
            let page = json_of(&dated::html(&JsonObject::read(&index).unwrap()));
            prop_assert_eq!(&page["files"], &json!(files));
        }

        #[test]
        fn each_file_keeps_its_own_digest(digests in prop::collection::vec(any::<[u8; 32]>(), 0..40), padding in 0_usize..70_000) {
            let mut page = format!("<html><body><p>{}</p>", "x".repeat(padding));
            for (at, digest) in digests.iter().enumerate() {
                page.push_str(&format!("<a href=\"/f/a-{at}.zip#sha256={}\">a-{at}.zip</a><br>\n", hex::encode(digest)));
            }
            let found = releases(page.as_bytes());
            prop_assert_eq!(found.len(), digests.len());
            for (at, (found, digest)) in found.iter().zip(&digests).enumerate() {
                prop_assert_eq!(&found.file, &format!("a-{at}.zip"));
                prop_assert_eq!(&found.digest, &Some(Expected::Sha256(*digest)));
            }
        }

        #[test]
        fn nothing_panics(page in "[<>a-z =\"'#&;/-]{0,200}") {
            let _ = releases(page.as_bytes());
            let _ = json_of(&page);
        }
    }
}
