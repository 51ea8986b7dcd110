use std::sync::Arc;

use proptest::prelude::*;
use saphyr_parser::{Event, Parser};
use url::Url;

use super::*;
use crate::config::Remote;
use crate::formats::testing::{
    asked, context, cut, cuts, drive, linked, many, read, read_by, reader, remote, request, stays, tool,
};
use crate::formats::{Asset, Location};

const BASE: &str = "https://charts.example/stable/";

fn charts() -> Arc<Remote> {
    Arc::new(remote("helm", BASE))
}

fn asset(target: &str) -> Asset {
    read(&charts(), target, None).unwrap()
}

/// What is served under this path.
fn handle(path: ArtifactPath) -> Asset {
    crate::formats::asset(&charts(), path, None).unwrap()
}

fn url_of(asset: Asset) -> Url {
    match asset.location {
        Location::Upstream(url) => url,
        other => panic!("{other:?}"),
    }
}

fn rewrite_at(target: &str, body: &str) -> Result<(String, Vec<String>), IndexError> {
    let path = request(target).unwrap();
    let mut reader = reader(&charts(), &path, &format!("{BASE}{target}"), "text/yaml");
    let out = drive(&mut *reader, [body.as_bytes()])?;
    Ok((String::from_utf8(out).unwrap(), linked(reader.take_facts())))
}

fn rewrite(body: &str) -> String {
    rewrite_at("index.yaml", body).unwrap().0
}

#[test]
fn classes_and_paths() {
    for path in ["index.yaml", "deep/er/index.yaml"] {
        let index = asset(path);
        assert_eq!(index.nature, Some(Class::Mutable));
        assert_eq!(index.view.unwrap().style, Style::Relative);
    }
    for path in ["a-1.0.tgz", "index.yaml.asc", "index.json", ""] {
        let file = asset(path);
        assert_eq!(file.nature, None);
        assert!(file.view.is_none());
    }
    assert_eq!(governing_path("a-1.0.tgz.prov"), "a-1.0.tgz");
    assert_eq!(governing_path("a-1.0.tgz"), "a-1.0.tgz");
    let Location::Foreign(elsewhere) = asset("-/host/h.example/x/a-1.0.tgz.prov").location else {
        panic!()
    };
    assert_eq!(elsewhere.index.as_deref(), Some("index.yaml"));
    assert_eq!(elsewhere.named[0], "https://h.example/x/a-1.0.tgz");
    assert_eq!(asset("a-1.0.tgz").media_type, "application/gzip");
    assert_eq!(asset("index.yaml").media_type, "application/yaml");
}

const INDEX: &str = "apiVersion: v1
entries:
  a:
  - annotations:
      artifacthub.io/changes: |
        - kind: added
          urls:
          - https://charts.example/stable/kept.tgz
    created: \"2024-01-01T00:00:00.000000001Z\"
    digest: 00ff
    icon: https://charts.example/stable/a.png
    name: a
    sources:
    - https://charts.example/stable/source
    urls:
    - https://charts.example/stable/a-1.0.tgz
    - https://mirror.example/a-1.0.tgz
    version: 1.0
  - urls:
    - charts/a-0.9.tgz
    - 'oci://registry.example/a:0.9'
    - \"/elsewhere/a-0.9.tgz\"
    - http://charts.example/stable/a%2B1+2.tgz
    - https://charts.example:8443/x:y/a.tgz
generated: \"2024-01-01T00:00:00Z\"
";

#[test]
fn an_index() {
    let expected = INDEX
        .replace("- https://charts.example/stable/a-1.0.tgz", "- ./a-1.0.tgz")
        .replace("- https://mirror.example/", "- ./-/host/mirror.example/")
        .replace("- charts/", "- ./charts/")
        .replace("\"/elsewhere/", "\"./-/host/charts.example/elsewhere/")
        .replace(
            "http://charts.example/stable/a%2B1+2.tgz",
            "./-/host/charts.example/stable/a%2B1+2.tgz",
        )
        .replace(
            "https://charts.example:8443/x:y/a.tgz",
            "\"./-/host/charts.example:8443/x:y/a.tgz\"",
        );
    assert_eq!(rewrite(INDEX), expected);
    let (deep, foreign) = rewrite_at("deep/er/index.yaml", INDEX).unwrap();
    assert!(deep.contains("- ../../a-1.0.tgz\n") && deep.contains("- ../../deep/er/charts/a-0.9.tgz\n"));
    assert!(deep.contains("- 'oci://registry.example/a:0.9'\n"));
    assert_eq!(
        foreign,
        [
            "https://mirror.example/a-1.0.tgz",
            "https://charts.example/elsewhere/a-0.9.tgz",
            "http://charts.example/stable/a%2B1+2.tgz",
            "https://charts.example:8443/x:y/a.tgz",
        ]
    );
}

#[test]
fn an_index_in_json() {
    let body = r#" {"apiVersion":"v1","entries":{"a":[{"urls":["https:\/\/charts.example\/stable\/a.tgz","oci://x/y"],"x":{"urls":["kept"]}}]}}"#;
    let expected = body.replace(r"https:\/\/charts.example\/stable\/a.tgz", "./a.tgz");
    assert_eq!(rewrite(body), expected);
    assert!(rewrite_at("index.yaml", "{\"entries\":").is_err());
}

#[test]
fn byte_order_marks_and_what_is_no_index() {
    let expected = rewrite(INDEX);
    assert_eq!(rewrite(&format!("\u{feff}{INDEX}")), format!("\u{feff}{expected}"));
    assert_eq!(rewrite("\u{feff}{}"), "\u{feff}{}");
    for body in ["", "\n", " \n", "\u{feff}", "a"] {
        assert_eq!(rewrite(body), body);
    }
    assert!(rewrite_at("index.yaml", "\n<!DOCTYPE html>").is_err());
    let path = request("index.yaml").unwrap();
    let reader = || reader(&charts(), &path, BASE, "");
    assert!(drive(&mut *reader(), [b"\xff".as_slice(), b"\xfea\0"]).is_err());
    let blank = vec![b' '; MAX_HEAD + 1];
    assert_eq!(drive(&mut *reader(), [blank.as_slice()]).unwrap(), blank);
}

#[test]
fn queries_go_into_the_path_and_come_back() {
    let body = "entries:\n  a:\n  - urls: ['https://cdn.example/a.tgz?sig=a%2Fb+c&x=~#f', 'a.tgz?v=1']\n";
    let (out, foreign) = rewrite_at("deep/index.yaml", body).unwrap();
    assert!(!out.contains('?'));
    let links: Vec<&str> = out
        .split(['[', ',', ']'])
        .skip(1)
        .map(|link| link.trim().trim_matches('\''))
        .collect();
    assert!(
        links[0].starts_with("../-/query/") && links[0].ends_with("/-/host/cdn.example/a.tgz#f"),
        "{out}"
    );
    let ask = |link: &str| handle(asked("deep/index.yaml", link).unwrap());
    let path = ask(links[0]).path;
    assert_eq!(
        links::candidates(&path).unwrap()[0].as_str(),
        "https://cdn.example/a.tgz?sig=a%2Fb+c&x=~"
    );
    assert_eq!(foreign, ["https://cdn.example/a.tgz?sig=a%2Fb+c&x=~"]);
    assert_eq!(
        url_of(ask(links[1])).as_str(),
        "https://charts.example/stable/deep/a.tgz?v=1"
    );
    for target in ["-/query/@/a.tgz", "-/query/YSBi/a.tgz", "-/query/YQ", "-/query//a"] {
        let path = request(target).unwrap();
        assert_eq!(handle(path.clone()).path, path);
    }
}

#[test]
fn links_are_relative_to_the_document_that_was_asked_for() {
    let path = request("deep/index.yaml").unwrap();
    // Where that redirected to.
    let mut reader = reader(&charts(), &path, "https://cdn.example/x/y/index.yaml?token=1", "");
    let body = "entries:\n  a:\n  - urls: ['a.tgz', '../b.tgz', '/c.tgz', 'https://cdn.example/d.tgz']\n";
    let out = drive(&mut *reader, [body.as_bytes()]).unwrap();
    let expected = "entries:\n  a:\n  - urls: ['../deep/a.tgz', '../b.tgz', '../-/host/charts.example/c.tgz', '../-/host/cdn.example/d.tgz']\n";
    assert_eq!(String::from_utf8(out).unwrap(), expected);
}

#[test]
fn yaml_that_looks_like_json() {
    for (body, expected) in [
        ("{entries: {a: [{name: a, urls: [a.tgz]}]}}", 1),
        (
            "{\n  # a comment\n  'entries': {a: [{urls: [a.tgz, b.tgz,],},],},}\n",
            2,
        ),
        ("---\n{\"entries\":{\"a\":[{\"urls\":[\"a.tgz\"]}]}}", 1),
        (
            "{\"Entries\"\n:{\"a\":[{\"URLs\":[\"a\\/b.tgz\",\"\\ud83d\\ude00.tgz\"]}]}}",
            2,
        ),
    ] {
        let out = rewrite(body);
        assert_eq!(out.matches("./").count(), expected, "{out}");
    }
}

#[test]
fn what_helm_reads_and_yaml_1_2_does_not() {
    let link = "https://charts.example/stable/a.tgz";
    for body in [
        "ENTRIES:\n  a:\n  - Url\u{17f}: [L]\n",
        "entries:\u{85}  a:\u{2028}  - urls:\u{2029}    - L\r",
        "entries: {a: [{?urls : [L]}]}",
        "entries: {a: [urls: [L]]}",
        "entries: {a: [? urls : [L]]}",
        "entries: {a: [{x: \"y\"#}]\n, urls: [L]}]}",
        "x: &k urls\nentries: {a: [{*k: [L]}]}",
        "entries:\n  a:\n  - <<: [{urls: [L]}]\n",
        "entries: {a: [{<<: {<<: {urls: [L]}}}]}",
        "entries: {\"<<\": [{urls: [L]}]}",
        "entries: {a: [{\"ur\\x6cs\": [L]}]}",
        "entries:\n  a:\n  - ? \"ur\\\n      ls\"\n    : [L]\n",
        "entries:\n  a:\n  - ? |-\n      urls\n    : [L]\n",
    ] {
        let body = body.replace('L', link);
        match rewrite_at("index.yaml", &body) {
            Ok((out, _)) => assert!(!out.contains("//charts") && out.contains("./a.tgz"), "{body} => {out}"),
            Err(error) => panic!("{body}: {error}"),
        }
    }
    for body in [
        "entries: {a: [{!!binary dXJscw==: [L]}]}",
        "entries: {a: [{!<tag:yaml.org,2002:str> urls: [L]}]}",
        "%TAG !e! tag:yaml.org,2002:\n--- {entries: {a: [{urls: [L]}]}}",
        "entries: {a: [{[urls]: [L]}]}",
        "entries: {a: [{urls: [L]}\n",
        "\u{feff}\u{feff}entries: {a: [{urls: [L]}]}",
    ] {
        assert!(rewrite_at("index.yaml", &body.replace('L', link)).is_err(), "{body}");
    }
}

/// What the names of nodes begin with, by their level.
const KINDS: [&str; 6] = ["m", "c", "v", "e", "l", "n"];

/// Writes indexes as nobody would: it takes its decisions from random bytes.
struct Author<'a> {
    choices: std::iter::Cycle<std::slice::Iter<'a, u8>>,
    anchors: usize,
    /// What was given a name, without number.
    named: Vec<String>,
    /// Collections that it may begin.
    left: usize,
}

/// Behind a merge key, more of the same mapping.
fn value_level(level: usize, key: &str) -> usize {
    if key.ends_with("<<") && !key.starts_with('!') {
        level
    } else {
        level + 1
    }
}

impl Author<'_> {
    fn below(&mut self, bound: u8) -> u8 {
        self.choices.next().map_or(0, |choice| choice % bound)
    }

    fn pick<'t>(&mut self, from: &[&'t str]) -> &'t str {
        let at = self.below(u8::try_from(from.len()).unwrap());
        from[usize::from(at)]
    }

    fn is_tired(&mut self) -> bool {
        self.left = self.left.saturating_sub(1);
        self.left == 0
    }

    fn link(&mut self) -> String {
        let link = self.pick(&[
            "https://evil.example/a.tgz",
            "https://charts.example/stable/a.tgz",
            "a.tgz",
            "/a#b=c",
            "oci://h/c",
            "//evil.example/é",
        ]);
        match self.below(8) {
            0 => format!("'{link}'"),
            1 | 2 => format!("\"{link}\""),
            3 => format!("\"\\x{:02x}{}\"", link.as_bytes()[0], &link[1..]),
            4 => format!("!!str {link}"),
            _ => link.to_owned(),
        }
    }

    fn key(&mut self, level: usize) -> String {
        let key = match level {
            0 => self.pick(&["entries", "entries", "entries", "Entries", "x", "urls"]),
            1 => self.pick(&["a", "b", "urls", "<<", "entries"]),
            _ => self.pick(&["urls", "urls", "urls", "URLs", "name", "url\u{17f}", "<<", "entries"]),
        };
        match self.below(16) {
            0 => format!("'{key}'"),
            1 | 2 => format!("\"{key}\""),
            3 => format!("&{} {key}", self.name("k")),
            4 => self.alias(1, "k").unwrap_or("z".to_owned()),
            5 => format!("!!str {key}"),
            6 => format!(
                "\"\\u{:04x}{}\"",
                key.chars().next().unwrap() as u32,
                key.chars().skip(1).collect::<String>()
            ),
            _ => key.to_owned(),
        }
    }

    /// What may stand before a node, or instead of it.
    fn properties(&mut self, level: usize) -> String {
        match self.below(14) {
            0 => format!("&{} ", self.name(KINDS[level.min(5)])),
            1 if matches!(level, 2 | 4) => self.pick(&["!!seq ", "!t ", "! "]).to_owned(),
            1 if level < 5 => self.pick(&["!!map ", "!t ", "! "]).to_owned(),
            _ => String::new(),
        }
    }

    fn name(&mut self, kind: &str) -> String {
        let name = format!("{kind}{}", self.below(3));
        self.named.push(name.clone());
        name
    }

    /// What was named, and now and then what was not.
    fn alias(&mut self, often: u8, kinds: &str) -> Option<String> {
        if self.below(often) > 0 {
            return None;
        }
        let any = self.below(10) == 0;
        let known: Vec<&String> = self
            .named
            .iter()
            .filter(|name| any || name.starts_with(kinds))
            .collect();
        let chosen = known
            .len()
            .checked_sub(1)
            .map(|last| known[usize::from(*self.choices.next().unwrap()) % (last + 1)]);
        chosen.map(|name| format!("*{name} "))
    }

    fn flow(&mut self, level: usize) -> String {
        if let Some(alias) = self.alias(16, KINDS[level.min(5)]) {
            return alias;
        }
        let level = if self.is_tired() { 5 } else { level };
        let properties = self.properties(level);
        let gap = self.pick(&["", " ", "\n      ", " # c\n      ", "#c\n      "]);
        let node = match level {
            0 | 1 | 3 => {
                let entries: Vec<String> = (0..self.below(4))
                    .map(|_| {
                        let key = self.key(level);
                        let value = self.flow(value_level(level, &key));
                        format!(
                            "{}{key}{}{value}",
                            self.pick(&["", "", "", "", "", "", "? ", "?"]),
                            self.pick(&[": ", ": ", ": ", ": ", ": ", ": ", ": ", " : ", " : ", ":"])
                        )
                    })
                    .collect();
                let last = if entries.is_empty() {
                    ""
                } else {
                    self.pick(&["", "", ","])
                };
                format!("{{{gap}{}{last}}}", entries.join(&format!(",{gap}")))
            }
            2 | 4 => {
                let items: Vec<String> = (0..self.below(3))
                    .map(|_| {
                        let item = self.flow(level + 1);
                        if level == 2 && self.below(6) == 0 {
                            item.trim_start_matches('{').trim_end_matches('}').to_owned()
                        } else {
                            item
                        }
                    })
                    .collect();
                let last = if items.is_empty() {
                    ""
                } else {
                    self.pick(&["", "", ","])
                };
                format!("[{gap}{}{last}]", items.join(&format!("{gap},")))
            }
            _ => self.link(),
        };
        format!("{properties}{node}")
    }

    /// A node behind a `:` or `-`, in the lines after it or on the same, with the line break at its end.
    fn block(&mut self, level: usize, indent: usize) -> String {
        if let Some(alias) = self.alias(16, KINDS[level.min(5)]) {
            return format!(" {alias}\n");
        }
        let level = if self.is_tired() { 5 } else { level };
        if level >= 5 {
            let link = self.link();
            let pad = " ".repeat(indent + 1);
            return match self.below(6) {
                0 => format!(
                    " |{}\n{pad}{}\n",
                    self.pick(&["", "-", "+"]),
                    link.trim_matches(['\'', '"'])
                ),
                1 => format!(" >-\n{pad}{}\n", link.trim_matches(['\'', '"'])),
                2 => format!("\n{pad}{link}\n"),
                _ => format!(" {link}{}\n", self.pick(&["", " # c", "  "])),
            };
        }
        if self.below(3) == 0 {
            return format!(" {}\n", self.flow(level));
        }
        let mut out = format!(" {}{}\n", self.properties(level), self.pick(&["", "", "# c"]));
        for _ in 0..=self.below(2) {
            if matches!(level, 2 | 4) {
                let indent = indent + usize::from(self.below(3));
                let pad = " ".repeat(indent);
                // All items of a list in one column.
                for _ in 0..=self.below(2) {
                    out.push_str(&format!("{pad}-{}", self.block(level + 1, indent + 1)));
                }
                break;
            }
            let pad = " ".repeat(indent + 1);
            let key = self.key(level);
            let value = self.block(value_level(level, &key), indent + 1);
            out.push_str(&match self.below(10) {
                0 => format!("{pad}? {key}\n{pad}:{value}"),
                1 if level == 3 => format!("{pad}x: |\n{pad}  urls:\n\n{pad}  - a\n{pad}{key}:{value}"),
                2 if level == 3 => format!("{pad}x: \"urls:\n{pad}  [\"\n{pad}{key}:{value}"),
                _ => format!("{pad}{key}:{value}"),
            });
        }
        out
    }

    fn document(&mut self) -> String {
        let mut out = self.pick(&["", "---\n", "# c\n", "%YAML 1.1\n---\n"]).to_owned();
        for _ in 0..self.below(3) {
            self.anchors += 1;
            let number = self.anchors;
            let (kind, node) = match self.below(5) {
                0 => ("k", "urls".to_owned()),
                1 => ("n", self.link()),
                2 => ("l", format!("[{}]", self.link())),
                3 => ("e", format!("{{urls: [{}]}}", self.link())),
                _ => ("v", format!("[{{urls: [{}]}}]", self.link())),
            };
            out.push_str(&format!("x{number}: &{} {node}\n", self.name(kind)));
        }
        if self.below(4) == 0 && out.len() < 5 {
            out.push_str(&self.flow(0));
        } else {
            out.push_str(&format!("entries:{}", self.block(1, 0)));
            if self.below(4) == 0 {
                out.push_str(&format!("entries{}:{}", self.below(2), self.block(1, 0)));
            }
        }
        // And now and then something broken.
        for _ in 0..self.below(4).saturating_sub(2) {
            let at = usize::from(self.below(255)) * 7 % (out.len() + 1);
            let at = (0..=at).rev().find(|at| out.is_char_boundary(*at)).unwrap_or(0);
            let inserted = self.pick(&[
                ":", ": ", "?", "? ", "-", "- ", "#", " #", ",", "[", "]", "{", "}", "&a ", "*a", "!", "|", ">", "'",
                "\"", "%", "@", "\t", " ", "\n", "\\", "<<: ", "é", "\u{85}", "\u{2028}", "---\n", "...\n", "urls",
                "~",
            ]);
            out.insert_str(at, inserted);
        }
        match self.below(8) {
            0 => out.replace('\n', "\r\n"),
            1 => out.replace('\n', "\u{85}"),
            2 => out.replace('\n', "\r"),
            3 => out.replace('\n', "\u{2028}"),
            _ => out,
        }
    }
}

/// Whatever Helm's library reads as a chart's URL leads here, and to what it read in upstream's index.
#[test]
fn helms_library_finds_no_upstream_address() {
    let documents: Vec<String> = many(3000, &proptest::collection::vec(any::<u8>(), 40..400))
        .iter()
        .map(|choices| {
            Author {
                choices: choices.iter().cycle(),
                anchors: 0,
                named: Vec::new(),
                left: 40,
            }
            .document()
        })
        .collect();
    let written: Vec<Result<String, String>> = documents
        .iter()
        .map(|body| {
            rewrite_at("index.yaml", body)
                .map(|(out, _)| out)
                .map_err(|error| error.to_string())
        })
        .collect();
    let client = tool("go/bin/yaml-client");
    let texts: Vec<String> = written.iter().map(|out| out.clone().unwrap_or_default()).collect();
    let (before, after) = (read_by(&client, &[], &documents), read_by(&client, &[], &texts));
    let remote = remote("helm", BASE);
    let path = request("index.yaml").unwrap();
    let document = format!("{BASE}index.yaml");
    let context = context(&remote, &path, Style::Relative, (&document, ""));
    let mut expected = Charts(LinkMap::with_bases(
        &context,
        vec![(remote.base_url.as_ref().unwrap(), |_| true)],
    ));
    let links = |read: &serde_json::Value| -> Vec<String> {
        let links = read.as_array().into_iter().flatten();
        links.map(|link| link.as_str().unwrap().to_owned()).collect()
    };
    let mut followed = 0;
    for (((document, written), before), after) in documents.iter().zip(&written).zip(&before).zip(&after) {
        let (before, after) = (links(before), links(after));
        let out = match written {
            Ok(out) => out,
            Err(error) => {
                // Helm reads the first document only, and nothing behind the bracket that closes it.
                let begin = document.trim_start_matches(['-', '#', 'c', ' ', '\n', '\r', '\u{85}', '\u{2028}']);
                let closed = begin.starts_with(['{', '&', '!']);
                let several =
                    document.matches("---").count() > 1 || !document.starts_with('-') && document.contains("---");
                let unresolved = error.contains("alias") || error.contains(" tag");
                let known = several || closed || document.contains("...") || unresolved || before.is_empty();
                assert!(known, "{error}:\n{document}");
                continue;
            }
        };
        for link in &after {
            assert!(stays("index.yaml", link), "{link}\n{document}\n=>\n{out}");
        }
        if before.is_empty() {
            continue;
        }
        followed += before.len();
        assert_eq!(after.len(), before.len(), "\n{document}\n=>\n{out}");
        for (link, mapped) in before.iter().zip(after) {
            // Line breaks of these kinds are not always folded; in a link they are a mistake.
            let odd = link.contains(['\u{2028}', '\u{2029}']);
            let wanted = expected.map(link.trim_end()).unwrap_or_else(|| link.clone());
            assert!(
                odd || mapped.is_empty() || mapped == wanted,
                "{mapped}, {wanted}\n{document}\n=>\n{out}"
            );
        }
    }
    assert!(followed > 1000, "{followed} links");
}

/// The links at `entries.*[].urls[]`, read again.
fn urls(document: &str) -> Vec<String> {
    let mut depth = 0;
    let mut found = Vec::new();
    let mut list = None;
    let mut key = false;
    for event in Parser::new_from_str(document) {
        match event.unwrap().0 {
            Event::MappingStart(..) | Event::SequenceStart(..) => {
                depth += 1;
                if key && depth == 5 {
                    list = Some(depth);
                }
                key = false;
            }
            Event::MappingEnd | Event::SequenceEnd => {
                list = list.filter(|&list| list < depth);
                depth -= 1;
            }
            Event::Scalar(text, ..) => {
                if list == Some(depth) {
                    found.push(text.to_string());
                }
                key = text == "urls" && depth == 4;
            }
            _ => {}
        }
    }
    found
}

fn link() -> impl Strategy<Value = String> {
    let start = prop_oneof![
        Just(BASE),
        Just("https://charts.example/"),
        Just("http://charts.example/stable/"),
        Just("HTTPS://Mirror.example:8443/"),
        Just("//charts.example/stable/"),
        Just("/"),
        Just("../"),
        Just(""),
    ];
    let link = (start, "[a-zA-Z0-9/._~+ %?&=#,:{}'\"é-]{0,20}").prop_map(|(start, rest)| format!("{start}{rest}"));
    link.prop_filter("a URL", |link| {
        let url = Url::parse(&format!("{BASE}index.yaml")).unwrap().join(link);
        url.is_ok_and(|url| url.scheme() == "https" || url.scheme() == "http")
    })
}

fn quoted(text: &str, style: u8) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._~+-".contains(&byte);
    match style {
        0 => format!("'{}'", text.replace('\'', "''")),
        1 if !text.is_empty() && text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.bytes().all(plain) => {
            text.to_owned()
        }
        _ => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
    }
}

proptest! {
    /// No chart of an index leads past us, each leads to what upstream's link named, and pieces make no difference.
    #[test]
    fn no_upstream_address_survives(
        charts in proptest::collection::vec(proptest::collection::vec((link(), 0..3_u8), 0..4), 1..5),
        flow: bool, json: bool, at in cuts()
    ) {
        let body = if json {
            let versions: Vec<_> = charts.iter().map(|urls| {
                serde_json::json!({"urls": urls.iter().map(|(link, _)| link).collect::<Vec<_>>()})
            }).collect();
            serde_json::json!({"entries": {"a": versions}}).to_string()
        } else {
            let mut body = "entries:\n  a:\n".to_owned();
            for urls in &charts {
                let urls: Vec<String> = urls.iter().map(|(link, style)| quoted(link, *style)).collect();
                if flow || urls.is_empty() {
                    body.push_str(&format!("  - urls: [{}]\n    name: a\n", urls.join(", ")));
                } else {
                    body.push_str(&format!("  - name: a\n    urls:\n    - {}\n", urls.join("\n    - ")));
                }
            }
            body
        };
        let path = request("index.yaml").unwrap();
        let mut reader = reader(&self::charts(), &path, &format!("{BASE}index.yaml"), "");
        let out = String::from_utf8(drive(&mut *reader, cut(body.as_bytes(), &at)).unwrap()).unwrap();
        prop_assert_eq!(&out, &rewrite(&body));
        let foreign = linked(reader.take_facts());
        let links: Vec<&String> = charts.iter().flatten().map(|(link, _)| link).collect();
        let found = urls(&out);
        prop_assert_eq!(found.len(), links.len(), "{}", out);
        for (link, mapped) in links.into_iter().zip(found) {
            prop_assert!(mapped.starts_with("./") && !mapped.split('#').next().unwrap().contains('?'), "{} became {}", link, mapped);
            let asked = asked("index.yaml", &mapped).ok_or_else(|| TestCaseError::fail(mapped.clone()))?;
            let asked = handle(asked);
            if reader.escaped() > 0 {
                continue;
            }
            let meant = links::named(&Url::parse(&format!("{BASE}index.yaml")).unwrap().join(link).unwrap());
            match links::candidates(&asked.path) {
                Some(urls) => {
                    prop_assert!(foreign.contains(&meant));
                    prop_assert!(urls.iter().any(|url| links::named(url) == meant), "{} {:?}", meant, asked);
                }
                None => prop_assert_eq!(links::named(&url_of(asked)), meant),
            }
        }
    }

    #[test]
    fn nothing_panics(path in any::<String>(), body in proptest::collection::vec(any::<u8>(), 0..200), at in cuts()) {
        for target in [path.clone(), format!("-/query/{path}"), format!("-/query/YQ/{path}")] {
            if let Some(path) = request(&target) {
                let _ = handle(path);
            }
        }
        let path = request("index.yaml").unwrap();
        let mut reader = reader(&self::charts(), &path, BASE, "");
        let _ = drive(&mut *reader, cut(&body, &at));
        let _ = (reader.take_facts(), reader.escaped());
    }
}
