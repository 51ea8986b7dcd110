//! When charts were published, and by which digest they are known: `created` and `digest` of each version in `index.yaml`. A tool
//! that writes an index anew may date all versions by that moment; then all are held.

use std::ops::Range;

use saphyr_parser::{Event, Parser, Span};
use serde_json::value::RawValue;

use super::super::hold::{Hold, Named};
use super::super::json::whole::{JsonObject, array, items, json_text, object, text};
use super::super::links::decode_once;
use super::super::release::{Release, Releases, seconds, sha256};
use super::super::{IndexError, ViewContext};
use crate::cache::Expected;

/// An `index.yaml`, in YAML's own style or as JSON.
pub(super) const INDEX: Releases = Releases {
    read: releases,
    without,
    dated: None,
};

/// Levels of nesting that are read.
const MAX_DEPTH: usize = 64;

/// What the file of a chart is called, by one of its URLs or its path.
pub(super) fn file_name(url: &str) -> Option<String> {
    let path = url.split(['?', '#']).next()?;
    path.rsplit('/').next().map(decode_once).filter(|name| !name.is_empty())
}

/// A version of a chart.
#[derive(Debug, Default)]
struct Version {
    /// Where its first line is, from 0; none where it does not stand on lines of its own.
    line: Option<usize>,
    urls: Vec<String>,
    published: Option<u64>,
    digest: Option<Expected>,
    /// Of the chart, as its own description has it.
    name: String,
    version: Option<String>,
    /// Whether something elsewhere stands for a part of it (an alias of an anchor), so that it cannot go.
    is_shared: bool,
    /// Its anchors, as a range of all.
    anchors: Range<usize>,
    /// Its aliases, likewise.
    aliases: Range<usize>,
}

/// A chart, with where its name stands.
#[derive(Debug)]
struct Chart {
    line: usize,
    versions: Vec<Version>,
}

fn releases(document: &[u8]) -> Vec<Release> {
    let Ok(document) = json_text(document) else {
        return Vec::new();
    };
    let versions = match json(document) {
        Some(index) => Ok(of_json(&index)),
        None => read(document).map(|(charts, _)| charts.into_iter().flat_map(|chart| chart.versions).collect()),
    };
    let named = versions.unwrap_or_default().into_iter().flat_map(|version| {
        let (published, digest) = (version.published, version.digest);
        let files = version.urls.into_iter().filter_map(|url| file_name(&url));
        files.map(move |file| Release {
            file,
            published,
            digest: digest.clone(),
        })
    });
    named.collect()
}

/// The versions of a chart in the order of the index, each with the URLs of its archive.
///
/// # Errors
/// The index cannot be read.
pub(super) fn versions(document: &[u8], chart: &str) -> Result<Vec<(String, Vec<String>)>, IndexError> {
    let text = json_text(document)?;
    let versions = match json(text) {
        Some(index) => of_json(&index),
        None => read(text)?.0.into_iter().flat_map(|chart| chart.versions).collect(),
    };
    let own = versions.into_iter().filter(|version| version.name == chart);
    Ok(own
        .filter_map(|version| Some((version.version?, version.urls)))
        .collect())
}

fn without(_context: &ViewContext<'_>, document: &[u8], hold: &mut Hold) -> Result<Vec<u8>, IndexError> {
    let text = json_text(document)?;
    if let Some(index) = json(text) {
        return Ok(json_without(&index, hold).into_bytes());
    }
    // Elsewhere lines end in other ways, too.
    let has_other_ends = text
        .match_indices('\r')
        .any(|(at, _)| text.as_bytes().get(at + 1) != Some(&b'\n'));
    if has_other_ends {
        let reason = "upstream's index has carriage returns in its lines, so that nothing can be left out of it";
        return Err(IndexError(reason.to_owned()));
    }
    let (charts, end) = read(text)?;
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let mut left_out = vec![false; lines.len()];
    for (at, chart) in charts.iter().enumerate() {
        let chart_ends = charts.get(at + 1).map_or(end, |next| next.line);
        let held: Vec<bool> = chart.versions.iter().map(|version| is_held(version, hold)).collect();
        let may_go = |version: &Version| version.line.is_some() && !version.is_shared;
        if !held.is_empty() && held.iter().all(|held| *held) && chart.versions.iter().all(may_go) {
            cover(&mut left_out, chart.line, chart_ends);
            continue;
        }
        for (number, version) in chart.versions.iter().enumerate() {
            let next = chart
                .versions
                .get(number + 1)
                .map_or(Some(chart_ends), |next| next.line);
            let may_go = held[number] && may_go(version);
            if let (true, Some(line), Some(next)) = (may_go, version.line, next) {
                cover(&mut left_out, line, next);
            }
        }
    }
    let left = lines.iter().zip(&left_out).filter(|(_, left_out)| !**left_out);
    Ok(left.map(|(line, _)| *line).collect::<String>().into_bytes())
}

fn cover(lines: &mut [bool], from: usize, to: usize) {
    let to = to.min(lines.len());
    lines[from.min(to)..to].fill(true);
}

fn is_held(version: &Version, hold: &mut Hold) -> bool {
    let file = version.urls.iter().find_map(|url| file_name(url)).unwrap_or_default();
    let named = Named {
        package: Some(&version.name),
        version: version.version.as_deref(),
        file: &file,
    };
    hold.is_held(named, version.published)
}

/// The index, if it is JSON: YAML in braces need not be.
fn json(document: &str) -> Option<JsonObject<'_>> {
    let is_in_braces = document.trim_start().starts_with('{');
    is_in_braces.then(|| JsonObject::read(document).ok()).flatten()
}

/// A version in an index that is JSON.
fn json_version(version: &RawValue) -> Version {
    let version = JsonObject::read(version.get()).unwrap_or_default();
    let urls = version.get("urls").and_then(items).unwrap_or_default();
    Version {
        urls: urls.into_iter().filter_map(text).map(|url| url.into_owned()).collect(),
        published: version.text("created").and_then(|created| seconds(&created)),
        digest: version.text("digest").and_then(|digest| sha256(&digest)),
        name: version.text("name").unwrap_or_default().into_owned(),
        version: version.text("version").map(|version| version.into_owned()),
        ..Version::default()
    }
}

fn of_json(index: &JsonObject<'_>) -> Vec<Version> {
    let charts = index.object("entries").unwrap_or_default();
    let versions = charts.0.iter().filter_map(|(_, versions)| items(versions));
    versions.flatten().map(json_version).collect()
}

fn json_without(index: &JsonObject<'_>, hold: &mut Hold) -> String {
    let charts = index.object("entries").unwrap_or_default();
    let mut left = Vec::new();
    for (name, versions) in &charts.0 {
        let Some(all) = items(versions) else {
            left.push((&**name, versions.get().to_owned()));
            continue;
        };
        let free = all.iter().filter(|version| !is_held(&json_version(version), hold));
        let free: Vec<&str> = free.map(|version| version.get()).collect();
        if !free.is_empty() || all.is_empty() {
            left.push((&**name, array(free)));
        }
    }
    let entries = object(left.iter().map(|(name, versions)| (*name, versions.as_str())));
    object(index.0.iter().map(|(name, value)| match &**name {
        "entries" => ("entries", entries.as_str()),
        name => (name, value.get()),
    }))
}

/// The events of a document.
struct Events<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    /// By the parser's numbers.
    anchors: Vec<usize>,
    aliases: Vec<usize>,
}

impl<'a> Events<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), IndexError> {
        match self.parser.next_event() {
            Some(Ok(event)) => {
                match &event.0 {
                    Event::Alias(alias) => self.aliases.push(*alias),
                    Event::Scalar(_, _, anchor, _)
                    | Event::SequenceStart(anchor, _)
                    | Event::MappingStart(anchor, _)
                        if *anchor > 0 =>
                    {
                        self.anchors.push(*anchor);
                    }
                    _ => {}
                }
                Ok(event)
            }
            Some(Err(error)) => Err(IndexError(format!("upstream's index is no YAML: {error}"))),
            None => Err(IndexError("upstream's index ends early".to_owned())),
        }
    }

    /// Notes which versions have parts that are named elsewhere.
    fn mark_shared(&self, charts: &mut [Chart]) {
        for version in charts.iter_mut().flat_map(|chart| &mut chart.versions) {
            let own = &self.anchors[version.anchors.clone()];
            let mut aliases = self.aliases.iter().enumerate();
            version.is_shared =
                !own.is_empty() && aliases.any(|(at, alias)| own.contains(alias) && !version.aliases.contains(&at));
        }
    }

    /// Passes over what is left of the node that `event` begins.
    fn skip(&mut self, event: &Event<'_>) -> Result<(), IndexError> {
        let mut depth = usize::from(is_start(event));
        while depth > 0 {
            let (event, _) = self.next()?;
            match event {
                Event::MappingEnd | Event::SequenceEnd => depth -= 1,
                event if is_start(&event) => depth += 1,
                _ => {}
            }
            if depth > MAX_DEPTH {
                return Err(IndexError("upstream's index is nested too deeply".to_owned()));
            }
        }
        Ok(())
    }

    /// The next key of a mapping, if it is a plain text, and where; `None` at the end of the mapping.
    fn key(&mut self) -> Result<Option<(String, usize)>, IndexError> {
        let (event, span) = self.next()?;
        let line = line_of(&span);
        match event {
            Event::MappingEnd => Ok(None),
            Event::Scalar(key, ..) => Ok(Some((key.into_owned(), line))),
            other => {
                self.skip(&other)?;
                Ok(Some((String::new(), line)))
            }
        }
    }
}

fn is_start(event: &Event<'_>) -> bool {
    matches!(event, Event::MappingStart(..) | Event::SequenceStart(..))
}

/// From 0.
fn line_of(span: &Span) -> usize {
    span.start.line().saturating_sub(1)
}

/// The charts of an index, and the line behind the last.
fn read(document: &str) -> Result<(Vec<Chart>, usize), IndexError> {
    let lines: Vec<&str> = document.lines().collect();
    let mut events = Events {
        parser: Parser::new_from_str(document),
        anchors: Vec::new(),
        aliases: Vec::new(),
    };
    let (mut charts, mut end) = (Vec::new(), None);
    loop {
        match events.next()?.0 {
            Event::MappingStart(..) => break,
            Event::StreamEnd | Event::Scalar(..) | Event::SequenceStart(..) => return Ok((charts, lines.len())),
            _ => {}
        }
    }
    while let Some((key, line)) = events.key()? {
        if !charts.is_empty() {
            end.get_or_insert(line);
        }
        let (value, _) = events.next()?;
        match value {
            Event::MappingStart(..) if key == "entries" => read_charts(&mut events, &lines, &mut charts)?,
            value => events.skip(&value)?,
        }
    }
    events.mark_shared(&mut charts);
    // What may stand behind the document.
    let behind = lines
        .iter()
        .rposition(|line| line.starts_with("..."))
        .unwrap_or(lines.len());
    Ok((charts, end.unwrap_or(behind)))
}

fn read_charts(events: &mut Events<'_>, lines: &[&str], charts: &mut Vec<Chart>) -> Result<(), IndexError> {
    while let Some((_, line)) = events.key()? {
        let (value, _) = events.next()?;
        let mut versions = Vec::new();
        if matches!(value, Event::SequenceStart(..)) {
            loop {
                match events.next()? {
                    (Event::SequenceEnd, _) => break,
                    (Event::MappingStart(anchor, _), span) => {
                        let anchors = events.anchors.len() - usize::from(anchor > 0);
                        let aliases = events.aliases.len();
                        let mut version = read_version(events)?;
                        version.anchors = anchors..events.anchors.len();
                        version.aliases = aliases..events.aliases.len();
                        version.line = item_line(lines, line, line_of(&span));
                        versions.push(version);
                    }
                    (other, _) => {
                        events.skip(&other)?;
                        versions.push(Version::default());
                    }
                }
            }
        } else {
            events.skip(&value)?;
        }
        charts.push(Chart { line, versions });
    }
    Ok(())
}

fn read_version(events: &mut Events<'_>) -> Result<Version, IndexError> {
    let mut version = Version::default();
    while let Some((key, _)) = events.key()? {
        match (key.as_str(), events.next()?.0) {
            ("created", Event::Scalar(created, ..)) => version.published = seconds(&created),
            ("digest", Event::Scalar(digest, ..)) => version.digest = sha256(&digest),
            ("name", Event::Scalar(name, ..)) => version.name = name.into_owned(),
            ("version", Event::Scalar(number, ..)) => version.version = Some(number.into_owned()),
            ("urls", Event::SequenceStart(..)) => loop {
                match events.next()?.0 {
                    Event::SequenceEnd => break,
                    Event::Scalar(url, ..) => version.urls.push(url.into_owned()),
                    other => events.skip(&other)?,
                }
            },
            (_, other) => events.skip(&other)?,
        }
    }
    Ok(version)
}

/// The line with the hyphen of an item whose content begins on the line `content`, if the item has its lines for itself: below
/// the line of its chart's name.
fn item_line(lines: &[&str], chart: usize, content: usize) -> Option<usize> {
    let below = (chart + 1)..=content;
    below.rev().find_map(|at| {
        let line = lines.get(at)?.trim_start();
        (line == "-" || line.starts_with("- ")).then_some(at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::ArtifactPath;
    use crate::formats::links::Style;
    use crate::formats::testing;

    const DAY: u64 = 24 * 3600;

    /// What is left on day 100 where three days are held.
    fn left(document: &str) -> (String, Option<u64>) {
        let remote = testing::remote("helm", "https://charts.example/");
        let context = ViewContext {
            remote: &remote,
            path: &ArtifactPath::default(),
            style: Style::Relative,
            document_url: "https://charts.example/index.yaml".parse().unwrap(),
            content_type: "",
            remote_url: "",
        };
        let mut hold = testing::hold(3, 100 * DAY);
        let left = without(&context, document.as_bytes(), &mut hold).unwrap();
        (String::from_utf8(left).unwrap(), hold.changes())
    }

    const OLD: &str = "1970-01-02T00:00:00.5Z";
    const NEW: &str = "1970-04-10T00:00:00Z";

    fn version(version: &str, created: &str) -> String {
        format!(
            "  - apiVersion: v2\n    created: \"{created}\"\n    name: demo\n    urls:\n    - demo-{version}.tgz\n    \
             version: {version}\n    description: |\n      - not: an item\n"
        )
    }

    #[test]
    fn held_versions_go_with_their_lines() {
        let head = "apiVersion: v1\nentries:\n  demo:\n";
        let tail = "  other:\n  -\n    created: \"1970-01-02T00:00:00Z\"\n    urls: [other-1.tgz]\ngenerated: now\n";
        let document = format!(
            "{head}{}{}{}{tail}",
            version("3.0", NEW),
            version("2.0", OLD),
            version("1.0", NEW)
        );
        let (left_over, due) = left(&document);
        assert_eq!(left_over, format!("{head}{}{tail}", version("2.0", OLD)));
        // 1970-04-10 is day 99.
        assert_eq!(due, Some(102 * DAY));
        let names: Vec<(String, u64)> = releases(document.as_bytes())
            .into_iter()
            .map(|one| (one.file, one.published.unwrap_or(0) / DAY))
            .collect();
        let name = |name: &str, day| (name.to_owned(), day);
        assert_eq!(
            names,
            [
                name("demo-3.0.tgz", 99),
                name("demo-2.0.tgz", 1),
                name("demo-1.0.tgz", 99),
                name("other-1.tgz", 1)
            ]
        );
    }

    #[test]
    fn digests_are_read_in_yaml_and_in_json() {
        let hex = "ab".repeat(32);
        let yaml = format!(
            "entries:\n  a:\n  - digest: {hex}\n    urls: [a-1.tgz, https://m/a-1.tgz]\n  - digest: \"sha256:{}\"\n    urls:\n    \
             - a-2.tgz\n  - digest: sha1:00\n    urls: [a-3.tgz]\n  - urls: [a-4.tgz]\n",
            hex.to_uppercase()
        );
        let json = format!(
            r#"{{"entries":{{"a":[{{"digest":"{hex}","urls":["a-1.tgz","https://m/a-1.tgz"]}},{{"digest":"sha256:{hex}","urls":["a-2.tgz"]}},{{"digest":7,"urls":["a-3.tgz"]}},{{"urls":["a-4.tgz"]}}]}}}}"#
        );
        for document in [yaml, json] {
            let found: Vec<(String, bool)> = releases(document.as_bytes())
                .into_iter()
                .map(|release| (release.file, release.digest == sha256(&hex)))
                .collect();
            let expected = [
                ("a-1.tgz", true),
                ("a-1.tgz", true),
                ("a-2.tgz", true),
                ("a-3.tgz", false),
                ("a-4.tgz", false),
            ];
            assert_eq!(found, expected.map(|(file, is_right)| (file.to_owned(), is_right)));
        }
    }

    #[test]
    fn a_chart_goes_with_its_last_version() {
        let head = "entries:\n  other:\n  - created: 1970-01-02T00:00:00Z\n    urls: [o]\n";
        let document = format!("{head}  demo:\n{}", version("1.0", NEW));
        assert_eq!(left(&document).0, head);
        let document = format!("entries:\n  demo:\n{}generated: now\n", version("1.0", NEW));
        assert_eq!(left(&document).0, "entries:\ngenerated: now\n");
    }

    #[test]
    fn an_index_in_json_loses_them_too() {
        let document = format!(
            r#"{{"apiVersion":"v1","entries":{{"demo":[{{"created":"{NEW}","urls":["a/demo-2.tgz?x"]}},{{"created":"{OLD}","urls":["demo-1.tgz"]}}],"new":[{{"created":"{NEW}"}}]}},"generated":"x"}}"#
        );
        let (left_over, due) = left(&document);
        let expected = format!(
            r#"{{"apiVersion":"v1","entries":{{"demo":[{{"created":"{OLD}","urls":["demo-1.tgz"]}}]}},"generated":"x"}}"#
        );
        assert_eq!((left_over, due), (expected, Some(102 * DAY)));
        let dated = releases(document.as_bytes());
        assert_eq!(dated[0].file, "demo-2.tgz");
    }

    #[test]
    fn what_has_no_lines_of_its_own_or_no_date_stays() {
        for document in [
            format!("entries: {{demo: [{{created: \"{NEW}\", urls: [a]}}]}}\n"),
            format!("{{entries: {{demo: [{{created: \"{NEW}\", urls: [a]}}]}}}}\n"),
            format!("entries:\n  demo: [{{created: \"{NEW}\", urls: [a]}}]\n"),
            "entries:\n  demo:\n  - urls: [a]\n  - created: soon\n  - 7\n".to_owned(),
            "just: this\n".to_owned(),
            format!(
                "entries:\n  demo:\n  - created: {NEW}\n    maintainers: &a [x]\n  - created: {OLD}\n    maintainers: *a\n"
            ),
            "# nothing\n".to_owned(),
            "entries:\n  demo: null\n".to_owned(),
        ] {
            assert_eq!(left(&document).0, document);
        }
    }
}
