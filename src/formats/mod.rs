//! One file per package type. A [`Format`] says what is particular to an ecosystem: it reads a path to an [`Asset`], which
//! holds all that is known of it, and says what an error looks like; what reads an ecosystem's index, to its [`Fact`]s, is part
//! of the asset. Everything else (caching, ranges, conditions, streaming) is the same for all of them and lives elsewhere.
//!
//! A package type is added by one file here and one line in [`FORMATS`].

pub mod accept;
mod alpine;
pub mod asset;
mod cargo;
mod docker;
pub mod excerpt;
mod generic;
mod helm;
pub mod hold;
mod html;
mod index;
pub mod json;
pub mod links;
mod npm;
pub mod order;
pub mod path;
mod pypi;
pub mod release;
pub mod root;
mod rpm;
pub mod stand_in;
mod tar;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod unpack;
mod yaml;

use std::sync::Arc;

use http::Method;
use url::Url;

pub use asset::{Asset, Binding, Foreign, Location, MadeAs, Member, View};
pub use index::{Fact, IndexError, IndexReader};
use links::Style;
use order::Term;
use root::Root;

pub use crate::cache::Class;
use crate::config::{Package, Remote, RemoteType};

/// A path below a remote, decoded and checked once, when the request was routed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct ArtifactPath {
    /// What patterns see: percent-decoded once, no leading slash, no empty segments, no query; `%2F` stays `%2F`.
    pub decoded: String,
    /// This path in RFC 3986 section 6.2.2 normal form: what goes upstream and into the cache key.
    pub encoded: String,
    /// Verbatim, without `?`.
    pub query: Option<String>,
}

/// What is asked for.
pub struct Asked<'a> {
    pub remote: &'a Arc<Remote>,
    pub method: &'a Method,
    pub path: ArtifactPath,
    /// The client's `Accept`.
    pub accept: Option<&'a str>,
}

/// What is to be done with what is asked for, before any policy.
#[derive(Debug, Clone)]
pub enum Reading {
    /// Cached. The path may differ from the one asked for in spelling.
    Artifact(Box<Asset>),
    /// Handed to upstream and back, never stored.
    PassThrough(Box<Asset>),
    /// Another spelling is the right one: a relative reference for `Location`, query included.
    Redirect(String),
    /// Refused by nature of the ecosystem.
    Refused { status: u16, detail: String },
    /// None of the forms that the client accepts can be served: 406.
    NotAcceptable,
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
    /// How its links are written.
    pub style: Style,
    /// Where the document came from, after redirects: its relative links are resolved against this.
    pub document_url: Url,
    /// Upstream's `Content-Type`, empty if there was none.
    pub content_type: &'a str,
    /// What stands before `/api/v1/remote/…` or, on a host bound to the remote, before `/{path}`: scheme, authority
    /// and prefix, no trailing slash. The URL of the remote's root, without trailing slash.
    pub remote_url: &'a str,
}

/// What is particular to one ecosystem. All methods are pure.
#[deny(missing_docs)]
pub trait Format: Send + Sync {
    /// The package type: its name, and what the configuration of its remotes may say besides what all may.
    fn package(&self) -> &'static Package;

    /// Reads what is asked for to all that is known of it.
    fn read(&self, asked: Asked<'_>) -> Reading {
        Reading::Artifact(Box::new(Asset::new(asked.remote, asked.path, |path| path)))
    }

    /// The format as one whose clients ask below a root of their own, if they do.
    fn root(&self) -> Option<&'static dyn Root> {
        None
    }

    /// The names that the ecosystem has for artifacts, beside their paths: what may be cached by them.
    fn terms(&self) -> &'static [Term] {
        &[]
    }

    /// Where upstream says whom it lets in, where an ecosystem has such a place. Only called for remotes with a `base_url`.
    fn greeting_url(&self, remote: &Remote) -> Option<Url> {
        let _ = remote;
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

    /// The status for an artifact that is held back: one at which clients stop, and do not look for it elsewhere.
    fn held_status(&self) -> u16 {
        404
    }

    /// What an error says in `Warning`, for ecosystems whose clients print that.
    fn warning(&self, status: u16, detail: &str) -> Option<String> {
        let _ = (status, detail);
        None
    }
}

/// All package types. The first is that of a remote that names none.
static FORMATS: &[&dyn Format] = &[
    &generic::Generic,
    &alpine::Alpine,
    &rpm::Rpm,
    &docker::Docker,
    &pypi::Pypi,
    &npm::Npm,
    &helm::Helm,
    &cargo::Cargo,
];

/// All package types, as the configuration wants them.
pub fn packages() -> Vec<&'static Package> {
    FORMATS.iter().map(|format| format.package()).collect()
}

/// The package types that have a root.
pub fn roots() -> impl Iterator<Item = &'static dyn Root> {
    FORMATS.iter().filter_map(|format| format.root())
}

/// The format of a package type.
fn of(package: &Package) -> &'static dyn Format {
    let found = FORMATS.iter().find(|format| format.package() == package);
    // What remotes are of is one of `packages`.
    *found.unwrap_or(&FORMATS[0])
}

/// The format of what `remote` serves: a local remote holds plain files, whatever package they belong to.
pub fn of_remote(remote: &Remote) -> &'static dyn Format {
    match remote.kind {
        RemoteType::Local => &generic::Generic,
        RemoteType::Remote => of(remote.package),
    }
}

/// All terms that package types have.
pub fn terms() -> impl Iterator<Item = &'static Term> {
    FORMATS.iter().flat_map(|format| format.terms())
}

/// What stands before the name of `remote` in the URLs of its artifacts.
pub fn root_of(remote: &Remote) -> &'static str {
    of_remote(remote).root().map_or("/api/v1/remote/", |root| root.path())
}

/// The artifact of `remote` under a path that a document or an operator names, as a client that accepts `accept` would get
/// it. `None`: such a client would be sent elsewhere, or refused.
pub fn asset(remote: &Arc<Remote>, path: ArtifactPath, accept: Option<&str>) -> Option<Asset> {
    let asked = Asked {
        remote,
        method: &Method::GET,
        path,
        accept,
    };
    match of_remote(remote).read(asked) {
        Reading::Artifact(asset) => Some(*asset),
        _ => None,
    }
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
