//! Python package indexes: the simple repository API (PEP 503, 592, 629, 658, 691, 700, 714, 740;
//! <https://packaging.python.org/en/latest/specifications/simple-repository-api/>) and the older
//! `pypi/{project}/json`.
//!
//! Every path that ends in `/` is an index, for indexes exist outside `simple/` too. An index is HTML or JSON, as the
//! client's `Accept` says, and the links to files in it become ours; everything else in it stays as it is.

mod dated;
mod linked;
mod wanted;

use url::Url;

use super::accept::wish;
use super::html::{Tokenizer, Value};
use super::index::AsItIs;
use super::json::{JsonIndex, Place, Step};
use super::links::{self, LinkMap, Serves, Style};
use super::order::Term;
use super::release::{self, ListedBy, Tells};
use super::{
    ArtifactPath, Asked, Asset, Class, Fact, Form, Format, IndexError, IndexReader, Location, MadeAs, Reading, View,
    ViewContext,
};
use crate::config::{Doubt, Holds, OwnKey, Package, Remote};
use crate::headers::Names;

/// The format of `package: pypi`.
pub(super) struct Pypi;

static PACKAGE: Package = Package {
    keys: &[&INDEX_URL, &release::RELEASE_DATES],
    normal_name: normalized,
    headers: Names {
        kept: &["x-pypi-last-serial"],
        ..Names::NONE
    },
    ..Package::named("pypi")
};

/// What stands before `/simple/…` and `/pypi/…/json`. Absent: the index is under `base_url`.
static INDEX_URL: OwnKey = OwnKey {
    name: "index_url",
    follows: "check_mutable_updates",
    example: "\"https://...\"",
    help: "what stands before /simple/",
    holds: Holds::Url {
        implied: public_index,
        doubt: |url| {
            url.path().ends_with("/simple/").then_some(Doubt {
                message: "ends in /simple, which is added to it",
                hint: "leave the last part out",
            })
        },
    },
};
/// The public index, which answers `simple/` and `pypi/…/json` for [`PUBLIC_FILES_HOST`].
const PUBLIC_INDEX: &str = "https://pypi.org/";
/// Where that index keeps its files: a `base_url` on this host has no index of its own.
const PUBLIC_FILES_HOST: &str = "files.pythonhosted.org";

/// The public files host has no index of its own: it belongs to the public index, however its URL is spelled.
fn public_index(base_url: &Url) -> Option<Url> {
    let host = base_url.host_str()?;
    let is_files = host.strip_suffix('.').unwrap_or(host) == PUBLIC_FILES_HOST && base_url.port().is_none();
    is_files.then(|| Url::parse(PUBLIC_INDEX).ok()).flatten()
}

/// PEP 691: the chosen type first, then what an upstream that has only the other can answer.
const JSON: Form = Form {
    name: "json",
    accept: Some("application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"),
};
const HTML: Form = Form {
    name: "html",
    accept: Some("text/html, application/vnd.pypi.simple.v1+html;q=0.9, */*;q=0.1"),
};
const LEGACY: Form = Form {
    name: "",
    accept: Some("application/json, */*;q=0.1"),
};

const JSON_TYPES: [&str; 2] = [
    "application/vnd.pypi.simple.v1+json",
    "application/vnd.pypi.simple.latest+json",
];
const HTML_TYPES: [&str; 3] = [
    "text/html",
    "application/vnd.pypi.simple.v1+html",
    "application/vnd.pypi.simple.latest+html",
];

/// Where a JSON document names files: PEP 691, and the older API.
const FILES: &[Place] = &[
    &[Step::Key("files"), Step::Item, Step::Key("url")],
    &[Step::Key("urls"), Step::Item, Step::Key("url")],
    &[Step::Key("releases"), Step::Any, Step::Item, Step::Key("url")],
];

impl Format for Pypi {
    fn package(&self) -> &'static Package {
        &PACKAGE
    }

    fn terms(&self) -> &'static [Term] {
        wanted::TERMS
    }

    fn read(&self, asked: Asked<'_>) -> Reading {
        if let Some(mut location) = canonical(&asked.path) {
            if let Some(query) = &asked.path.query {
                location.push('?');
                location.push_str(query);
            }
            return Reading::Redirect(location);
        }
        let mut asset = Asset::new(asked.remote, asked.path, governing_path).named_by(index_naming);
        asset.nature = (is_index(&asset.governing) || is_legacy(&asset.governing)).then_some(Class::Mutable);
        if let Some(url) = index_url(&asset.remote, &asset.path) {
            asset.location = Location::Upstream(url);
        }
        (asset.package, asset.version) = package(&asset.governing);
        let path = asset.path.decoded.as_str();
        // Clients resolve the links of a simple index against its URL; those of the older API are absolute for all of them.
        if is_legacy(path) {
            asset.form = LEGACY;
            asset.media_type = "application/json";
            asset.view = Some(View::new(Style::Absolute, reader).held_by(asked.remote, &dated::OLDER));
        } else if is_index(path) {
            let Some(form) = negotiate(asked.accept) else {
                return Reading::NotAcceptable;
            };
            asset.form = form;
            asset.varies = true;
            asset.presented_as = presented_as(asked.accept);
            asset.media_type = "text/html; charset=utf-8";
            asset.tells = Some(Tells::Whole(dated::JSON.read));
            let releases = if form == JSON { &dated::JSON } else { &dated::HTML };
            let view = View::new(Style::Relative, reader).held_by(asked.remote, releases);
            let made_as = match form == JSON {
                true => is_made_json(asked.remote, &asset.path).then_some(MadeAs {
                    media_type: JSON_TYPES[0],
                    of: is_html,
                }),
                false => asked.remote.quarantine.is_enforced().then(|| MadeAs {
                    media_type: asset.presented_as.unwrap_or(asset.media_type),
                    of: is_json,
                }),
            };
            if form == HTML && asked.remote.quarantine.is_enforced() {
                // Only JSON has dates: upstream is asked for that.
                asset.form = JSON;
            }
            asset.view = Some(View { made_as, ..view });
        } else {
            asset.list_by(|file| listed_by(&file.governing));
        }
        Reading::Artifact(Box::new(asset))
    }
}

/// Where an index is that another host has than the files.
fn index_url(remote: &Remote, path: &ArtifactPath) -> Option<Url> {
    let index = remote.own.url(&INDEX_URL)?;
    is_on_index(&path.encoded).then(|| links::under(index, path))
}

/// PEP 658 metadata and detached signatures go as the file that they belong to.
fn governing_path(path: &str) -> &str {
    let mut path = path;
    while let Some(file) = path.strip_suffix(".metadata").or_else(|| path.strip_suffix(".asc")) {
        path = file;
    }
    path
}

/// Whether clients that want JSON get it made of a project's page in HTML, which has no place for dates.
fn is_made_json(remote: &Remote, path: &ArtifactPath) -> bool {
    release::fills_dates(remote) && project_of(path).is_some()
}

/// The project whose page is under `path`.
fn project_of(path: &ArtifactPath) -> Option<String> {
    let path = path.decoded.as_str();
    package(links::split_foreign(path).map_or(path, |(_, below)| below)).0
}

/// Whether clients read a simple index of this type as JSON.
fn is_json(content_type: &str) -> bool {
    matches!(Syntax::of(content_type, false), Syntax::Json)
}

/// Whether clients read a simple index of this type as HTML.
fn is_html(content_type: &str) -> bool {
    matches!(Syntax::of(content_type, false), Syntax::Html)
}

/// The form of an index (PEP 691, version and format selection). What is as welcome as the other is JSON where it is asked
/// for by name, HTML where it is not (`*/*`), and HTML without `Accept`.
fn negotiate(accept: Option<&str>) -> Option<Form> {
    let Some(header) = accept.filter(|header| !header.trim().is_empty()) else {
        return Some(HTML);
    };
    let best = |types: &[&str]| {
        let wishes = types
            .iter()
            .filter_map(|name| wish(header, name))
            .filter(|wish| wish.q > 0.0);
        wishes.reduce(|one, other| if other > one { other } else { one })
    };
    match (best(&JSON_TYPES), best(&HTML_TYPES)) {
        (None, None) => None,
        (Some(_), None) => Some(JSON),
        (None, Some(_)) => Some(HTML),
        (Some(json), Some(html)) => Some(if json > html || (json == html && json.precision == 3) {
            JSON
        } else {
            HTML
        }),
    }
}

/// PEP 691: `text/html` is an alias of `application/vnd.pypi.simple.v1+html`.
fn presented_as(accept: Option<&str>) -> Option<&'static str> {
    let header = accept?;
    let accepts = |name: &str| wish(header, name).is_some_and(|wish| wish.q > 0.0);
    (!accepts(HTML_TYPES[0]) && (accepts(HTML_TYPES[1]) || accepts(HTML_TYPES[2]))).then_some(HTML_TYPES[1])
}

fn link_map(context: &ViewContext<'_>) -> LinkMap {
    let base = context.remote.base_url.as_ref();
    match context.remote.own.url(&INDEX_URL) {
        Some(index) => {
            let mut bases: Vec<(&Url, Serves)> = vec![(index, is_on_index)];
            bases.extend(base.map(|base| (base, (|path| !is_on_index(path)) as Serves)));
            LinkMap::with_bases(context, bases)
        }
        None => LinkMap::new(context),
    }
}

fn reader(context: &ViewContext<'_>) -> Box<dyn IndexReader> {
    let links = link_map(context);
    match Syntax::of(context.content_type, is_legacy(&context.path.decoded)) {
        Syntax::Html => Box::new(HtmlIndex::new(links)),
        Syntax::Json => Box::new(JsonIndex::new(FILES, links)),
        Syntax::Refused => Box::new(Refused),
        Syntax::Nothing => Box::new(Unnamed {
            links: Some(links),
            read: Box::new(AsItIs),
        }),
    }
}

/// The simple index that would name the distribution file under `path`.
fn index_naming(path: &str) -> Option<String> {
    let file = governing_path(path).rsplit('/').next()?;
    let name = project(file)?;
    is_name(name).then(|| format!("simple/{}/", normalized(name)))
}

/// The project that a path belongs to, and the version of a file.
fn package(path: &str) -> (Option<String>, Option<String>) {
    let path = path.replace("%2F", "/").replace("%2f", "/");
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let is_file = |part: &&str| distribution(part).and_then(project).is_some();
    let is_page = is_index(&path) && !(parts.len() > 2 && parts.last().is_some_and(is_file));
    let of_page = || project_of_page(&parts, is_page).map(normalized);
    let file = parts.last().filter(|_| !is_page).and_then(|file| distribution(file));
    match file {
        None => (of_page(), None),
        Some(file) => {
            let name = project(file).filter(|name| is_name(name)).map(normalized);
            (name.or_else(of_page), dated::version(file))
        }
    }
}

/// The project that a path without a file's name is about: what follows the name of an API, else the last part of the path of an
/// index. `None`: it is no project's.
fn project_of_page<'p>(parts: &[&'p str], is_page: bool) -> Option<&'p str> {
    let after = |names: [&str; 2]| {
        parts
            .iter()
            .position(|part| names.contains(part))
            .map(|at| parts.get(at + 1))
    };
    let last = || parts.last().filter(|_| is_page);
    // The second is devpi's.
    match after(["simple", "+simple"]) {
        Some(project) => project.copied(),
        None => after(["pypi", "integrity"]).flatten().or_else(last).copied(),
    }
}

/// The distribution file that a file's name begins with: a checksum or whatever somebody keeps beside it goes as that file.
fn distribution(file: &str) -> Option<&str> {
    let mut file = file;
    while extension(file).is_none() {
        file = file.rsplit_once('.')?.0;
    }
    Some(file)
}

/// The index that names the distribution file under `path`, and the name that it has there.
fn listed_by(path: &str) -> Option<ListedBy> {
    let path = release::plain(path);
    Some(ListedBy {
        indexes: vec![index_naming(&path)?],
        forms: &[Some(JSON_TYPES[0]), Some(HTML_TYPES[0])],
        file: path.rsplit('/').next()?.to_owned(),
        steps: 0,
        tells_dates: true,
    })
}

/// Every path ending in `/`, and all of `simple/` but the files that some hosts keep there.
fn is_index(path: &str) -> bool {
    path.is_empty()
        || (path.ends_with('/') && !is_file_with_slash(path))
        || path == "simple"
        || (path.starts_with("simple/") && !is_distribution(path))
}

/// A file that somebody asks for with a slash behind its name, below a folder of files: no index has the name of one.
fn is_file_with_slash(path: &str) -> bool {
    let path = path.trim_end_matches('/');
    !path.starts_with("simple/") && is_distribution(path) && index_naming(path).is_some()
}

/// The older JSON API: `^pypi/.+/json$`.
fn is_legacy(path: &str) -> bool {
    path.strip_prefix("pypi/")
        .and_then(|rest| rest.strip_suffix("/json"))
        .is_some_and(|project| !project.is_empty())
}

/// What is asked of the index host, where that is another than the files'.
fn is_on_index(path: &str) -> bool {
    path == "simple" || path.starts_with("simple/") || is_legacy(path)
}

/// What distribution files end in (PEP 427, PEP 527).
const EXTENSIONS: [&str; 11] = [
    ".whl", ".tar.gz", ".zip", ".tar.bz2", ".tgz", ".tar.xz", ".tar.z", ".tar", ".egg", ".exe", ".msi",
];

fn extension(file: &str) -> Option<&'static str> {
    let ends = |extension: &&&str| {
        let start = file.len().checked_sub(extension.len());
        start
            .and_then(|at| file.get(at..))
            .is_some_and(|end| end.eq_ignore_ascii_case(extension))
    };
    EXTENSIONS.iter().find(ends).copied()
}

fn is_distribution(path: &str) -> bool {
    extension(governing_path(path)).is_some()
}

/// The project that a distribution file belongs to, not normalised.
fn project(file: &str) -> Option<&str> {
    let extension = extension(file)?;
    let stem = &file[..file.len() - extension.len()];
    if matches!(extension, ".whl" | ".egg") {
        // Every part has its hyphens escaped (PEP 427); whoever left them in is read as was meant.
        let mut hyphens = stem.match_indices('-').map(|(at, _)| at);
        let version = |at: &usize| stem.as_bytes().get(at + 1).is_some_and(u8::is_ascii_digit);
        let at = hyphens.clone().find(version).or_else(|| hyphens.next())?;
        return Some(&stem[..at]);
    }
    // Old source distributions have hyphens in the name and, rarely, in the version: it begins with a digit.
    let hyphens = stem.match_indices('-').map(|(at, _)| at);
    let mut versions = hyphens
        .rev()
        .filter(|at| stem.as_bytes().get(at + 1).is_some_and(u8::is_ascii_digit));
    let at = versions.next()?;
    // `1.0-1` is a version too (PEP 440, implicit post releases).
    let is_number = stem[at + 1..].bytes().all(|byte| byte.is_ascii_digit());
    let before = versions
        .next()
        .filter(|before| is_number && is_dotted(&stem[before + 1..at]));
    Some(&stem[..before.unwrap_or(at)])
}

/// The version that the name of a distribution file tells.
fn version_of(file: &str) -> Option<&str> {
    let extension = extension(file)?;
    let stem = file.get(..file.len() - extension.len())?;
    match extension {
        ".whl" | ".egg" => stem.split('-').nth(1),
        _ => Some(stem.rsplit_once('-')?.1),
    }
}

/// Whether a text is numbers parted by dots.
fn is_dotted(text: &str) -> bool {
    text.contains('.') && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
}

/// The letters that project names are made of (PEP 508).
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// PEP 503: runs of `-`, `_`, `.` are one `-`, letters are lower case.
fn normalized(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for character in name.chars() {
        if !matches!(character, '-' | '_' | '.') {
            out.push(character.to_ascii_lowercase());
        } else if !out.ends_with('-') {
            out.push('-');
        }
    }
    out
}

/// Where the one right spelling of an index is, relative to the one asked for; `None` if that is it already.
fn canonical(path: &ArtifactPath) -> Option<String> {
    if path.encoded == "simple" {
        return Some("simple/".to_owned());
    }
    let rest = path.encoded.strip_prefix("simple/")?;
    let (name, slash) = rest.strip_suffix('/').map_or((rest, false), |name| (name, true));
    if name.is_empty() || name.contains('/') || (!slash && is_distribution(name)) {
        return None;
    }
    let right = if is_name(name) {
        normalized(name)
    } else {
        name.to_owned()
    };
    match (slash, right == name) {
        (true, true) => None,
        (true, false) => Some(format!("../{right}/")),
        // A colon in the first segment would make it a scheme (RFC 3986 section 4.2).
        (false, _) if right.contains(':') => Some(format!("./{right}/")),
        (false, _) => Some(format!("{right}/")),
    }
}

/// What clients read an index as.
enum Syntax {
    Html,
    Json,
    /// No index, by its type.
    Nothing,
    /// Something that cannot be read here.
    Refused,
}

/// In UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Encodings, without the marks between their parts, whose markup is that of ASCII: no byte of `<`, `>`, `&`, quotes or spaces
/// is part of another character.
const LIKE_ASCII: [&str; 14] = [
    "", "utf8", "usascii", "ascii", "latin1", "gbk", "gb2312", "gb18030", "big5", "euckr", "eucjp", "shiftjis",
    "koi8r", "koi8u",
];

impl Syntax {
    /// By its `Content-Type`, of which pip looks at the beginning only.
    fn of(content_type: &str, legacy: bool) -> Self {
        let content_type = content_type.trim().to_ascii_lowercase();
        let simple = content_type
            .strip_prefix("application/vnd.pypi.simple.")
            .and_then(|rest| rest.split_once('+'))
            .map_or("", |(_, syntax)| syntax);
        if content_type.starts_with("application/json")
            || simple.starts_with("json")
            || (content_type.is_empty() && legacy)
        {
            Syntax::Json
        } else if content_type.is_empty()
            || content_type.starts_with("text/html")
            || content_type.starts_with("application/xhtml+xml")
            || simple.starts_with("html")
        {
            // In another, a letter can be what looks like none here.
            if is_like_ascii(&content_type) {
                Syntax::Html
            } else {
                Syntax::Refused
            }
        } else if content_type.contains("utf-16") {
            Syntax::Refused
        } else {
            Syntax::Nothing
        }
    }
}

/// Whether a `Content-Type` names no encoding, or one in which ASCII is what it is in UTF-8. Clients find the parameter
/// in several ways, so that each that looks like it has to.
fn is_like_ascii(content_type: &str) -> bool {
    content_type.split(';').skip(1).all(|parameter| {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, "utf-8"));
        if !name.trim().starts_with("charset") {
            return true;
        }
        let value: String = value
            .chars()
            .filter(|letter| !matches!(letter, '-' | '_' | '"' | '\'' | ' ' | '\t'))
            .collect();
        let numbered = ["iso8859", "windows125", "cp125"].iter().any(|family| {
            value
                .strip_prefix(family)
                .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
        });
        name.trim() == "charset" && (numbered || LIKE_ASCII.contains(&&*value))
    })
}

/// A document of a type that clients read and we cannot.
struct Refused;

impl IndexReader for Refused {
    fn write(&mut self, _chunk: &[u8], _out: &mut Vec<u8>) -> Result<(), IndexError> {
        Err(not_supported())
    }

    fn end(&mut self, _out: &mut Vec<u8>) -> Result<(), IndexError> {
        Ok(())
    }

    fn take_facts(&mut self) -> Vec<Fact> {
        Vec::new()
    }

    fn escaped(&self) -> u64 {
        0
    }
}

/// A document of a type that pip takes for no index. Poetry does not look at the type: the first byte tells what it is read as.
struct Unnamed {
    /// Until that byte has come.
    links: Option<LinkMap>,
    read: Box<dyn IndexReader>,
}

impl IndexReader for Unnamed {
    fn write(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Result<(), IndexError> {
        let is_blank = |byte: &u8| byte.is_ascii_whitespace() || BYTE_ORDER_MARK.contains(byte);
        if let Some(first) = chunk.iter().find(|byte| !is_blank(byte))
            && let Some(links) = self.links.take()
        {
            match first {
                b'<' => self.read = Box::new(HtmlIndex::new(links)),
                b'{' => self.read = Box::new(JsonIndex::new(FILES, links)),
                _ => {}
            }
        }
        self.read.write(chunk, out)
    }

    fn end(&mut self, out: &mut Vec<u8>) -> Result<(), IndexError> {
        self.read.end(out)
    }

    fn take_facts(&mut self) -> Vec<Fact> {
        self.read.take_facts()
    }

    fn escaped(&self) -> u64 {
        self.read.escaped()
    }
}

fn not_supported() -> IndexError {
    IndexError("upstream's index is in UTF-16 or another encoding unlike ASCII, which is not supported".to_owned())
}

/// Rewrites `<a href>` of an HTML index, whose other attributes and text pass.
struct HtmlIndex {
    links: LinkMap,
    tokenizer: Tokenizer,
    started: bool,
    /// Only the first `<base href>` counts.
    based: bool,
}

impl HtmlIndex {
    fn new(links: LinkMap) -> Self {
        HtmlIndex {
            links,
            tokenizer: Tokenizer::new(),
            started: false,
            based: false,
        }
    }
}

impl IndexReader for HtmlIndex {
    fn write(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Result<(), IndexError> {
        if !self.started && !chunk.is_empty() {
            self.started = true;
            // The byte order marks of UTF-16: no HTML that was promised begins so.
            if matches!(chunk[0], 0xfe | 0xff) {
                return Err(not_supported());
            }
        }
        let (links, based) = (&mut self.links, &mut self.based);
        self.tokenizer
            .write(chunk, out, &mut |element: &[u8], name: &[u8], value: &[u8]| {
                if !name.eq_ignore_ascii_case(b"href") {
                    return Value::Kept;
                }
                let href = || unescape(&String::from_utf8_lossy(value));
                if element.eq_ignore_ascii_case(b"base") {
                    if !*based {
                        links.set_base(&href());
                        *based = true;
                    }
                    // Our links are relative to our document.
                    return Value::Dropped;
                }
                // An empty link is to the document itself, ours as well as upstream's.
                if !element.eq_ignore_ascii_case(b"a") || value.trim_ascii().is_empty() {
                    return Value::Kept;
                }
                links.map(&href()).map_or(Value::Kept, Value::Replaced)
            })
    }

    fn end(&mut self, out: &mut Vec<u8>) -> Result<(), IndexError> {
        self.tokenizer.end(out);
        Ok(())
    }

    fn take_facts(&mut self) -> Vec<Fact> {
        self.links.take_facts()
    }

    fn escaped(&self) -> u64 {
        self.links.escaped()
    }
}

/// Resolves the character references of an attribute value (HTML, section 13.2.5.72): the numeric ones and those named
/// ones that a URL can be made of. Any other stays as it is written; none of them hides a host.
///
/// `htmlize` reads as browsers do; Pythons before 3.14 read `&copy=1` as `©=1`, and no Python reads anything in `&#1;`. A query
/// that has `&copy&` is meant as it stands.
fn unescape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut rest = value;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        match reference(&rest[1..]) {
            Some((character, length)) => {
                out.push(character);
                rest = &rest[1 + length..];
            }
            None => {
                out.push('&');
                rest = &rest[1..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// The character that a reference stands for, and the length of what follows its `&`.
fn reference(text: &str) -> Option<(char, usize)> {
    if let Some(number) = text.strip_prefix('#') {
        let (digits, radix, start) = match number.strip_prefix(['x', 'X']) {
            Some(digits) => (digits, 16, 2),
            None => (number, 10, 1),
        };
        let length = digits
            .bytes()
            .take_while(|&byte| char::from(byte).is_digit(radix))
            .count();
        if length == 0 {
            return None;
        }
        let code = u32::from_str_radix(&digits[..length], radix).ok();
        let character = code
            .filter(|&code| code != 0)
            .and_then(char::from_u32)
            .unwrap_or(char::REPLACEMENT_CHARACTER);
        let semicolon = usize::from(digits[length..].starts_with(';'));
        return Some((character, start + length + semicolon));
    }
    let length = text.bytes().take_while(u8::is_ascii_alphanumeric).count();
    let name = &text[..length];
    if text[length..].starts_with(';') {
        return NAMED
            .iter()
            .find(|(known, _)| *known == name)
            .map(|&(_, character)| (character, length + 1));
    }
    // Without a semicolon, only the oldest names count, and not before what makes a query of them.
    if text[length..].starts_with('=') {
        return None;
    }
    let old = ["amp", "AMP", "lt", "LT", "gt", "GT", "quot", "QUOT"].contains(&name);
    NAMED
        .iter()
        .find(|(known, _)| old && *known == name)
        .map(|&(_, character)| (character, length))
}

/// The named references for ASCII characters.
const NAMED: [(&str, char); 45] = [
    ("amp", '&'),
    ("AMP", '&'),
    ("lt", '<'),
    ("LT", '<'),
    ("gt", '>'),
    ("GT", '>'),
    ("quot", '"'),
    ("QUOT", '"'),
    ("apos", '\''),
    ("Tab", '\t'),
    ("NewLine", '\n'),
    ("excl", '!'),
    ("num", '#'),
    ("dollar", '$'),
    ("percnt", '%'),
    ("lpar", '('),
    ("rpar", ')'),
    ("ast", '*'),
    ("midast", '*'),
    ("plus", '+'),
    ("comma", ','),
    ("period", '.'),
    ("sol", '/'),
    ("colon", ':'),
    ("semi", ';'),
    ("equals", '='),
    ("quest", '?'),
    ("commat", '@'),
    ("lsqb", '['),
    ("lbrack", '['),
    ("bsol", '\\'),
    ("rsqb", ']'),
    ("rbrack", ']'),
    ("Hat", '^'),
    ("lowbar", '_'),
    ("UnderBar", '_'),
    ("grave", '`'),
    ("DiacriticalGrave", '`'),
    ("lcub", '{'),
    ("lbrace", '{'),
    ("verbar", '|'),
    ("vert", '|'),
    ("VerticalLine", '|'),
    ("rcub", '}'),
    ("rbrace", '}'),
];

#[cfg(test)]
mod tests;
