//! Links between a remote's documents and its files: the URL that a path has upstream, the path that an upstream URL
//! has here, and the one place that turns the links of a document into ours.
//!
//! A link is *plain* when it is under a base URL of the remote: it becomes the path below the remote. Any other becomes
//! `-/host/{authority}/{path}`. Both directions use one normal form (RFC 3986 section 6.2.2), so that what a client asks
//! after following a link names exactly the URL that the link named.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use percent_encoding::percent_decode_str;
use url::Url;

use super::{ArtifactPath, Fact, ViewContext};
use crate::config::Remote;
use crate::exact_url::ExactUrl;

/// What stands before the authority in the path of a file on another host.
pub const HOST_PREFIX: &str = "-/host/";

/// Stands for an authority that is none.
const INVALID: &str = "invalid";

/// Distinct foreign links of one document that are remembered to be reported once; later ones may be reported twice.
const MAX_SEEN: usize = 1 << 16;

/// The URL of `path` below the remote's base URL.
///
/// # Panics
/// Without a `base_url`, which only a local remote lacks: that one is never asked where upstream is.
pub fn under_base(remote: &Remote, path: &ArtifactPath) -> Url {
    under(
        remote.base_url.as_ref().expect("a remote with upstream has a base_url"),
        path,
    )
}

/// The URL of `path` below `base`, whose path ends in `/`: every encoding as it stands in the path, the query verbatim.
pub fn under(base: &Url, path: &ArtifactPath) -> Url {
    let mut url = base.clone();
    // `set_path` keeps percent-encodings and encodes only what no URL can hold.
    url.set_path(&format!("{}{}", base.path(), path.encoded));
    url.set_query(path.query.as_deref());
    url.set_fragment(None);
    url
}

/// Splits `-/host/{authority}/{path}` (decoded or encoded) into authority and path. Patterns are matched against the
/// latter.
pub fn split_foreign(path: &str) -> Option<(&str, &str)> {
    let rest = path.strip_prefix(HOST_PREFIX)?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    (!authority.is_empty()).then_some((authority, path))
}

/// The URLs that `-/host/{authority}/{path}` may stand for, https first. Which one it is says the index that named it:
/// compare [`named`] of each with what [`super::IndexReader::take_facts`] gave. `None` for any other path, and for an
/// authority that is none (credentials, spaces, a port that is no number …).
pub fn candidates(path: &ArtifactPath) -> Option<[Url; 2]> {
    let (authority, rest) = split_foreign(&path.encoded)?;
    // The brackets of an IPv6 address are not allowed in a path, so that they arrive encoded.
    let authority = percent_decode_str(authority).decode_utf8().ok()?;
    if !is_authority(&authority) {
        return None;
    }
    let build = |scheme: &str| {
        let mut url = Url::parse(&format!("{scheme}://{authority}/")).ok()?;
        url.set_path(rest);
        url.set_query(path.query.as_deref());
        Some(url)
    };
    Some([build("https")?, build("http")?])
}

/// Host and port and nothing else, of the characters that hosts are made of.
fn is_authority(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    // Dots alone would be a dot segment in our path.
    text.bytes().all(allowed) && text.bytes().any(|byte| byte != b'.')
}

/// The name of a URL that is compared and remembered: no fragment, no credentials, path and query in normal form.
pub fn named(url: &Url) -> String {
    let mut name = format!(
        "{}://{}/{}",
        url.scheme(),
        authority(url),
        collapse(&normal(path_of(url), PATH))
    );
    // An empty query gets lost on the way too easily to mean anything.
    if let Some(query) = url.query().filter(|query| !query.is_empty()) {
        name.push('?');
        name.push_str(&normal(query, QUERY));
    }
    name
}

/// Stands for whatever follows a prefix (RFC 6570 section 3.2.3). No name of a URL has braces.
const REST: &str = "{+rest}";
/// So many folders of a path are looked at for a prefix.
const MAX_PREFIXES: usize = 16;

/// The name of everything below the folder, or behind the `?`, that stands before the first variable of a template, whose URL
/// this is.
fn named_prefix(template: &Url) -> String {
    let name = named(template);
    let fixed = &name[..name.find("%7B").unwrap_or(name.len())];
    let end = fixed.rfind(['/', '?']).map_or(fixed.len(), |at| at + 1);
    format!("{}{REST}", &fixed[..end])
}

/// The names of the prefixes that a URL, of which this is the name, may be named by: the widest first.
pub fn prefixes(name: &str) -> Vec<String> {
    let root = name.find("://").map_or(0, |at| at + 3);
    let (path, query) = name
        .split_once('?')
        .map_or((name, None), |(path, query)| (path, Some(query)));
    let folders = path
        .match_indices('/')
        .map(|(at, _)| at + 1)
        .filter(move |end| *end > root);
    let ends = folders.take(MAX_PREFIXES).chain(query.map(|_| path.len() + 1));
    ends.map(|end| format!("{}{REST}", &name[..end])).collect()
}

/// Host and, unless it is the scheme's own, port.
fn authority(url: &Url) -> String {
    match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (host, _) => host.unwrap_or_default().to_owned(),
    }
}

/// Without the leading slash.
fn path_of(url: &Url) -> &str {
    url.path().strip_prefix('/').unwrap_or(url.path())
}

/// Which bytes stand unencoded.
pub type Allowed = [bool; 256];

const fn allowed(punctuation: &[u8]) -> Allowed {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut at = 0;
    while at < punctuation.len() {
        table[punctuation[at] as usize] = true;
        at += 1;
    }
    table
}

/// In a path (RFC 3986 section 3.3).
pub const PATH: &Allowed = &allowed(b"-._~!$&'()*+,;=:@/");
/// What is no URL becomes one segment.
const INVALID_PATH: &Allowed = &allowed(b"-._~");
/// In a query (section 3.4). `'` is encoded by every browser and by the `url` crate.
const QUERY: &Allowed = &allowed(b"-._~!$&()*+,;=:@/?");

/// RFC 3986 section 6.2.2: hexadecimal digits in upper case, nothing encoded that need not be, everything encoded that
/// has to. A `%` that begins no encoding becomes `%25`.
pub fn normal(text: &str, allowed: &Allowed) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let plain = rest
            .iter()
            .position(|&byte| !allowed[usize::from(byte)])
            .unwrap_or(rest.len());
        // Nothing, in the middle of a character: none of its bytes is plain.
        out.push_str(text.get(at..at + plain).unwrap_or_default());
        at += plain;
        match (bytes.get(at), decoded_byte(&bytes[at..])) {
            (None, _) => {}
            (_, Some(byte)) => {
                if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
                    out.push(char::from(byte));
                } else {
                    push_encoded(&mut out, byte);
                }
                at += 3;
            }
            (Some(&byte), None) => {
                push_encoded(&mut out, byte);
                at += 1;
            }
        }
    }
    out
}

fn push_encoded(out: &mut String, byte: u8) {
    out.push_str(percent_encoding::percent_encode_byte(byte));
}

/// The byte that a percent-encoding at the start of `bytes` stands for.
fn decoded_byte(bytes: &[u8]) -> Option<u8> {
    let digit = |at: usize| bytes.get(at).and_then(|&byte| char::from(byte).to_digit(16));
    match (bytes.first(), digit(1), digit(2)) {
        (Some(b'%'), Some(high), Some(low)) => u8::try_from(high * 16 + low).ok(),
        _ => None,
    }
}

/// A path in normal form, decoded once, as patterns see it: `%2F` stays `%2F`.
pub fn decode_once(encoded: &str) -> String {
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut rest = encoded.as_bytes();
    while let Some(&first) = rest.first() {
        match decoded_byte(rest) {
            Some(b'/') => {
                bytes.extend_from_slice(b"%2F");
                rest = &rest[3..];
            }
            Some(byte) => {
                bytes.push(byte);
                rest = &rest[3..];
            }
            None => {
                bytes.push(first);
                rest = &rest[1..];
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// Empty segments are dropped, as they are when a request is routed.
fn collapse(path: &str) -> String {
    let path = path.trim_start_matches('/');
    if !path.contains("//") {
        return path.to_owned();
    }
    let mut out = String::with_capacity(path.len());
    for byte in path.chars() {
        if byte != '/' || !out.ends_with('/') {
            out.push(byte);
        }
    }
    out
}

/// Whether a path in normal form holds what a request may not: a NUL, a backslash, dot segments behind an encoded slash.
pub fn is_refused(path: &str) -> bool {
    path.contains('%')
        && (path.contains("%00")
            || path.contains("%5C")
            || path
                .replace("%2F", "/")
                .split('/')
                .any(|segment| segment == "." || segment == ".."))
}

/// How a rewritten link refers to the remote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Style {
    /// From the document that holds it, so that one rewritten document serves every public base URL.
    Relative,
    /// From the remote's root URL, for clients that do not resolve links.
    Absolute,
}

/// Whether a path below the remote, in normal form, is asked of a base URL.
pub type Serves = fn(&str) -> bool;

/// One URL below which links are plain.
struct Base {
    /// For comparison only.
    url: Url,
    /// In normal form, empty segments kept.
    path: String,
    serves: Serves,
}

/// Turns the links of one document into ours.
pub struct LinkMap {
    /// What relative links are resolved against.
    document: Url,
    bases: Vec<Base>,
    /// What stands before a path below the remote.
    prefix: String,
    hash: RandomState,
    seen: HashSet<u64>,
    facts: Vec<Fact>,
    escaped: u64,
}

impl LinkMap {
    /// For the document of `context`; links below `base_url` are plain.
    pub fn new(context: &ViewContext<'_>) -> Self {
        let bases = context
            .remote
            .base_url
            .iter()
            .map(|url| (url, (|_| true) as Serves))
            .collect();
        Self::with_bases(context, bases)
    }

    /// For the document of `context`, with the base URLs given, each with the paths below the remote that go there.
    pub fn with_bases(context: &ViewContext<'_>, bases: Vec<(&Url, Serves)>) -> Self {
        let bases = bases
            .into_iter()
            .map(|(url, serves)| Base {
                url: url.clone(),
                path: normal(path_of(url), PATH),
                serves,
            })
            .collect();
        let prefix = match context.style {
            Style::Relative => match context.path.encoded.matches('/').count() {
                // Keeps a first segment with a colon from being read as a scheme (RFC 3986 section 4.2).
                0 => "./".to_owned(),
                depth => "../".repeat(depth),
            },
            Style::Absolute => format!("{}/", context.remote_url.trim_end_matches('/')),
        };
        LinkMap {
            document: context.document_url.clone(),
            bases,
            prefix,
            hash: RandomState::new(),
            seen: HashSet::new(),
            facts: Vec::new(),
            escaped: 0,
        }
    }

    /// The document says what its relative links are relative to (`<base href>`). What no link can be resolved against
    /// is ignored, as browsers do.
    pub fn set_base(&mut self, href: &str) {
        if let Ok(url) = self.document.join(href)
            && matches!(url.scheme(), "http" | "https")
        {
            self.document = url;
        }
    }

    /// What `link` becomes; `None` leaves it as it is: it has another scheme. What is no URL, and may be one to others,
    /// leads nowhere, and is counted.
    pub fn map(&mut self, link: &str) -> Option<String> {
        self.map_named(link, named)
    }

    /// What a template of links becomes, in which the client puts something in place of each of `variables`, braces included.
    /// On another host, whatever is below the part before the first of them counts as named. `None` as for [`LinkMap::map`].
    pub fn map_template(&mut self, template: &str, variables: &[&str]) -> Option<String> {
        let mut mapped = self.map_named(template, named_prefix)?;
        for variable in variables {
            mapped = mapped.replace(&normal(variable, PATH), variable);
        }
        Some(mapped)
    }

    /// Where the file is below the remote that `link` leads to, with its query, as the catalogue has it. `None`: no request can
    /// ask for it.
    pub fn path(&self, link: &str) -> Option<String> {
        let ExactUrl { url, query } = ExactUrl::join(&self.document, link).ok()?;
        let (path, authority) = (normal(path_of(&url), PATH), authority(&url));
        if !matches!(url.scheme(), "http" | "https") || is_refused(&path) || !is_authority(&authority) {
            return None;
        }
        let mut out = self.plain(&url, &path).unwrap_or_else(|| {
            let mut foreign = String::new();
            push_foreign(&mut foreign, &authority, &collapse(&path));
            foreign
        });
        if let Some(query) = query {
            out.push('?');
            out.push_str(&query);
        }
        Some(out)
    }

    /// `name`: what is remembered of a URL on another host.
    fn map_named(&mut self, link: &str, name: fn(&Url) -> String) -> Option<String> {
        let ExactUrl { url, query } = match ExactUrl::join(&self.document, link) {
            Ok(found) => found,
            Err(_) if has_other_scheme(link) => return None,
            Err(_) => {
                self.escaped += 1;
                let mut out = self.prefix.clone();
                push_foreign(&mut out, INVALID, &normal(link, INVALID_PATH).replace('%', "%25"));
                return Some(out);
            }
        };
        if !matches!(url.scheme(), "http" | "https") {
            return None;
        }
        let path = normal(path_of(&url), PATH);
        let mut out = self.prefix.clone();
        let authority = authority(&url);
        if is_refused(&path) || !is_authority(&authority) {
            // No request can ask for this path. It must not lead past us either, so it becomes one that no index names
            // (encoded once more): asked for, it is refused.
            self.escaped += 1;
            let authority = if is_authority(&authority) { &authority } else { INVALID };
            push_foreign(&mut out, authority, &collapse(&path).replace('%', "%25"));
        } else if let Some(plain) = self.plain(&url, &path) {
            out.push_str(&plain);
        } else {
            push_foreign(&mut out, &authority, &collapse(&path));
            self.remember(name(&url));
        }
        if let Some(query) = query {
            out.push('?');
            out.push_str(&query);
        }
        if let Some(fragment) = url.fragment() {
            out.push('#');
            out.push_str(fragment);
        }
        Some(out)
    }

    /// The path below the remote, if asking for it leads to this very URL.
    fn plain(&self, url: &Url, path: &str) -> Option<String> {
        self.bases.iter().find_map(|base| {
            let same = url.scheme() == base.url.scheme()
                && url.host() == base.url.host()
                && url.port_or_known_default() == base.url.port_or_known_default();
            let below = collapse(path.strip_prefix(&*base.path).filter(|_| same)?);
            // A path that looks like `-/host/…` would be read as one.
            let clear = below != HOST_PREFIX.trim_end_matches('/') && !below.starts_with(HOST_PREFIX);
            (clear && (base.serves)(&below)).then_some(below)
        })
    }

    fn remember(&mut self, name: String) {
        let hash = self.hash.hash_one(&name);
        if self.seen.contains(&hash) {
            return;
        }
        if self.seen.len() < MAX_SEEN {
            self.seen.insert(hash);
        }
        self.facts.push(Fact::Link(name));
    }

    /// See [`super::IndexReader::take_facts`].
    pub fn take_facts(&mut self) -> Vec<Fact> {
        std::mem::take(&mut self.facts)
    }

    /// See [`super::IndexReader::escaped`].
    pub fn escaped(&self) -> u64 {
        self.escaped
    }
}

/// Appends `-/host/{authority}/{path}`.
fn push_foreign(out: &mut String, authority: &str, path: &str) {
    out.push_str(HOST_PREFIX);
    out.push_str(&normal(authority, PATH));
    out.push('/');
    out.push_str(path);
}

/// Whether a text that is no URL names a scheme that we do not rewrite.
fn has_other_scheme(link: &str) -> bool {
    let link = link.trim_matches(|byte: char| byte <= ' ');
    let Some((scheme, _)) = link.split_once(':') else {
        return false;
    };
    let valid = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'));
    valid && !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https")
}

#[cfg(test)]
mod tests;
