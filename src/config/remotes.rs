//! `remotes.yaml` to [`Remote`]s: the keys of one remote, what they default to, and which of them contradict.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::num::{NonZeroU32, NonZeroU64};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use indexmap::IndexMap;
use url::Url;

use super::address;
use super::certificates;
use super::context::Context;
use super::credentials::credentials;
use super::environment::Environment;
use super::headers::{headers, headers_keep};
use super::model::{Caps, CredentialsWithin, OwnHost, Remote, RemoteType, Timeouts, Ttls, Uploads};
use super::own_keys::KnownKeys;
use super::package::Package;
use super::pattern::{PackagePattern, Pattern};
use super::problem::{Fault, Pos, Report};
use super::quarantine::{self, Quarantine};
use super::section::{Elsewhere, Section};
use super::settings;
use super::values::{self, choice};
use super::verify::Verify;
use super::yaml::{self, Document, Entry};
use crate::headers::Names;

const KEYS: &[&str] = &[
    "base_url",
    "type",
    "package",
    "description",
    "username",
    "password",
    "password_file",
    "password_command",
    "password_command_ttl",
    "headers",
    "credentials_within",
    "headers_keep",
    "active_content",
    "protected",
    "allow_packages",
    "deny_packages",
    "immutable_patterns",
    "mutable_patterns",
    "check_mutable_updates",
    "hosts",
    "file_hosts",
    "proxy",
    "tls",
    "offline",
    "serve_stale_on",
    "overwrite",
    "max_upload",
    "quota",
];
/// Those that follow what quarantine reads.
const LAST_KEYS: [&str; 5] = ["verify", "client_revalidation", "refresh", "upstream", "cache"];

/// The keys of `upstream:` that only a remote has.
const CAP_KEYS: [&str; 2] = ["requests_per_second", "bytes_per_second"];

/// The keys that say what a local remote takes.
const UPLOAD_KEYS: [&str; 3] = ["overwrite", "max_upload", "quota"];

/// The keys that say which packages upstream is asked for.
const PACKAGE_KEYS: [&str; 2] = ["allow_packages", "deny_packages"];

const ELSEWHERE: Elsewhere<'static> = &[
    ("immutable_ttl", "under `cache:`"),
    ("mutable_ttl", "under `cache:`"),
    ("negative_ttl", "under `cache:`"),
    ("connect_timeout", "under `upstream:`"),
    ("first_byte_timeout", "under `upstream:`"),
    ("idle_timeout", "under `upstream:`"),
    ("least_rate", "under `upstream:`"),
    ("rate_window", "under `upstream:`"),
    ("transfer_timeout", "under `upstream:`"),
    ("requests_per_second", "under `upstream:`"),
    ("bytes_per_second", "under `upstream:`"),
];

/// What `remotes.yaml` holds.
#[derive(Default)]
pub(super) struct Remotes {
    pub remotes: IndexMap<String, Arc<Remote>>,
    pub hosts: HashMap<String, Arc<Remote>>,
}

/// Reads the text of `remotes.yaml`. What is wrong goes to `report`; then the result is not to be used.
pub(super) fn read(
    packages: &[&'static Package],
    file: &Path,
    text: &str,
    env: &Environment,
    timeouts: Timeouts,
    report: &Report,
) -> Remotes {
    let cx = Context {
        file,
        env,
        remote: None,
        report,
    };
    let document = match yaml::parse(text) {
        Ok(document) => document,
        Err((at, fault)) => {
            cx.error(at, fault);
            return Remotes::default();
        }
    };
    let Some(root) = &document.root else {
        report.file_error(
            file,
            Fault::new("the file is empty").hint("write `remotes: {}` for no remotes at all"),
        );
        return Remotes::default();
    };
    let top = Section::open(cx, root, "", &["remotes", "freeze"], &[]);
    if !top.names("remotes") && (root.is_map() || root.is_null()) {
        cx.error(
            root.at,
            Fault::new("`remotes` is missing").hint("write `remotes: {}` for no remotes at all"),
        );
    }
    let entries = top.free("remotes").unwrap_or_default();

    let own_keys = KnownKeys::of(packages);
    let reader = Reader {
        packages,
        keys: own_keys.among(&[KEYS, &quarantine::KEYS, &LAST_KEYS].concat()),
        own_keys,
        known_headers: packages.iter().map(|package| package.headers).collect(),
        timeouts,
        freeze: top.parse("freeze", quarantine::moment),
        patterns: RefCell::default(),
    };
    let mut result = Remotes::default();
    let mut bound: HashMap<String, (&str, Pos)> = HashMap::new();
    for entry in entries {
        let cx = Context {
            remote: Some(&entry.key),
            ..cx
        };
        check_name(cx, entry);
        let (remote, hosts) = reader.remote(cx, entry);
        let remote = Arc::new(remote);
        for (at, host) in hosts {
            match bound.get(&host) {
                None => {
                    bound.insert(host.clone(), (&entry.key, at));
                    result.hosts.insert(host, Arc::clone(&remote));
                }
                Some((other, _)) if *other == entry.key => {}
                Some((other, first)) => {
                    let fault = Fault::new(format!("the host {host:?} already belongs to the remote {other:?}"));
                    cx.error(
                        at,
                        fault.hint(format!("it is named there in line {}: one of them must do", first.line)),
                    );
                }
            }
        }
        result.remotes.insert(entry.key.clone(), remote);
    }
    unknown_escapes(cx, &document, &reader.patterns.borrow());
    // Before a remote was known, only places were.
    report.attribute(file, |at| {
        entries
            .iter()
            .rfind(|entry| entry.at <= at)
            .map(|entry| entry.key.clone())
    });
    result
}

fn check_name(cx: Context<'_>, entry: &Entry) {
    if let Some(first) = entry.duplicate_of {
        let fault = Fault::new("a second remote of this name");
        cx.error(
            entry.at,
            fault.hint(format!("the first stands in line {}: rename one of them", first.line)),
        );
    }
    let name = &entry.key;
    let sane = name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.len() <= 128
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    if !sane {
        let fault = Fault::new("the name cannot stand in a URL");
        cx.error(
            entry.at,
            fault.hint("use letters, digits, `.`, `_` and `-`, a letter or digit first, at most 128"),
        );
    }
}

/// Warns of escapes that YAML does not have.
fn unknown_escapes(cx: Context<'_>, document: &Document, patterns: &HashSet<Pos>) {
    for (at, fault) in &document.errors {
        cx.error(*at, fault.clone());
    }
    for note in &document.notes {
        let fault = Fault::new(format!(
            "{} is no escape in a double-quoted YAML string: taken as the backslash that was meant",
            note.escape
        ));
        let hint = match &note.spelling {
            // Anything else may be a secret and is not repeated.
            Some(spelling) if patterns.contains(&note.scalar) => {
                format!("write {} or {}", spelling.single, spelling.double)
            }
            _ => "write it in single quotes, or double the backslash".to_owned(),
        };
        cx.warn(note.at, fault.hint(hint));
    }
}

/// What is the same for all remotes.
struct Reader<'p> {
    packages: &'p [&'static Package],
    own_keys: KnownKeys,
    /// The names of all keys.
    keys: Vec<&'static str>,
    known_headers: Arc<[Names]>,
    /// Of a remote without `upstream:`.
    timeouts: Timeouts,
    /// Of all remotes.
    freeze: Option<u64>,
    /// Where patterns stand.
    patterns: RefCell<HashSet<Pos>>,
}

impl Reader<'_> {
    fn remote<'a>(&self, cx: Context<'a>, entry: &'a Entry) -> (Remote, Vec<(Pos, String)>) {
        let section = Section::open(cx, &entry.value, "", &self.keys, ELSEWHERE);
        let kinds = [("remote", RemoteType::Remote), ("local", RemoteType::Local)];
        let kind = section
            .parse("type", |text| choice(text, &kinds))
            .unwrap_or(RemoteType::Remote);
        let packages: Vec<_> = self.packages.iter().map(|package| (package.name, *package)).collect();
        let package = section
            .parse("package", |text| choice(text, &packages))
            .unwrap_or(self.packages[0]);

        let base_url = section.parse("base_url", address::base_url);
        let readable = entry.value.is_map() || entry.value.is_null();
        if kind == RemoteType::Remote && readable && section.entry("base_url").is_none() {
            let fault = Fault::new("`base_url` is missing");
            cx.error(
                entry.at,
                fault.hint("add `base_url: https://…`, or `type: local` for a repository of its own"),
            );
        }
        let hosts = section.list("hosts", address::host_name).unwrap_or_default();
        let mut names: Vec<String> = Vec::new();
        for (_, host) in &hosts {
            if !names.contains(host) {
                names.push(host.clone());
            }
        }
        let file_hosts = section.distinct("file_hosts", address::file_host);
        let stale = section.integers("serve_stale_on", 400..=599);
        let stale = stale.map(|statuses| statuses.into_iter().filter_map(|s| u16::try_from(s).ok()).collect());
        let credentials = credentials(&section);
        let within = [
            ("host", CredentialsWithin::Host),
            ("base_url", CredentialsWithin::BaseUrl),
        ];

        let base_url = base_url.filter(|_| kind == RemoteType::Remote);
        let own = self.own_keys.read(&section, package, base_url.as_ref());
        let urls = base_url.iter().chain(own.urls()).filter_map(Url::host_str);
        let listed = file_hosts
            .iter()
            .chain(own.token_realms())
            .map(|host| host.host.as_str());
        let mut own_hosts: Vec<OwnHost> = Vec::new();
        for host in urls.chain(listed) {
            let name = OwnHost::name_of(host);
            if !own_hosts.iter().any(|own| own.name == name) {
                own_hosts.push(OwnHost::new(host));
            }
        }

        let ttl = ttls(&section);
        let upstream = section.section("upstream", &[&settings::TIMEOUT_KEYS[..], &CAP_KEYS].concat());
        let refresh = [("off", false), ("background", true)];
        let remote = Remote {
            name: entry.key.clone(),
            kind,
            package,
            description: section.text("description").map(|text| text.value).unwrap_or_default(),
            headers: headers(&section, credentials.is_some()),
            credentials_within: section
                .parse("credentials_within", |text| choice(text, &within))
                .unwrap_or(CredentialsWithin::Host),
            headers_keep: headers_keep(&section, &self.known_headers),
            known_headers: Arc::clone(&self.known_headers),
            active_content: section.boolean("active_content").unwrap_or(false),
            protected: section.boolean("protected").unwrap_or(false),
            base_url,
            credentials,
            allow_packages: named_packages(&section, "allow_packages", package, PackagePattern::new),
            deny_packages: named_packages(&section, "deny_packages", package, PackagePattern::in_any_case)
                .unwrap_or_default(),
            immutable_patterns: self.patterns(&section, "immutable_patterns"),
            mutable_patterns: self.patterns(&section, "mutable_patterns").unwrap_or_default(),
            check_mutable_updates: section.boolean("check_mutable_updates").unwrap_or(false),
            hosts: names,
            file_hosts,
            own_hosts,
            proxy: section.parse("proxy", address::proxy_url),
            tls: certificates::of_remote(&section),
            offline: section.boolean("offline").unwrap_or(false),
            serve_stale_on: stale.unwrap_or_else(|| package.serve_stale_on.to_vec()),
            quarantine: match kind {
                RemoteType::Remote => quarantine::read(&section, self.freeze, package.normal_name),
                RemoteType::Local => Quarantine::default(),
            },
            verify: section.parse("verify", Verify::read).unwrap_or_default(),
            refuses_changes: section.says("verify", "enforce") && ttl.immutable.is_zero(),
            client_revalidation: section.boolean("client_revalidation").unwrap_or(false),
            uploads: Uploads {
                overwrite: section.boolean("overwrite").unwrap_or(true),
                longest: section.parse("max_upload", values::size),
                quota: section.parse("quota", values::size),
            },
            own,
            ttl,
            refresh_ahead: section.parse("refresh", |text| choice(text, &refresh)).unwrap_or(false),
            timeouts: upstream
                .as_ref()
                .map_or(self.timeouts, |s| settings::timeouts(s, self.timeouts)),
            caps: upstream.as_ref().map(caps).unwrap_or_default(),
            series: Default::default(),
        };
        contradictions(&section, entry, &remote, &self.own_keys);
        (remote, hosts)
    }

    /// `None` when the key is absent or null: that differs from an empty list.
    fn patterns<'a>(&self, section: &Section<'a>, key: &'a str) -> Option<Vec<Pattern>> {
        let mut patterns = Vec::new();
        for (at, scalar) in section.scalars(key)? {
            self.patterns.borrow_mut().insert(at);
            if let Some(translated) = &scalar.translated {
                let escape = &translated.escape;
                let fault = Fault::new(format!(
                    "in a double-quoted YAML string {escape} is another character, not the {escape} of a pattern"
                ));
                let hint = match &translated.spelling {
                    Some(spelling) => format!("write {} or {}", spelling.single, spelling.double),
                    None => "write it in single quotes, or double the backslash".to_owned(),
                };
                section.cx.error(translated.at, fault.hint(hint));
                continue;
            }
            match Pattern::new(&scalar.text) {
                Ok(pattern) => patterns.push(pattern),
                Err(error) => {
                    let written = yaml::Spelling::of(&scalar.text)
                        .single
                        .replace(char::is_control, "\u{fffd}");
                    let fault = Fault::new(format!("`{key}`: {written} is no pattern: {}", one_line(&error)));
                    section.cx.error(
                        at,
                        fault.hint("patterns are regular expressions, searched anywhere in the path"),
                    );
                }
            }
        }
        Some(patterns)
    }
}

/// Whether a header field that a remote is sent tells who asks, rather than how.
fn holds_secret(name: &HeaderName) -> bool {
    let words = ["authorization", "cookie", "token", "key", "secret", "auth"];
    words.iter().any(|word| name.as_str().contains(word))
}

/// The regex library draws the place under the pattern in several lines; its last line says what is wrong.
fn one_line(error: &str) -> String {
    let line = error
        .lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty())
        .unwrap_or("unknown error");
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

fn ttls(section: &Section<'_>) -> Ttls {
    let cache = section.section("cache", &["immutable_ttl", "mutable_ttl", "negative_ttl"]);
    let ttl = |key, default| {
        cache
            .as_ref()
            .and_then(|c| c.duration(key))
            .unwrap_or(Duration::from_secs(default))
    };
    Ttls {
        immutable: ttl("immutable_ttl", 0),
        mutable: ttl("mutable_ttl", 3600),
        negative: ttl("negative_ttl", 10),
    }
}

fn caps(upstream: &Section<'_>) -> Caps {
    let requests = upstream.integer("requests_per_second", 1..=1_000_000);
    let bytes = upstream.parse("bytes_per_second", |text| {
        let bytes = values::size(text)?;
        let hint = "write a size, such as 20MB; leave the key out for no cap";
        NonZeroU64::new(bytes).ok_or_else(|| Fault::new("must be at least 1").hint(hint))
    });
    Caps {
        requests_per_second: requests.and_then(NonZeroU32::new),
        bytes_per_second: bytes,
    }
}

/// The packages that are listed under `key`. `None` when it is absent or null: that differs from an empty list.
fn named_packages<'a>(
    section: &Section<'a>,
    key: &'a str,
    package: &Package,
    read: impl Fn(&str, fn(&str) -> String) -> Result<PackagePattern, String>,
) -> Option<Vec<PackagePattern>> {
    let patterns = section.list(key, |text| read(text, package.normal_name).map_err(Fault::new))?;
    let patterns = patterns.into_iter().map(|(_, pattern)| pattern).collect();
    package.names_packages.then_some(patterns)
}

/// What cannot stand together, and what is legal but hardly meant.
fn contradictions(section: &Section<'_>, entry: &Entry, remote: &Remote, own_keys: &KnownKeys) {
    let cx = section.cx;
    if remote.active_content
        && remote.hosts.is_empty()
        && let Some(found) = section.entry("active_content")
    {
        let fault = Fault::new("`active_content` without `hosts`: it would be active on the host of everything else");
        cx.error(
            found.at,
            fault.hint("add `hosts: [NAME]`; it holds where this remote is asked for by that name"),
        );
    }
    let credentials = remote.credentials.is_some().then_some("username");
    let headers = remote.headers.iter().any(|(name, _)| holds_secret(name));
    if remote.kind == RemoteType::Remote
        && let Some(found) = credentials
            .or(headers.then_some("headers"))
            .or(remote.tls.identity.is_some().then_some("tls"))
            .and_then(|key| section.entry(key))
        && section.entry("protected").is_none()
    {
        let fault = Fault::new("upstream is asked with credentials, and anybody may read here what it answers");
        let hint =
            "add `protected: true`, and tokens for those who may read it, or `protected: false` if that is meant";
        cx.warn(found.at, fault.hint(hint));
    }
    if remote.kind == RemoteType::Local {
        let of_upstream = ["base_url", "proxy", "tls", "offline", "verify", "refresh"].into_iter();
        let of_upstream = of_upstream.chain(PACKAGE_KEYS).chain(quarantine::KEYS);
        for key in of_upstream.chain(own_keys.urls()) {
            let on = match key {
                "offline" => remote.offline,
                "verify" | "refresh" => !section.says(key, "off"),
                "quarantine_new" => !section.says(key, "false"),
                "quarantine_days" => !section.says(key, "0"),
                _ => true,
            };
            if let Some(found) = section.entry(key).filter(|_| on) {
                let fault = Fault::new(format!("`{key}` on a local remote, which has no upstream"));
                cx.error(found.at, fault.hint(format!("remove `{key}`, or `type: local`")));
            }
        }
        for key in [
            "username",
            "headers",
            "credentials_within",
            "file_hosts",
            "serve_stale_on",
            "upstream",
        ] {
            if let Some(found) = section.entry(key) {
                cx.warn(found.at, Fault::new(format!("`{key}` has no effect on a local remote")));
            }
        }
        if !remote.package.may_be_local {
            let at = section.entry("package").map_or(entry.at, |found| found.at);
            let fault = Fault::new(format!("{} repositories cannot be local", remote.package.name));
            cx.error(
                at,
                fault.hint("choose another package; its files are served as they are"),
            );
        }
        return;
    }
    for key in UPLOAD_KEYS {
        if let Some(found) = section.entry(key) {
            let fault = Fault::new(format!(
                "`{key}` on a remote with an upstream, to which nothing is uploaded"
            ));
            cx.error(found.at, fault.hint(format!("remove `{key}`, or set `type: local`")));
        }
    }
    for key in PACKAGE_KEYS.into_iter().filter(|_| !remote.package.names_packages) {
        if let Some(found) = section.entry(key) {
            let package = remote.package.name;
            let fault = Fault::new(format!(
                "`{key}` has no effect: paths of package {package} name no packages"
            ));
            cx.warn(
                found.at,
                fault.hint("allow paths by `immutable_patterns`, or remove it"),
            );
        }
    }
    if remote.credentials_within == CredentialsWithin::BaseUrl
        && let Some(found) = section.entry("credentials_within")
    {
        if remote.base_url.as_ref().is_some_and(|base| base.path() == "/") {
            let fault = Fault::new("`credentials_within: base_url` narrows nothing: `base_url` has no path");
            cx.warn(found.at, fault.hint("add the path to `base_url`, or remove the key"));
        }
        if remote.credentials.is_none() && remote.headers.is_empty() {
            let fault = Fault::new("`credentials_within` without `username` or `headers`");
            cx.warn(found.at, fault.hint("remove it"));
        }
    }
    if let Some(pattern) = remote.package.metadata_pattern
        && remote.mutable_patterns.is_empty()
    {
        let then = match remote.immutable_patterns {
            None => "counts as immutable and is never refreshed",
            Some(_) => "is refused with 403, or never refreshed where `immutable_patterns` match it",
        };
        let package = remote.package.name;
        let fault = Fault::new(format!("{package} without `mutable_patterns`: package metadata {then}"));
        cx.warn(entry.at, fault.hint(format!("add `mutable_patterns: [{pattern}]`")));
    }
}
