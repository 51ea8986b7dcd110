//! What the tests of the formats share: remotes, requests as the router would read them, rewriting in pieces.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde_json::Value;
use url::Url;

use super::hold::{Hold, Known};
use super::links::{PATH, Style, decode_once, normal};
use super::{ArtifactPath, Asset, Fact, IndexError, IndexReader, ViewContext};
use crate::config::{
    Caps, CredentialsWithin, OwnHost, OwnKeys, Remote, RemoteTls, RemoteType, Timeouts, Ttls, Uploads,
};

/// The root of the remote that rewritten links lead to.
pub(crate) const REMOTE_URL: &str = "https://proxy.example/artifacts/api/v1/remote/r";

/// A remote named `r` of this package and base URL, everything else by default.
pub(crate) fn remote(package: &str, base_url: &str) -> Remote {
    let base_url = Url::parse(base_url).unwrap();
    assert!(base_url.path().ends_with('/'));
    let own_hosts = base_url.host_str().map(OwnHost::new).into_iter().collect();
    Remote {
        name: "r".to_owned(),
        kind: RemoteType::Remote,
        package: super::packages()
            .into_iter()
            .find(|known| known.name == package)
            .unwrap(),
        description: String::new(),
        base_url: Some(base_url),
        credentials: None,
        headers: Vec::new(),
        credentials_within: CredentialsWithin::Host,
        headers_keep: Vec::new(),
        protected: false,
        known_headers: super::packages().iter().map(|package| package.headers).collect(),
        active_content: false,
        allow_packages: None,
        deny_packages: Vec::new(),
        immutable_patterns: None,
        mutable_patterns: Vec::new(),
        check_mutable_updates: false,
        hosts: Vec::new(),
        file_hosts: Vec::new(),
        own_hosts,
        proxy: None,
        tls: RemoteTls::default(),
        offline: false,
        serve_stale_on: Vec::new(),
        quarantine: Default::default(),
        verify: Default::default(),
        refuses_changes: false,
        client_revalidation: false,
        uploads: Uploads {
            overwrite: true,
            longest: None,
            quota: None,
        },
        own: OwnKeys::default(),
        series: Default::default(),
        ttl: Ttls {
            immutable: Duration::ZERO,
            mutable: Duration::from_secs(3600),
            negative: Duration::from_secs(10),
        },
        timeouts: Timeouts {
            connect: Duration::from_secs(5),
            first_byte: Duration::from_secs(30),
            idle: Duration::from_secs(60),
            least_rate: 0,
            rate_window: Duration::from_secs(300),
            whole: Duration::from_secs(86_400),
        },
        refresh_ahead: false,
        caps: Caps::default(),
    }
}

/// A request for this path and query below a remote, read as the router does: decoded once, checked, normalised. `None`
/// where it is refused.
pub(crate) fn request(target: &str) -> Option<ArtifactPath> {
    let (path, query) = target
        .split_once('?')
        .map_or((target, None), |(path, query)| (path, Some(query.to_owned())));
    let mut encoded = normal(path, PATH);
    while encoded.contains("//") {
        encoded = encoded.replace("//", "/");
    }
    let encoded = encoded.strip_prefix('/').unwrap_or(&encoded).to_owned();
    let refused = encoded.contains("%00")
        || encoded.contains("%5C")
        || encoded
            .replace("%2F", "/")
            .split('/')
            .any(|segment| matches!(segment, "." | ".."));
    (!refused).then(|| ArtifactPath {
        decoded: decode_once(&encoded),
        encoded,
        query,
    })
}

/// What this path and query below `remote` name, to a client that accepts `accept`.
pub(crate) fn read(remote: &Arc<Remote>, target: &str, accept: Option<&str>) -> Option<Asset> {
    super::asset(remote, request(target)?, accept)
}

/// What a client asks for that follows `link` in the document served under `document`; `None` where that is refused or
/// does not lead to this remote.
pub(crate) fn asked(document: &str, link: &str) -> Option<ArtifactPath> {
    let url = Url::parse(&format!("{REMOTE_URL}/{document}"))
        .unwrap()
        .join(link)
        .ok()?;
    let mut text = url.clone();
    text.set_fragment(None);
    request(text.as_str().strip_prefix(REMOTE_URL)?.strip_prefix('/')?)
}

pub(crate) fn context<'a>(
    remote: &'a Remote,
    path: &'a ArtifactPath,
    style: Style,
    (document_url, content_type): (&str, &'a str),
) -> ViewContext<'a> {
    let document_url = Url::parse(document_url).unwrap();
    ViewContext {
        remote,
        path,
        style,
        document_url,
        content_type,
        remote_url: REMOTE_URL,
    }
}

/// What reads the document under `path`.
pub(crate) fn reader(
    remote: &Arc<Remote>,
    path: &ArtifactPath,
    document_url: &str,
    content_type: &str,
) -> Box<dyn IndexReader> {
    let asset = super::asset(remote, path.clone(), None).unwrap();
    let view = asset.view.unwrap();
    (view.reader)(&context(remote, path, view.style, (document_url, content_type)))
}

/// Lets an index be read in pieces.
pub(crate) fn drive<'a>(
    reader: &mut dyn IndexReader,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Vec<u8>, IndexError> {
    let mut out = Vec::new();
    for piece in pieces {
        reader.write(piece, &mut out)?;
    }
    reader.end(&mut out)?;
    Ok(out)
}

/// The names of the links among what an index states.
pub(crate) fn linked(facts: Vec<Fact>) -> Vec<String> {
    let name = |fact| match fact {
        Fact::Link(name) => name,
        other => panic!("{other:?}"),
    };
    facts.into_iter().map(name).collect()
}

/// Cuts a document at the places given, which may be in any order and out of range.
pub(crate) fn cut<'a>(document: &'a [u8], at: &[usize]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = at.iter().map(|at| at % (document.len() + 1)).collect();
    at.sort_unstable();
    let mut pieces = Vec::new();
    let mut from = 0;
    for to in at {
        pieces.push(&document[from..to]);
        from = to;
    }
    pieces.push(&document[from..]);
    pieces
}

/// Places to cut at.
pub(crate) fn cuts() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        proptest::collection::vec(any::<usize>(), 0..8),
        // Every byte by itself.
        Just((0..4096).collect::<Vec<usize>>()),
    ]
}

/// Many values of a strategy at once.
pub(crate) fn many<T: std::fmt::Debug>(count: usize, strategy: &impl Strategy<Value = T>) -> Vec<T> {
    let mut runner = TestRunner::default();
    let values = (0..count).map(|_| strategy.new_tree(&mut runner).unwrap().current());
    values.collect()
}

/// Where `scripts/test` puts a tool.
pub(crate) fn tool(path: &str) -> PathBuf {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let tools = set("ARTIFACTAPI_TOOLS")
        .or_else(|| set("ARTIFACTAPI_CACHE"))
        .unwrap_or_else(|| {
            let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
            cache.expect("a home folder").join("artifactapi")
        });
    tools.join(path)
}

/// A program of `tests/clients`.
pub(crate) fn client(name: &str) -> String {
    format!("{}/tests/clients/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// What a client's own library reads in each of many documents: one process for all of them, stopped after a minute.
pub(crate) fn read_by(program: &Path, arguments: &[&str], documents: &[String]) -> Vec<Value> {
    let mut command = Command::new("timeout");
    command.arg("60").arg(program).args(arguments);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let lines: String = documents
        .iter()
        .map(|text| serde_json::to_string(text).unwrap() + "\n")
        .collect();
    let writer = std::thread::spawn(move || input.write_all(lines.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer
        .join()
        .unwrap()
        .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let read: Vec<Value> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        read.len(),
        documents.len(),
        "{} (run scripts/test, which installs it)",
        program.display()
    );
    read
}

/// Whether a client that follows `link` in the document served under `document` stays here, or leaves HTTP.
pub(crate) fn stays(document: &str, link: &str) -> bool {
    match Url::parse(&format!("{REMOTE_URL}/{document}")).unwrap().join(link) {
        Ok(url) => !matches!(url.scheme(), "http" | "https") || url.as_str().starts_with(REMOTE_URL),
        // Followed by nobody.
        Err(_) => true,
    }
}

/// A policy at `now`, in Unix seconds, that holds everything for so many days.
pub(crate) fn hold(days: u32, now: u64) -> Hold {
    let mut remote = remote("generic", "https://upstream.example/");
    remote.quarantine.days = Some(days);
    let index = Asset::new(&Arc::new(remote), ArtifactPath::default(), |path| path);
    Hold::new(&index, Known::default(), now)
}
