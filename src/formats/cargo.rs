//! Cargo registries with a sparse index (<https://doc.rust-lang.org/cargo/reference/registry-index.html>): `config.json` says
//! where crates and the web API are, and one file for each crate lists its versions with their checksums.
//!
//! The `config.json` that clients get leads them back here. Where it names crates it puts their checksum behind the path
//! ([`DIGEST`]), so that a crate is verified before it is kept, and one that upstream replaces is another file here.

mod dated;

use http::Method;
use serde_json::{Map, Value, json};

use super::index::AsItIs;
use super::links::{self, LinkMap, Style};
use super::release::{ListedBy, ONE_FORM, Tells};
use super::{
    ArtifactPath, Asked, Asset, Class, Fact, Format, IndexError, IndexReader, Location, Reading, View, ViewContext,
};
use crate::cache::Expected;
use crate::config::Package;

/// The format of `package: cargo`.
pub(super) struct Cargo;

/// What every client asks for first.
const CONFIG: &str = "config.json";
/// The longest `config.json` that is read.
const MAX_CONFIG: usize = 64 * 1024;
/// What clients put a crate's name, version and the like in place of; `dl` without any is a folder of crates.
const VARIABLES: [&str; 5] = ["{crate}", "{version}", "{prefix}", "{lowerprefix}", CHECKSUM];
const CHECKSUM: &str = "{sha256-checksum}";
const FOLDER_OF_CRATES: &str = "/{crate}/{version}/download";
/// Stands between the path of a crate and its checksum.
const DIGEST: &str = "/-/sha256/";
/// What public registries call a crate.
const CRATE_TYPE: &str = "application/gzip";
/// Stands between `api` and what it offers (<https://doc.rust-lang.org/cargo/reference/registry-web-api.html>).
const API: &str = "api/v1/";

static PACKAGE: Package = Package {
    normal_name,
    ..Package::named("cargo")
};

/// Registries take hyphens and underscores for one letter, and capitals for small ones.
fn normal_name(name: &str) -> String {
    name.to_ascii_lowercase().replace('_', "-")
}

impl Format for Cargo {
    fn package(&self) -> &'static Package {
        &PACKAGE
    }

    fn read(&self, asked: Asked<'_>) -> Reading {
        let (path, checksum) = without_checksum(asked.path);
        let path = if checksum.is_none() { in_lower_case(path) } else { path };
        let asset = Asset::new(asked.remote, path, |path| path);
        let mut asset = asset.named_by(|_| Some(CONFIG.to_owned())).below_prefix();
        // To some servers, an encoded slash is one.
        let governing = asset.governing.replace("%2F", "/");
        let below_api = below_api(&governing);
        (asset.package, asset.version) = package(&governing);
        asset.list_by(|_| listed_by(&governing));
        if let Some((checksum, digest)) = checksum
            && !below_api.is_some_and(is_of_account)
        {
            asset.media_type = CRATE_TYPE;
            asset.shared_path = Some(format!("{}{DIGEST}{checksum}", asset.path.encoded));
            asset.digest = Some(digest);
            return Reading::Artifact(Box::new(asset));
        }
        let served = below_api.map_or(Served::File, service);
        let path = asset.path.decoded.as_str();
        let is_own = matches!(asset.location, Location::Upstream(_));
        if is_own && path == CONFIG {
            asset.nature = Some(Class::Mutable);
            asset.media_type = "application/json";
            asset.view = Some(View::new(Style::Absolute, reader));
        } else if is_own && is_index(path) {
            asset.nature = Some(Class::Mutable);
            asset.media_type = "text/plain; charset=utf-8";
            asset.tells = Some(Tells::Whole(dated::INDEX.read));
            let holds = asked.remote.quarantine.is_on();
            let view = View::new(Style::Relative, AsItIs::reader).held_by(asked.remote, &dated::INDEX);
            asset.view = holds.then_some(view);
        } else if path.ends_with(".crate") || path.ends_with("/download") {
            asset.media_type = CRATE_TYPE;
        }
        asset.revalidated = asset.nature.is_some();
        let method = asked.method;
        let reads = matches!(*method, Method::GET | Method::HEAD);
        let refused = |status, what: &str| Reading::Refused {
            status,
            detail: format!("{what} is not possible through this proxy: use the registry itself"),
        };
        match served {
            Served::File => Reading::Artifact(Box::new(asset)),
            Served::Service if reads => {
                asset.media_type = "application/json";
                Reading::PassThrough(Box::new(asset))
            }
            Served::Nowhere if reads => refused(404, "this service of the registry"),
            Served::Service | Served::Nowhere => refused(405, "publishing, yanking and whatever changes the registry"),
        }
    }

    /// Clients take a 401 for their own, and ask for a token of this proxy's.
    fn status_of(&self, upstream: u16) -> u16 {
        if upstream == 401 { 403 } else { upstream }
    }

    /// The index names it, so that it is not missing.
    fn held_status(&self) -> u16 {
        403
    }

    fn error_body(&self, _status: u16, detail: &str, _path: Option<&str>) -> Option<(&'static str, String)> {
        let body = json!({"errors": [{"detail": detail}]});
        Some(("application/json", body.to_string()))
    }
}

/// What a path is that belongs to the web API, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Served {
    /// A crate.
    File,
    /// A search, or what is told of a crate: there and back.
    Service,
    Nowhere,
}

/// What a decoded path names below `api`; `None`: it is no path of the web API.
fn below_api(path: &str) -> Option<&str> {
    let is_start = |at: &usize| *at == 0 || path[..*at].ends_with('/');
    let at = path.match_indices(API).map(|(at, _)| at).find(is_start)?;
    Some(&path[at + API.len()..])
}

/// What the web API tells of an account: here that would be the one whose token this proxy has.
fn is_of_account(below: &str) -> bool {
    let parts: Vec<&str> = below.split('/').collect();
    matches!(parts[..], ["me", ..] | ["crates", _, "owners"])
}

/// What the web API has under a path below `api`.
fn service(below: &str) -> Served {
    let parts: Vec<&str> = below.split('/').collect();
    match parts[..] {
        ["crates"] => Served::Service,
        ["crates", name] if is_name(name) => Served::Service,
        ["crates", name, version] if is_name(name) && is_version(version) => Served::Service,
        [.., name, version, "download"] if is_name(name) && is_version(version) => Served::File,
        _ => Served::Nowhere,
    }
}

/// The file in the index that names the crate under a decoded path, and the name that the version has there.
fn listed_by(path: &str) -> Option<ListedBy> {
    let (name, version) = dated::of_path(path).filter(|(name, _)| is_name(name))?;
    let folders = folders(&name)?;
    Some(ListedBy {
        indexes: vec![format!("{folders}{name}").to_ascii_lowercase()],
        forms: ONE_FORM,
        file: dated::name(&name, version),
        steps: 0,
        tells_dates: true,
    })
}

/// The letters of names in public registries.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

fn is_version(version: &str) -> bool {
    version.starts_with(|first: char| first.is_ascii_digit())
}

/// The folders of a name in the index, with a slash at their end.
fn folders(name: &str) -> Option<String> {
    Some(match name.len() {
        0 => return None,
        1 => "1/".to_owned(),
        2 => "2/".to_owned(),
        3 => format!("3/{}/", name.get(..1)?),
        _ => format!("{}/{}/", name.get(..2)?, name.get(2..4)?),
    })
}

/// The crate that a decoded path belongs to, and the version of its file.
fn package(path: &str) -> (Option<String>, Option<String>) {
    let path = path.trim_end_matches('/');
    if let Some((name, version)) = dated::of_path(path).filter(|(name, _)| is_name(name)) {
        return (Some(normal_name(&name)), Some(version.to_owned()));
    }
    let name = path.rsplit('/').next().filter(|_| is_index(path));
    let of_service = || match below_api(path)?.split('/').collect::<Vec<_>>()[..] {
        ["crates", name, ..] => Some(name),
        _ => None,
    };
    (name.or_else(of_service).map(normal_name), None)
}

/// Whether a decoded path is that of a crate's file in the index, whatever the case of its letters.
fn is_index(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let folders = folders(name).filter(|_| is_name(name));
    folders.is_some_and(|folders| {
        path.len() == folders.len() + name.len() && path[..folders.len()].eq_ignore_ascii_case(&folders)
    })
}

/// The one spelling of a path in the index.
fn in_lower_case(path: ArtifactPath) -> ArtifactPath {
    // What an index is made of needs no encoding.
    match is_index(&path.decoded) {
        true => ArtifactPath {
            decoded: path.decoded.to_ascii_lowercase(),
            encoded: path.encoded.to_ascii_lowercase(),
            query: path.query,
        },
        false => path,
    }
}

/// A path without the checksum that our `dl` puts behind that of a crate, and the checksum: none where a client does not know
/// the variable, and left it as it is.
fn without_checksum(path: ArtifactPath) -> (ArtifactPath, Option<(String, Expected)>) {
    let Some((encoded, checksum)) = path.encoded.rsplit_once(DIGEST) else {
        return (path, None);
    };
    let checksum = links::decode_once(checksum);
    let digest = Expected::new("sha256", &checksum);
    if digest.is_none() && checksum != CHECKSUM {
        return (path, None);
    }
    let path = ArtifactPath {
        decoded: links::decode_once(encoded),
        encoded: encoded.to_owned(),
        query: path.query,
    };
    (path, digest.map(|digest| (checksum, digest)))
}

fn reader(context: &ViewContext<'_>) -> Box<dyn IndexReader> {
    Box::new(Config {
        text: Vec::new(),
        links: LinkMap::new(context),
    })
}

/// `config.json`, held until it is complete: a few lines.
struct Config {
    text: Vec<u8>,
    links: LinkMap,
}

impl Config {
    fn rewritten(&mut self, mut config: Map<String, Value>) -> Result<Map<String, Value>, IndexError> {
        let dl = config.get("dl").and_then(Value::as_str);
        let dl = dl.ok_or_else(|| IndexError(format!("upstream's {CONFIG} has no `dl`")))?;
        let dl = self.downloads(dl).ok_or_else(|| {
            IndexError(format!(
                "`dl` of upstream's {CONFIG} is neither an http nor an https URL: {dl}"
            ))
        })?;
        config.insert("dl".to_owned(), dl.into());
        if let Some(api) = config.get("api").and_then(Value::as_str)
            && let Some(api) = self.api(api)
        {
            config.insert("api".to_owned(), api.into());
        }
        // Upstream wants it of this proxy, which has credentials of its own.
        config.remove("auth-required");
        Ok(config)
    }

    fn downloads(&mut self, dl: &str) -> Option<String> {
        let template = match VARIABLES.iter().any(|variable| dl.contains(variable)) {
            true => dl.to_owned(),
            false => format!("{}{FOLDER_OF_CRATES}", dl.trim_end_matches('/')),
        };
        let mut mapped = self.links.map_template(&template, &VARIABLES)?;
        mapped.truncate(mapped.find('#').unwrap_or(mapped.len()));
        let end = mapped.find('?').unwrap_or(mapped.len());
        mapped.insert_str(end, &format!("{DIGEST}{CHECKSUM}"));
        Some(mapped)
    }

    fn api(&mut self, api: &str) -> Option<String> {
        const SERVICE: &str = "{service}";
        let template = format!("{}/{API}{SERVICE}", api.trim_end_matches('/'));
        let mapped = self.links.map_template(&template, &[SERVICE])?;
        Some(mapped.strip_suffix(&format!("/{API}{SERVICE}"))?.to_owned())
    }
}

impl IndexReader for Config {
    fn write(&mut self, chunk: &[u8], _out: &mut Vec<u8>) -> Result<(), IndexError> {
        if self.text.len() + chunk.len() > MAX_CONFIG {
            return Err(IndexError(format!(
                "upstream's {CONFIG} is longer than {MAX_CONFIG} bytes"
            )));
        }
        self.text.extend_from_slice(chunk);
        Ok(())
    }

    fn end(&mut self, out: &mut Vec<u8>) -> Result<(), IndexError> {
        let config = serde_json::from_slice(&self.text)
            .map_err(|error| IndexError(format!("upstream's {CONFIG} is no JSON object: {error}")))?;
        let config = self.rewritten(config)?;
        out.extend_from_slice(Value::Object(config).to_string().as_bytes());
        Ok(())
    }

    fn take_facts(&mut self) -> Vec<Fact> {
        self.links.take_facts()
    }

    fn escaped(&self) -> u64 {
        self.links.escaped()
    }
}

#[cfg(test)]
mod tests;
