//! npm registries (<https://github.com/npm/registry/blob/main/docs/REGISTRY-API.md>): a package's document (packument)
//! in a full and an abbreviated form, the documents of single versions, and tarballs, which every version names by an
//! absolute URL. The other services of a registry are passed through where they only read, and refused where they write.

mod dated;
mod excerpt;
mod integrity;
mod package_lock;

use http::Method;

use super::accept::wish;
use super::index::AsItIs;
use super::json::{JsonIndex, Place, Step};
use super::links::{self, LinkMap, Style};
use super::order::Term;
use super::release::{self, ListedBy, Tells};
use super::{
    ArtifactPath, Asked, Asset, Class, Fact, Form, Format, IndexError, IndexReader, Location, Reading, View,
    ViewContext,
};
use crate::config::{Holds, OwnKey, Package};
use crate::headers::Names;

/// The format of `package: npm`.
pub(super) struct Npm;

static PACKAGE: Package = Package {
    keys: &[&TARBALL_URLS, &release::RELEASE_DATES],
    metadata_pattern: Some(r"'^(?!.*\.tgz$).*'"),
    headers: Names {
        kept: &["npm-notice"],
        ..Names::NONE
    },
    ..Package::named("npm")
};

/// What `dist.tarball` names.
static TARBALL_URLS: OwnKey = OwnKey {
    name: "tarball_urls",
    follows: "client_revalidation",
    example: REWRITE,
    help: "`upstream` leaves dist.tarball at the public registry",
    holds: Holds::Word(&[REWRITE, "upstream"]),
};
const REWRITE: &str = "rewrite";

const FULL: Form = Form {
    name: "full",
    accept: Some("application/json, */*;q=0.1"),
};
/// <https://github.com/npm/registry/blob/main/docs/responses/package-metadata.md>
const ABBREVIATED: Form = Form {
    name: "abbreviated",
    accept: Some("application/vnd.npm.install-v1+json; q=1.0, application/json; q=0.8, */*; q=0.1"),
};
/// How clients that install ask for the abbreviated form.
const INSTALL_TYPE: &str = "application/vnd.npm.install-v1+json";
const VERSION: Form = Form {
    name: "",
    accept: Some("application/json, */*;q=0.1"),
};

/// Where packuments and version documents name tarballs; npm takes `_resolved` where there is no `dist`.
/// `dist.attestations.url` is none: clients append its path to the registry's URL themselves.
const TARBALLS: &[Place] = &[
    &[VERSIONS, Step::Any, DIST, TARBALL],
    &[VERSIONS, Step::Any, RESOLVED],
    &[DIST, TARBALL],
    &[RESOLVED],
    &[RESTRICTED, VERSIONS, Step::Any, DIST, TARBALL],
    &[RESTRICTED, VERSIONS, Step::Any, RESOLVED],
];
const VERSIONS: Step = Step::Key("versions");
const DIST: Step = Step::Key("dist");
const TARBALL: Step = Step::Key("tarball");
const RESOLVED: Step = Step::Key("_resolved");
const RESTRICTED: Step = Step::Key("policyRestrictions");

impl Format for Npm {
    fn package(&self) -> &'static Package {
        &PACKAGE
    }

    fn terms(&self) -> &'static [Term] {
        &[package_lock::PACKAGE_LOCK]
    }

    fn read(&self, asked: Asked<'_>) -> Reading {
        let (remote, method) = (asked.remote, asked.method);
        let path = undoubled(&remote.name, asked.path);
        let reads = matches!(*method, Method::GET | Method::HEAD);
        if path.encoded == "-" || (path.encoded.starts_with("-/") && !path.encoded.starts_with(links::HOST_PREFIX)) {
            let mut asset = Asset::new(remote, path, |path| path);
            asset.package = package(&asset.governing).0;
            return match service(method, reads, asset) {
                Reading::PassThrough(asset) if remote.quarantine.is_enforced() => tags_without_held(asset),
                reading => reading,
            };
        }
        if !reads {
            let what = if *method == Method::PUT {
                "publishing and changing"
            } else {
                "changing"
            };
            return refused(
                405,
                format!("{what} packages is not possible through this proxy: use the registry itself"),
            );
        }
        let mut asset = Asset::new(remote, canonical(path), |path| path).named_by(index_naming);
        (asset.package, asset.version) = package(&asset.governing);
        let Some(document) = document(&asset.path.decoded) else {
            asset.list_by(|file| listed_by(&file.governing));
            return Reading::Artifact(Box::new(asset));
        };
        // A registry wants the slash of a scope encoded in the URL of a document, and as it stands in that of a tarball.
        if let Some((scope, rest)) = scoped(&asset.path.encoded)
            && matches!(asset.location, Location::Upstream(_))
        {
            let path = ArtifactPath {
                encoded: format!("@{scope}%2f{rest}"),
                ..asset.path.clone()
            };
            asset.location = Location::Upstream(links::under_base(remote, &path));
        }
        asset.lists = true;
        let is_package = document == Document::Package;
        let holds = remote.quarantine.is_on() || release::fills_dates(remote);
        asset.form = match document {
            // The abbreviated form has no dates.
            Document::Package if holds => FULL,
            Document::Package => negotiate(asked.accept),
            Document::Version => VERSION,
        };
        asset.varies = is_package && !holds;
        asset.tells = is_package.then_some(Tells::Whole(dated::PACKUMENT.read));
        asset.media_type = "application/json";
        // Clients bring the registry's own tarball URLs back here (`replace-registry-host`) where they stay as they are.
        let view = match remote.own.word(&TARBALL_URLS) == REWRITE {
            true => Some(View::new(Style::Absolute, reader)),
            false => (holds && is_package).then_some(View::new(Style::Relative, AsItIs::reader)),
        };
        asset.view = match is_package {
            true => view.map(|view| view.held_by(remote, &dated::PACKUMENT)),
            false => view,
        };
        if remote.quarantine.is_enforced()
            && let (Some(name), Some(version)) = (&asset.package, &asset.version)
        {
            asset.excerpt = Some(Box::new(excerpt::of_version(name, version)));
        }
        Reading::Artifact(Box::new(asset))
    }

    /// npm prints the text of `error`.
    fn error_body(&self, status: u16, detail: &str, _path: Option<&str>) -> Option<(&'static str, String)> {
        let text = if status == 404 {
            format!("Not found: {detail}")
        } else {
            detail.to_owned()
        };
        Some(("application/json", serde_json::json!({ "error": text }).to_string()))
    }
}

/// npm before 11.3 puts the registry's path in front of a URL that has it already.
fn undoubled(remote: &str, path: ArtifactPath) -> ArtifactPath {
    let doubled = format!("api/v1/remote/{remote}/");
    let mut rest = path.encoded.as_str();
    while let Some(shorter) = rest.strip_prefix(&doubled) {
        rest = shorter;
    }
    if rest.len() == path.encoded.len() {
        return path;
    }
    ArtifactPath {
        decoded: links::decode_once(rest),
        encoded: rest.to_owned(),
        query: path.query,
    }
}

/// The form of a package's document. What is as welcome as the other is the abbreviated form where it is asked for by name,
/// else the full one. A registry refuses nobody for an `Accept`.
fn negotiate(accept: Option<&str>) -> Form {
    let header = accept.unwrap_or_default();
    let abbreviated = wish(header, INSTALL_TYPE).filter(|wish| wish.q > 0.0);
    let full = wish(header, "application/json").filter(|wish| wish.q > 0.0);
    match (abbreviated, full) {
        (Some(short), _) if short.precision < 3 => FULL,
        (Some(_), None) => ABBREVIATED,
        (Some(short), Some(full)) if short.q >= full.q => ABBREVIATED,
        _ => FULL,
    }
}

fn reader(context: &ViewContext<'_>) -> Box<dyn IndexReader> {
    let links = match &context.remote.base_url {
        // A path that we would read as something else than a file goes by its host.
        Some(base) => LinkMap::with_bases(context, vec![(base, is_file)]),
        None => LinkMap::new(context),
    };
    let json = JsonIndex::new(TARBALLS, links);
    let content_type = context.content_type.to_ascii_lowercase();
    let textual = content_type.is_empty() || content_type.contains("json") || content_type.starts_with("text/");
    Box::new(Body {
        json,
        kind: if textual { Kind::Json } else { Kind::Unknown },
    })
}

/// The document that would name the tarball under `path`, that of its package: what stands before `/-/`, else the scope and
/// name, else the first segment.
fn index_naming(path: &str) -> Option<String> {
    let path = path.replace("%2F", "/").replace("%2f", "/");
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    let scope_at = |at: usize| segments.get(at).is_some_and(|segment| segment.starts_with('@'));
    let name = if let Some(dash) = segments.iter().position(|&segment| segment == "-") {
        let from = if dash >= 2 && scope_at(dash - 2) {
            dash - 2
        } else {
            dash.checked_sub(1)?
        };
        &segments[from..dash]
    } else if let Some(scope) = (0..segments.len()).find(|&at| scope_at(at)) {
        segments.get(scope..scope + 2)?
    } else {
        segments.get(..1).filter(|_| segments.len() > 1)?
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"@-._~".contains(&byte);
    let valid = name.iter().all(|segment| segment.bytes().all(plain)) && name != ["-"] && name != ["@"];
    valid.then(|| name.join("/"))
}

/// The packument that names the tarball under `path`, and the name that it has there.
fn listed_by(path: &str) -> Option<ListedBy> {
    let path = release::plain(path);
    let file = path
        .rsplit('/')
        .next()
        .filter(|file| file.to_ascii_lowercase().ends_with(".tgz"))?;
    Some(ListedBy {
        indexes: vec![index_naming(&path)?],
        forms: &[Some(INSTALL_TYPE), Some("application/json")],
        file: file.to_owned(),
        steps: 0,
        tells_dates: true,
    })
}

/// The package that a path belongs to, and the version of a tarball or a document.
fn package(path: &str) -> (Option<String>, Option<String>) {
    let plain = release::plain(path);
    if let Some(service) = plain.strip_prefix("-/") {
        return (package_of_service(service), None);
    }
    match document(&plain) {
        None => package_of_file(&plain),
        Some(Document::Package) => (Some(plain), None),
        Some(Document::Version) => match plain.rsplit_once('/') {
            Some((name, version)) => (Some(name.to_owned()), Some(version.to_owned())),
            None => (Some(plain), None),
        },
    }
}

/// A service; that which tells of tags, where they may not name what is held, is answered from the packument.
fn tags_without_held(mut asset: Box<Asset>) -> Reading {
    let tells_of_tags = release::plain(&asset.path.decoded).ends_with("/dist-tags");
    let Some(name) = asset.package.as_deref().filter(|_| tells_of_tags) else {
        return Reading::PassThrough(asset);
    };
    asset.excerpt = Some(Box::new(excerpt::of_tags(name)));
    asset.nature = Some(Class::Mutable);
    asset.lists = true;
    Reading::Artifact(asset)
}

/// The package that a service tells of (`dist-tags`, attestations): what follows `-/`.
fn package_of_service(service: &str) -> Option<String> {
    let name = if let Some(rest) = service.strip_prefix("package/") {
        let parts = if rest.starts_with('@') { 2 } else { 1 };
        let end = rest.match_indices('/').nth(parts - 1).map_or(rest.len(), |(at, _)| at);
        &rest[..end]
    } else {
        let of_version = service.strip_prefix("npm/v1/attestations/")?;
        let at = of_version.rfind('@').filter(|at| *at > 0);
        &of_version[..at.unwrap_or(of_version.len())]
    };
    (!name.is_empty()).then(|| name.to_owned())
}

/// The package and version of what is no document. A path without `/-/` and scope names it by its first part, unless the name of
/// the tarball says otherwise.
fn package_of_file(path: &str) -> (Option<String>, Option<String>) {
    let name = index_naming(path);
    let stem = release::stem(path, ".tgz");
    let base = name.as_deref().and_then(|name| name.rsplit('/').next());
    let version = stem
        .zip(base)
        .and_then(|(stem, base)| stem.strip_prefix(base)?.strip_prefix('-'));
    let is_guess = !path.split('/').any(|part| part == "-" || part.starts_with('@'));
    let fits = version.is_some_and(|version| semver::Version::parse(version).is_ok());
    let of_file = stem.and_then(release::name_and_version).filter(|_| is_guess && !fits);
    match of_file {
        Some((name, version)) => (Some(name.to_owned()), Some(version.to_owned())),
        None => {
            let version = version.map(str::to_owned);
            (name, version)
        }
    }
}

fn refused(status: u16, detail: String) -> Reading {
    Reading::Refused { status, detail }
}

/// The registry's services, all below `-/`.
fn service(method: &Method, reads: bool, asset: Asset) -> Reading {
    let path = asset.path.decoded.as_str();
    let is = |name: &str| path == name || path.strip_suffix('/') == Some(name);
    let below = |name: &str| {
        path.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with('/') && rest.len() > 1)
    };
    let tags = path
        .strip_prefix("-/package/")
        .and_then(|rest| rest.split_once("/dist-tags"));
    if below("-/npm/v1/security") && (reads || *method == Method::POST) {
        return Reading::PassThrough(Box::new(asset));
    }
    let listed = is("-/v1/search") || is("-/npm/v1/keys") || is("-/ping") || below("-/npm/v1/attestations");
    if reads && (listed || tags.is_some_and(|(package, rest)| !package.is_empty() && rest.is_empty())) {
        return Reading::PassThrough(Box::new(asset));
    }
    let (status, what) = if tags.is_some() && !reads {
        (405, "changing dist-tags")
    } else if is("-/whoami") || below("-/npm/v1/user") || is("-/npm/v1/user") {
        (403, "asking who is logged in (nobody is: the proxy has no accounts)")
    } else if below("-/user") || is("-/v1/login") || below("-/v1/login") || below("-/v1/done") {
        (405, "logging in")
    } else if is("-/npm/v1/tokens") || below("-/npm/v1/tokens") {
        (405, "managing tokens")
    } else if reads {
        (404, "this service of the registry")
    } else {
        (405, "changing anything")
    };
    refused(
        status,
        format!("{what} is not possible through this proxy: use the registry itself"),
    )
}

/// Whether asking for a path below the remote leads to that very file upstream.
fn is_file(encoded: &str) -> bool {
    let path = &*links::decode_once(encoded);
    let other_spelling = scoped(encoded).is_some_and(|(scope, rest)| encoded != format!("@{scope}/{rest}"));
    !other_spelling
        && path != "-"
        && !path.starts_with("-/")
        && !path.starts_with("api/v1/remote/")
        && document(path).is_none()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Document {
    Package,
    Version,
}

/// What document a path names (`{name}`, `{name}/{version or tag}`, scoped or not), if any.
fn document(path: &str) -> Option<Document> {
    let path = path.strip_suffix('/').unwrap_or(path);
    let tarball = path.len() >= 4 && path.as_bytes()[path.len() - 4..].eq_ignore_ascii_case(b".tgz");
    if path.is_empty() || tarball {
        return None;
    }
    let rest = match scoped(path) {
        Some((_, rest)) => rest,
        None if path.starts_with('@') => return None,
        None => path,
    };
    let mut segments = rest.split('/');
    let name = segments.next()?;
    match (segments.next(), segments.next()) {
        _ if name == "-" || name.is_empty() => None,
        (None, _) => Some(Document::Package),
        (Some(version), None) if version != "-" => Some(Document::Version),
        _ => None,
    }
}

/// Splits `@scope/name…`, the slash and the at sign encoded or not, into scope and name.
fn scoped(path: &str) -> Option<(&str, &str)> {
    let rest = path.strip_prefix('@').or_else(|| path.strip_prefix("%40"))?;
    let (scope, name) = ["/", "%2F", "%2f"]
        .into_iter()
        .filter_map(|slash| rest.split_once(slash))
        .min_by_key(|(scope, _)| scope.len())?;
    (!scope.is_empty() && !name.is_empty()).then_some((scope, name))
}

/// The one spelling of a path with a scope: `@scope/name…`, of documents and tarballs alike.
fn canonical(path: ArtifactPath) -> ArtifactPath {
    match scoped(&path.encoded).map(|(scope, rest)| format!("@{scope}/{rest}")) {
        Some(encoded) if encoded != path.encoded => ArtifactPath {
            decoded: links::decode_once(&encoded),
            encoded,
            query: path.query,
        },
        _ => path,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Json,
    /// Of a type that is neither JSON nor text: JSON if it begins so.
    Unknown,
    /// A file that only looks like a document by its path.
    Other,
}

/// A packument or version document, or what some registry keeps under such a path.
struct Body {
    json: JsonIndex,
    kind: Kind,
}

impl IndexReader for Body {
    fn write(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Result<(), IndexError> {
        if self.kind == Kind::Unknown {
            match chunk
                .iter()
                .find(|byte| !byte.is_ascii_whitespace() && !b"\xef\xbb\xbf".contains(byte))
            {
                Some(b'{') => self.kind = Kind::Json,
                Some(_) => self.kind = Kind::Other,
                None => {}
            }
        }
        match self.kind {
            Kind::Json | Kind::Unknown => self.json.write(chunk, out),
            Kind::Other => {
                out.extend_from_slice(chunk);
                Ok(())
            }
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) -> Result<(), IndexError> {
        if self.kind == Kind::Json {
            self.json.end(out)
        } else {
            Ok(())
        }
    }

    fn take_facts(&mut self) -> Vec<Fact> {
        self.json.take_facts()
    }

    fn escaped(&self) -> u64 {
        self.json.escaped()
    }
}

#[cfg(test)]
mod tests;
