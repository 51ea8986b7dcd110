//! One file per package type. A [`Format`] says what is particular to an ecosystem: which paths are mutable by nature,
//! where upstream is, which documents are rewritten and how, and what an error looks like. Everything else (caching,
//! ranges, conditions, streaming) is the same for all of them and lives elsewhere.
//!
//! A package type is added by one file here and one line in [`of`].

pub mod accept;
mod alpine;
pub mod docker;
mod generic;
mod helm;
mod html;
pub mod json;
pub mod links;
mod npm;
pub mod path;
mod pypi;
pub mod rpm;
#[cfg(test)]
pub(crate) mod testing;
mod yaml;

use http::Method;
use url::Url;

pub use crate::cache::Class;
use crate::cache::Expected;
use crate::config::{Package, Remote};

/// A path below a remote, decoded and checked once, when the request was routed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct ArtifactPath {
    /// What patterns see: percent-decoded once, no leading slash, no empty segments, no query; `%2F` stays `%2F`.
    pub decoded: String,
    /// The same in RFC 3986 section 6.2.2 normal form: what goes upstream and into the cache key.
    pub encoded: String,
    /// Verbatim, without `?`.
    pub query: Option<String>,
}

/// What is to be done with a path, before any policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handling {
    /// Cached, under this path (which may differ from the one asked for in spelling only).
    Artifact(ArtifactPath),
    /// Handed to upstream and back, never stored.
    PassThrough,
    /// Another spelling is the right one: a relative reference for `Location`, query included.
    Redirect(String),
    /// Refused by nature of the ecosystem.
    Refused { status: u16, detail: String },
}

/// Which of several documents under one URL is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Form {
    /// Part of the cache key; empty where a path has one document only.
    pub name: &'static str,
    /// What upstream is asked for in `Accept`; `None` sends `*/*`.
    pub accept: Option<&'static str>,
}

impl Form {
    /// A path with one document only.
    pub const ONLY: Form = Form { name: "", accept: None };
}

/// Everything that decides how one document is rewritten.
pub struct ViewContext<'a> {
    pub remote: &'a Remote,
    pub path: &'a ArtifactPath,
    /// Where the document came from, after redirects: its relative links are resolved against this.
    pub document_url: Url,
    /// Upstream's `Content-Type`, empty if there was none.
    pub content_type: &'a str,
    /// What stands before `/api/v1/remote/…` or, on a host bound to the remote, before `/{path}`: scheme, authority
    /// and prefix, no trailing slash. The URL of the remote's root, without trailing slash.
    pub remote_url: &'a str,
}

/// Why a document could not be rewritten. The client gets 502 with this text.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct RewriteError(pub String);

/// A body filter: bytes in, bytes out, an end. Works on the decoded (identity) document, holds a bounded amount of it.
pub trait Rewriter: Send {
    /// Takes the next piece and appends to `out` what can be said already.
    fn write(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Result<(), RewriteError>;
    /// The document is complete: appends the rest.
    fn end(&mut self, out: &mut Vec<u8>) -> Result<(), RewriteError>;
    /// Links to other hosts or outside `base_url` that were rewritten to `-/host/…` since the last call, as absolute
    /// URLs without fragment: what such a path may be asked for later.
    fn take_foreign(&mut self) -> Vec<String>;
    /// Links that should have been rewritten and could not be (unparsable): counted in production.
    fn escaped(&self) -> u64;
}

/// What is particular to one ecosystem. All methods are pure.
pub trait Format: Send + Sync {
    /// First look at a request: canonical spelling, pass-through, refusal.
    fn handle(&self, remote: &Remote, method: &Method, path: ArtifactPath) -> Handling {
        let _ = (remote, method);
        Handling::Artifact(path)
    }

    /// The class of `path` by nature, whatever the patterns say; `None` leaves it to them.
    fn builtin_class(&self, path: &str) -> Option<Class> {
        let _ = path;
        None
    }

    /// The path whose patterns and quarantine decide for `path` (`X.asc` goes as `X` does).
    fn governing_path<'a>(&self, path: &'a str) -> &'a str {
        path
    }

    /// The absolute URL that `path` has upstream, query included. Only called for remotes with a `base_url` and paths
    /// that are not under `-/host/`.
    fn upstream_url(&self, remote: &Remote, path: &ArtifactPath) -> Url {
        links::under_base(remote, path)
    }

    /// The document of `path` that fits the client's `Accept` best; `None` where nothing fits: 406.
    fn negotiate(&self, path: &str, accept: Option<&str>) -> Option<Form> {
        let _ = (path, accept);
        Some(Form::ONLY)
    }

    /// The name by which a client that accepts no other knows the type of an HTML document under `path`.
    fn presented_as(&self, path: &str, accept: Option<&str>) -> Option<&'static str> {
        let _ = (path, accept);
        None
    }

    /// Whether `path` has more than one form, so that answers carry `Vary: Accept`.
    fn varies(&self, path: &str) -> bool {
        let _ = path;
        false
    }

    /// Whether the document under `path` is rewritten before clients see it.
    fn has_view(&self, remote: &Remote, path: &str) -> Option<View> {
        let _ = (remote, path);
        None
    }

    /// The filter that writes the view. Only called where [`Format::has_view`] answers.
    fn rewriter(&self, context: &ViewContext<'_>) -> Box<dyn Rewriter> {
        let _ = context;
        unreachable!("a format without views is never asked for a rewriter")
    }

    /// For a file on another host that no index has named yet: the index document (path below the remote) that would
    /// name it. `path` is the path on that other host.
    fn index_naming(&self, remote: &Remote, path: &str) -> Option<String> {
        let _ = (remote, path);
        None
    }

    /// The manifest (path below the remote) that a file of a fixed name goes with: the two must come from one moment.
    fn manifest_of(&self, path: &str) -> Option<String> {
        let _ = path;
        None
    }

    /// Whether `path` is a manifest itself.
    fn is_manifest(&self, path: &str) -> bool {
        let _ = path;
        false
    }

    /// The files of fixed names that a manifest names.
    fn members(&self, manifest: &str, body: &[u8]) -> Vec<Member> {
        let _ = (manifest, body);
        Vec::new()
    }

    /// `Content-Type` where upstream named none.
    fn content_type(&self, path: &str) -> &'static str {
        content_type_by_extension(path)
    }

    /// The digest that `path` names its content by: such content never changes, and is verified.
    fn names_content(&self, path: &str) -> Option<Expected> {
        let _ = path;
        None
    }

    /// The path under which content that is named by its digest is stored: the same for all paths of a remote that name
    /// this content, so that it is fetched and kept once. Only for what [`Format::names_content`] answers for.
    fn stored_as(&self, path: &str) -> Option<String> {
        let _ = path;
        None
    }

    /// Whether `path` is a name that stands for content with a digest, another one after a while (a tag).
    fn is_reference(&self, path: &str) -> bool {
        let _ = path;
        false
    }

    /// The path that names the content with `digest`, next to the reference `path`.
    fn referent(&self, path: &str, digest: &str) -> Option<String> {
        let _ = (path, digest);
        None
    }

    /// What upstream's token service has to allow for `path`; `None` where an ecosystem has no such thing.
    fn token_scope(&self, remote: &Remote, path: &str) -> Option<String> {
        let _ = (remote, path);
        None
    }

    /// The status to pass on where upstream answers an error.
    fn status_of(&self, upstream: u16) -> u16 {
        upstream
    }

    /// The ecosystem's own form of an error at `path`: content type and body. `None`: `{"detail", "remote", "path"}`.
    fn error_body(&self, status: u16, detail: &str, path: Option<&str>) -> Option<(&'static str, String)> {
        let _ = (status, detail, path);
        None
    }

    /// What an error says in `Warning`, for ecosystems whose clients print that.
    fn warning(&self, status: u16, detail: &str) -> Option<String> {
        let _ = (status, detail);
        None
    }
}

/// A file of a fixed name, as its manifest knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Decoded, below the remote.
    pub path: String,
    /// `sha256`, `sha512`; others cannot be verified here.
    pub checksum_type: String,
    /// Lower-case hexadecimal.
    pub checksum: String,
    /// Clients that read the manifest read this as well.
    pub is_read_with_it: bool,
}

/// How a document is rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// The links it holds are absolute, so that each public base URL has a view of its own.
    pub absolute: bool,
}

/// The format of a package type.
pub fn of(package: Package) -> &'static dyn Format {
    match package {
        Package::Generic => &generic::Generic,
        Package::Alpine => &alpine::Alpine,
        Package::Rpm => &rpm::Rpm,
        Package::Docker => &docker::Docker,
        Package::Pypi => &pypi::Pypi,
        Package::Npm => &npm::Npm,
        Package::Helm => &helm::Helm,
    }
}

/// Where what is asked for as `path` is stored: its own path, or the one that it shares.
pub fn stored_path(format: &dyn Format, path: &ArtifactPath) -> String {
    let shared = format.stored_as(&path.decoded);
    shared.unwrap_or_else(|| match &path.query {
        Some(query) => format!("{}?{query}", path.encoded),
        None => path.encoded.clone(),
    })
}

/// `Content-Type` by file name extension, `application/octet-stream` for the rest.
pub fn content_type_by_extension(path: &str) -> &'static str {
    let name = path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase();
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    match extension {
        "html" | "htm" => "text/html; charset=utf-8",
        "txt" | "log" | "md" | "asc" | "sha256" | "sha512" | "sha256sums" => "text/plain; charset=utf-8",
        "json" => "application/json",
        "xml" => "application/xml",
        "yaml" | "yml" => "application/yaml",
        "gz" | "tgz" => "application/gzip",
        "bz2" => "application/x-bzip2",
        "xz" => "application/x-xz",
        "zst" => "application/zstd",
        "zip" | "whl" => "application/zip",
        "tar" => "application/x-tar",
        "rpm" => "application/x-rpm",
        "deb" => "application/vnd.debian.binary-package",
        "jar" => "application/java-archive",
        "pdf" => "application/pdf",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "js" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        _ => "application/octet-stream",
    }
}
