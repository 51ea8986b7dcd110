//! Docker and OCI registries (<https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md>), the pull side:
//! manifests and blobs, which a digest names for good, tags, which stand for a digest for a while, and the lists of tags
//! and referrers.
//!
//! A path here is what follows `/v2/{remote}/`: `{name}/manifests/{tag or digest}`, `{name}/blobs/{digest}`,
//! `{name}/tags/list`, `{name}/referrers/{digest}`.

mod image;
mod names;
mod pages;
mod referrers;
mod root;

use std::sync::LazyLock;

use http::{HeaderName, Method};
use serde_json::json;
use url::Url;

use super::accept::wish;
use super::order::Term;
use super::root::Root;
use super::{ArtifactPath, Asked, Asset, Binding, Class, Form, Format, Location, Reading, links};
use crate::cache::Expected;
use crate::config::{DefaultRemote, Holds, OwnKey, Package, Remote};
use crate::headers::Names;
use crate::status::is_absent;

/// The format of `package: docker`.
pub(super) struct Docker;

static PACKAGE: Package = Package {
    keys: &[&TOKEN_REALMS],
    // Docker Hub's way of saying that somebody has pulled too much.
    serve_stale_on: &[429],
    may_be_local: false,
    default_remote: Some(DefaultRemote {
        flag: "--docker-default-remote",
        variable: "ARTIFACTAPI_DOCKER_DEFAULT_REMOTE",
        help: "Where images without a remote's name come from",
    }),
    headers: Names {
        families: &["docker-", "oci-"],
        never: &["docker-distribution-api-version", "oci-namespace"],
        ..Names::NONE
    },
    ..Package::named("docker")
};

/// Further hosts whose token service may see the credentials.
static TOKEN_REALMS: OwnKey = OwnKey {
    name: "token_realms",
    follows: "file_hosts",
    example: "[auth.example.com]",
    help: "further hosts whose token service may see the credentials (https)",
    holds: Holds::TokenRealms,
};

/// Docker Hub's names for itself: what clients say in `?ns=`, and where it is.
const HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];
/// What stands before the names of its official images.
const OFFICIAL: &str = "library/";

/// The media type of an image index (image-spec, media-types.md), in which referrers are listed too.
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// distribution-spec, "Pulling manifests": what a registry says of the body that it sends.
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// The types of manifests that decide what a tag resolves to.
const TYPES: [&str; 4] = [INDEX, DOCKER_LIST, MANIFEST, DOCKER_MANIFEST];
/// All of them: a client that names these, or takes anything.
const EVERY: usize = 0b1111;

/// One form of a tag for each set of types that a client accepts, by their bits.
static FORMS: LazyLock<[Form; 16]> = LazyLock::new(|| {
    std::array::from_fn(|set| {
        let named = |letters: [&str; 4], between: &str| {
            let named = letters.iter().enumerate().filter(|(bit, _)| set >> bit & 1 == 1);
            let named: Vec<&str> = named.map(|(_, letters)| *letters).collect();
            named.join(between)
        };
        // Sixteen short texts, made once.
        if set == EVERY {
            let accept = format!("{}, */*", named(TYPES, ", "));
            return Form {
                name: "",
                accept: Some(accept.leak()),
            };
        }
        Form {
            name: named(["oci-index", "docker-list", "oci-manifest", "docker-manifest"], "+").leak(),
            accept: Some(named(TYPES, ", ").leak()),
        }
    })
});

/// distribution-spec, "Pulling manifests": names have at most 255 characters with most clients, and are bounded so here.
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// What a path asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum What<'a> {
    Tag(&'a str),
    Manifest(Expected),
    Blob(Expected),
    Tags,
    Referrers(&'a str),
}

/// Why a path is refused: status, code of the distribution-spec ("Error Codes"), reason.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Invalid(u16, &'static str, String);

/// Repository name, what is asked of it, and the last part, from the right: a name may hold any of these words.
fn split(path: &str) -> Option<(&str, &str, &str)> {
    let (rest, last) = path.rsplit_once('/')?;
    match rest.rsplit_once('/') {
        Some((name, kind)) => Some((name, kind, last)),
        None => Some(("", rest, last)),
    }
}

fn parse(path: &str) -> Result<(&str, What<'_>), Invalid> {
    let unknown = || {
        let reason = "nothing is served here: a registry has manifests, blobs, tags and referrers below a repository";
        Invalid(404, "NAME_UNKNOWN", reason.to_owned())
    };
    if path == "_catalog" {
        let reason = "the repositories of a remote are not listed here; what is stored is listed by /api/v1/artifacts";
        return Err(Invalid(404, "UNSUPPORTED", reason.to_owned()));
    }
    let (name, kind, last) = split(path).ok_or_else(unknown)?;
    if !(matches!(kind, "manifests" | "blobs" | "referrers") || (kind, last) == ("tags", "list")) {
        return Err(unknown());
    }
    if !is_name(name) {
        let reason =
            "the repository's name is not of lower-case letters, digits and single separators, parted by slashes";
        return Err(Invalid(400, "NAME_INVALID", reason.to_owned()));
    }
    let digest = || {
        Expected::parse(last).ok_or_else(|| {
            let reason = "the digest is neither `sha256:` and 64 nor `sha512:` and 128 lower-case hexadecimal digits";
            Invalid(400, "DIGEST_INVALID", reason.to_owned())
        })
    };
    let what = match kind {
        "blobs" => What::Blob(digest()?),
        "referrers" => digest().map(|_| What::Referrers(last))?,
        "tags" => What::Tags,
        _ if last.contains(':') => What::Manifest(digest()?),
        _ if is_tag(last) => What::Tag(last),
        _ => {
            let reason = "the tag is not of at most 128 letters, digits, `_`, `.` and `-`";
            return Err(Invalid(400, "MANIFEST_INVALID", reason.to_owned()));
        }
    };
    Ok((name, what))
}

/// distribution-spec, "Pulling manifests": components of letters and digits, parted by `.`, `_`, `__` or dashes.
fn is_name(name: &str) -> bool {
    name.len() <= MAX_NAME && name.split('/').all(is_component)
}

fn is_component(component: &str) -> bool {
    let letter = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    bytes.first().is_some_and(letter)
        && bytes.last().is_some_and(letter)
        && bytes.split(letter).all(|separator| {
            matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-')
        })
}

fn is_tag(tag: &str) -> bool {
    tag.len() <= MAX_TAG
        && tag.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && tag
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// Whether `host`, with or without port, is one of Docker Hub's.
fn is_hub(host: &str) -> bool {
    let host = host.strip_suffix(":443").unwrap_or(host);
    HUB.iter().any(|name| host.eq_ignore_ascii_case(name))
}

/// Where the API of a registry is below its base URL: that may name the API itself, or a part of the registry's names
/// (`https://host/v2/project`). The second value is that part, with a slash at its end.
fn api(base: &Url) -> (&'static str, &str) {
    match base.path().strip_prefix("/v2/") {
        Some(names) => ("", names),
        None => ("v2/", ""),
    }
}

/// What a registry answers to whoever it lets in (distribution-spec, "Determining Support"), and whom it does not let in
/// learns what is wanted.
///
/// # Panics
/// Without a `base_url`, as [`links::under_base`].
fn version_url(remote: &Remote) -> Url {
    let mut url = links::under_base(remote, &ArtifactPath::default());
    let path = match api(&url) {
        ("", _) => "/v2/".to_owned(),
        (prefix, _) => format!("{}{prefix}", url.path()),
    };
    url.set_path(&path);
    url
}

/// What a tag resolves to is decided by the types that the client accepts: an index, or one image's manifest.
fn negotiate(accept: Option<&str>) -> Form {
    let header = accept.unwrap_or_default();
    let accepted = |media_type: &&str| wish(header, media_type).is_some_and(|wish| wish.q > 0.0);
    let bits = TYPES.iter().enumerate().filter(|(_, media_type)| accepted(media_type));
    // Who names none of them gets what there is, as registries do.
    match bits.fold(0, |set, (bit, _)| set | 1 << bit) {
        0 => FORMS[EVERY],
        set => FORMS[set],
    }
}

/// The path of what `digest` names, beside the tag under `path`.
fn beside(path: &str, digest: &str) -> Option<String> {
    let (name, kind, _) = split(path)?;
    Some(format!("{name}/{kind}/{digest}"))
}

impl Format for Docker {
    fn package(&self) -> &'static Package {
        &PACKAGE
    }

    fn terms(&self) -> &'static [Term] {
        &[image::IMAGE]
    }

    fn root(&self) -> Option<&'static dyn Root> {
        Some(&Docker)
    }

    fn greeting_url(&self, remote: &Remote) -> Option<Url> {
        Some(version_url(remote))
    }

    fn read(&self, asked: Asked<'_>) -> Reading {
        let Asked {
            remote,
            method,
            path,
            accept,
        } = asked;
        let whole = |path| Asset::new(remote, path, |path| path);
        if !matches!(*method, Method::GET | Method::HEAD) {
            return Reading::Artifact(Box::new(whole(path)));
        }
        let (name, what) = match parse(&path.decoded) {
            Ok(parsed) => parsed,
            Err(Invalid(status, _, detail)) => return Reading::Refused { status, detail },
        };
        let base = remote.base_url.as_ref();
        let official = !name.contains('/') && base.and_then(Url::host_str).is_some_and(is_hub);
        let prefix = if official { OFFICIAL } else { "" };
        // What the grammar allows needs no encoding.
        let canonical = format!("{prefix}{}", path.decoded);
        let queried = matches!(what, What::Tags | What::Referrers(_));
        let mut asset = whole(ArtifactPath {
            encoded: canonical.clone(),
            decoded: canonical,
            query: path.query.clone().filter(|_| queried),
        });
        let (version, part) = base.map_or(("v2/", ""), api);
        let below_api = ArtifactPath {
            encoded: format!("{version}{}", asset.path.encoded),
            ..asset.path.clone()
        };
        asset.location = Location::Upstream(links::under_base(remote, &below_api));
        asset.package = Some(format!("{prefix}{name}"));
        asset.version = match &what {
            What::Tag(tag) => Some((*tag).to_owned()),
            What::Manifest(digest) => Some(digest.to_string()),
            _ => None,
        };
        // https://distribution.github.io/distribution/spec/auth/scope/
        asset.token_scope = Some(format!("repository:{part}{prefix}{name}:pull"));
        let is_content = matches!(what, What::Manifest(_) | What::Blob(_));
        asset.nature = (!is_content).then_some(Class::Mutable);
        asset.digest_field = (!queried).then_some(CONTENT_DIGEST);
        asset.varies = matches!(what, What::Tag(_) | What::Manifest(_));
        asset.pages = queried.then_some(pages::check);
        let listed = |accept| Form {
            name: "",
            accept: Some(accept),
        };
        (asset.form, asset.media_type) = match what {
            What::Tag(_) => (negotiate(accept), MANIFEST),
            // By digest there is only one.
            What::Manifest(_) => (FORMS[EVERY], MANIFEST),
            What::Blob(_) => (Form::ONLY, "application/octet-stream"),
            What::Tags => (listed("application/json"), "application/json"),
            What::Referrers(_) => (listed(INDEX), INDEX),
        };
        match what {
            What::Tag(_) => asset.binding = Binding::Pointer(beside),
            What::Manifest(digest) => {
                asset.shared_path = Some(format!("manifests/{digest}"));
                asset.digest = Some(digest);
            }
            What::Blob(digest) => {
                asset.shared_path = Some(format!("blobs/{digest}"));
                asset.digest = Some(digest);
            }
            What::Tags => {}
            What::Referrers(_) => asset.stand_in = referrers::stand_in(&asset.path).map(Box::new),
        }
        Reading::Artifact(Box::new(asset))
    }

    /// Clients take a 401 for their own, and ask for a password.
    fn status_of(&self, upstream: u16) -> u16 {
        if upstream == 401 { 403 } else { upstream }
    }

    /// distribution-spec, "Error Codes".
    fn error_body(&self, status: u16, detail: &str, path: Option<&str>) -> Option<(&'static str, String)> {
        let parsed = path.map(links::decode_once);
        let parsed = parsed.as_deref().map(parse);
        let code = match (status, parsed) {
            (405, _) => "UNSUPPORTED",
            (401, _) => "UNAUTHORIZED",
            (403, _) => "DENIED",
            (429, _) => "TOOMANYREQUESTS",
            (400 | 404, Some(Err(Invalid(_, code, _)))) => code,
            (400, _) => "NAME_INVALID",
            (status, parsed) if is_absent(status) => match parsed {
                Some(Ok((_, What::Tag(_) | What::Manifest(_)))) => "MANIFEST_UNKNOWN",
                Some(Ok((_, What::Blob(_)))) => "BLOB_UNKNOWN",
                _ => "NAME_UNKNOWN",
            },
            (500.., _) => "UNAVAILABLE",
            _ => "UNKNOWN",
        };
        let body = json!({"errors": [{"code": code, "message": detail, "detail": {"path": path}}]});
        Some(("application/json", body.to_string()))
    }

    /// distribution-spec, "Warnings": clients print the text. A refusal is all of it that a HEAD shows.
    fn warning(&self, status: u16, detail: &str) -> Option<String> {
        let text: String = detail.chars().filter(|c| !c.is_control()).take(1024).collect();
        (status == 403).then(|| format!("299 - \"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")))
    }
}

#[cfg(test)]
mod tests;
