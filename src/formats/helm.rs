//! Helm chart repositories (<https://helm.sh/docs/topics/chart_repository/>): `index.yaml` names the charts by URLs that
//! Helm resolves against the repository's own. The index is YAML of 20 to 40 MB, or JSON, which is YAML too, so that it is
//! rewritten scalar by scalar and byte for byte, nothing of it parsed into memory: as much is followed as it takes to know
//! which scalar is an item of `entries.*[].urls`.

mod chart;
mod dated;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::json::{Place, Step};
use super::links::{self, LinkMap, Serves, Style};
use super::order::Term;
use super::release::{self, ListedBy, Tells};
use super::yaml;
use super::{
    ArtifactPath, Asked, Asset, Class, Fact, Format, IndexError, IndexReader, Location, Reading, View, ViewContext,
};
use crate::config::Package;

/// The format of `package: helm`.
pub(super) struct Helm;

/// Stands before a chart whose URL has a query: Helm drops the query of a relative URL (`ResolveReferenceURL` in its
/// `pkg/repo`), so that it goes into the path, where the file keeps its name.
const QUERY_PREFIX: &str = "-/query/";

/// Where an index names charts.
const URLS: Place = &[
    Step::Key("entries"),
    Step::Any,
    Step::Item,
    Step::Key("urls"),
    Step::Item,
];

static PACKAGE: Package = Package::named("helm");

impl Format for Helm {
    fn package(&self) -> &'static Package {
        &PACKAGE
    }

    fn terms(&self) -> &'static [Term] {
        &[chart::CHART]
    }

    fn read(&self, asked: Asked<'_>) -> Reading {
        let path = with_query(&asked.path).unwrap_or(asked.path);
        let mut asset = Asset::new(asked.remote, path, governing_path).named_by(|_| Some("index.yaml".to_owned()));
        asset.nature = asset.governing.ends_with("index.yaml").then_some(Class::Mutable);
        let path = asset.path.decoded.as_str();
        if path == "index.yaml" || path.ends_with("/index.yaml") {
            asset.view = Some(View::new(Style::Relative, reader).held_by(asked.remote, &dated::INDEX));
            asset.tells = Some(Tells::Whole(dated::INDEX.read));
        } else {
            (asset.package, asset.version) = package(&asset.governing);
            asset.list_by(listed_by);
        }
        if asset.path.decoded.ends_with(".prov") {
            asset.media_type = "text/plain; charset=utf-8";
        }
        Reading::Artifact(Box::new(asset))
    }
}

/// The path that a rewritten link with a query stands for.
fn with_query(path: &ArtifactPath) -> Option<ArtifactPath> {
    let (query, encoded) = path.encoded.strip_prefix(QUERY_PREFIX)?.split_once('/')?;
    let query = String::from_utf8(URL_SAFE_NO_PAD.decode(query).ok()?).ok()?;
    let is_clean = query.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    is_clean.then(|| ArtifactPath {
        decoded: links::decode_once(encoded),
        encoded: encoded.to_owned(),
        query: Some(query),
    })
}

/// The indexes that may name a chart, and the name of its file.
fn listed_by(chart: &Asset) -> Option<ListedBy> {
    let path = release::plain(&chart.governing);
    let folder = path
        .rsplit_once('/')
        .filter(|_| matches!(chart.location, Location::Upstream(_)));
    let own = folder.map(|(folder, _)| format!("{folder}/index.yaml"));
    Some(ListedBy {
        indexes: [Some("index.yaml".to_owned()), own].into_iter().flatten().collect(),
        forms: release::ONE_FORM,
        file: dated::file_name(&path)?,
        steps: 0,
        tells_dates: true,
    })
}

/// The chart of a file, and its version.
fn package(path: &str) -> (Option<String>, Option<String>) {
    let path = release::plain(path);
    let Some(stem) = release::stem(&path, ".tgz") else {
        return (None, None);
    };
    match release::name_and_version(stem).or_else(|| incomplete_version(stem)) {
        Some((name, version)) => (Some(name.to_owned()), Some(version.to_owned())),
        None => (Some(stem.to_owned()), None),
    }
}

/// Name and version of a file, where the version has too few parts: a number with a dot in it, else a number alone.
fn incomplete_version(stem: &str) -> Option<(&str, &str)> {
    let numbers = |stem: &str| {
        let text = stem.strip_prefix('v').unwrap_or(stem);
        let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.');
        text[..end.unwrap_or(text.len())].to_owned()
    };
    let hyphens = || stem.match_indices('-').map(|(at, _)| at).filter(|at| *at > 0);
    let dotted = hyphens().find(|at| numbers(&stem[at + 1..]).contains('.'));
    let at = dotted.or_else(|| hyphens().rfind(|at| !numbers(&stem[at + 1..]).is_empty()))?;
    Some((&stem[..at], &stem[at + 1..]))
}

/// A provenance file goes as its chart.
fn governing_path(path: &str) -> &str {
    path.strip_suffix(".prov").unwrap_or(path)
}

fn reader(context: &ViewContext<'_>) -> Box<dyn IndexReader> {
    // Helm resolves links against the repository's URL, wherever that redirects to.
    let document_url = match &context.remote.base_url {
        Some(base) if links::split_foreign(&context.path.encoded).is_none() => links::under(base, context.path),
        _ => context.document_url.clone(),
    };
    let context = &ViewContext {
        document_url,
        ..*context
    };
    let bases = context.remote.base_url.iter();
    let bases = bases
        .map(|base| (base, (|path| !path.starts_with(QUERY_PREFIX)) as Serves))
        .collect();
    let links = LinkMap::with_bases(context, bases);
    Box::new(Index {
        head: Vec::new(),
        begun: false,
        scanner: yaml::Scanner::new(URLS),
        links: Charts(links),
    })
}

/// Turns the URLs of an index into ours.
struct Charts(LinkMap);

impl Charts {
    fn map(&mut self, link: &str) -> Option<String> {
        let mapped = self.0.map(link)?;
        let (before, fragment) = mapped.split_at(mapped.find('#').unwrap_or(mapped.len()));
        let Some((path, query)) = before.split_once('?') else {
            return Some(mapped);
        };
        let mut at = 0;
        while let Some(up) = ["./", "../"].into_iter().find(|up| path[at..].starts_with(up)) {
            at += up.len();
        }
        let (up, path) = path.split_at(at);
        if query.is_empty() {
            return Some(format!("{up}{path}{fragment}"));
        }
        Some(format!(
            "{up}{QUERY_PREFIX}{}/{path}{fragment}",
            URL_SAFE_NO_PAD.encode(query)
        ))
    }
}

/// Empty lines that are waited for a first byte in.
const MAX_HEAD: usize = 64 * 1024;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// An index, of which the beginning is held back until it is known to be none of HTML or UTF-16.
struct Index {
    head: Vec<u8>,
    begun: bool,
    scanner: yaml::Scanner,
    links: Charts,
}

impl Index {
    fn scan(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Result<(), IndexError> {
        let links = &mut self.links;
        self.scanner.write(chunk, out, &mut |link| links.map(link))
    }

    /// Decides by the first byte that says something, a byte order mark and whitespace aside.
    fn begin(&mut self, last: bool, out: &mut Vec<u8>) -> Result<(), IndexError> {
        if matches!(self.head.as_slice(), [0xfe | 0xff, ..]) {
            return Err(IndexError(
                "upstream's index is in UTF-16, which is not supported".to_owned(),
            ));
        }
        let text = self.head.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&self.head);
        match text.iter().find(|byte| !byte.is_ascii_whitespace()) {
            _ if BYTE_ORDER_MARK.starts_with(&self.head) && !last => return Ok(()),
            Some(b'<') => return Err(IndexError("upstream's index is no YAML but HTML or XML".to_owned())),
            None if !last && self.head.len() <= MAX_HEAD => return Ok(()),
            _ => {}
        }
        self.begun = true;
        let head = std::mem::take(&mut self.head);
        let text = head.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&head);
        out.extend_from_slice(&head[..head.len() - text.len()]);
        self.scan(text, out)
    }
}

impl IndexReader for Index {
    fn write(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Result<(), IndexError> {
        if self.begun {
            return self.scan(chunk, out);
        }
        self.head.extend_from_slice(chunk);
        self.begin(false, out)
    }

    fn end(&mut self, out: &mut Vec<u8>) -> Result<(), IndexError> {
        if !self.begun {
            self.begin(true, out)?;
        }
        let links = &mut self.links;
        self.scanner.end(out, &mut |link| links.map(link))
    }

    fn take_facts(&mut self) -> Vec<Fact> {
        self.links.0.take_facts()
    }

    fn escaped(&self) -> u64 {
        self.links.0.escaped()
    }
}

#[cfg(test)]
mod tests;
