//! Helm chart repositories (<https://helm.sh/docs/topics/chart_repository/>): `index.yaml` names the charts by URLs that
//! Helm resolves against the repository's own. The index is YAML of 20 to 40 MB, so that it is rewritten line by line and
//! byte for byte, nothing of it parsed into memory: of YAML 1.2, as much is followed as it takes to know which scalar is
//! an item of `entries.*[].urls`.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Method;

use super::json::{self, Place, Step};
use super::links::{self, LinkMap, Serves, Style};
use super::yaml;
use super::{
    ArtifactPath, Class, Format, Handling, RewriteError, Rewriter, View, ViewContext, content_type_by_extension,
};
use crate::config::Remote;

/// The format of `package: helm`.
pub struct Helm;

/// Stands before a chart whose URL has a query: Helm drops the query of a relative URL (`ResolveReferenceURL` in its
/// `pkg/repo`), so that it goes into the path, where the file keeps its name.
const QUERY_PREFIX: &str = "-/query/";

/// Where an index names charts. It may be JSON, which Helm reads too.
const CHARTS: &[Place] = &[URLS];
const URLS: Place = &[
    Step::Key("entries"),
    Step::Any,
    Step::Item,
    Step::Key("urls"),
    Step::Item,
];

impl Format for Helm {
    fn handle(&self, _remote: &Remote, _method: &Method, path: ArtifactPath) -> Handling {
        let with_query = path.encoded.strip_prefix(QUERY_PREFIX).and_then(|rest| {
            let (query, encoded) = rest.split_once('/')?;
            let query = String::from_utf8(URL_SAFE_NO_PAD.decode(query).ok()?).ok()?;
            let clean = query.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
            let decoded = links::decode_once(encoded);
            clean.then(|| ArtifactPath {
                decoded,
                encoded: encoded.to_owned(),
                query: Some(query),
            })
        });
        Handling::Artifact(with_query.unwrap_or(path))
    }

    fn builtin_class(&self, path: &str) -> Option<Class> {
        path.ends_with("index.yaml").then_some(Class::Mutable)
    }

    /// A provenance file goes as its chart.
    fn governing_path<'a>(&self, path: &'a str) -> &'a str {
        path.strip_suffix(".prov").unwrap_or(path)
    }

    fn has_view(&self, _remote: &Remote, path: &str) -> Option<View> {
        (path == "index.yaml" || path.ends_with("/index.yaml")).then_some(View { absolute: false })
    }

    fn rewriter(&self, context: &ViewContext<'_>) -> Box<dyn Rewriter> {
        let bases = context.remote.base_url.iter();
        let bases = bases
            .map(|base| (base, (|path| !path.starts_with(QUERY_PREFIX)) as Serves))
            .collect();
        let links = Charts(LinkMap::with_bases(context, Style::Relative, bases));
        Box::new(Index {
            head: Vec::new(),
            links: Some(links),
            body: None,
        })
    }

    fn index_naming(&self, _remote: &Remote, _path: &str) -> Option<String> {
        Some("index.yaml".to_owned())
    }

    fn content_type(&self, path: &str) -> &'static str {
        if path.ends_with(".prov") {
            "text/plain; charset=utf-8"
        } else {
            content_type_by_extension(path)
        }
    }
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

/// An index before and after its first byte is known.
struct Index {
    head: Vec<u8>,
    /// Until they are moved into the body.
    links: Option<Charts>,
    body: Option<Body>,
}

enum Body {
    Json(json::Scanner, Charts),
    Yaml(Box<yaml::Scanner>, Charts),
}

impl Index {
    /// Decides by the first byte that says something, a byte order mark and whitespace aside.
    fn body(&mut self, last: bool, out: &mut Vec<u8>) -> Result<Option<&mut Body>, RewriteError> {
        if self.body.is_none() {
            if matches!(self.head.as_slice(), [0xfe | 0xff, ..]) {
                return Err(RewriteError(
                    "upstream's index is in UTF-16, which is not supported".to_owned(),
                ));
            }
            let mark: &[u8] = b"\xef\xbb\xbf";
            let text = self.head.strip_prefix(mark).unwrap_or(&self.head);
            let first = text.iter().find(|byte| !byte.is_ascii_whitespace());
            let json = match first {
                _ if mark.starts_with(&self.head) && !last => return Ok(None),
                Some(b'<') => return Err(RewriteError("upstream's index is no YAML but HTML or XML".to_owned())),
                Some(byte) => *byte == b'{',
                None if last || self.head.len() > MAX_HEAD => false,
                None => return Ok(None),
            };
            let Some(links) = self.links.take() else {
                return Ok(None);
            };
            let head = std::mem::take(&mut self.head);
            let mut body = if json {
                Body::Json(json::Scanner::new(CHARTS), links)
            } else {
                Body::Yaml(Box::new(yaml::Scanner::new(URLS)), links)
            };
            let start = if head.starts_with(mark) { mark.len() } else { 0 };
            out.extend_from_slice(&head[..start]);
            body.write(&head[start..], out)?;
            self.body = Some(body);
        }
        Ok(self.body.as_mut())
    }

    fn links(&mut self) -> Option<&mut LinkMap> {
        match (&mut self.body, &mut self.links) {
            (Some(Body::Json(_, links) | Body::Yaml(_, links)), _) | (None, Some(links)) => Some(&mut links.0),
            (None, None) => None,
        }
    }
}

impl Body {
    fn write(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Result<(), RewriteError> {
        match self {
            Body::Json(scanner, links) => scanner.write(chunk, out, &mut |link| links.map(link)),
            Body::Yaml(scanner, links) => scanner.write(chunk, out, &mut |link| links.map(link)),
        }
    }
}

impl Rewriter for Index {
    fn write(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Result<(), RewriteError> {
        if let Some(body) = &mut self.body {
            return body.write(chunk, out);
        }
        self.head.extend_from_slice(chunk);
        self.body(false, out).map(|_| ())
    }

    fn end(&mut self, out: &mut Vec<u8>) -> Result<(), RewriteError> {
        match self.body(true, out)? {
            Some(Body::Json(scanner, _)) => scanner.end(),
            Some(Body::Yaml(scanner, links)) => scanner.end(out, &mut |link| links.map(link)),
            None => Ok(()),
        }
    }

    fn take_foreign(&mut self) -> Vec<String> {
        self.links().map(LinkMap::take_foreign).unwrap_or_default()
    }

    fn escaped(&self) -> u64 {
        match (&self.body, &self.links) {
            (Some(Body::Json(_, links)), _) | (None, Some(links)) => links.0.escaped(),
            (Some(Body::Yaml(scanner, links)), _) => links.0.escaped() + scanner.unresolved(),
            (None, None) => 0,
        }
    }
}

#[cfg(test)]
mod tests;
