//! Runtime settings: a flag wins over its variable, the variable over `conf/artifactapi.yaml`, that over the default.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use url::Url;

use super::address;
use super::certificates;
use super::context::Context;
use super::environment::Environment;
use super::flags::Flags;
use super::model::{
    CacheSettings, ClientSettings, Database, DatabaseTls, LogTarget, MinFree, OutboundProxies, S3, Secret, Settings,
    Timeouts, Tls, TlsMode, UpstreamSettings,
};
use super::package::{DefaultRemote, Package};
use super::problem::{Fault, Report};
use super::section::{Elsewhere, Section};
use super::tokens::{self, Token, Tokens};
use super::values::{self, shown};
use super::yaml;

const KEYS: &[&str] = &[
    "listen",
    "public_url",
    "tls",
    "trusted_proxies",
    "resolver",
    "stop_timeout",
    "access_log",
    "cache",
    "clients",
    "upstream",
    "tokens",
];

const ELSEWHERE: Elsewhere<'static> = &[
    ("disk_bytes", "under `cache:`"),
    ("disk_min_free", "under `cache:`"),
    ("memory_bytes", "under `cache:`"),
    ("sync", "under `cache:`"),
    ("scrub_rate", "under `cache:`"),
    ("connect_timeout", "under `upstream:`"),
    ("first_byte_timeout", "under `upstream:`"),
    ("idle_timeout", "under `upstream:`"),
    ("max_concurrent", "under `upstream:`"),
    ("connections", "under `clients:`"),
    ("connections_per_address", "under `clients:`"),
    ("head_timeout", "under `clients:`"),
    ("head_bytes", "under `clients:`"),
    ("body_timeout", "under `clients:`"),
    ("body_rate", "under `clients:`"),
    ("write_timeout", "under `clients:`"),
    ("http2_streams", "under `clients:`"),
    ("http2_unread", "under `clients:`"),
    ("max_per_remote", "under `upstream:`"),
    ("least_rate", "under `upstream:`"),
    ("rate_window", "under `upstream:`"),
    ("transfer_timeout", "under `upstream:`"),
    ("remotes", "in a file of its own: --remotes or ARTIFACTAPI_REMOTES"),
    (
        "data_dir",
        "on the command line (--data-dir) or in ARTIFACTAPI_DATA_DIR",
    ),
    ("admin_token", "in ARTIFACTAPI_ADMIN_TOKEN"),
    ("node_url", "in ARTIFACTAPI_NODE_URL"),
    ("node_secret", "in ARTIFACTAPI_NODE_SECRET"),
];

/// The key of a package type's section.
const DEFAULT_REMOTE: &str = "default_remote";

/// The keys of `upstream:` that a remote has too.
pub(super) const TIMEOUT_KEYS: [&str; 6] = [
    "connect_timeout",
    "first_byte_timeout",
    "idle_timeout",
    "least_rate",
    "rate_window",
    "transfer_timeout",
];

const CLIENT_KEYS: &[&str] = &[
    "connections",
    "connections_per_address",
    "head_timeout",
    "head_bytes",
    "idle_timeout",
    "body_timeout",
    "body_rate",
    "write_timeout",
    "http2_streams",
    "http2_unread",
];

/// What the file may set.
struct FromFile {
    listen: Option<Vec<SocketAddr>>,
    public_url: Option<Url>,
    tls: Option<Tls>,
    trusted_proxies: Vec<IpNet>,
    resolver: Vec<SocketAddr>,
    stop_timeout: Duration,
    access_log: LogTarget,
    cache: CacheSettings,
    clients: ClientSettings,
    upstream: UpstreamSettings,
    tokens: Vec<Token>,
    default_remotes: BTreeMap<&'static str, String>,
}

impl Default for FromFile {
    fn default() -> Self {
        let loopback4 = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);
        let loopback6 = Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128);
        FromFile {
            listen: None,
            public_url: None,
            tls: None,
            trusted_proxies: vec![IpNet::V4(loopback4), IpNet::V6(loopback6)],
            resolver: Vec::new(),
            stop_timeout: Duration::from_secs(30),
            access_log: LogTarget::Off,
            cache: CacheSettings {
                disk_bytes: 50_000_000_000,
                disk_min_free: MinFree::Percent(5.0),
                memory_bytes: 256_000_000,
                sync: false,
                scrub_rate: 4_000_000,
            },
            clients: ClientSettings::default(),
            upstream: UpstreamSettings {
                timeouts: Timeouts {
                    connect: Duration::from_secs(5),
                    first_byte: Duration::from_secs(30),
                    idle: Duration::from_secs(60),
                    least_rate: 1000,
                    rate_window: Duration::from_secs(300),
                    whole: Duration::from_secs(24 * 3600),
                },
                max_concurrent: 256,
                max_per_remote: share(256),
            },
            tokens: Vec::new(),
            default_remotes: BTreeMap::new(),
        }
    }
}

/// Puts the settings together. `conf` is the file's path and text, if there is one. What is wrong goes to `report`;
/// then the result serves only to look for further problems.
pub(super) fn read(
    packages: &[&'static Package],
    flags: &Flags,
    env: &Environment,
    conf: Option<(&Path, &str)>,
    report: &Report,
) -> Settings {
    let file = conf
        .map(|(file, text)| from_file(packages, file, text, env, report))
        .unwrap_or_default();
    let outside = Outside { env, report };
    let admin_token = outside.secret(("--admin-token", flags.admin_token.as_ref()), "ARTIFACTAPI_ADMIN_TOKEN");
    Settings {
        listen: outside
            .listen(&flags.listen)
            .or(file.listen)
            .unwrap_or_else(|| vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 8000))]),
        public_url: outside
            .parse(
                ("--public-url", flags.public_url.as_deref()),
                "ARTIFACTAPI_PUBLIC_URL",
                address::link_base,
            )
            .or(file.public_url),
        data_dir: outside.path(flags.data_dir.as_deref(), "ARTIFACTAPI_DATA_DIR", "./data"),
        remotes_file: outside.path(flags.remotes.as_deref(), "ARTIFACTAPI_REMOTES", "remotes.yaml"),
        trusted_proxies: file.trusted_proxies,
        resolver: file.resolver,
        stop_timeout: file.stop_timeout,
        access_log: file.access_log,
        tls: file.tls,
        cache: file.cache,
        clients: file.clients,
        upstream: file.upstream,
        default_remotes: outside.default_remotes(packages, &flags.default_remotes, file.default_remotes),
        outbound: outside.proxies(),
        tokens: Tokens::new(admin_token.as_ref(), file.tokens),
        admin_token,
        open_writes: outside.boolean("ARTIFACTAPI_OPEN_WRITES").unwrap_or(false),
        database: outside.database(),
        redis_url: outside.redis(),
        s3: outside.s3(),
        node_url: outside.parse(
            ("--node-url", flags.node_url.as_deref()),
            "ARTIFACTAPI_NODE_URL",
            address::link_base,
        ),
        node_secret: outside.secret(("--node-secret", flags.node_secret.as_ref()), "ARTIFACTAPI_NODE_SECRET"),
    }
    .checked(report)
}

impl Settings {
    /// Where HTTP is spoken, and where HTTPS is.
    pub fn listeners(&self) -> (&[SocketAddr], &[SocketAddr]) {
        match &self.tls {
            None => (&self.listen, &[]),
            Some(Tls { listen: None, .. }) => (&[], &self.listen),
            Some(Tls { listen: Some(own), .. }) => (&self.listen, own),
        }
    }

    /// Complains of what is half set.
    fn checked(self, report: &Report) -> Self {
        let missing = match (&self.node_url, &self.node_secret) {
            (Some(_), None) => Some(("ARTIFACTAPI_NODE_URL", "ARTIFACTAPI_NODE_SECRET")),
            (None, Some(_)) => Some(("ARTIFACTAPI_NODE_SECRET", "ARTIFACTAPI_NODE_URL")),
            _ => None,
        };
        if let Some((set, unset)) = missing {
            report.error(Fault::new(format!("{set} is set and {unset} is not")).hint("set both or neither"));
        }
        let (plain, tls) = self.listeners();
        if let Some(address) = plain
            .iter()
            .find(|address| address.port() != 0 && tls.contains(address))
        {
            let fault = Fault::new(format!("{address} is both in `listen` and in `tls.listen`"));
            report.error(fault.hint("one address speaks either HTTP or HTTPS: give each its own port"));
        }
        if self.open_writes && !self.tokens.is_empty() {
            let fault = Fault::new("ARTIFACTAPI_OPEN_WRITES lets everybody write, and tokens say who may");
            report.error(fault.hint("unset it, or configure neither `tokens` nor ARTIFACTAPI_ADMIN_TOKEN"));
        }
        self
    }
}

fn from_file(packages: &[&'static Package], file: &Path, text: &str, env: &Environment, report: &Report) -> FromFile {
    let mut result = FromFile::default();
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
            return result;
        }
    };
    for (at, fault) in document.errors {
        cx.error(at, fault);
    }
    for note in document.notes {
        let fault = Fault::new(format!(
            "{} is no escape in a double-quoted YAML string: taken as the backslash that was meant",
            note.escape
        ));
        cx.warn(
            note.at,
            fault.hint("write it in single quotes, or double the backslash"),
        );
    }
    let Some(root) = &document.root else { return result };
    let with_default = || packages.iter().filter(|package| package.default_remote.is_some());
    let keys: Vec<&'static str> = KEYS
        .iter()
        .copied()
        .chain(with_default().map(|package| package.name))
        .collect();
    let places: Vec<String> = with_default()
        .map(|package| format!("under `{}:`", package.name))
        .collect();
    let places = places.iter().map(|place| (DEFAULT_REMOTE, place.as_str()));
    let elsewhere: Vec<(&'static str, &str)> = ELSEWHERE.iter().copied().chain(places).collect();
    let top = Section::open(cx, root, "", &keys, &elsewhere);

    result.listen = listen(&top);
    result.public_url = top.parse("public_url", address::link_base);
    result.tls = certificates::of_listeners(&top);
    if let Some(networks) = top.list("trusted_proxies", address::network) {
        result.trusted_proxies = networks.into_iter().map(|(_, network)| network).collect();
    }
    if let Some(servers) = top.list("resolver", address::resolver_address) {
        result.resolver = servers.into_iter().map(|(_, server)| server).collect();
    }
    if let Some(limit) = top.timeout("stop_timeout") {
        result.stop_timeout = limit;
    }
    if let Some(target) = top.parse("access_log", |text| log_target(text, &cx)) {
        result.access_log = target;
    }
    let cache_keys = ["disk_bytes", "disk_min_free", "memory_bytes", "sync", "scrub_rate"];
    if let Some(cache) = top.section("cache", &cache_keys) {
        let defaults = result.cache;
        result.cache = CacheSettings {
            disk_bytes: cache.parse("disk_bytes", values::size).unwrap_or(defaults.disk_bytes),
            disk_min_free: cache
                .parse("disk_min_free", values::min_free)
                .unwrap_or(defaults.disk_min_free),
            memory_bytes: cache
                .parse("memory_bytes", values::size)
                .unwrap_or(defaults.memory_bytes),
            sync: cache.boolean("sync").unwrap_or(defaults.sync),
            scrub_rate: cache.parse("scrub_rate", values::size).unwrap_or(defaults.scrub_rate),
        };
    }
    if let Some(clients) = top.section("clients", CLIENT_KEYS) {
        result.clients = client_settings(&clients, result.clients);
    }
    let upstream_keys = [&TIMEOUT_KEYS[..], &["max_concurrent", "max_per_remote"]].concat();
    if let Some(upstream) = top.section("upstream", &upstream_keys) {
        result.upstream.timeouts = timeouts(&upstream, result.upstream.timeouts);
        let number = |key| {
            let number = upstream.integer(key, 1..=1_000_000)?;
            usize::try_from(number).ok()
        };
        if let Some(number) = number("max_concurrent") {
            result.upstream.max_concurrent = number;
            result.upstream.max_per_remote = share(number);
        }
        if let Some(number) = number("max_per_remote") {
            result.upstream.max_per_remote = number;
        }
    }
    result.tokens = tokens::read(&top);
    for package in with_default() {
        let section = top.section(package.name, &[DEFAULT_REMOTE]);
        if let Some(name) = section.and_then(|section| section.text(DEFAULT_REMOTE)) {
            result.default_remotes.insert(package.name, name.value);
        }
    }
    result
}

fn log_target(text: &str, cx: &Context<'_>) -> Result<LogTarget, Fault> {
    match text {
        "off" | "false" => Ok(LogTarget::Off),
        "stdout" => Ok(LogTarget::Stdout),
        _ => {
            let path = cx.resolve(text);
            match path.parent() {
                Some(folder) if folder.is_dir() && !path.is_dir() => Ok(LogTarget::File(path)),
                _ => Err(Fault::new("is no file in a folder that exists")
                    .hint("write off, stdout, or a file; its path is relative to this file")),
            }
        }
    }
}

fn client_settings(section: &Section<'_>, defaults: ClientSettings) -> ClientSettings {
    let head_bytes = section.parse("head_bytes", |text| {
        let bytes = values::size(text)?;
        match usize::try_from(bytes) {
            Ok(bytes @ 4096..=1_000_000) => Ok(bytes),
            _ => Err(Fault::new("must be from 4KiB to 1MB")),
        }
    });
    let body_rate = section.parse("body_rate", |text| match values::size(text)? {
        0 => Err(Fault::new("must be more than nothing").hint("write bytes per second, such as 1KB")),
        rate => Ok(rate),
    });
    let number = |key, default| {
        let number = section.integer(key, 1..=1_000_000);
        number
            .and_then(|number| usize::try_from(number).ok())
            .unwrap_or(default)
    };
    ClientSettings {
        connections: number("connections", defaults.connections),
        connections_per_address: number("connections_per_address", defaults.connections_per_address),
        head_timeout: section.timeout("head_timeout").unwrap_or(defaults.head_timeout),
        head_bytes: head_bytes.unwrap_or(defaults.head_bytes),
        idle_timeout: section.timeout("idle_timeout").unwrap_or(defaults.idle_timeout),
        body_timeout: section.timeout("body_timeout").unwrap_or(defaults.body_timeout),
        body_rate: body_rate.unwrap_or(defaults.body_rate),
        write_timeout: section.timeout("write_timeout").unwrap_or(defaults.write_timeout),
        http2_streams: section
            .integer("http2_streams", 1..=10_000)
            .unwrap_or(defaults.http2_streams),
        http2_unread: number("http2_unread", defaults.http2_unread),
    }
}

/// How many of the concurrent fetches may be one remote's, by default.
fn share(max_concurrent: usize) -> usize {
    max_concurrent.div_ceil(2).max(8).min(max_concurrent)
}

/// Reads the time-outs of an `upstream:`, of the settings or of a remote.
pub(super) fn timeouts(section: &Section<'_>, defaults: Timeouts) -> Timeouts {
    Timeouts {
        connect: section.timeout("connect_timeout").unwrap_or(defaults.connect),
        first_byte: section.timeout("first_byte_timeout").unwrap_or(defaults.first_byte),
        idle: section.timeout("idle_timeout").unwrap_or(defaults.idle),
        least_rate: section.parse("least_rate", values::size).unwrap_or(defaults.least_rate),
        rate_window: section.timeout("rate_window").unwrap_or(defaults.rate_window),
        whole: section.timeout("transfer_timeout").unwrap_or(defaults.whole),
    }
}

/// The addresses under `listen` of the settings, or of their `tls:`.
pub(super) fn listen(section: &Section<'_>) -> Option<Vec<SocketAddr>> {
    let entry = section.entry("listen")?;
    // One address may stand without brackets.
    let (number, addresses) = match &entry.value.content {
        yaml::Content::List(items) => (items.len(), section.list("listen", address::listen_address)),
        _ => (
            1,
            section
                .parse("listen", address::listen_address)
                .map(|address| vec![(entry.value.at, address)]),
        ),
    };
    let addresses = addresses.unwrap_or_default().into_iter();
    let addresses: Vec<SocketAddr> = addresses.map(|(_, address)| address).collect();
    // Else something has been complained about already.
    if addresses.len() != number {
        return None;
    }
    if let Err(fault) = check_listen(&addresses) {
        section.cx.error(entry.value.at, fault.about("`listen`"));
    }
    Some(addresses)
}

fn check_listen(addresses: &[SocketAddr]) -> Result<(), Fault> {
    if addresses.is_empty() {
        return Err(Fault::new("names no address").hint("write at least one, such as 127.0.0.1:8000"));
    }
    for (index, address) in addresses.iter().enumerate() {
        if address.port() != 0 && addresses[..index].contains(address) {
            return Err(Fault::new(format!("names {address} twice")).hint("remove one"));
        }
    }
    Ok(())
}

/// Settings from flags and variables.
struct Outside<'a> {
    env: &'a Environment,
    report: &'a Report,
}

impl<'a> Outside<'a> {
    fn variable(&self, name: &str) -> Option<&'a str> {
        self.env.get(name).unwrap_or_else(|fault| {
            self.report.error(fault);
            None
        })
    }

    fn complain<T>(&self, subject: &str, result: Result<T, Fault>) -> Option<T> {
        result.map_err(|fault| self.report.error(fault.about(subject))).ok()
    }

    /// The flag's value, or the variable's, made into something.
    fn parse<T>(
        &self,
        (flag, value): (&str, Option<&str>),
        variable: &str,
        parse: impl FnOnce(&str) -> Result<T, Fault>,
    ) -> Option<T> {
        let (name, text) = match value {
            Some(value) => (flag, value),
            None => (variable, self.variable(variable)?),
        };
        self.complain(&format!("{name} {}", shown(text)), parse(text))
    }

    /// By package type, the remote that is asked where clients name none; `file` is what the file says.
    fn default_remotes(
        &self,
        packages: &[&'static Package],
        flags: &HashMap<&'static str, String>,
        file: BTreeMap<&'static str, String>,
    ) -> BTreeMap<&'static str, String> {
        let mut names = file;
        for package in packages {
            let Some(DefaultRemote { flag, variable, .. }) = package.default_remote else {
                continue;
            };
            let flag = (flag, flags.get(package.name).map(String::as_str));
            if let Some(name) = self.parse(flag, variable, |name| Ok(name.to_owned())) {
                names.insert(package.name, name);
            }
        }
        names
    }

    fn path(&self, flag: Option<&Path>, variable: &str, default: &str) -> PathBuf {
        match flag {
            Some(path) => path.to_owned(),
            None => PathBuf::from(self.variable(variable).unwrap_or(default)),
        }
    }

    /// A secret that travels in a header.
    fn secret(&self, (flag, value): (&str, Option<&Secret>), variable: &str) -> Option<Secret> {
        let (name, text) = match value {
            Some(value) => (flag, value.reveal()),
            None => (variable, self.variable(variable)?),
        };
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            let fault = Fault::new(format!(
                "{name} is empty or holds something else than visible ASCII characters"
            ));
            self.report
                .error(fault.hint("it is sent in a header: use letters and digits, without spaces"));
        }
        Some(Secret::new(text))
    }

    fn boolean(&self, variable: &str) -> Option<bool> {
        let text = self.variable(variable)?;
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" => Some(true),
            "false" | "0" => Some(false),
            _ => {
                let fault = Fault::new(format!("{variable} {}: must be true or false", shown(text)));
                self.report.error(fault);
                None
            }
        }
    }

    fn listen(&self, flag: &[String]) -> Option<Vec<SocketAddr>> {
        let (name, texts) = if flag.is_empty() {
            ("ARTIFACTAPI_LISTEN", vec![self.variable("ARTIFACTAPI_LISTEN")?])
        } else {
            ("--listen", flag.iter().map(String::as_str).collect())
        };
        let texts = texts
            .into_iter()
            .flat_map(|text| text.split(','))
            .map(str::trim)
            .filter(|text| !text.is_empty());
        let parsed: Vec<Option<SocketAddr>> = texts
            .map(|text| self.complain(&format!("{name} {}", shown(text)), address::listen_address(text)))
            .collect();
        if parsed.contains(&None) {
            return None;
        }
        let addresses: Vec<SocketAddr> = parsed.into_iter().flatten().collect();
        self.complain(name, check_listen(&addresses))?;
        Some(addresses)
    }

    /// The lower-case name wins, as it does with curl.
    fn proxies(&self) -> OutboundProxies {
        let variable = |name: &str| {
            let lower = name.to_ascii_lowercase();
            match self.variable(&lower) {
                Some(value) => Some((lower, value)),
                None => self.variable(name).map(|value| (name.to_owned(), value)),
            }
        };
        let proxy = |name| {
            let (name, text) = variable(name)?;
            self.complain(&format!("{name} {}", shown(text)), address::proxy_url(text))
        };
        let separators = |c: char| c == ',' || c.is_whitespace();
        let exceptions = variable("NO_PROXY").map(|(_, text)| {
            text.split(separators)
                .filter(|entry| !entry.is_empty())
                .map(str::to_ascii_lowercase)
                .collect()
        });
        OutboundProxies {
            http: proxy("HTTP_PROXY"),
            https: proxy("HTTPS_PROXY"),
            no_proxy: exceptions.unwrap_or_default(),
        }
    }

    /// Whether a group of variables is set. Half set is an error that names what is missing.
    fn group(&self, what: &str, needed: &[&str], optional: &[&str]) -> bool {
        let is_set = |name: &&str| self.variable(name).is_some();
        let missing: Vec<&str> = needed.iter().filter(|name| !is_set(name)).copied().collect();
        let set: Vec<&str> = needed
            .iter()
            .chain(optional)
            .filter(|name| is_set(name))
            .copied()
            .collect();
        if set.is_empty() {
            return false;
        }
        if !missing.is_empty() {
            let fault = Fault::new(format!(
                "{what} is only half configured: {} set, {} missing",
                set.join(", "),
                missing.join(", ")
            ));
            self.report
                .error(fault.hint(format!("set {} too, or none of them", missing.join(", "))));
        }
        missing.is_empty()
    }

    fn database(&self) -> Option<Database> {
        if !self.group("PostgreSQL", &["DBHOST", "DBUSER", "DBNAME"], &["DBPORT", "DBPASS"]) {
            return None;
        }
        let port = match self.variable("DBPORT") {
            Some(text) => self.complain("DBPORT", address::port_number(text))?,
            None => 5432,
        };
        Some(Database {
            host: self.variable("DBHOST")?.to_owned(),
            port,
            user: self.variable("DBUSER")?.to_owned(),
            password: self.variable("DBPASS").map(Secret::new),
            name: self.variable("DBNAME")?.to_owned(),
            tls: self.database_tls()?,
        })
    }

    /// libpq's variables. They say nothing by themselves: other programs' may be set besides.
    fn database_tls(&self) -> Option<DatabaseTls> {
        let mut mode = match self.variable("PGSSLMODE") {
            Some(text) => self.complain(&format!("PGSSLMODE {}", shown(text)), tls_mode(text))?,
            None => TlsMode::default(),
        };
        let root_certificates = match self.variable("PGSSLROOTCERT") {
            Some("system") | None => None,
            Some(text) => {
                let path = PathBuf::from(text);
                self.complain(
                    &format!("PGSSLROOTCERT {}", shown(text)),
                    certificates::certificates(&path),
                )?;
                // As libpq has it: who names whom to trust wants that to be looked at.
                if mode == TlsMode::Require {
                    mode = TlsMode::VerifyCa;
                }
                Some(path)
            }
        };
        Some(DatabaseTls {
            mode,
            root_certificates,
        })
    }

    fn redis(&self) -> Option<Secret> {
        let text = self.variable("REDIS_URL")?;
        let hint = "write it like redis://host:6379, or rediss:// for TLS";
        let checked = match Url::parse(text) {
            Ok(url) if !matches!(url.scheme(), "redis" | "rediss") => {
                Err(Fault::new("must begin with redis:// or rediss://").hint(hint))
            }
            Ok(url) if url.host_str().is_none_or(str::is_empty) => Err(Fault::new("has no host").hint(hint)),
            Ok(_) => Ok(Secret::new(text)),
            Err(error) => Err(Fault::new(format!("not a URL: {error}")).hint(hint)),
        };
        self.complain("REDIS_URL", checked)
    }

    fn s3(&self) -> Option<S3> {
        let needed = ["MINIO_ENDPOINT", "MINIO_ACCESS_KEY", "MINIO_SECRET_KEY", "MINIO_BUCKET"];
        let secure = self.boolean("MINIO_SECURE");
        if !self.group("S3", &needed, &["MINIO_SECURE"]) {
            return None;
        }
        let text = self.variable("MINIO_ENDPOINT")?;
        let endpoint = self.complain(&format!("MINIO_ENDPOINT {}", shown(text)), s3_endpoint(text, secure))?;
        Some(S3 {
            endpoint,
            access_key: Secret::new(self.variable("MINIO_ACCESS_KEY")?),
            secret_key: Secret::new(self.variable("MINIO_SECRET_KEY")?),
            bucket: self.variable("MINIO_BUCKET")?.to_owned(),
            // Of no group: it is set on many machines, whoever uses it.
            region: self.variable("AWS_REGION").map(str::to_owned),
        })
    }
}

fn tls_mode(text: &str) -> Result<TlsMode, Fault> {
    let mode = TlsMode::ALL.into_iter().find(|mode| mode.name() == text);
    mode.ok_or_else(|| {
        let known = TlsMode::ALL.map(TlsMode::name).join(", ");
        Fault::new(format!("must be one of {known}"))
    })
}

/// `host[:port]`, or with a scheme, which must not contradict `MINIO_SECURE`.
fn s3_endpoint(text: &str, secure: Option<bool>) -> Result<Url, Fault> {
    let text = match text.contains("://") {
        true => text.to_owned(),
        false if secure == Some(true) => format!("https://{text}"),
        false => format!("http://{text}"),
    };
    let url = address::web_url(&text, "use MINIO_ACCESS_KEY and MINIO_SECRET_KEY")?;
    if let Some(secure) = secure.filter(|secure| *secure != (url.scheme() == "https")) {
        let fault = Fault::new(format!("contradicts MINIO_SECURE, which is {secure}"));
        return Err(fault.hint("leave the scheme out, or make MINIO_SECURE agree with it"));
    }
    if url.path() != "/" {
        return Err(Fault::new("has a path").hint("name the bucket in MINIO_BUCKET"));
    }
    Ok(url)
}
